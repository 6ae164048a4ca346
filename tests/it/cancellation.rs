//! Streams, guards and futures dropped where they may be: nothing is left behind.

mod combinators;
mod operations;
mod sweep;

use std::time::Duration;

use fred::types::Value;
use futures::{FutureExt, Stream, StreamExt};
use redis_locking_worker::{
    Acquire, Builder, Error, LockEvent, LockingWorker, Memory, SettleError, WorkGuard,
};
use static_assertions::assert_impl_all;
use testkit::{PATIENCE, Server, acquired, command, end, locked, race, state_of};
use tokio::runtime::Runtime;

assert_impl_all!(Acquire: Stream<Item = LockEvent>, Send, Sync, Unpin);
assert_impl_all!(WorkGuard: Send, Sync, Unpin);
assert_impl_all!(LockingWorker: Clone, Send, Sync, Unpin);
assert_impl_all!(Builder: Clone, Send, Sync, Unpin);
assert_impl_all!(Memory: Clone, Send, Sync, Unpin);
assert_impl_all!(LockEvent: Send, Sync, Unpin);
assert_impl_all!(SettleError: std::error::Error, Send, Sync);

/// A lease that no test outlives: what is left behind would stay.
const LONG: Duration = Duration::from_secs(3_600);

async fn worker(server: &Server) -> LockingWorker {
    let builder = server.builder("job").label("w").lock_timeout(LONG);
    builder.build().await.unwrap()
}

/// The record's state and attempt, and the length of the line.
async fn left(server: &Server) -> (Option<String>, Value) {
    let client = server.client().await;
    let record = command(&client, [b"GET", b"job"]).await.into_string();
    let state = record.map(|record| state_of(&record));
    (state, command(&client, [b"ZCARD", b"{job}:line"]).await)
}

#[tokio::test]
async fn a_claim_in_flight_is_given_back() {
    let server = Server::start();
    let worker = worker(&server).await;
    // The server answers nothing for a while: the claim is on its way when its stream is dropped.
    let client = server.client().await;
    command(&client, [b"CLIENT", b"PAUSE", b"300", b"ALL"]).await;
    let mut stream = worker.acquire();
    assert!(stream.next().now_or_never().is_none());
    tokio::task::yield_now().await;
    drop(stream);
    worker.close().await;
    assert_eq!(
        left(&server).await,
        (Some("open attempt=0/5".to_owned()), Value::from(0))
    );
}

#[test]
fn a_runtime_that_dies_first_is_survived() {
    let server = Server::start();
    let first = Runtime::new().unwrap();
    let (worker, mut stream, guards) = first.block_on(async {
        let worker = worker(&server).await;
        let mut guards = Vec::new();
        for key in ["job", "dropped", "failed"] {
            guards.push(acquired(&mut worker.with_key(key).unwrap().acquire()).await);
        }
        let mut stream = worker.acquire();
        locked(&mut stream).await;
        (worker, stream, guards)
    });
    drop(first);

    let mut guards = guards.into_iter();
    drop(guards.next());
    let second = Runtime::new().unwrap();
    let settled = second.block_on(guards.next().unwrap().fail("late"));
    assert!(matches!(settled, Err(SettleError::Stopped)), "{settled:?}");
    let event = second.block_on(end(&mut stream));
    assert!(
        matches!(event, LockEvent::Error(Error::Stopped)),
        "{event:?}"
    );
    let event = second.block_on(end(&mut worker.acquire()));
    assert!(
        matches!(event, LockEvent::Error(Error::Stopped)),
        "{event:?}"
    );
    second.block_on(worker.close());
    std::thread::spawn(move || drop(guards)).join().unwrap();
}

#[tokio::test]
async fn close_is_bounded_when_the_server_is_gone() {
    let mut server = Server::start();
    let lease = Duration::from_millis(300);
    let worker = server
        .builder("job")
        .lock_timeout(lease)
        .build()
        .await
        .unwrap();
    let (first, guard, second) = race(&worker, &worker).await;
    server.kill();
    drop((guard, first, second));
    tokio::time::timeout(PATIENCE, worker.close())
        .await
        .expect("bounded");
}

#[tokio::test]
async fn the_connections_end_with_the_last_handle() {
    let server = Server::start();
    let client = server.client().await;
    let connections = async || {
        let list = command(&client, [b"CLIENT", b"LIST"])
            .await
            .into_string()
            .unwrap();
        list.lines().count()
    };
    let before = connections().await;
    let worker = server.builder("job").build().await.unwrap();
    let others: Vec<_> = (0..50)
        .map(|n| worker.with_key(format!("job-{n}")).unwrap())
        .collect();
    let mut streams: Vec<_> = others.iter().map(LockingWorker::acquire).collect();
    let mut guards = Vec::new();
    for stream in &mut streams {
        guards.push(acquired(stream).await);
    }
    let mut waiting = others[0].acquire();
    locked(&mut waiting).await;
    assert_eq!(
        connections().await,
        before + 2,
        "two, however many keys and streams"
    );

    drop((worker, others, streams, waiting));
    guards.truncate(1);
    assert_eq!(connections().await, before + 2, "a guard keeps them");
    drop(guards);
    let until = std::time::Instant::now() + PATIENCE;
    while connections().await > before {
        assert!(std::time::Instant::now() < until, "connections stay");
        tokio::task::yield_now().await;
    }
}
