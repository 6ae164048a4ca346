//! Looks at the guards of a process, from a thread that no runtime blocks.

use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use redis_locking_worker::{LeaseLost, WorkGuard};

use crate::now;
use crate::worker::{Said, say};
use proof::history::Look;

/// How often each guard is looked at.
const EVERY: Duration = Duration::from_millis(5);

pub struct Sampler {
    guards: Arc<Mutex<Vec<Sampled>>>,
    stop: mpsc::Sender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Sampled {
    key: String,
    fence: u64,
    guard: Weak<WorkGuard>,
    /// What was seen last.
    valid: bool,
}

impl Sampler {
    pub fn start() -> Self {
        let guards: Arc<Mutex<Vec<Sampled>>> = Arc::default();
        let (stop, stopped) = mpsc::channel();
        let looking = guards.clone();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Under the lock: what is withdrawn has no other owner than the worker.
                looking.lock().unwrap().retain_mut(look);
            }
        });
        Self {
            guards,
            stop,
            thread: Mutex::new(Some(thread)),
        }
    }

    /// Looks at it until it is withdrawn or dropped.
    pub fn add(&self, key: &str, guard: &Arc<WorkGuard>) {
        self.guards.lock().unwrap().push(Sampled {
            key: key.to_owned(),
            fence: guard.fencing_token(),
            guard: Arc::downgrade(guard),
            valid: true,
        });
    }

    /// A guard at which nothing looks any more.
    pub fn withdraw(&self, key: &str, fence: u64) {
        let mut guards = self.guards.lock().unwrap();
        guards.retain(|sampled| (&sampled.key[..], sampled.fence) != (key, fence));
    }

    /// The tokens of the guards that are valid now.
    pub fn valid(&self) -> Vec<u64> {
        let guards = self.guards.lock().unwrap();
        let valid = guards.iter().filter(|sampled| {
            let guard = sampled.guard.upgrade();
            guard.is_some_and(|guard| guard.is_valid())
        });
        valid.map(|sampled| sampled.fence).collect()
    }

    /// Why those of these are lost that are, unless they were held for as long as they may be.
    pub fn lost(&self, fences: &[u64]) -> Vec<String> {
        let guards = self.guards.lock().unwrap();
        let of_these = guards
            .iter()
            .filter(|sampled| fences.contains(&sampled.fence));
        let guards = of_these.filter_map(|sampled| sampled.guard.upgrade());
        let lost = guards.filter_map(|guard| guard.check().err());
        let lost = lost.filter(|why| !matches!(why, LeaseLost::MaxHold { .. }));
        lost.map(|why| why.to_string()).collect()
    }

    /// Says nothing after this.
    pub fn stop(&self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }
}

/// Tells what it sees, of what is not valid only the first time. Whether there still is a guard.
fn look(sampled: &mut Sampled) -> bool {
    let Some(guard) = sampled.guard.upgrade() else {
        return false;
    };
    let (at, before) = (now(), raw());
    let valid = guard.is_valid();
    let after = raw();
    if std::mem::replace(&mut sampled.valid, valid) || valid {
        say(&Said::Look(Look {
            key: sampled.key.clone(),
            fence: sampled.fence,
            at,
            before,
            after,
            valid,
        }));
    }
    true
}

/// In µs, by a clock of the kernel that nothing sets or slows. The library that moves the clocks of a
/// process leaves this one alone.
fn raw() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC_RAW;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

    let now: Duration = clock_gettime(CLOCK).unwrap().into();
    now.as_micros() as u64
}
