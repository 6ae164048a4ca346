//! One computation and one result for a whole fleet, on top of the stream.

use std::fmt::Display;
use std::sync::Arc;

use crate::acquire::{Acquire, AcquireConfig};
use crate::error::{Error, OnceError};
use crate::event::{Completed, Outcome};
use crate::guard::WorkGuard;
use crate::stream_ext::{IntoResult, LockStreamExt};

/// Takes part until the run is over, and executes the work in each attempt that is granted to us.
pub(crate) async fn once<W, F, T, E>(entry: AcquireConfig, work: W) -> Result<Completed, OnceError>
where
    W: FnMut(Arc<WorkGuard>) -> F,
    F: Future<Output = Result<T, E>>,
    T: IntoResult,
    E: Display,
{
    // A caller whose own attempt failed also needs the result, so its stream rejoins.
    let events = Acquire::new(AcquireConfig {
        rejoin: true,
        ..entry
    });
    match events.run(work).await? {
        Outcome::Completed(completed) => Ok(completed),
        Outcome::GaveUp(gave_up) => Err(OnceError::GaveUp(gave_up)),
        // A stream that rejoins ends with neither.
        Outcome::Failed(_) | Outcome::Left => Err(Error::Stopped.into()),
    }
}

#[cfg(feature = "json")]
pub(crate) async fn once_json<W, F, T, E>(entry: AcquireConfig, mut work: W) -> Result<T, OnceError>
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
            let text = serde_json::to_vec(&result).map_err(|error| error.to_string())?;
            // serde_json writes a NaN as null without an error. Only a result that can be read back
            // counts, since every participant must be able to read it.
            let read = serde_json::from_slice::<T>(&text);
            read.map(|_| text).map_err(|error| error.to_string())
        }
    };
    let completed = once(entry, work).await?;
    Ok(serde_json::from_slice(&completed.result)?)
}
