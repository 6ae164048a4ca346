//! How long a grant is good for on this process's clock; its hub, its keeper and its guard share
//! it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment, Stamp};
use crate::error::{Error, LeaseLost};
use crate::event::PreviousAttempt;
use crate::observe::{self, Work};
use crate::store::GRAIN;
use crate::store::key::Key;
use crate::store::record::{Record, State, Token};
use crate::terms::Terms;

/// Tells participations in one process apart, in the order in which they joined.
pub(crate) type Id = u64;

/// How late the end of a lease is noticed at the most by a process that runs.
const PUNCTUAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: Key,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) fence: u64,
    pub(crate) previous: Option<PreviousAttempt>,
    /// Whether it was taken by a claim, and needs no confirmation to count as an attempt.
    claimed: bool,
    /// When its first term ends on the server, in ms of the server's time.
    until: u64,
    pub(crate) work: Work,
    pub(crate) token: Token,
    pub(crate) terms: Arc<Terms>,
    /// The participation it was granted to.
    pub(crate) id: Id,
    clock: Clock,
    /// The process that was granted it: a forked child has a copy of the guard, and no right to the
    /// work.
    process: u32,
    /// When the server made the grant, from which the longest hold counts.
    granted: Mutex<Moment>,
    term: Mutex<Term>,
    /// Set once, and for ever; then the guard is not valid, whatever the term says.
    lost: OnceLock<LeaseLost>,
    cancelled: CancellationToken,
}

/// The present term of a lease: from one restart to the next.
#[derive(Debug)]
pub(crate) struct Term {
    /// The instant before the restart was asked for.
    began: Moment,
    /// When the lease ends for its holder.
    ends: Moment,
    /// When it ends on the server.
    server_ends: Moment,
    /// The wall clock's lead when the term began.
    wall_lead: i64,
    /// The restart that it began with, as the record counts them.
    restart: u64,
    /// When that was answered.
    answered: Moment,
    renewal: Renewal,
    /// Whether a guard was made of it.
    given: bool,
    /// Whether the holder has completed the work, and the server may not know yet.
    completing: bool,
}

/// Who sees to it that the lease does not end.
#[derive(Clone, Debug)]
enum Renewal {
    /// Only its holder.
    Manual,
    /// The keeper, when it is due.
    Kept,
    /// The keeper has asked, with this answer so far, if any.
    Asked(Option<Error>),
    /// The keeper does not: the runtime that the worker was built on has not run for so long.
    Stalled(Duration),
}

