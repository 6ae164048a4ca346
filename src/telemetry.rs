//! Telemetry: spans and events with the feature `tracing`, figures with the feature `metrics`.
//! docs/observability.md lists their names, which are part of the public interface.
//!
//! Each event is reported where it is known. `acquire.rs` reports what a stream yields
//! ([`Participation`]). `lease.rs` reports the end of a lease, for the first cause of it. The hub
//! reports the answer to a settlement, a restart of a lease, an outage and a resync; the keeper
//! reports its own restarts. A lease carries its span ([`Work`]) from when a guard is made of it.
//!
//! Without either feature, `telemetry/off.rs` takes the place of this module. Its types have no
//! size and its functions do nothing.
//!
//! A stream emits its events where it is polled, so the caller's span is the parent of its span.
//! The hub's events name their parent: a thread may poll the hub's task within a span that has
//! nothing to do with the hub.
#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics")),
    allow(unused_variables, dead_code, reason = "for the other feature")
)]

mod figures;

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, LeaseLost};
use crate::key::Key;
use crate::outcome::{Completed, Failed, GaveUp, Locked, PreviousAttempt, Reason};
use crate::protocol::record::{Record, State};
pub(crate) use figures::describe;
use figures::{count, measure};

#[cfg(feature = "tracing")]
use tracing::{Span, field::Empty};

/// Emits an event, about an attempt or not. Without the feature it does not evaluate its arguments.
macro_rules! event {
    (
        $level:ident,
        $(parent: $parent:expr,)?
        $message:literal,
        of: $of:ident $(, $($fields:tt)+)?
    ) => {
        event!(
            $level,
            $(parent: $parent,)?
            $message,
            key = %$of.key,
            attempt = $of.attempt,
            fencing_token = $of.fence
            $(, $($fields)+)?
        )
    };
    ($level:ident, $(parent: $parent:expr,)? $message:literal $(, $($fields:tt)+)?) => {{
        #[cfg(feature = "tracing")]
        tracing::event!(
            target: "redis_locking_worker",
            $(parent: $parent,)?
            tracing::Level::$level,
            $($($fields)+,)?
            $message
        );
    }};
}

/// Creates a span at the level `INFO`.
#[cfg(feature = "tracing")]
macro_rules! span {
    ($(parent: $parent:expr,)? $name:literal, $($fields:tt)+) => {
        tracing::info_span!(target: "redis_locking_worker", $(parent: $parent,)? $name, $($fields)+)
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! span {
    ($($ignored:tt)+) => {
        Span
    };
}

#[cfg(not(feature = "tracing"))]
#[derive(Clone, Debug)]
struct Span;

#[cfg(not(feature = "tracing"))]
impl Span {
    fn in_scope<T>(&self, act: impl FnOnce() -> T) -> T {
        act()
    }
}

/// The `tracing` subscriber and the `metrics` recorder of one thread, so that another thread can
/// report to them. The recorder is limited to the figures of the end of a lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observers {
    /// `None` if there was no subscriber yet. Events then go to the polling thread's subscriber,
    /// which may be a global one that was set later.
    #[cfg(feature = "tracing")]
    dispatch: Option<tracing::Dispatch>,
    #[cfg(feature = "metrics")]
    recorder: figures::Carried,
}

impl Observers {
    /// Returns the subscriber and recorder of this thread.
    pub(crate) fn here() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            dispatch: tracing::dispatcher::get_default(|dispatch| {
                let is_none = dispatch.is::<tracing::subscriber::NoSubscriber>();
                (!is_none).then(|| dispatch.clone())
            }),
            #[cfg(feature = "metrics")]
            recorder: figures::Carried::here(),
        }
    }

    /// Makes a future report to them, whatever thread polls it.
    pub(crate) fn follow<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        #[cfg(feature = "metrics")]
        let future = self.recorder.follow(future);
        #[cfg(feature = "tracing")]
        let future = {
            let dispatch = self.dispatch;
            let mut future = Box::pin(future);
            std::future::poll_fn(move |cx| match &dispatch {
                Some(dispatch) => {
                    tracing::dispatcher::with_default(dispatch, || future.as_mut().poll(cx))
                }
                None => future.as_mut().poll(cx),
            })
        };
        future
    }
}

/// One stream's participation, from its first poll to its last event.
#[derive(Debug, Default)]
pub(crate) struct Participation(Option<Open>);

#[derive(Debug)]
struct Open {
    span: Span,
    /// Whether the gauge of waiting streams counts this one.
    waiting: bool,
}

impl Participation {
    /// Opens the span, unless it is open: a stream that rejoins stays in its span.
    pub(crate) fn begin(&mut self, key: &Key, label: &str) {
        if self.0.is_none() {
            self.0 = Some(Open {
                span: span!("participation", key = %key, label, outcome = Empty),
                waiting: false,
            });
        }
    }

