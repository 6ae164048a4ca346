//! A fleet on one server under faults drawn from a seed, and its history.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::audit::{Audit, ask};
use crate::common::Server;
use crate::common::history::{History, Scope, Step};
use crate::common::proxy::{Line, Proxy, Way};
use crate::fleet::{Chronicle, Process, close};
use crate::now;
use crate::worker::Orders;

const PROCESSES: usize = 4;
const KEYS: usize = 16;

/// How long faults begin.
const SPAN: u64 = 1_500;

/// How long a fleet may take to end once all is well: an outage's backoff, a silent connection, leases and
/// caps on holding, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillProcess,
    StopProcess,
    Cut(Option<Line>),
    Stall(Option<Line>),
    RestartServer,
    StopServer,
    SlowScript,
    FlushAll,
    FlushScripts,
    KillSubscribers,
    NoMemory,
    Evict,
    NoReplicas,
    ReadOnly,
}

const KINDS: [Kind; 18] = [
    Kind::KillProcess,
    Kind::KillProcess,
    Kind::StopProcess,
    Kind::Cut(None),
    Kind::Cut(Some(Line::Commands)),
    Kind::Cut(Some(Line::Subscriber)),
    Kind::Stall(None),
    Kind::Stall(Some(Line::Commands)),
    Kind::Stall(Some(Line::Subscriber)),
    Kind::RestartServer,
    Kind::StopServer,
    Kind::SlowScript,
    Kind::FlushAll,
    Kind::FlushScripts,
    Kind::KillSubscribers,
    Kind::NoMemory,
    Kind::Evict,
    Kind::NoReplicas,
];

/// One of them, when and for how long, in ms.
#[derive(Clone, Copy, Debug)]
struct Planned {
    kind: Kind,
    at: u64,
    lasts: u64,
    process: usize,
}

fn plan(random: &mut StdRng) -> Vec<Planned> {
    let count = random.gen_range(1..=5);
    let draw = |_| {
        let kind = match random.gen_range(0..=KINDS.len()) {
            nth if nth < KINDS.len() => KINDS[nth],
            _ => Kind::ReadOnly,
        };
        let longest = match kind {
            // Beyond what a connection may be silent for.
            Kind::Stall(_) => 4_000,
            Kind::StopProcess => 2_500,
            _ => 1_000,
        };
        Planned {
            kind,
            at: random.gen_range(0..SPAN),
            lasts: random.gen_range(1..longest),
            process: random.gen_range(0..PROCESSES),
        }
    };
    (0..count).map(draw).collect()
}

struct Fleet {
    seed: u64,
    port: u16,
    /// Whether what the server has answered outlives it.
    persistent: bool,
    server: Mutex<Watched>,
    audit: Audit,
    chronicle: Chronicle,
    slots: Vec<Slot>,
}

struct Watched {
    server: Server,
    watching: JoinHandle<()>,
}

/// A process and its way to the server.
struct Slot {
    proxy: Proxy,
    orders: Orders,
    process: Mutex<Process>,
}

/// Everything follows from the seed, but for what the machine makes of it.
pub async fn run(seed: u64, resource: &str) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let persistent = random.gen_bool(0.5);
    let keys: Vec<String> = (0..KEYS).map(|nth| format!("key-{nth}")).collect();
    let fleet = Arc::new(start(seed, resource, persistent, keys, &mut random).await);
    let planned = plan(&mut random);
    println!("seed {seed}: persistent {persistent}, {planned:?}");

    let began = Instant::now();
    let all = planned.into_iter().map(|planned| {
        let fleet = fleet.clone();
        async move {
            sleep_until(began + Duration::from_millis(planned.at)).await;
            fleet.suffer(planned).await;
        }
    });
    join_all(all).await;
    sleep_until(began + Duration::from_millis(SPAN)).await;
    fleet.heal().await;

    let finishing = fleet.slots.iter().map(async |slot| {
        slot.process.lock().await.finish(PATIENCE).await;
    });
    join_all(finishing).await;
    fleet.audit.catch_up(fleet.port).await;
    fleet
        .chronicle
        .edit(|history| history.audit = fleet.audit.steps());
    close(&fleet.chronicle)
}

