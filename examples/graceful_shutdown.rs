//! A worker that is told to stop hands its work over: the successor goes on where it was, and no
//! attempt is counted.
//!
//! ```text
//! cargo run --example graceful_shutdown
//! ```
//!
//! Two workers want the same work of 20 rows. The one that has it gets SIGTERM half-way. With
//! `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free port and
//! stops again), the workers are processes and the signal is a signal. With neither they are tasks on
//! the memory store, and it is a token that is cancelled.

mod common;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use common::{Fleet, Result, Role, check, now};
use futures::StreamExt;
use redis_locking_worker::{LockEvent, RenewError, WorkGuard};

const ROWS: u32 = 20;

/// The work: each row that is done is left as a checkpoint.
async fn rows(role: &Role, guard: &WorkGuard, first: u32) -> Result<(), RenewError> {
    for row in first..=ROWS {
        tokio::time::sleep(Duration::from_millis(50)).await;
        guard.checkpoint(row.to_string()).await?;
        role.says(format!("row {row}"));
    }
    Ok(())
}

/// Where the attempt before left off.
fn first_row(guard: &WorkGuard) -> u32 {
    let checkpoint = guard.previous().map(|previous| &previous.checkpoint[..]);
    let done = std::str::from_utf8(checkpoint.unwrap_or_default()).unwrap_or_default();
    done.parse::<u32>().map_or(1, |row| row + 1)
}

async fn work(role: Role) -> Result<()> {
    let mut shutdown = role.shutdown()?;
    let worker = role.builder().renew().build().await?;
    let mut events = worker.acquire();
    loop {
        // Waiting in line: dropping the stream is all it takes.
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut shutdown => break,
        };
        match event {
            Some(LockEvent::Acquired(guard)) => {
                let first = first_row(&guard);
                role.says(format!("begins {} {first} {}", guard.attempt(), now()));
                tokio::select! {
                    worked = guard.run(rows(&role, &guard, first)) => {
                        worked??;
                        guard.done_with(format!("{ROWS} rows")).await?;
                    }
                    () = &mut shutdown => {
                        guard.hand_off().await?;
                        role.says(format!("says {role} has handed its work over"));
                        break;
                    }
                }
            }
            Some(LockEvent::Completed(completed)) => {
                let result = String::from_utf8_lossy(&completed.result).into_owned();
                let by = completed.holder;
                role.says(format!("says {role} hears of {result}, done by {by}"));
            }
            Some(_) => {}
            None => break,
        }
    }
    drop(events);
    // Whatever was dropped has reached the server before this process ends.
    worker.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(|role, ()| work(role), |()| fleet()).await
}

async fn fleet() -> Result<()> {
    let mut fleet = Fleet::of("graceful-shutdown").await?;
    fleet.start_all(2, work)?;

    let (mut begun, mut rows) = (Vec::new(), BTreeMap::<u32, u32>::new());
    let mut terminated = None;
    while let Some((number, line)) = fleet.hear().await {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["begins", attempt, row, at] => {
                println!("Worker {number} begins attempt #{attempt} at row {row}");
                begun.push((number, attempt.parse::<u32>()?, row.parse::<u32>()?));
                if let Some(terminated) = terminated {
                    let took = at.parse::<u64>()?.saturating_sub(terminated);
                    println!("... {:.2} ms after the signal", took as f64 / 1e3);
                }
            }
            ["row", row] => {
                let row = row.parse()?;
                rows.insert(number, row);
                if row >= ROWS / 2 && terminated.is_none() {
                    println!("Worker {number} has done row {row}, and gets SIGTERM");
                    terminated = Some(now());
                    fleet.terminate(number)?;
                }
            }
            _ => println!("{}", line.strip_prefix("says ").unwrap_or(&line)),
        }
    }
    fleet.end().await?;

    let goes_on = match begun[..] {
        // A row may have been left as a checkpoint and not been told of.
        [(first, 1, 1), (_, 1, row)] => row > rows[&first],
        // On a slow machine the signal may come too late.
        [(only, 1, 1)] => rows[&only] == ROWS,
        _ => false,
    };
    check(
        goes_on,
        "the successor goes on where the work was left, and no attempt is counted",
    )
}
