//! Checks the history of a fleet against the twelve invariants of the crate.
//!
//! A history has what the workers did and were told, what the server wrote, what a resource that
//! checks fencing tokens accepted, and which faults there were. All times are of one clock, since
//! processes and servers share a machine.
//!
//! | | invariant |
//! |---|---|
//! | 1 | the grants of a key do not overlap in the server's time, and their fencing tokens rise |
//! | 2 | a resource that rejects smaller tokens accepts no write of a stale holder |
//! | 3 | each counted grant adds 1, up to the maximum; a repeated request gets the same grant |
//! | 4 | a run has at most one completion, and no grant after it |
//! | 5 | `done()` is `Ok` only for the token in the record, and no other participant completes |
//! | 6 | while `is_valid()` is true, the server has granted the key to no other participant |
//! | 7 | a stream yields non-terminal events, exactly one terminal event, then `None` |
//! | 8 | an outcome that a waiter is told was recorded, in the run that it took part in |
//! | 9 | with a live waiter and a healthy server, a failure or lease end leads to a grant at once |
//! | 10 | after the last fault and one lease no stream is pending without a live holder |
//! | 11 | a dropped or crashed participant holds nothing for longer than promised |
//! | 12 | no two guards of a key are seen valid at once, and one that was seen invalid stays so |
//!
//! A loss of data on the server suspends 1, 3, 4, 6, 12 and the checks of what was recorded across
//! the loss. It never suspends 2, nor the rule that fencing tokens rise.

mod guards;
mod looks;
mod streams;
mod timing;
mod transitions;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};

use redis_locking_worker::internals::{Record, RecordSnapshot};
use serde::{Deserialize, Serialize};

/// Longest delay of anything that no fault delays, in µs. Real delays are far shorter.
const SOON: u64 = 3_000_000;

/// Longest time after a fault for which clients may still feel it, in µs: they leave a silent
/// connection after 3 s, and make a new one within 1 s.
const GRACE: u64 = 6_000_000;

/// Difference between the server's cached clock, in ms, and the clock that a script reads, in µs.
const TICK: u64 = 2_000;

/// Longest time for which the machine delays a script, in µs. The TTL of a key counts from the
/// `SET`, but `until` counts from the start of the script, so a key may outlive `until` by this
/// much.
const SCRIPT: u64 = 200_000;

/// Length of the part of a long result that a history keeps, in bytes.
const BRIEF: usize = 64;

/// An action of a worker, or an event that it received.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Time in µs since the epoch. An event happened no later than this, an action no earlier.
    pub at: u64,
    pub process: u32,
    /// Unique in the history.
    pub stream: u64,
    pub key: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// The worker is about to poll a new stream.
    Joined {
        rejoins: bool,
    },
    /// The worker is about to drop the stream.
    Left,
    Acquired {
        fence: u64,
        attempt: u32,
    },
    /// `Locked`, `Status` or a transient error.
    NotTerminal,
    Completed {
        holder: String,
        attempt: u32,
        result: Vec<u8>,
    },
    GaveUp,
    Failed,
    Fatal(String),
    /// The stream yielded `None`.
    End,
    /// The guard said that it is valid. The worker asked it after this time.
    Valid {
        fence: u64,
    },
    /// The worker is about to end the guard.
    Ending {
        fence: u64,
        how: How,
    },
    Ended {
        fence: u64,
        answer: Answer,
    },
    /// The worker sent the resource a write under this token.
    Wrote {
        fence: u64,
        accepted: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    Done(Vec<u8>),
    Failed,
    FailedPermanently,
    HandedOff,
    Dropped,
    /// `mem::forget`: only the lease and the bound on renewals end the grant.
    Forgotten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Ok,
    Lost,
    Unknown,
    Refused,
}

/// One reading of a guard by a sampler, a thread that no runtime of the worker can block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub key: String,
    pub fence: u64,
    /// Time before the reading, in µs since the epoch.
    pub at: u64,
    /// Time before the reading, in µs of a clock that all processes share and that is never set.
    pub before: u64,
    /// Time after the reading, by the same clock.
    pub after: u64,
    /// Answer of `is_valid`.
    pub valid: bool,
}

