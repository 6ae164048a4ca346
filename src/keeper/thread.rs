//! The thread that keeps leases, whatever the user's runtimes do.

use std::io;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};

/// Longer than any process lives.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

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
    // The runtime is made there: one that is dropped here, where no thread can be started, would
    // panic within a task.
    let (made, making) = std::sync::mpsc::sync_channel(1);
    thread::Builder::new()
        .name("lease-keeper".to_owned())
        .spawn(move || {
            take_no_signals();
            // A name look-up takes a thread. One that cannot be started later would panic within
            // the client library; so the first stays, and takes them all.
            let mut builder = Builder::new_current_thread();
            builder.enable_all().on_thread_start(take_no_signals);
            match builder.thread_keep_alive(FOR_GOOD).build() {
                Ok(runtime) => {
                    let _ = runtime.block_on(runtime.spawn_blocking(|| {}));
                    let _ = made.send(Ok(runtime.handle().clone()));
                    runtime.block_on(std::future::pending::<()>());
                }
                Err(error) => drop(made.send(Err(error))),
            }
        })?;
    let gone = |_| io::Error::other("the thread has ended");
    let handle = making.recv().map_err(gone)??;
    *started = Some((process, handle.clone()));
    Ok(handle)
}

/// A signal to the process goes to any thread that does not block it. The user has chosen among the
/// user's own.
fn take_no_signals() {
    #[cfg(unix)]
    {
        // Fails only for a set that is none.
        let _ = nix::sys::signal::SigSet::all().thread_block();
    }
}
