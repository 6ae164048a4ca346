//! The telemetry of a build with neither of its features: types without a size, functions without
//! an effect.

use std::time::Duration;

use tokio::time::Instant;

use crate::acquire::LockEvent;
use crate::client::Warning;
use crate::error::{Error, LeaseLost};
use crate::hub::{NotSettled, Update};
use crate::key::Key;
use crate::lease::Lease;
use crate::protocol::record::Record;

#[derive(Debug, Default)]
pub(crate) struct Participation(());

impl Participation {
    pub(crate) fn begin(&mut self, _: &Key, _: &str) {}
    pub(crate) fn acquires(&mut self, _: &Lease) {}
    pub(crate) fn yields(&mut self, _: &Key, _: &LockEvent) {}
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
pub(crate) fn granted(_: &Lease, _: &Record, _: Duration, _: Option<(Instant, u64)>) {}
pub(crate) fn renewed(_: &Lease) {}
pub(crate) fn ended(_: &Lease, _: &LeaseLost) {}
pub(crate) fn settled(_: &Lease, _: &Result<(), NotSettled>, _: &Update) {}
pub(crate) fn resync(_: &'static str) {}
pub(crate) fn warned(_: &Warning) {}
pub(crate) fn large_result(_: &Key, _: usize) {}

const _: () = assert!(size_of::<(Participation, Work, Outages, Outage)>() == 0);
