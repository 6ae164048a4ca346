//! A server that goes away and comes back, forgets, fills up or does not serve.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{outage, refusal, until_acquired};
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use futures::future::{BoxFuture, join, join_all, pending};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::Signal;
use redis_locking_worker::{
    Acquire, BuildError, Error, LeaseLost, LockEvent, RenewError, RunState, SettleError, WorkGuard,
};
use testkit::{PATIENCE, Server, acquired, command, end, locked, next, race, text, until};

#[tokio::test]
async fn a_restart_without_persistence_is_one_error_and_the_run_begins_anew() {
    let mut server = Server::start();
    let (a, b) = server.pair().await;
    let (mut first, mut second) = (a.acquire(), b.acquire());
    let guard = acquired(&mut first).await;
    let fence = guard.fencing_token();
    locked(&mut second).await;

    server.kill();
    outage(&mut second, "job").await;
    // The outage lasts while the hub tries again and again: still only one event.
    let quiet = tokio::time::timeout(Duration::from_secs(2), second.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    server.restart();

    let (taken, outages) = until_acquired(&mut second).await;
    assert_eq!(
        (taken.attempt(), outages),
        (1, 0),
        "the record was lost: a new run"
    );
    assert!(taken.fencing_token() > fence, "the fence does not restart");
    assert!(matches!(guard.done().await, Err(SettleError::Lost(_))));
    taken.done().await.unwrap();
}

#[tokio::test]
async fn a_restart_with_a_log_keeps_the_lease_and_the_run() {
    let mut server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (a, b) = server.pair().await;
    let (_first, guard, mut second) = race(&a, &b).await;
    server.kill();
    outage(&mut second, "job").await;
    server.restart();
    guard.done_with("kept").await.unwrap();
    match end(&mut second).await {
        LockEvent::Completed(completed) => assert_eq!(completed.result, "kept"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_claim_made_during_an_outage_is_one_error_and_then_succeeds() {
    let mut server = Server::start();
    let worker = server.builder("job").build().await.unwrap();
    server.kill();
    let mut stream = worker.acquire();
    outage(&mut stream, "job").await;
    server.restart();
    let (guard, outages) = until_acquired(&mut stream).await;
    assert_eq!(outages, 0);
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_stopped_server_is_noticed_and_gone_on_with() {
    let server = Server::start();
    let (a, b) = server.pair().await;
    let (_first, guard, mut second) = race(&a, &b).await;
    server.signal(Signal::SIGSTOP);
    outage(&mut second, "job").await;
    assert!(
        second.next().now_or_never().is_none(),
        "nobody is granted locally"
    );
    server.signal(Signal::SIGCONT);
    // Its lease was 5 s: whether it was over by then decides who goes on.
    let settled = guard.done().await;
    if settled.is_ok() {
        assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
    } else {
        assert_eq!(until_acquired(&mut second).await.0.attempt(), 2);
    }
}

#[tokio::test]
async fn a_guard_outside_the_servers_reach_says_so_and_is_not_valid_past_its_lease() {
    let server = Server::start();
    let worker = server
        .builder("job")
        .lock_timeout(Duration::from_millis(500))
        .build();
    let worker = worker.await.unwrap();
    let mut stream = worker.acquire();
    let guard = acquired(&mut stream).await;
    let lease_ends = Instant::now() + Duration::from_millis(500);
    server.signal(Signal::SIGSTOP);
    while guard.is_valid() {
        assert!(Instant::now() < lease_ends);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let settled = tokio::time::timeout(PATIENCE, guard.done())
        .await
        .expect("no hang");
    assert!(
        matches!(settled, Err(SettleError::Unknown { .. })),
        "{settled:?}"
    );
    server.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn forgotten_scripts_are_invisible() {
    let server = Server::start();
    let worker = server.builder("job").build().await.unwrap();
    let client = server.client().await;
    let (mut first, mut second) = (worker.acquire(), worker.acquire());
    let guard = acquired(&mut first).await;
    command(&client, [b"SCRIPT", b"FLUSH"]).await;
    locked(&mut second).await;
    command(&client, [b"SCRIPT", b"FLUSH"]).await;
    drop(guard);
    let (guard, outages) = until_acquired(&mut second).await;
    assert_eq!((guard.attempt(), outages), (2, 0));
    command(&client, [b"SCRIPT", b"FLUSH"]).await;
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_flushed_record_costs_its_holder_the_lease_and_the_waiter_takes_over() {
    let server = Server::start();
    let lease = Duration::from_millis(400);
    let worker = server
        .builder("job")
        .lock_timeout(lease)
        .build()
        .await
        .unwrap();
    let (_first, guard, mut second) = race(&worker, &worker).await;
    command(&server.client().await, [b"FLUSHALL"]).await;
    let fence = guard.fencing_token();
    let settled = guard.done().await;
    assert!(
        matches!(settled, Err(SettleError::Lost(LeaseLost::RecordGone))),
        "{settled:?}"
    );
    let (guard, outages) = until_acquired(&mut second).await;
    assert_eq!((guard.attempt(), outages), (1, 0));
    assert!(guard.fencing_token() > fence);
}

#[tokio::test]
async fn a_full_server_refuses_new_work_and_settles_what_there_is() {
    let server = Server::start();
    let (a, b) = server.pair().await;
    let client = server.client().await;
    let (_first, guard, mut second) = race(&a, &b).await;
    command(&client, [b"CONFIG", b"SET", b"maxmemory", b"1"]).await;

    let mut third = a.acquire();
    outage(&mut third, "job").await;
    drop(third);
    guard.hand_off().await.unwrap();
    let (guard, _) = until_acquired(&mut second).await;
    guard.done().await.unwrap();
    let mut other = a.with_key("other").unwrap().acquire();
    assert!(matches!(
        next(&mut other).await,
        LockEvent::Error(Error::Unavailable { .. })
    ));
    command(&client, [b"CONFIG", b"SET", b"maxmemory", b"0"]).await;
    assert_eq!(until_acquired(&mut other).await.0.attempt(), 1);
}

#[tokio::test]
async fn a_replica_is_an_outage_until_it_is_promoted() {
    // READONLY, whatever is written; and MASTERDOWN, when all that is asked for is a look.
    for stale in ["yes", "no"] {
        let server = Server::start_with(&["--replica-serve-stale-data", stale]);
        let client = server.client().await;
        let worker = server.builder("job").build().await.unwrap();
        command(&client, [b"REPLICAOF", b"127.0.0.1", b"1"]).await;
        let mut stream = worker.acquire();
        outage(&mut stream, "job").await;
        match server.builder("job").build().await {
            Ok(_) => assert_eq!(stale, "yes"),
            Err(BuildError::Server(Error::Unavailable { source, .. })) => {
                assert!(
                    testkit::details(&source).starts_with("MASTERDOWN"),
                    "{source:?}"
                );
            }
            Err(error) => panic!("{error:?}"),
        }
        command(&client, [b"REPLICAOF", b"NO", b"ONE"]).await;
        let (guard, outages) = until_acquired(&mut stream).await;
        assert_eq!(outages, 0);
        guard.done().await.unwrap();
        client.quit().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_without_its_replicas_is_an_outage_until_it_has_them_again() {
    let server = Server::start();
    let (a, b) = server.pair().await;
    let client = server.client().await;
    let replicas = async |count: &str| {
        let set = ["CONFIG", "SET", "min-replicas-to-write", count];
        command(&client, set.map(str::as_bytes)).await;
    };
    let mut first = a.acquire();
    let guard = acquired(&mut first).await;
    replicas("1").await;
    let mut second = b.acquire();
    assert!(refusal(&mut second).await.starts_with("NOREPLICAS"));
    let mut done = Box::pin(guard.done());
    tokio::select! {
        biased;
        said = refusal(&mut first) => assert!(said.starts_with("NOREPLICAS"), "{said}"),
        done = &mut done => panic!("{done:?}"),
    }
    assert!(
        second.next().now_or_never().is_none(),
        "one event an outage"
    );
    replicas("0").await;
    done.await.unwrap();
    assert!(matches!(end(&mut second).await, LockEvent::Completed(_)));
}

#[tokio::test]
async fn a_server_that_loads_is_an_outage_and_has_kept_the_run() {
    let server = Server::start_with(&["--enable-debug-command", "yes"]);
    let (a, b) = server.pair().await;
    let client = server.client().await;
    let (_first, guard, mut second) = race(&a, &b).await;
    command(&client, [b"DEBUG", b"POPULATE", b"2000"]).await;
    for (name, value) in [
        ("key-load-delay", "1000"),
        ("loading-process-events-interval-bytes", "1024"),
    ] {
        let set = ["CONFIG", "SET", name, value];
        command(&client, set.map(str::as_bytes)).await;
    }
    // Another connection: this one waits for the answer.
    let loader = server.client().await;
    let loaded = tokio::spawn(async move { command(&loader, [b"DEBUG", b"RELOAD"]).await });
    until(async || ask(server.port, "PING").starts_with("-LOADING")).await;
    let mut third = b.acquire();
    outage(&mut third, "job").await;
    loaded.await.unwrap();
    let outages = async |stream: &mut Acquire| {
        let mut outages = 0;
        loop {
            match next(stream).await {
                LockEvent::Error(_) => outages += 1,
                LockEvent::Completed(completed) => return (outages, completed.attempt),
                _ => {}
            }
        }
    };
    guard.done().await.unwrap();
    assert_eq!(outages(&mut third).await, (0, 1));
    // It may not have asked meanwhile.
    let (told, attempt) = outages(&mut second).await;
    assert!(told <= 1 && attempt == 1);
}

#[tokio::test]
async fn while_a_script_keeps_the_server_busy_nobody_is_granted_and_then_all_goes_on() {
    let server = Server::start_with(&["--busy-reply-threshold", "20"]);
    let lease = Duration::from_millis(500);
    let build = || server.builder("job").lock_timeout(lease).build();
    let (a, b) = (build().await.unwrap(), build().await.unwrap());
    let (_first, guard, mut second) = race(&a, &b).await;
    let client = server.client().await;
    let busy = tokio::spawn(async move {
        let eval = CustomCommand::new_static("EVAL", None::<u16>, false);
        let endless = vec!["while true do end", "0"];
        client.custom::<Value, _>(eval, endless).await
    });
    assert!(matches!(guard.lost().await, LeaseLost::Expired));
    assert!(refusal(&mut second).await.starts_with("BUSY"));
    let mut third = b.acquire();
    assert!(refusal(&mut third).await.starts_with("BUSY"));
    for stream in [&mut second, &mut third] {
        assert!(stream.next().now_or_never().is_none(), "nobody is granted");
    }
    drop(third);
    assert_eq!(ask(server.port, "SCRIPT KILL"), "+OK\r\n");
    assert!(busy.await.unwrap().is_err());
    let (next, outages) = until_acquired(&mut second).await;
    assert_eq!((next.attempt(), outages), (2, 0));
    assert!(next.fencing_token() > guard.fencing_token());
    let settled = guard.done().await;
    assert!(
        matches!(settled, Err(SettleError::Lost(LeaseLost::TakenOver { .. }))),
        "{settled:?}"
    );
    next.done().await.unwrap();
}

/// Without the client library, which asks a server this and that first.
fn ask(port: u16, command: &str) -> String {
    let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(server, "{command}\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(server).read_line(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn an_evicted_record_costs_its_holder_the_lease_and_the_fence_goes_on() {
    let server = Server::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let (a, b) = server.pair().await;
    let client = server.client().await;
    let mut first = a.acquire();
    let guard = acquired(&mut first).await;
    let memory = text(&client, [b"INFO", b"memory"]).await;
    let (_, used) = memory.split_once("used_memory:").unwrap();
    let used: u64 = used.lines().next().unwrap().parse().unwrap();
    let limit = async |limit: u64| {
        let limit = limit.to_string();
        let set: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", limit.as_bytes()];
        command(&client, set).await;
    };
    limit(used + (1 << 20)).await;
    let mut nth = 0;
    until(async || {
        for _ in 0..50 {
            nth += 1;
            let other = format!("other-{nth}");
            let set: [&[u8]; 3] = [b"SET", other.as_bytes(), &[b'x'; 10_000]];
            command(&client, set).await;
        }
        command(&client, [b"EXISTS", b"job"]).await == Value::from(0)
    })
    .await;
    limit(0).await;
    let renewed = guard.checkpoint("half").await;
    assert!(
        matches!(renewed, Err(RenewError::Lost(LeaseLost::RecordGone))),
        "{renewed:?}"
    );
    assert!(!guard.is_valid());
    let (next, outages) = until_acquired(&mut b.acquire()).await;
    assert_eq!((next.attempt(), outages), (1, 0));
    assert!(next.fencing_token() > guard.fencing_token());
    next.done().await.unwrap();
}

/// A tool that copies keys, or `PERSIST`, takes the time to live away from a record.
#[tokio::test]
async fn a_record_that_never_expires_ends_when_it_should_have() {
    let server = Server::start();
    let client = server.client().await;
    let build = async |label| {
        let builder = server.builder("job").label(label).max_attempts(2);
        let builder = builder.lock_timeout(Duration::from_millis(200));
        builder
            .retention(Duration::from_millis(200))
            .build()
            .await
            .unwrap()
    };
    let (a, b) = (build("a").await, build("b").await);
    type End = fn(WorkGuard) -> BoxFuture<'static, ()>;
    let ends: [(&str, End); 4] = [
        ("completed", |guard| {
            async { guard.done_with("x").await.unwrap() }.boxed()
        }),
        ("given up", |guard| {
            async { guard.fail_permanently("x").await.unwrap() }.boxed()
        }),
        ("failed", |guard| {
            async { guard.fail("x").await.unwrap() }.boxed()
        }),
        ("held", |guard| async { std::mem::forget(guard) }.boxed()),
    ];
    let mut fence = 0;
    for (state, end) in ends {
        end(acquired(&mut a.acquire()).await).await;
        let persisted = command(&client, [&b"PERSIST"[..], b"job"]).await;
        assert_eq!(persisted.as_u64(), Some(1));
        until(async || b.inspect().await.unwrap().state == RunState::Free).await;
        // A look finds nothing either, and does not look over and over.
        let mut watch = b.watch();
        assert_eq!(watch.next().await.unwrap().unwrap().state, RunState::Free);
        let mut monitor = server.monitor();
        let more = tokio::time::timeout(Duration::from_millis(300), watch.next()).await;
        assert!(more.is_err(), "{more:?}");
        let looked = monitor.commands();
        let looked = looked
            .iter()
            .filter(|command| command.contains("GET"))
            .count();
        assert_eq!(looked, 0, "{state}");
        let guard = acquired(&mut b.acquire()).await;
        assert_eq!((guard.attempt(), guard.previous()), (1, None), "{state}");
        assert!(guard.fencing_token() > fence);
        fence = guard.fencing_token();
        guard.done().await.unwrap();
        // Free for the next.
        until(async || b.inspect().await.unwrap().state == RunState::Free).await;
    }
}

/// A stream that rejoins is told once of an outage in which its guard was lost: that no renewal gets through is the
/// same outage as that no claim does.
#[tokio::test]
async fn an_outage_that_costs_a_lease_is_one_error() {
    let server = Server::start();
    // A renewal is given up 2 s after it was asked, and before the lease ends; a claim then 2 s later.
    let lease = Duration::from_secs(4);
    let builder = server
        .builder("job")
        .lock_timeout(lease)
        .renew()
        .rejoin(true);
    let worker = builder.build().await.unwrap();
    let told = (0..3).map(async |nth| {
        let mut stream = worker.with_key(format!("job:{nth}")).unwrap().acquire();
        let guard = acquired(&mut stream).await;
        let lost = guard.run(pending::<()>()).await.unwrap_err();
        assert!(!matches!(lost, LeaseLost::Settled), "{lost:?}");
        drop(guard);
        let (_, outages) = until_acquired(&mut stream).await;
        outages
    });
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.signal(Signal::SIGSTOP);
        tokio::time::sleep(Duration::from_secs(7)).await;
        server.signal(Signal::SIGCONT);
    };
    let (outages, ()) = join(join_all(told), stopping).await;
    assert_eq!(outages, [1; 3]);
}

/// The keeper's connection is one more than there may be; the hub's is there.
#[tokio::test]
async fn a_server_that_takes_no_more_clients_costs_no_renewed_guard() {
    let server = Server::start_with(&["--maxclients", "2"]);
    let lease = Duration::from_secs(1);
    let builder = server.builder("job").lock_timeout(lease).renew();
    let worker = builder.build().await.unwrap();
    let mut events = worker.acquire();
    let guard = acquired(&mut events).await;
    guard.run(tokio::time::sleep(4 * lease)).await.unwrap();
    guard.done().await.unwrap();
    assert!(matches!(end(&mut events).await, LockEvent::Completed(_)));
}
