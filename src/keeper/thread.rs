//! The thread that keeps leases, whatever the user's runtimes do.

use std::io;
use std::sync::Mutex;
use std::thread;

use tokio::runtime::{Builder, Handle};

/// The one of this process: a forked child has the memory of its parent's, and no thread.
static THREAD: Mutex<Option<(u32, Handle)>> = Mutex::new(None);

/// The runtime of the process's thread, which is started if there is none.
///
/// It ends with the process. Without leases to keep it sleeps.
///
/// # Errors
///
/// When no thread can be started.
pub(crate) fn runtime() -> io::Result<Handle> {
    let mut started = THREAD
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let process = std::process::id();
    if let Some((of, runtime)) = &*started
        && *of == process
    {
        return Ok(runtime.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("lease-keeper".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    *started = Some((process, handle.clone()));
    Ok(handle)
}
