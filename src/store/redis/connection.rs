//! Connections, and how to tell one that died in silence from a slow server.
//!
//! A connection that is lost without a reset looks like a slow server. `fred` tells the two apart
//! by the time since the last *write*, which each of our retries postpones. So every request is a
//! debt (`Debts`) of the connection until any answer comes. The connection's `Driver` examines a
//! debt that is older than a bound: it asks the same server on a new connection. If only the new
//! connection gets an answer, the old one is dead, and the driver makes it anew. If neither gets an
//! answer, the server is stalled or away. Then a new connection would not help, and would lose the
//! requests in flight. In a process that was itself stopped, timers fire before the waiting answers
//! are read. So the driver gives the old connection a little time after the new one's answer.
//!
//! To make a connection anew, the driver ends the task of `fred`, which may hang in a write, and
//! starts it again. The hub hears of it as of any lost connection. An answer that a caller has
//! given up on is still owed.
//!
//! In a cluster, each node is examined by itself. But `fred` connects to all masters or to none. So
//! the driver tears nothing down while another node does not answer, unless the nodes that do
//! answer say that it is no longer a master.

use std::collections::{HashMap, HashSet};
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface};
use fred::types::cluster::ClusterRouting;
use fred::types::config::{
    ClusterDiscoveryPolicy, Config, Options, ReconnectPolicy, Server, ServerConfig,
};
use fred::types::{Builder, ClientState, ClusterHash, CustomCommand, RespVersion, Value};
use futures::FutureExt;
use futures::future::join_all;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{COMMAND_TIMEOUT, GONE, is_answer, once};

/// The time limit for a connection to be made, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of messages that may wait for the hub. With more, the hub gets a gap instead.
const MESSAGES: usize = 8_192;

/// The minimum time that an old connection gets after a new one was answered.
const GRACE: Duration = Duration::from_millis(20);

/// The error of `fred` for a request whose answer it has dropped.
pub(super) const DROPPED: &str = "channel closed";

/// The waits before a failed connection is tried again: the first and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// Returns a client that reconnects without end. `blocked` is the extra time that one of its
/// commands may take by itself.
///
/// `fred`'s own check of silent connections stays off. It would tear down every connection to a
/// server that is only stalled, and in a cluster the connections to all nodes with it.
pub(super) fn client(mut config: Config, blocked: Duration) -> Result<Client, FredError> {
    config.version = RespVersion::RESP3;
    if let ServerConfig::Clustered { policy, .. } = &mut config.server {
        // With another policy the cluster is unreachable for ever once the one node of the URL has
        // died.
        *policy = ClusterDiscoveryPolicy::UseCache;
    }
    quote_credentials(&mut config)?;
    Builder::from_config(config)
        .set_policy(ReconnectPolicy::new_exponential(0, 20, 1_000, 2))
        .with_performance_config(|performance| {
            performance.broadcast_channel_capacity = MESSAGES;
            performance.default_command_timeout = blocked + COMMAND_TIMEOUT;
        })
        .with_connection_config(|connection| {
            connection.max_command_attempts = 1;
            connection.connection_timeout = COMMAND_TIMEOUT;
            connection.internal_command_timeout = COMMAND_TIMEOUT;
        })
        .build()
}

/// Quotes credentials for the server's parser of inline commands. `fred` sends `HELLO` with its
/// `AUTH` as one line of text, in which a space would end the password.
fn quote_credentials(config: &mut Config) -> Result<(), FredError> {
    let needs = |text: &&mut String| text.is_empty() || text.bytes().any(must_be_quoted);
    let credentials = [&mut config.username, &mut config.password];
    let mut needing = credentials.into_iter().flatten().filter(needs).peekable();
    // `fred` sends the same credentials to the sentinels with `AUTH`, which takes them unquoted.
    if needing.peek().is_some()
        && config.server.is_sentinel()
        && cfg!(not(feature = "sentinel-auth"))
    {
        let text = "behind sentinels, a user name or password with a space, a quote or a control \
                    character needs the feature sentinel-auth";
        return Err(FredError::new(ErrorKind::Config, text));
    }
    needing.for_each(|text| *text = quoted(text));
    Ok(())
}

