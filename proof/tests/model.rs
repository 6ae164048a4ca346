//! The protocol as a model, searched breadth first through every order of events.
//!
//! Workers, the server's record and line, and a network that loses, repeats and reorders: a state for each
//! combination of what they know. The searched part is the protocol as it is built: claims, the line, grants
//! heard by push, confirmation, renewal, rejoining, retention. Time goes by in ticks; a lease is three of them
//! and the margin for clocks that drift apart is one. Transitions follow `src/protocol/transition.rs`,
//! workers follow `src/hub/key_state/`.
//!
//! `MODEL_STATES` bounds each search, 70,000 states by default, of which there are 42; a release build makes half a
//! million in a second. With `-- --nocapture` they say how many states they saw, how deep they went, and whether that was all.
//! The *horizon* is the tick at which time stops going by: 0 leaves the orders of events, which are then
//! searched deeper; 3 lets one lease end, and 6 two. Each mutant breaks one rule, and must be found:
//!
//! | mutant | what it breaks |
//! |---|---|
//! | `NoLeaseTimer` | a waiter claims at the end of the lease |
//! | `ClaimNotIdempotent` | the same token gets the same grant |
//! | `AnybodySettles` | settling and renewing name the grant |
//! | `NoClaimAfterSubscribing` | what happened before the subscription stood is asked for |
//! | `NoMargin` | a guard ends early enough for clocks that drift apart |
//! | `LeaseFromTheAnswer` | a lease counts from before the claim was sent |
//! | `FenceRestarts` | fencing tokens rise after the record was lost |
//! | `LateDuplicateTakesAnAttempt` | the last owner's token is refused |
//! | `UnboundedAttempts` | attempts have a bound |
//! | `LineKeepsItsOwner` | who acquires leaves the line |
//! | `NothingRemembered` | an outcome is remembered for the retention |
//! | `RepeatedFailureCounts` | a late duplicate of a failure fails nothing else |
//! | `GrantsOutliveTheirWindow` | an unconfirmed grant is followed by a claim |
//! | `WithdrawalNamesNothing` | what is worked on is not given back uncounted |
//! | `UnwantedIsKept` | what nobody wants is given back |
//!
//! Not in it: the order of answers and messages is, but that it is needed was not shown within 14 steps; the
//! stagger of claims, replicas, `extend`, and clocks that go back.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

type Token = u8;
type Fence = u8;
type Tick = u8;

const MAX_ATTEMPTS: u8 = 2;
const LEASE: Tick = 3;
const MARGIN: Tick = 1;
const WINDOW: Tick = 2;
const RETENTION: Tick = 2;

/// Declared in the order of one grant's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Granted,
    Held,
    Open,
    Done,
    GaveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Record {
    kind: Kind,
    attempt: u8,
    fence: Fence,
    renewal: u8,
    until: Tick,
    owner: Option<Token>,
    last: Option<Token>,
}

impl Record {
    fn order(&self) -> (Fence, Kind, u8) {
        (self.fence, self.kind.min(Kind::Open), self.renewal)
    }

