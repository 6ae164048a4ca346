//! The decoder of the text form. It is strict: it refuses every text that is not a record, and no
//! record has two texts. `redis/record.lua` refuses the same texts, except for those whose payloads
//! are not UTF-8.

use std::ops::{RangeBounds, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use super::{Malformed, Previous, Record, RecordSnapshot, State, Token};

/// The range of a server's time in µs.
const MICROS: RangeInclusive<u64> = 1..=9_999_999_999_999_999;

/// The range of fencing tokens. The scripts count them as doubles, which are exact up to here.
const FENCES: RangeInclusive<u64> = 1..=(1 << 53) - 1;

/// The range of a server's time or a duration in ms. Lua would write longer numbers with an
/// exponent.
const MILLIS: RangeInclusive<u64> = 1..=99_999_999_999_999;

impl RecordSnapshot {
    /// Decodes a message, which is the text of a record. `at` is the time when the record was
    /// written.
    ///
    /// # Errors
    ///
    /// Returns [`Malformed`] unless the whole text is one record.
    pub fn decode(text: &Bytes) -> Result<Self, Malformed> {
        let (record, at) = Record::decode(text)?;
        let record = Some(Arc::new(record));
        Ok(Self { at, record })
    }

    /// Decodes a script's answer: the text of a record, or an empty text for an absent key. `at` is
    /// the server's time of the answer.
    ///
    /// # Errors
    ///
    /// The same as those of [`RecordSnapshot::decode`].
    pub fn answered(at: u64, text: &Bytes) -> Result<Self, Malformed> {
        let record = match text.is_empty() {
            true => None,
            false => Some(Arc::new(Record::decode(text)?.0)),
        };
        // A record without a TTL can outlive its expiry. It counts as absent, as it does for
        // claims.
        let record = record.filter(|record| record.forgotten_at() > at / 1_000);
        Ok(Self { at, record })
    }
}

impl Record {
    /// Returns the record, and the server's time in µs when it was written.
    fn decode(text: &Bytes) -> Result<(Self, u64), Malformed> {
        let mut header = Header(text);
        header.literal(b"lw1 ", "version")?;
        let state = header.word("state")?.parse()?;
        let at = header.number(b" at=", "at", MICROS)?;
        let until = header.number(b" until=", "until", MILLIS)?;
        let retention = header.number(b" retention=", "retention", MILLIS)?;
        let fence = header.number(b" fence=", "fence", FENCES)?;
        let _: u64 = header.number(b" line=", "line", 0..=1)?;
        // Only an open run may have no counted attempt: after a hand-off or a withdrawal of the
        // first one, or after a clear.
        let least = u64::from(state != State::Open);
        let attempt = header.number(b" attempt=", "attempt", least..)?;
        let max_attempts = header.number(b"/", "max_attempts", 1..)?;
        let renewal = header.number(b" renewal=", "renewal", 0..=*MILLIS.end())?;
        let owner = header.token(b" owner=", "owner")?;
        let last = header.token(b" last=", "last")?;
        let previous = header.number(b" previous=", "previous", 0..)?;
        header.literal(b":", "previous")?;
        let cause = header.word("previous")?;
        let sizes = [
            header.number(b" sizes=", "sizes", 0..)?,
            header.number(b",", "sizes", 0..)?,
            header.number(b",", "sizes", 0..)?,
            header.number(b",", "sizes", 0..)?,
        ];
        header.literal(b"\n", "header")?;

        let mut payloads = Payloads {
            at: text.len() - header.0.len(),
            text,
        };
        let holder = payloads.text(sizes[0], "holder")?;
        let previous_holder = payloads.text(sizes[1], "previous holder")?;
        let reason = payloads.text(sizes[2], "reason")?;
        let checkpoint = payloads.bytes(sizes[3], "checkpoint")?;

        let record = Self {
            state,
            attempt,
            max_attempts,
            fence,
            renewal,
            until,
            retention,
            owner,
            last,
            previous: match (previous, cause) {
                (0, "-") if previous_holder.is_empty() && reason.is_empty() => None,
                (0, _) => return Err(Malformed("previous")),
                (attempt, cause) => Some(Previous {
                    attempt,
                    cause: cause.parse()?,
                    holder: previous_holder,
                    reason,
                }),
            },
            holder,
            checkpoint,
            result: payloads.rest(),
        };
        Ok((record, at))
    }
}

/// The unread part of the first line.
struct Header<'a>(&'a [u8]);

impl<'a> Header<'a> {
    fn literal(&mut self, literal: &[u8], what: &'static str) -> Result<(), Malformed> {
        self.0 = self.0.strip_prefix(literal).ok_or(Malformed(what))?;
        Ok(())
    }

    /// Reads a plain decimal after its name. The scripts write neither a sign nor leading zeros.
    fn number<T: TryFrom<u64>>(
        &mut self,
        name: &[u8],
        what: &'static str,
        within: impl RangeBounds<u64>,
    ) -> Result<T, Malformed> {
        self.literal(name, what)?;
        let digits = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(digits);
        self.0 = rest;
        let number = match digits {
            [] | [b'0', _, ..] => None,
            digits => digits.iter().try_fold(0u64, |number, digit| {
                let digit = u64::from(digit - b'0');
                number.checked_mul(10)?.checked_add(digit)
            }),
        };
        let number = number.filter(|number| within.contains(number));
        number
            .and_then(|number| number.try_into().ok())
            .ok_or(Malformed(what))
    }

