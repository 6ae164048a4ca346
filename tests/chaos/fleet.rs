//! A fleet of worker processes, and what they tell.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::common::history::{Fault, History, Member, Scope, Told};
use crate::common::{Server, command};
use crate::now;
use crate::worker::{Orders, written};

/// What is known of a fleet as it goes on.
#[derive(Clone, Default)]
pub struct Chronicle(Arc<Mutex<History>>);

impl Chronicle {
    pub fn tell(&self, told: Told) {
        self.0.lock().unwrap().told.push(told);
    }

    pub fn fault(&self, name: &'static str, scope: Scope, from: u64, to: u64) {
        let fault = Fault {
            name,
            scope,
            from,
            to,
        };
        self.0.lock().unwrap().faults.push(fault);
    }

    pub fn edit<T>(&self, edit: impl FnOnce(&mut History) -> T) -> T {
        edit(&mut self.0.lock().unwrap())
    }
}

/// A worker process; killed with its fleet.
pub struct Process {
    pub number: u32,
    child: Child,
    orders: Option<ChildStdin>,
    listening: JoinHandle<()>,
}

impl Process {
    pub fn start(orders: &Orders, chronicle: &Chronicle) -> Self {
        chronicle.edit(|history| {
            let member = Member {
                label: orders.label.clone(),
                lease: orders.lease_ms,
                max_hold: orders.max_hold_ms,
            };
            history.members.insert(orders.process, member);
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--worker", &serde_json::to_string(orders).unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let chronicle = chronicle.clone();
        let listening = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Who is killed may leave half a line.
                if let Ok(told) = serde_json::from_str(&line) {
                    chronicle.tell(told);
                }
            }
        });
        Self {
            number: orders.process,
            orders: child.stdin.take(),
            child,
            listening,
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(pid as i32), signal).expect("a child to signal");
        }
    }

    pub async fn kill(&mut self) {
        self.child.kill().await.expect("a child to kill");
        let _ = (&mut self.listening).await;
    }

    /// All is well again: it works off what there is, and ends. Whether it did in time.
    pub async fn finish(&mut self, patience: Duration) -> bool {
        if let Some(mut orders) = self.orders.take() {
            let _ = orders.write_all(b"finish\n").await;
        }
        let ended = timeout(patience, self.child.wait()).await;
        if ended.is_err() {
            self.kill().await;
            return false;
        }
        let _ = (&mut self.listening).await;
        ended.unwrap().unwrap().success()
    }
}

/// When it is over, all faults included.
pub fn close(chronicle: &Chronicle) -> History {
    chronicle.edit(|history| {
        // Each stream's in its own order already; those of different processes by time.
        history.told.sort_by_key(|told| (told.stream, told.at));
        history.ended = now();
        std::mem::take(history)
    })
}

/// The tokens that the resource accepted, in its order.
pub async fn accepted(resource: &Server, history: &mut History, seed: u64) {
    let client = resource.client().await;
    for key in history.audit.keys() {
        let name = written(seed, key);
        let range: [&[u8]; 4] = [b"LRANGE", name.as_bytes(), b"0", b"-1"];
        let tokens: Vec<u64> = command(&client, range).await.convert().unwrap();
        history.accepted.insert(key.clone(), tokens);
    }
    let _ = fred::interfaces::ClientLike::quit(&client).await;
}
