//! A case is played again and again, and what it is about is dropped one moment later each time: before
//! its first poll, after it, after something else has run, after its second poll, and so on until it
//! completes. Each time it is on a key of its own, and nothing may be left behind.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use fred::clients::Client;
use futures::future::poll_fn;
use redis_locking_worker::internals::{MemoryStore, Op, Pace, Record, RedisStore, Reply, Store};
use redis_locking_worker::{Acquire, Builder, Key, LockEvent, LockingWorker, Memory, WorkGuard};
use tokio::runtime::{Builder as Runtimes, Handle};
use tokio::task::yield_now;

use testkit::{PATIENCE, Server, acquired, command, next};

/// A lease that no test outlives: what is left behind would stay.
pub const LONG: Duration = Duration::from_secs(3_600);

/// More moments than anything has: it does not end.
const ENDLESS: usize = 1_000;

/// Runs the cases that are named on both stores. With each is the least number of moments at which it is to
/// be dropped, and all that may be left of its record, each of which has to be seen.
macro_rules! on_both {
    ($($case:ident($least:literal): [$($left:literal),*],)*) => {
        mod memory {
            $(#[test]
            fn $case() {
                $crate::cancellation::sweep::with_memory($least, &[$($left),*], super::$case);
            })*
        }
        $crate::cancellation::sweep::on_a_server!($($case($least): [$($left),*],)*);
    };
}
pub(crate) use on_both;

macro_rules! on_a_server {
    ($($case:ident($least:literal): [$($left:literal),*],)*) => {
        mod redis {
            $(#[test]
            fn $case() {
                $crate::cancellation::sweep::with_server($least, &[$($left),*], super::$case);
            })*
        }
    };
}
pub(crate) use on_a_server;

