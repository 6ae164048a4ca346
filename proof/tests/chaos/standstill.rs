//! Threads, processes and machines that stand still, and what a fleet's profile adds to its faults.

use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::fleet::{Chronicle, Process};
use crate::now;
use crate::sampler::Sampler;
use proof::history::Scope;
#[cfg(target_os = "linux")]
use testkit::clocks::{Clock, Clocks};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standstill {
    /// One thread of a runtime is blocked.
    Thread,
    /// All threads of a runtime are.
    Runtime,
    /// All processes are stopped again and again.
    Bursts,
    /// A machine sleeps: its monotonic clock stands still.
    Sleep,
    /// A virtual machine is paused: only its wall clock is right afterwards.
    Pause,
}

impl Standstill {
    pub fn name(self) -> &'static str {
        match self {
            Self::Thread => "a thread is blocked",
            Self::Runtime => "a runtime is blocked",
            Self::Bursts => "all processes are stopped in a burst",
            Self::Sleep => "a machine sleeps",
            Self::Pause => "a virtual machine is paused",
        }
    }

    pub fn moves_clocks(self) -> bool {
        matches!(self, Self::Sleep | Self::Pause)
    }
}

/// Leases that stops of 20 to 400 ms outlast.
pub const SHORT_LEASES: [u64; 4] = [100, 150, 200, 300];

/// How long a burst lasts, in ms.
const BURST: std::ops::Range<u64> = 20..400;

/// For how long a machine stands still, in s: as its clocks are moved.
const STOOD: std::ops::RangeInclusive<u64> = 1..=3;

/// What a fleet is like apart from its faults.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Leases are short, and all processes are stopped in bursts.
    pub short: bool,
    /// Half of the processes work in another database of the server, with the same keys.
    pub databases: bool,
    /// Some results have the longest length, which exceeds what the server keeps for a subscriber.
    pub large: bool,
}

impl Profile {
    pub fn draw(random: &mut StdRng) -> Self {
        Self {
            short: random.gen_bool(0.25),
            databases: random.gen_bool(0.25),
            large: random.gen_bool(0.15),
        }
    }

    /// What the server is started with; it tells there of the subscribers that it throws out.
    pub fn server_args(self, log: &str) -> Vec<&str> {
        match self.large {
            true => vec![
                "--client-output-buffer-limit",
                "pubsub",
                "262144",
                "0",
                "0",
                "--logfile",
                log,
            ],
            false => Vec::new(),
        }
    }

