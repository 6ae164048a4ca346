//! What can be asked for.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use redis_locking_worker::{Builder, LockingWorker};

use crate::exit;

/// One piece of work, a fleet of processes: each wants to do it, one does
#[derive(Parser)]
#[command(name = "locking-worker", version, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Status(Status),
    Watch(Watch),
    Clear(Clear),
    /// Prints what a shell completes by
    Completions {
        shell: Shell,
    },
    /// Prints the manual page, of a subcommand if one is named
    Man {
        command: Option<String>,
    },
}

/// Takes part in a key's run, with a command as the work
///
/// When it is our turn, the command is run. If it exits with 0, the work is done for the whole fleet; otherwise the attempt
/// has failed, and the next in line takes over: another process, or this one again.
#[derive(Parser)]
#[command(after_long_help = exit::TABLE)]
pub(crate) struct Run {
    /// The name of the work, which the fleet has in common
    pub(crate) key: OsString,
    /// What does the work; it is not given to a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    server: Server,
    /// After a failed attempt of our own, stand aside and leave the others to it
    #[arg(long)]
    no_rejoin: bool,
    /// How long after our death another takes over; renewed while the command runs
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) lease: Duration,
    /// How many attempts are made before the run is given up; the first to come decides
    #[arg(long, value_name = "N", default_value_t = 5)]
    attempts: u32,
    /// How long the outcome is remembered; who comes within it does nothing [default: twice the lease]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// How long the command may run, at least the lease [default: without bound]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) max_hold: Option<Duration>,
    /// How long the command may take to end after SIGTERM, before SIGKILL
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = grace)]
    pub(crate) grace: Duration,
    /// What we are called [default: HOST:PID]
    #[arg(long)]
    label: Option<String>,
    /// Say nothing but what went wrong
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Shows a key's run as it is
#[derive(Parser)]
pub(crate) struct Status {
    pub(crate) key: OsString,
    #[command(flatten)]
    server: Server,
    /// As one line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Shows what becomes of keys, until it is interrupted
///
/// In a terminal, a table that is kept up to date; otherwise a line for each transition.
#[derive(Parser)]
pub(crate) struct Watch {
    #[arg(required = true, value_name = "KEY")]
    pub(crate) keys: Vec<OsString>,
    #[command(flatten)]
    server: Server,
}

/// Begins a key's run anew, by force
///
/// Whoever has the work loses it, and an outcome is forgotten.
#[derive(Parser)]
pub(crate) struct Clear {
    pub(crate) key: OsString,
    #[command(flatten)]
    server: Server,
    /// Yes, take it from whoever has it
    #[arg(long, required = true)]
    yes: bool,
}

const DEFAULT_URL: &str = "redis://localhost:6379";

#[derive(Parser)]
struct Server {
    /// Where the server is; a password is better kept in the environment
    // Its value is not for `--help`.
    #[arg(
        long,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = DEFAULT_URL
    )]
    url: String,
}

fn grace(text: &str) -> Result<Duration, String> {
    let grace = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match grace <= Builder::MAX_DURATION {
        true => Ok(grace),
        false => Err(format!("longer than {:?}", Builder::MAX_DURATION)),
    }
}

impl Run {
    pub(crate) fn builder(&self) -> Builder {
        let builder = self
            .server
            .builder(&self.key)
            .rejoin(!self.no_rejoin)
            .lock_timeout(self.lease)
            .max_attempts(self.attempts)
            .renew()
            .max_hold(self.max_hold.unwrap_or(Builder::MAX_DURATION));
        let builder = match self.retention {
            Some(retention) => builder.retention(retention),
            None => builder,
        };
        match &self.label {
            Some(label) => builder.label(label),
            None => builder,
        }
    }
}

impl Status {
    pub(crate) fn builder(&self) -> Builder {
        self.server.builder(&self.key)
    }
}

impl Watch {
    pub(crate) fn builder(&self) -> Builder {
        self.server.builder(&self.keys[0])
    }
}

impl Clear {
    pub(crate) fn builder(&self) -> Builder {
        self.server.builder(&self.key)
    }
}

impl Server {
    /// Crontabs and containers set empty variables.
    fn url(&self) -> &str {
        match self.url.is_empty() {
            true => DEFAULT_URL,
            false => &self.url,
        }
    }

    fn builder(&self, key: &OsString) -> Builder {
        LockingWorker::builder(key.as_bytes()).url(self.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_url_is_none() {
        let url = |url: &str| {
            Server {
                url: url.to_owned(),
            }
            .url()
            .to_owned()
        };
        assert_eq!(url(""), DEFAULT_URL);
        assert_eq!(url("redis://10.0.0.1"), "redis://10.0.0.1");
    }
}