    /// Reports that a guard is about to be made of this grant.
    pub(crate) fn acquires(&mut self, of: Attempt<'_>, previous: Option<&PreviousAttempt>) {
        let Some(open) = &mut self.0 else {
            return;
        };
        open.waits(false);
        let span = span!(
            parent: &open.span,
            "work",
            key = %of.key,
            attempt = of.attempt,
            fencing_token = of.fence,
            outcome = Empty,
            reason = Empty,
        );
        count!(ACQUISITIONS);
        span.in_scope(|| match previous {
            None => event!(INFO, "acquired", of: of),
            Some(previous) => {
                count!(TAKEOVERS, "reason" => cause(&previous.reason));
                let (holder, reason) = (&previous.holder, &previous.reason);
                event!(INFO, "taken over", of: of, holder, %reason);
            }
        });
        if let Some(freed) = of.work.freed.get() {
            measure!(HANDOFF, freed.elapsed());
        }
        let since = Instant::now();
        let _ = of.work.given.set(Given { span, since });
    }

    /// Reports an event that the stream is about to yield.
    pub(crate) fn yields(&mut self, key: &Key, event: Yielded<'_>) {
        let Some(open) = &mut self.0 else {
            return;
        };
        let outcome = open.span.in_scope(|| match event {
            Yielded::Locked(locked) => {
                let (holder, attempt) = (&locked.holder, locked.attempt);
                event!(DEBUG, "locked", key = %key, holder, attempt);
                None
            }
            Yielded::Completed(completed) => {
                let (holder, attempt) = (&completed.holder, completed.attempt);
                event!(DEBUG, "completed", key = %key, holder, attempt);
                Some("completed")
            }
            Yielded::GaveUp(gave_up) => {
                let (holder, attempt) = (&gave_up.holder, gave_up.attempts);
                event!(WARN, "gave up", key = %key, holder, attempt, reason = %gave_up.reason);
                Some("gave_up")
            }
            Yielded::Failed(failed) => {
                let (attempt, reason) = (failed.attempt, &failed.reason);
                event!(DEBUG, "failed", key = %key, attempt, %reason);
                Some("failed")
            }
            Yielded::Error(error) if error.is_retryable() => {
                event!(DEBUG, "unavailable", key = %key, error = with_causes(error));
                None
            }
            Yielded::Error(error) => {
                event!(ERROR, "refused", key = %key, error = with_causes(error));
                Some("refused")
            }
        });
        open.waits(matches!(event, Yielded::Locked(_)) || open.waiting);
        if let Some(outcome) = outcome {
            self.end(outcome);
        }
    }

    fn end(&mut self, outcome: &'static str) {
        if let Some(mut open) = self.0.take() {
            open.waits(false);
            count!(PARTICIPATIONS, "outcome" => outcome);
            #[cfg(feature = "tracing")]
            open.span.record("outcome", outcome);
        }
    }
}

impl Drop for Participation {
    fn drop(&mut self) {
        self.end("dropped");
    }
}

impl Open {
    fn waits(&mut self, waits: bool) {
        if waits != self.waiting {
            self.waiting = waits;
            #[cfg(feature = "metrics")]
            metrics::gauge!(figures::WAITING).increment(if waits { 1.0 } else { -1.0 });
        }
    }
}

/// The attempt that an event is about.
#[derive(Clone, Copy)]
pub(crate) struct Attempt<'a> {
    pub(crate) key: &'a Key,
    pub(crate) attempt: u32,
    pub(crate) fence: u64,
    pub(crate) work: &'a Work,
}

