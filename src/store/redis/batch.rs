//! The transitions of one call: which of them a script can execute together, and how they are
//! encoded as arguments.
//!
//! Every script executes its transition on any number of keys. A *lane* is what may share a call:
//! on one server all requests, in a cluster those of one slot, and with replicas the requests that
//! wait for them are lanes of their own. Requests that differ in an argument that a script takes
//! once a call (the options of a run, the outcome, the confirm window) are calls of their own.
//!
//! The items of a call are independent. Each runs under `pcall` and has its own answer or error
//! (`each.lua`). A call that the server refuses as a whole, as for a key that the user may not
//! access, is sent again in smaller parts (`blames_one`). A script whose answer has reached 256 KiB
//! leaves its remaining items undone, because the server serves no other client meanwhile; they are
//! sent again.

use std::fmt::{Display, Write};

use bytes::BytesMut;
use fred::error::{Error as FredError, ErrorKind};
use fred::types::Value;

use super::scripts::{Script, Scripts};
use crate::key::Key;
use crate::protocol::record::RecordSnapshot;
use crate::protocol::{Failure, Op, Outcome, Reply};

/// The items of one call. They run the same script with the same shared arguments.
pub(super) struct Batch<'a> {
    asked: &'a [(&'a Key, &'a Op)],
    /// The indices of the items in `asked`. Never empty.
    pub(super) items: Vec<usize>,
}

/// Groups transitions into calls.
///
/// A key can be in more than one call. The calls are sorted so that their answers disturb each
/// other least: a call that ends grants follows the one that restarts leases, and claims follow all
/// calls that make room for them.
pub(super) fn batches<'a>(
    asked: &'a [(&'a Key, &'a Op)],
    alike: impl Fn(&Op, &Op) -> bool,
) -> Vec<Batch<'a>> {
    let mut batches: Vec<Batch<'a>> = Vec::new();
    for (place, (_, op)) in asked.iter().enumerate() {
        let fits = |batch: &&mut Batch<'a>| {
            let first = batch.first();
            shares(first, op) && alike(first, op)
        };
        match batches.iter_mut().find(fits) {
            Some(batch) => batch.items.push(place),
            None => batches.push(Batch {
                asked,
                items: vec![place],
            }),
        }
    }
    batches.sort_by_key(|batch| match batch.first() {
        Op::Renew { .. } => 0,
        Op::Settle { .. } => 1,
        Op::Withdraw { .. } => 2,
        Op::Clear { .. } => 3,
        Op::Inspect => 4,
        Op::Claim { .. } => 5,
    });
    batches
}

/// Whether one call can execute both transitions.
fn shares(one: &Op, other: &Op) -> bool {
    let shared = |op: &Op| match op {
        Op::Claim {
            label,
            lease,
            max_attempts,
            retention,
            ..
        } => (
            "claim",
            Some(label.clone()),
            [*lease, u64::from(*max_attempts), *retention],
        ),
        Op::Settle {
            outcome, window, ..
        } => (name(outcome), None, [*window, 0, 0]),
        Op::Renew { .. } => ("renew", None, [0; 3]),
        Op::Withdraw { label, window, .. } => ("withdraw", Some(label.clone()), [*window, 0, 0]),
        Op::Clear { window } => ("clear", None, [*window, 0, 0]),
        Op::Inspect => ("inspect", None, [0; 3]),
    };
    shared(one) == shared(other)
}

impl Batch<'_> {
    pub(super) fn first(&self) -> &Op {
        self.asked[self.items[0]].1
    }

    pub(super) fn script<'s>(&self, scripts: &'s Scripts) -> &'s Script {
        match self.first() {
            Op::Claim { .. } => &scripts.claim,
            Op::Settle { .. } => &scripts.settle,
            Op::Renew { .. } => &scripts.renew,
            Op::Withdraw { .. } => &scripts.withdraw,
            Op::Clear { .. } => &scripts.clear,
            Op::Inspect => &scripts.inspect,
        }
    }

    pub(super) fn slot(&self) -> u16 {
        self.asked[self.items[0]].0.slot()
    }

    /// Returns a batch of at most `most` of these items, from index `from` on.
    pub(super) fn part(&self, from: usize, most: usize) -> Self {
        let asked = self.asked;
        let items = self.items.iter().skip(from).take(most);
        let items = items.copied().collect();
        Self { asked, items }
    }

    /// Returns the keys in the order of the items, which is the order of the answers.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.items.iter().map(|item| self.asked[*item].0)
    }

    /// Returns the arguments in the form that the scripts expect.
    pub(super) fn args(&self) -> Vec<Value> {
        let mut args = Args {
            text: BytesMut::with_capacity(32 * (self.items.len() + 4)),
            values: Vec::with_capacity(4 * (self.items.len() + 1)),
        };
        args.shared(self.first());
        for item in &self.items {
            args.own(self.asked[*item].1);
        }
        args.values
    }
}

