//! `run`: takes part in a run, with a command as the work.

use std::ffi::OsString;
use std::future::pending;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use nix::sys::signal::Signal;
use redis_locking_worker::{
    Acquire, Builder, LeaseLost, LockEvent, LockingWorker, SettleError, WorkGuard,
};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use crate::ancestors;
use crate::args;
use crate::child::{self, Child, Variable};
use crate::exit::Exit;
use crate::server;
use crate::signals::{Signals, is_end, is_from_terminal};
use crate::text;

/// Time from one SIGKILL to the next.
const KILL_AGAIN: Duration = Duration::from_millis(100);

/// Longest time for a signal to get from this process to the runtime.
const SIGNAL_DELAY: Duration = Duration::from_millis(10);

/// Least value of the limit from a signal to our exit, however short `--grace` is: a server that
/// answers can then record the hand-off.
const SHORTEST_EXIT: Duration = Duration::from_secs(1);

/// Largest part of the grace that is kept for the server's answer.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: args::Run) -> Exit {
    // Must precede the first request to the server: a process that cannot do the work costs the
    // fleet no attempt.
    let program = &args.command[0];
    if !child::exists(program) {
        let program = program.to_string_lossy();
        say!("{program}: command not found, or not executable");
        return Exit::NotFound;
    }
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(exit) => return exit,
    };
    if let Err(error) = child::begin_reaping() {
        say!("cannot receive SIGCHLD: {error}");
        return Exit::NotStarted;
    }
    let worker = tokio::select! {
        worker = server::reach(args.reach()) => match worker {
            Ok(worker) => worker,
            Err(exit) => return exit,
        },
        signal = signals.end() => return Exit::Signal(signal),
    };
    for warning in worker.warnings() {
        say!("{}", text::plain(&warning.to_string()));
    }
    let waits_for_itself = tokio::select! {
        waits = waits_for_itself(&worker) => waits,
        signal = signals.end() => return Exit::Signal(signal),
    };
    if waits_for_itself {
        return Exit::Usage;
    }
    let mut part = Part {
        key: text::key(worker.key().as_bytes()),
        label: worker.label().to_owned(),
        args,
        signals,
        succeeded: None,
        lost: false,
        told: None,
        exit_by: None,
        force_exit: false,
    };
    let exit = part.take(worker.acquire()).await;
    if !part.force_exit {
        // `close` waits until the server has the messages of the dropped stream and guard. Another
        // signal ends that wait.
        tokio::select! {
            () = worker.close() => {}
            () = reached(part.exit_by) => {}
            _ = part.signals.end() => {}
        }
    }
    exit
}

/// Whether the command that this process is part of holds the key. That command waits for this
/// process, and this process would wait for the command.
async fn waits_for_itself(worker: &LockingWorker) -> bool {
    let key = worker.key().as_bytes();
    if !ancestors::took(key) {
        return false;
    }
    // The stream reports the error.
    let Ok(run) = worker.inspect().await else {
        return false;
    };
    let waits = run.state.is_owned() && ancestors::hold(key, run.fencing_token);
    if waits {
        say!(
            "{}: held by {} for the command that this process is part of: it would wait for its \
             own end. Use another key, or call the work without locking-worker",
            text::key(key),
            text::plain(&run.holder)
        );
    }
    waits
}

/// Waits until `time`, or for ever without one.
async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// The part of this process in the run.
struct Part {
    args: args::Run,
    key: String,
    label: String,
    signals: Signals,
    /// Attempt in which our command exited with 0.
    succeeded: Option<u32>,
    /// Whether our last attempt lost its lease, or its end was not recorded.
    lost: bool,
    /// Signal that has asked us to end since that attempt began: SIGTERM, or else the last one.
    told: Option<Signal>,
    /// Latest time of our exit, once a signal asks us to end. No wait for an answer goes past it.
    exit_by: Option<Instant>,
    /// Whether a repeated signal has ended every wait.
    force_exit: bool,
}

/// How the command ended, and why we stopped it, if the lease was the reason.
struct Ended {
    status: ExitStatus,
    stopped: Option<Stopped>,
}

