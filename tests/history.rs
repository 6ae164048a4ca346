//! The checker of histories: it lets pass what may happen, and finds what must not, one invariant at a time.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::history::{Answer, Fault, History, How, Scope, Step, Told, Violation, What, check};
use redis_locking_worker::internals::{Cause, Frame, Previous, Record, State, Token};

const KEY: &str = "job";
/// In µs; records are in ms.
const START: u64 = 1_700_000_000_000_000;
const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
const LEASE: u64 = 1_000;
const RETENTION: u64 = 2_000;

fn held(at: u64, attempt: u32, fence: u64, process: u32) -> Record {
    Record {
        state: State::Held,
        attempt,
        max_attempts: 3,
        fence,
        renewal: 0,
        until: at / MS + LEASE,
        retention: RETENTION,
        owner: Some(Token::from_number(fence.into())),
        last: None,
        previous: None,
        holder: format!("worker-{process}"),
        checkpoint: Bytes::new(),
        result: Bytes::new(),
    }
}

fn after(mut record: Record, attempt: u32, cause: Cause) -> Record {
    record.previous = Some(Previous {
        attempt,
        cause,
        holder: "worker-1".to_owned(),
        reason: String::new(),
    });
    record
}

fn done(at: u64, mut record: Record, result: &'static str) -> Record {
    record.state = State::Done;
    record.until = at / MS + RETENTION;
    record.result = result.into();
    record
}

fn told(at: u64, process: u32, what: What) -> Told {
    Told {
        at,
        process,
        stream: process.into(),
        key: KEY.to_owned(),
        what,
    }
}

/// The first worker's attempt fails, the second is handed the work and completes it, the third waits.
struct Story {
    history: History,
}

const FIRST: u64 = START;
const SECOND_GRANT: u64 = START + 10 * MS;
const DONE: u64 = START + 20 * MS;

impl Story {
    fn new() -> Self {
        let joined = || What::Joined { rejoins: false };
        let ending = |fence, how| What::Ending { fence, how };
        let told = vec![
            told(START - 3, 1, joined()),
            told(START - 2, 2, joined()),
            told(START - 1, 3, joined()),
            told(START + 1, 2, What::NotTerminal),
            told(START + 1, 3, What::NotTerminal),
            told(
                START + 2,
                1,
                What::Acquired {
                    fence: FIRST,
                    attempt: 1,
                },
            ),
            told(START + 3, 1, What::Valid { fence: FIRST }),
            told(
                START + 4,
                1,
                What::Wrote {
                    fence: FIRST,
                    accepted: true,
                },
            ),
            told(SECOND_GRANT - 1, 1, ending(FIRST, How::Dropped)),
            told(SECOND_GRANT + 1, 1, What::Failed),
            told(SECOND_GRANT + 2, 1, What::End),
            told(
                SECOND_GRANT + 1,
                2,
                What::Acquired {
                    fence: SECOND_GRANT,
                    attempt: 2,
                },
            ),
            told(
                SECOND_GRANT + 2,
                2,
                What::Valid {
                    fence: SECOND_GRANT,
                },
            ),
            told(
                SECOND_GRANT + 3,
                2,
                What::Wrote {
                    fence: SECOND_GRANT,
                    accepted: true,
                },
            ),
            told(DONE - 1, 2, ending(SECOND_GRANT, How::Done(b"42".to_vec()))),
            told(
                DONE + 1,
                2,
                What::Ended {
                    fence: SECOND_GRANT,
                    answer: Answer::Ok,
                },
            ),
            told(DONE + 2, 2, completed("42")),
            told(DONE + 3, 2, What::End),
            told(DONE + 2, 3, completed("42")),
            told(DONE + 3, 3, What::End),
        ];
        let second = after(held(SECOND_GRANT, 2, SECOND_GRANT, 2), 1, Cause::Dropped);
        let granted = Record {
            state: State::Granted,
            ..second.clone()
        };
        let confirmed = Record {
            renewal: 1,
            ..second.clone()
        };
        let steps = vec![
            wrote(FIRST, held(FIRST, 1, FIRST, 1)),
            wrote(SECOND_GRANT, granted),
            wrote(SECOND_GRANT + 5, confirmed.clone()),
            wrote(DONE, done(DONE, confirmed, "42")),
        ];
        let history = History {
            told,
            audit: [(KEY.to_owned(), steps)].into(),
            faults: Vec::new(),
            accepted: [(KEY.to_owned(), vec![FIRST, SECOND_GRANT])].into(),
            labels: (1..=3).map(|n| (n, format!("worker-{n}"))).collect(),
            max_hold: 5_000,
            ended: START + 60 * SECOND,
        };
        Self { history }
    }

