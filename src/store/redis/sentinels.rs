//! The sentinels, who tell when another server has become the master.
//!
//! `fred` asks them only after it has lost its connection, and an old master that is alive keeps its
//! connections until the sentinels have made a replica of it: for 11 s it was written to, and all of that was
//! thrown away (`tests/chaos/failover.rs` measures it). So each sentinel is listened to, as the guide for clients
//! recommends: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.

use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::CustomCommand;
use fred::types::config::{Config, Server, ServerConfig};
use futures::future::join_all;
use futures::stream::{BoxStream, select, select_all};
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::BroadcastStream;

use super::connection::{client, quit};

const SWITCHES: &str = "+switch-master";

/// One connection to each sentinel that the configuration names.
#[derive(Clone)]
pub(super) struct Sentinels {
    clients: Vec<Client>,
    service: String,
}

/// Where the master is.
pub(super) struct Master {
    host: String,
    port: u16,
    /// Whether it has just become that, or may have been for long.
    is_new: bool,
}

impl Sentinels {
    /// `None` where there are none.
    pub(super) fn of(config: &Config) -> Result<Option<Self>, FredError> {
        let ServerConfig::Sentinel {
            hosts,
            service_name,
            ..
        } = &config.server
        else {
            return Ok(None);
        };
        let clients: Result<Vec<_>, _> = hosts
            .iter()
            .map(|host| client(config_of(config, host), Duration::ZERO))
            .collect();
        Ok(Some(Self {
            clients: clients?,
            service: service_name.clone(),
        }))
    }

    /// Begins to listen. Sentinels out of reach are tried again and again.
    pub(super) fn masters(&self) -> impl Stream<Item = Master> + Send + Unpin + use<> {
        select_all(
            self.clients
                .iter()
                .map(|client| masters(client.clone(), self.service.clone())),
        )
    }

    pub(super) async fn close(&self) {
        join_all(self.clients.iter().map(quit)).await;
    }
}

fn config_of(config: &Config, host: &Server) -> Config {
    #[cfg_attr(not(feature = "sentinel-auth"), expect(unused_mut))]
    let mut own = Config {
        server: ServerConfig::Centralized {
            server: host.clone(),
        },
        database: None,
        // The first connection is made like all others.
        fail_fast: false,
        ..config.clone()
    };
    // Without the feature, fred takes the server's credentials for the sentinels too.
    #[cfg(feature = "sentinel-auth")]
    if let ServerConfig::Sentinel {
        username, password, ..
    } = &config.server
    {
        own.username.clone_from(username);
        own.password.clone_from(password);
    }
    own
}

fn masters(client: Client, service: String) -> BoxStream<'static, Master> {
    let messages = BroadcastStream::new(client.message_rx());
    let connects = BroadcastStream::new(client.reconnect_rx());
    drop(client.connect());
    let switched = {
        let service = service.clone();
        messages.filter_map(move |message| {
            let text = message.ok().and_then(|message| message.value.into_string());
            let master = text.and_then(|text| switched(&text, &service));
            async move { master }
        })
    };
    // What happened before it listened is asked for.
    let asked = connects.filter_map(move |_| {
        let (client, service) = (client.clone(), service.clone());
        async move {
            client.subscribe(SWITCHES).await.ok()?;
            let command = CustomCommand::new_static("SENTINEL", None, false);
            let args = vec!["GET-MASTER-ADDR-BY-NAME".to_owned(), service];
            let (host, port): (String, u16) = client.custom(command, args).await.ok()?;
            Some(Master {
                host,
                port,
                is_new: false,
            })
        }
    });
    select(switched.boxed(), asked.boxed()).boxed()
}

/// `<service> <old host> <old port> <host> <port>`
fn switched(text: &str, service: &str) -> Option<Master> {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        [of, _, _, host, port] if of == service => Some(Master {
            host: host.to_owned(),
            port: port.parse().ok()?,
            is_new: true,
        }),
        _ => None,
    }
}

impl Master {
    /// Whether this client must be brought there.
    pub(super) fn is_elsewhere(&self, client: &Client) -> bool {
        let connected = client.active_connections();
        // A client that may not ask for its connection's number does not say where it is.
        let unknown = connected.is_empty() && !self.is_new;
        let is_there = |server: &Server| *server.host == *self.host && server.port == self.port;
        !unknown && !connected.iter().any(is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::switched;

    #[test]
    fn only_the_services_own_switches_count() {
        let text = "main 10.0.0.1 6379 10.0.0.2 6380";
        let master = switched(text, "main").unwrap();
        assert_eq!((&master.host[..], master.port), ("10.0.0.2", 6380));
        assert!(switched(text, "other").is_none());
        assert!(switched("main 10.0.0.1 6379 10.0.0.2", "main").is_none());
        assert!(switched("main 10.0.0.1 6379 10.0.0.2 port", "main").is_none());
    }
}
