//! The holder as a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{BuildError, LockingWorker, WorkGuard};
use tokio::runtime::Runtime;

use testkit::acquired;

/// What this process does when it is the holder. The guard stays on the main thread, so that a question about it is
/// the first thing that happens after a standstill.
pub fn run(url: &str, lease: u64, options: &[String]) {
    let has = |option: &str| options.iter().any(|given| given == option);
    let mut builder = LockingWorker::builder("job")
        .url(url)
        .label("holder")
        .lock_timeout(Duration::from_millis(lease));
    if has("renew") {
        builder = builder.renew();
    }
    let runtime = Runtime::new().unwrap();
    if has("no-threads") {
        return without_threads(&runtime, builder);
    }
    let (guard, _events) = runtime.block_on(async {
        let worker = builder.build().await.unwrap();
        let mut events = worker.acquire();
        (acquired(&mut events).await, events)
    });
    let lost = guard.lost();
    runtime.spawn(async move { println!("lost: {}", lost.await) });
    println!("acquired");
    let mut guard = Some(guard);
    for order in std::io::stdin().lines() {
        let held = guard.as_ref().unwrap();
        match order.unwrap().as_str() {
            "look" => println!(
                "{}",
                if held.is_valid() {
                    "valid"
                } else {
                    "not valid"
                }
            ),
            "check" => match held.check() {
                Ok(()) => println!("valid"),
                Err(why) => println!("{why}"),
            },
            "fork" => fork(held),
            "done" => match runtime.block_on(guard.take().unwrap().done()) {
                Ok(()) => println!("done"),
                Err(why) => println!("{why}"),
            },
            other => panic!("{other}"),
        }
    }
}

/// A forked child looks at its copy of the guard, and drops it.
#[expect(unsafe_code, reason = "there is no safe way to fork")]
fn fork(guard: &WorkGuard) {
    // SAFETY: the child only reads memory, writes to a pipe and exits, without a lock that another thread may hold:
    // the other threads of this process wait for messages.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let valid = guard.is_valid();
            let why = guard.check().unwrap_err();
            println!("child: {valid}: {why}");
            std::process::exit(0);
        }
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).unwrap();
        }
    }
}

/// The user may have no more processes, of which threads are counted as such.
fn without_threads(runtime: &Runtime, builder: redis_locking_worker::Builder) {
    use nix::sys::resource::{Resource, setrlimit};
    use nix::unistd::{Uid, setuid};

    // The bound is not one on root. What the runtime needs is there.
    runtime.block_on(async {});
    if Uid::current().is_root() {
        setuid(Uid::from_raw(54_321)).unwrap();
    }
    setrlimit(Resource::RLIMIT_NPROC, 1, 1).unwrap();
    match runtime.block_on(builder.build()) {
        Err(BuildError::Thread(source)) => println!("{:?}", source.kind()),
        Err(other) => println!("{other:?}"),
        Ok(_) => println!("built"),
    }
}

/// A holder; killed with its test.
pub struct Holder {
    pub child: Child,
    orders: ChildStdin,
    news: BufReader<ChildStdout>,
}

impl Holder {
    pub fn start(url: &str, lease: Duration, options: &[&str], env: &[(&str, &str)]) -> Self {
        let lease = lease.as_millis().to_string();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--holder", url, &lease])
            .args(options)
            .envs(env.iter().copied())
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

    pub fn say(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.news.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
