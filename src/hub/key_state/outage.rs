//! A server that does not serve: what is told, what is kept, and when it is tried again.

use std::time::Duration;

use tokio::time::Instant;

use super::grants::failed;
use super::{Call, KeyState, OutageId, Renew, Request, Update};
use crate::error::Error;
use crate::hub::message::NotSettled;
use crate::lease::Lease;
use crate::outcome::Reason;
use crate::protocol::GRAIN;
use crate::protocol::record::Token;
use crate::retry::{RETRY_FIRST, jittered, next_delay};
use crate::telemetry;

/// An outage, as far as this key is concerned.
pub(super) struct Outage {
    id: OutageId,
    pub(super) error: Error,
    pub(super) delay: Duration,
    /// `None` while a retry is on its way.
    pub(super) retry_at: Option<Instant>,
    /// Whether claims failed: then only a claim that succeeds ends it.
    pub(super) claims: bool,
    pub(super) parked: Vec<Call>,
    observed: telemetry::Outage,
}

/// An outage in which the keeper's renewals fail, whatever becomes of our own calls.
pub(super) struct RenewalOutage {
    id: OutageId,
    /// The grant whose renewals fail, by fencing token.
    fence: u64,
    error: Error,
    observed: telemetry::Outage,
}

impl Outage {
    fn park(&mut self, call: Call, now: Instant) {
        if let Request::Renew(Renew { lease, .. }) = &call.request {
            // Whatever the delay has grown to, it is tried once more before the lease ends.
            let half = lease.remaining() / 2;
            if half > GRAIN {
                self.retry_at = self.retry_at.map(|at| at.min(now + half));
            }
        }
        self.parked.push(call);
    }
}

impl KeyState {
    pub(super) fn turned_away(&mut self, call: Call, error: Error, now: Instant) {
        let is_claim = call.request.is_claim();
        let fatal = error.is_fatal();
        if let Request::Execute { answer, .. } = call.request {
            let _ = answer.send(Err(error));
            return;
        }
        // It was carried out; what is wanting is the replicas' word.
        let unproven = matches!(error, Error::NotReplicated { .. });
        let Call { ticket, request } = call;
        let parked = match request {
            Request::Claim { id, token, terms } => {
                // Nor is there any where we may not wait for it.
                let unproven = unproven || (fatal && terms.replicated);
                if self.refreshing == Some(id) {
                    self.refreshing = None;
                }
                let wanted = self.participants.on_claim_answered(id, token);
                // It may have been a grant that nobody wants, or one that does not count.
                if wanted && !unproven {
                    None
                } else {
                    if let Some(participant) = self.participants.get_mut(id).filter(|_| wanted) {
                        participant.token = Token::random();
                    }
                    Some(self.withdrawal(token, &terms, ticket, now))
                }
            }
            Request::Settle(settling) if fatal && !settling.is_replicated() => {
                let update = Update::Refused(error.clone());
                self.end(settling, Err(NotSettled::Refused(error.clone())), update);
                None
            }
            Request::Settle(settling) if fatal || unproven || now >= settling.give_up => {
                let unknown = NotSettled::Unknown {
                    waited: now - settling.began,
                    source: error.clone(),
                };
                let ended = failed(&settling.lease, Reason::Unknown);
                self.end(settling, Err(unknown), Update::Settled(ended));
                None
            }
            Request::Renew(renew) => {
                let renew = self.not_renewed(renew, &error);
                renew.map(|renew| Call {
                    ticket,
                    request: Request::Renew(renew),
                })
            }
            Request::Read => {
                self.not_looked(&error, now);
                None
            }
            Request::Withdraw(withdraw) if fatal || now >= withdraw.give_up => None,
            request => Some(Call { ticket, request }),
        };
        self.out_of_service(error, is_claim, now);
        match (&mut self.outage, parked) {
            // The server serves: the grant that does not count is given back at once.
            (_, Some(call)) if (unproven || fatal) && is_claim => self.send(call),
            (Some(outage), Some(call)) => outage.park(call, now),
            _ => {}
        }
    }

