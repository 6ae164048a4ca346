//! What is built on streams of events and on workers: adapters, streams of jobs, results once.

mod claim_ext;
mod once;
mod stream_ext;

pub use claim_ext::{ClaimEach, ClaimError, ClaimExt};
pub use once::OnceError;
#[cfg(feature = "tracing")]
pub use stream_ext::Trace;
pub use stream_ext::{
    Guards, InspectStatus, IntoResult, LockStreamExt, Run, ToOutcome, WithoutStatus,
};
