//! Warnings about a server, found in its answer to `INFO`.

use std::fmt;

/// A property of the server that may cost the worker its locks or its service.
///
/// [`Builder::build`](crate::Builder::build) looks for them, and
/// [`LockingWorker::warnings`](crate::LockingWorker::warnings) returns them. `Display` formats one
/// as a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The server may evict locks when its memory is full.
    ///
    /// Locks are keys with a time to live, and eviction policies do not spare them. If a record is
    /// evicted, the run starts over while its holder still works. The policy `noeviction` prevents
    /// this.
    Eviction {
        /// The server's address.
        server: String,
        /// The server's `maxmemory-policy`.
        policy: String,
    },
    /// The server is a replica. It refuses the worker's commands until it is promoted.
    Replica {
        /// The server's address.
        server: String,
    },
    /// The server reports a version before Redis 7.0 but accepts the scripts.
    ///
    /// The protocol has not been tested on such versions.
    OldServer {
        /// The server's address.
        server: String,
        /// The Redis version that the server reports.
        version: String,
    },
}

impl Warning {
    /// Returns the warnings that follow from an answer to `INFO`. A missing field gives no warning.
    pub(super) fn all(server: &str, info: &str) -> Vec<Self> {
        let server = || server.to_owned();
        let field = |name| {
            let mut fields = info.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(field, value)| (field == name).then(|| value.to_owned()))
        };
        let is_old = |version: &String| {
            let major = version.split('.').next().map(str::parse);
            matches!(major, Some(Ok(0..=6)))
        };
        let policy = field("maxmemory_policy").filter(|policy| policy != "noeviction");
        let replica = field("role").filter(|role| role == "slave" || role == "replica");
        let version = field("redis_version").filter(is_old);
        [
            policy.map(|policy| Self::Eviction {
                server: server(),
                policy,
            }),
            replica.map(|_| Self::Replica { server: server() }),
            version.map(|version| Self::OldServer {
                server: server(),
                version,
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eviction { server, policy } => write!(
                f,
                "{server} may evict locks when its memory is full: its maxmemory-policy is \
                 {policy}, not noeviction"
            ),
            Self::Replica { server } => write!(f, "{server} is a replica, which takes no locks"),
            Self::OldServer { server, version } => {
                write!(
                    f,
                    "{server} is Redis {version}; 7.0 is the oldest that is supported"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_warning_has_its_line() {
        let all = |lines: &[&str]| Warning::all("h:1", &lines.join("\r\n"));
        let healthy = [
            "# Server",
            "redis_version:7.0.15",
            "role:master",
            "maxmemory_policy:noeviction",
            "",
        ];
        assert_eq!(all(&healthy), []);
        assert_eq!(all(&[]), [], "what is not told is not guessed");
        let server = || "h:1".to_owned();
        for policy in ["allkeys-lru", "volatile-ttl"] {
            let line = format!("maxmemory_policy:{policy}");
            let policy = policy.to_owned();
            assert_eq!(
                all(&[&line]),
                [Warning::Eviction {
                    server: server(),
                    policy
                }]
            );
        }
        assert_eq!(
            all(&["role:slave"]),
            [Warning::Replica { server: server() }]
        );
        for (version, is_old) in [
            ("6.2.14", true),
            ("2.8", true),
            ("7.0.0", false),
            ("10.0", false),
            ("255", false),
        ] {
            let found = all(&[&format!("redis_version:{version}")]);
            assert_eq!(!found.is_empty(), is_old, "{version}: {found:?}");
        }
    }
}
