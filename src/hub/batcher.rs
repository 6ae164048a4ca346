//! What is to be asked of the store, until its turn comes.
//!
//! What is asked leaves at once if it is at least half as much as what is on its way, and if fewer than two
//! calls are; what it joins otherwise gathers, and leaves together as soon as that is so. So requests that come
//! one at a time wait for nobody, one beside many waits for the most of those to be answered, and the busier
//! the server is, the more travels together.

use std::collections::{HashMap, VecDeque};

use crate::store::BatchKey;

/// Calls of one lane that may be on their way: the server works on one while the answers of the
/// other are read. More of them are smaller, and cost more than they hide; `bench/benches/cycle.rs` decided.
const WINDOW: usize = 2;

/// Fewer than this are not shared out among calls.
const FEW: usize = 8;

/// What travels together at most. Beyond that a call gains little, and holds up the server for others.
const MOST: usize = 256;

/// The same in bytes, of results and the like.
const MOST_BYTES: usize = 256 * 1024;

/// Where what is asked waits, and how much of it is on its way.
pub(super) struct Queue<T> {
    /// With what may be long in it, in bytes.
    waiting: VecDeque<(usize, T)>,
    calls: usize,
    /// In all those calls.
    items: usize,
}

/// A queue a lane. They stay: there are no more than a cluster has slots, or twice that with replicas.
pub(super) struct Batcher<T> {
    queues: HashMap<BatchKey, Queue<T>>,
    /// Those that may have something to send.
    ready: VecDeque<BatchKey>,
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, bytes: usize, item: T) {
        self.waiting.push_back((bytes, item));
    }

    /// What leaves now, alone, when so many may be on their way.
    pub(super) fn next(&mut self, window: usize) -> Option<T> {
        if self.calls >= window {
            return None;
        }
        let (_, next) = self.waiting.pop_front()?;
        self.leave(1);
        Some(next)
    }

    /// What leaves now, together.
    fn next_call(&mut self) -> Option<Vec<T>> {
        let waiting = self.waiting.len();
        if waiting == 0 || self.calls >= WINDOW || 2 * waiting < self.items {
            return None;
        }
        // Shared out among the calls that may leave, so that none has to wait for all the others.
        let share = waiting.div_ceil(WINDOW - self.calls);
        let most = share.clamp(FEW, MOST);
        let mut bytes = 0;
        let light = |(more, _): &&(usize, T)| {
            bytes += more;
            bytes <= MOST_BYTES
        };
        let together = self.waiting.iter().take(most).take_while(light).count();
        let together = together.max(1);
        self.leave(together);
        let leaving = self.waiting.drain(..together);
        Some(leaving.map(|(_, item)| item).collect())
    }

    fn leave(&mut self, items: usize) {
        self.calls += 1;
        self.items += items;
    }

    /// A call with so many items has come back.
    pub(super) fn answered(&mut self, items: usize) {
        self.calls -= 1;
        self.items -= items;
    }
}

impl<T> Batcher<T> {
    pub(super) fn push(&mut self, lane: BatchKey, bytes: usize, item: T) {
        self.queues.entry(lane).or_default().push(bytes, item);
        self.may_send(lane);
    }

    /// The next call, and its lane.
    pub(super) fn next_call(&mut self) -> Option<(BatchKey, Vec<T>)> {
        while let Some(lane) = self.ready.front().copied() {
            let queue = self.queues.get_mut(&lane);
            if let Some(call) = queue.and_then(Queue::next_call) {
                return Some((lane, call));
            }
            self.ready.pop_front();
        }
        None
    }

    /// A call of this lane with so many items has come back.
    pub(super) fn answered(&mut self, lane: BatchKey, items: usize) {
        if let Some(queue) = self.queues.get_mut(&lane) {
            queue.answered(items);
            self.may_send(lane);
        }
    }

    fn may_send(&mut self, lane: BatchKey) {
        if self.ready.back() != Some(&lane) {
            self.ready.push_back(lane);
        }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            calls: 0,
            items: 0,
        }
    }
}

impl<T> Default for Batcher<T> {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            ready: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: BatchKey = 7;

    fn lanes(waiting: usize) -> Batcher<usize> {
        let mut lanes = Batcher::default();
        add(&mut lanes, waiting);
        lanes
    }

    fn add(lanes: &mut Batcher<usize>, items: usize) {
        (0..items).for_each(|item| lanes.push(LANE, 0, item));
    }

    /// How many items each call has that leaves now.
    fn calls(lanes: &mut Batcher<usize>) -> Vec<usize> {
        std::iter::from_fn(|| lanes.next_call())
            .map(|(_, items)| items.len())
            .collect()
    }

    #[test]
    fn requests_that_come_one_at_a_time_wait_for_nobody() {
        let mut lanes = lanes(1);
        assert_eq!(calls(&mut lanes), [1]);
        add(&mut lanes, 1);
        assert_eq!(calls(&mut lanes), [1], "nor for the one before it");
    }

    #[test]
    fn what_waits_leaves_together_when_a_call_comes_back() {
        let mut lanes = lanes(2);
        assert_eq!(calls(&mut lanes), [2]);
        add(&mut lanes, 1);
        assert_eq!(calls(&mut lanes), [1]);
        for _ in 0..5 {
            add(&mut lanes, 1);
            assert!(
                calls(&mut lanes).is_empty(),
                "as many as may be are under way"
            );
        }
        lanes.answered(LANE, 2);
        assert_eq!(calls(&mut lanes), [5]);
    }

    #[test]
    fn a_few_do_not_leave_behind_many() {
        let mut lanes = lanes(9);
        assert_eq!(calls(&mut lanes), [8]);
        add(&mut lanes, 2);
        assert!(calls(&mut lanes).is_empty());
        add(&mut lanes, 1);
        assert_eq!(calls(&mut lanes), [4]);
    }

    #[test]
    fn many_are_shared_out_among_calls_that_have_a_bound() {
        assert_eq!(calls(&mut lanes(64)), [32, 32]);
        let mut many = lanes(10 * MOST);
        assert_eq!(calls(&mut many), [MOST, MOST]);
        many.answered(LANE, MOST);
        assert_eq!(calls(&mut many), [MOST]);
    }

    #[test]
    fn one_lane_does_not_hold_up_another() {
        let mut lanes = lanes(64);
        assert_eq!(calls(&mut lanes), [32, 32]);
        add(&mut lanes, 1);
        lanes.push(LANE + 1, 0, 0);
        assert_eq!(lanes.next_call(), Some((LANE + 1, vec![0])));
        assert_eq!(lanes.next_call(), None);
    }

    #[test]
    fn what_is_long_does_not_travel_with_much_else() {
        let mut lanes = Batcher::default();
        for (item, bytes) in [
            MOST_BYTES,
            1,
            MOST_BYTES / 2,
            MOST_BYTES / 2,
            9 * MOST_BYTES,
        ]
        .iter()
        .enumerate()
        {
            lanes.push(LANE, *bytes, item);
        }
        assert_eq!(lanes.next_call(), Some((LANE, vec![0])));
        lanes.answered(LANE, 1);
        assert_eq!(lanes.next_call(), Some((LANE, vec![1, 2])));
        lanes.answered(LANE, 2);
        assert_eq!(lanes.next_call(), Some((LANE, vec![3])));
        assert_eq!(
            lanes.next_call(),
            Some((LANE, vec![4])),
            "alone, however long"
        );
    }
}
