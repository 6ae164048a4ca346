//! The checker of histories: it lets pass what may happen, and finds what must not, one invariant at a time.

use std::sync::Arc;

use bytes::Bytes;
use proof::history::{
    Answer, Fault, History, How, Look, Member, Scope, Step, Told, Violation, What, brief, check,
};
use redis_locking_worker::internals::{Cause, Previous, Record, RecordSnapshot, State, Token};

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

fn member(number: u32) -> Member {
    Member {
        label: format!("worker-{number}"),
        lease: LEASE,
        max_hold: 5_000,
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
            looks: Vec::new(),
            told,
            audit: [(KEY.to_owned(), steps)].into(),
            faults: Vec::new(),
            accepted: [(KEY.to_owned(), vec![FIRST, SECOND_GRANT])].into(),
            members: (1..=4).map(|n| (n, member(n))).collect(),
            finishing: START + 50 * SECOND,
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

    /// What it was told at last.
    fn forget_end(&mut self, stream: u64) {
        self.forget(stream, |what| {
            matches!(what, What::Completed { .. } | What::End)
        });
    }

    /// How its guard was ended, and all after that.
    fn forget_work(&mut self, stream: u64) {
        self.forget(stream, |what| {
            matches!(what, What::Ending { .. } | What::Ended { .. })
        });
        self.forget_end(stream);
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

    /// A look at a guard between these instants of the samplers' clock, in µs.
    fn look(&mut self, fence: u64, between: [u64; 2], valid: bool) {
        let [before, after] = between;
        self.history.looks.push(Look {
            key: KEY.to_owned(),
            fence,
            // By the server's time there is nothing to say against it.
            at: fence,
            before,
            after,
            valid,
        });
    }

    fn hold_for(&mut self, max_hold: u64) {
        for member in self.history.members.values_mut() {
            member.max_hold = max_hold;
        }
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

    /// That it breaks this invariant, and others with it.
    fn finds(&self, invariant: u8) {
        let found = self.check();
        let is_it = |violation: &Violation| violation.invariant == invariant;
        assert!(found.iter().any(is_it), "{invariant}: {found:#?}");
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
    Step::Wrote(RecordSnapshot { at, record })
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
    story.steps().push(Step::Forgot { at: DONE + SECOND });
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
    story.finds(2);
}

#[test]
fn invariant_3_a_failure_that_does_not_count() {
    let mut story = Story::new();
    for nth in 1..4 {
        story.record(nth).attempt = 1;
    }
    story.finds(3);
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
    story.forget_end(3);
    story.forget_end(2);
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
    story.finds(6);
}

#[test]
fn invariant_6_seen_valid_after_a_successor_was_let_in() {
    let mut story = Story::new();
    story.look(FIRST, [10, 11], true);
    story.look(FIRST, [20, 21], true);
    story.holds();
    story.history.looks[1].at = SECOND_GRANT + 1;
    story.breaks(6);
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
    story.forget_end(3);
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
    story.forget_end(3);
    story.tell(DONE + 4, 3, What::GaveUp);
    story.tell(DONE + 5, 3, What::End);
    story.breaks(8);
}

/// The third waits and the second dies at work; nobody follows for so long.
fn dead_holder(followed_after: u64) -> Story {
    let mut story = Story::new();
    story.steps().truncate(3);
    story.forget_work(2);
    story.fault(Scope::Process(2), SECOND_GRANT + 6, u64::MAX);
    story.forget_end(3);
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
    story.record(2).state = State::Held;
    story.breaks(9);
}

#[test]
fn invariant_10_a_stream_that_is_pending_for_ever() {
    let mut story = Story::new();
    story.forget_end(3);
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
    story.hold_for(200_000);
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
    story.forget_end(3);
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
    story.hold_for(20_000);
    story.holds();
}

#[test]
fn invariant_1_two_guards_of_one_grant() {
    let mut story = Story::new();
    let again = What::Acquired {
        fence: SECOND_GRANT,
        attempt: 2,
    };
    story
        .history
        .told
        .insert(12, told(SECOND_GRANT + 1, 2, again));
    story.breaks(1);
}

#[test]
fn invariant_1_a_token_for_two_whatever_was_forgotten() {
    let mut story = Story::new();
    story.steps().push(Step::Forgot { at: DONE + 1 });
    let at = DONE + SECOND;
    let mut other = held(at, 1, SECOND_GRANT, 3);
    other.owner = Some(Token::from_number(99));
    story.steps().push(wrote(at, other));
    story.breaks(1);
}

#[test]
fn invariant_1_a_renewal_that_shortens_or_changes_hands() {
    let changes: [fn(&mut Record); 3] = [
        |record| record.until -= 1,
        |record| record.owner = Some(Token::from_number(99)),
        |record| record.renewal = 0,
    ];
    for change in changes {
        let mut story = Story::new();
        change(story.record(2));
        story.finds(1);
    }
}

#[test]
fn invariant_1_a_token_without_a_grant() {
    let mut story = Story::new();
    let at = DONE + 10 * SECOND;
    let open = Record {
        state: State::Open,
        owner: None,
        ..held(at, 0, at, 3)
    };
    story.steps().push(wrote(at, open));
    story.breaks(1);
}

#[test]
fn invariant_1_a_guard_of_another_attempt_or_worker() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if let What::Acquired { attempt, .. } = &mut told.what {
            *attempt = 1;
        }
    }
    story.breaks(1);
    let mut story = Story::new();
    story.history.members.get_mut(&2).unwrap().label = "another".to_owned();
    story.finds(1);
}

/// What a restarted server has kept, it has kept, whoever saw it.
fn restarted(story: &mut Story, at: u64) {
    story.steps().push(Step::Unwatched {
        from: at,
        to: at + MS,
    });
}

#[test]
fn invariant_1_a_second_holder_after_a_restart_with_a_log() {
    let mut story = Story::new();
    story.steps().truncate(3);
    story.forget_work(2);
    story.forget_end(3);
    restarted(&mut story, SECOND_GRANT + 10);
    let at = SECOND_GRANT + 100 * MS;
    let third = after(held(at, 3, at, 3), 2, Cause::Expired);
    story.steps().push(wrote(at, third));
    story.tell(
        at + 1,
        3,
        What::Acquired {
            fence: at,
            attempt: 3,
        },
    );
    story.tell(at + 400 * MS, 3, What::Left);
    story.tell(at + 400 * MS, 2, What::Left);
    story.breaks(1);
    // The same if the first says that it is valid.
    story.tell(
        at + 300 * MS,
        2,
        What::Valid {
            fence: SECOND_GRANT,
        },
    );
    story.finds(6);
}

#[test]
fn invariant_2_a_token_that_nobody_was_given() {
    let mut story = Story::new();
    story.steps().push(Step::Forgot {
        at: DONE + 100 * SECOND,
    });
    let accepted = vec![FIRST, FIRST + 5, SECOND_GRANT];
    story.history.accepted.insert(KEY.to_owned(), accepted);
    story.breaks(2);
}

#[test]
fn invariant_2_a_rightful_holder_is_refused() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if let What::Wrote {
            fence: SECOND_GRANT,
            accepted,
        } = &mut told.what
        {
            *accepted = false;
        }
    }
    story.breaks(2);
}

