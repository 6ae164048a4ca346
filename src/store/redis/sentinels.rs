//! The sentinels, who tell when another server has become the master.
//!
//! `fred` asks them only after it has lost its connection, and an old master that is alive keeps its
//! connections until the sentinels have made a replica of it: for 11 s it was written to, and all of that was
//! thrown away (`proof/tests/chaos/failover.rs` measures it). So each sentinel is listened to, as the guide for clients
//! recommends: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.
//!
//! A message says that something has changed, and is only the occasion to ask. Each is asked besides once in a
//! while: that is what notices a connection that has died in silence, and a message that was missed. What one says
//! counts by its epoch, so that one that has been cut off with an old master leads nobody back.

use std::collections::HashMap;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{ClientState, CustomCommand};
use futures::future::join_all;
use futures::stream::{BoxStream, select_all, unfold};
use futures::{Stream, StreamExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::BroadcastStream;

use super::connection::{Connection, config_of};

/// What all of them say, sooner or later.
const SWITCHES: &str = "+switch-master";

/// How often each is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// The sentinels that the configuration names.
#[derive(Clone)]
pub(super) struct Sentinels {
    configs: Vec<Config>,
    service: String,
    /// How long an answer may be owed before it is looked into.
    bound: Duration,
    /// One to each, from when they are listened to.
    connections: Vec<Connection>,
}

/// A host and a port.
type Address = (String, u16);

/// What a sentinel says.
struct MasterReport {
    /// By its place in the configuration.
    sentinel: usize,
    /// Each failover has a greater one.
    epoch: u64,
    master: Address,
}

impl Sentinels {
    /// `None` where there are none.
    pub(super) fn of(config: &Config, bound: Duration) -> Option<Self> {
        let ServerConfig::Sentinel {
            hosts,
            service_name,
            ..
        } = &config.server
        else {
            return None;
        };
        Some(Self {
            configs: hosts.iter().map(|host| config_for(config, host)).collect(),
            service: service_name.clone(),
            bound,
            connections: Vec::new(),
        })
    }

    /// Begins to listen, and brings these clients to the master; an item each time. Sentinels out of reach are
    /// tried again and again.
    pub(super) fn follow(
        &mut self,
        clients: Vec<TrackedClient>,
    ) -> Result<impl Stream<Item = ()> + Send + Unpin + use<>, FredError> {
        let begin = |config| Connection::begin(config, Duration::ZERO, self.bound);
        let connections: Result<Vec<_>, _> = self.configs.iter().map(begin).collect();
        self.connections = connections?;
        let words = (self.connections.iter().enumerate())
            .map(|(nth, sentinel)| words(nth, sentinel.clone(), self.service.clone()));
        let words = select_all(words.collect::<Vec<_>>());
        let follower = MasterTracker::new(self.connections.len(), clients);
        let followed = unfold((words, follower), |(mut words, mut follower)| async move {
            loop {
                let word = words.next().await?;
                if follower.hear(word).await {
                    return Some(((), (words, follower)));
                }
            }
        });
        Ok(followed.boxed())
    }

    pub(super) fn close(&self) {
        self.connections.iter().for_each(Connection::close);
    }
}

fn config_for(config: &Config, host: &Server) -> Config {
    #[cfg_attr(not(feature = "sentinel-auth"), expect(unused_mut))]
    let mut own = Config {
        database: None,
        // The first connection is made like all others.
        fail_fast: false,
        ..config_of(config, host)
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

/// What a sentinel says whenever there is an occasion to ask it.
fn words(
    sentinel: usize,
    connection: Connection,
    service: String,
) -> BoxStream<'static, MasterReport> {
    let client = connection.client();
    let connects = BroadcastStream::new(client.reconnect_rx()).map(|_| true);
    let messages = BroadcastStream::new(client.message_rx()).map(|_| false);
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = unfold(period, |mut period| async move {
        period.tick().await;
        Some((false, period))
    });
    let occasions = select_all([connects.boxed(), messages.boxed(), ticks.boxed()]);
    let said = unfold(
        (occasions, false),
        move |(mut occasions, mut subscribed)| {
            let (connection, service) = (connection.clone(), service.clone());
            async move {
                let client = connection.client();
                loop {
                    let is_new = occasions.next().await?;
                    subscribed &= !is_new;
                    if !subscribed {
                        subscribed = client.subscribe(SWITCHES).await.is_ok();
                    }
                    if let Ok((epoch, master)) = connection.owing(0, ask(client, &service)).await {
                        let word = MasterReport {
                            sentinel,
                            epoch,
                            master,
                        };
                        return Some((word, (occasions, subscribed)));
                    }
                }
            }
        },
    );
    said.boxed()
}

/// The epoch first: what is told between the two is then too old an epoch for its master, which the next word mends,
/// and never a new one for an old master. The state has the epoch, but names the old master for as long as the
/// failover goes on.
async fn ask(client: &Client, service: &str) -> Result<(u64, Address), FredError> {
    let sentinel = || CustomCommand::new_static("SENTINEL", None, false);
    let state = client.custom(sentinel(), vec!["MASTER", service]).await;
    let state: HashMap<String, String> = state?;
    let question = vec!["GET-MASTER-ADDR-BY-NAME", service];
    let master: Address = client.custom(sentinel(), question).await?;
    let epoch = state
        .get("config-epoch")
        .and_then(|epoch| epoch.parse().ok());
    let epoch = epoch.ok_or_else(|| FredError::new(ErrorKind::Parse, "no epoch"))?;
    Ok((epoch, master))
}

/// A client, and where it is. The server need not permit it to ask for that.
pub(super) struct TrackedClient {
    client: Client,
    server: Option<Server>,
    connects: Receiver<Server>,
}

impl TrackedClient {
    /// Where it was connected first is known of our own clients.
    pub(super) fn new(connection: &Connection) -> Self {
        let client = connection.client();
        let connects = client.reconnect_rx();
        Self {
            client: client.clone(),
            server: client
                .active_connections()
                .pop()
                .or(connection.first().cloned()),
            connects,
        }
    }

    fn look(&mut self) -> Option<&Server> {
        loop {
            match self.connects.try_recv() {
                Ok(server) => self.server = Some(server),
                Err(TryRecvError::Lagged(_)) => {}
                Err(_) => return self.server.as_ref(),
            }
        }
    }
}

/// What the sentinels have said, and what was made of it.
struct MasterTracker {
    clients: Vec<TrackedClient>,
    /// The newest.
    epoch: Option<u64>,
    /// As they are called: the sentinels need not agree on names.
    masters: Vec<Address>,
    /// Whether there was an older one.
    has_switched: bool,
    /// The epoch in which each has been acted_on_epoch, which is once: `fred` asks any of them, and one that is behind
    /// sends it to the old master until it has itself heard.
    acted_on_epoch: Vec<Option<u64>>,
    /// Until all have had the time to say something, the newest is not known.
    from: Instant,
}

impl MasterTracker {
    fn new(sentinels: usize, clients: Vec<TrackedClient>) -> Self {
        Self {
            clients,
            epoch: None,
            masters: Vec::new(),
            has_switched: false,
            acted_on_epoch: vec![None; sentinels],
            from: Instant::now() + PERIOD,
        }
    }

    /// Whether any client had to be brought elsewhere, which what is on its way there does not survive: it is
    /// asked again.
    async fn hear(&mut self, word: MasterReport) -> bool {
        let epoch = Some(word.epoch);
        if epoch < self.epoch {
            return false;
        }
        if epoch > self.epoch {
            self.has_switched = self.epoch.is_some();
            self.epoch = epoch;
            self.masters.clear();
        }
        if !self.masters.contains(&word.master) {
            self.masters.push(word.master);
        }
        if Instant::now() < self.from || self.acted_on_epoch[word.sentinel] == epoch {
            return false;
        }
        // One that has no connection asks where to go by itself, and may be told wrong.
        let settled = |place: &TrackedClient| place.client.state() == ClientState::Connected;
        if self.clients.iter().all(settled) {
            self.acted_on_epoch[word.sentinel] = epoch;
        }
        let mut elsewhere = Vec::new();
        for place in &mut self.clients {
            let is_elsewhere = place.look().map_or(self.has_switched, |server| {
                let is_there =
                    |(host, port): &Address| *server.host == **host && server.port == *port;
                !self.masters.iter().any(is_there)
            });
            if is_elsewhere && settled(place) {
                elsewhere.push(place.client.clone());
            }
        }
        join_all(elsewhere.iter().map(ClientLike::force_reconnection)).await;
        !elsewhere.is_empty()
    }
}
