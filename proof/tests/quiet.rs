//! What the client library logs is for the user to read: a worker that comes and goes leaves no
//! warning there.

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use redis_locking_worker::LockEvent;
use testkit::{Server, acquired, end};

struct Kept(Mutex<Vec<String>>);

static KEPT: Kept = Kept(Mutex::new(Vec::new()));

impl Log for Kept {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_and_goes_logs_nothing() {
    log::set_logger(&KEPT).unwrap();
    log::set_max_level(LevelFilter::Warn);
    let server = Server::start();
    for nth in 0..300 {
        let worker = server.builder(&format!("job:{nth}")).build().await.unwrap();
        let mut stream = worker.acquire();
        acquired(&mut stream).await.done().await.unwrap();
        assert!(matches!(end(&mut stream).await, LockEvent::Completed(_)));
        drop(stream);
        worker.close().await;
    }
    let kept = KEPT.0.lock().unwrap();
    assert!(
        kept.is_empty(),
        "{} warnings: {:?}",
        kept.len(),
        kept.first()
    );
}
