//! The transitions of a run, each one atomic, behind one trait with two implementations.

pub(crate) mod key;
pub(crate) mod memory;
pub(crate) mod record;
pub(crate) mod redis;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::bytes_utils::Str;
use fred::types::Value;

use crate::error::{Error, FencedError};
use key::Key;
use record::{Record, RecordSnapshot, Token};

/// One transition. Durations are in whole milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Take the key, or join its waiting line.
    Claim {
        /// Who claims; one grant a token.
        token: Token,
        /// The holder's label.
        label: Arc<str>,
        /// The lease, should it be granted.
        lease: u64,
        /// The run's bound on attempts, should this begin one.
        max_attempts: u32,
        /// The run's retention, should this begin one.
        retention: u64,
    },
    /// End a grant.
    Settle {
        /// The grant, by its fencing token.
        fence: u64,
        /// How it ends.
        outcome: Outcome,
        /// How long a successor has to confirm.
        window: u64,
    },
    /// Restart a grant's lease, which never shortens it; confirms it if it was handed over.
    Renew {
        /// The grant, by its fencing token.
        fence: u64,
        /// The new lease.
        lease: u64,
        /// What to leave for a successor; `None` keeps what there is.
        checkpoint: Option<Bytes>,
    },
    /// Leave: the line, or a grant that nobody has begun to work on.
    Withdraw {
        /// Who leaves.
        token: Token,
        /// The label it claimed with.
        label: Arc<str>,
        /// A grant of its that stays as it is, by fencing token, or 0: it is or was in somebody's hands.
        spared: u64,
        /// How long a successor has to confirm.
        window: u64,
    },
    /// Begin the run anew, whoever has it: its head of the line is first.
    Clear {
        /// How long the head has to confirm.
        window: u64,
    },
    /// Read the record; changes nothing.
    Inspect,
}

impl Op {
    /// What may be long in it.
    pub(crate) fn payload(&self) -> &[u8] {
        match self {
            Op::Settle { outcome, .. } => match outcome {
                Outcome::Done(result) => result,
                Outcome::Fail(Failure::Reason(reason)) | Outcome::FailPermanently(reason) => {
                    reason.as_bytes()
                }
                Outcome::Fail(_) | Outcome::HandOff => &[],
            },
            Op::Renew { checkpoint, .. } => checkpoint.as_deref().unwrap_or_default(),
            Op::Claim { .. } | Op::Withdraw { .. } | Op::Clear { .. } | Op::Inspect => &[],
        }
    }
}

/// How a grant ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The work is complete; the bytes are its result.
    Done(Bytes),
    /// The attempt failed and counts.
    Fail(Failure),
    /// The attempt failed and no other shall be made.
    FailPermanently(String),
    /// The attempt goes to another holder and does not count.
    HandOff,
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The guard was dropped.
    Dropped,
    /// The guard was dropped while panicking.
    Panicked,
    /// The holder said why.
    Reason(String),
}

/// A script of the user's, to be run while a grant stands.
#[derive(Clone, Debug)]
pub struct FencedScript {
    /// The grant, by its fencing token.
    pub fence: u64,
    /// The grant's attempt.
    pub attempt: u32,
    /// Lua, as for `EVAL`.
    pub source: String,
    /// Its `KEYS`.
    pub keys: Vec<Value>,
    /// Its `ARGV`.
    pub args: Vec<Value>,
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `Claim`: the token holds the key. Others: it was done as asked. `Inspect`: always.
    pub ok: bool,
    /// The record after the operation.
    pub frame: RecordSnapshot,
    /// The claimer's place in the waiting line, from 0; for `Inspect` the line's length.
    pub position: Option<u64>,
}

/// What a subscriber hears.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// A transition, on the channel of its key.
    Message {
        /// The key's channel.
        channel: Str,
        /// The record after the transition; `None` when it could not be read.
        frame: Option<RecordSnapshot>,
    },
    /// Messages may have been missed; the subscriptions stand.
    Lagged,
    /// The connection is lost, and what is said from now on is missed.
    Disconnected,
    /// The connection is back, or a slot has moved: subscribe again.
    Reconnected,
    /// The commands go over another connection, which may be to another server: see whether what
    /// they publish is still heard.
    CommandsReconnected,
}

/// How soon a store notices that it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long an answer may be owed before its connection is looked into.
    pub answer: Duration,
    /// How often the path from our commands to our subscriber is tried.
    pub beat: Duration,
}

impl Pace {
    const ANSWER: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(1_500)];
    const BEAT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

    /// Served again within half a lease, and within 3 s.
    pub fn of(lease: Duration) -> Self {
        let within = |part: Duration, [least, most]: [Duration; 2]| part.clamp(least, most);
        Self {
            answer: within(lease / 4, Self::ANSWER),
            beat: within(lease / 8, Self::BEAT),
        }
    }
}

/// Without a lease in view: the slowest.
impl Default for Pace {
    fn default() -> Self {
        Self::of(Duration::MAX)
    }
}

/// A number for what travels together; see [`Store::lane`].
pub type BatchKey = u32;

/// Where runs are kept.
///
/// Every operation is atomic, idempotent by its token or fencing token, and publishes what it
/// changed to the watchers of the key.
pub trait Store: Debug + Clone + Send + Sync + 'static {
    /// Which transitions may be carried out in one call: those of one lane. What waits for its turn in
    /// one lane does not hold up another.
    fn lane(&self, key: &Key, op: &Op) -> BatchKey;

    /// Carries out transitions of one lane, each by itself, in any order; the answers are in theirs.
    fn apply_all(
        &self,
        asked: &[(&Key, &Op)],
    ) -> impl Future<Output = Vec<Result<Reply, Error>>> + Send;

    /// Carries out one transition.
    fn apply(&self, key: &Key, op: &Op) -> impl Future<Output = Result<Reply, Error>> + Send {
        async move {
            let mut answers = self.apply_all(&[(key, op)]).await;
            answers.pop().expect("an answer to each")
        }
    }

    /// Runs a script in the same step as the check that the grant stands.
    fn fenced(
        &self,
        key: &Key,
        script: &FencedScript,
    ) -> impl Future<Output = Result<Value, FencedError>> + Send;

    /// The labels of those who wait, in their order; not more than so many.
    fn line(&self, key: &Key, most: u32)
    -> impl Future<Output = Result<Vec<String>, Error>> + Send;

    /// Begins to hear a key's transitions; all that happen after it resolves are heard.
    fn watch(&self, key: &Key) -> impl Future<Output = Result<(), Error>> + Send;

    /// Stops hearing a key's transitions.
    fn unwatch(&self, key: &Key) -> impl Future<Output = ()> + Send;

    /// Resolves once everything published before the call has been heard.
    ///
    /// # Errors
    ///
    /// When that cannot be known: the subscriber may be cut off.
    fn ping(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// How often to do so while any key is watched.
    fn ping_period(&self) -> Duration {
        Pace::default().beat
    }

    /// What is heard on all watched keys. There is one hearer a store.
    fn hear(&mut self) -> impl futures::Stream<Item = StoreEvent> + Send + Unpin + 'static;

    /// Ends the connections.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// What a store can tell apart.
pub(crate) const GRAIN: Duration = Duration::from_millis(1);

/// In whole milliseconds, rounded up.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Reply {
    /// The record the operation left, if the key has one.
    pub fn record(&self) -> Option<&Record> {
        self.frame.record.as_deref()
    }
}
