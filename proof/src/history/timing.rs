//! Invariants 9 and 11: takeovers and releases within their bounds.

use redis_locking_worker::internals::{Record, State};

use super::{Checker, How, SOON, Step, Told, What, records};

impl<'a> Checker<'a> {
    pub(super) fn timing(&mut self) {
        for (key, steps) in &self.history.audit {
            for (nth, step) in steps.iter().enumerate() {
                let Step::Wrote(frame) = step else { continue };
                let Some(record) = frame.record.as_deref() else {
                    continue;
                };
                let next = match steps.get(nth + 1) {
                    Some(Step::Wrote(next)) => next.at,
                    Some(Step::Forgot { .. } | Step::Unwatched { .. }) => continue,
                    None => self.history.ended,
                };
                self.takeover(key, record, frame.at, next);
            }
            self.orphan(key, steps);
        }
        for ((key, fence), grant) in std::mem::take(&mut self.grants) {
            self.released(key, fence, grant.holder, grant.began);
        }
    }

    /// 9: a waiter is granted the key soon after a record is open or its lease ends.
    fn takeover(&mut self, key: &str, record: &Record, at: u64, next: u64) {
        let free = match record.state {
            State::Held | State::Granted => record.until * 1_000,
            State::Open => at,
            State::Done | State::GaveUp => return,
        };
        if next < free {
            return;
        }
        let soon = free + SOON;
        let until = next.min(soon);
        if self.server_disturbed(free, until) {
            return;
        }
        let waiter = self.streams.values().find(|told| {
            let first = told[0];
            first.key == key
                && waits(told, free, until)
                && !self.disturbed(first.process, free, until)
        });
        let Some(told) = waiter.map(|told| told[0]) else {
            return;
        };
        self.examines(9);
        self.verdict.takeovers.push(next - free);
        if next > soon {
            let text = format!("{key}: free at {free}, not taken by {told:?}: {record:?}");
            self.violates(9, text);
        }
    }

    /// 11: a grant that its holder ended, or of which no guard was made, soon holds nothing. No
    /// grant is renewed for longer than the longest hold of its worker.
    fn released(&mut self, key: &'a str, fence: u64, holder: &str, began: u64) {
        let mut held = records(self.steps(key))
            .filter(|(_, record, _)| record.state.is_owned() && record.fence == fence);
        let Some((last, record, _)) = held.next_back() else {
            return;
        };
        let Some(process) = self.process(holder) else {
            return self.violates(11, format_args!("{key}: held by nobody: {record:?}"));
        };
        let member = &self.history.members[&process];
        // A grant lasts for a lease at least. `SOON` allows for a renewal's way to the server,
        // where its length counts from its arrival.
        let longest = member.max_hold.max(member.lease) * 1_000;
        if record.until * 1_000 > began + longest + SOON {
            self.violates(11, format_args!("{key}: held for too long: {record:?}"));
        }
        let endings = self
            .endings
            .get(&(key, fence))
            .and_then(|endings| endings.first());
        let released = match (endings, self.is_acquired((key, fence))) {
            (Some((_, How::Forgotten)), _) | (None, true) => return,
            (Some((asked, _)), _) => *asked,
            (None, false) => began,
        };
        let next = records(self.steps(key)).find(|(place, _, _)| *place > last);
        let freed = next.map_or(record.until * 1_000, |(_, _, at)| {
            at.min(record.until * 1_000)
        });
        let soon = released + SOON;
        let until = freed.clamp(released, soon);
        if until > self.history.ended
            || self.server_disturbed(released, until)
            || self.disturbed(process, released, until)
        {
            return;
        }
        self.examines(11);
        if freed > soon {
            let text = format_args!("{key}: released at {released}, {freed} is late: {record:?}");
            self.violates(11, text);
        }
    }

    /// 11: at the end only a holder that forgot its guard or was killed with it still holds a key.
    fn orphan(&mut self, key: &str, steps: &[Step]) {
        let Some(Step::Wrote(frame)) = steps.last() else {
            return;
        };
        let Some(record) = frame.record.as_deref() else {
            return;
        };
        if !record.state.is_owned() || record.until * 1_000 <= self.history.ended {
            return;
        }
        let grant = &self.grants[&(key, record.fence)];
        let killed = self
            .process(&record.holder)
            .and_then(|process| self.killed(process));
        let forgotten = self.how((key, record.fence), self.history.ended) == Some(&How::Forgotten);
        if !forgotten && killed.is_none_or(|at| at < grant.began) {
            self.violates(11, format_args!("{key}: still held at the end: {record:?}"));
        }
    }
}

/// Whether a stream waits for all of this time.
fn waits(told: &[&Told], from: u64, to: u64) -> bool {
    let mut since = None;
    let mut rejoins = false;
    for event in told {
        let waits = match &event.what {
            What::Joined { rejoins: again } => {
                rejoins = *again;
                true
            }
            What::NotTerminal => continue,
            // A guard may outlive its stream, but a dropped stream does not wait.
            What::Left => {
                rejoins = false;
                false
            }
            What::Ended { .. } => rejoins,
            _ => false,
        };
        match since {
            Some(start) if !waits => {
                if start <= from && event.at >= to {
                    return true;
                }
                since = None;
            }
            None if waits => since = Some(event.at),
            _ => {}
        }
    }
    since.is_some_and(|start| start <= from)
}
