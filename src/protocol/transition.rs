//! One transition of one record, at one instant: the executable specification of the protocol.
//!
//! The scripts in `src/store/redis/` do the same on a server. `tests/it/conformance/transitions.rs`
//! has a test for each row of this table, run on both stores, and `proof/tests/it/equivalence.rs`
//! compares the two on random sequences. *n* is the number of the last counted attempt.
//!
//! | operation | on | becomes | answer |
//! |---|---|---|---|
//! | claim | absent | held(1) | granted |
//! | | held by this token | unchanged | granted again |
//! | | granted to this token | held(n), lease restarted | granted |
//! | | done, gave up | unchanged | the outcome |
//! | | any other, by the last owner's token | unchanged | refused |
//! | | held or granted to another, not over | unchanged; joins the queue | holder, position |
//! | | granted(n), window over | held(n): the number was not counted | granted |
//! | | held(n) over, or open(n); n < max | held(n+1) | granted |
//! | | held(n) over; n ≥ max | gave up | the outcome |
//! | settle(done) | this grant | done | ok |
//! | | done by this grant | unchanged | ok |
//! | settle(fail) | this grant, n ≥ max | gave up | ok |
//! | | this grant, with a waiter | granted(n+1) to the head of the queue | ok |
//! | | this grant, without a waiter | open(n) | ok |
//! | settle(fail permanently) | this grant | gave up | ok |
//! | settle(hand off) | this grant | granted(n) to the head, or open(n−1) | ok |
//! | renew | this grant | held(n), lease restarted, never shortened | ok |
//! | withdraw | waiting | leaves the queue | ok |
//! | | owned by this token, and not excepted | granted(n) to the head, or open(n−1) | ok |
//! | settle, renew, withdraw | anything else | unchanged | lost, with the record |
//! | clear | any but absent | granted(1) to the head, or open(0), a higher fence | ok |
//! | inspect | any | unchanged | the record, length of the queue |
//!
//! * open(n) always has n < max, because the run gives up when the last attempt fails.
//! * Settle and renew name the grant by its fencing token. Claim and withdraw name the
//!   participation by its token.
//! * A withdrawal gives back a *held* grant too. If a participant has gone, one command then gives
//!   back the grant of its claim, whether the answer to the claim arrived or not. That is safe
//!   because the withdrawal spares, by its fencing token, the grant of the token that a participant
//!   has or had in hand. Any other grant of the token came from a late claim, and no participant
//!   has it.
//! * A clear also removes the previous attempt with its reason, the checkpoint and the result.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::record::{Cause, Previous, Record, State, Token};
use crate::protocol::{Failure, Op, Outcome};

/// A key on the server: its record and its queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The record.
    pub record: Record,
    pub(crate) line: Line,
    /// The server's time in ms at which the record and its queue expire.
    pub expires: u64,
}

type Waiter = (Token, Arc<str>);

/// The waiting tokens, first come, first served. One map orders them by their numbers, the other
/// finds the number of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    queue: BTreeMap<u64, Waiter>,
    numbers: HashMap<Waiter, u64>,
}

/// The waiters in their order. The map only finds them.
impl Hash for Line {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.queue.len().hash(hasher);
        self.queue.values().for_each(|waiter| waiter.hash(hasher));
    }
}

impl Line {
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn labels(&self) -> impl Iterator<Item = String> {
        self.queue.values().map(|(_, label)| label.to_string())
    }

    /// Adds a waiter unless it is in the queue already. Returns its position, from 0.
    fn join(&mut self, waiter: Waiter) -> usize {
        if let Some(number) = self.numbers.get(&waiter) {
            return self.queue.range(..number).count();
        }
        let number = self.queue.last_key_value().map_or(0, |(last, _)| last + 1);
        self.numbers.insert(waiter.clone(), number);
        self.queue.insert(number, waiter);
        self.queue.len() - 1
    }

    fn leave(&mut self, waiter: &Waiter) -> bool {
        let number = self.numbers.remove(waiter);
        number.is_some_and(|number| self.queue.remove(&number).is_some())
    }

    fn pop(&mut self) -> Option<Waiter> {
        let (_, head) = self.queue.pop_first()?;
        self.numbers.remove(&head);
        Some(head)
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.numbers.clear();
    }
}

/// Returns the milliseconds for which a record lives from now on. The record of a lease stays for
/// the retention after the end of the lease.
fn ttl(record: &Record, now: u64) -> u64 {
    match record.state.is_owned() {
        true => record.until - now + record.retention,
        false => record.retention,
    }
}

