//! Who claims, when, and what the answer means.

use std::time::Duration;

use tokio::time::Instant;

use super::{Id, KeyState, Request, Stage, Turn};
use crate::protocol::Reply;
use crate::protocol::record::{Record, State, Token};

impl<C: Default> KeyState<C> {
    pub(super) fn claim(&mut self, id: Id, turn: &mut Turn<'_, C>) {
        let Some(member) = self.participants.get_mut(id) else {
            return;
        };
        member.claiming = true;
        let request = Request::Claim {
            id,
            token: member.token,
            terms: member.terms.clone(),
        };
        self.ask(request, turn);
    }

    pub(super) fn claimed(&mut self, id: Id, token: Token, reply: &Reply, turn: &mut Turn<'_, C>) {
        let Some(member) = self.participants.get_mut(id) else {
            return;
        };
        member.stage = Stage::Waiting;
        if let Some(place) = reply.position {
            member.queue_position = place;
        }
        self.bring_up_to_date(id, Some(reply), turn);
        let Some(member) = self.participants.get_mut(id) else {
            return;
        };
        if member.stage == Stage::Waiting {
            // A token gets one grant. If that was lost before a guard was made of it, the
            // participant needs a new token.
            let refused = |record: &Record| record.last == Some(token);
            if reply.ok || reply.record().is_some_and(refused) {
                member.token = turn.fresh.token();
                self.claim(id, turn);
            }
            self.watch(turn);
        }
    }

    /// Sends one claim for all waiters: its answer is news for each of them.
    pub(super) fn refresh(&mut self, turn: &mut Turn<'_, C>) {
        let front = self
            .participants
            .next_claimant()
            .filter(|_| self.refreshing.is_none());
        if let Some((id, _)) = front {
            self.refreshing = Some(id);
            self.refresh_again = false;
            self.claim(id, turn);
            return;
        }
        // After the answers that are on their way: they may be older than what was missed.
        self.refresh_again = self.claims > 0;
        if !self.refresh_again {
            self.look(turn);
        }
    }

    pub(super) fn refreshed(&mut self, id: Id, turn: &mut Turn<'_, C>) {
        if self.refreshing == Some(id) {
            self.refreshing = None;
        }
        if self.refresh_again {
            self.refresh(turn);
        }
    }

    /// When the front waiter claims on its own, having heard nothing.
    pub(super) fn claim_at(&self) -> Option<Instant> {
        if self.refreshing.is_some() || self.outage.is_some() {
            return None;
        }
        let known = self.latest.known()?;
        let (_, front) = self.participants.next_claimant()?;
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