fn must_be_quoted(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte.is_ascii_control() || matches!(byte, b'"' | b'\'')
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 8);
    quoted.push('"');
    for char in text.chars() {
        match u8::try_from(char) {
            Ok(byte @ (b'"' | b'\\')) => quoted.extend(['\\', char::from(byte)]),
            Ok(byte) if must_be_quoted(byte) => quoted.push_str(&format!("\\x{byte:02x}")),
            _ => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// A client and the task that keeps it connected.
#[derive(Clone)]
pub(super) struct Connection(Arc<Inner>);

struct Inner {
    client: Client,
    /// The first server of the connection, if known.
    first: Option<Server>,
    shared: Arc<Shared>,
    /// The driver's task, which also runs the client if the client is ours. It ends with the last
    /// clone.
    driver: AbortOnDropHandle<()>,
    owned: bool,
}

/// The state that a connection and its driver share.
struct Shared {
    debts: Mutex<Debts>,
    /// Wakes an idle driver when there is a debt.
    begun: Notify,
    /// Tells the driver to make the connection anew.
    renew: Notify,
    /// Announces that the driver has torn the connection down.
    torn: broadcast::Sender<()>,
    /// Whether the connection is closed for good.
    closed: AtomicBool,
}

/// The requests that wait for an answer, and the time of the last answer, by slot. In a cluster,
/// the slots of one node share a connection. Elsewhere there is one slot.
#[derive(Default)]
struct Debts {
    slots: HashMap<u16, Debt>,
    /// Whether the driver will look at the debts by itself. If not, a new debt has to wake it.
    watched: bool,
}

#[derive(Default)]
struct Debt {
    /// The number of callers that wait for an answer.
    waiting: usize,
    /// The time since which no answer has come. A caller that stops waiting leaves it as it is,
    /// because the connection still owes the answer.
    since: Option<Instant>,
    /// The time of the last answer.
    answered: Option<Instant>,
}

impl Debt {
    /// Starts the debt anew, after an answer or with a new connection.
    fn restart(&mut self) {
        let now = Instant::now();
        self.since = (self.waiting > 0).then_some(now);
        self.answered = Some(now);
    }
}

/// A request without an answer yet.
struct Owed<'a> {
    shared: &'a Shared,
    slot: u16,
    /// Whether the connection no longer owes an answer.
    settled: bool,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let mut debts = self.shared.debts();
        if let Some(debt) = debts.slots.get_mut(&self.slot) {
            debt.waiting = debt.waiting.saturating_sub(1);
            if self.settled {
                debt.restart();
            }
        }
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            debts: Mutex::default(),
            begun: Notify::new(),
            renew: Notify::new(),
            torn: broadcast::Sender::new(4),
            closed: AtomicBool::new(false),
        }
    }

    fn debts(&self) -> std::sync::MutexGuard<'_, Debts> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owe(&self, slot: u16) -> Owed<'_> {
        let mut debts = self.debts();
        let debt = debts.slots.entry(slot).or_default();
        debt.waiting += 1;
        debt.since.get_or_insert_with(Instant::now);
        if !std::mem::replace(&mut debts.watched, true) {
            self.begun.notify_one();
        }
        drop(debts);
        Owed {
            shared: self,
            slot,
            settled: false,
        }
    }

    /// Returns the time of the oldest debt. If there is none, the next debt wakes the driver.
    fn oldest(&self) -> Option<Instant> {
        let mut debts = self.debts();
        let oldest = debts.slots.values().filter_map(|debt| debt.since).min();
        debts.watched = oldest.is_some();
        if oldest.is_none() {
            debts.slots.clear();
        }
        oldest
    }

    /// Counts an answer for all slots of its node, because in a cluster they share a connection.
    /// Answers to waits for replicas come one after the other on it.
    fn share_answers(&self, nodes: &ClusterRouting) {
        let mut debts = self.debts();
        let mut answered = HashMap::new();
        for (slot, debt) in &debts.slots {
            if let Some(node) = nodes.get_server(*slot) {
                let latest = answered.entry(node).or_insert(debt.answered);
                *latest = debt.answered.max(*latest);
            }
        }
        debts.slots.retain(|slot, debt| {
            let latest = nodes.get_server(*slot).and_then(|node| answered[node]);
            if debt.since.is_some() {
                debt.since = debt.since.max(latest);
            }
            debt.since.is_some()
        });
    }

    /// Returns the slots whose debts are not newer than `before`.
    fn owing_since(&self, before: Instant) -> Vec<u16> {
        let debts = self.debts();
        let owing = debts.slots.iter();
        let owing = owing.filter(|(_, debt)| debt.since.is_some_and(|since| since <= before));
        owing.map(|(slot, _)| *slot).collect()
    }

    /// Dates all debts from now. Drops the debts that no caller waits for, unless the connection
    /// may still be dead.
    fn restart(&self, may_be_dead: bool) {
        let mut debts = self.debts();
        debts.slots.retain(|_, debt| {
            match may_be_dead {
                true => debt.since = debt.since.map(|_| Instant::now()),
                false => debt.restart(),
            }
            debt.since.is_some()
        });
    }
}

