//! What participants are told: every event, the terminal rule, results, retention, mixed settings.

use std::time::Duration;

use futures::stream::FusedStream;
use redis_locking_worker::{
    Acquire, Builder, Key, LeaseLost, LockEvent, LockingWorker, Memory, Reason, SettleError,
    Status, StatusLevel, WorkGuard,
};

use testkit::until;
use testkit::{Server, acquired, command, end, locked, next, race};

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name(super::Fleet::in_memory()).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Fleet::on_a_server()).await;
            })*
        }
    };
}
pub(crate) use on_both;

on_both!(
    the_first_wins_and_the_others_are_told_who,
    a_stream_is_lazy_and_fused,
    completion_reaches_everybody_with_its_result,
    a_late_joiner_gets_the_outcome_until_it_is_forgotten,
    a_dropped_guard_wakes_the_next_in_line,
    who_waits_on_in_the_same_process_is_told_of_the_next_holder,
    a_panic_is_a_failure_of_its_own_kind,
    a_reason_reaches_those_who_give_up,
    the_only_attempt_is_the_last,
    the_last_failure_ends_the_run_for_the_one_who_failed_too,
    a_permanent_failure_ends_the_run_at_once,
    a_hand_off_costs_no_attempt,
    an_expired_lease_passes_to_the_waiter,
    an_expired_lease_may_still_complete_if_nobody_took_over,
    a_stream_that_rejoins_waits_in_line_again,
    the_run_follows_its_first_claim,
    statuses_are_levelled_and_in_the_words_of_the_ancestor,
    a_dropped_waiter_is_passed_over,
    a_grant_that_was_not_yielded_is_not_counted,
    a_grant_behind_other_events_is_not_counted,
    who_takes_long_over_what_comes_before_a_grant_keeps_it,
    a_stream_that_is_not_polled_loses_its_grant_and_waits_again,
    a_guard_outlives_its_stream,
    a_result_too_large_gives_the_guard_back,
    a_long_reason_is_cut_at_a_character,
    keys_are_bytes,
    close_waits_for_what_was_dropped,
);

pub(crate) struct Fleet {
    place: Place,
    /// A lease that ends while the test waits for it.
    pub(crate) short: Duration,
}

enum Place {
    Memory(Memory),
    Server(Server),
}

impl Fleet {
    pub(crate) fn in_memory() -> Self {
        let place = Place::Memory(Memory::new());
        Self {
            place,
            short: Duration::from_secs(5),
        }
    }

    pub(crate) fn on_a_server() -> Self {
        let place = Place::Server(Server::start());
        Self {
            place,
            short: Duration::from_millis(400),
        }
    }

    pub(crate) fn builder(&self, key: impl AsRef<[u8]>, label: &str) -> Builder {
        let builder = LockingWorker::builder(key).label(label);
        let builder = match &self.place {
            Place::Memory(memory) => builder.in_memory(memory),
            Place::Server(server) => builder.url(server.url()),
        };
        builder.lock_timeout(Duration::from_secs(20))
    }

    /// A worker with connections of its own, as another process has.
    pub(crate) async fn worker(&self, label: &str) -> LockingWorker {
        self.builder("job", label).build().await.unwrap()
    }

    /// Removes a record, as a flush or an eviction would.
    pub(crate) async fn lose(&self, key: &Key) {
        match &self.place {
            Place::Memory(memory) => drop(memory.remove(key)),
            Place::Server(server) => {
                command(&server.client().await, [b"DEL", key.as_bytes()]).await;
            }
        }
    }
}

fn lost(result: Result<(), SettleError>) -> LeaseLost {
    match result {
        Err(SettleError::Lost(lost)) => lost,
        other => panic!("{other:?}"),
    }
}

fn taken_over(lost: &LeaseLost) -> (&str, u32) {
    match lost {
        LeaseLost::TakenOver { holder, attempt } => (holder, *attempt),
        other => panic!("{other:?}"),
    }
}

