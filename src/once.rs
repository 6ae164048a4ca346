//! One execution for a whole fleet, and one result for everybody.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use crate::acquire::{Acquire, Entry};
use crate::error::{Error, OnceError};
use crate::event::{Completed, LockEvent};
use crate::guard::{WorkGuard, failure};
use crate::store::Outcome;

/// Takes part until the run is over, working whenever it is our turn.
pub(crate) async fn once<W, F, T, E>(entry: Entry, mut work: W) -> Result<Completed, OnceError>
where
    W: FnMut(Arc<WorkGuard>) -> F,
    F: Future<Output = Result<T, E>>,
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
                let guard = Turn(Arc::new(guard));
                let outcome = match guard.0.run(work(guard.0.clone())).await {
                    Ok(Ok(result)) => completion(result.into()),
                    Ok(Err(reason)) => failure(reason.to_string()),
                    // Nobody waits for what a lost attempt has to say.
                    Err(_) => continue,
                };
                // However this ends, the stream goes on and tells how the run does.
                let _ = guard.0.settle(outcome).await;
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

/// Ends the guard, whoever else still has a hold of it.
struct Turn(Arc<WorkGuard>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn completion(result: Bytes) -> Outcome {
    let (len, max) = (result.len(), WorkGuard::MAX_RESULT);
    match len <= max {
        true => Outcome::Done(result),
        false => failure(format!(
            "the result has {len} bytes; at most {max} are allowed"
        )),
    }
}

#[cfg(feature = "json")]
pub(crate) async fn once_json<W, F, T, E>(entry: Entry, mut work: W) -> Result<T, OnceError>
where
    W: FnMut(Arc<WorkGuard>) -> F,
    F: Future<Output = Result<T, E>>,
    T: serde::Serialize + serde::de::DeserializeOwned,
    E: Display,
{
    let work = |guard| {
        let working = work(guard);
        async {
            let result = working.await.map_err(|reason| reason.to_string())?;
            serde_json::to_vec(&result).map_err(|error| error.to_string())
        }
    };
    let completed = once(entry, work).await?;
    Ok(serde_json::from_slice(&completed.result)?)
}
