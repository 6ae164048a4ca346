//! Workers as processes of their own that are killed, stopped and continued.
//!
//! This binary is also the worker: `processes --worker URL KEY LABEL LEASE_MS` takes part in a run,
//! tells what happens on its standard output and does what its standard input says.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Server, acquired, command, locked};
use futures::StreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{LockEvent, LockingWorker};

const LEASE: Duration = Duration::from_millis(700);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let [flag, url, key, label, lease] = &args[..]
        && flag == "--worker"
    {
        runtime.block_on(worker(url, key, label, lease.parse().unwrap()));
        return ExitCode::SUCCESS;
    }
    let test = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name, run);
    let tests = vec![
        test(
            "a_killed_holder_is_followed_at_the_end_of_its_lease",
            || holder_dies(|worker| worker.signal(Signal::SIGKILL)),
        ),
        test(
            "an_aborted_holder_is_followed_at_the_end_of_its_lease",
            || holder_dies(|worker| worker.say("abort")),
        ),
        test("a_stopped_holder_that_goes_on_is_told_who_followed", || {
            block_on(stopped_holder())
        }),
        test("a_failure_in_one_process_wakes_another", || {
            block_on(failure())
        }),
        test("a_stopped_waiter_costs_the_confirm_window_at_most", || {
            block_on(stopped_waiter())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn block_on(test: impl Future<Output = ()>) -> Result<(), Failed> {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
    Ok(())
}

/// The wall clock in µs, which all processes of a machine share.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros() as u64
}

async fn worker(url: &str, key: &str, label: &str, lease: u64) {
    let lease = Duration::from_millis(lease);
    let builder = LockingWorker::builder(key)
        .url(url)
        .label(label)
        .lock_timeout(lease);
    let mut events = builder.build().await.unwrap().acquire();
    while let Some(event) = events.next().await {
        match event {
            LockEvent::Locked(_) => println!("locked"),
            LockEvent::Acquired(guard) => {
                println!("acquired");
                let mut order = String::new();
                std::io::stdin().read_line(&mut order).unwrap();
                match order.trim() {
                    "abort" => std::process::abort(),
                    "drop" => {
                        println!("{}", now());
                        drop(guard);
                    }
                    "done" => match guard.done().await {
                        Ok(()) => println!("done"),
                        Err(error) => println!("{error}"),
                    },
                    order => panic!("{order:?}"),
                }
            }
            _ => {}
        }
    }
}

/// A worker process; killed with its test.
struct Worker {
    child: Child,
    orders: ChildStdin,
    news: BufReader<ChildStdout>,
}

impl Worker {
    fn start(server: &Server, label: &str, lease: Duration) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--worker",
                &server.url(),
                "job",
                label,
                &lease.as_millis().to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let news = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            orders,
            news,
        }
    }

    fn say(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.news.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When the record's lease ends by the server's clock, in ms.
async fn lease_end(server: &Server) -> u64 {
    let record = command(&server.client().await, [b"GET", b"job"])
        .await
        .into_string()
        .unwrap();
    let (_, until) = record.split_once("until=").unwrap();
    until.split(' ').next().unwrap().parse().unwrap()
}

fn holder_dies(end: impl Fn(&mut Worker)) -> Result<(), Failed> {
    block_on(async {
        let server = Server::start();
        let waiting = server.builder("job").label("next").build().await.unwrap();
        let mut worker = Worker::start(&server, "holder", LEASE);
        assert_eq!(worker.hear(), "acquired");
        let mut stream = waiting.acquire();
        assert_eq!(locked(&mut stream).await.holder, "holder");
        let ends = lease_end(&server).await;
        end(&mut worker);
        let guard = acquired(&mut stream).await;
        let after = now() as f64 / 1e3 - ends as f64;
        println!("acquired {after:.2} ms after the end of the lease");
        assert_eq!(guard.attempt(), 2);
        assert!(after >= 0.0, "not before");
        guard.done().await.unwrap();
    })
}

async fn stopped_holder() {
    let server = Server::start();
    let waiting = server.builder("job").label("next").build().await.unwrap();
    let mut worker = Worker::start(&server, "holder", LEASE);
    assert_eq!(worker.hear(), "acquired");
    let mut stream = waiting.acquire();
    locked(&mut stream).await;
    worker.signal(Signal::SIGSTOP);
    let guard = acquired(&mut stream).await;
    worker.signal(Signal::SIGCONT);
    worker.say("done");
    assert_eq!(worker.hear(), "the lease was lost: attempt 2 went to next");
    assert!(guard.is_valid());
    guard.done().await.unwrap();
}

async fn failure() {
    let server = Server::start();
    let waiting = server.builder("job").label("next").build().await.unwrap();
    let mut worker = Worker::start(&server, "holder", Duration::from_secs(3_600));
    assert_eq!(worker.hear(), "acquired");
    let mut stream = waiting.acquire();
    locked(&mut stream).await;
    worker.say("drop");
    let dropped: u64 = worker.hear().parse().unwrap();
    let guard = acquired(&mut stream).await;
    println!(
        "acquired {:.2} ms after the drop",
        now().saturating_sub(dropped) as f64 / 1e3
    );
    assert_eq!(guard.attempt(), 2);
}

async fn stopped_waiter() {
    let server = Server::start();
    let holding = server.builder("job").label("holder").build().await.unwrap();
    let mut first = holding.acquire();
    let guard = acquired(&mut first).await;
    let mut head = Worker::start(&server, "head", Duration::from_secs(3_600));
    assert_eq!(head.hear(), "locked");
    let waiting = server.builder("job").label("next").build().await.unwrap();
    let mut stream = waiting.acquire();
    assert_eq!(locked(&mut stream).await.position, Some(1));
    // Stopped, not killed: its connection stands, and the server cannot know.
    head.signal(Signal::SIGSTOP);
    drop(guard);
    assert_eq!(locked(&mut stream).await.holder, "head");
    let ends = lease_end(&server).await;
    let guard = acquired(&mut stream).await;
    println!(
        "acquired {:.2} ms after the confirm window",
        now() as f64 / 1e3 - ends as f64
    );
    assert_eq!(guard.attempt(), 2, "the number that nobody confirmed");
    head.signal(Signal::SIGCONT);
    // It has a look at what it was granted, finds it lost, and waits in line again.
    assert_eq!(head.hear(), "locked");
    drop(guard);
    assert_eq!(head.hear(), "acquired");
}
