//! A fleet on one server under faults drawn from a seed, and its history.

use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::audit::{Audit, Took, Watching, ask, must};
use crate::fleet::{Chronicle, PROCESSES, Process, Seen, orders, successor};
use crate::now;
use crate::standstill::{
    Machine, Profile, SHORT_LEASES, Standstill, blocked_for, blocks, burst, stands_still, stood,
};
use crate::worker::Orders;
use proof::history::{Scope, Step};
use testkit::Server;
use testkit::proxy::{Fate, Line, Proxy, Way};

/// The last is longer than anything may take: its end can't be what helped.
const LEASES: [u64; 4] = [300, 500, 1_000, 10_000];

/// How long faults begin.
const SPAN: u64 = 1_500;

/// How long a fleet may take to end once all is well: an outage's backoff, a silent connection, leases and
/// caps on holding, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// For how long a quarter of the fleets go on after the last fault: longer than that is felt.
const CALM: Duration = Duration::from_secs(8);

/// How long a way keeps what it carries, at least and at most.
const LATENCY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(300)];

/// Where the server says what it does.
const LOG: &str = "server.log";

/// How long a fault waits for a connection to happen to.
const CONNECTED: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillProcess,
    StopProcess,
    Cut(Option<Line>),
    Stall(Option<Line>),
    /// The connections that there are die without a word, for good; new ones work.
    Silence(Option<Line>),
    /// A long way with jitter, on which a connection is reset now and then.
    Latency,
    /// The server ends the connections of clients that have said nothing for 1 s.
    IdleTimeout,
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
    Stands(Standstill),
}

const KINDS: [(Kind, u32); 28] = [
    (Kind::KillProcess, 2),
    (Kind::StopProcess, 1),
    (Kind::Cut(None), 1),
    (Kind::Cut(Some(Line::Commands)), 1),
    (Kind::Cut(Some(Line::Subscriber)), 1),
    (Kind::Stall(None), 1),
    (Kind::Stall(Some(Line::Commands)), 1),
    (Kind::Stall(Some(Line::Subscriber)), 1),
    (Kind::Silence(None), 1),
    (Kind::Silence(Some(Line::Commands)), 1),
    (Kind::Silence(Some(Line::Subscriber)), 1),
    (Kind::Latency, 1),
    (Kind::IdleTimeout, 1),
    (Kind::RestartServer, 1),
    (Kind::StopServer, 1),
    (Kind::SlowScript, 1),
    (Kind::FlushAll, 1),
    (Kind::FlushScripts, 1),
    (Kind::KillSubscribers, 1),
    (Kind::NoMemory, 1),
    (Kind::Evict, 1),
    (Kind::NoReplicas, 1),
    (Kind::ReadOnly, 1),
    (Kind::Stands(Standstill::Thread), 2),
    (Kind::Stands(Standstill::Runtime), 2),
    (Kind::Stands(Standstill::Bursts), 1),
    (Kind::Stands(Standstill::Sleep), 1),
    (Kind::Stands(Standstill::Pause), 1),
];

/// One of them, when and for how long, in ms.
#[derive(Clone, Copy, Debug)]
struct Planned {
    kind: Kind,
    at: u64,
    lasts: u64,
    process: usize,
    seed: u64,
}

impl Planned {
    fn moves_clocks_of(&self, process: u32) -> bool {
        let moves = matches!(self.kind, Kind::Stands(kind) if kind.moves_clocks());
        moves && self.process == process as usize
    }
}

fn plan(random: &mut StdRng, profile: Profile) -> Vec<Planned> {
    let count = random.gen_range(1..=5);
    let draw = |_| {
        let (kind, _) = *KINDS.choose_weighted(random, |kind| kind.1).unwrap();
        let longest = match kind {
            // Beyond what a connection may be silent for.
            Kind::Stall(_) | Kind::IdleTimeout => 4_000,
            Kind::StopProcess => 2_500,
            _ => 1_000,
        };
        Planned {
            kind,
            at: random.gen_range(0..SPAN),
            lasts: random.gen_range(1..longest),
            process: random.gen_range(0..PROCESSES as usize),
            seed: random.r#gen(),
        }
    };
    let mut planned: Vec<Planned> = (0..count).map(draw).collect();
    if profile.short {
        planned.push(Planned {
            kind: Kind::Stands(Standstill::Bursts),
            at: random.gen_range(0..SPAN / 2),
            lasts: 2_000,
            process: 0,
            seed: random.r#gen(),
        });
    }
    planned
}

