//! A server on a unix socket: `cargo test --features unix-sockets --test unix_socket`.

use redis_locking_worker::{LockEvent, LockingWorker};
use testkit::{Server, acquired, end, race};

#[tokio::test]
async fn a_run_takes_place_over_a_unix_socket() {
    let folder = tempfile::TempDir::new().unwrap();
    let socket = folder.path().join("redis.sock");
    let _server = Server::start_with(&["--unixsocket", socket.to_str().unwrap()]);
    let url = format!("redis+unix://{}", socket.display());
    let worker = LockingWorker::builder("job")
        .url(url)
        .build()
        .await
        .unwrap();
    let (_first, guard, mut second) = race(&worker, &worker).await;
    drop(guard);
    acquired(&mut second).await.done().await.unwrap();
    assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
}
