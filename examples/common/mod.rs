//! What all examples need: a place, a fleet of workers, and an end.
#![allow(dead_code, reason = "each example uses its own part")]

mod fleet;
mod place;

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

pub use fleet::{Fleet, Role};

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

#[derive(Parser)]
struct Called<A: clap::Args> {
    #[command(flatten)]
    args: A,
    #[command(flatten)]
    call: fleet::Call,
}

/// The `main` of each example: a process that a fleet has started works, one that a user has started owns
/// the fleet. An error is told with its causes, which say what to do.
pub async fn run<A: clap::Args>(
    work: impl AsyncFnOnce(Role, A) -> Result<()>,
    fleet: impl AsyncFnOnce(A) -> Result<()>,
) -> ExitCode {
    let Called { args, call } = Called::parse();
    let ended = match call.role() {
        Some(role) => work(role, args).await,
        None => fleet(args).await,
    };
    let Err(error) = ended else {
        return ExitCode::SUCCESS;
    };
    eprintln!("Error: {}", with_causes(&*error));
    ExitCode::FAILURE
}

fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What an example claims of what it has seen: an error if it does not hold.
pub fn check(holds: bool, claim: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(format!("this does not hold: {claim}").into()),
    }
}

/// The wall clock in µs, which all processes of a machine share.
pub fn now() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_micros() as u64
}

/// An argument that says how often something happens.
pub fn period(text: &str) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(1), Duration::from_secs(24 * 3_600));
    match humantime::parse_duration(text) {
        Ok(period) if (min..=max).contains(&period) => Ok(period),
        Ok(_) => Err("a period is from 1ms to 1day".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// SIGTERM or Ctrl-C, from now on.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    })
}
