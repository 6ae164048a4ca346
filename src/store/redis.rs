//! The transitions as Lua scripts on a server. The `fred` client has two connections, one for
//! commands and one for subscriptions. A third one is for writes that replicas have to acknowledge.
//!
//! The connections are separate because on one connection, the reply to a subscription can be
//! mistaken for the reply to a command. Nothing is retried here: a script whose connection broke
//! may have run, and only the caller knows whether it still wants the answer. So `fred` makes one
//! attempt at a command (`once` has the exception of a slot that has moved).
//!
//! `explain` sorts the errors of `fred`: a transient one becomes `Error::Unavailable`, and every
//! other is fatal.
//!
//! Channels are the same in all databases of a server. In a database *n* > 0 a key's channel is
//! therefore `{key}:line:n`. The scripts are assembled with that suffix, and the subscriber accepts
//! a message only on a channel with exactly its own suffix.

mod batch;
mod connection;
mod path;
mod replication;
mod scripts;
mod sentinels;
mod server;
pub(crate) mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytes_utils::Str;
use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface, PubsubInterface};
use fred::types::config::{Config, Options, Server};
use fred::types::{ClusterHash, CustomCommand, Value};
use futures::future::{join_all, ready};
use futures::stream::{self, select_all};
use futures::{Stream, StreamExt};
use tokio::time::timeout;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::task::AbortOnDropHandle;

use super::{BatchKey, FencedError, FencedScript, Pace, Store, StoreEvent};
use crate::error::Error;
use crate::key::{Key, show, slot_of};
use crate::protocol::record::{RecordSnapshot, loss};
use crate::protocol::{Op, Outcome, Reply};
use crate::telemetry;
use batch::{Batch, batches, decode, names};
use connection::Connection;
use path::Path;
pub use replication::Replicas;
use replication::Replication;
use scripts::{Script, Scripts};
use sentinels::{Sentinels, TrackedClient};
pub(crate) use server::{ConnectError, Server as ServerAddress};

/// The time limit for the answer to one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// The size above which a result causes a warning. The server sends a result to every connection
/// that waits for it, and serves no other client meanwhile: 0.14 s for 300 connections and 64 KiB.
const LARGE: usize = 64 << 10;

/// One hub's connections to a server, a cluster or the master behind sentinels.
#[derive(Clone)]
pub struct RedisStore {
    /// The configuration of the connections.
    config: Config,
    commands: Connection,
    subscriber: Connection,
    replication: Option<Replication>,
    sentinels: Option<Sentinels>,
    scripts: Arc<Scripts>,
    path: Arc<Path>,
    pace: Pace,
    /// The suffix of the channels of our database. Empty for database 0.
    database: Arc<str>,
    /// The task that follows the sentinels, in a store without a hub.
    following: Option<Arc<AbortOnDropHandle<()>>>,
}

impl RedisStore {
    /// Connects as the configuration says.
    ///
    /// # Errors
    ///
    /// Returns `fred`'s error of the first attempt, which is not repeated.
    pub async fn connect(
        mut config: Config,
        replicas: Option<Replicas>,
        pace: Pace,
    ) -> Result<Self, FredError> {
        connection::name_all_nodes(&mut config).await;
        let own = Connection::establish(&config, Duration::ZERO, pace.answer).await?;
        Self::assemble(own, config, replicas, pace).await
    }

    /// Sends commands over a connected client of the caller's. Makes the other connections that it
    /// needs to the same server, with the same credentials.
    ///
    /// # Errors
    ///
    /// Returns `fred`'s error of the first attempt, which is not repeated.
    pub async fn with_client(
        commands: Client,
        replicas: Option<Replicas>,
        pace: Pace,
    ) -> Result<Self, FredError> {
        let mut config = commands.client_config();
        connection::name_all_nodes(&mut config).await;
        let commands = Connection::adopt(&commands, pace.answer);
        Self::assemble(commands, config, replicas, pace).await
    }

