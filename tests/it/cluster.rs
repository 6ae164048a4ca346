//! A real cluster of three masters.

use futures::future::join_all;
use redis_locking_worker::{LockEvent, LockingWorker};
use testkit::{Cluster, PATIENCE, acquired, end, locked, race};

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
