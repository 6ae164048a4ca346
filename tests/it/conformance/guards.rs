//! What a guard can do while the work goes on, and what is known of it afterwards.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use redis_locking_worker::{
    FencedError, LeaseLost, LockEvent, OnceError, PreviousAttempt, Reason, RenewError, SettleError,
    WorkGuard,
};
use tokio::time::{Instant, sleep, timeout};

use super::events::{Fleet, on_both};
use testkit::{acquired, end, locked, race};

on_both!(
    work_of_five_leases_under_renewal_is_one_attempt,
    a_guard_that_nobody_uses_is_not_renewed,
    a_guard_in_a_buffer_ends_with_its_lease,
    a_forgotten_guard_is_renewed_for_the_longest_hold_at_most,
    work_stops_when_the_lease_ends,
    the_end_of_a_guard_stops_what_works_in_its_name,
    a_lost_record_is_noticed_by_the_next_renewal,
    an_extended_lease_is_never_shortened,
    an_extension_has_bounds,
    the_next_attempt_finds_what_the_last_one_left,
    a_handed_over_attempt_goes_on_from_its_checkpoint,
    a_failure_and_its_reason_survive_a_hand_off,
    a_checkpoint_too_large_changes_nothing,
    a_renewal_of_a_lost_guard_says_to_whom,
    one_execution_serves_everybody,
    once_fails_over_and_everybody_gets_the_result,
    once_gives_up_with_the_last_reason,
    once_stops_the_work_when_the_lease_is_lost,
    once_reports_a_result_too_large_as_a_failure,
);

/// The next holder's view of the attempt before.
fn previous(guard: &WorkGuard) -> &PreviousAttempt {
    guard.previous().expect("an attempt before this one")
}

async fn work_of_five_leases_under_renewal_is_one_attempt(fleet: Fleet) {
    let build = |label| {
        let builder = fleet.builder("job", label).lock_timeout(fleet.short);
        builder.renew().build()
    };
    let (a, b) = (build("a").await.unwrap(), build("b").await.unwrap());
    let (mut first, guard, mut second) = race(&a, &b).await;
    let work = async {
        // Nobody is granted it meanwhile, and nobody is told anything.
        assert!(timeout(5 * fleet.short, second.next()).await.is_err());
        "worked"
    };
    assert_eq!(guard.run(work).await.unwrap(), "worked");
    assert!(guard.is_valid());
    assert_eq!((guard.attempt(), guard.previous()), (1, None));
    guard.done().await.unwrap();
    for stream in [&mut first, &mut second] {
        match end(stream).await {
            LockEvent::Completed(completed) => assert_eq!(completed.attempt, 1),
            other => panic!("{other:?}"),
        }
    }
}

async fn a_guard_that_nobody_uses_is_not_renewed(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.renew().build().await.unwrap();
    let (_first, guard, mut second) = race(&worker, &worker).await;
    // Looking at it for a log is no use of it.
    let began = Instant::now();
    assert!(format!("{guard:?}").contains("attempt: 1"));
    assert_eq!(acquired(&mut second).await.attempt(), 2);
    assert!(began.elapsed() < 2 * fleet.short, "{:?}", began.elapsed());
}

async fn a_guard_in_a_buffer_ends_with_its_lease(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.renew().build().await.unwrap();
    // Nothing comes of it until it holds two guards, or its stream ends.
    let guards = worker.acquire().filter_map(async |event| match event {
        LockEvent::Acquired(guard) => Some(guard),
        _ => None,
    });
    let mut buffer = Box::pin(guards.chunks(2));
    assert!(timeout(fleet.short / 4, buffer.next()).await.is_err());
    let mut waiting = worker.acquire();
    assert_eq!(locked(&mut waiting).await.attempt, 1);
    let began = Instant::now();
    // Whether the buffer is looked at or not: its stream ends with the lease too, and gives it up.
    let (guard, buffered) = futures::join!(acquired(&mut waiting), buffer.next());
    assert!(began.elapsed() < 2 * fleet.short, "{:?}", began.elapsed());
    assert_eq!(guard.attempt(), 2);
    assert!(!buffered.unwrap()[0].is_valid());
    guard.done().await.unwrap();
}

async fn a_forgotten_guard_is_renewed_for_the_longest_hold_at_most(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let builder = builder.renew().max_hold(3 * fleet.short);
    let worker = builder.build().await.unwrap();
    let (_first, guard, mut second) = race(&worker, &worker).await;
    let began = Instant::now();
    let lost = guard.lost();
    std::mem::forget(guard);
    let reason = lost.await;
    assert!(
        matches!(reason, LeaseLost::MaxHold { max_hold } if max_hold == 3 * fleet.short),
        "{reason:?}"
    );
    assert_eq!(acquired(&mut second).await.attempt(), 2);
    let held = began.elapsed();
    assert!(
        held > 5 * fleet.short / 2 && held < 4 * fleet.short,
        "{held:?}"
    );
}

