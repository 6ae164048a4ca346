//! The twelve defects of the ancestor, each reproduced on it once: none of them is left.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fred::types::Value;
use futures::StreamExt;
use futures::future::join_all;
use redis_locking_worker::{
    Builder, Error, LeaseLost, LockEvent, LockingWorker, Reason, SettleError,
};
use testkit::{Server, acquired, command, end, locked, next, race};

/// A lease that ends while a test waits for it.
const SHORT: Duration = Duration::from_millis(300);

/// A lease that does not end while a test runs.
const LONG: Duration = Duration::from_secs(3_600);

async fn build(builder: Builder) -> LockingWorker {
    builder.build().await.unwrap()
}

/// What a fleet did: how often the work was begun, and how many were at it at once.
#[derive(Default)]
struct Work {
    begun: AtomicU32,
    now: AtomicU32,
    most: AtomicU32,
}

impl Work {
    fn begin(&self) -> u32 {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn end(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn counts(&self) -> (u32, u32) {
        (
            self.begun.load(Ordering::SeqCst),
            self.most.load(Ordering::SeqCst),
        )
    }
}

async fn pttl(server: &Server, key: &str) -> i64 {
    let ttl = command(&server.client().await, [b"PTTL", key.as_bytes()]).await;
    ttl.as_i64().unwrap()
}

#[tokio::test]
async fn defect_01_two_waiters_take_over_from_one_failure() {
    let server = Server::start();
    for crash in [false, true] {
        let key = if crash { "crash" } else { "failure" };
        let lease = if crash { SHORT } else { LONG };
        let work = Arc::new(Work::default());
        // Not how often it was begun: what a busy machine does not confirm in time is not counted, and made again.
        let attempts = Arc::new(Mutex::new(BTreeSet::new()));
        let fleet = (0..20).map(|_| {
            let (work, builder) = (work.clone(), server.builder(key).lock_timeout(lease));
            let attempts = attempts.clone();
            async move {
                let mut stream = build(builder).await.acquire();
                while let Some(event) = stream.next().await {
                    if let LockEvent::Acquired(guard) = event {
                        work.begin();
                        attempts.lock().unwrap().insert(guard.attempt());
                        // A crash tells nobody; the lease has to end.
                        if crash {
                            while guard.is_valid() {
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                        } else {
                            tokio::task::yield_now().await;
                        }
                        work.end();
                        if crash {
                            std::mem::forget(guard)
                        } else {
                            drop(guard)
                        }
                    }
                }
            }
        });
        join_all(fleet.map(tokio::spawn)).await;
        let attempts: Vec<u32> = attempts.lock().unwrap().iter().copied().collect();
        assert_eq!(attempts, [1, 2, 3, 4, 5], "{key}");
        assert_eq!(work.counts().1, 1, "{key}: holders at once");
    }
}

#[tokio::test]
async fn defect_02_finished_work_runs_again() {
    let server = Server::start();
    let work = Arc::new(Work::default());
    let fleet = (0..20).map(|_| {
        let (work, builder) = (work.clone(), server.builder("job").lock_timeout(LONG));
        async move {
            let worker = build(builder).await;
            // Early and late: everybody comes twice.
            for _ in 0..2 {
                let mut stream = worker.acquire();
                while let Some(event) = stream.next().await {
                    match event {
                        LockEvent::Acquired(guard) => {
                            work.begin();
                            guard.done().await.unwrap();
                            work.end();
                        }
                        LockEvent::Completed(completed) => assert_eq!(completed.attempt, 1),
                        LockEvent::Failed(_) | LockEvent::GaveUp(_) => panic!("{event:?}"),
                        _ => {}
                    }
                }
            }
        }
    });
    for task in join_all(fleet.map(tokio::spawn)).await {
        task.unwrap();
    }
    assert_eq!(work.counts(), (1, 1));
}

#[tokio::test]
async fn defect_03_users_of_one_connection_disturb_each_other() {
    let server = Server::start();
    let worker = build(server.builder("unused").lock_timeout(LONG)).await;
    let runs = (0..50).map(|n| {
        let worker = worker.with_key(format!("job-{n}")).unwrap();
        tokio::spawn(async move {
            let (_first, guard, mut second) = race(&worker, &worker).await;
            drop(guard);
            let guard = acquired(&mut second).await;
            assert_eq!((guard.attempt(), guard.key()), (2, worker.key()));
            guard.done_with(format!("{n}")).await.unwrap();
            match end(&mut worker.acquire()).await {
                LockEvent::Completed(completed) => assert_eq!(completed.result, format!("{n}")),
                other => panic!("{other:?}"),
            }
        })
    });
    for run in join_all(runs).await {
        run.unwrap();
    }
}

#[tokio::test]
async fn defect_04_a_stale_holder_ends_its_successors_work() {
    let server = Server::start();
    let a = build(server.builder("job").label("a").lock_timeout(SHORT)).await;
    let b = build(server.builder("job").label("b").lock_timeout(LONG)).await;
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let stale = acquired(&mut first).await;
    locked(&mut second).await;
    let guard = acquired(&mut second).await;
    match stale.done_with("stale").await {
        Err(SettleError::Lost(LeaseLost::TakenOver { holder, attempt })) => {
            assert_eq!((&holder[..], attempt), ("b", 2));
        }
        other => panic!("{other:?}"),
    }
    assert!(guard.is_valid());
    guard.done_with("right").await.unwrap();
    match end(&mut a.acquire()).await {
        LockEvent::Completed(c) => assert_eq!((&c.holder[..], &c.result[..]), ("b", &b"right"[..])),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn defect_05_a_waiter_of_the_last_run_steals_from_the_next() {
    let server = Server::start();
    let a = build(server.builder("job").label("a").lock_timeout(SHORT)).await;
    let b = build(server.builder("job").label("b").lock_timeout(LONG)).await;
    let c = build(server.builder("job").label("c").lock_timeout(LONG)).await;
    let (mut first, mut waiting) = (a.acquire(), b.acquire());
    let old = acquired(&mut first).await;
    locked(&mut waiting).await;
    // The last run is gone without a word to its waiter, and the next begins: at attempt 1 again.
    command(&server.client().await, [b"DEL", b"job"]).await;
    let guard = acquired(&mut c.acquire()).await;
    assert_eq!(guard.attempt(), 1);
    assert!(guard.fencing_token() > old.fencing_token());
    let told = locked(&mut waiting).await;
    assert_eq!((told.attempt, told.holder.as_str()), (1, "c"));
    // Past the end of the lease it had been waiting for: nothing.
    let stolen = tokio::time::timeout(2 * SHORT, waiting.next()).await;
    assert!(stolen.is_err(), "{stolen:?}");
    assert!(matches!(old.done().await, Err(SettleError::Lost(_))));
    guard.done().await.unwrap();
    assert!(matches!(end(&mut waiting).await, LockEvent::Completed(_)));
}

#[tokio::test]
async fn defect_06_the_only_attempt_is_not_marked_the_last() {
    let server = Server::start();
    let worker = build(server.builder("job").max_attempts(1)).await;
    let guard = acquired(&mut worker.acquire()).await;
    assert!(guard.is_last_attempt());

    let worker = build(server.builder("other").max_attempts(2)).await;
    let (mut first, mut second) = (worker.acquire(), worker.acquire());
    let guard = acquired(&mut first).await;
    assert!(!guard.is_last_attempt());
    locked(&mut second).await;
    drop(guard);
    assert!(acquired(&mut second).await.is_last_attempt());
}

#[tokio::test]
async fn defect_07_done_without_a_waiter_never_expires() {
    let server = Server::start();
    let retention = Duration::from_millis(200);
    let worker = build(server.builder("job").retention(retention)).await;
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    let left = pttl(&server, "job").await;
    assert!((-2..=200).contains(&left) && left != -1, "{left}");
    tokio::time::sleep(retention).await;
    let guard = acquired(&mut worker.acquire()).await;
    assert_eq!(guard.attempt(), 1, "the next run is not skipped");
}

#[tokio::test]
async fn defect_08_an_odd_timeout_is_an_error_and_leaves_an_immortal_key() {
    let server = Server::start();
    for (micros, ms) in [(1_234_000, 1_234), (1_501, 2), (499_999, 500), (7_000, 7)] {
        let key = format!("job-{micros}");
        let timeout = Duration::from_micros(micros);
        let retention = Duration::from_millis(60_000);
        let builder = server
            .builder(&key)
            .lock_timeout(timeout)
            .retention(retention);
        let guard = acquired(&mut build(builder).await.acquire()).await;
        assert!(guard.remaining() <= Duration::from_millis(ms));
        let left = pttl(&server, &key).await;
        let whole = 60_000 + ms as i64;
        assert!(left <= whole && left > whole - 10_000, "{left} of {whole}");
        std::mem::forget(guard);
    }
}

#[tokio::test]
async fn defect_09_an_error_is_swallowed_or_taken_for_completion() {
    let mut server = Server::start();
    let worker = build(server.builder("job").lock_timeout(LONG)).await;
    let typed = worker.with_key("typed").unwrap();
    command(&server.client().await, [b"LPUSH", b"typed", b"x"]).await;
    let event = end(&mut typed.acquire()).await;
    assert!(
        matches!(event, LockEvent::Error(Error::WrongType { .. })),
        "{event:?}"
    );

    let (_first, guard, mut second) = race(&worker, &worker).await;
    server.kill();
    let event = next(&mut second).await;
    assert!(
        matches!(event, LockEvent::Error(Error::Unavailable { .. })),
        "{event:?}"
    );
    drop(guard);
}

#[tokio::test]
async fn defect_10_a_failure_costs_the_whole_timeout() {
    let server = Server::start();
    let a = build(server.builder("job").lock_timeout(LONG)).await;
    let b = build(server.builder("job").lock_timeout(LONG)).await;
    let (_first, guard, mut second) = race(&a, &b).await;
    drop(guard);
    // Within the helper's patience of 30 s, where the timeout is an hour.
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 2);

    // Work that took longer than the timeout is complete all the same, if nobody took over.
    let slow = build(server.builder("slow").lock_timeout(SHORT)).await;
    let guard = acquired(&mut slow.acquire()).await;
    tokio::time::sleep(2 * SHORT).await;
    guard.done().await.unwrap();
}

#[tokio::test]
async fn defect_11_a_late_joiner_takes_the_attempt_for_the_first() {
    let server = Server::start();
    let a = build(server.builder("job").lock_timeout(SHORT).rejoin(true)).await;
    let mut first = a.acquire();
    for _ in 0..2 {
        acquired(&mut first).await.fail("again").await.unwrap();
    }
    let guard = acquired(&mut first).await;
    assert_eq!(guard.attempt(), 3);
    let ends = tokio::time::Instant::now() + guard.remaining();
    let late = build(server.builder("job").lock_timeout(LONG)).await;
    let mut stream = late.acquire();
    let told = locked(&mut stream).await;
    assert_eq!(told.attempt, 3);
    assert!(told.remaining <= SHORT);
    std::mem::forget(guard);
    let guard = acquired(&mut stream).await;
    assert_eq!(guard.attempt(), 4);
    assert!(
        ends.elapsed() < SHORT,
        "at the end of the lease, not a timeout later"
    );
}

#[tokio::test]
async fn defect_12_the_last_failure_without_a_waiter_is_not_the_end() {
    let server = Server::start();
    let retention = Duration::from_millis(300);
    let builder = server
        .builder("job")
        .label("a")
        .max_attempts(2)
        .retention(retention);
    let worker = build(builder.rejoin(true)).await;
    let mut stream = worker.acquire();
    for attempt in 1..=2 {
        let guard = acquired(&mut stream).await;
        assert_eq!(guard.attempt(), attempt);
        drop(guard);
    }
    match end(&mut stream).await {
        LockEvent::GaveUp(m) => {
            assert_eq!(
                (m.attempts, &m.holder[..], m.reason),
                (2, "a", Reason::Dropped)
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(end(&mut worker.acquire()).await, LockEvent::GaveUp(_)),
        "it cools down"
    );
    // Neither if it stands aside afterwards.
    let once = build(server.builder("other").max_attempts(1)).await;
    let mut stream = once.acquire();
    drop(acquired(&mut stream).await);
    assert!(matches!(end(&mut stream).await, LockEvent::GaveUp(_)));

    tokio::time::sleep(retention).await;
    assert_eq!(
        command(&server.client().await, [b"EXISTS", b"job"]).await,
        Value::from(0)
    );
    assert_eq!(
        acquired(&mut worker.acquire()).await.attempt(),
        1,
        "no count leaks"
    );
}