struct Fleet {
    port: u16,
    /// Whether what the server has answered outlives it.
    persistent: bool,
    /// Whoever sets anything has it until it is set back, and whoever restarts the server, which forgets it.
    configuration: Mutex<()>,
    /// Whoever ends or holds up the server; after the configuration, if both.
    server: Mutex<Watched>,
    audit: Audit,
    chronicle: Chronicle,
    slots: Vec<Slot>,
    dir: TempDir,
}

struct Watched {
    server: Server,
    watching: Watching<u64>,
}

/// A process and its way to the server.
struct Slot {
    proxy: Proxy,
    /// Whoever cuts or stalls it.
    way: Mutex<()>,
    process: Mutex<Incarnation>,
    /// Of what its process believes of the time, if it shall be moved.
    machine: Option<Mutex<Machine>>,
}

impl Slot {
    async fn environment(machine: Option<&Mutex<Machine>>) -> Vec<(&'static str, String)> {
        match machine {
            Some(machine) => machine.lock().await.environment(),
            None => Vec::new(),
        }
    }
}

struct Incarnation {
    orders: Orders,
    process: Process,
    /// Those before it, each with when it had ended.
    before: Vec<(u32, u64)>,
}

/// Everything follows from the seed, but for what the machine makes of it.
pub async fn run(chronicle: &Chronicle, seed: u64, resource: &Server) -> Seen {
    let mut random = StdRng::seed_from_u64(seed);
    let persistent = random.gen_bool(0.5);
    let calm = match seed % 4 {
        0 => CALM,
        _ => Duration::ZERO,
    };
    let profile = Profile::draw(&mut random);
    let planned = plan(&mut random, profile);
    let fleet = start(
        chronicle,
        resource,
        persistent,
        profile,
        &planned,
        &mut random,
    )
    .await;
    let run = &chronicle.run;
    println!("{run}: persistent {persistent}, calm {calm:?}, {profile:?}, {planned:?}");

    let began = Instant::now();
    let all = planned.into_iter().map(async |planned| {
        sleep_until(began + Duration::from_millis(planned.at)).await;
        fleet.suffer(planned).await;
    });
    join_all(all).await;
    sleep_until(began + Duration::from_millis(SPAN)).await;
    sleep(calm).await;

    chronicle.finishing();
    let finishing = fleet.slots.iter().map(async |slot| {
        slot.process.lock().await.process.finish(PATIENCE).await;
    });
    join_all(finishing).await;
    fleet.audit.catch_up(fleet.port).await;
    fleet.server.lock().await.watching.abort().await;
    let steps = fleet.audit.steps();
    chronicle.edit(|seen| seen.history.audit = steps);
    profile.tell(&fleet.dir.path().join(LOG), chronicle);
    chronicle.close(resource).await
}

