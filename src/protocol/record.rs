//! The server's record of one key, and its text form.
//!
//! The record is one string with the name of the key, so `GET` shows it. It is a string and not a
//! hash for two reasons. Reading and writing it are one command each, so the claim and the
//! completion together cost less on the server. And a message carries the record as it is, so one
//! decoder serves answers and messages. The queue is a sorted set beside it, in order of arrival;
//! its name, which is also that of the channel, shares the record's slot (`src/key.rs`).
//!
//! The text is one line of `name=value` fields for people and scripts, then five payloads. A line
//! feed follows each payload but the last. The last field of the line has the sizes of the first
//! four payloads in bytes. The last payload is the rest of the text.
//!
//! ```text
//! lw1 held at=1763900000000001 until=1763900005000 retention=10000 fence=1763900000000001 line=0
//!     attempt=2/5 renewal=0 owner=<token> last=<token> previous=1:dropped sizes=9,9,0,0 (one line)
//! billing-7      the holder's label
//! billing-6      the previous attempt's holder
//!                the previous attempt's reason, if it has one
//!                the checkpoint
//!                the result
//! ```
//!
//! * `at` is the server's time when the record was written, in µs like the fencing token; all
//!   other times are in ms. A message tells the server's time by `at`. An answer tells its own
//!   time, once for all of its items, and has the records as they are.
//! * `until` is the server's time at which the lease, the confirm window or the retention ends. It
//!   could be derived from the key's TTL. In the record, it means the same in every answer and
//!   message, and needs no second command.
//! * `line` is 1 once a waiter has joined the queue in this run. Without it, every run would have
//!   to look for a queue. With it, a run without waiters is one `SET` to begin, and a `GET` and a
//!   `SET` to end. A queue whose record was lost belongs to no run: the first waiter of the next
//!   run removes it.
//!
//! A completion changes only the first fields and the last payload, so that its script need not
//! parse the fields between them (`redis/settle_done.lua`). `redis/record.lua` reads and writes the
//! same form.

mod codec;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::LeaseLost;

/// The identity of a stream in one grant. It is random, so that no other stream can settle the
/// grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u128);

impl Token {
    /// Returns a new random token.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Returns a number from 0 to below 1 that is stable for one token and differs between tokens.
    pub(crate) fn fraction(self) -> f64 {
        f64::from(self.0 as u32) / (f64::from(u32::MAX) + 1.0)
    }

    /// Returns the token with this number, for tests that name their tokens.
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
        // Accepts only the displayed form. A parser of numbers would also accept a sign and upper
        // case.
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

/// The state of a run. A key without a record is `absent`.
///
/// The variants are in the order in which one fencing token passes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The server granted the key to a waiter that has not confirmed yet.
    Granted,
    /// A holder works on the key.
    Held,
    /// The attempt ended without success, and no worker holds the key.
    Open,
    /// The work is complete. The record lasts for the retention.
    Done,
    /// The run gave up. The record lasts for the retention.
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

    /// Whether a worker owns the key in this state.
    pub fn is_owned(self) -> bool {
        matches!(self, State::Granted | State::Held)
    }
}

/// The way in which an attempt ended without completing the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The guard was dropped.
    Dropped,
    /// The guard was dropped while its thread panicked.
    Panicked,
    /// The holder reported the failure, with a reason.
    Failed,
    /// The lease ended.
    Expired,
    /// The holder handed the work off, uncounted.
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

/// The attempt before the present one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Previous {
    /// The number of the attempt.
    pub attempt: u32,
    /// The way in which it ended.
    pub cause: Cause,
    /// The label of its holder.
    pub holder: String,
    /// The reason that its holder gave, if any.
    pub reason: String,
}

/// The server's record of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The state of the run.
    pub state: State,
    /// The number of attempts counted so far, including the present one.
    pub attempt: u32,
    /// The maximum of attempts, fixed by the first claim of the run.
    pub max_attempts: u32,
    /// The fencing token of the last grant, which identifies that grant.
    pub fence: u64,
    /// The number of times that the lease of that grant was restarted.
    pub renewal: u64,
    /// The server's time in ms at which the lease, the confirm window or the retention ends.
    pub until: u64,
    /// The time in ms for which an outcome is remembered, fixed by the first claim of the run.
    pub retention: u64,
    /// The token of the present grant.
    pub owner: Option<Token>,
    /// The token of the grant before. The server refuses a late duplicate of its claim.
    pub last: Option<Token>,
    /// The attempt before the present one.
    pub previous: Option<Previous>,
    /// The owner's label.
    pub holder: String,
    /// The checkpoint that a holder left for its successor. Empty if there is none.
    pub checkpoint: Bytes,
    /// The result of the completed work. Empty if there is none.
    pub result: Bytes,
}

impl Record {
    /// Returns the position of this record in the history of its key. Answers and messages come on
    /// two connections, in any order. A record that is not newer than the known one carries no
    /// news.
    pub fn order(&self) -> (u64, State, u64) {
        (self.fence, self.state.min(State::Open), self.renewal)
    }

    /// Returns the server's time in ms at which the record expires. The record of a lease stays for
    /// the retention after the end of the lease.
    pub(crate) fn forgotten_at(&self) -> u64 {
        match self.state.is_owned() {
            true => self.until.saturating_add(self.retention),
            false => self.until,
        }
    }

    /// Returns the remaining lease, confirm window or retention at this server time in µs.
    pub(crate) fn remaining(&self, at: u64) -> Duration {
        Duration::from_micros(self.until.saturating_mul(1_000).saturating_sub(at))
    }
}

/// Returns the reason why a grant was lost, given the present record of its key.
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
        // The run was cleared.
        None if record.attempt < attempt => LeaseLost::RecordGone,
        _ => LeaseLost::Expired,
    }
}

/// A record at one instant of its server's clock. The record is `None` if the key was absent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordSnapshot {
    /// The server's time, in µs since the Unix epoch.
    pub at: u64,
    /// The record at that time.
    pub record: Option<Arc<Record>>,
}

/// The error of a text that is not a record. It names the wrong field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record: {0}")]
pub struct Malformed(pub &'static str);
