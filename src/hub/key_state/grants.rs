//! The grants of this process: how they begin, are lost and end.
//!
//! Until a guard is made of a grant, the end of its lease does not lose it: it is confirmed, and
//! given back if the server has lost it. `Lease::give` and the check of the timer hold one lock
//! in turn, so a lease that ends just as its guard is made is lost.
//!
//! A withdrawal names the grant of its token that stays as it is (`except_fence`), because a
//! participant has or had that grant in hand. Any other grant of the token came from a late claim.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fork::Forks;
use super::{KeyState, Output, Turn, Update};
use crate::error::LeaseLost;
use crate::hub::message::{Ended, NotSettled};
use crate::lease::Lease;
use crate::outcome::{Completed, Failed, GaveUp, Reason};
use crate::protocol::record::{Cause, Record, State, Token, loss};
use crate::protocol::{Failure, Outcome, Reply};

/// Grants of this process that are neither settled nor given back.
#[derive(Debug, Default, Hash)]
pub(super) struct Grants {
    active: Vec<ActiveGrant>,
    /// The latest grant of which a guard was made and that has ended for this process, by fencing
    /// token and token. The server may not know of its end.
    last_used: Option<(u64, Token)>,
}

#[derive(Debug, Hash)]
pub(super) struct ActiveGrant {
    pub(super) lease: Arc<Lease>,
    /// Time when the lease ends, as last read. The keeper may have restarted the lease since.
    ends: Instant,
    phase: GrantPhase,
    /// Number of checkpoints that were requested under the grant.
    pub(super) checkpoints: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum GrantPhase {
    /// Becomes `ExpiredUnused` if the lease ends before a guard is made of it, and `Settling`
    /// when a settlement is requested.
    Active,
    /// The lease has ended and no guard was made of it. A confirmation can still make it `Active`.
    ExpiredUnused,
    /// A settlement was requested and is not answered.
    Settling,
}

#[derive(Clone, Debug, Hash)]
pub(in crate::hub) struct Settling {
    pub(super) lease: Arc<Lease>,
    pub(super) outcome: Outcome,
    pub(super) began: Instant,
    pub(super) retry_until: Instant,
}

impl Grants {
    pub(super) fn fork(&self, forks: &mut Forks) -> Self {
        let active = self.active.iter().map(|grant| ActiveGrant {
            lease: forks.of(&grant.lease),
            ends: grant.ends,
            phase: grant.phase,
            checkpoints: grant.checkpoints,
        });
        Self {
            active: active.collect(),
            last_used: self.last_used,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    pub(super) fn has(&self, fence: u64) -> bool {
        self.active.iter().any(|grant| grant.lease.fence == fence)
    }

    pub(super) fn push(&mut self, lease: Arc<Lease>, now: Instant) {
        self.active.push(ActiveGrant {
            ends: now + lease.left(),
            phase: GrantPhase::Active,
            checkpoints: 0,
            lease,
        });
    }

    pub(super) fn get_mut(&mut self, fence: u64) -> Option<&mut ActiveGrant> {
        let mut active = self.active.iter_mut();
        active.find(|grant| grant.lease.fence == fence)
    }

    /// Whether the grant has not ended and is not being settled.
    pub(super) fn is_held(&self, fence: u64) -> bool {
        let mut held = self.held();
        held.any(|grant| grant.lease.fence == fence)
    }

    fn held(&self) -> impl Iterator<Item = &ActiveGrant> {
        self.active.iter().filter(|grant| !grant.is_settling())
    }

    pub(super) fn on_settle_requested(&mut self, fence: u64) {
        if let Some(grant) = self.get_mut(fence) {
            grant.phase = GrantPhase::Settling;
        }
    }

    /// Returns the fence of this token's grant that was, or may yet be, worked on.
    ///
    /// A withdrawal must not release it, since that would pass the attempt on uncounted. Any other
    /// grant under this token came from a late duplicate claim and may be released.
    pub(super) fn except_fence(&self, token: Token) -> Option<u64> {
        let active = self.active.iter();
        let active = active.map(|grant| (grant.lease.fence, grant.lease.token));
        let mut of_token = active.chain(self.last_used).filter(|(_, of)| *of == token);
        of_token.next().map(|(fence, _)| fence)
    }

    /// Forgets a grant that has ended for this process.
    pub(super) fn forget(&mut self, fence: u64) {
        let used = self.get_mut(fence).filter(|grant| grant.lease.is_given());
        if let Some(token) = used.map(|grant| grant.lease.token) {
            // A grant that was being settled may be forgotten later than its successor.
            let later = self.last_used.filter(|(last, _)| *last > fence);
            self.last_used = later.or(Some((fence, token)));
        }
        self.active.retain(|grant| grant.lease.fence != fence);
    }

    /// Returns the time when the next grant ends, as last read from the leases.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.held().map(ActiveGrant::ends).min()
    }

    /// Returns the leases that have ended. A grant of which no guard was made can still be
    /// confirmed after its lease, so its lease is returned only once the retention has ended, too.
    fn expire(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        let mut expired = Vec::new();
        for grant in self.active.iter_mut().filter(|grant| grant.ends() <= now) {
            // The keeper restarts leases without telling the machine.
            grant.set_timer(now);
            if grant.is_settling() || grant.ends() > now {
                continue;
            }
            if grant.phase == GrantPhase::ExpiredUnused || grant.lease.is_given() {
                expired.push(grant.lease.clone());
            } else {
                grant.phase = GrantPhase::ExpiredUnused;
                // The retention may have ended, too.
                if grant.ends() <= now {
                    expired.push(grant.lease.clone());
                }
            }
        }
        expired
    }

    /// Returns the leases that ended while the computer slept.
    ///
    /// A pause that only the wall clock shows ends just the leases that no keeper renews. The
    /// keeper asks the server about the others first.
    fn ended_in_sleep(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        for grant in &mut self.active {
            grant.set_timer(now);
        }
        let mut ended = self.expire(now);
        let leases = self.active.iter().map(|grant| &grant.lease);
        let manual = leases.filter(|lease| lease.is_given() && !lease.is_kept());
        ended.extend(manual.filter(|lease| lease.remaining().is_zero()).cloned());
        ended
    }

    /// Returns the leases that this record shows to have ended.
    pub(super) fn ended_by(&self, record: &Record) -> Vec<Arc<Lease>> {
        let is_over = |grant: &&ActiveGrant| {
            let fence = grant.lease.fence;
            let withdrawn = fence == record.fence && !record.state.is_owned();
            fence < record.fence || withdrawn
        };
        let over = self.held().filter(is_over);
        over.map(|grant| grant.lease.clone()).collect()
    }
}

impl ActiveGrant {
    pub(super) fn is_settling(&self) -> bool {
        self.phase == GrantPhase::Settling
    }

