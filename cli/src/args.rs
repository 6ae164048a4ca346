//! What can be asked for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args as Arguments, Parser, Subcommand};
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
    #[command(flatten)]
    key: Key,
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
    /// Time from SIGTERM to our exit, at least 1 s; the command is sent SIGKILL a tenth of it (at
    /// most 1 s) before the end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = bounded)]
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
    #[command(flatten)]
    key: Key,
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
#[command(group = ArgGroup::new("keys").required(true).multiple(true).args(["positional", "named"]))]
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

/// Begins a key's run anew, by force
///
/// Whoever has the work loses it, and an outcome is forgotten.
#[derive(Parser)]
pub(crate) struct Clear {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    server: Server,
    /// Yes, take it from whoever has it
    #[arg(long, required = true)]
    yes: bool,
}

/// A key that every subcommand takes in the same two ways.
#[derive(Arguments)]
#[group(required = true, multiple = false)]
struct Key {
    /// The name of the unit of work, the same for the whole fleet
    #[arg(value_name = "KEY")]
    positional: Option<OsString>,
    /// The same for a name that begins with `-`
    // With `=` only: then no value can be taken for an option.
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
    /// Where the server is; a password is better kept in the environment
    // Its value is not for `--help`.
    #[arg(
        long,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = DEFAULT_URL
    )]
    url: String,
    /// How long a server that cannot be reached, or that is loading its data, is waited for
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

/// A worker to build, and how long its server is waited for.
pub(crate) struct Reach {
    pub(crate) builder: Builder,
    pub(crate) wait: Duration,
}

impl Args {
    /// Like `parse`, with advice that the grammar permits.
    pub(crate) fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| advise(error).exit())
    }
}

/// Where clap advises `-- -k` for an argument that looks like an option, advises `--key=-k`
/// instead: what follows `--` is the command.
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
    /// Crontabs and containers set empty variables.
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
