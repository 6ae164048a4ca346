//! Tests of the hub on a store that answers late, loses answers and messages, or invents events.

mod observers;
mod renewal;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::mpsc;
use futures::{FutureExt, Stream, StreamExt, future, stream};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Handle;
use crate::acquire::{Acquire, AcquireConfig};
use crate::acquire::{LockEvent, Status, StatusLevel};
use crate::error::{Error, ServerError};
use crate::guard::SettleError;
use crate::guard::WorkGuard;
use crate::key::Key;
use crate::lease::RunConfig;
use crate::outcome::Reason;
use crate::protocol::record::{Record, RecordSnapshot, State, Token};
use crate::protocol::{Op, Reply};
use crate::store::FencedError;
use crate::store::memory::{Memory, MemoryStore};
use crate::store::values::Value;
use crate::store::{BatchKey, FencedScript, Store, StoreEvent};

/// A lease, in ms, that no test waits out.
const LONG: u64 = 3_600_000;

/// What the store does with an operation.
enum Fate {
    /// Applies and answers it.
    Good,
    /// Applies it, and loses the answer.
    AnswerLost,
    /// Does not apply it, with a transient error.
    Refused,
    /// Does not apply it, with a fatal error.
    Forbidden,
    /// Applies it, but no replica acknowledges it.
    Unproven,
    /// Applies it, and answers when notified.
    Held(Arc<Notify>),
    /// Applies and answers it after this time.
    Late(Duration),
    /// Applies it, and reports after this time that no replica has acknowledged it.
    UnprovenLate(Duration),
    /// Applies it after this time, and loses the answer.
    LostLate(Duration),
    /// Applies it, and answers after this time.
    Slow(Duration),
}

/// Decides the fate of an operation.
type Judge = Box<dyn FnMut(&Op) -> Fate + Send>;

/// The memory store behind a bad network.
#[derive(Clone)]
struct Bad {
    store: MemoryStore,
    judge: Arc<Mutex<Judge>>,
    /// Notification for which the acknowledgement of a subscription waits, if set.
    gate: Option<Arc<Notify>>,
    /// Whether the store's own events are dropped.
    deaf: bool,
    /// Whether pings and subscriptions fail.
    cut: Arc<AtomicBool>,
    refuses_to_watch: bool,
    /// Events that the hub receives in addition to the store's own.
    rumours: Arc<Mutex<Option<mpsc::UnboundedReceiver<StoreEvent>>>>,
    calls: Arc<AtomicU32>,
    lanes: Arc<AtomicU32>,
    one_lane: bool,
    closed: Arc<Notify>,
}

impl Bad {
    fn new(memory: &Memory, judge: impl FnMut(&Op) -> Fate + Send + 'static) -> Self {
        Self {
            store: MemoryStore::new(memory),
            judge: Arc::new(Mutex::new(Box::new(judge))),
            gate: None,
            deaf: false,
            cut: Arc::default(),
            refuses_to_watch: false,
            rumours: Arc::default(),
            calls: Arc::default(),
            lanes: Arc::default(),
            one_lane: false,
            closed: Arc::default(),
        }
    }

    fn good(memory: &Memory) -> Self {
        Self::new(memory, |_| Fate::Good)
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl std::fmt::Debug for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.store.fmt(f)
    }
}

impl Store for Bad {
    /// Returns a new batch key for each operation, so that no operation waits for another. With
    /// `one_lane`, all operations share one batch key.
    fn lane(&self, _: &Key, _: &Op) -> BatchKey {
        match self.one_lane {
            true => 0,
            false => self.lanes.fetch_add(1, Ordering::SeqCst),
        }
    }

    async fn apply_all(&self, asked: &[(&Key, &Op)]) -> Vec<Result<Reply, Error>> {
        let answers = asked.iter().map(|(key, op)| self.apply(key, op));
        future::join_all(answers).await
    }

