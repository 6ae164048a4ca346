//! The telemetry of a build with neither of its features: types without a size, functions without
//! an effect.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, LeaseLost};
use crate::key::Key;
use crate::outcome::{Completed, Failed, GaveUp, Locked, PreviousAttempt, Reason};
use crate::protocol::record::Record;

#[derive(Debug, Default)]
pub(crate) struct Participation(());

impl Participation {
    pub(crate) fn begin(&mut self, _: &Key, _: &str) {}
    pub(crate) fn acquires(&mut self, _: Attempt<'_>, _: Option<&PreviousAttempt>) {}
    pub(crate) fn yields(&mut self, _: &Key, _: Yielded<'_>) {}
}

#[derive(Debug)]
pub(crate) struct Observers(());

impl Observers {
    pub(crate) fn here() -> Self {
        Self(())
    }

    pub(crate) fn follow<F: Future>(self, future: F) -> F {
        future
    }
}

#[derive(Debug, Default)]
pub(crate) struct Work(());

pub(crate) type Within<F> = F;

impl Work {
    pub(crate) fn around<F>(&self, work: impl FnOnce() -> F) -> Within<F> {
        work()
    }
}

#[derive(Clone, Copy)]
#[expect(dead_code, reason = "nothing reads what is reported")]
pub(crate) struct Attempt<'a> {
    pub(crate) key: &'a Key,
    pub(crate) attempt: u32,
    pub(crate) fence: u64,
    pub(crate) work: &'a Work,
}

#[derive(Clone, Copy)]
#[expect(dead_code, reason = "nothing reads what is reported")]
pub(crate) enum Yielded<'a> {
    Locked(&'a Locked),
    Completed(&'a Completed),
    GaveUp(&'a GaveUp),
    Failed(&'a Failed),
    Error(&'a Error),
}

#[derive(Clone, Copy)]
#[expect(dead_code, reason = "nothing reads what is reported")]
pub(crate) enum Settled<'a> {
    Completed,
    HandedOff,
    Failed(&'a Reason),
    Lost(&'a Reason, &'a dyn Display),
    Unknown(&'a Reason, &'a dyn Display),
    Refused(&'a dyn Display),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Outages(());

#[derive(Debug)]
pub(crate) struct Outage(());

impl Outages {
    pub(crate) fn begin(&self, _: &Key, _: &Error) -> Outage {
        Outage(())
    }
}

impl Outage {
    pub(crate) fn over(&self) {}
}

pub(crate) fn describe() {}
pub(crate) fn granted(_: &Work, _: &Record, _: Duration, _: Option<(Instant, u64)>) {}
pub(crate) fn renewed(_: Attempt<'_>) {}
pub(crate) fn ended(_: Attempt<'_>, _: &LeaseLost) {}
pub(crate) fn settled(_: Attempt<'_>, _: Settled<'_>) {}
pub(crate) fn resync(_: &'static str) {}
pub(crate) fn warned(_: &impl Display) {}
pub(crate) fn large_result(_: &Key, _: usize) {}

const _: () = assert!(size_of::<(Participation, Work, Outages, Outage)>() == 0);
