//! Keys of any bytes in a cluster.

use fred::types::Value;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis_locking_worker::Key;
use testkit::{Cluster, command};

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
