//! Connections that die in silence while new ones work, and what must not be taken for that.
//!
//! `SILENCES=20` repeats each measurement, and `--nocapture` shows what came out.

use std::time::{Duration, Instant};

use fred::clients::Client;
use nix::sys::signal::Signal;
use redis_locking_worker::{Builder, Error, LockEvent, LockingWorker};
use testkit::proxy::{Fate, Line, Proxy, Way};
use testkit::{
    Cluster, PATIENCE, Server, acquired, command, end, locked, next, race, replicas_of, text,
    until, until_quiet,
};

/// Served again this soon, whatever the lease.
const PROMISED: Duration = Duration::from_secs(3);

/// Far longer than any of it takes: its end is not what helps.
const LONG: Duration = Duration::from_secs(30);

fn repetitions() -> usize {
    std::env::var("SILENCES").map_or(2, |text| text.parse().expect("SILENCES is a number"))
}

/// Prints how long it took each time, and holds it against the promise.
fn judge(what: &str, lease: Duration, mut took: Vec<Duration>) {
    took.sort();
    let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{what}, lease {lease:?}: p50 {median:?}, max {most:?} of {}",
        took.len()
    );
    let promised = PROMISED.min(lease / 2);
    assert!(
        most <= promised,
        "{what}: {most:?} is more than {promised:?}"
    );
}

fn through(proxy: &Proxy, key: &str) -> Builder {
    LockingWorker::builder(key).url(format!("redis://127.0.0.1:{}", proxy.port))
}

/// Asks again and again until it is answered, as the hub does.
async fn until_answered(worker: &LockingWorker) {
    let answered = async { while worker.inspect().await.is_err() {} };
    let answered = tokio::time::timeout(PATIENCE, answered).await;
    answered.expect("an answer in time");
}

#[tokio::test]
async fn silent_commands_are_answered_within_half_a_lease() {
    let server = Server::start();
    for lease in [1_000, 4_000, 12_000].map(Duration::from_millis) {
        let mut took = Vec::new();
        for _ in 0..repetitions() {
            let proxy = Proxy::start(server.port).await;
            let worker = through(&proxy, "job").lock_timeout(lease).renew().build();
            let worker = worker.await.unwrap();
            let mut stream = worker.acquire();
            let guard = acquired(&mut stream).await;
            assert_eq!(guard.attempt(), 1);
            assert!(proxy.decide(Some(Line::Commands), Fate::Silent) > 0);
            let began = Instant::now();
            until_answered(&worker).await;
            took.push(began.elapsed());
            assert!(guard.is_valid());
            guard.checkpoint("still held").await.unwrap();
            guard.done().await.unwrap();
            worker.clear().await.unwrap();
            worker.close().await;
        }
        judge("commands", lease, took);
    }
}

#[tokio::test]
async fn a_silent_subscriber_hears_within_3s() {
    let server = Server::start();
    let (mut took, mut subscribed) = (Vec::new(), Vec::new());
    for nth in 0..repetitions() {
        let key = format!("job:{nth}");
        let proxy = Proxy::start(server.port).await;
        let holder = server.builder(&key).lock_timeout(LONG).build().await;
        let waiter = through(&proxy, &key).lock_timeout(LONG).build().await;
        let waiter = waiter.unwrap();
        let mut monitor = server.monitor();
        let (_first, guard, mut second) = race(&holder.unwrap(), &waiter).await;
        let mut third = waiter.acquire();
        locked(&mut third).await;
        // Between two beats: the next one is what finds that the subscriber does not answer.
        until(async || monitor.all().iter().any(|name| name == "SPUBLISH")).await;
        until_quiet(&mut monitor).await;
        assert!(proxy.decide(Some(Line::Subscriber), Fate::Silent) > 0);
        let began = Instant::now();
        guard.fail("over to you").await.unwrap();
        let guard = acquired(&mut second).await;
        took.push(began.elapsed());
        assert_eq!(guard.attempt(), 2);
        // It was not only read again because nothing was heard.
        until(async || proxy.connections(Line::Subscriber) > 0).await;
        subscribed.push(began.elapsed());
        guard.done().await.unwrap();
        assert!(matches!(end(&mut third).await, LockEvent::Completed(_)));
    }
    judge("subscriber", LONG, took);
    judge("subscriber, subscribed again", LONG, subscribed);
}