impl Connection {
    /// Starts to connect, and retries without end.
    pub(super) fn begin(
        config: &Config,
        blocked: Duration,
        bound: Duration,
    ) -> Result<Self, FredError> {
        let client = client(config.clone(), blocked)?;
        Ok(Self::keep(&client, config.clone(), blocked + bound, true))
    }

    /// Watches over a caller's client, which stays open when this ends.
    pub(super) fn adopt(client: &Client, bound: Duration) -> Self {
        Self::keep(client, client.client_config(), bound, false)
    }

    fn keep(client: &Client, config: Config, bound: Duration, owned: bool) -> Self {
        let shared = Arc::new(Shared::new());
        let server = client.active_connections().pop();
        let driver = Driver {
            client: client.clone(),
            config,
            shared: shared.clone(),
            bound,
            owned,
            server: server.clone(),
            connects: client.reconnect_rx(),
        };
        Self(Arc::new(Inner {
            client: client.clone(),
            first: server,
            shared,
            driver: AbortOnDropHandle::new(tokio::spawn(driver.run())),
            owned,
        }))
    }

    /// Connects. Returns the result of the first attempt.
    pub(super) async fn establish(
        config: &Config,
        blocked: Duration,
        bound: Duration,
    ) -> Result<Self, FredError> {
        let client = client(config.clone(), blocked)?;
        let mut connects = client.reconnect_rx();
        let mut connected = pin!(client.wait_for_connect());
        // Subscribes to the event before the client can send it.
        let early = connected.as_mut().now_or_never();
        let mut own = Self::keep(&client, config.clone(), blocked + bound, true);
        let connected = match early {
            Some(connected) => Ok(connected),
            None => timeout(CONNECT_TIMEOUT, connected).await,
        };
        connected.unwrap_or_else(|_| {
            let text = format!("no connection within {CONNECT_TIMEOUT:?}");
            Err(FredError::new(ErrorKind::Timeout, text))
        })?;
        if let Some(own) = Arc::get_mut(&mut own.0) {
            own.first = connects.try_recv().ok();
        }
        Ok(own)
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Returns the first server of the connection, if known.
    pub(super) fn first(&self) -> Option<&Server> {
        self.0.first.as_ref()
    }

    /// Whether the connection ends with the store.
    pub(super) fn is_owned(&self) -> bool {
        self.0.owned
    }

    /// Returns the slot whose debt a request shares. Outside a cluster all requests share one debt.
    pub(super) fn lane(&self, slot: u16) -> u16 {
        match self.0.client.is_clustered() {
            true => slot,
            false => 0,
        }
    }

    /// Waits for the answer to a request. The connection owes it from now on.
    pub(super) async fn owing<T>(
        &self,
        slot: u16,
        request: impl Future<Output = Result<T, FredError>>,
    ) -> Result<T, FredError> {
        let mut owed = self.0.shared.owe(slot);
        let answer = request.await;
        // Any other error means that the request's connection is gone.
        let gave_up = |error: &FredError| *error.kind() == ErrorKind::Timeout;
        owed.settled = !answer.as_ref().is_err_and(gave_up);
        // The request ended with a task of `fred`, or was sent while there was no task.
        let shared = &self.0.shared;
        let between = |error: &FredError| {
            let reopens = self.0.owned && !shared.closed.load(Ordering::Relaxed);
            let details = error.details();
            reopens && (details == DROPPED || GONE.contains(&details))
        };
        match answer {
            Err(error) if between(&error) => {
                let text = "the connection was dead and is being made anew";
                Err(FredError::new(ErrorKind::Canceled, text))
            }
            answer => answer,
        }
    }

    /// Subscribes to a channel of this slot. Each call has one channel, because `fred` counts only
    /// one acknowledgement per call.
    ///
    /// This does not use `ssubscribe`, which `fred` leaves in its buffer while it counts other
    /// commands in its queue. Commands that were queued when a task of `fred` was ended
    /// (`Driver::run`) stay in that count for ever.
    pub(super) async fn subscribe(&self, slot: u16, channel: &str) -> Result<(), FredError> {
        let command = CustomCommand::new_static("SSUBSCRIBE", ClusterHash::Custom(slot), false);
        let client = self.0.client.with_options(&once());
        let subscribing = client.custom::<Value, _>(command, vec![channel]);
        self.owing(self.lane(slot), subscribing).await.map(drop)
    }

    /// Tears the connection down and makes it anew.
    pub(super) fn renew(&self) {
        self.0.shared.renew.notify_one();
    }

    /// Returns a receiver with an item for each time that the driver tears the connection down.
    /// `fred` does not report this.
    pub(super) fn torn(&self) -> broadcast::Receiver<()> {
        self.0.shared.torn.subscribe()
    }

    /// Ends the connection if it is ours. All requests have been answered or given up by now, so
    /// there is no reason for `QUIT`. A client that is still connecting ignores `QUIT`, and one
    /// that has just ended logs a warning.
    pub(super) fn close(&self) {
        self.0.shared.closed.store(true, Ordering::Relaxed);
        self.0.driver.abort();
    }
}

/// The task of a connection. It runs the client, if that is ours, and examines the debts.
struct Driver {
    client: Client,
    /// The configuration of the client, with the credentials as the caller wrote them.
    config: Config,
    shared: Arc<Shared>,
    /// The time that an answer may take before the connection is examined.
    bound: Duration,
    owned: bool,
    /// The present server, if known. Of no use in a cluster.
    server: Option<Server>,
    connects: broadcast::Receiver<Server>,
}

/// The result of an examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The old connection answers, or `fred` already knows that it is lost.
    Alive,
    /// Only a new connection gets an answer.
    Dead,
    /// A new connection gets no answer either.
    Away,
}

