//! A master found through a sentinel.

use fred::types::Value;
use redis_locking_worker::{BuildError, LockEvent, LockingWorker};
use testkit::{Sentinel, acquired, command, end, race};

#[tokio::test]
async fn a_run_takes_place_on_the_master() {
    let sentinel = Sentinel::start();
    let build = || LockingWorker::builder("job").url(sentinel.url()).build();
    let (a, b) = (build().await.unwrap(), build().await.unwrap());
    let (_first, guard, mut second) = race(&a, &b).await;
    drop(guard);
    acquired(&mut second).await.done().await.unwrap();
    assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
    let client = sentinel.master.client().await;
    assert_eq!(command(&client, [b"EXISTS", b"job"]).await, Value::from(1));
}

#[tokio::test]
async fn an_unknown_service_is_an_error_at_build() {
    let sentinel = Sentinel::start();
    let url = sentinel.url().replace("=main", "=other");
    let error = LockingWorker::builder("job")
        .url(url)
        .build()
        .await
        .unwrap_err();
    assert!(matches!(error, BuildError::Connect { .. }), "{error:?}");
}
