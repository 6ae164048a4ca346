//! The store of a builder: it is connected and probed here.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::{join, runtime};

use super::Warning;
use crate::client::BuildError;
use crate::clock::Clock;
use crate::error::Error;
use crate::hub::{Handle, Inbox};
use crate::keeper::{self, Keeper, News};
use crate::key::Key;
use crate::protocol::Op;
use crate::store::memory::{Memory, MemoryStore};
use crate::store::redis::{RedisStore, Replicas, ServerAddress};
use crate::store::{Pace, Store};
use crate::telemetry::Observers;

#[derive(Clone, Debug)]
pub(super) enum Target {
    Server(ServerAddress),
    Memory(Memory),
}

impl Default for Target {
    fn default() -> Self {
        Target::Server(ServerAddress::default())
    }
}

impl Target {
    /// Returns the host and port set so far. The setter of the one keeps the other.
    pub(super) fn address(&self) -> (String, u16) {
        match self {
            Target::Server(server) => server.address(),
            Target::Memory(_) => ServerAddress::default().address(),
        }
    }

    /// Connects in a task of its own. If the caller's future were dropped half-way, the client
    /// library's tasks and connections would otherwise live for ever. The task runs to its end: if
    /// its caller has gone, it drops the last handle, and that closes the connections.
    pub(super) async fn connect(
        self,
        key: &Key,
        replicas: Option<Replicas>,
        pace: Pace,
        renews: bool,
    ) -> Result<(Handle, Vec<Warning>), BuildError> {
        // `Observers::here` must be called on this thread: it captures the thread's subscriber and
        // recorder.
        let thread = match renews && !matches!(self, Target::Memory(_)) {
            true => {
                let runtime = keeper::runtime();
                let runtime = runtime.map_err(|source| BuildError::Thread(Arc::new(source)))?;
                Some((runtime, Observers::here()))
            }
            false => None,
        };
        let connecting = self.reach(key.clone(), replicas, pace, thread);
        let connecting = tokio::spawn(connecting);
        connecting
            .await
            .unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(Error::Stopped.into()),
            })
    }

    async fn reach(
        self,
        key: Key,
        replicas: Option<Replicas>,
        pace: Pace,
        thread: Option<(runtime::Handle, Observers)>,
    ) -> Result<(Handle, Vec<Warning>), BuildError> {
        let store = match self {
            Target::Memory(_) if replicas.is_some() => return Err(BuildError::ReplicasInMemory),
            Target::Memory(memory) => {
                return Ok((Handle::in_memory(MemoryStore::new(&memory)), Vec::new()));
            }
            Target::Server(server) => server.connect(replicas, pace).await?,
        };
        // These checks find at build time what would end every stream: an old server, a missing
        // permission, a key in other use, and problems that otherwise only the second worker would
        // meet.
        let inspect = Op::Inspect;
        let (inspected, path, selected, info) = join!(
            store.apply(&key, &inspect),
            store.try_path(&key),
            store.selected_by_hand(),
            store.info()
        );
        if let Some((configured, selected)) = selected {
            // No hub closes the store yet.
            store.close().await;
            return Err(BuildError::Database {
                configured,
                selected,
            });
        }
        let warnings = info.iter();
        let warnings = warnings.flat_map(|(server, info)| Warning::all(server, info));
        let warnings: Vec<Warning> = warnings.collect();
        match inspected.and(path) {
            Ok(()) => {
                let inbox = Inbox::new();
                let keeper = match thread {
                    Some(thread) => keeper(&store, &key, thread, inbox.teller()),
                    None => Keeper::idle(),
                };
                let hub = Handle::spawn(store, inbox, Clock::Machine, keeper);
                Ok((hub, warnings))
            }
            Err(error) => {
                store.close().await;
                Err(because(error, warnings))
            }
        }
    }
}

/// Returns the keeper of a store's leases. It works in the process's own thread and connects there
/// when it receives the first lease.
fn keeper(
    store: &RedisStore,
    key: &Key,
    (runtime, observers): (runtime::Handle, Observers),
    tell: impl Fn(News) + Send + 'static,
) -> Keeper {
    let (apart, key) = (store.apart(), key.clone());
    let connect = move || {
        let (apart, key) = (apart.clone(), key.clone());
        async move {
            let connected = apart.connect().await;
            connected.map_err(|source| Error::Unavailable {
                key,
                source: source.into(),
            })
        }
    };
    Keeper::apart(runtime, connect, Clock::Machine, observers, tell)
}

/// Explains why the server refuses the key: by its version, if that is too old for the scripts.
fn because(error: Error, warnings: Vec<Warning>) -> BuildError {
    let old = warnings.into_iter().find_map(|warning| match warning {
        Warning::OldServer { server, version } => Some((server, version)),
        _ => None,
    });
    match (error, old) {
        (source @ Error::Refused { .. }, Some((server, version))) => BuildError::OldServer {
            server,
            version,
            source,
        },
        (error, _) => error.into(),
    }
}
