//! The command as a child process.

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

/// The running command. Dropping it kills the command. On Linux the command is also killed when
/// this process dies, whatever the cause.
pub(crate) struct Child {
    process: process::Child,
    status: Option<ExitStatus>,
    /// Whether the command and its descendants have to end.
    stopped: bool,
    #[cfg(target_os = "linux")]
    scope: Scope,
    #[cfg(target_os = "linux")]
    pid: Pid,
    #[cfg(target_os = "linux")]
    reserve: Reserve,
    /// Receiver of SIGCHLD. The handler also matters where our parent ignores SIGCHLD: this process
    /// would inherit that, and the kernel would discard the exit codes of our children.
    deaths: unix::Signal,
}

/// A variable of the command's environment. Without a value, it is removed.
pub(crate) type Variable = (&'static str, Option<OsString>);

impl Child {
    pub(crate) fn start(command: &[OsString], environment: Vec<Variable>) -> io::Result<Self> {
        let deaths = unix::signal(SignalKind::child())?;
        // A descendant that loses its parent then becomes our child, so we find it.
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
                    "no /proc of this PID namespace: only the command's process group can be \
                     stopped"
                );
            }
            Scope::Command => {
                say!("no /proc of this PID namespace: only the command can be stopped")
            }
        }
        let process = command.kill_on_drop(true).spawn()?;
        // Must precede everything else on this thread: the reaper must not reap the command.
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

    /// Sends a signal to the command alone. Sends none once the command was waited for, since
    /// another process may have its number then.
    pub(crate) fn send(&self, signal: Signal) {
        if let Some(id) = self.process.id() {
            // The command may be a zombie, which ignores the signal.
            let _ = kill(Pid::from_raw(id as i32), signal);
        }
    }

    /// Sends a signal that ends the command; on Linux, to its descendants too.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.stopped = true;
        #[cfg(target_os = "linux")]
        self.reserve.lend(|| self.scope.send(self.pid, signal));
        #[cfg(not(target_os = "linux"))]
        self.send(signal);
    }

    /// Waits for the command to end; on Linux, after [`stop`](Self::stop), for its descendants too.
    /// Dropping the future loses nothing.
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

/// Starts to reap ended children, adopted ones included. Goes on for as long as the runtime lives.
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

/// Whether the error says that the command cannot be found or executed. Otherwise this machine had
/// no process, memory or file descriptor left to start it.
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

/// Name of this program (`argv[0]`) when it is started to become the command.
#[cfg(target_os = "linux")]
const EXEC: &str = "locking-worker-exec";

/// Returns a command that starts this program, which then becomes the given command.
///
/// Only a process itself can ask to be killed when its parent dies. It does so in [`exec`], before
/// it becomes the command.
#[cfg(target_os = "linux")]
fn dying_with_us(command: &[OsString]) -> Command {
    // Not the path of this program: an update may have put another program there.
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

/// Becomes the command, if this process was started for that. First asks to be killed when the
/// parent dies. Returns an exit code on failure, and `None` in any other process.
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
    // The parent may have died before the request.
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

/// Directories that `execvp` searches when `PATH` is not set.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Whether the command exists and can be executed, by the search rules of `execvp`.
pub(crate) fn exists(program: &OsStr) -> bool {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    // Only a relative path needs the directory. Without a directory, a relative path finds nothing.
    let directory = env::current_dir().unwrap_or_default();
    which::which_in(program, Some(path), directory).is_ok()
}

/// Whether the exit code says, as a shell's does, that a command cannot be executed here.
pub(crate) fn is_not_executable(status: ExitStatus) -> bool {
    matches!(status.code(), Some(126 | 127))
}

/// Describes how the command ended.
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
