//! Scripts that run only while their guard holds the work.

use std::time::Duration;

use fred::error::ErrorKind;
use fred::types::Value;
use redis_locking_worker::{FencedError, LeaseLost, LockingWorker};
use testkit::{Cluster, Server, acquired, command, race};

const ADD: &str = "return redis.call('INCRBY', KEYS[1], ARGV[1])";

#[tokio::test]
async fn a_holder_writes_and_a_stale_one_is_refused() {
    let server = Server::start();
    let short = Duration::from_millis(300);
    let a = server.builder("job").label("a").lock_timeout(short);
    let b = server.builder("job").label("b");
    let (a, b) = (a.build().await.unwrap(), b.build().await.unwrap());
    let (_first, stale, mut second) = race(&a, &b).await;
    let total: i64 = stale.fenced(ADD, "total", 7).await.unwrap();
    assert_eq!(total, 7);
    let guard = acquired(&mut second).await;
    match stale.fenced::<i64, _, _>(ADD, "total", 100).await {
        Err(FencedError::Lost(LeaseLost::TakenOver { holder, attempt })) => {
            assert_eq!((&holder[..], attempt), ("b", 2));
        }
        other => panic!("{other:?}"),
    }
    let total: i64 = guard.fenced(ADD, "total", 1).await.unwrap();
    assert_eq!(total, 8);
    guard.done().await.unwrap();
    let settled = stale.fenced::<i64, _, _>(ADD, "total", 100).await;
    assert!(
        matches!(settled, Err(FencedError::Lost(LeaseLost::TakenOver { .. }))),
        "{settled:?}"
    );
    let total = command(&server.client().await, [b"GET", b"total"]).await;
    assert_eq!(total.as_i64(), Some(8));
}

#[tokio::test]
async fn past_its_lease_a_holder_writes_as_long_as_nobody_took_over() {
    let server = Server::start();
    let builder = server
        .builder("job")
        .lock_timeout(Duration::from_millis(50));
    let worker = builder.build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    guard.lost().await;
    assert_eq!(guard.fenced::<i64, _, _>(ADD, "n", 1).await.unwrap(), 1);
    command(&server.client().await, [b"DEL", b"job"]).await;
    let gone = guard.fenced::<i64, _, _>(ADD, "n", 1).await;
    assert!(
        matches!(gone, Err(FencedError::Lost(LeaseLost::RecordGone))),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_script_sees_what_it_would_see_alone() {
    let server = Server::start();
    let worker = server.builder("job").build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let script =
        "#!lua flags=no-writes\nreturn { #KEYS, #ARGV, KEYS[1], KEYS[2], ARGV[1], ARGV[2] }";
    let all: (i64, i64, String, String, String, String) = guard
        .fenced(script, vec!["k1", "k2"], vec!["a1", "a2"])
        .await
        .unwrap();
    let texts = ["k1", "k2", "a1", "a2"].map(str::to_owned);
    assert_eq!((all.0, all.1), (2, 2));
    assert_eq!([all.2, all.3, all.4, all.5], texts);
    let none: Vec<String> = guard.fenced("return KEYS", None, ()).await.unwrap();
    assert!(none.is_empty());
    // Many: more than Lua's stack holds.
    let many: Vec<i64> = (0..20_000).collect();
    let count: i64 = guard.fenced("return #ARGV", None, many).await.unwrap();
    assert_eq!(count, 20_000);
    // A write is what its flags say it never does.
    let script = "#!lua flags=no-writes\nreturn redis.call('SET', KEYS[1], 1)";
    let refused = guard.fenced::<(), _, _>(script, "k1", ()).await;
    assert!(
        matches!(refused, Err(FencedError::Script(_))),
        "{refused:?}"
    );
    guard.done().await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_script_is_said() {
    let server = Server::start();
    let worker = server.builder("job").build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    match guard.fenced::<(), _, _>("retrun 1", None, ()).await {
        Err(FencedError::Script(error)) => {
            assert!(
                testkit::details(&error).contains("Error compiling script"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    match guard.fenced::<i64, _, _>("return 'seven'", None, ()).await {
        Err(FencedError::Type(error)) => {
            assert_eq!(*testkit::client_error(&error).kind(), ErrorKind::Parse);
        }
        other => panic!("{other:?}"),
    }
    for wrong in [
        vec![Value::from(1), Value::Null],
        vec![Value::Array(vec![])],
    ] {
        let refused = guard.fenced::<(), _, _>("return 1", None, wrong).await;
        assert!(matches!(refused, Err(FencedError::Type(_))), "{refused:?}");
    }
    guard.checkpoint("the connection stands").await.unwrap();
    // The server went away: nobody can say whether it ran.
    drop(server);
    let lost = guard.fenced::<i64, _, _>(ADD, "n", 1).await;
    assert!(matches!(lost, Err(FencedError::Unknown(_))), "{lost:?}");
}

#[tokio::test]
async fn in_a_cluster_all_keys_share_the_locks_slot() {
    let cluster = Cluster::start().await;
    let builder = LockingWorker::builder("job:{7}").url(cluster.url());
    let worker = builder.build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let total: i64 = guard.fenced(ADD, "total:{7}", 3).await.unwrap();
    assert_eq!(total, 3);
    let error = guard
        .fenced::<i64, _, _>(ADD, vec!["total:{7}", "total"], 3)
        .await;
    let error = error.unwrap_err();
    assert!(matches!(error, FencedError::OtherSlot { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        r#""total" is in slot 2117 of the cluster, the lock in slot 1716"#
    );
    guard.done().await.unwrap();
}
