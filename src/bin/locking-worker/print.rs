//! What is made from the description of the arguments: completions and manual pages.

use std::io::{self, Write};

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
                eprintln!("locking-worker: {name}: there is no such subcommand");
                return Exit::Usage;
            }
        },
    };
    let mut text = Vec::new();
    match clap_mangen::Man::new(page.clone()).render(&mut text) {
        Ok(()) => print(&text),
        Err(error) => {
            eprintln!("locking-worker: {error}");
            Exit::Failed
        }
    }
}

/// Whoever has seen enough may close it.
fn print(text: &[u8]) -> Exit {
    let _ = io::stdout().write_all(text);
    Exit::Done
}
