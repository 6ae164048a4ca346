//! The names and descriptions of the metrics.
//!
//! The values of labels are a fixed set. A key, or a reason from a caller, is never a label.

/// Adds one to a counter.
macro_rules! count {
    ($name:ident $(, $label:literal => $value:expr)?) => {{
        #[cfg(feature = "metrics")]
        metrics::counter!(crate::telemetry::figures::$name $(, $label => $value)?).increment(1);
    }};
}

/// Adds a duration to a histogram.
macro_rules! measure {
    ($name:ident, $duration:expr) => {{
        #[cfg(feature = "metrics")]
        metrics::histogram!(crate::telemetry::figures::$name).record($duration);
    }};
}

pub(super) use {count, measure};

macro_rules! figures {
    ($($kind:ident $name:ident = $text:literal, $unit:ident: $description:literal;)+) => {
        $(pub(super) const $name: &str = concat!("redis_locking_worker_", $text);)+

        #[cfg(test)]
        const ALL: &[&str] = &[$($text),+];

        /// Describes the metrics to the recorder.
        pub(crate) fn describe() {
            $(
                #[cfg(feature = "metrics")]
                metrics::$kind!($name, metrics::Unit::$unit, $description);
            )+
        }
    };
}

figures! {
    describe_counter PARTICIPATIONS = "participations_total", Count:
        "Streams that have ended, by outcome.";
    describe_gauge WAITING = "waiting_streams", Count:
        "Streams that wait for the attempt of another holder.";
    describe_counter ACQUISITIONS = "acquisitions_total", Count:
        "Guards that were yielded.";
    describe_counter TAKEOVERS = "takeovers_total", Count:
        "Those of them that followed another attempt, by how that one ended.";
    describe_histogram HANDOFF = "handoff_seconds", Seconds:
        "From the end of an attempt to the guard of its successor.";
    describe_histogram HOLD = "hold_seconds", Seconds:
        "From a guard to its settlement, drop or loss.";
    describe_counter COMPLETIONS = "completions_total", Count:
        "Guards that completed the work.";
    describe_counter FAILURES = "failures_total", Count:
        "Guards that did not, by reason.";
    describe_counter LOSSES = "lease_losses_total", Count:
        "Guards whose lease was lost before they were settled, by reason.";
    describe_counter OUTAGES = "outages_total", Count:
        "Times that the server ceased to serve.";
    describe_counter RESYNCS = "resyncs_total", Count:
        "Times that messages may have been missed, by reason.";
}

/// The label in [`LOSSES`] for each way to lose a lease.
#[cfg(feature = "metrics")]
const WAYS_TO_LOSE: [&str; 8] = [
    "expired",
    "taken_over",
    "record_gone",
    "unreachable",
    "max_hold",
    "stalled",
    "forked",
    "stopped",
];

/// The metrics about the end of a lease, of one thread's recorder. Another thread can update them.
#[cfg(feature = "metrics")]
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    counters: std::sync::Arc<std::collections::HashMap<metrics::Key, metrics::Counter>>,
    hold: Option<metrics::Histogram>,
}

#[cfg(feature = "metrics")]
impl Carried {
    pub(super) fn here() -> Self {
        let metadata = metrics::Metadata::new(module_path!(), metrics::Level::INFO, None);
        metrics::with_recorder(|recorder| {
            let losses = WAYS_TO_LOSE.iter().map(|reason| {
                let labels = vec![metrics::Label::from_static_parts("reason", reason)];
                let key = metrics::Key::from_parts(LOSSES, labels);
                let counter = recorder.register_counter(&key, &metadata);
                (key, counter)
            });
            Self {
                counters: std::sync::Arc::new(losses.collect()),
                hold: Some(recorder.register_histogram(&metrics::Key::from_name(HOLD), &metadata)),
            }
        })
    }

    pub(super) fn follow<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        let mut future = Box::pin(future);
        std::future::poll_fn(move |cx| {
            metrics::with_local_recorder(&self, || future.as_mut().poll(cx))
        })
    }
}

#[cfg(feature = "metrics")]
impl metrics::Recorder for Carried {
    fn describe_counter(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn describe_gauge(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn describe_histogram(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }

    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        let known = self.counters.get(key).cloned();
        known.unwrap_or_else(metrics::Counter::noop)
    }

    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }

    fn register_histogram(
        &self,
        key: &metrics::Key,
        _: &metrics::Metadata<'_>,
    ) -> metrics::Histogram {
        let known = self.hold.clone().filter(|_| key.name() == HOLD);
        known.unwrap_or_else(metrics::Histogram::noop)
    }
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn the_page_lists_them_all() {
        let page = include_str!("../../docs/observability.md");
        let (_, figures) = page.split_once("## Figures").expect("the table");
        let rows = figures.lines().filter_map(|line| line.strip_prefix("| `"));
        let names = rows.filter_map(|row| row.split_once("` | "));
        let names: Vec<&str> = names.map(|(name, _)| name).take(ALL.len()).collect();
        assert_eq!(names, ALL);
    }
}
