//! Who looks on without taking part, and what is done so that they miss nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::channel::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::{Id, Request, Run};
use crate::error::Error;
use crate::retry::RETRY_FIRST;
use crate::store::record::{RecordSnapshot, State};

/// What an observer hears.
pub(in crate::hub) type WatchItem = Result<RecordSnapshot, Error>;

#[derive(Default)]
pub(super) struct Observers {
    all: BTreeMap<Id, Observer>,
    /// The record is being read for them.
    looking: bool,
    /// Something may have been missed since.
    look_again: bool,
    /// When the last look was answered, or failed.
    looked: Option<Instant>,
    /// When they were last shown something.
    shown: Option<Instant>,
    /// When the record is forgotten, which nobody says.
    forgotten: Option<Instant>,
}

struct Observer {
    mailbox: UnboundedSender<WatchItem>,
    /// What it was last shown; `Some(None)` is that there is no record.
    shown: Option<Option<Order>>,
}

type Order = (u64, State, u64);

impl Observers {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn remove(&mut self, id: Id) -> bool {
        self.all.remove(&id).is_some()
    }

    /// An observer that has gone needs no news: its leaving is on its way.
    pub(super) fn tell(&mut self, error: &Error) {
        for observer in self.all.values_mut() {
            // After it comes the run as it is then, even if it is as it was.
            observer.shown = None;
            let _ = observer.mailbox.unbounded_send(Err(error.clone()));
        }
    }

    /// The last that they hear.
    pub(super) fn end(&mut self, error: &Error) {
        self.tell(error);
        self.all.clear();
    }

    /// Whether any of them still waits for something to see.
    pub(super) fn have_seen_nothing(&self) -> bool {
        self.all.values().any(|observer| observer.shown.is_none())
    }

    pub(super) fn are_looking(&self) -> bool {
        self.looking
    }

    fn show(&mut self, frame: &RecordSnapshot, order: Option<Order>, now: Instant) {
        self.shown = Some(now);
        for observer in self.all.values_mut() {
            if observer.shown != Some(order) {
                observer.shown = Some(order);
                let _ = observer.mailbox.unbounded_send(Ok(frame.clone()));
            }
        }
    }
}

impl Run {
    pub(in crate::hub) fn observe(&mut self, id: Id, mailbox: UnboundedSender<WatchItem>) {
        if let Some(outage) = &self.outage {
            let _ = mailbox.unbounded_send(Err(outage.error.clone()));
        }
        let shown = None;
        self.observers.all.insert(id, Observer { mailbox, shown });
        self.watch();
        // What it is shown first is from after the server's acknowledgement, so that it hears all that follows.
        if !self.is_about_to_hear() {
            self.look();
        }
    }

    /// Reads the record for those who look on.
    pub(super) fn look(&mut self) {
        if self.observers.is_empty() {
            return;
        }
        if self.observers.looking {
            self.observers.look_again = true;
        } else {
            self.observers.looking = true;
            self.ask(Request::Read);
        }
    }

    pub(super) fn looked(&mut self, now: Instant) {
        self.observers.looked = Some(now);
        self.observers.looking = false;
        if std::mem::take(&mut self.observers.look_again) {
            self.look();
        }
    }

    pub(super) fn not_looked(&mut self, error: &Error, now: Instant) {
        self.observers.looked = Some(now);
        self.observers.looking = false;
        self.observers.look_again = false;
        if error.is_fatal() {
            self.observers.end(error);
        }
    }

    /// Shows them what has been answered, having been asked for then, or heard, if it is the newest.
    pub(super) fn show(&mut self, frame: &RecordSnapshot, asked: Option<Instant>, now: Instant) {
        if self.observers.is_empty() {
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
                .observers
                .shown
                .is_none_or(|shown| asked.is_some_and(|asked| asked > shown)),
        };
        if newest {
            self.observers.show(frame, order, now);
            self.observers.forgotten = frame.record.as_ref().map(|record| {
                let kept = record.forgotten_at();
                let left = kept.saturating_mul(1_000).saturating_sub(frame.at);
                now + Duration::from_micros(left)
            });
        }
    }

    /// When those who look on have to look by themselves.
    pub(super) fn look_at(&self) -> Option<Instant> {
        if self.observers.is_empty() || self.observers.looking || self.outage.is_some() {
            return None;
        }
        let looked = self.observers.looked;
        // Deaf, before an outcome may be forgotten.
        let known = self.latest.known().filter(|_| !self.subscription.hears());
        let audit = known.map(|known| {
            let half = Duration::from_millis(known.record.retention / 2);
            looked.map_or(known.received, |looked| looked.max(known.received)) + half
        });
        let at = self.observers.forgotten.into_iter().chain(audit).min()?;
        // Not over and over, when what is seen is no news: a record that outlives its time, or absence.
        Some(looked.map_or(at, |looked| at.max(looked + RETRY_FIRST)))
    }
}
