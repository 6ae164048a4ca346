//! Grants of this process: how each begins, is lost and ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Run, Update};
use crate::error::{LeaseLost, SettleError};
use crate::event::{Completed, Failed, GaveUp, Reason};
use crate::hub::message::Ended;
use crate::lease::Lease;
use crate::store::record::{Cause, Record, State, Token, loss};
use crate::store::{Failure, Outcome, Reply};
use crate::telemetry;

pub(super) struct ActiveGrant {
    pub(super) lease: Arc<Lease>,
    /// When it ends, as far as our timer knows: the keeper may have restarted it since.
    ends: Instant,
    /// Its end is on its way.
    pub(super) settling: bool,
    /// Its time is over, and nobody has looked at it yet.
    pub(super) lapsed: bool,
    /// How many checkpoints were asked for.
    pub(super) checkpoints: u64,
}

pub(in crate::hub) struct Settling {
    pub(super) lease: Arc<Lease>,
    pub(super) outcome: Outcome,
    pub(super) reply: Option<oneshot::Sender<Result<(), SettleError>>>,
    pub(super) began: Instant,
    pub(super) give_up: Instant,
}

impl ActiveGrant {
    pub(super) fn new(lease: Arc<Lease>, now: Instant) -> Self {
        Self {
            ends: now + lease.left(),
            settling: false,
            lapsed: false,
            checkpoints: 0,
            lease,
        }
    }

    /// When it is over; for a grant that no stream has looked at, when nothing is left of its run.
    pub(super) fn ends(&self) -> Instant {
        match self.lapsed {
            false => self.ends,
            true => self.ends + Duration::from_millis(self.lease.terms.retention),
        }
    }

    /// Sets the timer by the lease.
    pub(super) fn look(&mut self, now: Instant) {
        let left = self.lease.left();
        if !left.is_zero() {
            self.ends = now + left;
            self.lapsed = false;
        } else if !self.lapsed {
            self.ends = self.ends.min(now);
        }
    }
}

impl ActiveGrant {
    /// Whether it is this grant, and its end is not on its way.
    fn is_mine(&self, lease: &Lease) -> bool {
        self.lease.fence == lease.fence && !self.settling
    }
}

impl Drop for ActiveGrant {
    /// The hub's runtime has shut down, unless there was another reason before.
    fn drop(&mut self) {
        self.lease.lose(LeaseLost::Stopped);
    }
}

impl Run {
    pub(super) fn live(&mut self, fence: u64) -> Option<&mut ActiveGrant> {
        self.grants
            .iter_mut()
            .find(|live| live.lease.fence == fence)
    }

    /// The grant of this token that is or was in somebody's hands, by fencing token, or 0: with its stream or, when that
    /// has gone, with its guard. What ends it is that, or the lease's end, and never a withdrawal, which would not
    /// count the attempt. A token gets one: another is nobody's, and of a claim that came late.
    pub(super) fn spared(&self, token: Token) -> u64 {
        let live = self.grants.iter();
        let live = live.map(|live| (live.lease.fence, live.lease.token));
        let mut mine = live.chain(self.worked).filter(|(_, whose)| *whose == token);
        mine.next().map_or(0, |(fence, _)| fence)
    }

    pub(super) fn lapse(&mut self, now: Instant) {
        for live in self.grants.iter_mut().filter(|live| live.ends() <= now) {
            // The keeper restarts it without telling.
            live.look(now);
        }
        let over = |live: &&mut ActiveGrant| !live.settling && live.ends() <= now;
        while let Some(live) = self.grants.iter_mut().find(over) {
            let lease = live.lease.clone();
            // Until a guard was made of it, it may still be confirmed.
            if live.lapsed || lease.is_given() {
                lease.expire();
                self.lost(&lease);
            } else {
                live.lapsed = true;
            }
        }
    }

    /// Whether this process has a grant of the key.
    pub(in crate::hub) fn is_holding(&self) -> bool {
        !self.grants.is_empty()
    }

