//! What a run costs the server: client commands as `MONITOR` tells them, without what a script does
//! inside, after the scripts are warm.

mod common;

use common::{Server, acquired, end, locked, race};
use redis_locking_worker::{LockEvent, LockingWorker};

/// A worker whose server knows all scripts.
async fn warm(server: &Server) -> LockingWorker {
    let worker = server.builder("warm-up").label("w").build().await.unwrap();
    let (first, guard, mut second) = race(&worker, &worker).await;
    let third = {
        let mut third = worker.acquire();
        locked(&mut third).await;
        third
    };
    drop(third);
    drop(guard);
    acquired(&mut second).await.done().await.unwrap();
    drop((first, second));
    worker.clone().close().await;
    worker.with_key("job").unwrap()
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

    let mut waiting = Vec::new();
    for _ in 0..100 {
        // Each with connections of its own, as in a process of its own.
        let worker = server.builder("job").build().await.unwrap();
        let mut stream = worker.acquire();
        locked(&mut stream).await;
        waiting.push(stream);
    }
    // The first waiter's claim again, once its subscription stands, is part of waiting.
    let subscribed = |monitor: &mut common::Monitor| monitor.commands();
    let mut monitor = server.monitor();
    let mut quiet = 0;
    while quiet < 3 {
        quiet = if subscribed(&mut monitor).is_empty() {
            quiet + 1
        } else {
            0
        };
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    drop(guard);
    let guard = acquired(&mut waiting[0]).await;
    assert_eq!(guard.attempt(), 2);
    for stream in &mut waiting[1..] {
        assert_eq!(locked(stream).await.attempt, 2);
    }
    // Confirmed: what is left is a lease, and no longer a confirm window.
    let until = std::time::Instant::now() + common::PATIENCE;
    while guard.remaining() < std::time::Duration::from_secs(1) {
        assert!(std::time::Instant::now() < until, "not confirmed");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
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
