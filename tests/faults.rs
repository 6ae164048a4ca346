//! The faults that a fleet lives through, by where they come from. docs/reliability.md lists them.

mod common;

#[cfg(target_os = "linux")]
#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/cluster.rs"]
mod cluster;
#[path = "faults/connections.rs"]
mod connections;
#[path = "faults/failover.rs"]
mod failover;
#[path = "faults/secured.rs"]
mod secured;
#[path = "faults/server.rs"]
mod server;
#[cfg(any(feature = "enable-rustls", feature = "enable-rustls-ring"))]
#[path = "faults/tls.rs"]
mod tls;

use common::next;
use redis_locking_worker::{Acquire, Error, LockEvent, WorkGuard};

/// Reads on to an event of this kind, counting the outages told of on the way.
async fn until_acquired(stream: &mut Acquire) -> (WorkGuard, usize) {
    let mut outages = 0;
    loop {
        match next(stream).await {
            LockEvent::Acquired(guard) => return (guard, outages),
            LockEvent::Error(error) => {
                assert!(error.is_retryable(), "{error:?}");
                outages += 1;
            }
            event if event.is_terminal() => panic!("{event:?}"),
            _ => {}
        }
    }
}

async fn outage(stream: &mut Acquire, of: &str) {
    match next(stream).await {
        LockEvent::Error(Error::Unavailable { key, .. }) => assert_eq!(key.to_string(), of),
        other => panic!("{other:?}"),
    }
}

/// An outage, and what the server said.
async fn refusal(stream: &mut Acquire) -> String {
    match next(stream).await {
        LockEvent::Error(Error::Unavailable { source, .. }) => source.details().to_owned(),
        other => panic!("{other:?}"),
    }
}

/// An error and its causes, as a user's log shows them.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
