//! The transitions as Lua scripts on a server, through two connections of the `fred` client: one
//! for commands, one for subscriptions.
//!
//! They are apart because the reply of a subscription and the reply of a command can be taken for
//! each other on one connection. Nothing is retried here: a script whose connection broke may have
//! run, and only the caller knows whether it still wants the answer.

mod connection;
mod scripts;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, Options};
use fred::types::{ClusterHash, CustomCommand, Value};
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};
use tokio_stream::wrappers::BroadcastStream;

use super::key::Key;
use super::record::Frame;
use super::{Failure, Heard, Op, Outcome, Reply, Store};
use crate::error::Error;
use connection::{client, establish, quit};
use scripts::{Script, Scripts};

/// How long the server has to answer one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// One hub's connections to a server, a cluster, or the master behind sentinels.
#[derive(Clone)]
pub struct RedisStore {
    commands: Client,
    subscriber: Client,
    /// Whether closing ends the command connection too: not if the caller brought it.
    owns_commands: bool,
    scripts: Arc<Scripts>,
}

impl RedisStore {
    /// Connects both connections as the configuration says.
    ///
    /// # Errors
    ///
    /// Whatever `fred` says of the first attempt; it is not repeated.
    pub async fn connect(config: Config) -> Result<Self, FredError> {
        let commands = client(config.clone())?;
        let subscriber = client(config)?;
        establish(&commands).await?;
        if let Err(error) = establish(&subscriber).await {
            quit(&commands).await;
            return Err(error);
        }
        Ok(Self {
            commands,
            subscriber,
            owns_commands: true,
            scripts: Scripts::new(|source| source),
        })
    }

    /// Sends commands over a connected client of the caller's, and connects a subscriber to the same
    /// server, with its credentials.
    ///
    /// # Errors
    ///
    /// Whatever `fred` says of the first attempt; it is not repeated.
    pub async fn with_client(commands: Client) -> Result<Self, FredError> {
        let subscriber = client(commands.client_config())?;
        establish(&subscriber).await?;
        Ok(Self {
            commands,
            subscriber,
            owns_commands: false,
            scripts: Scripts::new(|source| source),
        })
    }

    /// The same connections with edited scripts: another clock, or a mistake to be found.
    #[doc(hidden)]
    pub fn edit_scripts(mut self, edit: impl Fn(String) -> String) -> Self {
        self.scripts = Scripts::new(edit);
        self
    }

    async fn run(&self, key: &Key, script: &Script, args: Vec<Value>) -> Result<Reply, FredError> {
        let evalsha = self.eval(key, "EVALSHA", script.sha.clone(), args.clone());
        let reply = match evalsha.await {
            // The server has forgotten its scripts. EVAL teaches the one node that was asked.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.eval(key, "EVAL", script.source.clone(), args).await
            }
            reply => reply,
        };
        let (ok, frame, position) = reply?;
        let frame = Frame::decode(&frame)
            .map_err(|error| FredError::new(ErrorKind::Protocol, error.to_string()))?;
        Ok(Reply {
            ok: ok == 1,
            frame,
            position: u64::try_from(position).ok(),
        })
    }

    async fn eval(
        &self,
        key: &Key,
        command: &'static str,
        script: Bytes,
        args: Vec<Value>,
    ) -> Result<(i64, Bytes, i64), FredError> {
        let command = CustomCommand::new_static(command, ClusterHash::Custom(key.slot()), false);
        let head = [
            Value::Bytes(script),
            Value::Integer(3),
            Value::Bytes(key.bytes().clone()),
            Value::Bytes(key.line().clone()),
            Value::String(key.channel().as_ref().into()),
        ];
        let args = head.into_iter().chain(args).collect();
        self.commands
            .with_options(&once())
            .custom(command, args)
            .await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("commands", &self.commands.id())
            .field("subscriber", &self.subscriber.id())
            .finish()
    }
}