async fn work_stops_when_the_lease_ends(fleet: Fleet) {
    let build = |label| {
        fleet
            .builder("job", label)
            .lock_timeout(fleet.short)
            .build()
    };
    let (a, b) = (build("a").await.unwrap(), build("b").await.unwrap());
    let (_first, guard, mut second) = race(&a, &b).await;
    let token = guard.cancellation_token();
    let lost = tokio::spawn(guard.lost());
    let ran = guard.run(std::future::pending::<()>()).await;
    assert!(matches!(ran, Err(LeaseLost::Expired)), "{ran:?}");
    assert!(token.is_cancelled() && !guard.is_valid() && guard.remaining().is_zero());
    assert!(matches!(lost.await.unwrap(), LeaseLost::Expired));
    // All of that before anybody else could begin.
    assert!(second.next().now_or_never().is_none());
    assert_eq!(acquired(&mut second).await.attempt(), 2);
    // Not another step of the work.
    let ran = guard.run(async { panic!("polled") }).await;
    assert!(matches!(ran, Err(LeaseLost::Expired)), "{ran:?}");
}

async fn the_end_of_a_guard_stops_what_works_in_its_name(fleet: Fleet) {
    let worker = fleet.worker("a").await;
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    let (token, lost) = (guard.cancellation_token(), guard.lost());
    // What a task does with its token is its own affair.
    guard.cancellation_token().cancel();
    assert!(!token.is_cancelled() && guard.is_valid());
    drop(guard);
    assert!(token.is_cancelled());
    assert!(matches!(lost.now_or_never(), Some(LeaseLost::Settled)));
}

async fn a_lost_record_is_noticed_by_the_next_renewal(fleet: Fleet) {
    let builder = fleet.builder("job", "a").renew_every(fleet.short / 4);
    let worker = builder.build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let lost = guard.lost();
    fleet.lose(guard.key()).await;
    let lost = timeout(2 * fleet.short, lost).await.expect("noticed");
    assert!(matches!(lost, LeaseLost::RecordGone), "{lost:?}");
    assert!(!guard.is_valid());
}

async fn an_extended_lease_is_never_shortened(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.build().await.unwrap();
    let (_first, guard, mut second) = race(&worker, &worker).await;
    guard.extend(4 * fleet.short).await.unwrap();
    assert!(guard.remaining() > 3 * fleet.short);
    // A checkpoint is a renewal too, and shortens nothing.
    guard.checkpoint("half").await.unwrap();
    assert!(guard.remaining() > 3 * fleet.short);
    assert!(timeout(2 * fleet.short, second.next()).await.is_err());
    assert!(guard.is_valid());
    guard.extend(fleet.short / 4).await.unwrap();
    assert!(guard.remaining() > fleet.short);
    assert_eq!(acquired(&mut second).await.attempt(), 2);
}

