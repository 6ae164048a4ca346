//! The watchers of this process, and how the machine makes sure that they miss nothing.

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
    /// The reads of the record for them.
    reads: SingleFlight,
    /// When the last look was answered, or failed.
    looked: Option<Instant>,
    /// When they were last shown something.
    shown: Option<Instant>,
    /// When the record is forgotten, which nobody says.
    forgotten: Option<Instant>,
}

#[derive(Clone, Debug, Default, Hash)]
struct Watcher {
    /// What it was last shown; `Some(None)` is that there is no record.
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

    pub(super) fn tell<C>(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        for (id, watcher) in &mut self.all {
            // After it comes the run as it is then, even if it is as it was.
            watcher.shown = None;
            turn.outputs.push(Output::Show(*id, Err(error.clone())));
        }
    }

    /// The last that they hear.
    pub(super) fn end<C>(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        self.tell(error, turn);
        for id in std::mem::take(&mut self.all).into_keys() {
            turn.close(id);
        }
    }

    /// Whether any watcher has not been shown anything yet.
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
        self.watch(turn);
        // The first item is from after the server's acknowledgement, so that the watcher hears all
        // that follows.
        if !self.is_about_to_hear() {
            self.look(turn);
        }
    }

    /// Reads the record for the watchers.
    pub(super) fn look(&mut self, turn: &mut Turn<'_, C>) {
        if self.watchers.is_empty() {
            return;
        }
        if self.watchers.reads.start() {
            self.ask(Request::Read, turn);
        }
    }

    pub(super) fn looked(&mut self, turn: &mut Turn<'_, C>) {
        self.watchers.looked = Some(turn.now.instant);
        if self.watchers.reads.on_answered() {
            self.look(turn);
        }
    }

    pub(super) fn not_looked(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        self.watchers.looked = Some(turn.now.instant);
        self.watchers.reads.on_failed();
        if error.is_fatal() {
            self.watchers.end(error, turn);
        }
    }

    /// Shows the watchers a record, if it is the newest: one that was requested then and answered, or
    /// one that was published.
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
            // Absence has no order: a message of what was claimed since may have overtaken it.
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

    /// Time at which the machine reads the record for the watchers, having heard nothing.
    pub(super) fn look_at(&self) -> Option<Instant> {
        if self.watchers.is_empty() || self.watchers.is_reading() || self.outage.is_some() {
            return None;
        }
        let looked = self.watchers.looked;
        // Without a subscription, before the server may forget an outcome.
        let known = self.latest.known().filter(|_| !self.subscription.hears());
        let audit = known.map(|known| {
            let half = Duration::from_millis(known.record.retention / 2);
            looked.map_or(known.received, |looked| looked.max(known.received)) + half
        });
        let at = self.watchers.forgotten.into_iter().chain(audit).min()?;
        // Not at once again if that shows nothing new: a record that outlives its time, or absence.
        Some(looked.map_or(at, |looked| at.max(looked + RETRY_FIRST)))
    }
}
