//! Any bytes as what a script has answered: as a message, but for nothing at all, which is no record, and
//! for the time.
#![no_main]

#[path = "../../testkit/src/text.rs"]
mod text;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use redis_locking_worker::internals::RecordSnapshot;

fuzz_target!(|bytes: &[u8]| {
    let record = match bytes {
        [] => Some(None),
        bytes => text::decode(bytes).map(|frame| frame.record),
    };
    let answer = RecordSnapshot::answered(17, &Bytes::copy_from_slice(bytes));
    assert_eq!(answer.ok(), record.map(|record| RecordSnapshot { at: 17, record }));
});
