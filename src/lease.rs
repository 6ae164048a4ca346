//! The local validity of a grant, by this process's clock. The hub, the keeper and the guard share
//! it.
//!
//! A holder counts its lease from before the claim was sent, less a margin
//! ([`RunConfig::margin_of`]). A waiter counts from when it received the record. So the holder is
//! early and the waiter is late.
//!
//! Every renewal restarts the lease, and none shortens it on the server. A lost answer therefore
//! leaves the holder with a shorter lease than the server's, never with a longer one. A lease
//! counts its restarts as the record does, so the answers to the hub and to the keeper may overtake
//! each other.
//!
//! A lease is lost once and for good: [`Lease::lose`] sets the reason, then cancels a token.
//! `is_valid`, `lost` and `run` of the guard all read these. A lease is lost by
//!
//! * the key's timer or the keeper, at the local end; the reason tells how the last renewal went;
//! * the first read of the remaining time that finds none left, so that a guard that was seen
//!   invalid stays so;
//! * a record with a later grant, or an answer that shows that the record is not ours;
//! * the guard, when it is settled or dropped, before the message leaves;
//! * the hub or the keeper, when it is dropped with its runtime;
//! * any use in a forked child.
//!
//! A later answer changes nothing. `done()` asks the server all the same: the server decides, and
//! while no other worker has taken over, it may still complete the run. A grant of which no guard
//! was made is not lost at its local end. It is confirmed, and given back if the server has lost
//! it. [`Lease::give`] makes sure that a lease which ends just as its guard is made is lost.

mod run_config;

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment, Stamp};
use crate::error::{Error, LeaseLost};
use crate::key::Key;
use crate::outcome::PreviousAttempt;
use crate::protocol::GRAIN;
use crate::protocol::record::{Record, State, Token};
use crate::telemetry::{self, Attempt, Work};
pub(crate) use run_config::RunConfig;

/// Identifies a participation in one process. Numbers follow the order of joining.
pub(crate) type Id = u64;

/// The longest delay with which a running process notices the end of a lease.
const PUNCTUAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: Key,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) fence: u64,
    pub(crate) previous: Option<PreviousAttempt>,
    /// Whether a claim took the grant. It counts as an attempt without a confirmation then.
    claimed: bool,
    /// The end of the first term on the server, in ms of the server's time.
    until: u64,
    pub(crate) work: Work,
    pub(crate) token: Token,
    pub(crate) terms: Arc<RunConfig>,
    /// The participation that got the grant.
    pub(crate) id: Id,
    clock: Clock,
    /// The id of the process that got the grant. A forked child has a copy of the guard but no
    /// right to the work.
    process: u32,
    /// When the server made the grant, from which the longest hold counts.
    granted: Mutex<Moment>,
    term: Mutex<Term>,
    /// The reason of the loss. It is set at most once, and then the guard is invalid whatever the
    /// term says.
    lost: OnceLock<LeaseLost>,
    cancelled: CancellationToken,
}

/// The present term of a lease, which lasts from one restart to the next.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    /// The time just before the restart was requested.
    began: Moment,
    /// The end of the lease for its holder.
    ends: Moment,
    /// The end of the lease on the server.
    server_ends: Moment,
    /// The wall clock's lead at the start of the term.
    wall_lead: i64,
    /// The number of the restart that began the term, as the record counts them.
    restart: u64,
    /// The time at which the answer to that restart arrived.
    answered: Moment,
    renewal: Renewal,
    /// Whether a guard was made of the lease.
    given: bool,
    /// Whether the holder has completed the work, which the server may not know yet.
    completing: bool,
}

/// The party that renews the lease, and the result so far.
#[derive(Clone, Debug)]
enum Renewal {
    /// Only the holder renews it.
    Manual,
    /// The keeper renews it when due.
    Kept,
    /// The keeper has asked for a renewal. The error is its last answer, if any.
    Asked(Option<Error>),
    /// The keeper does not renew it: the worker's runtime has not run for this long.
    Stalled(Duration),
}

impl Term {
    /// Starts a term: `left` remained on the server when it answered a request of time `asked`. The
    /// term ends for its holder at `latest` at the latest.
    pub(crate) fn new(asked: Stamp, left: Duration, latest: Moment, terms: &RunConfig) -> Self {
        let ends = asked.moment + left.saturating_sub(terms.margin_of(left));
        Self {
            began: asked.moment,
            ends: ends.min(latest),
            server_ends: asked.moment + left,
            wall_lead: asked.wall_lead,
            restart: 0,
            answered: asked.moment,
            renewal: Renewal::Manual,
            given: false,
            completing: false,
        }
    }
}