/// A process of the fleet. Its label is unique.
#[derive(Clone, Debug)]
pub struct Member {
    pub label: String,
    /// In ms.
    pub lease: u64,
    /// In ms.
    pub max_hold: u64,
}

/// A step in the life of a key, in the server's order.
#[derive(Clone, Debug)]
pub enum Step {
    Wrote(RecordSnapshot),
    /// The server forgot the record, or may have done so.
    Forgot {
        at: u64,
    },
    /// The auditor may have missed writes of this time. The server has forgotten nothing by that.
    Unwatched {
        from: u64,
        to: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Server,
    Process(u32),
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub name: &'static str,
    pub scope: Scope,
    pub from: u64,
    pub to: u64,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    pub told: Vec<Told>,
    /// Readings of all guards. Those of one guard are in order.
    pub looks: Vec<Look>,
    pub audit: BTreeMap<String, Vec<Step>>,
    pub faults: Vec<Fault>,
    /// Tokens of the writes that a resource accepted for each key, in its order.
    pub accepted: BTreeMap<String, Vec<u64>>,
    /// Processes by their number.
    pub members: HashMap<u32, Member>,
    /// Time when the fleet was told to finish its work and to end.
    pub finishing: u64,
    /// Time of the last read of the records, after all faults.
    pub ended: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: u8,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.what)
    }
}

/// The violations in a history, and the number of times that each invariant was checked.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    /// Number of checks, by the invariant's number.
    pub examined: [u64; 13],
    /// Times for which a free key with a waiter was not taken, without a fault, in µs.
    pub takeovers: Vec<u64>,
}

pub fn check(history: &History) -> Verdict {
    let mut checker = Checker::new(history);
    checker.streams();
    checker.transitions();
    checker.guards();
    checker.looks();
    checker.timing();
    checker.verdict
}

/// A grant, as in the first record that shows it.
struct Grant<'a> {
    /// Index of that record among the steps of its key.
    place: usize,
    began: u64,
    attempt: u32,
    holder: &'a str,
}

/// A key and a fencing token.
type Name<'a> = (&'a str, u64);