impl Term {
    /// The server was asked then, and so much was left when it answered; but it ends for its holder
    /// no later than that.
    pub(crate) fn new(asked: Stamp, left: Duration, latest: Moment, terms: &Terms) -> Self {
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

impl Lease {
    pub(crate) fn new(
        key: &Key,
        record: &Record,
        id: Id,
        token: Token,
        terms: Arc<Terms>,
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

    /// Counts the longest hold by the server's time in an answer, in µs, which was asked for then:
    /// a fencing token is its time when it made the grant. So neither a late answer nor a machine
    /// that stood still makes the hold longer.
    pub(crate) fn hear_time(&self, asked: Stamp, at: u64) {
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

    /// Whether the server is known to count the attempt: a grant that was handed over and never
    /// confirmed lapses uncounted.
    pub(crate) fn is_counted(&self) -> bool {
        self.claimed || self.term().restart > 0
    }

    /// Whether the server made the grant of that fencing token, which is its time in µs, before
    /// this one's first term was over. Its own counts, too: then there was no other.
    pub(crate) fn was_followed_in_time(&self, fence: u64) -> bool {
        fence < self.until.saturating_mul(1_000)
    }

    /// The server has restarted it. Answers may overtake each other: the last restart, as the
    /// record counts them, is what the server goes by. Whether it was that.
    pub(crate) fn restart(&self, restart: u64, asked: Stamp, left: Duration) -> bool {
        let mut term = self.term();
        // One that counts fewer, and was asked for after the last was answered: the server has lost
        // those between.
        if restart <= term.restart && asked.moment <= term.answered {
            return false;
        }
        // Once a guard has said that it is not valid, it stays so. The server's end counts all the
        // same, for as long as a completion is on its way. And a server whose clock was set back
        // keeps a lease for longer than was asked.
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

    /// Ends it for its holder; only the first reason counts. Whether this was it.
    pub(crate) fn lose(&self, reason: LeaseLost) -> bool {
        // The reason before the signal: who is woken by it looks for the reason.
        let first = self.lost.set(reason).is_ok();
        if first {
            self.cancelled.cancel();
            if let Some(reason) = self.lost.get() {
                observe::ended(self, reason);
            }
        }
        first
    }

    /// Ends it because its time is over, for the reason why nothing has restarted it.
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
            // Its end is noticed at once, unless nothing ran.
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
            // It was due, and the keeper's thread itself did not run: the process was stopped, or
            // the machine slept.
            Renewal::Kept => match due.filter(|due| *due < now) {
                Some(due) => LeaseLost::Stalled {
                    time: now.saturating_since(due),
                },
                None => LeaseLost::Expired,
            },
        }
    }

    /// A guard is made of it, which is lost from the start if the time is over. Whether it is good.
    pub(crate) fn give(&self) -> bool {
        // Under the lock, as the hub looks: one of the two sees that a guard outlives its lease.
        self.term().given = true;
        if !self.is_lost() && self.left().is_zero() {
            self.expire();
        }
        !self.is_lost()
    }

    pub(crate) fn is_given(&self) -> bool {
        self.term().given
    }

    /// From now on the keeper renews it.
    pub(crate) fn keep(&self) {
        let mut term = self.term();
        if matches!(term.renewal, Renewal::Manual) {
            term.renewal = Renewal::Kept;
        }
    }

    /// The keeper has asked for a renewal; and this was the answer, if it was none that restarts
    /// it.
    pub(crate) fn asked(&self, answer: Option<Error>) {
        let mut term = self.term();
        // An answer that says nothing new leaves the last that did.
        match (&mut term.renewal, answer) {
            (Renewal::Asked(last), Some(answer)) => *last = Some(answer),
            (Renewal::Asked(_), None) => {}
            (renewal, answer) => *renewal = Renewal::Asked(answer),
        }
    }

    /// The keeper does not renew it, since its guard's runtime has not run for so long.
    pub(crate) fn stalled(&self, time: Duration) {
        self.term().renewal = Renewal::Stalled(time);
    }

    /// When the keeper is to renew it; `None` if no renewal reaches further.
    ///
    /// So long before the end as a whole lease is longer than the period; for a term that is no
    /// whole lease, as that of a grant that was handed over and is not confirmed, after a third of
    /// it.
    pub(crate) fn renewal_due(&self) -> Option<Moment> {
        let every = self.terms.renew_every?;
        let term = self.term();
        if term.server_ends + GRAIN >= self.hold_ends() {
            return None;
        }
        // Counted back from its end for the holder: of a long term the margin is greater than that
        // of a lease, and a renewal must come before the end all the same.
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

    /// For how long a renewal that is sent now may restart it, in ms.
    pub(crate) fn restartable_for(&self, length: u64) -> u64 {
        let left = self.hold_remaining().as_millis();
        length.min(u64::try_from(left).unwrap_or(u64::MAX)).max(1)
    }

    /// The holder has completed the work. Until the server knows, the lease is kept for it: a hub
    /// that cannot run, as on a thread that is blocked, has not sent it yet.
    pub(crate) fn complete(&self) {
        self.term().completing = true;
    }

    /// Whether a renewal still serves a purpose.
    pub(crate) fn is_wanted(&self) -> bool {
        match self.lost.get() {
            None => true,
            Some(LeaseLost::Settled) => self.term().completing,
            Some(_) => false,
        }
    }

    /// When it ends for its holder, by the lease's clock.
    pub(crate) fn ends(&self) -> Moment {
        self.term().ends
    }

    /// No renewal reaches further.
    fn hold_ends(&self) -> Moment {
        *self.granted() + self.terms.max_hold
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    pub(crate) fn why_lost(&self) -> Option<&LeaseLost> {
        self.lost.get()
    }

    /// What is left, as its timers go: zero once it has ended.
    pub(crate) fn left(&self) -> Duration {
        self.ends().saturating_since(self.clock.now())
    }

    /// What is left; zero once it has ended or was lost. Of a guard that says so, it is the end.
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

    /// What is left, less the pauses that the lease's clock has not counted. A grant that no guard
    /// was made of is not lost for it: it can be confirmed.
    pub(crate) fn left_after_pauses(&self) -> Duration {
        let term = self.term();
        let (now, wall_lead) = self.clock.read();
        let left = term.ends.saturating_since(now);
        left.saturating_sub(self.paused(&term, wall_lead))
    }

    /// Time that passed in this term without being counted by the lease's clock, as far as the wall
    /// clock tells: more than the margin only, since clocks are slewed.
    fn paused(&self, term: &Term, wall_lead: i64) -> Duration {
        let outrun = wall_lead.saturating_sub(term.wall_lead);
        let outrun = Duration::from_micros(u64::try_from(outrun).unwrap_or(0));
        let left = term.server_ends.saturating_since(term.began);
        match outrun > self.terms.margin_of(left) {
            true => outrun,
            false => Duration::ZERO,
        }
    }

    /// Whether the keeper renews it.
    pub(crate) fn is_kept(&self) -> bool {
        !matches!(self.term().renewal, Renewal::Manual)
    }

    /// Whether the wall clock tells of a pause that the lease's clock has not counted.
    pub(crate) fn may_have_paused(&self) -> bool {
        !self.paused(&self.term(), self.clock.wall_lead()).is_zero()
    }

    /// Whether this is a copy of it, in a process that was forked from its holder's.
    pub(crate) fn is_foreign(&self) -> bool {
        std::process::id() != self.process
    }

    /// What is left until no renewal reaches further.
    pub(crate) fn hold_remaining(&self) -> Duration {
        self.hold_ends().saturating_since(self.clock.now())
    }

    /// Cancelled when it is lost. Cancelling it does not lose it.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        self.cancelled.child_token()
    }

    /// Resolves when it is lost.
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

    /// A lease on Tokio's clock, from now on, with a tenth as its margin.
    pub(crate) fn lease(left: Duration) -> (Lease, Clock) {
        lease_held_for(left, 10 * LEASE)
    }

    fn lease_held_for(left: Duration, max_hold: Duration) -> (Lease, Clock) {
        // As on a machine that has run for a while.
        let clock = Clock::Tokio(tokio::time::Instant::now() - 100 * LEASE);
        let terms = Arc::new(Terms {
            lease: 1_000,
            max_attempts: 5,
            retention: 2_000,
            label: "a".into(),
            margin: LEASE / 10,
            renew_every: Some(LEASE / 4),
            max_hold,
            stall_limit: 60 * LEASE,
            replicated: false,
        });
        let record = record();
        let stamp = clock.stamp();
        let term = Term::new(stamp, left, stamp.moment + left, &terms);
        let key = Key::new("job").unwrap();
        let lease = Lease::new(&key, &record, 0, Token::random(), terms, clock, term);
        (lease, clock)
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

    #[tokio::test(start_paused = true)]
    async fn a_guard_that_has_said_that_it_is_not_valid_stays_so() {
        let (lease, clock) = lease(LEASE);
        assert!(lease.give());
        let asked = clock.stamp();
        advance(LEASE).await;
        assert!(lease.remaining().is_zero());
        // The answer came in time, and is read only now.
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
        // Of what is left for its holder: a tenth is the margin.
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

    /// What was asked and not answered by the end is the server's silence if the end is noticed in
    /// time, and this process's standstill if it is not.
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
            lease.hear_time(asked, lease.fence + there * 1_000_000);
            assert!(lease.restart(nth, asked, 100 * LEASE));
            assert_eq!(lease.left(), left * LEASE, "restart {nth}");
        }
    }
}