async fn start(
    chronicle: &Chronicle,
    resource: &Server,
    persistent: bool,
    profile: Profile,
    planned: &[Planned],
    random: &mut StdRng,
) -> Fleet {
    let log: &[&str] = match persistent {
        true => &["--appendonly", "yes", "--appendfsync", "always"],
        false => &[],
    };
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(LOG);
    let profiles = profile.server_args(path.to_str().unwrap());
    let args = [log, &["--busy-reply-threshold", "50"], &profiles].concat();
    let server = block_in_place(|| Server::start_with(&args));
    let port = server.port;
    let databases = if profile.databases { 2 } else { 1 };
    let audit = Audit::new(databases, chronicle);
    let leases = if profile.short {
        &SHORT_LEASES
    } else {
        &LEASES
    };
    let watching = audit.watch(port).await.unwrap();
    let mut slots = Vec::new();
    for nth in 0..PROCESSES {
        let proxy = Proxy::start(port).await;
        let database = nth % databases;
        let url = format!("redis://127.0.0.1:{}/{database}", proxy.port);
        let orders = Orders {
            database,
            large: profile.large,
            ..orders(&chronicle.run, nth, url, resource, leases, random)
        };
        let moves = planned.iter().any(|planned| planned.moves_clocks_of(nth));
        let machine = moves.then(|| block_in_place(|| Mutex::new(Machine::new())));
        let environment = Slot::environment(machine.as_ref()).await;
        let process = Process::start(&orders, chronicle, dir.path(), &environment);
        let process = Incarnation {
            orders,
            process,
            before: Vec::new(),
        };
        slots.push(Slot {
            proxy,
            way: Mutex::default(),
            process: Mutex::new(process),
            machine,
        });
    }
    Fleet {
        port,
        persistent,
        configuration: Mutex::default(),
        server: Mutex::new(Watched { server, watching }),
        audit,
        chronicle: chronicle.clone(),
        slots,
        dir,
    }
}

impl Fleet {
    /// Tells of a fault if there was one, and for how long.
    async fn suffer(&self, planned: Planned) {
        let Planned { kind, lasts, .. } = planned;
        let slot = &self.slots[planned.process];
        let lasting = Duration::from_millis(lasts);
        let (from, to) = match kind {
            Kind::KillProcess => return self.replace(slot, lasting).await,
            Kind::StopProcess => {
                let process = &mut slot.process.lock().await.process;
                let from = now();
                process.signal(Signal::SIGSTOP);
                sleep(lasting).await;
                process.signal(Signal::SIGCONT);
                let scope = Scope::Process(process.number);
                return self.chronicle.fault(name(kind), scope, from, now());
            }
            Kind::Stands(kind) => return self.stand_still(kind, planned).await,
            Kind::Cut(line) => {
                let cut = async |proxy: &Proxy| interrupt(proxy, line, Way::Cut, lasting).await;
                return self.strike(kind, slot, line, cut).await;
            }
            Kind::Stall(line) => {
                let stall = async |proxy: &Proxy| {
                    interrupt(proxy, line, Way::Stalled, lasting).await;
                };
                return self.strike(kind, slot, line, stall).await;
            }
            Kind::Silence(line) => {
                let silence = async |proxy: &Proxy| {
                    proxy.decide(line, Fate::Silent);
                };
                return self.strike(kind, slot, line, silence).await;
            }
            Kind::Latency => {
                let stretch = async |proxy: &Proxy| stretch(proxy, lasting).await;
                return self.strike(kind, slot, None, stretch).await;
            }
            Kind::IdleTimeout => {
                let _configuration = self.configuration.lock().await;
                self.set("timeout", "1", "0", lasting).await
            }
            Kind::RestartServer => self.restart(lasting / 3).await,
            Kind::StopServer => {
                let server = self.server.lock().await;
                let from = now();
                server.server.signal(Signal::SIGSTOP);
                sleep(lasting).await;
                server.server.signal(Signal::SIGCONT);
                (from, now())
            }
            Kind::SlowScript => self.slow(lasting).await,
            Kind::FlushAll => {
                // Not while what the auditor is told of it may be lost with the server.
                let _configuration = self.configuration.lock().await;
                let _server = self.server.lock().await;
                let took = self.must("FLUSHALL", "+OK").await;
                (took.from, took.to)
            }
            Kind::FlushScripts => return self.harmless(kind, "SCRIPT FLUSH", "+OK").await,
            Kind::KillSubscribers => {
                return self.harmless(kind, "CLIENT KILL TYPE pubsub", ":").await;
            }
            Kind::NoMemory => {
                let _configuration = self.configuration.lock().await;
                self.set("maxmemory", "1", "0", lasting).await
            }
            Kind::Evict => {
                let _configuration = self.configuration.lock().await;
                self.audit.set_losing(true);
                self.must("CONFIG SET maxmemory-policy allkeys-random", "+OK")
                    .await;
                let (from, _) = self.set("maxmemory", "1", "0", lasting).await;
                let never = "CONFIG SET maxmemory-policy noeviction";
                let to = self.must(never, "+OK").await.to;
                // What was written before may have been evicted, so it must be heard before.
                self.audit.catch_up(self.port).await;
                self.audit.set_losing(false);
                (from, to)
            }
            Kind::NoReplicas => {
                let _configuration = self.configuration.lock().await;
                self.set("min-replicas-to-write", "1", "0", lasting).await
            }
            Kind::ReadOnly => {
                let _configuration = self.configuration.lock().await;
                let from = self.must("REPLICAOF 127.0.0.1 1", "+OK").await.from;
                sleep(lasting).await;
                (from, self.must("REPLICAOF NO ONE", "+OK").await.to)
            }
        };
        self.chronicle.fault(name(kind), Scope::Server, from, to);
    }

