//! Whether our subscriber receives what our commands publish.
//!
//! Both connections can be fine while they lead to different servers: if an address has moved to
//! another server, one connection may have followed it and the other not. So for each server with
//! an awaited key, the store publishes a *beat* over the command connection. The channel of the
//! beat is this store's own. Its name is an awaited key's channel with a suffix, so the same
//! pattern permits it and it shares the key's slot. A beat that arrives also proves that the
//! subscriber has received everything that was published before it.
//!
//! There is a beat every second, or every eighth of a lease if that is shorter ([`Pace::of`]). If
//! it does not arrive, the connections lead to different servers: the subscriber is connected anew
//! first, and if that does not help, the commands are too.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes_utils::Str;
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
use crate::key::Key;
use crate::store::Pace;

/// The minimum time that we wait for a beat, before we ask the subscriber for everything before it.
const SOON: Duration = Duration::from_millis(10);

/// How often the pause between two renewals of connections is doubled: up to 16 beat periods.
const MOST_DOUBLED: u32 = 4;

/// The awaited keys, and the result of the last beats.
pub(super) struct Path {
    /// The end of the names of this store's beat channels. No other store uses it.
    suffix: String,
    pace: Pace,
    awaited: Mutex<BTreeMap<u16, Awaited>>,
    nonce: AtomicU64,
    apart: Mutex<Apart>,
}

/// The renewals of connections that lead to different servers.
#[derive(Default)]
struct Apart {
    renewals: u32,
    /// The earliest time of the next renewal.
    again: Option<Instant>,
}

impl Apart {
    /// Returns the number of this renewal if it is due. Connections that stay on different servers,
    /// as behind an address that leads to two masters, are renewed ever more seldom. The second
    /// renewal is the first that renews both connections, and it may follow at once.
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

/// The channels of the awaited keys of one slot.
#[derive(Default)]
struct Awaited {
    channels: HashSet<Str>,
    /// The channel whose beat channel is subscribed to.
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

    /// Returns the beat channel that is no longer of use, if any.
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

    /// Returns one beat channel, with its slot, for each server that has an awaited key.
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

    /// Whether the subscriber receives the beats of all servers with an awaited key. If it does
    /// not, this renews connections, which may lead to a wrong server: first the subscriber's, then
    /// both.
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
        // Checked before the errors, so that an unreachable node does not keep us from repairing
        // the paths of the other nodes.
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
            // If the unsubscription fails, the only cost is messages that no task waits for.
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
        // Subscribes each time, even if the subscription exists. The acknowledgement is an answer
        // that the subscriber's connection owes, so its driver notices a connection that died in
        // silence.
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
        // The beat is late or lost, and no waiting time can tell which. The answer to this question
        // can: the server sends it after all messages that were published before the question.
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
            // A user without permission for PING gets a refusal instead, which is an answer too.
            if !super::is_answer(&error) {
                return Err(error);
            }
        }
        Ok(has_heard(&mut messages, is_it))
    }
}

/// Resolves to `true` when the message arrives, and to `false` when the stream has ended.
async fn until_heard(messages: &mut Receiver<Message>, is_it: impl Fn(&Message) -> bool) -> bool {
    loop {
        match messages.recv().await {
            Ok(message) if is_it(&message) => return true,
            Ok(_) => {}
            // The beat may be among the dropped messages.
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
        // The first renewal makes a reconnection, and the hub sends a beat at once after it.
        assert_eq!(apart.renew(began, beat), Some(1));
        let renewed = (0..64).filter(|nth| apart.renew(began + *nth * beat, beat).is_some());
        assert_eq!(renewed.collect::<Vec<_>>(), [0, 1, 3, 7, 15, 31, 47, 63]);
    }
}
