//! The signals that are sent to us.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::sys::signal::Signal;
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::signal::unix::{self, SignalKind};

/// What is heard, and done something about. The others do what they always do.
const HEARD: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

pub(crate) struct Signals([(Signal, unix::Signal); HEARD.len()]);

impl Signals {
    /// From now on none of them ends the process by itself.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut heard = Vec::new();
        for signal in HEARD {
            let kind = SignalKind::from_raw(signal as i32);
            heard.push((signal, unix::signal(kind)?));
        }
        let heard = heard.try_into().unwrap_or_else(|_| unreachable!("as many"));
        Ok(Self(heard))
    }

    /// The next one. Dropping the future loses none; two of a kind may come as one.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            for (signal, received) in &mut self.0 {
                if received.poll_recv(cx).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next one that asks us to end, for when there is no command to pass the others on to.
    pub(crate) async fn end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2) {
                return signal;
            }
        }
    }
}

/// Whether the terminal has sent it to the command too: it signals all of its foreground group.
pub(crate) fn is_from_terminal(signal: Signal) -> bool {
    let keys = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
    keys && File::open("/dev/tty").is_ok_and(|tty| tcgetpgrp(tty) == Ok(getpgrp()))
}
