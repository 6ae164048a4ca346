//! What the newest record means, and to whom.

use std::sync::Arc;

use super::grants::{completed, gave_up};
use super::output::Report;
use super::{Id, KeyState, Output, Stage, Turn, Update};
use crate::hub::message::Ended;
use crate::lease::Lease;
use crate::outcome::Locked;
use crate::protocol::Reply;
use crate::protocol::record::{State, loss};

impl<C: Default> KeyState<C> {
    /// Tells the next holder what the newest record means, and all waiters, now or in the hub's next
    /// turn.
    pub(super) fn spread(&mut self, turn: &mut Turn<'_, C>) {
        let Some(known) = self.latest.known() else {
            return;
        };
        let record = known.record.clone();
        for lease in self.grants.ended_by(&record) {
            self.lose(&lease, loss(Some(&record), lease.attempt), turn);
        }
        // The next holder has work to do: the others hear of it once it has begun.
        match record
            .owner
            .and_then(|token| self.participants.with_token(token))
        {
            Some(id) => {
                self.bring_up_to_date(id, None, turn);
                self.behind = self.participants.len() > 1;
            }
            None => self.tell_all(turn),
        }
    }

    /// Tells all waiters what the newest record means, if that was put off.
    pub(in crate::hub) fn catch_up(&mut self, turn: &mut Turn<'_, C>) {
        self.behind = false;
        self.tell_all(turn);
    }

    fn tell_all(&mut self, turn: &mut Turn<'_, C>) {
        for id in self
            .participants
            .iter()
            .map(|(id, _)| id)
            .collect::<Vec<Id>>()
        {
            self.bring_up_to_date(id, None, turn);
        }
    }

    /// Tells one participant, if it waits, what the newest record means to it. `answer` is the answer
    /// to its own claim.
    pub(super) fn bring_up_to_date(
        &mut self,
        id: Id,
        answer: Option<&Reply>,
        turn: &mut Turn<'_, C>,
    ) {
        let (Some(known), Some(member)) = (self.latest.known(), self.participants.get_mut(id))
        else {
            return;
        };
        if member.stage != Stage::Waiting {
            return;
        }
        let record = &known.record;
        match record.state {
            State::Held | State::Granted if record.owner == Some(member.token) => {
                let (token, terms) = (member.token, member.terms.clone());
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
                // A message does not tell that replicas have it; an answer does.
                let answered = answer.is_some_and(|reply| reply.ok);
                let confirmed =
                    record.state == State::Held && (answered || !lease.terms.replicated);
                member.stage = Stage::Holding;
                self.grants.push(lease.clone(), turn.now.instant);
                turn.outputs.push(Output::Grant { lease, confirmed });
            }
            State::Held | State::Granted => {
                if member.last_notified_fence != Some(record.fence) {
                    // One that was in front of it holds now.
                    if member.last_notified_fence.is_some() {
                        member.queue_position = member.queue_position.saturating_sub(1);
                    }
                    member.last_notified_fence = Some(record.fence);
                    let locked = Locked {
                        attempt: record.attempt,
                        max_attempts: record.max_attempts,
                        holder: record.holder.clone(),
                        remaining: known.remaining,
                        position: answer.and_then(|reply| reply.position),
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
