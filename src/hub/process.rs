//! One process that competes for one key, without tasks, channels or a clock of its own: the model
//! in `proof/tests/model.rs` drives it through every order of events.
//!
//! The machine, its requests and the leases are those of the hub. Methods of [`Process`] replace
//! only the stream and the guard.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use super::key_state::{Call, Forks, Fresh, KeyState, Output, Turn};
use super::message::{Ended, OutageId, Update};
use super::{Id, Lease, RunConfig};
use crate::clock::{Clock, Moment, Stamp};
use crate::error::{Error, LeaseLost, ServerError};
use crate::key::Key;
use crate::protocol::record::{Record, RecordSnapshot, Token};
use crate::protocol::{Op, Outcome, Reply};

/// The options of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of the lease.
    pub lease: Duration,
    /// Margin of a whole lease.
    pub margin: Duration,
    /// Time for which the server remembers an outcome.
    pub retention: Duration,
    /// Maximum number of attempts of the run.
    pub max_attempts: u32,
    /// Whether a grant counts only once replicas have acknowledged it.
    pub replicated: bool,
}

/// One process, as the model drives it. A clone is independent of the original.
#[derive(Debug)]
pub struct Process {
    number: u8,
    key: Key,
    config: Arc<RunConfig>,
    now: Duration,
    state: KeyState<()>,
    fresh: Counted,
    participation: Option<Id>,
    holding: Holding,
    in_flight: Vec<InFlight>,
    subscriber: Subscriber,
    /// The last participation whose mailbox was closed.
    closed: Option<Id>,
    is_told_late: bool,
}

/// The stage of the grant in the stream or the guard.
#[derive(Debug, Hash)]
enum Holding {
    None,
    /// The grant is in the mailbox. The flag is whether it is confirmed.
    Offered(Arc<Lease>, bool),
    /// The stream waits for the confirmation of the grant.
    Confirming(Arc<Lease>),
    Guard(Arc<Lease>),
    /// The guard has requested its settlement.
    Settling(Arc<Lease>),
}

/// The subscription, as the server has acknowledged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subscriber {
    None,
    Subscribing,
    Subscribed,
    Unsubscribing,
}

/// A request between a process and the server, or its answer on the way back.
#[derive(Debug)]
pub struct InFlight {
    call: Call<()>,
    op: Op,
    sent: Stamp,
    reply: Option<Reply>,
}

/// An update to the stream of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its own grant was settled.
    Settled {
        /// Whether the server accepted the settlement.
        in_time: bool,
        /// Whether another attempt may follow.
        may_rejoin: bool,
    },
    /// The participation ended in another way.
    Ended,
    /// The grant was lost before a guard was made of it, so the stream joins again.
    LostUnused,
}

/// Numbered tokens and outages, so that equal histories lead to equal states.
#[derive(Clone, Debug, Hash)]
struct Counted {
    number: u8,
    tokens: u8,
    participations: u8,
    outages: u64,
}

impl Fresh for Counted {
    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token::from_number(u128::from(self.number) * 256 + u128::from(self.tokens))
    }

    fn outage(&mut self) -> OutageId {
        self.outages += 1;
        self.outages
    }

    /// Returns zero: the model decides when a retry comes.
    fn jittered(&mut self, _: Duration) -> Duration {
        Duration::ZERO
    }
}

impl Hash for Process {
    /// Leaves out the time, which is in the model's state, and the order of requests.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.state, &self.fresh, &self.participation).hash(hasher);
        (&self.holding, self.subscriber).hash(hasher);
        (self.closed, self.is_told_late).hash(hasher);
        let mut requests: Vec<u64> = self.in_flight.iter().map(InFlight::fingerprint).collect();
        requests.sort_unstable();
        requests.hash(hasher);
    }
}

/// By the hash, by which a search tells states apart.
impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        let hash = |process: &Self| {
            let mut hasher = DefaultHasher::new();
            process.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}

