//! The transitions as Lua scripts on a server, through two connections of the `fred` client: one
//! for commands, one for subscriptions; and a third where replicas have to acknowledge.
//!
//! They are apart because the reply of a subscription and the reply of a command can be taken for
//! each other on one connection. Nothing is retried here: a script whose connection broke may have
//! run, and only the caller knows whether it still wants the answer.

mod batch;
mod connection;
mod replication;
mod scripts;
mod sentinels;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, ClusterInterface, EventInterface, PubsubInterface};
use fred::types::config::{Config, Options, Server};
use fred::types::{ClusterHash, CustomCommand, Value};
use fred::util::redis_keyslot;
use futures::future::{join_all, ready, try_join_all};
use futures::stream::{self, select_all};
use futures::{Stream, StreamExt};
use tokio::time::timeout;
use tokio_stream::wrappers::BroadcastStream;

use super::key::{Key, show};
use super::record::{Frame, loss};
use super::{Guarded, Heard, Lane, Op, Outcome, Reply, Store};
use crate::error::{Error, FencedError};
use batch::{Batch, batches, decode, names};
use connection::{Connection, client};
pub use replication::Replicas;
use replication::Replication;
use scripts::{Script, Scripts};
use sentinels::{Place, Sentinels};

/// How long the server has to answer one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// One hub's connections to a server, a cluster, or the master behind sentinels.
#[derive(Clone)]
pub struct RedisStore {
    commands: Client,
    /// The same, unless the caller brought it: then closing leaves it alone.
    owned: Option<Connection>,
    subscriber: Connection,
    replication: Option<Replication>,
    sentinels: Option<Sentinels>,
    scripts: Arc<Scripts>,
}

impl RedisStore {
    /// Connects as the configuration says.
    ///
    /// # Errors
    ///
    /// Whatever `fred` says of the first attempt; it is not repeated.
    pub async fn connect(config: Config, replicas: Option<Replicas>) -> Result<Self, FredError> {
        let own = Connection::establish(&client(config, Duration::ZERO)?).await?;
        match Self::with_client(own.client.clone(), replicas).await {
            Ok(store) => Ok(Self {
                owned: Some(own),
                ..store
            }),
            Err(error) => {
                own.close().await;
                Err(error)
            }
        }
    }

    /// Sends commands over a connected client of the caller's, and connects what else it needs to the
    /// same server, with its credentials.
    ///
    /// # Errors
    ///
    /// Whatever `fred` says of the first attempt; it is not repeated.
    pub async fn with_client(
        commands: Client,
        replicas: Option<Replicas>,
    ) -> Result<Self, FredError> {
        let sentinels = Sentinels::of(&commands.client_config())?;
        let subscriber = client(commands.client_config(), Duration::ZERO)?;
        let subscriber = Connection::establish(&subscriber).await?;
        let replication = match replicas {
            None => None,
            Some(replicas) => {
                match Replication::connect(commands.client_config(), replicas).await {
                    Ok(replication) => Some(replication),
                    Err(error) => {
                        subscriber.close().await;
                        return Err(error);
                    }
                }
            }
        };
        Ok(Self {
            commands,
            owned: None,
            subscriber,
            replication,
            sentinels,
            scripts: Scripts::new(|source| source),
        })
    }

    /// The same connections with edited scripts: another clock, or a mistake to be found.
    #[doc(hidden)]
    pub fn edit_scripts(mut self, edit: impl Fn(String) -> String) -> Self {
        self.scripts = Scripts::new(edit);
        self
    }