/// What a transition leaves, and what it answers.
#[derive(Clone, Debug)]
pub struct Applied {
    /// `None` if the key is absent.
    pub entry: Option<Entry>,
    /// See [`Reply::ok`](crate::protocol::Reply::ok).
    pub ok: bool,
    /// See [`Reply::position`](crate::protocol::Reply::position).
    pub position: Option<u64>,
    /// Whether there is something to publish.
    pub changed: bool,
}

/// Applies an operation to a key that has this entry, at this server time in µs.
pub fn apply(entry: Option<Entry>, op: &Op, at: u64) -> Applied {
    let now = at / 1_000;
    let entry = entry.filter(|entry| entry.expires > now);
    let (entry, ok, position, changed) = match (entry, op) {
        (Some(entry), op) => {
            let mut run = Transition {
                entry,
                at,
                now,
                changed: false,
            };
            let (ok, position) = run.apply(op);
            (Some(run.entry), ok, position, run.changed)
        }
        (
            None,
            Op::Claim {
                token,
                label,
                lease,
                max_attempts,
                retention,
            },
        ) => {
            let mut run = Transition::begin(*max_attempts, *retention, at, now);
            run.grant(State::Held, 1, (*token, label.clone()), *lease);
            (Some(run.entry), true, None, true)
        }
        (None, Op::Inspect) => (None, true, Some(0), false),
        (None, _) => (None, false, None, false),
    };
    let entry = entry.map(|mut entry| {
        if changed {
            entry.expires = now + ttl(&entry.record, now);
        }
        entry
    });
    Applied {
        entry,
        ok,
        position,
        changed,
    }
}

/// One transition of one record, at one instant.
struct Transition {
    entry: Entry,
    /// The server's time in µs. `now` is the same in ms.
    at: u64,
    now: u64,
    changed: bool,
}

impl Transition {
    fn begin(max_attempts: u32, retention: u64, at: u64, now: u64) -> Self {
        let record = Record {
            state: State::Open,
            attempt: 0,
            max_attempts,
            fence: 0,
            renewal: 0,
            until: now,
            retention,
            owner: None,
            last: None,
            previous: None,
            holder: String::new(),
            checkpoint: Bytes::new(),
            result: Bytes::new(),
        };
        let entry = Entry {
            record,
            line: Line::default(),
            expires: now,
        };
        Self {
            entry,
            at,
            now,
            changed: true,
        }
    }

    fn apply(&mut self, op: &Op) -> (bool, Option<u64>) {
        match op {
            Op::Claim {
                token,
                label,
                lease,
                ..
            } => self.claim((*token, label.clone()), *lease),
            Op::Settle {
                fence,
                outcome,
                window,
            } => (self.settle(*fence, outcome, *window), None),
            Op::Renew {
                fence,
                lease,
                checkpoint,
            } => {
                let stands = self.is_owned_by(*fence);
                if stands {
                    self.hold(*lease);
                    if let Some(checkpoint) = checkpoint {
                        self.entry.record.checkpoint = checkpoint.clone();
                    }
                }
                (stands, None)
            }
            Op::Withdraw {
                token,
                label,
                except_fence,
                window,
            } => {
                let waited = self.entry.line.leave(&(*token, label.clone()));
                let record = &self.entry.record;
                let unused = self.is_owned()
                    && record.owner == Some(*token)
                    && Some(record.fence) != *except_fence;
                if unused {
                    self.pass_on(self.entry.record.attempt, *window);
                }
                (waited || unused, None)
            }
            Op::Clear { window } => {
                self.clear(*window);
                (true, None)
            }
            Op::Inspect => (true, Some(self.entry.line.len() as u64)),
        }
    }

    fn claim(&mut self, member: Waiter, lease: u64) -> (bool, Option<u64>) {
        let record = &self.entry.record;
        let over = self.now >= record.until;
        match record.state {
            // A duplicate of the claim that got the grant, or the holder's claim of a pushed grant,
            // which confirms it.
            State::Held | State::Granted if record.owner == Some(member.0) => {
                if record.state == State::Granted {
                    self.hold(lease);
                }
                return (true, None);
            }
            // A late duplicate of a claim whose grant has ended.
            _ if record.last == Some(member.0) => return (false, None),
            State::Done | State::GaveUp => return (false, None),
            State::Held | State::Granted if !over => {
                return (false, Some(self.entry.line.join(member) as u64));
            }
            // The pushed grant was not confirmed within its window, so its attempt does not count.
            State::Granted => {
                let attempt = record.attempt;
                self.take(attempt, member, lease);
                return (true, None);
            }
            State::Held => self.remember(Cause::Expired, ""),
            State::Open => {}
        }
        let attempt = self.entry.record.attempt;
        if attempt >= self.entry.record.max_attempts {
            self.exhaust();
            return (false, None);
        }
        self.take(attempt + 1, member, lease);
        (true, None)
    }

