//! What a server says of itself that bodes ill for locks.

use std::fmt;

/// Something about the server that [`Builder::build`](crate::Builder::build) has found, and that may cost the worker
/// its locks or its service.
///
/// [`LockingWorker::warnings`](crate::LockingWorker::warnings) has them. Its `Display` is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// When its memory is full, the server may evict locks, which have a time to live and are no exception. A run
    /// whose record is evicted begins anew, while its holder works on. `noeviction` is the policy that keeps them.
    Eviction {
        /// The server's address.
        server: String,
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// The server is a replica: it refuses what a worker asks, until it is promoted.
    Replica {
        /// The server's address.
        server: String,
    },
    /// The server says that it is older than Redis 7.0, and took our scripts all the same. The protocol has not been
    /// tested there.
    OldServer {
        /// The server's address.
        server: String,
        /// The Redis version that it says it is.
        version: String,
    },
}

impl Warning {
    /// What is to be warned of in an answer to `INFO`.
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
                "{server} may evict locks when its memory is full: its maxmemory-policy is {policy}, not noeviction"
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