    /// Tells how often that came about which is no fault of a time.
    pub fn tell(self, log: &Path, chronicle: &Chronicle) {
        let said = std::fs::read(log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let thrown = said.matches("overcoming of output buffer limits").count();
        let profiles = [
            (self.short, "leases are short"),
            (self.databases, "two databases have the same keys"),
            (self.large, "some results are large"),
        ];
        let drawn = profiles.into_iter().filter(|(drawn, _)| *drawn);
        chronicle.edit(|seen| {
            let overflows = "a large result throws a subscriber out";
            seen.harmless.extend(std::iter::repeat_n(overflows, thrown));
            seen.harmless.extend(drawn.map(|(_, name)| name));
        });
    }
}

/// For how long its threads are blocked, in ms: from half a lease to four.
pub fn blocked_for(random: &mut StdRng, span: u64) -> u64 {
    random.gen_range(span / 2..=4 * span)
}

/// An order to a worker.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Block {
    /// All threads of the runtime, or one.
    pub all: bool,
    pub ms: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blocked {
    pub from: u64,
    pub to: u64,
    /// How many valid guards the process held when it began.
    pub held: usize,
    /// Why those of them were lost that were when it ended, other than by the bound on holding.
    pub lost: Vec<String>,
}

/// How long a block waits for a guard.
const HOLDING: Duration = Duration::from_secs(2);

/// Blocks threads of a runtime, if possible while the process holds a valid guard. Runs in the
/// worker, on a thread that no runtime owns.
pub fn block(block: Block, threads: usize, runtime: &Handle, sampler: &Sampler) -> Blocked {
    // Two that wait for all threads at once would wait for each other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let until = std::time::Instant::now() + HOLDING;
    while sampler.valid().is_empty() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let threads = if block.all { threads } else { 1 };
    let from = now();
    let together = Arc::new(Barrier::new(threads + 1));
    let (over, is_over) = mpsc::channel::<()>();
    for _ in 0..threads {
        let (together, over) = (together.clone(), over.clone());
        runtime.spawn(async move {
            together.wait();
            std::thread::sleep(Duration::from_millis(block.ms));
            drop(over);
        });
    }
    drop(over);
    together.wait();
    let held = sampler.valid();
    // It ends with the last of the senders.
    let _ = is_over.recv();
    let lost = sampler.lost(&held);
    Blocked {
        from,
        to: now(),
        held: held.len(),
        lost,
    }
}

/// Has a worker block its threads, and tells of it.
pub async fn blocks(process: &mut Process, chronicle: &Chronicle, kind: Standstill, ms: u64) {
    let all = kind == Standstill::Runtime;
    let renews = process.renews;
    let Some(blocked) = process.block(Block { all, ms }).await else {
        return;
    };
    let name = match blocked.held {
        0 => "threads are blocked without a guard",
        _ => kind.name(),
    };
    let scope = Scope::Process(process.number);
    chronicle.fault(name, scope, blocked.from, blocked.to);
    if renews && !blocked.lost.is_empty() {
        let run = &chronicle.run;
        println!(
            "{run}: process {} lost guards in a block: {blocked:?}",
            process.number
        );
    }
    chronicle.edit(|seen| {
        let mut tell = |what, count| seen.harmless.extend(std::iter::repeat_n(what, count));
        if renews {
            tell("renewing guards are held over a block", blocked.held);
            tell("renewing guards are lost in a block", blocked.lost.len());
        } else {
            tell(
                "guards that are not renewed are held over a block",
                blocked.held,
            );
        }
    });
}

/// The machine of a process stands still for so long, in s.
pub async fn stands_still(
    process: &mut Process,
    chronicle: &Chronicle,
    kind: Standstill,
    machine: &mut Machine,
    seconds: u64,
) {
    let from = now();
    process.signal(Signal::SIGSTOP);
    // No clock may go back for what runs a little longer.
    sleep(Duration::from_secs(seconds) + Duration::from_millis(20)).await;
    machine.stood_for(kind, seconds);
    process.signal(Signal::SIGCONT);
    chronicle.fault(kind.name(), Scope::Process(process.number), from, now());
}

/// What the processes of a slot believe of the time.
#[cfg(target_os = "linux")]
pub struct Machine {
    clocks: Clocks,
    monotonic: i64,
    boot: i64,
}

#[cfg(target_os = "linux")]
impl Machine {
    pub fn new() -> Self {
        Self {
            clocks: Clocks::compile(),
            monotonic: 0,
            boot: 0,
        }
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        self.clocks.environment().into()
    }

    fn stood_for(&mut self, kind: Standstill, seconds: u64) {
        let seconds = seconds as i64;
        self.monotonic -= seconds;
        self.clocks.set(Clock::Monotonic, self.monotonic);
        if kind == Standstill::Pause {
            self.boot -= seconds;
            self.clocks.set(Clock::Boot, self.boot);
        }
    }
}

/// Where no clock can be moved, its process is only stopped.
#[cfg(not(target_os = "linux"))]
pub struct Machine;

#[cfg(not(target_os = "linux"))]
impl Machine {
    pub fn new() -> Self {
        Self
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn stood_for(&mut self, _: Standstill, _: u64) {}
}

pub fn stood(random: &mut StdRng) -> u64 {
    random.gen_range(STOOD)
}

pub fn burst(random: &mut StdRng) -> Duration {
    Duration::from_millis(random.gen_range(BURST))
}
