//! What a fencing token is for: a holder that was paused past its lease writes late.
//!
//! ```text
//! cargo run --example fencing
//! ```
//!
//! Worker 1 has the work and is stopped. Its lease ends, worker 2 does the work and writes it down.
//! Then worker 1 goes on, knows of nothing, and writes too: into a store that takes everything, and
//! into one that looks at the fencing token. docs/fencing.md has more about it.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free port
//! and stops again), the workers are processes, stopped by SIGSTOP. With neither they are tasks on the
//! memory store, and the first one sleeps.

mod common;

use std::error::Error;
use std::pin::pin;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use common::{Place, now};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{Builder, LockEvent, LockingWorker, Memory};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::{Notify, mpsc};

const LEASE: Duration = Duration::from_millis(500);

/// A store of one's own: it may be a table with a column for the token, or an object store with
/// conditional writes.
#[derive(Default)]
struct Store {
    text: String,
    /// The highest token seen, if it looks at them.
    highest: Option<u64>,
}

impl Store {
    fn write(&mut self, token: u64, text: &str) -> Result<(), String> {
        if let Some(highest) = &mut self.highest {
            if token < *highest {
                return Err(format!("token {token} is lower than {highest}"));
            }
            *highest = token;
        }
        self.text = text.to_owned();
        Ok(())
    }
}

/// What a worker has to say.
enum Report {
    Begins,
    /// With this fencing token.
    Writes(u64),
    Says(String),
}

async fn work(
    worker: LockingWorker,
    pause: impl Future<Output = ()>,
    report: impl Fn(Report),
) -> Result<(), Box<dyn Error>> {
    let mut events = worker.acquire();
    let mut pause = pin!(pause.fuse());
    while let Some(event) = events.next().await {
        if let LockEvent::Acquired(guard) = event {
            report(Report::Begins);
            (&mut pause).await;
            // Looking at the guard here would help only until the next line.
            report(Report::Writes(guard.fencing_token()));
            let ended = match guard.done().await {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            report(Report::Says(format!("{}: {ended}", worker.label())));
        }
    }
    Ok(())
}

fn builder(key: &str, number: u32) -> Builder {
    LockingWorker::builder(key)
        .label(format!("Worker {number}"))
        .lock_timeout(LEASE)
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
    let worker = builder(key, number.parse()?).url(url).build().await?;
    // Long enough to be stopped in.
    let pause = tokio::time::sleep(LEASE / 5);
    let report = |report| match report {
        Report::Begins => println!("begins"),
        Report::Writes(token) => println!("writes {token}"),
        Report::Says(text) => println!("{text}"),
    };
    work(worker, pause, report).await
}

async fn fleet() -> Result<(), Box<dyn Error>> {
    let key = format!("fencing-example:{}:{}", std::process::id(), now());
    let place = Place::find()?;
    println!("{}", place.describe(2));
    let memory = Memory::new();
    let (reports, mut heard) = mpsc::unbounded_channel();
    let (mut plain, mut fenced) = (
        Store::default(),
        Store {
            highest: Some(0),
            ..Store::default()
        },
    );
    let (mut stopped, go_on) = (None, std::sync::Arc::new(Notify::new()));
    let mut begun = 0;
    start(&place, &memory, &key, 1, go_on.clone(), reports.clone()).await?;
    while let Some((number, pid, report)) = heard.recv().await {
        match report {
            Report::Begins => {
                println!("Worker {number} begins");
                begun += 1;
                if begun == 1 {
                    // As a long garbage collection does, or a laptop that is closed.
                    if let Some(pid) = pid {
                        kill(pid, Signal::SIGSTOP)?;
                    }
                    stopped = Some(pid);
                    println!("Worker {number} is stopped, for longer than its lease");
                    start(&place, &memory, &key, 2, go_on.clone(), reports.clone()).await?;
                }
            }
            Report::Writes(token) => {
                println!("Worker {number} writes, with fencing token {token}");
                let text = format!("the work of worker {number}");
                let _ = plain.write(token, &text);
                if let Err(refused) = fenced.write(token, &text) {
                    println!("The store that looks at tokens refuses: {refused}");
                }
            }
            Report::Says(text) => {
                println!("{text}");
                let Some(pid) = stopped.take() else { break };
                println!("Worker 1 goes on");
                if let Some(pid) = pid {
                    kill(pid, Signal::SIGCONT)?;
                }
                go_on.notify_one();
            }
        }
    }
    println!("\nThe store that takes everything holds {}", plain.text);
    println!("The store that looks at tokens holds {}", fenced.text);
    Ok(())
}

type Reports = mpsc::UnboundedSender<(u32, Option<Pid>, Report)>;

async fn start(
    place: &Place,
    memory: &Memory,
    key: &str,
    number: u32,
    go_on: std::sync::Arc<Notify>,
    reports: Reports,
) -> Result<(), Box<dyn Error>> {
    let Some(url) = place.url() else {
        let worker = builder(key, number).in_memory(memory).build().await?;
        tokio::spawn(async move {
            let pause = async {
                if number == 1 {
                    go_on.notified().await;
                }
            };
            let report = |report| drop(reports.send((number, None, report)));
            if let Err(error) = work(worker, pause, report).await {
                let _ = reports.send((number, None, Report::Says(error.to_string())));
            }
        });
        return Ok(());
    };
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--worker", &number.to_string(), url, key])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().ok_or("a child that has ended already")?;
    let pid = Pid::from_raw(pid.try_into()?);
    let output = child.stdout.take().ok_or("a child without output")?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let report = match line.split_once(' ') {
                None if line == "begins" => Report::Begins,
                Some(("writes", token)) => Report::Writes(token.parse().unwrap_or_default()),
                _ => Report::Says(line),
            };
            let _ = reports.send((number, Some(pid), report));
        }
        let _ = child.wait().await;
    });
    Ok(())
}
