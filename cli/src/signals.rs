//! The signals that this process handles.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::Instant;

use crate::exit::Exit;

/// Signals that this process handles. All others keep their usual effect.
const HEARD: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Time within which a second SIGTERM counts as the same one: `timeout` and systemd send it both to
/// this process and to its group.
const ONE: Duration = Duration::from_millis(500);

pub(crate) struct Signals {
    heard: Vec<(Signal, unix::Signal)>,
    /// Time of the last SIGTERM that counted.
    told: Option<Instant>,
}

impl Signals {
    /// Installs the handlers. From then on none of these signals ends the process by itself.
    /// Prints a failure, and returns the exit code for it.
    pub(crate) fn listen() -> Result<Self, Exit> {
        Self::install().map_err(|error| {
            say!("cannot receive signals: {error}");
            Exit::NotStarted
        })
    }

    fn install() -> io::Result<Self> {
        let mut heard = Vec::new();
        for signal in HEARD {
            let kind = SignalKind::from_raw(signal as i32);
            heard.push((signal, unix::signal(kind)?));
        }
        Ok(Self { heard, told: None })
    }

    /// Returns the next signal. Dropping the future loses none; two of a kind may come as one.
    pub(crate) async fn next(&mut self) -> Signal {
        loop {
            let signal = poll_fn(|cx| {
                let mut heard = self.heard.iter_mut();
                let next = heard.find_map(|(signal, received)| {
                    received.poll_recv(cx).is_ready().then_some(*signal)
                });
                next.map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            if self.is_another(signal, Instant::now()) {
                return signal;
            }
        }
    }

    fn is_another(&mut self, signal: Signal, now: Instant) -> bool {
        if signal != Signal::SIGTERM {
            return true;
        }
        let again = self.told.is_some_and(|told| now - told < ONE);
        if !again {
            self.told = Some(now);
        }
        !again
    }

    /// Returns the next signal that asks us to end. Drops the others, for when there is no command
    /// to pass them on to.
    pub(crate) async fn end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if is_end(signal) {
                return signal;
            }
        }
    }
}

/// Whether the signal asks this process to end.
pub(crate) fn is_end(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2)
}

/// Whether the terminal has sent the signal to the command too: it signals its whole foreground
/// group.
pub(crate) fn is_from_terminal(signal: Signal) -> bool {
    let keys = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
    keys && File::open("/dev/tty").is_ok_and(|tty| tcgetpgrp(tty) == Ok(getpgrp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_sigterm_that_come_together_are_one() {
        let (heard, told) = (Vec::new(), None);
        let mut signals = Signals { heard, told };
        let began = Instant::now();
        let mut at = |signal, ms| signals.is_another(signal, began + Duration::from_millis(ms));
        assert!(at(Signal::SIGTERM, 0));
        assert!(!at(Signal::SIGTERM, 499));
        assert!(at(Signal::SIGINT, 499) && at(Signal::SIGINT, 499));
        assert!(at(Signal::SIGTERM, 500), "from the first");
        assert!(!at(Signal::SIGTERM, 501));
    }
}
