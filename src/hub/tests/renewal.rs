//! Tests of leases whose renewals succeed or fail, and of the events that their holders get.

use crate::error::LeaseLost;
use crate::guard::RenewError;
use crate::protocol::record::Record;

use super::*;

const LEASE: u64 = 1_000;

/// Returns a process that renews its guards after a third of their lease.
fn renewing(store: &Bad, label: &str) -> AcquireConfig {
    process_with(store, label, LEASE, |terms| RunConfig {
        renew_every: Some(Duration::from_millis(LEASE / 3)),
        ..terms
    })
}

/// Returns a store in which `judge` decides the fate of each renewal, by its number from 1.
fn on_renewals(memory: &Memory, mut judge: impl FnMut(u32) -> Fate + Send + 'static) -> Bad {
    let mut renewals = 0;
    Bad::new(memory, move |op| match op {
        Op::Renew { .. } => {
            renewals += 1;
            judge(renewals)
        }
        _ => Fate::Good,
    })
}

async fn record(store: &Bad) -> (Record, u64) {
    let reply = store.store.apply(&key(), &Op::Inspect).await.unwrap();
    (reply.record().unwrap().clone(), reply.frame.at)
}

/// Returns the rest of the lease on the server, in ms.
async fn left(store: &Bad) -> f64 {
    let (record, at) = record(store).await;
    assert_eq!(record.state, State::Held);
    record.until as f64 - at as f64 / 1e3
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_within_the_lease() {
    let memory = Memory::new();
    // Two failures before each success.
    let bad = on_renewals(&memory, |nth| match nth % 3 {
        0 => Fate::Good,
        _ => Fate::Refused,
    });
    let a = renewing(&bad, "a");
    let mut first = new_stream(&a);
    let guard = acquired(&mut first).await;
    let work = tokio::time::sleep(Duration::from_millis(10 * LEASE));
    guard.run(work).await.expect("saved each time");
    guard.done().await.unwrap();
    let mut outages = 0;
    while let LockEvent::Error(error) = next(&mut first).await {
        assert!(error.is_retryable());
        outages += 1;
    }
    assert!((10..40).contains(&outages), "{outages}: one an outage");
}

#[tokio::test(start_paused = true)]
async fn without_any_answer_the_work_stops_before_the_lease_ends() {
    for stalled in [false, true] {
        let memory = Memory::new();
        let bad = on_renewals(&memory, move |nth| match (nth, stalled) {
            (1, _) => Fate::Good,
            (_, true) => Fate::Late(Duration::from_millis(LONG)),
            (_, false) => Fate::Refused,
        });
        let a = renewing(&bad, "a");
        let guard = acquired(&mut new_stream(&a)).await;
        let began = Instant::now();
        let lost = guard.run(future::pending::<()>()).await.unwrap_err();
        let left = left(&bad).await;
        println!("cancelled {left} ms before the lease ends");
        assert!(left > 0.0 && left < 15.0, "{left} ms too early");
        assert!(began.elapsed() > Duration::from_millis(LEASE));
        match lost {
            LeaseLost::Unreachable { source } => assert_eq!(source.is_none(), stalled),
            other => panic!("{other:?}"),
        }
        assert!(!guard.is_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_does_not_bring_the_guard_back() {
    let memory = Memory::new();
    let bad = on_renewals(&memory, |_| Fate::Slow(Duration::from_millis(200)));
    let a = process(&bad, "a", LEASE);
    let guard = acquired(&mut new_stream(&a)).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    // The renewal is sent and applied in time, but its answer comes after the guard was lost.
    let extended = guard.extend(Duration::from_secs(60)).await;
    assert!(
        matches!(extended, Err(RenewError::Lost(LeaseLost::Expired))),
        "{extended:?}"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        left(&bad).await > 50_000.0,
        "it is still ours on the server"
    );
    assert!(!guard.is_valid() && guard.remaining().is_zero());
    guard.done().await.unwrap();
}

/// The server answers a renewal in time, but the hub or the keeper reads the answer late.
#[tokio::test(start_paused = true)]
async fn a_guard_that_has_said_that_it_is_not_valid_stays_so() {
    let memory = Memory::new();
    let bad = on_renewals(&memory, |_| Fate::Good);
    let a = renewing(&bad, "a");
    let mut first = new_stream(&a);
    let guard = acquired(&mut first).await;
    assert!(guard.is_valid());
    // No other task runs until the lease has ended: no timer, and no renewal.
    tokio::time::advance(Duration::from_millis(LEASE)).await;
    let said = guard.is_valid();
    tokio::time::sleep(Duration::from_millis(LEASE / 2)).await;
    if !said {
        assert!(!guard.is_valid() && guard.check().is_err());
        assert!(guard.lost().now_or_never().is_some(), "and `lost` says so");
        drop(guard);
        assert!(matches!(next(&mut first).await, LockEvent::Failed(_)));
    }
    assert!(!said, "the test looks too late");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_leaves_the_lease_until_its_end() {
    let memory = Memory::new();
    let bad = on_renewals(&memory, |_| Fate::Forbidden);
    let a = renewing(&bad, "a");
    let guard = acquired(&mut new_stream(&a)).await;
    let began = Instant::now();
    let renewed = guard.checkpoint("x").await;
    assert!(
        matches!(renewed, Err(RenewError::Refused(Error::Refused { .. }))),
        "{renewed:?}"
    );
    assert!(guard.is_valid());
    let lost = guard.lost().await;
    assert!(
        matches!(
            lost,
            LeaseLost::Unreachable {
                source: Some(Error::Refused { .. })
            }
        ),
        "{lost:?}"
    );
    assert!(began.elapsed() > Duration::from_millis(LEASE * 9 / 10));
}

#[tokio::test(start_paused = true)]
async fn no_renewal_reaches_past_the_longest_hold() {
    // The longest hold counts from the grant, even if the answer to the claim is late.
    for late in [0, LEASE / 2] {
        let memory = Memory::new();
        let mut renewals = 0;
        let bad = Bad::new(&memory, move |op| match op {
            Op::Claim { .. } => Fate::Slow(Duration::from_millis(late)),
            Op::Renew { .. } => {
                renewals += 1;
                match renewals {
                    // At a retry less of the hold is left than at the first try.
                    5..8 => Fate::Refused,
                    _ => Fate::Good,
                }
            }
            _ => Fate::Good,
        });
        let hold = Duration::from_millis(5 * LEASE / 2);
        let a = process_with(&bad, "a", LEASE, |terms| RunConfig {
            renew_every: Some(Duration::from_millis(LEASE / 3)),
            max_hold: hold,
            ..terms
        });
        let guard = acquired(&mut new_stream(&a)).await;
        let lost = guard.lost().await;
        assert!(matches!(lost, LeaseLost::MaxHold { max_hold } if max_hold == hold));
        let (record, _) = record(&bad).await;
        let held = record.until - record.fence / 1_000;
        assert!(
            (2_490..=2_501).contains(&held),
            "the lease ends after {held} ms on the server"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_cause_no_events_for_waiters() {
    let memory = Memory::new();
    let (good, quiet) = (Bad::good(&memory), Bad::good(&memory));
    let a = renewing(&good, "a");
    let b = process(&quiet, "b", LEASE);
    let mut first = new_stream(&a);
    let guard = acquired(&mut first).await;
    let mut second = new_stream(&b);
    locked(&mut second).await;
    settle_down().await;
    let (asked, renewed) = (quiet.calls(), good.calls());
    let worked = async {
        let more = tokio::time::timeout(Duration::from_millis(20 * LEASE), second.next());
        assert!(more.await.is_err(), "one event for each holder");
    };
    guard.run(worked).await.unwrap();
    assert_eq!(quiet.calls(), asked, "and no command");
    let renewed = good.calls() - renewed;
    assert!((59..=61).contains(&renewed), "{renewed}: three a lease");
    guard.done().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_extended_is_renewed_when_that_ends() {
    let memory = Memory::new();
    let good = Bad::good(&memory);
    let a = renewing(&good, "a");
    let guard = acquired(&mut new_stream(&a)).await;
    guard.extend(Duration::from_secs(60)).await.unwrap();
    let asked = good.calls();
    tokio::time::sleep(Duration::from_secs(58)).await;
    let quiet = good.calls() - asked;
    assert_eq!(quiet, 0, "nothing to renew while enough is left");
    let work = tokio::time::sleep(Duration::from_secs(10));
    guard.run(work).await.unwrap();
    assert!(left(&good).await <= LEASE as f64);
}

/// The margin of such a long term exceeds the rest of a usual lease when a renewal is due.
#[tokio::test(start_paused = true)]
async fn a_guard_that_was_extended_for_long_is_renewed_before_that_ends() {
    let memory = Memory::new();
    let a = renewing(&Bad::good(&memory), "a");
    let guard = acquired(&mut new_stream(&a)).await;
    guard.extend(Duration::from_secs(1_000)).await.unwrap();
    let work = tokio::time::sleep(Duration::from_secs(2_000));
    guard.run(work).await.unwrap();
}

/// Meanwhile the server answers claims of the same key.
#[tokio::test(start_paused = true)]
async fn an_outage_of_renewals_goes_on_until_one_succeeds_or_the_lease_is_lost() {
    let memory = Memory::new();
    let a = renewing(&on_renewals(&memory, |_| Fate::Refused), "a");
    let guard = acquired(&mut new_stream(&a)).await;
    assert!(guard.is_valid());
    tokio::time::sleep(Duration::from_millis(LEASE / 2)).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = new_stream(&a);
        let told = next(&mut stream).await;
        assert!(matches!(told, LockEvent::Error(_)), "{told:?}");
        locked(&mut stream).await;
        waiting.push(stream);
    }
    guard.lost().await;
    drop(waiting);
    // The outage goes on until the server's next answer.
    let mut successor = new_stream(&a);
    let told = next(&mut successor).await;
    assert!(matches!(told, LockEvent::Error(_)), "{told:?}");
    let _guard = acquired_past_locked(&mut successor).await;
    locked(&mut new_stream(&a)).await;
}

/// The keeper's renewals fail. The guard's renewals use the hub's connection and succeed.
#[tokio::test(start_paused = true)]
async fn an_outage_of_renewals_ends_with_a_longer_lease() {
    let memory = Memory::new();
    let bad = Bad::new(&memory, |op| match op {
        Op::Renew { lease, .. } if *lease <= LEASE => Fate::Refused,
        _ => Fate::Good,
    });
    let a = renewing(&bad, "a");
    let guard = acquired(&mut new_stream(&a)).await;
    assert!(guard.is_valid());
    tokio::time::sleep(Duration::from_millis(LEASE / 2)).await;
    let told = next(&mut new_stream(&a)).await;
    assert!(matches!(told, LockEvent::Error(_)), "{told:?}");
    let extended = Duration::from_millis(4 * LEASE);
    guard.extend(extended).await.unwrap();
    tokio::time::sleep(Duration::from_millis(LEASE)).await;
    locked(&mut new_stream(&a)).await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_no_replica_has_is_given_back() {
    let memory = Memory::new();
    let mut claims = 0;
    let bad = Bad::new(&memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        match op {
            Op::Claim { .. } if claims == 1 => Fate::Unproven,
            _ => Fate::Good,
        }
    });
    let a = process_with(&bad, "a", LONG, |terms| RunConfig {
        replicated: true,
        ..terms
    });
    let mut first = new_stream(&a);
    match next(&mut first).await {
        LockEvent::Error(error @ Error::NotReplicated { .. }) => assert!(!error.is_fatal()),
        other => panic!("{other:?}"),
    }
    settle_down().await;
    let (given_back, _) = record(&bad).await;
    assert_eq!((given_back.state, given_back.attempt), (State::Open, 0));
    let guard = acquired(&mut first).await;
    assert_eq!(guard.attempt(), 1, "it was not counted");
}

#[tokio::test(start_paused = true)]
async fn a_grant_by_push_counts_once_replicas_have_it() {
    let memory = Memory::new();
    let answer = Arc::new(Notify::new());
    let held = answer.clone();
    let bad = on_renewals(&memory, move |_| Fate::Held(held.clone()));
    let a = process(&Bad::good(&memory), "a", LONG);
    let b = process_with(&bad, "b", LONG, |terms| RunConfig {
        replicated: true,
        ..terms
    });
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    guard.fail("for the second").await.unwrap();
    settle_down().await;
    assert!(second.next().now_or_never().is_none(), "not confirmed yet");
    answer.notify_one();
    let guard = acquired(&mut second).await;
    assert!(guard.attempt() == 2 && guard.is_valid());
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_no_replica_has_is_unknown() {
    let memory = Memory::new();
    let bad = Bad::new(&memory, |op| match op {
        Op::Settle { .. } => Fate::Unproven,
        _ => Fate::Good,
    });
    let a = process(&bad, "a", LONG);
    let b = process(&Bad::good(&memory), "b", LONG);
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    match guard.done().await {
        Err(SettleError::Unknown {
            source: Error::NotReplicated { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(next(&mut second).await, LockEvent::Completed(_)));
}

#[test]
fn when_the_runtime_dies_the_guard_is_lost() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.block_on(async {
        let a = renewing(&Bad::good(&Memory::new()), "a");
        acquired(&mut new_stream(&a)).await
    });
    let (token, lost) = (guard.cancellation_token(), guard.lost());
    assert!(guard.is_valid());
    drop(runtime);
    assert!(token.is_cancelled() && !guard.is_valid());
    assert!(matches!(lost.now_or_never(), Some(LeaseLost::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_does_not_delay_the_first_renewal() {
    let memory = Memory::new();
    let bad = Bad::new(&memory, |op| match op {
        Op::Claim { .. } => Fate::Slow(Duration::from_millis(700)),
        _ => Fate::Good,
    });
    let a = renewing(&bad, "a");
    let guard = acquired(&mut new_stream(&a)).await;
    let work = tokio::time::sleep(Duration::from_millis(3 * LEASE));
    guard.run(work).await.expect("renewed in time");
}

#[tokio::test(start_paused = true)]
async fn an_old_checkpoint_does_not_come_after_a_newer_one() {
    let memory = Memory::new();
    let bad = on_renewals(&memory, |nth| match nth {
        1 => Fate::Refused,
        _ => Fate::Good,
    });
    let a = process(&bad, "a", LEASE);
    let guard = acquired(&mut new_stream(&a)).await;
    let old = tokio::time::timeout(Duration::from_millis(1), guard.checkpoint("old")).await;
    assert!(old.is_err(), "it waits for the server to serve again");
    guard.checkpoint("new").await.unwrap();
    tokio::time::sleep(Duration::from_millis(LEASE / 2)).await;
    assert_eq!(record(&bad).await.0.checkpoint, "new");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_ends_with_its_guard() {
    let memory = Memory::new();
    let renewals = Arc::new(AtomicU32::new(0));
    let seen = renewals.clone();
    // The server answers at once, with a transient error.
    let bad = Bad::new(&memory, move |op| match op {
        Op::Renew { .. } => {
            seen.fetch_add(1, Ordering::SeqCst);
            Fate::Refused
        }
        Op::Settle { .. } => Fate::Refused,
        _ => Fate::Good,
    });
    let a = renewing(&bad, "a");
    let guard = acquired(&mut new_stream(&a)).await;
    assert_eq!(guard.attempt(), 1);
    tokio::time::sleep(Duration::from_millis(LEASE / 2)).await;
    drop(guard);
    let (asked, renewed) = (bad.calls(), renewals.load(Ordering::SeqCst));
    assert!(renewed > 0);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(renewals.load(Ordering::SeqCst), renewed);
    let asked = bad.calls() - asked;
    assert!(asked < 20, "{asked}: the settlement by backoff, for 5 s");
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_lost_from_the_start_is_not_renewed() {
    let memory = Memory::new();
    // The answers to the confirmations arrive in time, but no task polls the stream.
    let good = Bad::good(&memory);
    let b = renewing(&good, "b");
    let a = process(&Bad::good(&memory), "a", LEASE);
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    guard.fail("for the second").await.unwrap();
    // Little is left of the pushed grant, so the stream confirms it before it yields the guard.
    tokio::time::sleep(Duration::from_millis(480)).await;
    assert!(second.next().now_or_never().is_none());
    tokio::time::sleep(Duration::from_millis(2 * LEASE)).await;
    // The stream confirms the grant once more before it makes a guard of it.
    let told = second.next().await;
    assert!(matches!(told, Some(LockEvent::Status(_))), "{told:?}");
    assert!(next(&mut second).now_or_never().is_none());
    tokio::time::sleep(Duration::from_millis(2 * LEASE)).await;
    let guard = acquired(&mut second).await;
    assert!(!guard.is_valid());
    let asked = good.calls();
    assert_eq!(guard.attempt(), 2);
    settle_down().await;
    let ended = next(&mut second).now_or_never();
    assert!(
        matches!(ended, Some(LockEvent::Failed(_))),
        "at once: {ended:?}"
    );
    tokio::time::sleep(Duration::from_millis(LEASE)).await;
    assert_eq!(good.calls(), asked, "what is lost is not renewed");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_no_replica_has_does_not_end_the_grant_that_is_confirmed() {
    let memory = Memory::new();
    let mut claims = 0;
    // The store applies the claim after the subscription. It reports that no replica has
    // acknowledged the claim only after the grant has arrived by push.
    let bad = Bad::new(&memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        match op {
            Op::Claim { .. } if claims == 2 => Fate::UnprovenLate(Duration::from_millis(300)),
            _ => Fate::Good,
        }
    });
    let a = process(&Bad::good(&memory), "a", LONG);
    let b = process_with(&bad, "b", LONG, |terms| RunConfig {
        replicated: true,
        ..terms
    });
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    settle_down().await;
    guard.fail("for the second").await.unwrap();
    let guard = acquired(&mut second).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (held, _) = record(&bad).await;
    assert_eq!(
        (held.state, held.fence),
        (State::Held, guard.fencing_token())
    );
    guard.done().await.unwrap();
}
