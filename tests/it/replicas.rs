//! Grants and completions that count only once a replica has them.

use std::time::Duration;

use nix::sys::signal::Signal;
use redis_locking_worker::{Builder, Error, LeaseLost, LockEvent, SettleError};
use testkit::{PATIENCE, Server, acquired, command, end, locked, next, state_of};

const TIMEOUT: Duration = Duration::from_millis(100);

/// A master and its replica, in step.
async fn pair() -> (Server, Server) {
    let master = Server::start_with(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port.to_string();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let client = master.client().await;
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let info = command(&client, [b"INFO", b"replication"]).await;
        if info.into_string().unwrap().contains("state=online") {
            return (master, replica);
        }
        assert!(std::time::Instant::now() < until, "no replica");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn durable(server: &Server, label: &str) -> Builder {
    server.builder("job").label(label).replicas(1, TIMEOUT)
}

#[tokio::test]
async fn with_a_replica_a_run_goes_as_without() {
    let (master, replica) = pair().await;
    let (a, b) = (durable(&master, "a"), durable(&master, "b").renew());
    let (a, b) = (a.build().await.unwrap(), b.build().await.unwrap());
    let (_first, guard, mut second) = testkit::race(&a, &b).await;
    let on_replica = async || {
        let client = replica.client().await;
        let record = command(&client, [b"GET", b"job"]).await;
        record.into_string().unwrap()
    };
    assert_eq!(state_of(&on_replica().await), "held attempt=1/5");
    drop(guard);
    let guard = acquired(&mut second).await;
    assert_eq!(state_of(&on_replica().await), "held attempt=2/5");
    guard.checkpoint("half").await.unwrap();
    assert!(on_replica().await.contains("\nhalf\n"));
    guard.done().await.unwrap();
    assert_eq!(state_of(&on_replica().await), "done attempt=2/5");
}

#[tokio::test]
async fn without_its_replica_a_grant_is_given_back_and_tried_again() {
    let (master, replica) = pair().await;
    let worker = durable(&master, "a").build().await.unwrap();
    replica.signal(Signal::SIGSTOP);
    let mut stream = worker.acquire();
    match next(&mut stream).await {
        LockEvent::Error(
            error @ Error::NotReplicated {
                wanted: 1,
                acknowledged: 0,
                ..
            },
        ) => {
            assert!(error.is_retryable());
            assert_eq!(
                error.to_string(),
                "0 of the 1 replicas asked for acknowledged a write to job within 100ms"
            );
        }
        other => panic!("{other:?}"),
    }
    replica.signal(Signal::SIGCONT);
    let guard = acquired(&mut stream).await;
    assert_eq!(guard.attempt(), 1, "nothing was counted meanwhile");
    guard.done().await.unwrap();
}

#[tokio::test]
async fn without_its_replica_a_completion_is_unknown_and_told_all_the_same() {
    let (master, replica) = pair().await;
    let worker = durable(&master, "a").build().await.unwrap();
    let other = master.builder("job").build().await.unwrap();
    let (_first, guard, mut second) = testkit::race(&worker, &other).await;
    replica.signal(Signal::SIGSTOP);
    match guard.done_with("result").await {
        Err(SettleError::Unknown {
            source: Error::NotReplicated { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    match end(&mut second).await {
        LockEvent::Completed(completed) => assert_eq!(completed.result, "result"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_completion_whose_replicas_may_not_be_waited_for_is_unknown_and_a_failure_is_not() {
    let (master, _replica) = pair().await;
    let worker = durable(&master, "a").build().await.unwrap();
    let other = master.builder("job").build().await.unwrap();
    let (_first, guard, mut second) = testkit::race(&worker, &other).await;
    let failing = worker.with_key("failing").unwrap();
    let failing = acquired(&mut failing.acquire()).await;
    let client = master.client().await;
    command(&client, [b"ACL", b"SETUSER", b"default", b"-wait"]).await;
    match guard.done_with("result").await {
        Err(SettleError::Unknown {
            source: Error::Refused { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    match end(&mut second).await {
        LockEvent::Completed(completed) => assert_eq!(completed.result, "result"),
        other => panic!("{other:?}"),
    }
    command(&client, [b"ACL", b"SETUSER", b"default", b"-evalsha"]).await;
    match failing.fail("no luck").await {
        Err(SettleError::Refused(Error::Refused { .. })) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_its_replica_a_renewal_does_not_count() {
    let (master, replica) = pair().await;
    let builder = durable(&master, "a").lock_timeout(Duration::from_millis(600));
    let worker = builder.renew().build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let lost = guard.lost();
    replica.signal(Signal::SIGSTOP);
    let lost = tokio::time::timeout(PATIENCE, lost).await.expect("lost");
    assert!(
        matches!(
            lost,
            LeaseLost::Unreachable {
                source: Some(Error::NotReplicated { .. })
            }
        ),
        "{lost:?}"
    );
}

#[tokio::test]
async fn a_failure_is_not_waited_for() {
    let (master, replica) = pair().await;
    let (a, b) = (durable(&master, "a"), master.builder("job").label("b"));
    let (a, b) = (a.build().await.unwrap(), b.build().await.unwrap());
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    replica.signal(Signal::SIGSTOP);
    guard.fail("no luck").await.unwrap();
    assert_eq!(acquired(&mut second).await.attempt(), 2);
}
