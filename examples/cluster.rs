//! A fleet of workers races for one piece of work that mostly fails, as the ancestor's example did.
//!
//! ```text
//! cargo run --example cluster
//! cargo run --example cluster -- --workers 8 --chance 0.5 --seed 7
//! ```
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free
//! port and stops again), the workers are processes. With neither they are tasks on the memory
//! store.

mod common;

use std::collections::BTreeSet;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use common::{Fleet, Result, Role, check, now};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis_locking_worker::{Builder, LockEvent, LockingWorker, Memory, StatusLevel};

/// How long an attempt takes: long enough for the whole fleet to be there.
const WORK: Duration = Duration::from_millis(200);

/// A fleet of workers races for one piece of work.
#[derive(Clone, Debug, clap::Args)]
#[command(args_override_self = true)]
struct Args {
    /// How many workers [default: one per core, at least 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// The chance that an attempt completes the work, from 0 to 1
    #[arg(long, default_value_t = 0.15, value_parser = chance)]
    chance: f64,
    /// Decides which attempts complete the work [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// The lock timeout in ms
    #[arg(long, default_value_t = 5_000)]
    lock_timeout: u64,
    /// The attempts before the work is given up
    #[arg(long, default_value_t = 5)]
    attempts: u32,
    /// How much the workers tell of their progress
    #[arg(long, value_enum, default_value_t = Verbosity::Verbose)]
    verbosity: Verbosity,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Verbosity {
    Normal,
    Verbose,
}

fn chance(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(chance) if (0.0..=1.0).contains(&chance) => Ok(chance),
        _ => Err("a chance is a number from 0 to 1".to_owned()),
    }
}

impl Args {
    fn settings(&self, builder: Builder) -> Builder {
        builder
            .lock_timeout(Duration::from_millis(self.lock_timeout))
            // An attempt may take longer than that.
            .renew()
            .max_attempts(self.attempts)
            // Longer than the fleet takes to be there.
            .retention(Duration::from_secs(60))
            // As in the ancestor a worker that failed stands aside, unless the fleet is too small
            // for all the attempts: then it waits in line again.
            .rejoin(self.workers() < self.attempts)
            .status_level(match self.verbosity {
                Verbosity::Normal => StatusLevel::Normal,
                Verbosity::Verbose => StatusLevel::Verbose,
            })
    }

    fn workers(&self) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        self.workers.unwrap_or(cores.max(4))
    }

    /// The same seed, the same attempt, the same luck: whoever makes the attempt.
    fn succeeds(&self, attempt: u32) -> bool {
        let seed = self.seed.unwrap_or_default() ^ u64::from(attempt) << 32;
        StdRng::seed_from_u64(seed).gen_bool(self.chance)
    }
}

/// What a worker reports: something to print, or what it has seen of the run.
#[derive(Clone, Debug)]
enum Report {
    Says(String),
    /// It began this attempt, at this time in µs.
    Begins(u32, u64),
    /// It failed to do the work at this time in µs.
    Fails(u64),
    Ends(End),
}

/// How the run ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    completed: bool,
    /// The last attempt.
    attempt: u32,
    holder: String,
}

/// The race itself, as one worker sees it.
async fn work(role: Role, args: Args) -> Result<()> {
    let says = |what: String| role.says(Report::Says(format!("{role} {what}")));
    let worker = args.settings(role.builder()).build().await?;
    let mut waits = false;
    let mut events = worker.acquire();
    while let Some(event) = events.next().await {
        match event {
            LockEvent::Acquired(guard) => {
                role.says(Report::Begins(guard.attempt(), now()));
                match guard.run(tokio::time::sleep(WORK)).await {
                    Ok(()) if args.succeeds(guard.attempt()) => {
                        let last = guard.is_last_attempt();
                        match guard.done().await {
                            Ok(()) => {
                                says(format!("completed work successfully, last attempt? {last}"))
                            }
                            Err(error) => says(format!("could not complete the work: {error}")),
                        }
                    }
                    Ok(()) => {
                        says("failed to do work".to_owned());
                        role.says(Report::Fails(now()));
                        drop(guard);
                    }
                    Err(lost) => says(format!("stopped its work: {lost}")),
                }
            }
            LockEvent::Locked(_) if !waits => {
                waits = true;
                says("did not acquire lock".to_owned());
            }
            LockEvent::Status(status) => says(format!("Status message from lock: {status}")),
            LockEvent::Completed(completed) => role.says(Report::Ends(End {
                completed: true,
                attempt: completed.attempt,
                holder: completed.holder.to_string(),
            })),
            LockEvent::GaveUp(gave_up) => role.says(Report::Ends(End {
                completed: false,
                attempt: gave_up.attempts,
                holder: gave_up.holder.to_string(),
            })),
            LockEvent::Error(error) => says(format!("Error from lock: {error}")),
            _ => {}
        }
    }
    drop(events);
    worker.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(work, race).await
}