    pub(super) fn out_of_service(&mut self, error: Error, claims: bool, now: Instant) {
        if error.is_fatal() {
            if claims {
                self.end_all(&error, now);
                // Whether those who look on are refused too is another question.
                self.look();
            }
            // A refusal is an answer: the server serves.
            return self.recover(claims);
        }
        match &mut self.outage {
            Some(outage) => {
                outage.claims |= claims;
                if outage.retry_at.is_none() {
                    outage.delay = next_delay(outage.delay);
                    outage.retry_at = Some(now + jittered(outage.delay));
                }
            }
            None => {
                let id = self.tell_outage(&error);
                self.outage = Some(Outage {
                    id,
                    observed: self.hub.outages.begin(&self.key, &error),
                    error,
                    delay: RETRY_FIRST,
                    retry_at: Some(now + jittered(RETRY_FIRST)),
                    claims,
                    parked: Vec::new(),
                });
            }
        }
    }

    /// Tells all of an outage, once, and returns its number.
    fn tell_outage(&mut self, error: &Error) -> OutageId {
        if let Some((id, _)) = self.present_outage() {
            return id;
        }
        let id = self.hub.outage_id();
        let update = || Update::Unavailable(error.clone(), id);
        self.participants.notify_all(update);
        self.watchers.tell(error);
        id
    }

    /// The outage that goes on, of our calls or of the keeper's, if there is one.
    pub(super) fn present_outage(&self) -> Option<(OutageId, &Error)> {
        let outage = self.outage.as_ref();
        let outage = outage.map(|outage| (outage.id, &outage.error));
        let renewals = self.renewals_fail.as_ref();
        outage.or(renewals.map(|outage| (outage.id, &outage.error)))
    }

    /// The keeper's renewals of a lease fail.
    pub(in crate::hub) fn renewals_fail(&mut self, lease: &Lease, error: Error) {
        let id = self.tell_outage(&error);
        let observed = self.hub.outages.begin(&self.key, &error);
        self.renewals_fail = Some(RenewalOutage {
            id,
            fence: lease.fence,
            error,
            observed,
        });
    }

    /// They succeed again, or the lease is not renewed any more.
    pub(in crate::hub) fn renewals_work(&mut self, lease: &Lease) {
        let failing = self.renewals_fail.as_ref();
        if failing.is_some_and(|outage| outage.fence == lease.fence) {
            self.end_renewal_outage();
        }
    }

    fn end_renewal_outage(&mut self) {
        if let Some(outage) = self.renewals_fail.take() {
            outage.observed.over();
        }
    }

    /// The server refuses this key to everybody who wants it.
    pub(super) fn end_all(&mut self, error: &Error, now: Instant) {
        for participant in self.participants.remove_all_but_holder() {
            participant.notify(Update::Refused(error.clone()));
            // A claim on its way is given back when its answer comes. One that is to be made again was perhaps carried out.
            if !participant.claiming {
                let call = self.withdrawal(participant.token, &participant.terms, None, now);
                self.send(call);
            }
        }
    }

    /// Sends again what has waited, and one claim to see whether the server serves.
    pub(super) fn retry(&mut self, now: Instant) {
        match &mut self.outage {
            Some(outage) if outage.retry_at.is_some_and(|at| at <= now) => outage.retry_at = None,
            _ => return,
        }
        self.send_parked();
        let unserved = self.participants.unserved().next();
        if let Some(id) = unserved {
            self.claim(id);
        } else {
            self.refresh();
        }
        let claims = self.participants.is_any_claiming();
        match &mut self.outage {
            Some(outage) if claims || self.watchers.is_reading() || !self.effects.is_empty() => {
                outage.claims &= claims;
            }
            outage => *outage = None,
        }
    }

    /// An answer came: if that ends the outage, everybody who was turned away asks again.
    pub(super) fn recover(&mut self, is_claim: bool) {
        // That a lease was lost does not end the outage which cost it: an answer does.
        let failing = self.renewals_fail.as_ref().map(|outage| outage.fence);
        let grant = failing.and_then(|fence| self.grants.get_mut(fence));
        if grant.is_none_or(|grant| grant.lease.is_lost()) {
            self.end_renewal_outage();
        }
        if self
            .outage
            .as_ref()
            .is_none_or(|outage| outage.claims && !is_claim)
        {
            return;
        }
        self.send_parked();
        if let Some(outage) = self.outage.take() {
            outage.observed.over();
        }
        for id in self.participants.unserved().collect::<Vec<_>>() {
            self.claim(id);
        }
        self.watch();
        self.refresh();
    }

    pub(super) fn send_parked(&mut self) {
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
            self.send(call);
        }
    }
}
