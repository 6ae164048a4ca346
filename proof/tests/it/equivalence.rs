//! The scripts against the memory store: the same random operations on both, every answer compared.
//! On the server, what comes next on different keys travels together.
//!
//! `PROPTEST_CASES` sets the number of cases, 1,000 by default.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use redis_locking_worker::Key;
use redis_locking_worker::internals::{Failure, Op, Outcome, Reply, Store, Token};
use tokio::runtime::Runtime;

use testkit::bench::{Bench, MemoryBench, RedisBench};

const OPERATIONS: usize = 60;

const KEYS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Claim {
        who: u8,
        lease: u64,
        max_attempts: u32,
        retention: u64,
    },
    Settle {
        grant: Grant,
        outcome: Outcome,
        window: u64,
    },
    Renew {
        grant: Grant,
        lease: u64,
        checkpoint: Option<Vec<u8>>,
    },
    Withdraw {
        who: u8,
        except: Option<Grant>,
        window: u64,
    },
    Clear(u64),
    Inspect,
    Pass(u64),
    Lose,
}

/// Which fencing token an operation names.
#[derive(Clone, Debug)]
enum Grant {
    /// The last one granted.
    Latest,
    /// Any that was granted in this case.
    Some(Index),
    Number(u64),
}

/// Times are multiples of 5 s, so that the real time that a case takes cannot decide what the
/// server has forgotten.
fn span() -> impl Strategy<Value = u64> {
    (1..6u64).prop_map(|n| n * 5_000)
}

