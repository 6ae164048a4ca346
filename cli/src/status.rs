//! `status`: the current state of a run.

use redis_locking_worker::{RunState, Snapshot};
use serde_json::{Value, json};

use crate::args;
use crate::exit::Exit;
use crate::print::print;
use crate::server;
use crate::text::{self, plain, seconds};

pub(crate) async fn status(args: args::Status) -> Exit {
    let worker = match server::reach(args.reach()).await {
        Ok(worker) => worker,
        Err(exit) => return exit,
    };
    let run = match worker.inspect().await {
        Ok(run) => run,
        Err(error) => return server::refused(&error),
    };
    let key = worker.key().as_bytes();
    let shown = match args.json {
        true => format!("{}\n", as_json(key, &run)),
        false => as_text(key, &run),
    };
    print(shown.as_bytes())
}

/// Returns the run as JSON. The names are those of `Snapshot`, except that `remaining_ms` has its
/// unit in its name.
fn as_json(key: &[u8], run: &Snapshot) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let previous = run.previous.as_ref().map(|previous| {
        json!({
            "attempt": previous.attempt,
            "holder": previous.holder,
            "reason": previous.reason.to_string(),
            "checkpoint": text(&previous.checkpoint),
        })
    });
    json!({
        "key": text(key),
        "state": run.state.to_string(),
        "attempt": run.attempt,
        "max_attempts": run.max_attempts,
        "holder": run.holder,
        "fencing_token": run.fencing_token,
        "remaining_ms": u64::try_from(run.remaining.as_millis()).unwrap_or(u64::MAX),
        "previous": previous,
        "result": text(&run.result),
        "line": run.line,
    })
}

fn as_text(key: &[u8], run: &Snapshot) -> String {
    let mut rows = vec![("key", text::key(key)), ("state", run.state.to_string())];
    if run.state != RunState::Free {
        rows.push((
            "attempt",
            format!("{} of {}", run.attempt, run.max_attempts),
        ));
        rows.push(("token", run.fencing_token.to_string()));
        rows.push(("remaining", seconds(run.remaining)));
    }
    if !run.holder.is_empty() {
        rows.push(("holder", plain(&run.holder)));
    }
    if let Some(previous) = &run.previous {
        let (attempt, holder, reason) = (previous.attempt, &previous.holder, &previous.reason);
        let previous = format!("attempt {attempt} by {holder}: {reason}");
        rows.push(("previous", plain(&previous)));
    }
    if !run.result.is_empty() {
        rows.push(("result", text::key(&run.result)));
    }
    if let Some(line) = run.line.as_ref().filter(|line| !line.is_empty()) {
        rows.push(("waiting", plain(&line.join(", "))));
    }
    let rows = rows.into_iter();
    rows.map(|(name, value)| format!("{name:<9}  {value}\n"))
        .collect()
}
