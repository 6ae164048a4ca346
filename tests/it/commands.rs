//! What a run costs the server: client commands as `MONITOR` tells them, without what a script does
//! inside, after the scripts are warm.

use std::time::Duration;

use futures::StreamExt;
use redis_locking_worker::{Acquire, LockEvent, LockingWorker};
use testkit::{Server, acquired, end, locked, race, until_quiet};

/// A worker whose server knows all scripts. Its lease outlasts the test.
async fn warm(server: &Server) -> LockingWorker {
    let builder = server.builder("warm-up").label("w");
    let worker = builder.lock_timeout(60 * testkit::PATIENCE).build();
    let worker = worker.await.unwrap();
    let (first, guard, mut second) = race(&worker, &worker).await;
    let third = {
        let mut third = worker.acquire();
        locked(&mut third).await;
        third
    };
    drop(third);
    drop(guard);
    let guard = acquired(&mut second).await;
    // Its confirmation is not sent if it ends before that leaves.
    guard.extend(testkit::PATIENCE).await.unwrap();
    guard.done().await.unwrap();
    drop((first, second));
    worker.clone().close().await;
    worker.with_key("job").unwrap()
}

/// Each with connections of its own, as in a process of its own.
async fn a_hundred_waiters(server: &Server) -> Vec<Acquire> {
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let worker = server.builder("job").build().await.unwrap();
        let mut stream = worker.acquire();
        locked(&mut stream).await;
        waiting.push(stream);
    }
    waiting
}

#[tokio::test]
async fn an_uncontended_run_costs_2() {
    let server = Server::start();
    let worker = warm(&server).await;
    let mut monitor = server.monitor();
    let mut stream = worker.acquire();
    acquired(&mut stream).await.done().await.unwrap();
    assert!(matches!(end(&mut stream).await, LockEvent::Completed(_)));
    drop(stream);
    worker.close().await;
    assert_eq!(monitor.commands(), ["EVALSHA", "EVALSHA"]);
}

#[tokio::test]
async fn a_hundred_waiters_cost_2_a_failure_and_1_a_completion() {
    let server = Server::start();
    let worker = warm(&server).await;
    let mut holder = worker.acquire();
    let guard = acquired(&mut holder).await;

    let mut waiting = a_hundred_waiters(&server).await;
    let mut monitor = server.monitor();
    until_quiet(&mut monitor).await;

    drop(guard);
    let guard = acquired(&mut waiting[0]).await;
    assert_eq!(guard.attempt(), 2);
    for stream in &mut waiting[1..] {
        assert_eq!(locked(stream).await.attempt, 2);
    }
    // Confirmed: what is left is a lease, and no longer a confirm window.
    let until = std::time::Instant::now() + testkit::PATIENCE;
    while guard.remaining() < Duration::from_secs(1) {
        assert!(std::time::Instant::now() < until, "not confirmed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let failure = monitor.commands();
    assert_eq!(
        failure,
        ["EVALSHA", "EVALSHA"],
        "fail, confirm; at most 4 are allowed"
    );

    guard.done_with("result").await.unwrap();
    for stream in &mut waiting {
        match end(stream).await {
            LockEvent::Completed(completed) => assert_eq!(completed.result, "result"),
            other => panic!("{other:?}"),
        }
    }
    let completion = monitor.commands();
    let (scripts, others): (Vec<_>, Vec<_>) = completion.iter().partition(|c| *c == "EVALSHA");
    assert_eq!(scripts.len(), 1, "{completion:?}");
    // Each of the 100 processes ends its subscription, after it has heard.
    assert!(
        others.iter().all(|command| *command == "SUNSUBSCRIBE"),
        "{completion:?}"
    );
}

#[tokio::test]
async fn renewals_cost_one_each_and_nothing_from_a_hundred_waiters() {
    const LEASE: Duration = Duration::from_millis(1_500);
    let server = Server::start();
    warm(&server).await;
    let builder = server.builder("job").label("a").lock_timeout(LEASE);
    let worker = builder.renew().build().await.unwrap();
    let mut holder = worker.acquire();
    let guard = acquired(&mut holder).await;
    // From here on it is renewed.
    assert_eq!(guard.attempt(), 1);
    let waiting = a_hundred_waiters(&server).await;
    let mut monitor = server.monitor();
    let mut quiet = Duration::ZERO;
    // The last waiters' second claims are over when nothing but renewals is left: two in a lease.
    while quiet < LEASE {
        tokio::time::sleep(LEASE / 2).await;
        let seen = monitor.commands().len();
        quiet = if seen <= 2 {
            quiet + LEASE / 2
        } else {
            Duration::ZERO
        };
    }

    let mut told = futures::stream::select_all(waiting);
    let work = tokio::time::timeout(5 * LEASE, async {
        // Statuses of how they came to wait are all that may be left.
        while let Some(event) = told.next().await {
            assert!(!event.is_terminal(), "{event:?}");
            assert!(!matches!(event, LockEvent::Acquired(_)), "a second holder");
        }
    });
    let worked = guard.run(work).await.expect("renewed");
    assert!(worked.is_err(), "all of them wait on");
    let calls = monitor.calls();
    println!("{} commands in 5 leases, all from the holder", calls.len());
    // A hundred and one processes, and one of them says all there is.
    let (holder, _) = calls.first().expect("a renewal").clone();
    let from_holder = |call: &(String, String)| *call == (holder.clone(), "EVALSHA".to_owned());
    assert!(calls.iter().all(from_holder), "{calls:?}");
    // Every third of a lease, less the margin; fewer where the machine is slow.
    assert!((6..=16).contains(&calls.len()), "{calls:?}");
    assert_eq!(guard.attempt(), 1);
    guard.done().await.unwrap();
}