    fn is_owned(&self) -> bool {
        matches!(self.kind, Kind::Granted | Kind::Held)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum End {
    Done,
    Fail,
    HandOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Op {
    Claim(Token),
    Settle(Fence, End),
    Renew(Fence),
    /// With the last grant of the token that somebody works on.
    Withdraw(Token, Fence),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Answer {
    ok: bool,
    waits: bool,
    at: Tick,
    record: Option<Record>,
}

/// What is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Packet {
    Ask(Op, Tick),
    Answer(Op, Tick, Answer),
    News(Record, Tick),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Grant {
    fence: Fence,
    token: Token,
    attempt: u8,
    /// By the worker's clock, in the server's ticks.
    ends: Tick,
    renewal: u8,
    lost: bool,
    settling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Out,
    Joining,
    Waiting,
    Working,
    Ended,
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Hears {
    No,
    Asked,
    Yes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Worker {
    stage: Stage,
    token: Token,
    drawn: u8,
    view: Option<Record>,
    /// When what is known of `view` has surely ended.
    ends: Tick,
    /// The last answer: when it was asked for, and the server's time in it.
    clock: Option<(Tick, Tick)>,
    hears: Hears,
    claiming: bool,
    again: bool,
    grant: Option<Grant>,
}

/// The faults that are left to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Faults {
    /// Answers that are lost: the worker asks again.
    answers: u8,
    /// Requests that are carried out once more, late.
    repeats: u8,
    news: u8,
    crashes: u8,
    leaves: u8,
    renewals: u8,
    data: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    now: Tick,
    record: Option<Record>,
    line: Vec<Token>,
    /// When the record is forgotten.
    expires: Tick,
    /// The last fencing token given out by anybody: it stands for the server's clock in µs.
    fences: Fence,
    workers: Vec<Worker>,
    /// Sorted; whose packet it is comes first.
    net: Vec<(u8, Packet)>,
    faults: Faults,
    /// Until then the last completion is remembered.
    done_until: Tick,
    /// Nothing is promised of exclusion, attempts and completions across a loss of data but the fence.
    data_lost: bool,
    /// A rule that was broken on the way here.
    broken: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Join(usize),
    Leave(usize),
    Crash(usize),
    /// The work of its guard ends, in time or late.
    Work(usize, End),
    Renew(usize),
    /// The server acknowledges its subscription.
    Subscribed(usize),
    Timer(usize),
    Carry(usize),
    Repeat(usize),
    Arrive(usize),
    LoseAnswer(usize),
    LoseNews(usize),
    LoseData,
    Tick,
}

/// One rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    NoLeaseTimer,
    ClaimNotIdempotent,
    AnybodySettles,
    NoClaimAfterSubscribing,
    NoMargin,
    LeaseFromTheAnswer,
    FenceRestarts,
    LateDuplicateTakesAnAttempt,
    UnboundedAttempts,
    LineKeepsItsOwner,
    NothingRemembered,
    RepeatedFailureCounts,
    GrantsOutliveTheirWindow,
    WithdrawalNamesNothing,
    UnwantedIsKept,
}

#[derive(Clone, Copy, Debug)]
struct Protocol {
    workers: usize,
    /// A worker whose attempt failed waits in line again.
    rejoin: bool,
    horizon: Tick,
    faults: Faults,
    mutant: Option<Mutant>,
}

/// Each worker has tokens of its own.
fn token_of(worker: usize, drawn: u8) -> Token {
    worker as u8 * 16 + drawn
}

impl Protocol {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// How much slower than the server's the worker's clock runs, over a lease.
    fn drift(&self, worker: usize) -> Tick {
        if worker == 0 { MARGIN } else { 0 }
    }

    fn margin(&self) -> Tick {
        if self.is(Mutant::NoMargin) { 0 } else { MARGIN }
    }

    // The server.

    /// One transition, and what is told of it.
    fn apply(&self, s: &mut State, op: Op) -> Answer {
        let before = s.record;
        let (ok, waits) = match op {
            Op::Claim(token) => self.claim(s, token),
            Op::Settle(fence, end) => (self.settle(s, fence, end), false),
            Op::Renew(fence) => (self.renew(s, fence), false),
            Op::Withdraw(token, spared) => (self.withdraw(s, token, spared), false),
        };
        self.judge(s, before);
        if let Some(record) = s.record.filter(|_| s.record != before) {
            s.expires = record.until + if record.is_owned() { RETENTION } else { 0 };
            for worker in 0..s.workers.len() {
                if s.workers[worker].hears == Hears::Yes
                    && s.workers[worker].stage != Stage::Crashed
                {
                    s.net.push((worker as u8, Packet::News(record, s.now)));
                }
            }
        }
        Answer {
            ok,
            waits,
            at: s.now,
            record: s.record,
        }
    }

    /// Whether the transition was one that the design allows.
    fn judge(&self, s: &mut State, before: Option<Record>) {
        let (Some(after), false) = (s.record, s.record == before) else {
            return;
        };
        if after.attempt > MAX_ATTEMPTS {
            s.broken = Some("attempts");
        }
        if let Some(before) = before {
            if after.fence < before.fence {
                s.broken = Some("fence");
            }
            if before.kind == Kind::Done && after.kind != Kind::Done {
                s.broken = Some("done");
            }
            if after.attempt > before.attempt + 1 {
                s.broken = Some("attempts");
            }
        }
    }

    fn grant(&self, s: &mut State, kind: Kind, attempt: u8, token: Token, lease: Tick) {
        if s.now < s.done_until && !s.data_lost {
            s.broken = Some("finished work is given out again");
        }
        if s.record
            .is_some_and(|record| [record.owner, record.last].contains(&Some(token)))
        {
            s.broken = Some("one grant a token");
        }
        let record = s.record.get_or_insert(Record {
            kind,
            attempt: 0,
            fence: 0,
            renewal: 0,
            until: 0,
            owner: None,
            last: None,
        });
        record.last = record.owner.or(record.last);
        record.kind = kind;
        record.attempt = attempt;
        record.owner = Some(token);
        record.renewal = 0;
        record.until = s.now + lease;
        let last = record.fence;
        record.fence = if self.is(Mutant::FenceRestarts) {
            last + 1
        } else {
            s.fences.max(last) + 1
        };
        if record.fence <= s.fences {
            s.broken = Some("fence");
        }
        s.fences = s.fences.max(record.fence);
    }

    fn disown(record: &mut Record) {
        record.last = record.owner.or(record.last);
        record.owner = None;
    }

    fn claim(&self, s: &mut State, token: Token) -> (bool, bool) {
        let Some(mut record) = s.record else {
            s.line.clear();
            self.grant(s, Kind::Held, 1, token, LEASE);
            return (true, false);
        };
        let over = s.now >= record.until;
        let owns = record.is_owned() && record.owner == Some(token);
        if owns && !self.is(Mutant::ClaimNotIdempotent) {
            if record.kind == Kind::Granted {
                Self::hold(s, LEASE);
            }
            return (true, false);
        }
        if record.last == Some(token) && !self.is(Mutant::LateDuplicateTakesAnAttempt) {
            return (false, false);
        }
        match record.kind {
            Kind::Done | Kind::GaveUp => return (false, false),
            Kind::Held | Kind::Granted if !over => {
                if !s.line.contains(&token) {
                    s.line.push(token);
                }
                return (false, true);
            }
            Kind::Granted => {
                self.take(s, record.attempt, token);
                return (true, false);
            }
            Kind::Held | Kind::Open => {}
        }
        if record.attempt >= MAX_ATTEMPTS && !self.is(Mutant::UnboundedAttempts) {
            Self::disown(&mut record);
            record.kind = Kind::GaveUp;
            record.until = s.now + RETENTION;
            s.record = Some(record);
            s.line.clear();
            return (false, false);
        }
        self.take(s, record.attempt + 1, token);
        (true, false)
    }

    fn take(&self, s: &mut State, attempt: u8, token: Token) {
        if !self.is(Mutant::LineKeepsItsOwner) {
            s.line.retain(|waiting| *waiting != token);
        }
        self.grant(s, Kind::Held, attempt, token, LEASE);
    }

    fn hold(s: &mut State, lease: Tick) {
        let now = s.now;
        if let Some(record) = &mut s.record {
            record.kind = Kind::Held;
            record.until = record.until.max(now + lease);
            record.renewal += 1;
        }
    }

    fn owned_by(&self, s: &State, fence: Fence) -> bool {
        s.record.is_some_and(|record| {
            record.is_owned() && (record.fence == fence || self.is(Mutant::AnybodySettles))
        })
    }

    fn settle(&self, s: &mut State, fence: Fence, end: End) -> bool {
        let Some(mut record) = s.record else {
            return false;
        };
        if record.kind == Kind::Done && end == End::Done {
            return record.fence == fence;
        }
        if self.is(Mutant::RepeatedFailureCounts)
            && end == End::Fail
            && record.is_owned()
            && record.fence == fence + 1
        {
            // Names the run, and not the grant.
        } else if !self.owned_by(s, fence) {
            return false;
        }
        match end {
            End::Done => {
                record.kind = Kind::Done;
                s.done_until = s.now + RETENTION;
                let kept = if self.is(Mutant::NothingRemembered) {
                    0
                } else {
                    RETENTION
                };
                record.until = s.now + kept;
                s.line.clear();
                s.record = if kept == 0 { None } else { Some(record) };
            }
            End::HandOff => self.pass_on(s, record.attempt),
            End::Fail if record.attempt >= MAX_ATTEMPTS && !self.is(Mutant::UnboundedAttempts) => {
                Self::disown(&mut record);
                record.kind = Kind::GaveUp;
                record.until = s.now + RETENTION;
                s.record = Some(record);
                s.line.clear();
            }
            End::Fail => self.pass_on(s, record.attempt + 1),
        }
        true
    }

    fn pass_on(&self, s: &mut State, attempt: u8) {
        if s.line.is_empty() {
            let now = s.now;
            if let Some(record) = &mut s.record {
                Self::disown(record);
                record.kind = Kind::Open;
                record.attempt = attempt - 1;
                record.until = now + RETENTION;
            }
        } else {
            let head = s.line.remove(0);
            self.grant(s, Kind::Granted, attempt, head, WINDOW);
        }
    }

    fn renew(&self, s: &mut State, fence: Fence) -> bool {
        let owned = self.owned_by(s, fence);
        if owned {
            Self::hold(s, LEASE);
        }
        owned
    }

    fn withdraw(&self, s: &mut State, token: Token, spared: Fence) -> bool {
        let waited = s.line.contains(&token);
        s.line.retain(|waiting| *waiting != token);
        match s.record {
            Some(record)
                if record.is_owned() && record.owner == Some(token) && record.fence != spared =>
            {
                let works = |w: &Worker| w.grant.is_some_and(|grant| grant.fence == record.fence);
                if s.workers.iter().any(works) {
                    s.broken = Some("an attempt that is not counted");
                }
                self.pass_on(s, record.attempt);
                true
            }
            _ => waited,
        }
    }

    // A worker.

    fn ask(s: &mut State, worker: usize, op: Op) {
        let sent = s.now;
        s.net.push((worker as u8, Packet::Ask(op, sent)));
    }

    fn ask_to_claim(&self, s: &mut State, worker: usize) {
        s.workers[worker].claiming = true;
        let token = s.workers[worker].token;
        Self::ask(s, worker, Op::Claim(token));
    }

    fn draw(&self, s: &mut State, worker: usize) {
        let w = &mut s.workers[worker];
        w.drawn += 1;
        w.token = token_of(worker, w.drawn);
    }

    fn join(&self, s: &mut State, worker: usize) {
        s.workers[worker].stage = Stage::Joining;
        s.workers[worker].grant = None;
        self.draw(s, worker);
        self.ask_to_claim(s, worker);
    }

    fn refresh(&self, s: &mut State, worker: usize) {
        let w = &mut s.workers[worker];
        if w.stage == Stage::Waiting {
            if w.claiming {
                w.again = true;
            } else {
                w.again = false;
                self.ask_to_claim(s, worker);
            }
        }
    }

    /// The last grant of the token that the worker has or had, or 0.
    fn spared(&self, w: &Worker, token: Token) -> Fence {
        let mine = w.grant.filter(|grant| grant.token == token);
        match mine {
            Some(grant) if !self.is(Mutant::WithdrawalNamesNothing) => grant.fence,
            _ => 0,
        }
    }

    /// Whether the record is newer than what the worker knew.
    fn merge(&self, s: &mut State, worker: usize, record: Record, at: Tick) -> bool {
        let now = s.now;
        let w = &mut s.workers[worker];
        let newer = w.view.is_none_or(|view| record.order() > view.order());
        let same = w.view.is_some_and(|view| record.order() == view.order());
        if newer || same {
            w.view = Some(record);
            w.ends = now + record.until.saturating_sub(at);
        }
        newer
    }

    /// What the newest record means to it.
    fn bring_up_to_date(&self, s: &mut State, worker: usize) {
        let now = s.now;
        let w = &mut s.workers[worker];
        let Some(view) = w.view else { return };
        if let Some(grant) = &mut w.grant {
            let over = grant.fence < view.fence || (grant.fence == view.fence && !view.is_owned());
            if over && !grant.settling {
                grant.lost = true;
            }
        }
        if w.stage != Stage::Waiting {
            return;
        }
        match view.kind {
            Kind::Held | Kind::Granted if view.owner == Some(w.token) => {
                let left = |at: Tick| view.until.saturating_sub(at);
                let end = match w.clock {
                    Some((_, at)) if self.is(Mutant::LeaseFromTheAnswer) => now + left(at),
                    Some((sent, at)) => sent + left(at),
                    None => now,
                };
                let end = end.min(w.ends).saturating_sub(self.margin());
                w.stage = Stage::Working;
                w.grant = Some(Grant {
                    fence: view.fence,
                    token: w.token,
                    attempt: view.attempt,
                    ends: end + self.drift(worker),
                    renewal: view.renewal,
                    lost: false,
                    settling: false,
                });
                if view.kind == Kind::Granted {
                    Self::ask(s, worker, Op::Renew(view.fence));
                }
            }
            Kind::Done | Kind::GaveUp => w.stage = Stage::Ended,
            _ => {}
        }
    }

    fn hear_answer(&self, s: &mut State, worker: usize, op: Op, sent: Tick, answer: Answer) {
        if s.workers[worker].stage == Stage::Crashed {
            return;
        }
        s.workers[worker].clock = Some((sent, answer.at));
        let newer = match answer.record {
            Some(record) => self.merge(s, worker, record, answer.at),
            None => false,
        };
        match op {
            Op::Claim(token) => {
                let w = &mut s.workers[worker];
                let takes_part = matches!(w.stage, Stage::Joining | Stage::Waiting);
                if takes_part && w.token == token {
                    w.claiming = false;
                    w.stage = Stage::Waiting;
                    self.bring_up_to_date(s, worker);
                    let w = &mut s.workers[worker];
                    if w.stage == Stage::Waiting {
                        let refused = answer
                            .record
                            .is_some_and(|record| record.last == Some(token));
                        if answer.ok || refused {
                            self.draw(s, worker);
                            self.ask_to_claim(s, worker);
                        }
                        let w = &mut s.workers[worker];
                        if w.hears == Hears::No {
                            w.hears = Hears::Asked;
                        }
                        if w.again {
                            self.refresh(s, worker);
                        }
                    }
                } else {
                    if w.token == token {
                        w.claiming = false;
                    }
                    let spared = self.spared(w, token);
                    let later = answer.record.is_some_and(|record| record.fence != spared);
                    if (answer.ok || answer.waits) && later && !self.is(Mutant::UnwantedIsKept) {
                        Self::ask(s, worker, Op::Withdraw(token, spared));
                    }
                }
            }
            Op::Settle(fence, end) => {
                let w = &mut s.workers[worker];
                let Some(grant) = w.grant.filter(|grant| grant.fence == fence) else {
                    return;
                };
                if answer.ok && end == End::Done {
                    let done = answer
                        .record
                        .is_some_and(|record| record.kind == Kind::Done && record.fence == fence);
                    if !done && !self.is(Mutant::NothingRemembered) {
                        s.broken = Some("stolen done");
                    }
                }
                let over = end == End::Done && answer.ok || grant.attempt >= MAX_ATTEMPTS;
                if self.rejoin && !over && s.workers[worker].drawn < 3 {
                    self.join(s, worker);
                } else {
                    s.workers[worker].stage = Stage::Ended;
                }
            }
            Op::Renew(fence) => {
                let (margin, drift, now) = (self.margin(), self.drift(worker), s.now);
                let w = &mut s.workers[worker];
                let Some(grant) = w.grant.as_mut().filter(|grant| grant.fence == fence) else {
                    return;
                };
                match answer.record.filter(|_| answer.ok) {
                    None if !grant.settling => grant.lost = true,
                    None => {}
                    Some(record) if record.renewal > grant.renewal => {
                        let from = if self.is(Mutant::LeaseFromTheAnswer) {
                            now
                        } else {
                            sent
                        };
                        let left = record.until.saturating_sub(answer.at);
                        grant.renewal = record.renewal;
                        grant.ends = (from + left).saturating_sub(margin) + drift;
                    }
                    Some(_) => {}
                }
            }
            Op::Withdraw(..) => {}
        }
        if newer {
            self.bring_up_to_date(s, worker);
        }
    }

    /// By its own clock.
    fn is_valid(&self, s: &State, worker: usize) -> bool {
        let w = &s.workers[worker];
        w.stage == Stage::Working
            && w.grant
                .is_some_and(|grant| !grant.lost && !grant.settling && s.now < grant.ends)
    }

    /// Whether time will bring a claim of its own.
    fn timer(&self, s: &State, worker: usize) -> Option<Tick> {
        let w = &s.workers[worker];
        if w.stage != Stage::Waiting || w.claiming || self.is(Mutant::NoLeaseTimer) {
            return None;
        }
        let view = w.view?;
        match view.kind {
            Kind::Open => Some(s.now),
            Kind::Granted if self.is(Mutant::GrantsOutliveTheirWindow) => None,
            _ => Some(w.ends),
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let worker = Worker {
            stage: Stage::Out,
            token: 0,
            drawn: 0,
            view: None,
            ends: 0,
            clock: None,
            hears: Hears::No,
            claiming: false,
            again: false,
            grant: None,
        };
        vec![State {
            now: 0,
            record: None,
            line: Vec::new(),
            expires: 0,
            fences: 0,
            workers: vec![worker; self.workers],
            net: Vec::new(),
            faults: self.faults,
            done_until: 0,
            data_lost: false,
            broken: None,
        }]
    }

    fn actions(&self, s: &State, steps: &mut Vec<Step>) {
        if s.broken.is_some() {
            return;
        }
        for (nth, w) in s.workers.iter().enumerate() {
            match w.stage {
                Stage::Out => steps.push(Step::Join(nth)),
                Stage::Joining | Stage::Waiting => {
                    if s.faults.leaves > 0 {
                        steps.push(Step::Leave(nth));
                    }
                    if w.hears == Hears::Asked {
                        steps.push(Step::Subscribed(nth));
                    }
                    if self.timer(s, nth).is_some_and(|at| s.now >= at) {
                        steps.push(Step::Timer(nth));
                    }
                }
                Stage::Working => {
                    if w.grant.is_some_and(|grant| !grant.settling) {
                        steps.extend(
                            [End::Done, End::Fail, End::HandOff].map(|end| Step::Work(nth, end)),
                        );
                    }
                    if s.faults.renewals > 0 && self.is_valid(s, nth) {
                        steps.push(Step::Renew(nth));
                    }
                }
                Stage::Ended | Stage::Crashed => {}
            }
            if s.faults.crashes > 0
                && !matches!(w.stage, Stage::Out | Stage::Ended | Stage::Crashed)
            {
                steps.push(Step::Crash(nth));
            }
        }
        for (nth, (_, packet)) in s.net.iter().enumerate() {
            if nth > 0 && s.net[nth] == s.net[nth - 1] {
                continue;
            }
            match packet {
                Packet::Ask(..) => {
                    steps.push(Step::Carry(nth));
                    if s.faults.repeats > 0 {
                        steps.push(Step::Repeat(nth));
                    }
                }
                Packet::Answer(..) => {
                    steps.push(Step::Arrive(nth));
                    if s.faults.answers > 0 {
                        steps.push(Step::LoseAnswer(nth));
                    }
                }
                Packet::News(..) => {
                    steps.push(Step::Arrive(nth));
                    if s.faults.news > 0 {
                        steps.push(Step::LoseNews(nth));
                    }
                }
            }
        }
        if s.faults.data > 0 && s.record.is_some() {
            steps.push(Step::LoseData);
        }
        if s.now < self.horizon {
            steps.push(Step::Tick);
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut s = before.clone();
        match step {
            Step::Join(worker) => self.join(&mut s, worker),
            Step::Leave(worker) => {
                s.faults.leaves -= 1;
                let w = &mut s.workers[worker];
                w.stage = Stage::Ended;
                if !w.claiming {
                    let token = w.token;
                    Self::ask(&mut s, worker, Op::Withdraw(token, 0));
                }
            }
            Step::Crash(worker) => {
                s.faults.crashes -= 1;
                s.workers[worker].stage = Stage::Crashed;
                s.workers[worker].hears = Hears::No;
                // What it has sent may still be carried out.
                s.net.retain(|(whose, packet)| {
                    *whose != worker as u8 || matches!(packet, Packet::Ask(..))
                });
            }
            Step::Work(worker, end) => {
                let grant = s.workers[worker].grant.as_mut()?;
                grant.settling = true;
                let fence = grant.fence;
                Self::ask(&mut s, worker, Op::Settle(fence, end));
            }
            Step::Renew(worker) => {
                s.faults.renewals -= 1;
                let fence = s.workers[worker].grant?.fence;
                Self::ask(&mut s, worker, Op::Renew(fence));
            }
            Step::Subscribed(worker) => {
                s.workers[worker].hears = Hears::Yes;
                if !self.is(Mutant::NoClaimAfterSubscribing) {
                    self.refresh(&mut s, worker);
                }
            }
            Step::Timer(worker) => self.refresh(&mut s, worker),
            Step::Carry(nth) | Step::Repeat(nth) => {
                let (whose, packet) = s.net[nth];
                let Packet::Ask(op, sent) = packet else {
                    return None;
                };
                if matches!(step, Step::Repeat(_)) {
                    s.faults.repeats -= 1;
                } else {
                    s.net.remove(nth);
                }
                let answer = self.apply(&mut s, op);
                // The answer to the one that is repeated is the last one's.
                if matches!(step, Step::Carry(_))
                    && s.workers[usize::from(whose)].stage != Stage::Crashed
                {
                    s.net.push((whose, Packet::Answer(op, sent, answer)));
                }
            }
            Step::Arrive(nth) => {
                let (whose, packet) = s.net.remove(nth);
                let worker = usize::from(whose);
                match packet {
                    Packet::Answer(op, sent, answer) => {
                        self.hear_answer(&mut s, worker, op, sent, answer)
                    }
                    Packet::News(record, at) => {
                        if self.merge(&mut s, worker, record, at) {
                            self.bring_up_to_date(&mut s, worker);
                        }
                    }
                    Packet::Ask(..) => return None,
                }
            }
            Step::LoseAnswer(nth) => {
                s.faults.answers -= 1;
                let (whose, packet) = s.net.remove(nth);
                let Packet::Answer(op, _, _) = packet else {
                    return None;
                };
                self.ask_again(&mut s, usize::from(whose), op);
            }
            Step::LoseNews(nth) => {
                s.faults.news -= 1;
                s.net.remove(nth);
            }
            Step::LoseData => {
                s.faults.data -= 1;
                s.data_lost = true;
                s.record = None;
                s.line.clear();
            }
            Step::Tick => {
                s.now += 1;
                if s.record.is_some() && s.now >= s.expires {
                    s.record = None;
                    s.line.clear();
                }
                for w in &mut s.workers {
                    if let Some(grant) = &mut w.grant
                        && !grant.settling
                        && s.now >= grant.ends
                    {
                        grant.lost = true;
                    }
                }
            }
        }
        s.net.sort_unstable();
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one valid guard", |model: &Self, s: &State| {
                let valid = (0..s.workers.len()).filter(|worker| model.is_valid(s, *worker));
                s.data_lost || valid.count() <= 1
            }),
            Property::always(
                "a valid guard has the work on the server",
                |model: &Self, s: &State| {
                    s.data_lost
                        || (0..s.workers.len())
                            .filter(|worker| model.is_valid(s, *worker))
                            .all(|worker| {
                                let fence = s.workers[worker].grant.map(|grant| grant.fence);
                                s.record.is_some_and(|record| {
                                    record.is_owned() && Some(record.fence) == fence
                                })
                            })
                },
            ),
            Property::always("nothing is kept by nobody", |model: &Self, s: &State| {
                let keeps = |record: Record| {
                    s.workers.iter().any(|w| {
                        let waits = matches!(w.stage, Stage::Joining | Stage::Waiting);
                        w.grant.is_some_and(|grant| grant.fence == record.fence)
                            || waits && Some(w.token) == record.owner
                    })
                };
                !s.net.is_empty()
                    || s.data_lost
                    || s.faults.crashes < model.faults.crashes
                    || s.faults.repeats < model.faults.repeats
                    || !s
                        .record
                        .is_some_and(|record| record.is_owned() && !keeps(record))
            }),
            Property::always("no rule is broken", |_, s: &State| s.broken.is_none()),
            Property::always("nobody waits for nothing", |model: &Self, s: &State| {
                let busy = |w: &Worker| matches!(w.stage, Stage::Joining | Stage::Working);
                let waits = |worker: &usize| s.workers[*worker].stage == Stage::Waiting;
                let stuck = |worker: usize| {
                    let w = &s.workers[worker];
                    w.hears != Hears::Asked && model.timer(s, worker).is_none()
                };
                !s.net.is_empty()
                    || s.workers.iter().any(busy)
                    || !(0..s.workers.len()).filter(waits).any(stuck)
            }),
            Property::always(
                "who hears knows when the work is free, or its own",
                |model: &Self, s: &State| {
                    let unheard = |w: &Worker| {
                        let newest = w.view.map(|view| view.order());
                        w.stage == Stage::Waiting
                            && w.hears == Hears::Yes
                            && !w.claiming
                            && s.record.is_some_and(|record| match record.is_owned() {
                                true => record.owner == Some(w.token),
                                false => newest < Some(record.order()),
                            })
                    };
                    s.faults.news < model.faults.news
                        || s.data_lost
                        || !s.net.is_empty()
                        || !s.workers.iter().any(unheard)
                },
            ),
        ]
    }
}

impl Protocol {
    /// An answer is lost: what the hub does with a call that it knows nothing of.
    fn ask_again(&self, s: &mut State, worker: usize, op: Op) {
        let w = s.workers[worker];
        if w.stage == Stage::Crashed {
            return;
        }
        match op {
            Op::Claim(token) => {
                let takes_part = matches!(w.stage, Stage::Joining | Stage::Waiting);
                if takes_part && w.token == token {
                    Self::ask(s, worker, op);
                } else {
                    Self::ask(s, worker, Op::Withdraw(token, self.spared(&w, token)));
                }
            }
            Op::Renew(fence) => {
                let wanted = |grant: Grant| grant.fence == fence && !grant.lost && !grant.settling;
                if w.grant.is_some_and(wanted) {
                    Self::ask(s, worker, op);
                }
            }
            Op::Settle(..) | Op::Withdraw(..) => Self::ask(s, worker, op),
        }
    }
}

const NONE: Faults = Faults {
    answers: 0,
    repeats: 0,
    news: 0,
    crashes: 0,
    leaves: 0,
    renewals: 0,
    data: 0,
};

const EVERY: Faults = Faults {
    answers: 1,
    repeats: 1,
    news: 1,
    crashes: 1,
    leaves: 1,
    renewals: 1,
    data: 0,
};

const ANSWERS: Faults = Faults { answers: 1, ..NONE };
const REPEATS: Faults = Faults { repeats: 1, ..NONE };
const NEWS: Faults = Faults { news: 1, ..NONE };
const CRASHES: Faults = Faults { crashes: 1, ..NONE };
const LEAVES: Faults = Faults { leaves: 1, ..NONE };
const RENEWALS: Faults = Faults {
    renewals: 2,
    ..NONE
};
const DATA: Faults = Faults { data: 1, ..NONE };

fn protocol(workers: usize, rejoin: bool, faults: Faults) -> Protocol {
    Protocol {
        workers,
        rejoin,
        horizon: 6,
        faults,
        mutant: None,
    }
}

fn search(model: Protocol, states: usize) -> impl Checker<Protocol> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let builder = model.checker().threads(threads).target_state_count(states);
    builder.finish_when(HasDiscoveries::Any).spawn_bfs().join()
}

#[test]
fn the_protocol_keeps_its_promises() {
    let bound =
        std::env::var("MODEL_STATES").map_or(70_000, |states| states.parse().expect("a number"));
    let mut all = 0;
    for (name, workers, rejoin, faults) in [
        ("no fault", 2, false, NONE),
        ("no fault, rejoining", 2, true, NONE),
        ("lost answers", 2, false, ANSWERS),
        ("late duplicates", 2, false, REPEATS),
        ("lost messages", 2, false, NEWS),
        ("a crash", 2, false, CRASHES),
        ("a stream dropped", 2, false, LEAVES),
        ("renewals", 2, false, RENEWALS),
        ("data lost", 2, false, DATA),
        ("all faults", 2, false, EVERY),
        ("all faults, rejoining", 2, true, EVERY),
        (
            "all faults and data lost",
            2,
            true,
            Faults { data: 1, ..EVERY },
        ),
        ("three workers, rejoining, a crash", 3, true, CRASHES),
        ("three workers, all faults", 3, false, EVERY),
    ] {
        for horizon in [0, 3, 6] {
            let began = Instant::now();
            let mut model = protocol(workers, rejoin, faults);
            model.horizon = horizon;
            let search = search(model, bound);
            let unique = search.unique_state_count();
            let how = if search.state_count() < bound {
                "gave_up"
            } else {
                "bounded"
            };
            println!(
                "{name}, {horizon} ticks: {unique} states, {how}, {} deep, {:.1?}",
                search.max_depth(),
                began.elapsed()
            );
            search.assert_properties();
            all += unique;
        }
    }
    println!("{all} states without a violation");
}

#[test]
fn each_mutant_is_found() {
    use Mutant::*;
    for (mutant, faults, horizon) in [
        (NoLeaseTimer, CRASHES, 0),
        (ClaimNotIdempotent, ANSWERS, 0),
        (AnybodySettles, REPEATS, 0),
        (NoClaimAfterSubscribing, NONE, 0),
        (NoMargin, NONE, 3),
        (LeaseFromTheAnswer, NONE, 3),
        (FenceRestarts, DATA, 0),
        (LateDuplicateTakesAnAttempt, REPEATS, 0),
        (UnboundedAttempts, NONE, 0),
        (LineKeepsItsOwner, NONE, 3),
        (NothingRemembered, NONE, 0),
        (RepeatedFailureCounts, REPEATS, 0),
        (GrantsOutliveTheirWindow, CRASHES, 0),
        (WithdrawalNamesNothing, ANSWERS, 0),
        (UnwantedIsKept, LEAVES, 0),
    ] {
        let mut model = protocol(2, true, faults);
        model.horizon = horizon;
        model.mutant = Some(mutant);
        let search = search(model, 5_000_000);
        let found = search.discoveries().into_iter().next();
        let (name, path) = found.unwrap_or_else(|| panic!("not found: {mutant:?}"));
        let (steps, states) = (path.into_actions().len(), search.unique_state_count());
        println!("{mutant:?}: \"{name}\" after {steps} steps, {states} states");
    }
}
