//! The server that a worker is told to use: its URL or address, or the caller's client.

use std::fmt;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ServerConfig};

use super::{RedisStore, Replicas};
use crate::error::ServerError;
use crate::store::Pace;

const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 6379;

#[derive(Clone)]
pub(crate) enum Server {
    Address { host: String, port: u16 },
    Url(String),
    Client(Client),
}

/// Why no connection was made. See [`BuildError`](crate::BuildError), whose variants these are.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Url { url: String, source: ServerError },
    Feature { url: String, features: &'static str },
    NoReconnectPolicy,
    Connect { server: String, source: ServerError },
}

impl Default for Server {
    fn default() -> Self {
        Server::Address {
            host: DEFAULT_HOST.to_owned(),
            port: DEFAULT_PORT,
        }
    }
}

impl Server {
    /// Returns the host and port set so far. The setter of the one keeps the other.
    pub(crate) fn address(&self) -> (String, u16) {
        match self {
            Server::Address { host, port } => (host.clone(), *port),
            _ => (DEFAULT_HOST.to_owned(), DEFAULT_PORT),
        }
    }

    pub(crate) async fn connect(
        self,
        replicas: Option<Replicas>,
        pace: Pace,
    ) -> Result<RedisStore, ConnectError> {
        match self {
            Server::Address { host, port } => with_address(host, port, replicas, pace).await,
            Server::Url(url) => with_url(&url, replicas, pace).await,
            Server::Client(client) => with_client(client, replicas, pace).await,
        }
    }
}

async fn with_url(
    url: &str,
    replicas: Option<Replicas>,
    pace: Pace,
) -> Result<RedisStore, ConnectError> {
    let server = redact(url);
    let config = parse(url, &server)?;
    let connected = RedisStore::connect(config, replicas, pace).await;
    connected.map_err(|source| ConnectError::Connect {
        server,
        source: source.into(),
    })
}

async fn with_address(
    host: String,
    port: u16,
    replicas: Option<Replicas>,
    pace: Pace,
) -> Result<RedisStore, ConnectError> {
    let server = ServerConfig::new_centralized(host.clone(), port);
    let config = Config {
        server,
        ..Config::default()
    };
    let connected = RedisStore::connect(config, replicas, pace).await;
    connected.map_err(|source| ConnectError::Connect {
        server: format!("{host}:{port}"),
        source: source.into(),
    })
}

async fn with_client(
    client: Client,
    replicas: Option<Replicas>,
    pace: Pace,
) -> Result<RedisStore, ConnectError> {
    if client.client_reconnect_policy().is_none() {
        return Err(ConnectError::NoReconnectPolicy);
    }
    let hosts = client.client_config().server.hosts();
    let server = hosts
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let connected = RedisStore::with_client(client, replicas, pace).await;
    connected.map_err(|source| ConnectError::Connect {
        server,
        source: source.into(),
    })
}

const TLS: bool = cfg!(any(
    feature = "enable-rustls",
    feature = "enable-rustls-ring",
    feature = "enable-native-tls"
));

/// Rejects URLs that fred would misread. fred accepts any scheme. Without a TLS feature it connects
/// to `rediss://` in plain text.
fn parse(url: &str, shown: &str) -> Result<Config, ConnectError> {
    let invalid = |source: FredError| ConnectError::Url {
        url: shown.to_owned(),
        source: source.into(),
    };
    let missing = |features| ConnectError::Feature {
        url: shown.to_owned(),
        features,
    };
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let end = scheme.find(['-', '+']).unwrap_or(scheme.len());
    let (base, suffix) = scheme.split_at(end);
    let tls = matches!(base, "rediss" | "valkeys");
    if !(tls || matches!(base, "redis" | "valkey"))
        || !matches!(suffix, "" | "-cluster" | "-sentinel" | "+unix")
    {
        let known = "the scheme must be redis, rediss, valkey or valkeys, \
                     alone or with -cluster, -sentinel or +unix";
        return Err(invalid(FredError::new(ErrorKind::Url, known)));
    }
    if tls && !TLS {
        return Err(missing(
            "enable-rustls, enable-rustls-ring, enable-native-tls",
        ));
    }
    if suffix == "+unix" && !cfg!(feature = "unix-sockets") {
        return Err(missing("unix-sockets"));
    }
    let config = Config::from_url(url);
    // A URL parser ends the address at the first of these characters, so it would connect to the
    // text before it.
    let secret = rest.rsplit_once('@').map(|(secret, _)| secret);
    let ends = secret.and_then(|secret| {
        let end = secret.find(['/', '?', '#'])?;
        let (at, after) = secret.split_at(end);
        let is_query = after.starts_with('?') && after.contains('=');
        let is_host = !at.contains('@') && after.starts_with('/');
        (config.is_err() || !(is_query || is_host)).then_some(&after[..1])
    });
    match ends {
        Some(ends) => {
            let percent = format!("%{:02X}", ends.as_bytes()[0]);
            let text = format!("a {ends:?} in a user name or password is written {percent}");
            Err(invalid(FredError::new(ErrorKind::Url, text)))
        }
        None => config.map_err(invalid),
    }
}

