//! The text form of a record, exactly as the scripts write it.

use bytes::Bytes;
use redis_locking_worker::internals::{Record, RecordSnapshot, Token};

/// Returns the text of a record that was written at this server time in µs. `line` says whether
/// the run has had a waiter.
pub fn encode(record: &Record, at: u64, line: bool) -> Vec<u8> {
    let token = |token: Option<Token>| token.map_or("-".to_owned(), |token| token.to_string());
    let (previous, previous_holder, reason) = match &record.previous {
        None => ("0:-".to_owned(), "", ""),
        Some(previous) => (
            format!("{}:{}", previous.attempt, previous.cause),
            &previous.holder[..],
            &previous.reason[..],
        ),
    };
    let header = format!(
        "lw1 {} at={at} until={} retention={} fence={} line={} attempt={}/{} renewal={} \
         owner={} last={} previous={previous} sizes={},{},{},{}",
        record.state,
        record.until,
        record.retention,
        record.fence,
        u8::from(line),
        record.attempt,
        record.max_attempts,
        record.renewal,
        token(record.owner),
        token(record.last),
        record.holder.len(),
        previous_holder.len(),
        reason.len(),
        record.checkpoint.len(),
    );
    let parts = [
        header.as_bytes(),
        record.holder.as_bytes(),
        previous_holder.as_bytes(),
        reason.as_bytes(),
        &record.checkpoint,
        &record.result,
    ];
    parts.join(&b'\n')
}

/// Decodes a text. Checks that the decoder accepts no text but the one that `encode` gives, byte
/// for byte.
pub fn decode(text: &[u8]) -> Option<RecordSnapshot> {
    let frame = RecordSnapshot::decode(&Bytes::copy_from_slice(text)).ok()?;
    let record = frame.record.as_ref().expect("a record");
    let texts = [false, true].map(|line| encode(record, frame.at, line));
    assert!(
        texts.iter().any(|canonical| canonical == text),
        "{:?} is taken for {record:?}",
        text.escape_ascii().to_string()
    );
    Some(frame)
}
