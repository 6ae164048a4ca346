//! What the adapters yield, what becomes of a guard when they are dropped, and that they compose with those of `futures`
//! and `tokio-stream`.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use futures::stream::FusedStream;
use futures::{FutureExt, StreamExt, future, stream};
use redis_locking_worker::{
    Acquire, Completed, LockEvent, LockStreamExt, LockingWorker, Memory, Outcome, Reason, Status,
    StatusLevel, WorkGuard, adapters,
};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

const LEASE: Duration = Duration::from_secs(5);

type Failing = Result<(), &'static str>;

async fn worker(memory: &Memory, label: &str) -> LockingWorker {
    let builder = LockingWorker::builder("job").in_memory(memory).label(label);
    builder.lock_timeout(LEASE).build().await.unwrap()
}

/// One that holds the work, and one that waits for it.
async fn race(memory: &Memory) -> (WorkGuard, Acquire, LockingWorker) {
    let (a, b) = (worker(memory, "a").await, worker(memory, "b").await);
    let guard = a.acquire().guards().next_guard().await;
    let mut waiting = b.acquire();
    assert!(matches!(waiting.next().await, Some(LockEvent::Locked(_))));
    (guard, waiting, b)
}

trait NextGuard {
    async fn next_guard(&mut self) -> WorkGuard;
}

impl<S: futures::Stream<Item = WorkGuard> + Unpin> NextGuard for S {
    async fn next_guard(&mut self) -> WorkGuard {
        let next = timeout(10 * LEASE, self.next()).await;
        next.expect("in time").expect("a guard")
    }
}

fn completed(outcome: Outcome) -> Completed {
    match outcome {
        Outcome::Completed(completed) => completed,
        other => panic!("{other:?}"),
    }
}

/// What the next attempt is told of the one before.
async fn told(waiting: &mut Acquire) -> (u32, Option<Reason>) {
    let guard = waiting.guards().next_guard().await;
    let previous = guard.previous().map(|previous| previous.reason.clone());
    (guard.attempt(), previous)
}

// What they yield.

#[tokio::test(start_paused = true)]
async fn guards_are_all_that_guards_yields_one_each_turn() {
    let memory = Memory::new();
    let builder = LockingWorker::builder("job").in_memory(&memory);
    let worker = builder.rejoin(true).max_attempts(3).build().await.unwrap();
    let mut guards = worker.acquire().guards();
    for attempt in 1..=3 {
        let guard = guards.next_guard().await;
        assert_eq!(guard.attempt(), attempt);
    }
    assert!(!guards.is_terminated());
    assert!(guards.next().await.is_none());
    assert!(guards.is_terminated());
}

#[tokio::test(start_paused = true)]
async fn without_status_yields_all_else_and_inspect_status_sees_them_and_yields_all() {
    let kinds = async |with: bool| {
        let memory = Memory::new();
        let (guard, _, b) = race(&memory).await;
        let builder = LockingWorker::builder("job").in_memory(&memory);
        let builder = builder.status_level(StatusLevel::Verbose);
        let verbose = builder.build().await.unwrap().acquire();
        drop(b);
        let mut seen = Vec::new();
        let mut statuses = 0;
        let events = verbose.inspect_status(|_: &Status| statuses += 1);
        let mut events = match with {
            true => events.left_stream(),
            false => events.without_status().right_stream(),
        };
        let locked = events.next().await.unwrap();
        assert!(matches!(locked, LockEvent::Locked(_)));
        guard.done().await.unwrap();
        while let Some(event) = events.next().await {
            seen.push(matches!(event, LockEvent::Status(_)));
        }
        drop(events);
        (seen, statuses)
    };
    let (seen, statuses) = kinds(true).await;
    assert_eq!(seen, [true, true, false], "two, and the completion");
    assert_eq!(statuses, 2);
    assert_eq!(kinds(false).await, (vec![false], 2));
}

