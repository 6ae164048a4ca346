//! From the end of an attempt to the next worker's `Acquired`: `cargo bench --bench handoff -- --quick`.
//!
//! The attempt ends by `drop(guard)` or `guard.hand_off()`, with 1, 10 and 100 waiters, which are streams of
//! one process, or processes of their own. The floor is one publish to a subscriber of the same client
//! library. Ours and the floor take turns, one hand-off each; rslock's waiters, who poll the server all the
//! time, have their turn after each round of those.

mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Message;
use futures::StreamExt;
use futures::future::join;
use futures::stream::{BoxStream, SelectAll, select_all};
use redis_locking_worker::{LockEvent, LockingWorker, WorkGuard};
use report::{Options, Peer, Row, current_thread, micros, now, percentile, print, runtimes};
use rslock::LockManager;
use testkit::{PATIENCE, Server};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

const LEASE: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["--worker", url] = args[..] {
        return current_thread().block_on(worker_process(url));
    }
    let options = Options::parse();
    let mut rows = Vec::new();
    for waiters in [1, 10, 100] {
        for (flavour, runtime) in runtimes() {
            let measured = runtime.spawn(streams(options, waiters, flavour));
            rows.extend(runtime.block_on(measured).unwrap());
        }
        rows.extend(current_thread().block_on(processes(options, waiters)));
    }
    print(&rows);
}

/// Not measured, at the beginning of a round.
const WARM_UP: usize = 5;

/// How an attempt ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Drop,
    HandOff,
}

/// What was measured, in µs.
#[derive(Default)]
struct Times {
    drop: Vec<f64>,
    hand_off: Vec<f64>,
    floor: Vec<f64>,
    rslock: Vec<f64>,
}

async fn streams(options: Options, waiters: usize, flavour: &'static str) -> Vec<Row> {
    let server = Server::start();
    let mut ring = Ring::start(&server, waiters).await;
    let mut floor = Floor::start(&server).await;
    let mut times = Times::default();
    let each = options.pick(50, 200);
    for round in 0..=options.pick(3, 10) {
        let mut seen = Times::default();
        for _ in 0..WARM_UP {
            ring.hand_over(End::Drop).await;
            floor.publish().await;
        }
        for _ in 0..each {
            seen.drop.push(ring.hand_over(End::Drop).await);
            seen.hand_off.push(ring.hand_over(End::HandOff).await);
            seen.floor.push(floor.publish().await);
        }
        seen.rslock = rslock(&server, waiters, options.pick(5, 20)).await;
        // The first round is to warm up.
        if round > 0 {
            times.drop.extend(seen.drop);
            times.hand_off.extend(seen.hand_off);
            times.floor.extend(seen.floor);
            times.rslock.extend(seen.rslock);
        }
    }
    let case = format!("{waiters} waiting, {flavour}");
    rows(&case, times)
}

async fn processes(options: Options, waiters: usize) -> Vec<Row> {
    let server = Server::start();
    let mut fleet = Fleet::start(&server, waiters);
    let mut floor = Floor::start(&server).await;
    let mut times = Times::default();
    let each = options.pick(20, 100);
    for round in 0..=options.pick(2, 10) {
        let mut seen = Times::default();
        for _ in 0..WARM_UP {
            fleet.hand_over(End::Drop);
            floor.publish().await;
        }
        for _ in 0..each {
            seen.drop.push(fleet.hand_over(End::Drop));
            seen.hand_off.push(fleet.hand_over(End::HandOff));
            seen.floor.push(floor.publish().await);
        }
        if round > 0 {
            times.drop.extend(seen.drop);
            times.hand_off.extend(seen.hand_off);
            times.floor.extend(seen.floor);
        }
    }
    fleet.end();
    rows(&format!("{waiters} waiting, processes"), times)
}