impl InFlight {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.call, &self.op, self.sent, self.is_answered()).hash(&mut hasher);
        if let Some(reply) = &self.reply {
            (reply.ok, reply.position, &reply.frame).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Returns the operation that the request asks for.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// Returns the answer, if the server has applied the request.
    pub fn reply(&self) -> Option<&Reply> {
        self.reply.as_ref()
    }

    /// Whether the server has applied the request.
    pub fn is_answered(&self) -> bool {
        self.reply.is_some()
    }

    /// Whether both are the same request in the same stage.
    pub fn is_same(&self, other: &Self) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

impl Holding {
    fn lease(&self) -> Option<&Arc<Lease>> {
        match self {
            Holding::None => None,
            Holding::Offered(lease, _)
            | Holding::Confirming(lease)
            | Holding::Guard(lease)
            | Holding::Settling(lease) => Some(lease),
        }
    }
}

impl Clone for Process {
    fn clone(&self) -> Self {
        self.at(self.now)
    }
}

impl Process {
    /// Returns a process that takes no part yet. Its tokens contain its number, so no other process
    /// has them.
    ///
    /// # Panics
    ///
    /// If its fixed key is invalid.
    pub fn new(number: u8, options: Options) -> Self {
        let config = RunConfig {
            lease: options.lease.as_millis() as u64,
            max_attempts: options.max_attempts,
            retention: options.retention.as_millis() as u64,
            label: number.to_string().into(),
            margin: options.margin,
            renew_every: None,
            max_hold: 1_000 * options.lease,
            stall_limit: 1_000 * options.lease,
            replicated: options.replicated,
        };
        let key = Key::new("work").expect("a key");
        Self {
            number,
            state: KeyState::new(key.clone(), true),
            key,
            config: Arc::new(config),
            now: Duration::ZERO,
            fresh: Counted {
                number,
                tokens: 0,
                participations: 0,
                outages: 0,
            },
            participation: None,
            holding: Holding::None,
            in_flight: Vec::new(),
            subscriber: Subscriber::None,
            closed: None,
            is_told_late: false,
        }
    }

    /// Returns an independent copy whose own clock shows this time.
    pub fn at(&self, now: Duration) -> Self {
        let mut forks = Forks::new(Clock::Stopped(Moment::after(now)));
        let holding = match &self.holding {
            Holding::None => Holding::None,
            Holding::Offered(lease, confirmed) => Holding::Offered(forks.of(lease), *confirmed),
            Holding::Confirming(lease) => Holding::Confirming(forks.of(lease)),
            Holding::Guard(lease) => Holding::Guard(forks.of(lease)),
            Holding::Settling(lease) => Holding::Settling(forks.of(lease)),
        };
        let in_flight = self.in_flight.iter().map(|request| InFlight {
            call: request.call.fork(&mut forks),
            op: request.op.clone(),
            sent: request.sent,
            reply: request.reply.clone(),
        });
        Self {
            number: self.number,
            key: self.key.clone(),
            config: self.config.clone(),
            now,
            in_flight: in_flight.collect(),
            state: self.state.fork(&mut forks),
            fresh: self.fresh.clone(),
            participation: self.participation,
            holding,
            subscriber: self.subscriber,
            closed: self.closed,
            is_told_late: self.is_told_late,
        }
    }

    // Acts of the stream and the guard.

    /// Joins the run.
    pub fn join(&mut self) {
        let id = u64::from(self.fresh.participations);
        self.fresh.participations += 1;
        self.participation = Some(id);
        let config = self.config.clone();
        self.act(|state, turn| state.join(id, config, turn));
    }

    /// Drops the stream.
    pub fn leave(&mut self) {
        let Some(id) = self.participation.take() else {
            return;
        };
        match std::mem::replace(&mut self.holding, Holding::None) {
            // The stream first drops the grant in its mailbox, which gives itself back.
            Holding::Offered(lease, _) | Holding::Confirming(lease) => {
                self.act(|state, turn| state.give_back(&lease, turn));
            }
            holding => self.holding = holding,
        }
        self.act(|state, turn| state.leave(id, turn));
    }

    /// Lets the stream take the grant that it was offered.
    pub fn take(&mut self) {
        match std::mem::replace(&mut self.holding, Holding::None) {
            Holding::Offered(lease, confirmed) if lease.is_doubtful(confirmed) => {
                self.holding = Holding::Confirming(lease.clone());
                self.act(|state, turn| state.confirm(lease, turn));
            }
            Holding::Offered(lease, confirmed) => {
                if !confirmed {
                    let lease = lease.clone();
                    self.act(|state, turn| state.confirm(lease, turn));
                }
                self.guard(lease);
            }
            holding => self.holding = holding,
        }
    }

    fn guard(&mut self, lease: Arc<Lease>) {
        let is_valid = lease.give();
        self.holding = Holding::Guard(lease.clone());
        if !is_valid {
            self.act(|state, turn| state.lose(&lease, LeaseLost::Expired, turn));
        }
    }

    /// Restarts the lease of the guard, for at least `length` if that is given.
    pub fn renew(&mut self, length: Option<Duration>) {
        if let Holding::Guard(lease) = &self.holding {
            let (lease, length) = (
                lease.clone(),
                length.map(|length| length.as_millis() as u64),
            );
            self.act(|state, turn| state.extend(lease, length, None, (), turn));
        }
    }

    /// Settles the grant of the guard.
    pub fn settle(&mut self, outcome: Outcome) {
        let Holding::Guard(lease) = &self.holding else {
            return;
        };
        let lease = lease.clone();
        if matches!(outcome, Outcome::Done(_)) {
            lease.complete();
        }
        lease.lose(LeaseLost::Settled);
        self.holding = Holding::Settling(lease.clone());
        self.act(|state, turn| state.settle(lease, outcome, (), turn));
    }

    // Events of the store and the timers. They return the updates to the stream.

    /// Fires the timers.
    pub fn fire(&mut self) -> Vec<Told> {
        self.act(KeyState::fire)
    }

    /// Delivers the acknowledgement of the subscription, or of its end.
    pub fn acknowledge(&mut self) -> Vec<Told> {
        match self.subscriber {
            Subscriber::Subscribing => {
                self.subscriber = Subscriber::Subscribed;
                self.act(|state, turn| state.subscribed(Ok(()), turn))
            }
            Subscriber::Unsubscribing => {
                self.subscriber = Subscriber::None;
                self.act(KeyState::unsubscribed)
            }
            Subscriber::None | Subscriber::Subscribed => Vec::new(),
        }
    }

    /// Delivers a message.
    pub fn hear(&mut self, snapshot: RecordSnapshot) -> Vec<Told> {
        self.act(|state, turn| state.heard(Some(snapshot), turn))
    }

    /// Records the answer to a request, which the server has applied.
    pub fn carried_out(&mut self, nth: usize, reply: Reply) {
        self.in_flight[nth].reply = Some(reply);
    }

    /// Delivers the answer to a request. If `from_the_answer`, the present time counts as the time
    /// at which the request left, which is a mistake that the model must find.
    pub fn answered(&mut self, nth: usize, from_the_answer: bool) -> Vec<Told> {
        let request = self.in_flight.remove(nth);
        let sent = match from_the_answer {
            true => self.stamp(),
            false => request.sent,
        };
        let reply = request.reply.ok_or(Error::Stopped);
        self.act(|state, turn| state.answered(request.call, reply, sent, turn))
    }

    /// Fails a request because its answer is lost.
    pub fn unanswered(&mut self, nth: usize) -> Vec<Told> {
        let error = Error::Unavailable {
            key: self.key.clone(),
            source: ServerError::new("the answer is lost"),
        };
        self.fail(nth, error)
    }

    /// Fails a request before the server has applied it. Returns its operation too, because the
    /// server may still apply it later.
    pub fn fails(&mut self, nth: usize) -> (Op, Vec<Told>) {
        let op = self.in_flight[nth].op.clone();
        (op, self.unanswered(nth))
    }

    /// Fails a request that was applied, but that the replicas did not acknowledge.
    pub fn unacknowledged(&mut self, nth: usize) -> Vec<Told> {
        let error = Error::NotReplicated {
            key: self.key.clone(),
            wanted: 1,
            acknowledged: 0,
            timeout: Duration::ZERO,
        };
        self.fail(nth, error)
    }

    fn fail(&mut self, nth: usize, error: Error) -> Vec<Told> {
        let InFlight { call, sent, .. } = self.in_flight.remove(nth);
        self.act(|state, turn| state.answered(call, Err(error), sent, turn))
    }

    // Queries.

    /// Returns the requests and answers in flight.
    pub fn in_flight(&self) -> &[InFlight] {
        &self.in_flight
    }

    /// Returns the number of tokens that were drawn.
    pub fn tokens(&self) -> u8 {
        self.fresh.tokens
    }

    /// Whether the machine told a participant something after its mailbox was closed, or left the
    /// mailbox of an ended participation open.
    pub fn is_mailbox_wrong(&self) -> bool {
        let last = u64::from(self.fresh.participations).checked_sub(1);
        self.is_told_late || (self.participation.is_none() && self.closed != last)
    }

    /// Whether a stream waits for a grant.
    pub fn is_waiting(&self) -> bool {
        self.participation.is_some() && matches!(self.holding, Holding::None)
    }

    /// Whether a grant is in the stream's mailbox.
    pub fn is_offered(&self) -> bool {
        matches!(self.holding, Holding::Offered(..))
    }

    /// Whether the stream takes part and has no guard, so that it may be dropped alone.
    pub fn is_without_guard(&self) -> bool {
        let has_guard = matches!(self.holding, Holding::Guard(_) | Holding::Settling(_));
        self.participation.is_some() && !has_guard
    }

    /// Whether there is a guard whose settlement was not requested.
    pub fn has_guard(&self) -> bool {
        matches!(self.holding, Holding::Guard(_))
    }

    /// Whether there is a guard that is valid.
    pub fn is_valid(&self) -> bool {
        let Holding::Guard(lease) = &self.holding else {
            return false;
        };
        !lease.is_lost() && !lease.left().is_zero()
    }

    /// Returns the fencing token of the grant that the stream or the guard has.
    pub fn fence(&self) -> Option<u64> {
        self.holding.lease().map(|lease| lease.fence)
    }

    /// Whether the server still has to acknowledge a subscription, or its end.
    pub fn is_subscribing(&self) -> bool {
        matches!(
            self.subscriber,
            Subscriber::Subscribing | Subscriber::Unsubscribing
        )
    }

    /// Whether the server sends messages to the process.
    pub fn is_subscribed(&self) -> bool {
        matches!(
            self.subscriber,
            Subscriber::Subscribed | Subscriber::Unsubscribing
        )
    }

    /// Returns whether the machine's timer is due; `None` if no timer is set.
    pub fn timer(&self) -> Option<bool> {
        let deadline = self.state.deadline()?;
        Some(deadline <= self.stamp().instant)
    }

    /// Whether no request is in flight or will be repeated.
    pub fn is_quiet(&self) -> bool {
        self.state.is_quiet() && self.in_flight.is_empty()
    }

    /// Whether this process knows no record, or only an older one than this.
    pub fn is_older_than(&self, record: &Record) -> bool {
        self.state.is_older_than(record)
    }

    /// Whether this process has this record's grant, or a stream with its token.
    pub fn wants(&self, record: &Record) -> bool {
        self.fence() == Some(record.fence) || self.state.wants(record)
    }

    /// Whether the record grants the key to a stream of this process that does not know it yet.
    pub fn is_owed(&self, record: &Record) -> bool {
        self.state.is_owed(record)
    }

    fn stamp(&self) -> Stamp {
        static BASE: OnceLock<Instant> = OnceLock::new();
        Stamp {
            instant: *BASE.get_or_init(Instant::now) + self.now,
            moment: Moment::after(self.now),
            wall_lead: 0,
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut KeyState<()>, &mut Turn<'_, ()>)) -> Vec<Told> {
        let (now, mut outputs) = (self.stamp(), Vec::new());
        let mut turn = Turn {
            now,
            clock: Clock::Stopped(now.moment),
            fresh: &mut self.fresh,
            outputs: &mut outputs,
        };
        self.state.act(&mut turn, act);
        let (mut told, mut updates) = (Vec::new(), Vec::new());
        for output in outputs {
            match output {
                Output::Call(call) => self.in_flight.push(InFlight {
                    op: call.request.op(),
                    sent: now,
                    call,
                    reply: None,
                }),
                Output::Subscribe => self.subscriber = Subscriber::Subscribing,
                Output::Unsubscribe => self.subscriber = Subscriber::Unsubscribing,
                Output::Grant { lease, confirmed } => {
                    self.is_told_late |= self.closed >= Some(lease.id);
                    self.holding = Holding::Offered(lease, confirmed);
                }
                Output::Notify(id, update) => {
                    self.is_told_late |= self.closed >= Some(id);
                    updates.push(update);
                }
                Output::Settled { update, result, .. } => {
                    self.holding = Holding::None;
                    self.participation = None;
                    told.push(Told::Settled {
                        in_time: result.is_ok(),
                        may_rejoin: matches!(update, Update::Settled(Ended::Failed(_))),
                    });
                }
                Output::Close(id) => self.closed = self.closed.max(Some(id)),
                Output::Show(..) | Output::Answer(..) | Output::Release(()) | Output::Report(_) => {
                }
            }
        }
        // The stream reads its mailbox once the hub has carried all outputs out.
        told.extend(updates.into_iter().filter_map(|update| self.told(update)));
        told
    }

    fn told(&mut self, update: Update) -> Option<Told> {
        let holding = std::mem::replace(&mut self.holding, Holding::None);
        match (holding, update) {
            (Holding::Confirming(lease), Update::Confirmed) => self.guard(lease),
            // The stream leaves this participation. Joining again is a step of its own.
            (holding @ (Holding::Offered(..) | Holding::Confirming(_)), Update::Lost) => {
                self.holding = holding;
                self.leave();
                return Some(Told::LostUnused);
            }
            (_, Update::Ended(_) | Update::Refused(_)) => {
                self.participation = None;
                return Some(Told::Ended);
            }
            (holding, _) => self.holding = holding,
        }
        None
    }
}
