//! A fleet of worker processes, and what they tell.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fred::interfaces::ClientLike;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::now;
use crate::standstill::{Block, Blocked};
use crate::worker::{Orders, Said, written};
use proof::history::{Fault, History, Member, Scope, What};
use testkit::{PATIENCE, Server, command};

pub const PROCESSES: u32 = 4;

/// How long short leases are renewed at most, in ms; others for three leases.
const LONGEST_HOLD: u64 = 2_500;

pub fn keys() -> Vec<String> {
    (0..16).map(|nth| format!("key-{nth}")).collect()
}

/// What a process of a run is to do. Each has its own address of the server.
pub fn orders(
    run: &str,
    process: u32,
    url: String,
    resource: &Server,
    leases: &[u64],
    random: &mut StdRng,
) -> Orders {
    let lease_ms = *leases.choose(random).unwrap();
    Orders {
        run: run.to_owned(),
        url,
        resource: resource.url(),
        seed: random.r#gen(),
        process,
        label: label(process),
        keys: keys(),
        lease_ms,
        retention_ms: lease_ms.min(1_000) * random.gen_range(1..4) / 2,
        max_attempts: random.gen_range(1..7),
        max_hold_ms: lease_ms * random.gen_range(1..=LONGEST_HOLD.div_ceil(lease_ms).max(3)),
        renews: random.gen_bool(0.5),
        rejoins: random.gen_bool(0.3),
        database: 0,
        large: false,
        threads: *[0, 0, 1, 2].choose(random).unwrap(),
    }
}

/// The process that a supervisor starts in place of another.
pub fn successor(orders: &Orders) -> Orders {
    let process = orders.process + PROCESSES;
    Orders {
        process,
        label: label(process),
        ..orders.clone()
    }
}

fn label(process: u32) -> String {
    format!("worker-{process}")
}

/// What was seen of a fleet.
#[derive(Default)]
pub struct Seen {
    pub history: History,
    /// What must not happen, whatever the history says.
    pub errors: Vec<String>,
    /// Faults that nobody should notice: they excuse nothing.
    pub harmless: Vec<&'static str>,
}

/// What is known of a fleet as it goes on.
#[derive(Clone)]
pub struct Chronicle {
    /// Which test, and the seed.
    pub run: Arc<str>,
    seen: Arc<Mutex<Seen>>,
}

impl Chronicle {
    pub fn new(run: &str) -> Self {
        Self {
            run: run.into(),
            seen: Arc::default(),
        }
    }

    pub fn edit<T>(&self, edit: impl FnOnce(&mut Seen) -> T) -> T {
        edit(&mut self.seen.lock().unwrap())
    }

    pub fn fault(&self, name: &'static str, scope: Scope, from: u64, to: u64) {
        let fault = Fault {
            name,
            scope,
            from,
            to,
        };
        self.edit(|seen| seen.history.faults.push(fault));
    }

    pub fn error(&self, what: impl std::fmt::Display) {
        let text = format!("{}: {what}", self.run);
        self.edit(|seen| seen.errors.push(text));
    }

    pub fn finishing(&self) {
        self.edit(|seen| seen.history.finishing = now());
    }

    /// When it is over, all faults included.
    pub async fn close(&self, resource: &Server) -> Seen {
        let mut seen = self.edit(std::mem::take);
        let history = &mut seen.history;
        history.ended = now();
        // Each stream's in its own order already, which this keeps.
        history.told.sort_by_key(|told| told.stream);
        for (process, member) in &history.members {
            let scope = Scope::Process(*process);
            let mut faults = history.faults.iter();
            let killed = faults.any(|fault| fault.scope == scope && fault.to == u64::MAX);
            let mut told = history.told.iter().filter(|told| told.process == *process);
            let joined = told.any(|told| matches!(told.what, What::Joined { .. }));
            if !joined && !killed {
                let text = format!("{}: {} has joined nothing", self.run, member.label);
                seen.errors.push(text);
            }
        }
        accepted(resource, history, &self.run).await;
        seen
    }
}

/// The tokens that the resource accepted, in its order.
async fn accepted(resource: &Server, history: &mut History, run: &str) {
    let client = resource.client().await;
    for key in history.audit.keys() {
        let name = written(run, key);
        let range: [&[u8]; 4] = [b"LRANGE", name.as_bytes(), b"0", b"-1"];
        let tokens: Vec<u64> = command(&client, range).await.convert().unwrap();
        history.accepted.insert(key.clone(), tokens);
    }
    let _ = client.quit().await;
}

