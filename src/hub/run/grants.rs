//! Grants of this process: how each begins, lapses and ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::news::{local_end, until};
use super::{Purpose, Run, Update};
use crate::error::{Error, LeaseLost, RenewError, SettleError};
use crate::event::{Completed, Failed, MaxAttempts, Reason};
use crate::hub::Lease;
use crate::hub::message::Ended;
use crate::store::record::{Cause, Record, State, Token, loss};
use crate::store::{Failure, GRAIN, Op, Outcome, Reply};

pub(super) struct Live {
    pub(super) lease: Arc<Lease>,
    /// Its end is on its way.
    pub(super) settling: bool,
    /// Its time is over, and nobody has looked at it yet.
    lapsed: bool,
    /// Whether a renewal that confirms it is on its way.
    confirming: bool,
    /// The last renewal that was answered, as the record counts them.
    restarts: u64,
    /// How many checkpoints were asked for.
    checkpoints: u64,
    upkeep: Upkeep,
}

/// Who restarts the lease before it ends.
enum Upkeep {
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

pub(super) struct Settling {
    pub(super) lease: Arc<Lease>,
    pub(super) reply: Option<oneshot::Sender<Result<(), SettleError>>>,
    pub(super) began: Instant,
    pub(super) give_up: Instant,
}

impl Live {
    pub(super) fn new(lease: Arc<Lease>) -> Self {
        Self {
            settling: false,
            lapsed: false,
            confirming: false,
            restarts: 0,
            checkpoints: 0,
            upkeep: Upkeep::None,
            lease,
        }
    }

    /// When something is to be done about it: it ends, or is to be renewed.
    pub(super) fn due(&self) -> Instant {
        match self.upkeep {
            Upkeep::Due(at) => self.ends().min(at),
            _ => self.ends(),
        }
    }

    /// When it is over; for a grant that nobody has looked at, when nothing is left of its run.
    fn ends(&self) -> Instant {
        let lease = self.lease.deadline();
        match self.lapsed {
            false => lease,
            true => lease + Duration::from_millis(self.lease.terms.retention),
        }
    }

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
    fn reason(&self) -> LeaseLost {
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

impl Drop for Live {
    /// The hub's runtime has shut down, unless there was another reason before.
    fn drop(&mut self) {
        self.lease.lose(LeaseLost::Stopped);
    }
}

impl Run {
    pub(super) fn live(&mut self, fence: u64) -> Option<&mut Live> {
        self.grants
            .iter_mut()
            .find(|live| live.lease.fence == fence)
    }

    /// Whether this token's grant is out: with its stream or, when that has gone, with its guard. Then
    /// it ends by that, and never by a withdrawal.
    pub(super) fn holds(&self, token: Token) -> bool {
        self.grants.iter().any(|live| live.lease.token == token)
    }

    pub(super) fn lapse(&mut self, now: Instant) {
        let over = |live: &&mut Live| !live.settling && live.ends() <= now;
        while let Some(live) = self.grants.iter_mut().find(over) {
            let (lease, reason) = (live.lease.clone(), live.reason());
            // Until a guard was made of it, it may still be confirmed.
            if live.lapsed || lease.is_given() {
                self.lose(&lease, reason);
            } else {
                live.lapsed = true;
            }
        }
    }

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
            if !matches!(live.upkeep, Upkeep::None) {
                live.schedule(sent + until(record, reply.frame.at));
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

    /// Its holder has it no longer, unless it is being settled: then that answer tells.
    pub(in crate::hub) fn lose(&mut self, lease: &Lease, reason: LeaseLost) {
        let mine = |live: &Live| live.lease.fence == lease.fence && !live.settling;
        if self.grants.iter().any(mine) {
            lease.lose(reason);
            self.forget(lease.fence);
            if let Some(member) = self.members.get(&lease.id) {
                member.tell(Update::Lost);
            }
        }
    }

    pub(super) fn settled(&mut self, settling: Settling, op: &Op, reply: &Reply) {
        let Op::Settle { outcome, .. } = op else {
            return;
        };
        let lease = &settling.lease;
        let (result, ended) = match reply.record() {
            Some(record) if reply.ok || was_settled(record, lease, outcome) => {
                (Ok(()), ended(record, lease, outcome))
            }
            record => {
                let lost = loss(record, lease.attempt);
                let reason = match lost {
                    LeaseLost::RecordGone => Reason::Lost,
                    _ => Reason::Expired,
                };
                (Err(lost.into()), failed(lease, reason))
            }
        };
        self.end(settling, result, Update::Settled(ended));
    }

    /// The last that is heard of a grant.
    pub(super) fn end(
        &mut self,
        settling: Settling,
        result: Result<(), SettleError>,
        update: Update,
    ) {
        self.forget(settling.lease.fence);
        // Its stream before its guard: whoever has awaited the guard finds the end in the stream.
        if let Some(member) = self.members.remove(&settling.lease.id) {
            member.tell(update);
        }
        if let Some(reply) = settling.reply {
            let _ = reply.send(result);
        }
    }

    pub(super) fn forget(&mut self, fence: u64) {
        self.grants.retain(|live| live.lease.fence != fence);
    }
}

/// Whether a settlement that is refused now took place before, its answer being lost.
pub(super) fn was_settled(record: &Record, lease: &Lease, outcome: &Outcome) -> bool {
    let cause = match outcome {
        Outcome::Done(_) => return false,
        Outcome::HandOff => Cause::HandedOver,
        Outcome::Fail(Failure::Dropped) => Cause::Dropped,
        Outcome::Fail(Failure::Panicked) => Cause::Panicked,
        Outcome::Fail(Failure::Reason(_)) | Outcome::FailPermanently(_) => Cause::Failed,
    };
    let previous = record.previous.as_ref();
    record.last == Some(lease.token)
        && previous.is_some_and(|previous| previous.cause == cause)
        && previous.is_some_and(|previous| previous.attempt == lease.attempt)
}

/// How a participation ends whose grant was settled.
pub(super) fn ended(record: &Record, lease: &Lease, outcome: &Outcome) -> Ended {
    match outcome {
        Outcome::Done(_) => Ended::Completed(completed(record)),
        _ if record.state == State::Exhausted => Ended::MaxAttempts(given_up(record)),
        Outcome::HandOff => failed(lease, Reason::HandedOver),
        Outcome::Fail(Failure::Dropped) => failed(lease, Reason::Dropped),
        Outcome::Fail(Failure::Panicked) => failed(lease, Reason::Panicked),
        Outcome::Fail(Failure::Reason(text)) | Outcome::FailPermanently(text) => {
            failed(lease, Reason::Failed(text.clone()))
        }
    }
}

pub(super) fn failed(lease: &Lease, reason: Reason) -> Ended {
    Ended::Failed(Failed {
        attempt: lease.attempt,
        reason,
    })
}

pub(super) fn completed(record: &Record) -> Completed {
    Completed {
        holder: record.holder.clone(),
        attempt: record.attempt,
        result: record.result.clone(),
    }
}

pub(super) fn given_up(record: &Record) -> MaxAttempts {
    let previous = record.previous.as_ref();
    MaxAttempts {
        attempts: record.attempt,
        holder: previous.map_or_else(String::new, |previous| previous.holder.clone()),
        reason: previous.map_or(Reason::Lost, Reason::from),
    }
}
