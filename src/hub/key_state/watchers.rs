//! The watchers of this process, and the reads that make up for messages that they missed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::single_flight::SingleFlight;
use super::{Id, KeyState, Output, Request, Turn};
use crate::error::Error;
use crate::protocol::record::{RecordSnapshot, State};
use crate::retry::RETRY_FIRST;

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Watchers {
    all: BTreeMap<Id, Watcher>,
    /// Reads of the record for the watchers.
    reads: SingleFlight,
    /// Time when the last read was answered or failed.
    looked: Option<Instant>,
    /// Time when they were last shown a record.
    shown: Option<Instant>,
    /// Time when the record expires. Expiry is not published, so a read is scheduled.
    forgotten: Option<Instant>,
}

#[derive(Clone, Debug, Default, Hash)]
struct Watcher {
    /// Order of the record that it was last shown. `Some(None)` means that it was shown that there
    /// is no record.
    shown: Option<Option<Order>>,
}

type Order = (u64, State, u64);

impl Watchers {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn remove(&mut self, id: Id) -> bool {
        self.all.remove(&id).is_some()
    }

    /// Shows the watchers an error.
    pub(super) fn tell<C>(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        for (id, watcher) in &mut self.all {
            // The next record is shown after the error even if the watcher knows it already.
            watcher.shown = None;
            turn.outputs.push(Output::Show(*id, Err(error.clone())));
        }
    }

    /// Shows the watchers an error, and ends their watches.
    pub(super) fn end<C>(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        self.tell(error, turn);
        for id in std::mem::take(&mut self.all).into_keys() {
            turn.close(id);
        }
    }

    /// Whether a watcher has not been shown a record since it began, or since the last error.
    pub(super) fn have_seen_nothing(&self) -> bool {
        self.all.values().any(|watcher| watcher.shown.is_none())
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reads.is_in_flight()
    }

    fn show<C>(&mut self, frame: &RecordSnapshot, order: Option<Order>, turn: &mut Turn<'_, C>) {
        self.shown = Some(turn.now.instant);
        for (id, watcher) in &mut self.all {
            if watcher.shown != Some(order) {
                watcher.shown = Some(order);
                turn.outputs.push(Output::Show(*id, Ok(frame.clone())));
            }
        }
    }
}

impl<C: Default> KeyState<C> {
    pub(in crate::hub) fn add_watcher(&mut self, id: Id, turn: &mut Turn<'_, C>) {
        if let Some(outage) = &self.outage {
            let error = Err(outage.error.clone());
            turn.outputs.push(Output::Show(id, error));
        }
        self.watchers.all.insert(id, Watcher::default());
        self.subscribe_if_wanted(turn);
        // If an acknowledgement is pending, the first read comes after it, so that the watcher gets
        // a message of every later transition.
        if !self.is_subscribing() {
            self.read_for_watchers(turn);
        }
    }

    /// Reads the record for the watchers, if there are any.
    pub(super) fn read_for_watchers(&mut self, turn: &mut Turn<'_, C>) {
        if self.watchers.is_empty() {
            return;
        }
        if self.watchers.reads.start() {
            self.ask(Request::Read, turn);
        }
    }

    pub(super) fn on_read(&mut self, turn: &mut Turn<'_, C>) {
        self.watchers.looked = Some(turn.now.instant);
        if self.watchers.reads.on_answered() {
            self.read_for_watchers(turn);
        }
    }

    pub(super) fn on_read_failed(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        self.watchers.looked = Some(turn.now.instant);
        self.watchers.reads.on_failed();
        if error.is_fatal() {
            self.watchers.end(error, turn);
        }
    }

    /// Shows the watchers a record if it is the newest. `asked` is the time of the request that it
    /// answers; `None` for a message.
    pub(super) fn show(
        &mut self,
        frame: &RecordSnapshot,
        asked: Option<Instant>,
        turn: &mut Turn<'_, C>,
    ) {
        if self.watchers.is_empty() {
            return;
        }
        let order = frame.record.as_ref().map(|record| record.order());
        let newest = match order {
            Some(order) => self
                .latest
                .known()
                .is_some_and(|known| known.record.order() == order),
            // An absent record has no order. It counts only in an answer to a request that is later
            // than the last record shown: a message of a later claim may have overtaken it.
            None => self
                .watchers
                .shown
                .is_none_or(|shown| asked.is_some_and(|asked| asked > shown)),
        };
        if newest {
            self.watchers.show(frame, order, turn);
            self.watchers.forgotten = frame.record.as_ref().map(|record| {
                let kept = record.forgotten_at();
                let left = kept.saturating_mul(1_000).saturating_sub(frame.at);
                turn.now.instant + Duration::from_micros(left)
            });
        }
    }

    /// Returns the time of the next read for the watchers if no message comes before.
    pub(super) fn read_at(&self) -> Option<Instant> {
        if self.watchers.is_empty() || self.watchers.is_reading() || self.outage.is_some() {
            return None;
        }
        let looked = self.watchers.looked;
        // Without a subscription, a read is due before the server may forget an outcome.
        let known = self.latest.known().filter(|_| !self.subscription.hears());
        let audit = known.map(|known| {
            let half = Duration::from_millis(known.record.retention / 2);
            looked.map_or(known.received, |looked| looked.max(known.received)) + half
        });
        let at = self.watchers.forgotten.into_iter().chain(audit).min()?;
        // A read may show nothing new: a record that outlives its time, or none. It must not be
        // repeated at once.
        Some(looked.map_or(at, |looked| at.max(looked + RETRY_FIRST)))
    }
}
