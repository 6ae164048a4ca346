//! Grants of this process: how each begins, lapses and ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::news::local_end;
use super::{Run, Update};
use crate::error::SettleError;
use crate::event::{Completed, Failed, MaxAttempts, Reason};
use crate::hub::Lease;
use crate::hub::message::Ended;
use crate::store::record::{Cause, Record, State};
use crate::store::{Failure, Op, Outcome, Reply};

pub(super) struct Live {
    pub(super) lease: Arc<Lease>,
    /// Its holder has been told that it is over.
    pub(super) lapsed: bool,
    /// Its end is on its way.
    pub(super) settling: bool,
}

pub(super) struct Settling {
    pub(super) lease: Arc<Lease>,
    pub(super) reply: Option<oneshot::Sender<Result<(), SettleError>>>,
    pub(super) began: Instant,
    pub(super) give_up: Instant,
}

impl Live {
    /// When its holder is to be told that it is over, and then that nothing is left of it.
    pub(super) fn deadline(&self) -> Instant {
        let lease = self.lease.deadline();
        match self.lapsed {
            false => lease,
            true => lease + Duration::from_millis(self.lease.terms.retention),
        }
    }
}

impl Run {
    pub(super) fn lapse(&mut self, now: Instant) {
        let members = &self.members;
        self.grants.retain_mut(|live| {
            if live.settling || live.deadline() > now {
                return true;
            }
            let update = if live.lapsed {
                Update::Lost
            } else {
                Update::Lapsed
            };
            if let Some(member) = members.get(&live.lease.id) {
                member.tell(update);
            }
            !std::mem::replace(&mut live.lapsed, true)
        });
    }

    pub(super) fn confirmed(&mut self, lease: &Lease, reply: &Reply, sent: Instant) {
        let stands = reply.record().filter(|_| reply.ok);
        if let Some(record) = stands {
            lease.restart(local_end(record, (sent, reply.frame.at)));
            for live in self
                .grants
                .iter_mut()
                .filter(|live| live.lease.fence == lease.fence)
            {
                live.lapsed = false;
            }
            if let Some(member) = self.members.get(&lease.id) {
                member.tell(Update::Confirmed);
            }
        } else {
            self.lose(lease);
        }
    }

    /// Somebody else has it, unless it is being settled: then that answer tells.
    pub(super) fn lose(&mut self, lease: &Lease) {
        let mine = |live: &Live| live.lease.fence == lease.fence && !live.settling;
        if self.grants.iter().any(mine) {
            lease.lose();
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
                let lost = SettleError::Lost {
                    attempt: lease.attempt,
                    holder: record
                        .map(|record| record.holder.clone())
                        .filter(|h| !h.is_empty()),
                    successor: record.map(|record| record.attempt),
                };
                let reason = match record {
                    Some(_) => Reason::Expired,
                    None => Reason::Lost,
                };
                (Err(lost), failed(lease, reason))
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
        settling.lease.lose();
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