#[test]
fn invariant_2_a_write_that_was_not_taken() {
    let mut story = Story::new();
    story.history.accepted.insert(KEY.to_owned(), vec![FIRST]);
    story.breaks(2);
}

#[test]
fn invariant_3_a_dead_attempt_that_does_not_count() {
    let mut story = dead_holder(5 * MS);
    for nth in [3, 4] {
        let record = story.record(nth);
        *record = after(record.clone(), 1, Cause::Dropped);
        record.attempt = 2;
    }
    for told in &mut story.history.told {
        match &mut told.what {
            What::Acquired { attempt, .. } | What::Completed { attempt, .. }
                if told.process == 3 =>
            {
                *attempt = 2;
            }
            _ => {}
        }
    }
    story.breaks(3);
}

#[test]
fn invariant_3_a_failure_that_gives_its_attempt_back() {
    let mut story = Story::new();
    let open = Record {
        state: State::Open,
        owner: None,
        attempt: 0,
        ..after(held(START, 1, FIRST, 1), 1, Cause::Dropped)
    };
    story.steps().insert(1, wrote(SECOND_GRANT - 1, open));
    story.record(2).state = State::Held;
    for nth in 2..5 {
        story.record(nth).attempt = 1;
    }
    for told in &mut story.history.told {
        match &mut told.what {
            What::Acquired { attempt, .. } | What::Completed { attempt, .. } => *attempt = 1,
            _ => {}
        }
    }
    story.breaks(3);
}

