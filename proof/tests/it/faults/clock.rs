//! A server whose clock is set: only the server has one that counts.

use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use redis_locking_worker::{FencedError, LeaseLost, LockEvent, LockingWorker, SettleError};
use testkit::clocks::{self, Clocks};
use testkit::{Server, acquired, command, end, locked, race, state_of, until_quiet};

const HOUR: i64 = 3_600;

const LONG: Duration = Duration::from_secs(60);

/// Longer than the clock is set forward, so that a record outlives it.
const RETENTION: Duration = Duration::from_secs(7_200);

struct Clock {
    server: Server,
    clocks: Clocks,
}

impl Clock {
    fn start() -> Self {
        let clocks = Clocks::compile();
        let environment = clocks.environment();
        let environment = environment
            .each_ref()
            .map(|(name, value)| (*name, &value[..]));
        let clock = Self {
            server: Server::start_in(&environment, &[]),
            clocks,
        };
        clock.set(0);
        clock
    }

    /// So many seconds from the right time.
    fn set(&self, offset: i64) {
        self.clocks.set(clocks::Clock::Wall, offset);
        // Valkey 9.1 looks at the clock once a ms.
        std::thread::sleep(Duration::from_millis(5));
    }

    async fn worker(&self, label: &str, lease: Duration, retention: Duration) -> LockingWorker {
        let builder = self.server.builder("job").label(label);
        let builder = builder.lock_timeout(lease).retention(retention);
        builder.build().await.unwrap()
    }

    /// In ms, as the record has its times.
    async fn now(&self) -> u64 {
        let time = command(&self.server.client().await, [b"TIME"]).await;
        let time: Vec<u64> = time.convert::<Vec<u64>>().unwrap();
        time[0] * 1_000 + time[1] / 1_000
    }

    async fn record(&self) -> String {
        let record = command(&self.server.client().await, [b"GET", b"job"]).await;
        record.into_string().unwrap()
    }

    async fn lease_end(&self) -> u64 {
        let record = self.record().await;
        let (_, until) = record.split_once("until=").unwrap();
        until.split(' ').next().unwrap().parse().unwrap()
    }
}

