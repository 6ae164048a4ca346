//! Whether what our commands publish reaches our subscriber.
//!
//! Each of the two connections may be fine and the path between them broken: when an address has
//! moved to another server, one connection may have followed it and the other not. So for each
//! server that has an awaited key, a *beat* is published over the command connection, on a channel
//! of this store's own beside the channel of an awaited key: the same pattern permits it, and it
//! shares the key's slot. StoreEvent, it proves that everything published before has been heard too.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fred::bytes_utils::Str;
use fred::error::Error as FredError;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Options, Server};
use fred::types::{ClusterHash, CustomCommand, Message, Value};
use futures::future::join_all;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::once;
use crate::store::Pace;
use crate::store::key::Key;

/// How long a beat is waited for, at least, before the subscriber is asked for all that came
/// before.
const SOON: Duration = Duration::from_millis(10);

/// How often the pause between two renewals of connections is doubled: to 16 periods of beats.
const MOST_DOUBLED: u32 = 4;

/// The keys whose transitions are awaited, and how the last beats went.
pub(super) struct Path {
    /// Ends the names of this store's beat channels, and of no other's.
    suffix: String,
    pace: Pace,
    awaited: Mutex<BTreeMap<u16, Awaited>>,
    nonce: AtomicU64,
    apart: Mutex<Apart>,
}

/// What was done about connections that do not hear of each other.
#[derive(Default)]
struct Apart {
    renewals: u32,
    /// Before that, they are not made anew once more.
    again: Option<Instant>,
}

impl Apart {
    /// Which renewal this is, if it is time for one: connections that stay apart, as behind an
    /// address that leads to two masters, are made anew ever more seldom. The second, which is the
    /// first of both, follows at once.
    fn renew(&mut self, now: Instant, beat: Duration) -> Option<u32> {
        if self.again.is_some_and(|again| now < again) {
            return None;
        }
        self.renewals += 1;
        let doubled = self.renewals.checked_sub(2);
        let pause = doubled.map(|doubled| beat * (1 << doubled.min(MOST_DOUBLED)));
        self.again = pause.map(|pause| now + pause);
        Some(self.renewals)
    }
}

/// The awaited keys of a slot, by their channels.
#[derive(Default)]
struct Awaited {
    channels: HashSet<Str>,
    /// The one whose beat channel is subscribed to.
    beating: Option<Str>,
}

