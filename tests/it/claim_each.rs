//! A fleet that works off a stream of jobs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fred::types::Value;
use futures::channel::mpsc;
use futures::stream::FusedStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, future, stream};
use redis_locking_worker::{
    ClaimError, ClaimExt, Error, KeyError, LockStreamExt, LockingWorker, Memory, Outcome,
    SettleError, WorkGuard, adapters,
};
use static_assertions::assert_impl_all;
use testkit::{Server, command};
use tokio::time::{Instant, sleep, timeout};

const LEASE: Duration = Duration::from_secs(5);

async fn worker(memory: &Memory) -> LockingWorker {
    let builder = LockingWorker::builder("jobs").in_memory(memory);
    let builder = builder.lock_timeout(LEASE).max_attempts(3);
    builder.retention(1_000 * LEASE).build().await.unwrap()
}

fn key(job: &u32) -> String {
    format!("job:{job}")
}

fn places(places: usize) -> NonZeroUsize {
    NonZeroUsize::new(places).unwrap()
}

type Won = Result<(u32, WorkGuard), ClaimError<u32>>;

/// The next job, if one is to be had without anything else happening for a tenth of a lease.
async fn won(claimed: &mut (impl Stream<Item = Won> + Unpin)) -> Option<(u32, WorkGuard)> {
    let next = timeout(LEASE / 10, claimed.next()).await.ok()?;
    Some(next.expect("another job").unwrap())
}

/// How often each job was done.
type Executions = Arc<Mutex<BTreeMap<u32, u32>>>;

/// Works off all of them, each for so long, with a failure where it says so.
async fn work_off(
    worker: LockingWorker,
    jobs: u32,
    concurrency: usize,
    executions: Executions,
    fails: fn(u32, u32) -> bool,
) {
    let claimed = stream::iter(0..jobs).claim_each(&worker, key);
    let claimed = claimed.concurrency(places(concurrency));
    let work = claimed.try_for_each_concurrent(concurrency, |(job, guard)| {
        let executions = executions.clone();
        async move {
            sleep(LEASE / 100).await;
            *executions.lock().unwrap().entry(job).or_default() += 1;
            match fails(job, guard.attempt()) {
                true => guard.fail("on purpose").await.unwrap(),
                false => guard.done().await.unwrap(),
            }
            Ok(())
        }
    });
    work.await.unwrap();
}

async fn fleet(jobs: u32, fails: fn(u32, u32) -> bool) -> BTreeMap<u32, u32> {
    let memory = Memory::new();
    let executions = Executions::default();
    let mut fleet = Vec::new();
    for nth in 0..8 {
        let worker = worker(&memory).await;
        let working = work_off(worker, jobs, 1 + nth % 4, executions.clone(), fails);
        fleet.push(tokio::spawn(working));
    }
    for working in fleet {
        working.await.unwrap();
    }
    let executions = executions.lock().unwrap();
    executions.clone()
}

