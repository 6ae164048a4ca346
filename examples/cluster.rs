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

use std::error::Error;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use common::{Place, now};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis_locking_worker::{Builder, LockEvent, LockingWorker, Memory, StatusLevel};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;

/// How long an attempt takes: long enough for the whole fleet to be there.
const WORK: Duration = Duration::from_millis(200);

/// A fleet of workers races for one piece of work.
#[derive(Clone, Debug, Parser)]
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
    /// The number of this worker, its server and its key: how the example calls itself
    #[arg(long, hide = true, num_args = 3)]
    worker: Option<Vec<String>>,
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
    fn builder(&self, key: &str, number: u32) -> Builder {
        LockingWorker::builder(key)
            .label(format!("Worker {number}"))
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
async fn work(
    worker: LockingWorker,
    args: &Args,
    report: impl Fn(Report),
) -> Result<(), Box<dyn Error>> {
    let name = worker.label().to_owned();
    let says = |what: String| report(Report::Says(format!("{name} {what}")));
    let mut waits = false;
    let mut events = worker.acquire();
    while let Some(event) = events.next().await {
        match event {
            LockEvent::Acquired(guard) => {
                report(Report::Begins(guard.attempt(), now()));
                tokio::time::sleep(WORK).await;
                if args.succeeds(guard.attempt()) {
                    let last = guard.is_last_attempt();
                    guard.done().await?;
                    says(format!("completed work successfully, last attempt? {last}"));
                } else {
                    says("failed to do work".to_owned());
                    report(Report::Fails(now()));
                    drop(guard);
                }
            }
            LockEvent::Locked(_) if !waits => {
                waits = true;
                says("did not acquire lock".to_owned());
            }
            LockEvent::Status(status) => says(format!("Status message from lock: {status}")),
            LockEvent::Completed(completed) => report(Report::Ends(format!(
                "{} completed the work at attempt #{}.",
                completed.holder, completed.attempt
            ))),
            LockEvent::MaxAttempts(given_up) => report(Report::Ends(format!(
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
    common::exit(run(Args::parse()).await)
}

async fn run(mut args: Args) -> Result<(), Box<dyn Error>> {
    if let Some([number, url, key]) = args.worker.as_deref() {
        let worker = args.builder(key, number.parse()?).url(url).build().await?;
        return work(worker, &args, |report| println!("{}", report.to_line())).await;
    }
    let workers = args.workers();
    args.seed.get_or_insert_with(rand::random::<u64>);

    // Another key each time: an outcome is remembered for twice the lock timeout.
    let key = format!("cluster-example:{}:{}", std::process::id(), now());
    let (reports, mut heard) = mpsc::unbounded_channel();
    let place = Place::find()?;
    println!("{}", place.describe(workers));
    if let Some(url) = place.url() {
        // Wrong settings and a server that is not there are said once, not by every process.
        args.builder(&key, 0).url(url).build().await?;
        start_processes(&args, workers, url, &key, &reports)?;
    } else {
        let memory = Memory::new();
        for number in 1..=workers {
            let worker = args.builder(&key, number).in_memory(&memory);
            let worker = worker.build().await?;
            let (args, reports) = (args.clone(), reports.clone());
            tokio::spawn(async move {
                let heard = |report| drop(reports.send(report));
                if let Err(error) = work(worker, &args, heard).await {
                    let _ = reports.send(Report::Says(format!("Error: {error}")));
                }
            });
        }
    }
    drop(reports);

    let (mut outcome, mut failed_at, mut takeovers) = (None, None, Vec::new());
    while let Some(report) = heard.recv().await {
        match report {
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
    println!("\n{outcome} (seed {})", args.seed.unwrap_or_default());
    for (attempt, micros) in takeovers {
        println!(
            "Attempt #{attempt} began {:.2} ms after the failure before it",
            micros as f64 / 1e3
        );
    }
    Ok(())
}

/// This program again, once for each worker; their reports come on their standard output.
fn start_processes(
    args: &Args,
    workers: u32,
    url: &str,
    key: &str,
    reports: &mpsc::UnboundedSender<Report>,
) -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    for number in 1..=workers {
        let verbosity = match args.verbosity {
            Verbosity::Normal => "normal",
            Verbosity::Verbose => "verbose",
        };
        let mut child = tokio::process::Command::new(&program)
            .args(["--workers", &workers.to_string()])
            .args(["--chance", &args.chance.to_string()])
            .args(["--seed", &args.seed.unwrap_or_default().to_string()])
            .args(["--lock-timeout", &args.lock_timeout.to_string()])
            .args(["--attempts", &args.attempts.to_string()])
            .args(["--verbosity", verbosity])
            .args(["--worker", &number.to_string(), url, key])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().ok_or("a child without output")?;
        let reports = reports.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let report = Report::from_line(&line);
                let _ = reports.send(report.unwrap_or(Report::Says(line)));
            }
            match child.wait().await {
                Ok(status) if status.success() => {}
                Ok(status) => {
                    let text = format!("Worker {number} ended early: {status}");
                    let _ = reports.send(Report::Says(text));
                }
                Err(error) => {
                    let _ = reports.send(Report::Says(format!("Worker {number}: {error}")));
                }
            }
        });
    }
    Ok(())
}

impl Report {
    fn to_line(&self) -> String {
        match self {
            Report::Says(text) => format!("says {text}"),
            Report::Begins(attempt, at) => format!("begins {attempt} {at}"),
            Report::Fails(at) => format!("fails {at}"),
            Report::Ends(text) => format!("ends {text}"),
        }
    }

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