/// Returns the URL without the parts that may be secret: the text between `://` and the last `@`,
/// and the query.
///
/// It does not parse, because its most important input is text that is not a valid URL: one
/// parser's query can be the end of a password for another parser.
fn redact(url: &str) -> String {
    let is_scheme = |text: &str| {
        let fits = |char: char| char.is_ascii_alphanumeric() || "+-.".contains(char);
        text.chars().all(fits)
    };
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => ([scheme, "://"].concat(), rest),
        _ => (String::new(), url),
    };
    let (secret, shown) = match rest.rsplit_once('@') {
        // The text after the last `@` may be a host, or the end of a secret query.
        Some((secret, _)) if secret.contains(['?', '#']) => return scheme + "…",
        Some((_, shown)) => ("…@", shown),
        None => ("", rest),
    };
    let end = shown.find(['?', '#']).unwrap_or(shown.len());
    let query = match &shown[end..] {
        "" => "",
        _ => "?…",
    };
    [&scheme, secret, &shown[..end], query].concat()
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Address { host, port } => write!(f, "{host}:{port}"),
            Server::Url(url) => f.write_str(&redact(url)),
            Server::Client(client) => write!(f, "client {}", client.id()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_has_no_secrets() {
        for (url, shown) in [
            ("redis://h:1/3", "redis://h:1/3"),
            ("redis://:pw@h:1/3", "redis://…@h:1/3"),
            ("redis://u:p@w@h", "redis://…@h"),
            (
                "redis-sentinel://h?sentinelPassword=pw",
                "redis-sentinel://h?…",
            ),
            ("u:pw@h", "…@h"),
            ("redis://svc:S3cret?rest@db:6379", "redis://…"),
            ("redis://:p@ss#w/or?d@db", "redis://…"),
            ("redis://:pw/x@db:1/2", "redis://…@db:1/2"),
            (
                "redis-sentinel://h?sentinelPassword=p@w",
                "redis-sentinel://…",
            ),
            ("redis://h#pw", "redis://h?…"),
            ("S3cret?rest@db", "…"),
            ("u:pw://x@db", "…@db"),
        ] {
            assert_eq!(redact(url), shown);
            let server = Server::Url(url.to_owned());
            assert_eq!(format!("{server:?}"), shown);
        }
    }

    #[test]
    fn a_password_that_ends_the_address_is_told_apart_from_a_query() {
        for (url, ends) in [
            ("redis://svc:S3cret?rest@db:6379", "%3F"),
            ("redis://:p@ss#w/or?d@db", "%23"),
            ("redis://:p@ss/w@db", "%2F"),
            ("redis://svc:12/34@db", "%2F"),
            ("redis://svc:12?34@db", "%3F"),
        ] {
            match parse(url, &redact(url)) {
                Err(ConnectError::Url { url, source }) => {
                    assert!(source.to_string().ends_with(ends), "{source:?}");
                    let said = format!("{url}{source:?}");
                    assert!(
                        !["S3", "rest", "ss", "34"]
                            .iter()
                            .any(|part| { said.replace("password", "").contains(part) }),
                        "{said}"
                    );
                }
                other => panic!("{url}: {other:?}"),
            }
        }
        for url in [
            "redis://u:a%3Fb@db:1/3",
            "redis-sentinel://h?sentinelServiceName=m&sentinelPassword=p@w",
            "redis://h",
        ] {
            assert!(parse(url, "").is_ok(), "{url}");
        }
    }
}
