//! What happened in a fleet, and whether it may have happened: the twelve invariants of the crate.
//!
//! A history is what the workers did and heard, what the server wrote, what a resource behind the fencing
//! tokens accepted, and which faults there were. All clocks are one: processes and servers share a machine.
//!
//! | | invariant |
//! |---|---|
//! | 1 | the grants of a key do not overlap in the server's time, and their fencing tokens rise |
//! | 2 | a resource that rejects smaller tokens accepts no write of a stale holder |
//! | 3 | +1 for each counted grant, never above the run's maximum; a request that is replayed gets the same grant |
//! | 4 | at most one completion a run, and no grant after it |
//! | 5 | `done()` is `Ok` only for the token that the record held, and nobody else completes |
//! | 6 | `is_valid()` implies that the server has let no one else in |
//! | 7 | any number of non-terminal events, exactly one terminal event, then `None` |
//! | 8 | what a waiter is told of the outcome was recorded, in the run that it took part in |
//! | 9 | with a live waiter and a healthy server, a grant follows at once on a failure, and on a lease's end |
//! | 10 | after the last fault and one lease no stream is pending without a live holder |
//! | 11 | what was dropped or has crashed holds nothing for longer than promised |
//! | 12 | no two guards of a key are seen valid at once, and one that was seen invalid stays so |
//!
//! Where the server lost data, 1, 3, 4, 6, 12 and what was recorded are suspended across the loss;
//! that fencing tokens rise, and 2, never are.

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

/// How late a thing may come that nothing holds up, in µs: far later than it does.
const SOON: u64 = 3_000_000;

/// How long after a fault clients may still be busy with it (a silent connection is given up after 3 s, and
/// made again within 1 s), in µs.
const GRACE: u64 = 6_000_000;

/// Between what a server's clock says in its cached ms and in a script, in µs.
const TICK: u64 = 2_000;

/// How long a script may take that the machine holds up, in µs. A key lives for as long from when it is set, and
/// `until` counts from when the script began.
const SCRIPT: u64 = 200_000;

/// How much of a long result a history keeps, in bytes.
const BRIEF: usize = 64;

/// What a worker did or heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    /// When, in µs since the epoch: of what was heard not before, of what is done not after.
    pub at: u64,
    pub process: u32,
    /// Unique in the history.
    pub stream: u64,
    pub key: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// About to poll a new stream.
    Joined {
        rejoins: bool,
    },
    /// About to drop the stream.
    Left,
    Acquired {
        fence: u64,
        attempt: u32,
    },
    /// `Locked`, `Status` or a passing error.
    NotTerminal,
    Completed {
        holder: String,
        attempt: u32,
        result: Vec<u8>,
    },
    GaveUp,
    Failed,
    Fatal(String),
    /// `None`.
    End,
    /// The guard said that it is valid, when it was asked after this.
    Valid {
        fence: u64,
    },
    /// About to end the guard.
    Ending {
        fence: u64,
        how: How,
    },
    Ended {
        fence: u64,
        answer: Answer,
    },
    /// The resource was asked to take a write under this token.
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
    /// `mem::forget`: only the lease and the cap on renewals end it.
    Forgotten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Ok,
    Lost,
    Unknown,
    Refused,
}

/// What a sampler saw of a guard. The sampler is a thread that no runtime of the worker can block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub key: String,
    pub fence: u64,
    /// Time before the look, in µs since the epoch.
    pub at: u64,
    /// Time before the look, in µs of a clock that all processes share and that is never set.
    pub before: u64,
    /// Time after the look, by the same clock.
    pub after: u64,
    /// What `is_valid` said.
    pub valid: bool,
}

/// A process of the fleet, which holds under a label of its own.
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
    /// The server has forgotten the record, or may have.
    Forgot {
        at: u64,
    },
    /// What it wrote in between may not have been seen; nothing is forgotten by that.
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
    /// Those at one guard in their order.
    pub looks: Vec<Look>,
    pub audit: BTreeMap<String, Vec<Step>>,
    pub faults: Vec<Fault>,
    /// The tokens of the writes that a resource accepted for each key, in its order.
    pub accepted: BTreeMap<String, Vec<u64>>,
    /// By the process's number.
    pub members: HashMap<u32, Member>,
    /// When the fleet was asked to work off what there was, and to end.
    pub finishing: u64,
    /// When the records were last looked at, all faults being over.
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

/// What was found of a history, and how often each invariant was put to the test in it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    /// By the invariant's number.
    pub examined: [u64; 13],
    /// How long what nobody held was free while somebody waited, undisturbed, in µs.
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

/// A grant as the server wrote it first.
struct Grant<'a> {
    /// The place of that among its key's steps.
    place: usize,
    began: u64,
    attempt: u32,
    holder: &'a str,
}

/// A key and a fencing token.
type Name<'a> = (&'a str, u64);

struct Checker<'a> {
    history: &'a History,
    /// What each stream did and heard, in its order.
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

    /// How a grant was ended until then, if its holder had begun to end it.
    fn how(&self, grant: Name<'_>, at: u64) -> Option<&'a How> {
        let endings = self.endings.get(&grant)?;
        let mut until = endings.iter().filter(|(asked, _)| *asked <= at + TICK);
        until.next().map(|(_, how)| *how)
    }

    fn is_acquired(&self, grant: Name<'_>) -> bool {
        self.acquired.contains_key(&grant)
    }

    /// Whether the auditor may have missed what was written to this key in this time.
    fn unwatched(&self, key: &str, from: u64, to: u64) -> bool {
        self.steps(key).iter().any(|step| match step {
            // The last that a server says before it is killed does not arrive.
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

    /// How long the script may have taken that began then: as long as the server, if that was stopped in it.
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

    /// When a process was killed.
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

/// The records of a key with their places among its steps and their times.
fn records(steps: &[Step]) -> impl DoubleEndedIterator<Item = (usize, &Record, u64)> {
    let written = steps.iter().enumerate();
    written.filter_map(|(place, step)| match step {
        Step::Wrote(frame) => Some((place, frame.record.as_deref()?, frame.at)),
        Step::Forgot { .. } | Step::Unwatched { .. } => None,
    })
}

/// A result as histories keep it: a long one by its beginning, its length and its hash.
pub fn brief(result: &[u8]) -> Vec<u8> {
    let Some(beginning) = result.get(..BRIEF).filter(|_| result.len() > 2 * BRIEF) else {
        return result.to_vec();
    };
    let mut hasher = DefaultHasher::new();
    result.hash(&mut hasher);
    let rest = format!("… {} bytes, {:016x}", result.len(), hasher.finish());
    [beginning, rest.as_bytes()].concat()
}

/// How many distinct grants a history has.
pub fn grants(history: &History) -> usize {
    let fences = history.audit.iter().flat_map(|(key, steps)| {
        let owned = records(steps).filter(|(_, record, _)| record.state.is_owned());
        owned.map(move |(_, record, _)| (key, record.fence))
    });
    fences.collect::<HashSet<_>>().len()
}