fn grant() -> impl Strategy<Value = Grant> {
    prop_oneof![
        6 => Just(Grant::Latest),
        2 => any::<Index>().prop_map(Grant::Some),
        1 => any::<u32>().prop_map(|number| Grant::Number(number.into())),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        2 => vec(any::<u8>(), 0..40).prop_map(|result| Outcome::Done(result.into())),
        3 => Just(Outcome::Fail(Failure::Dropped)),
        2 => Just(Outcome::Fail(Failure::Panicked)),
        3 => any::<String>().prop_map(|reason| Outcome::Fail(Failure::Reason(reason))),
        1 => any::<String>().prop_map(Outcome::FailPermanently),
        3 => Just(Outcome::HandOff),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..5u8;
    prop_oneof![
        12 => (who.clone(), span(), 1..5u32, span()).prop_map(|(who, lease, max_attempts, retention)| {
            Step::Claim { who, lease, max_attempts, retention }
        }),
        6 => (grant(), outcome(), span()).prop_map(|(grant, outcome, window)| {
            Step::Settle { grant, outcome, window }
        }),
        3 => (grant(), span(), proptest::option::of(vec(any::<u8>(), 0..40))).prop_map(
            |(grant, lease, checkpoint)| Step::Renew { grant, lease, checkpoint }
        ),
        4 => (who, proptest::option::weighted(0.5, grant()), span()).prop_map(|(who, except, window)| {
            Step::Withdraw { who, except, window }
        }),
        1 => span().prop_map(Step::Clear),
        1 => Just(Step::Inspect),
        5 => select(vec![5_000, 10_000, 20_000]).prop_map(Step::Pass),
        1 => Just(Step::Lose),
    ]
}

/// Any bytes, and any text, that can be a key.
fn key() -> impl Strategy<Value = Key> {
    let bytes = prop_oneof![
        vec(any::<u8>(), 1..20),
        any::<String>().prop_map(String::into_bytes),
        vec(select(b"ab{}\n\r \0".to_vec()), 1..8),
    ];
    bytes.prop_filter_map("no key", |bytes| Key::new(bytes).ok())
}

/// What a case is: some keys, five workers' labels, and what happens.
fn case() -> impl Strategy<Value = (Vec<Key>, Vec<String>, Vec<(usize, Step)>)> {
    let keys = vec(key(), KEYS).prop_filter("different keys", |keys| {
        keys.iter().collect::<HashSet<_>>().len() == KEYS
    });
    (keys, vec(".{0,12}", 5), vec((0..KEYS, step()), OPERATIONS))
}

struct Both {
    /// Two runtimes: a paused clock would run ahead of a server's answers.
    paused: Runtime,
    real: Runtime,
    memory: MemoryBench,
    redis: RedisBench,
}

impl Both {
    fn new(edit: impl Fn(String) -> String) -> Self {
        let mut paused = tokio::runtime::Builder::new_current_thread();
        let paused = paused.enable_time().start_paused(true).build().unwrap();
        let mut real = tokio::runtime::Builder::new_multi_thread();
        let real = real.worker_threads(1).enable_all().build().unwrap();
        let memory = paused.block_on(async { MemoryBench::default() });
        let now = paused.block_on(async { memory.now() });
        let redis = real.block_on(RedisBench::with_scripts(now, edit));
        Self {
            paused,
            real,
            memory,
            redis,
        }
    }

    /// Begins with nothing, at the same time on both.
    fn reset(&mut self, keys: &[Key]) {
        self.real.block_on(self.redis.flush());
        for key in keys {
            self.paused.block_on(self.memory.lose(key));
        }
    }

    fn apply_all(&mut self, asked: &[(&Key, &Op)]) -> Result<Vec<Reply>, TestCaseError> {
        let expected: Vec<Reply> = asked
            .iter()
            .map(|(key, op)| self.paused.block_on(self.memory.apply(key, op)))
            .collect();
        let actual = self.real.block_on(self.redis.store().apply_all(asked));
        for ((actual, expected), asked) in actual.into_iter().zip(&expected).zip(asked) {
            let actual =
                actual.map_err(|error| TestCaseError::fail(format!("{error:?}, {asked:?}")))?;
            prop_assert_eq!(&actual, expected, "scripts against memory, {:?}", asked);
        }
        Ok(expected)
    }

    /// What is kept beside the record: how long it lives, and who waits.
    fn compare_lives(&mut self, key: &Key) -> Result<(), TestCaseError> {
        let expected = self.paused.block_on(self.memory.life(key));
        let actual = self.real.block_on(self.redis.life(key));
        match (actual, expected) {
            (Some((actual, line)), Some((expected, expected_line))) => {
                prop_assert_eq!(line, expected_line);
                prop_assert!(
                    actual.abs_diff(expected) < 4_000,
                    "{} against {}",
                    actual,
                    expected
                );
            }
            (actual, expected) => prop_assert_eq!(actual.map(|_| ()), expected.map(|_| ())),
        }
        Ok(())
    }

    fn run(
        &mut self,
        keys: &[Key],
        labels: &[String],
        steps: &[(usize, Step)],
    ) -> Result<(), TestCaseError> {
        self.reset(keys);
        let labels: Vec<Arc<str>> = labels.iter().map(|label| label.as_str().into()).collect();
        // A worker that has had a grant draws a new token, as a stream does; now and then the old
        // one comes again, as a late duplicate does.
        let mut tokens: Vec<u128> = (0..5).collect();
        let mut fences = vec![vec![0]; KEYS];
        let mut next = Vec::new();
        for (nth, (key, step)) in steps.iter().enumerate() {
            let op = match step {
                Step::Claim {
                    who,
                    lease,
                    max_attempts,
                    retention,
                } => Op::Claim {
                    token: Token::from_number(tokens[usize::from(*who)]),
                    label: labels[usize::from(*who)].clone(),
                    lease: *lease,
                    max_attempts: *max_attempts,
                    retention: *retention,
                },
                Step::Settle {
                    grant,
                    outcome,
                    window,
                } => Op::Settle {
                    fence: grant.fence(&fences[*key]),
                    outcome: outcome.clone(),
                    window: *window,
                },
                Step::Renew {
                    grant,
                    lease,
                    checkpoint,
                } => Op::Renew {
                    fence: grant.fence(&fences[*key]),
                    lease: *lease,
                    checkpoint: checkpoint.clone().map(Bytes::from),
                },
                Step::Withdraw {
                    who,
                    except,
                    window,
                } => Op::Withdraw {
                    token: Token::from_number(tokens[usize::from(*who)]),
                    label: labels[usize::from(*who)].clone(),
                    except_fence: except.as_ref().map(|grant| grant.fence(&fences[*key])),
                    window: *window,
                },
                Step::Clear(window) => Op::Clear { window: *window },
                Step::Inspect => Op::Inspect,
                Step::Pass(ms) => {
                    self.together(keys, &mut next, &mut tokens, &mut fences)?;
                    self.paused.block_on(self.memory.pass(*ms));
                    self.real.block_on(self.redis.pass(*ms));
                    continue;
                }
                Step::Lose => {
                    self.together(keys, &mut next, &mut tokens, &mut fences)?;
                    self.paused.block_on(self.memory.lose(&keys[*key]));
                    self.real.block_on(self.redis.lose(&keys[*key]));
                    continue;
                }
            };
            if next.iter().any(|(other, _, _)| other == key) {
                self.together(keys, &mut next, &mut tokens, &mut fences)?;
            }
            let grantee = match step {
                Step::Claim { who, .. } if nth % 3 > 0 => Some(usize::from(*who)),
                _ => None,
            };
            next.push((*key, op, grantee));
        }
        self.together(keys, &mut next, &mut tokens, &mut fences)
    }

    /// What comes next, each on a key of its own, and what follows from the answers.
    fn together(
        &mut self,
        keys: &[Key],
        next: &mut Vec<(usize, Op, Option<usize>)>,
        tokens: &mut [u128],
        fences: &mut [Vec<u64>],
    ) -> Result<(), TestCaseError> {
        let asked: Vec<(&Key, &Op)> = next.iter().map(|(key, op, _)| (&keys[*key], op)).collect();
        let replies = self.apply_all(&asked)?;
        for ((key, _, grantee), reply) in next.drain(..).zip(replies) {
            self.compare_lives(&keys[key])?;
            if let Some(record) = reply.record() {
                fences[key].push(record.fence);
            }
            if let (Some(who), true) = (grantee, reply.ok) {
                tokens[who] += 5;
            }
        }
        Ok(())
    }
}

impl Grant {
    fn fence(&self, fences: &[u64]) -> u64 {
        match self {
            Grant::Latest => fences[fences.len() - 1],
            Grant::Some(index) => *index.get(fences),
            Grant::Number(number) => *number,
        }
    }
}

fn search(cases: u32, shrink: u32, edit: impl Fn(String) -> String) -> Result<(), String> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: shrink,
        ..Config::default()
    };
    let both = RefCell::new(Both::new(edit));
    let found = TestRunner::new(config).run(&case(), |(keys, labels, steps)| {
        both.borrow_mut().run(&keys, &labels, &steps)
    });
    found.map_err(|found| found.to_string())
}

