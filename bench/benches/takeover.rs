//! From the end of a killed holder's lease to the next `Acquired`, and what it costs the server:
//! `cargo bench --bench takeover -- --quick`.
//!
//! The holder is a process of its own that is killed (SIGKILL) while 1, 10 or 100 waiters wait: streams of one
//! worker, or workers with connections of their own, as processes have. When the lease ends is what the
//! record says; the server's clock is ours. The server tells the commands (`MONITOR`, without `PING`), from the
//! kill until 600 ms after the next `Acquired`. Of so few samples the p99 is the greatest.

mod report;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::stream::select_all;
use redis_locking_worker::{Acquire, LockEvent, LockingWorker};
use report::{Options, Peer, Row, percentile, print, runtimes};
use testkit::{PATIENCE, Server, command, locked, until_quiet};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [_, (_, runtime)] = runtimes();
    if let ["--holder", url, key, lease] = args[..] {
        let lease = Duration::from_millis(lease.parse().unwrap());
        return runtime.block_on(holder(url, key, lease));
    }
    let options = Options::parse();
    let mut rows = Vec::new();
    for waiters in [1, 10, 100] {
        for apart in [false, true] {
            let measured = runtime.spawn(case(options, waiters, apart));
            rows.extend(runtime.block_on(measured).unwrap());
        }
    }
    print(&rows);
}

async fn worker(url: &str, lease: Duration) -> LockingWorker {
    let builder = LockingWorker::builder("takeover").url(url);
    builder.lock_timeout(lease).build().await.unwrap()
}

/// Acquires the key, says so, and is killed.
async fn holder(url: &str, key: &str, lease: Duration) {
    let worker = worker(url, lease).await.with_key(key).unwrap();
    let mut events = worker.acquire();
    let Some(LockEvent::Acquired(_guard)) = events.next().await else {
        panic!("somebody else has it");
    };
    println!("1");
    std::future::pending().await
}

async fn case(options: Options, waiters: usize, apart: bool) -> Vec<Row> {
    let server = Server::start();
    let (url, lease) = (server.url(), Duration::from_millis(500));
    // Theirs outlasts what is counted after it begins.
    let one = worker(&url, PATIENCE).await;
    let mut workers = vec![one; waiters];
    if apart {
        for worker in &mut workers[1..] {
            *worker = self::worker(&url, PATIENCE).await;
        }
    }
    let mut times = Vec::new();
    let mut commands = Vec::new();
    // The first one is to warm up.
    for sample in 0..=options.pick(3, 20) {
        let (took, said) = take_over(&server, &workers, sample, lease).await;
        if sample > 0 {
            times.push(took);
            commands.push(said as f64);
        }
    }
    let which = if apart {
        "workers"
    } else {
        "streams of a worker"
    };
    let row = |unit, ours| Row {
        bench: "takeover",
        case: format!("{waiters} {which} waiting"),
        peer: String::new(),
        unit,
        ours,
        theirs: None,
    };
    vec![
        row("ms, p50", percentile(&mut times, 0.5)),
        row("ms, p99", percentile(&mut times, 0.99)),
        row("commands, p50", percentile(&mut commands, 0.5)),
        row("commands, p99", percentile(&mut commands, 0.99)),
    ]
}

/// In ms, how long after the lease's end, and how many commands the server saw.
async fn take_over(
    server: &Server,
    workers: &[LockingWorker],
    sample: usize,
    lease: Duration,
) -> (f64, usize) {
    let key = format!("takeover:{sample}");
    let (url, lease) = (server.url(), lease.as_millis().to_string());
    let mut holder = Peer::start(&["--holder", &url, &key, &lease]);
    let [_] = holder.hear();
    let mut streams: Vec<Acquire> = Vec::new();
    for worker in workers {
        let mut stream = worker.with_key(&key).unwrap().acquire();
        locked(&mut stream).await;
        streams.push(stream);
    }
    let mut monitor = server.monitor();
    until_quiet(&mut monitor).await;
    let client = server.client().await;
    let record = command(&client, [b"GET", key.as_bytes()]).await;
    let record = record
        .into_string()
        .expect("a lease that outlasts all this");
    let (_, ends) = record.split_once(" until=").unwrap();
    let ends: f64 = ends.split(' ').next().unwrap().parse().unwrap();
    monitor.commands();
    holder.kill();

    let mut streams = select_all(streams);
    let guard = loop {
        let next = tokio::time::timeout(PATIENCE, streams.next()).await;
        match next.unwrap().expect("another event") {
            LockEvent::Acquired(guard) => break guard,
            event => assert!(!event.is_terminal(), "{event:?}"),
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(guard.attempt(), 2);
    let took = now.as_secs_f64() * 1e3 - ends;
    // Whoever is late with a claim sends it within the stagger, which ends at 100 places of 5 ms.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let commands = monitor.commands().len();
    guard.done().await.unwrap();
    (took, commands)
}