#[test]
fn invariant_3_a_run_that_is_given_up_too_early() {
    let mut story = Story::new();
    story.steps().truncate(1);
    let gave_up = Record {
        state: State::GaveUp,
        owner: None,
        until: SECOND_GRANT / MS + RETENTION,
        ..after(held(START, 1, FIRST, 1), 1, Cause::Dropped)
    };
    story.steps().push(wrote(SECOND_GRANT, gave_up));
    story.history.accepted.insert(KEY.to_owned(), vec![FIRST]);
    story
        .history
        .told
        .retain(|told| told.process == 1 || told.at <= START + 1);
    for process in [2, 3] {
        story.tell(SECOND_GRANT + 2, process, What::GaveUp);
        story.tell(SECOND_GRANT + 3, process, What::End);
    }
    story.breaks(3);
    // Its holder may give it up for all.
    for told in &mut story.history.told {
        if let What::Ending { how, .. } = &mut told.what {
            *how = How::FailedPermanently;
        }
    }
    story.holds();
}

#[test]
fn invariant_3_a_maximum_that_changes() {
    let mut story = Story::new();
    for nth in 1..4 {
        story.record(nth).max_attempts = 4;
    }
    story.breaks(3);
}

#[test]
fn invariant_4_a_completion_outlives_a_restart_with_a_log() {
    let mut story = Story::new();
    restarted(&mut story, DONE + 10);
    let at = DONE + 100 * MS;
    story.steps().push(wrote(at, held(at, 1, at, 3)));
    story.breaks(4);
    // But not one that forgets.
    story.steps().insert(4, Step::Forgot { at: DONE + 9 });
    story.holds();
}

#[test]
fn invariant_5_nothing_is_excused_by_what_is_forgotten() {
    let mut story = Story::new();
    story.steps().truncate(3);
    story.steps().push(Step::Forgot {
        at: DONE + 2 * SECOND,
    });
    story.finds(5);
    story.finds(8);
    // What nobody saw is, but only if it was then.
    restarted(&mut story, DONE + 100 * SECOND);
    story.finds(5);
    story.steps().truncate(3);
    restarted(&mut story, DONE);
    story.holds();
}

#[test]
fn invariant_5_lost_although_it_was_recorded() {
    for (answer, breaks) in [
        (Answer::Lost, true),
        (Answer::Refused, true),
        (Answer::Unknown, false),
    ] {
        let mut story = Story::new();
        for told in &mut story.history.told {
            if let What::Ended { answer: told, .. } = &mut told.what {
                *told = answer;
            }
        }
        match breaks {
            true => story.breaks(5),
            false => story.holds(),
        }
    }
}

#[test]
fn invariant_5_a_completion_before_it_was_asked_for() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if matches!(
            told.what,
            What::Ending {
                how: How::Done(_),
                ..
            }
        ) {
            told.at = DONE + 10 * MS;
        }
    }
    story.finds(5);
}

#[test]
fn invariant_5_a_failure_that_was_not_recorded() {
    let mut story = Story::new();
    let ended = What::Ended {
        fence: FIRST,
        answer: Answer::Ok,
    };
    story
        .history
        .told
        .insert(9, told(SECOND_GRANT + 1, 1, ended));
    story.holds();
    story.steps().truncate(1);
    let found = story.check();
    let about = |violation: &Violation| {
        violation.invariant == 5 && violation.what.contains("Dropped was not recorded")
    };
    assert!(found.iter().any(about), "{found:#?}");
}

#[test]
fn invariant_7_a_failure_of_somebody_elses() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if told.process == 3 && matches!(told.what, What::Completed { .. }) {
            told.what = What::Failed;
        }
    }
    story.breaks(7);
}

#[test]
fn invariant_7_a_fatal_error() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if told.process == 3 && matches!(told.what, What::Completed { .. }) {
            told.what = What::Fatal("malformed record".to_owned());
        }
    }
    story.breaks(7);
}

#[test]
fn invariant_8_somebody_else_or_another_attempt() {
    let changes: [fn(&mut String, &mut u32); 2] = [
        |holder, _| *holder = "worker-9".to_owned(),
        |_, attempt| *attempt = 3,
    ];
    for change in changes {
        let mut story = Story::new();
        for told in &mut story.history.told {
            if let What::Completed {
                holder, attempt, ..
            } = &mut told.what
            {
                change(holder, attempt);
            }
        }
        story.breaks(8);
    }
}

