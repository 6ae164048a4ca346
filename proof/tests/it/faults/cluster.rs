//! Slots of a cluster that move, and a master that fails.

use std::time::Duration;

use super::{outage, refusal, until_acquired};
use fred::clients::Client;
use redis_locking_worker::{LockEvent, LockingWorker};
use testkit::{Cluster, command, end, locked, next, race, state_of, text, until};

/// So long that no timer is what wakes anybody.
const LEASE: Duration = Duration::from_secs(3_600);

async fn worker(cluster: &Cluster, label: &str) -> LockingWorker {
    let builder = LockingWorker::builder("job").url(cluster.url());
    let builder = builder.label(label).lock_timeout(LEASE);
    builder.build().await.unwrap()
}

/// Which node has it, from 0, as [`Cluster`] shares them out.
async fn owner(client: &Client, key: &str) -> usize {
    let slot: [&[u8]; 3] = [b"CLUSTER", b"KEYSLOT", key.as_bytes()];
    let slot = command(client, slot).await.as_u64().unwrap();
    [5_461, 10_923]
        .iter()
        .filter(|first| **first <= slot)
        .count()
}

/// The slot of `job` on its way from its node to another.
struct Migration {
    slot: String,
    from: Client,
    to: Client,
    /// Of the node that it moves to.
    port: String,
    id: String,
}

impl Migration {
    async fn begin(cluster: &Cluster) -> Self {
        let any = cluster.node(0).client().await;
        let slot = command(&any, [b"CLUSTER", b"KEYSLOT", b"job"]).await;
        let source = owner(&any, "job").await;
        let target = cluster.node((source + 1) % 3);
        let from = cluster.node(source).client().await;
        let to = target.client().await;
        let source = text(&from, [b"CLUSTER", b"MYID"]).await;
        let migration = Self {
            slot: slot.as_u64().unwrap().to_string(),
            port: target.port.to_string(),
            id: text(&to, [b"CLUSTER", b"MYID"]).await,
            from,
            to,
        };
        migration.set(&migration.to, "IMPORTING", &source).await;
        let target = &migration.id;
        migration.set(&migration.from, "MIGRATING", target).await;
        migration
    }

    async fn set(&self, node: &Client, what: &str, id: &str) {
        let set = ["CLUSTER", "SETSLOT", &self.slot, what, id];
        command(node, set.map(str::as_bytes)).await;
    }

    async fn carry(&self, key: &str) {
        let migrate = ["MIGRATE", "127.0.0.1", &self.port, key, "0", "5000"];
        let moved = text(&self.from, migrate.map(str::as_bytes)).await;
        assert_eq!(moved, "OK");
    }

    async fn end(&self) {
        for node in [&self.to, &self.from] {
            self.set(node, "NODE", &self.id).await;
        }
    }

    async fn subscribers(&self, node: &Client) -> i64 {
        let count = command(node, [b"PUBSUB", b"SHARDNUMSUB", b"{job}:line"]).await;
        count.into_array()[1].as_i64().unwrap()
    }

    async fn record(&self) -> String {
        text(&self.to, [b"GET", b"job"]).await
    }
}