/// Each node is reached through a proxy of its own only.
async fn behind_proxies(cluster: &Cluster) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for nth in 0..3 {
        let node = cluster.node(nth);
        let proxy = Proxy::start(node.port).await;
        let port = proxy.port.to_string();
        let client = node.client().await;
        let announce = b"cluster-announce-port";
        command(&client, [b"CONFIG", b"SET", announce, port.as_bytes()]).await;
        proxies.push(proxy);
    }
    for nth in 0..3 {
        let client = cluster.node(nth).client().await;
        let knows_all = async || {
            let nodes = text(&client, [b"CLUSTER", b"NODES"]).await;
            proxies
                .iter()
                .all(|proxy| nodes.contains(&format!(":{}@", proxy.port)))
        };
        until(knows_all).await;
    }
    proxies
}

/// Keys of the three nodes, in their order.
const KEYS: [&str; 3] = ["job:3", "job:2", "job:1"];

fn in_cluster(proxies: &[Proxy], key: &str) -> Builder {
    let url = format!("redis-cluster://127.0.0.1:{}", proxies[0].port);
    LockingWorker::builder(key).url(url)
}

#[test]
fn each_node_has_one_of_the_keys() {
    let nodes = KEYS.map(|key| fred::util::redis_keyslot(key.as_bytes()) / 5_462);
    assert_eq!(nodes, [0, 1, 2]);
}

#[tokio::test]
async fn in_a_cluster_a_silent_node_is_answered_within_half_a_lease() {
    let cluster = Cluster::start().await;
    let proxies = behind_proxies(&cluster).await;
    let lease = Duration::from_secs(4);
    let (mut commands, mut hand_offs) = (Vec::new(), Vec::new());
    for nth in 0..repetitions() {
        let node = nth % 3;
        let (key, proxy) = (KEYS[node], &proxies[node]);
        let build = async |lease| in_cluster(&proxies, key).lock_timeout(lease).build().await;
        let worker = build(lease).await.unwrap();
        until_answered(&worker).await;
        assert!(proxy.decide(Some(Line::Commands), Fate::Silent) > 0);
        let began = Instant::now();
        until_answered(&worker).await;
        commands.push(began.elapsed());
        worker.close().await;

        let holder = build(LONG).await.unwrap();
        let waiter = build(LONG).await.unwrap();
        let (_first, guard, mut second) = race(&holder, &waiter).await;
        until(async || proxy.connections(Line::Subscriber) > 0).await;
        assert!(proxy.decide(Some(Line::Subscriber), Fate::Silent) > 0);
        let began = Instant::now();
        guard.fail("over to you").await.unwrap();
        let guard = acquired(&mut second).await;
        hand_offs.push(began.elapsed());
        guard.done().await.unwrap();
        waiter.clear().await.unwrap();
        holder.close().await;
        waiter.close().await;
    }
    judge("commands in a cluster", lease, commands);
    judge("subscriber in a cluster", LONG, hand_offs);
}