    async fn apply(&self, key: &Key, op: &Op) -> Result<Reply, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let fate = (self.judge.lock().unwrap())(op);
        let unavailable = || Error::Unavailable {
            key: key.clone(),
            source: ServerError::new("cut"),
        };
        let unproven = || Error::NotReplicated {
            key: key.clone(),
            wanted: 1,
            acknowledged: 0,
            timeout: Duration::from_secs(1),
        };
        match fate {
            Fate::Good => self.store.apply(key, op).await,
            Fate::AnswerLost => {
                self.store.apply(key, op).await?;
                Err(unavailable())
            }
            Fate::Refused => Err(unavailable()),
            Fate::Forbidden => Err(forbidden(key)),
            Fate::Unproven => {
                self.store.apply(key, op).await?;
                Err(unproven())
            }
            Fate::UnprovenLate(time) => {
                self.store.apply(key, op).await?;
                tokio::time::sleep(time).await;
                Err(unproven())
            }
            Fate::Held(until) => {
                let reply = self.store.apply(key, op).await;
                until.notified().await;
                reply
            }
            Fate::Late(time) => {
                tokio::time::sleep(time).await;
                self.store.apply(key, op).await
            }
            Fate::LostLate(time) => {
                tokio::time::sleep(time).await;
                self.store.apply(key, op).await?;
                Err(unavailable())
            }
            Fate::Slow(time) => {
                let reply = self.store.apply(key, op).await;
                tokio::time::sleep(time).await;
                reply
            }
        }
    }

    async fn fenced(&self, key: &Key, script: &FencedScript) -> Result<Value, FencedError> {
        self.store.fenced(key, script).await
    }

    async fn line(&self, key: &Key, most: u32) -> Result<Vec<String>, Error> {
        self.store.line(key, most).await
    }

    async fn watch(&self, key: &Key) -> Result<(), Error> {
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        if self.refuses_to_watch {
            return Err(forbidden(key));
        }
        if self.cut.load(Ordering::SeqCst) {
            let source = ServerError::new("cut");
            let key = key.clone();
            return Err(Error::Unavailable { key, source });
        }
        self.store.watch(key).await
    }

    async fn unwatch(&self, key: &Key) {
        self.store.unwatch(key).await;
    }

    async fn ping(&self) -> Result<(), Error> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(forbidden(&key())),
            false => self.store.ping().await,
        }
    }

    fn hear(&mut self) -> impl Stream<Item = StoreEvent> + Send + Unpin + 'static {
        let deaf = self.deaf;
        let rumours = self.rumours.lock().unwrap().take();
        let rumours = rumours.map_or_else(|| stream::pending().boxed(), StreamExt::boxed);
        let said = self.store.hear().filter(move |_| future::ready(!deaf));
        stream::select(said, rumours)
    }

    async fn close(&self) {
        self.store.close().await;
        self.closed.notify_one();
    }
}

fn forbidden(key: &Key) -> Error {
    Error::Refused {
        key: key.clone(),
        source: ServerError::new("NOPERM"),
    }
}

fn key() -> Key {
    Key::new("job").unwrap()
}

/// Returns the configuration of streams that have a hub of their own, as in a separate process.
fn process(store: &Bad, label: &str, lease: u64) -> AcquireConfig {
    process_with(store, label, lease, |terms| terms)
}

fn process_with(
    store: &Bad,
    label: &str,
    lease: u64,
    edit: impl Fn(RunConfig) -> RunConfig,
) -> AcquireConfig {
    let terms = RunConfig {
        lease,
        max_attempts: 5,
        retention: 2 * lease,
        label: label.into(),
        margin: Duration::ZERO,
        renew_every: None,
        max_hold: Duration::from_millis(LONG),
        stall_limit: Duration::from_millis(LONG),
        replicated: false,
    };
    AcquireConfig {
        hub: Handle::in_memory(store.clone()),
        key: key(),
        terms: Arc::new(edit(terms)),
        status_level: StatusLevel::Normal,
        rejoin: false,
    }
}

fn new_stream(process: &AcquireConfig) -> Acquire {
    Acquire::new(process.clone())
}

/// Returns the next event that is not a status. The timeout is on the paused clock, so a failed
/// test takes no time.
async fn next(stream: &mut Acquire) -> LockEvent {
    let mut events = stream.filter(|event| future::ready(!matches!(event, LockEvent::Status(_))));
    let event = tokio::time::timeout(Duration::from_millis(LONG / 2), events.next()).await;
    event.expect("an event").expect("another event")
}

async fn acquired(stream: &mut Acquire) -> WorkGuard {
    match next(stream).await {
        LockEvent::Acquired(guard) => guard,
        other => panic!("{other:?}"),
    }
}

async fn locked(stream: &mut Acquire) -> u32 {
    match next(stream).await {
        LockEvent::Locked(locked) => locked.attempt,
        other => panic!("{other:?}"),
    }
}