#[test]
fn invariant_8_before_it_was_recorded() {
    let mut story = Story::new();
    for told in &mut story.history.told {
        if told.process == 3 && told.at > DONE {
            told.at = DONE - 5;
        }
    }
    story.breaks(8);
}

#[test]
fn invariant_8_the_result_of_a_run_that_is_long_over() {
    let mut story = Story::new();
    let late = 10 * SECOND;
    for told in &mut story.history.told {
        if told.process == 3 && told.at > DONE {
            told.at += late;
        }
    }
    story.breaks(8);
    // Unless it could not hear.
    story.fault(Scope::Process(3), DONE, DONE + late);
    story.holds();
}

/// A key lives from when it is set, and a server can be stopped before that, in the middle of the script.
#[test]
fn invariant_8_the_result_of_a_script_that_a_stop_held_up() {
    let (script, stop) = (200 * MS, 3 * SECOND);
    for (began, explains) in [(DONE + script, true), (DONE + script + 1, false)] {
        let mut story = Story::new();
        let over = began + stop;
        story.history.members.insert(4, member(4));
        story.tell(over + MS, 4, What::Joined { rejoins: false });
        story.tell(over + 2 * MS, 4, completed("42"));
        story.tell(over + 3 * MS, 4, What::End);
        story.fault(Scope::Server, began, over);
        match explains {
            true => story.holds(),
            false => story.breaks(8),
        }
    }
}

#[test]
fn invariant_9_to_the_millisecond() {
    dead_holder(3 * SECOND).holds();
    dead_holder(3 * SECOND + MS).breaks(9);
}

#[test]
fn a_fault_excuses_as_long_as_it_can_be_felt_and_nobody_else() {
    let free = SECOND_GRANT + LEASE * MS;
    let grace = 6 * SECOND;
    for (scope, from, to, excuses) in [
        (Scope::Server, free - grace - SECOND, free - grace, true),
        (
            Scope::Server,
            free - grace - SECOND,
            free - grace - 1,
            false,
        ),
        (Scope::Process(3), free - grace - SECOND, free - grace, true),
        (
            Scope::Process(3),
            free - grace - SECOND,
            free - grace - 1,
            false,
        ),
        (Scope::Process(1), free, free + SECOND, false),
        (Scope::Server, free + 3 * SECOND, free + 4 * SECOND, true),
        (
            Scope::Server,
            free + 3 * SECOND + 1,
            free + 4 * SECOND,
            false,
        ),
    ] {
        let mut story = dead_holder(10 * SECOND);
        story.fault(scope, from, to);
        match excuses {
            true => story.holds(),
            false => story.breaks(9),
        }
    }
}

#[test]
fn only_what_is_free_while_somebody_waits_is_a_takeover() {
    let examined = |story: &Story| check(&story.history).examined[9];
    assert_eq!(
        examined(&Story::new()),
        0,
        "handed off and done: nothing was ever free"
    );
    let story = dead_holder(5 * MS);
    assert_eq!(examined(&story), 1);
    assert_eq!(check(&story.history).takeovers, [5 * MS]);
    let mut story = dead_holder(5 * MS);
    // It came only after the lease had ended.
    story.history.told[2].at = SECOND_GRANT + LEASE * MS + 1;
    story.history.told.remove(4);
    assert_eq!(examined(&story), 0);
}

#[test]
fn invariant_10_a_stream_that_ends_much_too_late() {
    for (late, breaks) in [(0, false), (60 * SECOND, true)] {
        let mut story = Story::new();
        story.history.finishing = DONE;
        for told in &mut story.history.told {
            if told.process == 3 && told.what == What::End {
                told.at += late;
            }
        }
        match breaks {
            true => story.breaks(10),
            false => story.holds(),
        }
    }
}

#[test]
fn invariant_10_only_a_kill_excuses_and_only_its_own() {
    let mut story = Story::new();
    story.forget_end(3);
    story.fault(Scope::Process(3), DONE, DONE + SECOND);
    story.fault(Scope::Process(1), DONE, u64::MAX);
    story.breaks(10);
}