    /// Whether a renewal of its lease still has a purpose.
    pub(super) fn is_wanted(&self) -> bool {
        !self.is_settling() && !self.lease.is_lost()
    }

    /// Returns the time when the grant ends. If its lease ended before a guard was made of it, that
    /// is one retention later, when nothing is left of its run.
    fn ends(&self) -> Instant {
        match self.phase {
            GrantPhase::Active | GrantPhase::Settling => self.ends,
            GrantPhase::ExpiredUnused => {
                self.ends + Duration::from_millis(self.lease.terms.retention)
            }
        }
    }

    /// Updates the timer from the lease, which the keeper may have restarted.
    pub(super) fn set_timer(&mut self, now: Instant) {
        let left = self.lease.left();
        if !left.is_zero() {
            self.ends = now + left;
            if self.phase == GrantPhase::ExpiredUnused {
                self.phase = GrantPhase::Active;
            }
        } else if self.phase != GrantPhase::ExpiredUnused {
            self.ends = self.ends.min(now);
        }
    }
}

impl Drop for ActiveGrant {
    /// Loses the lease if it is not lost yet. A guard still has it only if the hub's runtime has
    /// shut down.
    fn drop(&mut self) {
        self.lease.lose(LeaseLost::Stopped);
    }
}

impl<C: Default> KeyState<C> {
    /// Ends the grants whose time is over.
    pub(super) fn lapse(&mut self, turn: &mut Turn<'_, C>) {
        for lease in self.grants.expire(turn.now.instant) {
            lease.expire();
            self.lost(&lease, turn);
        }
    }

    /// Whether this process has a grant of the key.
    pub(in crate::hub) fn is_holding(&self) -> bool {
        !self.grants.is_empty()
    }

    /// Ends leases after the clock of leases has outrun the clock of timers, as when the computer
    /// slept.
    pub(in crate::hub) fn woke(&mut self, turn: &mut Turn<'_, C>) {
        for lease in self.grants.ended_in_sleep(turn.now.instant) {
            lease.expire();
            self.lost(&lease, turn);
        }
    }

    /// Ends a lease with this reason and tells its stream. If the grant is being settled, the
    /// answer to the settlement decides instead.
    pub(in crate::hub) fn lose(
        &mut self,
        lease: &Lease,
        reason: LeaseLost,
        turn: &mut Turn<'_, C>,
    ) {
        if self.grants.is_held(lease.fence) {
            lease.lose(reason);
        }
        self.lost(lease, turn);
    }

    /// Forgets the grant of a lost lease and tells its stream. If the grant is being settled, the
    /// answer to the settlement does this.
    pub(in crate::hub) fn lost(&mut self, lease: &Lease, turn: &mut Turn<'_, C>) {
        if self.grants.is_held(lease.fence) {
            self.grants.forget(lease.fence);
            turn.notify(lease.id, Update::Lost);
        }
    }

