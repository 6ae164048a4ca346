//! Leases that are restarted: by whom, when, for how long, and what the answer means.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Call, KeyState, Renew, Request, Update};
use crate::clock::Stamp;
use crate::error::{Error, LeaseLost};
use crate::lease::Lease;
use crate::protocol::Reply;
use crate::protocol::record::loss;
use crate::telemetry;

/// Who has asked for a renewal.
pub(super) enum RenewOrigin {
    /// The stream, or the guard on its behalf when it begins: it is told in its mailbox.
    Stream,
    Guard(oneshot::Sender<Result<(), Error>>),
    /// The keeper, which has no connection of its own yet and asks again by itself.
    Keeper,
}

impl KeyState {
    pub(super) fn renew(
        &mut self,
        lease: Arc<Lease>,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
        origin: RenewOrigin,
    ) {
        // One that has ended meanwhile is known to be lost.
        let Some(live) = self.grants.get_mut(lease.fence) else {
            return;
        };
        live.checkpoints += u64::from(checkpoint.is_some());
        let nth = live.checkpoints;
        self.ask(Request::Renew(Renew {
            length: length.unwrap_or(lease.terms.lease),
            lease,
            checkpoint,
            nth,
            origin,
        }));
    }

    pub(in crate::hub) fn renew_for_keeper(&mut self, lease: Arc<Lease>) {
        self.renew(lease, None, None, RenewOrigin::Keeper);
    }

    /// Whether a renewal that has waited is still wanted. It keeps its checkpoint unless a newer one
    /// was left meanwhile.
    pub(super) fn still_renews(&mut self, renew: &mut Renew) -> bool {
        let live = self.grants.get_mut(renew.lease.fence);
        let Some(live) = live.filter(|live| live.is_wanted()) else {
            return false;
        };
        if renew.nth != live.checkpoints {
            renew.checkpoint = None;
        }
        true
    }

    /// Whether a call that has waited for its turn is still to be sent.
    pub(in crate::hub) fn still_wants(&mut self, call: &mut Call) -> bool {
        let Request::Renew(renew) = &mut call.request else {
            return true;
        };
        let wanted = self.still_renews(renew);
        if !wanted {
            self.calls -= 1;
        }
        wanted
    }

    pub(super) fn renewed(&mut self, renew: Renew, reply: &Reply, sent: Stamp, now: Instant) {
        let (lease, origin) = (&*renew.lease, renew.origin);
        let Some(record) = reply.record().filter(|_| reply.ok) else {
            self.lose(lease, loss(reply.record(), lease.attempt));
            return;
        };
        let Some(live) = self.grants.get_mut(lease.fence) else {
            return;
        };
        lease.on_server_time(sent, reply.frame.at);
        if lease.restart(record.renewal, sent, record.remaining(reply.frame.at)) {
            live.set_timer(now);
            telemetry::renewed(lease.told());
        }
        match origin {
            RenewOrigin::Stream => {
                if let Some(participant) = self.participants.get(lease.id) {
                    participant.notify(Update::Confirmed);
                }
            }
            // A guard that does not wait any more has gone.
            RenewOrigin::Guard(reply) => drop(reply.send(Ok(()))),
            RenewOrigin::Keeper => {}
        }
    }

    /// The server does not carry out a renewal. One that may yet be is to be sent again, as long as
    /// the lease runs and somebody works under it.
    pub(super) fn not_renewed(&mut self, renew: Renew, error: &Error) -> Option<Renew> {
        let lease = &*renew.lease;
        self.grants
            .get_mut(lease.fence)
            .filter(|live| live.is_wanted())?;
        let unproven = matches!(error, Error::NotReplicated { .. });
        match renew.origin {
            // Nobody works under it yet: somebody else may try.
            RenewOrigin::Stream if error.is_fatal() || unproven || lease.left().is_zero() => {
                let source = Some(error.clone());
                self.lose(lease, LeaseLost::Unreachable { source });
                None
            }
            RenewOrigin::Guard(reply) if error.is_fatal() => {
                let _ = reply.send(Err(error.clone()));
                None
            }
            RenewOrigin::Keeper => None,
            origin => Some(Renew { origin, ..renew }),
        }
    }
}