/// The holder may not write or complete any more, now that this attempt has its place.
async fn assert_fenced(guard: redis_locking_worker::WorkGuard, attempt: u32) {
    let script = "return redis.call('SET', KEYS[1], ARGV[1])";
    let written = guard
        .fenced::<String, _, _>(script, "checked", "late")
        .await;
    assert!(
        matches!(written, Err(FencedError::Lost(LeaseLost::TakenOver { .. }))),
        "{written:?}"
    );
    match guard.done().await {
        Err(SettleError::Lost(LeaseLost::TakenOver { attempt: next, .. })) => {
            assert_eq!(next, attempt);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_hour_forward_the_next_to_come_takes_over_and_the_late_holder_is_fenced() {
    // The second time the record itself is over, and so the run begins anew.
    for (retention, attempt) in [(RETENTION, 2), (LONG, 1)] {
        let clock = Clock::start();
        let worker = async |label| clock.worker(label, LONG, retention).await;
        let (a, b, c) = (worker("a").await, worker("b").await, worker("c").await);
        let (_first, late, mut second) = race(&a, &b).await;
        clock.set(HOUR);
        let guard = acquired(&mut c.acquire()).await;
        assert_eq!(guard.attempt(), attempt);
        assert!(guard.fencing_token() > late.fencing_token());
        assert_eq!(locked(&mut second).await.holder, "c", "told by push");
        assert_fenced(late, attempt).await;
        guard.done().await.unwrap();
        assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
    }
}

#[tokio::test]
async fn an_hour_forward_a_waiter_takes_over_when_its_own_clock_says_so() {
    let clock = Clock::start();
    let lease = Duration::from_secs(1);
    let worker = async |label| clock.worker(label, lease, RETENTION).await;
    let (a, b) = (worker("a").await, worker("b").await);
    let (_first, late, mut second) = race(&a, &b).await;
    until_quiet(&mut clock.server.monitor()).await;
    clock.set(HOUR);
    let guard = acquired(&mut second).await;
    assert!(!late.is_valid(), "it ended by the holder's clock before");
    assert_eq!(guard.attempt(), 2);
    assert!(guard.fencing_token() > late.fencing_token());
    assert_fenced(late, 2).await;
    guard.done().await.unwrap();
}

#[tokio::test]
async fn an_hour_back_what_is_held_goes_on_and_the_fence_still_rises() {
    let clock = Clock::start();
    let worker = async |label| clock.worker(label, LONG, RETENTION).await;
    let (a, b) = (worker("a").await, worker("b").await);
    let (mut first, guard, mut second) = race(&a, &b).await;
    clock.set(-HOUR);
    guard.extend(LONG).await.unwrap();
    guard.checkpoint("half").await.unwrap();
    let mut fence = guard.fencing_token();
    drop(guard);
    let guard = acquired(&mut second).await;
    assert_eq!((guard.attempt(), guard.fencing_token()), (2, fence + 1));
    fence = guard.fencing_token();
    assert!(matches!(end(&mut first).await, LockEvent::Failed(_)));

    let mut third = a.acquire();
    locked(&mut third).await;
    guard.fail("again").await.unwrap();
    let guard = acquired(&mut third).await;
    assert_eq!((guard.attempt(), guard.fencing_token()), (3, fence + 1));
    guard.done_with("result").await.unwrap();
    match end(&mut b.acquire()).await {
        LockEvent::Completed(completed) => assert_eq!(completed.result, "result"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_hour_back_a_dead_holder_is_waited_for_until_its_lease_ends_by_that_clock() {
    let clock = Clock::start();
    let lease = Duration::from_secs(1);
    let worker = async |label| clock.worker(label, lease, RETENTION).await;
    let (a, b) = (worker("a").await, worker("b").await);
    let (_first, guard, mut second) = race(&a, &b).await;
    let mut monitor = clock.server.monitor();
    until_quiet(&mut monitor).await;
    clock.set(-HOUR);
    let lost = guard.lost();
    std::mem::forget(guard);
    assert!(matches!(lost.await, LeaseLost::Expired));
    while !monitor.commands().contains(&"EVALSHA".to_owned()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until_quiet(&mut monitor).await;
    assert_eq!(state_of(&clock.record().await), "held attempt=1/5");
    assert!(second.next().now_or_never().is_none(), "and is refused");
    let mut third = a.acquire();
    let remaining = locked(&mut third).await.remaining;
    assert!(remaining > Duration::from_secs(3_590), "{remaining:?}");

    // Set right, the lease is over for whoever asks.
    clock.set(0);
    let guard = acquired(&mut b.acquire()).await;
    assert_eq!(guard.attempt(), 2);
    drop(guard);
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 3, "by push");
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_goes_back_delays_takeover_by_as_much() {
    let clock = Clock::start();
    let lease = Duration::from_millis(500);
    let worker = async |label| clock.worker(label, lease, RETENTION).await;
    let (a, b) = (worker("a").await, worker("b").await);
    let (_first, guard, mut second) = race(&a, &b).await;
    let ends = clock.lease_end().await;
    clock.set(-1);
    let begun = Instant::now();
    std::mem::forget(guard);
    assert_eq!(acquired(&mut second).await.attempt(), 2);
    assert!(clock.now().await >= ends, "never before");
    assert!(begun.elapsed() > Duration::from_secs(1));
}

/// The one case in which a fence falls: what it was is forgotten, and so is the time.
#[tokio::test]
async fn an_hour_back_a_run_whose_record_has_gone_begins_anew_under_a_lower_fence() {
    let clock = Clock::start();
    let worker = clock.worker("a", LONG, RETENTION).await;
    let guard = acquired(&mut worker.acquire()).await;
    let fence = guard.fencing_token();
    guard.done().await.unwrap();
    command(&clock.server.client().await, [b"FLUSHALL"]).await;
    clock.set(-HOUR);
    let guard = acquired(&mut worker.acquire()).await;
    assert!(guard.fencing_token() < fence);
    guard.done().await.unwrap();
}

#[tokio::test]
async fn an_hour_back_no_renewal_reaches_past_the_longest_hold() {
    let clock = Clock::start();
    let lease = Duration::from_millis(400);
    let builder = clock.server.builder("job").lock_timeout(lease);
    let builder = builder.renew().max_hold(2 * lease);
    let worker = builder.build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let held = Instant::now();
    clock.set(-HOUR);
    let lost = guard.run(std::future::pending::<()>()).await.unwrap_err();
    assert!(matches!(lost, LeaseLost::MaxHold { .. }), "{lost:?}");
    println!("held for {:?}", held.elapsed());
}
