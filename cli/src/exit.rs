//! The exit codes.

use std::process::ExitCode;

use nix::sys::signal::Signal;

/// How this process ends. It does not pass on the command's exit code, which could collide with one
/// of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command exited with 0, and the server has recorded it. Also any other success.
    Done,
    /// Our attempt failed, and we leave the run to others. Also a failure to write the output.
    Failed,
    /// An argument is wrong. Clap's code, also used for what only the library can check.
    Usage,
    /// Another participant completed the work.
    DoneElsewhere,
    /// The run gave up: no attempt was left.
    GaveUp,
    /// Our lease was lost, or the end of our attempt was not recorded, and we leave the run to
    /// others.
    Lost,
    /// The server could not be reached within `--wait-for-server`, or it refuses.
    Server,
    /// This machine had no process, memory or file descriptor left for the command: others make the
    /// attempt. The code is `EX_OSERR` of `sysexits.h`.
    NotStarted,
    /// The command cannot be found or executed here: others make the attempt, if there was one.
    NotFound,
    /// A signal ended our part in the run.
    Signal(Signal),
}

/// The exit codes, as `run --help` shows them.
pub(crate) const TABLE: &str = "\
Exit codes:
  0      done here: the command exited with 0, and the server has recorded it
  1      our attempt failed, and we stood aside (--no-rejoin)
  2      an argument is missing or out of its bounds, or the key is held by the command that runs us
  3      done elsewhere: another participant has completed the work
  4      given up: no attempt was left
  5      our lease was lost, or the end of the command was not recorded, and we stood aside \
         (--no-rejoin)
  6      the server could not be reached within --wait-for-server, or it refuses
  71     no process, memory or file was left to start the command; no attempt was counted
  127    the command cannot be found or executed here; no attempt was counted
  128+n  the signal n ended our part: 143 after SIGTERM, 130 after SIGINT";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::DoneElsewhere => 3,
            Exit::GaveUp => 4,
            Exit::Lost => 5,
            Exit::Server => 6,
            Exit::NotStarted => 71,
            Exit::NotFound => 127,
            Exit::Signal(signal) => 128 + signal as u8,
        })
    }
}
