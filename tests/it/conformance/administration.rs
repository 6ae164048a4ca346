//! Looking at a run from outside, and beginning it anew.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use redis_locking_worker::{
    LeaseLost, LockEvent, Reason, RunState, SettleError, Snapshot, Watch, WorkGuard,
};
use tokio::time::timeout;

use super::events::{Fleet, on_both};
use testkit::{PATIENCE, acquired, end, locked, race};

on_both!(
    inspect_tells_of_each_state_and_who_waits,
    inspect_tells_what_the_last_attempt_left,
    watch_yields_each_transition_in_order,
    watch_tells_that_an_outcome_is_forgotten,
    watch_tells_of_a_record_that_is_there_already_and_takes_no_part,
    a_watch_that_is_not_polled_loses_nothing,
    clear_takes_the_work_from_its_holder_and_gives_it_to_the_next_in_line,
    clear_makes_a_finished_run_begin_anew_under_a_higher_fence,
    clear_of_nothing_is_said,
    what_is_cleared_is_shown_to_who_looks_on,
);

async fn inspect_tells_of_each_state_and_who_waits(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let free = a.inspect().await.unwrap();
    assert_eq!((free.state, free.attempt), (RunState::Free, 0));
    assert_eq!(free.line, Some(Vec::new()));
    let (_first, guard, _second) = race(&a, &b).await;
    let mut third = c.acquire();
    locked(&mut third).await;
    let held = c.inspect().await.unwrap();
    assert_eq!((held.state, held.attempt), (RunState::Held, 1));
    assert_eq!((held.holder.as_str(), held.max_attempts), ("a", 5));
    assert_eq!(held.fencing_token, guard.fencing_token());
    assert!(held.remaining >= guard.remaining());
    let line = ["b", "c"].map(str::to_owned);
    assert_eq!(held.line.as_deref(), Some(&line[..]));
    guard.fail_permanently("broken").await.unwrap();
    let gave_up = a.inspect().await.unwrap();
    assert_eq!((gave_up.state, gave_up.attempt), (RunState::GaveUp, 1));
    let previous = gave_up.previous.unwrap();
    assert_eq!(previous.reason, Reason::Failed("broken".to_owned()));
    assert_eq!(gave_up.line, Some(Vec::new()));
}

async fn inspect_tells_what_the_last_attempt_left(fleet: Fleet) {
    let a = fleet.worker("a").await;
    let guard = acquired(&mut a.acquire()).await;
    guard.checkpoint("half").await.unwrap();
    guard.fail("first").await.unwrap();
    let open = a.inspect().await.unwrap();
    assert_eq!((open.state, open.attempt), (RunState::Open, 1));
    assert_eq!(open.previous.unwrap().checkpoint, "half");
    let guard = acquired(&mut a.acquire()).await;
    guard.done_with("42").await.unwrap();
    let completed = a.inspect().await.unwrap();
    assert_eq!(
        (completed.state, completed.attempt),
        (RunState::Completed, 2)
    );
    assert_eq!(
        (completed.holder.as_str(), &completed.result[..]),
        ("a", &b"42"[..])
    );
    assert!(completed.remaining <= Duration::from_secs(40) && !completed.remaining.is_zero());
}

async fn seen(watch: &mut Watch) -> Snapshot {
    let next = timeout(PATIENCE, watch.next()).await.expect("in time");
    next.expect("another").unwrap()
}

/// The state and the attempt that come next, renewals left out.
async fn next(watch: &mut Watch, last: &mut Option<(RunState, u32)>) -> (RunState, u32) {
    loop {
        let seen = seen(watch).await;
        let seen = (seen.state, seen.attempt);
        if last.replace(seen) != Some(seen) {
            return seen;
        }
    }
}

async fn watch_yields_each_transition_in_order(fleet: Fleet) {
    let (a, b, looks_on) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let mut watch = looks_on.watch();
    let mut last = None;
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Free, 0));
    let (_first, guard, mut second) = race(&a, &b).await;
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Held, 1));
    guard.fail("first").await.unwrap();
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Granted, 2));
    let guard = acquired(&mut second).await;
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Held, 2));
    guard.extend(Duration::from_secs(30)).await.unwrap();
    // It may have been confirmed once more.
    while seen(&mut watch).await.remaining < Duration::from_secs(20) {}
    drop(guard);
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Open, 2));
    let open = looks_on.inspect().await.unwrap();
    assert_eq!(open.previous.unwrap().reason, Reason::Dropped);
    acquired(&mut a.acquire())
        .await
        .done_with("42")
        .await
        .unwrap();
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Held, 3));
    let completed = loop {
        let seen = seen(&mut watch).await;
        if seen.state != RunState::Held {
            break seen;
        }
    };
    assert_eq!(
        (completed.state, &completed.result[..]),
        (RunState::Completed, &b"42"[..])
    );
    assert_eq!(completed.line, None, "nobody was asked");
}

