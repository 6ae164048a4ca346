//! The participants of this process in one run.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Id;
use crate::lease::RunConfig;
use crate::protocol::record::Token;

/// Delay per position in the queue. After the end of a lease, the waiter at position p claims after
/// p times this.
const STAGGER: Duration = Duration::from_millis(5);

/// Position from which on the delay grows no longer.
const STAGGER_CAP: u64 = 100;

/// The participants, in the order in which they joined.
#[derive(Debug, Default)]
pub(super) struct Participants {
    /// Boxed, since a map reserves room for many entries, and most runs have one participant.
    all: BTreeMap<Id, Box<ParticipantState>>,
    /// No participant with a smaller id can be the next claimant. This saves a scan of all joining
    /// participants.
    claim_cursor: Cursor,
}

/// An id that a search updates through a shared reference. Relaxed order is enough, since only one
/// task searches.
#[derive(Debug, Default)]
struct Cursor(AtomicU64);

impl Cursor {
    fn get(&self) -> Id {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, id: Id) {
        self.0.store(id, Ordering::Relaxed);
    }
}

impl Clone for Participants {
    /// Sets the cursor of the copy to the start, which is always correct.
    fn clone(&self) -> Self {
        Self {
            all: self.all.clone(),
            claim_cursor: Cursor::default(),
        }
    }
}

#[derive(Clone, Debug, Hash)]
pub(super) struct ParticipantState {
    /// Token of its claims and its grant. The server gives a token at most one grant.
    pub(super) token: Token,
    pub(super) terms: Arc<RunConfig>,
    pub(super) stage: Stage,
    /// Whether a claim of it is in flight.
    pub(super) claiming: bool,
    /// Position in the queue, from 0, as far as it is known.
    pub(super) queue_position: u64,
    /// Fencing token of the last holder that it was notified of.
    pub(super) last_notified_fence: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// No claim has been answered yet. Messages have no effect, since they may be from the last
    /// run.
    Joining,
    Waiting,
    Holding,
}

/// Leaves out the cursor, which only saves time.
impl Hash for Participants {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.all.hash(hasher);
    }
}

impl Participants {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut ParticipantState> {
        self.all.get_mut(&id).map(|state| &mut **state)
    }

    pub(super) fn insert(&mut self, id: Id, state: ParticipantState) {
        self.all.insert(id, Box::new(state));
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Box<ParticipantState>> {
        self.all.remove(&id)
    }

    /// Removes and returns all participants except the holder.
    pub(super) fn remove_all_but_holder(
        &mut self,
    ) -> impl Iterator<Item = (Id, Box<ParticipantState>)> + use<> {
        let all = std::mem::take(&mut self.all);
        let (stay, leave): (BTreeMap<_, _>, BTreeMap<_, _>) = all
            .into_iter()
            .partition(|(_, state)| state.stage == Stage::Holding);
        self.all = stay;
        leave.into_iter()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &ParticipantState)> {
        self.all.iter().map(|(id, state)| (*id, &**state))
    }

    pub(super) fn with_token(&self, token: Token) -> Option<Id> {
        let mut all = self.iter();
        let found = all.find(|(_, state)| state.token == token);
        found.map(|(id, _)| id)
    }

    /// Returns the ids of the participants whose first claim was not answered and is not in flight.
    pub(super) fn unserved(&self) -> impl Iterator<Item = Id> {
        let unserved = self.iter().filter(|(_, state)| !state.is_served());
        unserved.map(|(id, _)| id)
    }

    pub(super) fn is_any_waiting(&self) -> bool {
        self.iter().any(|(_, state)| state.stage == Stage::Waiting)
    }

    pub(super) fn is_any_claiming(&self) -> bool {
        self.iter().any(|(_, state)| state.claiming)
    }

    /// Records that a claim was answered. Returns whether the participant still wants a grant. The
    /// holder does not, nor a participant that has left or got a new token.
    pub(super) fn on_claim_answered(&mut self, id: Id, token: Token) -> bool {
        let state = self.get_mut(id).filter(|state| state.token == token);
        let Some(state) = state else {
            return false;
        };
        state.claiming = false;
        let wanted = state.stage != Stage::Holding;
        // The participant can be the next claimant again.
        self.claim_cursor.set(self.claim_cursor.get().min(id));
        wanted
    }

    /// Returns the first waiter without a claim in flight. It claims when a claim is due.
    pub(super) fn next_claimant(&self) -> Option<(Id, &ParticipantState)> {
        let can_claim = |state: &ParticipantState| state.stage == Stage::Waiting && !state.claiming;
        let mut from = self.all.range(self.claim_cursor.get()..);
        let next = from.find(|(_, state)| can_claim(state));
        let behind_all = || self.all.last_key_value().map_or(0, |(last, _)| last + 1);
        self.claim_cursor
            .set(next.map_or_else(behind_all, |(id, _)| *id));
        next.map(|(id, state)| (*id, &**state))
    }
}

impl ParticipantState {
    pub(super) fn new(token: Token, terms: Arc<RunConfig>) -> Self {
        Self {
            token,
            terms,
            stage: Stage::Joining,
            claiming: false,
            queue_position: 0,
            last_notified_fence: None,
        }
    }

