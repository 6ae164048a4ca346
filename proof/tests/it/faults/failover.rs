//! A master that is followed by a replica. How long that takes, and that no fleet suffers from it, is for
//! `proof/tests/chaos`.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use nix::sys::signal::Signal;
use redis_locking_worker::{LeaseLost, LockingWorker, SettleError};

use testkit::proxy::{Line, Proxy, Way};
use testkit::{
    PATIENCE, Sentinel, Sentinels, Server, acquired, command, end, is_in_step, least_permissions,
    replicas_of, text, until,
};

async fn is_master(client: &Client) -> bool {
    let role = command(client, [b"ROLE"]).await;
    role.into_array()[0]
        .as_str()
        .is_some_and(|role| role == "master")
}

#[tokio::test]
async fn after_a_switch_an_old_master_that_is_alive_is_left_at_once() {
    let servers = Sentinels::start(1).await;
    let build = LockingWorker::builder("job").url(servers.url()).build();
    let worker = build.await.unwrap();
    let [old, new] = &servers.nodes[..] else {
        panic!("two servers");
    };
    // Connected now: a switch ends connections, those that are just being made too.
    let (old, new) = (old.client().await, new.client().await);
    fail_over(&servers.sentinels[0].client().await).await;
    // The old one's role last: if it is a master then, it was one when they went.
    until(async || {
        connections(&new).await.len() == 2
            && connections(&old).await.is_empty()
            && is_still_master(&old).await
    })
    .await;
    let there = connections(&new).await;
    let guard = acquired(&mut worker.acquire()).await;
    assert_eq!(command(&new, [b"EXISTS", b"job"]).await.as_i64(), Some(1));
    guard.done().await.unwrap();
    assert_eq!(connections(&new).await, there, "it has gone once");
}

/// What else could have made them go is that it became a replica.
async fn is_still_master(client: &Client) -> bool {
    assert!(is_master(client).await, "nobody told them to go in time");
    true
}

async fn fail_over(sentinel: &Client) {
    text(sentinel, [b"SENTINEL", b"FAILOVER", b"main"]).await;
}