fn completed(event: LockEvent) -> (String, u32, Vec<u8>) {
    match event {
        LockEvent::Completed(c) => (c.holder, c.attempt, c.result.to_vec()),
        other => panic!("{other:?}"),
    }
}

fn gave_up(event: LockEvent) -> (u32, String, Reason) {
    match event {
        LockEvent::GaveUp(m) => (m.attempts, m.holder, m.reason),
        other => panic!("{other:?}"),
    }
}

fn failed(event: LockEvent) -> (u32, Reason) {
    match event {
        LockEvent::Failed(f) => (f.attempt, f.reason),
        other => panic!("{other:?}"),
    }
}

async fn the_first_wins_and_the_others_are_told_who(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let guard = acquired(&mut first).await;
    assert_eq!((guard.key().as_bytes(), guard.attempt()), (&b"job"[..], 1));
    assert!(!guard.is_last_attempt() && guard.is_valid());
    assert!(
        guard.remaining() > Duration::from_secs(15),
        "{:?}",
        guard.remaining()
    );
    assert!(
        guard.remaining() < Duration::from_secs(20),
        "{:?}",
        guard.remaining()
    );

    let told = locked(&mut second).await;
    assert_eq!(
        (told.attempt, told.max_attempts, told.holder.as_str()),
        (1, 5, "a")
    );
    assert_eq!(told.position, Some(0));
    assert!(told.remaining <= Duration::from_secs(20));
    guard.done().await.unwrap();
}

async fn a_stream_is_lazy_and_fused(fleet: Fleet) {
    let worker = fleet.worker("a").await;
    let mut unpolled = worker.acquire();
    assert!(!unpolled.is_terminated());
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    assert_eq!(guard.attempt(), 1, "the unpolled stream has not claimed");
    guard.done().await.unwrap();
    assert_eq!(
        completed(end(&mut stream).await),
        ("a".to_owned(), 1, vec![])
    );
    assert!(stream.is_terminated());
    assert_eq!(completed(end(&mut unpolled).await).1, 1);
}

async fn completion_reaches_everybody_with_its_result(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let mut streams = [a.acquire(), a.acquire(), b.acquire(), b.acquire()];
    let guard = acquired(&mut streams[0]).await;
    for stream in &mut streams[1..] {
        locked(stream).await;
    }
    guard.done_with(&b"\0answer\xff"[..]).await.unwrap();
    for stream in &mut streams {
        let expected = ("a".to_owned(), 1, b"\0answer\xff".to_vec());
        assert_eq!(completed(end(stream).await), expected);
    }
}

async fn a_late_joiner_gets_the_outcome_until_it_is_forgotten(fleet: Fleet) {
    let retention = fleet.short;
    let build = |label| fleet.builder("job", label).retention(retention).build();
    let (a, b) = (build("a").await.unwrap(), build("b").await.unwrap());
    acquired(&mut a.acquire())
        .await
        .done_with("1st")
        .await
        .unwrap();
    assert_eq!(completed(end(&mut b.acquire()).await).2, b"1st");

    // No event tells of forgetting: time has to pass.
    tokio::time::sleep(retention).await;
    let guard = acquired(&mut b.acquire()).await;
    assert_eq!(guard.attempt(), 1, "the next run");
    guard.done_with("2nd").await.unwrap();
    assert_eq!(completed(end(&mut a.acquire()).await).2, b"2nd");
}

async fn a_dropped_guard_wakes_the_next_in_line(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let (mut first, mut second, mut third) = (a.acquire(), b.acquire(), c.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    let fence = guard.fencing_token();
    drop(guard);
    assert_eq!(failed(end(&mut first).await), (1, Reason::Dropped));

    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 2);
    assert!(guard.fencing_token() > fence);
    let told = locked(&mut third).await;
    assert_eq!((told.attempt, told.holder.as_str()), (2, "b"));
    // StoreEvent, it brings no place; its second claim, after subscribing, may be what tells it.
    assert!(matches!(told.position, None | Some(0)), "{told:?}");
    guard.done().await.unwrap();
    assert_eq!(
        completed(end(&mut third).await),
        ("b".to_owned(), 2, vec![])
    );
}