    /// Makes the other connections. If this fails, the connections made so far end.
    async fn assemble(
        commands: Connection,
        config: Config,
        replicas: Option<Replicas>,
        pace: Pace,
    ) -> Result<Self, FredError> {
        let subscriber = Connection::establish(&config, Duration::ZERO, pace.answer).await?;
        let replication = match replicas {
            None => None,
            Some(replicas) => Some(Replication::connect(&config, replicas, pace.answer).await?),
        };
        // A cluster has only one database.
        let database = match config.database {
            Some(database @ 1..) if !config.server.is_clustered() => format!(":{database}"),
            _ => String::new(),
        };
        Ok(Self {
            sentinels: Sentinels::of(&config, pace.answer),
            config,
            commands,
            subscriber,
            replication,
            scripts: Scripts::new(&database, |source| source),
            path: Arc::new(Path::new(pace)),
            pace,
            database: database.into(),
            following: None,
        })
    }

    /// Returns the parts that a second connection to the same runs needs.
    pub(crate) fn apart(&self) -> Apart {
        Apart {
            config: self.config.clone(),
            replicas: self.replication.as_ref().map(|own| own.replicas),
            pace: self.pace,
            scripts: self.scripts.clone(),
            database: self.database.clone(),
        }
    }

    /// Returns the store with edited scripts: with another clock, or with a mistake that a test
    /// must find.
    #[doc(hidden)]
    pub fn edit_scripts(mut self, edit: impl Fn(String) -> String) -> Self {
        self.scripts = Scripts::new(&self.database, edit);
        self
    }

    /// Returns the channel of a key's transitions. Redis channels are the same in all databases, so
    /// a database other than 0 has its number at the end of the name.
    fn channel(&self, key: &Key) -> Str {
        match &*self.database {
            "" => key.line().clone(),
            database => [key.line(), database].concat().into(),
        }
    }

