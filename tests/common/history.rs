//! What happened in a fleet, and whether it may have happened: the eleven invariants of the crate.
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
//!
//! Where the server lost data, 1, 3, 4, 6 and what was recorded are suspended across the loss; that fencing
//! tokens rise, and 2, never are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use redis_locking_worker::internals::{Cause, Frame, Record, State};
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
    MaxAttempts,
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
    Wrote(Frame),
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
    pub examined: [u64; 12],
}

pub fn check(history: &History) -> Verdict {
    let mut checker = Checker::new(history);
    checker.streams();
    for (key, steps) in &history.audit {
        checker.key(key, steps);
    }
    checker.guards();
    checker.resource();
    checker.verdict
}

struct Grant<'a> {
    /// Its place in the key's steps.
    place: usize,
    began: u64,
    attempt: u32,
    holder: &'a str,
}

struct Checker<'a> {
    history: &'a History,
    /// What each stream did and heard, in its order.
    streams: BTreeMap<u64, Vec<&'a Told>>,
    endings: HashMap<(&'a str, u64), Vec<(u64, &'a How)>>,
    acquired: HashMap<(&'a str, u64), &'a Told>,
    grants: HashMap<(&'a str, u64), Grant<'a>>,
    verdict: Verdict,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Self {
        let mut checker = Self {
            history,
            streams: BTreeMap::new(),
            endings: HashMap::new(),
            acquired: HashMap::new(),
            grants: HashMap::new(),
            verdict: Verdict::default(),
        };
        for told in &history.told {
            checker.streams.entry(told.stream).or_default().push(told);
            match &told.what {
                What::Ending { fence, how } => {
                    let ending = checker.endings.entry((&told.key, *fence)).or_default();
                    ending.push((told.at, how));
                }
                What::Acquired { fence, .. } => {
                    checker.acquired.entry((&told.key, *fence)).or_insert(told);
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

    /// 7, and 10.
    fn streams(&mut self) {
        for (stream, told) in std::mem::take(&mut self.streams) {
            self.stream(stream, &told);
            self.streams.insert(stream, told);
        }
    }

    fn stream(&mut self, stream: u64, told: &[&'a Told]) {
        self.examines(7);
        let (mut terminal, mut over, mut left) = (0, false, false);
        for event in told {
            let is_terminal = matches!(
                event.what,
                What::Completed { .. } | What::MaxAttempts | What::Failed | What::Fatal(_)
            );
            let is_event = is_terminal
                || matches!(
                    event.what,
                    What::Acquired { .. } | What::NotTerminal | What::End
                );
            left |= event.what == What::Left;
            if is_event && left {
                self.violates(7, format_args!("{stream:x} was dropped, then {event:?}"));
            }
            if is_event && event.what != What::End && (terminal > 0 || over) {
                self.violates(7, format_args!("{stream:x} had ended, then {event:?}"));
            }
            terminal += u32::from(is_terminal);
            if event.what == What::End {
                over = true;
                if terminal == 0 {
                    self.violates(7, format_args!("{stream:x} ends without a terminal event"));
                }
            }
            self.outcome(told[0], event);
        }
        // A fleet is only asked to end when all is well again, and works off what there is.
        let last = told[told.len() - 1];
        let killed = self
            .history
            .faults
            .iter()
            .any(|fault| fault.scope == Scope::Process(last.process) && fault.to == u64::MAX);
        if !left && !killed {
            self.examines(10);
        }
        if !over && !left && !killed {
            let at = self.history.ended;
            self.violates(
                10,
                format_args!("{stream:x} is pending at {at}, after {last:?}"),
            );
        }
    }

    /// 8.
    fn outcome(&mut self, joined: &Told, event: &'a Told) {
        let steps = self
            .history
            .audit
            .get(&event.key)
            .map_or(&[][..], |steps| steps);
        // Within the retention a late stream is told the outcome of the run before.
        let mut of_its_run = records(steps)
            .filter(|(_, record, at)| *at <= event.at && record.until * 1_000 + TICK >= joined.at);
        let recorded = match &event.what {
            What::Completed {
                holder,
                attempt,
                result,
            } => of_its_run.any(|(_, record, _)| {
                record.state == State::Done
                    && (&record.holder, record.attempt) == (holder, *attempt)
                    && record.result == result[..]
            }),
            What::MaxAttempts => of_its_run.any(|(_, record, _)| record.state == State::Exhausted),
            _ => return,
        };
        self.examines(8);
        if !recorded && !self.unseen(&event.key, joined.at, event.at) {
            self.violates(8, format_args!("nothing like it was recorded: {event:?}"));
        }
    }

    /// Whether the auditor may have missed something that was written and told of.
    fn unseen(&self, key: &str, from: u64, to: u64) -> bool {
        let steps = self.history.audit.get(key).map_or(&[][..], |steps| steps);
        steps.iter().any(|step| match step {
            Step::Wrote(_) => false,
            Step::Forgot { at } | Step::Unwatched { to: at, .. } => (from..=to + SOON).contains(at),
        })
    }

    /// 1, 3, 4, and 9 and 11 as far as they are about what the server wrote.
    fn key(&mut self, key: &'a str, steps: &'a [Step]) {
        let mut highest = 0;
        let mut before: Option<(&Record, u64)> = None;
        let mut lost = false;
        for step in steps {
            let (record, at) = match step {
                Step::Wrote(frame) => match &frame.record {
                    Some(record) => (&**record, frame.at),
                    None => continue,
                },
                Step::Forgot { .. } | Step::Unwatched { .. } => {
                    lost = true;
                    continue;
                }
            };
            let known = before.filter(|_| !lost);
            // An old master may go on with what it has after a new one has granted anew.
            let is_new = self.grants.get(&(key, record.fence));
            if record.fence < highest && is_new.is_none_or(|grant| grant.began == at) {
                self.violates(
                    1,
                    format_args!("{key}: {record:?} after the token {highest}"),
                );
            }
            highest = highest.max(record.fence);
            if record.attempt > record.max_attempts {
                self.violates(3, format_args!("{key}: above the maximum: {record:?}"));
            }
            if let Some((before, _)) = known {
                self.examines(1);
                self.examines(3);
                if matches!(before.state, State::Done | State::Exhausted) {
                    self.examines(4);
                }
                self.transition(key, before, record, at);
                self.takeover(key, known, at);
            }
            self.completion(key, record, at);
            (before, lost) = (Some((record, at)), false);
        }
        if !lost {
            self.takeover(key, before, self.history.ended);
            self.orphan(key, before.map(|(record, _)| record));
        }
    }

    /// 1, 3 and 4: from one record of a key to the next.
    fn transition(&mut self, key: &str, before: &Record, record: &Record, at: u64) {
        let text = || format!("{key}, at {at}: {before:?}, then {record:?}");
        let is_final = |record: &Record| matches!(record.state, State::Done | State::Exhausted);
        let over = at / 1_000 >= before.until;
        let remembered_until = match before.state.is_owned() {
            true => before.until + before.retention,
            false => before.until,
        };
        let forgotten = at + TICK >= remembered_until * 1_000;
        if record.fence == before.fence {
            let same = record.owner == before.owner && record.attempt == before.attempt;
            let allowed = match (before.state, record.state) {
                (State::Held | State::Granted, State::Held) => {
                    same && record.until >= before.until && record.renewal > before.renewal
                }
                (State::Held | State::Granted, State::Open) => {
                    record.attempt == before.attempt || record.attempt + 1 == before.attempt
                }
                (State::Held | State::Granted, State::Done) => same,
                (State::Held | State::Granted | State::Open, State::Exhausted) => true,
                _ => false,
            };
            if !allowed {
                let invariant = if is_final(before) { 4 } else { 3 };
                self.violates(invariant, text());
            } else if before.state.is_owned() && !record.state.is_owned() && !over {
                self.ended_by_its_holder(key, before, at);
            }
            return;
        }
        // A grant, the first of a run or another of the same.
        if !record.state.is_owned() {
            self.violates(1, format_args!("a token without a grant: {}", text()));
        }
        if record.attempt == 1 && record.previous.is_none() && forgotten {
            return;
        }
        if is_final(before) {
            self.violates(4, text());
            return;
        }
        // Longer than that a token is not remembered: whoever was granted the work while it was stopped, and
        // has not heard of it, may claim again under the same one after others had their turn.
        if record.owner == before.owner || record.owner == before.last {
            self.violates(3, format_args!("a second grant of a token: {}", text()));
        }
        // A grant that was given back before anybody worked on it is the same attempt, and says nothing new of
        // the one before; so is one that nobody confirmed.
        let counted = before.state == State::Open
            || record.previous.as_ref().is_some_and(|previous| {
                previous.attempt == before.attempt && previous.cause != Cause::HandedOver
            });
        if before.state.is_owned() && !over {
            if record.state == State::Held {
                self.violates(1, text());
            }
            self.ended_by_its_holder(key, before, at);
        }
        if record.attempt != before.attempt + u32::from(counted)
            || record.max_attempts != before.max_attempts
        {
            self.violates(3, text());
        }
    }

    /// 1: a lease that still runs ends only by its holder, or before its holder has heard of it.
    fn ended_by_its_holder(&mut self, key: &str, before: &Record, at: u64) {
        let grant = (key, before.fence);
        let Some(acquired) = self.acquired.get(&grant) else {
            return;
        };
        let ending = self.endings.get(&grant);
        let ended =
            ending.is_some_and(|endings| endings.iter().any(|(asked, _)| *asked <= at + TICK));
        if acquired.at < at && !ended {
            let text = format_args!("{key}: ended at {at} by somebody else: {before:?}");
            self.violates(1, text);
        }
    }

    /// 5: who completes has asked for it.
    fn completion(&mut self, key: &str, record: &Record, at: u64) {
        if record.state != State::Done {
            return;
        }
        self.examines(5);
        let asked =
            |(_, how): &(u64, &How)| matches!(how, How::Done(result) if *result == record.result);
        let ending = self.endings.get(&(key, record.fence));
        if !ending.is_some_and(|endings| endings.iter().any(asked)) {
            self.violates(
                5,
                format_args!("{key}: nobody asked for it at {at}: {record:?}"),
            );
        }
    }

    /// 9: what follows on a record that nobody holds any more, or not for longer than its lease.
    fn takeover(&mut self, key: &str, before: Option<(&Record, u64)>, next: u64) {
        let Some((record, at)) = before else { return };
        let free = match record.state {
            State::Held | State::Granted => record.until * 1_000,
            State::Open => at,
            State::Done | State::Exhausted => return,
        };
        let soon = free + SOON;
        let until = next.min(soon);
        if self.server_disturbed(free, until) {
            return;
        }
        let waiter = self.streams.values().find(|told| {
            let first = told[0];
            first.key == key
                && waits(told, free, until)
                && !self.disturbed(first.process, free, until)
        });
        let Some(told) = waiter.map(|told| told[0]) else {
            return;
        };
        self.examines(9);
        if next > soon {
            let text = format!("{key}: free at {free}, not taken by {told:?}: {record:?}");
            self.violates(9, text);
        }
    }

    /// 11: at the end nobody holds anything who did not forget it or die with it.
    fn orphan(&mut self, key: &str, last: Option<&Record>) {
        let Some(record) = last.filter(|record| record.state.is_owned()) else {
            return;
        };
        let forgotten = |(_, how): &(u64, &How)| **how == How::Forgotten;
        let endings = self.endings.get(&(key, record.fence));
        let excused = endings.is_some_and(|endings| endings.iter().any(forgotten))
            || self.history.faults.iter().any(|fault| match fault.scope {
                Scope::Process(process) => self
                    .history
                    .members
                    .get(&process)
                    .is_some_and(|member| member.label == record.holder),
                Scope::Server => false,
            });
        if record.until * 1_000 > self.history.ended && !excused {
            self.violates(11, format_args!("{key}: still held at the end: {record:?}"));
        }
    }

    /// 5 and 6, and 11 as far as it is about guards.
    fn guards(&mut self) {
        let history = self.history;
        for told in &history.told {
            match &told.what {
                What::Valid { fence } => self.valid(told, *fence),
                What::Ended { fence, answer } => self.ended(told, *fence, *answer),
                What::Ending { fence, how } if *how != How::Forgotten => self.dropped(told, *fence),
                What::Acquired { fence, attempt } => {
                    let grant = self.grants.get(&(&told.key, *fence));
                    let label = history
                        .members
                        .get(&told.process)
                        .map(|member| &member.label);
                    let recorded = grant.is_some_and(|grant| {
                        grant.attempt == *attempt && label.is_none_or(|label| label == grant.holder)
                    });
                    if !recorded && !self.unseen(&told.key, told.at.saturating_sub(SOON), told.at) {
                        self.violates(1, format_args!("nothing was granted: {told:?}"));
                    }
                }
                _ => {}
            }
        }
        for (key, steps) in &history.audit {
            for (_, record, at) in records(steps).filter(|(_, record, _)| record.state.is_owned()) {
                let began = self.grants[&(&key[..], record.fence)].began;
                if record.until * 1_000
                    > began
                        + history
                            .members
                            .values()
                            .map(|member| member.max_hold)
                            .max()
                            .unwrap_or_default()
                            * 1_000
                        + SOON
                {
                    let text = format_args!("{key}: held for too long at {at}: {record:?}");
                    self.violates(11, text);
                }
            }
        }
    }

    fn valid(&mut self, told: &Told, fence: u64) {
        let Some(grant) = self.grants.get(&(&told.key, fence)) else {
            return;
        };
        let after = &self.history.audit[&told.key][grant.place + 1..];
        self.verdict.examined[6] += 1;
        for step in after {
            match step {
                // Whoever came after that was let in by a server that knew nothing.
                Step::Forgot { .. } | Step::Unwatched { .. } => return,
                Step::Wrote(frame) => {
                    let record = frame.record.as_deref();
                    if frame.at < told.at && record.is_some_and(|record| record.fence != fence) {
                        let text = format_args!("{told:?}, but {record:?} at {}", frame.at);
                        return self.violates(6, text);
                    }
                }
            }
        }
    }

    fn ended(&mut self, told: &Told, fence: u64, answer: Answer) {
        let grant = (&told.key[..], fence);
        let Some((asked, How::Done(result))) = self
            .endings
            .get(&grant)
            .and_then(|endings| endings.last().copied())
        else {
            return;
        };
        if answer != Answer::Ok {
            return;
        }
        let steps = self
            .history
            .audit
            .get(&told.key)
            .map_or(&[][..], |steps| steps);
        let recorded = records(steps).any(|(_, record, _)| {
            record.state == State::Done && record.fence == fence && record.result == result[..]
        });
        if !recorded && !self.unseen(&told.key, asked, told.at) {
            self.violates(5, format_args!("nothing was recorded: {told:?}"));
        }
    }

    /// 11: a guard that was ended holds nothing soon after.
    fn dropped(&mut self, told: &Told, fence: u64) {
        let steps = self
            .history
            .audit
            .get(&told.key)
            .map_or(&[][..], |steps| steps);
        let held = records(steps)
            .filter(|(_, record, _)| record.state.is_owned() && record.fence == fence);
        let Some((last, record, _)) = held.last() else {
            return;
        };
        let next = records(steps).find(|(place, _, _)| *place > last);
        let freed = next.map_or(record.until * 1_000, |(_, _, at)| at);
        let soon = told.at + SOON;
        let until = freed.min(soon);
        if until > self.history.ended
            || self.server_disturbed(told.at, until)
            || self.disturbed(told.process, told.at, until)
        {
            return;
        }
        self.examines(11);
        if freed > soon {
            self.violates(11, format_args!("{told:?}, but {record:?} until {freed}"));
        }
    }

    /// 2: what a resource accepts comes in the order of the grants.
    fn resource(&mut self) {
        for (key, accepted) in &self.history.accepted {
            let mut last = 0;
            for token in accepted {
                self.examines(2);
                let place = self.grants.get(&(key, *token)).map(|grant| grant.place);
                let Some(place) = place else {
                    if !self.unseen(key, 0, u64::MAX - SOON) {
                        self.violates(2, format_args!("{key}: {token} was never granted"));
                    }
                    continue;
                };
                if place < last {
                    self.violates(2, format_args!("{key}: {token} is stale in {accepted:?}"));
                }
                last = place;
            }
            if !accepted.is_sorted() {
                self.violates(2, format_args!("{key}: not in order: {accepted:?}"));
            }
        }
    }

    fn server_disturbed(&self, from: u64, to: u64) -> bool {
        self.any_fault(Scope::Server, from, to)
    }

    fn disturbed(&self, process: u32, from: u64, to: u64) -> bool {
        self.any_fault(Scope::Process(process), from, to)
    }

    fn any_fault(&self, scope: Scope, from: u64, to: u64) -> bool {
        self.history.faults.iter().any(|fault| {
            fault.scope == scope && fault.from <= to && from <= fault.to.saturating_add(GRACE)
        })
    }
}

/// The records of a key with their places among its steps and their times.
fn records(steps: &[Step]) -> impl Iterator<Item = (usize, &Record, u64)> {
    let written = steps.iter().enumerate();
    written.filter_map(|(place, step)| match step {
        Step::Wrote(frame) => Some((place, frame.record.as_deref()?, frame.at)),
        Step::Forgot { .. } | Step::Unwatched { .. } => None,
    })
}

/// Whether a stream waits for all of this time.
fn waits(told: &[&Told], from: u64, to: u64) -> bool {
    let mut since = None;
    let mut rejoins = false;
    for event in told {
        let waits = match &event.what {
            What::Joined { rejoins: again } => {
                rejoins = *again;
                true
            }
            What::NotTerminal => continue,
            What::Ended { .. } => rejoins,
            _ => false,
        };
        match since {
            Some(start) if !waits => {
                if start <= from && event.at >= to {
                    return true;
                }
                since = None;
            }
            None if waits => since = Some(event.at),
            _ => {}
        }
    }
    since.is_some_and(|start| start <= from)
}

/// How many distinct grants a history has.
pub fn grants(history: &History) -> usize {
    let fences = history.audit.iter().flat_map(|(key, steps)| {
        let owned = records(steps).filter(|(_, record, _)| record.state.is_owned());
        owned.map(move |(_, record, _)| (key, record.fence))
    });
    fences.collect::<HashSet<_>>().len()
}