    pub(super) fn on_settled(
        &mut self,
        settling: Settling,
        caller: C,
        reply: &Reply,
        turn: &mut Turn<'_, C>,
    ) {
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
                (Err(NotSettled::Lost(lost)), failed(lease, reason))
            }
        };
        self.end(settling.lease, caller, result, Update::Settled(ended), turn);
    }

    /// Ends a grant whose settlement is over, and its participation.
    pub(super) fn end(
        &mut self,
        lease: Arc<Lease>,
        caller: C,
        result: Result<(), NotSettled>,
        update: Update,
        turn: &mut Turn<'_, C>,
    ) {
        self.grants.forget(lease.fence);
        let id = lease.id;
        turn.outputs.push(Output::Settled {
            lease,
            update,
            caller,
            result,
        });
        if self.participants.remove(id).is_some() {
            turn.close(id);
        }
    }
}

/// Whether the server applied a settlement before that it refuses now, and only the answer was
/// lost.
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
    // A hand-off leaves the record of an earlier failed attempt as it is. Any other end of a
    // counted attempt replaces that record. A grant that was not confirmed may also have expired
    // without being counted. In that case a claim took the key, after the end of the grant.
    if cause == Cause::HandedOff && previous.attempt < lease.attempt {
        return lease.is_counted() || lease.was_followed_in_time(record.fence);
    }
    let ours =
        |attempt: u32, holder: &str| attempt == lease.attempt && *holder == *lease.terms.label;
    previous.cause == cause
        && ours(previous.attempt, &previous.holder)
        // If the record said this already when the attempt began, it is about an earlier attempt: a
        // hand-off repeats the attempt under the same number.
        && !lease
            .previous
            .as_ref()
            .is_some_and(|previous| ours(previous.attempt, &previous.holder))
}

/// Returns how a participation ends after the settlement of its grant.
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::lease::tests::{lease, record};

    const LEASE: Duration = Duration::from_secs(1);

    fn granted() -> (Grants, Arc<Lease>) {
        let mut grants = Grants::default();
        let lease = Arc::new(lease(LEASE).0);
        grants.push(lease.clone(), Instant::now());
        (grants, lease)
    }

    fn expired(grants: &mut Grants) -> usize {
        grants.expire(Instant::now()).len()
    }

    #[tokio::test(start_paused = true)]
    async fn an_unclaimed_grant_expires_after_the_retention() {
        let (mut grants, lease) = granted();
        advance(LEASE).await;
        assert_eq!(expired(&mut grants), 0, "it may be confirmed");
        let retention = Duration::from_millis(lease.terms.retention);
        assert!(grants.deadline().unwrap() > Instant::now() + retention - LEASE);
        advance(retention).await;
        assert_eq!(expired(&mut grants), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_used_grant_expires_with_its_lease() {
        let (mut grants, lease) = granted();
        assert!(lease.give());
        assert_eq!(expired(&mut grants), 0);
        advance(LEASE).await;
        assert_eq!(expired(&mut grants), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_settling_grant_has_no_deadline() {
        let (mut grants, lease) = granted();
        assert!(lease.give());
        grants.on_settle_requested(lease.fence);
        advance(LEASE).await;
        assert_eq!((grants.deadline(), expired(&mut grants)), (None, 0));
        assert!(!grants.is_held(lease.fence));
    }

    #[tokio::test(start_paused = true)]
    async fn a_withdrawal_spares_the_grant_that_was_used() {
        let (mut grants, lease) = granted();
        let (token, fence) = (lease.token, lease.fence);
        assert_eq!(grants.except_fence(Token::random()), None);
        assert_eq!(grants.except_fence(token), Some(fence));
        grants.forget(fence);
        assert_eq!(grants.except_fence(token), None, "nothing used it");
        grants.push(lease.clone(), Instant::now());
        lease.give();
        grants.forget(fence);
        assert_eq!(grants.except_fence(token), Some(fence));
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_grant_or_the_end_of_its_own_ends_it() {
        let (mut grants, lease) = granted();
        let ended = |grants: &Grants, fence, state| {
            let record = Record {
                fence,
                state,
                ..record()
            };
            grants.ended_by(&record).len()
        };
        let own = lease.fence;
        assert_eq!(ended(&grants, own, State::Held), 0);
        assert_eq!(ended(&grants, own, State::Done), 1);
        assert_eq!(ended(&grants, own + 1, State::Held), 1);
        assert_eq!(ended(&grants, own - 1, State::Done), 0);
        grants.on_settle_requested(own);
        let text = "its own answer tells";
        assert_eq!(ended(&grants, own + 1, State::Held), 0, "{text}");
    }
}