/// On the paused clock, which must not move: nobody waits for the end of a lease, or of a window.
pub fn with_memory(least: usize, ends: &[&str], case: impl AsyncFn(&Stage<'_>) -> String) {
    let mut runtime = runtime();
    let runtime = runtime.start_paused(true).build().unwrap();
    runtime.block_on(async {
        let memory = Memory::new();
        let store = MemoryStore::new(&memory);
        let began = tokio::time::Instant::now();
        sweep(&Place::Memory(memory, store), least, ends, case).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    });
}

pub fn with_server(least: usize, ends: &[&str], case: impl AsyncFn(&Stage<'_>) -> String) {
    runtime().build().unwrap().block_on(async {
        let server = Server::start();
        let client = server.client().await;
        let store = RedisStore::with_client(client.clone(), None, Pace::default())
            .await
            .unwrap();
        sweep(&Place::Server(server, client, store), least, ends, case).await;
    });
}

/// After each poll of another task it is our turn again, so that we see all that there is between.
fn runtime() -> Runtimes {
    let mut runtime = Runtimes::new_current_thread();
    runtime.enable_all().event_interval(1);
    runtime
}

async fn sweep(
    place: &Place,
    least: usize,
    ends: &[&str],
    case: impl AsyncFn(&Stage<'_>) -> String,
) {
    let other = place.builder("other").label("other").build().await.unwrap();
    let without = place.census().await;
    let worker = place.builder("job").build().await.unwrap();
    let with = place.census().await;
    let mut seen = BTreeSet::new();
    let mut moment = 0;
    loop {
        let key = format!("job-{moment}");
        let stage = Stage {
            place,
            worker: worker.with_key(&key).unwrap(),
            other: other.with_key(&key).unwrap(),
            moment,
            polls: Cell::new(0),
            completed: Cell::new(false),
        };
        seen.insert(case(&stage).await);
        stage.is_free().await;
        let left = place.until(async || place.census().await == with).await;
        left.unwrap_or_else(|()| panic!("something lives on, at moment {moment}"));
        if stage.completed.get() {
            break;
        }
        moment += 1;
        assert!(moment < ENDLESS, "it does not end");
    }
    // With a run that is still open, its task would not end, nor its connections.
    drop(worker);
    let left = place.until(async || place.census().await == without).await;
    left.expect("no run is open");
    println!("{moment} moments: {seen:?}");
    assert!(moment >= least, "only {moment} moments");
    assert!(seen.iter().eq(ends), "{seen:?}");
}

#[expect(clippy::large_enum_variant, reason = "there is one for each sweep")]
enum Place {
    Memory(Memory, MemoryStore),
    Server(Server, Client, RedisStore),
}

impl Place {
    fn builder(&self, key: &str) -> Builder {
        let builder = LockingWorker::builder(key);
        let builder = match self {
            Place::Memory(memory, _) => builder.in_memory(memory),
            Place::Server(server, ..) => builder.url(server.url()),
        };
        builder.lock_timeout(LONG).max_hold(3 * LONG)
    }

    /// Lets others run: one task, or until the server has answered what it was asked before.
    async fn turn(&self, nth: usize) {
        match self {
            Place::Server(_, client, _) if nth % 4 == 3 => {
                command(client, [b"PING"]).await;
            }
            _ => yield_now().await,
        }
    }

    /// How many tasks and connections there are.
    async fn census(&self) -> (usize, usize) {
        let connections = match self {
            Place::Memory(..) => 0,
            Place::Server(_, client, _) => {
                let list = command(client, [b"CLIENT", b"LIST"]).await;
                list.into_string().unwrap().lines().count()
            }
        };
        (Handle::current().metrics().num_alive_tasks(), connections)
    }

    async fn has_subscriptions(&self) -> bool {
        match self {
            Place::Memory(..) => false,
            Place::Server(_, client, _) => {
                let channels = command(client, [b"PUBSUB", b"SHARDCHANNELS"]).await;
                !channels.into_array().is_empty()
            }
        }
    }

    async fn inspect(&self, key: &Key) -> Reply {
        match self {
            Place::Memory(_, store) => store.apply(key, &Op::Inspect).await.unwrap(),
            Place::Server(_, _, store) => store.apply(key, &Op::Inspect).await.unwrap(),
        }
    }

    /// Like the others' `until`, but the paused clock stands still.
    async fn until(&self, mut holds: impl AsyncFnMut() -> bool) -> Result<(), ()> {
        let until = Instant::now() + PATIENCE;
        while !holds().await {
            if Instant::now() > until {
                return Err(());
            }
            yield_now().await;
        }
        Ok(())
    }
}

/// Where a case is played once.
pub struct Stage<'p> {
    place: &'p Place,
    /// The one that is looked at.
    pub worker: LockingWorker,
    /// With connections of its own, as in another process.
    pub other: LockingWorker,
    moment: usize,
    polls: Cell<usize>,
    completed: Cell<bool>,
}

impl Stage<'_> {
    pub fn builder(&self) -> Builder {
        let key = std::str::from_utf8(self.worker.key().as_bytes()).unwrap();
        self.place.builder(key)
    }

    /// A client of the server's.
    pub fn client(&self) -> &Client {
        match self.place {
            Place::Memory(..) => panic!("no server"),
            Place::Server(_, client, _) => client,
        }
    }

    pub async fn guard(&self) -> WorkGuard {
        acquired(&mut self.worker.acquire()).await
    }

    /// Whether it has been polled at all.
    pub fn is_begun(&self) -> bool {
        self.polls.get() > 0
    }

    /// Polls it until the moment has come, or it completes.
    pub async fn reach<F: Future>(&self, mut future: Pin<&mut F>) -> Option<F::Output> {
        for step in 0..self.moment {
            if step % 2 == 1 {
                self.place.turn(step / 2).await;
                continue;
            }
            self.polls.set(self.polls.get() + 1);
            let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
            if let Poll::Ready(output) = polled {
                self.completed.set(true);
                return Some(output);
            }
        }
        None
    }

    /// The same, and then drops it.
    pub async fn cut<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = Box::pin(future);
        self.reach(future.as_mut()).await
    }

    pub async fn record(&self) -> Option<Arc<Record>> {
        self.place.inspect(self.worker.key()).await.frame.record
    }

    /// The record's state and attempt, and how the attempt before ended. Nobody waits.
    pub async fn left(&self) -> String {
        self.worker.clone().close().await;
        self.other.clone().close().await;
        let Reply {
            frame, position, ..
        } = self.place.inspect(self.worker.key()).await;
        assert_eq!(position, Some(0), "in line, at moment {}", self.moment);
        let unsubscribed = async || !self.place.has_subscriptions().await;
        let unsubscribed = self.place.until(unsubscribed).await;
        unsubscribed.expect("no subscription");
        match frame.record {
            None => "nothing".to_owned(),
            Some(record) => {
                let last = record.previous.as_ref();
                let last = last.map_or_else(String::new, |last| format!(", {:?}", last.cause));
                format!("{:?} {}{last}", record.state, record.attempt)
            }
        }
    }

    /// Another one joins, and has the work or is told who has it.
    pub async fn next_in_line(&self) -> (Acquire, Option<WorkGuard>) {
        let mut stream = self.other.acquire();
        loop {
            match next(&mut stream).await {
                LockEvent::Acquired(guard) => return (stream, Some(guard)),
                LockEvent::Locked(_) => return (stream, None),
                LockEvent::Status(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The work is there for whoever comes, or its outcome.
    async fn is_free(&self) {
        let mut stream = self.other.acquire();
        loop {
            match next(&mut stream).await {
                LockEvent::Acquired(_) | LockEvent::Completed(_) | LockEvent::GaveUp(_) => {
                    break;
                }
                LockEvent::Status(_) => {}
                other => panic!("{other:?}, at moment {}", self.moment),
            }
        }
        drop(stream);
        self.other.clone().close().await;
    }
}

/// Pends so many times.
pub async fn pends(times: usize) {
    for _ in 0..times {
        yield_now().await;
    }
}
