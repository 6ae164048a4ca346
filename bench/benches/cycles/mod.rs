//! Acquire and done in turns: ours, and other ways to do as much or less.
#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::{Expiration, SetOptions};
use futures::StreamExt;
use futures::future::join_all;
use redis_locking_worker::{LockEvent, LockingWorker};
use rslock::LockManager;
use tokio::runtime::Runtime;

use crate::report::{micros, percentile};
use testkit::Server;

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
pub enum Contender {
    Ours(LockingWorker),
    Rslock(LockManager),
    /// `SET NX PX`, then a script that compares and deletes.
    Raw(Client, String),
    /// The least that waiting for two answers takes, one at a time. With many in flight it is no bound: the client
    /// library flushes after each.
    Pings(Client),
}

impl Contender {
    pub const NAMES: [&str; 4] = ["ours", "rslock", "raw fred", "PING x 2"];

    pub async fn ours(server: &Server) -> Self {
        let worker = LockingWorker::builder("warm-up")
            .url(server.url())
            .lock_timeout(LEASE)
            .retention(Duration::from_millis(200));
        Contender::Ours(worker.build().await.unwrap())
    }

    pub async fn raw(server: &Server) -> Self {
        let client = server.client().await;
        let sha = client.script_load(COMPARE_AND_DELETE).await.unwrap();
        Contender::Raw(client, sha)
    }

    pub async fn all(server: &Server) -> [Self; 4] {
        [
            Self::ours(server).await,
            Contender::Rslock(LockManager::new(vec![server.url()])),
            Self::raw(server).await,
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

/// What one contender did in its slices: cycles/s, and the median of each slice's cycles in µs.
#[derive(Clone, Default)]
pub struct Seen {
    pub rates: Vec<f64>,
    pub times: Vec<f64>,
}

/// Lets all contenders work in turns, for a slice of time each, with so many cycles in flight.
pub fn take_turns<const N: usize>(
    runtime: &Runtime,
    contenders: &[Contender; N],
    in_flight: usize,
    slices: usize,
    time: Duration,
) -> [Seen; N] {
    let mut seen = [const {
        Seen {
            rates: Vec::new(),
            times: Vec::new(),
        }
    }; N];
    // One slice each to warm up, which does not count.
    for slice in 0..=slices {
        for (contender, seen) in contenders.iter().zip(&mut seen) {
            let measured = runtime.spawn({
                let contender = contender.clone();
                async move { contender.slice(in_flight, time).await }
            });
            let (rate, mut each) = runtime.block_on(measured).unwrap();
            if slice > 0 {
                seen.rates.push(rate);
                seen.times.push(percentile(&mut each, 0.5));
            }
        }
    }
    seen
}