/// A worker process; killed with its fleet, and gone by itself when its orders are closed.
pub struct Process {
    pub number: u32,
    pub renews: bool,
    child: Child,
    blocked: mpsc::UnboundedReceiver<Blocked>,
    orders: ChildStdin,
    /// What is no line of a history, at its end.
    listening: JoinHandle<Option<String>>,
    errors: PathBuf,
    chronicle: Chronicle,
}

impl Process {
    pub fn start(
        orders: &Orders,
        chronicle: &Chronicle,
        dir: &Path,
        environment: &[(&str, String)],
    ) -> Self {
        chronicle.edit(|seen| {
            let member = Member {
                label: orders.label.clone(),
                lease: orders.lease_ms,
                max_hold: orders.max_hold_ms,
            };
            seen.history.members.insert(orders.process, member);
        });
        let errors = dir.join(&orders.label);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--worker", &serde_json::to_string(orders).unwrap()])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            // What it panics with comes last.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let listener = chronicle.clone();
        let (has_blocked, blocked) = mpsc::unbounded_channel();
        let listening = tokio::spawn(async move {
            loop {
                let mut line = Vec::new();
                match lines.read_until(b'\n', &mut line).await {
                    Ok(1..) => {}
                    Ok(0) => return None,
                    Err(error) => return Some(error.to_string()),
                }
                match serde_json::from_slice(&line) {
                    Ok(Said::Told(told)) => listener.edit(|seen| seen.history.told.push(told)),
                    Ok(Said::Look(look)) => listener.edit(|seen| seen.history.looks.push(look)),
                    // Nothing waits for it when the fleet has gone.
                    Ok(Said::Blocked(blocked)) => drop(has_blocked.send(blocked)),
                    Err(error) => {
                        let line = String::from_utf8_lossy(&line);
                        let broken = format!("{error}: {line:?}");
                        // Who is killed may leave half a line, and nothing behind it.
                        let mut rest = Vec::new();
                        let _ = lines.read_until(b'\n', &mut rest).await;
                        if !rest.is_empty() {
                            listener.error(format_args!("in the middle: {broken}"));
                        }
                        return Some(broken);
                    }
                }
            }
        });
        Self {
            number: orders.process,
            renews: orders.renews,
            blocked,
            orders: child.stdin.take().unwrap(),
            child,
            listening,
            errors,
            chronicle: chronicle.clone(),
        }
    }

    /// With the end of what it said on standard error.
    fn error(&self, what: impl std::fmt::Display) {
        let said = std::fs::read(&self.errors).unwrap_or_default();
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(2_000)..]);
        let label = label(self.number);
        self.chronicle
            .error(format_args!("{label} {what}; it said at last: {said}"));
    }

    /// Nobody ends before being told to.
    fn must_live(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child") {
            self.error(format_args!("has ended by itself: {status}"));
        }
    }

    pub fn signal(&mut self, signal: Signal) {
        self.must_live();
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(pid as i32), signal).expect("a child to signal");
        }
    }

    /// Has it block threads of its runtime. What came of it.
    pub async fn block(&mut self, block: Block) -> Option<Blocked> {
        self.must_live();
        let mut order = serde_json::to_string(&block).unwrap();
        order.push('\n');
        if let Err(error) = self.orders.write_all(order.as_bytes()).await {
            self.error(format_args!("takes no orders: {error}"));
        }
        match timeout(PATIENCE, self.blocked.recv()).await {
            Ok(Some(blocked)) => Some(blocked),
            other => {
                self.error(format_args!("has not blocked: {other:?}"));
                None
            }
        }
    }

    pub async fn kill(&mut self) {
        self.must_live();
        self.child.kill().await.expect("a child to kill");
        let _ = (&mut self.listening).await.expect("a listener");
    }

    /// All is well again: it works off what there is, and ends in time.
    pub async fn finish(&mut self, patience: Duration) {
        if let Err(error) = self.orders.write_all(b"finish\n").await {
            self.error(format_args!("takes no orders: {error}"));
        }
        match timeout(patience, self.child.wait()).await {
            Ok(status) => {
                let status = status.expect("a child");
                let broken = (&mut self.listening).await.expect("a listener");
                if !status.success() || broken.is_some() {
                    self.error(format_args!("has ended with {status} and {broken:?}"));
                }
            }
            Err(_) => {
                self.error("does not end");
                self.kill().await;
            }
        }
    }
}