    /// The clock of leases has outrun that of timers, as when the machine slept.
    pub(in crate::hub) fn woke(&mut self, now: Instant) {
        for live in &mut self.grants {
            live.look(now);
        }
        self.lapse(now);
        // What the keeper renews, it asks the server about first.
        let manual = self.grants.iter().map(|live| &live.lease);
        let manual = manual.filter(|lease| lease.is_given() && !lease.is_kept());
        let over = manual.filter(|lease| lease.remaining().is_zero());
        for lease in over.cloned().collect::<Vec<_>>() {
            self.lost(&lease);
        }
        self.unwatch_if_idle();
    }

    /// Its holder has it no longer, unless it is being settled: then that answer tells.
    pub(in crate::hub) fn lose(&mut self, lease: &Lease, reason: LeaseLost) {
        if self.grants.iter().any(|live| live.is_mine(lease)) {
            lease.lose(reason);
        }
        self.lost(lease);
    }

    /// It was lost: its stream is told.
    pub(in crate::hub) fn lost(&mut self, lease: &Lease) {
        if self.grants.iter().any(|live| live.is_mine(lease)) {
            self.forget(lease.fence);
            if let Some(participant) = self.participants.get(lease.id) {
                participant.notify(Update::Lost);
            }
        }
    }

    pub(super) fn settled(&mut self, settling: Settling, reply: &Reply) {
        let Settling { lease, outcome, .. } = &settling;
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
        telemetry::settled(&settling.lease, &result, &update);
        self.forget(settling.lease.fence);
        // Its stream before its guard: whoever has awaited the guard finds the end in the stream.
        if let Some(participant) = self.participants.remove(settling.lease.id) {
            participant.notify(update);
        }
        if let Some(reply) = settling.reply {
            let _ = reply.send(result);
        }
    }

    pub(super) fn forget(&mut self, fence: u64) {
        let given = self.live(fence).filter(|live| live.lease.is_given());
        if let Some(token) = given.map(|live| live.lease.token) {
            // One that is being settled may be forgotten later than its successor.
            let later = self.worked.filter(|(last, _)| *last > fence);
            self.worked = later.or(Some((fence, token)));
        }
        self.grants.retain(|live| live.lease.fence != fence);
    }
}

/// Whether a settlement that is refused now took place before, its answer being lost.
pub(super) fn was_settled(record: &Record, lease: &Lease, outcome: &Outcome) -> bool {
    if record.last != Some(lease.token) {
        return false;
    }
    let cause = match outcome {
        Outcome::Done(_) => return false,
        Outcome::HandOff => Cause::HandedOff,
        Outcome::Fail(Failure::Dropped) => Cause::Dropped,
        Outcome::Fail(Failure::Panicked) => Cause::Panicked,
        Outcome::Fail(Failure::Reason(_)) | Outcome::FailPermanently(_) => Cause::Failed,
    };
    let Some(previous) = &record.previous else {
        return false;
    };
    // A failure before ours is what a hand-off leaves as it is. Any other end of a counted attempt
    // is remembered in its place. A grant that was not confirmed may also have lapsed, uncounted:
    // then a claim took it, after its end.
    if cause == Cause::HandedOff && previous.attempt < lease.attempt {
        return lease.is_counted() || lease.was_followed_in_time(record.fence);
    }
    let ours =
        |attempt: u32, holder: &str| attempt == lease.attempt && *holder == *lease.terms.label;
    previous.cause == cause
        && ours(previous.attempt, &previous.holder)
        // What it found so was another's doing: an attempt that was handed over is made again under the same number.
        && !lease
            .previous
            .as_ref()
            .is_some_and(|previous| ours(previous.attempt, &previous.holder))
}

/// How a participation ends whose grant was settled.
pub(super) fn ended(record: &Record, lease: &Lease, outcome: &Outcome) -> Ended {
    match outcome {
        Outcome::Done(_) => Ended::Completed(completed(record)),
        _ if record.state == State::GaveUp => Ended::GaveUp(gave_up(record)),
        Outcome::HandOff => failed(lease, Reason::HandedOff),
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

pub(super) fn gave_up(record: &Record) -> GaveUp {
    let previous = record.previous.as_ref();
    GaveUp {
        attempts: record.attempt,
        holder: previous.map_or_else(String::new, |previous| previous.holder.clone()),
        reason: previous.map_or(Reason::Lost, Reason::from),
    }
}
