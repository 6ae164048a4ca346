//! Fleets of processes under faults, and every history checked.
//!
//! Each run follows from a seed: 4 processes that take part in the runs of 16 keys each, with settings and
//! plans drawn from it, on a server of their own, while processes are killed and stopped, connections cut and
//! stalled, and the server stopped, restarted, flushed, filled up and kept busy. A run that violates an
//! invariant names its seed, and its history is kept in `target/tmp`.
//!
//! * `CHAOS_RUNS`: how many, 8 by default.
//! * `CHAOS_SEED`: the first one's seed, 1 by default; the others follow.
//! * `CHAOS_PARALLEL`: how many at a time, 4 by default.
//! * `CHAOS_FAILOVERS`: how many of each kind, 1 by default.
//!
//! This binary is also the worker process.

#[path = "chaos/audit.rs"]
mod audit;
mod common;
#[path = "chaos/failover.rs"]
mod failover;
#[path = "chaos/faults.rs"]
mod faults;
#[path = "chaos/fleet.rs"]
mod fleet;
#[path = "chaos/worker.rs"]
mod worker;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use common::Server;
use common::history::{Answer, History, How, Verdict, What, check, grants};
use futures::StreamExt;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, orders] = &args[..]
        && flag == "--worker"
    {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(worker::run(serde_json::from_str(orders).unwrap()));
        return ExitCode::SUCCESS;
    }
    let tests = vec![
        Trial::test("no_fleet_violates_an_invariant", || block_on(chaos())),
        Trial::test("no_sentinel_failover_violates_an_invariant", || {
            block_on(failovers(&failover::SENTINEL))
        }),
        Trial::test("no_cluster_failover_violates_an_invariant", || {
            block_on(failovers(&failover::CLUSTER))
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn block_on(test: impl Future<Output = Result<(), String>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    Ok(runtime.block_on(test)?)
}

/// The wall clock in µs, which all processes and servers of a machine share.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_micros() as u64
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().expect(name))
}

async fn chaos() -> Result<(), String> {
    let (runs, first) = (number("CHAOS_RUNS", 8), number("CHAOS_SEED", 1));
    let resource = Server::start();
    let began = Instant::now();
    let mut totals = Totals::default();
    let url = resource.url();
    let all = futures::stream::iter(first..first + runs);
    let mut all = all
        .map(async |seed| {
            let mut history = faults::run(seed, &url).await;
            fleet::accepted(&resource, &mut history, seed).await;
            (seed, history)
        })
        .buffer_unordered(number("CHAOS_PARALLEL", 4) as usize);
    while let Some((seed, history)) = all.next().await {
        totals.count(&history, &report(seed, &history)?);
    }
    println!("{totals}, in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Fleets whose master is followed by a replica, in each way in which that comes about.
async fn failovers(kinds: &[failover::Kind]) -> Result<(), String> {
    let (count, first) = (number("CHAOS_FAILOVERS", 1), number("CHAOS_SEED", 1));
    let resource = Server::start();
    let url = resource.url();
    let began = Instant::now();
    for kind in kinds {
        let all = futures::stream::iter(first..first + count);
        let mut all = all
            .map(async |seed| {
                let (mut history, measured) = failover::run(*kind, seed, &url).await;
                fleet::accepted(&resource, &mut history, seed).await;
                (seed, history, measured)
            })
            .buffer_unordered(number("CHAOS_PARALLEL", 4).min(2) as usize);
        let mut measured = Vec::new();
        let mut totals = Totals::default();
        while let Some((seed, history, figures)) = all.next().await {
            totals.count(&history, &report(seed, &history)?);
            measured.push(figures);
        }
        println!("{kind:?}: {}; {totals}", failover::summary(&measured));
    }
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// An error if anything happened that must not.
fn report(seed: u64, history: &History) -> Result<Verdict, String> {
    let verdict = check(history);
    if verdict.violations.is_empty() {
        return Ok(verdict);
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}.txt"));
    std::fs::write(&kept, format!("{history:#?}")).unwrap();
    let mut text =
        format!("seed {seed} (CHAOS_SEED={seed} CHAOS_RUNS=1); its history is in {kept:?}\n");
    for violation in verdict.violations.iter().take(10) {
        text += &format!("  {violation}\n");
    }
    Err(text)
}

/// What happened, so that one sees that much did.
#[derive(Default)]
struct Totals {
    runs: u64,
    processes: usize,
    streams: u64,
    grants: usize,
    completed: u64,
    lost: u64,
    unknown: u64,
    writes: [u64; 2],
    forgotten: u64,
    faults: BTreeMap<&'static str, u64>,
    examined: [u64; 12],
}

impl Totals {
    fn count(&mut self, history: &History, verdict: &Verdict) {
        self.runs += 1;
        for (all, one) in self.examined.iter_mut().zip(verdict.examined) {
            *all += one;
        }
        self.processes += history.members.len();
        self.grants += grants(history);
        for told in &history.told {
            match told.what {
                What::Joined { .. } => self.streams += 1,
                What::Ended {
                    answer: Answer::Lost,
                    ..
                } => self.lost += 1,
                What::Ended {
                    answer: Answer::Unknown,
                    ..
                } => self.unknown += 1,
                What::Completed { .. } => self.completed += 1,
                What::Wrote { accepted, .. } => self.writes[usize::from(accepted)] += 1,
                What::Ending {
                    how: How::Forgotten,
                    ..
                } => self.forgotten += 1,
                _ => {}
            }
        }
        for fault in &history.faults {
            *self.faults.entry(fault.name).or_default() += 1;
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [refused, accepted] = self.writes;
        write!(
            f,
            "{} runs without a violation: {} processes, {} streams, {} grants, {} completions heard, \
             {} settlements told that the lease was lost, {} of unknown outcome, {accepted} writes \
             accepted and {refused} refused by their fencing token, {} guards forgotten; faults: {:?}; invariants 1 to 11 were examined {:?} times",
            self.runs,
            self.processes,
            self.streams,
            self.grants,
            self.completed,
            self.lost,
            self.unknown,
            self.forgotten,
            self.faults,
            &self.examined[1..]
        )
    }
}
