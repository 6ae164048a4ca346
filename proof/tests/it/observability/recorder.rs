//! Keeps what is told to a subscriber of `tracing` and to a recorder of `metrics`, as lines to compare.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

use metrics::LocalRecorderGuard;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// What is told on this thread, until it is dropped.
pub struct Recorder {
    log: Log,
    snapshotter: Snapshotter,
    /// What each look has found: it starts all figures anew.
    figures: Mutex<BTreeMap<String, Value>>,
    _subscriber: DefaultGuard,
    _recorder: LocalRecorderGuard<'static>,
}

#[derive(Clone)]
enum Value {
    Number(f64),
    Durations(Vec<f64>),
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// In the order in which they began.
    spans: Vec<Span>,
    /// In their order.
    events: Vec<String>,
    /// The fencing tokens that were told, each once.
    tokens: Vec<u64>,
}

struct Span {
    /// With its parents' names in front of its own.
    path: String,
    fields: String,
    closed: bool,
}

impl Recorder {
    pub fn install() -> Self {
        let log = Log::default();
        let recorder: &'static DebuggingRecorder = Box::leak(Box::default());
        Self {
            snapshotter: recorder.snapshotter(),
            figures: Mutex::default(),
            _subscriber: tracing::subscriber::set_default(
                tracing_subscriber::registry().with(log.clone()),
            ),
            _recorder: metrics::set_default_local_recorder(recorder),
            log,
        }
    }

    /// The events, each within its spans. A fencing token is told as its place among those that were told.
    pub fn events(&self) -> Vec<String> {
        self.log.told().events.clone()
    }

    /// The spans, in the order in which they began, and whether they are still open.
    pub fn spans(&self) -> Vec<String> {
        let told = self.log.told();
        let line = |span: &Span| {
            let open = if span.closed { "" } else { " (open)" };
            format!("{}{}{open}", span.path, span.fields)
        };
        told.spans.iter().map(line).collect()
    }

    /// The fencing tokens that were told, in that order.
    pub fn tokens(&self) -> Vec<u64> {
        self.log.told().tokens.clone()
    }

    /// The figures by name and labels, without the crate's prefix.
    pub fn figures(&self) -> Vec<String> {
        let mut figures = self.figures.lock().unwrap();
        for (key, unit, description, value) in self.snapshotter.snapshot().into_vec() {
            let name = key.key().name();
            assert!(
                unit.is_some() && description.is_some(),
                "{name} is not described"
            );
            let name = name
                .strip_prefix("redis_locking_worker_")
                .expect("our prefix");
            let labels = key.key().labels();
            let labels: Vec<_> = labels
                .map(|l| format!("{}={}", l.key(), l.value()))
                .collect();
            let figure = figures.entry([name, " ", &labels.join(",")].concat());
            match (value, figure.or_insert(Value::Number(0.0))) {
                (DebugValue::Counter(more), Value::Number(sum)) => *sum += more as f64,
                (DebugValue::Gauge(more), Value::Number(sum)) => *sum += more.0,
                (DebugValue::Histogram(more), Value::Durations(all)) => {
                    all.extend(more.iter().map(|value| value.0));
                }
                (DebugValue::Histogram(all), value) => {
                    *value = Value::Durations(all.iter().map(|value| value.0).collect());
                }
                _ => panic!("{name} is of two kinds"),
            }
        }
        let line = |(name, value): (&String, &Value)| match value {
            Value::Number(number) => format!("{} = {number}", name.trim_end()),
            Value::Durations(durations) => format!("{} = {durations:?}", name.trim_end()),
        };
        figures.iter().map(line).collect()
    }

    /// What is counted under this name.
    pub fn figure(&self, name: &str) -> Option<String> {
        let figures = self.figures().into_iter();
        figures
            .filter_map(|line| Some(line.strip_prefix(name)?.strip_prefix(" = ")?.to_owned()))
            .next()
    }
}

impl Log {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).expect("a new span");
        let mut told = self.told();
        let path = match span.parent().and_then(|parent| place(&parent)) {
            Some(parent) => [&told.spans[parent].path, "/", span.name()].concat(),
            None => span.name().to_owned(),
        };
        let fields = told.read(|visitor| attributes.record(visitor));
        span.extensions_mut().insert(Place(told.spans.len()));
        told.spans.push(Span {
            path,
            fields,
            closed: false,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).expect("a span");
        let mut told = self.told();
        let fields = told.read(|visitor| values.record(visitor));
        told.spans[place(&span).unwrap()].fields += &fields;
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut told = self.told();
        let span = context.event_span(event).and_then(|span| place(&span));
        let path = span.map_or("", |span| &told.spans[span].path).to_owned();
        let fields = told.read(|visitor| event.record(visitor));
        let level = event.metadata().level();
        told.events.push(format!("{path}: {level}{fields}"));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).expect("a span");
        self.told().spans[place(&span).unwrap()].closed = true;
    }
}

/// Where a span is among those that are kept.
struct Place(usize);

fn place<'a, S: LookupSpan<'a>>(
    span: &tracing_subscriber::registry::SpanRef<'a, S>,
) -> Option<usize> {
    span.extensions().get::<Place>().map(|place| place.0)
}

impl Told {
    fn read(&mut self, record: impl FnOnce(&mut dyn Visit)) -> String {
        let mut fields = Fields {
            tokens: &mut self.tokens,
            text: String::new(),
        };
        record(&mut fields);
        fields.text
    }
}

/// ` name=value`, for each field; of the message only what it says.
struct Fields<'a> {
    tokens: &'a mut Vec<u64>,
    text: String,
}

impl Fields<'_> {
    fn add(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.text.insert_str(0, &format!(" {value}")),
            name => self.text += &format!(" {name}={value}"),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() != "fencing_token" {
            return self.add(field, &value.to_string());
        }
        let known = self.tokens.iter().position(|token| *token == value);
        let place = known.unwrap_or_else(|| {
            self.tokens.push(value);
            self.tokens.len() - 1
        });
        self.add(field, &format!("#{place}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        self.add(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, &format!("{value:?}"));
    }
}