#[tokio::test]
async fn a_subscription_moves_with_its_slot_and_a_drop_wakes_the_waiter_by_push() {
    let cluster = Cluster::start().await;
    let (a, b) = (worker(&cluster, "a").await, worker(&cluster, "b").await);
    let (_first, guard, mut second) = race(&a, &b).await;
    let migration = Migration::begin(&cluster).await;
    until(async || migration.subscribers(&migration.from).await == 1).await;
    migration.carry("job").await;
    migration.carry("{job}:line").await;
    migration.end().await;
    // Nobody who waits sends a command that would be redirected.
    until(async || migration.subscribers(&migration.to).await == 1).await;
    drop(guard);
    let (guard, outages) = until_acquired(&mut second).await;
    assert_eq!((guard.attempt(), outages), (2, 0));
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_holder_follows_its_slot_at_once() {
    let cluster = Cluster::start().await;
    let (a, b) = (worker(&cluster, "a").await, worker(&cluster, "b").await);
    let (mut first, guard, mut second) = race(&a, &b).await;
    let migration = Migration::begin(&cluster).await;
    migration.carry("job").await;
    migration.carry("{job}:line").await;
    migration.end().await;
    guard.checkpoint("half").await.unwrap();
    guard.done_with("result").await.unwrap();
    assert_eq!(state_of(&migration.record().await), "done attempt=1/5");
    match next(&mut first).await {
        LockEvent::Completed(completed) => assert_eq!(completed.result, "result"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
}

#[tokio::test]
async fn while_its_slot_moves_a_run_is_one_outage_and_goes_on_where_it_is_then() {
    let cluster = Cluster::start().await;
    let (a, b) = (worker(&cluster, "a").await, worker(&cluster, "b").await);
    let c = worker(&cluster, "c").await;
    let (mut first, guard, mut second) = race(&a, &b).await;
    let migration = Migration::begin(&cluster).await;
    let mut third = b.acquire();
    locked(&mut third).await;

    // Half of it is here, half is there.
    migration.carry("job").await;
    let mut checkpoint = Box::pin(guard.checkpoint("half"));
    tokio::select! {
        biased;
        () = outage(&mut first, "job") => {}
        kept = &mut checkpoint => panic!("{kept:?}"),
    }
    let mut fourth = a.acquire();
    let said = refusal(&mut fourth).await;
    assert!(said.starts_with("TRYAGAIN"), "{said}");

    // All of it is there, and only who has asked here may ask there.
    migration.carry("{job}:line").await;
    let mut fifth = c.acquire();
    outage(&mut fifth, "job").await;

    migration.end().await;
    checkpoint.await.unwrap();
    for stream in [&mut fourth, &mut fifth] {
        assert_eq!(locked(stream).await.holder, "a");
    }
    guard.done().await.unwrap();
    for stream in [&mut first, &mut second, &mut third, &mut fourth, &mut fifth] {
        let event = end(stream).await;
        assert!(matches!(event, LockEvent::Completed(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_master_that_fails_is_one_outage_of_every_key_until_it_is_back() {
    let mut cluster = Cluster::start().await;
    let (a, b) = (worker(&cluster, "a").await, worker(&cluster, "b").await);
    let elsewhere = |worker: &LockingWorker| worker.with_key("{a}").unwrap();
    let client = cluster.node(0).client().await;
    let failing = owner(&client, "job").await;
    assert_ne!(failing, owner(&client, "{a}").await);
    let (_first, lost, mut second) = race(&a, &b).await;
    let (_third, kept, mut fourth) = race(&elsewhere(&a), &elsewhere(&b)).await;

    cluster.nodes()[failing].kill();
    futures::join!(outage(&mut second, "job"), outage(&mut fourth, "{a}"));
    let mut fifth = elsewhere(&b).acquire();
    outage(&mut fifth, "{a}").await;
    cluster.nodes()[failing].restart();

    // The one had no persistence; the other's record has been where it is all the time.
    let (guard, outages) = until_acquired(&mut second).await;
    assert_eq!((guard.attempt(), outages), (1, 0));
    assert!(guard.fencing_token() > lost.fencing_token());
    guard.done().await.unwrap();
    kept.done().await.unwrap();
    for stream in [&mut fourth, &mut fifth] {
        // No further event of this outage.
        let event = loop {
            match next(stream).await {
                LockEvent::Error(error) => panic!("{error:?}"),
                event if event.is_terminal() => break event,
                _ => {}
            }
        };
        assert!(matches!(event, LockEvent::Completed(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_cluster_that_lacks_a_slot_is_an_outage_until_it_has_it_again() {
    let cluster = Cluster::start().await;
    let worker = worker(&cluster, "a").await;
    let client = cluster.node(0).client().await;
    assert_eq!(owner(&client, "job").await, 0);
    // Another one, of the node that has the key: no node serves any key then.
    command(&client, [b"CLUSTER", b"DELSLOTS", b"0"]).await;
    let is = async |state| text(&client, [b"CLUSTER", b"INFO"]).await.contains(state);
    until(async || is("cluster_state:fail").await).await;
    let mut stream = worker.acquire();
    let said = refusal(&mut stream).await;
    assert!(said.starts_with("CLUSTERDOWN"), "{said}");
    command(&client, [b"CLUSTER", b"ADDSLOTS", b"0"]).await;
    let (guard, outages) = until_acquired(&mut stream).await;
    assert_eq!((guard.attempt(), outages), (1, 0));
    guard.done().await.unwrap();
}