#[tokio::test(start_paused = true)]
async fn outcome_is_the_terminal_event() {
    let memory = Memory::new();
    let (guard, mut waiting, _) = race(&memory).await;
    assert!((&mut waiting).outcome().now_or_never().is_none());
    guard.done_with("42").await.unwrap();
    let outcome = waiting.outcome().await.unwrap();
    let completed = completed(outcome);
    assert_eq!((&completed.result[..], completed.attempt), (&b"42"[..], 1));
    assert_eq!(completed.holder, "a");
}

#[tokio::test(start_paused = true)]
async fn outcome_of_a_run_that_is_given_up_says_why() {
    let memory = Memory::new();
    let (guard, waiting, _) = race(&memory).await;
    guard.fail_permanently("no such table").await.unwrap();
    let Outcome::GaveUp(gave_up) = waiting.outcome().await.unwrap() else {
        panic!();
    };
    assert_eq!(gave_up.reason, Reason::Failed("no such table".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn outcome_of_a_stream_that_is_cut_short_is_that_we_left() {
    let memory = Memory::new();
    let (guard, mut waiting, _) = race(&memory).await;
    let (stop, stopped) = oneshot::channel::<()>();
    stop.send(()).unwrap();
    let left = (&mut waiting).take_until(stopped).outcome().await.unwrap();
    assert_eq!(left, Outcome::Left);
    // It was taken by reference, and goes on.
    guard.done().await.unwrap();
    completed(waiting.outcome().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn run_works_until_the_run_is_over_and_shares_its_result() {
    let memory = Memory::new();
    let builder = LockingWorker::builder("job").in_memory(&memory);
    let worker = builder.rejoin(true).build().await.unwrap();
    let mut executions = 0;
    let work = |guard: Arc<WorkGuard>| {
        executions += 1;
        async move {
            match guard.attempt() {
                3 => Ok("third"),
                _ => Err("not yet"),
            }
        }
    };
    let outcome = worker.acquire().run(work).await.unwrap();
    assert_eq!(executions, 3);
    assert_eq!(completed(outcome).result, "third");
    let late = worker.acquire().run(async |_| -> Failing { panic!() });
    assert_eq!(completed(late.await.unwrap()).result, "third");
}

#[tokio::test(start_paused = true)]
async fn run_without_rejoining_stands_aside_after_its_failure() {
    let memory = Memory::new();
    let (guard, waiting, b) = race(&memory).await;
    drop(guard);
    let outcome = waiting.run(async |_| -> Failing { Err("disk full") }).await;
    let Outcome::Failed(failed) = outcome.unwrap() else {
        panic!();
    };
    let reason = Reason::Failed("disk full".to_owned());
    assert_eq!((failed.attempt, failed.reason), (2, reason.clone()));
    assert_eq!(told(&mut b.acquire()).await, (3, Some(reason)));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_is_a_failed_attempt_that_says_so() {
    let memory = Memory::new();
    let worker = worker(&memory, "a").await;
    let large = vec![0; WorkGuard::MAX_RESULT + 1];
    let mut large = Some(large);
    let work = |_| future::ready(Ok::<_, String>(large.take().unwrap()));
    let Outcome::Failed(failed) = worker.acquire().run(work).await.unwrap() else {
        panic!();
    };
    let reason = failed.reason.to_string();
    assert!(reason.contains("1048577") && reason.contains("1048576"));
}

#[cfg(feature = "json")]
#[tokio::test(start_paused = true)]
async fn a_result_that_json_cannot_express_is_a_failed_attempt() {
    let worker = worker(&Memory::new(), "a").await;
    let work = async |guard: Arc<WorkGuard>| match guard.attempt() {
        1 => Ok::<_, String>(f64::NAN),
        _ => Ok(0.5),
    };
    assert_eq!(worker.once_json(work).await.unwrap(), 0.5);
    let outcome = worker.acquire().outcome().await.unwrap();
    assert_eq!(completed(outcome).attempt, 2);
}

// What becomes of a guard.

#[tokio::test(start_paused = true)]
async fn a_guard_lives_on_when_the_adapter_that_yielded_it_is_dropped() {
    let memory = Memory::new();
    let worker = worker(&memory, "a").await;
    let mut guards = worker.acquire().guards();
    let guard = guards.next_guard().await;
    drop(guards);
    worker.clone().close().await;
    assert!(guard.is_valid());
    guard.done().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_an_adapter_has_not_yielded_is_not_counted() {
    let waits: [fn(Acquire) -> LocalBoxFuture<'static, ()>; 4] = [
        |events| async { drop(events.guards().next().await) }.boxed_local(),
        |events| async { drop(events.outcome().await) }.boxed_local(),
        |events| async { drop(events.run(async |_| -> Failing { panic!() }).await) }.boxed_local(),
        |events| {
            let mut events = events.without_status().inspect_status(|_| ());
            async move { drop(events.next().await) }.boxed_local()
        },
    ];
    for wait in waits {
        let memory = Memory::new();
        let (guard, waiting, b) = race(&memory).await;
        let mut waiting = wait(waiting);
        assert!((&mut waiting).now_or_never().is_none(), "it waits");
        drop(guard);
        // The grant is there, and nobody has looked at it.
        b.clone().close().await;
        let freed = Instant::now();
        drop(waiting);
        assert_eq!(told(&mut b.acquire()).await, (2, Some(Reason::Dropped)));
        assert!(freed.elapsed() < LEASE / 100, "given back, not run out");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_comes_along_fails_its_attempt_in_outcome() {
    let memory = Memory::new();
    let (guard, waiting, b) = race(&memory).await;
    guard.fail("first").await.unwrap();
    let Outcome::Failed(failed) = waiting.outcome().await.unwrap() else {
        panic!();
    };
    assert_eq!((failed.attempt, failed.reason), (2, Reason::Dropped));
    assert_eq!(told(&mut b.acquire()).await, (3, Some(Reason::Dropped)));
}

/// Says when it is dropped.
struct Working(Option<oneshot::Sender<bool>>, Arc<WorkGuard>);

impl Drop for Working {
    fn drop(&mut self) {
        let valid = self.1.is_valid();
        let _ = self.0.take().map(|dropped| dropped.send(valid));
    }
}

#[tokio::test(start_paused = true)]
async fn run_that_is_dropped_drops_its_work_first_and_then_its_guard() {
    let memory = Memory::new();
    let (guard, waiting, b) = race(&memory).await;
    drop(guard);
    let (dropped, was_valid) = oneshot::channel();
    let (mut dropped, mut kept) = (Some(dropped), None);
    let work = |guard: Arc<WorkGuard>| {
        kept = Some(guard.clone());
        let working = Working(dropped.take(), guard);
        async move {
            future::pending::<()>().await;
            drop(working);
            Ok::<_, String>(())
        }
    };
    let mut run = Box::pin(waiting.run(work));
    assert!(timeout(LEASE / 2, &mut run).await.is_err(), "it works");
    drop(run);
    assert!(was_valid.await.unwrap(), "the work before its guard");
    // However many others have it.
    assert!(!kept.unwrap().is_valid());
    assert_eq!(told(&mut b.acquire()).await, (3, Some(Reason::Dropped)));
}

#[tokio::test(start_paused = true)]
async fn run_drops_its_work_when_the_lease_is_lost() {
    let memory = Memory::new();
    let worker = worker(&memory, "a").await;
    let (dropped, was_valid) = oneshot::channel();
    let mut dropped = Some(dropped);
    let work = |guard: Arc<WorkGuard>| {
        let working = Working(dropped.take(), guard);
        async move {
            future::pending::<()>().await;
            drop(working);
            Ok::<_, String>(())
        }
    };
    let Outcome::Failed(failed) = worker.acquire().run(work).await.unwrap() else {
        panic!();
    };
    assert!(!was_valid.await.unwrap());
    assert_eq!((failed.attempt, failed.reason), (1, Reason::Expired));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_on_its_way_goes_its_way_when_run_is_dropped() {
    let memory = Memory::new();
    let worker = worker(&memory, "a").await;
    let worked = AtomicBool::new(false);
    let work = |_| {
        worked.store(true, Ordering::Relaxed);
        future::ready(Ok::<_, String>("kept"))
    };
    let mut run = Box::pin(worker.acquire().run(work));
    // The poll that does the work also sends the completion.
    while !worked.load(Ordering::Relaxed) {
        assert!((&mut run).now_or_never().is_none(), "not answered yet");
        tokio::task::yield_now().await;
    }
    drop(run);
    worker.clone().close().await;
    let outcome = worker.acquire().outcome().await.unwrap();
    assert_eq!(completed(outcome).result, "kept");
}

#[tokio::test(start_paused = true)]
async fn work_that_panics_ends_its_guard_at_once_though_run_is_kept() {
    let memory = Memory::new();
    let (guard, waiting, b) = race(&memory).await;
    drop(guard);
    let panics = async |_| -> Failing { panic!("on purpose") };
    let run = Box::pin(waiting.run(panics));
    let mut kept = std::panic::AssertUnwindSafe(run).catch_unwind();
    assert!((&mut kept).await.is_err());
    assert_eq!(told(&mut b.acquire()).await, (3, Some(Reason::Panicked)));
}

// Composition.

#[tokio::test(start_paused = true)]
async fn composes_with_select_and_merge() {
    let memory = Memory::new();
    let worker = worker(&memory, "a").await;
    let other = worker.with_key("other").unwrap();
    let key = |guard: WorkGuard| guard.key().to_string();
    let selected = stream::select(worker.acquire().guards(), other.acquire().guards());
    let mut selected: Vec<String> = selected.map(key).take(2).collect().await;
    selected.sort();
    assert_eq!(selected, ["job", "other"]);

    let third = worker.with_key("third").unwrap();
    let fourth = worker.with_key("fourth").unwrap();
    let merged =
        tokio_stream::StreamExt::merge(third.acquire().guards(), fourth.acquire().guards());
    let mut merged: Vec<String> = merged.map(key).take(2).collect().await;
    merged.sort();
    assert_eq!(merged, ["fourth", "third"]);
}

#[tokio::test(start_paused = true)]
async fn composes_with_timeout() {
    let memory = Memory::new();
    let (guard, waiting, _) = race(&memory).await;
    let guards = tokio_stream::StreamExt::timeout(waiting.guards(), LEASE / 10);
    let mut guards = pin!(guards);
    assert!(guards.next().await.unwrap().is_err());
    drop(guard);
    let guard = guards.next().await.unwrap().unwrap();
    assert_eq!(guard.attempt(), 2, "it has kept its place");
}

#[tokio::test(start_paused = true)]
async fn composes_with_take_until() {
    let memory = Memory::new();
    let (guard, waiting, b) = race(&memory).await;
    let guards = waiting.guards().take_until(sleep(LEASE / 10));
    let guards: Vec<WorkGuard> = guards.collect().await;
    assert!(guards.is_empty());
    b.close().await;
    guard.hand_off().await.unwrap();
    let c = worker(&memory, "c").await;
    assert_eq!(told(&mut c.acquire()).await.0, 1, "nobody is in line");
}

/// The stream is cut short while the work goes on; the server has recorded how that ended.
#[tokio::test(start_paused = true)]
async fn run_that_is_cut_short_tells_what_was_recorded() {
    for (attempts, fails) in [(5, false), (5, true), (1, true)] {
        let memory = Memory::new();
        let builder = LockingWorker::builder("job").in_memory(&memory).label("a");
        let worker = builder.max_attempts(attempts).build().await.unwrap();
        let events = worker.acquire().take_until(sleep(LEASE / 10));
        let outcome = events.run(|_| async move {
            sleep(LEASE / 2).await;
            match fails {
                false => Ok("result"),
                true => Err("no luck"),
            }
        });
        let reason = Reason::Failed("no luck".to_owned());
        match outcome.await.unwrap() {
            Outcome::Completed(completed) if !fails => {
                assert_eq!(completed.result, "result");
                assert_eq!((&completed.holder[..], completed.attempt), ("a", 1));
            }
            Outcome::Failed(failed) if attempts > 1 => {
                assert_eq!((failed.attempt, failed.reason), (1, reason));
            }
            Outcome::GaveUp(gave_up) if attempts == 1 => {
                assert_eq!((gave_up.attempts, gave_up.reason), (1, reason));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// After an attempt of its own that failed it waits in line, and leaves that.
#[tokio::test(start_paused = true)]
async fn run_that_is_cut_short_while_it_waits_has_left() {
    let memory = Memory::new();
    let builder = LockingWorker::builder("job").in_memory(&memory);
    let (a, b) = (
        builder.clone().rejoin(true).build().await.unwrap(),
        builder.build().await.unwrap(),
    );
    let events = a.acquire().take_until(sleep(LEASE / 2));
    let running = events.run(async |_| {
        sleep(LEASE / 10).await;
        Err::<(), _>("no luck")
    });
    let successor = async {
        sleep(LEASE / 20).await;
        let guard = b.acquire().guards().next().await.unwrap();
        sleep(LEASE / 2).await;
        guard.done().await.unwrap();
    };
    let (outcome, ()) = future::join(running, successor).await;
    assert_eq!(outcome.unwrap(), Outcome::Left);
}

#[tokio::test(start_paused = true)]
async fn composes_with_buffer_unordered() {
    let memory = Memory::new();
    let fleet = [worker(&memory, "a").await, worker(&memory, "b").await];
    let executions = AtomicU32::new(0);
    let runs = fleet.iter().flat_map(|worker| {
        let executions = &executions;
        (0..50).map(move |nth| {
            let worker = worker.with_key(format!("job:{nth}")).unwrap();
            worker.acquire().run(move |_| async move {
                sleep(LEASE / 10).await;
                executions.fetch_add(1, Ordering::Relaxed);
                Ok::<_, String>(())
            })
        })
    });
    let outcomes = stream::iter(runs).buffer_unordered(100);
    let outcomes: Vec<_> = outcomes.collect().await;
    assert_eq!(outcomes.len(), 100);
    for outcome in outcomes {
        completed(outcome.unwrap());
    }
    assert_eq!(executions.into_inner(), 50, "each once");
}

#[tokio::test(start_paused = true)]
async fn composes_with_stream_map() {
    let memory = Memory::new();
    let worker = worker(&memory, "a").await;
    let mut map = tokio_stream::StreamMap::new();
    for name in ["x", "y"] {
        let events = worker.with_key(name).unwrap().acquire();
        map.insert(name, events.without_status());
    }
    let mut done = Vec::new();
    while let Some((name, event)) = map.next().await {
        match event {
            LockEvent::Acquired(guard) => guard.done().await.unwrap(),
            LockEvent::Completed(_) => done.push(name),
            other => panic!("{other:?}"),
        }
    }
    done.sort_unstable();
    assert_eq!(done, ["x", "y"]);
}

type Nothing = fn(Arc<WorkGuard>) -> future::Ready<Failing>;

assert_impl_all!(adapters::Guards<Acquire>: Send, Unpin, FusedStream);
assert_impl_all!(adapters::WithoutStatus<Acquire>: Send, Unpin, FusedStream);
assert_impl_all!(adapters::InspectStatus<Acquire, fn(&Status)>: Send, Unpin, FusedStream);
assert_impl_all!(adapters::ToOutcome<Acquire>: Send, Unpin, Future);
assert_impl_all!(adapters::Run<Acquire, Nothing, future::Ready<Failing>>: Send, Future);
// The work need not be.
assert_not_impl_any!(adapters::Run<Acquire, Nothing, future::Pending<*const ()>>: Send);