async fn watch_tells_that_an_outcome_is_forgotten(fleet: Fleet) {
    let builder = fleet.builder("job", "a").lock_timeout(fleet.short);
    let worker = builder.retention(fleet.short).build().await.unwrap();
    let mut watch = worker.watch();
    let mut last = None;
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Free, 0));
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Held, 1));
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Completed, 1));
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Free, 0));
    // So is a holder that has died.
    std::mem::forget(acquired(&mut worker.acquire()).await);
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Held, 1));
    assert_eq!(next(&mut watch, &mut last).await, (RunState::Free, 0));
}

async fn watch_tells_of_a_record_that_is_there_already_and_takes_no_part(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let guard = acquired(&mut a.acquire()).await;
    let mut watches = [b.watch(), b.watch(), a.watch()];
    for watch in &mut watches {
        assert_eq!(seen(watch).await.state, RunState::Held);
    }
    assert_eq!(
        a.inspect().await.unwrap().line,
        Some(Vec::new()),
        "nobody is in line"
    );
    drop(guard);
    for watch in &mut watches {
        assert_eq!(
            seen(watch).await.state,
            RunState::Open,
            "nobody was granted it"
        );
    }
}

async fn a_watch_that_is_not_polled_loses_nothing(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let mut watch = b.watch();
    assert_eq!(seen(&mut watch).await.state, RunState::Free);
    for _ in 0..3 {
        drop(acquired(&mut a.acquire()).await);
        a.clone().close().await;
    }
    for attempt in 1..=3 {
        for state in [RunState::Held, RunState::Open] {
            let seen = seen(&mut watch).await;
            assert_eq!((seen.state, seen.attempt), (state, attempt));
        }
    }
    assert!(watch.next().now_or_never().is_none());
}

async fn clear_takes_the_work_from_its_holder_and_gives_it_to_the_next_in_line(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let (mut first, guard, second) = race(&a, &b).await;
    guard.fail("once").await.unwrap();
    assert!(matches!(end(&mut first).await, LockEvent::Failed(_)));
    let mut second = second;
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 2);
    let fence = guard.fencing_token();
    let mut third = c.acquire();
    locked(&mut third).await;
    assert!(c.clear().await.unwrap());
    let next = acquired(&mut third).await;
    assert_eq!((next.attempt(), next.previous()), (1, None), "anew");
    assert!(next.fencing_token() > fence);
    let lost = guard.done().await;
    assert!(
        matches!(
            &lost,
            Err(SettleError::Lost(LeaseLost::TakenOver { holder, attempt: 1 })) if holder == "c"
        ),
        "{lost:?}"
    );
    next.done().await.unwrap();
}

async fn clear_makes_a_finished_run_begin_anew_under_a_higher_fence(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let first = acquired(&mut a.acquire()).await;
    let fence = first.fencing_token();
    first.done_with("42").await.unwrap();
    assert!(b.clear().await.unwrap());
    let cleared = b.inspect().await.unwrap();
    assert_eq!((cleared.state, cleared.attempt), (RunState::Open, 0));
    assert!(cleared.result.is_empty() && cleared.previous.is_none());
    assert!(cleared.holder.is_empty() && cleared.fencing_token > fence);
    let second: WorkGuard = acquired(&mut b.acquire()).await;
    assert_eq!(second.attempt(), 1);
    assert!(second.fencing_token() > cleared.fencing_token);
    // A holder whose run is cleared, and nobody is next.
    assert!(a.clear().await.unwrap());
    let lost = second.done().await;
    assert!(
        matches!(lost, Err(SettleError::Lost(LeaseLost::RecordGone))),
        "{lost:?}"
    );
}

async fn clear_of_nothing_is_said(fleet: Fleet) {
    let a = fleet.worker("a").await;
    assert!(!a.clear().await.unwrap());
    assert_eq!(a.inspect().await.unwrap().state, RunState::Free);
}

async fn what_is_cleared_is_shown_to_who_looks_on(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    acquired(&mut a.acquire()).await.done().await.unwrap();
    let mut watch = b.watch();
    assert_eq!(seen(&mut watch).await.state, RunState::Completed);
    a.clear().await.unwrap();
    let open = seen(&mut watch).await;
    assert_eq!((open.state, open.attempt), (RunState::Open, 0));
}