impl Store for RedisStore {
    async fn apply(&self, key: &Key, op: &Op) -> Result<Reply, Error> {
        let scripts = &self.scripts;
        let text = |text: &str| Value::String(text.into());
        let number = |number: u64| Value::String(number.to_string().into());
        let (script, args) = match op {
            Op::Claim {
                token,
                label,
                lease,
                max_attempts,
                retention,
            } => (
                &scripts.claim,
                vec![
                    text(&token.to_string()),
                    text(label),
                    number(*lease),
                    number(u64::from(*max_attempts)),
                    number(*retention),
                ],
            ),
            Op::Settle {
                fence,
                outcome,
                window,
            } => {
                let (outcome, payload) = match outcome {
                    Outcome::Done(result) => ("done", Value::Bytes(result.clone())),
                    Outcome::HandOff => ("hand_off", text("")),
                    Outcome::Fail(Failure::Dropped) => ("dropped", text("")),
                    Outcome::Fail(Failure::Panicked) => ("panicked", text("")),
                    Outcome::Fail(Failure::Reason(reason)) => ("failed", text(reason)),
                    Outcome::FailPermanently(reason) => ("failed_permanently", text(reason)),
                };
                let args = vec![number(*fence), text(outcome), payload, number(*window)];
                (&scripts.settle, args)
            }
            Op::Renew {
                fence,
                lease,
                checkpoint,
            } => {
                let checkpoint = checkpoint.iter().cloned().map(Value::Bytes);
                let args = [number(*fence), number(*lease)]
                    .into_iter()
                    .chain(checkpoint);
                (&scripts.renew, args.collect())
            }
            Op::Withdraw {
                token,
                label,
                window,
            } => (
                &scripts.withdraw,
                vec![text(&token.to_string()), text(label), number(*window)],
            ),
            Op::Inspect => (&scripts.inspect, Vec::new()),
        };
        self.run(key, script, args)
            .await
            .map_err(|error| explain(key, error))
    }

    async fn watch(&self, key: &Key) -> Result<(), Error> {
        // One channel a call: fred counts the acknowledgements of one only.
        let subscriber = self.subscriber.with_options(&once());
        let subscribed = subscriber.ssubscribe(key.channel().as_ref()).await;
        subscribed.map_err(|error| explain(key, error))
    }

    async fn unwatch(&self, key: &Key) {
        // A subscription that stays is only a message nobody waits for.
        let subscriber = self.subscriber.with_options(&once());
        let _ = subscriber.sunsubscribe(key.channel().as_ref()).await;
    }

    async fn ping(&self) -> Result<(), Error> {
        let ping = async |options| {
            self.subscriber
                .with_options(&options)
                .ping::<Value>(None)
                .await
        };
        let pinged = if self.subscriber.is_clustered() {
            let nodes = self.subscriber.active_connections().into_iter();
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
        let messages = BroadcastStream::new(self.subscriber.message_rx()).map(|message| {
            let Ok(message) = message else {
                return Heard::Gap;
            };
            let frame = message.value.into_bytes();
            Heard::Message {
                channel: Arc::from(&*message.channel),
                frame: frame.and_then(|frame| Frame::decode(&frame).ok()),
            }
        });
        let errors = BroadcastStream::new(self.subscriber.error_rx());
        let reconnects = BroadcastStream::new(self.subscriber.reconnect_rx());
        // A slot that moves is silent on the subscriber; the command connection is redirected.
        let moves = BroadcastStream::new(self.commands.cluster_change_rx());
        stream::select(
            messages,
            stream::select(
                errors.map(|_| Heard::Disconnected),
                stream::select(
                    reconnects.map(|_| Heard::Reconnected),
                    moves.map(|_| Heard::Reconnected),
                ),
            ),
        )
    }

    async fn close(&self) {
        quit(&self.subscriber).await;
        if self.owns_commands {
            quit(&self.commands).await;
        }
    }
}

/// One attempt: a script whose connection broke may have run, and the hub decides what to ask next.
fn once() -> Options {
    Options {
        max_attempts: Some(1),
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

/// What fred says once its client has been closed, or before it was connected.
const GONE: [&str; 2] = [
    "Failed to send command to router.",
    "Client is not initialized.",
];

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
    let passing = match source.kind() {
        ErrorKind::IO
        | ErrorKind::Timeout
        | ErrorKind::Canceled
        | ErrorKind::Routing
        | ErrorKind::Cluster
        | ErrorKind::Sentinel
        | ErrorKind::Backpressure => true,
        // A command whose answer got lost in a reconnect, or in a shutdown that the next one tells.
        _ if details == "channel closed" => true,
        _ => PASSING.contains(&word) || details.contains("max number of clients reached"),
    };
    match passing {
        true => Error::Unavailable { key, source },
        false => Error::Refused { key, source },
    }
}
