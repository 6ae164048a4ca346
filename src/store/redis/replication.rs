//! A connection that waits until replicas have acknowledged a write.
//!
//! `WAIT` blocks all later requests on its connection, and it covers only writes of that
//! connection. So the writes that need it have a connection of their own, where they delay only
//! each other: claims, renewals and completions.
//!
//! After each of their calls, a script that writes the records again unchanged (`rewrite.lua`) and
//! `WAIT` are sent at once. Without that script, `WAIT` could have nothing to cover: a repeated
//! claim writes nothing, and a new connection has written nothing. The script's answer must still
//! show the same grant. After a failover in between, the replicas of another master have
//! acknowledged whatever that master has.
//!
//! The hub withdraws a claim that too few replicas have acknowledged. It confirms a pushed grant in
//! this way before the stream yields it, and gives it back if that fails.

use std::time::Duration;

use bytes::Bytes;
use fred::error::Error as FredError;
use fred::interfaces::ClientLike;
use fred::types::config::Config;
use fred::types::{ClusterHash, CustomCommand, Value};

use super::batch::{Batch, decode, names};
use super::connection::Connection;
use super::{Key, Script, explain};
use crate::error::Error;
use crate::protocol::Reply;

/// The number of replicas that have to acknowledge a write, and the time for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The number of replicas, at least 1.
    pub count: u32,
    /// The time limit, in whole milliseconds.
    pub timeout: Duration,
}

#[derive(Clone)]
pub(super) struct Replication {
    pub(super) connection: Connection,
    pub(super) replicas: Replicas,
}

impl Replication {
    pub(super) async fn connect(
        config: &Config,
        replicas: Replicas,
        bound: Duration,
    ) -> Result<Self, FredError> {
        let connection = Connection::establish(config, replicas.timeout, bound).await?;
        Ok(Self {
            connection,
            replicas,
        })
    }

    /// Replaces the results that too few replicas acknowledge in time with an error.
    pub(super) async fn prove(
        &self,
        batch: &Batch<'_>,
        rewrite: &Script,
        results: &mut [Result<Reply, Error>],
    ) -> Result<(), FredError> {
        let written: Vec<(&Key, &mut Result<Reply, Error>)> = batch
            .keys()
            .zip(results)
            .filter(|(_, result)| result.as_ref().is_ok_and(|reply| reply.ok))
            .collect();
        if written.is_empty() {
            return Ok(());
        }
        let keys: Vec<&Key> = written.iter().map(|(key, _)| *key).collect();
        let (touched, acknowledged) = self.wait(batch.slot(), rewrite, &keys).await?;
        let mut touched = decode(touched)?.into_iter();
        let Replicas { count, timeout } = self.replicas;
        for (key, result) in written {
            // A failover may have happened in between. The replicas of the new master have
            // acknowledged that master's data, which may lack this write. A write that was not
            // rewritten has no acknowledgement.
            let touched = touched.next().transpose();
            let touched = touched.map_err(|error| explain(key, error));
            let proven = touched.map(|touched| {
                let now = touched.as_ref().and_then(Reply::record);
                let then = result.as_ref().ok().and_then(Reply::record);
                match (now, then) {
                    (Some(now), Some(then))
                        if now.fence == then.fence && now.order() >= then.order() =>
                    {
                        acknowledged
                    }
                    _ => 0,
                }
            });
            match proven {
                Ok(acknowledged) if acknowledged >= count => {}
                Ok(acknowledged) => {
                    *result = Err(Error::NotReplicated {
                        key: key.clone(),
                        wanted: count,
                        acknowledged,
                        timeout,
                    });
                }
                Err(error) => *result = Err(error),
            }
        }
        Ok(())
    }

    /// Runs the script, which writes, then waits for the replicas of its server. Returns the
    /// script's answer and the number of replicas that have acknowledged it.
    ///
    /// Both commands are sent at once. After a reconnect in between, the server would know of no
    /// write to wait for.
    async fn wait(
        &self,
        slot: u16,
        script: &Script,
        keys: &[&Key],
    ) -> Result<(Value, u32), FredError> {
        match self.send(slot, "EVALSHA", &script.sha, keys).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.send(slot, "EVAL", &script.source, keys).await
            }
            answers => answers,
        }
    }

    async fn send(
        &self,
        slot: u16,
        eval: &'static str,
        script: &Bytes,
        keys: &[&Key],
    ) -> Result<(Value, u32), FredError> {
        let lane = self.connection.lane(slot);
        let slot = ClusterHash::Custom(slot);
        let eval = CustomCommand::new_static(eval, slot.clone(), false);
        let names: Vec<Value> = names(keys.iter().copied()).collect();
        let head = [script.clone().into(), names.len().to_string().into()];
        let wait = CustomCommand::new_static("WAIT", slot, false);
        let Replicas { count, timeout } = self.replicas;
        let (count, timeout) = (count.to_string(), timeout.as_millis().to_string());

        let pipeline = self.connection.client().pipeline();
        let args: Vec<Value> = head.into_iter().chain(names).collect();
        let _: Value = pipeline.custom(eval, args).await?;
        let _: Value = pipeline.custom(wait, vec![count, timeout]).await?;
        self.connection.owing(lane, pipeline.all()).await
    }
}
