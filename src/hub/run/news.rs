//! What the newest record means, and to whom.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use super::grants::{completed, given_up};
use super::{Id, Live, Run, Stage, Update};
use crate::event::Locked;
use crate::hub::Grant;
use crate::hub::message::Ended;
use crate::lease::{Lease, Term};
use crate::observe;
use crate::store::Reply;
use crate::store::record::{Frame, Record, State, loss};

/// The newest record known.
pub(super) struct View {
    pub(super) record: Arc<Record>,
    pub(super) heard: Instant,
    /// When its `until` has surely come on our clock.
    pub(super) ends: Instant,
    /// What was left of it when it was sent.
    pub(super) remaining: Duration,
}

impl Run {
    /// Takes the frame for the newest if it is. Answers and messages come on two connections: only
    /// the record's own order tells which is newer.
    pub(super) fn merge(&mut self, frame: &Frame, asked: Option<Instant>, now: Instant) -> bool {
        let Some(record) = &frame.record else {
            // Absence has no order. It only means that there is something to claim.
            return false;
        };
        let order = self.view.as_ref().map_or(Ordering::Greater, |view| {
            record.order().cmp(&view.record.order())
        });
        // Asked for after we heard what we know, and yet older: the server has lost data.
        let lost = order.is_lt()
            && self
                .view
                .as_ref()
                .is_some_and(|view| asked.is_some_and(|asked| asked > view.heard));
        let newer = order.is_gt() || lost;
        // What is the same tells at least that it still stands, and for how long.
        if newer || order.is_eq() {
            let remaining = record.remaining(frame.at);
            self.view = Some(View {
                record: record.clone(),
                heard: now,
                ends: now + remaining,
                remaining,
            });
        }
        newer
    }

    /// Tells the one whose turn it is what the newest record means, and everybody who waits, now or in
    /// the hub's next turn.
    pub(super) fn spread(&mut self, now: Instant) {
        let Some(view) = &self.view else {
            return;
        };
        let record = view.record.clone();
        let over = |live: &&Live| {
            let fence = live.lease.fence;
            let withdrawn = fence == record.fence && !record.state.is_owned();
            (fence < record.fence || withdrawn) && !live.settling
        };
        while let Some(live) = self.grants.iter().find(over) {
            let lease = live.lease.clone();
            self.lose(&lease, loss(Some(&record), lease.attempt));
        }
        // The next holder has work to do: the others hear of it once it has begun.
        let owner = record.owner;
        let mut members = self.members.iter();
        let owner = members.find(|(_, member)| Some(member.token) == owner);
        match owner.map(|(id, _)| *id) {
            Some(id) => {
                self.bring_up_to_date(id, None, now);
                self.behind = self.members.len() > 1;
            }
            None => self.tell_all(now),
        }
    }

    /// Tells everybody who waits what the newest record means, if that was put off.
    pub(in crate::hub) fn catch_up(&mut self, now: Instant) {
        self.behind = false;
        self.tell_all(now);
        self.unwatch_if_idle();
    }

    fn tell_all(&mut self, now: Instant) {
        let members: Vec<Id> = self.members.keys().copied().collect();
        for id in members {
            self.bring_up_to_date(id, None, now);
        }
    }

    /// Tells one participant, if it waits, what the newest record means to it. `answer` is to its own
    /// claim.
    pub(super) fn bring_up_to_date(&mut self, id: Id, answer: Option<&Reply>, now: Instant) {
        let (Some(view), Some(member)) = (&self.view, self.members.get_mut(&id)) else {
            return;
        };
        if member.stage != Stage::Waiting {
            return;
        }
        let record = &view.record;
        match record.state {
            State::Held | State::Granted if record.owner == Some(member.token) => {
                // Without a handle there is no stream. Its leaving is on its way, and may come after a further claim.
                let Some(hub) = self.hub.upgrade() else {
                    return self.leave(id, now);
                };
                let (token, terms) = (member.token, member.terms.clone());
                // Counted from before the answer that told us the server's time was asked for. A
                // message may have been late: what it says is left was left when it was sent.
                let here = self.hub.clock.stamp();
                let latest = here.moment + view.ends.saturating_duration_since(here.instant);
                let term = match self.clock {
                    Some((asked, at)) => Term::new(asked, record.remaining(at), latest, &terms),
                    None => Term::new(here, Duration::ZERO, latest, &terms),
                };
                let clock = self.hub.clock;
                let lease = Lease::new(&self.key, record, id, token, terms, clock, term);
                let lease = Arc::new(lease);
                if let Some((asked, at)) = self.clock {
                    lease.hear_time(asked, at);
                }
                let asked = self.clock.map(|(asked, at)| (asked.instant, at));
                observe::granted(&lease, record, view.remaining, asked);
                // Heard of, it is not known to be on replicas; answered, it is.
                let answered = answer.is_some_and(|reply| reply.ok);
                let grant = Grant {
                    lease: lease.clone(),
                    confirmed: record.state == State::Held && (answered || !lease.terms.replicated),
                    used: AtomicBool::new(false),
                    hub,
                };
                if let Err(unsent) = member.mailbox.unbounded_send(Update::Granted(grant)) {
                    // The stream has been dropped meanwhile. Given back here and now: its own way
                    // back would be behind whatever was asked after the drop.
                    lease.give();
                    drop(unsent);
                    return self.leave(id, now);
                }
                member.stage = Stage::Holding;
                self.grants.push(Live::new(lease, now));
            }
            State::Held | State::Granted => {
                if member.told != record.fence {
                    if member.told != 0 {
                        member.place = member.place.saturating_sub(1);
                    }
                    member.told = record.fence;
                    member.tell(Update::Locked(Locked {
                        attempt: record.attempt,
                        max_attempts: record.max_attempts,
                        holder: record.holder.clone(),
                        remaining: view.remaining,
                        position: answer.and_then(|reply| reply.position),
                    }));
                }
            }
            State::Open => {}
            State::Done | State::Exhausted => {
                member.tell(Update::Ended(match record.state {
                    State::Done => Ended::Completed(completed(record)),
                    _ => Ended::MaxAttempts(given_up(record)),
                }));
                self.members.remove(&id);
            }
        }
    }
}
