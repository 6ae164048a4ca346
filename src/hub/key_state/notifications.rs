//! What the newest record means, and to whom.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::time::Instant;

use super::grants::{completed, gave_up};
use super::{Id, KeyState, Stage, Update};
use crate::hub::Grant;
use crate::hub::message::Ended;
use crate::lease::Lease;
use crate::outcome::Locked;
use crate::protocol::Reply;
use crate::protocol::record::{State, loss};
use crate::telemetry;

impl KeyState {
    /// Tells the one whose turn it is what the newest record means, and everybody who waits, now or in
    /// the hub's next turn.
    pub(super) fn spread(&mut self, now: Instant) {
        let Some(known) = self.latest.known() else {
            return;
        };
        let record = known.record.clone();
        for lease in self.grants.ended_by(&record) {
            self.lose(&lease, loss(Some(&record), lease.attempt));
        }
        // The next holder has work to do: the others hear of it once it has begun.
        match record
            .owner
            .and_then(|token| self.participants.with_token(token))
        {
            Some(id) => {
                self.bring_up_to_date(id, None, now);
                self.behind = self.participants.len() > 1;
            }
            None => self.tell_all(now),
        }
    }

    /// Tells everybody who waits what the newest record means, if that was put off.
    pub(in crate::hub) fn catch_up(&mut self, now: Instant) {
        self.behind = false;
        self.tell_all(now);
    }

    fn tell_all(&mut self, now: Instant) {
        for id in self
            .participants
            .iter()
            .map(|(id, _)| id)
            .collect::<Vec<Id>>()
        {
            self.bring_up_to_date(id, None, now);
        }
    }

    /// Tells one participant, if it waits, what the newest record means to it. `answer` is to its own
    /// claim.
    pub(super) fn bring_up_to_date(&mut self, id: Id, answer: Option<&Reply>, now: Instant) {
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
                // Without a handle there is no stream. Its leaving is on its way, and may come after a further claim.
                let Some(hub) = self.hub.upgrade() else {
                    return self.leave(id, now);
                };
                let (token, terms) = (member.token, member.terms.clone());
                let here = self.hub.clock.stamp();
                let Some(term) = self.latest.first_term(here, &terms) else {
                    return;
                };
                let clock = self.hub.clock;
                let lease = Lease::new(&self.key, record, id, token, terms, clock, term);
                let lease = Arc::new(lease);
                let server_time = self.latest.server_time();
                if let Some((sent, at)) = server_time {
                    lease.on_server_time(sent, at);
                }
                let sent = server_time.map(|(sent, at)| (sent.instant, at));
                telemetry::granted(&lease.work, record, known.remaining, sent);
                // A message does not tell that replicas have it; an answer does.
                let answered = answer.is_some_and(|reply| reply.ok);
                let grant = Grant {
                    lease: lease.clone(),
                    confirmed: record.state == State::Held && (answered || !lease.terms.replicated),
                    used: AtomicBool::new(false),
                    hub,
                };
                if let Err(unsent) = member.deliver(Update::Granted(grant)) {
                    // The stream has been dropped meanwhile. Given back here and now: its own way
                    // back would be behind whatever was asked after the drop.
                    lease.give();
                    drop(unsent);
                    return self.leave(id, now);
                }
                member.stage = Stage::Holding;
                self.grants.push(lease, now);
            }
            State::Held | State::Granted => {
                if member.last_notified_fence != Some(record.fence) {
                    // One that was in front of it holds now.
                    if member.last_notified_fence.is_some() {
                        member.queue_position = member.queue_position.saturating_sub(1);
                    }
                    member.last_notified_fence = Some(record.fence);
                    member.notify(Update::Locked(Locked {
                        attempt: record.attempt,
                        max_attempts: record.max_attempts,
                        holder: record.holder.clone(),
                        remaining: known.remaining,
                        position: answer.and_then(|reply| reply.position),
                    }));
                }
            }
            State::Open => {}
            State::Done | State::GaveUp => {
                member.notify(Update::Ended(match record.state {
                    State::Done => Ended::Completed(completed(record)),
                    _ => Ended::GaveUp(gave_up(record)),
                }));
                self.participants.remove(id);
            }
        }
    }
}
