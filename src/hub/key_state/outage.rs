//! OutageKind: what participants are told, which requests are parked, and when they are sent again.
//!
//! A transient error opens an outage of the key. Every stream yields one error for it. Calls are
//! kept, and one claim is tried again with a growing delay. An answer ends the outage; if a claim
//! had failed, only the success of a claim does. Nothing is retried below this: a script whose
//! connection broke may have run.
//!
//! A claim that too few replicas acknowledged is withdrawn at once. A pushed grant with replicas is
//! confirmed before the stream yields it, and given back if that fails.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use super::fork::Forks;
use super::grants::failed;
use super::output::{Answer, OutageKind, Report};
use super::{Call, KeyState, OutageId, Output, Renew, Request, Turn, Update};
use crate::error::Error;
use crate::hub::message::NotSettled;
use crate::lease::Lease;
use crate::outcome::Reason;
use crate::protocol::GRAIN;
use crate::retry::{RETRY_FIRST, next_delay};

/// An outage in which the hub's calls for this key fail.
#[derive(Debug)]
pub(super) struct Outage<C> {
    id: OutageId,
    pub(super) error: Error,
    pub(super) delay: Duration,
    /// Time of the next retry; `None` while a retry is in flight.
    pub(super) retry_at: Option<Instant>,
    /// Whether claims failed. Then only an answer to a claim ends the outage.
    pub(super) claims: bool,
    pub(super) parked: Vec<Call<C>>,
}

/// An outage in which the keeper's renewals fail. The hub's calls may succeed meanwhile.
#[derive(Clone, Debug)]
pub(super) struct RenewalOutage {
    id: OutageId,
    /// Fencing token of the grant whose renewals fail.
    fence: u64,
    error: Error,
}

/// Leaves out the error, on which no decision depends.
impl<C: Hash> Hash for Outage<C> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.id, self.delay, self.retry_at, self.claims).hash(hasher);
        self.parked.hash(hasher);
    }
}

impl Hash for RenewalOutage {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.id, self.fence).hash(hasher);
    }
}

impl<C: Clone> Outage<C> {
    pub(super) fn fork(&self, forks: &mut Forks) -> Self {
        Self {
            id: self.id,
            error: self.error.clone(),
            delay: self.delay,
            retry_at: self.retry_at,
            claims: self.claims,
            parked: self.parked.iter().map(|call| call.fork(forks)).collect(),
        }
    }
}

impl<C> Outage<C> {
    fn park(&mut self, call: Call<C>, now: Instant) {
        if let Request::Renew(Renew { lease, .. }) = &call.request {
            // However long the delay has grown, a renewal is retried before its lease ends.
            let half = lease.remaining() / 2;
            if half > GRAIN {
                self.retry_at = self.retry_at.map(|at| at.min(now + half));
            }
        }
        self.parked.push(call);
    }
}

impl<C: Default> KeyState<C> {
    pub(super) fn on_failed(&mut self, call: Call<C>, error: Error, turn: &mut Turn<'_, C>) {
        let now = turn.now.instant;
        let is_claim = call.request.is_claim();
        let fatal = error.is_fatal();
        let Call { caller, request } = call;
        if let Request::Execute(_) = request {
            let answer = Answer::Executed(Err(error));
            return turn.outputs.push(Output::Answer(caller, answer));
        }
        // The write was applied, but not acknowledged by enough replicas.
        let unproven = matches!(error, Error::NotReplicated { .. });
        let parked = match request {
            Request::Claim { id, token, terms } => {
                // The server may apply a claim and then refuse the wait for its replicas, which is
                // a fatal error.
                let unproven = unproven || (fatal && terms.replicated);
                if self.refreshing == Some(id) {
                    self.refreshing = None;
                }
                let wanted = self.participants.on_claim_answered(id, token);
                // The claim may have taken a grant that no participant wants, or one that does not
                // count without its replicas.
                if wanted && !unproven {
                    None
                } else {
                    if let Some(participant) = self.participants.get_mut(id).filter(|_| wanted) {
                        participant.token = turn.fresh.token();
                    }
                    Some(self.withdrawal(token, &terms, caller, now))
                }
            }
            Request::Settle(settling) if fatal && !settling.is_replicated() => {
                let update = Update::Refused(error.clone());
                let refused = Err(NotSettled::Refused(error.clone()));
                self.end(settling.lease, caller, refused, update, turn);
                None
            }
            Request::Settle(settling) if fatal || unproven || now >= settling.retry_until => {
                let unknown = NotSettled::Unknown {
                    waited: now - settling.began,
                    source: error.clone(),
                };
                let ended = failed(&settling.lease, Reason::Unknown);
                let update = Update::Settled(ended);
                self.end(settling.lease, caller, Err(unknown), update, turn);
                None
            }
            Request::Renew(renew) => self.on_renewal_failed(renew, caller, &error, turn),
            Request::Read => {
                self.on_read_failed(&error, turn);
                None
            }
            Request::Withdraw(withdraw) if fatal || now >= withdraw.retry_until => None,
            request => Some(Call { caller, request }),
        };
        self.on_outage(error, is_claim, turn);
        match (&mut self.outage, parked) {
            // The server answers, so a grant that does not count is given back at once.
            (_, Some(call)) if (unproven || fatal) && is_claim => self.send(call, turn),
            (Some(outage), Some(call)) => outage.park(call, now),
            _ => {}
        }
    }

