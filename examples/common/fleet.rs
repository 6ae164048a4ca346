//! The workers of an example: this program again and again, or tasks where there is no server.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::process::Stdio;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{Builder, LockingWorker, Memory};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::{Result, now, stop_signal, with_causes};

// How an example calls itself. Not a doc comment: that would be in the example's help.
#[derive(clap::Args)]
pub struct Call {
    /// The number of this worker, its server and its key
    #[arg(long, hide = true, num_args = 3)]
    worker: Option<Vec<String>>,
}

impl Call {
    /// What this process is called to be, unless it is the one that a user has called. A worker does
    /// not outlive that one.
    pub fn role(&self) -> Option<Role> {
        let [number, url, key] = self.worker.as_deref()? else {
            return None;
        };
        std::thread::spawn(|| {
            // Nothing is written there: it ends when the caller does, however that ends.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(1);
        });
        Some(Role {
            number: number.parse().ok()?,
            key: key.clone(),
            kind: Kind::Process { url: url.clone() },
        })
    }
}

/// What a worker needs: who it is, where the others are, and whom to tell.
pub struct Role {
    pub number: u32,
    /// The fleet's key.
    pub key: String,
    kind: Kind,
}

enum Kind {
    Process {
        url: String,
    },
    Task {
        memory: Memory,
        reports: mpsc::UnboundedSender<Report>,
        stop: CancellationToken,
        resume: Arc<Notify>,
    },
}

impl Role {
    /// A worker on the fleet's key, where the others are.
    pub fn builder(&self) -> Builder {
        let builder = LockingWorker::builder(&self.key).label(self.to_string());
        match &self.kind {
            Kind::Process { url } => builder.url(url),
            Kind::Task { memory, .. } => builder.in_memory(memory),
        }
    }

    /// Tells the fleet's owner, in one line.
    pub fn says(&self, line: impl Display) {
        match &self.kind {
            Kind::Process { .. } => println!("{line}"),
            Kind::Task { reports, .. } => drop(reports.send((self.number, Some(line.to_string())))),
        }
    }

    /// Resolves when this worker is told to stop: a process by a signal, from now on.
    pub fn shutdown(&self) -> io::Result<BoxFuture<'static, ()>> {
        Ok(match &self.kind {
            Kind::Process { .. } => stop_signal()?.boxed(),
            Kind::Task { stop, .. } => stop.clone().cancelled_owned().boxed(),
        })
    }

    /// Resolves when this worker goes on after a pause: a process by SIGCONT, from now on.
    pub fn resumed(&self) -> io::Result<BoxFuture<'static, ()>> {
        Ok(match &self.kind {
            Kind::Process { .. } => {
                let mut continued = signal(SignalKind::from_raw(Signal::SIGCONT as i32))?;
                async move { continued.recv().await.unwrap_or_default() }.boxed()
            }
            Kind::Task { resume, .. } => {
                let resume = resume.clone();
                async move { resume.notified().await }.boxed()
            }
        })
    }
}

impl Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker {}", self.number)
    }
}

/// A line of a worker, by its number, or that there will be no more.
type Report = (u32, Option<String>);

/// The workers, which end with it.
pub struct Fleet {
    /// Another one each time: an outcome is remembered for a while.
    pub key: String,
    /// What the workers are called with, beside what makes them workers.
    pub args: Vec<String>,
    // Before the place: they end before their server.
    workers: BTreeMap<u32, Worker>,
    place: Place,
    memory: Memory,
    started: u32,
    /// How many have not said their last line.
    talking: u32,
    reports: mpsc::UnboundedSender<Report>,
    heard: mpsc::UnboundedReceiver<Report>,
}

enum Worker {
    Process(Child),
    Task {
        task: JoinHandle<Result<(), String>>,
        stop: CancellationToken,
        resume: Arc<Notify>,
    },
}

impl Fleet {
    /// None yet, for this example.
    pub async fn of(example: &str) -> Result<Self> {
        let (reports, heard) = mpsc::unbounded_channel();
        Ok(Self {
            key: format!("{example}-example:{}:{}", std::process::id(), now()),
            args: std::env::args().skip(1).collect(),
            workers: BTreeMap::new(),
            place: Place::find().await?,
            memory: Memory::new(),
            started: 0,
            talking: 0,
            reports,
            heard,
        })
    }

    /// What to say of so many workers.
    pub fn describe(&self, workers: u32) -> String {
        self.place.describe(workers)
    }

    pub fn is_of_processes(&self) -> bool {
        self.place.url().is_some()
    }

