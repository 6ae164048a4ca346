//! Texts that are records, or nearly: the scripts accept what the decoder accepts, and leave alone what it
//! refuses.
//!
//! `PROPTEST_CASES` sets the number of cases, 1,000 by default. `fuzz/` searches the decoder alone, and deeper.

use testkit::text;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use redis_locking_worker::internals::{
    Cause, Failure, Op, Outcome, Pace, Previous, Record, RecordSnapshot, RedisStore, State, Store,
    Token,
};
use redis_locking_worker::{Error, Key};

use testkit::bench::{claim, renew, settle, token, withdraw};
use testkit::{Server, command};

fn token_or_none() -> impl Strategy<Value = Option<Token>> {
    prop_oneof![
        Just(None),
        Just(Some(token(1))),
        any::<u128>().prop_map(|number| Some(token(number))),
    ]
}

fn previous() -> impl Strategy<Value = Option<Previous>> {
    let causes = vec![
        Cause::Dropped,
        Cause::Panicked,
        Cause::Failed,
        Cause::Expired,
        Cause::HandedOff,
    ];
    let previous = (1..4u32, select(causes), ".{0,12}", ".{0,12}");
    proptest::option::of(
        previous.prop_map(|(attempt, cause, holder, reason)| Previous {
            attempt,
            cause,
            holder,
            reason,
        }),
    )
}

/// A record; the server's time at which it was written; and whether anybody has waited.
fn record() -> impl Strategy<Value = (Record, u64, bool)> {
    let states = vec![
        State::Granted,
        State::Held,
        State::Open,
        State::Done,
        State::GaveUp,
    ];
    // In the past, and far from it.
    let until = prop_oneof![
        1..1_000_000_000_000u64,
        90_000_000_000_000..100_000_000_000_000u64
    ];
    let numbers = (
        1..4u32,
        1..4u32,
        1..9_000_000_000_000_000u64,
        0..20u64,
        until,
        1..100_000_000u64,
    );
    let texts = (".{0,12}", vec(any::<u8>(), 0..12), vec(any::<u8>(), 0..12));
    let tokens = (token_or_none(), token_or_none());
    (
        select(states),
        numbers,
        tokens,
        previous(),
        texts,
        1..9_000_000_000_000_000u64,
        any::<bool>(),
    )
        .prop_map(
            |(state, numbers, (owner, last), previous, (holder, checkpoint, result), at, line)| {
                let (attempt, max_attempts, fence, renewal, until, retention) = numbers;
                let record = Record {
                    state,
                    attempt,
                    max_attempts,
                    fence,
                    renewal,
                    until,
                    retention,
                    owner,
                    last,
                    previous,
                    holder,
                    checkpoint: checkpoint.into(),
                    result: result.into(),
                };
                (record, at, line)
            },
        )
}

/// What may happen to a text.
#[derive(Clone, Debug)]
enum Edit {
    Byte(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, Index),
    /// A word comes twice.
    Double(Index),
    /// Digits before a number.
    Number(Index, Vec<u8>),
    /// What stands between two words, or behind a payload.
    Separator(&'static [u8], Index, u8),
    /// One name or one word for another.
    Word(&'static str, &'static str),
}

const SEPARATORS: &[u8] = b" =/:,\n-";

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    let byte = || prop_oneof![any::<u8>(), select(b"0123456789abcdef".as_slice())];
    let digits = prop_oneof![
        Just(b"0".to_vec()),
        vec(select(b"0123456789".as_slice()), 1..20)
    ];
    let words = vec![
        ("held", "open"),
        ("open", "granted"),
        ("dropped", "-"),
        (":-", ":dropped"),
        ("previous=0", "previous=1"),
        ("previous=1", "previous=0"),
        ("attempt=1", "attempt=0"),
        ("line=0", "line=2"),
        ("lw1", "lw2"),
    ];
    prop_oneof![
        3 => (place(), byte()).prop_map(|(place, byte)| Edit::Byte(place, byte)),
        1 => (place(), vec(byte(), 1..3)).prop_map(|(place, bytes)| Edit::Insert(place, bytes)),
        1 => (place(), place()).prop_map(|(from, to)| Edit::Cut(from, to)),
        1 => place().prop_map(Edit::Double),
        3 => (place(), digits).prop_map(|(place, digits)| Edit::Number(place, digits)),
        2 => (select(vec![SEPARATORS, b"\n"]), place(), select(SEPARATORS))
            .prop_map(|(which, place, byte)| Edit::Separator(which, place, byte)),
        2 => select(words).prop_map(|(from, to)| Edit::Word(from, to)),
    ]
}

