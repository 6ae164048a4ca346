//! A cron job of a fleet: every process has the same clock, each tick is worked off by one of them.
//!
//! ```text
//! cargo run --example cron
//! cargo run --example cron -- --workers 8 --period 100ms --ticks 20
//! ```
//!
//! The stream of jobs is a clock's: the ticks of an `IntervalStream`, each under the name of its time
//! slot. `claim_each` yields those that this process has won. When a process dies, the others tick
//! on, and what it was at is done by one of them.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free
//! port and stops again), the workers are processes. With neither they are tasks on the memory
//! store.

mod common;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use common::{Fleet, Result, Role, check, now};
use futures::{Stream, StreamExt};
use redis_locking_worker::ClaimExt;
use tokio::time::{Instant, interval_at};
use tokio_stream::wrappers::IntervalStream;

/// A cron job of a fleet.
#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// How many workers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// From one tick to the next
    #[arg(long, default_value = "200ms", value_parser = common::period)]
    period: Duration,
    /// How long a job takes
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
    work: Duration,
    /// How many ticks each worker sees before it ends
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    ticks: u32,
}

/// The ticks from now on: the number of each time slot, counted from the epoch, as it begins.
///
/// It is the tick that says which slot it is for, not the clock when somebody looks: a process that
/// was held up works off what it has missed, if nobody else has.
fn ticks(period: Duration) -> impl Stream<Item = u128> {
    let (now, length) = (Duration::from_micros(now()), period.as_nanos());
    let first = now.as_nanos() / length + 1;
    let until = first * length - now.as_nanos();
    let start = Instant::now() + Duration::from_nanos(until as u64);
    IntervalStream::new(interval_at(start, period))
        .map(move |tick| first + (tick - start).as_nanos() / length)
}

async fn work(role: Role, args: Args) -> Result<()> {
    let worker = role
        .builder()
        // A job may take longer than its lease.
        .renew()
        // Longer than any two of their clocks are apart, and than a process may be held up.
        .retention(Duration::from_secs(60))
        .build()
        .await?;
    let ticks = ticks(args.period)
        .take(args.ticks as usize)
        .inspect(|slot| role.says(format!("ticks {slot}")));
    let mut claimed = ticks.claim_each(&worker, |slot| format!("{}:{slot}", role.key));
    while let Some(claimed) = claimed.next().await {
        let (slot, guard) = claimed?;
        role.says(format!("runs {slot}"));
        guard.run(tokio::time::sleep(args.work)).await?;
        guard.done().await?;
    }
    drop(claimed);
    worker.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(work, fleet).await
}

async fn fleet(args: Args) -> Result<()> {
    let mut fleet = Fleet::of("cron").await?;
    fleet.start_all(args.workers, |role| work(role, args.clone()))?;
    let (mut ticks, mut runs) = (BTreeSet::new(), Vec::new());
    let mut ticked = 0;
    while let Some((number, line)) = fleet.hear().await {
        match line.split_once(' ') {
            Some(("ticks", slot)) => {
                ticks.insert(slot.parse::<u128>()?);
                ticked += 1;
            }
            Some(("runs", slot)) => {
                println!("Slot {slot} is run by worker {number}");
                runs.push(slot.parse::<u128>()?);
            }
            _ => println!("{line}"),
        }
    }
    fleet.end().await?;

    let (slots, ran) = (ticks.len(), runs.len());
    println!("\nTicks: {ticked}, slots: {slots}, runs: {ran}");
    runs.sort_unstable();
    check(runs.into_iter().eq(ticks), "each slot is run once")
}
