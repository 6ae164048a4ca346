//! Connections, and how one that has died in silence is told from a server that is slow.
//!
//! A connection that is lost without a reset looks like a server that takes its time. `fred` tells
//! them apart by the time since the last *write*, which every retry of ours postpones. So each
//! request that is sent is a debt (`Debts`) until any answer comes. A debt that is older than a
//! bound is looked into by the connection's `Driver`: it asks the same server on a new connection.
//! If that is answered and the old one still is not, the old one is dead, and is made anew. If
//! neither is answered, the server is stalled or away: a new connection would not help, and would
//! cost what is on its way. The reads of a process that was itself stopped are behind its timers,
//! hence the moment that the old connection is given after the new one's answer.

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

/// How long both connections have to stand, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that may wait for the hub before it hears of a gap instead.
const MESSAGES: usize = 8_192;

/// The shortest time that an old connection is given after a new one was answered.
const GRACE: Duration = Duration::from_millis(20);

/// What `fred` says to a request whose answer it has dropped.
pub(super) const DROPPED: &str = "channel closed";

/// How long to wait before a connection that could not be made is tried again, at first and at
/// most.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// A client that reconnects for ever; `blocked` is how much longer one of its commands may take by
/// itself.
///
/// `fred`'s own check of silent connections stays off: it would tear down every connection to a
/// server that is merely stalled, and in a cluster all of them with the one.
pub(super) fn client(mut config: Config, blocked: Duration) -> Result<Client, FredError> {
    config.version = RespVersion::RESP3;
    if let ServerConfig::Clustered { policy, .. } = &mut config.server {
        // Else the cluster is out of reach for ever when the one node that the URL names has died.
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

/// Writes credentials as the server's parser of inline commands reads them: `fred` sends `HELLO`
/// with its `AUTH` as one line of text, in which a space would end the password.
fn quote_credentials(config: &mut Config) -> Result<(), FredError> {
    let needs = |text: &&mut String| text.is_empty() || text.bytes().any(must_be_quoted);
    let credentials = [&mut config.username, &mut config.password];
    let mut needing = credentials.into_iter().flatten().filter(needs).peekable();
    // `fred` sends the same to the sentinels by `AUTH`, where nothing is to be quoted.
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

/// A client, and what keeps it connected.
#[derive(Clone)]
pub(super) struct Connection(Arc<Inner>);

struct Inner {
    client: Client,
    /// Where it was connected first, if that is known.
    first: Option<Server>,
    shared: Arc<Shared>,
    /// Drives the client, if it is ours. Ends with the last clone.
    driver: AbortOnDropHandle<()>,
    owned: bool,
}

/// What a connection and its driver tell each other.
struct Shared {
    debts: Mutex<Debts>,
    /// There is a debt for a driver that was idle.
    begun: Notify,
    /// The connection is to be made anew.
    renew: Notify,
    /// The driver has torn the connection down.
    torn: broadcast::Sender<()>,
    /// It is not made anew any more.
    closed: AtomicBool,
}

/// The requests whose answers are due, by slot, and when each slot was last answered. In a cluster
/// the slots of one node share a connection; elsewhere there is one slot.
#[derive(Default)]
struct Debts {
    slots: HashMap<u16, Debt>,
    /// Whether the driver looks again by itself.
    watched: bool,
}

#[derive(Default)]
struct Debt {
    /// How many callers wait for an answer.
    waiting: usize,
    /// Since when nothing was answered that was sent. A caller that gave up leaves it as it is: the
    /// connection still owes.
    since: Option<Instant>,
    /// When the last answer came.
    answered: Option<Instant>,
}

impl Debt {
    /// An answer came, or the connection is another one.
    fn restart(&mut self) {
        let now = Instant::now();
        self.since = (self.waiting > 0).then_some(now);
        self.answered = Some(now);
    }
}

/// A request that is not answered yet.
struct Owed<'a> {
    shared: &'a Shared,
    slot: u16,
    /// Whether the connection owes no answer any more.
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

    /// The oldest debt's time; without one, the next is announced.
    fn oldest(&self) -> Option<Instant> {
        let mut debts = self.debts();
        let oldest = debts.slots.values().filter_map(|debt| debt.since).min();
        debts.watched = oldest.is_some();
        if oldest.is_none() {
            debts.slots.clear();
        }
        oldest
    }

    /// Counts an answer for all slots of its node: in a cluster they share a connection, on which
    /// waits for replicas are answered one after the other.
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

    /// The slots that have owed since before that.
    fn owing_since(&self, before: Instant) -> Vec<u16> {
        let debts = self.debts();
        let owing = debts.slots.iter();
        let owing = owing.filter(|(_, debt)| debt.since.is_some_and(|since| since <= before));
        owing.map(|(slot, _)| *slot).collect()
    }

    /// Whatever is owed is owed from now on; what no caller waits for, only if the connection
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
    /// Begins to connect, and goes on for as long as it takes.
    pub(super) fn begin(
        config: &Config,
        blocked: Duration,
        bound: Duration,
    ) -> Result<Self, FredError> {
        let client = client(config.clone(), blocked)?;
        Ok(Self::keep(&client, config.clone(), blocked + bound, true))
    }

    /// Watches over a client of the caller's, which stays open when this ends.
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

    /// Connects, and says what the first attempt came to.
    pub(super) async fn establish(
        config: &Config,
        blocked: Duration,
        bound: Duration,
    ) -> Result<Self, FredError> {
        let client = client(config.clone(), blocked)?;
        let mut connects = client.reconnect_rx();
        let mut connected = pin!(client.wait_for_connect());
        // It listens before there is something to hear.
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

    /// Where it was connected first, if that is known.
    pub(super) fn first(&self) -> Option<&Server> {
        self.0.first.as_ref()
    }

    /// Whether it ends with the store.
    pub(super) fn is_owned(&self) -> bool {
        self.0.owned
    }

    /// What a request of this slot shares a debt with: elsewhere than in a cluster, with all.
    pub(super) fn lane(&self, slot: u16) -> u16 {
        match self.0.client.is_clustered() {
            true => slot,
            false => 0,
        }
    }

    /// Waits for the answer to a request, which the connection owes from now on.
    pub(super) async fn owing<T>(
        &self,
        slot: u16,
        request: impl Future<Output = Result<T, FredError>>,
    ) -> Result<T, FredError> {
        let mut owed = self.0.shared.owe(slot);
        let answer = request.await;
        // Whatever else goes wrong, the connection that it went over is not there any more.
        let gave_up = |error: &FredError| *error.kind() == ErrorKind::Timeout;
        owed.settled = !answer.as_ref().is_err_and(gave_up);
        // It ended with a task of `fred`, or came when there was none.
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

    /// Subscribes to a channel of this slot. One a call: `fred` counts the acknowledgements of one
    /// only.
    ///
    /// Not `ssubscribe`, which `fred` leaves in its buffer while it counts other commands in its
    /// queue. Commands that were queued when a task of `fred` was ended (`Driver::run`) stay in
    /// that count for ever.
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

    /// An item each time that the driver tears the connection down, which `fred` does not tell.
    pub(super) fn torn(&self) -> broadcast::Receiver<()> {
        self.0.shared.torn.subscribe()
    }

    /// Ends the connection, if it is ours. What was asked has been answered or given up by now, so
    /// there is nothing that `QUIT` would wait for. A client that is just connecting does not hear
    /// `QUIT`, and one that has just ended logs a warning.
    pub(super) fn close(&self) {
        self.0.shared.closed.store(true, Ordering::Relaxed);
        self.0.driver.abort();
    }
}

/// The task behind a connection: it drives the client, if that is ours, and examines what it owes.
struct Driver {
    client: Client,
    /// What the client was made of, with its credentials as the caller wrote them.
    config: Config,
    shared: Arc<Shared>,
    /// How long an answer may be owed before it is looked into.
    bound: Duration,
    owned: bool,
    /// Where it is connected, if that is known; of no use in a cluster.
    server: Option<Server>,
    connects: broadcast::Receiver<Server>,
}

/// What an examination has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The old connection answers, or `fred` knows that it is lost.
    Alive,
    /// A new connection is answered, and the old one is not.
    Dead,
    /// A new connection is not answered either.
    Away,
}

/// `fred`'s task, which owns the sockets.
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
                // A client whose first attempt failed: `fred` tries no second one.
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
                    // It may hang in a write to the dead connection, where it takes no command.
                    // So it is ended, and its sockets with it, instead of being told.
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

    /// A client of the caller's is told to reconnect, which is all that it offers. In a cluster
    /// `fred` keeps the connections that show no error even so.
    async fn reconnect_the_callers(&self) {
        let _ = timeout(COMMAND_TIMEOUT, self.client.force_reconnection()).await;
    }

    /// Examines what is owed for too long, until the connection is found dead.
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
            // One that has no connection is on its way to one, within bounds of its own.
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
        // A client of a cluster connects to all masters or to none, so with one of them stalled
        // the others would be lost too.
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
        // Nothing tells that a master that is away has been replaced.
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
            // After a stop of this process all timers are late, and the answers are not read yet.
            if began.elapsed() < 2 * grace {
                return Verdict::Dead;
            }
        }
    }

    /// Resolves once the old connection answers anything, or is known to be lost.
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
            // A server behind an address, or the sentinels to ask for one.
            _ => self.config.clone(),
        }
    }
}

/// The configuration of a client for one server of many.
pub(super) fn config_of(config: &Config, server: &Server) -> Config {
    Config {
        server: ServerConfig::Centralized {
            server: server.clone(),
        },
        ..config.clone()
    }
}

/// Has a cluster's configuration name all nodes that there are, as the first that answers tells
/// them: what is made anew must find the cluster when those that the URL names have died.
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

/// Makes a connection for one question.
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

/// Whether a server says anything on a new connection: a refusal is an answer too.
async fn answers(config: Config) -> bool {
    let said = async {
        let (client, _router) = visit(config).await?;
        client.ping::<Value>(None).await
    };
    said.await.map_or_else(|error| is_answer(&error), |_| true)
}

/// The masters of a cluster, as one of its nodes tells them.
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
