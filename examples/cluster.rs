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

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use common::{Call, Fleet, Result, Role, now};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis_locking_worker::{Builder, LockEvent, LockingWorker, Memory, StatusLevel};

/// How long an attempt takes: long enough for the whole fleet to be there.
const WORK: Duration = Duration::from_millis(200);

/// A fleet of workers races for one piece of work.
#[derive(Clone, Debug, Parser)]
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
    #[command(flatten)]
    call: Call,
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
            .max_attempts(self.attempts)
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

/// What a worker reports: something to print, or the time at which something happened.
#[derive(Clone, Debug)]
enum Report {
    Says(String),
    /// It began this attempt, at this time in µs.
    Begins(u32, u64),
    /// It failed to do the work at this time in µs.
    Fails(u64),
    Ends(String),
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
                tokio::time::sleep(WORK).await;
                if args.succeeds(guard.attempt()) {
                    let last = guard.is_last_attempt();
                    match guard.done().await {
                        Ok(()) => {
                            says(format!("completed work successfully, last attempt? {last}"))
                        }
                        Err(error) => says(format!("could not complete the work: {error}")),
                    }
                } else {
                    says("failed to do work".to_owned());
                    role.says(Report::Fails(now()));
                    drop(guard);
                }
            }
            LockEvent::Locked(_) if !waits => {
                waits = true;
                says("did not acquire lock".to_owned());
            }
            LockEvent::Status(status) => says(format!("Status message from lock: {status}")),
            LockEvent::Completed(completed) => role.says(Report::Ends(format!(
                "{} completed the work at attempt #{}.",
                completed.holder, completed.attempt
            ))),
            LockEvent::MaxAttempts(given_up) => role.says(Report::Ends(format!(
                "The work was given up after {} attempts, the last one by {}.",
                given_up.attempts, given_up.holder
            ))),
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
    let args = Args::parse();
    common::exit(match args.call.role() {
        Some(role) => work(role, args).await,
        None => race(args).await,
    })
}

async fn race(mut args: Args) -> Result<()> {
    let seed = *args.seed.get_or_insert_with(rand::random::<u64>);
    // Wrong settings are told of once, not by every worker.
    let settings = LockingWorker::builder("cluster-example").in_memory(&Memory::new());
    args.settings(settings).build().await?;

    let mut fleet = Fleet::of("cluster").await?;
    fleet.args.push(format!("--seed={seed}"));
    fleet.start_all(args.workers(), |role| work(role, args.clone()))?;

    let (mut outcome, mut failed_at, mut takeovers) = (None, None, Vec::new());
    while let Some((_, line)) = fleet.hear().await {
        match Report::from_line(&line).unwrap_or(Report::Says(line)) {
            Report::Says(text) => println!("{text}"),
            Report::Begins(attempt, at) => {
                if let Some(failed_at) = failed_at.take() {
                    takeovers.push((attempt, at.saturating_sub(failed_at)));
                }
            }
            Report::Fails(at) => failed_at = Some(at),
            Report::Ends(text) => outcome = Some(text),
        }
    }
    let outcome = outcome.ok_or("no worker saw the end of the run")?;
    println!("\n{outcome} (seed {seed})");
    for (attempt, micros) in takeovers {
        println!(
            "Attempt #{attempt} began {:.2} ms after the failure before it",
            micros as f64 / 1e3
        );
    }
    fleet.end().await
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Says(text) => write!(f, "says {text}"),
            Report::Begins(attempt, at) => write!(f, "begins {attempt} {at}"),
            Report::Fails(at) => write!(f, "fails {at}"),
            Report::Ends(text) => write!(f, "ends {text}"),
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
            "ends" => Report::Ends(rest.to_owned()),
            _ => return None,
        })
    }
}
