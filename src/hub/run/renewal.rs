//! Leases that are restarted: by whom, when, for how long, and what the answer means.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::grants::Live;
use super::{Call, Purpose, Run, Update};
use crate::clock::Stamp;
use crate::error::{Error, LeaseLost, RenewError};
use crate::lease::Lease;
use crate::observe;
use crate::store::record::loss;
use crate::store::{Op, Reply};

/// Who has asked for a renewal.
pub(super) enum Asker {
    /// The stream, or the guard on its behalf when it begins: it is told in its mailbox.
    Stream,
    Guard(oneshot::Sender<Result<(), RenewError>>),
    /// The keeper, which has no connection of its own yet and asks again by itself.
    Keeper,
}

impl Live {
    /// Whether its lease is still worth a renewal.
    fn is_wanted(&self) -> bool {
        !self.settling && !self.lease.is_lost()
    }
}

impl Run {
    pub(super) fn renew(
        &mut self,
        lease: Arc<Lease>,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
        asker: Asker,
    ) {
        // One that has ended meanwhile is known to be lost.
        let Some(live) = self.live(lease.fence) else {
            return;
        };
        live.checkpoints += u64::from(checkpoint.is_some());
        let op = Op::Renew {
            fence: lease.fence,
            lease: lease.restartable_for(length.unwrap_or(lease.terms.lease)),
            checkpoint,
        };
        let nth = live.checkpoints;
        self.ask(op, Purpose::Renew { lease, asker, nth });
    }

    pub(in crate::hub) fn renew_for_keeper(&mut self, lease: Arc<Lease>) {
        self.renew(lease, None, None, Asker::Keeper);
    }

    /// What is left to be asked of a renewal that has waited; `None` if nothing.
    pub(super) fn renew_again(&mut self, op: Op, nth: u64) -> Option<Op> {
        let Op::Renew {
            fence,
            lease,
            checkpoint,
        } = op
        else {
            return None;
        };
        let live = self.live(fence).filter(|live| live.is_wanted())?;
        Some(Op::Renew {
            fence,
            lease: live.lease.restartable_for(lease),
            // A newer one may have been left meanwhile.
            checkpoint: checkpoint.filter(|_| nth == live.checkpoints),
        })
    }

    /// Whether a call that has waited for its turn is still to be sent, as it is now.
    pub(in crate::hub) fn still_wants(&mut self, call: &mut Call) -> bool {
        let Purpose::Renew { nth, .. } = call.purpose else {
            return true;
        };
        let op = std::mem::replace(&mut call.op, Op::Inspect);
        match self.renew_again(op, nth) {
            Some(op) => call.op = op,
            None => {
                self.calls -= 1;
                self.unwatch_if_idle();
                return false;
            }
        }
        true
    }

    pub(super) fn renewed(
        &mut self,
        lease: &Lease,
        asker: Asker,
        reply: &Reply,
        sent: Stamp,
        now: Instant,
    ) {
        let Some(record) = reply.record().filter(|_| reply.ok) else {
            self.lose(lease, loss(reply.record(), lease.attempt));
            return;
        };
        let Some(live) = self.live(lease.fence) else {
            return;
        };
        lease.hear_time(sent, reply.frame.at);
        if lease.restart(record.renewal, sent, record.remaining(reply.frame.at)) {
            live.look(now);
            observe::renewed(lease);
        }
        match asker {
            Asker::Stream => {
                if let Some(member) = self.members.get(&lease.id) {
                    member.tell(Update::Confirmed);
                }
            }
            // A guard that does not wait any more has gone.
            Asker::Guard(reply) => drop(reply.send(Ok(()))),
            Asker::Keeper => {}
        }
    }

    /// The server does not carry out a renewal. One that may yet be is to be sent again, as long as
    /// the lease runs and somebody works under it.
    pub(super) fn not_renewed(
        &mut self,
        lease: &Lease,
        asker: Asker,
        error: &Error,
    ) -> Option<Asker> {
        self.live(lease.fence).filter(|live| live.is_wanted())?;
        let unproven = matches!(error, Error::NotReplicated { .. });
        match asker {
            // Nobody works under it yet: somebody else may try.
            Asker::Stream if error.is_fatal() || unproven || lease.left().is_zero() => {
                let source = Some(error.clone());
                self.lose(lease, LeaseLost::Unreachable { source });
                None
            }
            Asker::Guard(reply) if error.is_fatal() => {
                let _ = reply.send(Err(RenewError::Refused(error.clone())));
                None
            }
            Asker::Keeper => None,
            asker => Some(asker),
        }
    }
}