    async fn must(&self, command: &str, begins: &str) -> Took {
        must(self.port, command, begins).await
    }

    async fn set(&self, option: &str, value: &str, back: &str, lasting: Duration) -> (u64, u64) {
        let set = async |value| {
            self.must(&format!("CONFIG SET {option} {value}"), "+OK")
                .await
        };
        let from = set(value).await.from;
        sleep(lasting).await;
        (from, set(back).await.to)
    }

    /// What nobody should notice excuses nothing.
    async fn harmless(&self, kind: Kind, command: &str, begins: &str) {
        let until = Instant::now() + CONNECTED;
        // Until there is any subscriber.
        while self.must(command, begins).await.answer.starts_with(":0") {
            if Instant::now() > until {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        self.chronicle.edit(|seen| seen.harmless.push(name(kind)));
    }

    /// A script that holds up all others, and makes the server say `BUSY`.
    async fn slow(&self, lasting: Duration) -> (u64, u64) {
        let _server = self.server.lock().await;
        let port = self.port;
        let from = now();
        let endless = async move { ask(port, "EVAL \"while true do end\" 0").await };
        let busy = AbortOnDropHandle::new(tokio::spawn(endless));
        self.must("PING", "-BUSY").await;
        sleep(lasting).await;
        self.must("SCRIPT KILL", "+OK").await;
        let said = busy.await.unwrap().unwrap();
        assert!(said.starts_with("-ERR"), "{said}");
        (from, now())
    }

    /// Does something to the way of a process, once it has a connection, which also touches a process
    /// that takes its place meanwhile.
    async fn strike(
        &self,
        kind: Kind,
        slot: &Slot,
        line: Option<Line>,
        act: impl AsyncFnOnce(&Proxy),
    ) {
        let _way = slot.way.lock().await;
        let until = Instant::now() + CONNECTED;
        while slot.proxy.connections(line.unwrap_or(Line::Commands)) == 0 {
            if Instant::now() > until {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let from = now();
        act(&slot.proxy).await;
        let to = now();
        let process = slot.process.lock().await;
        let before = process.before.iter().filter(|(_, ended)| *ended >= from);
        let now = process.process.number;
        for number in before.map(|(number, _)| *number).chain([now]) {
            let scope = Scope::Process(number);
            self.chronicle.fault(name(kind), scope, from, to);
        }
    }

    /// Another in its place, as a supervisor would.
    async fn replace(&self, slot: &Slot, after: Duration) {
        let environment = Slot::environment(slot.machine.as_ref()).await;
        let slot = &mut *slot.process.lock().await;
        let (from, number) = (now(), slot.process.number);
        slot.process.kill().await;
        slot.before.push((number, now()));
        let scope = Scope::Process(number);
        let killed = name(Kind::KillProcess);
        self.chronicle.fault(killed, scope, from, u64::MAX);
        sleep(after).await;
        slot.orders = successor(&slot.orders);
        slot.process = Process::start(&slot.orders, &self.chronicle, self.dir.path(), &environment);
    }

    async fn stand_still(&self, kind: Standstill, planned: Planned) {
        let mut random = StdRng::seed_from_u64(planned.seed);
        let slot = &self.slots[planned.process];
        match kind {
            Standstill::Thread | Standstill::Runtime => {
                let incarnation = &mut *slot.process.lock().await;
                let ms = blocked_for(&mut random, incarnation.orders.span());
                blocks(&mut incarnation.process, &self.chronicle, kind, ms).await;
            }
            Standstill::Sleep | Standstill::Pause => {
                let process = &mut slot.process.lock().await.process;
                let machine = slot.machine.as_ref().expect("clocks that can be moved");
                let machine = &mut *machine.lock().await;
                let seconds = stood(&mut random);
                stands_still(process, &self.chronicle, kind, machine, seconds).await;
            }
            Standstill::Bursts => {
                let until = Instant::now() + Duration::from_millis(planned.lasts);
                while Instant::now() < until {
                    self.stop_all(kind, burst(&mut random)).await;
                    sleep(burst(&mut random)).await;
                }
            }
        }
    }

    /// Stops all processes at once.
    async fn stop_all(&self, kind: Standstill, lasting: Duration) {
        let processes = self.slots.iter().map(|slot| slot.process.lock());
        let mut processes = join_all(processes).await;
        let from = now();
        for slot in &mut processes {
            slot.process.signal(Signal::SIGSTOP);
        }
        sleep(lasting).await;
        for slot in &mut processes {
            slot.process.signal(Signal::SIGCONT);
        }
        for slot in &processes {
            let scope = Scope::Process(slot.process.number);
            self.chronicle.fault(kind.name(), scope, from, now());
        }
    }

    async fn restart(&self, after: Duration) -> (u64, u64) {
        let _configuration = self.configuration.lock().await;
        let mut watched = self.server.lock().await;
        let killed = now();
        watched.server.kill();
        // What it has done after this was the last that it did not say.
        let from = watched.watching.end().await.unwrap_or(killed);
        let unwatched = |to| Step::Unwatched { from, to };
        self.audit.all(unwatched);
        if !self.persistent {
            self.audit.all(|at| Step::Forgot { at });
        }
        sleep(after).await;
        block_in_place(|| watched.server.restart());
        watched.watching = self.audit.watch(self.port).await.unwrap();
        // What was done before it was watched again.
        self.audit.look(self.port).await;
        self.audit.all(unwatched);
        (killed, now())
    }
}

/// Cuts or stalls one line or both.
async fn interrupt(proxy: &Proxy, line: Option<Line>, way: Way, lasting: Duration) {
    for way in [way, Way::Open] {
        match line {
            Some(line) => proxy.set_line(line, way),
            None => proxy.set(way),
        }
        if way != Way::Open {
            sleep(lasting).await;
        }
    }
}

/// Makes the way as long as one around the world; halfway through, its connections are reset.
async fn stretch(proxy: &Proxy, lasting: Duration) {
    proxy.set_latency(LATENCY[0], LATENCY[1]);
    sleep(lasting / 2).await;
    proxy.decide(None, Fate::Reset);
    sleep(lasting / 2).await;
    proxy.set_latency(Duration::ZERO, Duration::ZERO);
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::KillProcess => "a process is killed",
        Kind::StopProcess => "a process is stopped",
        Kind::Cut(_) => "connections are cut",
        Kind::Stall(_) => "connections are stalled",
        Kind::Silence(None) => "connections die in silence",
        Kind::Silence(Some(Line::Commands)) => "commands' connections die in silence",
        Kind::Silence(Some(Line::Subscriber)) => "subscribers die in silence",
        Kind::Latency => "the way is long, and connections are reset",
        Kind::IdleTimeout => "the server ends idle connections",
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
        Kind::Stands(kind) => kind.name(),
    }
}
