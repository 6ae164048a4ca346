//! The protocol as a model, searched breadth first through every order of events.
//!
//! The model has no protocol of its own. [`Process`] is the machine of a key with its requests and
//! leases, as the hub's task drives it; [`apply`] is the executable specification of the server's
//! transitions. The model adds what is between them: a network that loses, repeats and reorders,
//! time, crashes, and the promises. A tick is a quarter of a second, a lease is three ticks, its
//! margin is one, and the first worker's clock is slow by the margin of a lease.
//!
//! `MODEL_STATES` bounds each search, 70,000 states by default, of which there are 51. With
//! `-- --nocapture` the searches print how many states they saw, how deep they went, and whether
//! those were all. The *horizon* is the tick at which time stops: 0 leaves the orders of events,
//! which are then searched deeper; 3 lets one lease end, and 6 two.
//!
//! Each mutant breaks one rule between the machine and the server, and must be found:
//!
//! | mutant | the rule that it breaks |
//! |---|---|
//! | `NoLeaseTimer` | a waiter claims at the end of the lease |
//! | `ClaimNotIdempotent` | the same token gets the same grant |
//! | `AnyOwnerSettles` | a settlement and a renewal name the grant |
//! | `SubscribedTooEarly` | a waiter asks for what happened before its subscription stood |
//! | `NoMargin` | a guard ends early enough for clocks that drift apart |
//! | `LeaseFromTheAnswer` | a lease counts from before the claim was sent |
//! | `FenceRestarts` | fencing tokens rise after the record was lost |
//! | `LateDuplicateTakesAnAttempt` | the server refuses the last owner's token |
//! | `UnboundedAttempts` | attempts have a maximum |
//! | `QueueKeepsTheOwner` | the worker that acquires leaves the queue |
//! | `NothingRemembered` | the server remembers an outcome for the retention |
//! | `RepeatedFailureCounts` | a late duplicate of a failure fails nothing else |
//! | `GrantsOutliveTheirWindow` | a claim follows a grant that was not confirmed |
//! | `WithdrawalNamesNothing` | a withdrawal leaves the grant that is worked on |
//! | `UnwantedIsKept` | a process gives back a grant that it does not want |
//! | `ClearKeepsTheFence` | a cleared run gets a new fencing token |
//! | `HandOffCounts` | a hand-off does not count as an attempt |
//!
//! `cargo mutants` breaks the machine and the transitions themselves, and runs this model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis_locking_worker::internals::{
    Cause, Entry, Failure, Op, Options, Outcome, Process, Record, RecordSnapshot, Reply, State,
    Told, apply,
};
use stateright::{Checker, HasDiscoveries, Model, Property};

type Tick = u8;

const TICK: Duration = Duration::from_millis(250);
const LEASE: u32 = 3;
const RETENTION: u32 = 2;
const MAX_ATTEMPTS: u32 = 2;

/// The most tokens that a worker draws: it does not rejoin for ever.
const MAX_TOKENS: u8 = 3;

/// The server's time in µs when time begins.
const EPOCH: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Fail,
    HandOff,
}