/// A row for each point of the distributions, the peers' beside ours.
fn rows(case: &str, mut times: Times) -> Vec<Row> {
    let mut rows = Vec::new();
    for (end, ours) in [("drop", &mut times.drop), ("hand_off", &mut times.hand_off)] {
        let peers = [
            ("push floor", &mut times.floor),
            ("rslock", &mut times.rslock),
        ];
        for (peer, theirs) in peers.into_iter().filter(|(_, theirs)| !theirs.is_empty()) {
            for (unit, part) in report::PARTS {
                rows.push(Row {
                    bench: "handoff",
                    case: format!("{end}, {case}"),
                    peer: peer.to_owned(),
                    unit,
                    ours: percentile(ours, part),
                    theirs: Some(percentile(theirs, part)),
                });
            }
        }
    }
    rows
}

/// Streams of one worker that take the work from each other, all driven by one task.
struct Ring {
    streams: SelectAll<BoxStream<'static, (usize, LockEvent)>>,
    /// Which of them holds it.
    holder: Option<(usize, WorkGuard)>,
}

async fn worker(url: &str) -> LockingWorker {
    let builder = LockingWorker::builder("handoff").url(url).rejoin(true);
    let builder = builder.lock_timeout(LEASE).max_attempts(u32::MAX);
    builder.build().await.unwrap()
}

impl Ring {
    async fn start(server: &Server, waiters: usize) -> Self {
        let worker = worker(&server.url()).await;
        let stream = |nth| worker.acquire().map(move |event| (nth, event)).boxed();
        let mut ring = Self {
            streams: select_all((0..=waiters).map(stream)),
            holder: None,
        };
        let mut waiting = 0;
        while ring.holder.is_none() || waiting < waiters {
            match ring.next().await {
                (nth, LockEvent::Acquired(guard)) => ring.holder = Some((nth, guard)),
                (_, LockEvent::Locked(_)) => waiting += 1,
                _ => {}
            }
        }
        ring
    }

    async fn next(&mut self) -> (usize, LockEvent) {
        let next = tokio::time::timeout(PATIENCE, self.streams.next()).await;
        let (nth, event) = next.expect("an event in time").expect("streams");
        assert!(!event.is_terminal(), "{event:?}");
        (nth, event)
    }

    async fn hand_over(&mut self, end: End) -> f64 {
        let (before, guard) = self.holder.take().expect("a holder");
        let began = Instant::now();
        match end {
            End::Drop => drop(guard),
            End::HandOff => guard.hand_off().await.unwrap(),
        }
        let mut took = None;
        // Until the one that had it is in the line again.
        loop {
            match self.next().await {
                (nth, LockEvent::Acquired(guard)) => {
                    took = Some(micros(began.elapsed()));
                    self.holder = Some((nth, guard));
                }
                (nth, LockEvent::Locked(_)) if nth == before => break,
                _ => {}
            }
        }
        took.expect("the next holder before the last one's place in the line")
    }
}

/// One publish to a subscriber: what nobody can beat who tells another by push.
struct Floor {
    publisher: Client,
    subscriber: Client,
    heard: broadcast::Receiver<Message>,
}

impl Floor {
    async fn start(server: &Server) -> Self {
        let (publisher, subscriber) = (server.client().await, server.client().await);
        subscriber.ssubscribe("floor").await.unwrap();
        Self {
            heard: subscriber.message_rx(),
            publisher,
            subscriber,
        }
    }

    async fn publish(&mut self) -> f64 {
        assert!(self.subscriber.is_connected());
        // As long as a record.
        let text = "x".repeat(200);
        let began = Instant::now();
        let publish = self.publisher.spublish::<(), _, _>("floor", text);
        let hear = async {
            self.heard.recv().await.unwrap();
            micros(began.elapsed())
        };
        let (published, took) = join(publish, hear).await;
        published.unwrap();
        took
    }
}