    /// Whether its first claim was answered or is in flight.
    fn is_served(&self) -> bool {
        self.stage != Stage::Joining || self.claiming
    }

    /// Returns the delay between the end of a lease and the claim: 0 at the head of the queue.
    pub(super) fn stagger(&self) -> Duration {
        let position = self.queue_position.min(STAGGER_CAP) as u32;
        if position == 0 {
            return Duration::ZERO;
        }
        // The fraction is stable for one token, so that repeated calls return the same delay.
        STAGGER * position + STAGGER.mul_f64(self.token.fraction())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::run_config;

    fn participants(count: u64) -> Participants {
        let mut all = Participants::default();
        for id in 0..count {
            let config = Arc::new(run_config());
            all.insert(id, ParticipantState::new(Token::random(), config));
        }
        all
    }

    fn next(all: &Participants) -> Option<Id> {
        all.next_claimant().map(|(id, _)| id)
    }

    #[test]
    fn the_first_waiter_that_does_not_claim_is_next() {
        let mut all = participants(4);
        assert_eq!(next(&all), None, "all join");
        for (id, first) in [(2, 2), (1, 1), (3, 1)] {
            let state = all.get_mut(id).unwrap();
            state.stage = Stage::Waiting;
            let token = state.token;
            assert!(all.on_claim_answered(id, token));
            assert_eq!(next(&all), Some(first), "the cursor goes back");
        }
        all.get_mut(1).unwrap().claiming = true;
        assert_eq!(next(&all), Some(2));
        all.remove(2);
        assert_eq!(next(&all), Some(3));
    }

    #[test]
    fn a_late_answer_to_another_token_is_not_wanted() {
        let mut all = participants(1);
        let state = all.get_mut(0).unwrap();
        state.claiming = true;
        let token = state.token;
        assert!(!all.on_claim_answered(0, Token::random()));
        assert!(all.get_mut(0).unwrap().claiming);
        assert!(all.on_claim_answered(0, token));
        all.get_mut(0).unwrap().stage = Stage::Holding;
        assert!(!all.on_claim_answered(0, token), "the holder has its grant");
    }

    #[test]
    fn a_refusal_leaves_the_holder() {
        let mut all = participants(3);
        all.get_mut(1).unwrap().stage = Stage::Holding;
        assert_eq!(all.remove_all_but_holder().count(), 2);
        assert_eq!(all.iter().map(|(id, _)| id).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn waiters_further_back_claim_later() {
        let mut all = participants(1);
        let state = all.get_mut(0).unwrap();
        assert_eq!(state.stagger(), Duration::ZERO);
        let at = |state: &mut ParticipantState, position| {
            state.queue_position = position;
            state.stagger()
        };
        let third = at(state, 3);
        assert!((3 * STAGGER..4 * STAGGER).contains(&third), "{third:?}");
        assert_eq!(at(state, 3), third);
        assert_eq!(at(state, STAGGER_CAP), at(state, 10 * STAGGER_CAP));
    }
}
