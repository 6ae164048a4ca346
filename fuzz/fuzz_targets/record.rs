//! Any record: its text is read as what it was written from. With one byte changed it is refused, or is
//! the text of another record.
#![no_main]

#[path = "../../testkit/src/text.rs"]
mod text;

use std::sync::Arc;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use redis_locking_worker::internals::{Cause, RecordSnapshot, Previous, Record, State, Token};

#[derive(Debug)]
struct Case {
    at: u64,
    line: bool,
    record: Record,
    /// Which byte is changed, and to what.
    place: usize,
    byte: u8,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        const MICROS: u64 = 9_999_999_999_999_999;
        const FENCES: u64 = (1 << 53) - 1;
        const MILLIS: u64 = 99_999_999_999_999;
        let state = u.choose(&[
            State::Granted,
            State::Held,
            State::Open,
            State::Done,
            State::GaveUp,
        ])?;
        let causes = [
            Cause::Dropped,
            Cause::Panicked,
            Cause::Failed,
            Cause::Expired,
            Cause::HandedOff,
        ];
        let previous = match u.arbitrary()? {
            false => None,
            true => Some(Previous {
                attempt: u.int_in_range(1..=u32::MAX)?,
                cause: *u.choose(&causes)?,
                holder: u.arbitrary()?,
                reason: u.arbitrary()?,
            }),
        };
        Ok(Self {
            at: u.int_in_range(1..=MICROS)?,
            line: u.arbitrary()?,
            place: u.arbitrary()?,
            byte: u.arbitrary()?,
            record: Record {
                state: *state,
                attempt: u.int_in_range(u32::from(*state != State::Open)..=u32::MAX)?,
                max_attempts: u.int_in_range(1..=u32::MAX)?,
                fence: u.int_in_range(1..=FENCES)?,
                renewal: u.int_in_range(0..=MILLIS)?,
                until: u.int_in_range(1..=MILLIS)?,
                retention: u.int_in_range(1..=MILLIS)?,
                owner: u.arbitrary::<Option<u128>>()?.map(Token::from_number),
                last: u.arbitrary::<Option<u128>>()?.map(Token::from_number),
                previous,
                holder: u.arbitrary()?,
                checkpoint: u.arbitrary::<Vec<u8>>()?.into(),
                result: u.arbitrary::<Vec<u8>>()?.into(),
            },
        })
    }
}

fuzz_target!(|case: Case| {
    let mut text = text::encode(&case.record, case.at, case.line);
    let frame = RecordSnapshot {
        at: case.at,
        record: Some(Arc::new(case.record)),
    };
    assert_eq!(text::decode(&text), Some(frame));
    let place = case.place % text.len();
    text[place] = case.byte;
    text::decode(&text);
});