    fn settle(&mut self, fence: u64, outcome: &Outcome, window: u64) -> bool {
        let record = &self.entry.record;
        // A duplicate of the completion succeeds again.
        if record.state == State::Done && record.fence == fence {
            return matches!(outcome, Outcome::Done(_));
        }
        if !self.is_owned_by(fence) {
            return false;
        }
        let attempt = record.attempt;
        let last = attempt >= record.max_attempts;
        match outcome {
            Outcome::Done(result) => {
                self.entry.record.state = State::Done;
                self.entry.record.result = result.clone();
                self.entry.record.until = self.now + self.entry.record.retention;
                self.entry.line.clear();
                self.changed = true;
            }
            Outcome::HandOff => {
                // The reason of a failure outlives the hand-offs after it.
                let previous = self.entry.record.previous.as_ref();
                if previous.is_none_or(|previous| previous.cause == Cause::HandedOff) {
                    self.remember(Cause::HandedOff, "");
                }
                self.pass_on(attempt, window);
            }
            Outcome::Fail(failure) => {
                match failure {
                    Failure::Dropped => self.remember(Cause::Dropped, ""),
                    Failure::Panicked => self.remember(Cause::Panicked, ""),
                    Failure::Reason(reason) => self.remember(Cause::Failed, reason),
                }
                match last {
                    true => self.exhaust(),
                    false => self.pass_on(attempt + 1, window),
                }
            }
            Outcome::FailPermanently(reason) => {
                self.remember(Cause::Failed, reason);
                self.exhaust();
            }
        }
        true
    }

    fn is_owned(&self) -> bool {
        self.entry.record.state.is_owned()
    }

    fn is_owned_by(&self, fence: u64) -> bool {
        self.is_owned() && self.entry.record.fence == fence
    }

    fn take(&mut self, attempt: u32, member: Waiter, lease: u64) {
        self.entry.line.leave(&member);
        self.grant(State::Held, attempt, member, lease);
    }

    fn grant(&mut self, state: State, attempt: u32, member: Waiter, lease: u64) {
        self.disown();
        let record = &mut self.entry.record;
        record.state = state;
        record.attempt = attempt;
        record.owner = Some(member.0);
        record.holder = member.1.to_string();
        record.until = self.now + lease;
        self.rise();
    }

    /// Gives the record a fencing token that is higher than all before it.
    fn rise(&mut self) {
        let record = &mut self.entry.record;
        record.fence = self.at.max(record.fence + 1);
        record.renewal = 0;
        self.changed = true;
    }

    fn clear(&mut self, window: u64) {
        self.disown();
        self.rise();
        let record = &mut self.entry.record;
        record.previous = None;
        record.checkpoint = Bytes::new();
        record.result = Bytes::new();
        self.pass_on(1, window);
    }

    fn hold(&mut self, lease: u64) {
        let record = &mut self.entry.record;
        record.state = State::Held;
        record.until = record.until.max(self.now + lease);
        record.renewal += 1;
        self.changed = true;
    }

    fn remember(&mut self, cause: Cause, reason: &str) {
        let record = &mut self.entry.record;
        record.previous = Some(Previous {
            attempt: record.attempt,
            cause,
            holder: record.holder.clone(),
            reason: reason.to_owned(),
        });
    }

    fn disown(&mut self) {
        let record = &mut self.entry.record;
        record.last = record.owner.take().or(record.last);
        record.holder.clear();
    }

    fn exhaust(&mut self) {
        self.disown();
        self.entry.record.state = State::GaveUp;
        self.entry.record.until = self.now + self.entry.record.retention;
        self.entry.line.clear();
        self.changed = true;
    }

    fn pass_on(&mut self, attempt: u32, window: u64) {
        if let Some(head) = self.entry.line.pop() {
            self.grant(State::Granted, attempt, head, window);
            return;
        }
        self.disown();
        let record = &mut self.entry.record;
        record.state = State::Open;
        record.attempt = attempt - 1;
        record.until = self.now + record.retention;
        self.changed = true;
    }
}
