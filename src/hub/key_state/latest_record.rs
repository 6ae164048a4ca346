//! The newest record of the key that this process knows.
//!
//! Answers and messages come on two connections. They are ordered by fencing token, state and
//! renewal (`Record::order`), and a record that is not newer than the known one is no news. There
//! is one exception. An answer to a request that left after the known record was received, and
//! whose record is older all the same, shows that the server has lost data. It is believed.
//!
//! A holder counts its lease from before the claim was sent. A waiter counts from when it received
//! the record. So the holder is early and the waiter is late.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Stamp;
use crate::lease::RunConfig;
use crate::lease::Term;
use crate::protocol::record::{Record, RecordSnapshot};

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct LatestRecord {
    known: Option<Known>,
    /// Time of the last answered request, and the server's time in its answer, in µs.
    server_time: Option<(Stamp, u64)>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Known {
    pub(super) record: Arc<Record>,
    /// Time when it was last received.
    pub(super) received: Instant,
    /// Local time when its `until` has certainly passed.
    pub(super) ends: Instant,
    /// Time that was left until `until` when the server sent it.
    pub(super) remaining: Duration,
}

impl LatestRecord {
    pub(super) fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// Keeps the snapshot if no newer one is known. `asked` is the time of the request that the
    /// snapshot answers; `None` for a message. Returns whether it is newer than the known one.
    ///
    /// Answers and messages come on two connections, so only the record's own order tells which is
    /// newer.
    pub(super) fn merge(
        &mut self,
        snapshot: &RecordSnapshot,
        asked: Option<Instant>,
        now: Instant,
    ) -> bool {
        // An absent record has no order. It only means that the key can be claimed.
        let Some(record) = &snapshot.record else {
            return false;
        };
        let (order, lost) = match &self.known {
            None => (Ordering::Greater, false),
            Some(known) => {
                let order = record.order().cmp(&known.record.order());
                // A record that is older than the known one, although it was requested after that
                // was received, shows that the server has lost data.
                let lost = order.is_lt() && asked.is_some_and(|asked| asked > known.received);
                (order, lost)
            }
        };
        let newer = order.is_gt() || lost;
        // The same record again shows that it still stands, and how much of its time is left.
        if newer || order.is_eq() {
            let remaining = record.remaining(snapshot.at);
            self.known = Some(Known {
                record: record.clone(),
                received: now,
                ends: now + remaining,
                remaining,
            });
        }
        newer
    }

    /// Keeps the server's time in an answer. `sent` is a time before its request left.
    pub(super) fn answered(&mut self, sent: Stamp, at: u64) {
        self.server_time = Some((sent, at));
    }

    /// Returns the time of the last answered request, and the server's time in its answer, in µs.
    pub(super) fn server_time(&self) -> Option<(Stamp, u64)> {
        self.server_time
    }

    /// Returns the first term of the lease that the newest record grants.
    ///
    /// The term counts from before the last answered request, whose answer contains the server's
    /// time. The time of receipt is only an upper bound, since a message may have been late.
    pub(super) fn first_term(&self, here: Stamp, config: &RunConfig) -> Option<Term> {
        let known = self.known.as_ref()?;
        let latest = here.moment + known.ends.saturating_duration_since(here.instant);
        Some(match self.server_time {
            Some((sent, at)) => Term::new(sent, known.record.remaining(at), latest, config),
            None => Term::new(here, Duration::ZERO, latest, config),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::record;

    fn snapshot(fence: u64, renewal: u64) -> RecordSnapshot {
        let record = Record {
            fence,
            renewal,
            until: 10,
            ..record()
        };
        RecordSnapshot {
            at: 4_000,
            record: Some(Arc::new(record)),
        }
    }

    #[test]
    fn only_a_newer_record_replaces_the_known_one() {
        let now = Instant::now();
        let mut latest = LatestRecord::default();
        let absent = RecordSnapshot {
            at: 1,
            record: None,
        };
        for (told, newer) in [
            (absent, false),
            (snapshot(2, 1), true),
            (snapshot(2, 1), false),
            (snapshot(2, 0), false),
            (snapshot(1, 9), false),
            (snapshot(2, 2), true),
            (snapshot(3, 0), true),
        ] {
            assert_eq!(latest.merge(&told, None, now), newer, "{told:?}");
        }
        assert_eq!(latest.known().unwrap().record.fence, 3);
    }

    #[test]
    fn an_older_record_that_was_requested_later_shows_lost_data() {
        let now = Instant::now();
        let mut latest = LatestRecord::default();
        latest.merge(&snapshot(3, 0), None, now);
        assert!(
            !latest.merge(&snapshot(2, 0), Some(now), now),
            "it overtook"
        );
        let later = now + Duration::from_millis(1);
        assert!(latest.merge(&snapshot(2, 0), Some(later), later));
        assert_eq!(latest.known().unwrap().record.fence, 2);
    }

    #[test]
    fn the_same_record_renews_what_is_left_of_it() {
        let now = Instant::now();
        let mut latest = LatestRecord::default();
        latest.merge(&snapshot(3, 0), None, now);
        let later = now + Duration::from_millis(5);
        latest.merge(&snapshot(3, 0), None, later);
        let known = latest.known().unwrap();
        let left = Duration::from_millis(6);
        assert_eq!((known.received, known.remaining), (later, left));
        assert_eq!(known.ends, later + left);
    }
}
