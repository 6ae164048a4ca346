//! Completions and manual pages, generated from the arguments' definition.

use std::io::{self, ErrorKind, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::exit::Exit;

pub(crate) fn completions(shell: Shell) -> Exit {
    let mut command = Args::command();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "locking-worker", &mut text);
    print(&text)
}

pub(crate) fn man(name: Option<String>) -> Exit {
    let mut command = Args::command();
    command.build();
    let page = match &name {
        None => &command,
        Some(name) => match command.find_subcommand(name) {
            Some(subcommand) => subcommand,
            None => {
                say!("{name}: there is no such subcommand");
                return Exit::Usage;
            }
        },
    };
    let mut text = Vec::new();
    match clap_mangen::Man::new(page.clone()).render(&mut text) {
        Ok(()) => print(&text),
        Err(error) => {
            say!("{error}");
            Exit::Failed
        }
    }
}

/// Writes to standard output. A broken pipe is a success: the reader may stop reading early.
pub(crate) fn print(text: &[u8]) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say!("{error}");
            Exit::Failed
        }
        _ => Exit::Done,
    }
}
