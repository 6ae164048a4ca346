//! Invariants 7, 8 and 10: the events of a stream.

use redis_locking_worker::internals::{Record, State};

use super::{Checker, GRACE, SOON, Told, What, records};

impl<'a> Checker<'a> {
    pub(super) fn streams(&mut self) {
        let streams: Vec<Vec<&Told>> = self.streams.values().cloned().collect();
        for told in streams {
            self.stream(&told);
        }
    }

    fn stream(&mut self, told: &[&'a Told]) {
        self.examines(7);
        let joined = told[0];
        if !matches!(joined.what, What::Joined { .. }) {
            self.violates(7, format_args!("before it was polled: {joined:?}"));
        }
        let (mut terminal, mut over, mut left, mut acquired) = (None, None, false, false);
        for event in told {
            let is_terminal = matches!(
                event.what,
                What::Completed { .. } | What::GaveUp | What::Failed | What::Fatal(_)
            );
            let is_event = matches!(event.what, What::Acquired { .. } | What::NotTerminal);
            if (is_event || is_terminal) && (terminal.is_some() || over.is_some()) {
                self.violates(
                    7,
                    format_args!("it had ended with {terminal:?}, then {event:?}"),
                );
            }
            if (is_event || is_terminal || event.what == What::End) && left {
                self.violates(7, format_args!("it was dropped, then {event:?}"));
            }
            match &event.what {
                What::Left => left = true,
                What::Acquired { .. } => acquired = true,
                What::End => {
                    over = Some(event.at);
                    if terminal.is_none() {
                        self.violates(7, format_args!("no terminal event before {event:?}"));
                    }
                }
                What::Failed if !acquired => {
                    self.violates(7, format_args!("what failed was not its own: {event:?}"));
                }
                // Every fault of these fleets passes, so no error may be fatal.
                What::Fatal(_) => self.violates(7, format_args!("{event:?}")),
                _ => {}
            }
            if is_terminal {
                terminal = Some(*event);
                self.outcome(joined, event);
            }
        }
        if left || self.killed(joined.process).is_some() {
            return;
        }
        // A fleet is told to end after the last fault, and finishes its work. From then on a stream
        // waits at most for a lease to end, or for the longest hold of a forgotten guard.
        self.examines(10);
        let members = self.history.members.values();
        let longest = members
            .map(|member| member.lease.max(member.max_hold))
            .max();
        let latest = self.history.finishing + longest.unwrap_or_default() * 1_000 + GRACE + SOON;
        if over.is_none_or(|at| at > latest) {
            let last = told[told.len() - 1];
            self.violates(
                10,
                format_args!("pending at {latest}, ended {over:?}, after {last:?}"),
            );
        }
    }

    fn outcome(&mut self, joined: &Told, event: &'a Told) {
        let is_it = |record: &Record| match &event.what {
            What::Completed {
                holder,
                attempt,
                result,
            } => {
                record.state == State::Done
                    && (&record.holder, record.attempt) == (holder, *attempt)
                    && record.result == result[..]
            }
            What::GaveUp => record.state == State::GaveUp,
            _ => false,
        };
        if !matches!(event.what, What::Completed { .. } | What::GaveUp) {
            return;
        }
        self.examines(8);
        // Within the retention, a stream that joins late is told the outcome of the run before.
        let mut of_its_run = records(self.steps(&event.key)).filter(|(_, record, at)| {
            *at <= event.at
                && (record.until * 1_000).saturating_add(self.longest_script(*at)) >= joined.at
        });
        let Some((_, record, at)) = of_its_run.rfind(|(_, record, _)| is_it(record)) else {
            if !self.unwatched(&event.key, joined.at, event.at) {
                self.violates(8, format_args!("nothing like it was recorded: {event:?}"));
            }
            return;
        };
        let late = event.at > record.until * 1_000 + SOON;
        if late
            && !self.server_disturbed(at, event.at)
            && !self.disturbed(event.process, at, event.at)
        {
            self.violates(8, format_args!("long forgotten: {event:?}, {record:?}"));
        }
    }
}
