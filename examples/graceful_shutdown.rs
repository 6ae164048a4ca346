//! A worker that is told to stop hands its work over: the successor goes on where it was, and no
//! attempt is counted.
//!
//! ```text
//! cargo run --example graceful_shutdown
//! ```
//!
//! Two workers want the same work of 20 rows. The one that has it gets SIGTERM half-way. With
//! `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free port and
//! stops again), the workers are processes and the signal is a signal. With neither they are tasks on
//! the memory store, and it is a token that is cancelled.

mod common;

use std::error::Error;
use std::pin::pin;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use common::{Place, now};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{Builder, LockEvent, LockingWorker, Memory, RenewError, WorkGuard};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const ROWS: u32 = 20;

/// The work: each row that is done is left as a checkpoint.
async fn rows(guard: &WorkGuard, first: u32) -> Result<(), RenewError> {
    for row in first..=ROWS {
        tokio::time::sleep(Duration::from_millis(50)).await;
        guard.checkpoint(row.to_string()).await?;
    }
    Ok(())
}

/// Where the attempt before left off.
fn first_row(guard: &WorkGuard) -> u32 {
    let checkpoint = guard.previous().map(|previous| &previous.checkpoint[..]);
    let done = std::str::from_utf8(checkpoint.unwrap_or_default()).unwrap_or_default();
    done.parse::<u32>().map_or(1, |row| row + 1)
}

async fn work(
    worker: LockingWorker,
    shutdown: impl Future<Output = ()>,
    report: impl Fn(String),
) -> Result<(), Box<dyn Error>> {
    let mut shutdown = pin!(shutdown.fuse());
    let name = worker.label().to_owned();
    let mut events = worker.acquire();
    loop {
        // Waiting in line: dropping the stream is all it takes.
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut shutdown => break,
        };
        match event {
            Some(LockEvent::Acquired(guard)) => {
                let first = first_row(&guard);
                report(format!("begins {} {first} {}", guard.attempt(), now()));
                tokio::select! {
                    worked = guard.run(rows(&guard, first)) => {
                        worked??;
                        guard.done_with(format!("{ROWS} rows")).await?;
                    }
                    () = &mut shutdown => {
                        guard.hand_off().await?;
                        report(format!("says {name} has handed its work over"));
                        break;
                    }
                }
            }
            Some(LockEvent::Completed(completed)) => {
                let result = String::from_utf8_lossy(&completed.result).into_owned();
                report(format!(
                    "says {name} hears of {result}, done by {}",
                    completed.holder
                ));
            }
            Some(_) => {}
            None => break,
        }
    }
    drop(events);
    // Whatever was dropped has reached the server before this process ends.
    worker.close().await;
    Ok(())
}

fn builder(key: &str, number: u32) -> Builder {
    LockingWorker::builder(key)
        .label(format!("Worker {number}"))
        .renew()
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let ran = match &args[..] {
        [flag, number, url, key] if flag == "--worker" => process(number, url, key).await,
        _ => fleet().await,
    };
    common::exit(ran)
}

/// One worker: how the example calls itself.
async fn process(number: &str, url: &str, key: &str) -> Result<(), Box<dyn Error>> {
    let mut terminated = signal(SignalKind::terminate())?;
    let worker = builder(key, number.parse()?).url(url).build().await?;
    let shutdown = terminated.recv().map(|_| ());
    work(worker, shutdown, |line| println!("{line}")).await
}

/// What tells a worker to stop.
enum Shutdown {
    Signal(Pid),
    Token(CancellationToken),
}

impl Shutdown {
    fn begin(&self) -> Result<(), Box<dyn Error>> {
        match self {
            Shutdown::Signal(pid) => kill(*pid, Signal::SIGTERM)?,
            Shutdown::Token(token) => token.cancel(),
        }
        Ok(())
    }
}

async fn fleet() -> Result<(), Box<dyn Error>> {
    let key = format!("graceful-shutdown-example:{}:{}", std::process::id(), now());
    let place = Place::find()?;
    println!("{}", place.describe(2));
    let memory = Memory::new();
    let (reports, mut heard) = mpsc::unbounded_channel();
    let mut workers = Vec::new();
    for number in 1..=2 {
        let reports = reports.clone();
        let report = move |line| drop(reports.send((number, line)));
        if let Some(url) = place.url() {
            let mut child = Command::new(std::env::current_exe()?)
                .args(["--worker", &number.to_string(), url, &key])
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let pid = child.id().ok_or("a child that has ended already")?;
            workers.push(Shutdown::Signal(Pid::from_raw(pid.try_into()?)));
            let output = child.stdout.take().ok_or("a child without output")?;
            tokio::spawn(async move {
                let mut lines = BufReader::new(output).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    report(line);
                }
                let ended = child.wait().await;
                if !ended.is_ok_and(|status| status.success()) {
                    report(format!("says Worker {number} ended early"));
                }
            });
        } else {
            let worker = builder(&key, number).in_memory(&memory).build().await?;
            let token = CancellationToken::new();
            workers.push(Shutdown::Token(token.clone()));
            tokio::spawn(async move {
                if let Err(error) = work(worker, token.cancelled_owned(), &report).await {
                    report(format!("says Error: {error}"));
                }
            });
        }
    }
    drop(reports);

    let (signals, mut signalled) = mpsc::unbounded_channel();
    let mut terminated = None;
    loop {
        let (number, line) = tokio::select! {
            Some(number) = signalled.recv() => {
                println!("Worker {number} gets SIGTERM");
                terminated = Some(now());
                let worker: &Shutdown = &workers[number as usize - 1];
                worker.begin()?;
                continue;
            }
            line = heard.recv() => match line {
                Some(line) => line,
                None => break,
            },
        };
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["begins", attempt, row, at] => {
                println!("Worker {number} begins attempt #{attempt} at row {row}");
                if let Some(terminated) = terminated {
                    let took = at.parse::<u64>()?.saturating_sub(terminated);
                    println!("... {:.2} ms after the signal", took as f64 / 1e3);
                } else {
                    let signals = signals.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(525)).await;
                        let _ = signals.send(number);
                    });
                }
            }
            _ => println!("{}", line.strip_prefix("says ").unwrap_or(&line)),
        }
    }
    Ok(())
}
