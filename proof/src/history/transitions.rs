//! Invariants 1, 3, 4 and a part of 5: each step from one record of a key to the next.

use std::collections::HashMap;

use redis_locking_worker::internals::{Cause, Record, State};

use super::{Checker, How, Step, TICK};

/// What may have happened between two observed records.
#[derive(Clone, Copy, PartialEq)]
enum Between {
    Nothing,
    /// Records that the auditor did not see.
    Unwatched,
    Anything,
}

fn is_final(record: &Record) -> bool {
    matches!(record.state, State::Done | State::GaveUp)
}

/// Returns the time when the server forgets a key, in µs.
fn remembered(record: &Record) -> u64 {
    match record.state.is_owned() {
        true => (record.until + record.retention) * 1_000,
        false => record.until * 1_000,
    }
}

impl<'a> Checker<'a> {
    pub(super) fn transitions(&mut self) {
        for (key, steps) in &self.history.audit {
            self.key(key, steps);
        }
    }

    fn key(&mut self, key: &'a str, steps: &'a [Step]) {
        let mut owners = HashMap::new();
        let mut highest = 0;
        let mut before: Option<&Record> = None;
        let mut between = Between::Nothing;
        for step in steps {
            let (record, at) = match step {
                Step::Wrote(frame) => match &frame.record {
                    Some(record) => (&**record, frame.at),
                    None => continue,
                },
                Step::Forgot { .. } => {
                    between = Between::Anything;
                    continue;
                }
                Step::Unwatched { .. } => {
                    if between == Between::Nothing {
                        between = Between::Unwatched;
                    }
                    continue;
                }
            };
            let text = || format!("{key}, at {at}: {before:?}, then {record:?}");
            // This holds also across a loss of data. After a failover, an old master may go on with
            // the grants that it has, so only a new token must be the highest.
            let is_new = !owners.contains_key(&record.fence);
            let owner = *owners.entry(record.fence).or_insert(record.owner);
            if is_new && record.fence <= highest {
                self.violates(1, format_args!("not above {highest}: {}", text()));
            }
            highest = highest.max(record.fence);
            if record.state.is_owned() && owner != record.owner {
                self.violates(1, format_args!("a token for two: {}", text()));
            }
            if record.attempt > record.max_attempts {
                self.violates(3, format_args!("above the maximum: {}", text()));
            }
            if let Some(before) = before {
                match between {
                    Between::Nothing => {
                        self.examines(1);
                        self.examines(3);
                        self.transition(key, before, record, at);
                    }
                    Between::Unwatched => self.over_a_gap(key, before, record, at),
                    Between::Anything => {}
                }
                if between != Between::Anything && is_final(before) {
                    self.examines(4);
                }
            }
            self.completion(key, record, at);
            (before, between) = (Some(record), Between::Nothing);
        }
    }

    fn transition(&mut self, key: &str, before: &Record, record: &Record, at: u64) {
        let text = format!("{key}, at {at}: {before:?}, then {record:?}");
        let forgotten = at + TICK >= remembered(before);
        if record.fence == before.fence {
            if let Err(invariant) = self.same_grant(key, before, record, at) {
                self.violates(invariant, text);
            }
        } else if !record.state.is_owned() {
            self.violates(1, format_args!("a token without a grant: {text}"));
        } else if record.attempt == 1 && record.previous.is_none() && forgotten {
            // A new run.
        } else if is_final(before) {
            self.violates(4, text);
        } else if record.max_attempts != before.max_attempts {
            self.violates(3, text);
        } else if record.owner == before.owner || record.owner == before.last {
            // The record remembers a token no longer than that. A process that was stopped when it
            // was granted the key may repeat its claim under the same token after others had their
            // turn.
            self.violates(3, format_args!("a second grant of a token: {text}"));
        } else {
            match self.next_attempt(key, before, record, at) {
                Ok(attempt) if record.attempt == attempt => {}
                Ok(attempt) => self.violates(3, format_args!("not attempt {attempt}: {text}")),
                Err(invariant) => self.violates(invariant, text),
            }
        }
    }