impl Edit {
    fn apply(&self, text: &mut Vec<u8>) {
        let places =
            |is: &dyn Fn(usize) -> bool| (0..text.len()).filter(|at| is(*at)).collect::<Vec<_>>();
        let pick = |places: Vec<usize>, index: &Index| {
            let found = (!places.is_empty()).then(|| places[index.index(places.len())]);
            found.unwrap_or(text.len())
        };
        match self {
            Edit::Byte(place, byte) => {
                let at = place.index(text.len() + 1);
                text.splice(at..(at + 1).min(text.len()), [*byte]);
            }
            Edit::Insert(place, bytes) => {
                let at = place.index(text.len() + 1);
                text.splice(at..at, bytes.iter().copied());
            }
            Edit::Cut(one, other) => {
                let (one, other) = (one.index(text.len() + 1), other.index(text.len() + 1));
                text.drain(one.min(other)..one.max(other));
            }
            Edit::Double(place) => {
                let words: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b' ').collect();
                let nth = place.index(words.len().max(1));
                let word = words.get(nth).map(|word| word.to_vec()).unwrap_or_default();
                let at: usize = words.iter().take(nth).map(|word| word.len()).sum();
                text.splice(at..at, word);
            }
            Edit::Number(place, digits) => {
                let begins = |at: usize| {
                    text[at].is_ascii_digit() && at > 0 && SEPARATORS.contains(&text[at - 1])
                };
                let at = pick(places(&begins), place);
                text.splice(at..at, digits.iter().copied());
            }
            Edit::Separator(which, place, byte) => {
                let at = pick(places(&|at| which.contains(&text[at])), place);
                text.splice(at..(at + 1).min(text.len()), [*byte]);
            }
            Edit::Word(from, to) => {
                let found = text
                    .windows(from.len())
                    .position(|word| word == from.as_bytes());
                if let Some(at) = found {
                    text.splice(at..at + from.len(), to.bytes());
                }
            }
        }
    }
}

/// A text, and the fencing token that it had before it was edited.
fn nearly() -> impl Strategy<Value = (Vec<u8>, u64)> {
    (record(), vec(edit(), 0..3)).prop_map(|((record, at, line), edits)| {
        let mut text = text::encode(&record, at, line);
        edits.iter().for_each(|edit| edit.apply(&mut text));
        (text, record.fence)
    })
}

fn runner(more: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").map_or(1_000, |cases| cases.parse().unwrap());
    TestRunner::new(Config {
        cases: cases * more,
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn what_is_accepted_has_no_other_text() {
    let read = runner(4).run(&nearly(), |(text, _)| {
        text::decode(&text);
        Ok(())
    });
    read.unwrap();
}

/// Completing a run does not read what is between the fencing token and the result: whoever knows the token
/// holds the grant.
fn is_completed_unread(op: &Op, text: &[u8], fence: u64) -> bool {
    let done = matches!(
        op,
        Op::Settle {
            outcome: Outcome::Done(_),
            ..
        }
    );
    let end = format!(" fence={fence} line=0 ");
    let end = text
        .windows(end.len())
        .position(|part| part == end.as_bytes());
    done && text.starts_with(b"lw1 held at=") && end.is_some()
}

#[test]
fn the_scripts_leave_alone_what_is_no_record() {
    let real = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = Server::start();
    let (client, store) = real.block_on(async {
        let client = server.client().await;
        (
            client.clone(),
            RedisStore::with_client(client, None, Pace::default())
                .await
                .unwrap(),
        )
    });
    let key = Key::new("k").unwrap();

    let check = async |text: &[u8], op: &Op, fence: u64| {
        // The scripts cannot tell what is UTF-8.
        let ascii: Vec<u8> = text
            .iter()
            .map(|byte| if byte.is_ascii() { *byte } else { b'?' })
            .collect();
        let (ours, theirs) = (text::decode(text).is_some(), text::decode(&ascii).is_some());

        command(&client, [b"DEL", b"{k}:line"]).await;
        command(&client, [b"SET", b"k", text]).await;
        let answer = store.apply(&key, op).await;
        let left = command(&client, [b"GET", b"k"]).await.into_bytes();

        if !theirs && !is_completed_unread(op, text, fence) {
            prop_assert!(
                matches!(answer, Err(Error::UnknownFormat { .. })),
                "{:?}",
                answer
            );
            prop_assert_eq!(left.as_deref(), Some(text));
        }
        prop_assert!(answer.is_ok() || !ours, "{:?}", answer);
        if answer.is_ok() {
            let reads = left.is_none_or(|left| text::decode(&left).is_some());
            prop_assert!(reads, "what was written is no record");
        }
        Ok::<(), TestCaseError>(())
    };
    let found = runner(1).run(&nearly(), |(text, fence)| {
        for op in [
            Op::Inspect,
            claim(1),
            settle(fence, Outcome::Fail(Failure::Dropped)),
            settle(fence, Outcome::HandOff),
            settle(fence, Outcome::Done("42".into())),
            renew(fence, Some("half-way")),
            withdraw(1),
        ] {
            let checked = real.block_on(check(&text, &op, fence));
            checked.map_err(|error| {
                TestCaseError::fail(format!("{}: {op:?}: {error}", text.escape_ascii()))
            })?;
        }
        Ok(())
    });
    found.unwrap();
}

/// Seeds that no longer decode would leave the fuzzer without a record to begin with.
#[test]
fn every_fuzz_seed_is_a_record() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds");
    let mut count = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let path = seed.unwrap().path();
        let text = std::fs::read(&path).unwrap();
        let decoded = RecordSnapshot::decode(&text.into());
        assert!(decoded.is_ok(), "{}: {decoded:?}", path.display());
        count += 1;
    }
    assert_eq!(count, 9);
}
