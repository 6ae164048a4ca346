//! Renewals: which party restarts a lease, for how long, and what the answer means.
//!
//! The renewals of the hub are the confirmation of a grant, an extension and a checkpoint; the
//! keeper makes all others by itself once it is connected. All of them restart the lease, and none
//! shortens it: a lost answer leaves the holder with a shorter lease than the server's, never with
//! a longer one. A renewal that fails with a transient error is sent again before the lease ends,
//! with what is left of `max_hold` by then, and without its checkpoint if there is a newer one.

use std::sync::Arc;

use bytes::Bytes;

use super::output::{Answer, Report};
use super::{Call, KeyState, Output, Renew, Request, Turn, Update};
use crate::clock::Stamp;
use crate::error::{Error, LeaseLost};
use crate::lease::Lease;
use crate::protocol::Reply;
use crate::protocol::record::loss;

/// The party that requested a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RenewOrigin {
    /// The stream, or the guard on its behalf when it begins. The stream is notified.
    Stream,
    /// The guard, which gets the answer.
    Guard,
    /// The keeper, while it has no connection of its own. It repeats the request itself.
    Keeper,
}

impl<C: Default> KeyState<C> {
    pub(super) fn renew(
        &mut self,
        lease: Arc<Lease>,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
        origin: RenewOrigin,
        caller: C,
        turn: &mut Turn<'_, C>,
    ) {
        // A lease whose grant has ended meanwhile is known to be lost.
        let Some(grant) = self.grants.get_mut(lease.fence) else {
            return;
        };
        grant.checkpoints += u64::from(checkpoint.is_some());
        let nth = grant.checkpoints;
        let request = Request::Renew(Renew {
            length: length.unwrap_or(lease.terms.lease),
            lease,
            checkpoint,
            nth,
            origin,
        });
        self.send(Call { caller, request }, turn);
    }

    pub(in crate::hub) fn renew_for_keeper(&mut self, lease: Arc<Lease>, turn: &mut Turn<'_, C>) {
        let origin = RenewOrigin::Keeper;
        self.renew(lease, None, None, origin, C::default(), turn);
    }

    /// Whether a renewal that has waited is still wanted. Removes its checkpoint if a newer one was
    /// requested meanwhile.
    pub(super) fn still_renews(&mut self, renew: &mut Renew) -> bool {
        let grant = self.grants.get_mut(renew.lease.fence);
        let Some(grant) = grant.filter(|grant| grant.is_wanted()) else {
            return false;
        };
        if renew.nth != grant.checkpoints {
            renew.checkpoint = None;
        }
        true
    }

    /// Whether a call that has waited in the queue is still to be sent.
    pub(in crate::hub) fn still_wants(&mut self, call: &mut Call<C>) -> bool {
        let Request::Renew(renew) = &mut call.request else {
            return true;
        };
        let wanted = self.still_renews(renew);
        if !wanted {
            self.calls -= 1;
        }
        wanted
    }

    pub(super) fn on_renewed(
        &mut self,
        renew: Renew,
        caller: C,
        reply: &Reply,
        sent: Stamp,
        turn: &mut Turn<'_, C>,
    ) {
        let lease = renew.lease;
        let Some(record) = reply.record().filter(|_| reply.ok) else {
            self.lose(&lease, loss(reply.record(), lease.attempt), turn);
            return turn.release(Some(caller));
        };
        let Some(grant) = self.grants.get_mut(lease.fence) else {
            return turn.release(Some(caller));
        };
        lease.on_server_time(sent, reply.frame.at);
        if lease.restart(record.renewal, sent, record.remaining(reply.frame.at)) {
            grant.set_timer(turn.now.instant);
            turn.report(Report::Renewed(lease.clone()));
        }
        match renew.origin {
            RenewOrigin::Stream => {
                turn.notify(lease.id, Update::Confirmed);
                turn.release(Some(caller));
            }
            RenewOrigin::Guard => {
                let answer = Output::Answer(caller, Answer::Renewed(Ok(())));
                turn.outputs.push(answer);
            }
            RenewOrigin::Keeper => turn.release(Some(caller)),
        }
    }

    /// Handles the error of a renewal. Returns the call if it is to be sent again: as long as the
    /// lease runs, the server may yet apply it.
    pub(super) fn on_renewal_failed(
        &mut self,
        renew: Renew,
        caller: C,
        error: &Error,
        turn: &mut Turn<'_, C>,
    ) -> Option<Call<C>> {
        let lease = &*renew.lease;
        let grant = self.grants.get_mut(lease.fence);
        if grant.is_none_or(|grant| !grant.is_wanted()) {
            turn.release(Some(caller));
            return None;
        }
        let unproven = matches!(error, Error::NotReplicated { .. });
        match renew.origin {
            // The grant is not confirmed, so it is lost now and another waiter may try.
            RenewOrigin::Stream if error.is_fatal() || unproven || lease.left().is_zero() => {
                let source = Some(error.clone());
                self.lose(lease, LeaseLost::Unreachable { source }, turn);
                turn.release(Some(caller));
                None
            }
            RenewOrigin::Guard if error.is_fatal() => {
                let answer = Answer::Renewed(Err(error.clone()));
                turn.outputs.push(Output::Answer(caller, answer));
                None
            }
            RenewOrigin::Keeper => {
                turn.release(Some(caller));
                None
            }
            RenewOrigin::Stream | RenewOrigin::Guard => Some(Call {
                caller,
                request: Request::Renew(renew),
            }),
        }
    }
}
