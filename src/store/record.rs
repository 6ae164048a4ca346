//! What the server remembers of one key, and its text form.
//!
//! One line of `name=value` fields for people and scripts, then five payloads. Each but the last is
//! followed by a line feed; their sizes in bytes are the line's last field. The last is what is left.
//!
//! ```text
//! lw1 held at=1763900000000001 until=1763900005000 retention=10000 fence=1763900000000001 line=0
//!     attempt=2/5 renewal=0 owner=<token> last=<token> previous=1:dropped sizes=9,9,0,0   (in one line)
//! billing-7      the holder's label
//! billing-6      the previous attempt's holder
//!                the previous attempt's reason, when it gave one
//!                the checkpoint
//!                the result
//! ```
//!
//! `at` is the server's time in µs at which it was written, `line` whether anybody has waited in line. What
//! the completion of a run changes comes first and last, so that the script need not read what is between.
//!
//! `redis/record.lua` reads and writes the same form.

mod codec;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::LeaseLost;

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
        // As it is displayed, and not in any other way that is a number.
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        if text.len() != 32 {
            return Err(Malformed("token"));
        }
        let number = text.bytes().try_fold(0, |number: u128, b| {
            digit(b).map(|digit| number << 4 | u128::from(digit))
        });
        number.map(Self).ok_or(Malformed("token"))
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
    GaveUp,
}

impl State {
    const NAMES: [(State, &'static str); 5] = [
        (State::Granted, "granted"),
        (State::Held, "held"),
        (State::Open, "open"),
        (State::Done, "done"),
        (State::GaveUp, "gave_up"),
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
    HandedOff,
}

impl Cause {
    const NAMES: [(Cause, &'static str); 5] = [
        (Cause::Dropped, "dropped"),
        (Cause::Panicked, "panicked"),
        (Cause::Failed, "failed"),
        (Cause::Expired, "expired"),
        (Cause::HandedOff, "handed_off"),
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

    /// Server time in ms at which it is forgotten: a lease is remembered for the retention after
    /// its end.
    pub(crate) fn forgotten_at(&self) -> u64 {
        match self.state.is_owned() {
            true => self.until.saturating_add(self.retention),
            false => self.until,
        }
    }

    /// What is left of its lease, window or retention at this server time in µs.
    pub(crate) fn remaining(&self, at: u64) -> Duration {
        Duration::from_micros(self.until.saturating_mul(1_000).saturating_sub(at))
    }
}

/// What has become of a grant, as a record tells that is not its own any more.
pub(crate) fn loss(record: Option<&Record>, attempt: u32) -> LeaseLost {
    let Some(record) = record else {
        return LeaseLost::RecordGone;
    };
    if record.state.is_owned() || record.state == State::Done {
        return LeaseLost::TakenOver {
            holder: record.holder.clone(),
            attempt: record.attempt,
        };
    }
    match &record.previous {
        Some(previous) if previous.attempt > attempt => LeaseLost::TakenOver {
            holder: previous.holder.clone(),
            attempt: previous.attempt,
        },
        // It was cleared.
        None if record.attempt < attempt => LeaseLost::RecordGone,
        _ => LeaseLost::Expired,
    }
}

/// A record as it was at one instant of its server's clock; `None` when the key was absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSnapshot {
    /// The server's time, in µs since the Unix epoch.
    pub at: u64,
    /// What it remembered.
    pub record: Option<Arc<Record>>,
}

/// A text that is no record of this format; names the field that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub struct Malformed(pub &'static str);