/// Lets every task run until it waits for a timer or for another task.
async fn settle_down() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_between_the_claim_and_the_subscription_is_not_missed() {
    let memory = Memory::new();
    let mut late = Bad::good(&memory);
    let gate = Arc::new(Notify::new());
    late.gate = Some(gate.clone());
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&late, "b", LONG),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    assert_eq!(locked(&mut second).await, 1);
    // The script of the failure grants the key to b, before b's subscription stands.
    guard.fail("early").await.unwrap();
    assert!(second.next().now_or_never().is_none());
    gate.notify_one();
    assert_eq!(acquired(&mut second).await.attempt(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_any_message_the_timers_take_over() {
    let memory = Memory::new();
    let mut deaf = Bad::good(&memory);
    deaf.deaf = true;
    let (a, b) = (
        process(&Bad::good(&memory), "a", 1_000),
        process(&deaf, "b", 1_000),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    assert_eq!(locked(&mut second).await, 1);
    let began = Instant::now();
    std::mem::forget(guard);
    assert_eq!(acquired(&mut second).await.attempt(), 2);
    let waited = began.elapsed();
    assert!(
        waited >= Duration::from_millis(1_000) && waited < Duration::from_millis(1_010),
        "{waited:?}"
    );
    assert!(
        deaf.calls() <= 5,
        "{}: no claim but at the lease's end",
        deaf.calls()
    );
}

#[tokio::test(start_paused = true)]
async fn a_grant_heard_before_its_claim_is_answered_is_yielded_once() {
    let memory = Memory::new();
    let answer = Arc::new(Notify::new());
    let held = answer.clone();
    let mut claims = 0;
    // The third claim is the first one of b's second stream. Its answer comes only after the
    // stream's grant was published.
    let late = Bad::new(&memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        match op {
            Op::Claim { .. } if claims == 3 => Fate::Held(held.clone()),
            _ => Fate::Good,
        }
    });
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&late, "b", LONG),
    );
    let mut holder = new_stream(&a);
    let guard = acquired(&mut holder).await;
    let mut first = new_stream(&b);
    locked(&mut first).await;
    settle_down().await;
    let mut second = new_stream(&b);
    assert!(second.next().now_or_never().is_none());
    settle_down().await;
    // The subscription stays, and the second stream is now first in the queue.
    drop(first);
    settle_down().await;
    guard.fail("now").await.unwrap();
    settle_down().await;
    assert!(
        second.next().now_or_never().is_none(),
        "not before its claim is answered"
    );
    answer.notify_one();
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 2);
    settle_down().await;
    assert!(second.next().now_or_never().is_none(), "once");
    guard.done().await.unwrap();
    assert!(matches!(next(&mut second).await, LockEvent::Completed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_the_same_grant_the_second_time() {
    let memory = Memory::new();
    let mut claims = 0;
    let bad = Bad::new(&memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        if claims == 1 {
            Fate::AnswerLost
        } else {
            Fate::Good
        }
    });
    let a = process(&bad, "a", LONG);
    let mut first = new_stream(&a);
    assert!(matches!(
        next(&mut first).await,
        LockEvent::Error(Error::Unavailable { .. })
    ));
    let guard = acquired(&mut first).await;
    assert_eq!(guard.attempt(), 1);
    guard.done().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_is_lost_is_ok_and_counts_once() {
    for waits in [false, true] {
        let memory = Memory::new();
        let mut settled = 0;
        let bad = Bad::new(&memory, move |op| {
            settled += u32::from(matches!(op, Op::Settle { .. }));
            match op {
                Op::Settle { .. } if settled == 1 => Fate::AnswerLost,
                _ => Fate::Good,
            }
        });
        let (a, b) = (
            process(&bad, "a", LONG),
            process(&Bad::good(&memory), "b", LONG),
        );
        let (mut first, mut second) = (new_stream(&a), new_stream(&b));
        let guard = acquired(&mut first).await;
        if waits {
            locked(&mut second).await;
        }
        guard
            .fail("once")
            .await
            .expect("it did fail, at the first try");
        assert_eq!(acquired(&mut second).await.attempt(), 2);
    }
    let memory = Memory::new();
    let mut settled = 0;
    let bad = Bad::new(&memory, move |op| {
        settled += u32::from(matches!(op, Op::Settle { .. }));
        if settled == 1 && matches!(op, Op::Settle { .. }) {
            Fate::AnswerLost
        } else {
            Fate::Good
        }
    });
    let a = process(&bad, "a", LONG);
    acquired(&mut new_stream(&a))
        .await
        .done()
        .await
        .expect("it is done");
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_never_reaches_the_server_is_unknown() {
    let memory = Memory::new();
    let bad = Bad::new(&memory, |op| match op {
        Op::Settle { .. } => Fate::Refused,
        _ => Fate::Good,
    });
    let a = process(&bad, "a", 10_000);
    let mut first = new_stream(&a);
    let guard = acquired(&mut first).await;
    match guard.done().await {
        Err(SettleError::Unknown { waited, .. }) => {
            assert!(
                waited >= Duration::from_secs(9),
                "the whole lease: {waited:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(next(&mut first).await, LockEvent::Error(_)),
        "one an outage"
    );
    assert!(matches!(next(&mut first).await, LockEvent::Failed(_)));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_one_event_however_often_it_is_tried() {
    let memory = Memory::new();
    let began = Instant::now();
    let bad = Bad::new(&memory, move |_| {
        match began.elapsed() < Duration::from_secs(60) {
            true => Fate::Refused,
            false => Fate::Good,
        }
    });
    let a = process(&bad, "a", LONG);
    let (mut first, mut second) = (new_stream(&a), new_stream(&a));
    for stream in [&mut first, &mut second] {
        assert!(matches!(next(stream).await, LockEvent::Error(_)));
    }
    let (guard, waiting) = match next(&mut first).await {
        LockEvent::Acquired(guard) => (guard, &mut second),
        LockEvent::Locked(_) => (acquired(&mut second).await, &mut first),
        other => panic!("{other:?}"),
    };
    assert!(began.elapsed() >= Duration::from_secs(60));
    let tries = bad.calls();
    assert!(
        (60..200).contains(&tries),
        "{tries} tries in 60 s, by backoff to 1 s"
    );
    drop(guard);
    assert_eq!(acquired_past_locked(waiting).await.attempt(), 2);
}

async fn acquired_past_locked(stream: &mut Acquire) -> WorkGuard {
    loop {
        match next(stream).await {
            LockEvent::Acquired(guard) => return guard,
            LockEvent::Locked(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_duplicate_of_a_claim_takes_nothing() {
    let memory = Memory::new();
    let claims = Arc::new(Mutex::new(Vec::new()));
    let seen = claims.clone();
    let bad = Bad::new(&memory, move |op| {
        if matches!(op, Op::Claim { .. }) {
            seen.lock().unwrap().push(op.clone());
        }
        Fate::Good
    });
    let a = process(&bad, "a", LONG);
    let mut first = new_stream(&a);
    acquired(&mut first).await.fail("once").await.unwrap();
    let duplicate = claims.lock().unwrap()[0].clone();
    let reply = bad.store.apply(&key(), &duplicate).await.unwrap();
    assert!(!reply.ok, "the attempt that failed does not come back");
    assert_eq!(acquired(&mut new_stream(&a)).await.attempt(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_guard_is_invalid_before_the_next_grant() {
    for lease in [10, 100, 1_000, 60_000] {
        let memory = Memory::new();
        // A late answer must not make the guard valid for longer.
        let slow = Duration::from_millis(lease / 5);
        let good = Bad::new(&memory, move |_| Fate::Slow(slow));
        let a = process(&good, "a", lease);
        let mut first = new_stream(&a);
        let guard = acquired(&mut first).await;
        assert!(guard.is_valid() || lease < 100);
        let claim = Op::Claim {
            token: Token::random(),
            label: "thief".into(),
            lease: 1,
            max_attempts: 5,
            retention: 1,
        };
        while !good.store.apply(&key(), &claim).await.unwrap().ok {
            tokio::time::advance(Duration::from_micros(lease)).await;
            settle_down().await;
        }
        assert!(!guard.is_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_the_hub_and_its_connections() {
    let memory = Memory::new();
    let good = Bad::good(&memory);
    let a = process(&good, "a", LONG);
    let (mut first, mut second) = (new_stream(&a), new_stream(&a));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    drop((a, first, second));
    settle_down().await;
    assert!(
        good.closed.notified().now_or_never().is_none(),
        "the guard is out"
    );
    drop(guard);
    tokio::time::timeout(Duration::from_secs(1), good.closed.notified())
        .await
        .expect("closed");
}

#[tokio::test(start_paused = true)]
async fn a_late_message_of_the_last_run_ends_nothing() {
    let memory = Memory::new();
    let (say, rumours) = mpsc::unbounded();
    let bad = Bad::good(&memory);
    *bad.rumours.lock().unwrap() = Some(rumours);
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    settle_down().await;
    let now = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
    let stale = Record {
        state: State::Done,
        fence: guard.fencing_token() - 1,
        ..now.record().unwrap().clone()
    };
    let record = Some(Arc::new(stale));
    let frame = Some(RecordSnapshot {
        at: now.frame.at,
        record,
    });
    let channel = key().line().clone();
    say.unbounded_send(StoreEvent::Message { channel, frame })
        .unwrap();
    settle_down().await;
    assert!(
        second.next().now_or_never().is_none(),
        "what is not newer says nothing"
    );
    guard.fail("real news").await.unwrap();
    assert_eq!(acquired(&mut second).await.attempt(), 2);
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_the_answer() {
    let memory = Memory::new();
    let answer = Arc::new(Notify::new());
    let held = answer.clone();
    let bad = Bad::new(&memory, move |op| match op {
        Op::Settle { .. } => Fate::Held(held.clone()),
        _ => Fate::Good,
    });
    let a = process(&bad, "a", LONG);
    drop(acquired(&mut new_stream(&a)).await);
    let mut drained = pin!(a.hub.drain());
    for _ in 0..100 {
        assert!(
            drained.as_mut().now_or_never().is_none(),
            "not answered yet"
        );
        tokio::task::yield_now().await;
    }
    answer.notify_one();
    drained.await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_not_taken_goes_on_at_once() {
    let memory = Memory::new();
    let good = Bad::good(&memory);
    let a = process(&good, "a", LONG);
    let (mut first, mut second, mut third) = (new_stream(&a), new_stream(&a), new_stream(&a));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    let began = Instant::now();
    guard.fail("for the second").await.unwrap();
    settle_down().await;
    drop(second);
    assert_eq!(acquired_past_locked(&mut third).await.attempt(), 2);
    assert_eq!(
        began.elapsed(),
        Duration::ZERO,
        "not after the confirm window"
    );
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_the_return_of_a_grant() {
    // The hub receives the answer or the drop first, by chance.
    for _ in 0..50 {
        let memory = Memory::new();
        let answer = Arc::new(Notify::new());
        let held = answer.clone();
        let bad = Bad::new(&memory, move |op| match op {
            Op::Claim { .. } => Fate::Held(held.clone()),
            Op::Withdraw { .. } => Fate::Late(Duration::from_secs(1)),
            _ => Fate::Good,
        });
        let a = process(&bad, "a", LONG);
        let mut first = new_stream(&a);
        assert!(first.next().now_or_never().is_none());
        settle_down().await;
        answer.notify_one();
        drop(first);
        a.hub.drain().await;
        let left = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
        assert_eq!(
            left.record().unwrap().state,
            State::Open,
            "no lease is left"
        );
    }
}

/// As above, but no handle is left to drain the hub.
#[tokio::test(start_paused = true)]
async fn the_last_stream_and_the_last_handle_leave_nothing() {
    for _ in 0..50 {
        let memory = Memory::new();
        let answer = Arc::new(Notify::new());
        let held = answer.clone();
        let bad = Bad::new(&memory, move |op| match op {
            Op::Claim { .. } => Fate::Held(held.clone()),
            _ => Fate::Good,
        });
        let a = process(&bad, "a", LONG);
        let mut first = new_stream(&a);
        assert!(first.next().now_or_never().is_none());
        settle_down().await;
        answer.notify_one();
        drop((first, a));
        // Answers a second claim, if there is one.
        settle_down().await;
        answer.notify_one();
        bad.closed.notified().await;
        let left = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
        assert_eq!(left.record().unwrap().state, State::Open);
    }
}

/// The server may have applied the claim of the stream that joins.
#[tokio::test(start_paused = true)]
async fn a_refused_joining_stream_leaves_the_queue() {
    let memory = Memory::new();
    let mut claims = 0;
    let mut bad = Bad::new(&memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        match op {
            Op::Claim { .. } if claims == 2 => Fate::AnswerLost,
            _ => Fate::Good,
        }
    });
    let gate = Arc::new(Notify::new());
    bad.gate = Some(gate.clone());
    bad.refuses_to_watch = true;
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let _guard = acquired(&mut new_stream(&a)).await;
    let (mut second, mut third) = (new_stream(&b), new_stream(&b));
    locked(&mut second).await;
    assert!(matches!(
        next(&mut third).await,
        LockEvent::Error(Error::Unavailable { .. })
    ));
    gate.notify_one();
    assert!(matches!(
        next(&mut third).await,
        LockEvent::Error(Error::Refused { .. })
    ));
    settle_down().await;
    let left = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
    assert_eq!(left.position, Some(0), "the queue is empty");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_outage_before_it() {
    let memory = Memory::new();
    let mut calls = 0;
    let bad = Bad::new(&memory, move |_| {
        calls += 1;
        match calls {
            1 => Fate::Refused,
            2 => Fate::Forbidden,
            _ => Fate::Good,
        }
    });
    let a = process(&bad, "a", LONG);
    let mut first = new_stream(&a);
    assert!(matches!(
        next(&mut first).await,
        LockEvent::Error(Error::Unavailable { .. })
    ));
    assert!(matches!(
        next(&mut first).await,
        LockEvent::Error(Error::Refused { .. })
    ));
    assert!(first.next().await.is_none());
    // The cause of the refusal has been removed.
    let mut second = new_stream(&a);
    let guard = acquired(&mut second).await;
    guard.done().await.unwrap();
    let closed = bad.closed.clone();
    drop((first, second, a));
    closed.notified().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_waiter_leaves_the_queue() {
    let memory = Memory::new();
    let mut bad = Bad::good(&memory);
    bad.refuses_to_watch = true;
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let mut first = new_stream(&a);
    let guard = acquired(&mut first).await;
    let mut second = new_stream(&b);
    locked(&mut second).await;
    assert!(matches!(
        next(&mut second).await,
        LockEvent::Error(Error::Refused { .. })
    ));
    assert!(second.next().await.is_none());
    settle_down().await;
    let left = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
    assert_eq!(left.position, Some(0), "the queue is empty");
    guard.done().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_late_claim_does_not_end_a_pushed_grant() {
    for lost in [false, true] {
        let memory = Memory::new();
        let mut claims = 0;
        // The store applies the claim after the subscription when the grant has already arrived,
        // and answers it when the stream has gone.
        let bad = Bad::new(&memory, move |op| {
            claims += u32::from(matches!(op, Op::Claim { .. }));
            match op {
                Op::Claim { .. } if claims == 2 && lost => Fate::LostLate(Duration::from_secs(1)),
                Op::Claim { .. } if claims == 2 => Fate::Late(Duration::from_secs(1)),
                _ => Fate::Good,
            }
        });
        let (a, b) = (
            process(&Bad::good(&memory), "a", LONG),
            process(&bad, "b", LONG),
        );
        let (mut first, mut second) = (new_stream(&a), new_stream(&b));
        let guard = acquired(&mut first).await;
        locked(&mut second).await;
        settle_down().await;
        guard.fail("for the second").await.unwrap();
        let guard = acquired(&mut second).await;
        drop(second);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let held = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
        let held = held.record().unwrap();
        assert_eq!(
            (held.state, held.fence),
            (State::Held, guard.fencing_token())
        );
        assert!(guard.is_valid());
        guard.done().await.unwrap();
    }
}

/// A holder that has begun to work has made an attempt. Giving the grant back would not count the
/// attempt.
#[tokio::test(start_paused = true)]
async fn a_late_claim_does_not_give_back_a_used_grant() {
    // The claim is applied late, or its answer arrives late and shows the state before the grant:
    // a position in the queue.
    for fate in [Fate::Late, Fate::LostLate, Fate::Slow] {
        let memory = Memory::new();
        let (second, bad) = granted_before_its_claim(&memory, fate(Duration::from_secs(1))).await;
        is_worked_on_and_lost(second, &bad).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_fails_with_the_reason_of_its_loss() {
    let memory = Memory::new();
    let (a, b) = (
        process(&Bad::good(&memory), "a", 1_000),
        process(&Bad::good(&memory), "b", 1_000),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    let lost = guard.run(future::pending::<()>()).await.unwrap_err();
    // The lease has not ended on the server, so the server still accepts the failure.
    drop(guard);
    let guard = acquired(&mut second).await;
    let reason = &guard.previous().unwrap().reason;
    assert_eq!(*reason, Reason::Failed(lost.to_string()));
    assert_eq!(lost.to_string(), "the lease was lost: it ended");
}

/// The attempt before was handed off, too, and has the same number. Or it failed, and its reason
/// stays in the record.
#[tokio::test(start_paused = true)]
async fn a_hand_off_that_was_too_late_is_not_taken_for_one_that_was_done() {
    for (label, fails) in [("a", false), ("b", false), ("b", true)] {
        let memory = Memory::new();
        let bad = Bad::new(&memory, |op| match op {
            Op::Renew { .. } => Fate::LostLate(Duration::from_secs(2)),
            Op::Settle { .. } => Fate::Late(Duration::from_secs(1)),
            _ => Fate::Good,
        });
        let (a, b, c) = (
            process(&Bad::good(&memory), "a", LONG),
            process(&bad, label, LONG),
            process(&Bad::good(&memory), "c", LONG),
        );
        let (mut first, mut second, mut third) = (new_stream(&a), new_stream(&b), new_stream(&c));
        let guard = acquired(&mut first).await;
        locked(&mut second).await;
        locked(&mut third).await;
        settle_down().await;
        match fails {
            true => guard.fail("no luck").await.unwrap(),
            false => guard.hand_off().await.unwrap(),
        }
        let guard = acquired(&mut second).await;
        let attempt = guard.attempt();
        // The confirmation comes too late: the grant goes to the third stream, uncounted.
        let late = guard.hand_off();
        let next = async { acquired_past_locked(&mut third).await };
        let (told, next) = future::join(late, next).await;
        assert!(matches!(told, Err(SettleError::Lost(_))), "{told:?}");
        assert_eq!(next.attempt(), attempt);
    }
}

/// Returns a store that loses the answer to the first settlement.
fn losing_an_answer(memory: &Memory) -> Bad {
    let mut settlements = 0;
    Bad::new(memory, move |op| {
        settlements += u32::from(matches!(op, Op::Settle { .. }));
        match op {
            Op::Settle { .. } if settlements == 1 => Fate::AnswerLost,
            _ => Fate::Good,
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_hand_off_whose_answer_is_lost_is_told_from_the_one_before() {
    let memory = Memory::new();
    let bad = losing_an_answer(&memory);
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    settle_down().await;
    guard.hand_off().await.unwrap();
    acquired(&mut second).await.hand_off().await.unwrap();
}

/// Only the record shows the hand-off, and it keeps the reason of the failure before. At the retry
/// there is no successor, or one with an unconfirmed grant, or one that has confirmed.
#[tokio::test(start_paused = true)]
async fn a_hand_off_after_a_failure_is_ok_though_its_answer_is_lost() {
    for state in [State::Open, State::Granted, State::Held] {
        let memory = Memory::new();
        let bad = losing_an_answer(&memory);
        let (a, b) = (
            process(&Bad::good(&memory), "a", LONG),
            process(&bad, "b", LONG),
        );
        let (mut first, mut second) = (new_stream(&a), new_stream(&b));
        let guard = acquired(&mut first).await;
        locked(&mut second).await;
        let mut third = new_stream(&a);
        if state != State::Open {
            locked(&mut third).await;
        }
        settle_down().await;
        guard.fail("no luck").await.unwrap();
        let handed_off = acquired(&mut second).await.hand_off();
        match state {
            State::Held => {
                let successor = async { acquired_past_locked(&mut third).await };
                let (told, guard) = future::join(handed_off, successor).await;
                told.unwrap();
                assert!(guard.is_valid());
            }
            _ => handed_off.await.unwrap(),
        }
        let reply = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
        assert_eq!(reply.record().unwrap().state, state);
    }
}

/// The attempt number of the successor shows that the hand-off came too late.
#[tokio::test(start_paused = true)]
async fn a_hand_off_after_a_failure_that_was_too_late_is_lost() {
    let memory = Memory::new();
    let (a, b) = (
        process(&Bad::good(&memory), "a", 1_000),
        process(&Bad::good(&memory), "b", 1_000),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    settle_down().await;
    guard.fail("no luck").await.unwrap();
    let late = acquired(&mut second).await;
    let mut third = new_stream(&a);
    locked(&mut third).await;
    let next = acquired(&mut third).await;
    assert_eq!(next.attempt(), 3);
    let late = late.hand_off().await;
    assert!(matches!(late, Err(SettleError::Lost(_))), "{late:?}");
}

/// The process forgets a grant whose settlement is not answered yet later than the lost grant of
/// the successor. A late claim must not give back the successor's grant then.
#[tokio::test(start_paused = true)]
async fn a_slow_settlement_does_not_hide_a_used_grant() {
    let memory = Memory::new();
    let mut claims = 0;
    let bad = Bad::new(&memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        match op {
            Op::Claim { .. } if claims == 3 => Fate::Late(Duration::from_secs(4)),
            Op::Settle { .. } => Fate::Slow(Duration::from_secs(2)),
            Op::Renew { .. } => Fate::Slow(Duration::from_secs(10)),
            _ => Fate::Good,
        }
    });
    let process = process(&bad, "a", LONG);
    let (mut first, mut second) = (new_stream(&process), new_stream(&process));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    settle_down().await;
    let failing = tokio::spawn(guard.fail("for the second"));
    is_worked_on_and_lost(second, &bad).await;
    failing.await.unwrap().unwrap();
}

/// The server applies the claim in a later run, whose record does not have the token any more. It
/// grants the key to a stream that does not want it.
#[tokio::test(start_paused = true)]
async fn a_claim_after_its_run_gives_back_its_grant() {
    // Four cases: with and without a lost answer, with and without further polls of the stream.
    for nth in 0..4 {
        let (lost, reads) = (nth / 2 == 1, nth % 2 == 1);
        let fate = if lost { Fate::LostLate } else { Fate::Late };
        let memory = Memory::new();
        let fate = fate(Duration::from_secs(4));
        let (mut second, bad) = granted_before_its_claim(&memory, fate).await;
        let guard = acquired(&mut second).await;
        guard.lost().await;
        std::mem::forget(guard);
        if reads {
            assert!(matches!(next(&mut second).await, LockEvent::Failed(_)));
        }
        memory.remove(&key());
        tokio::time::sleep(Duration::from_secs(20)).await;
        let left = bad.store.apply(&key(), &Op::Inspect).await.unwrap();
        let left = left.record().unwrap();
        assert_eq!((left.state, left.attempt), (State::Open, 0));
    }
}

/// Returns a stream that has a grant by push. The claim after its subscription has this fate. Its
/// guard will lose the lease, since the answer to the confirmation comes too late.
async fn granted_before_its_claim(memory: &Memory, fate: Fate) -> (Acquire, Bad) {
    let (mut claims, mut fate) = (0, Some(fate));
    let bad = Bad::new(memory, move |op| {
        claims += u32::from(matches!(op, Op::Claim { .. }));
        match op {
            Op::Claim { .. } if claims == 2 => fate.take().unwrap_or(Fate::Good),
            Op::Renew { .. } => Fate::Slow(Duration::from_secs(2)),
            _ => Fate::Good,
        }
    });
    let (a, b) = (
        process(&Bad::good(memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    settle_down().await;
    guard.fail("for the second").await.unwrap();
    (second, bad)
}

/// Lets the stream take its grant and lose it. Checks that only the lease ends the attempt.
async fn is_worked_on_and_lost(mut stream: Acquire, store: &Bad) {
    let guard = acquired(&mut stream).await;
    let fence = guard.fencing_token();
    guard.lost().await;
    std::mem::forget(guard);
    assert!(matches!(next(&mut stream).await, LockEvent::Failed(_)));
    drop(stream);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let held = store.store.apply(&key(), &Op::Inspect).await.unwrap();
    let held = held.record().unwrap();
    assert_eq!((held.state, held.fence), (State::Held, fence));
}

/// The confirmation comes too late. Another holder has the key before the stream makes the guard.
#[tokio::test(start_paused = true)]
async fn a_grant_lost_behind_a_status_is_not_counted() {
    let memory = Memory::new();
    let bad = Bad::new(&memory, |op| match op {
        Op::Renew { .. } => Fate::Late(Duration::from_secs(2)),
        _ => Fate::Good,
    });
    let (a, b, c) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
        process(&Bad::good(&memory), "c", LONG),
    );
    let (mut first, mut second, mut third) = (new_stream(&a), new_stream(&b), new_stream(&c));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    guard.fail("for the second").await.unwrap();
    is_told_of_attempt(&mut second, 2).await;
    assert_eq!(locked(&mut third).await, 2);
    let guard = acquired(&mut third).await;
    assert_eq!(guard.attempt(), 2, "the unconfirmed number is used again");
    assert_eq!(locked(&mut second).await, 2);
    guard.fail("for the second").await.unwrap();
    assert_eq!(acquired(&mut second).await.attempt(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_grant_whose_lease_ends_behind_a_status_is_confirmed_again() {
    let memory = Memory::new();
    let lease = 1_000;
    let (a, b) = (
        process(&Bad::good(&memory), "a", lease),
        process(&Bad::good(&memory), "b", lease),
    );
    let (mut first, mut second) = (new_stream(&a), new_stream(&b));
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    guard.fail("for the second").await.unwrap();
    is_told_of_attempt(&mut second, 2).await;
    tokio::time::sleep(Duration::from_millis(lease + lease / 2)).await;
    let guard = acquired(&mut second).await;
    assert!(guard.is_valid());
    assert_eq!(guard.attempt(), 2);
    guard.done().await.unwrap();
}

/// Reads up to the status with which a stream announces its attempt, before it yields the guard.
async fn is_told_of_attempt(stream: &mut Acquire, attempt: u32) {
    let told = LockEvent::Status(Status::ThisIsAttempt { attempt });
    let told = format!("{told:?}");
    while format!("{:?}", stream.next().await.expect("an event")) != told {}
}

fn on_key(process: &AcquireConfig, name: &str) -> Acquire {
    let mut process = process.clone();
    process.key = Key::new(name).unwrap();
    Acquire::new(process)
}

#[tokio::test(start_paused = true)]
async fn queued_requests_are_sent_after_stalled_calls() {
    let memory = Memory::new();
    let stalled = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let mut fates = stalled.iter().cloned().map(Fate::Held).collect::<Vec<_>>();
    let mut bad = Bad::new(&memory, move |_| fates.pop().unwrap_or(Fate::AnswerLost));
    bad.one_lane = true;
    let process = process(&bad, "a", LONG);
    let (mut a, mut b) = (on_key(&process, "a"), on_key(&process, "b"));
    // One call each: that fills the window.
    assert!(a.next().now_or_never().is_none());
    settle_down().await;
    assert!(b.next().now_or_never().is_none());
    settle_down().await;
    let mut waiting: Vec<Acquire> = (0..5)
        .map(|nth| on_key(&process, &format!("c{nth}")))
        .collect();
    for stream in &mut waiting {
        assert!(stream.next().now_or_never().is_none());
    }
    settle_down().await;
    assert_eq!(bad.calls(), 2, "the others wait");

    // Both are answered. The answers to the others are lost, so each of the others claims again.
    stalled.iter().for_each(|stalled| stalled.notify_one());
    let (_a, _b) = (acquired(&mut a).await, acquired(&mut b).await);
    assert_eq!(bad.calls(), 7);
    *bad.judge.lock().unwrap() = Box::new(|_| Fate::Good);
    for stream in &mut waiting {
        assert!(matches!(next(stream).await, LockEvent::Error(error) if !error.is_fatal()));
        acquired(stream).await.done().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_queued_requests() {
    let memory = Memory::new();
    let mut bad = Bad::new(&memory, |op| match op {
        Op::Settle { .. } => Fate::Slow(Duration::from_secs(1)),
        _ => Fate::Good,
    });
    bad.one_lane = true;
    let process = process(&bad, "a", LONG);
    let mut guards = Vec::new();
    for nth in 0..5 {
        guards.push(acquired(&mut on_key(&process, &format!("c{nth}"))).await);
    }
    let began = Instant::now();
    for guard in guards {
        // The guards are dropped one by one, so that the first calls fill the window and the rest
        // waits.
        drop(guard);
        settle_down().await;
    }
    process.hub.drain().await;
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "in more than one turn"
    );
    for nth in 0..5 {
        let key = Key::new(format!("c{nth}")).unwrap();
        let left = bad.store.apply(&key, &Op::Inspect).await.unwrap();
        assert_eq!(left.record().unwrap().state, State::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_has_waited_for_longer_than_its_lease_is_not_sent() {
    let memory = Memory::new();
    let stalled = Arc::new(Notify::new());
    let renewals = Arc::new(AtomicU32::new(0));
    let mut bad = Bad::new(&memory, {
        let (stalled, renewals) = (stalled.clone(), renewals.clone());
        move |op| match op {
            Op::Inspect => Fate::Good,
            Op::Claim { label, .. } if &**label == "stalled" => Fate::Held(stalled.clone()),
            Op::Renew { .. } => {
                renewals.fetch_add(1, Ordering::SeqCst);
                Fate::Good
            }
            _ => Fate::Good,
        }
    });
    bad.one_lane = true;
    let process = process(&bad, "a", 1_000);
    let guard = acquired(&mut on_key(&process, "held")).await;
    // Two unanswered calls fill the window.
    let mut stalling = process.clone();
    stalling.terms = Arc::new(RunConfig {
        lease: LONG,
        max_attempts: 5,
        retention: LONG,
        label: "stalled".into(),
        margin: Duration::ZERO,
        renew_every: None,
        max_hold: Duration::from_millis(LONG),
        stall_limit: Duration::from_millis(LONG),
        replicated: false,
    });
    let mut streams = [on_key(&stalling, "a"), on_key(&stalling, "b")];
    for stream in &mut streams {
        assert!(stream.next().now_or_never().is_none());
        settle_down().await;
    }
    let lost = guard.extend(Duration::from_secs(60)).await.unwrap_err();
    assert!(
        matches!(lost, crate::guard::RenewError::Lost(_)),
        "{lost:?}"
    );
    stalled.notify_one();
    stalled.notify_one();
    settle_down().await;
    stalled.notify_one();
    settle_down().await;
    assert_eq!(renewals.load(Ordering::SeqCst), 0, "no holder needs it");
}

#[tokio::test(start_paused = true)]
async fn a_grant_among_very_many_streams_of_one_process_is_told_once_each() {
    // This took minutes when the hub notified all streams at each answer.
    let (took, patience) = (telling(20_000).await, Duration::from_secs(30));
    assert!(took < patience, "{took:?}");
}

/// Returns the CPU time in which this thread notifies `streams` streams of a grant and of a
/// completion. Other work on the computer does not count.
async fn telling(streams: usize) -> Duration {
    let clock = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let began = clock();
    let memory = Memory::new();
    let process = process(&Bad::good(&memory), "a", LONG);
    let mut told: Vec<Acquire> = (0..streams).map(|_| new_stream(&process)).collect();
    // All of them claim before the first is answered.
    for stream in &mut told {
        assert!(stream.next().now_or_never().is_none());
    }
    let guard = acquired(&mut told[0]).await;
    for stream in &mut told[1..] {
        assert_eq!(locked(stream).await, 1);
    }
    guard.done().await.unwrap();
    for stream in &mut told[1..] {
        assert!(matches!(next(stream).await, LockEvent::Completed(_)));
    }
    clock() - began
}
