//! What the server remembers of one key, and its text form.
//!
//! One line of `name=value` fields for people and scripts, then five payloads, each followed by a
//! line feed, whose sizes in bytes are the line's last field:
//!
//! ```text
//! lw1 held attempt=2/5 fence=1763900000000001 renewal=0 until=1763900005000 retention=10000
//!     owner=<token> last=<token> previous=1:dropped sizes=9,9,0,0,0        (in one line)
//! billing-7      the holder's label
//! billing-6      the previous attempt's holder
//!                the previous attempt's reason, when it gave one
//!                the checkpoint
//!                the result
//! ```
//!
//! `redis/record.lua` reads and writes the same form.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// A stream's identity in one grant: random, so that nobody else can settle for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u128);

impl Token {
    /// A token that nobody has drawn before.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// A part of 1 that differs from token to token.
    pub(crate) fn fraction(self) -> f64 {
        f64::from(self.0 as u32) / (f64::from(u32::MAX) + 1.0)
    }

    /// The token with this number; for tests that name their tokens.
    pub const fn from_number(number: u128) -> Self {
        Self(number)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() != 32 {
            return Err(Malformed("token"));
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| Malformed("token"))
    }
}

/// Where a run stands. A key without a record is `absent`.
///
/// Declared in the order in which one fencing token passes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Handed to a waiter that has not confirmed yet.
    Granted,
    /// Somebody works on it.
    Held,
    /// The attempt failed and nobody holds it.
    Open,
    /// Completed; remembered for the retention.
    Done,
    /// Given up; remembered for the retention.
    Exhausted,
}

impl State {
    const NAMES: [(State, &'static str); 5] = [
        (State::Granted, "granted"),
        (State::Held, "held"),
        (State::Open, "open"),
        (State::Done, "done"),
        (State::Exhausted, "exhausted"),
    ];

    /// Whether somebody owns the key in this state.
    pub fn is_owned(self) -> bool {
        matches!(self, State::Granted | State::Held)
    }
}

/// How an attempt ended without completing the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its guard was dropped.
    Dropped,
    /// Its guard was dropped while panicking.
    Panicked,
    /// Its holder said so, with a text.
    Failed,
    /// Its lease ended.
    Expired,
    /// Its holder passed it on, uncounted.
    HandedOver,
}

impl Cause {
    const NAMES: [(Cause, &'static str); 5] = [
        (Cause::Dropped, "dropped"),
        (Cause::Panicked, "panicked"),
        (Cause::Failed, "failed"),
        (Cause::Expired, "expired"),
        (Cause::HandedOver, "handed_over"),
    ];
}

macro_rules! text_form {
    ($type:ident, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (_, name) = Self::NAMES[*self as usize];
                f.write_str(name)
            }
        }

        impl FromStr for $type {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                let found = Self::NAMES.iter().find(|(_, name)| *name == text);
                found.map(|(value, _)| *value).ok_or(Malformed($what))
            }
        }
    };
}

text_form!(State, "state");
text_form!(Cause, "cause");

/// The attempt before this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Its number.
    pub attempt: u32,
    /// How it ended.
    pub cause: Cause,
    /// Who held it.
    pub holder: String,
    /// What its holder said of it, if anything.
    pub reason: String,
}

/// What the server remembers of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where the run stands.
    pub state: State,
    /// The attempts counted so far, the present one included.
    pub attempt: u32,
    /// The run's bound on attempts, fixed by its first claim.
    pub max_attempts: u32,
    /// The fencing token of the last grant; it names the grant.
    pub fence: u64,
    /// How often that grant's lease was restarted.
    pub renewal: u64,
    /// Server time in ms at which the lease, the confirm window or the retention ends.
    pub until: u64,
    /// How long an outcome is remembered, in ms; fixed by the run's first claim.
    pub retention: u64,
    /// Whose grant it is.
    pub owner: Option<Token>,
    /// Whose grant it was before; a late duplicate of that claim is refused.
    pub last: Option<Token>,
    /// The attempt before this one.
    pub previous: Option<Previous>,
    /// The owner's label.
    pub holder: String,
    /// What a holder left for its successor; empty if nothing.
    pub checkpoint: Bytes,
    /// The result of the completed work; empty if none.
    pub result: Bytes,
}