/// The numbers of the connections that workers have; no other client here speaks RESP3.
async fn connections(server: &Client) -> Vec<u64> {
    let clients = text(server, [b"CLIENT", b"LIST"]).await;
    let workers = clients.lines().filter(|line| line.contains(" resp=3"));
    let numbers = workers.map(|line| {
        let number = line.split(' ').next().unwrap().strip_prefix("id=");
        number.unwrap().parse().unwrap()
    });
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// How long the workers' oldest connection to a sentinel has been listening to it, in seconds.
async fn listening(sentinel: &Client) -> Option<u64> {
    let clients = text(sentinel, [b"CLIENT", b"LIST"]).await;
    let workers = clients
        .lines()
        .filter(|line| line.contains(" resp=3") && line.contains(" sub=1"));
    let ages = workers.map(|line| {
        let age = line.split(' ').find_map(|word| word.strip_prefix("age="));
        age.unwrap().parse().unwrap()
    });
    ages.max()
}

/// A sentinel that nobody else knows, with a master and its replica.
async fn alone() -> (Sentinel, Server) {
    let sentinel = Sentinel::start();
    let port = sentinel.master.port.to_string();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let (client, watching) = (replica.client().await, sentinel.client().await);
    until(async || is_in_step(&client).await).await;
    until(async || replicas_of(&watching).await == 1).await;
    (sentinel, replica)
}

#[tokio::test]
async fn a_sentinel_that_is_behind_leads_nobody_back() {
    tokio::join!(
        behind_leads_nobody_back(true),
        behind_leads_nobody_back(false)
    );
}

/// Whether or not it has had its say before the switch.
async fn behind_leads_nobody_back(heard_before: bool) {
    let (sentinel, replica) = alone().await;
    // Of the same name, and it will never hear of a failover.
    let behind = Sentinel::start();
    let proxy = way_to(&behind).await;
    if !heard_before {
        proxy.set(Way::Cut);
    }
    let url = asked_first(&sentinel, &proxy);
    let builder = LockingWorker::builder("job").url(url);
    let worker = builder.build().await.unwrap();
    let [old, new] = [sentinel.master.client().await, replica.client().await];
    let at_first = connections(&old).await;
    assert_eq!(at_first.len(), 2);
    let said_twice = async |sentinel: &Client| {
        until(async || listening(sentinel).await.is_some_and(|age| age > 2)).await;
    };
    if heard_before {
        said_twice(&behind.client().await).await;
        assert_eq!(connections(&old).await, at_first, "no reason to go yet");
    }

    let asked = sentinel.client().await;
    fail_over(&asked).await;
    until(async || connections(&new).await.len() == 2).await;
    let then = connections(&new).await;
    // It comes back, and has its say.
    let says = behind.client().await;
    proxy.set(Way::Cut);
    until(async || listening(&says).await.is_none()).await;
    proxy.set(Way::Open);
    said_twice(&says).await;
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    assert_eq!(connections(&new).await, then);
    assert!(connections(&behind.master.client().await).await.is_empty());
}

fn address(sentinel: &Sentinel) -> String {
    let url = sentinel.url();
    url.split(['/', '?']).nth(2).unwrap().to_owned()
}

/// `fred` asks the last that the URL names first.
fn asked_first(sentinel: &Sentinel, proxy: &Proxy) -> String {
    let (other, first) = (proxy.port, address(sentinel));
    format!("redis-sentinel://127.0.0.1:{other}?sentinelServiceName=main&node={first}")
}

async fn way_to(sentinel: &Sentinel) -> Proxy {
    let port = address(sentinel).split(':').nth(1).unwrap().parse();
    Proxy::start(port.unwrap()).await
}

#[tokio::test]
async fn a_sentinels_connection_that_dies_in_silence_is_made_anew() {
    let sentinel = Sentinel::start();
    let proxy = way_to(&sentinel).await;
    let url = asked_first(&sentinel, &proxy);
    let build = LockingWorker::builder("job").url(url).build();
    let worker = build.await.unwrap();
    until(async || proxy.connections(Line::Commands) == 1).await;
    proxy.set(Way::Stalled);
    until(async || proxy.connections(Line::Commands) > 1).await;
    acquired(&mut worker.acquire()).await.done().await.unwrap();
}

#[tokio::test]
async fn a_user_that_may_not_ask_where_it_is_goes_once() {
    let (sentinel, replica) = alone().await;
    let documented = least_permissions().collect::<Vec<_>>().join(" ");
    let [old, new] = [sentinel.master.client().await, replica.client().await];
    let asked = sentinel.client().await;
    for (server, rules) in [
        (&old, &documented[..]),
        (&new, &documented),
        // Without the feature `sentinel-auth`, they are asked by the same user.
        (&asked, "+@all &*"),
    ] {
        let user = format!("SETUSER worker on >p {rules} +role");
        let acl = CustomCommand::new_static("ACL", None, false);
        let words: Vec<&str> = user.split_whitespace().collect();
        let _: Value = server.custom(acl, words).await.unwrap();
    }
    let url = sentinel.url().replace("://", "://worker:p@");
    let worker = LockingWorker::builder("job:1").url(url);
    let worker = worker.build().await.unwrap();
    until(async || listening(&asked).await.is_some_and(|age| age > 2)).await;
    // Each connection begins with it.
    let roles = async |server: &Client| {
        let calls = text(server, [b"INFO", b"commandstats"]).await;
        let roles = calls.lines().find(|line| line.starts_with("cmdstat_role:"));
        roles.map(|line| line.split([',', '=']).nth(1).unwrap().to_owned())
    };
    assert_eq!(roles(&old).await.as_deref(), Some("2"));
    fail_over(&asked).await;
    until(async || connections(&new).await.len() == 2).await;
    let switched = async || {
        let master = command(&asked, [b"SENTINEL", b"MASTER", b"main"]).await;
        let port = replica.port.to_string();
        master
            .into_array()
            .iter()
            .any(|word| word.as_str().is_some_and(|word| word == port))
    };
    until(switched).await;
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    assert_eq!(roles(&old).await.as_deref(), Some("2"));
    assert_eq!(roles(&new).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_sentinel_that_hangs_keeps_nothing_alive() {
    let servers = Sentinels::start(0).await;
    servers.sentinels[2].signal(Signal::SIGSTOP);
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let build = LockingWorker::builder("job").url(servers.url()).build();
    let worker = build.await.unwrap();
    let reached = servers.sentinels[1].client().await;
    until(async || listening(&reached).await.is_some()).await;
    reached.quit().await.unwrap();
    assert!(tasks.num_alive_tasks() > before);
    worker.close().await;
    until(async || tasks.num_alive_tasks() == before).await;
}

#[tokio::test]
async fn a_failover_that_loses_the_last_writes_runs_work_twice_and_refuses_the_stale_token() {
    let mut sentinel = Sentinel::start_with(&["sentinel down-after-milliseconds main 1000"]);
    // What it is not sent, it cannot know.
    let proxy = Proxy::start(sentinel.master.port).await;
    let port = proxy.port.to_string();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let client = replica.client().await;
    until(async || is_in_step(&client).await).await;
    let watching = sentinel.client().await;
    until(async || replicas_of(&watching).await == 1).await;

    let build = |label| {
        let builder = LockingWorker::builder("job").url(sentinel.url());
        builder.label(label).lock_timeout(PATIENCE).build()
    };
    let (first, second) = (
        build("first").await.unwrap(),
        build("second").await.unwrap(),
    );
    proxy.set(Way::Stalled);
    let stale = acquired(&mut first.acquire()).await;
    sentinel.master.kill();
    until(async || is_master(&client).await).await;

    let mut stream = second.acquire();
    let guard = acquired(&mut stream).await;
    assert_eq!(
        guard.attempt(),
        1,
        "the first was forgotten with its attempt"
    );
    assert!(guard.fencing_token() > stale.fencing_token());
    let script = "return redis.call('SET', KEYS[1], ARGV[1])";
    let () = guard.fenced(script, "effect", "second").await.unwrap();
    let refused = tokio::time::timeout(
        PATIENCE,
        stale.fenced::<(), _, _>(script, "effect", "first"),
    );
    let refused = refused.await.expect("an answer").unwrap_err();
    println!("{refused:?}");
    assert_eq!(text(&client, [b"GET", b"effect"]).await, "second");
    match stale.done().await {
        Err(SettleError::Lost(LeaseLost::TakenOver { holder, .. })) => assert_eq!(holder, "second"),
        other => panic!("{other:?}"),
    }
    guard.done().await.unwrap();
    end(&mut stream).await;
}

#[tokio::test]
async fn a_sentinel_out_of_reach_holds_up_nobody() {
    let mut servers = Sentinels::start(0).await;
    let url = servers.url();
    // `fred` asks it first, since the URL names it so.
    servers.sentinels[1].kill();
    let build = LockingWorker::builder("job").url(url).build();
    let built = tokio::time::timeout(PATIENCE, build)
        .await
        .expect("no hang");
    let worker = built.unwrap();
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(10), worker.close());
    closed.await.expect("no hang");
}
