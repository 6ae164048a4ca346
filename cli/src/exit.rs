//! What the exit code says.

use std::process::ExitCode;

use nix::sys::signal::Signal;

/// How it ended. The codes of a command that was run are not passed on: they would collide with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command exited with 0, and the server has recorded it; and every other success.
    Done,
    /// Our attempt failed, and we stand aside.
    Failed,
    /// What was asked for cannot be: clap's code, for what only the library can tell too.
    Usage,
    /// Somebody else completed the work.
    DoneElsewhere,
    /// No attempt was left.
    GaveUp,
    /// The lease was lost, and we stand aside.
    Lost,
    /// The server could not be reached within `--wait-for-server`, or it refuses.
    Server,
    /// This machine had no process, memory or file descriptor left for the command: the attempt is
    /// left to others. The number is that of sysexits for this, `EX_OSERR`.
    NotStarted,
    /// There is no such command here, or it cannot be executed: the attempt, if there was one, is left to others.
    NotFound,
    /// A signal ended our part.
    Signal(Signal),
}

/// As `run --help` shows it.
pub(crate) const TABLE: &str = "\
Exit codes:
  0      done here: the command exited with 0, and the server has recorded it
  1      our attempt failed, and we stood aside (--no-rejoin)
  2      an argument is missing or out of its bounds, or the key is held by the command that runs us
  3      done elsewhere: another participant has completed the work
  4      given up: no attempt was left
  5      our lease was lost, or the end of the command was not recorded, and we stood aside (--no-rejoin)
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
