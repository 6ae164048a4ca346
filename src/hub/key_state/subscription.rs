//! The subscription to the key's channel: when it begins and ends, and what happens if it fails.
//!
//! "Resync" is the word of telemetry for `KeyState::missed` (a failed ping, a lost connection, a
//! lagging receiver) and `KeyState::resubscribe`.

use std::time::Duration;

use tokio::time::Instant;

use super::{KeyState, Output, Turn};
use crate::error::Error;
use crate::retry::{RETRY_FIRST, next_delay};

#[derive(Clone, Debug, Hash)]
pub(super) struct Subscription {
    phase: Phase,
    /// Delay after the next failure.
    delay: Duration,
    /// Whether the subscriber is connected, as far as it is known.
    connected: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    None,
    Subscribing,
    Subscribed,
    Unsubscribing,
    /// Subscribing has failed. The next try is at this time.
    Failed(Instant),
}

impl Subscription {
    pub(super) fn new(connected: bool) -> Self {
        Self {
            phase: Phase::None,
            delay: RETRY_FIRST,
            connected,
        }
    }

    /// Whether all messages of the key reach this process, as far as it is known.
    pub(super) fn hears(&self) -> bool {
        self.connected && self.phase == Phase::Subscribed
    }

    pub(super) fn is_none(&self) -> bool {
        self.phase == Phase::None
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Failed(retry_at) => Some(retry_at),
            _ => None,
        }
    }
}

impl<C: Default> KeyState<C> {
    /// Whether messages of this key are wanted.
    pub(in crate::hub) fn wants_messages(&self) -> bool {
        matches!(
            self.subscription.phase,
            Phase::Subscribing | Phase::Subscribed
        )
    }

    /// Whether the acknowledgement of a subscription is pending. A refresh follows it.
    pub(super) fn is_subscribing(&self) -> bool {
        self.subscription.phase == Phase::Subscribing
    }

    /// Subscribes if there is a waiter or a watcher, and no subscription yet.
    pub(super) fn subscribe_if_wanted(&mut self, turn: &mut Turn<'_, C>) {
        let wanted = self.participants.is_any_waiting();
        if self.subscription.is_none() && (wanted || !self.watchers.is_empty()) {
            self.subscription.phase = Phase::Subscribing;
            self.calls += 1;
            turn.outputs.push(Output::Subscribe);
        }
    }

    pub(super) fn retry_subscribe(&mut self, turn: &mut Turn<'_, C>) {
        let retry_at = self.subscription.retry_at();
        if retry_at.is_some_and(|at| at <= turn.now.instant) {
            self.subscription.phase = Phase::None;
            self.subscribe_if_wanted(turn);
        }
    }

    pub(super) fn unsubscribe_if_idle(&mut self, turn: &mut Turn<'_, C>) {
        if !self.participants.is_empty() || !self.watchers.is_empty() {
            return;
        }
        match self.subscription.phase {
            Phase::Failed(_) => self.subscription.phase = Phase::None,
            Phase::Subscribed => {
                self.subscription.phase = Phase::Unsubscribing;
                self.calls += 1;
                turn.outputs.push(Output::Unsubscribe);
            }
            Phase::None | Phase::Subscribing | Phase::Unsubscribing => {}
        }
    }

    pub(in crate::hub) fn subscribed(&mut self, result: Result<(), Error>, turn: &mut Turn<'_, C>) {
        self.calls -= 1;
        match result {
            Ok(()) => {
                self.subscription.phase = Phase::Subscribed;
                self.subscription.delay = RETRY_FIRST;
                // Prevents a lost wake-up: a transition between the answer that led to the
                // subscription and the server's acknowledgement was not pushed.
                self.refresh(turn);
            }
            Err(error) => {
                // Streams get no event for this. Until a retry succeeds, the timers lead to claims,
                // which report an outage if they fail too.
                let delay = self.subscription.delay;
                let retry_at = turn.now.instant + turn.fresh.jittered(delay);
                self.subscription.phase = Phase::Failed(retry_at);
                self.subscription.delay = next_delay(delay);
                if error.is_fatal() {
                    self.end_all(&error, turn);
                    self.watchers.end(&error, turn);
                }
                if self.watchers.have_seen_nothing() {
                    self.read_for_watchers(turn);
                }
            }
        }
    }

    pub(in crate::hub) fn unsubscribed(&mut self, turn: &mut Turn<'_, C>) {
        self.calls -= 1;
        self.subscription.phase = Phase::None;
        self.subscribe_if_wanted(turn);
    }

    /// Handles a possible loss of messages.
    pub(in crate::hub) fn missed(&mut self, connected: bool, turn: &mut Turn<'_, C>) {
        self.subscription.connected = connected;
        self.refresh(turn);
    }

    /// Subscribes again after a reconnect. The acknowledgement leads to a refresh.
    pub(in crate::hub) fn resubscribe(&mut self, turn: &mut Turn<'_, C>) {
        self.subscription.connected = true;
        // `unsubscribed` subscribes again by itself.
        if self.subscription.phase != Phase::Unsubscribing {
            self.subscription.phase = Phase::None;
        }
        self.subscribe_if_wanted(turn);
    }
}
