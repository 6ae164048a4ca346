//! The sentinels, which tell when another server becomes the master.
//!
//! `fred` asks the sentinels only after it has lost its connection. An old master that is alive
//! keeps its connections until the sentinels have made a replica of it. `fred` alone kept writing
//! to such a master for 11 s, and all of these writes were lost (`proof/tests/chaos/failover.rs`
//! measures it). So we subscribe to each sentinel, as the guide for clients recommends:
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.
//!
//! A message says only that something has changed, so it makes us ask its sentinel. We also ask
//! each sentinel periodically, which detects a connection that died in silence and a missed
//! message. The epoch of an answer decides how much it counts, so a sentinel that is cut off
//! together with an old master leads no client back to it. A client whose server is not the newest
//! epoch's master is made to connect anew, which is a reconnect like any other for the hub.
//!
//! docs/reliability.md has the measured times of failovers. A cluster has no sentinels:
//! `connection.rs` finds it at every known node, and the hub's pings find slots that have moved.

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

/// The channel on which each sentinel sooner or later announces a new master.
const SWITCHES: &str = "+switch-master";

/// The period at which we ask each sentinel.
const PERIOD: Duration = Duration::from_secs(1);

/// The sentinels of the configuration.
#[derive(Clone)]
pub(super) struct Sentinels {
    configs: Vec<Config>,
    service: String,
    /// The time that an answer may take before a connection is examined.
    bound: Duration,
    /// The connections to the sentinels. Empty until `follow`.
    connections: Vec<Connection>,
}

/// A host and a port.
type Address = (String, u16);

/// One sentinel's answer.
struct MasterReport {
    /// The index of the sentinel in the configuration.
    sentinel: usize,
    /// The configuration epoch. Every failover increases it.
    epoch: u64,
    master: Address,
}

impl Sentinels {
    /// Returns `None` if the configuration has no sentinels.
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

    /// Subscribes to the sentinels and moves these clients to the present master. The stream has an
    /// item each time that clients are moved. Unreachable sentinels are retried without end.
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
        // The first connection is retried like all later ones.
        fail_fast: false,
        ..config_of(config, host)
    };
    // Without the feature, `fred` uses the server's credentials for the sentinels too.
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

/// Returns the answers of one sentinel: one for each message, reconnect and period.
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

/// Asks for the epoch first. If a failover happens between the two questions, the answer pairs an
/// old epoch with the new master, which the next answer corrects. The other order could pair a new
/// epoch with the old master. The first answer also names a master, but still the old one while the
/// failover is in progress.
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

/// A client and its present server. The server need not permit us to ask for its address.
pub(super) struct TrackedClient {
    client: Client,
    server: Option<Server>,
    connects: Receiver<Server>,
}

impl TrackedClient {
    /// The first server is known only of connections that we made ourselves.
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

/// The newest reports of the sentinels, and what has been done about them.
struct MasterTracker {
    clients: Vec<TrackedClient>,
    /// The newest epoch.
    epoch: Option<u64>,
    /// The addresses of the newest epoch's master. Sentinels may use different names for one
    /// server.
    masters: Vec<Address>,
    /// Whether there was an older epoch.
    has_switched: bool,
    /// The epoch in which each sentinel last made us move the clients. Each sentinel does so once
    /// per epoch: `fred` asks any of them, and one that is behind sends it to the old master until
    /// it has heard of the new one.
    acted_on_epoch: Vec<Option<u64>>,
    /// The time from which reports count. Before it, not all sentinels have had the time to report,
    /// so the newest epoch is not known.
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

    /// Processes a report. Returns whether any client was moved. A move loses the requests in
    /// flight, so the hub has to ask again.
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
        // A client without a connection asks for the master by itself, and may get a wrong answer.
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