    fn steps(&mut self) -> &mut Vec<Step> {
        self.history.audit.get_mut(KEY).unwrap()
    }

    fn record(&mut self, nth: usize) -> &mut Record {
        match &mut self.steps()[nth] {
            Step::Wrote(frame) => Arc::make_mut(frame.record.as_mut().unwrap()),
            step => panic!("{step:?}"),
        }
    }

    /// Of one stream, which is one process here.
    fn forget(&mut self, stream: u64, what: fn(&What) -> bool) {
        let before = self.history.told.len();
        self.history
            .told
            .retain(|told| told.stream != stream || !what(&told.what));
        assert!(self.history.told.len() < before, "nothing to forget");
    }

    fn tell(&mut self, at: u64, process: u32, what: What) {
        self.history.told.push(told(at, process, what));
    }

    fn fault(&mut self, scope: Scope, from: u64, to: u64) {
        let name = "a fault";
        self.history.faults.push(Fault {
            name,
            scope,
            from,
            to,
        });
    }

    fn check(&self) -> Vec<Violation> {
        check(&self.history).violations
    }

    /// That it breaks this invariant and no other.
    fn breaks(&self, invariant: u8) {
        let found = self.check();
        assert!(
            !found.is_empty(),
            "invariant {invariant} is not found broken"
        );
        for violation in &found {
            assert_eq!(violation.invariant, invariant, "{found:#?}");
        }
    }

    fn holds(&self) {
        assert_eq!(self.check(), []);
    }
}

fn completed(result: &str) -> What {
    What::Completed {
        holder: "worker-2".to_owned(),
        attempt: 2,
        result: result.as_bytes().to_vec(),
    }
}

fn wrote(at: u64, record: Record) -> Step {
    let record = Some(Arc::new(record));
    Step::Wrote(Frame { at, record })
}

#[test]
fn what_may_happen_passes() {
    Story::new().holds();
}

#[test]
fn invariant_1_a_grant_while_another_lasts() {
    let mut story = Story::new();
    let other = after(held(START + 5, 2, START + 5, 3), 1, Cause::Expired);
    story.steps().truncate(1);
    story.steps().push(wrote(START + 5 * MS, other));
    story.history.told.retain(|told| told.at < START);
    for process in 1..=3 {
        story.tell(START, process, What::Left);
    }
    story.history.accepted.clear();
    story.breaks(1);
}

#[test]
fn invariant_1_a_lease_that_somebody_else_ends() {
    let mut story = Story::new();
    story.forget(1, |what| matches!(what, What::Ending { .. }));
    story.breaks(1);
}

#[test]
fn invariant_1_a_fencing_token_that_does_not_rise() {
    let mut story = Story::new();
    story.steps().push(Step::Lost { at: DONE + SECOND });
    let late = DONE + 2 * SECOND;
    let lower = held(late, 1, FIRST + 1, 3);
    story.steps().push(wrote(late, lower));
    // It may have been lost whatever was there, but not this.
    story.breaks(1);
    story.steps().pop();
    story.steps().push(wrote(late, held(late, 1, late, 3)));
    story.holds();
}

#[test]
fn invariant_1_a_grant_that_was_never_given() {
    let mut story = Story::new();
    story.tell(DONE + SECOND, 4, What::Joined { rejoins: false });
    let acquired = What::Acquired {
        fence: DONE + 7,
        attempt: 1,
    };
    story.tell(DONE + 2 * SECOND, 4, acquired);
    story.tell(DONE + 3 * SECOND, 4, What::Left);
    story.breaks(1);
}

#[test]
fn invariant_2_a_stale_write_that_is_accepted() {
    let mut story = Story::new();
    story
        .history
        .accepted
        .insert(KEY.to_owned(), vec![FIRST, SECOND_GRANT, FIRST]);
    story.breaks(2);
}

#[test]
fn invariant_2_tokens_in_another_order_than_the_grants() {
    let mut story = Story::new();
    // Both are seen to rise, but the record that came later has the smaller token.
    story
        .history
        .accepted
        .insert(KEY.to_owned(), vec![FIRST, SECOND_GRANT]);
    story.steps().swap(0, 3);
    assert!(
        story
            .check()
            .iter()
            .any(|violation| violation.invariant == 2)
    );
}