#[tokio::test]
async fn in_a_cluster_a_stopped_node_stalls_no_other() {
    let cluster = Cluster::start_with(0).await;
    // So that the others serve on.
    for nth in 0..3 {
        let client = cluster.node(nth).client().await;
        let whole = b"cluster-require-full-coverage";
        command(&client, [b"CONFIG", b"SET", whole, b"no"]).await;
    }
    let url = cluster.url();
    let build = async |key| {
        let builder = LockingWorker::builder(key).url(&url);
        builder
            .lock_timeout(Duration::from_secs(4))
            .build()
            .await
            .unwrap()
    };
    let worker = build(KEYS[1]).await;
    let [stopped, served] = [KEYS[0], KEYS[1]].map(|key| worker.with_key(key).unwrap());
    until_answered(&stopped).await;
    cluster.node(0).signal(Signal::SIGSTOP);
    let asking = tokio::spawn(async move { until_answered(&stopped).await });
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < 2 * PROMISED {
        let asked = Instant::now();
        served.inspect().await.unwrap();
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("beside a stopped node: max {slowest:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert!(!asking.is_finished(), "it answers although it is stopped");
    cluster.node(0).signal(Signal::SIGCONT);
    asking.await.unwrap();
}

#[tokio::test]
async fn a_stopped_master_that_was_replaced_is_left() {
    let cluster = Cluster::start_with(1).await;
    let lease = Duration::from_secs(4);
    let builder = LockingWorker::builder(KEYS[0]).url(cluster.url());
    let worker = builder.lock_timeout(lease).build().await.unwrap();
    until_answered(&worker).await;
    // It keeps its connections, and nothing says that it is not asked any more.
    cluster.node(0).signal(Signal::SIGSTOP);
    let began = Instant::now();
    let replica = cluster.node(3).client().await;
    let promoted = async || {
        text(&replica, [b"INFO", b"replication"])
            .await
            .contains("role:master")
    };
    until(promoted).await;
    let promoted = began.elapsed();
    until_answered(&worker).await;
    let followed = began.elapsed() - promoted;
    println!("promoted after {promoted:?}, followed {followed:?} later");
    // An examination may have begun just before, and one is over after 2 s at the latest.
    assert!(followed < 2 * PROMISED + lease / 2, "{followed:?}");
    cluster.node(0).signal(Signal::SIGCONT);
}

#[tokio::test]
async fn the_nodes_of_the_url_may_have_gone() {
    let mut cluster = Cluster::start_with(1).await;
    let proxies = behind_proxies(&cluster).await;
    let lease = Duration::from_secs(4);
    let builder = in_cluster(&proxies, KEYS[1]).lock_timeout(lease);
    let worker = builder.build().await.unwrap();
    let of_gone = worker.with_key(KEYS[0]).unwrap();
    until_answered(&of_gone).await;
    // The only node that the URL names; its replica takes its place.
    cluster.nodes()[0].kill();
    proxies[0].set(Way::Cut);
    until_answered(&of_gone).await;
    assert!(proxies[1].decide(Some(Line::Commands), Fate::Silent) > 0);
    let began = Instant::now();
    until_answered(&worker).await;
    judge("without the URL's node", lease, vec![began.elapsed()]);
}

#[tokio::test]
async fn the_bound_can_be_set() {
    let server = Server::start();
    // The last is longer than a command is waited for: what was given up is still owed.
    for millis in [50, 400, 2_600] {
        let bound = Duration::from_millis(millis);
        let proxy = Proxy::start(server.port).await;
        let builder = through(&proxy, "job").lock_timeout(LONG);
        let worker = builder.answer_timeout(bound).build().await.unwrap();
        until_answered(&worker).await;
        assert!(proxy.decide(Some(Line::Commands), Fate::Silent) > 0);
        let began = Instant::now();
        until_answered(&worker).await;
        let took = began.elapsed();
        assert!(
            took >= bound && took < 3 * bound + PROMISED / 10,
            "{bound:?}: {took:?}"
        );
    }
}

/// The connections of clients that are not this one.
async fn connections(client: &Client) -> Vec<String> {
    let id = command(client, [b"CLIENT", b"ID"])
        .await
        .into_string()
        .unwrap();
    let list = text(client, [b"CLIENT", b"LIST"]).await;
    let ids = list.lines().filter_map(|line| line.split(' ').next());
    let mut ids: Vec<String> = ids.map(ToOwned::to_owned).collect();
    ids.retain(|other| *other != format!("id={id}"));
    ids.sort();
    ids
}

#[tokio::test]
async fn a_stopped_server_keeps_its_connections() {
    let server = Server::start();
    let client = server.client().await;
    let lease = Duration::from_secs(1);
    let build = async |label| {
        server
            .builder("job")
            .label(label)
            .lock_timeout(lease)
            .build()
            .await
    };
    let (a, b) = (build("a").await.unwrap(), build("b").await.unwrap());
    let (_first, guard, mut second) = race(&a, &b).await;
    let before = connections(&client).await;
    assert_eq!(before.len(), 4, "{before:?}");
    server.signal(Signal::SIGSTOP);
    let asking = tokio::spawn(async move { until_answered(&a).await });
    tokio::time::sleep(PROMISED).await;
    server.signal(Signal::SIGCONT);
    asking.await.unwrap();
    drop(guard);
    acquired(&mut second).await.done().await.unwrap();
    // Those of the examinations are gone.
    until(async || connections(&client).await.len() <= 4).await;
    assert_eq!(connections(&client).await, before);
}

#[tokio::test]
async fn a_blocked_runtime_keeps_its_connections() {
    let server = Server::start();
    let client = server.client().await;
    let lease = Duration::from_millis(400);
    let worker = server
        .builder("job")
        .lock_timeout(lease)
        .build()
        .await
        .unwrap();
    let (_first, guard, mut second) = race(&worker, &worker).await;
    let before = connections(&client).await;
    for _ in 0..5 {
        // Sent, and answered while this thread looks away for far longer than an answer may take.
        let asked = worker.inspect();
        let mut asked = std::pin::pin!(asked);
        for _ in 0..20 {
            tokio::select! {
                biased;
                _ = &mut asked => break,
                () = tokio::task::yield_now() => {}
            }
        }
        std::thread::sleep(lease);
        worker.inspect().await.unwrap();
        // The timers that have become due meanwhile have their say.
        tokio::time::sleep(lease / 4).await;
    }
    until(async || connections(&client).await.len() <= 2).await;
    assert_eq!(connections(&client).await, before);
    drop(guard);
    acquired(&mut second).await.done().await.unwrap();
}

#[tokio::test]
async fn a_silent_connection_with_a_full_buffer_is_left() {
    // More than the sockets on both sides of the proxy have room for.
    const BIG: usize = 32 << 20;
    let big = vec![b'x'; BIG];
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let lease = Duration::from_secs(8);
    let worker = through(&proxy, "job")
        .lock_timeout(lease)
        .build()
        .await
        .unwrap();
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    assert!(proxy.decide(Some(Line::Commands), Fate::Silent) > 0);
    let began = Instant::now();
    // The client library hangs in the write of this.
    let length = guard.fenced::<usize, _, _>("return #ARGV[1]", None, &big[..]);
    let (written, ()) = futures::future::join(length, until_answered(&worker)).await;
    assert!(written.is_err(), "{written:?}");
    judge(
        "commands behind a full buffer",
        lease,
        vec![began.elapsed()],
    );
    guard.done().await.unwrap();
    assert!(matches!(end(&mut stream).await, LockEvent::Completed(_)));
}

#[tokio::test]
async fn a_silent_client_of_the_callers_is_made_to_reconnect() {
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let client = Server::client_at(proxy.port).await;
    let lease = Duration::from_secs(4);
    let builder = LockingWorker::builder("job").client(client.clone());
    let worker = builder.lock_timeout(lease).build().await.unwrap();
    until_answered(&worker).await;
    assert!(proxy.decide(Some(Line::Commands), Fate::Silent) > 0);
    let began = Instant::now();
    until_answered(&worker).await;
    judge("a client of the caller's", lease, vec![began.elapsed()]);
    assert_eq!(text(&client, [b"PING"]).await, "PONG");
    worker.close().await;
    assert_eq!(
        text(&client, [b"PING"]).await,
        "PONG",
        "it is not ours to close"
    );
}

#[tokio::test]
async fn a_silent_connection_to_replicas_is_left() {
    let master = Server::start_with(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port.to_string();
    let _replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let client = master.client().await;
    let in_step = async || {
        let info = text(&client, [b"INFO", b"replication"]).await;
        info.contains("state=online")
    };
    until(in_step).await;
    let proxy = Proxy::start(master.port).await;
    let (lease, timeout) = (Duration::from_secs(4), Duration::from_millis(500));
    let builder = through(&proxy, "job")
        .lock_timeout(lease)
        .replicas(1, timeout);
    let worker = builder.build().await.unwrap();
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    assert!(proxy.decide(Some(Line::Commands), Fate::Silent) >= 2);
    let began = Instant::now();
    while guard.extend(lease).await.is_err() {
        assert!(guard.is_valid(), "lost after {:?}", began.elapsed());
    }
    let took = began.elapsed();
    println!("replicas: {took:?}");
    assert!(took <= PROMISED.min(lease / 2) + timeout, "{took:?}");
    guard.done().await.unwrap();
}

/// The replica that they wait for does not exist, and the waits of a node are one behind the other.
#[tokio::test]
async fn waits_behind_each_other_on_a_node_are_no_silence() {
    let cluster = Cluster::start().await;
    let (wait, answer) = (Duration::from_millis(400), Duration::from_millis(800));
    let builder = LockingWorker::builder("job").url(cluster.url());
    let builder = builder.replicas(1, wait).answer_timeout(answer);
    let worker = builder.build().await.unwrap();
    let client = cluster.node(0).client().await;
    let mut streams = Vec::new();
    for key in (0..).map(|nth| format!("job-{nth}")) {
        let slot = command(&client, [b"CLUSTER", b"KEYSLOT", key.as_bytes()]).await;
        if slot.as_u64().unwrap() < 5_461 {
            streams.push(worker.with_key(key).unwrap().acquire());
        }
        if streams.len() == 4 {
            break;
        }
    }
    let heard = futures::future::join_all(streams.iter_mut().map(next)).await;
    for event in heard {
        assert!(
            matches!(event, LockEvent::Error(Error::NotReplicated { .. })),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn a_silent_sentinel_is_listened_to_again() {
    let sentinels = testkit::Sentinel::start();
    let client = sentinels.client().await;
    assert_eq!(replicas_of(&client).await, 0);
    let proxy = Proxy::start(sentinels.port()).await;
    let url = format!(
        "redis-sentinel://127.0.0.1:{}?sentinelServiceName=main",
        proxy.port
    );
    let worker = LockingWorker::builder("job")
        .url(url)
        .build()
        .await
        .unwrap();
    until_answered(&worker).await;
    until(async || proxy.connections(Line::Commands) > 0).await;
    assert!(proxy.decide(None, Fate::Silent) > 0);
    let began = Instant::now();
    until(async || proxy.connections(Line::Commands) > 0).await;
    // Asked each second, so a silence begins up to that late.
    judge("a sentinel", LONG, vec![began.elapsed()]);
}

#[tokio::test]
async fn when_the_address_moves_both_connections_follow() {
    let lease = Duration::from_secs(6);
    let direct = async |server: &Server| {
        let builder = server.builder("job").lock_timeout(lease);
        builder.build().await.unwrap()
    };
    for moved in [Line::Commands, Line::Subscriber] {
        // The old server lives on, and knows nothing of the new one.
        let (old, new) = (Server::start(), Server::start());
        let proxy = Proxy::start(old.port).await;
        let waiter = through(&proxy, "job").lock_timeout(lease).renew().build();
        let (_first, _held, mut second) = race(&direct(&old).await, &waiter.await.unwrap()).await;
        let holder = direct(&new).await;
        let mut third = holder.acquire();
        let guard = acquired(&mut third).await;
        until(async || proxy.connections(Line::Subscriber) > 0).await;
        proxy.lead_to(new.port);
        let began = Instant::now();
        assert!(proxy.decide(Some(moved), Fate::Reset) > 0);
        let client = new.client().await;
        let waits_and_listens = async || {
            let waiting = command(&client, [b"ZCARD", b"{job}:line"]).await;
            let count = command(&client, [b"PUBSUB", b"SHARDNUMSUB", b"{job}:line"]).await;
            waiting.as_u64() == Some(1) && count.into_array()[1].as_u64() == Some(1)
        };
        until(waits_and_listens).await;
        let followed = began.elapsed();
        let began = Instant::now();
        guard.fail("over to you").await.unwrap();
        acquired(&mut second).await.done().await.unwrap();
        let took = began.elapsed();
        println!("{moved:?} moved: followed in {followed:?}, then a hand-off in {took:?}");
        // At once, and not because an answer was owed for too long.
        assert!(followed < lease / 4, "{followed:?}");
        assert!(
            took < lease / 4,
            "by push, and not at the lease's end: {took:?}"
        );
    }
}

#[tokio::test]
async fn a_wait_with_no_news_costs_two_commands_a_beat() {
    let server = Server::start();
    let lease = Duration::from_secs(60);
    let worker = server
        .builder("job")
        .lock_timeout(lease)
        .build()
        .await
        .unwrap();
    let mut holder = worker.acquire();
    let guard = acquired(&mut holder).await;
    let mut waiter = worker.acquire();
    locked(&mut waiter).await;
    let mut monitor = server.monitor();
    until_quiet(&mut monitor).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let calls = monitor.all();
    let count = |name: &str| calls.iter().filter(|call| *call == name).count();
    assert!((2..=4).contains(&count("SSUBSCRIBE")), "{calls:?}");
    assert!(
        count("SPUBLISH").abs_diff(count("SSUBSCRIBE")) <= 1,
        "{calls:?}"
    );
    assert_eq!(
        count("SSUBSCRIBE") + count("SPUBLISH"),
        calls.len(),
        "{calls:?}"
    );
    guard.done().await.unwrap();
}
