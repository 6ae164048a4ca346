//! Every public future and stream by itself.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::join;
use redis_locking_worker::{Acquire, Builder, LockEvent, RunState, SettleError, WorkGuard};

use super::sweep::{self, LONG, Stage, on_both, pends};
use testkit::{acquired, command, end, locked};

on_both!(
    build(4): ["nothing"],
    acquire_as_holder(12): ["Open 0", "Open 1, Dropped", "nothing"],
    acquire_as_waiter(40): ["Done 1", "Held 1"],
    acquire_as_successor(45): ["Held 1", "Open 1, Dropped", "Open 2, Dropped"],
    acquire_as_successor_with_another_behind(40): ["Done 2, Dropped", "Done 3, Dropped"],
    acquire_beside_another(40): ["Done 1", "Done 2, Dropped"],
    acquire_and_rejoin(20): ["GaveUp 2, Dropped", "Open 0", "Open 1, Dropped", "nothing"],
    done(3): ["Done 1", "Open 1, Dropped"],
    done_with(3): ["Done 1", "Open 1, Dropped"],
    fail(3): ["Open 1, Dropped", "Open 1, Failed"],
    fail_permanently(3): ["GaveUp 1, Failed", "Open 1, Dropped"],
    hand_off(3): ["Open 0, HandedOff", "Open 1, Dropped"],
    extend(3): ["Held 1"],
    checkpoint(3): ["Held 1"],
    lost(18): ["Held 1", "Open 1, Dropped"],
    run(16): ["Held 1"],
    once_as_executor(12): ["Done 1", "Open 0", "Open 1, Dropped", "nothing"],
    once_as_waiter(40): ["Done 1", "Held 1"],
    once_as_successor(45): ["Done 2, Dropped", "Held 1", "Open 1, Dropped", "Open 2, Dropped"],
    close(3): ["Open 1, Dropped"],
    inspect(3): ["Held 1"],
    clear(3): ["Held 1", "Open 0"],
    watch(12): ["Open 1, Dropped"],
);

mod on_a_server {
    use super::{build_on_a_client, build_with_replicas, fenced, sweep};

    sweep::on_a_server!(
        build_on_a_client(8): ["nothing"],
        build_with_replicas(12): ["nothing"],
        fenced(5): ["Held 1"],
    );
}

#[cfg(feature = "json")]
mod json {
    use super::{once_json, sweep};

    sweep::on_both!(
        once_json(12): ["Done 1", "Open 0", "Open 1, Dropped", "nothing"],
    );
}

/// Its connections end, now or as soon as they stand. The caller's stays, and is asked how many there are.
async fn built(stage: &Stage<'_>, builder: Builder) -> String {
    drop(stage.cut(builder.build()).await.transpose().unwrap());
    stage.left().await
}

async fn build(stage: &Stage<'_>) -> String {
    built(stage, stage.builder()).await
}

async fn build_on_a_client(stage: &Stage<'_>) -> String {
    built(stage, stage.builder().client(stage.client().clone())).await
}

async fn build_with_replicas(stage: &Stage<'_>) -> String {
    built(stage, stage.builder().replicas(1, LONG)).await
}

/// Every event, with its guard in one's hands for a moment.
async fn all(mut stream: Acquire) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Some(event) = stream.next().await {
        pends(1).await;
        names.push(match event {
            LockEvent::Locked(_) => "locked",
            LockEvent::Acquired(_) => "acquired",
            LockEvent::Failed(_) => "failed",
            LockEvent::Completed(_) => "completed",
            LockEvent::GaveUp(_) => "given up",
            LockEvent::Status(_) => continue,
            other => panic!("{other:?}"),
        });
        pends(1).await;
    }
    names
}

async fn acquire_as_holder(stage: &Stage<'_>) -> String {
    if let Some(events) = stage.cut(all(stage.worker.acquire())).await {
        assert_eq!(events, ["acquired", "failed"]);
    }
    stage.left().await
}

async fn acquire_and_rejoin(stage: &Stage<'_>) -> String {
    let builder = stage.builder().rejoin(true).max_attempts(2);
    let worker = builder.build().await.unwrap();
    if let Some(events) = stage.cut(all(worker.acquire())).await {
        assert_eq!(events, ["acquired", "acquired", "given up"]);
    }
    worker.close().await;
    stage.left().await
}