#[test]
fn invariant_3_a_failure_that_does_not_count() {
    let mut story = Story::new();
    for nth in 1..4 {
        story.record(nth).attempt = 1;
    }
    let found = story.check();
    assert!(
        found.iter().any(|violation| violation.invariant == 3),
        "{found:#?}"
    );
}

#[test]
fn invariant_3_an_attempt_above_the_maximum() {
    let mut story = Story::new();
    for nth in 0..4 {
        story.record(nth).max_attempts = 1;
    }
    story.breaks(3);
}

#[test]
fn invariant_3_a_replay_that_gets_another_grant() {
    let mut story = Story::new();
    let owner = story.record(0).owner;
    for nth in 1..4 {
        story.record(nth).owner = owner;
    }
    story.breaks(3);
}

#[test]
fn invariant_4_a_grant_after_the_completion() {
    let mut story = Story::new();
    let at = DONE + 100 * MS;
    let again = after(held(at, 3, at, 3), 2, Cause::Expired);
    story.steps().push(wrote(at, again));
    story.breaks(4);
}

#[test]
fn invariant_4_a_completion_is_remembered() {
    let mut story = Story::new();
    let forgotten = DONE + RETENTION * MS;
    for (at, early) in [(forgotten - 10 * MS, true), (forgotten, false)] {
        story.steps().push(wrote(at, held(at, 1, at, 3)));
        match early {
            true => story.breaks(4),
            false => story.holds(),
        }
        story.steps().pop();
    }
}

#[test]
fn invariant_4_two_completions() {
    let mut story = Story::new();
    let again = story.record(3).clone();
    story.steps().push(wrote(DONE + 1, again));
    story.breaks(4);
}

#[test]
fn invariant_5_an_ok_that_the_record_does_not_know() {
    let mut story = Story::new();
    story.steps().truncate(3);
    story.forget(3, |what| matches!(what, What::Completed { .. } | What::End));
    story.forget(2, |what| matches!(what, What::Completed { .. } | What::End));
    story.tell(DONE + 2, 2, What::Left);
    story.tell(DONE + 2, 3, What::Left);
    story.breaks(5);
}

#[test]
fn invariant_5_a_completion_that_nobody_asked_for() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if let What::Ending {
            how: How::Done(result),
            ..
        } = &mut told.what
        {
            result.clear();
        }
    }
    let found = story.check();
    assert!(
        found.iter().all(|violation| violation.invariant == 5),
        "{found:#?}"
    );
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn invariant_6_valid_after_somebody_else_was_let_in() {
    let mut story = Story::new();
    story.tell(SECOND_GRANT + 1, 1, What::Valid { fence: FIRST });
    let found = story.check();
    assert!(
        found.iter().any(|violation| violation.invariant == 6),
        "{found:#?}"
    );
}

#[test]
fn invariant_7_no_terminal_event() {
    let mut story = Story::new();
    story.forget(3, |what| matches!(what, What::Completed { .. }));
    story.breaks(7);
}

#[test]
fn invariant_7_two_terminal_events() {
    let mut story = Story::new();
    story.tell(DONE + 4, 1, What::Failed);
    story.breaks(7);
}

#[test]
fn invariant_7_an_event_after_the_drop() {
    let mut story = Story::new();
    story.tell(DONE + 4, 4, What::Joined { rejoins: false });
    story.tell(DONE + 5, 4, What::Left);
    story.tell(DONE + 6, 4, What::NotTerminal);
    story.breaks(7);
}

#[test]
fn invariant_8_a_result_that_was_not_recorded() {
    let mut story = Story::new();
    story.forget(3, |what| matches!(what, What::Completed { .. } | What::End));
    story.tell(DONE + 4, 3, completed("43"));
    story.tell(DONE + 5, 3, What::End);
    story.breaks(8);
}

#[test]
fn invariant_8_the_outcome_of_another_run() {
    let mut story = Story::new();
    let forgotten = DONE + RETENTION * MS;
    for (at, false_) in [(forgotten + SECOND, true), (forgotten - 10 * MS, false)] {
        let told = story.history.told.len();
        story.tell(at, 4, What::Joined { rejoins: false });
        story.tell(at + 1, 4, completed("42"));
        story.tell(at + 2, 4, What::End);
        match false_ {
            true => story.breaks(8),
            false => story.holds(),
        }
        story.history.told.truncate(told);
    }
}

#[test]
fn invariant_8_giving_up_that_was_not_recorded() {
    let mut story = Story::new();
    story.forget(3, |what| matches!(what, What::Completed { .. } | What::End));
    story.tell(DONE + 4, 3, What::MaxAttempts);
    story.tell(DONE + 5, 3, What::End);
    story.breaks(8);
}