    /// What each server says of itself, by its address; nothing of one that does not permit it.
    pub(crate) async fn info(&self) -> Vec<(String, String)> {
        let servers: Vec<(String, Option<Server>)> = match masters(&self.commands) {
            Some(nodes) => nodes.map(|node| (node.to_string(), Some(node))).collect(),
            None => vec![(self.address(), None)],
        };
        let answers = servers.into_iter().map(async |(address, cluster_node)| {
            let options = Options {
                cluster_node,
                ..once()
            };
            let info = CustomCommand::new_static("INFO", None, false);
            let client = self.commands.with_options(&options);
            let info = client.custom::<String, String>(info, Vec::new()).await;
            Some((address, info.ok()?))
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    /// Of the one server; behind sentinels, the master's.
    fn address(&self) -> String {
        let hosts = self.commands.client_config().server.hosts();
        let server = self.subscriber.first.as_ref().or(hosts.first());
        server.map(ToString::to_string).unwrap_or_default()
    }

    /// Carries a batch out, in as few calls as can be. What the server refuses as a whole is tried in smaller
    /// parts: that may be the fault of one item, such as a key that the user has no access to.
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

    /// Answers at least the first item; not all, if their records are long.
    async fn run(&self, batch: &Batch<'_>) -> Result<Vec<Result<Reply, Error>>, FredError> {
        let replication = self.replicating(batch.first());
        let (client, options) = match replication {
            None => (&self.commands, once()),
            // Somebody else's wait may be before it.
            Some(Replication {
                connection,
                replicas,
            }) => (
                &connection.client,
                Options {
                    timeout: Some(replicas.timeout + COMMAND_TIMEOUT),
                    ..once()
                },
            ),
        };
        let client = client.with_options(&options);
        let script = batch.script(&self.scripts);
        let said = || (names(batch.keys()).collect(), batch.args());
        let answer = eval(&client, batch.slot(), script, said).await?;
        let mut results: Vec<Result<Reply, Error>> = batch
            .keys()
            .zip(decode(answer)?)
            .map(|(key, result)| result.map_err(|error| explain(key, error)))
            .collect();
        if let Some(replication) = replication {
            let touch = &self.scripts.touch;
            replication.prove(batch, touch, &mut results).await?;
        }
        Ok(results)
    }

    /// Whether others may only rely on it once replicas have it: who holds the key, until when, and
    /// that the work is complete.
    fn replicating(&self, op: &Op) -> Option<&Replication> {
        let relied_on = match op {
            Op::Claim { .. } | Op::Renew { .. } => true,
            Op::Settle { outcome, .. } => matches!(outcome, Outcome::Done(_)),
            Op::Withdraw { .. } | Op::Clear { .. } | Op::Inspect => false,
        };
        self.replication.as_ref().filter(|_| relied_on)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("commands", &self.commands.id())
            .field("subscriber", &self.subscriber.client.id())
            .finish()
    }
}

impl Store for RedisStore {
    fn lane(&self, key: &Key, op: &Op) -> Lane {
        // What waits for replicas holds up only its like, and a call has one slot.
        let slot = match self.commands.is_clustered() {
            true => Lane::from(key.slot()),
            false => 0,
        };
        slot << 1 | Lane::from(self.replicating(op).is_some())
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
        results.into_iter().map(|(_, result)| result).collect()
    }

    async fn fenced(&self, key: &Key, script: &Guarded) -> Result<Value, FencedError> {
        if self.commands.is_clustered() {
            for name in &script.keys {
                let bytes = name.as_bytes().unwrap_or_default();
                let slot = redis_keyslot(bytes);
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
        let client = self.commands.with_options(&once());
        let ran = eval(&client, key.slot(), &fenced, said).await;
        match ran {
            Ok(value) => Ok(value),
            Err(error) if error.details().starts_with("LWLOST") => {
                let read = self.apply(key, &Op::Inspect).await;
                let read = read.map_err(FencedError::Unknown)?;
                Err(loss(read.record(), script.attempt).into())
            }
            Err(error) if is_answer(&error) => Err(FencedError::Script(error)),
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
        let client = self.commands.with_options(&once());
        let waiting: Value = client
            .custom(range, args)
            .await
            .map_err(|error| explain(key, error))?;
        // A token of 32 digits, and the label.
        let labels = waiting.into_array().into_iter().filter_map(|waiter| {
            let waiter = waiter.into_bytes()?;
            Some(String::from_utf8_lossy(waiter.get(32..)?).into_owned())
        });
        Ok(labels.collect())
    }

    async fn watch(&self, key: &Key) -> Result<(), Error> {
        // One channel a call: fred counts the acknowledgements of one only.
        let subscriber = self.subscriber.client.with_options(&once());
        let subscribed = subscriber.ssubscribe(key.line().clone()).await;
        subscribed.map_err(|error| explain(key, error))
    }

    async fn unwatch(&self, key: &Key) {
        // A subscription that stays is only a message nobody waits for.
        let subscriber = self.subscriber.client.with_options(&once());
        let _ = subscriber.sunsubscribe(key.line().clone()).await;
    }

    async fn ping(&self) -> Result<(), Error> {
        let ping = async |options| {
            self.subscriber
                .client
                .with_options(&options)
                .ping::<Value>(None)
                .await
        };
        let pinged = if self.subscriber.client.is_clustered() {
            // Nobody else says that a slot has moved, and with it who hears of its keys.
            let _ = timeout(COMMAND_TIMEOUT, self.subscriber.client.sync_cluster()).await;
            let nodes = masters(&self.subscriber.client).into_iter().flatten();
            let pings = nodes.map(|node| {
                ping(Options {
                    cluster_node: Some(node),
                    ..once()
                })
            });
            try_join_all(pings).await.map(drop)
        } else {
            ping(once()).await.map(drop)
        };
        pinged.map_err(|_| Error::Stopped)
    }

    fn hear(&mut self) -> impl Stream<Item = Heard> + Send + Unpin + 'static {
        let messages = BroadcastStream::new(self.subscriber.client.message_rx()).map(|message| {
            let Ok(message) = message else {
                return Heard::Gap;
            };
            let frame = message.value.into_bytes();
            Heard::Message {
                channel: message.channel,
                frame: frame.and_then(|frame| Frame::decode(&frame).ok()),
            }
        });
        let errors = BroadcastStream::new(self.subscriber.client.error_rx());
        let reconnects = BroadcastStream::new(self.subscriber.client.reconnect_rx());
        // A slot that moves is silent on the subscriber until it looks; the command connection is redirected.
        let moves = BroadcastStream::new(self.commands.cluster_change_rx());
        let subscriber = self.subscriber.client.clone();
        let slots = move || {
            let state = subscriber.cached_cluster_state();
            state.map(|state| state.slots().to_vec())
        };
        let mut known = slots();
        let looks = BroadcastStream::new(self.subscriber.client.cluster_change_rx());
        let looks = looks.filter_map(move |_| {
            let before = std::mem::replace(&mut known, slots());
            ready((known != before).then_some(Heard::Reconnected))
        });
        let owned = self.owned.iter().chain([&self.subscriber]);
        let replication = self
            .replication
            .iter()
            .map(|replicating| &replicating.connection);
        let own = owned.chain(replication);
        let mut places: Vec<Place> = own
            .map(|own| Place::new(&own.client, own.first.clone()))
            .collect();
        if self.owned.is_none() {
            places.push(Place::new(&self.commands, None));
        }
        let switches = self
            .sentinels
            .as_mut()
            .map(|sentinels| sentinels.follow(places));
        let switches = switches.map_or_else(|| stream::pending().boxed(), StreamExt::boxed);
        // Polls only what has something to say; the hub polls this each time that anything happens.
        select_all([
            messages.boxed(),
            errors.map(|_| Heard::Disconnected).boxed(),
            reconnects.map(|_| Heard::Reconnected).boxed(),
            moves.map(|_| Heard::Reconnected).boxed(),
            looks.boxed(),
            switches.map(|()| Heard::Reconnected).boxed(),
        ])
    }

    async fn close(&self) {
        self.subscriber.close().await;
        if let Some(replication) = &self.replication {
            replication.connection.close().await;
        }
        if let Some(sentinels) = &self.sentinels {
            sentinels.close().await;
        }
        if let Some(own) = &self.owned {
            own.close().await;
        }
    }
}

/// Of a cluster. Not `fred`'s active connections: those are the ones whose `CLIENT ID` was permitted.
fn masters(client: &Client) -> Option<impl Iterator<Item = Server> + use<>> {
    let state = client.cached_cluster_state()?;
    Some(state.unique_primary_nodes().into_iter())
}

/// Runs a script, which the server knows by its digest once it has seen it; `said` is its keys and its
/// arguments.
async fn eval(
    client: &impl ClientLike,
    slot: u16,
    script: &Script,
    said: impl Fn() -> (Vec<Value>, Vec<Value>),
) -> Result<Value, FredError> {
    let send = async |command, script: &Bytes| {
        let command = CustomCommand::new_static(command, ClusterHash::Custom(slot), false);
        let (keys, args) = said();
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let mut all = Vec::with_capacity(2 + keys.len() + args.len());
        all.extend([Value::Bytes(script.clone()), Value::Integer(count)]);
        all.extend(keys.into_iter().chain(args));
        client.custom::<Value, _>(command, all).await
    };
    match send("EVALSHA", &script.sha).await {
        // The server has forgotten its scripts. EVAL teaches the one node that was asked.
        Err(error) if error.details().starts_with("NOSCRIPT") => send("EVAL", &script.source).await,
        reply => reply,
    }
}

/// A script whose connection broke may have run, and the hub decides what to ask next: so it is sent once. Only
/// where a slot has moved, and it was not carried out, it is sent a second time. No more: `fred` sends what is to be
/// asked elsewhere (`ASK`) to the same node again, and dies of it when no attempt is left before no
/// redirection is.
fn once() -> Options {
    Options {
        max_attempts: Some(2),
        max_redirections: Some(1),
        fail_fast: true,
        timeout: Some(COMMAND_TIMEOUT),
        ..Options::default()
    }
}

/// Errors of a server that will serve again, by the word they begin with.
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

/// Whether an error may be due to one of the keys of a call, which was not carried out then.
fn blames_one(error: &FredError) -> bool {
    let word = error.details().split(' ').next().unwrap_or_default();
    // In a slot that is being moved, some of the keys are here and some are not.
    is_answer(error) && (word == "TRYAGAIN" || !PASSING.contains(&word))
}

/// What fred says once its client has been closed, or before it was connected.
const GONE: [&str; 2] = [
    "Failed to send command to router.",
    "Client is not initialized.",
];

/// What else it says without a kind: the connection was gone just then, its answer got lost in a reconnect (or in
/// a shutdown that the next one tells), or a slot moved once more.
const NOT_ANSWERED: [&str; 4] = [
    "Failed to route command.",
    "Max attempts reached.",
    "Too many failed write attempts.",
    "channel closed",
];

/// Whether the server itself has said so, and not what lies between it and us.
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

/// Says which step failed, and so whether it is worth another try.
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
        true => Error::Unavailable { key, source },
        false => Error::Refused { key, source },
    }
}
