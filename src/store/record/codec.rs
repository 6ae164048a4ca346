//! Reading the text form. Strict: whatever is not exactly a record is refused.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::{Frame, Malformed, Previous, Record, Token};

impl Frame {
    /// Reads a record's text, the form of every message, as it was when it was written.
    ///
    /// # Errors
    ///
    /// [`Malformed`] unless the whole text is one record.
    pub fn decode(text: &Bytes) -> Result<Self, Malformed> {
        let (record, at) = Record::decode(text)?;
        let record = Some(Arc::new(record));
        Ok(Self { at, record })
    }

    /// Reads what a script has answered at this server time: a record's text, or none.
    ///
    /// # Errors
    ///
    /// As for [`Frame::decode`].
    pub fn answered(at: u64, text: &Bytes) -> Result<Self, Malformed> {
        let record = match text.is_empty() {
            true => None,
            false => Some(Arc::new(Record::decode(text)?.0)),
        };
        Ok(Self { at, record })
    }
}

impl Record {
    /// The record, and the server's time in µs at which it was written.
    fn decode(text: &Bytes) -> Result<(Self, u64), Malformed> {
        let end = text
            .iter()
            .position(|b| *b == b'\n')
            .ok_or(Malformed("header"))?;
        let mut words = ascii(&text[..end], "header")?.split(' ');
        let mut word = |what| words.next().ok_or(Malformed(what));

        if word("version")? != "lw1" {
            return Err(Malformed("version"));
        }
        let state = word("state")?.parse()?;
        let at = field(word("at")?, "at")?;
        let until = field(word("until")?, "until")?;
        let retention = field(word("retention")?, "retention")?;
        let fence = field(word("fence")?, "fence")?;
        if !matches!(word("line")?, "line=0" | "line=1") {
            return Err(Malformed("line"));
        }
        let attempts = field(word("attempt")?, "attempt")?;
        let (attempt, max_attempts) = attempts.split_once('/').ok_or(Malformed("attempt"))?;
        let renewal = field(word("renewal")?, "renewal")?;
        let owner = field(word("owner")?, "owner")?;
        let last = field(word("last")?, "last")?;
        let previous = field(word("previous")?, "previous")?;
        let sizes = field(word("sizes")?, "sizes")?;
        if words.next().is_some() {
            return Err(Malformed("header"));
        }

        let mut payloads = Payloads {
            text,
            at: end + 1,
            sizes: sizes.split(','),
        };
        let holder = payloads.text("holder")?;
        let previous_holder = payloads.text("previous holder")?;
        let reason = payloads.text("reason")?;
        let checkpoint = payloads.bytes("checkpoint")?;
        let result = payloads.rest()?;

        let record = Self {
            state,
            attempt: number(attempt, "attempt")?,
            max_attempts: number(max_attempts, "max_attempts")?,
            fence: number(fence, "fence")?,
            renewal: number(renewal, "renewal")?,
            until: number(until, "until")?,
            retention: number(retention, "retention")?,
            owner: token(owner)?,
            last: token(last)?,
            previous: match previous.split_once(':').ok_or(Malformed("previous"))? {
                ("0", "-") => None,
                (attempt, cause) => Some(Previous {
                    attempt: number(attempt, "previous")?,
                    cause: cause.parse()?,
                    holder: previous_holder,
                    reason,
                }),
            },
            holder,
            checkpoint,
            result,
        };
        Ok((record, number(at, "at")?))
    }
}

/// The payloads behind the header, taken in order by their sizes.
struct Payloads<'a> {
    text: &'a Bytes,
    at: usize,
    sizes: std::str::Split<'a, char>,
}

impl Payloads<'_> {
    fn bytes(&mut self, what: &'static str) -> Result<Bytes, Malformed> {
        let size: usize = number(self.sizes.next().ok_or(Malformed("sizes"))?, "sizes")?;
        let end = self.at.checked_add(size).ok_or(Malformed("sizes"))?;
        if self.text.get(end) != Some(&b'\n') {
            return Err(Malformed(what));
        }
        let payload = match size {
            0 => Bytes::new(),
            _ => self.text.slice(self.at..end),
        };
        self.at = end + 1;
        Ok(payload)
    }

    fn text(&mut self, what: &'static str) -> Result<String, Malformed> {
        let bytes = self.bytes(what)?;
        String::from_utf8(bytes.into()).map_err(|_| Malformed(what))
    }

    /// What is left is the last payload, which needs no size.
    fn rest(mut self) -> Result<Bytes, Malformed> {
        match self.sizes.next() {
            None if self.at == self.text.len() => Ok(Bytes::new()),
            None => Ok(self.text.slice(self.at..)),
            Some(_) => Err(Malformed("sizes")),
        }
    }
}

fn ascii<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed(what))
}

fn field<'a>(word: &'a str, name: &'static str) -> Result<&'a str, Malformed> {
    let value = word
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('='));
    value.ok_or(Malformed(name))
}

/// A plain decimal: no sign, as the scripts write it.
fn number<T: FromStr>(text: &str, what: &'static str) -> Result<T, Malformed> {
    match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse().map_err(|_| Malformed(what)),
        false => Err(Malformed(what)),
    }
}

fn token(text: &str) -> Result<Option<Token>, Malformed> {
    match text {
        "-" => Ok(None),
        text => text.parse().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    const TEXT: &str = "lw1 held at=1763900000000009 until=1763900005000 retention=10000 \
        fence=1763900000000001 line=1 attempt=2/5 renewal=3 \
        owner=0000000000000000000000000000002a last=- \
        previous=1:dropped sizes=9,9,0,2\nbilling-7\nbilling-6\n\na\n\n";

    fn decode(text: &str) -> Result<Frame, Malformed> {
        Frame::decode(&Bytes::copy_from_slice(text.as_bytes()))
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
        assert_eq!((record.fence, record.until), (1_763_900_000_000_001, 1_763_900_005_000));
        assert_eq!((record.renewal, record.retention), (3, 10_000));
        assert_eq!(record.owner, Some(Token::from_number(42)));
        assert_eq!(record.last, None);
        assert_eq!(record.holder, "billing-7");
        assert_eq!(record.previous.as_ref().unwrap().holder, "billing-6");
        assert_eq!((&record.checkpoint[..], &record.result[..]), (&b"a\n"[..], &b""[..]));
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
        let absent = Frame {
            at: 17,
            record: None,
        };
        assert_eq!(Frame::answered(17, &Bytes::new()).unwrap(), absent);
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
            ("fence=", "fense="),
            ("sizes=9,9,0,2", "sizes=9,9,0"),
            ("sizes=9,9,0,2", "sizes=9,9,0,2,0"),
            ("sizes=9,9,0,2", "sizes=9,9,0,4"),
            ("sizes=9,9,0,2", "sizes=9,9,0,18446744073709551615"),
            ("002a", "002g"),
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
