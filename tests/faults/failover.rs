//! A master that is followed by a replica. How long that takes, and that no fleet suffers from it, is for
//! `tests/chaos.rs`.

use std::time::Duration;

use fred::clients::Client;
use redis_locking_worker::{LeaseLost, LockingWorker, SettleError};

use crate::common::proxy::{Proxy, Way};
use crate::common::{
    PATIENCE, Sentinel, Sentinels, Server, acquired, command, end, is_in_step, text, until,
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
    let sentinel = servers.sentinels[0].client().await;
    text(&sentinel, [b"SENTINEL", b"FAILOVER", b"main"]).await;
    let mut round = 0;
    until(async || {
        round += 1;
        let worker = worker.with_key(format!("job-{round}")).unwrap();
        let guard = acquired(&mut worker.acquire()).await;
        let key = guard.key().clone();
        // One that was granted by the old master may be unknown to the new one.
        let _ = guard.done().await;
        is_master(&new).await
            && command(&new, [b"EXISTS", key.as_bytes()]).await.as_i64() == Some(1)
            && worker_is_at(&new, &old).await
    })
    .await;
    assert!(
        is_master(&old).await,
        "nothing but the sentinels' word can have made it go"
    );
}

/// Whether a worker that has a connection for commands and one for subscriptions has both of them here.
async fn worker_is_at(here: &Client, there: &Client) -> bool {
    let scripts = async |client: &Client| {
        let clients = text(client, [b"CLIENT", b"LIST"]).await;
        clients
            .lines()
            .filter(|line| line.contains("cmd=evalsha"))
            .count()
    };
    scripts(here).await > 0 && scripts(there).await == 0
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
    until(async || {
        text(&watching, [b"INFO", b"sentinel"])
            .await
            .contains("slaves=1")
    })
    .await;

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
    // The first that the URL names.
    servers.sentinels[0].kill();
    let build = LockingWorker::builder("job").url(url).build();
    let built = tokio::time::timeout(PATIENCE, build)
        .await
        .expect("no hang");
    let worker = built.unwrap();
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(10), worker.close());
    closed.await.expect("no hang");
}