/// The encoded arguments. They share one buffer, to save allocations.
struct Args {
    text: BytesMut,
    values: Vec<Value>,
}

impl Args {
    fn say(&mut self, text: impl Display) {
        // Writing to a growing buffer cannot fail.
        let _ = write!(self.text, "{text}");
        let said = self.text.split().freeze();
        self.values.push(Value::Bytes(said));
    }

    /// Encodes the arguments that all items share.
    fn shared(&mut self, op: &Op) {
        match op {
            Op::Claim {
                label,
                lease,
                max_attempts,
                retention,
                ..
            } => {
                self.say(label);
                self.say(lease);
                self.say(max_attempts);
                self.say(retention);
            }
            Op::Settle {
                outcome, window, ..
            } => {
                self.say(name(outcome));
                self.say(window);
            }
            Op::Withdraw { label, window, .. } => {
                self.say(label);
                self.say(window);
            }
            Op::Clear { window } => self.say(window),
            Op::Renew { .. } | Op::Inspect => {}
        }
    }

    fn own(&mut self, op: &Op) {
        match op {
            Op::Claim { token, .. } => self.say(token),
            Op::Withdraw {
                token,
                except_fence,
                ..
            } => {
                self.say(token);
                // No grant has the fencing token 0.
                self.say(except_fence.unwrap_or(0));
            }
            Op::Settle { fence, outcome, .. } => {
                self.say(fence);
                match outcome {
                    Outcome::Done(result) => self.values.push(Value::Bytes(result.clone())),
                    Outcome::Fail(Failure::Reason(reason)) | Outcome::FailPermanently(reason) => {
                        self.say(reason);
                    }
                    Outcome::Fail(_) | Outcome::HandOff => self.say(""),
                }
            }
            Op::Renew {
                fence,
                lease,
                checkpoint,
            } => {
                self.say(fence);
                self.say(lease);
                self.say(u8::from(checkpoint.is_some()));
                let checkpoint = checkpoint.clone().unwrap_or_default();
                self.values.push(Value::Bytes(checkpoint));
            }
            Op::Clear { .. } | Op::Inspect => {}
        }
    }
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_) => "done",
        Outcome::HandOff => "hand_off",
        Outcome::Fail(Failure::Dropped) => "dropped",
        Outcome::Fail(Failure::Panicked) => "panicked",
        Outcome::Fail(Failure::Reason(_)) => "failed",
        Outcome::FailPermanently(_) => "failed_permanently",
    }
}

/// Returns the names of each key, in the order in which a script expects them.
pub(super) fn names<'k>(keys: impl Iterator<Item = &'k Key>) -> impl Iterator<Item = Value> {
    keys.flat_map(|key| {
        let names = [key.bytes(), key.line().inner()];
        names.map(|name| Value::Bytes(name.clone()))
    })
}

/// Decodes a script's answer, which covers at least the first of its items.
///
/// # Errors
///
/// Fails if the answer does not have the form of our scripts.
pub(super) fn decode(answer: Value) -> Result<Vec<Result<Reply, FredError>>, FredError> {
    let mut values = answer.into_array().into_iter();
    let at = values.next().and_then(|at| at.as_u64());
    let at = at.ok_or_else(|| malformed("time"))?;
    let mut replies = Vec::with_capacity(values.len() / 2);
    while values.len() > 0 || replies.is_empty() {
        let (Some(number), Some(text)) = (
            values.next().and_then(|number| number.as_i64()),
            values.next().and_then(Value::into_bytes),
        ) else {
            return Err(malformed("answer"));
        };
        replies.push(match u64::try_from(number) {
            Ok(number) => RecordSnapshot::answered(at, &text)
                .map(|frame| Reply {
                    ok: number % 2 == 1,
                    frame,
                    position: (number / 2).checked_sub(1),
                })
                .map_err(|error| malformed(error.0)),
            Err(_) => Err(FredError::new(
                ErrorKind::Unknown,
                String::from_utf8_lossy(&text).into_owned(),
            )),
        });
    }
    Ok(replies)
}

fn malformed(what: &str) -> FredError {
    FredError::new(ErrorKind::Protocol, format!("malformed record: {what}"))
}
