//! The batcher: keeps requests to the store until they are sent, many in one call.
//!
//! A batch is sent when fewer than two calls are in flight and at least half as many requests are
//! queued as are in flight. Otherwise requests accumulate. Requests that come one at a time never
//! wait. A request beside many others waits until most of those are answered. The busier the server
//! is, the larger the batches are.
//!
//! The store says which requests may share a call ([`Store::lane`](crate::store::Store::lane)).
//! Requests of different batch keys do not wait for each other. A call carries 256 KiB of results
//! and checkpoints at most, because the server serves no other client meanwhile. The script bounds
//! its answer in the same way (`store/redis/each.lua`).

use std::collections::{HashMap, VecDeque};

use crate::store::BatchKey;

/// Most calls of one batch key in flight: the server works on one while the hub reads the answers
/// of the other. More calls would be smaller, and cost more than the latency that they hide, by
/// `bench/benches/cycle.rs`.
const WINDOW: usize = 2;

/// Fewest requests in a call while more are queued: so few are not split among calls.
const FEW: usize = 8;

/// Most requests in one call. A larger call gains little, and keeps the server from other clients.
const MOST: usize = 256;

/// Most bytes of results and checkpoints in one call.
const MOST_BYTES: usize = 256 * 1024;

/// The queued requests of one batch key, and a count of those in flight.
pub(super) struct Queue<T> {
    /// Queued requests, each with the length of its payload in bytes.
    waiting: VecDeque<(usize, T)>,
    calls: usize,
    /// Number of requests in those calls.
    items: usize,
}

/// A queue for each batch key. Queues are never removed: there are at most as many keys as a
/// cluster has slots, or twice that with replicas.
pub(super) struct Batcher<T> {
    queues: HashMap<BatchKey, Queue<T>>,
    /// Batch keys that may have a call to send.
    ready: VecDeque<BatchKey>,
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, bytes: usize, item: T) {
        self.waiting.push_back((bytes, item));
    }

    /// Takes one request to send alone, if fewer than `window` calls are in flight.
    pub(super) fn next(&mut self, window: usize) -> Option<T> {
        if self.calls >= window {
            return None;
        }
        let (_, next) = self.waiting.pop_front()?;
        self.leave(1);
        Some(next)
    }

    /// Takes the requests of the next call, if one may be sent now.
    fn next_call(&mut self) -> Option<Vec<T>> {
        let waiting = self.waiting.len();
        if waiting == 0 || self.calls >= WINDOW || 2 * waiting < self.items {
            return None;
        }
        // Splits the requests among the calls that may leave, so that none waits for all others.
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

    /// Records the answer to a call with this many requests.
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

    /// Takes the next call, with its batch key.
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

    /// Records the answer to a call of this batch key with this many requests.
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

    /// Sends all calls that may leave now. Returns the number of requests in each.
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
