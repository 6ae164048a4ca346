//! The arguments of the program.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args as Arguments, Parser, Subcommand};
use clap_complete::Shell;
use redis_locking_worker::{Builder, LockingWorker};

use crate::exit;

/// Runs a command in one process of a fleet; the others wait, and take over if it fails
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
    /// Prints the completion script for a shell
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
/// When the server grants the key to this process, the process runs the command. If the command
/// exits with 0, the work is done for the whole fleet. Otherwise the attempt has failed, and the
/// next process in the queue takes over, which may be this one again.
#[derive(Parser)]
#[command(after_long_help = exit::TABLE)]
pub(crate) struct Run {
    #[command(flatten)]
    key: Key,
    /// Command that does the work; no shell interprets it
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    server: Server,
    /// After a failed attempt of this process, exit and leave the run to the others
    #[arg(long)]
    no_rejoin: bool,
    /// Time until another process takes over if this one dies; renewed while the command runs
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub(crate) lease: Duration,
    /// Number of attempts before the run gives up; the process that starts the run decides
    #[arg(long, value_name = "N", default_value_t = 5)]
    attempts: u32,
    /// How long the outcome is remembered; a process that starts within this time does not run the
    /// command [default: twice the lease]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// How long the command may run, at least the lease [default: without bound]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) max_hold: Option<Duration>,
    /// Time from SIGTERM to our exit, at least 1 s; the command is sent SIGKILL a tenth of it (at
    /// most 1 s) before the end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = bounded)]
    pub(crate) grace: Duration,
    /// Name by which other processes know this one [default: HOST:PID]
    #[arg(long)]
    label: Option<String>,
    /// Print failures only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Shows the current state of a key's run
#[derive(Parser)]
pub(crate) struct Status {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    server: Server,
    /// Print one line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Shows the transitions of keys until it is interrupted
///
/// In a terminal, a table that is kept up to date; otherwise a line for each transition.
#[derive(Parser)]
#[command(
    group = ArgGroup::new("keys").required(true).multiple(true).args(["positional", "named"])
)]
pub(crate) struct Watch {
    /// The names of the units of work
    #[arg(value_name = "KEY")]
    positional: Vec<OsString>,
    /// The same for a name that begins with `-`; can be repeated
    #[arg(long = "key", value_name = "KEY", require_equals = true)]
    named: Vec<OsString>,
    #[command(flatten)]
    server: Server,
}

/// Starts a key's run over, by force
///
/// A holder loses its lease, and the server forgets an outcome.
#[derive(Parser)]
pub(crate) struct Clear {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    server: Server,
    /// Confirms that a holder loses its lease
    #[arg(long, required = true)]
    yes: bool,
}

/// The two ways to name a key, for the subcommands that take one key.
#[derive(Arguments)]
#[group(required = true, multiple = false)]
struct Key {
    /// The name of the unit of work, the same for the whole fleet
    #[arg(value_name = "KEY")]
    positional: Option<OsString>,
    /// The same for a name that begins with `-`
    // `=` is required, so that a value that begins with `-` is not taken for an option.
    #[arg(long = "key", value_name = "KEY", require_equals = true)]
    named: Option<OsString>,
}

impl Key {
    fn name(&self) -> &OsStr {
        let given = self.positional.as_deref().or(self.named.as_deref());
        given.unwrap_or_default()
    }
}

const DEFAULT_URL: &str = "redis://localhost:6379";

#[derive(Parser)]
struct Server {
    /// URL of the server; keep a password in the environment
    // `--help` hides the value of the variable, which may contain a password.
    #[arg(
        long,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = DEFAULT_URL
    )]
    url: String,
    /// How long to wait for a server that cannot be reached, or that is loading its data
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = bounded)]
    wait_for_server: Duration,
}

fn bounded(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time <= Builder::MAX_DURATION {
        true => Ok(time),
        false => Err(format!("longer than {:?}", Builder::MAX_DURATION)),
    }
}

/// A worker to build, and the time to wait for its server.
pub(crate) struct Reach {
    pub(crate) builder: Builder,
    pub(crate) wait: Duration,
}

impl Args {
    /// Parses the arguments. Exits on an error, with advice that the grammar permits.
    pub(crate) fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| advise(error).exit())
    }
}

/// Replaces clap's advice for an argument that looks like an option.
///
/// Clap advises `-- -k`, but the arguments after `--` are the command. `--key=-k` names a key.
fn advise(mut error: clap::Error) -> clap::Error {
    let subcommand = std::env::args_os().nth(1).unwrap_or_default();
    let takes_key = ["run", "status", "watch", "clear"].map(OsStr::new);
    if error.kind() == ErrorKind::UnknownArgument && takes_key.contains(&subcommand.as_os_str()) {
        let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
            return error;
        };
        let advice = format!("to name the key '{argument}', use '--key={argument}'");
        if error.get(ContextKind::Suggested).is_some() {
            let advice = ContextValue::StyledStrs(vec![advice.into()]);
            error.insert(ContextKind::Suggested, advice);
        }
    }
    error
}

impl Run {
    pub(crate) fn reach(&self) -> Reach {
        self.server.reach(self.builder())
    }

    fn builder(&self) -> Builder {
        let builder = self
            .server
            .builder(self.key.name())
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
    pub(crate) fn reach(&self) -> Reach {
        self.server.reach(self.server.builder(self.key.name()))
    }
}

impl Watch {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &OsStr> {
        let keys = self.positional.iter().chain(&self.named);
        keys.map(OsString::as_os_str)
    }

    pub(crate) fn reach(&self) -> Reach {
        let first = self.keys().next().unwrap_or_default();
        self.server.reach(self.server.builder(first))
    }
}

impl Clear {
    pub(crate) fn reach(&self) -> Reach {
        self.server.reach(self.server.builder(self.key.name()))
    }
}

impl Server {
    /// Returns the URL, or the default if it is empty: crontabs and containers set empty variables.
    fn url(&self) -> &str {
        match self.url.is_empty() {
            true => DEFAULT_URL,
            false => &self.url,
        }
    }

    fn builder(&self, key: &OsStr) -> Builder {
        LockingWorker::builder(key.as_bytes()).url(self.url())
    }

    fn reach(&self, builder: Builder) -> Reach {
        Reach {
            builder,
            wait: self.wait_for_server,
        }
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
                wait_for_server: Duration::ZERO,
            }
            .url()
            .to_owned()
        };
        assert_eq!(url(""), DEFAULT_URL);
        assert_eq!(url("redis://10.0.0.1"), "redis://10.0.0.1");
    }
}
