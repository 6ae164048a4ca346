//! A real cluster of three masters.

mod common;

use common::{Cluster, PATIENCE, acquired, command, end, locked, race};
use fred::types::Value;
use futures::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis_locking_worker::{Key, LockEvent, LockingWorker};

#[tokio::test]
async fn runs_on_every_node_hand_over_by_push() {
    let cluster = Cluster::start().await;
    let build = async |label: &str| {
        let builder = LockingWorker::builder("unused")
            .url(cluster.url())
            .label(label);
        builder
            .lock_timeout(std::time::Duration::from_secs(3_600))
            .build()
            .await
            .unwrap()
    };
    let (a, b) = (build("a").await, build("b").await);
    let keys = (0..30u8).map(|n| match n % 3 {
        0 => format!("job-{n}").into_bytes(),
        1 => format!("tenant-{n}:{{tag-{n}}}:job").into_bytes(),
        _ => vec![0xff, n, b'\n'],
    });
    let runs = keys.map(|key| {
        let (a, b) = (a.with_key(&key).unwrap(), b.with_key(&key).unwrap());
        tokio::spawn(async move {
            let (_first, guard, mut second) = race(&a, &b).await;
            let mut third = a.acquire();
            locked(&mut third).await;
            drop(guard);
            let guard = acquired(&mut second).await;
            assert_eq!((guard.attempt(), guard.key().as_bytes()), (2, &key[..]));
            guard.done_with(key.clone()).await.unwrap();
            match end(&mut third).await {
                LockEvent::Completed(completed) => assert_eq!(completed.result, key),
                other => panic!("{other:?}"),
            }
        })
    });
    for run in tokio::time::timeout(PATIENCE, join_all(runs))
        .await
        .expect("by push")
    {
        run.unwrap();
    }
}

#[tokio::test]
async fn everything_of_a_key_lies_in_its_slot() {
    let cluster = Cluster::start().await;
    let client = cluster.node(0).client().await;
    let runtime = tokio::runtime::Handle::current();
    let check = move || {
        let config = Config {
            cases: 300,
            failure_persistence: None,
            ..Config::default()
        };
        let bytes = proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(b"{}ab".to_vec())],
            1..12,
        );
        TestRunner::new(config).run(&bytes, |bytes| {
            let Ok(key) = Key::new(&bytes) else {
                prop_assert!(bytes.contains(&b'}'), "only those with a brace are refused");
                return Ok(());
            };
            let slots = key
                .server_names()
                .map(|name| runtime.block_on(command(&client, [b"CLUSTER", b"KEYSLOT", name])));
            prop_assert_eq!(&slots[0], &slots[1]);
            prop_assert!(matches!(slots[0], Value::Integer(_)));
            Ok(())
        })
    };
    tokio::task::spawn_blocking(check).await.unwrap().unwrap();
}
