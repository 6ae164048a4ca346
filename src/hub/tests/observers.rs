//! Tests of watchers on a store that answers late or never, or that loses messages.

use super::*;
use crate::hub::WatchHandle;

async fn seen(lookout: &mut WatchHandle) -> Option<(State, u32)> {
    let next = tokio::time::timeout(Duration::from_millis(LONG / 2), lookout.next());
    let frame = next.await.expect("in time").expect("another").unwrap();
    frame.record.map(|record| (record.state, record.attempt))
}

#[tokio::test(start_paused = true)]
async fn an_overtaken_answer_does_not_show_absence() {
    let memory = Memory::new();
    let mut looks = 0;
    let mut bad = Bad::new(&memory, move |op| {
        looks += u32::from(matches!(op, Op::Inspect));
        match op {
            // This is the read after the gap, when there is no record yet.
            Op::Inspect if looks == 2 => Fate::Slow(Duration::from_secs(1)),
            _ => Fate::Good,
        }
    });
    let (say, rumours) = mpsc::unbounded();
    bad.rumours = Arc::new(Mutex::new(Some(rumours)));
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let mut lookout = b.hub.observe(&b.key);
    assert_eq!(seen(&mut lookout).await, None);
    say.unbounded_send(StoreEvent::Lagged).unwrap();
    // The grant must be later than the read on the server's clock, which is paused, too.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let guard = acquired(&mut new_stream(&a)).await;
    assert_eq!(seen(&mut lookout).await, Some((State::Held, 1)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(lookout.next().now_or_never().is_none(), "it still stands");
    guard.done().await.unwrap();
    assert_eq!(seen(&mut lookout).await, Some((State::Done, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_reads_after_lost_messages() {
    let memory = Memory::new();
    let mut deaf = Bad::good(&memory);
    deaf.deaf = true;
    let (say, rumours) = mpsc::unbounded();
    deaf.rumours = Arc::new(Mutex::new(Some(rumours)));
    let (a, b) = (
        process(&Bad::good(&memory), "a", 1_000),
        process(&deaf, "b", 1_000),
    );
    let mut lookout = b.hub.observe(&b.key);
    assert_eq!(seen(&mut lookout).await, None);
    settle_down().await;
    let guard = acquired(&mut new_stream(&a)).await;
    settle_down().await;
    assert!(lookout.next().now_or_never().is_none(), "not heard");
    // The watcher reads after a gap, after a disconnect and after a reconnect.
    say.unbounded_send(StoreEvent::Lagged).unwrap();
    assert_eq!(seen(&mut lookout).await, Some((State::Held, 1)));
    guard.fail("first").await.unwrap();
    say.unbounded_send(StoreEvent::Disconnected).unwrap();
    assert_eq!(seen(&mut lookout).await, Some((State::Open, 1)));
    let guard = acquired(&mut new_stream(&a)).await;
    say.unbounded_send(StoreEvent::Reconnected).unwrap();
    assert_eq!(seen(&mut lookout).await, Some((State::Held, 2)));
    deaf.cut.store(true, Ordering::SeqCst);
    // While it is cut off, the watcher reads before the server can forget an outcome.
    say.unbounded_send(StoreEvent::Disconnected).unwrap();
    settle_down().await;
    guard.done().await.unwrap();
    assert_eq!(seen(&mut lookout).await, Some((State::Done, 2)));
    assert_eq!(seen(&mut lookout).await, None);
    // An absent record is no news, and must not cause reads without end.
    let calls = deaf.calls();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let calls = deaf.calls() - calls;
    assert!((50..=61).contains(&calls), "{calls}: each half retention");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_gets_every_record_after_its_first() {
    let memory = Memory::new();
    let mut bad = Bad::good(&memory);
    let gate = Arc::new(Notify::new());
    bad.gate = Some(gate.clone());
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let mut lookout = b.hub.observe(&b.key);
    settle_down().await;
    let guard = acquired(&mut new_stream(&a)).await;
    gate.notify_one();
    assert_eq!(seen(&mut lookout).await, Some((State::Held, 1)));
    guard.fail("first").await.unwrap();
    let guard = acquired(&mut new_stream(&a)).await;
    guard.done().await.unwrap();
    for next in [(State::Open, 1), (State::Held, 2), (State::Done, 2)] {
        assert_eq!(seen(&mut lookout).await, Some(next));
    }
}

#[tokio::test(start_paused = true)]
async fn subscription_retries_cause_no_reads() {
    let memory = Memory::new();
    let cut = Bad::good(&memory);
    cut.cut.store(true, Ordering::SeqCst);
    let b = process(&cut, "b", LONG);
    let mut lookout = b.hub.observe(&b.key);
    assert_eq!(seen(&mut lookout).await, None);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        cut.calls(),
        2,
        "and once more when its ping was not answered"
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_one_error_and_then_the_run_as_it_is() {
    let memory = Memory::new();
    let down = Instant::now() + Duration::from_secs(1);
    let up = down + Duration::from_secs(10);
    let mut bad = Bad::new(&memory, move |_| {
        match (down..up).contains(&Instant::now()) {
            true => Fate::Refused,
            false => Fate::Good,
        }
    });
    bad.deaf = true;
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&bad, "b", LONG),
    );
    let _guard = acquired(&mut new_stream(&a)).await;
    let mut first = b.hub.observe(&b.key);
    assert_eq!(seen(&mut first).await, Some((State::Held, 1)));
    tokio::time::sleep_until(down).await;
    let mut second = b.hub.observe(&b.key);
    assert!(matches!(
        first.next().await,
        Some(Err(Error::Unavailable { .. }))
    ));
    // A later watcher gets the error of the outage at once.
    let mut third = b.hub.observe(&b.key);
    for lookout in [&mut second, &mut third] {
        assert!(matches!(
            lookout.next().await,
            Some(Err(Error::Unavailable { .. }))
        ));
    }
    assert!(
        b.hub.ask(&b.key, Op::Inspect).await.is_err(),
        "not waited for"
    );
    // Each watcher gets the record, also the one that knew it before the outage.
    for lookout in [&mut first, &mut second, &mut third] {
        assert_eq!(seen(lookout).await, Some((State::Held, 1)));
    }
    assert!(Instant::now() >= up);
    settle_down().await;
    for lookout in [&mut first, &mut second, &mut third] {
        assert!(lookout.next().now_or_never().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_the_last_that_is_seen_and_nothing_is_left() {
    let memory = Memory::new();
    let bad = Bad::new(&memory, |_| Fate::Forbidden);
    let b = process(&bad, "b", LONG);
    let mut lookout = b.hub.observe(&b.key);
    let last = lookout.next().await;
    assert!(matches!(last, Some(Err(Error::Refused { .. }))), "{last:?}");
    assert!(lookout.next().await.is_none());
    let closed = bad.closed.clone();
    drop((lookout, b));
    closed.notified().await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_gets_each_record_once_without_calls() {
    let memory = Memory::new();
    let good = Bad::good(&memory);
    let (a, b) = (
        process(&Bad::good(&memory), "a", LONG),
        process(&good, "b", LONG),
    );
    let mut lookout = b.hub.observe(&b.key);
    assert_eq!(seen(&mut lookout).await, None);
    let _guard = acquired(&mut new_stream(&a)).await;
    assert_eq!(seen(&mut lookout).await, Some((State::Held, 1)));
    settle_down().await;
    let calls = good.calls();
    assert_eq!(calls, 1, "once subscribed");
    tokio::time::sleep(Duration::from_millis(LONG / 2)).await;
    assert_eq!(good.calls(), calls);
    assert!(lookout.next().now_or_never().is_none());
}
