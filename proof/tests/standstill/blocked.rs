//! Threads of the user's runtime that are blocked, or all of them.

use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use redis_locking_worker::{
    Acquire, Builder, LeaseLost, LockEvent, LockStreamExt, LockingWorker, WorkGuard,
};
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};

use testkit::{Server, acquired, end, locked};

pub const TESTS: &[(&str, fn())] = &[
    (
        "one_blocked_thread_costs_no_other_guard_its_lease",
        one_thread,
    ),
    (
        "a_guard_dropped_before_a_block_costs_no_other_guard",
        one_drop,
    ),
    ("a_blocked_runtime_costs_no_guard_its_lease", whole_runtime),
    ("work_done_in_a_blocked_runtime_stays_done", completion),
    (
        "a_runtime_that_hangs_is_deposed_within_its_limit",
        hangs_for_ever,
    ),
    ("a_runtime_that_has_shut_down_renews_nothing", shut_down),
    ("a_guard_dropped_after_its_runtime_is_settled", dropped_late),
    ("a_paused_clock_of_the_users_keeps_no_time", paused_clock),
];

const LEASE: Duration = Duration::from_millis(500);

fn runs() -> usize {
    let runs = std::env::var("STANDSTILL_RUNS");
    runs.map_or(1, |runs| runs.parse().expect("a number"))
}

fn multi(threads: usize) -> Runtime {
    RuntimeBuilder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .unwrap()
}

fn renewing(server: &Server, label: &str) -> Builder {
    server
        .builder("job")
        .label(label)
        .lock_timeout(LEASE)
        .renew()
}

/// A worker in a runtime of its own, which nothing blocks, that waits for its turn.
struct Waiter {
    runtime: Runtime,
    events: Acquire,
}

impl Waiter {
    fn join(server: &Server) -> Self {
        let runtime = multi(1);
        let builder = server.builder("job").label("waiter").lock_timeout(LEASE);
        let events = runtime.block_on(async {
            let mut events = builder.build().await.unwrap().acquire();
            locked(&mut events).await;
            events
        });
        Self { runtime, events }
    }

    fn acquired(&mut self) -> WorkGuard {
        self.runtime.block_on(acquired(&mut self.events))
    }

    /// Whether it has been granted anything.
    fn is_waiting(&mut self) -> bool {
        let mut got = std::iter::from_fn(|| self.events.next().now_or_never().flatten());
        !got.any(|event| matches!(event, LockEvent::Acquired(_)) || event.is_terminal())
    }
}

/// One task uses its guard, or drops it, and then blocks its thread; three others are idle.
fn beside_a_blocked_thread(drops: bool) {
    let server = Server::start();
    multi(4).block_on(async {
        let innocent = renewing(&server, "a").build().await.unwrap();
        let blocking = innocent.with_key("other").unwrap();
        let innocent = tokio::spawn(async move {
            let guard = innocent.acquire().guards().next().await.unwrap();
            guard.run(tokio::time::sleep(8 * LEASE)).await
        });
        let blocked = tokio::spawn(async move {
            let guard = acquired(&mut blocking.acquire()).await;
            let guard = match drops {
                true => None,
                false => {
                    // From here on it is renewed.
                    assert_eq!(guard.attempt(), 1);
                    Some(guard)
                }
            };
            thread::sleep(6 * LEASE);
            guard.is_none_or(|guard| guard.is_valid())
        });
        assert!(blocked.await.unwrap(), "its own guard");
        innocent.await.unwrap().expect("it is none of its business");
    });
}

fn one_thread() {
    (0..runs()).for_each(|_| beside_a_blocked_thread(false));
}

fn one_drop() {
    (0..runs()).for_each(|_| beside_a_blocked_thread(true));
}

/// Blocks all threads of a runtime at once for so long.
fn block(runtime: &Runtime, threads: usize, time: Duration) {
    let together = Arc::new(Barrier::new(threads));
    let blocked = (0..threads).map(|_| {
        let together = together.clone();
        runtime.spawn(async move {
            together.wait();
            thread::sleep(time);
        })
    });
    let blocked: Vec<_> = blocked.collect();
    runtime.block_on(futures::future::join_all(blocked));
}

fn whole_runtime() {
    // A current-thread runtime, and others of so many threads.
    for threads in [0, 1, 2, 4] {
        for _ in 0..runs() {
            let server = Server::start();
            let runtime = match threads {
                0 => RuntimeBuilder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap(),
                threads => multi(threads),
            };
            let build = async || renewing(&server, "a").build().await.unwrap();
            let (guard, _events) = runtime.block_on(async {
                let mut events = build().await.acquire();
                (acquired(&mut events).await, events)
            });
            assert_eq!(guard.attempt(), 1);
            let mut waiter = Waiter::join(&server);
            block(&runtime, threads.max(1), 4 * LEASE);
            assert!(guard.is_valid(), "{threads} threads");
            assert!(waiter.is_waiting(), "{threads} threads: a second holder");
            runtime.block_on(guard.done()).unwrap();
        }
    }
}

