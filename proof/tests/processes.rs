//! Workers as processes of their own that are killed, stopped and continued.
//!
//! This binary is also the worker: `processes --worker URL LABEL LEASE_MS` takes part in a run, tells
//! what happens on its standard output and does what its standard input says; `processes --once URL
//! COUNT FAILURES` wants the work done once by so many workers, and prints what they get.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::Builder as FredBuilder;
use fred::types::config::Config;
use futures::StreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{LockEvent, LockingWorker, Reason};
use testkit::{Server, acquired, command, locked};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

const LEASE: Duration = Duration::from_millis(700);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match args[..] {
        ["--worker", url, label, lease] => {
            runtime.block_on(worker(url, label, lease.parse().unwrap()));
            return ExitCode::SUCCESS;
        }
        ["--once", url, count, failures] => {
            let (count, failures) = (count.parse().unwrap(), failures.parse().unwrap());
            runtime.block_on(once(url, count, failures));
            return ExitCode::SUCCESS;
        }
        _ => {}
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
        test("a_late_write_is_refused_by_its_fencing_token", || {
            block_on(late_write())
        }),
        test("a_failure_in_one_process_wakes_another", || {
            block_on(failure())
        }),
        test("a_terminated_holder_hands_its_attempt_over", || {
            block_on(terminated_holder())
        }),
        test("a_stopped_waiter_costs_the_confirm_window_at_most", || {
            block_on(stopped_waiter())
        }),
        test("a_fleet_executes_once_and_has_one_result", || {
            block_on(fleet_once(0))
        }),
        test("a_fleet_executes_until_it_succeeds", || {
            block_on(fleet_once(2))
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

/// A store of the user's own that takes no write under a token lower than it has seen.
const FENCED_SET: &str = "
    if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[2]) or '0') then
        return 0
    end
    redis.call('SET', KEYS[2], ARGV[1])
    redis.call('SET', KEYS[1], ARGV[2])
    return 1";

/// Writes this label under the token; whether the store took it.
async fn write(client: &Client, token: u64, label: &str) -> bool {
    let keys = vec!["fenced", "fenced:token"];
    let args = vec![token.to_string(), label.to_owned()];
    client.eval(FENCED_SET, keys, args).await.unwrap()
}

async fn worker(url: &str, label: &str, lease: u64) {
    let lease = Duration::from_millis(lease);
    let builder = LockingWorker::builder("job")
        .url(url)
        .label(label)
        .lock_timeout(lease);
    let worker = builder.build().await.unwrap();
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let mut orders = lines_of_stdin();
    let mut events = worker.acquire();
    while let Some(event) = events.next().await {
        match event {
            LockEvent::Locked(_) => println!("locked"),
            LockEvent::Acquired(guard) => {
                println!("acquired");
                let order = tokio::select! {
                    order = orders.recv() => order.unwrap_or_default(),
                    _ = terminated.recv() => "hand off".to_owned(),
                };
                match order.as_str() {
                    "abort" => std::process::abort(),
                    "drop" => {
                        println!("{}", now());
                        drop(guard);
                    }
                    "done" => match guard.done().await {
                        Ok(()) => println!("done"),
                        Err(error) => println!("{error}"),
                    },
                    "write" => {
                        let client = FredBuilder::from_config(Config::from_url(url).unwrap());
                        let client = client.build().unwrap();
                        client.init().await.unwrap();
                        let _: () = client.set("plain", label, None, None, false).await.unwrap();
                        println!("{}", write(&client, guard.fencing_token(), label).await);
                        let script = "return redis.call('SET', KEYS[1], ARGV[1])";
                        match guard.fenced::<String, _, _>(script, "checked", label).await {
                            Ok(ok) => println!("{ok}"),
                            Err(error) => println!("{error}"),
                        }
                    }
                    "hand off" => {
                        guard.hand_off().await.unwrap();
                        break;
                    }
                    order => panic!("{order:?}"),
                }
            }
            _ => {}
        }
    }
    drop(events);
    worker.close().await;
}

/// Standard input is read on a thread: nothing can cancel that.
fn lines_of_stdin() -> mpsc::UnboundedReceiver<String> {
    let (line, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for text in std::io::stdin().lines() {
            let Ok(text) = text else { return };
            if line.send(text).is_err() {
                return;
            }
        }
    });
    lines
}