/// What a stream is about to yield, as far as it is reported.
#[derive(Clone, Copy)]
pub(crate) enum Yielded<'a> {
    Locked(&'a Locked),
    Completed(&'a Completed),
    GaveUp(&'a GaveUp),
    Failed(&'a Failed),
    Error(&'a Error),
}

/// What became of a settlement.
#[derive(Clone, Copy)]
pub(crate) enum Settled<'a> {
    Completed,
    HandedOff,
    Failed(&'a Reason),
    Lost(&'a Reason, &'a dyn Display),
    Unknown(&'a Reason, &'a dyn Display),
    Refused(&'a dyn Display),
}

/// Telemetry of the work under one grant. It is a part of the grant's lease.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Time, on our clock, at which the server granted it by push.
    freed: OnceLock<Instant>,
    /// Set when a guard is made of the grant. Before that, nothing about it is reported.
    given: OnceLock<Given>,
}

#[derive(Debug)]
struct Given {
    span: Span,
    since: Instant,
}

/// A future that is polled and dropped within a span.
#[cfg(feature = "tracing")]
pub(crate) type Within<F> = tracing::instrument::Instrumented<F>;
#[cfg(not(feature = "tracing"))]
pub(crate) type Within<F> = F;

impl Work {
    /// Runs `work`, and later the future that it returns, within the work's span.
    pub(crate) fn around<F>(&self, work: impl FnOnce() -> F) -> Within<F> {
        #[cfg(feature = "tracing")]
        {
            let span = self.given.get().map(|given| given.span.clone());
            let span = span.unwrap_or_else(Span::none);
            let work = span.in_scope(work);
            tracing::Instrument::instrument(work, span)
        }
        #[cfg(not(feature = "tracing"))]
        work()
    }
}

/// Records, on our clock, when the server made a pushed grant.
///
/// `remaining` is what was left of the record's time when the server sent it. `clock` is an instant
/// before the last request left, and the server's time in its answer.
pub(crate) fn granted(
    work: &Work,
    record: &Record,
    remaining: Duration,
    clock: Option<(Instant, u64)>,
) {
    let (State::Granted, Some((sent, at))) = (record.state, clock) else {
        return;
    };
    let told = Duration::from_millis(record.until).saturating_sub(remaining);
    let at = Duration::from_micros(at);
    let freed = match told.checked_sub(at) {
        Some(later) => sent.checked_add(later),
        None => sent.checked_sub(at - told),
    };
    if let Some(freed) = freed {
        let _ = work.freed.set(freed);
    }
}

/// Reports that the lease was restarted.
pub(crate) fn renewed(of: Attempt<'_>) {
    if let Some(given) = of.work.given.get() {
        event!(DEBUG, parent: &given.span, "renewed", of: of);
    }
}

/// Reports that the lease has ended, by a loss or because its guard was settled or dropped.
pub(crate) fn ended(of: Attempt<'_>, reason: &LeaseLost) {
    let Some(given) = of.work.given.get() else {
        return;
    };
    measure!(HOLD, given.since.elapsed());
    let label = match reason {
        LeaseLost::Settled => return,
        LeaseLost::Expired => "expired",
        LeaseLost::TakenOver { .. } => "taken_over",
        LeaseLost::RecordGone => "record_gone",
        LeaseLost::Unreachable { .. } => "unreachable",
        LeaseLost::MaxHold { .. } => "max_hold",
        LeaseLost::Stalled { .. } => "stalled",
        LeaseLost::Forked => "forked",
        LeaseLost::Stopped => "stopped",
    };
    count!(LOSSES, "reason" => label);
    event!(WARN, parent: &given.span, "lost", of: of, reason = %reason);
}

/// Reports the answer to a settlement, or that the hub stopped waiting for it.
pub(crate) fn settled(of: Attempt<'_>, settled: Settled<'_>) {
    let Some(given) = of.work.given.get() else {
        return;
    };
    let (outcome, failure, reason): (_, _, Option<&dyn Display>) = match settled {
        Settled::Completed => ("completed", None, None),
        Settled::HandedOff => ("handed_off", None, None),
        Settled::Failed(reason) => ("failed", Some(cause(reason)), Some(reason)),
        Settled::Lost(reason, error) => ("lost", Some(cause(reason)), Some(error)),
        Settled::Unknown(reason, error) => ("unknown", Some(cause(reason)), Some(error)),
        Settled::Refused(error) => ("refused", Some("refused"), Some(error)),
    };
    match failure {
        None if outcome == "completed" => count!(COMPLETIONS),
        None => {}
        Some(failure) => count!(FAILURES, "reason" => failure),
    }
    #[cfg(feature = "tracing")]
    {
        let reason = || reason.map(tracing::field::display);
        given.span.record("outcome", outcome);
        given.span.record("reason", reason());
        macro_rules! tell {
            ($level:ident) => {
                event!($level, parent: &given.span, "settled", of: of, outcome, reason = reason())
            };
        }
        match failure {
            None => tell!(INFO),
            Some(_) => tell!(WARN),
        }
    }
}

/// The number of outages of keys that one hub has at present.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outages(Arc<AtomicUsize>);

/// An outage of one key. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Outage(Outages);

impl Outages {
    pub(crate) fn begin(&self, key: &Key, error: &Error) -> Outage {
        // Relaxed: only the hub's task counts.
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            count!(OUTAGES);
            event!(WARN, parent: None, "outage", key = %key, error = with_causes(error));
        }
        Outage(self.clone())
    }
}

impl Outage {
    /// Reports the recovery, if this is the only outage left. An outage that is dropped without
    /// this has no recovery: the process lost interest in the key.
    pub(crate) fn over(&self) {
        if self.0.0.load(Ordering::Relaxed) == 1 {
            event!(INFO, parent: None, "recovered");
        }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reports that messages may have been missed, and that the hub reads each key with waiters again.
pub(crate) fn resync(reason: &'static str) {
    count!(RESYNCS, "reason" => reason);
    event!(INFO, parent: None, "resync", reason);
}

/// Reports a warning about a server. The worker was built in spite of it.
pub(crate) fn warned(warning: &impl Display) {
    event!(WARN, "startup check", reason = %warning);
}

/// Reports the storing of a result that is so large that the server takes long to send it to many
/// connections.
pub(crate) fn large_result(key: &Key, bytes: usize) {
    event!(WARN, parent: None, "large result", key = %key, bytes);
}

/// Returns the label for the way in which an attempt ended.
fn cause(reason: &Reason) -> &'static str {
    match reason {
        Reason::Dropped => "dropped",
        Reason::Panicked => "panicked",
        Reason::Failed(_) => "failed",
        Reason::Expired => "expired",
        Reason::HandedOff => "handed_off",
        Reason::Lost => "lost",
        Reason::Unknown => "unknown",
    }
}

fn with_causes(error: &Error) -> &(dyn std::error::Error + 'static) {
    error
}