#[tokio::test(start_paused = true)]
async fn each_job_is_done_once_when_nobody_fails() {
    let executions = fleet(500, |_, _| false).await;
    assert_eq!(executions, (0..500).map(|job| (job, 1)).collect());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_is_tried_again_until_it_is_done_or_given_up() {
    let executions = fleet(100, |job, attempt| match job % 10 {
        1 => attempt < 3,
        2 => true,
        _ => false,
    })
    .await;
    let due = |job| match job % 10 {
        1 | 2 => 3,
        _ => 1,
    };
    assert_eq!(executions, (0..100).map(|job| (job, due(job))).collect());
}

#[tokio::test(start_paused = true)]
async fn alone_it_tries_its_own_failure_again() {
    let worker = worker(&Memory::new()).await;
    let mut claimed = stream::iter([7]).claim_each(&worker, key);
    for attempt in 1..=3 {
        let (job, guard) = won(&mut claimed).await.unwrap();
        assert_eq!((job, guard.attempt()), (7, attempt));
        assert!(!claimed.is_terminated());
    }
    assert!(claimed.next().await.is_none(), "given up");
    assert!(claimed.is_terminated());
}

#[tokio::test(start_paused = true)]
async fn no_more_guards_are_out_than_there_are_places() {
    let worker = worker(&Memory::new()).await;
    let mut claimed = stream::iter(0..5).claim_each(&worker, key);
    let (_, first) = won(&mut claimed).await.unwrap();
    assert!(won(&mut claimed).await.is_none(), "one, unless told");
    first.done().await.unwrap();
    let (job, _second) = won(&mut claimed).await.unwrap();
    assert_eq!(job, 1);

    let mut claimed = stream::iter(10..20).claim_each(&worker, key);
    claimed = claimed.concurrency(places(3));
    let mut out = Vec::new();
    for _ in 0..3 {
        out.push(won(&mut claimed).await.unwrap());
    }
    assert!(won(&mut claimed).await.is_none());
    // However it ends.
    drop(out.pop());
    assert_eq!(won(&mut claimed).await.unwrap().1.attempt(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_others_work_on_does_not_keep_it_from_what_is_free() {
    let memory = Memory::new();
    let (a, b) = (worker(&memory).await, worker(&memory).await);
    let mut slow = stream::iter(0..4).claim_each(&a, key);
    slow = slow.concurrency(places(4));
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(won(&mut slow).await.unwrap().1);
    }
    let mut claimed = stream::iter(0..6).claim_each(&b, key);
    for job in [4, 5] {
        let (won, guard) = won(&mut claimed).await.unwrap();
        assert_eq!(won, job);
        guard.done().await.unwrap();
    }
    assert!(won(&mut claimed).await.is_none());
    // It waits in line for one of them, and has it by push; the others are looked at when their leases end.
    let began = Instant::now();
    let failing = future::join_all(held.into_iter().map(|guard| guard.fail("for b")));
    failing.await;
    drop(slow);
    for _ in 0..4 {
        let (_, guard) = timeout(2 * LEASE, claimed.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(guard.attempt(), 2);
        guard.done().await.unwrap();
    }
    assert!(began.elapsed() <= LEASE, "{:?}", began.elapsed());
    assert!(claimed.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_endless_stream_does_not_keep_what_is_due_waiting() {
    let memory = Memory::new();
    let (a, b) = (worker(&memory).await, worker(&memory).await);
    let forgotten = a.with_key(key(&0)).unwrap().acquire().guards().next().await;
    std::mem::forget(forgotten);
    let began = Instant::now();
    let mut claimed = stream::iter(0..).claim_each(&b, key);
    loop {
        let (job, guard) = won(&mut claimed).await.unwrap();
        sleep(LEASE / 50).await;
        guard.done().await.unwrap();
        if job == 0 {
            break;
        }
        assert!(began.elapsed() < 2 * LEASE);
    }
}

/// A lease that others renew is told of once, and so is over by what we know.
#[tokio::test(start_paused = true)]
async fn what_is_renewed_for_long_costs_no_more_than_a_look_a_lease() {
    let memory = Memory::new();
    let builder = LockingWorker::builder("jobs").in_memory(&memory);
    let a = builder.lock_timeout(LEASE).renew().build().await.unwrap();
    let mut held = Vec::new();
    for job in 0..3 {
        let guard = a
            .with_key(key(&job))
            .unwrap()
            .acquire()
            .guards()
            .next()
            .await
            .unwrap();
        assert_eq!(guard.attempt(), 1);
        held.push(guard);
    }
    let b = worker(&memory).await;
    let mut polls = 0;
    let mut claimed = stream::iter(0..3).claim_each(&b, key);
    let mut counted = stream::poll_fn(|cx| {
        polls += 1;
        claimed.poll_next_unpin(cx)
    });
    assert!(timeout(20 * LEASE, counted.next()).await.is_err());
    drop(counted);
    // Three jobs and one place: each is claimed, told of, and left once a lease.
    assert!(polls < 20 * 3 * 4, "{polls}");
    for guard in held {
        guard.done().await.unwrap();
    }
    assert!(claimed.next().await.is_none());
}

/// What becomes of a job that was done by somebody else while this process worked on another one, for longer than a
/// short retention.
#[tokio::test(start_paused = true)]
async fn a_job_that_was_put_off_is_looked_at_once_a_place_is_free_and_is_free_itself_if_forgotten()
{
    for (retention, again) in [(20 * LEASE, false), (2 * LEASE, true)] {
        let memory = Memory::new();
        let builder = LockingWorker::builder("jobs").in_memory(&memory);
        let builder = builder.lock_timeout(LEASE).renew().retention(retention);
        let a = builder.clone().build().await.unwrap();
        let b = builder.build().await.unwrap();
        let mut theirs = stream::iter([0]).claim_each(&a, key);
        let (_, first) = won(&mut theirs).await.unwrap();
        let named = Cell::new(0);
        let name = |job: &u32| {
            named.set(named.get() + 1);
            key(job)
        };
        let mut claimed = stream::iter(0..2).claim_each(&b, name);
        let (job, second) = won(&mut claimed).await.unwrap();
        assert_eq!(job, 1, "the first is put off");
        first.done().await.unwrap();
        assert!(second.run(sleep(12 * LEASE)).await.is_ok());
        second.done().await.unwrap();
        let next = claimed.next().await.map(|next| next.unwrap());
        let next = next.map(|(job, guard)| (job, guard.attempt()));
        assert_eq!(next, again.then_some((0, 1)), "{retention:?}");
        assert_eq!(named.get(), 2, "each once, however often it is looked at");
    }
}

#[tokio::test]
async fn a_look_at_a_job_that_others_work_on_costs_5_commands_at_most() {
    const JOBS: usize = 20;
    let server = Server::start();
    let build = || server.builder("jobs").lock_timeout(60 * testkit::PATIENCE);
    let (a, b) = (
        build().build().await.unwrap(),
        build().build().await.unwrap(),
    );
    let slow = stream::iter(0..JOBS as u32).claim_each(&a, key);
    let slow = slow.concurrency(places(JOBS)).take(JOBS);
    let held: Vec<_> = slow.try_collect().await.unwrap();

    let client = server.client().await;
    let mut monitor = server.monitor();
    let mut claimed = stream::iter(0..JOBS as u32).claim_each(&b, key);
    let looked = testkit::until(async || {
        command(&client, [b"ZCARD", b"{job:19}:line"]).await == Value::from(1)
    });
    tokio::select! {
        () = looked => {}
        won = claimed.next() => panic!("{won:?}"),
    }
    drop(claimed);
    b.close().await;
    let mut commands = monitor.commands();
    commands.retain(|name| name != "ZCARD");
    let a_look = 3 * JOBS..=5 * JOBS;
    assert!(a_look.contains(&commands.len()), "{commands:?}");
    drop(held);
}

/// Told by the guard, and not once more by the stream, which goes on.
#[tokio::test]
async fn a_settlement_that_is_refused_does_not_bring_its_job_again() {
    let server = Server::start();
    let worker = server.builder("jobs").build().await.unwrap();
    let client = server.client().await;
    let mut claimed = stream::iter(0..3).claim_each(&worker, key);
    let (_, guard) = claimed.next().await.unwrap().unwrap();
    command(&client, [b"DEL", b"job:0"]).await;
    for taken in [&b"job:0"[..], b"job:1"] {
        command(&client, [b"RPUSH", taken, b"no lock"]).await;
    }
    let refused = guard.done().await;
    assert!(
        matches!(&refused, Err(SettleError::Refused(Error::WrongType { .. }))),
        "{refused:?}"
    );
    // One that it has not yielded comes back.
    let refused = claimed.next().await.unwrap().unwrap_err();
    assert!(
        matches!(
            &refused,
            ClaimError::Refused {
                job: 1,
                source: Error::WrongType { .. }
            }
        ),
        "{refused:?}"
    );
    let (job, guard) = claimed.next().await.unwrap().unwrap();
    assert_eq!(job, 2);
    guard.done().await.unwrap();
    assert!(claimed.next().await.is_none());
}

#[test]
fn a_worker_that_has_stopped_gives_back_what_was_taken_and_leaves_the_rest() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap()
    };
    let (here, there) = (runtime(), runtime());
    let memory = Memory::new();
    let held = here.block_on(async {
        let mut theirs = stream::iter(0..2).claim_each(&worker(&memory).await, key);
        theirs = theirs.concurrency(places(2));
        theirs.take(2).try_collect::<Vec<_>>().await.unwrap()
    });
    let mut jobs = stream::iter(0..10);
    let (guard, claimed) = there.block_on(async {
        let mut claimed = (&mut jobs).claim_each(&worker(&memory).await, key);
        let (job, guard) = won(&mut claimed).await.unwrap();
        assert_eq!(job, 2, "the two are put off");
        (guard, claimed)
    });
    drop(there);
    let ended: Vec<_> = here.block_on(async {
        assert!(matches!(guard.done().await, Err(SettleError::Stopped)));
        claimed.take(10).collect().await
    });
    let mut back = Vec::new();
    for ended in ended {
        let error = ended.unwrap_err();
        assert!(
            matches!(
                error,
                ClaimError::Refused {
                    source: Error::Stopped,
                    ..
                }
            ),
            "{error:?}"
        );
        back.push(error.into_job());
    }
    back.sort_unstable();
    assert_eq!(back, [0, 1, 3], "without the one that was yielded");
    assert_eq!(here.block_on(jobs.next()), Some(4));
    drop(held);
}

#[test]
#[should_panic(expected = "there is no reactor running")]
fn outside_a_runtime_it_panics_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let worker = runtime.block_on(worker(&Memory::new()));
    let mut claimed = stream::iter([0]).claim_each(&worker, key);
    let _ = claimed.next().now_or_never();
}

#[tokio::test(start_paused = true)]
async fn jobs_that_come_later_are_claimed_when_they_come() {
    let worker = worker(&Memory::new()).await;
    let (send, jobs) = mpsc::unbounded();
    let mut claimed = jobs.claim_each(&worker, key);
    assert!(won(&mut claimed).await.is_none());
    for job in 0..3 {
        send.unbounded_send(job).unwrap();
        let (won, guard) = won(&mut claimed).await.unwrap();
        assert_eq!(won, job);
        guard.done().await.unwrap();
        send.unbounded_send(job).unwrap();
    }
    drop(send);
    assert!(claimed.next().await.is_none(), "each once");
}

#[tokio::test(start_paused = true)]
async fn a_job_without_a_valid_key_comes_back_and_the_others_go_on() {
    let worker = worker(&Memory::new()).await;
    let jobs = stream::iter(["a", "", "b"]);
    let claimed = jobs.claim_each(&worker, |job: &&str| job.to_string());
    let claimed = claimed.then(async |claimed| match claimed {
        Ok((job, guard)) => {
            guard.done().await.unwrap();
            job.to_owned()
        }
        Err(
            error @ ClaimError::Key {
                source: KeyError::Empty,
                ..
            },
        ) => [error.to_string(), error.into_job().to_owned()].join(": "),
        Err(other) => panic!("{other:?}"),
    });
    let claimed: Vec<String> = claimed.collect().await;
    assert_eq!(claimed, ["a", "no key for the job: ", "b"]);
}

#[tokio::test(start_paused = true)]
async fn dropped_it_leaves_its_places_and_what_it_has_not_yielded() {
    let memory = Memory::new();
    let (a, b) = (worker(&memory).await, worker(&memory).await);
    let mut claimed = stream::iter(0..2).claim_each(&a, key);
    claimed = claimed.concurrency(places(2));
    let (_, yielded) = won(&mut claimed).await.unwrap();
    a.clone().close().await;
    drop(claimed);
    a.clone().close().await;
    let mut claimed = stream::iter(0..2).claim_each(&b, key);
    let (job, guard) = won(&mut claimed).await.unwrap();
    assert_eq!((job, guard.attempt()), (1, 1), "not counted");
    guard.done().await.unwrap();
    assert!(yielded.is_valid(), "it lives on");
    drop(claimed);
    b.close().await;
    yielded.hand_off().await.unwrap();
    let outcome = a.with_key(key(&0)).unwrap().acquire().run(|guard| {
        assert_eq!(guard.attempt(), 1, "nobody was in line");
        future::ready(Ok::<_, Infallible>(()))
    });
    assert!(matches!(outcome.await, Ok(Outcome::Completed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_polled_stream_that_has_ended_stays_so() {
    let worker = worker(&Memory::new()).await;
    let mut claimed = stream::empty::<u32>().claim_each(&worker, key);
    assert!(claimed.next().now_or_never().unwrap().is_none());
    assert!(claimed.next().now_or_never().unwrap().is_none());
}

type Jobs = adapters::ClaimEach<stream::Iter<std::ops::Range<u32>>, fn(&u32) -> String>;
assert_impl_all!(Jobs: Send, Unpin, FusedStream);