/// The task of `fred` that owns the sockets.
type Router = AbortOnDropHandle<Result<(), FredError>>;

impl Driver {
    async fn run(mut self) {
        let mut router = self.owned.then(|| self.drive());
        let mut delay = RETRY_FIRST;
        loop {
            let shared = self.shared.clone();
            let ended = async {
                match &mut router {
                    Some(router) => drop(router.await),
                    None => pending().await,
                }
            };
            tokio::select! {
                // The first attempt of the client failed. `fred` makes no second one.
                () = ended => {
                    sleep(delay).await;
                    delay = (2 * delay).min(RETRY_MOST);
                    router = Some(self.drive());
                    continue;
                }
                () = shared.renew.notified() => {}
                () = self.until_dead() => {}
            }
            delay = RETRY_FIRST;
            // There may be no receiver.
            let _ = shared.torn.send(());
            match router.take() {
                Some(old) => {
                    // The task may hang in a write to the dead connection, where it takes no
                    // command. So end the task and its sockets, instead of sending it a command.
                    old.abort();
                    let _ = old.await;
                    router = Some(self.drive());
                }
                None => self.reconnect_the_callers().await,
            }
            shared.restart(false);
        }
    }

    fn drive(&self) -> Router {
        AbortOnDropHandle::new(self.client.connect())
    }

    /// Tells a caller's client to reconnect, which is all that it offers. In a cluster, `fred`
    /// still keeps the connections that show no error.
    async fn reconnect_the_callers(&self) {
        let _ = timeout(COMMAND_TIMEOUT, self.client.force_reconnection()).await;
    }

