//! Claims: which participant claims, when, and what the answer means.
//!
//! At the end of a lease, the waiter at position p of the queue claims after p × 5 ms, and stands
//! down if it hears of another's claim before. In one process only the first waiter claims: the
//! answer to its claim tells all of them.

use std::time::Duration;

use tokio::time::Instant;

use super::{Id, KeyState, Request, Stage, Turn};
use crate::protocol::record::{Record, State, Token};
use crate::protocol::{ClaimReply, Reply};

impl<C: Default> KeyState<C> {
    pub(super) fn claim(&mut self, id: Id, turn: &mut Turn<'_, C>) {
        let Some(participant) = self.participants.get_mut(id) else {
            return;
        };
        participant.claiming = true;
        let request = Request::Claim {
            id,
            token: participant.token,
            terms: participant.terms.clone(),
        };
        self.ask(request, turn);
    }

    pub(super) fn on_claim_reply(
        &mut self,
        id: Id,
        token: Token,
        reply: &Reply,
        turn: &mut Turn<'_, C>,
    ) {
        let Some(participant) = self.participants.get_mut(id) else {
            return;
        };
        participant.stage = Stage::Waiting;
        let got = reply.claim();
        if let ClaimReply::Queued { position } = got {
            participant.queue_position = position;
        }
        self.notify_of_latest(id, Some(got), turn);
        let Some(participant) = self.participants.get_mut(id) else {
            return;
        };
        if participant.stage == Stage::Waiting {
            // The server gives a token at most one grant. If the participant lost that grant
            // before a guard was made of it, it needs a new token.
            let refused = |record: &Record| record.last == Some(token);
            if got == ClaimReply::Held || reply.record().is_some_and(refused) {
                participant.token = turn.fresh.token();
                self.claim(id, turn);
            }
            self.subscribe_if_wanted(turn);
        }
    }

    /// Sends one claim on behalf of all waiters, since its answer brings each of them the latest
    /// record. If no waiter can claim, reads the record for the watchers.
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
        // The answers in flight may be older than a missed message, so the refresh is repeated
        // after them.
        self.refresh_again = self.claims > 0;
        if !self.refresh_again {
            self.read_for_watchers(turn);
        }
    }

    /// Ends the refresh of this participant, and starts another if that was requested meanwhile.
    pub(super) fn refreshed(&mut self, id: Id, turn: &mut Turn<'_, C>) {
        if self.refreshing == Some(id) {
            self.refreshing = None;
        }
        if self.refresh_again {
            self.refresh(turn);
        }
    }

    /// Returns the time at which the first waiter claims if no message comes before.
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
        // Without a subscription the outcome is not pushed, so the waiter claims before the server
        // may forget it.
        let audit = (!self.subscription.hears()).then_some(audit);
        audit.into_iter().chain([claim]).min()
    }
}
