//! What a command has started, and what that has started: on Linux, where what loses its parent becomes our child.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use procfs::process::{Stat, all_processes};

/// To each of them, and to nobody else.
pub(crate) fn send(signal: Signal) {
    for process in living() {
        // It may have ended meanwhile.
        let _ = kill(process, signal);
    }
}

pub(crate) fn is_empty() -> bool {
    living().is_empty()
}

/// Waits for those that became our children and have ended; not for the command, which somebody else waits for.
pub(crate) fn bury(command: Option<Pid>) {
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    // Looked at before it is waited for, since it may be the command.
    while let Ok(status) = waitid(Id::All, ended | WaitPidFlag::WNOWAIT) {
        match status.pid() {
            Some(process) if command != Some(process) => drop(waitpid(process, None)),
            _ => return,
        }
    }
}

/// Our children and theirs, without those that have ended.
fn living() -> Vec<Pid> {
    let processes = all_processes().into_iter().flatten().flatten();
    let processes: Vec<Stat> = processes
        .filter_map(|process| process.stat().ok())
        .filter(|stat| !matches!(stat.state, 'Z' | 'X'))
        .collect();
    let mut family = vec![Pid::this().as_raw()];
    let mut asked = 0;
    while let Some(parent) = family.get(asked).copied() {
        let children = processes.iter().filter(|stat| stat.ppid == parent);
        family.extend(children.map(|stat| stat.pid));
        asked += 1;
    }
    family.into_iter().skip(1).map(Pid::from_raw).collect()
}
