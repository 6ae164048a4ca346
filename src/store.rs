//! The trait `Store` with its atomic transitions of a run, and its two implementations.
//!
//! One method executes every transition, many at once. A hub uses its store alone. Nothing is
//! retried below the hub and the keeper.

mod fenced;
pub(crate) mod memory;
pub(crate) mod redis;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use crate::error::Error;
use crate::key::Key;
use crate::protocol::record::RecordSnapshot;
use crate::protocol::{Op, Reply};
use bytes_utils::Str;
pub use fenced::{FencedError, FencedScript};
pub(crate) use redis::values;
use redis::values::Value;

/// An item of the subscriber's stream.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// A transition, published on the channel of its key.
    Message {
        /// The channel of the key.
        channel: Str,
        /// The record after the transition, or `None` if the message is no record.
        frame: Option<RecordSnapshot>,
    },
    /// Messages may have been missed. The subscriptions still stand.
    Lagged,
    /// The connection is lost. Messages are missed from now on.
    Disconnected,
    /// The connection is back, or a slot has moved. The hub has to subscribe again.
    Reconnected,
    /// The commands go over a new connection, perhaps to another server. The hub has to check
    /// whether the subscriber still receives the messages that the commands publish.
    CommandsReconnected,
}

/// How quickly a store notices that it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The time that an answer may take before the store examines the connection.
    pub answer: Duration,
    /// The period at which the store checks the path from the commands to the subscriber.
    pub beat: Duration,
}

impl Pace {
    const ANSWER: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(1_500)];
    const BEAT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

    /// Returns the pace for this lease. A store whose connection died in silence answers again
    /// within 3 s and, for leases from 1 s, within half a lease.
    pub fn of(lease: Duration) -> Self {
        let within = |part: Duration, [least, most]: [Duration; 2]| part.clamp(least, most);
        Self {
            answer: within(lease / 4, Self::ANSWER),
            beat: within(lease / 8, Self::BEAT),
        }
    }
}

/// The slowest pace, for a store without a lease to go by.
impl Default for Pace {
    fn default() -> Self {
        Self::of(Duration::MAX)
    }
}

/// The number of a group of transitions that may share a call. See [`Store::lane`].
pub type BatchKey = u32;

/// A place where runs are kept.
///
/// Every transition is atomic. It is idempotent by its token or fencing token, and it publishes its
/// change on the channel of the key.
pub trait Store: Debug + Clone + Send + Sync + 'static {
    /// Returns the lane of a transition. One call can execute transitions of one lane only. A
    /// transition that waits in one lane does not delay other lanes.
    fn lane(&self, key: &Key, op: &Op) -> BatchKey;

    /// Executes transitions of one lane, each independently and in any order. The answers are in
    /// the order of `asked`.
    fn apply_all(
        &self,
        asked: &[(&Key, &Op)],
    ) -> impl Future<Output = Vec<Result<Reply, Error>>> + Send;

    /// Executes one transition.
    fn apply(&self, key: &Key, op: &Op) -> impl Future<Output = Result<Reply, Error>> + Send {
        async move {
            let mut answers = self.apply_all(&[(key, op)]).await;
            answers.pop().expect("an answer to each")
        }
    }

    /// Checks that the grant stands and runs the script, in one atomic step.
    fn fenced(
        &self,
        key: &Key,
        script: &FencedScript,
    ) -> impl Future<Output = Result<Value, FencedError>> + Send;

    /// Returns the labels of the waiters, first in the queue first, at most `most` of them.
    fn line(&self, key: &Key, most: u32)
    -> impl Future<Output = Result<Vec<String>, Error>> + Send;

    /// Subscribes to a key's transitions. The stream has every transition that happens after this
    /// resolves.
    fn watch(&self, key: &Key) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends the subscription to a key's transitions.
    fn unwatch(&self, key: &Key) -> impl Future<Output = ()> + Send;

    /// Resolves when the subscriber has received everything that was published before the call.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot tell: the subscriber may be cut off.
    fn ping(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns how often to [`ping`](Store::ping) while the hub is subscribed to any key.
    fn ping_period(&self) -> Duration {
        Pace::default().beat
    }

    /// Returns the stream of all events of the subscribed keys. A store has one such stream.
    fn hear(&mut self) -> impl futures::Stream<Item = StoreEvent> + Send + Unpin + 'static;

    /// Closes the connections.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
