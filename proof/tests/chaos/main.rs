//! Fleets of processes under faults, and every history checked.
//!
//! 4 processes take part in the runs of 16 keys each, on a server of their own, while processes are
//! killed and stopped, their threads blocked and their clocks held back, connections cut and
//! stalled, and the server stopped, restarted, flushed, filled up and kept busy. Settings, plans
//! and faults follow from a seed; what the machine makes of them does not. A run that violates an
//! invariant names its seed, and its history is kept in `target/tmp`.
//!
//! * `CHAOS_RUNS`: how many, 8 by default.
//! * `CHAOS_SEED`: the first one's seed, 1 by default; the others follow.
//! * `CHAOS_PARALLEL`: how many at a time, 4 by default; of failovers 2 at most.
//! * `CHAOS_FAILOVERS`: how many of each kind, 1 by default.
//! * `CHAOS_KIND`: of this kind only: `SentinelsFollow`, `SentinelsAreAsked`, `ClusterFollows`,
//!   `ReplicaIsAsked` or `ReplicaTakesOver`.
//!
//! This binary is also the worker process (`worker`). `faults` and `standstill` draw the faults of
//! a seed; in `failover`, the master goes. `audit` hears by `MONITOR` what the server writes, so
//! that the scripts that ship are audited, and nothing is lost with the server. That, what the
//! workers report (`fleet`), and what a thread in each of them sees of its guards (`sampler`) are a
//! history, which `proof::history` checks.

mod audit;
mod failover;
mod faults;
mod fleet;
mod sampler;
mod standstill;
mod worker;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use audit::Audit;
use fleet::{Chronicle, Seen};
use futures::{FutureExt, StreamExt};
use libtest_mimic::{Arguments, Failed, Trial};
use proof::history::{Answer, How, Step, Verdict, What, check, grants};
use testkit::{Server, until};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, orders] = &args[..]
        && flag == "--worker"
    {
        worker::start(serde_json::from_str(orders).unwrap());
        return ExitCode::SUCCESS;
    }
    let tests = vec![
        Trial::test(FLEETS, || block_on(chaos())),
        Trial::test(SENTINELS, || {
            block_on(failovers(SENTINELS, &failover::SENTINEL))
        }),
        Trial::test(CLUSTERS, || {
            block_on(failovers(CLUSTERS, &failover::CLUSTER))
        }),
        Trial::test(
            "the_audit_says_that_it_did_not_hear_a_killed_server",
            || block_on(killed_server()),
        ),
    ];
    let arguments = Arguments {
        // Each has as many fleets at work as there may be.
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, tests).exit_code()
}

const FLEETS: &str = "no_fleet_violates_an_invariant";
const SENTINELS: &str = "no_sentinel_failover_violates_an_invariant";
const CLUSTERS: &str = "no_cluster_failover_violates_an_invariant";

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
    let all = (first..first + runs).map(|seed| {
        let again = format!("CHAOS_SEED={seed} CHAOS_RUNS=1 cargo test --test chaos {FLEETS}");
        let chronicle = Chronicle::new(&format!("fleet-{seed}"));
        let (resource, seen) = (&resource, chronicle.clone());
        (seen, again, async move {
            faults::run(&chronicle, seed, resource).await
        })
    });
    let mut judged = judge(all, number("CHAOS_PARALLEL", 4)).await;
    judged.floors();
    println!(
        "{}, in {:.0} s",
        judged.totals,
        began.elapsed().as_secs_f64()
    );
    result(&judged.failures)
}

/// A server that is killed may have carried out scripts that it did not report.
async fn killed_server() -> Result<(), String> {
    let chronicle = Chronicle::new("killed-server");
    let audit = Audit::new(1, &chronicle);
    let mut server = Server::start();
    let mut watching = audit.keep_watching(server.port).await;
    let heard = now();
    audit.catch_up(server.port).await;
    let killed = now();
    server.kill();
    let covers = |step: &Step| match step {
        Step::Unwatched { from, to } => *from <= killed && killed <= *to,
        Step::Wrote(_) | Step::Forgot { .. } => false,
    };
    // The killed server is not started again.
    until(async || {
        let steps = audit.steps();
        steps.values().all(|steps| steps.iter().any(covers))
    })
    .await;
    watching.abort().await;
    let steps = audit.steps();
    let from_before = |step: &Step| match step {
        Step::Unwatched { from, .. } => *from >= heard,
        Step::Wrote(_) | Step::Forgot { .. } => true,
    };
    match steps.values().flatten().all(from_before) {
        true => Ok(()),
        false => Err(format!("not only what may be unheard: {steps:?}")),
    }
}