enum Stopped {
    /// The lease was running out, and no renewal got through.
    RunningOut,
    /// The lease was running out, and no renewal may reach past `--max-hold`, which is this long.
    TooLong(Duration),
    Lost(LeaseLost),
}

/// How we settle the attempt.
enum Verdict {
    Done,
    /// The attempt is not counted, and our part ends: a signal asked us and the command to end, or
    /// the command cannot run here.
    HandOff(String, Exit),
    Fail(String),
}

impl Part {
    async fn take(&mut self, mut events: Acquire) -> Exit {
        loop {
            let event = tokio::select! {
                // An outcome that has arrived counts, also if a signal has arrived too.
                biased;
                event = events.next() => event,
                signal = self.signals.end() => {
                    self.exit_within_grace();
                    self.say(format_args!("{signal}: left the queue"));
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
                Some(LockEvent::GaveUp(gave_up)) => {
                    self.complain(format_args!(
                        "given up after {} attempts; the last, by {}: {}",
                        gave_up.attempts, gave_up.holder, gave_up.reason
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
                        if let Some(advice) = server::advice_for(&error) {
                            self.complain(format_args!("{advice}"));
                        }
                        return Exit::Server;
                    }
                }
                Some(_) => {}
                // The stream ended without a terminal event: each of those returns above.
                None => return Exit::Server,
            }
        }
    }

    /// Makes the attempt. Returns an exit code if our part ends with it.
    async fn attempt(&mut self, guard: WorkGuard) -> Option<Exit> {
        let attempt = guard.attempt();
        self.say(format_args!("attempt {attempt} is ours"));
        (self.lost, self.told) = (false, None);
        let verdict = self.work(&guard).await;
        // A signal other than SIGTERM was passed on and set no bound, since the command may go on
        // after it. Now that the command has ended, the grace begins.
        if self.told.is_some() && self.exit_by.is_none() {
            self.exit_within_grace();
        }
        let is_done = matches!(verdict, Verdict::Done);
        let (settled, exit) = match verdict {
            Verdict::Done => {
                self.succeeded = Some(attempt);
                (self.settle(guard.done()).await, None)
            }
            Verdict::HandOff(why, exit) => {
                let what = format!("{why}: attempt {attempt} is handed off");
                match exit {
                    Exit::Signal(_) => self.say(format_args!("{what}")),
                    _ => self.complain(format_args!("{what}")),
                }
                (self.settle(guard.hand_off()).await, Some(exit))
            }
            Verdict::Fail(reason) => {
                self.complain(format_args!("attempt {attempt} failed: {reason}"));
                (self.settle(guard.fail(reason)).await, None)
            }
        };
        let recorded = match settled {
            Some(Ok(())) => true,
            // The message of the failed attempt has said why.
            Some(Err(SettleError::Lost(_))) if self.lost => false,
            Some(Err(error)) => {
                let why = text::chain(&error);
                self.complain(format_args!(
                    "the end of attempt {attempt} was not recorded: {why}"
                ));
                false
            }
            None => {
                let why = match self.force_exit {
                    true => "told to end again".to_owned(),
                    false => format!("no answer within --grace {}", self.grace()),
                };
                self.complain(format_args!(
                    "the end of attempt {attempt} is not known to be recorded: {why}"
                ));
                false
            }
        };
        self.lost |= !recorded;
        // A signal that asked us to end forbids another attempt, too. After a recorded completion
        // the stream yields the outcome instead.
        let told = self.told.filter(|_| !(is_done && recorded));
        exit.or(told.map(Exit::Signal))
    }

    /// Runs the command. Returns how to settle the attempt.
    async fn work(&mut self, guard: &WorkGuard) -> Verdict {
        // Printing may have blocked for longer than the lease, and another holder may be at work.
        if !guard.is_valid() {
            self.lost = true;
            return Verdict::Fail(text::chain(&guard.lost().await));
        }
        let child = match Child::start(&self.args.command, environment(guard)) {
            Ok(child) => child,
            Err(error) => {
                let exit = match child::is_about_command(&error) {
                    true => Exit::NotFound,
                    false => Exit::NotStarted,
                };
                return Verdict::HandOff(format!("cannot start the command: {error}"), exit);
            }
        };
        let ended = match self.watch_over(guard, child).await {
            Ok(ended) => ended,
            Err(error) => return Verdict::Fail(format!("lost sight of the command: {error}")),
        };
        self.lost = matches!(ended.stopped, Some(Stopped::Lost(_)));
        match (ended.stopped, self.told) {
            // A lost grant cannot be handed off.
            (Some(Stopped::Lost(why)), _) => Verdict::Fail(text::chain(&why)),
            // Work that SIGTERM interrupted is not done, whatever the exit code: many programs exit
            // with 0 after SIGTERM.
            (_, Some(signal @ Signal::SIGTERM)) => {
                Verdict::HandOff(signal.to_string(), Exit::Signal(signal))
            }
            (Some(Stopped::RunningOut), _) => Verdict::Fail(
                "stopped, as the lease was running out: no renewal got through".to_owned(),
            ),
            (Some(Stopped::TooLong(bound)), _) => Verdict::Fail(format!(
                "stopped, as --max-hold was running out: {}",
                humantime::format_duration(bound)
            )),
            (None, _) if ended.status.success() => Verdict::Done,
            (None, Some(signal)) => Verdict::HandOff(signal.to_string(), Exit::Signal(signal)),
            (None, None) if child::is_not_executable(ended.status) => {
                Verdict::HandOff(child::ended(ended.status), Exit::NotFound)
            }
            (None, None) => Verdict::Fail(child::ended(ended.status)),
        }
    }

    /// Waits for the command to end, and makes it end before the lease does.
    ///
    /// The command gets SIGTERM when this process gets it, or when the lease is running out. It
    /// gets SIGKILL when the grace ends, at a second SIGTERM, or when the lease is lost: then the
    /// server is about to grant the key to another worker, or has done so.
    async fn watch_over(&mut self, guard: &WorkGuard, mut child: Child) -> io::Result<Ended> {
        let mut running_out = pin!(running_out(guard, self.args.grace));
        let mut lost = pin!(guard.lost());
        let mut kill_at = None;
        let (mut stopped, began) = (None, Instant::now());
        let status = loop {
            tokio::select! {
                // The most urgent branches come first.
                biased;
                why = &mut lost, if !matches!(stopped, Some(Stopped::Lost(_))) => {
                    child.stop(Signal::SIGKILL);
                    kill_at = Some(Instant::now() + KILL_AGAIN);
                    stopped = Some(Stopped::Lost(why));
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    child.stop(Signal::SIGKILL);
                    // Repeats until no process is left: one may start while the others are listed.
                    kill_at = Some(Instant::now() + KILL_AGAIN);
                }
                status = child.wait() => break status?,
                signal = self.signals.next() => {
                    let asked = self.told == Some(Signal::SIGTERM);
                    match signal {
                        Signal::SIGTERM if asked => {
                            child.stop(Signal::SIGKILL);
                            kill_at = Some(Instant::now() + KILL_AGAIN);
                        }
                        Signal::SIGTERM => {
                            child.stop(signal);
                            let grace = time_for_command(self.args.grace);
                            kill_at.get_or_insert(Instant::now() + grace);
                            self.exit_within_grace();
                        }
                        signal if is_from_terminal(signal) => {}
                        signal => child.send(signal),
                    }
                    if is_end(signal) && !asked {
                        self.told = Some(signal);
                    }
                }
                () = &mut running_out, if stopped.is_none() => {
                    child.stop(Signal::SIGTERM);
                    kill_at.get_or_insert(Instant::now() + self.args.grace);
                    let (ends, lease) = (began.elapsed() + guard.remaining(), self.args.lease);
                    let bound = self.args.max_hold.filter(|bound| is_by(*bound, ends, lease));
                    stopped = Some(bound.map_or(Stopped::RunningOut, Stopped::TooLong));
                }
            }
        };
        self.hear_group_signal(status).await;
        Ok(Ended { status, stopped })
    }

    /// Records the signals that arrived no later than the command's end.
    ///
    /// A signal to our process group, or a key of the terminal, reaches the command and this
    /// process at once. The runtime may see the command's end first: without this method, an
    /// attempt that the signal interrupted would be counted.
    async fn hear_group_signal(&mut self, status: ExitStatus) {
        // The signal has reached this process, but the runtime has not polled for it since. If the
        // command failed, we also allow for a signal that a thread of the library receives.
        match status.success() {
            true => yield_now().await,
            false => sleep(SIGNAL_DELAY).await,
        }
        while let Some(signal) = self.signals.next().now_or_never() {
            if signal == Signal::SIGTERM {
                self.exit_within_grace();
            }
            if is_end(signal) && self.told != Some(Signal::SIGTERM) {
                self.told = Some(signal);
            }
        }
    }

    /// Waits for the server's answer. Returns `None` when we have to exit before it, or when a
    /// second signal asks us to end.
    async fn settle<T>(&mut self, settling: impl Future<Output = T>) -> Option<T> {
        let mut settling = pin!(settling);
        loop {
            tokio::select! {
                biased;
                settled = &mut settling => return Some(settled),
                () = reached(self.exit_by) => return None,
                signal = self.signals.end() => {
                    if self.told.replace(signal).is_some() {
                        self.force_exit = true;
                        return None;
                    }
                    self.exit_within_grace();
                }
            }
        }
    }

    /// Bounds every wait by the grace, which begins with the first signal that counts.
    fn exit_within_grace(&mut self) {
        let grace = self.args.grace.max(SHORTEST_EXIT);
        self.exit_by.get_or_insert(Instant::now() + grace);
    }

    fn grace(&self) -> humantime::FormattedDuration {
        humantime::format_duration(self.args.grace)
    }

    /// Prints progress, unless `--quiet` is set.
    fn say(&self, what: std::fmt::Arguments<'_>) {
        if !self.args.quiet {
            self.complain(what);
        }
    }

    /// Prints a failure, also if `--quiet` is set.
    fn complain(&self, what: std::fmt::Arguments<'_>) {
        let line = format!(
            "locking-worker: {}: {}\n",
            self.key,
            text::plain(&what.to_string())
        );
        // In one write: other processes of the fleet may print to the same terminal.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Returns the time from SIGTERM to SIGKILL: the grace less the part for the server's answer.
fn time_for_command(grace: Duration) -> Duration {
    grace - LONGEST_ANSWER.min(grace / 10)
}

/// Whether a lease ends at `ends` because of the bound.
///
/// For its holder it ends before the bound, by the margin. The 100 ms are slack for the time from
/// the grant, from which the bound counts, to the start of the command, from which `ends` counts.
fn is_by(bound: Duration, ends: Duration, lease: Duration) -> bool {
    let margin = (lease / 10)
        .min(Builder::MAX_DEFAULT_MARGIN)
        .max(lease / 100);
    ends + margin + Duration::from_millis(100) >= bound
}

/// Resolves when a third of the lease is left, or the grace if that is less. The command can end in
/// that time, and more than that is left when a renewal is due.
async fn running_out(guard: &WorkGuard, grace: Duration) {
    // Not `--lease`: until a pushed grant is confirmed, its lease is shorter.
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

/// Returns the variables that describe the attempt to the command.
///
/// A variable that does not apply is removed: this process may run in such a command itself.
fn environment(guard: &WorkGuard) -> Vec<Variable> {
    let held = ancestors::with(guard.key().as_bytes(), guard.fencing_token());
    // A variable cannot contain a zero byte; a key or a reason can.
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
        (ancestors::VARIABLE, Some(held)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_told_from_renewals_that_do_not_get_through() {
        let seconds = Duration::from_secs;
        // The last renewal came after 40 minutes, for the 20 that were left.
        assert!(is_by(seconds(3_600), seconds(3_588), seconds(3_600)));
        assert!(is_by(seconds(3), Duration::from_millis(2_960), seconds(3)));
        // The last renewal is for less than a whole lease, and so is its margin.
        assert!(is_by(
            seconds(16),
            Duration::from_millis(15_050),
            seconds(10)
        ));
        assert!(!is_by(seconds(3_600), seconds(2_400), seconds(3_600)));
        assert!(!is_by(seconds(60), seconds(55), seconds(10)));
    }
}