/// Somebody else has the work for so many polls of the future, and then ends it like this.
async fn after_another<F: Future>(
    stage: &Stage<'_>,
    future: F,
    end: impl AsyncFnOnce(WorkGuard),
) -> (Option<F::Output>, String) {
    let guard = RefCell::new(Some(acquired(&mut stage.other.acquire()).await));
    let ends = async {
        pends(20).await;
        let guard = guard.take().unwrap();
        end(guard).await;
    };
    let completed = stage.cut(join(future, ends)).await;
    let left = stage.left().await;
    if let Some(guard) = guard.take() {
        guard.done().await.unwrap();
    }
    (completed.map(|(output, ())| output), left)
}

async fn acquire_as_waiter(stage: &Stage<'_>) -> String {
    let waiting = all(stage.worker.acquire());
    let end = async |guard: WorkGuard| guard.done().await.unwrap();
    let (events, left) = after_another(stage, waiting, end).await;
    if let Some(events) = events {
        assert_eq!(events, ["locked", "completed"]);
    }
    left
}

async fn acquire_as_successor(stage: &Stage<'_>) -> String {
    let waiting = all(stage.worker.acquire());
    let (events, left) = after_another(stage, waiting, async |guard| drop(guard)).await;
    if let Some(events) = events {
        assert_eq!(events, ["locked", "acquired", "failed"]);
    }
    left
}

/// Granted or not, what was not worked on goes to the next in line and is not counted.
async fn acquire_as_successor_with_another_behind(stage: &Stage<'_>) -> String {
    let guard = RefCell::new(Some(acquired(&mut stage.other.acquire()).await));
    let has_guard = Cell::new(false);
    let waiting = async {
        let mut stream = stage.worker.acquire();
        let _guard = acquired(&mut stream).await;
        has_guard.set(true);
        pends(2).await;
    };
    let ends = async {
        pends(20).await;
        drop(guard.take());
    };
    let mut both = Box::pin(join(waiting, ends));
    stage.reach(both.as_mut()).await;
    let (mut behind, last) = stage.next_in_line().await;
    drop(both);
    drop(guard.take());
    let last = match last {
        Some(guard) => guard,
        None => acquired(&mut behind).await,
    };
    assert_eq!(last.attempt(), 2 + u32::from(has_guard.get()));
    last.done().await.unwrap();
    stage.left().await
}

/// Another stream of the same worker relies on the first one's claims.
async fn acquire_beside_another(stage: &Stage<'_>) -> String {
    let guard = RefCell::new(Some(acquired(&mut stage.other.acquire()).await));
    let mut beside = stage.worker.acquire();
    let ends = async {
        locked(&mut beside).await;
        pends(20).await;
        guard.take().unwrap().done().await.unwrap();
    };
    stage.cut(join(all(stage.worker.acquire()), ends)).await;
    match guard.take() {
        Some(guard) => {
            drop(guard);
            let guard = acquired(&mut beside).await;
            assert_eq!(guard.attempt(), 2);
            guard.done().await.unwrap();
        }
        None => assert!(matches!(end(&mut beside).await, LockEvent::Completed(_))),
    }
    stage.left().await
}

