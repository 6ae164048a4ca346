//! Requests that are pending together travel in one call of a script; each is carried out by itself.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use redis_locking_worker::internals::{Op, Outcome, Pace, RedisStore, Reply, State, Store};
use redis_locking_worker::{Error, Key, LockEvent, LockingWorker};
use testkit::bench::{claim, claim_with, settle, token, withdraw};
use testkit::{Cluster, Server, acquired, command, end};

const RETENTION: u64 = 60_000;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn store(server: &Server) -> RedisStore {
    let client = server.client().await;
    RedisStore::with_client(client, None, Pace::default())
        .await
        .unwrap()
}

async fn all(store: &RedisStore, asked: &[(Key, Op)]) -> Vec<Result<Reply, Error>> {
    let asked: Vec<(&Key, &Op)> = asked.iter().map(|(key, op)| (key, op)).collect();
    store.apply_all(&asked).await
}

fn fence(reply: &Result<Reply, Error>) -> u64 {
    let reply = reply.as_ref().unwrap();
    reply.record().unwrap().fence
}

fn is_held(reply: &Result<Reply, Error>) -> bool {
    let reply = reply.as_ref().unwrap();
    reply.ok && reply.record().unwrap().state == State::Held
}

/// So many keys of one worker at once, up to their guards and to their ends.
async fn at_once(worker: &LockingWorker, keys: usize) {
    let streams = (0..keys).map(|nth| worker.with_key(format!("job:{nth}")).unwrap().acquire());
    let mut streams: Vec<_> = streams.collect();
    let guards = join_all(streams.iter_mut().map(acquired)).await;
    let done = join_all(guards.into_iter().map(|guard| guard.done())).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    for stream in &mut streams {
        assert!(matches!(end(stream).await, LockEvent::Completed(_)));
    }
}

#[tokio::test]
async fn what_is_asked_at_once_travels_together() {
    let server = Server::start();
    let worker = server.builder("job").build().await.unwrap();
    // Warm: the first call of a script is two.
    let warm = worker.with_key("warm").unwrap();
    acquired(&mut warm.acquire()).await.done().await.unwrap();
    let mut monitor = server.monitor();
    at_once(&worker, 200).await;
    let commands = monitor.commands();
    assert!(
        commands.iter().all(|name| name == "EVALSHA"),
        "{commands:?}"
    );
    // Two calls for all claims and two for all completions, if all 200 are asked in one turn.
    assert!(
        commands.len() <= 16,
        "{} calls for 400 requests",
        commands.len()
    );
}

#[tokio::test]
async fn in_a_cluster_each_slot_has_its_own_calls() {
    let cluster = Cluster::start().await;
    let worker = LockingWorker::builder("job").url(cluster.url());
    let worker = worker.build().await.unwrap();
    // Other slots: every key is a call of its own.
    at_once(&worker, 200).await;
    // One slot: they travel together.
    let mut monitors: Vec<_> = (0..3).map(|nth| cluster.node(nth).monitor()).collect();
    let names = (0..100).map(|nth| format!("{{one}}:{nth}"));
    let streams = names.map(|name| worker.with_key(name).unwrap().acquire());
    let mut streams: Vec<_> = streams.collect();
    join_all(streams.iter_mut().map(acquired)).await;
    let calls = monitors.iter_mut().map(|monitor| monitor.commands().len());
    let calls: usize = calls.sum();
    assert!(
        calls <= 20,
        "{calls} calls for 100 claims and as many failures"
    );
}

#[tokio::test]
async fn answers_are_in_the_order_of_the_questions() {
    let server = Server::start();
    let store = store(&server).await;
    let first = all(&store, &[(key("a"), claim(1)), (key("b"), claim(2))]).await;
    let asked = [
        // A claim with terms of its own, and one that waits.
        (key("c"), claim_with(3, 7, RETENTION)),
        (
            key("a"),
            settle(fence(&first[0]), Outcome::Done("1".into())),
        ),
        (key("d"), claim(4)),
        (key("b"), claim(5)),
        (key("e"), withdraw(6)),
        (key("f"), Op::Inspect),
    ];
    let answers = all(&store, &asked).await;
    assert!(is_held(&answers[0]) && is_held(&answers[2]));
    let record = |nth: usize| answers[nth].as_ref().unwrap().record();
    let bounds = [0, 2].map(|nth| record(nth).unwrap().max_attempts);
    assert_eq!(bounds, [7, 3], "each has its own terms");
    assert_eq!(record(1).unwrap().result, "1");
    assert_eq!(record(2).unwrap().owner, Some(token(4)));
    assert_eq!(answers[3].as_ref().unwrap().position, Some(0));
    assert_eq!(record(3).unwrap().owner, Some(token(2)));
    assert!(!answers[4].as_ref().unwrap().ok && record(4).is_none());
    assert!(answers[5].as_ref().unwrap().ok && record(5).is_none());
}

