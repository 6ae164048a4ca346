//! The source texts of the scripts.
//!
//! There is one script for each transition. `batch.lua`, `record.lua` and `each.lua` are parts of
//! every script. `claim_absent.lua` and `settle_done.lua` stand in front of the rest of their
//! scripts, and have what a run without waiters needs. `fenced.lua` stands in front of a user's
//! script.
//!
//! Each item publishes its change last. All checks of an item come before its first write; whether
//! the user may run every command of the scripts is checked when a worker is built (`inspect.lua`).

use std::sync::Arc;

use bytes::Bytes;

pub(super) struct Script {
    pub(super) sha: Bytes,
    pub(super) source: Bytes,
}

pub(super) struct Scripts {
    pub(super) claim: Script,
    pub(super) settle: Script,
    pub(super) renew: Script,
    pub(super) withdraw: Script,
    pub(super) clear: Script,
    pub(super) inspect: Script,
    pub(super) rewrite: Script,
}

impl Script {
    fn new(source: String) -> Self {
        Self {
            sha: fred::util::sha1_hash(&source).into(),
            source: source.into(),
        }
    }

    /// Returns the user's script after the check that a grant stands. A shebang stays the first
    /// line.
    pub(super) fn fenced(source: &str) -> Self {
        let (shebang, body) = match source.split_once('\n') {
            Some((first, body)) if first.starts_with("#!") => (first, body),
            _ => ("", source),
        };
        let check = include_str!("fenced.lua");
        Self::new([shebang, "\n", check, body].concat())
    }
}

impl Scripts {
    /// Assembles every script from its flags, the shared parts and its own part. A script may first
    /// try a fast path for the most frequent case. A shebang makes the server check the flags
    /// before the first line runs.
    ///
    /// The scripts publish on the channels of one database. The `suffix` of its channels is part of
    /// their text.
    pub(super) fn new(suffix: &str, edit: impl Fn(String) -> String) -> Arc<Self> {
        let script = |flags: &str, transition: &str, first: Option<&str>| {
            let (batch, record) = (include_str!("batch.lua"), include_str!("record.lua"));
            let first = first.unwrap_or("local carry_out = transition()");
            let each = include_str!("each.lua");
            let script = format!(
                "#!lua{flags}\n{batch}\nlocal function transition()\n{record}\n{transition}end\n\n\
                 {first}\n{each}"
            );
            Script::new(edit(in_database(script, suffix)))
        };
        // A server out of memory refuses new work, but still ends and renews what it has.
        let ending = " flags=allow-oom";
        let claim = (include_str!("claim.lua"), include_str!("claim_absent.lua"));
        let settle = (include_str!("settle.lua"), include_str!("settle_done.lua"));
        Arc::new(Self {
            claim: script("", claim.0, Some(claim.1)),
            settle: script(ending, settle.0, Some(settle.1)),
            renew: script(ending, include_str!("renew.lua"), None),
            withdraw: script(ending, include_str!("withdraw.lua"), None),
            clear: script(ending, include_str!("clear.lua"), None),
            inspect: script(" flags=no-writes", include_str!("inspect.lua"), None),
            rewrite: script(ending, include_str!("rewrite.lua"), None),
        })
    }
}

/// Adds the database's suffix to all channel names. Database 0 uses the scripts unchanged.
fn in_database(script: String, suffix: &str) -> String {
    if suffix.is_empty() {
        return script;
    }
    let mut script = script;
    for channel in ["line", "KEYS[2 * n]"] {
        for publishes in ["'SPUBLISH'", "'SSUBSCRIBE'", "'SUNSUBSCRIBE'"] {
            script = script.replace(
                &format!("{publishes}, {channel}"),
                &format!("{publishes}, {channel} .. '{suffix}'"),
            );
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_of_a_database_has_its_suffix() {
        let [plain, other] = ["", ":7"].map(|suffix| Scripts::new(suffix, |source| source));
        let pairs = [
            (&plain.claim, &other.claim),
            (&plain.settle, &other.settle),
            (&plain.renew, &other.renew),
            (&plain.withdraw, &other.withdraw),
            (&plain.clear, &other.clear),
            (&plain.inspect, &other.inspect),
            (&plain.rewrite, &other.rewrite),
        ];
        for (plain, other) in pairs {
            let [plain, other] = [plain, other].map(|script| {
                let source = script.source.to_vec();
                String::from_utf8(source).unwrap()
            });
            let channels: usize = ["'SPUBLISH'", "'SSUBSCRIBE'", "'SUNSUBSCRIBE'"]
                .iter()
                .map(|command| plain.matches(command).count())
                .sum();
            assert!(channels > 0, "{plain}");
            assert_eq!(other.matches(" .. ':7'").count(), channels, "{other}");
            assert_eq!(other.replace(" .. ':7'", ""), plain);
        }
    }
}