    /// Checks what the first waiter needs: the subscriber may subscribe, the commands may publish,
    /// and both lead to one server.
    ///
    /// # Errors
    ///
    /// Returns the error of the server or of the connection. Also fails if the subscriber does not
    /// receive what the commands publish.
    pub(crate) async fn try_path(&self, key: &Key) -> Result<(), Error> {
        let channel = self.channel(key);
        let path = &self.path;
        let heard = path.is_whole_for(key, &channel, &self.commands, &self.subscriber);
        match heard.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text = "what one connection publishes is not heard on another: the address \
                            leads to more than one server";
                let source = FredError::new(ErrorKind::Routing, text);
                Err(explain(key, source))
            }
            Err(error) => Err(explain(key, error)),
        }
    }

    /// Returns the configured and the selected database of a caller's client, if they differ. A
    /// `SELECT` by hand is lost at the next reconnect.
    pub(crate) async fn selected_by_hand(&self) -> Option<(u64, u64)> {
        let client = self.commands.client();
        if self.commands.is_owned() || client.is_clustered() {
            return None;
        }
        let info = CustomCommand::new_static("CLIENT", None, false);
        let client = client.with_options(&once());
        let info = self.commands.owing(0, client.custom(info, vec!["INFO"]));
        let info: String = info.await.ok()?;
        let field = info.split(' ').find_map(|field| field.strip_prefix("db="));
        let selected = field?.trim().parse().ok()?;
        let configured = self
            .commands
            .client()
            .client_config()
            .database
            .unwrap_or_default()
            .into();
        (selected != configured).then_some((configured, selected))
    }

    /// Returns each server's `INFO` with its address. Leaves out a server that does not permit it.
    pub(crate) async fn info(&self) -> Vec<(String, String)> {
        let servers: Vec<(String, Option<Server>)> = match masters(self.commands.client()) {
            Some(nodes) => nodes.map(|node| (node.to_string(), Some(node))).collect(),
            None => vec![(self.address(), None)],
        };
        let answers = servers.into_iter().map(async |(address, cluster_node)| {
            let options = Options {
                cluster_node,
                ..once()
            };
            let info = CustomCommand::new_static("INFO", None, false);
            let client = self.commands.client().with_options(&options);
            let info = client.custom::<String, String>(info, Vec::new()).await;
            Some((address, info.ok()?))
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    /// Returns the address of the one server, or of the master behind sentinels.
    fn address(&self) -> String {
        let hosts = self.commands.client().client_config().server.hosts();
        let server = self.subscriber.first().or(hosts.first());
        server.map(ToString::to_string).unwrap_or_default()
    }

    /// Executes a batch in as few calls as possible. A call that the server refuses as a whole is
    /// tried again in smaller parts, because one item may be the cause, such as a key that the user
    /// may not access.
    async fn carry_out(&self, batch: &Batch<'_>) -> Vec<Result<Reply, Error>> {
        let mut results = Vec::with_capacity(batch.items.len());
        let mut most = batch.items.len();
        while results.len() < batch.items.len() {
            let part = batch.part(results.len(), most);
            match self.run(&part).await {
                Ok(answers) => {
                    results.extend(answers);
                    most = batch.items.len();
                }
                Err(error) if part.items.len() > 1 && blames_one(&error) => {
                    most = part.items.len() / 2;
                }
                Err(error) => {
                    results.extend(part.keys().map(|key| Err(explain(key, error.clone()))));
                }
            }
        }
        results
    }

    /// Returns answers to at least the first item. Long records may leave the rest unanswered.
    async fn run(&self, batch: &Batch<'_>) -> Result<Vec<Result<Reply, Error>>, FredError> {
        let replication = self.replicating(batch.first());
        let (connection, options) = match replication {
            None => (&self.commands, once()),
            // The `WAIT` of another call may come first.
            Some(Replication {
                connection,
                replicas,
            }) => (
                connection,
                Options {
                    timeout: Some(replicas.timeout + COMMAND_TIMEOUT),
                    ..once()
                },
            ),
        };
        let script = batch.script(&self.scripts);
        let said = || (names(batch.keys()).collect(), batch.args());
        let answer = eval(connection, &options, batch.slot(), script, said).await?;
        let mut results: Vec<Result<Reply, Error>> = batch
            .keys()
            .zip(decode(answer)?)
            .map(|(key, result)| result.map_err(|error| explain(key, error)))
            .collect();
        if let Some(replication) = replication {
            let rewrite = &self.scripts.rewrite;
            replication.prove(batch, rewrite, &mut results).await?;
        }
        Ok(results)
    }

    /// Returns the replication if other clients rely on the result of this operation: on who holds
    /// the key and until when, or on the completion of the work.
    fn replicating(&self, op: &Op) -> Option<&Replication> {
        let relied_on = match op {
            Op::Claim { .. } | Op::Renew { .. } => true,
            Op::Settle { outcome, .. } => matches!(outcome, Outcome::Done(_)),
            Op::Withdraw { .. } | Op::Clear { .. } | Op::Inspect => false,
        };
        self.replication.as_ref().filter(|_| relied_on)
    }
}

/// The parts that a second connection to the runs of a [`RedisStore`] needs, on another runtime.
#[derive(Clone)]
pub(crate) struct Apart {
    config: Config,
    replicas: Option<Replicas>,
    pace: Pace,
    scripts: Arc<Scripts>,
    database: Arc<str>,
}

impl Apart {
    /// Connects a store that executes transitions and receives none. Its one connection also waits
    /// for replicas, and the store follows the sentinels by itself.
    ///
    /// # Errors
    ///
    /// Returns `fred`'s error of the first attempt.
    pub(crate) async fn connect(self) -> Result<RedisStore, FredError> {
        let Self {
            config,
            replicas,
            pace,
            scripts,
            database,
        } = self;
        let waits = replicas.map_or(Duration::ZERO, |replicas| replicas.timeout);
        let commands = Connection::establish(&config, waits, pace.answer).await?;
        let mut store = RedisStore {
            sentinels: Sentinels::of(&config, pace.answer),
            config,
            // This store subscribes to nothing.
            subscriber: commands.clone(),
            replication: replicas.map(|replicas| Replication {
                connection: commands.clone(),
                replicas,
            }),
            path: Arc::new(Path::new(pace)),
            commands,
            scripts,
            pace,
            database,
            following: None,
        };
        if let Some(sentinels) = &mut store.sentinels {
            let mut switches = sentinels.follow(vec![TrackedClient::new(&store.commands)])?;
            let following = async move { while switches.next().await.is_some() {} };
            let following = AbortOnDropHandle::new(tokio::spawn(following));
            store.following = Some(Arc::new(following));
        }
        Ok(store)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("commands", &self.commands.client().id())
            .field("subscriber", &self.subscriber.client().id())
            .finish()
    }
}

impl Store for RedisStore {
    fn lane(&self, key: &Key, op: &Op) -> BatchKey {
        // Transitions that wait for replicas delay only each other, and a call has one slot.
        let slot = BatchKey::from(self.commands.lane(key.slot()));
        slot << 1 | BatchKey::from(self.replicating(op).is_some())
    }

    async fn apply_all(&self, asked: &[(&Key, &Op)]) -> Vec<Result<Reply, Error>> {
        let alike = |one: &Op, other: &Op| {
            self.replicating(one).is_some() == self.replicating(other).is_some()
        };
        let batches = batches(asked, alike);
        let carried_out = join_all(batches.iter().map(|batch| self.carry_out(batch))).await;
        let items = batches.iter().flat_map(|batch| batch.items.iter().copied());
        let mut results: Vec<_> = items.zip(carried_out.into_iter().flatten()).collect();
        results.sort_unstable_by_key(|(place, _)| *place);
        for ((key, op), (_, result)) in asked.iter().zip(&results) {
            if let Op::Settle {
                outcome: Outcome::Done(payload),
                ..
            } = op
                && payload.len() > LARGE
                && result.as_ref().is_ok_and(|reply| reply.ok)
            {
                telemetry::large_result(key, payload.len());
            }
        }
        results.into_iter().map(|(_, result)| result).collect()
    }

    async fn fenced(&self, key: &Key, script: &FencedScript) -> Result<Value, FencedError> {
        if self.commands.client().is_clustered() {
            for name in &script.keys {
                let bytes = name.as_bytes().unwrap_or_default();
                let slot = slot_of(bytes);
                if slot != key.slot() {
                    return Err(FencedError::OtherSlot {
                        key: show(bytes),
                        slot,
                        wanted: key.slot(),
                    });
                }
            }
        }
        let said = || {
            let mut keys = vec![Value::Bytes(key.bytes().clone())];
            keys.extend_from_slice(&script.keys);
            let mut args = vec![Value::String(script.fence.to_string().into())];
            args.extend_from_slice(&script.args);
            (keys, args)
        };
        let fenced = Script::fenced(&script.source);
        let ran = eval(&self.commands, &once(), key.slot(), &fenced, said).await;
        match ran {
            Ok(value) => Ok(value),
            Err(error) if error.details().starts_with("LWLOST") => {
                let read = self.apply(key, &Op::Inspect).await;
                let read = read.map_err(FencedError::Unknown)?;
                Err(loss(read.record(), script.attempt).into())
            }
            Err(error) if is_answer(&error) => Err(FencedError::Script(error.into())),
            Err(error) => Err(FencedError::Unknown(explain(key, error))),
        }
    }

    async fn line(&self, key: &Key, most: u32) -> Result<Vec<String>, Error> {
        let range = CustomCommand::new_static("ZRANGE", ClusterHash::Custom(key.slot()), false);
        let args = vec![
            Value::Bytes(key.line().inner().clone()),
            Value::Integer(0),
            Value::Integer(i64::from(most) - 1),
        ];
        let client = self.commands.client().with_options(&once());
        let lane = self.commands.lane(key.slot());
        let waiting = self.commands.owing(lane, client.custom(range, args)).await;
        let waiting: Value = waiting.map_err(|error| explain(key, error))?;
        // An entry is a token of 32 digits followed by the label.
        let labels = waiting.into_array().into_iter().filter_map(|waiter| {
            let waiter = waiter.into_bytes()?;
            Some(String::from_utf8_lossy(waiter.get(32..)?).into_owned())
        });
        Ok(labels.collect())
    }

    async fn watch(&self, key: &Key) -> Result<(), Error> {
        let (channel, lane) = (self.channel(key), self.subscriber.lane(key.slot()));
        self.path.begin(lane, &channel);
        let subscribed = self.subscriber.subscribe(key.slot(), &channel).await;
        subscribed.map_err(|error| {
            self.path.end(lane, &channel);
            explain(key, error)
        })
    }

    async fn unwatch(&self, key: &Key) {
        let (channel, lane) = (self.channel(key), self.subscriber.lane(key.slot()));
        let beat = self.path.end(lane, &channel);
        // If the unsubscription fails, the only cost is messages that no task waits for.
        let subscriber = self.subscriber.client().with_options(&once());
        let _ = subscriber.sunsubscribe(channel).await;
        if let Some(beat) = beat {
            let _ = subscriber.sunsubscribe(beat).await;
        }
    }

    async fn ping(&self) -> Result<(), Error> {
        let subscriber = self.subscriber.client();
        let mut slots = None;
        if subscriber.is_clustered() {
            // No message tells that a slot has moved, and its subscriptions with it.
            let _ = timeout(COMMAND_TIMEOUT, subscriber.sync_cluster()).await;
            slots = subscriber.cached_cluster_state();
        }
        let node = |slot| slots.as_ref()?.get_server(slot).cloned();
        let whole = self.path.is_whole(&self.commands, &self.subscriber, node);
        match whole.await {
            Ok(true) => Ok(()),
            _ => Err(Error::Stopped),
        }
    }

    fn ping_period(&self) -> Duration {
        self.pace.beat
    }

    fn hear(&mut self) -> impl Stream<Item = StoreEvent> + Send + Unpin + 'static {
        let (path, database) = (self.path.clone(), self.database.clone());
        let messages = BroadcastStream::new(self.subscriber.client().message_rx());
        let messages = messages.filter_map(move |message| {
            let Ok(message) = message else {
                return ready(Some(StoreEvent::Lagged));
            };
            // A message of another database is not ours, whatever its sender.
            let channel = message.channel.strip_suffix(&*database);
            let channel = channel.filter(|_| !path.is_beat(&message.channel));
            let channel = channel.map(|channel| match &*database {
                "" => message.channel.clone(),
                _ => Str::from(channel),
            });
            ready(channel.map(|channel| {
                let frame = message.value.into_bytes();
                StoreEvent::Message {
                    channel,
                    frame: frame.and_then(|frame| RecordSnapshot::decode(&frame).ok()),
                }
            }))
        });
        let errors = BroadcastStream::new(self.subscriber.client().error_rx());
        let torn = BroadcastStream::new(self.subscriber.torn());
        let reconnects = BroadcastStream::new(self.subscriber.client().reconnect_rx());
        let elsewhere = BroadcastStream::new(self.commands.client().reconnect_rx());
        // The subscriber learns of a moved slot only by asking. The command connection is
        // redirected.
        let moves = BroadcastStream::new(self.commands.client().cluster_change_rx());
        let subscriber = self.subscriber.client().clone();
        let slots = move || {
            let state = subscriber.cached_cluster_state();
            state.map(|state| state.slots().to_vec())
        };
        let mut known = slots();
        let looks = BroadcastStream::new(self.subscriber.client().cluster_change_rx());
        let looks = looks.filter_map(move |_| {
            let before = std::mem::replace(&mut known, slots());
            ready((known != before).then_some(StoreEvent::Reconnected))
        });
        let replication = self
            .replication
            .iter()
            .map(|replicating| &replicating.connection);
        let all = [&self.commands, &self.subscriber].into_iter();
        let places: Vec<TrackedClient> = all.chain(replication).map(TrackedClient::new).collect();
        let switches = self
            .sentinels
            .as_mut()
            .and_then(|sentinels| sentinels.follow(places).ok());
        let switches = switches.map_or_else(|| stream::pending().boxed(), StreamExt::boxed);
        // The hub polls this on each of its turns. `select_all` polls only the streams that are
        // ready.
        select_all([
            messages.boxed(),
            errors.map(|_| StoreEvent::Disconnected).boxed(),
            torn.map(|_| StoreEvent::Disconnected).boxed(),
            reconnects.map(|_| StoreEvent::Reconnected).boxed(),
            elsewhere.map(|_| StoreEvent::CommandsReconnected).boxed(),
            moves.map(|_| StoreEvent::Reconnected).boxed(),
            looks.boxed(),
            switches.map(|()| StoreEvent::Reconnected).boxed(),
        ])
    }

    async fn close(&self) {
        if let Some(following) = &self.following {
            following.abort();
        }
        self.subscriber.close();
        if let Some(replication) = &self.replication {
            replication.connection.close();
        }
        if let Some(sentinels) = &self.sentinels {
            sentinels.close();
        }
        // A caller's client stays open; only our watch over it ends.
        self.commands.close();
    }
}

/// Returns the masters of a cluster. `fred`'s list of active connections has only those whose user
/// may call `CLIENT ID`.
fn masters(client: &Client) -> Option<impl Iterator<Item = Server> + use<>> {
    let state = client.cached_cluster_state()?;
    Some(state.unique_primary_nodes().into_iter())
}

/// Runs a script, by its digest once the server has it. `said` returns its keys and its arguments.
async fn eval(
    connection: &Connection,
    options: &Options,
    slot: u16,
    script: &Script,
    said: impl Fn() -> (Vec<Value>, Vec<Value>),
) -> Result<Value, FredError> {
    let client = connection.client().with_options(options);
    let send = async |command, script: &Bytes| {
        let command = CustomCommand::new_static(command, ClusterHash::Custom(slot), false);
        let (keys, args) = said();
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let mut all = Vec::with_capacity(2 + keys.len() + args.len());
        all.extend([Value::Bytes(script.clone()), Value::Integer(count)]);
        all.extend(keys.into_iter().chain(args));
        let lane = connection.lane(slot);
        let asking = client.custom::<Value, _>(command, all);
        connection.owing(lane, asking).await
    };
    match send("EVALSHA", &script.sha).await {
        // The server has lost its scripts. `EVAL` loads the script on the one node that was asked.
        Err(error) if error.details().starts_with("NOSCRIPT") => send("EVAL", &script.source).await,
        reply => reply,
    }
}

/// Returns the options of a request that is sent once. A script whose connection broke may have
/// run, and the hub decides what to ask next. Only if a slot has moved, so that the script has not
/// run, it is sent a second time. More attempts would not help: `fred` sends a request that it
/// should ask elsewhere (`ASK`) to the same node again. Its task dies if the attempts run out
/// before the redirections.
fn once() -> Options {
    Options {
        max_attempts: Some(2),
        max_redirections: Some(1),
        fail_fast: true,
        timeout: Some(COMMAND_TIMEOUT),
        ..Options::default()
    }
}

/// The first words of the errors of a server that will serve again.
const PASSING: &[&str] = &[
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
];

/// Whether one key of the call may have caused the error. The call has not run then.
fn blames_one(error: &FredError) -> bool {
    let word = error.details().split(' ').next().unwrap_or_default();
    // While a slot is being moved, some of the keys are here and others are not.
    is_answer(error) && (word == "TRYAGAIN" || !PASSING.contains(&word))
}

/// The errors of `fred` for a client that is closed or was never connected.
const GONE: [&str; 2] = [
    "Failed to send command to router.",
    "Client is not initialized.",
];

/// More errors of `fred` without a kind of their own: the connection was lost just then, a
/// reconnect (or a shutdown, which the next request reports) lost the answer, or a slot moved once
/// more.
const NOT_ANSWERED: [&str; 4] = [
    "Failed to route command.",
    "Max attempts reached.",
    "Too many failed write attempts.",
    connection::DROPPED,
];

/// Whether the server itself sent this error, and not a layer between the server and us.
fn is_answer(error: &FredError) -> bool {
    let between = matches!(
        error.kind(),
        ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Routing
            | ErrorKind::Cluster
            | ErrorKind::Sentinel
            | ErrorKind::Backpressure
    );
    let details = error.details();
    !between && !NOT_ANSWERED.contains(&details) && !GONE.contains(&details)
}

/// Converts an error of `fred`. The variant tells whether another try is worthwhile.
fn explain(key: &Key, source: FredError) -> Error {
    let key = key.clone();
    let details = source.details();
    let word = details.split(' ').next().unwrap_or_default();
    if let Some(found) = details.strip_prefix("LWFORMAT ") {
        let found = found.split(" script:").next().unwrap_or(found).to_owned();
        return Error::UnknownFormat { key, found };
    }
    if word == "WRONGTYPE" {
        return Error::WrongType { key };
    }
    if GONE.contains(&details) {
        return Error::Stopped;
    }
    let passing = !is_answer(&source)
        || PASSING.contains(&word)
        || details.contains("max number of clients reached");
    match passing {
        true => Error::Unavailable {
            key,
            source: source.into(),
        },
        false => Error::Refused {
            key,
            source: source.into(),
        },
    }
}
