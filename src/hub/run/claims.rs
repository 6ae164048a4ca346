//! Who claims, when, and what the answer means.

use std::time::Duration;

use tokio::time::Instant;

use super::{Id, Member, Request, Run, Stage};
use crate::store::Reply;
use crate::store::record::{Record, State, Token};

/// At the end of a lease the waiter at place p in the line claims after p of these.
const STAGGER: Duration = Duration::from_millis(5);

/// From this place on all claim together.
const STAGGER_CAP: u64 = 100;

impl Run {
    pub(super) fn claim(&mut self, id: Id) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.claiming = true;
        let request = Request::Claim {
            id,
            token: member.token,
            terms: member.terms.clone(),
        };
        self.ask(request);
    }

    /// A claim comes back: whether anybody wants what it got. Who has had its grant does not.
    pub(super) fn comes_back(&mut self, id: Id, token: Token) -> bool {
        let member = self.members.get_mut(&id);
        let Some(member) = member.filter(|member| member.token == token) else {
            return false;
        };
        member.claiming = false;
        let wanted = member.stage != Stage::Holding;
        self.first.set(self.first.get().min(id));
        wanted
    }

    pub(super) fn claimed(&mut self, id: Id, token: Token, reply: &Reply, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.stage = Stage::Waiting;
        if let Some(place) = reply.position {
            member.place = place;
        }
        self.bring_up_to_date(id, Some(reply), now);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.stage == Stage::Waiting {
            // A token gets one grant: when that was lost before anybody worked on it, a new one is
            // drawn.
            let refused = |record: &Record| record.last == Some(token);
            if reply.ok || reply.record().is_some_and(refused) {
                member.token = Token::random();
                self.claim(id);
            }
            self.watch();
        }
    }

    /// One claim for all that wait: its answer is news for every one of them.
    pub(super) fn refresh(&mut self) {
        let front = self.front().filter(|_| self.refreshing.is_none());
        if let Some((id, _)) = front {
            self.refreshing = Some(id);
            self.refresh_again = false;
            self.claim(id);
            return;
        }
        // After the answers that are on their way: they may be older than what was missed.
        self.refresh_again = self.claims > 0;
        if !self.refresh_again {
            self.look();
        }
    }

    pub(super) fn refreshed(&mut self, id: Id) {
        if self.refreshing == Some(id) {
            self.refreshing = None;
        }
        if self.refresh_again {
            self.refresh();
        }
    }

    /// Who claims first when the time comes.
    pub(super) fn front(&self) -> Option<(Id, &Member)> {
        let mut waiting = self.members.range(self.first.get()..);
        let front = waiting.find(|(_, member)| member.stage == Stage::Waiting && !member.claiming);
        self.first.set(front.map_or(Id::MAX, |(id, _)| *id));
        front.map(|(id, member)| (*id, &**member))
    }

    /// When the front waiter claims on its own, having heard nothing.
    pub(super) fn claim_at(&self) -> Option<Instant> {
        if self.refreshing.is_some() || self.outage.is_some() {
            return None;
        }
        let known = self.latest.known()?;
        let (_, front) = self.front()?;
        let begin = match known.record.state {
            State::Open => known.received,
            _ => known.ends,
        };
        let claim = begin + front.stagger();
        let audit = known.received + Duration::from_millis(known.record.retention / 2);
        // Deaf, we look before an outcome may be forgotten.
        let audit = (!self.subscription.hears()).then_some(audit);
        audit.into_iter().chain([claim]).min()
    }
}

impl Member {
    /// How long after the others' claims its own is due: at once for the first in the line.
    pub(super) fn stagger(&self) -> Duration {
        let place = self.place.min(STAGGER_CAP) as u32;
        if place == 0 {
            return Duration::ZERO;
        }
        // Stable for one token, so that asking twice gives one answer.
        STAGGER * place + STAGGER.mul_f64(self.token.fraction())
    }
}
