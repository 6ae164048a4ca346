//! Events with a guard in them, wherever a combinator keeps them: the next in line has the work when that is
//! dropped.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;

use futures::stream::{LocalBoxStream, repeat, select};
use futures::{Stream, StreamExt};
use redis_locking_worker::LockEvent;
use tokio_stream::StreamMap;

use super::sweep::{LONG, Stage, on_both, pends};
use testkit::acquired;

on_both!(
    take(6): ["Done 1", "Done 2, Dropped"],
    take_until(12): ["Done 1", "Done 2, Dropped"],
    timeout(12): ["Done 1", "Done 2, Dropped"],
    select_and_chunks(50): ["Done 1", "Done 2, Dropped"],
    buffer_unordered(20): ["Done 1", "Done 2, Dropped"],
    stream_map(12): ["Done 1", "Done 2, Dropped"],
);

/// Reads to the end, with each item in one's hands for a moment.
async fn read<S: Stream>(stream: S) {
    let mut stream = pin!(stream);
    while let Some(item) = stream.next().await {
        pends(2).await;
        drop(item);
    }
}

async fn handed_on<S: Stream>(
    stage: &Stage<'_>,
    combine: impl FnOnce(LocalBoxStream<'static, LockEvent>) -> S,
) -> String {
    let has_guard = Rc::new(Cell::new(false));
    let seen = has_guard.clone();
    let events = stage.worker.acquire().inspect(move |event| {
        seen.set(seen.get() || matches!(event, LockEvent::Acquired(_)));
    });
    let mut reading = Box::pin(read(combine(events.boxed_local())));
    stage.reach(reading.as_mut()).await;
    let (mut stream, guard) = stage.next_in_line().await;
    drop(reading);
    let guard = match guard {
        Some(guard) => guard,
        None => acquired(&mut stream).await,
    };
    // Dropped is failed; and not counted, as long as there was no guard.
    assert_eq!(guard.attempt(), 1 + u32::from(has_guard.get()));
    guard.done().await.unwrap();
    stage.left().await
}

async fn take(stage: &Stage<'_>) -> String {
    handed_on(stage, |events| events.take(1)).await
}

async fn take_until(stage: &Stage<'_>) -> String {
    handed_on(stage, |events| events.take_until(Box::pin(pends(40)))).await
}

async fn timeout(stage: &Stage<'_>) -> String {
    handed_on(stage, |events| {
        tokio_stream::StreamExt::timeout(events, LONG)
    })
    .await
}

async fn select_and_chunks(stage: &Stage<'_>) -> String {
    let combine = |events: LocalBoxStream<'static, LockEvent>| {
        let others = repeat(()).then(|()| pends(1));
        let both = select(events.map(Some), others.map(|()| None));
        both.chunks(4).take(8)
    };
    handed_on(stage, combine).await
}

async fn buffer_unordered(stage: &Stage<'_>) -> String {
    let combine = |events: LocalBoxStream<'static, LockEvent>| {
        let slow = events.map(|event| async {
            pends(4).await;
            event
        });
        slow.buffer_unordered(2)
    };
    handed_on(stage, combine).await
}

async fn stream_map(stage: &Stage<'_>) -> String {
    let combine = |events| {
        let mut map = StreamMap::new();
        map.insert("job", events);
        map
    };
    handed_on(stage, combine).await
}