impl Record {
    /// Where this stands in the history of its key: answers and messages arrive on two
    /// connections, and what is not newer than what is known says nothing.
    pub fn order(&self) -> (u64, State, u64) {
        (self.fence, self.state.min(State::Open), self.renewal)
    }
}

/// A record as it was at one instant of its server's clock; `None` when the key was absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The server's time, in µs since the Unix epoch.
    pub at: u64,
    /// What it remembered.
    pub record: Option<Arc<Record>>,
}

/// A text that is no record of this format; names the field that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub struct Malformed(pub &'static str);

impl Frame {
    /// Reads `<server time in µs> <record>`, the form of every answer and message.
    ///
    /// # Errors
    ///
    /// [`Malformed`] unless the whole text is one frame.
    pub fn decode(text: &Bytes) -> Result<Self, Malformed> {
        let space = text
            .iter()
            .position(|b| *b == b' ')
            .ok_or(Malformed("time"))?;
        let at = number(ascii(&text[..space], "time")?, "time")?;
        let text = text.slice(space + 1..);
        let record = match text.is_empty() {
            true => None,
            false => Some(Arc::new(Record::decode(&text)?)),
        };
        Ok(Self { at, record })
    }
}

impl Record {
    fn decode(text: &Bytes) -> Result<Self, Malformed> {
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
        let attempts = field(word("attempt")?, "attempt")?;
        let (attempt, max_attempts) = attempts.split_once('/').ok_or(Malformed("attempt"))?;
        let fence = field(word("fence")?, "fence")?;
        let renewal = field(word("renewal")?, "renewal")?;
        let until = field(word("until")?, "until")?;
        let retention = field(word("retention")?, "retention")?;
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
        let result = payloads.bytes("result")?;
        payloads.finish()?;

        Ok(Self {
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
        })
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

    fn finish(mut self) -> Result<(), Malformed> {
        match self.sizes.next().is_none() && self.at == self.text.len() {
            true => Ok(()),
            false => Err(Malformed("sizes")),
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
    use super::*;

    const TEXT: &str = "1763900000000009 lw1 held attempt=2/5 fence=1763900000000001 renewal=3 \
        until=1763900005000 retention=10000 owner=0000000000000000000000000000002a last=- \
        previous=1:dropped sizes=9,9,0,2,0\nbilling-7\nbilling-6\n\na\n\n\n";

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
        assert_eq!((record.renewal, record.retention), (3, 10_000));
        assert_eq!(record.owner, Some(Token::from_number(42)));
        assert_eq!(record.last, None);
        assert_eq!(record.holder, "billing-7");
        assert_eq!(record.previous.as_ref().unwrap().holder, "billing-6");
        assert_eq!(record.checkpoint, "a\n");
    }

    #[test]
    fn an_absent_key_is_a_time_alone() {
        assert_eq!(
            decode("17 ").unwrap(),
            Frame {
                at: 17,
                record: None
            }
        );
    }

    #[test]
    fn refuses_what_is_not_exactly_a_record() {
        for (change, to) in [
            ("lw1", "lw2"),
            ("held", "hold"),
            ("attempt=2/5", "attempt=2"),
            ("attempt=2/5", "attempt=+2/5"),
            ("fence=", "fense="),
            ("sizes=9,9,0,2,0", "sizes=9,9,0,2"),
            ("sizes=9,9,0,2,0", "sizes=9,9,0,2,0,0"),
            ("sizes=9,9,0,2,0", "sizes=9,9,0,3,0"),
            ("sizes=9,9,0,2,0", "sizes=9,9,0,2,18446744073709551615"),
            ("002a", "002g"),
            ("last=-", "last=--"),
            ("1763900000000009 ", "x "),
            ("\n\n\n", "\n\n\n\n"),
        ] {
            assert!(TEXT.contains(change), "{change:?}");
            assert!(
                decode(&TEXT.replacen(change, to, 1)).is_err(),
                "{change:?} → {to:?}"
            );
        }
        for cut in 0..TEXT.len() {
            assert!(decode(&TEXT[..cut]).is_err() || &TEXT[..cut] == "1763900000000009 ");
        }
    }
}
