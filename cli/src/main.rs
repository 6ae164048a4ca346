//! `locking-worker`: a command as the work of a fleet. docs/cli.md describes it.
#![forbid(unsafe_code)]
#![warn(unreachable_pub)]

#[cfg(not(unix))]
compile_error!("the command line needs Unix signals; the library does not");

/// Something about us, on standard error, which may have gone.
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
    // Without a runtime, which would leave its mark on the process that becomes the command.
    let exit = match child::exec() {
        Some(exit) => exit,
        None => on_this_thread(Args::read().command),
    };
    exit.into()
}

/// All of it on the main thread: a command that is started here dies with the thread that started it.
fn on_this_thread(command: Command) -> Exit {
    let runtime = match start_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("cannot start a thread or open a file: {error}");
            return Exit::NotStarted;
        }
    };
    let exit = runtime.block_on(execute(command));
    // Not dropped: that would wait for a name look-up, which may take as long as the resolver
    // likes.
    runtime.shutdown_background();
    exit
}

/// A runtime with one thread for name look-ups, which stays. Each connection begins with a look-up,
/// and one for which no thread can be started would panic inside the client library, unheard, and
/// be waited for. As long as there is one thread, it takes them all.
fn start_runtime() -> io::Result<Runtime> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(redis_locking_worker::Builder::MAX_DURATION)
        // The main thread receives all signals, so each is with it before what came later is.
        .on_thread_start(|| {
            let _ = SigSet::all().thread_block();
        })
        .build()?;
    // Tokio only panics when it cannot start the first.
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

/// Ends at once when we are told to end, also as process 1 of a container, where a signal that no
/// handler receives is ignored.
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
