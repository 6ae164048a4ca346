//! `clear`: starts a run over, by force.

use crate::args;
use crate::exit::Exit;
use crate::server;
use crate::text;

pub(crate) async fn clear(args: args::Clear) -> Exit {
    let worker = match server::reach(args.reach()).await {
        Ok(worker) => worker,
        Err(exit) => return exit,
    };
    let key = text::key(worker.key().as_bytes());
    match worker.clear().await {
        Ok(true) => say!("{key}: cleared"),
        Ok(false) => say!("{key}: there was no run"),
        Err(error) => return server::refused(&error),
    }
    Exit::Done
}
