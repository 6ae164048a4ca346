//! Notifications: what the newest record means for holders and waiters.
//!
//! The next holder is told first, and the other waiters in the hub's next turn: it has work to do,
//! and they have only to wait on. Waiters are told of a renewal like of every transition, but it
//! only moves their timer.

use std::sync::Arc;

use super::grants::{completed, gave_up};
use super::output::Report;
use super::{Id, KeyState, Output, Stage, Turn, Update};
use crate::hub::message::Ended;
use crate::lease::Lease;
use crate::outcome::Locked;
use crate::protocol::ClaimReply;
use crate::protocol::record::{State, loss};

impl<C: Default> KeyState<C> {
    /// Ends the grants that the newest record shows to have ended, and notifies the participants.
    ///
    /// If the record grants the key to a participant of this process, the hub notifies the others
    /// in its next turn.
    pub(super) fn apply_latest(&mut self, turn: &mut Turn<'_, C>) {
        let Some(known) = self.latest.known() else {
            return;
        };
        let record = known.record.clone();
        for lease in self.grants.ended_by(&record) {
            self.lose(&lease, loss(Some(&record), lease.attempt), turn);
        }
        // The next holder starts its work before the others are notified.
        match record
            .owner
            .and_then(|token| self.participants.with_token(token))
        {
            Some(id) => {
                self.notify_of_latest(id, None, turn);
                self.deferred = self.participants.len() > 1;
            }
            None => self.notify_waiters(turn),
        }
    }

    /// Sends the notifications that `apply_latest` has put off.
    pub(in crate::hub) fn notify_deferred(&mut self, turn: &mut Turn<'_, C>) {
        self.deferred = false;
        self.notify_waiters(turn);
    }

    fn notify_waiters(&mut self, turn: &mut Turn<'_, C>) {
        for id in self
            .participants
            .iter()
            .map(|(id, _)| id)
            .collect::<Vec<Id>>()
        {
            self.notify_of_latest(id, None, turn);
        }
    }

    /// Notifies one participant, if it waits, of the newest record. `answer` is the answer to its
    /// own claim, if there is one.
    pub(super) fn notify_of_latest(
        &mut self,
        id: Id,
        answer: Option<ClaimReply>,
        turn: &mut Turn<'_, C>,
    ) {
        let (Some(known), Some(participant)) = (self.latest.known(), self.participants.get_mut(id))
        else {
            return;
        };
        if participant.stage != Stage::Waiting {
            return;
        }
        let record = &known.record;
        match record.state {
            State::Held | State::Granted if record.owner == Some(participant.token) => {
                let (token, terms) = (participant.token, participant.terms.clone());
                let Some(term) = self.latest.first_term(turn.now, &terms) else {
                    return;
                };
                let lease = Lease::new(&self.key, record, id, token, terms, turn.clock, term);
                let lease = Arc::new(lease);
                let server_time = self.latest.server_time();
                if let Some((sent, at)) = server_time {
                    lease.on_server_time(sent, at);
                }
                turn.report(Report::Granted {
                    lease: lease.clone(),
                    record: record.clone(),
                    remaining: known.remaining,
                    server_time: server_time.map(|(sent, at)| (sent.instant, at)),
                });
                // An answer means that replicas have acknowledged the grant. A message does not.
                let answered = answer == Some(ClaimReply::Held);
                let confirmed =
                    record.state == State::Held && (answered || !lease.terms.replicated);
                participant.stage = Stage::Holding;
                self.grants.push(lease.clone(), turn.now.instant);
                turn.outputs.push(Output::Grant { lease, confirmed });
            }
            State::Held | State::Granted => {
                if participant.last_notified_fence != Some(record.fence) {
                    // A waiter in front of it has become the holder.
                    if participant.last_notified_fence.is_some() {
                        participant.queue_position = participant.queue_position.saturating_sub(1);
                    }
                    participant.last_notified_fence = Some(record.fence);
                    let locked = Locked {
                        attempt: record.attempt,
                        max_attempts: record.max_attempts,
                        holder: record.holder.clone(),
                        remaining: known.remaining,
                        position: match answer {
                            Some(ClaimReply::Queued { position }) => Some(position),
                            _ => None,
                        },
                    };
                    turn.notify(id, Update::Locked(locked));
                }
            }
            State::Open => {}
            State::Done | State::GaveUp => {
                let ended = match record.state {
                    State::Done => Ended::Completed(completed(record)),
                    _ => Ended::GaveUp(gave_up(record)),
                };
                turn.notify(id, Update::Ended(ended));
                turn.close(id);
                self.participants.remove(id);
            }
        }
    }
}
