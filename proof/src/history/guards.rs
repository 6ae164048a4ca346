//! Invariants 2, 5 and 6, and that each grant leads to one guard: the answers to holders, and the
//! writes that a resource accepts.

use std::fmt;

use redis_locking_worker::internals::{Record, State};

use super::{Answer, Checker, How, Name, Step, TICK, Told, What, records};

impl<'a> Checker<'a> {
    pub(super) fn guards(&mut self) {
        for told in &self.history.told {
            match &told.what {
                What::Acquired { fence, attempt } => self.acquired(told, *fence, *attempt),
                What::Valid { fence } => self.valid((&told.key, *fence), told.at, told),
                What::Ended { fence, answer } => self.ended(told, *fence, *answer),
                What::Wrote { fence, accepted } => self.wrote(told, *fence, *accepted),
                _ => {}
            }
        }
        self.resource();
    }

    fn acquired(&mut self, told: &'a Told, fence: u64, attempt: u32) {
        let name = (&told.key[..], fence);
        if !std::ptr::eq(self.acquired[&name][0], told) {
            self.violates(1, format_args!("a second guard of a grant: {told:?}"));
        }
        let label = self
            .history
            .members
            .get(&told.process)
            .map(|member| &member.label[..]);
        let recorded = self
            .grants
            .get(&name)
            .is_some_and(|grant| grant.attempt == attempt && label == Some(grant.holder));
        // A fencing token is the time of its grant, or little more.
        if !recorded && !self.unwatched(&told.key, fence, fence) {
            self.violates(1, format_args!("not granted: {told:?}"));
        }
    }

    /// 6: checks a claim, made no earlier than `said`, that this guard is valid.
    pub(super) fn valid(&mut self, guard: Name<'_>, said: u64, what: impl fmt::Debug) {
        let (key, fence) = guard;
        let Some(grant) = self.grants.get(&guard) else {
            return;
        };
        let after = &self.steps(key)[grant.place + 1..];
        self.examines(6);
        for step in after {
            match step {
                // After a loss of data, the server granted the key without knowing of this grant.
                Step::Forgot { .. } => return,
                Step::Unwatched { .. } => {}
                Step::Wrote(frame) => {
                    let record = frame.record.as_deref();
                    if frame.at < said && record.is_some_and(|record| record.fence != fence) {
                        let text = format_args!("{what:?}, but {record:?} at {}", frame.at);
                        return self.violates(6, text);
                    }
                }
            }
        }
    }

    fn ended(&mut self, told: &Told, fence: u64, answer: Answer) {
        let name = (&told.key[..], fence);
        let ending = self.endings.get(&name).and_then(|endings| endings.last());
        let Some((asked, how)) = ending.copied() else {
            return self.violates(5, format_args!("an answer to nothing: {told:?}"));
        };
        let done = records(self.steps(&told.key))
            .find(|(_, record, _)| record.state == State::Done && record.fence == fence);
        match (answer, how) {
            (Answer::Ok, How::Done(result)) => {
                let recorded = done.is_some_and(|(_, record, _)| record.result == result[..]);
                if !recorded && !self.unwatched(&told.key, asked, told.at) {
                    self.violates(5, format_args!("nothing was recorded: {told:?}"));
                }
            }
            (Answer::Ok, _) => {
                let is_end = |record: &Record| {
                    record.fence == fence && !record.state.is_owned()
                        || record.fence > fence && record.state == State::Granted
                };
                let recorded = records(self.steps(&told.key)).any(|(_, record, at)| {
                    (asked.saturating_sub(TICK)..=told.at).contains(&at) && is_end(record)
                });
                if !recorded && !self.unwatched(&told.key, asked, told.at) {
                    self.violates(5, format_args!("{how:?} was not recorded: {told:?}"));
                }
            }
            (Answer::Lost, How::Done(_)) => {
                // After a lost answer, the record may be lost too before the worker asks again.
                if let Some((_, record, at)) = done
                    && !self.forgot(&told.key, at, told.at)
                    && told.at < record.until * 1_000
                {
                    self.violates(5, format_args!("{told:?}, but {record:?}"));
                }
            }
            // No fault of these fleets is a reason for the server to refuse.
            (Answer::Refused, _) => self.violates(5, format_args!("{told:?}")),
            (Answer::Lost | Answer::Unknown, _) => {}
        }
    }

    /// 2: a resource refuses a write only after it accepted one under a higher token.
    fn wrote(&mut self, told: &Told, fence: u64, accepted: bool) {
        self.examines(2);
        let taken = self.history.accepted.get(&told.key);
        let in_list = taken.is_some_and(|tokens| tokens.contains(&fence));
        if accepted && !in_list {
            self.violates(2, format_args!("not taken: {told:?}"));
        }
        let mut later = taken.into_iter().flatten().filter(|token| **token > fence);
        if !accepted && later.next().is_none() {
            self.violates(2, format_args!("nobody has written since: {told:?}"));
        }
    }

    /// 2: a resource accepts tokens in the order of their grants. The resource itself already
    /// ensures that the tokens rise.
    fn resource(&mut self) {
        for (key, accepted) in &self.history.accepted {
            let mut last = None;
            for token in accepted {
                let Some(grant) = self.grants.get(&(&key[..], *token)) else {
                    if !self.unwatched(key, *token, *token) {
                        self.violates(2, format_args!("{key}: {token} was never granted"));
                    }
                    continue;
                };
                let place = grant.place;
                if last.is_some_and(|last| place < last) {
                    self.violates(2, format_args!("{key}: {token} is stale in {accepted:?}"));
                }
                last = Some(place);
            }
        }
    }
}