/// By what decides: the grant, its present term, and why it was lost.
impl Hash for Lease {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.fence, self.id, self.token, *self.granted()).hash(hasher);
        let term = self.term();
        (term.began, term.ends, term.server_ends, term.answered).hash(hasher);
        (term.restart, term.given, term.completing).hash(hasher);
        std::mem::discriminant(&term.renewal).hash(hasher);
        self.lost.get().map(std::mem::discriminant).hash(hasher);
    }
}

impl Lease {
    pub(crate) fn new(
        key: &Key,
        record: &Record,
        id: Id,
        token: Token,
        terms: Arc<RunConfig>,
        clock: Clock,
        term: Term,
    ) -> Self {
        Self {
            key: key.clone(),
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            fence: record.fence,
            previous: PreviousAttempt::of(record),
            claimed: record.state == State::Held,
            until: record.until,
            work: Work::default(),
            token,
            terms,
            id,
            clock,
            process: std::process::id(),
            granted: Mutex::new(clock.now()),
            term: Mutex::new(term),
            lost: OnceLock::new(),
            cancelled: CancellationToken::new(),
        }
    }

    /// Returns a copy that goes its own way, for the model, which tries more than one.
    pub(crate) fn fork(&self, clock: Clock) -> Self {
        Self {
            key: self.key.clone(),
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            fence: self.fence,
            previous: self.previous.clone(),
            claimed: self.claimed,
            until: self.until,
            work: Work::default(),
            token: self.token,
            terms: self.terms.clone(),
            id: self.id,
            clock,
            process: self.process,
            granted: Mutex::new(*self.granted()),
            term: Mutex::new(self.term().clone()),
            lost: self.lost.clone(),
            cancelled: CancellationToken::new(),
        }
    }

    /// Whether a grant must be confirmed before a guard is made of it: little of its lease is left,
    /// or it counts only once replicas have it. `confirmed` is whether the grant is confirmed, or
    /// its confirmation was requested.
    pub(crate) fn is_doubtful(&self, confirmed: bool) -> bool {
        let enough = Duration::from_millis(self.terms.window() / 4);
        let doubtful = self.is_lost() || self.left_after_pauses() < enough;
        doubtful || (self.terms.replicated && !confirmed)
    }

