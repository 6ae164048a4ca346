//! What whoever observes a worker sees: spans, events and figures, as docs/observability.md lists them.

mod recorder;
mod startup;

use std::time::Duration;

use fred::error::ErrorKind;
use futures::{FutureExt, StreamExt, stream};
use nix::sys::signal::Signal;
use recorder::Recorder;
use redis_locking_worker::{
    Builder, Error, Key, LeaseLost, LockEvent, LockStreamExt, LockingWorker, Memory, ServerError,
    SettleError, WorkGuard,
};
use testkit::{Server, acquired, command, end, locked, next, until};
use tokio::time::{advance, sleep};
use tracing::{Instrument, info, info_span};

fn builder(memory: &Memory, label: &str) -> Builder {
    LockingWorker::builder("job").in_memory(memory).label(label)
}

/// Two processes.
async fn pair() -> (LockingWorker, LockingWorker) {
    let memory = Memory::new();
    let build = async |label| builder(&memory, label).build().await.unwrap();
    (build("a").await, build("b").await)
}

#[tokio::test(start_paused = true)]
async fn a_failed_then_completed_run_is_told_as_it_was() {
    let recorder = Recorder::install();
    let (a, b) = pair().instrument(info_span!("startup")).await;

    let mut first = a.acquire();
    let request = info_span!("request", label = "a");
    let guard = acquired(&mut first).instrument(request).await;
    let failing = guard.fencing_token();
    let mut second = b.acquire();
    let request = info_span!("request", label = "b");
    locked(&mut second).instrument(request).await;
    guard.run(async { info!("halfway") }).await.unwrap();
    guard.checkpoint("a secret checkpoint").await.unwrap();
    guard.fail("no luck").await.unwrap();
    assert!(matches!(end(&mut first).await, LockEvent::Failed(_)));

    advance(Duration::from_millis(100)).await;
    let guard = acquired(&mut second).await;
    let completing = guard.fencing_token();
    advance(Duration::from_secs(2)).await;
    guard.done_with("a secret result").await.unwrap();
    assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
    a.close().await;
    b.close().await;

    assert_eq!(
        recorder.events(),
        [
            "request/participation/work: INFO acquired key=job attempt=1 fencing_token=#0",
            "request/participation: DEBUG locked key=job holder=a attempt=1",
            "request/participation/work: INFO halfway",
            "request/participation/work: DEBUG renewed key=job attempt=1 fencing_token=#0",
            "request/participation/work: WARN settled key=job attempt=1 fencing_token=#0 outcome=failed reason=no luck",
            "request/participation: DEBUG failed key=job attempt=1 reason=no luck",
            "request/participation/work: INFO taken over key=job attempt=2 fencing_token=#1 holder=a reason=no luck",
            "request/participation/work: DEBUG renewed key=job attempt=2 fencing_token=#1",
            "request/participation/work: INFO settled key=job attempt=2 fencing_token=#1 outcome=completed",
            "request/participation: DEBUG completed key=job holder=b attempt=2",
        ]
    );
    assert_eq!(recorder.tokens(), [failing, completing]);
    // All of them closed, though the streams are still there.
    assert_eq!(
        recorder.spans(),
        [
            "startup",
            "request label=a",
            "request/participation key=job label=a outcome=failed",
            "request/participation/work key=job attempt=1 fencing_token=#0 outcome=failed reason=no luck",
            "request label=b",
            "request/participation key=job label=b outcome=completed",
            "request/participation/work key=job attempt=2 fencing_token=#1 outcome=completed",
        ]
    );
    assert_eq!(
        recorder.figures(),
        [
            "acquisitions_total = 2",
            "completions_total = 1",
            "failures_total reason=failed = 1",
            "handoff_seconds = [0.1]",
            "hold_seconds = [0.0, 2.0]",
            "participations_total outcome=completed = 1",
            "participations_total outcome=failed = 1",
            "takeovers_total reason=failed = 1",
            "waiting_streams = 0",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_work_of_once_is_within_its_span_from_its_first_line_to_its_drop() {
    struct Tells;
    impl Drop for Tells {
        fn drop(&mut self) {
            info!("dropped");
        }
    }
    let recorder = Recorder::install();
    let (a, _) = pair().await;
    let work = |guard: std::sync::Arc<WorkGuard>| {
        info!("called");
        async move {
            let _tells = Tells;
            async { info!("inside") }
                .instrument(info_span!("mine"))
                .await;
            if guard.attempt() == 1 {
                sleep(Duration::from_secs(60)).await;
            }
            Ok::<_, std::io::Error>("")
        }
    };
    a.once(work)
        .instrument(info_span!("request"))
        .await
        .unwrap();
    let told = recorder.events().into_iter();
    let own: Vec<_> = told.filter(|line| !line.contains("key=")).collect();
    let attempt = [
        "request/participation/work: INFO called",
        "request/participation/work/mine: INFO inside",
        "request/participation/work: INFO dropped",
    ];
    assert_eq!(own, [attempt, attempt].concat());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_lease_and_the_takeover_are_told_on_both_sides() {
    let recorder = Recorder::install();
    let (a, b) = pair().await;
    let (mut first, guard, mut second) = testkit::race(&a, &b).await;
    let work = guard.run(sleep(Duration::from_secs(60)));
    assert!(matches!(work.await, Err(LeaseLost::Expired)));
    let successor = acquired(&mut second).await;
    let late = guard.done().await;
    assert!(matches!(late, Err(SettleError::Lost(_))), "{late:?}");
    end(&mut first).await;
    successor.done().await.unwrap();
    end(&mut second).await;
    assert_eq!(
        recorder.events(),
        [
            "participation/work: INFO acquired key=job attempt=1 fencing_token=#0",
            "participation: DEBUG locked key=job holder=a attempt=1",
            "participation/work: WARN lost key=job attempt=1 fencing_token=#0 reason=the lease was lost: it ended",
            "participation/work: INFO taken over key=job attempt=2 fencing_token=#1 holder=a reason=expired",
            "participation/work: WARN settled key=job attempt=1 fencing_token=#0 outcome=lost \
             reason=the lease was lost: attempt 2 went to b",
            "participation: DEBUG failed key=job attempt=1 reason=expired",
            "participation/work: INFO settled key=job attempt=2 fencing_token=#1 outcome=completed",
            "participation: DEBUG completed key=job holder=b attempt=2",
        ]
    );
    assert_eq!(
        recorder.figures(),
        [
            "acquisitions_total = 2",
            "completions_total = 1",
            "failures_total reason=expired = 1",
            // 5 s, less a tenth.
            "hold_seconds = [4.5, 0.0]",
            "lease_losses_total reason=expired = 1",
            "participations_total outcome=completed = 1",
            "participations_total outcome=failed = 1",
            "takeovers_total reason=expired = 1",
            "waiting_streams = 0",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn each_end_of_a_guard_has_its_outcome() {
    let ended = async |end: fn(WorkGuard), told: &str, counted: Option<&str>| {
        let recorder = Recorder::install();
        let worker = builder(&Memory::new(), "a").max_attempts(1);
        let worker = worker.build().await.unwrap();
        let mut stream = worker.acquire();
        end(acquired(&mut stream).await);
        testkit::end(&mut stream).await;
        let work = &recorder.spans()[1];
        assert!(work.ends_with(told), "{work}");
        let failures = recorder.figures().into_iter();
        let failures: Vec<_> = failures
            .filter(|line| line.starts_with("failures"))
            .collect();
        let counted = counted.map(|reason| format!("failures_total reason={reason} = 1"));
        assert_eq!(failures, Vec::from_iter(counted));
        assert_eq!(
            recorder.figure("completions_total").is_some(),
            told == "=completed"
        );
    };
    ended(drop, "outcome=failed reason=dropped", Some("dropped")).await;
    ended(|guard| asked(guard.done()), "=completed", None).await;
    ended(|guard| asked(guard.hand_off()), "=handed_off", None).await;
    ended(
        |guard| asked(guard.fail("no luck")),
        "outcome=failed reason=no luck",
        Some("failed"),
    )
    .await;
    ended(
        |guard| asked(guard.fail_permanently("never")),
        "outcome=failed reason=never",
        Some("failed"),
    )
    .await;
    ended(
        |guard| {
            let panicking = std::thread::spawn(move || {
                let _guard = guard;
                std::panic::resume_unwind(Box::new(()));
            });
            panicking.join().unwrap_err();
        },
        "outcome=failed reason=panicked",
        Some("panicked"),
    )
    .await;
}

/// Once polled it goes its way.
fn asked(settling: impl Future<Output = Result<(), SettleError>>) {
    assert!(settling.now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn giving_up_is_a_warning_to_everybody() {
    let recorder = Recorder::install();
    let memory = Memory::new();
    let build = async |label| {
        builder(&memory, label)
            .max_attempts(1)
            .build()
            .await
            .unwrap()
    };
    let (a, b) = (build("a").await, build("b").await);
    let (mut first, guard, mut second) = testkit::race(&a, &b).await;
    guard.fail("no luck").await.unwrap();
    end(&mut first).await;
    end(&mut second).await;
    let told = recorder.events().into_iter();
    let gave_up: Vec<_> = told.filter(|line| line.contains("gave up")).collect();
    let line = "participation: WARN gave up key=job holder=a attempt=1 reason=no luck";
    assert_eq!(gave_up, [line, line]);
    let ended = recorder.figure("participations_total outcome=gave_up");
    assert_eq!(ended.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn waiting_streams_are_counted_for_as_long_as_they_wait() {
    let recorder = Recorder::install();
    let waiting =
        |many: &str| assert_eq!(recorder.figure("waiting_streams").as_deref(), Some(many));
    let memory = Memory::new();
    let build = builder(&memory, "a").rejoin(true).max_attempts(9).build();
    let a = build.await.unwrap();
    drop(a.acquire());
    let mut streams: Vec<_> = (0..5).map(|_| a.acquire()).collect();
    let guard = acquired(&mut streams[0]).await;
    assert_eq!(recorder.figure("waiting_streams"), None);
    for stream in &mut streams[1..] {
        locked(stream).await;
    }
    waiting("4");
    // Whose attempt failed waits again; whose turn it is does not.
    drop(guard);
    let guard = acquired(&mut streams[1]).await;
    waiting("3");
    locked(&mut streams[0]).await;
    waiting("4");
    // Told again of another holder, it is still one.
    locked(&mut streams[2]).await;
    waiting("4");
    drop(streams.pop());
    waiting("3");
    guard.done().await.unwrap();
    for stream in &mut streams {
        end(stream).await;
    }
    waiting("0");
    drop(streams);
    waiting("0");
    assert_eq!(
        recorder
            .figure("participations_total outcome=dropped")
            .as_deref(),
        Some("1"),
        "one that was never polled took no part"
    );
}

#[tokio::test]
async fn a_refusal_is_an_error() {
    let recorder = Recorder::install();
    let server = Server::start();
    let worker = server.builder("other").build().await.unwrap();
    command(&server.client().await, [b"RPUSH", b"job", b"1"]).await;
    let worker = worker.with_key("job").unwrap();
    end(&mut worker.acquire()).await;
    assert_eq!(
        recorder.events(),
        ["participation: ERROR refused key=job error=job holds a value of another type"]
    );
    assert_eq!(
        recorder.figures(),
        ["participations_total outcome=refused = 1"]
    );
}

/// The hub's task is polled within a span of the user's for as long as it lives.
#[test]
fn an_outage_is_told_once_and_is_nobodys() {
    let recorder = Recorder::install();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let startup = info_span!("startup");
    let _within = startup.enter();
    runtime.block_on(async {
        let mut server = Server::start_with(&["--requirepass", "secret"]);
        let url = server.url().replace("://", "://:secret@");
        let worker = LockingWorker::builder("1").url(url).build().await.unwrap();
        server.kill();
        let mut streams: Vec<_> = ["1", "2", "3"]
            .map(|key| worker.with_key(key).unwrap().acquire())
            .into();
        for stream in &mut streams {
            assert!(matches!(next(stream).await, LockEvent::Error(_)));
        }
        server.restart();
        let mut guards = Vec::new();
        for stream in &mut streams {
            guards.push(until!(*stream, LockEvent::Acquired(guard) => guard));
        }
        let recovered = || {
            recorder
                .figure("resyncs_total reason=reconnected")
                .is_some()
        };
        testkit::until(async || recovered()).await;
    });
    let told = recorder.events();
    assert!(told.iter().all(|line| !line.contains("secret")), "{told:?}");
    let of_hub: Vec<_> = told.iter().filter(|line| line.starts_with(": ")).collect();
    let starts = |with: &str| of_hub.iter().filter(|line| line.starts_with(with)).count();
    assert_eq!(starts(": WARN outage key="), 1, "{of_hub:?}");
    assert_eq!(starts(": INFO recovered"), 1, "{of_hub:?}");
    assert!(
        starts(": INFO resync reason=disconnected") > 0,
        "{of_hub:?}"
    );
    assert!(starts(": INFO resync reason=reconnected") > 0, "{of_hub:?}");
    let others = told.len() - of_hub.len();
    let of_streams = told
        .iter()
        .filter(|line| line.starts_with("startup/participation"));
    assert_eq!(of_streams.count(), others, "{told:?}");
    assert_eq!(recorder.figure("outages_total").as_deref(), Some("1"));
}

/// The thread that keeps leases has a connection of its own, whose outage is one of its key.
#[tokio::test]
async fn renewals_that_no_replica_acknowledges_are_an_outage() {
    let recorder = Recorder::install();
    let master = Server::start_with(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port.to_string();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let client = replica.client().await;
    testkit::until(async || testkit::is_in_step(&client).await).await;
    let worker = master
        .builder("1")
        .lock_timeout(Duration::from_secs(30))
        .renew_every(Duration::from_millis(50))
        .replicas(1, Duration::from_secs(2));
    let worker = worker.build().await.unwrap();
    let mut stream = worker.acquire();
    let guard = until!(stream, LockEvent::Acquired(guard) => guard);
    let told = |what: &str| recorder.events().iter().any(|line| line.starts_with(what));
    assert!(guard.is_valid());
    testkit::until(async || told("participation/work: DEBUG renewed")).await;
    replica.signal(Signal::SIGSTOP);
    testkit::until(async || told(": WARN outage key=1 ")).await;
    replica.signal(Signal::SIGCONT);
    testkit::until(async || told(": INFO recovered")).await;
    assert!(guard.is_valid());
    assert_eq!(recorder.figure("outages_total").as_deref(), Some("1"));
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_large_result_is_warned_of() {
    let recorder = Recorder::install();
    let server = Server::start();
    let worker = server.builder("1").build().await.unwrap();
    for (key, size) in [("small", 64 << 10), ("large", (64 << 10) + 1)] {
        let mut stream = worker.with_key(key).unwrap().acquire();
        let guard = until!(stream, LockEvent::Acquired(guard) => guard);
        guard.done_with(vec![b'x'; size]).await.unwrap();
    }
    let told = recorder.events();
    let mut warned = told.iter().filter(|line| line.contains("large result"));
    let line = warned.next().expect("a warning");
    assert!(
        line.contains("key=large") && line.contains("bytes=65537"),
        "{line}"
    );
    assert_eq!(warned.next(), None);
}

#[tokio::test(start_paused = true)]
async fn trace_tells_what_passes_where_it_is() {
    let recorder = Recorder::install();
    let rejoins = builder(&Memory::new(), "a").rejoin(true);
    let worker = rejoins.build().await.unwrap();
    let outcome = worker
        .acquire()
        .trace()
        .run(|guard| async move {
            match guard.attempt() {
                1 => Err("a reason"),
                _ => Ok("a secret result"),
            }
        })
        .instrument(info_span!("here"));
    outcome.await.unwrap();
    worker.close().await;
    let events = recorder.events();
    let passed: Vec<&str> = events
        .iter()
        .filter_map(|event| event.strip_prefix("here: TRACE passes "))
        .collect();
    assert_eq!(
        passed,
        [
            "event=acquired key=job attempt=1 fencing_token=#0",
            "event=status status=This is attempt #2",
            "event=acquired key=job attempt=2 fencing_token=#1",
            "event=completed attempt=2 holder=a",
        ]
    );
}

#[tokio::test]
async fn trace_tells_of_an_error_with_its_causes() {
    let recorder = Recorder::install();
    let error = Error::Refused {
        key: Key::new("job").unwrap(),
        source: ServerError::new(fred::error::Error::new(ErrorKind::Auth, "a wrong password")),
    };
    let mut events = stream::iter([LockEvent::Error(error)]).trace();
    assert!(matches!(events.next().await, Some(LockEvent::Error(_))));
    let told = recorder.events().concat();
    let start = ": TRACE passes event=error error=the server refuses to serve job: ";
    assert!(
        told.starts_with(start) && told.ends_with("a wrong password"),
        "{told}"
    );
}