#[test]
fn the_scripts_answer_as_the_memory_store_does() {
    let cases = std::env::var("PROPTEST_CASES").map_or(1_000, |cases| cases.parse().unwrap());
    search(cases, 2_000, |script| script).unwrap();
    println!("{cases} cases × {OPERATIONS} operations without a difference");
}

/// A search that finds nothing proves little unless it finds what is there.
#[test]
fn a_mistake_in_a_script_is_found() {
    let mistakes = [
        (
            "an attempt too many",
            "r.attempt >= r.max",
            "r.attempt > r.max",
        ),
        (
            "a lease a ms too long",
            "now_ms >= r.ends",
            "now_ms > r.ends",
        ),
        (
            "a fencing token that stands still",
            "tonumber(now) > tonumber(r.fence) and now or int(r.fence + 1)",
            "now",
        ),
        (
            "a settlement by anybody",
            "or r.fence ~= fence then",
            "then",
        ),
        (
            "a line that is never left",
            "redis.call('ZREM', line, member)",
            "",
        ),
        (
            "a hand-off that counts",
            "grant_to_next(r, r.attempt, window)",
            "grant_to_next(r, r.attempt + 1, window)",
        ),
        (
            "a withdrawal of what is worked on",
            "and r.fence ~= except_fence then",
            "then",
        ),
        ("a late duplicate that is granted", "r.last == token or", ""),
        (
            "a replay that restarts the lease",
            "if r.state == 'granted' then",
            "if true then",
        ),
        (
            "an outcome remembered for ever",
            "redis.call('SET', key, record_text, 'PX', ttl)",
            "redis.call('SET', key, record_text)",
        ),
        ("a line served from its end", "ZPOPMIN", "ZPOPMAX"),
        (
            "a renewal that shortens the lease",
            "math.max(r.ends, now_ms + lease)",
            "now_ms + lease",
        ),
        (
            "a lapsed grant that counts",
            "return take(r.attempt)\n",
            "return take(r.attempt + 1)\n",
        ),
        (
            "a payload cut at a line feed",
            "string.sub(text, p4, p5 - 2)",
            "string.match(string.sub(text, p4, p5 - 2), '^[^\\n]*')",
        ),
        (
            "a key that is taken from whoever has it",
            "'NX', 'GET', 'PX'",
            "'PX'",
        ),
        (
            "a completion by anybody, in the short way",
            "if held == fence then",
            "if held then",
        ),
        (
            "a completion that leaves its line, in the short way",
            "fence=(%d+) line=0 '",
            "fence=(%d+) line=%d '",
        ),
        (
            "a run begun anew under the old fence",
            "  bump_fence(r)\n  r.previous",
            "  r.previous",
        ),
        (
            "a run begun anew with the old reasons",
            "r.previous, r.cause, r.previous_holder, r.reason, r.checkpoint, r.result = 0, '-', '', '', '', ''",
            "r.result = ''",
        ),
        (
            "a lease that is not respected",
            "owned(r) and not over(r)",
            "owned(r) and false",
        ),
        (
            "done work that is claimed again",
            "r.last == token or r.state == 'done' or",
            "r.last == token or",
        ),
        (
            "a fencing token that restarts with each run",
            "' fence=' .. now\n",
            "' fence=1'\n",
        ),
        (
            "a completion that never expires",
            "redis.call('SET', key, record, 'PX', retention)",
            "redis.call('SET', key, record)",
        ),
        (
            "a fraction of a ms",
            "int(lease + retention)",
            "int(lease + retention) .. '.5'",
        ),
        (
            "a checkpoint that is forgotten",
            "r.checkpoint = checkpoint",
            "",
        ),
        (
            "a queue that is not known",
            "r.line = true",
            "r.line = false",
        ),
        (
            "a hand-off that hides a failure",
            "if r.cause == '-' or r.cause == 'handed_off' then",
            "if true then",
        ),
    ];
    let edited = Cell::new(false);
    for (name, correct, wrong) in mistakes {
        let found = search(200, 0, |script| {
            edited.set(edited.get() || script.contains(correct));
            script.replace(correct, wrong)
        });
        assert!(edited.take(), "in no script: {name}");
        assert!(found.is_err(), "not found: {name}");
    }
    println!("{} of {0} mistakes found", mistakes.len());
}