    /// Starts the next worker, from 1: as a process if there is a server, else as this task.
    pub fn start<F>(&mut self, task: impl FnOnce(Role) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let number = self.started + 1;
        let worker = match self.place.url() {
            Some(url) => self.start_process(number, url)?,
            None => self.start_task(number, task),
        };
        self.workers.insert(number, worker);
        self.started = number;
        self.talking += 1;
        Ok(())
    }

    /// Says how many workers there are, and starts them.
    pub fn start_all<F>(&mut self, workers: u32, task: impl Fn(Role) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        println!("{}", self.describe(workers));
        (0..workers).try_for_each(|_| self.start(&task))
    }

    fn start_process(&self, number: u32, url: &str) -> Result<Worker> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(&self.args)
            .args(["--worker", &number.to_string(), url, &self.key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = output.ok_or("a child without output")?;
        let reports = self.reports.clone();
        tokio::spawn(async move {
            listen(number, output, reports).await;
            // Until now: its end is taken for ours.
            drop(input);
        });
        Ok(Worker::Process(child))
    }

    fn start_task<F>(&self, number: u32, task: impl FnOnce(Role) -> F) -> Worker
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let (reports, stop) = (self.reports.clone(), CancellationToken::new());
        let resume = Arc::new(Notify::new());
        let task = task(Role {
            number,
            key: self.key.clone(),
            kind: Kind::Task {
                memory: self.memory.clone(),
                reports: reports.clone(),
                stop: stop.clone(),
                resume: resume.clone(),
            },
        });
        let task = tokio::spawn(async move {
            let ended = task.await.map_err(|error| with_causes(&*error));
            let _ = reports.send((number, None));
            ended
        });
        Worker::Task { task, stop, resume }
    }

    /// What any of them says next, and which one; `None` when all have ended.
    pub async fn hear(&mut self) -> Option<(u32, String)> {
        while self.talking > 0 {
            match self.heard.recv().await? {
                (number, Some(line)) => return Some((number, line)),
                (_, None) => self.talking -= 1,
            }
        }
        None
    }

    /// Tells a worker to stop.
    pub fn terminate(&self, number: u32) -> Result<()> {
        match self.workers.get(&number) {
            Some(Worker::Task { stop, .. }) => stop.cancel(),
            _ => self.signal(number, Signal::SIGTERM)?,
        }
        Ok(())
    }

    /// Tells all of them.
    pub fn terminate_all(&self) -> Result<()> {
        self.numbers().try_for_each(|number| self.terminate(number))
    }

    /// Stops a worker where it is, if it is a process.
    pub fn pause(&self, number: u32) -> Result<()> {
        self.signal(number, Signal::SIGSTOP)
    }

    /// Lets a worker that was stopped go on.
    pub fn resume(&self, number: u32) -> Result<()> {
        match self.workers.get(&number) {
            Some(Worker::Task { resume, .. }) => resume.notify_one(),
            _ => self.signal(number, Signal::SIGCONT)?,
        }
        Ok(())
    }

    /// Sends a signal to a worker, if it is a process.
    fn signal(&self, number: u32, signal: Signal) -> Result<()> {
        if let Some(Worker::Process(child)) = self.workers.get(&number) {
            if let Some(pid) = child.id() {
                kill(Pid::from_raw(pid.try_into()?), signal)?;
            }
        }
        Ok(())
    }

    /// Ends a process as a crash does. It is no more of the fleet; what it has said is still heard.
    pub async fn kill(&mut self, number: u32) -> Result<()> {
        if let Some(Worker::Process(mut child)) = self.workers.remove(&number) {
            child.kill().await?;
        }
        Ok(())
    }

    /// The numbers of the workers.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.workers.keys().copied()
    }

    /// Waits until all workers have ended; each should have without an error.
    pub async fn end(&mut self) -> Result<()> {
        while let Some((number, worker)) = self.workers.pop_first() {
            let ended = match worker {
                Worker::Task { task, .. } => task.await?,
                Worker::Process(mut child) => match child.wait().await? {
                    status if status.success() => Ok(()),
                    status => Err(status.to_string()),
                },
            };
            ended.map_err(|why| format!("worker {number} ended early: {why}"))?;
        }
        Ok(())
    }
}

/// Passes on what a process says. What it was killed in the middle of is no line.
async fn listen(number: u32, output: ChildStdout, reports: mpsc::UnboundedSender<Report>) {
    let mut output = BufReader::new(output);
    let mut line = String::new();
    while output.read_line(&mut line).await.is_ok() && line.ends_with('\n') {
        let _ = reports.send((number, Some(line.trim_end().to_owned())));
        line.clear();
    }
    let _ = reports.send((number, None));
}
