//! The `locking-worker` program: runs a command as the work of a fleet. docs/cli.md describes it.
//!
//! It uses only what is public in the library. `main` chooses the subcommand that `args` defines:
//! `run`, `status`, `watch`, `clear` or `print`. `run` has the command as a child process (`child`)
//! with its descendants (`process_tree`), which end with this process.
#![forbid(unsafe_code)]
#![warn(unreachable_pub)]

#[cfg(not(unix))]
compile_error!("the command line needs Unix signals; the library does not");

/// Prints a line of this program's own to standard error. Ignores a failure: the reader may have
/// gone.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "locking-worker: {}", format_args!($($what)*));
    }};
}

mod ancestors;
mod args;
mod child;
mod clear;
mod exit;
mod print;
#[cfg(target_os = "linux")]
mod process_tree;
mod run;
mod server;
mod signals;
mod status;
mod text;
mod watch;

use std::process::ExitCode;
use std::{io, thread};

use args::{Args, Command};
use exit::Exit;
use nix::sys::signal::SigSet;
use signals::Signals;
use tokio::runtime::{self, Runtime};

fn main() -> ExitCode {
    // Must precede the runtime: its traces in this process would pass to the command, which this
    // process becomes.
    let exit = match child::exec() {
        Some(exit) => exit,
        None => on_this_thread(Args::read().command),
    };
    exit.into()
}

/// Runs everything on the main thread: a command dies with the thread that started it.
fn on_this_thread(command: Command) -> Exit {
    let runtime = match start_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("cannot start a thread or open a file: {error}");
            return Exit::NotStarted;
        }
    };
    let exit = runtime.block_on(execute(command));
    // A dropped runtime would wait for a running name look-up, for as long as the resolver takes.
    runtime.shutdown_background();
    exit
}

/// Starts a runtime with one thread for name look-ups, and keeps that thread alive.
///
/// Each connection begins with a look-up. If no thread can be started for it, the look-up panics
/// inside the client library, which hides the panic, and we would wait for the connection. As long
/// as one thread exists, it takes all look-ups.
fn start_runtime() -> io::Result<Runtime> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(redis_locking_worker::Builder::MAX_DURATION)
        // Leaves the signals to the main thread, so that a signal reaches it before any later
        // event does.
        .on_thread_start(|| {
            let _ = SigSet::all().thread_block();
        })
        .build()?;
    // Tokio panics when it cannot start its first thread. This try returns an error instead.
    let tried = thread::Builder::new().spawn(|| {})?;
    let _ = tried.join();
    let _ = runtime.block_on(runtime.spawn_blocking(|| {}));
    Ok(runtime)
}

async fn execute(command: Command) -> Exit {
    match command {
        Command::Run(run) => run::run(run).await,
        Command::Status(status) => until_signal(status::status(status)).await,
        Command::Watch(watch) => watch::watch(watch).await,
        Command::Clear(clear) => until_signal(clear::clear(clear)).await,
        Command::Completions { shell } => print::completions(shell),
        Command::Man { command } => print::man(command),
    }
}

/// Runs `work` until it ends or a signal asks this process to end.
///
/// Process 1 of a container needs the handlers: the kernel ignores a signal to it that has none.
async fn until_signal(work: impl Future<Output = Exit>) -> Exit {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(exit) => return exit,
    };
    tokio::select! {
        exit = work => exit,
        signal = signals.end() => Exit::Signal(signal),
    }
}
