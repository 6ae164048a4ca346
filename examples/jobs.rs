//! Ten thousand jobs and a fleet that works them off, each once; or at least once, when workers are
//! killed.
//!
//! ```text
//! cargo run --example jobs
//! cargo run --release --example jobs -- --jobs 10000 --processes 8
//! cargo run --release --example jobs -- --jobs 10000 --processes 8 --kill-every 200ms
//! ```
//!
//! Every process has the whole list, and yields with `claim_each` those that it has won. What it does
//! is counted outside the library: it tells of each execution before its guard's `done()`. A process
//! that is killed is replaced by another, which begins with the whole list; what it was at is done
//! again when its leases have ended.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free
//! port and stops again), the workers are processes. With neither they are tasks on the memory
//! store, which cannot be killed.

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Fleet, Result, Role, check};
use futures::{TryStreamExt, stream};
use rand::Rng;
use rand::seq::{IteratorRandom, SliceRandom};
use redis_locking_worker::ClaimExt;
use tokio::time::sleep;

const MAX_ATTEMPTS: u32 = 5;

/// A fleet works off a list of jobs, each once.
#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// How many jobs
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: u32,
    /// How many workers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,
    /// How many jobs each of them is at
    #[arg(long, default_value = "16")]
    concurrency: NonZeroUsize,
    /// How long a job takes
    #[arg(long, default_value = "1ms", value_parser = humantime::parse_duration)]
    work: Duration,
    /// How often a worker is killed, on average, and replaced [default: never]
    #[arg(long, value_parser = common::period)]
    kill_every: Option<Duration>,
    /// All go through the list in the same order, and so are in each other's way
    #[arg(long)]
    in_order: bool,
}

async fn work(role: Role, args: Args) -> Result<()> {
    let worker = role
        .builder()
        .renew()
        .max_attempts(MAX_ATTEMPTS)
        // Longer than the run takes.
        .retention(Duration::from_secs(3_600))
        .build()
        .await?;
    let mut jobs: Vec<u32> = (0..args.jobs).collect();
    if !args.in_order {
        jobs.shuffle(&mut rand::thread_rng());
    }
    stream::iter(jobs)
        .claim_each(&worker, |job| format!("{}:{job}", role.key))
        .concurrency(args.concurrency)
        .map_err(Box::<dyn Error>::from)
        .try_for_each_concurrent(None, async |(job, guard)| {
            guard.run(sleep(args.work)).await?;
            role.says(format!("{job} {}", guard.attempt()));
            Ok(guard.done().await?)
        })
        .await?;
    role.says("over");
    worker.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(work, fleet).await
}

/// Until the next kill. Not always the same, or kills would keep step with the ends of the leases that
/// they have left behind.
async fn pause(kill_every: Option<Duration>) {
    match kill_every {
        Some(period) => sleep(period.mul_f64(rand::thread_rng().gen_range(0.5..1.5))).await,
        None => std::future::pending().await,
    }
}

async fn fleet(args: Args) -> Result<()> {
    let mut fleet = Fleet::of("jobs").await?;
    if args.kill_every.is_some() && !fleet.is_of_processes() {
        return Err("--kill-every needs processes, and so a server".into());
    }
    let started = Instant::now();
    fleet.start_all(args.processes, |role| work(role, args.clone()))?;

    let mut executions = BTreeMap::<u32, u32>::new();
    let (mut attempts, mut kills) = (0, 0);
    let mut kill = pin!(pause(args.kill_every));
    let mut over = false;
    loop {
        tokio::select! {
            () = &mut kill, if !over => {
                let victim = fleet.numbers().choose(&mut rand::thread_rng());
                fleet.kill(victim.ok_or("no worker is left")?).await?;
                fleet.start(|role| work(role, args.clone()))?;
                kills += 1;
                kill.set(pause(args.kill_every));
            }
            heard = fleet.hear() => {
                let Some((_, line)) = heard else { break };
                if let Some((job, attempt)) = line.split_once(' ') {
                    *executions.entry(job.parse()?).or_default() += 1;
                    attempts = attempts.max(attempt.parse()?);
                }
                // Nobody is killed any more: the fleet comes to an end.
                over |= line == "over" || executions.len() == args.jobs as usize;
            }
        }
    }
    fleet.end().await?;
    let took = started.elapsed().as_secs_f64();

    let mut histogram = BTreeMap::<u32, u32>::new();
    for times in executions.values() {
        *histogram.entry(*times).or_default() += 1;
    }
    for (times, jobs) in &histogram {
        println!("Jobs done {times} times: {jobs}");
    }
    let Args { jobs, .. } = args;
    println!("Kills: {kills}, highest attempt: #{attempts}");
    println!("{took:.1} s, {:.0} jobs/s", f64::from(jobs) / took);

    check(executions.into_keys().eq(0..jobs), "each job is done")?;
    check(attempts <= MAX_ATTEMPTS, "attempts are bounded")?;
    let once = histogram.into_keys().eq([1]);
    check(once || kills > 0, "with no kills, each job is done once")
}
