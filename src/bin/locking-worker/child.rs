//! The command as a process.

use std::ffi::{OsStr, OsString};
use std::io;
#[cfg(target_os = "linux")]
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

#[cfg(target_os = "linux")]
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
#[cfg(target_os = "linux")]
use nix::unistd::getppid;
use tokio::process;
use tokio::signal::unix::{self, SignalKind};

use crate::exit::Exit;
#[cfg(target_os = "linux")]
use crate::family;

/// It is killed when this is dropped, and on Linux when this process dies, of whatever.
pub(crate) struct Child {
    process: process::Child,
    status: Option<ExitStatus>,
    /// Its end is wanted, and that of all that it has started.
    stopped: bool,
    /// Heard of also so that nobody who started us has them ignored: then there would be no exit code.
    deaths: unix::Signal,
}

/// A variable of its environment; without a value, it is taken away.
pub(crate) type Variable = (&'static str, Option<OsString>);

impl Child {
    pub(crate) fn start(command: &[OsString], environment: Vec<Variable>) -> io::Result<Self> {
        let deaths = unix::signal(SignalKind::child())?;
        // What loses its parent becomes our child, and is found.
        #[cfg(target_os = "linux")]
        set_child_subreaper(true)?;
        let mut command = process::Command::from(dying_with_us(command));
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ok(Self {
            process: command.kill_on_drop(true).spawn()?,
            status: None,
            stopped: false,
            deaths,
        })
    }

    /// To the process itself; and to nobody when it has been waited for, since its number may be another's then.
    pub(crate) fn send(&self, signal: Signal) {
        if let Some(id) = self.process.id() {
            // It may be a zombie, which takes no harm.
            let _ = kill(Pid::from_raw(id as i32), signal);
        }
    }

    /// Asks it to end, or ends it; on Linux, with all that it has started.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.stopped = true;
        #[cfg(target_os = "linux")]
        family::send(signal);
        #[cfg(not(target_os = "linux"))]
        self.send(signal);
    }

    /// Waits for its end; when it is stopped, on Linux, for that of all that it has started. Dropping the future loses
    /// nothing.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status.filter(|_| self.is_over()) {
                return Ok(status);
            }
            tokio::select! {
                status = self.process.wait(), if self.status.is_none() => self.status = Some(status?),
                _ = self.deaths.recv() => {}
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn is_over(&self) -> bool {
        family::bury(self.process.id().map(|id| Pid::from_raw(id as i32)));
        !self.stopped || family::is_empty()
    }

    #[cfg(not(target_os = "linux"))]
    fn is_over(&self) -> bool {
        true
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
        say!("the command would outlive us: {error}");
        return Some(Exit::NotFound);
    }
    // It may have died before.
    if parent != *getppid().to_string() {
        return Some(Exit::NotFound);
    }
    let error = Command::new(&program).args(args).exec();
    say!("{}: {error}", program.to_string_lossy());
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

/// Whether it says, as shells do, that it cannot be executed here.
pub(crate) fn is_not_executable(status: ExitStatus) -> bool {
    matches!(status.code(), Some(126 | 127))
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
