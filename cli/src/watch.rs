//! `watch`: the transitions of keys, as they happen.

mod screen;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, select_all};
use futures::{FutureExt, StreamExt};
use redis_locking_worker::{Error, LockingWorker, RunState, Snapshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::args;
use crate::exit::Exit;
use crate::server;
use crate::signals::Signals;
use crate::text;
use screen::{Row, Screen};

/// Interval at which the table is drawn, with what is left of each lease.
const FRAME: Duration = Duration::from_millis(100);

/// Interval at which we read the waiters, besides at every transition: the server does not publish
/// changes of the queue.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn watch(args: args::Watch) -> Exit {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(exit) => return exit,
    };
    let worker = tokio::select! {
        worker = server::reach(args.reach()) => match worker {
            Ok(worker) => worker,
            Err(exit) => return exit,
        },
        signal = signals.end() => return Exit::Signal(signal),
    };
    let keys = args.keys().map(|key| worker.with_key(key.as_bytes()));
    let workers: Vec<LockingWorker> = match keys.collect() {
        Ok(workers) => workers,
        Err(error) => {
            say!("{}", text::chain(&error));
            return Exit::Usage;
        }
    };
    let news = workers.iter().enumerate();
    let news =
        select_all(news.map(|(nth, worker)| worker.watch().map(move |seen| (nth, seen)).boxed()));
    let shown = async {
        match io::stdout().is_terminal() {
            true => live(&workers, news).await,
            false => lines(&workers, news).await,
        }
    };
    tokio::select! {
        exit = shown => exit,
        _ = signals.end() => Exit::Done,
    }
}

type Seen = (usize, Result<Snapshot, Error>);

/// Prints a line for each transition, but none for a renewal.
async fn lines(workers: &[LockingWorker], mut news: impl Stream<Item = Seen> + Unpin) -> Exit {
    let mut last = vec![None; workers.len()];
    while let Some((nth, seen)) = news.next().await {
        let key = text::key(workers[nth].key().as_bytes());
        let line = match seen {
            Ok(run) => {
                let step = (run.state, run.attempt, run.fencing_token);
                if last[nth].replace(step) == Some(step) {
                    continue;
                }
                sentence(&run)
            }
            Err(error) => {
                last[nth] = None;
                text::chain(&error)
            }
        };
        let line = format!("{key}: {}\n", text::plain(&line));
        if let Err(error) = io::stdout().write_all(line.as_bytes()) {
            return unwritten(&error);
        }
    }
    // Every stream has ended with an error, which was printed.
    Exit::Server
}

/// Returns the exit code for output that could not be written. A broken pipe is a success: the
/// reader may stop reading early.
fn unwritten(error: &io::Error) -> Exit {
    if error.kind() == ErrorKind::BrokenPipe {
        return Exit::Done;
    }
    say!("{error}");
    Exit::Failed
}

fn sentence(run: &Snapshot) -> String {
    let (state, holder) = (run.state, &run.holder);
    let attempt = format!("attempt {} of {}", run.attempt, run.max_attempts);
    match (state, &run.previous) {
        (RunState::Free, _) => state.to_string(),
        (RunState::Held | RunState::Granted | RunState::Completed, None) => {
            format!("{state} by {holder}, {attempt}")
        }
        (RunState::Held | RunState::Granted | RunState::Completed, Some(previous)) => {
            let reason = &previous.reason;
            format!(
                "{state} by {holder}, {attempt}, after attempt {} by {}: {reason}",
                previous.attempt, previous.holder
            )
        }
        (_, None) => format!("{state}, {attempt}"),
        (_, Some(previous)) => format!(
            "{state}, {attempt}, by {}: {}",
            previous.holder, previous.reason
        ),
    }
}

/// Draws a table, and keeps it up to date.
async fn live(workers: &[LockingWorker], mut news: impl Stream<Item = Seen> + Unpin) -> Exit {
    let mut views: Vec<View> = workers.iter().map(View::new).collect();
    let mut screen = Screen::new();
    let mut looks: FuturesUnordered<BoxFuture<'_, Seen>> = FuturesUnordered::new();
    let (mut frames, mut looking) = (interval(FRAME), interval(LOOK));
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    looking.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut open = true;
    loop {
        let mut due = Vec::new();
        tokio::select! {
            seen = news.next(), if open => match seen {
                Some((nth, seen)) => {
                    views[nth].see(seen);
                    due.push(nth);
                }
                // Every stream has ended with an error. The next frame still shows it.
                None => open = false,
            },
            Some((nth, looked)) = looks.next() => views[nth].look(looked),
            _ = looking.tick() => due.extend(0..views.len()),
            _ = frames.tick() => {
                let now = Instant::now();
                let rows: Vec<Row> = views.iter().map(|view| view.row(now)).collect();
                if let Err(error) = screen.show(&rows) {
                    return unwritten(&error);
                }
                if !open {
                    return Exit::Server;
                }
            }
        }
        for nth in due {
            if views[nth].begins_to_look() {
                let worker = workers[nth].clone();
                looks.push(async move { (nth, worker.inspect().await) }.boxed());
            }
        }
    }
}

/// The state of a key as far as it is known.
struct View {
    key: String,
    run: Option<Snapshot>,
    /// Time when `run` arrived.
    at: Instant,
    /// Longest remainder seen of this lease, at which the bar is full.
    whole: Duration,
    line: Vec<String>,
    error: Option<String>,
    looks: bool,
}

impl View {
    fn new(worker: &LockingWorker) -> Self {
        Self {
            key: text::key(worker.key().as_bytes()),
            run: None,
            at: Instant::now(),
            whole: Duration::ZERO,
            line: Vec::new(),
            error: None,
            looks: false,
        }
    }

    fn see(&mut self, seen: Result<Snapshot, Error>) {
        match seen {
            Ok(run) => {
                let same = |before: &Snapshot| {
                    (before.state, before.fencing_token) == (run.state, run.fencing_token)
                };
                let before = self.run.as_ref().is_some_and(same);
                self.whole = match before {
                    true => self.whole.max(run.remaining),
                    false => run.remaining,
                };
                (self.run, self.at, self.error) = (Some(run), Instant::now(), None);
            }
            Err(error) => self.error = Some(text::chain(&error)),
        }
    }

    /// Takes in an answer to `inspect`: only that lists the waiters. The record itself comes by
    /// push, in order, so the rest of the answer is ignored.
    fn look(&mut self, looked: Result<Snapshot, Error>) {
        self.looks = false;
        if let Ok(run) = looked {
            self.line = run.line.unwrap_or_default();
        }
    }

    /// Whether a request may begin: at most one is under way, however long it takes.
    fn begins_to_look(&mut self) -> bool {
        !std::mem::replace(&mut self.looks, true)
    }

    fn row(&self, now: Instant) -> Row {
        let run = self.run.as_ref();
        Row {
            key: self.key.clone(),
            state: run.map(|run| run.state),
            attempt: run.map_or(0, |run| run.attempt),
            max_attempts: run.map_or(0, |run| run.max_attempts),
            holder: run.map_or(String::new(), |run| run.holder.clone()),
            left: run.map_or(Duration::ZERO, |run| {
                run.remaining.saturating_sub(now - self.at)
            }),
            whole: self.whole,
            waits: self.line.clone(),
            previous: run.and_then(|run| run.previous.as_ref()).map(|previous| {
                format!(
                    "attempt {} by {}: {}",
                    previous.attempt, previous.holder, previous.reason
                )
            }),
            error: self.error.clone(),
        }
    }
}
