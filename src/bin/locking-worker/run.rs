//! A command as the work.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use futures::StreamExt;
use nix::sys::signal::Signal;
use redis_locking_worker::{Acquire, LeaseLost, LockEvent, WorkGuard};
use tokio::time::{Instant, sleep, sleep_until};

use crate::args;
use crate::child::{self, Child, Variable};
use crate::exit::Exit;
use crate::server;
use crate::signals::{Signals, is_from_terminal};
use crate::text;

pub(crate) async fn run(args: args::Run) -> Exit {
    // Before anything is asked of the server: who cannot do the work costs the fleet no attempt.
    let program = &args.command[0];
    if !child::exists(program) {
        let program = program.to_string_lossy();
        eprintln!("locking-worker: {program}: there is no such command that could be executed");
        return Exit::NotFound;
    }
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("locking-worker: no signals can be heard: {error}");
            return Exit::Failed;
        }
    };
    let worker = tokio::select! {
        worker = server::reach(args.builder()) => match worker {
            Ok(worker) => worker,
            Err(exit) => return exit,
        },
        signal = signals.end() => return Exit::Signal(signal),
    };
    for warning in worker.warnings() {
        eprintln!("locking-worker: {}", text::plain(&warning.to_string()));
    }
    let mut part = Part {
        key: text::key(worker.key().as_bytes()),
        label: worker.label().to_owned(),
        args,
        signals,
        succeeded: None,
        lost: false,
    };
    let exit = part.take(worker.acquire()).await;
    // What was left behind reaches the server; who cannot wait for it says so.
    tokio::select! {
        () = worker.close() => {}
        _ = part.signals.end() => {}
    }
    exit
}

/// Our part in the run.
struct Part {
    args: args::Run,
    key: String,
    label: String,
    signals: Signals,
    /// The attempt in which our command exited with 0.
    succeeded: Option<u32>,
    /// The lease of our last attempt was lost, or its end was not recorded.
    lost: bool,
}

/// How the command ended, and why if it was we who stopped it.
struct Ended {
    status: ExitStatus,
    /// What we were sent meanwhile.
    received: Vec<Signal>,
    stopped: Option<Stopped>,
}

enum Stopped {
    /// Little is left of the lease, and nothing renews it.
    RunningOut,
    Lost(LeaseLost),
}

/// What becomes of the attempt.
enum Verdict {
    Done,
    /// We are told to end, and the command with us: that is no failure.
    HandOff(Signal),
    Fail(String),
}

impl Part {
    async fn take(&mut self, mut events: Acquire) -> Exit {
        loop {
            let event = tokio::select! {
                // An outcome that is there counts, whatever we are told.
                biased;
                event = events.next() => event,
                signal = self.signals.end() => {
                    self.say(format_args!("{signal}: left the line"));
                    return Exit::Signal(signal);
                }
            };
            match event {
                Some(LockEvent::Acquired(guard)) => {
                    if let Some(exit) = self.attempt(guard).await {
                        return exit;
                    }
                }
                Some(LockEvent::Locked(locked)) => self.say(format_args!(
                    "attempt {} of {} is with {}",
                    locked.attempt, locked.max_attempts, locked.holder
                )),
                Some(LockEvent::Completed(completed)) => {
                    let (attempt, holder) = (completed.attempt, completed.holder);
                    if holder == self.label && self.succeeded == Some(attempt) {
                        self.say(format_args!("done here, at attempt {attempt}"));
                        return Exit::Done;
                    }
                    self.say(format_args!("done by {holder}, at attempt {attempt}"));
                    return Exit::DoneElsewhere;
                }
                Some(LockEvent::MaxAttempts(given_up)) => {
                    self.complain(format_args!(
                        "given up after {} attempts; the last, by {}: {}",
                        given_up.attempts, given_up.holder, given_up.reason
                    ));
                    return Exit::GaveUp;
                }
                Some(LockEvent::Failed(_)) => {
                    return match self.lost {
                        true => Exit::Lost,
                        false => Exit::Failed,
                    };
                }
                Some(LockEvent::Error(error)) => {
                    self.complain(format_args!("{}", text::chain(&error)));
                    if error.is_fatal() {
                        return Exit::Server;
                    }
                }
                Some(_) => {}
                // Not after a terminal event, with which we have gone.
                None => return Exit::Server,
            }
        }
    }

    /// Makes the attempt. What it says ends our part, if anything.
    async fn attempt(&mut self, guard: WorkGuard) -> Option<Exit> {
        let attempt = guard.attempt();
        self.say(format_args!("attempt {attempt} is ours"));
        let (verdict, lost) = match Child::start(&self.args.command, environment(&guard)) {
            Ok(child) => match self.watch_over(&guard, child).await {
                Ok(ended) => (
                    ended.verdict(),
                    matches!(ended.stopped, Some(Stopped::Lost(_))),
                ),
                Err(error) => (Verdict::Fail(format!("lost sight of: {error}")), false),
            },
            Err(error) => (Verdict::Fail(format!("cannot be started: {error}")), false),
        };
        self.lost = lost;
        let (settled, exit) = match verdict {
            Verdict::Done => {
                self.succeeded = Some(attempt);
                let settled = guard.done().await;
                self.lost = settled.is_err();
                (settled, None)
            }
            Verdict::HandOff(signal) => {
                self.say(format_args!("{signal}: attempt {attempt} is handed off"));
                (guard.hand_off().await, Some(Exit::Signal(signal)))
            }
            Verdict::Fail(reason) => {
                self.complain(format_args!("attempt {attempt} failed: {reason}"));
                (guard.fail(reason).await, None)
            }
        };
        if let Err(error) = settled {
            self.complain(format_args!(
                "the end of attempt {attempt} was not recorded: {}",
                text::chain(&error)
            ));
        }
        exit
    }