    /// Returns what telemetry reports of it.
    pub(crate) fn told(&self) -> Attempt<'_> {
        Attempt {
            key: &self.key,
            attempt: self.attempt,
            fence: self.fence,
            work: &self.work,
        }
    }

    /// Counts the longest hold by the server's time in an answer, in µs; `asked` is before its
    /// request left.
    ///
    /// A fencing token is the server's time when it made the grant. So neither a late answer nor a
    /// clock that stood still makes the hold longer.
    pub(crate) fn on_server_time(&self, asked: Stamp, at: u64) {
        let earlier = Duration::from_micros(at.saturating_sub(self.fence));
        let later = Duration::from_micros(self.fence.saturating_sub(at));
        let granted = asked.moment.saturating_sub(earlier) + later;
        {
            let mut known = self.granted();
            *known = granted.min(*known);
        }
        let hold_ends = self.hold_ends();
        let mut term = self.term();
        term.ends = term.ends.min(hold_ends);
    }

    fn granted(&self) -> MutexGuard<'_, Moment> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn term(&self) -> MutexGuard<'_, Term> {
        // No code that can panic runs under the lock.
        self.term
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether the server certainly counts the attempt. A pushed grant that is never confirmed
    /// expires uncounted.
    pub(crate) fn is_counted(&self) -> bool {
        self.claimed || self.term().restart > 0
    }

    /// Whether the server made the grant with this fencing token, which is its time in µs, before
    /// the end of this grant's first term. The token of this grant counts too: then there was no
    /// later one.
    pub(crate) fn was_followed_in_time(&self, fence: u64) -> bool {
        fence < self.until.saturating_mul(1_000)
    }

    /// Records that the server restarted the lease. Answers may overtake each other, and the
    /// restart with the highest count decides. Returns whether this was that restart.
    pub(crate) fn restart(&self, restart: u64, asked: Stamp, left: Duration) -> bool {
        let mut term = self.term();
        // A restart with a lower count that was requested after the last answer shows that the
        // server has lost the restarts between.
        if restart <= term.restart && asked.moment <= term.answered {
            return false;
        }
        // This updates a lost lease too. Its guard stays invalid, but the server's end still counts
        // while a completion is in flight. The longest hold bounds the new end, because a server
        // whose clock was set back keeps a lease for longer than requested.
        let next = Term::new(asked, left, self.hold_ends(), &self.terms);
        let kept = std::mem::replace(&mut *term, next);
        (term.restart, term.given, term.completing) = (restart, kept.given, kept.completing);
        term.answered = self.clock.now();
        term.renewal = kept.renewal;
        if !matches!(term.renewal, Renewal::Manual) {
            term.renewal = Renewal::Kept;
        }
        true
    }

    /// Ends the lease for its holder. Only the first reason counts. Returns whether this was the
    /// first.
    pub(crate) fn lose(&self, reason: LeaseLost) -> bool {
        // Set the reason before the signal, because a task that the signal wakes reads the reason.
        let first = self.lost.set(reason).is_ok();
        if first {
            self.cancelled.cancel();
            if let Some(reason) = self.lost.get() {
                telemetry::ended(self.told(), reason);
            }
        }
        first
    }

    /// Ends the lease because its time is over. The reason is why it was not restarted.
    pub(crate) fn expire(&self) {
        let reason = self.why_over();
        self.lose(reason);
    }

    fn why_over(&self) -> LeaseLost {
        let due = self.renewal_due();
        let term = self.term();
        let (now, wall_lead) = self.clock.read();
        let now = now + self.paused(&term, wall_lead);
        let over = term.server_ends + GRAIN >= self.hold_ends();
        match &term.renewal {
            Renewal::Manual => LeaseLost::Expired,
            // A running process notices the end within `PUNCTUAL`, so this one did not run.
            Renewal::Asked(None) if now > term.ends + PUNCTUAL => LeaseLost::Stalled {
                time: now.saturating_since(term.ends),
            },
            Renewal::Asked(source) => LeaseLost::Unreachable {
                source: source.clone(),
            },
            _ if over => LeaseLost::MaxHold {
                max_hold: self.terms.max_hold,
            },
            Renewal::Stalled(time) => LeaseLost::Stalled { time: *time },
            // The renewal was due, but the keeper's thread did not run: the process was stopped, or
            // the machine slept.
            Renewal::Kept => match due.filter(|due| *due < now) {
                Some(due) => LeaseLost::Stalled {
                    time: now.saturating_since(due),
                },
                None => LeaseLost::Expired,
            },
        }
    }

    /// Marks that a guard is made of the lease, which is lost from the start if the time is over.
    /// Returns whether the guard is valid.
    pub(crate) fn give(&self) -> bool {
        // Under the lock, like the hub's check: one of the two notices a guard that outlives its
        // lease.
        self.term().given = true;
        if !self.is_lost() && self.left().is_zero() {
            self.expire();
        }
        !self.is_lost()
    }

    pub(crate) fn is_given(&self) -> bool {
        self.term().given
    }

    /// Hands the renewal of the lease to the keeper.
    pub(crate) fn keep(&self) {
        let mut term = self.term();
        if matches!(term.renewal, Renewal::Manual) {
            term.renewal = Renewal::Kept;
        }
    }

    /// Records that the keeper asked for a renewal, and the answer if it did not restart the lease.
    pub(crate) fn asked(&self, answer: Option<Error>) {
        let mut term = self.term();
        // `None` says nothing new, so the last error remains.
        match (&mut term.renewal, answer) {
            (Renewal::Asked(last), Some(answer)) => *last = Some(answer),
            (Renewal::Asked(_), None) => {}
            (renewal, answer) => *renewal = Renewal::Asked(answer),
        }
    }

    /// Records that the keeper does not renew the lease, because the worker's runtime has not run
    /// for this long.
    pub(crate) fn stalled(&self, time: Duration) {
        self.term().renewal = Renewal::Stalled(time);
    }

    /// Returns when the keeper has to renew the lease, or `None` if no renewal reaches further.
    ///
    /// A renewal is due before the end by as much as a whole lease is longer than the period. For a
    /// shorter term, such as that of a pushed grant before its confirmation, it is due after a
    /// third of the term.
    pub(crate) fn renewal_due(&self) -> Option<Moment> {
        let every = self.terms.renew_every?;
        let term = self.term();
        if term.server_ends + GRAIN >= self.hold_ends() {
            return None;
        }
        // Counted back from the end for the holder. The margin of a long term exceeds that of a
        // lease, and the renewal must still come before the end.
        let lease = Duration::from_millis(self.terms.lease);
        let margin = self.terms.margin_of(lease);
        let due = term
            .ends
            .saturating_sub(lease.saturating_sub(every + margin));
        Some(match due > term.began {
            true => due,
            false => term.began + term.ends.saturating_since(term.began) / 3,
        })
    }

    /// Returns for how many ms a renewal that is sent now may restart the lease.
    pub(crate) fn restartable_for(&self, length: u64) -> u64 {
        let left = self.hold_remaining().as_millis();
        length.min(u64::try_from(left).unwrap_or(u64::MAX)).max(1)
    }

    /// Marks the work as complete. The keeper renews the lease until the server knows: a hub that
    /// cannot run, as on a blocked thread, has not sent the completion yet.
    pub(crate) fn complete(&self) {
        self.term().completing = true;
    }

    /// Whether a renewal still has a purpose.
    pub(crate) fn is_wanted(&self) -> bool {
        match self.lost.get() {
            None => true,
            Some(LeaseLost::Settled) => self.term().completing,
            Some(_) => false,
        }
    }

    /// Returns the end of the lease for its holder, by the lease's clock.
    pub(crate) fn ends(&self) -> Moment {
        self.term().ends
    }

    /// Returns the end beyond which no renewal reaches.
    fn hold_ends(&self) -> Moment {
        *self.granted() + self.terms.max_hold
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    pub(crate) fn why_lost(&self) -> Option<&LeaseLost> {
        self.lost.get()
    }

    /// Returns the remaining time by the lease's clock alone, or zero once the lease has ended.
    pub(crate) fn left(&self) -> Duration {
        self.ends().saturating_since(self.clock.now())
    }

    /// Returns the remaining time, or zero once the lease has ended or was lost. The first zero for
    /// a lease with a guard ends it for good.
    pub(crate) fn remaining(&self) -> Duration {
        if self.is_lost() {
            return Duration::ZERO;
        }
        if self.is_foreign() {
            self.lose(LeaseLost::Forked);
            return Duration::ZERO;
        }
        let left = self.left_after_pauses();
        if left.is_zero() && self.is_given() {
            self.expire();
        }
        left
    }

    /// Returns the remaining time without the pauses that the lease's clock has missed. A grant
    /// without a guard is not lost by its end, because it can be confirmed.
    fn left_after_pauses(&self) -> Duration {
        let term = self.term();
        let (now, wall_lead) = self.clock.read();
        let left = term.ends.saturating_since(now);
        left.saturating_sub(self.paused(&term, wall_lead))
    }

    /// Returns the time of this term that the lease's clock has missed, as the wall clock shows.
    /// Less than the margin counts as zero, because clocks are slewed.
    fn paused(&self, term: &Term, wall_lead: i64) -> Duration {
        let outrun = wall_lead.saturating_sub(term.wall_lead);
        let outrun = Duration::from_micros(u64::try_from(outrun).unwrap_or(0));
        let left = term.server_ends.saturating_since(term.began);
        match outrun > self.terms.margin_of(left) {
            true => outrun,
            false => Duration::ZERO,
        }
    }

    /// Whether the keeper renews the lease.
    pub(crate) fn is_kept(&self) -> bool {
        !matches!(self.term().renewal, Renewal::Manual)
    }

    /// Whether the wall clock shows a pause that the lease's clock has missed.
    pub(crate) fn may_have_paused(&self) -> bool {
        !self.paused(&self.term(), self.clock.wall_lead()).is_zero()
    }

    /// Whether this is a copy, in a process that was forked from the holder's.
    pub(crate) fn is_foreign(&self) -> bool {
        std::process::id() != self.process
    }

    /// Returns the time until no renewal reaches further.
    pub(crate) fn hold_remaining(&self) -> Duration {
        self.hold_ends().saturating_since(self.clock.now())
    }

    /// Returns a token that is cancelled when the lease is lost. Cancelling it does not lose the
    /// lease.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        self.cancelled.child_token()
    }

    /// Resolves when the lease is lost.
    pub(crate) async fn lost(&self) -> LeaseLost {
        self.cancelled.cancelled().await;
        let reason = self.lost.get();
        reason.expect("set before the signal").clone()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use tokio::time::advance;

    use super::*;

    const LEASE: Duration = Duration::from_secs(1);

    pub(crate) fn run_config() -> RunConfig {
        RunConfig {
            lease: 1_000,
            max_attempts: 5,
            retention: 2_000,
            label: "a".into(),
            margin: LEASE / 10,
            renew_every: Some(LEASE / 4),
            max_hold: 10 * LEASE,
            stall_limit: 60 * LEASE,
            replicated: false,
        }
    }

    pub(crate) fn record() -> Record {
        Record {
            state: State::Held,
            attempt: 1,
            max_attempts: 5,
            fence: 1,
            renewal: 0,
            until: 1,
            retention: 2_000,
            owner: None,
            last: None,
            previous: None,
            holder: "a".to_owned(),
            checkpoint: Bytes::new(),
            result: Bytes::new(),
        }
    }

    /// A lease on Tokio's clock, starting now, with a margin of a tenth.
    pub(crate) fn lease(left: Duration) -> (Lease, Clock) {
        lease_held_for(left, 10 * LEASE)
    }

    fn lease_held_for(left: Duration, max_hold: Duration) -> (Lease, Clock) {
        // As on a machine that has run for a while.
        let clock = Clock::Tokio(tokio::time::Instant::now() - 100 * LEASE);
        let terms = Arc::new(RunConfig {
            max_hold,
            ..run_config()
        });
        let record = record();
        let stamp = clock.stamp();
        let term = Term::new(stamp, left, stamp.moment + left, &terms);
        let key = Key::new("job").unwrap();
        let lease = Lease::new(&key, &record, 0, Token::random(), terms, clock, term);
        (lease, clock)
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_that_has_said_that_it_is_not_valid_stays_so() {
        let (lease, clock) = lease(LEASE);
        assert!(lease.give());
        let asked = clock.stamp();
        advance(LEASE).await;
        assert!(lease.remaining().is_zero());
        // The answer came in time, but is read only now.
        lease.restart(1, asked, 2 * LEASE);
        assert!(lease.remaining().is_zero());
        assert!(matches!(lease.why_lost(), Some(LeaseLost::Expired)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_without_a_guard_may_be_confirmed_late() {
        let (lease, clock) = lease(LEASE);
        let asked = clock.stamp();
        advance(LEASE).await;
        assert!(lease.remaining().is_zero());
        lease.restart(1, asked, 2 * LEASE);
        assert!(lease.give());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_overtake_each_other_leave_the_last_restart() {
        let (lease, clock) = lease(LEASE);
        let first = clock.stamp();
        advance(LEASE / 2).await;
        assert!(lease.restart(2, clock.stamp(), LEASE));
        let ends = lease.ends();
        assert!(!lease.restart(1, first, 5 * LEASE));
        assert_eq!(lease.ends(), ends);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_due_after_the_period_or_a_third_of_what_there_is() {
        let (whole, clock) = lease(LEASE);
        assert_eq!(whole.renewal_due(), Some(clock.now() + LEASE / 4));
        let (window, clock) = lease(LEASE / 2);
        // A third of the holder's time, which is without the margin of a tenth.
        let due = window.renewal_due();
        assert_eq!(due, Some(clock.now() + LEASE * 9 / 60));
        window.restart(1, clock.stamp(), 10 * LEASE);
        assert_eq!(window.renewal_due(), None, "no renewal reaches further");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_term_is_renewed_before_it_ends_for_its_holder() {
        let (lease, clock) = lease_held_for(LEASE, 1_000 * LEASE);
        lease.restart(1, clock.stamp(), 500 * LEASE);
        let due = lease.renewal_due().unwrap();
        assert!(due < lease.ends(), "{due:?} {:?}", lease.ends());
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_that_the_server_has_lost_do_not_hide_those_that_follow() {
        let (lease, clock) = lease(LEASE);
        assert!(lease.restart(3, clock.stamp(), LEASE));
        advance(LEASE / 2).await;
        assert!(lease.restart(1, clock.stamp(), LEASE));
        assert_eq!(lease.left(), LEASE * 9 / 10);
    }

    /// A request without an answer is the server's silence if the end is noticed in time, and a
    /// standstill of this process if not.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ends_unnoticed_has_stalled() {
        for (late, has_stalled) in [(Duration::from_millis(400), false), (LEASE, true)] {
            let (lease, _) = lease(LEASE);
            lease.keep();
            lease.asked(None);
            advance(LEASE * 9 / 10 + late).await;
            lease.expire();
            match lease.why_lost() {
                Some(LeaseLost::Stalled { time }) if has_stalled => assert_eq!(*time, late),
                Some(LeaseLost::Unreachable { source: None }) if !has_stalled => {}
                reason => panic!("{reason:?}"),
            }
        }
    }

    /// The clock of a virtual machine that was paused stood still, and the server's went on.
    #[tokio::test(start_paused = true)]
    async fn the_longest_hold_counts_the_time_of_the_server() {
        let (lease, clock) = lease(LEASE);
        // After 1 s here, and after so many there; what is left of 10 s.
        for (nth, there, left) in [(1, 1, 9), (2, 5, 5), (3, 4, 4)] {
            advance(LEASE).await;
            let asked = clock.stamp();
            lease.on_server_time(asked, lease.fence + there * 1_000_000);
            assert!(lease.restart(nth, asked, 100 * LEASE));
            assert_eq!(lease.left(), left * LEASE, "restart {nth}");
        }
    }
}
