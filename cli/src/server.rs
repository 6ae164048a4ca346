//! The connection to the server: waits for a server that starts, and gives advice on a failure.

use std::time::Duration;

use fred::error::{Error as FredError, ErrorKind};
use redis_locking_worker::{BuildError, Error, LockingWorker, ServerError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::args::Reach;
use crate::exit::Exit;
use crate::text;

/// Pause between the first try and the second. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause between two tries. We notice a server that is back within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connects, and tries again for as long as `reach.wait` while the failure is transient.
///
/// Prints why it waits, when the reason changes, and why it stops. Then returns the exit code.
pub(crate) async fn reach(reach: Reach) -> Result<LockingWorker, Exit> {
    let Reach { builder, wait } = reach;
    let until = Instant::now() + wait;
    let mut pause = FIRST_PAUSE;
    let mut failure = match builder.clone().build().await {
        Ok(worker) => return Ok(worker),
        Err(error) => error,
    };
    let mut printed = String::new();
    while is_transient(&failure) && Instant::now() + pause < until {
        let reason = text::chain(&failure);
        if reason != printed {
            let wait = humantime::format_duration(wait);
            say!("{reason}; trying again for up to {wait} (--wait-for-server)");
            printed = reason;
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
        // Without an answer to any packet, a try may take 10 s.
        failure = match timeout_at(until, builder.clone().build()).await {
            Ok(Ok(worker)) => return Ok(worker),
            Ok(Err(error)) => error,
            Err(_) => break,
        };
    }
    say!("{}", text::chain(&failure));
    if let Some(advice) = answer(&failure).and_then(advice) {
        say!("{advice}");
    }
    Err(match failure {
        BuildError::Key(_)
        | BuildError::Duration { .. }
        | BuildError::NoAttempts
        | BuildError::Label { .. }
        | BuildError::Url { .. }
        | BuildError::Feature { .. } => Exit::Usage,
        _ => Exit::Server,
    })
}

/// Prints why the server did not serve a request, and returns the exit code for it.
pub(crate) fn refused(error: &Error) -> Exit {
    say!("{}", text::chain(error));
    if let Some(advice) = advice_for(error) {
        say!("{advice}");
    }
    Exit::Server
}

/// Returns advice about the error of a request, if there is any.
pub(crate) fn advice_for(error: &Error) -> Option<&'static str> {
    source(error).and_then(advice)
}

fn source(error: &Error) -> Option<&FredError> {
    match error {
        Error::Unavailable { source, .. } | Error::Refused { source, .. } => client_error(source),
        _ => None,
    }
}

/// Returns the error of the client library.
fn client_error(error: &ServerError) -> Option<&FredError> {
    error.get_ref().downcast_ref()
}

fn answer(error: &BuildError) -> Option<&FredError> {
    match error {
        BuildError::Connect { source, .. } => client_error(source),
        BuildError::Server(error) => source(error),
        _ => None,
    }
}

/// Whether the same try may succeed later with the same arguments.
fn is_transient(error: &BuildError) -> bool {
    match error {
        BuildError::Server(error) => error.is_retryable(),
        BuildError::Connect { .. } => answer(error).is_some_and(may_pass),
        _ => false,
    }
}

fn may_pass(error: &FredError) -> bool {
    match Failure::of(error) {
        Failure::Refused | Failure::Name | Failure::Silent | Failure::Loading => true,
        Failure::MaxClients => true,
        Failure::Other => matches!(
            error.kind(),
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Cluster | ErrorKind::Sentinel
        ),
        _ => false,
    }
}

/// The cause of a failure to connect or of a refusal, told from the error's text or its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Refused,
    Name,
    Silent,
    Loading,
    MaxClients,
    NoPassword,
    WrongPassword,
    NoPermission,
    Database,
    NoHello,
    #[cfg_attr(
        not(any(
            feature = "enable-rustls",
            feature = "enable-rustls-ring",
            feature = "enable-native-tls"
        )),
        expect(dead_code, reason = "no connection of this build speaks TLS")
    )]
    Tls,
    Other,
}

impl Failure {
    fn of(error: &FredError) -> Self {
        let details = error.details();
        let has = |text: &str| details.contains(text);
        match details.split(' ').next().unwrap_or_default() {
            "NOAUTH" => return Self::NoPassword,
            "WRONGPASS" => return Self::WrongPassword,
            "NOPERM" => return Self::NoPermission,
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => return Self::Loading,
            _ => {}
        }
        match error.kind() {
            _ if has("max number of clients") => Self::MaxClients,
            _ if has("DB index is out of range") || has("SELECT is not allowed") => Self::Database,
            _ if has("unknown command 'HELLO'") || has("unknown command `HELLO`") => Self::NoHello,
            ErrorKind::IO if has("ConnectionRefused") => Self::Refused,
            ErrorKind::IO if has("failed to lookup address") => Self::Name,
            ErrorKind::Timeout => Self::Silent,
            #[cfg(any(
                feature = "enable-rustls",
                feature = "enable-rustls-ring",
                feature = "enable-native-tls"
            ))]
            ErrorKind::Tls => Self::Tls,
            _ => Self::Other,
        }
    }
}

/// Returns advice about an error, or `None` where the error itself says all that is known.
fn advice(error: &FredError) -> Option<&'static str> {
    Some(match Failure::of(error) {
        Failure::Refused => "Is a server running there? --url or REDIS_URL names another.",
        Failure::Name => {
            "Is the host's name right, and is there a name server? --url or REDIS_URL has it."
        }
        Failure::Silent => {
            "The server does not answer. Is it stopped or overloaded, or does a firewall drop \
             the packets?"
        }
        Failure::Loading => {
            "The server is starting. --wait-for-server sets how long it is waited for."
        }
        Failure::MaxClients => {
            "All connections of the server are in use. Raise its maxclients, or end other clients."
        }
        Failure::NoPassword => {
            "The server asks for a password. Name it in REDIS_URL: redis://USER:PASSWORD@HOST:PORT."
        }
        Failure::WrongPassword => {
            "The server knows no such user and password. REDIS_URL has them percent-encoded: \
             redis://USER:PASSWORD@HOST:PORT."
        }
        Failure::NoPermission => {
            "The user lacks a permission. The README lists the least that a worker needs, for \
             ACL SETUSER."
        }
        Failure::Database => {
            "The number after the last / of the URL is the database. The server's `databases` \
             bounds it, and a cluster has only 0."
        }
        Failure::NoHello => {
            "The server does not offer HELLO: it is too old (Redis 7.0 is the oldest that can be \
             used), or the command was renamed."
        }
        Failure::Tls => {
            "Does the server speak TLS there, with a certificate that this machine trusts? \
             redis:// connects without it."
        }
        Failure::Other => return None,
    })
}