/// The hub cannot send the completion before the block ends.
fn completion() {
    let server = Server::start();
    let runtime = multi(1);
    let (guard, _events) = runtime.block_on(async {
        let mut events = renewing(&server, "a").build().await.unwrap().acquire();
        (acquired(&mut events).await, events)
    });
    assert_eq!(guard.attempt(), 1);
    let mut waiter = Waiter::join(&server);
    let done = runtime.block_on(async {
        tokio::spawn(async move {
            let mut done = Box::pin(guard.done());
            // It is asked for, and wakes the hub on this thread.
            assert!((&mut done).now_or_never().is_none());
            thread::sleep(3 * LEASE);
            done.await
        })
        .await
        .unwrap()
    });
    done.expect("it was completed in time");
    match waiter.runtime.block_on(end(&mut waiter.events)) {
        LockEvent::Completed(completed) => assert_eq!(completed.attempt, 1),
        other => panic!("{other:?}"),
    }
}

fn hangs_for_ever() {
    let server = Server::start();
    let limit = 4 * LEASE;
    let runtime = multi(1);
    let (guard, _events) = runtime.block_on(async {
        let builder = renewing(&server, "a").stall_limit(limit);
        let mut events = builder.build().await.unwrap().acquire();
        (acquired(&mut events).await, events)
    });
    assert_eq!(guard.attempt(), 1);
    let (token, lost) = (guard.cancellation_token(), guard.lost());
    let mut waiter = Waiter::join(&server);
    let (release, blocked) = mpsc::channel::<()>();
    let (began, begun) = mpsc::channel();
    runtime.spawn(async move {
        began.send(Instant::now()).unwrap();
        let _ = blocked.recv();
    });
    let began: Instant = begun.recv().unwrap();
    let next = waiter.acquired();
    let deposed = began.elapsed();
    println!("deposed after {deposed:?}, by a limit of {limit:?} and a lease of {LEASE:?}");
    assert!(deposed >= limit - LEASE, "it had not hung for so long");
    assert!(
        deposed <= limit + LEASE + Duration::from_millis(500),
        "{deposed:?}"
    );
    assert!(
        token.is_cancelled() && !guard.is_valid(),
        "told while it hangs"
    );
    match lost.now_or_never() {
        Some(LeaseLost::Stalled { time }) => assert!(time >= limit, "{time:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(next.attempt(), 2);
    drop(release);
    drop(guard);
}

fn shut_down() {
    static LEAKED: Mutex<Option<WorkGuard>> = Mutex::new(None);
    let server = Server::start();
    let runtime = multi(1);
    let guard = runtime.block_on(async {
        let mut events = renewing(&server, "a").build().await.unwrap().acquire();
        acquired(&mut events).await
    });
    assert_eq!(guard.attempt(), 1);
    *LEAKED.lock().unwrap() = Some(guard);
    let mut waiter = Waiter::join(&server);
    drop(runtime);
    assert_eq!(waiter.acquired().attempt(), 2, "by the end of the lease");
    let leaked = LEAKED.lock().unwrap().take().unwrap();
    assert!(matches!(leaked.check(), Err(LeaseLost::Stopped)));
}

fn dropped_late() {
    let server = Server::start();
    let runtime = multi(1);
    let hour = Duration::from_secs(3_600);
    let guard = runtime.block_on(async {
        let builder = renewing(&server, "a").lock_timeout(hour);
        let mut events = builder.build().await.unwrap().acquire();
        acquired(&mut events).await
    });
    assert_eq!(guard.attempt(), 1);
    let mut waiter = Waiter::join(&server);
    drop(runtime);
    assert!(waiter.is_waiting());
    drop(guard);
    let next = waiter.acquired();
    let reason = next.previous().unwrap().reason.to_string();
    assert_eq!(next.attempt(), 2);
    assert!(reason.contains("has shut down"), "{reason}");
}

/// With a real server, the time of leases is not that of a paused runtime.
fn paused_clock() {
    let server = Server::start();
    let runtime = RuntimeBuilder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (guard, renewed, _events) = runtime.block_on(async {
        let build = async |builder: Builder| builder.build().await.unwrap();
        let worker: LockingWorker = build(renewing(&server, "a")).await;
        let plain = server.builder("other").lock_timeout(LEASE);
        let plain = acquired(&mut build(plain).await.acquire()).await;
        let mut events = worker.acquire();
        (plain, acquired(&mut events).await, events)
    });
    assert!(guard.is_valid() && renewed.is_valid());
    runtime.block_on(async {
        tokio::time::pause();
        // Two leases of real time, and none of Tokio's.
        thread::sleep(2 * LEASE);
        assert!(!guard.is_valid(), "the server has ended it");
        assert!(renewed.is_valid(), "it was renewed meanwhile");
    });
}