    pub(super) fn on_outage(&mut self, error: Error, claims: bool, turn: &mut Turn<'_, C>) {
        let now = turn.now.instant;
        if error.is_fatal() {
            if claims {
                self.end_all(&error, turn);
                // A read shows whether the server refuses the watchers, too.
                self.read_for_watchers(turn);
            }
            // A refusal is an answer, so it can end the outage.
            return self.recover(claims, turn);
        }
        match &mut self.outage {
            Some(outage) => {
                outage.claims |= claims;
                if outage.retry_at.is_none() {
                    outage.delay = next_delay(outage.delay);
                    outage.retry_at = Some(now + turn.fresh.jittered(outage.delay));
                }
            }
            None => {
                let id = self.tell_outage(&error, turn);
                turn.report(Report::OutageBegan(OutageKind::Calls, error.clone()));
                self.outage = Some(Outage {
                    id,
                    error,
                    delay: RETRY_FIRST,
                    retry_at: Some(now + turn.fresh.jittered(RETRY_FIRST)),
                    claims,
                    parked: Vec::new(),
                });
            }
        }
    }

    /// Tells the participants and watchers once of an outage, and returns its id.
    fn tell_outage(&mut self, error: &Error, turn: &mut Turn<'_, C>) -> OutageId {
        if let Some((id, _)) = self.present_outage() {
            return id;
        }
        let id = turn.fresh.outage();
        for (participant, _) in self.participants.iter() {
            turn.notify(participant, Update::Unavailable(error.clone(), id));
        }
        self.watchers.tell(error, turn);
        id
    }

    /// Returns the present outage, of the hub's calls or of the keeper's renewals.
    pub(super) fn present_outage(&self) -> Option<(OutageId, &Error)> {
        let outage = self.outage.as_ref();
        let outage = outage.map(|outage| (outage.id, &outage.error));
        let renewals = self.renewals_fail.as_ref();
        outage.or(renewals.map(|outage| (outage.id, &outage.error)))
    }

    /// Records that the keeper's renewals of a lease fail.
    pub(in crate::hub) fn renewals_fail(
        &mut self,
        lease: &Lease,
        error: Error,
        turn: &mut Turn<'_, C>,
    ) {
        let id = self.tell_outage(&error, turn);
        turn.report(Report::OutageBegan(OutageKind::Renewals, error.clone()));
        self.renewals_fail = Some(RenewalOutage {
            id,
            fence: lease.fence,
            error,
        });
    }

    /// Records that the keeper's renewals of a lease succeed again, or that it no longer renews the
    /// lease.
    pub(in crate::hub) fn renewals_work(&mut self, lease: &Lease, turn: &mut Turn<'_, C>) {
        let failing = self.renewals_fail.as_ref();
        if failing.is_some_and(|outage| outage.fence == lease.fence) {
            self.end_renewal_outage(turn);
        }
    }

    fn end_renewal_outage(&mut self, turn: &mut Turn<'_, C>) {
        if self.renewals_fail.take().is_some() {
            turn.report(Report::OutageOver(OutageKind::Renewals));
        }
    }

    /// Ends all participations except the holder's, because the server refuses the key to them.
    pub(super) fn end_all(&mut self, error: &Error, turn: &mut Turn<'_, C>) {
        for (id, participant) in self.participants.remove_all_but_holder() {
            turn.notify(id, Update::Refused(error.clone()));
            turn.close(id);
            // A claim in flight is withdrawn when its answer comes. An earlier claim that failed in
            // an outage may have been applied, so the token is withdrawn now.
            if !participant.claiming {
                self.withdraw(&participant, turn);
            }
        }
    }

    /// Sends the parked requests again, and one claim or read that shows whether the server
    /// answers.
    pub(super) fn retry(&mut self, turn: &mut Turn<'_, C>) {
        let (now, before) = (turn.now.instant, self.calls);
        match &mut self.outage {
            Some(outage) if outage.retry_at.is_some_and(|at| at <= now) => outage.retry_at = None,
            _ => return,
        }
        self.send_parked(turn);
        let unserved = self.participants.unserved().next();
        if let Some(id) = unserved {
            self.claim(id, turn);
        } else {
            self.refresh(turn);
        }
        let claims = self.participants.is_any_claiming();
        let tries = claims || self.watchers.is_reading() || self.calls > before;
        match &mut self.outage {
            // Without a claim in flight, any answer ends the outage.
            Some(outage) if tries => outage.claims &= claims,
            // Nothing was sent, so no answer will come that ends the outage.
            outage => {
                *outage = None;
                turn.report(Report::OutageLeft(OutageKind::Calls));
            }
        }
    }

    /// Handles that the server has answered. If that ends the outage, sends the parked requests and
    /// the failed claims again.
    pub(super) fn recover(&mut self, is_claim: bool, turn: &mut Turn<'_, C>) {
        // The loss of the lease does not end the outage of its renewals. The first answer after the
        // loss does.
        let failing = self.renewals_fail.as_ref().map(|outage| outage.fence);
        let grant = failing.and_then(|fence| self.grants.get_mut(fence));
        if grant.is_none_or(|grant| grant.lease.is_lost()) {
            self.end_renewal_outage(turn);
        }
        if self
            .outage
            .as_ref()
            .is_none_or(|outage| outage.claims && !is_claim)
        {
            return;
        }
        self.send_parked(turn);
        if self.outage.take().is_some() {
            turn.report(Report::OutageOver(OutageKind::Calls));
        }
        for id in self.participants.unserved().collect::<Vec<_>>() {
            self.claim(id, turn);
        }
        self.subscribe_if_wanted(turn);
        self.refresh(turn);
    }

    pub(super) fn send_parked(&mut self, turn: &mut Turn<'_, C>) {
        let parked = self
            .outage
            .as_mut()
            .map(|outage| std::mem::take(&mut outage.parked));
        for mut call in parked.into_iter().flatten() {
            if let Request::Renew(renew) = &mut call.request
                && !self.still_renews(renew)
            {
                continue;
            }
            self.send(call, turn);
        }
    }
}
