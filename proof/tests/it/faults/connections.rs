//! Connections that are cut or stalled, and the subscriber's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{outage, until_acquired};
use fred::clients::Client;
use futures::future::{join, join_all};
use redis_locking_worker::{LeaseLost, LockEvent, LockingWorker};
use testkit::proxy::{Proxy, Way};
use testkit::{PATIENCE, Server, acquired, command, end, locked, race, text, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[tokio::test]
async fn out_of_reach_the_work_stops_before_its_lease_ends_on_the_server() {
    let ways = [Way::Cut, Way::Stalled];
    let cases = ways.map(|way| [1_000, 3_000].map(|lease| out_of_reach(way, lease)));
    join_all(cases.into_iter().flatten()).await;
}

async fn out_of_reach(way: Way, lease: u64) {
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let builder = LockingWorker::builder("job").url(url);
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

    // How late this runtime's timers are just then: that they come in time is what the promise assumes.
    let late = async {
        while guard.is_valid() {
            let left = guard.remaining();
            let due = Instant::now() + left;
            tokio::time::sleep(left).await;
            if !guard.is_valid() {
                return due.elapsed().as_secs_f64() * 1e3;
            }
        }
        0.0
    };
    let stopped = async {
        let lost = guard.run(std::future::pending::<()>()).await.unwrap_err();
        (lost, now())
    };
    let ((lost, stopped), late) = join(stopped, late).await;
    let left = lease_end(&client).await - stopped;
    println!(
        "{way:?}, lease of {lease} ms: stopped {left:.1} ms before it ended, by timers {late:.1} ms late"
    );
    assert!(matches!(lost, LeaseLost::Unreachable { .. }), "{lost:?}");
    assert!(left + late > 0.0, "after the lease's end on the server");
    assert!(!guard.is_valid());
    assert_eq!(until_acquired(&mut second).await.0.attempt(), 2);
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
        for _ in 0..2 {
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

/// A way on which the next call that is armed for is lost, with its connection.
struct Lossy {
    port: u16,
    lose: watch::Sender<Option<Lost>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// Before the server has seen it.
    Call,
    /// At the first byte of it: the script has run.
    Answer,
    /// It stays on its way, and whatever is behind it, until nothing is lost any more.
    Stalled,
}

impl Lossy {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lose = watch::Sender::new(None);
        let armed = lose.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                tokio::spawn(carry(client, server, armed.clone()));
            }
        });
        Self { port, lose }
    }

    async fn worker(&self, label: &str) -> LockingWorker {
        let url = format!("redis://127.0.0.1:{}", self.port);
        let builder = LockingWorker::builder("job").url(url).label(label);
        builder.lock_timeout(LEASE).build().await.unwrap()
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, lose: watch::Sender<Option<Lost>>) {
    let (mut asked, mut said) = ([0; 16 << 10], [0; 16 << 10]);
    let mut losing = None;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                if asked[..count].windows(7).any(|word| word == b"EVALSHA") {
                    losing = *lose.borrow();
                }
                if losing == Some(Lost::Call) {
                    lose.send_replace(None);
                    return;
                }
                server.write_all(&asked[..count]).await.unwrap();
            }
            read = server.read(&mut said) => {
                let Ok(count @ 1..) = read else { return };
                match losing {
                    Some(Lost::Answer) => {
                        lose.send_replace(None);
                        return;
                    }
                    Some(Lost::Stalled) => {
                        let _ = lose.subscribe().wait_for(Option::is_none).await;
                    }
                    _ => {}
                }
                losing = None;
                if client.write_all(&said[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// So long that no timer is what settles anything.
const LEASE: Duration = Duration::from_secs(3_600);

/// Makes the scripts known, so that each is called once.
async fn teach(server: &Server) {
    let worker = server.builder("other").build().await.unwrap();
    acquired(&mut worker.acquire()).await.done().await.unwrap();
}

/// How often the scripts have been called.
async fn calls(client: &Client) -> u64 {
    let stats = text(client, [b"INFO", b"commandstats"]).await;
    let (_, calls) = stats.split_once("cmdstat_evalsha:calls=").unwrap();
    calls.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_claim_whose_connection_is_cut_has_run_once_or_not_at_all_and_is_one_grant() {
    for (lost, ran) in [(Lost::Call, 0), (Lost::Answer, 1)] {
        let server = Server::start();
        let client = server.client().await;
        let lossy = Lossy::start(server.port).await;
        let worker = lossy.worker("a").await;
        teach(&server).await;
        let before = calls(&client).await;
        lossy.lose.send_replace(Some(lost));
        let mut stream = worker.acquire();
        outage(&mut stream, "job").await;
        let held = command(&client, [b"GET", b"job"]).await.into_string();
        assert_eq!(held.is_some(), ran == 1, "{lost:?}");
        let (guard, outages) = until_acquired(&mut stream).await;
        assert_eq!((guard.attempt(), outages), (1, 0));
        assert_eq!(calls(&client).await - before, ran + 1, "{lost:?}");
        let fence = format!("fence={} ", guard.fencing_token());
        let held = held.unwrap_or(record(&client).await);
        assert!(held.contains(&fence), "{lost:?}: the same grant: {held}");
        guard.done().await.unwrap();
    }
}

#[tokio::test]
async fn a_settlement_whose_connection_is_cut_counts_once_and_is_ok() {
    for lost in [Lost::Call, Lost::Answer] {
        let server = Server::start();
        let lossy = Lossy::start(server.port).await;
        let a = lossy.worker("a").await;
        let b = server.builder("job").label("b").lock_timeout(LEASE);
        let b = b.build().await.unwrap();
        teach(&server).await;
        let (_first, guard, mut second) = race(&a, &b).await;
        lossy.lose.send_replace(Some(lost));
        guard.fail("no luck").await.unwrap();
        let guard = acquired(&mut second).await;
        assert_eq!(guard.attempt(), 2, "{lost:?}");
        let (_third, guard, _fourth) = {
            let mut third = a.acquire();
            locked(&mut third).await;
            guard.hand_off().await.unwrap();
            let guard = acquired(&mut third).await;
            (third, guard, second)
        };
        assert_eq!(guard.attempt(), 2, "{lost:?}");
        lossy.lose.send_replace(Some(lost));
        guard.done_with("result").await.unwrap();
        match end(&mut b.acquire()).await {
            LockEvent::Completed(completed) => assert_eq!(completed.result, "result"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_stalled_is_asked_for_again_with_the_same_token() {
    let server = Server::start();
    let client = server.client().await;
    let lossy = Lossy::start(server.port).await;
    let worker = lossy.worker("a").await;
    teach(&server).await;
    lossy.lose.send_replace(Some(Lost::Stalled));
    let mut stream = worker.acquire();
    outage(&mut stream, "job").await;
    let held = record(&client).await;
    lossy.lose.send_replace(None);
    let (guard, outages) = until_acquired(&mut stream).await;
    assert_eq!((guard.attempt(), outages), (1, 0));
    assert!(held.contains(&format!("fence={} ", guard.fencing_token())));
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_subscriber_that_the_server_throws_out_for_its_lag_is_made_up_for() {
    let server = Server::start();
    let builder = server.builder("job").lock_timeout(LEASE);
    let (a, b) = (builder.clone().build().await, builder.build().await);
    let (_first, guard, mut second) = race(&a.unwrap(), &b.unwrap()).await;
    let client = server.client().await;
    let subscriber = async || {
        let list = text(&client, [b"CLIENT", b"LIST", b"TYPE", b"pubsub"]).await;
        let (id, _) = list.split_once(' ')?;
        Some(id.to_owned())
    };
    until(async || subscriber().await.is_some()).await;
    let before = subscriber().await;
    let limit = b"pubsub 1 1 1";
    let set: [&[u8]; 4] = [b"CONFIG", b"SET", b"client-output-buffer-limit", limit];
    command(&client, set).await;
    // More than fits into what the server has for each client anyway; so is what comes next.
    guard.checkpoint(vec![b'x'; 60_000]).await.unwrap();
    drop(guard);
    let (guard, outages) = until_acquired(&mut second).await;
    assert_eq!((guard.attempt(), outages), (2, 0), "commands still worked");
    assert_ne!(subscriber().await, before);
    guard.done().await.unwrap();
}