/// Before the first poll it drops the guard. After that it goes its way.
async fn settlement<F>(stage: &Stage<'_>, settle: impl FnOnce(WorkGuard) -> F) -> String
where
    F: Future<Output = Result<(), SettleError>>,
{
    let guard = stage.guard().await;
    stage.cut(settle(guard)).await.transpose().unwrap();
    let left = stage.left().await;
    assert_eq!(stage.is_begun(), left != "Open 1, Dropped");
    left
}

async fn done(stage: &Stage<'_>) -> String {
    settlement(stage, WorkGuard::done).await
}

async fn done_with(stage: &Stage<'_>) -> String {
    let left = settlement(stage, |guard| guard.done_with("result")).await;
    let result = &stage.record().await.unwrap().result;
    assert_eq!(result, if stage.is_begun() { "result" } else { "" });
    left
}

async fn fail(stage: &Stage<'_>) -> String {
    settlement(stage, |guard| guard.fail("reason")).await
}

async fn fail_permanently(stage: &Stage<'_>) -> String {
    settlement(stage, |guard| guard.fail_permanently("reason")).await
}

async fn hand_off(stage: &Stage<'_>) -> String {
    settlement(stage, WorkGuard::hand_off).await
}

/// The guard is as it was.
async fn stays(stage: &Stage<'_>, guard: WorkGuard) -> String {
    let left = stage.left().await;
    assert!(guard.is_valid());
    guard.done().await.unwrap();
    left
}

async fn extend(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let extended = stage.cut(guard.extend(2 * LONG)).await;
    extended.transpose().unwrap();
    stage.worker.clone().close().await;
    assert_eq!(stage.is_begun(), guard.remaining() > LONG);
    stays(stage, guard).await
}

async fn checkpoint(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let left = stage.cut(guard.checkpoint("so far")).await;
    left.transpose().unwrap();
    stage.worker.clone().close().await;
    let left = &stage.record().await.unwrap().checkpoint;
    assert_eq!(left, if stage.is_begun() { "so far" } else { "" });
    stays(stage, guard).await
}

async fn inspect(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let inspected = stage.cut(stage.worker.inspect()).await;
    inspected.transpose().unwrap();
    stays(stage, guard).await
}

async fn clear(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let cleared = stage.cut(stage.worker.clear()).await;
    cleared.transpose().unwrap();
    stage.worker.clone().close().await;
    assert_eq!(stage.is_begun(), !guard.is_valid());
    let left = stage.left().await;
    assert_eq!(guard.done().await.is_err(), stage.is_begun());
    left
}

async fn watch(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let watched = async {
        let mut watch = stage.worker.watch();
        watch.next().await.unwrap().unwrap();
        pends(4).await;
        drop(guard);
        while watch.next().await.unwrap().unwrap().state != RunState::Open {}
    };
    stage.cut(watched).await;
    stage.left().await
}

async fn lost(stage: &Stage<'_>) -> String {
    let guard = RefCell::new(Some(stage.guard().await));
    let lost = guard.borrow().as_ref().unwrap().lost();
    let ends = async {
        pends(8).await;
        drop(guard.take());
    };
    stage.cut(join(lost, ends)).await;
    match guard.take() {
        Some(guard) => stays(stage, guard).await,
        None => stage.left().await,
    }
}

async fn run(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let ran = stage.cut(guard.run(pends(8))).await;
    ran.transpose().unwrap();
    stays(stage, guard).await
}

async fn fenced(stage: &Stage<'_>) -> String {
    let guard = stage.guard().await;
    let add = "return redis.call('INCR', KEYS[1])";
    let name = format!("of-{}", guard.fencing_token());
    let ran = stage.cut(guard.fenced::<i64, _, _>(add, &*name, ())).await;
    ran.transpose().unwrap();
    stage.worker.clone().close().await;
    let count = command(stage.client(), [b"GET", name.as_bytes()]).await;
    assert_eq!(stage.is_begun(), count.as_i64() == Some(1), "{count:?}");
    stays(stage, guard).await
}

async fn work(_: Arc<WorkGuard>) -> Result<&'static str, Infallible> {
    pends(4).await;
    Ok("worked")
}

async fn once_as_executor(stage: &Stage<'_>) -> String {
    if let Some(result) = stage.cut(stage.worker.once(work)).await {
        assert_eq!(result.unwrap(), "worked");
    }
    stage.left().await
}

async fn once_as_waiter(stage: &Stage<'_>) -> String {
    let waiting = stage.worker.once(work);
    let end = async |guard: WorkGuard| guard.done_with("theirs").await.unwrap();
    let (result, left) = after_another(stage, waiting, end).await;
    if let Some(result) = result {
        assert_eq!(result.unwrap(), "theirs");
    }
    left
}

async fn once_as_successor(stage: &Stage<'_>) -> String {
    let waiting = stage.worker.once(work);
    let (result, left) = after_another(stage, waiting, async |guard| drop(guard)).await;
    if let Some(result) = result {
        assert_eq!(result.unwrap(), "worked");
    }
    left
}

#[cfg(feature = "json")]
async fn once_json(stage: &Stage<'_>) -> String {
    let worked = async |guard| work(guard).await.map(str::to_owned);
    if let Some(result) = stage.cut(stage.worker.once_json(worked)).await {
        assert_eq!(result.unwrap(), "worked");
    }
    stage.left().await
}

async fn close(stage: &Stage<'_>) -> String {
    drop(stage.guard().await);
    stage.cut(stage.worker.clone().close()).await;
    stage.left().await
}
