//! A hundred thousand waiting streams in one process: `cargo bench --bench scale -- --quick`.
//!
//! This process holds the keys; a child process waits for them, on one key or on as many keys as it
//! has streams, and says what that costs it. Each case has a server and a child of its own, so that
//! nothing is left in memory from the case before.

mod report;

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use futures::{StreamExt, stream};
use redis_locking_worker::{Acquire, LockEvent, LockingWorker, WorkGuard};
use report::{Options, Peer, Row, current_thread, now, print};
use testkit::{Server, command};

/// Outlasts every case: what is measured is waiting, and not renewal.
const LEASE: Duration = Duration::from_secs(600);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["--waiters", url, keys, streams, idle] = args[..] {
        let idle = Duration::from_millis(idle.parse().unwrap());
        let waiters = waiters(url, keys.parse().unwrap(), streams.parse().unwrap(), idle);
        return current_thread().block_on(waiters);
    }
    let options = Options::parse();
    let mut rows = Vec::new();
    for streams in [1_000, 10_000, 100_000] {
        rows.extend(current_thread().block_on(case(options, 1, streams)));
        rows.extend(current_thread().block_on(case(options, streams, streams)));
    }
    print(&rows);
}

async fn worker(url: &str) -> LockingWorker {
    let builder = LockingWorker::builder("scale").url(url).lock_timeout(LEASE);
    builder.build().await.unwrap()
}

/// The keys of a case.
fn on_keys(worker: &LockingWorker, keys: usize) -> Vec<LockingWorker> {
    (0..keys)
        .map(|nth| worker.with_key(format!("scale:{nth}")).unwrap())
        .collect()
}

async fn case(options: Options, keys: usize, streams: usize) -> Vec<Row> {
    let server = Server::start();
    let url = server.url();
    let holder = worker(&url).await;
    let guards: Vec<WorkGuard> = stream::iter(on_keys(&holder, keys))
        .map(|worker| async move {
            match worker.acquire().next().await {
                Some(LockEvent::Acquired(guard)) => guard,
                other => panic!("{other:?}"),
            }
        })
        .buffer_unordered(1_024)
        .collect()
        .await;

    let idle = options.pick(1_000, 5_000).to_string();
    let (keys_arg, streams_arg) = (keys.to_string(), streams.to_string());
    let mut child = Peer::start(&["--waiters", &url, &keys_arg, &streams_arg, &idle]);
    let [took, memory, tasks] = child.hear();
    let [busy] = child.hear();
    // Two of them are the holder's, and one asks.
    let client = server.client().await;
    let clients = command(&client, [b"CLIENT", b"LIST"]).await;
    let connections = clients.into_string().unwrap().lines().count() - 3;

    let began = now();
    stream::iter(guards)
        .for_each_concurrent(1_024, |guard| async { guard.done().await.unwrap() })
        .await;
    let [ended] = child.hear();
    child.end();

    let per_stream = memory / streams as f64;
    let case = match keys {
        1 => format!("{streams} streams on one key"),
        _ => format!("{streams} streams on a key each"),
    };
    let row = |unit, ours| Row {
        bench: "scale",
        case: case.clone(),
        peer: String::new(),
        unit,
        ours,
        theirs: None,
    };
    vec![
        row("s until all wait", took),
        row("bytes a stream", per_stream),
        row("tasks", tasks),
        row("connections", connections as f64),
        row("% of a core, idle", 100.0 * busy),
        row("ms until all have ended", (ended - began as f64) / 1e6),
    ]
}

/// Waits with so many streams, and says when all of them do, what that costs, and when all have ended.
async fn waiters(url: &str, keys: usize, streams: usize, idle: Duration) {
    let worker = worker(url).await;
    let on_keys = on_keys(&worker, keys);
    let mut waiting: Vec<Acquire> = Vec::with_capacity(streams);
    // What there is without any of them; the room for them in the list above is theirs.
    let before = resident();
    let began = now();
    waiting.extend((0..streams).map(|nth| on_keys[nth % keys].acquire()));
    drive(&mut waiting, |event| {
        matches!(event, Some(LockEvent::Locked(_)))
    })
    .await;
    let took = (now() - began) as f64 / 1e9;
    // The second claim of each key, and its answer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let memory = resident() - before;
    println!("{took} {memory} {tasks}");

    let (busy, began) = (cpu(), now());
    tokio::time::sleep(idle).await;
    println!("{}", (cpu() - busy) / ((now() - began) as f64 / 1e9));

    drive(&mut waiting, |event| {
        event.is_none_or(|event| event.is_terminal())
    })
    .await;
    println!("{}", now());
}

/// Polls all of them from this one task, each until that event. A thousand at a time, since each of them wakes
/// all that are polled together.
async fn drive(streams: &mut [Acquire], until: impl Fn(Option<LockEvent>) -> bool) {
    for streams in streams.chunks_mut(1_000) {
        let mut left: Vec<&mut Acquire> = streams.iter_mut().collect();
        poll_fn(|cx| {
            left.retain_mut(|stream| {
                while let Poll::Ready(event) = stream.poll_next_unpin(cx) {
                    if until(event) {
                        return false;
                    }
                }
                true
            });
            match left.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// The memory of this process that is resident, in bytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let (_, size) = status.split_once("VmRSS:").unwrap();
    let kib: f64 = size.split_whitespace().next().unwrap().parse().unwrap();
    1_024.0 * kib
}

/// What this process has used of a core so far, in s.
fn cpu() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    micros as f64 / 1e6
}