    /// Examines debts that are too old. Returns when the connection is dead.
    async fn until_dead(&mut self) {
        loop {
            let Some(oldest) = self.shared.oldest() else {
                self.shared.begun.notified().await;
                continue;
            };
            let due = oldest + self.bound;
            if Instant::now() < due {
                sleep_until(due).await;
                continue;
            }
            if let Some(nodes) = self.client.cached_cluster_state() {
                self.shared.share_answers(&nodes);
                if self.shared.oldest().is_none_or(|shared| shared > oldest) {
                    continue;
                }
            }
            // A client without a connection is already connecting, within time limits of its own.
            let verdict = match self.client.state() {
                ClientState::Connected => self.examine(due - self.bound).await,
                _ => Verdict::Alive,
            };
            match verdict {
                Verdict::Dead => return,
                Verdict::Alive => self.shared.restart(false),
                Verdict::Away => self.shared.restart(true),
            }
        }
    }

    /// Examines the connections that have owed an answer since then.
    async fn examine(&mut self, since: Instant) -> Verdict {
        if !self.client.is_clustered() {
            let config = self.config_of_current();
            return self.compare(None, config).await;
        }
        let Some(slots) = self.client.cached_cluster_state() else {
            return Verdict::Alive;
        };
        let owing = self.shared.owing_since(since);
        let owing: HashSet<&Server> = (owing.into_iter())
            .filter_map(|slot| slots.get_server(slot))
            .collect();
        let examined = owing.iter().map(|node| async {
            let config = config_of(&self.config, node);
            self.compare(Some((*node).clone()), config).await
        });
        let verdicts = join_all(examined).await;
        let of = |wanted| (owing.iter().zip(&verdicts)).filter(move |(_, found)| **found == wanted);
        let mut others = slots.unique_primary_nodes();
        others.retain(|node| !owing.contains(node));
        // A cluster's client connects to all masters or to none. To replace a connection while one
        // master is stalled would lose the connections to all others.
        if of(Verdict::Away).next().is_none() {
            if of(Verdict::Dead).next().is_none() {
                return Verdict::Alive;
            }
            let answers = others
                .iter()
                .map(|node| answers(config_of(&self.config, node)));
            return match join_all(answers).await.into_iter().all(|answers| answers) {
                true => Verdict::Dead,
                false => Verdict::Away,
            };
        }
        // No message tells that a master that is away has been replaced, so ask the other nodes.
        others.extend(of(Verdict::Dead).map(|(node, _)| (*node).clone()));
        let asked = others.iter().map(|node| masters_by(&self.config, node));
        let mut told = join_all(asked).await.into_iter().flatten();
        let away: Vec<&Server> = of(Verdict::Away).map(|(node, _)| *node).collect();
        match told.any(|masters| !away.iter().any(|node| masters.contains(node))) {
            true => Verdict::Dead,
            false => Verdict::Away,
        }
    }

    /// Asks a server on a new connection and on the old one.
    async fn compare(&self, node: Option<Server>, config: Config) -> Verdict {
        let mut old = pin!(self.still_answers(node));
        let began = Instant::now();
        let mut new = pin!(answers(config));
        let is_there = tokio::select! {
            biased;
            () = &mut old => return Verdict::Alive,
            answers = &mut new => answers,
        };
        if !is_there {
            return Verdict::Away;
        }
        let grace = began.elapsed().clamp(GRACE, COMMAND_TIMEOUT);
        loop {
            let began = Instant::now();
            if timeout(grace, &mut old).await.is_ok() {
                return Verdict::Alive;
            }
            // After a stop of this process, all timers are late and the answers are still unread.
            // Then wait once more.
            if began.elapsed() < 2 * grace {
                return Verdict::Dead;
            }
        }
    }

    /// Resolves when the old connection gets any answer, or is known to be lost.
    async fn still_answers(&self, node: Option<Server>) {
        let options = Options {
            cluster_node: node,
            max_attempts: Some(1),
            fail_fast: true,
            timeout: Some(3 * COMMAND_TIMEOUT),
            ..Options::default()
        };
        let ping = self.client.with_options(&options);
        match ping.ping::<Value>(None).await {
            Err(error) if *error.kind() == ErrorKind::Timeout => pending().await,
            _ => {}
        }
    }