    /// Waits for the command's end, and sees to it that it comes before the lease's.
    ///
    /// It is asked to end by SIGTERM, when we are or when the lease is running out. SIGKILL follows after the grace, when
    /// we are told a second time, and when the lease is lost: then the server is about to let somebody else in, or has.
    async fn watch_over(&mut self, guard: &WorkGuard, mut child: Child) -> io::Result<Ended> {
        let mut running_out = pin!(running_out(guard, self.args.grace));
        let mut lost = pin!(guard.lost());
        let mut kill_at = None;
        let mut received = Vec::new();
        let mut stopped = None;
        let status = loop {
            tokio::select! {
                // What may not be late comes first.
                biased;
                why = &mut lost, if !matches!(stopped, Some(Stopped::Lost(_))) => {
                    child.send(Signal::SIGKILL);
                    stopped = Some(Stopped::Lost(why));
                }
                status = child.wait() => break status?,
                signal = self.signals.next() => {
                    match signal {
                        Signal::SIGTERM if received.contains(&signal) => child.send(Signal::SIGKILL),
                        Signal::SIGTERM => {
                            child.send(signal);
                            kill_at.get_or_insert(Instant::now() + self.args.grace);
                        }
                        signal if is_from_terminal(signal) => {}
                        signal => child.send(signal),
                    }
                    received.push(signal);
                }
                () = &mut running_out, if stopped.is_none() => {
                    child.send(Signal::SIGTERM);
                    kill_at.get_or_insert(Instant::now() + self.args.grace);
                    stopped = Some(Stopped::RunningOut);
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    child.send(Signal::SIGKILL);
                    kill_at = None;
                }
            }
        };
        Ok(Ended {
            status,
            received,
            stopped,
        })
    }

    /// What goes on, unless nobody wants to know.
    fn say(&self, what: std::fmt::Arguments<'_>) {
        if !self.args.quiet {
            self.complain(what);
        }
    }

    /// What went wrong.
    fn complain(&self, what: std::fmt::Arguments<'_>) {
        let line = format!(
            "locking-worker: {}: {}\n",
            self.key,
            text::plain(&what.to_string())
        );
        // In one write: others of the fleet may say something to the same terminal.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

impl Ended {
    fn verdict(&self) -> Verdict {
        let mut received = self.received.iter().copied();
        // Whoever asked it to end, what it did is done.
        if self.status.success() {
            return Verdict::Done;
        }
        let is_end =
            |signal: &Signal| *signal == Signal::SIGTERM || child::ended_by(self.status, *signal);
        if let Some(signal) = received.find(is_end) {
            return Verdict::HandOff(signal);
        }
        Verdict::Fail(match &self.stopped {
            Some(Stopped::Lost(why)) => text::chain(why),
            Some(Stopped::RunningOut) => "stopped, as the lease was running out".to_owned(),
            None => child::ended(self.status),
        })
    }
}

/// Resolves when a third is left of the lease, or the grace if that is less: enough to end in, and less than what is left
/// when a renewal is due.
async fn running_out(guard: &WorkGuard, grace: Duration) {
    // Not what was asked for: until a hand-over is confirmed, there is less.
    let mut whole = Duration::ZERO;
    loop {
        let left = guard.remaining();
        whole = whole.max(left);
        let reserve = grace.min(whole / 3);
        if left <= reserve {
            return;
        }
        sleep(left - reserve).await;
    }
}

/// What the command is told of its attempt. What does not apply is taken away: we may be somebody's command ourselves.
fn environment(guard: &WorkGuard) -> Vec<Variable> {
    // A variable cannot have a zero byte; a key or a reason can.
    let text =
        |text: &[u8]| OsString::from_vec(text.iter().copied().filter(|byte| *byte != 0).collect());
    let number = |number: u64| OsString::from(number.to_string());
    let previous = guard.previous();
    vec![
        ("LOCKING_WORKER_KEY", Some(text(guard.key().as_bytes()))),
        (
            "LOCKING_WORKER_ATTEMPT",
            Some(number(guard.attempt().into())),
        ),
        (
            "LOCKING_WORKER_LAST_ATTEMPT",
            guard.is_last_attempt().then(|| "1".into()),
        ),
        (
            "LOCKING_WORKER_FENCING_TOKEN",
            Some(number(guard.fencing_token())),
        ),
        (
            "LOCKING_WORKER_PREVIOUS_REASON",
            previous.map(|previous| text(previous.reason.to_string().as_bytes())),
        ),
        (
            "LOCKING_WORKER_PREVIOUS_HOLDER",
            previous.map(|previous| text(previous.holder.as_bytes())),
        ),
    ]
}
