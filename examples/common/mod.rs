//! What all examples need: a place, a fleet of workers, and an end.
#![allow(dead_code, reason = "each example uses its own part")]

mod fleet;
mod place;

use std::error::Error;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub use fleet::{Call, Fleet, Role};

pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What `main` ends with: the error with its causes, which say what to do.
pub fn exit(result: Result<()>) -> ExitCode {
    let Err(error) = result else {
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
