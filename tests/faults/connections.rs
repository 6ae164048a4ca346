//! Connections that are cut or stalled, and the subscriber's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::proxy::{Proxy, Way};
use crate::common::{PATIENCE, Server, acquired, command, locked, race};
use crate::until_acquired;
use fred::clients::Client;
use redis_locking_worker::{LeaseLost, LockingWorker};

#[tokio::test]
async fn out_of_reach_the_work_stops_before_its_lease_ends_on_the_server() {
    for way in [Way::Cut, Way::Stalled] {
        for lease in [1_000, 3_000] {
            let server = Server::start();
            let proxy = Proxy::start(server.port).await;
            let builder =
                LockingWorker::builder("job").url(format!("redis://127.0.0.1:{}", proxy.port));
            let builder = builder.lock_timeout(Duration::from_millis(lease)).renew();
            let worker = builder.build().await.unwrap();
            let other = server.builder("job").build().await.unwrap();
            let (_first, guard, mut second) = race(&worker, &other).await;
            let client = server.client().await;
            let renewed = async {
                while !record(&client).await.contains("renewal=2 ") {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            guard.run(renewed).await.unwrap();
            proxy.set(way);

            let lost = guard.run(std::future::pending::<()>()).await.unwrap_err();
            let left = lease_end(&client).await - now();
            println!("{way:?}, lease of {lease} ms: stopped {left:.1} ms before it ended");
            assert!(matches!(lost, LeaseLost::Unreachable { .. }), "{lost:?}");
            assert!(left > 0.0, "after the lease's end on the server");
            assert!(!guard.is_valid());
            assert_eq!(until_acquired(&mut second).await.0.attempt(), 2);
        }
    }
}

/// In ms.
fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64() * 1e3
}

async fn record(client: &Client) -> String {
    let record = command(client, [b"GET", b"job"]).await;
    record.into_string().unwrap()
}

/// By the server's clock, which is ours.
async fn lease_end(client: &Client) -> f64 {
    let record = record(client).await;
    let (_, until) = record.split_once("until=").unwrap();
    until.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_connection_that_comes_back_in_time_saves_the_lease() {
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let builder = LockingWorker::builder("job").url(url).renew();
    let worker = builder.build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let work = async {
        let client = server.client().await;
        for _ in 0..3 {
            proxy.set(Way::Cut);
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            // Two may come at once: one that has waited for the connection is due again from when it was sent.
            let before = record(&client).await;
            proxy.set(Way::Open);
            while record(&client).await == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    guard.run(work).await.expect("saved each time");
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_lost_subscriber_is_made_up_for() {
    let server = Server::start();
    let (a, b) = server.pair().await;
    let client = server.client().await;
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let mut guard = acquired(&mut first).await;
    locked(&mut second).await;
    for attempt in 2..5 {
        // While it is cut off the settlement goes unheard.
        command(&client, [b"CLIENT", b"KILL", b"TYPE", b"pubsub"]).await;
        drop(guard);
        let (next, outages) = until_acquired(&mut second).await;
        assert_eq!(
            (next.attempt(), outages),
            (attempt, 0),
            "commands still worked"
        );
        guard = next;
        second = b.acquire();
        locked(&mut second).await;
    }
}

#[tokio::test]
async fn a_subscriber_that_was_cut_off_hears_again() {
    let server = Server::start();
    let worker = server
        .builder("job")
        .lock_timeout(Duration::from_secs(3_600));
    let worker = worker.build().await.unwrap();
    let client = server.client().await;
    let (_first, guard, mut second) = race(&worker, &worker).await;
    let subscribers = async || {
        let count = command(&client, [b"PUBSUB", b"SHARDNUMSUB", b"{job}:line"]).await;
        count.into_array()[1].as_i64().unwrap()
    };
    let until = Instant::now() + PATIENCE;
    let mut cut = false;
    loop {
        assert!(Instant::now() < until, "it does not subscribe");
        if subscribers().await == 1 {
            if cut {
                break;
            }
            command(&client, [b"CLIENT", b"KILL", b"TYPE", b"pubsub"]).await;
            assert_eq!(subscribers().await, 0);
            cut = true;
        }
        tokio::task::yield_now().await;
    }
    drop(guard);
    assert_eq!(until_acquired(&mut second).await.0.attempt(), 2);
}