    /// Reads up to the next space.
    fn word(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let end = self.0.iter().position(|b| *b == b' ');
        let (word, rest) = self.0.split_at(end.ok_or(Malformed(what))?);
        self.0 = rest;
        std::str::from_utf8(word).map_err(|_| Malformed(what))
    }

    fn token(&mut self, name: &[u8], what: &'static str) -> Result<Option<Token>, Malformed> {
        self.literal(name, what)?;
        match self.word(what)? {
            "-" => Ok(None),
            token => token.parse().map(Some),
        }
    }
}

/// The payloads after the header, read in order by their sizes. The last payload has no size.
struct Payloads<'a> {
    text: &'a Bytes,
    at: usize,
}

impl Payloads<'_> {
    fn bytes(&mut self, size: usize, what: &'static str) -> Result<Bytes, Malformed> {
        let end = self.at.checked_add(size).ok_or(Malformed("sizes"))?;
        if self.text.get(end) != Some(&b'\n') {
            return Err(Malformed(what));
        }
        let payload = self.take(end);
        self.at = end + 1;
        Ok(payload)
    }

    fn text(&mut self, size: usize, what: &'static str) -> Result<String, Malformed> {
        let bytes = self.bytes(size, what)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Malformed(what))?;
        Ok(text.to_owned())
    }

    fn rest(self) -> Bytes {
        self.take(self.text.len())
    }

    fn take(&self, end: usize) -> Bytes {
        match self.at == end {
            true => Bytes::new(),
            // Copies the payload, because a slice would keep the whole answer in memory.
            false => Bytes::copy_from_slice(&self.text[self.at..end]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "lw1 held at=1763900000000009 until=1763900005000 retention=10000 \
        fence=1763900000000001 line=1 attempt=2/5 renewal=3 \
        owner=0000000000000000000000000000002a last=- \
        previous=1:dropped sizes=9,9,0,2\nbilling-7\nbilling-6\n\na\n\n";

    fn decode(text: &str) -> Result<RecordSnapshot, Malformed> {
        RecordSnapshot::decode(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn reads_every_field() {
        let frame = decode(TEXT).unwrap();
        let record = frame.record.unwrap();
        assert_eq!(frame.at, 1_763_900_000_000_009);
        assert_eq!(
            (record.state, record.attempt, record.max_attempts),
            (State::Held, 2, 5)
        );
        assert_eq!(
            (record.fence, record.until),
            (1_763_900_000_000_001, 1_763_900_005_000)
        );
        assert_eq!((record.renewal, record.retention), (3, 10_000));
        assert_eq!(record.owner, Some(Token::from_number(42)));
        assert_eq!(record.last, None);
        assert_eq!(record.holder, "billing-7");
        assert_eq!(record.previous.as_ref().unwrap().holder, "billing-6");
        assert_eq!(
            (&record.checkpoint[..], &record.result[..]),
            (&b"a\n"[..], &b""[..])
        );
    }

    #[test]
    fn what_follows_the_sized_payloads_is_the_result() {
        for result in ["42", "\n", "4\n2\n"] {
            let frame = decode(&[TEXT, result].concat()).unwrap();
            assert_eq!(frame.record.unwrap().result, result);
        }
    }

    #[test]
    fn an_absent_key_is_no_text() {
        let absent = RecordSnapshot {
            at: 17,
            record: None,
        };
        assert_eq!(RecordSnapshot::answered(17, &Bytes::new()).unwrap(), absent);
    }

    #[test]
    fn refuses_what_is_not_exactly_a_record() {
        for (change, to) in [
            ("lw1", "lw2"),
            ("held", "hold"),
            ("at=", "at=x"),
            ("line=1", "line=2"),
            ("attempt=2/5", "attempt=2"),
            ("attempt=2/5", "attempt=+2/5"),
            ("attempt=2/5", "attempt=02/5"),
            ("attempt=2/5", "attempt=0/5"),
            ("attempt=2/5", "attempt=4294967296/5"),
            ("attempt=2/5", "attempt=2/0"),
            ("at=1763900000000009", "at=10000000000000000"),
            ("fence=1763900000000001", "fence=9007199254740992"),
            ("until=1763900005000", "until=100000000000000"),
            ("retention=10000", "retention=0"),
            ("renewal=3", "renewal=00"),
            ("renewal=3", "renewal=18446744073709551616"),
            ("previous=1:dropped", "previous=0:dropped"),
            ("previous=1:dropped", "previous=1:-"),
            ("previous=1:dropped", "previous=0:-"),
            ("fence=", "fense="),
            ("sizes=9,9,0,2", "sizes=9,9,0"),
            ("sizes=9,9,0,2", "sizes=9,9,0,2,0"),
            ("sizes=9,9,0,2", "sizes=9,9,0,4"),
            ("sizes=9,9,0,2", "sizes=9,9,0,18446744073709551615"),
            ("002a", "002g"),
            ("002a", "002A"),
            ("owner=0", "owner=+"),
            ("last=-", "last=--"),
        ] {
            assert!(TEXT.contains(change), "{change:?}");
            assert!(
                decode(&TEXT.replacen(change, to, 1)).is_err(),
                "{change:?} → {to:?}"
            );
        }
        for cut in 0..TEXT.len() {
            assert!(decode(&TEXT[..cut]).is_err(), "cut at {cut}");
        }
    }
}
