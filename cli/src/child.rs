//! The command as a process.

use std::env;
use std::ffi::{OsStr, OsString};
#[cfg(target_os = "linux")]
use std::fs;
use std::io;
#[cfg(target_os = "linux")]
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
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
use crate::process_tree::{self, Reserve, Scope};

/// It is killed when this is dropped, and on Linux when this process dies, of whatever.
pub(crate) struct Child {
    process: process::Child,
    status: Option<ExitStatus>,
    /// Its end is wanted, and that of all that it has started.
    stopped: bool,
    #[cfg(target_os = "linux")]
    scope: Scope,
    #[cfg(target_os = "linux")]
    pid: Pid,
    #[cfg(target_os = "linux")]
    reserve: Reserve,
    /// Received also so that a parent of ours that ignores SIGCHLD does not make the kernel discard
    /// the exit codes of our children.
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
        #[cfg(target_os = "linux")]
        let (scope, reserve) = (Scope::widest(), Reserve::new()?);
        let mut command = process::Command::from(dying_with_us(command));
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        #[cfg(target_os = "linux")]
        match scope {
            Scope::Tree | Scope::Namespace => {}
            Scope::Group => {
                command.process_group(0);
                say!(
                    "no /proc of this PID namespace: only the command's process group can be stopped"
                );
            }
            Scope::Command => {
                say!("no /proc of this PID namespace: only the command can be stopped")
            }
        }
        let process = command.kill_on_drop(true).spawn()?;
        // Before anything else runs on this thread: the reaper must know whom it leaves alone.
        #[cfg(target_os = "linux")]
        process_tree::set_command(process.id());
        Ok(Self {
            #[cfg(target_os = "linux")]
            pid: Pid::from_raw(process.id().unwrap_or(0) as i32),
            #[cfg(target_os = "linux")]
            scope,
            #[cfg(target_os = "linux")]
            reserve,
            process,
            status: None,
            stopped: false,
            deaths,
        })
    }

    /// To the process itself; to none once it was waited for, since another may have its number
    /// then.
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
        self.reserve.lend(|| self.scope.send(self.pid, signal));
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
                status = self.process.wait(), if self.status.is_none() => {
                    self.status = Some(status?);
                    #[cfg(target_os = "linux")]
                    process_tree::set_command(None);
                }
                _ = self.deaths.recv() => {}
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn is_over(&self) -> bool {
        process_tree::reap();
        !self.stopped || self.scope.is_empty(self.pid)
    }

    #[cfg(not(target_os = "linux"))]
    fn is_over(&self) -> bool {
        true
    }
}

#[cfg(target_os = "linux")]
impl Drop for Child {
    fn drop(&mut self) {
        process_tree::set_command(None);
    }
}

/// Reaps what becomes our child and ends, from now on and for as long as the runtime lives.
#[cfg(target_os = "linux")]
pub(crate) fn begin_reaping() -> io::Result<()> {
    let deaths = unix::signal(SignalKind::child())?;
    tokio::spawn(process_tree::keep_reaping(deaths));
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn begin_reaping() -> io::Result<()> {
    Ok(())
}

/// Whether a command that was not started cannot be found or executed; else this machine had no
/// process, memory or file descriptor left for it.
pub(crate) fn is_about_command(error: &io::Error) -> bool {
    let known = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EACCES,
        Errno::ENOEXEC,
        Errno::E2BIG,
        Errno::ELOOP,
        Errno::ENAMETOOLONG,
        Errno::ETXTBSY,
    ];
    let error = error.raw_os_error().map(Errno::from_raw);
    error.is_some_and(|error| known.contains(&error))
}

/// Called so, this program becomes the command.
#[cfg(target_os = "linux")]
const EXEC: &str = "locking-worker-exec";

/// What only the process itself may ask for, it does before it becomes the command: see [`exec`].
#[cfg(target_os = "linux")]
fn dying_with_us(command: &[OsString]) -> Command {
    // Not by its path, where an update may have put another program.
    const US: &str = "/proc/self/exe";
    if fs::metadata(US).is_err() {
        say!("no {US}: the command is not killed when this process is");
        return plain(command);
    }
    let mut us = Command::new(US);
    us.arg0(EXEC)
        .arg(std::process::id().to_string())
        .args(command);
    us
}

#[cfg(not(target_os = "linux"))]
fn dying_with_us(command: &[OsString]) -> Command {
    plain(command)
}

fn plain(command: &[OsString]) -> Command {
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]);
    child
}

/// Becomes the command, after asking to be killed when the parent dies, if that is what this process is for.
#[cfg(target_os = "linux")]
pub(crate) fn exec() -> Option<Exit> {
    let mut args = env::args_os();
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

/// Where `execvp` looks when `PATH` is not set.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Whether there is such a command, looked for as `execvp` does.
pub(crate) fn exists(program: &OsStr) -> bool {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    // Of no use for a path that is absolute; without one, a relative path leads nowhere.
    let directory = env::current_dir().unwrap_or_default();
    which::which_in(program, Some(path), directory).is_ok()
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
