//! The keys that the commands hold which this process runs in: to wait for one of them would be to
//! wait for our own end.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;

/// Tells a command, and what it runs in turn, what is held: `TOKEN:KEY …`, the key in hexadecimal.
///
/// The fencing token tells the same key on another server, in another database, or of another run.
pub(crate) const VARIABLE: &str = "LOCKING_WORKER_HELD";

/// Whether an ancestor of ours took this key, on whatever server.
pub(crate) fn took(key: &[u8]) -> bool {
    let key = hex(key);
    let held = held();
    held.split(' ')
        .filter_map(|held| held.split_once(':'))
        .any(|(_, held)| held == key)
}

/// Whether an ancestor of ours has this grant of the key.
pub(crate) fn hold(key: &[u8], token: u64) -> bool {
    let grant = grant(key, token);
    held().split(' ').any(|held| held == grant)
}

/// What a command is told that has this grant.
pub(crate) fn with(key: &[u8], token: u64) -> OsString {
    let held = [held(), grant(key, token)].join(" ");
    held.trim_start().into()
}

fn held() -> String {
    env::var(VARIABLE).unwrap_or_default()
}

fn grant(key: &[u8], token: u64) -> String {
    format!("{token}:{}", hex(key))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
