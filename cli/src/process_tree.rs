//! The command and its descendants. Only for Linux, where a descendant that loses its parent
//! becomes our child.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use procfs::process::{Process, Stat, all_processes};
use tokio::signal::unix;

/// The command's pid until the runtime has taken its status, else 0. [`reap`] must not take that
/// status, and a later process can get the same pid.
static COMMAND: AtomicI32 = AtomicI32::new(0);

/// Sets the child that [`reap`] leaves alone.
pub(crate) fn set_command(pid: Option<u32>) {
    COMMAND.store(pid.unwrap_or(0) as i32, Ordering::Relaxed);
}

/// Waits for each child that has ended, except the command, so that none stays a zombie.
///
/// Works without `/proc`. While the command itself is a zombie, the kernel may report it first each
/// time. Once the runtime has taken its status, the next call reaps the children behind it.
pub(crate) fn reap() {
    while let Ok(status) = ended_child() {
        match status.pid() {
            Some(pid) if pid.as_raw() != COMMAND.load(Ordering::Relaxed) => {
                let _ = waitpid(pid, None);
            }
            _ => return,
        }
    }
}

/// Reaps at each SIGCHLD, independently of the other tasks. Never returns while the runtime lives.
pub(crate) async fn keep_reaping(mut deaths: unix::Signal) {
    loop {
        reap();
        if deaths.recv().await.is_none() {
            return;
        }
    }
}

/// Returns the status of an ended child that was not waited for, and leaves it unwaited.
fn ended_child() -> nix::Result<WaitStatus> {
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, ended)
}

/// The processes that a signal reaches when the command is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All our descendants, found in `/proc`.
    Tree,
    /// All other processes of the PID namespace of which this is process 1. They are our
    /// descendants.
    Namespace,
    /// The command's process group.
    Group,
    /// The command alone.
    Command,
}

impl Scope {
    /// Returns the widest scope that is possible here.
    ///
    /// The third choice is a process group for the command, but not in a terminal: a command in
    /// another group gets no Ctrl-C there, and is stopped when it reads its input.
    pub(crate) fn widest() -> Self {
        if is_proc_ours() {
            Self::Tree
        } else if Pid::this().as_raw() == 1 {
            Self::Namespace
        } else if File::open("/dev/tty").is_err() {
            Self::Group
        } else {
            Self::Command
        }
    }

    /// Sends a signal to each process of the scope and to no other. Skips a process that has ended
    /// meanwhile.
    pub(crate) fn send(self, command: Pid, signal: Signal) {
        match self {
            Self::Tree => {
                let descendants = descendants();
                for process in &descendants {
                    let _ = kill(*process, signal);
                }
                // Reading `/proc` takes a file descriptor, and there may be none.
                if descendants.is_empty() {
                    Self::Command.send(command, signal);
                }
            }
            Self::Namespace => {
                let _ = kill(Pid::from_raw(-1), signal);
            }
            Self::Group => {
                let _ = killpg(command, signal);
            }
            // Only until it was waited for: then another process may have its pid.
            Self::Command if COMMAND.load(Ordering::Relaxed) == command.as_raw() => {
                let _ = kill(command, signal);
            }
            Self::Command => {}
        }
    }

    /// Whether no process of the scope is left. Call it once the command's status was taken.
    pub(crate) fn is_empty(self, command: Pid) -> bool {
        match self {
            // Orphaned descendants are our children, so without a child there is no descendant.
            // This holds for processes that `hidepid` hides, too.
            Self::Tree | Self::Namespace => ended_child() == Err(Errno::ECHILD),
            Self::Group => killpg(command, None) == Err(Errno::ESRCH),
            Self::Command => true,
        }
    }
}

/// File descriptors for reading `/proc` when the command is stopped: there may be no others then.
pub(crate) struct Reserve(Vec<File>);

impl Reserve {
    /// One for `/proc`, one for a process's directory, one for a file in it, and one to spare.
    const FILES: usize = 4;

    pub(crate) fn new() -> io::Result<Self> {
        let files = (0..Self::FILES).map(|_| File::open("/dev/null"));
        files.collect::<io::Result<_>>().map(Self)
    }

    /// Frees the descriptors, runs `work`, and takes them back if that succeeds.
    pub(crate) fn lend(&mut self, work: impl FnOnce()) {
        self.0.clear();
        work();
        if let Ok(reserve) = Self::new() {
            *self = reserve;
        }
    }
}

/// Whether `/proc` is mounted for our PID namespace. After `unshare --pid` it is not: its numbers
/// belong to other processes in our namespace.
fn is_proc_ours() -> bool {
    // Reading a link takes no file descriptor: there may be none left.
    let Ok(we) = fs::read_link("/proc/self") else {
        return false;
    };
    // The status has one number for each namespace, from that of the mount down to ours. With two
    // numbers, the link and our pid are equal by chance only.
    let status = Process::myself().and_then(|process| process.status());
    let namespaces = status.ok().and_then(|status| status.nspid);
    we == Path::new(&Pid::this().to_string()) && namespaces.is_none_or(|pids| pids.len() == 1)
}

/// Returns our descendants that have not ended.
fn descendants() -> Vec<Pid> {
    let processes = all_processes().into_iter().flatten().flatten();
    let processes: Vec<Stat> = processes
        .filter_map(|process| process.stat().ok())
        .filter(|stat| !matches!(stat.state, 'Z' | 'X'))
        .collect();
    let mut tree = vec![Pid::this().as_raw()];
    let mut visited = 0;
    while let Some(parent) = tree.get(visited).copied() {
        let children = processes.iter().filter(|stat| stat.ppid == parent);
        tree.extend(children.map(|stat| stat.pid));
        visited += 1;
    }
    tree.into_iter().skip(1).map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Every child of this process belongs to this test: no other test of this program starts one.
    #[test]
    fn reap_leaves_the_command_to_the_runtime() {
        let mut command = Command::new("true").spawn().unwrap();
        set_command(Some(command.id()));
        while !matches!(ended_child(), Ok(WaitStatus::Exited(..))) {}
        reap();
        assert!(command.wait().unwrap().success());
        set_command(None);
        let mut orphan = Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(orphan.id() as i32);
        while kill(pid, None).is_ok() {
            reap();
        }
        assert!(orphan.wait().is_err(), "it was waited for");
    }
}
