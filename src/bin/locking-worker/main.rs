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

mod args;
mod child;
mod clear;
mod exit;
#[cfg(target_os = "linux")]
mod family;
mod print;
mod run;
mod server;
mod signals;
mod status;
mod text;
mod watch;

use std::process::ExitCode;

use args::{Args, Command};
use clap::Parser;
use exit::Exit;

fn main() -> ExitCode {
    // Without a runtime, which would leave its mark on the process that becomes the command.
    let exit = match child::exec() {
        Some(exit) => exit,
        None => on_this_thread(Args::parse().command),
    };
    exit.into()
}

/// All of it on the main thread: a command that is started here dies with the thread that started it.
#[tokio::main(flavor = "current_thread")]
async fn on_this_thread(command: Command) -> Exit {
    match command {
        Command::Run(run) => run::run(run).await,
        Command::Status(status) => status::status(status).await,
        Command::Watch(watch) => watch::watch(watch).await,
        Command::Clear(clear) => clear::clear(clear).await,
        Command::Completions { shell } => print::completions(shell),
        Command::Man { command } => print::man(command),
    }
}