struct Checker<'a> {
    history: &'a History,
    /// Actions and events of each stream, in order.
    streams: BTreeMap<u64, Vec<&'a Told>>,
    endings: HashMap<Name<'a>, Vec<(u64, &'a How)>>,
    acquired: HashMap<Name<'a>, Vec<&'a Told>>,
    grants: BTreeMap<Name<'a>, Grant<'a>>,
    verdict: Verdict,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Self {
        let mut checker = Self {
            history,
            streams: BTreeMap::new(),
            endings: HashMap::new(),
            acquired: HashMap::new(),
            grants: BTreeMap::new(),
            verdict: Verdict::default(),
        };
        for told in &history.told {
            checker.streams.entry(told.stream).or_default().push(told);
            match &told.what {
                What::Ending { fence, how } => {
                    let endings = checker.endings.entry((&told.key, *fence)).or_default();
                    endings.push((told.at, how));
                }
                What::Acquired { fence, .. } => {
                    let acquired = checker.acquired.entry((&told.key, *fence)).or_default();
                    acquired.push(told);
                }
                _ => {}
            }
        }
        for (key, steps) in &history.audit {
            for (place, record, at) in records(steps) {
                if record.state.is_owned() {
                    let grant = Grant {
                        place,
                        began: at,
                        attempt: record.attempt,
                        holder: &record.holder,
                    };
                    checker.grants.entry((key, record.fence)).or_insert(grant);
                }
            }
        }
        checker
    }

    fn violates(&mut self, invariant: u8, what: impl fmt::Display) {
        let what = what.to_string();
        self.verdict.violations.push(Violation { invariant, what });
    }

    fn examines(&mut self, invariant: usize) {
        self.verdict.examined[invariant] += 1;
    }

    fn steps(&self, key: &str) -> &'a [Step] {
        self.history.audit.get(key).map_or(&[], |steps| steps)
    }

    /// Returns the way in which the holder had begun to end a grant by then, if it had.
    fn how(&self, grant: Name<'_>, at: u64) -> Option<&'a How> {
        let endings = self.endings.get(&grant)?;
        let mut until = endings.iter().filter(|(asked, _)| *asked <= at + TICK);
        until.next().map(|(_, how)| *how)
    }

    fn is_acquired(&self, grant: Name<'_>) -> bool {
        self.acquired.contains_key(&grant)
    }

    /// Whether the auditor may have missed writes to this key in this time.
    fn unwatched(&self, key: &str, from: u64, to: u64) -> bool {
        self.steps(key).iter().any(|step| match step {
            // The last output of a server before it is killed does not arrive.
            Step::Unwatched {
                from: since,
                to: until,
            } => since.saturating_sub(SCRIPT) <= to && from <= *until,
            Step::Wrote(_) | Step::Forgot { .. } => false,
        })
    }

    /// Whether the server may have forgotten this key in this time.
    fn forgot(&self, key: &str, from: u64, to: u64) -> bool {
        self.steps(key).iter().any(|step| match step {
            Step::Forgot { at } => (from..=to).contains(at),
            Step::Wrote(_) | Step::Unwatched { .. } => false,
        })
    }

    /// Returns the longest time that a script which began then may have taken. It includes the time
    /// for which the server was stopped in it.
    fn longest_script(&self, began: u64) -> u64 {
        let faults = self.history.faults.iter();
        let stops = faults.filter(|fault| {
            fault.scope == Scope::Server && fault.from <= began + SCRIPT && began <= fault.to
        });
        let longest = stops
            .map(|fault| fault.to.saturating_sub(began).saturating_add(SCRIPT))
            .max();
        longest.unwrap_or(SCRIPT)
    }

    fn server_disturbed(&self, from: u64, to: u64) -> bool {
        self.any_fault(Scope::Server, from, to)
    }

    fn disturbed(&self, process: u32, from: u64, to: u64) -> bool {
        self.any_fault(Scope::Process(process), from, to)
    }

    fn any_fault(&self, scope: Scope, from: u64, to: u64) -> bool {
        self.history.faults.iter().any(|fault| {
            let over = fault.to.saturating_add(GRACE);
            fault.scope == scope && fault.from <= to && from <= over
        })
    }

    /// Returns the time when a process was killed, if it was.
    fn killed(&self, process: u32) -> Option<u64> {
        let mut kills = self
            .history
            .faults
            .iter()
            .filter(|fault| fault.to == u64::MAX);
        let kill = kills.find(|fault| fault.scope == Scope::Process(process));
        kill.map(|fault| fault.from)
    }

    fn process(&self, label: &str) -> Option<u32> {
        let mut members = self.history.members.iter();
        members
            .find(|(_, member)| member.label == label)
            .map(|(process, _)| *process)
    }
}

/// Returns the records of a key, with their indices among its steps and their times.
fn records(steps: &[Step]) -> impl DoubleEndedIterator<Item = (usize, &Record, u64)> {
    let written = steps.iter().enumerate();
    written.filter_map(|(place, step)| match step {
        Step::Wrote(frame) => Some((place, frame.record.as_deref()?, frame.at)),
        Step::Forgot { .. } | Step::Unwatched { .. } => None,
    })
}

/// Returns a result as histories keep it. Shortens a long one to its beginning, length and hash.
pub fn brief(result: &[u8]) -> Vec<u8> {
    let Some(beginning) = result.get(..BRIEF).filter(|_| result.len() > 2 * BRIEF) else {
        return result.to_vec();
    };
    let mut hasher = DefaultHasher::new();
    result.hash(&mut hasher);
    let rest = format!("… {} bytes, {:016x}", result.len(), hasher.finish());
    [beginning, rest.as_bytes()].concat()
}

/// Returns the number of distinct grants in a history.
pub fn grants(history: &History) -> usize {
    let fences = history.audit.iter().flat_map(|(key, steps)| {
        let owned = records(steps).filter(|(_, record, _)| record.state.is_owned());
        owned.map(move |(_, record, _)| (key, record.fence))
    });
    fences.collect::<HashSet<_>>().len()
}