impl End {
    fn outcome(self) -> Outcome {
        match self {
            End::Done => Outcome::Done(Default::default()),
            End::Fail => Outcome::Fail(Failure::Dropped),
            End::HandOff => Outcome::HandOff,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Out,
    In,
    Ended,
    Crashed,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Worker {
    stage: Stage,
    process: Process,
    /// What was sent by a process that does not wait for the answer any more.
    orphans: Vec<Op>,
    news: Vec<RecordSnapshot>,
    /// Whether the server sends it messages.
    registered: bool,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct Server {
    entry: Option<Entry>,
    /// The last fencing token of any run.
    last_fence: u64,
}

/// The faults that are left to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Faults {
    /// Answers that are lost: the worker asks again.
    answers: u8,
    /// Requests that fail, and that the server may carry out later all the same.
    failures: u8,
    /// Requests that are carried out once more, late.
    repeats: u8,
    news: u8,
    crashes: u8,
    leaves: u8,
    renewals: u8,
    /// Extensions by two leases.
    extensions: u8,
    /// Writes that the replicas do not acknowledge.
    unacknowledged: u8,
    /// The run is cleared.
    clears: u8,
    data: u8,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct World {
    now: Tick,
    server: Server,
    workers: Vec<Worker>,
    faults: Faults,
    /// Until then the server remembers the last completion.
    done_until: Tick,
    /// Data was lost or a run cleared: only the fencing tokens promise anything across that.
    is_upset: bool,
    /// A rule that was broken on the way here.
    broken: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Join(usize),
    Leave(usize),
    Crash(usize),
    /// Its stream takes the grant from its mailbox.
    Take(usize),
    /// The work of its guard ends, in time or late.
    Work(usize, End),
    Renew(usize),
    Extend(usize),
    /// The server acknowledges its subscription, or the end of it.
    Acknowledge(usize),
    /// The server begins to send it messages, later than it said.
    Register(usize),
    Timer(usize),
    Carry(usize, usize),
    CarryOrphan(usize, usize),
    Repeat(usize, usize),
    Arrive(usize, usize),
    LoseAnswer(usize, usize),
    Fail(usize, usize),
    Unacknowledged(usize, usize),
    Hear(usize, usize),
    LoseNews(usize, usize),
    Clear,
    LoseData,
    Tick,
}

/// One rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    NoLeaseTimer,
    ClaimNotIdempotent,
    AnyOwnerSettles,
    SubscribedTooEarly,
    NoMargin,
    LeaseFromTheAnswer,
    FenceRestarts,
    LateDuplicateTakesAnAttempt,
    UnboundedAttempts,
    QueueKeepsTheOwner,
    NothingRemembered,
    RepeatedFailureCounts,
    GrantsOutliveTheirWindow,
    WithdrawalNamesNothing,
    UnwantedIsKept,
    ClearKeepsTheFence,
    HandOffCounts,
}

#[derive(Clone, Copy, Debug)]
struct Protocol {
    workers: u8,
    /// A worker whose attempt failed joins again.
    rejoin: bool,
    horizon: Tick,
    faults: Faults,
    mutant: Option<Mutant>,
}

impl World {
    /// The server's time in µs. It rises between two grants.
    fn at(&self) -> u64 {
        let now = EPOCH + u64::from(self.now) * TICK.as_micros() as u64;
        now.max(self.server.last_fence + 1)
    }

    fn record(&self) -> Option<&Record> {
        let now = self.at() / 1_000;
        let entry = self.server.entry.as_ref();
        let entry = entry.filter(|entry| entry.expires > now);
        entry.map(|entry| &entry.record)
    }

    fn is_over(&self, record: &Record) -> bool {
        self.at() / 1_000 >= record.until
    }

    fn breaks(&mut self, rule: &'static str) {
        self.broken.get_or_insert(rule);
    }

    /// Whether nothing is on its way.
    fn is_settled(&self) -> bool {
        self.workers.iter().all(|worker| {
            worker.process.in_flight().is_empty()
                && worker.orphans.is_empty()
                && worker.news.is_empty()
        })
    }
}

impl Protocol {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The time by a worker's clock. The first worker's is slow by the margin over a lease.
    fn clock(worker: usize, now: Tick) -> Duration {
        let now = u32::from(now) * TICK;
        if worker > 0 {
            return now;
        }
        // Rounded up: as slow as the margin allows, and not a nanosecond more.
        let micros = (now.as_micros() as u64 * u64::from(LEASE - 1)).div_ceil(u64::from(LEASE));
        Duration::from_micros(micros)
    }

    fn options(&self) -> Options {
        Options {
            lease: LEASE * TICK,
            margin: if self.is(Mutant::NoMargin) {
                Duration::ZERO
            } else {
                TICK
            },
            retention: RETENTION * TICK,
            max_attempts: MAX_ATTEMPTS,
            replicated: self.faults.unacknowledged > 0,
        }
    }

    /// The server carries an operation out.
    fn carry_out(&self, world: &mut World, op: &Op) -> Reply {
        let before = world.record().cloned();
        let at = world.at();
        let mut op = op.clone();
        let mut entry = world.server.entry.take();
        self.mutate_request(&mut op, &mut entry);
        let mut applied = apply(entry, &op, at);
        let is_done = |record: &Record| record.state == State::Done;
        let after = applied.entry.as_ref().map(|entry| &entry.record);
        if after.is_some_and(is_done) && !before.as_ref().is_some_and(is_done) {
            world.done_until = world.now + RETENTION as Tick;
        }
        self.mutate_result(world, &op, &before, &mut applied.entry);
        world.server.entry = applied.entry;
        let record = world.server.entry.as_ref().map(|entry| &entry.record);
        let frame = RecordSnapshot {
            at,
            record: record.cloned().map(Arc::new),
        };
        self.judge(world, &op, before.as_ref());
        if applied.changed && frame.record.is_some() {
            for worker in world.workers.iter_mut().filter(|worker| worker.registered) {
                worker.news.push(frame.clone());
            }
        }
        Reply {
            ok: applied.ok,
            frame,
            position: applied.position,
        }
    }

    fn mutate_request(&self, op: &mut Op, entry: &mut Option<Entry>) {
        let Some(Entry { record, .. }) = entry else {
            return;
        };
        match (self.mutant, op) {
            (Some(Mutant::AnyOwnerSettles), Op::Settle { fence, .. } | Op::Renew { fence, .. }) => {
                *fence = record.fence;
            }
            (Some(Mutant::RepeatedFailureCounts), Op::Settle { fence, outcome, .. })
                if matches!(outcome, Outcome::Fail(_)) && record.fence == *fence + 1 =>
            {
                *fence = record.fence;
            }
            (Some(Mutant::LateDuplicateTakesAnAttempt), Op::Claim { .. }) => record.last = None,
            (Some(Mutant::UnboundedAttempts), _) => record.max_attempts = u32::MAX,
            (Some(Mutant::ClaimNotIdempotent), Op::Claim { token, .. })
                if record.owner == Some(*token) =>
            {
                // The server does not know the owner again.
                record.owner = None;
            }
            (Some(Mutant::WithdrawalNamesNothing), Op::Withdraw { except_fence, .. }) => {
                *except_fence = None;
            }
            (Some(Mutant::UnwantedIsKept), Op::Withdraw { except_fence, .. }) => {
                *except_fence = Some(record.fence);
            }
            _ => {}
        }
    }

    fn mutate_result(
        &self,
        world: &World,
        op: &Op,
        before: &Option<Record>,
        entry: &mut Option<Entry>,
    ) {
        let Some(mutated) = entry else { return };
        let record = &mut mutated.record;
        match (self.mutant, op) {
            (Some(Mutant::FenceRestarts), _) if before.is_none() => record.fence = EPOCH,
            (Some(Mutant::HandOffCounts), Op::Settle { outcome, .. })
                if *outcome == Outcome::HandOff && record.state == State::Granted =>
            {
                record.attempt += 1;
            }
            (Some(Mutant::ClearKeepsTheFence), Op::Clear { .. }) => {
                record.fence = before.as_ref().map_or(0, |before| before.fence);
            }
            (Some(Mutant::NothingRemembered), _) if record.state == State::Done => *entry = None,
            (Some(Mutant::ClaimNotIdempotent), Op::Claim { token, .. }) => {
                let owned = before.as_ref().is_some_and(|before| {
                    before.owner == Some(*token) && before.fence == record.fence
                });
                if owned {
                    record.owner = Some(*token);
                }
            }
            (Some(Mutant::QueueKeepsTheOwner), Op::Claim { token, .. })
                if record.owner == Some(*token) =>
            {
                // It claims once more, as if another worker had the key.
                let now = world.at();
                let (state, owner, until) = (record.state, record.owner.take(), record.until);
                (record.state, record.until) = (State::Held, u64::MAX / 2_000);
                let expires = mutated.expires;
                *entry = apply(entry.take(), op, now).entry;
                if let Some(Entry {
                    record, expires: e, ..
                }) = entry
                {
                    (record.state, record.owner, record.until) = (state, owner, until);
                    *e = expires;
                }
            }
            _ => {}
        }
    }

    /// Whether the transition was one that the design allows.
    fn judge(&self, world: &mut World, op: &Op, before: Option<&Record>) {
        let Some(after) = world.server.entry.as_ref() else {
            return;
        };
        let after = after.record.clone();
        if Some(&after) == before {
            return;
        }
        if after.attempt > MAX_ATTEMPTS {
            world.breaks("attempts");
        }
        let is_new = before.is_none_or(|before| before.fence != after.fence);
        if let (true, Op::Clear { .. }) = (is_new, op) {
            world.is_upset = true;
        }
        if let Some(before) = before {
            if after.fence < before.fence {
                world.breaks("fence");
            }
            let cleared = matches!(op, Op::Clear { .. });
            if before.state == State::Done && after.state != State::Done && !cleared {
                world.breaks("done");
            }
            if after.attempt > before.attempt + 1 {
                world.breaks("attempts");
            }
            if is_new && after.owner.is_some() && [before.owner, before.last].contains(&after.owner)
            {
                world.breaks("one grant a token");
            }
            // A withdrawal passes an attempt on uncounted.
            let works = |worker: &Worker| {
                let process = &worker.process;
                process.has_guard() && process.fence() == Some(before.fence)
            };
            if matches!(op, Op::Withdraw { .. })
                && after.fence != before.fence
                && world.workers.iter().any(works)
            {
                world.breaks("an attempt that is not counted");
            }
        }
        if is_new {
            if after.fence <= world.server.last_fence {
                world.breaks("fence");
            }
            if after.state.is_owned() && world.now < world.done_until && !world.is_upset {
                world.breaks("finished work is given out again");
            }
            world.server.last_fence = world.server.last_fence.max(after.fence);
        }
        if after.previous.as_ref().is_some_and(|previous| {
            previous.cause == Cause::HandedOff && previous.attempt != after.attempt
        }) && after.state.is_owned()
        {
            world.breaks("a hand-off is counted");
        }
    }

    /// What a worker does about what its stream was told.
    fn told(&self, world: &mut World, nth: usize, told: Vec<Told>) {
        for told in told {
            let worker = &mut world.workers[nth];
            let again = match told {
                Told::Ended => false,
                Told::LostUnused => true,
                Told::Settled { may_rejoin, .. } => may_rejoin && self.rejoin,
            };
            if again && worker.process.tokens() < MAX_TOKENS {
                worker.process.join();
            } else {
                worker.stage = Stage::Ended;
            }
        }
    }

    fn act(&self, world: &mut World, nth: usize, act: impl FnOnce(&mut Process) -> Vec<Told>) {
        let told = act(&mut world.workers[nth].process);
        self.told(world, nth, told);
    }

    /// Whether the machine has set a timer, and whether that is due.
    fn timer(&self, world: &World, worker: &Worker) -> Option<bool> {
        let is_granted = |record: &Record| record.state == State::Granted;
        let is_stopped = worker.process.is_waiting()
            && match self.mutant {
                Some(Mutant::NoLeaseTimer) => true,
                Some(Mutant::GrantsOutliveTheirWindow) => world.record().is_some_and(is_granted),
                _ => false,
            };
        worker.process.timer().filter(|_| !is_stopped)
    }
}

/// The first of each group of requests at the same stage.
fn distinct(process: &Process) -> impl Iterator<Item = usize> {
    let requests = process.in_flight();
    (0..requests.len()).filter(|nth| {
        let mut before = requests[..*nth].iter();
        !before.any(|before| before.is_same(&requests[*nth]))
    })
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let workers = (0..self.workers).map(|number| Worker {
            stage: Stage::Out,
            process: Process::new(number, self.options()),
            orphans: Vec::new(),
            news: Vec::new(),
            registered: false,
        });
        vec![World {
            now: 0,
            server: Server {
                entry: None,
                last_fence: EPOCH - 1,
            },
            workers: workers.collect(),
            faults: self.faults,
            done_until: 0,
            is_upset: false,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        let faults = &world.faults;
        for (nth, worker) in world.workers.iter().enumerate() {
            let process = &worker.process;
            steps.extend((0..worker.orphans.len()).map(|op| Step::CarryOrphan(nth, op)));
            if worker.stage == Stage::Crashed {
                continue;
            }
            if worker.stage == Stage::Out {
                steps.push(Step::Join(nth));
            }
            if process.is_offered() {
                steps.push(Step::Take(nth));
            }
            if process.has_guard() {
                steps.extend([End::Done, End::Fail, End::HandOff].map(|end| Step::Work(nth, end)));
                if faults.renewals > 0 && process.is_valid() {
                    steps.push(Step::Renew(nth));
                }
                if faults.extensions > 0 && process.is_valid() {
                    steps.push(Step::Extend(nth));
                }
            }
            if faults.leaves > 0 && process.is_without_guard() {
                steps.push(Step::Leave(nth));
            }
            if faults.crashes > 0 && worker.stage == Stage::In {
                steps.push(Step::Crash(nth));
            }
            if process.is_subscribing() {
                steps.push(Step::Acknowledge(nth));
            }
            if self.is(Mutant::SubscribedTooEarly) && process.is_subscribed() && !worker.registered
            {
                steps.push(Step::Register(nth));
            }
            if self.timer(world, worker) == Some(true) {
                steps.push(Step::Timer(nth));
            }
            for request in distinct(process) {
                let in_flight = &process.in_flight()[request];
                if in_flight.is_answered() {
                    steps.push(Step::Arrive(nth, request));
                    if faults.answers > 0 {
                        steps.push(Step::LoseAnswer(nth, request));
                    }
                    let counts = matches!(in_flight.op(), Op::Claim { .. } | Op::Renew { .. });
                    let done = matches!(in_flight.op(), Op::Settle { outcome, .. }
                        if matches!(outcome, Outcome::Done(_)));
                    let ok = in_flight.reply().is_some_and(|reply| reply.ok);
                    if faults.unacknowledged > 0 && ok && (counts || done) {
                        steps.push(Step::Unacknowledged(nth, request));
                    }
                } else {
                    steps.push(Step::Carry(nth, request));
                    if faults.failures > 0 {
                        steps.push(Step::Fail(nth, request));
                    }
                    if faults.repeats > 0 {
                        steps.push(Step::Repeat(nth, request));
                    }
                }
            }
            for message in 0..worker.news.len() {
                if worker.news[..message].contains(&worker.news[message]) {
                    continue;
                }
                steps.push(Step::Hear(nth, message));
                if faults.news > 0 {
                    steps.push(Step::LoseNews(nth, message));
                }
            }
        }
        if faults.clears > 0 && world.record().is_some() {
            steps.push(Step::Clear);
        }
        if faults.data > 0 && world.record().is_some() {
            steps.push(Step::LoseData);
        }
        if world.now < self.horizon {
            steps.push(Step::Tick);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::Join(nth) => {
                world.workers[nth].stage = Stage::In;
                world.workers[nth].process.join();
            }
            Step::Leave(nth) => {
                world.faults.leaves -= 1;
                world.workers[nth].process.leave();
                world.workers[nth].stage = Stage::Ended;
            }
            Step::Crash(nth) => {
                world.faults.crashes -= 1;
                let worker = &mut world.workers[nth];
                let sent = worker.process.in_flight().iter();
                let sent = sent.filter(|request| !request.is_answered());
                // The server may still carry out what the process has sent.
                let orphans = sent.map(|request| request.op().clone()).collect();
                *worker = Worker {
                    stage: Stage::Crashed,
                    process: Process::new(nth as u8, self.options()),
                    orphans,
                    news: Vec::new(),
                    registered: false,
                };
            }
            Step::Take(nth) => world.workers[nth].process.take(),
            Step::Work(nth, end) => world.workers[nth].process.settle(end.outcome()),
            Step::Renew(nth) => {
                world.faults.renewals -= 1;
                world.workers[nth].process.renew(None);
            }
            Step::Extend(nth) => {
                world.faults.extensions -= 1;
                world.workers[nth].process.renew(Some(2 * LEASE * TICK));
            }
            Step::Acknowledge(nth) => {
                self.act(&mut world, nth, Process::acknowledge);
                let worker = &mut world.workers[nth];
                let late = self.is(Mutant::SubscribedTooEarly);
                worker.registered = worker.process.is_subscribed() && !late;
            }
            Step::Register(nth) => world.workers[nth].registered = true,
            Step::Timer(nth) => self.act(&mut world, nth, Process::fire),
            Step::Carry(nth, request) => {
                let op = world.workers[nth].process.in_flight()[request].op().clone();
                let reply = self.carry_out(&mut world, &op);
                world.workers[nth].process.carried_out(request, reply);
            }
            Step::CarryOrphan(nth, op) => {
                let op = world.workers[nth].orphans.remove(op);
                self.carry_out(&mut world, &op);
            }
            Step::Repeat(nth, request) => {
                world.faults.repeats -= 1;
                let op = world.workers[nth].process.in_flight()[request].op().clone();
                self.carry_out(&mut world, &op);
            }
            Step::Arrive(nth, request) => {
                let in_flight = &world.workers[nth].process.in_flight()[request];
                let completed = match (in_flight.op(), in_flight.reply()) {
                    (Op::Settle { fence, outcome, .. }, Some(reply)) => {
                        let record = reply.record();
                        let done = record.is_some_and(|record| {
                            record.state == State::Done && record.fence == *fence
                        });
                        matches!(outcome, Outcome::Done(_)) && !done
                    }
                    _ => false,
                };
                let from_the_answer = self.is(Mutant::LeaseFromTheAnswer);
                let process = &mut world.workers[nth].process;
                let told = process.answered(request, from_the_answer);
                let in_time = |told: &Told| matches!(told, Told::Settled { in_time: true, .. });
                if completed && told.iter().any(in_time) {
                    world.breaks("stolen done");
                }
                self.told(&mut world, nth, told);
            }
            Step::LoseAnswer(nth, request) => {
                world.faults.answers -= 1;
                self.act(&mut world, nth, |process| process.unanswered(request));
            }
            Step::Fail(nth, request) => {
                world.faults.failures -= 1;
                let worker = &mut world.workers[nth];
                let (op, told) = worker.process.fails(request);
                worker.orphans.push(op);
                self.told(&mut world, nth, told);
            }
            Step::Unacknowledged(nth, request) => {
                world.faults.unacknowledged -= 1;
                self.act(&mut world, nth, |process| process.unacknowledged(request));
            }
            Step::Hear(nth, message) => {
                let message = world.workers[nth].news.remove(message);
                self.act(&mut world, nth, |process| process.hear(message));
            }
            Step::LoseNews(nth, message) => {
                world.faults.news -= 1;
                world.workers[nth].news.remove(message);
            }
            Step::Clear => {
                world.faults.clears -= 1;
                let window = (LEASE - 1) * TICK;
                let window = window.as_millis() as u64;
                self.carry_out(&mut world, &Op::Clear { window });
            }
            Step::LoseData => {
                world.faults.data -= 1;
                world.is_upset = true;
                world.server.entry = None;
            }
            Step::Tick => {
                world.now += 1;
                if world.record().is_none() {
                    world.server.entry = None;
                }
                for (nth, worker) in world.workers.iter_mut().enumerate() {
                    worker.process = worker.process.at(Self::clock(nth, world.now));
                }
            }
        }
        for worker in &mut world.workers {
            worker.news.sort_by_key(|news| {
                let record = news.record.as_ref();
                (news.at, record.map(|record| record.order()))
            });
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one valid guard", |_, world: &World| {
                let valid = world.workers.iter();
                let valid = valid.filter(|worker| worker.process.is_valid());
                world.is_upset || valid.count() <= 1
            }),
            Property::always(
                "a valid guard has the work on the server",
                |_, world: &World| {
                    let has = |worker: &Worker| {
                        let record = world.record();
                        record.is_some_and(|record| {
                            record.state.is_owned() && Some(record.fence) == worker.process.fence()
                        })
                    };
                    let mut valid = world
                        .workers
                        .iter()
                        .filter(|worker| worker.process.is_valid());
                    world.is_upset || valid.all(has)
                },
            ),
            Property::always("no grant is kept unused", |model: &Self, world: &World| {
                let mut workers = world.workers.iter();
                let is_quiet = workers.all(|worker| worker.process.is_quiet());
                let kept = world.record().filter(|record| {
                    let mut workers = world.workers.iter();
                    let is_wanted = workers.any(|worker| worker.process.wants(record));
                    record.state.is_owned() && !world.is_over(record) && !is_wanted
                });
                !world.is_settled()
                    || !is_quiet
                    || world.is_upset
                    || world.faults.crashes < model.faults.crashes
                    || world.faults.failures < model.faults.failures
                    || world.faults.repeats < model.faults.repeats
                    || kept.is_none()
            }),
            Property::always("no rule is broken", |_, world: &World| {
                world.broken.is_none()
            }),
            Property::always(
                "no participant is told after its mailbox is closed",
                |_, world: &World| {
                    let mut workers = world.workers.iter();
                    !workers.any(|worker| worker.process.is_mailbox_wrong())
                },
            ),
            Property::always("no worker waits in vain", |model: &Self, world: &World| {
                let holds =
                    |worker: &Worker| worker.process.has_guard() || worker.process.is_offered();
                let is_stuck = |worker: &Worker| {
                    worker.stage == Stage::In
                        && worker.process.is_without_guard()
                        && !worker.process.is_subscribing()
                        && model.timer(world, worker).is_none()
                };
                !world.is_settled()
                    || world.workers.iter().any(holds)
                    || !world.workers.iter().any(is_stuck)
            }),
            Property::always(
                "a subscriber knows when the work is free, or its own",
                |model: &Self, world: &World| {
                    let unheard = |worker: &Worker| {
                        let process = &worker.process;
                        process.is_waiting()
                            && process.is_subscribed()
                            && process.is_quiet()
                            && world
                                .record()
                                .is_some_and(|record| match record.state.is_owned() {
                                    true => process.is_owed(record),
                                    false => process.is_older_than(record),
                                })
                    };
                    world.faults.news < model.faults.news
                        || world.is_upset
                        || !world.is_settled()
                        || !world.workers.iter().any(unheard)
                },
            ),
        ]
    }
}

const NONE: Faults = Faults {
    answers: 0,
    failures: 0,
    repeats: 0,
    news: 0,
    crashes: 0,
    leaves: 0,
    renewals: 0,
    extensions: 0,
    unacknowledged: 0,
    clears: 0,
    data: 0,
};

const EVERY: Faults = Faults {
    answers: 1,
    failures: 1,
    repeats: 1,
    news: 1,
    crashes: 1,
    leaves: 1,
    renewals: 1,
    extensions: 1,
    ..NONE
};

const ANSWERS: Faults = Faults { answers: 1, ..NONE };
const FAILURES: Faults = Faults {
    failures: 1,
    ..NONE
};
const REPEATS: Faults = Faults { repeats: 1, ..NONE };
const NEWS: Faults = Faults { news: 1, ..NONE };
const CRASHES: Faults = Faults { crashes: 1, ..NONE };
const LEAVES: Faults = Faults { leaves: 1, ..NONE };
const DATA: Faults = Faults { data: 1, ..NONE };
const CLEARS: Faults = Faults { clears: 1, ..NONE };
const RENEWALS: Faults = Faults {
    renewals: 2,
    extensions: 1,
    ..NONE
};
const REPLICAS: Faults = Faults {
    unacknowledged: 2,
    ..NONE
};

fn protocol(workers: u8, rejoin: bool, faults: Faults) -> Protocol {
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
        ("requests that fail", 2, false, FAILURES),
        ("late duplicates", 2, false, REPEATS),
        ("lost messages", 2, false, NEWS),
        ("a crash", 2, false, CRASHES),
        ("a stream dropped", 2, false, LEAVES),
        ("renewals", 2, false, RENEWALS),
        ("replicas that do not acknowledge", 2, false, REPLICAS),
        ("a run cleared", 2, false, CLEARS),
        ("data lost", 2, false, DATA),
        ("all faults", 2, false, EVERY),
        ("all faults, rejoining", 2, true, EVERY),
        (
            "all faults, a run cleared and data lost",
            2,
            true,
            Faults {
                data: 1,
                clears: 1,
                ..EVERY
            },
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
                "all"
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
        (AnyOwnerSettles, REPEATS, 0),
        (SubscribedTooEarly, NONE, 0),
        (NoMargin, NONE, 3),
        (LeaseFromTheAnswer, NONE, 3),
        (FenceRestarts, DATA, 0),
        (LateDuplicateTakesAnAttempt, REPEATS, 0),
        (UnboundedAttempts, NONE, 0),
        (QueueKeepsTheOwner, NONE, 3),
        (NothingRemembered, NONE, 0),
        (RepeatedFailureCounts, REPEATS, 0),
        (GrantsOutliveTheirWindow, CRASHES, 0),
        (WithdrawalNamesNothing, ANSWERS, 0),
        (UnwantedIsKept, LEAVES, 0),
        (ClearKeepsTheFence, CLEARS, 0),
        (HandOffCounts, NONE, 0),
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
