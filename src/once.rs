//! One execution for a whole fleet, and one result for everybody.

use std::fmt::Display;

use bytes::Bytes;
use futures::StreamExt;

use crate::acquire::{Acquire, Entry};
use crate::error::{Error, OnceError, SettleError};
use crate::event::{Completed, LockEvent};
use crate::guard::WorkGuard;

/// Takes part until the run is over, working whenever it is our turn.
pub(crate) async fn once<W, T, E>(entry: Entry, mut work: W) -> Result<Completed, OnceError>
where
    W: AsyncFnMut(&WorkGuard) -> Result<T, E>,
    T: Into<Bytes>,
    E: Display,
{
    // Whoever has failed waits for the others' result.
    let mut events = Acquire::new(Entry {
        rejoin: true,
        ..entry
    });
    while let Some(event) = events.next().await {
        match event {
            LockEvent::Acquired(guard) => {
                // However this ends, the stream goes on and tells how the run does.
                let _ = match guard.run(work(&guard)).await {
                    Ok(Ok(result)) => complete(guard, result.into()).await,
                    Ok(Err(reason)) => guard.fail(reason.to_string()).await,
                    // Nobody waits for what a lost attempt has to say.
                    Err(_) => Ok(()),
                };
            }
            LockEvent::Completed(completed) => return Ok(completed),
            LockEvent::MaxAttempts(given_up) => return Err(OnceError::GaveUp(given_up)),
            LockEvent::Error(error) if error.is_fatal() => return Err(error.into()),
            LockEvent::Locked(_)
            | LockEvent::Status(_)
            | LockEvent::Failed(_)
            | LockEvent::Error(_) => {}
        }
    }
    // It has ended with one of the events above.
    Err(Error::Stopped.into())
}

async fn complete(guard: WorkGuard, result: Bytes) -> Result<(), SettleError> {
    match guard.done_with(result).await {
        Err(SettleError::ResultTooLarge { len, max, guard }) => {
            let reason = format!("the result has {len} bytes; at most {max} are allowed");
            guard.fail(reason).await
        }
        settled => settled,
    }
}

#[cfg(feature = "json")]
pub(crate) async fn once_json<W, T, E>(entry: Entry, mut work: W) -> Result<T, OnceError>
where
    W: AsyncFnMut(&WorkGuard) -> Result<T, E>,
    T: serde::Serialize + serde::de::DeserializeOwned,
    E: Display,
{
    let work = async |guard: &WorkGuard| {
        let result = work(guard).await.map_err(|reason| reason.to_string())?;
        serde_json::to_vec(&result).map_err(|error| error.to_string())
    };
    let completed = once(entry, work).await?;
    Ok(serde_json::from_slice(&completed.result)?)
}