async fn start(
    seed: u64,
    resource: &str,
    persistent: bool,
    keys: Vec<String>,
    random: &mut StdRng,
) -> Fleet {
    let log: &[&str] = match persistent {
        true => &["--appendonly", "yes", "--appendfsync", "always"],
        false => &[],
    };
    let args = [log, &["--busy-reply-threshold", "50"]].concat();
    let server = tokio::task::block_in_place(|| Server::start_with(&args));
    let port = server.port;
    let audit = Audit::new(&keys);
    let watching = audit.watch(port).await.unwrap();
    let chronicle = Chronicle::default();
    let mut slots = Vec::new();
    for nth in 0..PROCESSES {
        let proxy = Proxy::start(port).await;
        // The last is longer than anything may take: its end can't be what helped.
        let lease_ms = [300, 500, 1_000, 10_000][random.gen_range(0..4)];
        let orders = Orders {
            url: format!("redis://127.0.0.1:{}", proxy.port),
            resource: resource.to_owned(),
            seed,
            process: nth as u32,
            label: format!("worker-{nth}"),
            keys: keys.clone(),
            lease_ms,
            retention_ms: lease_ms.min(1_000) * random.gen_range(1..4) / 2,
            max_attempts: random.gen_range(1..7),
            max_hold_ms: lease_ms * random.gen_range(1..4),
            renews: random.gen_bool(0.5),
            rejoins: random.gen_bool(0.3),
        };
        let process = Mutex::new(Process::start(&orders, &chronicle));
        slots.push(Slot {
            proxy,
            orders,
            process,
        });
    }
    Fleet {
        seed,
        port,
        persistent,
        server: Mutex::new(Watched { server, watching }),
        audit,
        chronicle,
        slots,
    }
}

impl Fleet {
    async fn suffer(&self, planned: Planned) {
        let Planned { kind, lasts, .. } = planned;
        let slot = &self.slots[planned.process];
        let lasting = Duration::from_millis(lasts);
        let from = now();
        let mut scope = Scope::Server;
        match kind {
            Kind::KillProcess => return self.replace(slot, lasting).await,
            Kind::StopProcess => {
                let process = slot.process.lock().await;
                scope = Scope::Process(process.number);
                process.signal(Signal::SIGSTOP);
                sleep(lasting).await;
                process.signal(Signal::SIGCONT);
            }
            Kind::Cut(line) => {
                scope = Scope::Process(slot.process.lock().await.number);
                slot.interrupt(line, Way::Cut, lasting).await;
            }
            Kind::Stall(line) => {
                scope = Scope::Process(slot.process.lock().await.number);
                slot.interrupt(line, Way::Stalled, lasting).await;
            }
            Kind::RestartServer => self.restart(lasting / 3).await,
            Kind::StopServer => {
                let server = self.server.lock().await;
                server.server.signal(Signal::SIGSTOP);
                sleep(lasting).await;
                server.server.signal(Signal::SIGCONT);
            }
            Kind::SlowScript => self.slow(lasting).await,
            Kind::FlushAll => {
                let _ = ask(self.port, "FLUSHALL").await;
            }
            // Nobody should notice these, so they excuse nothing.
            Kind::FlushScripts => {
                let _ = ask(self.port, "SCRIPT FLUSH").await;
                return;
            }
            Kind::KillSubscribers => {
                let _ = ask(self.port, "CLIENT KILL TYPE pubsub").await;
                return;
            }
            Kind::NoMemory => {
                self.set("maxmemory", "1", "0", lasting).await;
            }
            Kind::Evict => {
                self.audit.set_losing(true);
                let _ = ask(self.port, "CONFIG SET maxmemory-policy allkeys-random").await;
                self.set("maxmemory", "1", "0", lasting).await;
                let _ = ask(self.port, "CONFIG SET maxmemory-policy noeviction").await;
                self.audit.set_losing(false);
            }
            Kind::NoReplicas => {
                self.set("min-replicas-to-write", "1", "0", lasting).await;
            }
            Kind::ReadOnly => {
                let _ = ask(self.port, "REPLICAOF 127.0.0.1 1").await;
                sleep(lasting).await;
                let _ = ask(self.port, "REPLICAOF NO ONE").await;
            }
        }
        let name = name(kind);
        self.chronicle.fault(name, scope, from, now());
    }

