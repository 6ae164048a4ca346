//! The way to the server, and what is said when there is none.

use redis_locking_worker::{BuildError, Builder, Error, LockingWorker};

use crate::exit::Exit;
use crate::text;

/// The worker; or what ends us, when it has been told.
pub(crate) async fn reach(builder: Builder) -> Result<LockingWorker, Exit> {
    builder.build().await.map_err(|error| {
        say!("{}", text::chain(&error));
        match error {
            BuildError::Connect { .. } => {
                say!("Is a server running there? --url or REDIS_URL names another.");
                Exit::Server
            }
            BuildError::OldServer { .. } | BuildError::Server(_) => Exit::Server,
            _ => Exit::Usage,
        }
    })
}

/// What a question that the server did not answer ends us with, when it has been told.
pub(crate) fn refused(error: &Error) -> Exit {
    say!("{}", text::chain(error));
    Exit::Server
}