async fn race(mut args: Args) -> Result<()> {
    let seed = *args.seed.get_or_insert_with(rand::random::<u64>);
    // Wrong settings are told of once, not by every worker.
    let settings = LockingWorker::builder("cluster-example").in_memory(&Memory::new());
    args.settings(settings).build().await?;

    let mut fleet = Fleet::of("cluster").await?;
    fleet.args.push(format!("--seed={seed}"));
    fleet.start_all(args.workers(), |role| work(role, args.clone()))?;

    let (mut begun, mut ends) = (BTreeSet::new(), BTreeSet::new());
    let (mut failed_at, mut takeovers) = (None, Vec::new());
    while let Some((_, line)) = fleet.hear().await {
        match Report::from_line(&line).unwrap_or(Report::Says(line)) {
            Report::Says(text) => println!("{text}"),
            Report::Begins(attempt, at) => {
                begun.insert(attempt);
                if let Some(failed_at) = failed_at.take() {
                    takeovers.push((attempt, at.saturating_sub(failed_at)));
                }
            }
            Report::Fails(at) => failed_at = Some(at),
            Report::Ends(end) => drop(ends.insert(end)),
        }
    }
    fleet.end().await?;

    println!("\nSeed: {seed}");
    for end in &ends {
        println!("{end}");
    }
    for (attempt, micros) in takeovers {
        println!(
            "Attempt #{attempt} began {:.2} ms after the failure before it",
            micros as f64 / 1e3
        );
    }
    check(ends.len() == 1, "all who wait are told of the same end")?;
    let lucky = (1..=args.attempts).find(|&attempt| args.succeeds(attempt));
    let (completed, last) = (lucky.is_some(), lucky.unwrap_or(args.attempts));
    check(
        ends.iter()
            .all(|end| (end.completed, end.attempt) == (completed, last)),
        "the first attempt that succeeds completes the work, and without one it is given up",
    )?;
    check(
        begun.into_iter().eq(1..=last),
        "every attempt is made, and none after the last",
    )
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            attempt, holder, ..
        } = self;
        match self.completed {
            true => write!(f, "{holder} completed the work at attempt #{attempt}."),
            false => write!(
                f,
                "The work was given up after {attempt} attempts, the last one by {holder}."
            ),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Says(text) => write!(f, "says {text}"),
            Report::Begins(attempt, at) => write!(f, "begins {attempt} {at}"),
            Report::Fails(at) => write!(f, "fails {at}"),
            Report::Ends(end) => write!(f, "ends {} {} {}", end.completed, end.attempt, end.holder),
        }
    }
}

impl Report {
    fn from_line(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        Some(match kind {
            "says" => Report::Says(rest.to_owned()),
            "begins" => {
                let (attempt, at) = rest.split_once(' ')?;
                Report::Begins(attempt.parse().ok()?, at.parse().ok()?)
            }
            "fails" => Report::Fails(rest.parse().ok()?),
            "ends" => {
                let (completed, rest) = rest.split_once(' ')?;
                let (attempt, holder) = rest.split_once(' ')?;
                Report::Ends(End {
                    completed: completed.parse().ok()?,
                    attempt: attempt.parse().ok()?,
                    holder: holder.to_owned(),
                })
            }
            _ => return None,
        })
    }
}
