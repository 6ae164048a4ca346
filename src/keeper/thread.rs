//! The process's thread that keeps leases, independent of the user's runtimes.

use std::io;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};

/// Longer than any process lives.
const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// The thread of the process with this id. A forked child has its parent's memory but not its
/// thread.
static THREAD: Mutex<Option<(u32, Handle)>> = Mutex::new(None);

/// Returns the runtime of the process's thread. Starts the thread if there is none.
///
/// The thread ends with the process. It sleeps while there is no lease to keep.
///
/// # Errors
///
/// Fails if the thread cannot be started.
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
    // The thread makes the runtime. Made here, it would be dropped here if the thread cannot start,
    // and dropping a runtime in a task panics.
    let (made, making) = std::sync::mpsc::sync_channel(1);
    thread::Builder::new()
        .name("lease-keeper".to_owned())
        .spawn(move || {
            take_no_signals();
            // A name look-up needs a blocking thread, and would panic in the client library if that
            // cannot be started later. So the first one is started now and stays. It then runs all
            // look-ups.
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

/// A signal to the process may go to any thread that does not block it. The user chooses among
/// their own threads, so this one must not take signals.
fn take_no_signals() {
    #[cfg(unix)]
    {
        // Fails only for an invalid set.
        let _ = nix::sys::signal::SigSet::all().thread_block();
    }
}
