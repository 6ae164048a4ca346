//! Who looks on without taking part, and what is done so that they miss nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::single_flight::SingleFlight;
use super::{Id, KeyState, Request};
use crate::error::Error;
use crate::protocol::record::{RecordSnapshot, State};
use crate::retry::RETRY_FIRST;

/// What an watcher hears.
pub(in crate::hub) type WatchItem = Result<RecordSnapshot, Error>;

#[derive(Default)]
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

struct Watcher {
    mailbox: UnboundedSender<WatchItem>,
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

    /// An watcher that has gone needs no news: its leaving is on its way.
    pub(super) fn tell(&mut self, error: &Error) {
        for watcher in self.all.values_mut() {
            // After it comes the run as it is then, even if it is as it was.
            watcher.shown = None;
            let _ = watcher.mailbox.unbounded_send(Err(error.clone()));
        }
    }

    /// The last that they hear.
    pub(super) fn end(&mut self, error: &Error) {
        self.tell(error);
        self.all.clear();
    }

    /// Whether any of them still waits for something to see.
    pub(super) fn have_seen_nothing(&self) -> bool {
        self.all.values().any(|watcher| watcher.shown.is_none())
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reads.is_in_flight()
    }

    fn show(&mut self, frame: &RecordSnapshot, order: Option<Order>, now: Instant) {
        self.shown = Some(now);
        for watcher in self.all.values_mut() {
            if watcher.shown != Some(order) {
                watcher.shown = Some(order);
                let _ = watcher.mailbox.unbounded_send(Ok(frame.clone()));
            }
        }
    }
}

impl KeyState {
    pub(in crate::hub) fn add_watcher(&mut self, id: Id, mailbox: UnboundedSender<WatchItem>) {
        if let Some(outage) = &self.outage {
            let _ = mailbox.unbounded_send(Err(outage.error.clone()));
        }
        let shown = None;
        self.watchers.all.insert(id, Watcher { mailbox, shown });
        self.watch();
        // What it is shown first is from after the server's acknowledgement, so that it hears all that follows.
        if !self.is_about_to_hear() {
            self.look();
        }
    }

    /// Reads the record for those who look on.
    pub(super) fn look(&mut self) {
        if self.watchers.is_empty() {
            return;
        }
        if self.watchers.reads.start() {
            self.ask(Request::Read);
        }
    }

    pub(super) fn looked(&mut self, now: Instant) {
        self.watchers.looked = Some(now);
        if self.watchers.reads.on_answered() {
            self.look();
        }
    }

    pub(super) fn not_looked(&mut self, error: &Error, now: Instant) {
        self.watchers.looked = Some(now);
        self.watchers.reads.on_failed();
        if error.is_fatal() {
            self.watchers.end(error);
        }
    }

    /// Shows them what has been answered, having been asked for then, or heard, if it is the newest.
    pub(super) fn show(&mut self, frame: &RecordSnapshot, asked: Option<Instant>, now: Instant) {
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
            self.watchers.show(frame, order, now);
            self.watchers.forgotten = frame.record.as_ref().map(|record| {
                let kept = record.forgotten_at();
                let left = kept.saturating_mul(1_000).saturating_sub(frame.at);
                now + Duration::from_micros(left)
            });
        }
    }

    /// When those who look on have to look by themselves.
    pub(super) fn look_at(&self) -> Option<Instant> {
        if self.watchers.is_empty() || self.watchers.is_reading() || self.outage.is_some() {
            return None;
        }
        let looked = self.watchers.looked;
        // Deaf, before an outcome may be forgotten.
        let known = self.latest.known().filter(|_| !self.subscription.hears());
        let audit = known.map(|known| {
            let half = Duration::from_millis(known.record.retention / 2);
            looked.map_or(known.received, |looked| looked.max(known.received)) + half
        });
        let at = self.watchers.forgotten.into_iter().chain(audit).min()?;
        // Not over and over, when what is seen is no news: a record that outlives its time, or absence.
        Some(looked.map_or(at, |looked| at.max(looked + RETRY_FIRST)))
    }
}
