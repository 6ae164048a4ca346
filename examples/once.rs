//! A cache that a fleet fills once: all want an expensive value at the same moment, one computes it.
//!
//! ```text
//! cargo run --example once
//! cargo run --example once -- --workers 16 --fail 2
//! ```
//!
//! Every worker asks for the value with `once`. One of them computes it, the others wait and are given
//! the same. If the computation fails, another worker tries. Then one comes late, and gets the value
//! from the record without any work; that is so until the retention ends, and the next who asks
//! computes it anew.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free
//! port and stops again), the workers are processes. With neither they are tasks on the memory
//! store.

mod common;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Fleet, Result, Role, check};
use redis_locking_worker::WorkGuard;

/// A cache that a fleet fills once.
#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// How many workers ask at the same moment
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// How many attempts fail, of the 5 that there are
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..5))]
    fail: u32,
}

async fn work(role: Role, args: Args) -> Result<()> {
    let worker = role
        .builder()
        // The computation may take longer than its lease.
        .renew()
        // How long the value stays in the cache.
        .retention(Duration::from_secs(60))
        .build()
        .await?;
    let asked = Instant::now();
    let value = worker
        .once(|guard| expensive(&role, args.fail, guard))
        .await?;
    let (took, value) = (asked.elapsed(), String::from_utf8_lossy(&value));
    role.says(format!("gets {} {value}", took.as_micros()));
    worker.close().await;
    Ok(())
}

/// Another value each time that it is computed, so that two computations would be seen.
async fn expensive(role: &Role, fail: u32, guard: Arc<WorkGuard>) -> Result<String, &'static str> {
    role.says(format!("computes {}", guard.attempt()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    if guard.attempt() <= fail {
        return Err("no luck");
    }
    let random: u64 = rand::random();
    Ok(format!("{random:016x}, computed by {role}"))
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(work, fleet).await
}

async fn fleet(args: Args) -> Result<()> {
    let mut fleet = Fleet::of("once").await?;
    fleet.start_all(args.workers, |role| work(role, args.clone()))?;
    let mut seen = Seen::default();
    seen.hear(&mut fleet).await?;
    println!("One more comes late");
    fleet.start(|role| work(role, args.clone()))?;
    seen.hear(&mut fleet).await?;

    let (workers, values) = (args.workers + 1, seen.values.len());
    let Seen {
        computed, given, ..
    } = seen;
    println!("\nWorkers: {workers}, computations: {computed}, values: {values}");
    check(computed == args.fail + 1, "only what failed is repeated")?;
    check(given == workers, "everybody is given a value")?;
    check(values == 1, "it is the same for all")
}

#[derive(Default)]
struct Seen {
    computed: u32,
    given: u32,
    values: BTreeSet<String>,
}

impl Seen {
    /// Until all workers have ended.
    async fn hear(&mut self, fleet: &mut Fleet) -> Result<()> {
        while let Some((number, line)) = fleet.hear().await {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["computes", attempt] => {
                    println!("Worker {number} computes it, attempt #{attempt}");
                    self.computed += 1;
                }
                ["gets", micros, value] => {
                    let took = micros.parse::<u64>()? as f64 / 1e3;
                    println!("Worker {number} gets {value}, after {took:.2} ms");
                    self.given += 1;
                    self.values.insert(value.to_owned());
                }
                _ => println!("{line}"),
            }
        }
        fleet.end().await
    }
}