    /// The configuration of a client for the very server that the old connection is to.
    fn config_of_current(&mut self) -> Config {
        loop {
            match self.connects.try_recv() {
                Ok(server) => self.server = Some(server),
                Err(TryRecvError::Lagged(_)) => {}
                Err(_) => break,
            }
        }
        match (&self.config.server, &self.server) {
            (ServerConfig::Sentinel { .. }, Some(server)) => config_of(&self.config, server),
            // One server behind an address, a cluster, or the sentinels that know the server.
            _ => self.config.clone(),
        }
    }
}

/// Returns the configuration of a client for one of several servers.
pub(super) fn config_of(config: &Config, server: &Server) -> Config {
    Config {
        server: ServerConfig::Centralized {
            server: server.clone(),
        },
        ..config.clone()
    }
}

/// Adds all masters of a cluster to its configuration, as reported by the first node that answers.
/// A connection that is made anew must find the cluster even if all nodes of the URL have died.
pub(super) async fn name_all_nodes(config: &mut Config) {
    let asked = match &config.server {
        ServerConfig::Clustered { hosts, .. } => hosts.clone(),
        _ => return,
    };
    for node in &asked {
        let Some(masters) = masters_by(config, node).await else {
            continue;
        };
        if let ServerConfig::Clustered { hosts, .. } = &mut config.server {
            for master in masters {
                if !hosts.contains(&master) {
                    hosts.push(master);
                }
            }
        }
        return;
    }
}

/// Makes a connection for one question. Dropping the task ends the connection.
async fn visit(config: Config) -> Result<(Client, Router), FredError> {
    let config = Config {
        fail_fast: true,
        ..config
    };
    let client = client(config, Duration::ZERO)?;
    let connecting = client.clone();
    let mut connected = pin!(connecting.wait_for_connect());
    let early = connected.as_mut().now_or_never();
    let router = AbortOnDropHandle::new(client.connect());
    match early {
        Some(connected) => connected?,
        None => timeout(COMMAND_TIMEOUT, connected)
            .await
            .unwrap_or_else(|_| Err(FredError::new(ErrorKind::Timeout, "no connection")))?,
    }
    Ok((client, router))
}

/// Whether a server answers on a new connection. A refusal is an answer too.
async fn answers(config: Config) -> bool {
    let said = async {
        let (client, _router) = visit(config).await?;
        client.ping::<Value>(None).await
    };
    said.await.map_or_else(|error| is_answer(&error), |_| true)
}

/// Returns the masters of a cluster, as reported by one of its nodes.
async fn masters_by(config: &Config, node: &Server) -> Option<Vec<Server>> {
    let (client, _router) = visit(config_of(config, node)).await.ok()?;
    let slots = CustomCommand::new_static("CLUSTER", None, false);
    let slots: Value = client.custom(slots, vec!["SLOTS"]).await.ok()?;
    let slots = ClusterRouting::from_cluster_slots(slots, node.host.clone()).ok()?;
    Some(slots.unique_primary_nodes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_owed_by_no_server_that_is_away() {
        let shared = Shared::new();
        let pending = shared.owe(1);
        shared.owe(2).settled = true;
        for may_be_dead in [true, false] {
            shared.restart(may_be_dead);
            assert_eq!(shared.owing_since(Instant::now()), [1]);
        }
        drop(pending);
        shared.restart(true);
        assert_eq!(
            shared.owing_since(Instant::now()),
            [1],
            "its caller gave up"
        );
        shared.restart(false);
        assert_eq!(shared.oldest(), None);
    }

    #[test]
    fn credentials_are_quoted_if_a_line_of_text_needs_it() {
        for (plain, sent) in [
            ("S3cret?#/@%\\$é", "S3cret?#/@%\\$é"),
            ("a b", r#""a\x20b""#),
            ("a\"b", r#""a\"b""#),
            (r"'\", r#""\x27\\""#),
            ("a\r\n\0", r#""a\x0d\x0a\x00""#),
            ("", r#""""#),
        ] {
            let mut config = Config {
                password: Some(plain.to_owned()),
                ..Config::default()
            };
            quote_credentials(&mut config).unwrap();
            assert_eq!(config.password.as_deref(), Some(sent));
        }
    }
}
