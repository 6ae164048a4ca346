//! What a fencing token is for: a holder that was paused past its lease writes late.
//!
//! ```text
//! cargo run --example fencing
//! ```
//!
//! Worker 1 has the work and is stopped. Its lease ends, worker 2 does the work and writes it down.
//! Then worker 1 goes on, knows of nothing, and writes too: into a store that takes everything, and
//! into one that looks at the fencing token. docs/fencing.md has more about it.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free port
//! and stops again), the workers are processes, stopped by SIGSTOP. With neither they are tasks on the
//! memory store, and the first one waits.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::{Fleet, Result, Role, check};
use futures::StreamExt;
use redis_locking_worker::LockEvent;

const LEASE: Duration = Duration::from_millis(500);

/// A store of one's own: it may be a table with a column for the token, or an object store with
/// conditional writes.
#[derive(Default)]
struct Store {
    text: String,
    /// The highest token seen, if it looks at them.
    highest: Option<u64>,
}

impl Store {
    fn write(&mut self, token: u64, text: &str) -> Result<(), String> {
        if let Some(highest) = &mut self.highest {
            if token < *highest {
                return Err(format!("token {token} is lower than {highest}"));
            }
            *highest = token;
        }
        self.text = text.to_owned();
        Ok(())
    }
}

async fn work(role: Role) -> Result<()> {
    let mut resumed = role.resumed()?;
    let worker = role.builder().lock_timeout(LEASE).build().await?;
    let mut events = worker.acquire();
    while let Some(event) = events.next().await {
        if let LockEvent::Acquired(guard) = event {
            role.says("begins");
            if role.number == 1 {
                // It is stopped here, however long its owner takes to do so.
                (&mut resumed).await;
            }
            // Looking at the guard here would help only until the next line.
            role.says(format!("writes {}", guard.fencing_token()));
            match guard.done().await {
                Ok(()) => role.says("ends: done"),
                Err(error) => role.says(format!("ends: {error}")),
            }
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(|role, ()| work(role), |()| fleet()).await
}

async fn fleet() -> Result<()> {
    let mut fleet = Fleet::of("fencing").await?;
    println!("{}", fleet.describe(2));
    let mut plain = Store::default();
    let mut fenced = Store {
        highest: Some(0),
        ..Store::default()
    };
    fleet.start(work)?;
    let mut refused = 0;
    while let Some((number, line)) = fleet.hear().await {
        match line.split_once(' ') {
            None => {
                println!("Worker {number} begins");
                if number == 1 {
                    // As a long garbage collection does, or a laptop that is closed.
                    fleet.pause(1)?;
                    println!("Worker 1 is stopped, for longer than its lease");
                    fleet.start(work)?;
                }
            }
            Some(("writes", token)) => {
                println!("Worker {number} writes, with fencing token {token}");
                let (token, text) = (token.parse()?, format!("the work of worker {number}"));
                let _ = plain.write(token, &text);
                if let Err(why) = fenced.write(token, &text) {
                    println!("The store that looks at tokens refuses: {why}");
                    refused += 1;
                }
            }
            Some((_, how)) => {
                println!("Worker {number}: {how}");
                if number == 2 {
                    println!("Worker 1 goes on");
                    fleet.resume(1)?;
                }
            }
        }
    }
    fleet.end().await?;
    println!("\nThe store that takes everything holds {}", plain.text);
    println!("The store that looks at tokens holds {}", fenced.text);
    check(refused == 1, "the late write is refused")?;
    check(fenced.text.ends_with('2'), "what worker 2 wrote is kept")
}