/// The third leaves, and the server holds the key for it on and on.
fn left_behind(lease: u64) -> Story {
    let mut story = Story::new();
    story.forget_end(3);
    story.tell(DONE + 2, 3, What::Left);
    story.hold_for(lease);
    let at = DONE + RETENTION * MS + SECOND;
    let mut granted = held(at, 1, at, 3);
    granted.until = at / MS + lease;
    story.steps().push(wrote(at, granted));
    story
}

#[test]
fn invariant_11_a_grant_that_nobody_took() {
    left_behind(3_000).holds();
    left_behind(3_002).breaks(11);
    // Who is dead can't give it back.
    let mut story = left_behind(3_002);
    story.fault(Scope::Process(3), DONE + 3, u64::MAX);
    story.holds();
}

#[test]
fn invariant_11_what_is_still_held_at_the_end() {
    let mut story = left_behind(30_000);
    story.history.ended = DONE + RETENTION * MS + 2 * SECOND;
    story.breaks(11);
    story.fault(Scope::Process(3), DONE + 1, DONE + 2);
    story.breaks(11);
    story.fault(
        Scope::Process(1),
        DONE + RETENTION * MS + 2 * SECOND,
        u64::MAX,
    );
    story.breaks(11);
    let began = DONE + RETENTION * MS + SECOND;
    story.fault(Scope::Process(3), began + 1, u64::MAX);
    story.holds();
}

#[test]
fn invariant_11_each_has_a_cap_of_its_own() {
    let mut story = Story::new();
    story.record(2).until = SECOND_GRANT / MS + 20_000;
    story.history.members.get_mut(&1).unwrap().max_hold = 30_000;
    story.breaks(11);
}

#[test]
fn each_invariant_is_examined_and_counted() {
    let mut all = check(&seen_in_turn().history).examined;
    for (all, one) in all
        .iter_mut()
        .zip(check(&dead_holder(5 * MS).history).examined)
    {
        *all += one;
    }
    let mut story = Story::new();
    let at = DONE + RETENTION * MS;
    story.steps().push(wrote(at, held(at, 1, at, 3)));
    all[4] += check(&story.history).examined[4];
    assert!(all[1..].iter().all(|count| *count > 0), "{all:?}");
}

#[test]
fn after_a_loss_all_is_checked_again() {
    let mut story = Story::new();
    story.steps().push(Step::Forgot { at: DONE + 1 });
    let at = DONE + SECOND;
    story.steps().push(wrote(at, held(at, 1, at, 4)));
    story.holds();
    let early = at + 100 * MS;
    let other = after(held(early, 2, early, 4), 1, Cause::Expired);
    story.steps().push(wrote(early, other));
    story.breaks(1);
}

#[test]
fn invariant_1_an_attempt_that_somebody_else_fails() {
    let mut story = Story::new();
    story.steps().truncate(3);
    story.forget_work(2);
    story.forget_end(3);
    let open = Record {
        state: State::Open,
        owner: None,
        until: DONE / MS + RETENTION,
        ..after(held(SECOND_GRANT, 2, SECOND_GRANT, 2), 2, Cause::Dropped)
    };
    story.steps().push(wrote(DONE, open));
    story.tell(DONE + SECOND, 2, What::Left);
    story.tell(DONE + 2, 3, What::Left);
    story.breaks(1);
}

#[test]
fn invariant_1_a_hand_over_that_is_not_waited_for() {
    let mut story = Story::new();
    story.steps().truncate(2);
    for process in [2, 3] {
        story.forget(process.into(), |what| !matches!(what, What::Joined { .. }));
        story.tell(DONE + SECOND, process, What::Left);
    }
    story.history.accepted.insert(KEY.to_owned(), vec![FIRST]);
    let at = SECOND_GRANT + 100 * MS;
    let taken = after(held(at, 2, at, 4), 1, Cause::Dropped);
    story.steps().push(wrote(at, taken.clone()));
    story.breaks(1);
    // Once its time is over it may be taken, as the same attempt.
    story.steps().pop();
    let at = SECOND_GRANT + LEASE * MS;
    let taken = Record {
        fence: at,
        until: at / MS + LEASE,
        owner: Some(Token::from_number(at.into())),
        ..taken
    };
    story.steps().push(wrote(at, taken));
    story.holds();
}

