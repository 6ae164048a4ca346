//! The command as a process.

use std::ffi::{OsStr, OsString};
use std::io;
#[cfg(target_os = "linux")]
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

#[cfg(target_os = "linux")]
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
#[cfg(target_os = "linux")]
use nix::unistd::getppid;
use tokio::process;

use crate::exit::Exit;

/// It is killed when this is dropped, and on Linux when this process dies, of whatever.
pub(crate) struct Child(process::Child);

/// A variable of its environment; without a value, it is taken away.
pub(crate) type Variable = (&'static str, Option<OsString>);

impl Child {
    pub(crate) fn start(command: &[OsString], environment: Vec<Variable>) -> io::Result<Self> {
        let mut command = process::Command::from(dying_with_us(command));
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.kill_on_drop(true).spawn().map(Self)
    }

    /// To the process itself, no group; and to nobody when it has been waited for, since its number may be another's then.
    pub(crate) fn send(&self, signal: Signal) {
        if let Some(id) = self.0.id() {
            // It may be a zombie, which takes no harm.
            let _ = kill(Pid::from_raw(id as i32), signal);
        }
    }

    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait().await
    }
}

/// Called so, this program becomes the command.
#[cfg(target_os = "linux")]
const EXEC: &str = "locking-worker-exec";

/// What only the process itself may ask for, it does before it becomes the command: see [`exec`].
#[cfg(target_os = "linux")]
fn dying_with_us(command: &[OsString]) -> Command {
    // Not by its path, where an update may have put another program.
    let mut us = Command::new("/proc/self/exe");
    us.arg0(EXEC)
        .arg(std::process::id().to_string())
        .args(command);
    us
}

#[cfg(not(target_os = "linux"))]
fn dying_with_us(command: &[OsString]) -> Command {
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]);
    child
}

/// Becomes the command, after asking to be killed when the parent dies, if that is what this process is for.
#[cfg(target_os = "linux")]
pub(crate) fn exec() -> Option<Exit> {
    let mut args = std::env::args_os();
    if args.next()? != EXEC {
        return None;
    }
    let parent = args.next()?;
    let program = args.next()?;
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        eprintln!("locking-worker: the command would outlive us: {error}");
        return Some(Exit::NotFound);
    }
    // It may have died before.
    if parent != *getppid().to_string() {
        return Some(Exit::NotFound);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("locking-worker: {}: {error}", program.to_string_lossy());
    Some(Exit::NotFound)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exec() -> Option<Exit> {
    None
}

/// Whether there is such a command.
pub(crate) fn exists(program: &OsStr) -> bool {
    which::which(program).is_ok()
}

/// How it ended, in words.
pub(crate) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

/// Whether it ended of the signal: killed by it, or with the code by which a shell says so.
pub(crate) fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    let signal = signal as i32;
    status.signal() == Some(signal) || status.code() == Some(128 + signal)
}