async fn an_extension_has_bounds(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.max_hold(4 * fleet.short).build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    for wrong in [Duration::ZERO, 5 * fleet.short, Duration::MAX] {
        match guard.extend(wrong).await {
            Err(RenewError::Lease { value, min, max }) => {
                assert_eq!((value, min), (wrong, Duration::from_millis(1)));
                assert!(max <= 4 * fleet.short, "{max:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(guard.is_valid());
    guard.done().await.unwrap();
}

async fn the_next_attempt_finds_what_the_last_one_left(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.rejoin(true).build().await.unwrap();
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    assert_eq!(guard.previous(), None);
    guard.checkpoint(&b"\0row 17\xff"[..]).await.unwrap();
    guard.fail("no luck").await.unwrap();

    let guard = acquired(&mut stream).await;
    assert_eq!(
        (previous(&guard).attempt, &previous(&guard).holder[..]),
        (1, "a")
    );
    assert_eq!(previous(&guard).reason, Reason::Failed("no luck".into()));
    assert_eq!(previous(&guard).checkpoint, &b"\0row 17\xff"[..]);
    drop(guard);

    let guard = acquired(&mut stream).await;
    assert_eq!(previous(&guard).reason, Reason::Dropped);
    // Nobody has left a newer one.
    assert_eq!(previous(&guard).checkpoint, &b"\0row 17\xff"[..]);
    let worked = std::panic::AssertUnwindSafe(async move {
        let _guard = guard;
        panic!("on purpose")
    });
    assert!(worked.catch_unwind().await.is_err());

    let guard = acquired(&mut stream).await;
    assert_eq!(previous(&guard).reason, Reason::Panicked);
    guard.checkpoint("row 40").await.unwrap();
    guard.lost().await;

    let guard = acquired(&mut stream).await;
    assert_eq!(
        (guard.attempt(), &previous(&guard).reason),
        (5, &Reason::Expired)
    );
    assert_eq!(previous(&guard).checkpoint, "row 40");
    guard.done().await.unwrap();
}

async fn a_handed_over_attempt_goes_on_from_its_checkpoint(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let (_first, guard, mut second) = race(&a, &b).await;
    guard.checkpoint("row 17").await.unwrap();
    guard.hand_off().await.unwrap();
    let guard = acquired(&mut second).await;
    assert_eq!((guard.attempt(), previous(&guard).attempt), (1, 1));
    assert_eq!(previous(&guard).reason, Reason::HandedOff);
    assert_eq!(previous(&guard).checkpoint, "row 17");
    guard.done().await.unwrap();
}

async fn a_failure_and_its_reason_survive_a_hand_off(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let (_first, guard, mut second) = race(&a, &b).await;
    guard.fail("upstream 503").await.unwrap();
    let guard = acquired(&mut second).await;
    guard.checkpoint("row 17").await.unwrap();
    // To a waiter; and then to the next that comes.
    let mut third = c.acquire();
    locked(&mut third).await;
    guard.hand_off().await.unwrap();
    for mut events in [third, a.acquire()] {
        let guard = acquired(&mut events).await;
        let previous = previous(&guard);
        assert_eq!((guard.attempt(), previous.attempt), (2, 1));
        assert_eq!(previous.reason, Reason::Failed("upstream 503".to_owned()));
        assert_eq!(
            (&previous.holder[..], &previous.checkpoint[..]),
            ("a", &b"row 17"[..])
        );
        guard.hand_off().await.unwrap();
    }
}

async fn a_checkpoint_too_large_changes_nothing(fleet: Fleet) {
    let worker = fleet.worker("a").await;
    let guard = acquired(&mut worker.acquire()).await;
    let large = vec![b'x'; WorkGuard::MAX_CHECKPOINT + 1];
    match guard.checkpoint(large.clone()).await {
        Err(RenewError::CheckpointTooLarge { len, max }) => {
            assert_eq!((len, max), (large.len(), WorkGuard::MAX_CHECKPOINT));
        }
        other => panic!("{other:?}"),
    }
    assert!(guard.is_valid());
    guard.checkpoint(large[1..].to_vec()).await.unwrap();
    guard.fail("later").await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    assert_eq!(previous(&guard).checkpoint, large[1..]);
}

async fn a_renewal_of_a_lost_guard_says_to_whom(fleet: Fleet) {
    let build = |label, lease| fleet.builder("job", label).lock_timeout(lease).build();
    let a = build("a", fleet.short).await.unwrap();
    let b = build("b", 4 * fleet.short).await.unwrap();
    let (_first, guard, mut second) = race(&a, &b).await;
    let taken = acquired(&mut second).await;
    // It was lost by the clock before it was known to whom.
    let renewed = guard.extend(fleet.short).await;
    assert!(
        matches!(renewed, Err(RenewError::Lost(LeaseLost::Expired))),
        "{renewed:?}"
    );
    let settled = guard.done().await;
    match settled {
        Err(SettleError::Lost(LeaseLost::TakenOver { holder, attempt })) => {
            assert_eq!((&holder[..], attempt), ("b", 2));
        }
        other => panic!("{other:?}"),
    }
    taken.done().await.unwrap();
}

/// Counts the executions, in whatever order they are.
#[derive(Default)]
struct Work(std::sync::atomic::AtomicU32);

impl Work {
    /// Fails so many times first.
    async fn run(&self, failures: u32) -> Result<String, String> {
        let nth = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        tokio::task::yield_now().await;
        match nth > failures {
            true => Ok(format!("by execution {nth}")),
            false => Err(format!("execution {nth} failed")),
        }
    }

    fn executions(&self) -> u32 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

async fn one_execution_serves_everybody(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let work = Work::default();
    let all = (0..20).map(|n| [&a, &b][n % 2].once(async |_| work.run(0).await));
    for result in futures::future::join_all(all).await {
        assert_eq!(result.unwrap(), "by execution 1");
    }
    let late = a.once(async |_| work.run(0).await).await;
    assert_eq!(late.unwrap(), "by execution 1");
    assert_eq!(work.executions(), 1);
}

async fn once_fails_over_and_everybody_gets_the_result(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let work = Work::default();
    let all = (0..20).map(|n| [&a, &b][n % 2].once(async |_| work.run(2).await));
    for result in futures::future::join_all(all).await {
        assert_eq!(result.unwrap(), "by execution 3");
    }
    assert_eq!(work.executions(), 3);
}

async fn once_gives_up_with_the_last_reason(fleet: Fleet) {
    let builder = fleet.builder("job", "a").max_attempts(2);
    let worker = builder.build().await.unwrap();
    let work = Work::default();
    let all = (0..3).map(|_| worker.once(async |_| work.run(9).await));
    for result in futures::future::join_all(all).await {
        let error = result.unwrap_err();
        assert_eq!(
            error.to_string(),
            "given up after 2 attempts: execution 2 failed"
        );
        assert!(matches!(error, OnceError::GaveUp(_)));
    }
    assert_eq!(work.executions(), 2);
}

async fn once_stops_the_work_when_the_lease_is_lost(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.build().await.unwrap();
    let result = worker.once(async |guard| {
        if guard.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, std::io::Error>(format!("{:?}", previous(&guard).reason))
    });
    let reason = result.await.unwrap();
    // On a busy machine the few ms between the loss and the end on the server may not be enough.
    let told = "Failed(\"the lease was lost: it ended\")";
    assert!(reason == told || reason == "Expired", "{reason:?}");
}

async fn once_reports_a_result_too_large_as_a_failure(fleet: Fleet) {
    let builder = fleet.builder("job", "a").max_attempts(1);
    let worker = builder.build().await.unwrap();
    let large = vec![0; WorkGuard::MAX_RESULT + 1];
    let result = worker.once(async |_| Ok::<_, std::io::Error>(large.clone()));
    match result.await {
        Err(OnceError::GaveUp(gave_up)) => assert_eq!(
            gave_up.reason.to_string(),
            "the result has 1048577 bytes; at most 1048576 are allowed"
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_memory_store_runs_no_scripts() {
    let worker = Fleet::in_memory().worker("a").await;
    let guard = acquired(&mut worker.acquire()).await;
    let ran: Result<i64, _> = guard.fenced("return 1", "key", "arg").await;
    assert!(matches!(ran, Err(FencedError::NoScripts)), "{ran:?}");
}

/// What a spawned task may do with it: its future is `Send`, whatever the work borrows.
#[tokio::test]
async fn once_can_be_spawned() {
    let worker = Fleet::in_memory().worker("a").await;
    let task = tokio::spawn(async move {
        let executions = Work::default();
        let borrowed = worker.once(async |guard| {
            guard
                .checkpoint("begun")
                .await
                .map_err(|error| error.to_string())?;
            executions.run(1).await
        });
        let owned = worker.once(|guard| async move {
            sleep(Duration::from_millis(1)).await;
            Err::<String, _>(guard.attempt())
        });
        let (first, second) = futures::join!(borrowed, owned);
        assert_eq!(first.unwrap(), second.unwrap());
        executions.executions()
    });
    assert!((1..=2).contains(&task.await.unwrap()));
}

/// A clone of the guard that outlives the work decides nothing.
#[tokio::test(start_paused = true)]
async fn once_ends_its_guard_whoever_has_it_still() {
    let worker = Fleet::in_memory().worker("a").await;
    let kept = std::sync::Mutex::new(Vec::new());
    let work = worker.once(async |guard| {
        kept.lock().unwrap().push(guard.clone());
        match guard.attempt() {
            1 => std::future::pending().await,
            _ => Ok::<_, std::io::Error>("done"),
        }
    });
    assert!(timeout(Duration::from_millis(1), work).await.is_err());
    let work = worker.once(async |guard| {
        kept.lock().unwrap().push(guard.clone());
        Ok::<_, std::io::Error>(guard.attempt().to_string())
    });
    let result = timeout(Duration::from_millis(1), work).await;
    assert_eq!(result.expect("at once").unwrap(), "2");
    let kept = kept.into_inner().unwrap();
    assert_eq!(kept.len(), 2);
    for guard in kept {
        assert!(!guard.is_valid());
        let again = std::sync::Arc::into_inner(guard).unwrap().done().await;
        assert!(
            matches!(again, Err(SettleError::Lost(LeaseLost::Settled))),
            "{again:?}"
        );
    }
}

#[cfg(feature = "json")]
#[tokio::test]
async fn a_json_result_is_the_same_for_everybody() {
    let worker = Fleet::in_memory().worker("a").await;
    let work = async |_| Ok::<_, std::io::Error>(vec![(1, "one".to_owned())]);
    let (first, second) = futures::join!(worker.once_json(work), worker.once_json(work));
    assert_eq!(first.unwrap(), [(1, "one".to_owned())]);
    assert_eq!(second.unwrap(), [(1, "one".to_owned())]);
    let other = worker.once_json(async |_| Ok::<_, std::io::Error>(7));
    assert!(matches!(other.await, Err(OnceError::Json(_))));
}