/// Fleets whose master is followed by a replica, in each way in which that comes about.
async fn failovers(test: &str, kinds: &[failover::Kind]) -> Result<(), String> {
    let (count, first) = (number("CHAOS_FAILOVERS", 1), number("CHAOS_SEED", 1));
    let only = std::env::var("CHAOS_KIND").ok();
    let all = [&failover::SENTINEL[..], &failover::CLUSTER[..]].concat();
    if let Some(only) = &only
        && !all.iter().any(|kind| format!("{kind:?}") == *only)
    {
        return Err(format!("CHAOS_KIND is {only}; it must be one of {all:?}"));
    }
    let resource = Server::start();
    let began = Instant::now();
    let mut failures = Vec::new();
    for kind in kinds {
        let name = format!("{kind:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let measured = Mutex::new(Vec::new());
        let all = (first..first + count).map(|seed| {
            let again = format!(
                "CHAOS_KIND={name} CHAOS_SEED={seed} CHAOS_FAILOVERS=1 cargo test --test chaos {test}"
            );
            let chronicle = Chronicle::new(&format!("{name}-{seed}"));
            let (resource, measured, seen) = (&resource, &measured, chronicle.clone());
            (seen, again, async move {
                let (seen, figures) = failover::run(&chronicle, *kind, seed, resource).await;
                measured.lock().unwrap().push(figures);
                seen
            })
        });
        let mut judged = judge(all, number("CHAOS_PARALLEL", 4).min(2)).await;
        judged.floors();
        let figures = failover::summary(&measured.into_inner().unwrap());
        println!("{name}: {figures}; {}", judged.totals);
        failures.append(&mut judged.failures);
    }
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    result(&failures)
}

fn result(failures: &[String]) -> Result<(), String> {
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n")),
    }
}

/// What came of all fleets of a test.
#[derive(Default)]
struct Judged {
    totals: Totals,
    failures: Vec<String>,
}

/// Lets fleets run to their ends, so many at a time, whatever comes of the others: each with what is known of
/// it, and how to have it again.
async fn judge(
    all: impl Iterator<Item = (Chronicle, String, impl Future<Output = Seen>)>,
    parallel: u64,
) -> Judged {
    let all = all.map(async |(chronicle, again, fleet)| {
        let seen = AssertUnwindSafe(fleet).catch_unwind().await;
        let seen = seen.unwrap_or_else(|panic| {
            chronicle.error(text(&*panic));
            chronicle.edit(std::mem::take)
        });
        (chronicle.run, again, seen)
    });
    let mut all = futures::stream::iter(all).buffer_unordered(parallel as usize);
    let mut judged = Judged::default();
    while let Some((run, again, seen)) = all.next().await {
        // What came to no end is not to be judged.
        let verdict = match seen.history.ended {
            0 => Verdict::default(),
            _ => check(&seen.history),
        };
        judged.totals.count(&seen, &verdict);
        if let Some(report) = report(&run, &seen, &verdict) {
            let report = format!("{run} ({again}):\n{report}");
            println!("{report}");
            judged.failures.push(report);
        }
    }
    judged
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(|text| &text[..]);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
}

/// What happened that must not.
fn report(run: &str, seen: &Seen, verdict: &Verdict) -> Option<String> {
    let errors = seen.errors.iter().cloned();
    let violations = verdict.violations.iter().map(ToString::to_string);
    let all: Vec<String> = errors.chain(violations).collect();
    if all.is_empty() {
        return None;
    }
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{run}.txt"));
    let evidence = format!("{}\n\n{:#?}\n", all.join("\n"), seen.history);
    std::fs::write(&kept, evidence).unwrap();
    let mut text = format!("  {} in all; the history is in {kept:?}\n", all.len());
    for what in all.iter().take(10) {
        text += &format!("  {what}\n");
    }
    Some(text)
}

impl Judged {
    /// That much happened at all.
    fn floors(&mut self) {
        let totals = &self.totals;
        let untouched = (1..13).filter(|nth| totals.examined[*nth] == 0);
        let untouched: Vec<usize> = untouched.collect();
        if totals.grants == 0 {
            self.failures.push("nothing was granted".to_owned());
        }
        if totals.runs >= 8 && !untouched.is_empty() {
            let text = format!("invariants that were never examined: {untouched:?}");
            self.failures.push(text);
        }
    }
}

/// What happened, so that one sees that much did.
#[derive(Default)]
struct Totals {
    runs: u64,
    failed: u64,
    processes: usize,
    streams: u64,
    grants: usize,
    completed: u64,
    lost: u64,
    unknown: u64,
    writes: [u64; 2],
    forgotten: u64,
    looks: usize,
    faults: BTreeMap<&'static str, u64>,
    examined: [u64; 13],
}

impl Totals {
    fn count(&mut self, seen: &Seen, verdict: &Verdict) {
        let history = &seen.history;
        self.runs += 1;
        self.failed += u64::from(!seen.errors.is_empty() || !verdict.violations.is_empty());
        for (all, one) in self.examined.iter_mut().zip(verdict.examined) {
            *all += one;
        }
        self.processes += history.members.len();
        self.grants += grants(history);
        self.looks += history.looks.len();
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
        let faults = history.faults.iter().map(|fault| fault.name);
        for fault in faults.chain(seen.harmless.iter().copied()) {
            *self.faults.entry(fault).or_default() += 1;
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [refused, accepted] = self.writes;
        write!(
            f,
            "{} runs, {} of them with a violation or an error: {} processes, {} streams, {} grants, {} completions heard, \
             {} settlements told that the lease was lost, {} of unknown outcome, {accepted} writes \
             accepted and {refused} refused by their fencing token, {} guards forgotten, \
             {} looks of the samplers; faults: {:?}; invariants 1 to 12 were examined {:?} times",
            self.runs,
            self.failed,
            self.processes,
            self.streams,
            self.grants,
            self.completed,
            self.lost,
            self.unknown,
            self.forgotten,
            self.looks,
            self.faults,
            &self.examined[1..]
        )
    }
}
