//! The keys that the commands around this process hold. A process that waits for one of these keys
//! waits for its own end.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;

/// Environment variable that lists, for a command and its descendants, the grants that the commands
/// around them hold: `TOKEN:KEY …`, with the key in hexadecimal.
///
/// The fencing token distinguishes the same key on another server, in another database, or in
/// another run.
pub(crate) const VARIABLE: &str = "LOCKING_WORKER_HELD";

/// Whether an ancestor of ours was granted this key, on any server.
pub(crate) fn took(key: &[u8]) -> bool {
    let key = hex(key);
    let held = held();
    held.split(' ')
        .filter_map(|held| held.split_once(':'))
        .any(|(_, held)| held == key)
}

/// Whether an ancestor of ours was given this grant of the key.
pub(crate) fn hold(key: &[u8], token: u64) -> bool {
    let grant = grant(key, token);
    held().split(' ').any(|held| held == grant)
}

/// Returns the value of [`VARIABLE`] for a command that works under this grant.
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