#[tokio::test]
async fn what_makes_room_comes_before_what_wants_it() {
    let server = Server::start();
    let store = store(&server).await;
    // Warm: the first call of a script is two, and the second of them comes behind all others.
    let warm = [(key("warm"), withdraw(1)), (key("a"), claim(1))];
    let first = all(&store, &warm).await.remove(1);
    // In the order in which a stream that is dropped, and another that is polled, ask.
    let asked = [(key("a"), withdraw(1)), (key("a"), claim(2))];
    let answers = all(&store, &asked).await;
    assert!(is_held(&answers[1]), "{answers:?}");
    assert!(fence(&answers[1]) > fence(&first));
}

#[tokio::test]
async fn a_key_in_other_use_is_nobody_elses_error() {
    let server = Server::start();
    let client = server.client().await;
    command(&client, [b"SADD", b"set", b"x"]).await;
    command(&client, [b"SET", b"text", b"lw9 held"]).await;
    let store = store(&server).await;
    let names = ["a", "set", "b", "text", "c"];
    let claims = names.map(|name| (key(name), claim(1)));
    let answers = all(&store, &claims).await;
    assert!([0, 2, 4].into_iter().all(|nth| is_held(&answers[nth])));
    assert!(matches!(&answers[1], Err(Error::WrongType { key }) if *key == self::key("set")));
    assert!(matches!(&answers[3], Err(Error::UnknownFormat { found, .. }) if found == "lw9"));

    let fences: Vec<u64> = [0, 2, 4].map(|nth| fence(&answers[nth])).into();
    let done = |name, nth: usize| (key(name), settle(fences[nth], Outcome::Done(Bytes::new())));
    let other = (key("set"), settle(1, Outcome::Done(Bytes::new())));
    // Warm: the first call of a script is two.
    all(
        &store,
        &[(key("warm"), settle(1, Outcome::Done(Bytes::new())))],
    )
    .await;
    let mut monitor = server.monitor();
    let ended = all(&store, &[done("a", 0), other, done("b", 1), done("c", 2)]).await;
    assert_eq!(monitor.commands(), ["EVALSHA"], "nor anybody else's call");
    assert!(
        matches!(ended[1], Err(Error::WrongType { .. })),
        "{ended:?}"
    );
    assert!(
        [0, 2, 3]
            .into_iter()
            .all(|nth| ended[nth].as_ref().unwrap().ok)
    );
}

#[tokio::test]
async fn a_key_without_permission_is_nobody_elses_error() {
    let server = Server::start();
    let client = server.client().await;
    let rules: [&[u8]; 8] = [
        b"ACL",
        b"SETUSER",
        b"default",
        b"resetkeys",
        b"~job:*",
        b"~{job:*",
        b"&*",
        b"+@all",
    ];
    let store = store(&server).await;
    command(&client, rules).await;
    let names = ["job:1", "other", "job:2"];
    let claims = names.map(|name| (key(name), claim(1)));
    let answers = all(&store, &claims).await;
    assert!(is_held(&answers[0]) && is_held(&answers[2]), "{answers:?}");
    match &answers[1] {
        Err(Error::Refused { key, source }) => {
            assert_eq!(*key, self::key("other"));
            assert!(testkit::details(source).starts_with("NOPERM"), "{source}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn long_answers_travel_apart() {
    let server = Server::start();
    let store = store(&server).await;
    let names: Vec<Key> = (0..8).map(|nth| key(&format!("job:{nth}"))).collect();
    let claims: Vec<_> = names.iter().map(|key| (key.clone(), claim(1))).collect();
    let held = all(&store, &claims).await;
    let result = Bytes::from(vec![b'x'; 100_000]);
    let ends: Vec<(Key, Op)> = names
        .iter()
        .zip(&held)
        .map(|(key, held)| {
            (
                key.clone(),
                settle(fence(held), Outcome::Done(result.clone())),
            )
        })
        .collect();
    // Warm: the first call of a script is two.
    all(
        &store,
        &[(key("warm"), settle(1, Outcome::Done(Bytes::new())))],
    )
    .await;
    let mut monitor = server.monitor();
    let answers = all(&store, &ends).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap().record().unwrap().result == result)
    );
    // Nobody else is served while one of them is: it answers with so much, and leaves the rest undone.
    assert_eq!(monitor.commands().len(), 3, "three, three and two");
}

#[tokio::test]
async fn forgotten_scripts_are_taught_again() {
    let server = Server::start();
    let store = store(&server).await;
    let names: Vec<Arc<str>> = (0..5).map(|nth| format!("job:{nth}").into()).collect();
    for round in 0..2 {
        command(&server.client().await, [b"SCRIPT", b"FLUSH"]).await;
        let claims: Vec<_> = names.iter().map(|name| (key(name), claim(round))).collect();
        let answers = all(&store, &claims).await;
        let first = |reply: &Result<Reply, Error>| {
            reply.as_ref().unwrap().record().unwrap().owner == Some(token(0))
        };
        assert!(answers.iter().all(first), "{answers:?}");
    }
}
