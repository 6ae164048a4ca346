//! Two environments on one server: the same keys in another database.

use std::sync::Arc;
use std::time::Duration;

use super::chain;
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use futures::StreamExt;
use redis_locking_worker::{BuildError, LockEvent, LockingWorker, WorkGuard};
use testkit::{Server, acquired, command, end, race, text, until};

const LEASE: Duration = Duration::from_secs(10);

async fn in_database(server: &Server, database: u8, label: &str) -> LockingWorker {
    let url = format!("{}/{database}", server.url());
    let builder = LockingWorker::builder("nightly").url(url).label(label);
    builder.lock_timeout(LEASE).build().await.unwrap()
}

async fn select(client: &Client, database: u8) {
    let number = database.to_string();
    command(client, [b"SELECT", number.as_bytes()]).await;
}

#[tokio::test]
async fn runs_in_two_databases_do_not_hear_of_each_other() {
    let server = Server::start();
    for (here, there) in [(0, 1), (1, 0), (1, 10)] {
        let client = server.client().await;
        command(&client, [b"FLUSHALL"]).await;
        select(&client, here).await;
        let (a, b) = (
            in_database(&server, here, "a").await,
            in_database(&server, here, "b").await,
        );
        let (_first, guard, mut second) = race(&a, &b).await;
        let worker = in_database(&server, here, "c").await;
        let work = async |_: Arc<WorkGuard>| Ok::<_, &str>("by c");
        let once = tokio::spawn(async move { worker.once(work).await });
        let waiting = async || command(&client, [b"ZCARD", b"{nightly}:line"]).await;
        until(async || waiting().await == Value::from(2)).await;
        let mut watched = b.watch();
        let seen = watched.next().await.unwrap().unwrap();
        assert_eq!(seen.holder, "a");

        // A whole life of the key over there, with a hand-off and a clear.
        let staging = in_database(&server, there, "staging").await;
        let (_third, other, mut fourth) = race(&staging, &staging).await;
        other.fail("over there").await.unwrap();
        acquired(&mut fourth).await.hand_off().await.unwrap();
        staging.clear().await.unwrap();
        let guard_there = acquired(&mut staging.acquire()).await;
        guard_there.done_with("theirs").await.unwrap();

        // This comes behind all of that on the connections that hear.
        guard.checkpoint("ours").await.unwrap();
        let seen = watched.next().await.unwrap().unwrap();
        assert_eq!((&*seen.holder, seen.attempt), ("a", 1), "{seen:?}");
        assert!(guard.is_valid());
        guard.fail("no luck").await.unwrap();
        let guard = acquired(&mut second).await;
        assert_eq!(guard.attempt(), 2);
        guard.done_with("ours").await.unwrap();
        match end(&mut second).await {
            LockEvent::Completed(completed) => assert_eq!(completed.result, "ours"),
            other => panic!("{other:?}"),
        }
        assert_eq!(once.await.unwrap().unwrap(), "ours");
    }
}

/// A message of another run that would end everything, if it were believed.
fn forged() -> String {
    let lasts = "at=9000000000000000 until=9000000000000 retention=10000 fence=9000000000000000";
    format!(
        "lw1 done {lasts} line=0 attempt=1/5 renewal=0 owner=- last=- previous=0:- sizes=6,0,0,0\nforged\n\n\n\nforged"
    )
}

#[tokio::test]
async fn a_message_of_another_database_is_not_believed() {
    let server = Server::start();
    let client = server.client().await;
    for (database, ours) in [(0_u8, "{nightly}:line"), (1, "{nightly}:line:1")] {
        command(&client, [b"FLUSHALL"]).await;
        let (a, b) = (
            in_database(&server, database, "a").await,
            in_database(&server, database, "b").await,
        );
        let (_first, guard, mut second) = race(&a, &b).await;
        let publish = async |channel: &str| {
            let message = forged();
            let command_ = [&b"SPUBLISH"[..], channel.as_bytes(), message.as_bytes()];
            command(&client, command_).await.as_u64().unwrap()
        };
        let others = ["{nightly}:line", "{nightly}:line:1", "{nightly}:line:10"];
        for channel in others.into_iter().filter(|channel| *channel != ours) {
            assert_eq!(publish(channel).await, 0, "{channel} has a subscriber");
        }
        guard.checkpoint("still ours").await.unwrap();
        assert!(guard.is_valid());
        // Where it is believed, and what the text would have done: the promise ends there.
        until(async || publish(ours).await > 0).await;
        match end(&mut second).await {
            LockEvent::Completed(completed) => assert_eq!(completed.holder, "forged"),
            other => panic!("{other:?}"),
        }
        drop(guard);
    }
}

#[tokio::test]
async fn a_client_that_selected_by_hand_is_refused() {
    let server = Server::start();
    let client = server.client().await;
    select(&client, 3).await;
    match LockingWorker::builder("nightly")
        .client(client.clone())
        .build()
        .await
    {
        Err(error @ BuildError::Database { .. }) => {
            let said = chain(&error);
            assert!(
                said.contains("database 3") && said.contains("says 0"),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    select(&client, 0).await;
    let worker = LockingWorker::builder("nightly")
        .client(client.clone())
        .build()
        .await;
    worker.unwrap().close().await;
    // One that may not be asked is believed.
    let rules = ["SETUSER", "default", "-client|info"];
    let acl = CustomCommand::new_static("ACL", None, false);
    let _: Value = client.custom(acl, rules.to_vec()).await.unwrap();
    select(&client, 3).await;
    let worker = LockingWorker::builder("nightly")
        .client(client.clone())
        .build()
        .await;
    worker.unwrap().close().await;
    assert_eq!(text(&client, [b"PING"]).await, "PONG");
}