/// The third waits and the second dies at work; nobody follows for so long.
fn dead_holder(followed_after: u64) -> Story {
    let mut story = Story::new();
    story.steps().truncate(3);
    story.forget(2, |what| {
        matches!(
            what,
            What::Ending { .. } | What::Ended { .. } | What::Completed { .. } | What::End
        )
    });
    story.fault(Scope::Process(2), SECOND_GRANT + 6, u64::MAX);
    story.forget(3, |what| matches!(what, What::Completed { .. } | What::End));
    let over = SECOND_GRANT + LEASE * MS;
    let at = over + followed_after;
    let third = after(held(at, 3, at, 3), 2, Cause::Expired);
    story.steps().push(wrote(at, third.clone()));
    story.tell(
        at + 1,
        3,
        What::Acquired {
            fence: at,
            attempt: 3,
        },
    );
    let how = How::Done(Vec::new());
    story.tell(at + 2, 3, What::Ending { fence: at, how });
    story.steps().push(wrote(at + 3, done(at + 3, third, "")));
    story.tell(
        at + 4,
        3,
        What::Ended {
            fence: at,
            answer: Answer::Ok,
        },
    );
    story.tell(
        at + 5,
        3,
        What::Completed {
            holder: "worker-3".to_owned(),
            attempt: 3,
            result: Vec::new(),
        },
    );
    story.tell(at + 6, 3, What::End);
    story
}

#[test]
fn invariant_9_a_dead_holder_that_is_not_followed_soon() {
    dead_holder(5 * MS).holds();
    dead_holder(10 * SECOND).breaks(9);
    let mut story = dead_holder(10 * SECOND);
    story.fault(
        Scope::Server,
        SECOND_GRANT + SECOND,
        SECOND_GRANT + 2 * SECOND,
    );
    story.holds();
    let mut story = dead_holder(10 * SECOND);
    story.fault(
        Scope::Process(3),
        SECOND_GRANT + SECOND,
        SECOND_GRANT + 2 * SECOND,
    );
    story.holds();
}

#[test]
fn invariant_9_a_failure_that_is_not_followed_soon() {
    let mut story = Story::new();
    let open = Record {
        state: State::Open,
        owner: None,
        until: START / MS + 60_000,
        retention: 60_000,
        ..after(held(START, 1, FIRST, 1), 1, Cause::Dropped)
    };
    for (nth, step) in story.steps().iter_mut().enumerate().skip(1) {
        if let Step::Wrote(frame) = step {
            frame.at += 10 * SECOND + nth as u64;
            let record = Arc::make_mut(frame.record.as_mut().unwrap());
            record.until += 10_000;
            record.retention = 60_000;
        }
    }
    story.record(0).retention = 60_000;
    for told in &mut story.history.told {
        if told.at > SECOND_GRANT && told.process != 1 {
            told.at += 10 * SECOND + 4;
        }
    }
    story.steps().insert(1, wrote(SECOND_GRANT, open));
    story.breaks(9);
}

#[test]
fn invariant_10_a_stream_that_is_pending_for_ever() {
    let mut story = Story::new();
    story.forget(3, |what| matches!(what, What::Completed { .. } | What::End));
    story.breaks(10);
    story.fault(Scope::Process(3), DONE, u64::MAX);
    story.holds();
}

#[test]
fn invariant_11_a_dropped_guard_that_holds_on() {
    let mut story = Story::new();
    for nth in 0..4 {
        story.record(nth).until += 100_000;
    }
    story.history.max_hold = 200_000;
    story.steps().truncate(3);
    for told in &mut story.history.told {
        if let What::Ending {
            how: how @ How::Done(_),
            ..
        } = &mut told.what
        {
            *how = How::Dropped;
        }
    }
    story.forget(3, |what| matches!(what, What::Completed { .. } | What::End));
    story.forget(2, |what| {
        matches!(
            what,
            What::Ended { .. } | What::Completed { .. } | What::End
        )
    });
    story.tell(DONE + 2, 2, What::Left);
    story.tell(DONE + 2, 3, What::Left);
    story.breaks(11);
}

#[test]
fn invariant_11_a_forgotten_guard_that_is_renewed_for_ever() {
    let mut story = Story::new();
    story.record(2).until = SECOND_GRANT / MS + 20_000;
    story.breaks(11);
    story.history.max_hold = 20_000;
    story.holds();
}
