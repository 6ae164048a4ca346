//! Leases that are restarted: by whom, when, for how long, and what the answer means.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::grants::Live;
use super::news::local_end;
use super::{Call, Purpose, Run, Update};
use crate::error::{Error, LeaseLost, RenewError};
use crate::hub::Lease;
use crate::observe;
use crate::store::record::loss;
use crate::store::{GRAIN, Op, Reply};

/// Who restarts the lease before it ends.
pub(super) enum Upkeep {
    /// Only its holder.
    None,
    /// We do, then.
    Due(Instant),
    /// We have asked; and this was the answer so far, if any.
    Asked(Option<Error>),
    /// Nobody: it has been held for as long as it may.
    Over,
}

/// Who has asked for a renewal.
pub(super) enum Asker {
    /// The stream, or the guard on its behalf when it begins: it is told in its mailbox.
    Stream,
    Upkeep,
    Guard(oneshot::Sender<Result<(), RenewError>>),
}

impl Live {
    fn keep_alive(&mut self) {
        match self.upkeep {
            // Its answer is where renewal begins.
            Upkeep::None if self.confirming => self.upkeep = Upkeep::Asked(None),
            Upkeep::None => self.schedule(self.lease.deadline()),
            _ => {}
        }
    }

    /// When to renew what ends then on the server: so long before as a whole lease is longer than the
    /// period.
    fn schedule(&mut self, ends: Instant) {
        let lease = Duration::from_millis(self.lease.terms.lease);
        self.upkeep = match self.lease.terms.renew_every {
            None => Upkeep::None,
            Some(_) if ends + GRAIN >= self.lease.hold_ends() => Upkeep::Over,
            Some(every) => {
                let due = self.lease.deadline().checked_sub(lease - every);
                Upkeep::Due(due.unwrap_or(ends))
            }
        };
    }

    /// For how long a renewal that is sent now may restart it, in ms.
    fn restart(&self, length: u64, now: Instant) -> u64 {
        let left = self.lease.hold_ends().saturating_duration_since(now);
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        length.min(left).max(1)
    }

    /// Whether its lease is still worth a renewal.
    fn is_wanted(&self) -> bool {
        !self.settling && !self.lease.is_lost()
    }

    /// Why it ends when its time has come.
    pub(super) fn reason(&self) -> LeaseLost {
        match &self.upkeep {
            Upkeep::None | Upkeep::Due(_) => LeaseLost::Expired,
            Upkeep::Asked(error) => LeaseLost::Unreachable {
                source: error.clone(),
            },
            Upkeep::Over => LeaseLost::MaxHold {
                max_hold: self.lease.terms.max_hold,
            },
        }
    }
}

impl Run {
    pub(super) fn renew_due(&mut self, now: Instant) {
        let due = |live: &Live| matches!(live.upkeep, Upkeep::Due(at) if at <= now);
        let due = self
            .grants
            .iter_mut()
            .filter(|live| due(live) && !live.settling);
        let leases: Vec<Arc<Lease>> = due
            .map(|live| {
                live.upkeep = Upkeep::Asked(None);
                live.lease.clone()
            })
            .collect();
        for lease in leases {
            self.renew(lease, None, None, Asker::Upkeep, now);
        }
    }

    /// Its guard is in use.
    pub(in crate::hub) fn keep_alive(&mut self, lease: &Lease) {
        if let Some(live) = self.live(lease.fence) {
            live.keep_alive();
        }
    }

    pub(super) fn renew(
        &mut self,
        lease: Arc<Lease>,
        length: Option<u64>,
        checkpoint: Option<Bytes>,
        asker: Asker,
        now: Instant,
    ) {
        // One that has ended meanwhile is known to be lost.
        let Some(live) = self.live(lease.fence) else {
            return;
        };
        live.confirming |= matches!(asker, Asker::Stream);
        live.checkpoints += u64::from(checkpoint.is_some());
        let op = Op::Renew {
            fence: lease.fence,
            lease: live.restart(length.unwrap_or(lease.terms.lease), now),
            checkpoint,
        };
        let nth = live.checkpoints;
        self.ask(op, Purpose::Renew { lease, asker, nth });
    }

    /// What is left to be asked of a renewal that has waited; `None` if nothing.
    pub(super) fn renew_again(&mut self, op: Op, nth: u64, now: Instant) -> Option<Op> {
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
            lease: live.restart(lease, now),
            // A newer one may have been left meanwhile.
            checkpoint: checkpoint.filter(|_| nth == live.checkpoints),
        })
    }

    /// Whether a call that has waited for its turn is still to be sent, as it is now.
    pub(in crate::hub) fn still_wants(&mut self, call: &mut Call, now: Instant) -> bool {
        let Purpose::Renew { nth, .. } = call.purpose else {
            return true;
        };
        let op = std::mem::replace(&mut call.op, Op::Inspect);
        match self.renew_again(op, nth, now) {
            Some(op) => call.op = op,
            None => {
                self.calls -= 1;
                self.unwatch_if_idle();
                return false;
            }
        }
        true
    }

    pub(super) fn renewed(&mut self, lease: &Lease, asker: Asker, reply: &Reply, sent: Instant) {
        let Some(record) = reply.record().filter(|_| reply.ok) else {
            self.lose(lease, loss(reply.record(), lease.attempt));
            return;
        };
        let Some(live) = self.live(lease.fence) else {
            return;
        };
        live.confirming = false;
        // Answers may overtake each other; the last restart is what the server goes by.
        if record.renewal > live.restarts {
            live.restarts = record.renewal;
            live.lapsed = false;
            lease.restart(local_end(record, (sent, reply.frame.at)));
            observe::renewed(lease);
            if !matches!(live.upkeep, Upkeep::None) {
                live.schedule(sent + record.remaining(reply.frame.at));
            }
        }
        match asker {
            Asker::Upkeep => {}
            Asker::Stream => {
                if let Some(member) = self.members.get(&lease.id) {
                    member.tell(Update::Confirmed);
                }
            }
            // A guard that does not wait any more has gone.
            Asker::Guard(reply) => drop(reply.send(Ok(()))),
        }
    }

    /// The server does not carry out a renewal. One that may yet be is to be sent again, as long as
    /// the lease runs and somebody works under it.
    pub(super) fn not_renewed(
        &mut self,
        lease: &Lease,
        asker: Asker,
        error: &Error,
        now: Instant,
    ) -> Option<Asker> {
        let live = self.live(lease.fence).filter(|live| live.is_wanted())?;
        if let (Asker::Upkeep, Upkeep::Asked(last)) = (&asker, &mut live.upkeep) {
            *last = Some(error.clone());
        }
        let unproven = matches!(error, Error::NotReplicated { .. });
        match asker {
            // Nobody works under it yet: somebody else may try.
            Asker::Stream if error.is_fatal() || unproven || now >= lease.deadline() => {
                let source = Some(error.clone());
                self.lose(lease, LeaseLost::Unreachable { source });
                None
            }
            Asker::Guard(reply) if error.is_fatal() => {
                let _ = reply.send(Err(RenewError::Refused(error.clone())));
                None
            }
            // The lease is good until it ends.
            Asker::Upkeep if error.is_fatal() => None,
            asker => Some(asker),
        }
    }
}