    async fn set(&self, option: &str, value: &str, back: &str, lasting: Duration) {
        let _ = ask(self.port, &format!("CONFIG SET {option} {value}")).await;
        sleep(lasting).await;
        let _ = ask(self.port, &format!("CONFIG SET {option} {back}")).await;
    }

    /// A script that holds up all others, and makes the server say `BUSY`.
    async fn slow(&self, lasting: Duration) {
        let mut busy = pin!(ask(self.port, "EVAL \"while true do end\" 0"));
        sleep(lasting).await;
        // Until it has begun there is nothing to kill.
        while timeout(Duration::from_millis(20), &mut busy).await.is_err() {
            let _ = ask(self.port, "SCRIPT KILL").await;
        }
    }

    /// Another in its place, as a supervisor would.
    async fn replace(&self, slot: &Slot, after: Duration) {
        let mut process = slot.process.lock().await;
        let from = now();
        process.kill().await;
        self.chronicle
            .fault("killed", Scope::Process(process.number), from, u64::MAX);
        sleep(after).await;
        let number = process.number + PROCESSES as u32;
        let orders = Orders {
            process: number,
            label: format!("worker-{number}"),
            ..slot.orders.clone()
        };
        *process = Process::start(&orders, &self.chronicle);
    }

    async fn restart(&self, after: Duration) {
        let mut watched = self.server.lock().await;
        watched.server.kill();
        let _ = (&mut watched.watching).await;
        sleep(after).await;
        self.audit.all(|at| match self.persistent {
            true => Step::Unwatched { from: at, to: at },
            false => Step::Forgot { at },
        });
        tokio::task::block_in_place(|| watched.server.restart());
        watched.watching = loop {
            // A slow script may be before it.
            match self.audit.watch(self.port).await {
                Ok(watching) => break watching,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        };
        // What was done before it was watched again.
        self.audit.look(self.port).await;
        self.audit.all(|at| match self.persistent {
            true => Step::Unwatched { from: at, to: at },
            false => Step::Forgot { at },
        });
    }

    /// Whatever was set while something else happened is as it was.
    async fn heal(&self) {
        for command in [
            "CONFIG SET maxmemory 0",
            "CONFIG SET maxmemory-policy noeviction",
            "CONFIG SET min-replicas-to-write 0",
            "REPLICAOF NO ONE",
        ] {
            let answer = ask(self.port, command).await.unwrap();
            assert!(
                answer.starts_with("+OK"),
                "seed {}: {command}: {answer}",
                self.seed
            );
        }
    }
}

impl Slot {
    async fn interrupt(&self, line: Option<Line>, way: Way, lasting: Duration) {
        for way in [way, Way::Open] {
            match line {
                Some(line) => self.proxy.set_line(line, way),
                None => self.proxy.set(way),
            }
            if way != Way::Open {
                sleep(lasting).await;
            }
        }
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::KillProcess => "a process is killed",
        Kind::StopProcess => "a process is stopped",
        Kind::Cut(_) => "connections are cut",
        Kind::Stall(_) => "connections are stalled",
        Kind::RestartServer => "the server is killed and started",
        Kind::StopServer => "the server is stopped",
        Kind::SlowScript => "a script is slow",
        Kind::FlushAll => "all data is flushed",
        Kind::FlushScripts => "the scripts are flushed",
        Kind::KillSubscribers => "the subscribers are disconnected",
        Kind::NoMemory => "memory is full",
        Kind::Evict => "keys are evicted",
        Kind::NoReplicas => "replicas are wanting",
        Kind::ReadOnly => "the server is a replica",
    }
}