/// So many workers want the work done once; the first executions of all fail.
async fn once(url: &str, count: usize, failures: u64) {
    let worker = LockingWorker::builder("job")
        .url(url)
        .build()
        .await
        .unwrap();
    let client = FredBuilder::from_config(Config::from_url(url).unwrap());
    let client = client.build().unwrap();
    client.init().await.unwrap();
    let all = (0..count).map(|_| {
        worker.once(async |_| {
            let nth: u64 = client.incr("executions").await.unwrap();
            match nth > failures {
                true => Ok(format!("by execution {nth}")),
                false => Err(format!("execution {nth} failed")),
            }
        })
    });
    for result in futures::future::join_all(all).await {
        println!("{}", std::str::from_utf8(&result.unwrap()).unwrap());
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
        let lease = lease.as_millis().to_string();
        Self::spawn(&["--worker", &server.url(), label, &lease])
    }

    fn spawn(args: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
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

async fn late_write() {
    let server = Server::start();
    let client = server.client().await;
    let waiting = server.builder("job").label("next").build().await.unwrap();
    let mut worker = Worker::start(&server, "stopped", LEASE);
    assert_eq!(worker.hear(), "acquired");
    let mut stream = waiting.acquire();
    locked(&mut stream).await;
    worker.signal(Signal::SIGSTOP);
    let guard = acquired(&mut stream).await;
    let () = client
        .set("plain", "next", None, None, false)
        .await
        .unwrap();
    assert!(write(&client, guard.fencing_token(), "next").await);
    let script = "return redis.call('SET', KEYS[1], ARGV[1])";
    let () = guard.fenced(script, "checked", "next").await.unwrap();
    worker.signal(Signal::SIGCONT);
    worker.say("write");
    assert_eq!(worker.hear(), "false", "its token is lower");
    assert_eq!(worker.hear(), "the lease was lost: attempt 2 went to next");
    let now: Vec<String> = client
        .mget(vec!["plain", "fenced", "checked"])
        .await
        .unwrap();
    println!("plain: {}, fenced: {}, checked: {}", now[0], now[1], now[2]);
    assert_eq!(now, ["stopped", "next", "next"], "only the fence protects");
    guard.done().await.unwrap();
}

async fn terminated_holder() {
    let server = Server::start();
    let waiting = server.builder("job").label("next").build().await.unwrap();
    let mut worker = Worker::start(&server, "holder", Duration::from_secs(3_600));
    assert_eq!(worker.hear(), "acquired");
    let mut stream = waiting.acquire();
    locked(&mut stream).await;
    let terminated = now();
    worker.signal(Signal::SIGTERM);
    let guard = acquired(&mut stream).await;
    println!(
        "acquired {:.2} ms after SIGTERM",
        now().saturating_sub(terminated) as f64 / 1e3
    );
    assert_eq!(guard.attempt(), 1, "it is not counted");
    let previous = guard.previous().expect("one that was handed off");
    assert_eq!(
        (&previous.holder[..], &previous.reason),
        ("holder", &Reason::HandedOff)
    );
    assert!(worker.child.wait().unwrap().success());
    guard.done().await.unwrap();
}

/// A hundred workers in four processes.
async fn fleet_once(failures: u64) {
    let server = Server::start();
    let fleet = |_| Worker::spawn(&["--once", &server.url(), "25", &failures.to_string()]);
    let mut fleet: Vec<Worker> = (0..4).map(fleet).collect();
    let expected = format!("by execution {}", failures + 1);
    for worker in &mut fleet {
        for _ in 0..25 {
            assert_eq!(worker.hear(), expected);
        }
        assert!(worker.child.wait().unwrap().success());
    }
    let executions = async || {
        let client = server.client().await;
        client.get::<u64, _>("executions").await.unwrap()
    };
    assert_eq!(executions().await, failures + 1);
    println!("100 equal results of {} executions", failures + 1);
    // One that comes late executes nothing.
    let mut late = Worker::spawn(&["--once", &server.url(), "1", "0"]);
    assert_eq!(late.hear(), expected);
    assert_eq!(executions().await, failures + 1);
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