/// Tasks that take a lock of rslock from each other, this often; from `unlock` to the next one's `lock`.
async fn rslock(server: &Server, waiters: usize, samples: usize) -> Vec<f64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let key = format!("rslock:{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let manager = LockManager::new(vec![server.url()]);
    let released = Arc::new(AtomicU64::new(0));
    let (tell, mut times) = mpsc::unbounded_channel();
    let (taken, _) = watch::channel(());
    let mut tasks = JoinSet::new();
    for _ in 0..=waiters {
        let (key, manager) = (key.clone(), manager.clone());
        let (released, tell) = (released.clone(), tell.clone());
        let (taken, mut by_another) = (taken.clone(), taken.subscribe());
        tasks.spawn(async move {
            loop {
                let lock = manager.acquire_no_guard(key.as_str(), LEASE).await.unwrap();
                let time = now() - released.load(Ordering::SeqCst);
                taken.send_replace(());
                tell.send(time as f64 / 1e3).unwrap();
                // All others wait for it by then.
                tokio::time::sleep(Duration::from_millis(20)).await;
                by_another.mark_unchanged();
                released.store(now(), Ordering::SeqCst);
                manager.unlock(&lock).await;
                by_another.changed().await.unwrap();
            }
        });
    }
    // Nobody has released the first one.
    times.recv().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < samples {
        seen.push(times.recv().await.unwrap());
    }
    seen
}

/// Processes that take the work from each other, and are told when to let go of it.
struct Fleet {
    peers: Vec<Peer>,
    said: std::sync::mpsc::Receiver<(usize, Vec<f64>)>,
    holder: usize,
}

// What a process says: that it waits; that it has the work, and since when; when it let go of it.
const WAITS: f64 = 0.0;
const HAS: f64 = 1.0;
const ENDED: f64 = 2.0;

impl Fleet {
    fn start(server: &Server, waiters: usize) -> Self {
        let url = server.url();
        let (tell, said) = std::sync::mpsc::channel();
        let mut peers: Vec<Peer> = Vec::new();
        for nth in 0..=waiters {
            let mut peer = Peer::start(&["--worker", &url]);
            peer.tell(nth, tell.clone());
            peers.push(peer);
            // The first has it, the others wait in this order.
            let (who, what) = said.recv_timeout(PATIENCE).unwrap();
            assert_eq!((who, what[0]), (nth, if nth == 0 { HAS } else { WAITS }));
        }
        let holder = 0;
        Self {
            peers,
            said,
            holder,
        }
    }

    fn hand_over(&mut self, end: End) -> f64 {
        let before = self.holder;
        self.peers[before].say(match end {
            End::Drop => "drop",
            End::HandOff => "hand_off",
        });
        let (mut ended, mut has, mut waits) = (None, None, false);
        while ended.is_none() || has.is_none() || !waits {
            let (who, what) = self.said.recv_timeout(PATIENCE).unwrap();
            match what[..] {
                [HAS, since] => {
                    has = Some(since);
                    self.holder = who;
                }
                [ENDED, at] => ended = Some(at),
                _ => waits |= who == before,
            }
        }
        (has.unwrap() - ended.unwrap()) / 1e3
    }

    fn end(self) {
        self.peers.into_iter().for_each(Peer::end);
    }
}

/// One of a fleet.
async fn worker_process(url: &str) {
    let (tell, mut told) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            tell.send(line.unwrap()).unwrap();
        }
    });
    let worker = worker(url).await;
    let mut stream = worker.acquire();
    let mut holds: Option<WorkGuard> = None;
    let mut says_that_it_waits = true;
    loop {
        tokio::select! {
            event = stream.next() => match event.unwrap() {
                LockEvent::Acquired(guard) => {
                    println!("{HAS} {}", now());
                    holds = Some(guard);
                }
                LockEvent::Locked(_) if std::mem::take(&mut says_that_it_waits) => {
                    println!("{WAITS} 0");
                }
                _ => {}
            },
            line = told.recv() => {
                // The end of the input is the end of the benchmark.
                let Some(line) = line else { return };
                let guard = holds.take().expect("told while it holds");
                says_that_it_waits = true;
                let ended = now();
                match &line[..] {
                    "drop" => drop(guard),
                    _ => guard.hand_off().await.unwrap(),
                }
                println!("{ENDED} {ended}");
            }
        }
    }
}
