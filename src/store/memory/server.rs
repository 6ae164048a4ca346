//! The keys, their subscribers and the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::channel::mpsc;
use tokio::time::Instant;

use crate::key::Key;
use crate::protocol::record::RecordSnapshot;
use crate::protocol::transition::{Entry, apply};
use crate::protocol::{Op, Reply};
use crate::store::StoreEvent;

#[derive(Default)]
pub(super) struct Server {
    pub(super) entries: HashMap<Key, Entry>,
    pub(super) watchers: HashMap<Key, Vec<Watcher>>,
    pub(super) connections: u64,
    /// The number of entries at which the store removes all expired ones. Below it, an expired
    /// entry stays until the next operation on its key.
    pub(super) sweep_at: usize,
    pub(super) clock: Clock,
}

pub(super) struct Watcher {
    pub(super) id: u64,
    pub(super) tell: mpsc::UnboundedSender<StoreEvent>,
}

/// A wall clock that advances with Tokio's clock.
pub(super) struct Clock {
    pub(super) started: Instant,
    pub(super) epoch: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            epoch: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

impl Server {
    pub(super) fn now(&self) -> u64 {
        (self.clock.epoch + self.clock.started.elapsed()).as_micros() as u64
    }

    pub(super) fn apply(&mut self, key: &Key, op: &Op) -> Reply {
        let at = self.now();
        let applied = apply(self.entries.remove(key), op, at);
        let record = applied
            .entry
            .as_ref()
            .map(|entry| Arc::new(entry.record.clone()));
        if let Some(entry) = applied.entry {
            if applied.changed {
                self.sweep(at / 1_000);
            }
            self.entries.insert(key.clone(), entry);
        }
        let frame = RecordSnapshot { at, record };
        if applied.changed {
            self.publish(key, &frame);
        }
        Reply {
            ok: applied.ok,
            frame,
            position: applied.position,
        }
    }

    fn sweep(&mut self, now: u64) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| entry.expires > now);
            self.sweep_at = (2 * self.entries.len()).max(1_024);
        }
    }

    fn publish(&mut self, key: &Key, frame: &RecordSnapshot) {
        let Some(watchers) = self.watchers.get_mut(key) else {
            return;
        };
        // Removes the hubs whose runtimes have shut down without an unsubscription.
        watchers.retain(|watcher| {
            let message = StoreEvent::Message {
                channel: key.line().clone(),
                frame: Some(frame.clone()),
            };
            watcher.tell.unbounded_send(message).is_ok()
        });
    }
}