    /// Checks a step that keeps the fencing token. An error is the number of the broken invariant.
    fn same_grant(&self, key: &str, before: &Record, record: &Record, at: u64) -> Result<(), u8> {
        let grant = (key, before.fence);
        let how = self.how(grant, at);
        let failed = matches!(how, Some(How::Failed | How::Dropped));
        let over = at / 1_000 >= before.until;
        let same = record.owner == before.owner && record.attempt == before.attempt;
        let given_back = how == Some(&How::HandedOff) || !self.is_acquired(grant);
        let ended = |as_it_should: bool| match how {
            // While a lease runs, only its holder may end the grant, unless no guard was made of
            // it.
            None if self.is_acquired(grant) && !over => Err(1),
            _ if as_it_should => Ok(()),
            _ => Err(3),
        };
        match (before.state, record.state) {
            (State::Held | State::Granted, State::Held) => {
                match same && record.until >= before.until && record.renewal > before.renewal {
                    true => Ok(()),
                    false => Err(1),
                }
            }
            (State::Held | State::Granted, State::Open) => ended(match record.attempt {
                attempt if attempt == before.attempt => failed,
                attempt => attempt + 1 == before.attempt && given_back,
            }),
            (State::Held | State::Granted, State::Done) if same => Ok(()),
            (State::Held | State::Granted, State::GaveUp) => ended(
                record.attempt == before.attempt
                    && (how == Some(&How::FailedPermanently)
                        || before.attempt >= before.max_attempts && (failed || over)),
            ),
            (State::Open, State::GaveUp) => {
                match before.attempt >= before.max_attempts && record.attempt == before.attempt {
                    true => Ok(()),
                    false => Err(3),
                }
            }
            _ if is_final(before) => Err(4),
            _ => Err(3),
        }
    }

    /// Returns the number of the next attempt in the same run. An error is the number of the
    /// invariant that any next attempt breaks.
    fn next_attempt(
        &self,
        key: &str,
        before: &Record,
        record: &Record,
        at: u64,
    ) -> Result<u32, u8> {
        let grant = (key, before.fence);
        let over = at / 1_000 >= before.until;
        let previous = record.previous.as_ref();
        match (before.state, record.state) {
            (State::Open, State::Held) => Ok(before.attempt + 1),
            (State::Held, State::Held) if over => {
                let expired = previous.is_some_and(|previous| {
                    (previous.attempt, previous.cause) == (before.attempt, Cause::Expired)
                });
                if expired {
                    Ok(before.attempt + 1)
                } else {
                    Err(3)
                }
            }
            // The grant was not confirmed.
            (State::Granted, State::Held) if over => Ok(before.attempt),
            (State::Held | State::Granted, State::Granted) => match self.how(grant, at) {
                Some(How::HandedOff) => Ok(before.attempt),
                Some(How::Failed | How::Dropped) => Ok(before.attempt + 1),
                None if !self.is_acquired(grant) => Ok(before.attempt),
                None => Err(1),
                Some(_) => Err(3),
            },
            _ => Err(1),
        }
    }

    /// Checks a step across unseen records, in which the server forgot nothing.
    fn over_a_gap(&mut self, key: &str, before: &Record, record: &Record, at: u64) {
        let text = || format!("{key}, unwatched until {at}: {before:?}, then {record:?}");
        if is_final(before) {
            let same = record.fence == before.fence && record.state == before.state;
            if !same && at + TICK < remembered(before) {
                self.violates(4, text());
            }
        } else if before.state.is_owned() && record.fence != before.fence {
            let over = at / 1_000 >= before.until;
            let grant = (key, before.fence);
            if !over && self.is_acquired(grant) && self.how(grant, at).is_none() {
                self.violates(1, text());
            }
        }
    }

    /// 5: a completion was requested by the holder before.
    fn completion(&mut self, key: &str, record: &Record, at: u64) {
        if record.state != State::Done {
            return;
        }
        self.examines(5);
        let asked = match self.how((key, record.fence), at) {
            Some(How::Done(result)) => *result == record.result,
            _ => false,
        };
        if !asked {
            self.violates(
                5,
                format_args!("{key}: nobody asked for it at {at}: {record:?}"),
            );
        }
    }
}