#[test]
fn invariant_3_an_attempt_that_is_handed_over_stays_the_same() {
    for (attempt, holds) in [(1, true), (2, false)] {
        let mut story = Story::new();
        for told in &mut story.history.told {
            match &mut told.what {
                What::Ending {
                    how: how @ How::Dropped,
                    ..
                } => *how = How::HandedOff,
                What::Acquired {
                    attempt: told,
                    fence: SECOND_GRANT,
                } => *told = attempt,
                What::Completed { attempt: told, .. } => *told = attempt,
                _ => {}
            }
        }
        for nth in 1..4 {
            let record = story.record(nth);
            record.attempt = attempt;
            record.previous.as_mut().unwrap().cause = Cause::HandedOff;
        }
        match holds {
            true => story.holds(),
            false => story.breaks(3),
        }
    }
}

#[test]
fn invariant_3_a_late_duplicate_of_the_last_claim() {
    let mut story = dead_holder(5 * MS);
    let first = story.record(0).owner;
    story.record(2).last = first;
    for nth in [3, 4] {
        story.record(nth).owner = first;
    }
    story.breaks(3);
}

#[test]
fn invariant_3_an_open_run_that_is_given_up_too_early() {
    let mut story = Story::new();
    story.steps().truncate(1);
    let open = Record {
        state: State::Open,
        owner: None,
        until: SECOND_GRANT / MS + RETENTION,
        ..after(held(START, 1, FIRST, 1), 1, Cause::Dropped)
    };
    story.steps().push(wrote(SECOND_GRANT, open.clone()));
    let gave_up = Record {
        state: State::GaveUp,
        ..open
    };
    story.steps().push(wrote(SECOND_GRANT + 1, gave_up));
    story.history.accepted.insert(KEY.to_owned(), vec![FIRST]);
    story
        .history
        .told
        .retain(|told| told.process == 1 || told.at <= START + 1);
    for process in [2, 3] {
        story.tell(SECOND_GRANT + 2, process, What::GaveUp);
        story.tell(SECOND_GRANT + 3, process, What::End);
    }
    story.breaks(3);
}

#[test]
fn invariant_5_a_failure_instead_of_which_something_else_was_recorded() {
    let mut story = Story::new();
    let ended = What::Ended {
        fence: FIRST,
        answer: Answer::Ok,
    };
    story
        .history
        .told
        .insert(9, told(SECOND_GRANT + 1, 1, ended));
    let renewed = Record {
        renewal: 1,
        ..held(START, 1, FIRST, 1)
    };
    story.steps()[1] = wrote(SECOND_GRANT, renewed);
    story.finds(5);
}

#[test]
fn invariant_7_before_it_was_polled() {
    let mut story = Story::new();
    story.forget(3, |what| matches!(what, What::Joined { .. }));
    story.breaks(7);
}

#[test]
fn invariant_7_two_terminal_events_in_a_row() {
    let mut story = Story::new();
    let end = story.history.told.len() - 1;
    story
        .history
        .told
        .insert(end, told(DONE + 3, 3, completed("42")));
    story.breaks(7);
}

#[test]
fn invariant_11_who_died_before_is_not_who_holds() {
    let mut story = left_behind(30_000);
    story.history.ended = DONE + RETENTION * MS + 2 * SECOND;
    story.fault(Scope::Process(3), DONE + 3, u64::MAX);
    story.breaks(11);
}

#[test]
fn what_one_script_does_twice_to_a_key_is_in_one_microsecond() {
    let mut story = Story::new();
    // Granted, and given back before it was seen, by requests that travelled together.
    let at = DONE + 10 * SECOND;
    let granted = held(at, 1, at, 4);
    let open = Record {
        state: State::Open,
        attempt: 0,
        owner: None,
        until: at / MS + RETENTION,
        ..granted.clone()
    };
    story.steps().push(wrote(at, granted));
    story.steps().push(wrote(at, open));
    story.holds();
}

#[test]
fn who_has_left_does_not_wait_when_its_guard_ends() {
    for (left, breaks) in [(true, false), (false, true)] {
        let mut story = dead_holder(10 * SECOND);
        // The third comes too late to be waited for; the fourth worked on another run before.
        story.forget(3, |what| matches!(what, What::NotTerminal));
        for told in &mut story.history.told {
            if told.process == 3 && matches!(told.what, What::Joined { .. }) {
                told.at = SECOND_GRANT + 10 * SECOND;
            }
        }
        let fence = START - 500;
        story.tell(START - 400, 4, What::Joined { rejoins: true });
        if left {
            story.tell(START - 300, 4, What::Left);
        }
        story.tell(
            START - 200,
            4,
            What::Ending {
                fence,
                how: How::Dropped,
            },
        );
        let answer = Answer::Unknown;
        story.tell(START - 100, 4, What::Ended { fence, answer });
        let late = |violation: &Violation| violation.invariant == 9;
        assert_eq!(
            story.check().iter().any(late),
            breaks,
            "{:#?}",
            story.check()
        );
    }
}