impl Path {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            suffix: format!(":beat:{:032x}", rand::random::<u128>()),
            pace,
            awaited: Mutex::default(),
            nonce: AtomicU64::default(),
            apart: Mutex::default(),
        }
    }

    pub(super) fn is_beat(&self, channel: &str) -> bool {
        channel.ends_with(&self.suffix)
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, BTreeMap<u16, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, slot: u16, channel: &Str) {
        let mut awaited = self.awaited();
        let slot = awaited.entry(slot).or_default();
        slot.channels.insert(channel.clone());
    }

    /// The beat channel that is of no use any more, if there is one.
    pub(super) fn end(&self, slot: u16, channel: &Str) -> Option<String> {
        let mut awaited = self.awaited();
        let entry = awaited.get_mut(&slot)?;
        entry.channels.remove(channel);
        let beating = entry.beating.take_if(|beating| beating == channel);
        if entry.channels.is_empty() {
            awaited.remove(&slot);
        }
        beating.map(|channel| self.beat_channel(&channel))
    }

    fn beat_channel(&self, channel: &str) -> String {
        [channel, &self.suffix].concat()
    }

    /// A beat channel for each of the servers that have an awaited key, with its slot.
    fn channels(&self, node: impl Fn(u16) -> Option<Server>) -> Vec<(u16, Option<Server>, String)> {
        let mut nodes = HashSet::new();
        let mut channels = Vec::new();
        for (slot, awaited) in &mut *self.awaited() {
            let node = node(*slot);
            if nodes.insert(node.clone()) {
                let first = awaited.channels.iter().next();
                let beating = awaited.beating.as_ref().or(first).cloned();
                channels.extend(beating.iter().map(|channel| {
                    let channel = self.beat_channel(channel);
                    (*slot, node.clone(), channel)
                }));
                awaited.beating = beating;
            }
        }
        channels
    }

    /// Whether the beats of all servers with an awaited key are heard. A connection that is on the
    /// wrong server is made anew: the subscriber's at first, and then the commands' too.
    pub(super) async fn is_whole(
        &self,
        commands: &Connection,
        subscriber: &Connection,
        node: impl Fn(u16) -> Option<Server>,
    ) -> Result<bool, FredError> {
        let beats = self.channels(node).into_iter();
        let beats = beats.map(async |(slot, node, channel)| {
            self.beat(commands, subscriber, slot, node, &channel).await
        });
        let beats = join_all(beats).await;
        // Before the errors: a node that is away leaves the paths of the others to be mended.
        let is_broken = beats.iter().any(|heard| matches!(heard, Ok(false)));
        let failed = beats.into_iter().find_map(Result::err);
        let heard = !is_broken && failed.is_none();
        let mut apart = self.apart.lock().unwrap_or_else(PoisonError::into_inner);
        if heard {
            *apart = Apart::default();
        } else if is_broken && let Some(nth) = apart.renew(Instant::now(), self.pace.beat) {
            subscriber.renew();
            if nth > 1 {
                commands.renew();
            }
        }
        drop(apart);
        match failed {
            Some(error) => Err(error),
            None => Ok(heard),
        }
    }

    /// The same for one key, which need not be awaited.
    pub(super) async fn is_whole_for(
        &self,
        key: &Key,
        channel: &str,
        commands: &Connection,
        subscriber: &Connection,
    ) -> Result<bool, FredError> {
        let channel = self.beat_channel(channel);
        let heard = self
            .beat(commands, subscriber, key.slot(), None, &channel)
            .await;
        if heard.is_ok() {
            let unsubscribed = subscriber.client().sunsubscribe(channel).await;
            // A subscription that stays is only a message that no task waits for.
            drop(unsubscribed);
        }
        heard
    }

    async fn beat(
        &self,
        commands: &Connection,
        subscriber: &Connection,
        slot: u16,
        node: Option<Server>,
        channel: &str,
    ) -> Result<bool, FredError> {
        let began = Instant::now();
        let mut messages = subscriber.client().message_rx();
        let lane = subscriber.lane(slot);
        // Again each time, though it is subscribed: its acknowledgement is what the subscriber
        // owes.
        subscriber.subscribe(slot, channel).await?;
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed).to_string();
        let publish = CustomCommand::new_static("SPUBLISH", ClusterHash::Custom(slot), false);
        let publishing = commands.client().with_options(&once());
        let args = vec![channel, &nonce];
        let _: Value = commands
            .owing(lane, publishing.custom(publish, args))
            .await?;
        let is_it = |message: &Message| {
            *message.channel == *channel && message.value.as_bytes() == Some(nonce.as_bytes())
        };
        let soon = began.elapsed().max(SOON);
        if let Ok(heard) = timeout(soon, until_heard(&mut messages, &is_it)).await {
            return Ok(heard);
        }
        // Whether it is late or lost does not depend on time: what was published before this
        // question comes before its answer.
        let options = Options {
            cluster_node: node,
            ..once()
        };
        let ping = CustomCommand::new_static("PING", ClusterHash::Custom(slot), false);
        let asking = subscriber.client().with_options(&options);
        let answer: Result<Value, _> = subscriber
            .owing(lane, asking.custom(ping, Vec::<Value>::new()))
            .await;
        if let Err(error) = answer {
            // A user without PING gets a refusal in its place.
            if !super::is_answer(&error) {
                return Err(error);
            }
        }
        Ok(has_heard(&mut messages, is_it))
    }
}

/// Resolves at the message, or at `false` once there can be none.
async fn until_heard(messages: &mut Receiver<Message>, is_it: impl Fn(&Message) -> bool) -> bool {
    loop {
        match messages.recv().await {
            Ok(message) if is_it(&message) => return true,
            Ok(_) => {}
            // It may be among those that were dropped.
            Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        }
    }
}

fn has_heard(messages: &mut Receiver<Message>, is_it: impl Fn(&Message) -> bool) -> bool {
    loop {
        match messages.try_recv() {
            Ok(message) if is_it(&message) => return true,
            Ok(_) => {}
            Err(TryRecvError::Lagged(_)) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_stay_apart_are_made_anew_ever_more_seldom() {
        let (beat, began) = (Duration::from_secs(1), Instant::now());
        let mut apart = Apart::default();
        // The reconnection that the first of them makes is followed by a beat at once.
        assert_eq!(apart.renew(began, beat), Some(1));
        let renewed = (0..64).filter(|nth| apart.renew(began + *nth * beat, beat).is_some());
        assert_eq!(renewed.collect::<Vec<_>>(), [0, 1, 3, 7, 15, 31, 47, 63]);
    }
}