async fn who_waits_on_in_the_same_process_is_told_of_the_next_holder(fleet: Fleet) {
    let worker = fleet.worker("a").await;
    let (_first, guard, mut second) = race(&worker, &worker).await;
    let mut third = worker.acquire();
    assert_eq!(locked(&mut third).await.attempt, 1);
    drop(guard);
    let guard = acquired(&mut second).await;
    assert_eq!((guard.attempt(), locked(&mut third).await.attempt), (2, 2));
    guard.done().await.unwrap();
    assert!(matches!(end(&mut third).await, LockEvent::Completed(_)));
}

async fn a_panic_is_a_failure_of_its_own_kind(fleet: Fleet) {
    let worker = fleet.worker("a").await;
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    let task = tokio::spawn(async move {
        let _held = guard;
        panic!("the work panics");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(failed(end(&mut stream).await), (1, Reason::Panicked));
}

async fn a_reason_reaches_those_who_give_up(fleet: Fleet) {
    let build = |label| fleet.builder("job", label).max_attempts(2).build();
    let (a, b, c) = (
        build("a").await.unwrap(),
        build("b").await.unwrap(),
        build("c").await.unwrap(),
    );
    let (mut first, mut second, mut third) = (a.acquire(), b.acquire(), c.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    guard.fail("disk full").await.unwrap();
    let reason = Reason::Failed("disk full".to_owned());
    assert_eq!(failed(end(&mut first).await), (1, reason));

    let guard = acquired(&mut second).await;
    assert!(guard.is_last_attempt());
    guard.fail("disk still full").await.unwrap();
    let reason = Reason::Failed("disk still full".to_owned());
    let expected = (2, "b".to_owned(), reason);
    assert_eq!(gave_up(end(&mut third).await), expected);
    assert_eq!(gave_up(end(&mut second).await), expected);
    assert_eq!(
        gave_up(end(&mut a.acquire()).await),
        expected,
        "it cools down"
    );
}

async fn the_only_attempt_is_the_last(fleet: Fleet) {
    let worker = fleet
        .builder("job", "a")
        .max_attempts(1)
        .build()
        .await
        .unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    assert!(guard.is_last_attempt());
    guard.done().await.unwrap();
}

async fn the_last_failure_ends_the_run_for_the_one_who_failed_too(fleet: Fleet) {
    let worker = fleet
        .builder("job", "a")
        .max_attempts(1)
        .build()
        .await
        .unwrap();
    let mut stream = worker.acquire();
    drop(acquired(&mut stream).await);
    assert_eq!(
        gave_up(end(&mut stream).await),
        (1, "a".to_owned(), Reason::Dropped)
    );
}

async fn a_permanent_failure_ends_the_run_at_once(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let (mut first, guard, mut second) = race(&a, &b).await;
    guard.fail_permanently("no such file").await.unwrap();
    let expected = (1, "a".to_owned(), Reason::Failed("no such file".to_owned()));
    assert_eq!(gave_up(end(&mut first).await), expected);
    assert_eq!(gave_up(end(&mut second).await), expected);
}

async fn a_hand_off_costs_no_attempt(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let (mut first, guard, mut second) = race(&a, &b).await;
    guard.hand_off().await.unwrap();
    assert_eq!(failed(end(&mut first).await), (1, Reason::HandedOff));
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 1);
    guard.hand_off().await.unwrap();
    assert_eq!(
        acquired(&mut a.acquire()).await.attempt(),
        1,
        "with nobody waiting, too"
    );
}

async fn an_expired_lease_passes_to_the_waiter(fleet: Fleet) {
    let a = fleet
        .builder("job", "a")
        .lock_timeout(fleet.short)
        .build()
        .await
        .unwrap();
    let b = fleet.worker("b").await;
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let guard = acquired(&mut first).await;
    assert_eq!(locked(&mut second).await.attempt, 1);
    let next = acquired(&mut second).await;
    assert_eq!(next.attempt(), 2);
    assert!(next.fencing_token() > guard.fencing_token());
    assert!(!guard.is_valid());
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert_eq!(taken_over(&lost(guard.done().await)), ("b", 2));
    assert_eq!(failed(end(&mut first).await), (1, Reason::Expired));
    next.done().await.unwrap();
}

async fn an_expired_lease_may_still_complete_if_nobody_took_over(fleet: Fleet) {
    let worker = fleet
        .builder("job", "a")
        .lock_timeout(fleet.short)
        .build()
        .await
        .unwrap();
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    tokio::time::sleep(fleet.short).await;
    assert!(!guard.is_valid());
    guard.done().await.unwrap();
    assert_eq!(
        completed(end(&mut stream).await).1,
        1,
        "the settlement counts, not the clock"
    );

    // Nobody settles it: the stream does not wait for ever.
    let other = worker.with_key("other").unwrap();
    let mut stream = other.acquire();
    let guard = acquired(&mut stream).await;
    assert_eq!(failed(end(&mut stream).await), (1, Reason::Expired));
    guard.done().await.unwrap();
}

async fn a_stream_that_rejoins_waits_in_line_again(fleet: Fleet) {
    let a = fleet
        .builder("job", "a")
        .rejoin(true)
        .max_attempts(4)
        .build()
        .await
        .unwrap();
    let b = fleet
        .builder("job", "b")
        .rejoin(true)
        .build()
        .await
        .unwrap();
    let (mut first, guard, mut second) = race(&a, &b).await;
    drop(guard);
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 2);
    assert_eq!(locked(&mut first).await.holder, "b", "not over yet");
    drop(guard);
    let guard = acquired(&mut first).await;
    assert_eq!(guard.attempt(), 3);
    locked(&mut second).await;
    guard.hand_off().await.unwrap();
    let guard = acquired(&mut second).await;
    assert_eq!(guard.attempt(), 3);
    locked(&mut first).await;
    drop(guard);
    let guard = acquired(&mut first).await;
    assert!(guard.is_last_attempt());
    guard.fail("for good").await.unwrap();
    assert_eq!(gave_up(end(&mut first).await).0, 4);
    assert_eq!(gave_up(end(&mut second).await).0, 4);
}

async fn the_run_follows_its_first_claim(fleet: Fleet) {
    let a = fleet
        .builder("job", "a")
        .max_attempts(2)
        .build()
        .await
        .unwrap();
    let b = fleet
        .builder("job", "b")
        .max_attempts(9)
        .build()
        .await
        .unwrap();
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let guard = acquired(&mut first).await;
    assert_eq!(locked(&mut second).await.max_attempts, 2);
    drop(guard);
    let guard = acquired(&mut second).await;
    assert!(guard.is_last_attempt());
    drop(guard);
    assert_eq!(
        gave_up(end(&mut second).await),
        (2, "b".to_owned(), Reason::Dropped)
    );
}

async fn statuses_are_levelled_and_in_the_words_of_the_ancestor(fleet: Fleet) {
    let verbose = |label| {
        fleet
            .builder("job", label)
            .status_level(StatusLevel::Verbose)
            .build()
    };
    let a = fleet.worker("a").await;
    let (b, c) = (verbose("b").await.unwrap(), verbose("c").await.unwrap());
    let d = fleet.worker("d").await;
    let mut streams = [a.acquire(), b.acquire(), c.acquire(), d.acquire()];
    let guard = acquired(&mut streams[0]).await;
    for stream in &mut streams[1..] {
        locked(stream).await;
    }
    drop(guard);
    let second = acquired_with_statuses(&mut streams[1]).await;
    assert_eq!(
        second.1,
        [
            "Checking status of work from attempt #1",
            "Work was not completed, trying to reacquire lock for attempt #1",
            "Trying to reacquire lock",
            "Current attempt count: 1",
            "This is attempt #2",
        ]
    );
    let (third, last) = (
        statuses(&mut streams[2]).await,
        statuses(&mut streams[3]).await,
    );
    assert_eq!(
        third,
        [
            "Checking status of work from attempt #1",
            "Attempt count has been incremented (expected 1, but it's 2), someone else got the lock",
        ]
    );
    assert!(last.is_empty(), "{last:?}");

    second.0.done().await.unwrap();
    let (third, last) = (
        statuses(&mut streams[2]).await,
        statuses(&mut streams[3]).await,
    );
    assert_eq!(
        third,
        [
            "Checking status of work from attempt #2",
            "Work completed successfully by b"
        ]
    );
    assert_eq!(last, ["Work completed successfully by b"]);

    assert_eq!(
        Status::GaveUp.to_string(),
        "Exceeded maximum attempts, giving up!"
    );
    let gone = "Lock key is gone, someone else completed the work and deleted the lock";
    assert_eq!(Status::KeyGone.to_string(), gone);
}

async fn acquired_with_statuses(
    stream: &mut redis_locking_worker::Acquire,
) -> (WorkGuard, Vec<String>) {
    let mut texts = Vec::new();
    loop {
        match next(stream).await {
            LockEvent::Status(status) => texts.push(status.to_string()),
            LockEvent::Acquired(guard) => return (guard, texts),
            other => panic!("{other:?}"),
        }
    }
}

/// The statuses up to the next other event.
async fn statuses(stream: &mut redis_locking_worker::Acquire) -> Vec<String> {
    let mut texts = Vec::new();
    while let LockEvent::Status(status) = next(stream).await {
        texts.push(status.to_string());
    }
    texts
}

async fn a_dropped_waiter_is_passed_over(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let (mut first, mut second, mut third) = (a.acquire(), b.acquire(), c.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    drop(second);
    b.close().await;
    guard.hand_off().await.unwrap();
    let told = until!(third, LockEvent::Acquired(guard) => guard);
    assert_eq!(told.attempt(), 1);
}

async fn a_grant_that_was_not_yielded_is_not_counted(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let (mut first, mut second, mut third) = (a.acquire(), b.acquire(), c.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    drop(guard);
    // The third hears that the second was granted it; the second is dropped without looking.
    assert_eq!(locked(&mut third).await.holder, "b");
    drop(second);
    let guard = acquired(&mut third).await;
    assert_eq!(guard.attempt(), 2);
}

/// One that has been handed the work, has said so, and is about to yield the guard; and the next in line.
async fn about_to_yield(fleet: &Fleet) -> (Acquire, Acquire) {
    let verbose = fleet.builder("job", "b").status_level(StatusLevel::Verbose);
    let (a, b, c) = (
        fleet.worker("a").await,
        verbose.build().await.unwrap(),
        fleet.worker("c").await,
    );
    let (mut first, mut second, mut third) = (a.acquire(), b.acquire(), c.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    drop(guard);
    let attempt = until!(second, LockEvent::Status(Status::ThisIsAttempt { attempt }) => attempt);
    assert_eq!(attempt, 2);
    (second, third)
}

async fn a_grant_behind_other_events_is_not_counted(fleet: Fleet) {
    let (second, mut third) = about_to_yield(&fleet).await;
    drop(second);
    assert_eq!(acquired(&mut third).await.attempt(), 2);
}

async fn who_takes_long_over_what_comes_before_a_grant_keeps_it(fleet: Fleet) {
    let (mut second, _third) = about_to_yield(&fleet).await;
    // Longer than the confirm window.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let guard = acquired(&mut second).await;
    assert!(guard.is_valid());
    assert_eq!(guard.attempt(), 2, "nobody else had it meanwhile");
    guard.done().await.unwrap();
}

async fn a_stream_that_is_not_polled_loses_its_grant_and_waits_again(fleet: Fleet) {
    let (a, b, c) = (
        fleet.worker("a").await,
        fleet.worker("b").await,
        fleet.worker("c").await,
    );
    let (mut first, mut second, mut third) = (a.acquire(), b.acquire(), c.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    locked(&mut third).await;
    drop(guard);
    let guard = acquired(&mut third).await;
    assert_eq!(guard.attempt(), 2, "the unconfirmed number is used again");
    let told = locked(&mut second).await;
    assert_eq!((told.attempt, told.holder.as_str()), (2, "c"));
    drop(guard);
    assert_eq!(acquired(&mut second).await.attempt(), 3);
}

async fn a_guard_outlives_its_stream(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let mut first = a.acquire();
    let guard = acquired(&mut first).await;
    drop(first);
    drop(a);
    let mut second = b.acquire();
    assert_eq!(locked(&mut second).await.holder, "a");
    // On any thread, without a runtime.
    std::thread::spawn(move || drop(guard)).join().unwrap();
    assert_eq!(acquired(&mut second).await.attempt(), 2);
}

async fn a_result_too_large_gives_the_guard_back(fleet: Fleet) {
    let worker = fleet.worker("a").await;
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    let error = guard
        .done_with(vec![7; WorkGuard::MAX_RESULT + 1])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the result has 1048577 bytes; at most 1048576 are allowed"
    );
    let SettleError::ResultTooLarge { guard, .. } = error else {
        panic!("{error:?}");
    };
    guard
        .done_with(vec![7; WorkGuard::MAX_RESULT])
        .await
        .unwrap();
    assert_eq!(
        completed(end(&mut stream).await).2.len(),
        WorkGuard::MAX_RESULT
    );
}

async fn a_long_reason_is_cut_at_a_character(fleet: Fleet) {
    let worker = fleet
        .builder("job", "a")
        .max_attempts(1)
        .build()
        .await
        .unwrap();
    let mut stream = worker.acquire();
    let reason = format!("x{}", "ü".repeat(WorkGuard::MAX_REASON));
    acquired(&mut stream)
        .await
        .fail(reason.clone())
        .await
        .unwrap();
    let kept = Reason::Failed(reason[..WorkGuard::MAX_REASON - 1].to_owned());
    assert_eq!(gave_up(end(&mut stream).await).2, kept);
}

async fn keys_are_bytes(fleet: Fleet) {
    for key in [
        &b"\xff\xfe\0 key"[..],
        "Schlüssel".as_bytes(),
        b"jobs:{7}",
        b"a{b",
        b"\r\n",
    ] {
        let a = fleet.builder(key, "a").build().await.unwrap();
        let b = fleet.builder(key, "b").build().await.unwrap();
        let (mut first, mut second) = (a.acquire(), b.acquire());
        let guard = acquired(&mut first).await;
        assert_eq!(guard.key().as_bytes(), key);
        locked(&mut second).await;
        drop(guard);
        acquired(&mut second).await.done().await.unwrap();
        assert_eq!(completed(end(&mut second).await).1, 2);
    }
}

async fn close_waits_for_what_was_dropped(fleet: Fleet) {
    let (a, b) = (fleet.worker("a").await, fleet.worker("b").await);
    let mut first = a.acquire();
    let guard = acquired(&mut first).await;
    drop((guard, first));
    a.close().await;
    let mut second = b.acquire();
    match next(&mut second).await {
        LockEvent::Status(Status::ThisIsAttempt { attempt }) => assert_eq!(attempt, 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(acquired(&mut second).await.attempt(), 2);
}
