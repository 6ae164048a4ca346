//! Acquire and done, on a key that nobody else wants: `cargo bench --bench cycle -- --quick`.
//!
//! All contenders take turns, in one process and on one server, for a slice of time each; what counts
//! is the median of a contender's slices. Each cycle has a key of its own.

#[path = "../tests/common/mod.rs"]
mod common;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::Server;
use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::{Expiration, SetOptions};
use futures::StreamExt;
use futures::future::join_all;
use redis_locking_worker::{LockEvent, LockingWorker};
use report::{Options, Row, median, micros, percentile, print, runtimes};
use rslock::LockManager;

/// Where each cycle's key comes from.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Keys are forgotten soon, so that all contenders work on a server of the same size.
const LEASE: Duration = Duration::from_secs(1);

const COMPARE_AND_DELETE: &str = "
    if redis.call('GET', KEYS[1]) == ARGV[1] then
        return redis.call('DEL', KEYS[1])
    end
    return 0";

#[derive(Clone)]
enum Contender {
    Ours(LockingWorker),
    Rslock(LockManager),
    /// `SET NX PX`, then a script that compares and deletes.
    Raw(Client, String),
    /// What nobody can beat who waits for two answers.
    Pings(Client),
}

impl Contender {
    const NAMES: [&str; 4] = ["ours", "rslock", "raw fred", "PING x 2"];

    async fn all(server: &Server) -> Vec<Self> {
        let worker = LockingWorker::builder("warm-up")
            .url(server.url())
            .lock_timeout(LEASE)
            .retention(Duration::from_millis(200));
        let client = server.client().await;
        let sha: String = client.script_load(COMPARE_AND_DELETE).await.unwrap();
        vec![
            Contender::Ours(worker.build().await.unwrap()),
            Contender::Rslock(LockManager::new(vec![server.url()])),
            Contender::Raw(client, sha),
            Contender::Pings(server.client().await),
        ]
    }

    async fn cycle(&self) {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        match self {
            Contender::Ours(worker) => {
                let worker = worker.with_key(format!("ours:{nth}")).unwrap();
                let mut events = worker.acquire();
                match events.next().await {
                    Some(LockEvent::Acquired(guard)) => guard.done().await.unwrap(),
                    other => panic!("{other:?}"),
                }
            }
            Contender::Rslock(manager) => {
                let lock = manager
                    .lock(format!("rslock:{nth}").as_str(), LEASE)
                    .await
                    .unwrap();
                manager.unlock(&lock).await;
            }
            Contender::Raw(client, sha) => {
                let (key, token) = (format!("raw:{nth}"), rand::random::<u128>().to_string());
                let px = Some(Expiration::PX(LEASE.as_millis() as i64));
                let set = client.set(&key, &token, px, Some(SetOptions::NX), false);
                let set: Option<String> = set.await.unwrap();
                assert!(set.is_some());
                let deleted: u64 = client.evalsha(sha, key, token).await.unwrap();
                assert_eq!(deleted, 1);
            }
            Contender::Pings(client) => {
                for _ in 0..2 {
                    let _: String = client.ping(None).await.unwrap();
                }
            }
        }
    }

    /// Cycles/s, and each cycle's time in µs.
    async fn slice(&self, in_flight: usize, time: Duration) -> (f64, Vec<f64>) {
        let (began, contender) = (Instant::now(), Arc::new(self.clone()));
        let tasks = (0..in_flight).map(|_| {
            let contender = contender.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while began.elapsed() < time {
                    let began = Instant::now();
                    contender.cycle().await;
                    times.push(micros(began.elapsed()));
                }
                times
            })
        });
        let times = join_all(tasks).await;
        let took = began.elapsed().as_secs_f64();
        let times: Vec<f64> = times.into_iter().flat_map(Result::unwrap).collect();
        (times.len() as f64 / took, times)
    }
}

fn main() {
    let options = Options::parse();
    let slices = options.pick(7, 25);
    let mut rows = Vec::new();
    for (flavour, runtime) in runtimes() {
        let server = Server::start();
        let contenders = runtime.block_on(Contender::all(&server));
        for in_flight in [1, 64, 1024] {
            let time = Duration::from_millis(options.pick(150, 400));
            let mut rates = vec![Vec::new(); contenders.len()];
            let mut times = vec![Vec::new(); contenders.len()];
            // One slice each to warm up, which does not count.
            for slice in 0..=slices {
                for (nth, contender) in contenders.iter().enumerate() {
                    let measured = runtime.spawn({
                        let contender = contender.clone();
                        async move { contender.slice(in_flight, time).await }
                    });
                    let (rate, mut each) = runtime.block_on(measured).unwrap();
                    if slice > 0 {
                        rates[nth].push(rate);
                        times[nth].push(percentile(&mut each, 0.5));
                    }
                }
            }
            let rates: Vec<f64> = rates.into_iter().map(median).collect();
            let times: Vec<f64> = times.into_iter().map(median).collect();
            for (nth, name) in Contender::NAMES.iter().enumerate().skip(1) {
                let row = |unit, ours, theirs| Row {
                    bench: "cycle",
                    case: format!("{in_flight} in flight, {flavour}"),
                    peer: (*name).to_owned(),
                    unit,
                    ours,
                    theirs: Some(theirs),
                };
                rows.push(row("cycles/s", rates[0], rates[nth]));
                if in_flight == 1 {
                    rows.push(row("us, p50", times[0], times[nth]));
                }
            }
        }
    }
    print(&rows);
}