/// The first guard is seen valid from 11 to 30 of the samplers' clock, the second from 41 to 60.
fn seen_in_turn() -> Story {
    let mut story = Story::new();
    for (fence, from) in [(FIRST, 10), (SECOND_GRANT, 40)] {
        story.look(fence, [from, from + 1], true);
        story.look(fence, [from + 20, from + 21], true);
        story.look(fence, [from + 25, from + 26], false);
    }
    story
}

#[test]
fn invariant_12_two_guards_seen_valid_at_once() {
    let mut story = seen_in_turn();
    story.holds();
    // The second is valid before the last look at the first.
    story.history.looks[3].before = 29;
    story.history.looks[3].after = 30;
    story.breaks(12);
    // That look may have been at any instant until it came back.
    story.history.looks[3].after = 31;
    story.holds();
}

#[test]
fn invariant_12_a_single_look_within_anothers_time() {
    let look_at_the_second = |between| {
        let mut story = Story::new();
        story.look(FIRST, [10, 11], true);
        story.look(FIRST, [30, 31], true);
        story.look(SECOND_GRANT, between, true);
        story
    };
    look_at_the_second([11, 30]).breaks(12);
    // Before it was certainly valid, or after.
    look_at_the_second([9, 10]).holds();
    look_at_the_second([10, 25]).holds();
    look_at_the_second([30, 31]).holds();
}

#[test]
fn invariant_12_single_looks_say_nothing_of_each_other() {
    let mut story = Story::new();
    story.look(FIRST, [10, 20], true);
    story.look(SECOND_GRANT, [11, 19], true);
    story.holds();
}

#[test]
fn invariant_12_looks_at_another_key() {
    let mut story = seen_in_turn();
    for look in &mut story.history.looks[3..] {
        look.key = format!("{KEY} in database 1");
        look.before -= 30;
        look.after -= 30;
    }
    story.holds();
}

#[test]
fn invariant_12_valid_again() {
    let mut story = seen_in_turn();
    story.look(FIRST, [36, 37], true);
    story.breaks(12);
    // The look that said so may have been the later one.
    story.history.looks[6].before = 35;
    story.holds();
}

#[test]
fn invariant_12_a_loss_excuses_only_what_came_before_it() {
    let at_once = |lost_at| {
        let mut story = seen_in_turn();
        for look in &mut story.history.looks[3..] {
            look.before -= 30;
            look.after -= 30;
        }
        let place = match lost_at {
            SECOND_GRANT.. => 2,
            _ => 1,
        };
        story.steps().insert(place, Step::Forgot { at: lost_at });
        story
    };
    at_once(SECOND_GRANT - 1).holds();
    at_once(SECOND_GRANT + 1).finds(12);
}

#[test]
fn long_results_are_told_apart() {
    let long = |last: u8| [vec![b'x'; 1_000], vec![last]].concat();
    assert_eq!(brief(&long(b'a')), brief(&long(b'a')));
    assert_ne!(brief(&long(b'a')), brief(&long(b'b')));
    assert_ne!(brief(&long(b'x')), brief(&[b'x'; 1_002]));
    assert!(brief(&long(b'a')).len() < 128);
    let short = [b'x'; 128];
    assert_eq!(brief(&short), short);
}

#[test]
fn invariant_8_the_outcome_of_another_database() {
    let mut story = Story::new();
    let elsewhere = |at, what| Told {
        stream: 9,
        key: format!("{KEY} in database 1"),
        ..told(at, 3, what)
    };
    let heard = [What::Joined { rejoins: false }, completed("42"), What::End];
    let heard = heard.into_iter().zip(DONE..);
    story
        .history
        .told
        .extend(heard.map(|(what, at)| elsewhere(at, what)));
    story.breaks(8);
    let there = format!("{KEY} in database 1");
    let steps = story.steps().clone();
    story.history.audit.insert(there, steps);
    assert!(story.check().iter().all(|found| found.invariant != 8));
}
