//! What is to be asked of the store, until its turn comes.
//!
//! Nothing waits for others to come: what is asked while a call could leave leaves at once. While as many
//! calls as may be are on their way, what is asked gathers, and leaves in one call when one of them is
//! answered. So the busier the server is, the more travels together.

use std::collections::{HashMap, VecDeque};

use crate::store::Lane;

/// Calls of one lane that may be on their way at once: the server works on one while the answers of another
/// are read.
const WINDOW: usize = 2;

/// What travels together at most. Beyond that a call gains little, and holds up the server for others.
const MOST: usize = 256;

const LEAST: usize = 8;
const PART: usize = 2;

pub(super) struct Queue<T> {
    waiting: VecDeque<T>,
    in_flight: usize,
    items: usize,
}

/// A queue a lane.
pub(super) struct Lanes<T> {
    queues: HashMap<Lane, Queue<T>>,
    /// Those that may have something to send.
    ready: Vec<Lane>,
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, item: T) {
        self.waiting.push_back(item);
    }

    /// The next whose turn it is, when so many may be on their way.
    pub(super) fn next(&mut self, window: usize) -> Option<T> {
        if self.in_flight >= window {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.in_flight += 1;
        Some(next)
    }

    pub(super) fn answered(&mut self) {
        self.in_flight -= 1;
    }
}

impl<T> Lanes<T> {
    pub(super) fn push(&mut self, lane: Lane, item: T) {
        let queue = self.queues.entry(lane).or_default();
        if self.ready.last() != Some(&lane) {
            self.ready.push(lane);
        }
        queue.push(item);
    }

    /// The next lane's turn, and what leaves.
    pub(super) fn next(&mut self) -> Option<(Lane, Vec<T>)> {
        while let Some(lane) = self.ready.last().copied() {
            if let Some(queue) = self.queues.get_mut(&lane)
                && !queue.waiting.is_empty()
                && queue.in_flight < WINDOW
                && queue.waiting.len() * PART >= queue.items
            {
                queue.in_flight += 1;
                let share = queue.waiting.len().div_ceil(WINDOW + 1 - queue.in_flight);
                let most = queue.waiting.len().min(share.max(LEAST)).min(MOST);
                queue.items += most;
                return Some((lane, queue.waiting.drain(..most).collect()));
            }
            self.ready.pop();
        }
        None
    }

    /// A call of this lane has been answered.
    pub(super) fn answered(&mut self, lane: Lane, items: usize) {
        let Some(queue) = self.queues.get_mut(&lane) else {
            return;
        };
        queue.items -= items;
        queue.answered();
        if !queue.waiting.is_empty() {
            self.ready.push(lane);
        } else if queue.in_flight == 0 {
            self.queues.remove(&lane);
        }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: 0,
            items: 0,
        }
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            ready: Vec::new(),
        }
    }
}
