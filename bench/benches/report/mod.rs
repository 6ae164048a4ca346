//! What all benchmarks have in common: their options, and how they tell what they saw.
//!
//! Each benchmark measures on servers of its own, and all contenders take turns in one run.
//! docs/performance.md has the results. `scripts/performance.sh` runs all of them, and `plot` draws
//! what they saw.
#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Options {
    pub quick: bool,
}

impl Options {
    /// `--quick` is ours; what else `cargo bench` passes is not.
    pub fn parse() -> Self {
        Self {
            quick: std::env::args().any(|arg| arg == "--quick"),
        }
    }

    pub fn pick<T>(self, quick: T, whole: T) -> T {
        match self.quick {
            true => quick,
            false => whole,
        }
    }
}

/// One comparison.
pub struct Row {
    pub bench: &'static str,
    pub case: String,
    pub peer: String,
    pub unit: &'static str,
    pub ours: f64,
    /// What it is compared with, if with anything.
    pub theirs: Option<f64>,
}

impl Row {
    pub fn ratio(&self) -> Option<f64> {
        self.theirs.map(|theirs| self.ours / theirs)
    }

    /// A JSON line on the standard output, for plots and comparisons.
    fn json(&self) -> String {
        let number = |number: Option<f64>| match number {
            Some(number) if number.is_finite() => format!("{number:.4}"),
            _ => "null".to_owned(),
        };
        format!(
            r#"{{"bench":"{}","case":"{}","peer":"{}","unit":"{}","ours":{},"theirs":{},"ratio":{}}}"#,
            self.bench,
            self.case,
            self.peer,
            self.unit,
            number(Some(self.ours)),
            number(self.theirs),
            number(self.ratio()),
        )
    }
}

/// The rows as JSON lines on the standard output, and as a table for people on standard error.
pub fn print(rows: &[Row]) {
    eprintln!(
        "\n{:<34} {:<26} {:>12} {:>12} {:>8}  unit",
        "case", "against", "ours", "theirs", "ratio"
    );
    for row in rows {
        let theirs = row.theirs.map_or("".to_owned(), figure);
        let ratio = row
            .ratio()
            .map_or("".to_owned(), |ratio| format!("{ratio:.2}"));
        eprintln!(
            "{:<34} {:<26} {:>12} {:>12} {:>8}  {}",
            row.case,
            row.peer,
            figure(row.ours),
            theirs,
            ratio,
            row.unit
        );
        println!("{}", row.json());
    }
}

fn figure(number: f64) -> String {
    match number {
        n if n >= 1_000.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.3}"),
    }
}

/// The points of a distribution that are told.
pub const PARTS: [(&str, f64); 5] = [
    ("us, p10", 0.1),
    ("us, p50", 0.5),
    ("us, p90", 0.9),
    ("us, p99", 0.99),
    ("us, max", 1.0),
];

pub fn median(mut numbers: Vec<f64>) -> f64 {
    percentile(&mut numbers, 0.5)
}

pub fn percentile(numbers: &mut [f64], part: f64) -> f64 {
    assert!(!numbers.is_empty(), "nothing was measured");
    numbers.sort_by(f64::total_cmp);
    numbers[((numbers.len() - 1) as f64 * part).round() as usize]
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The two kinds of runtime.
pub fn runtimes() -> [(&'static str, Runtime); 2] {
    let multi = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    [
        ("current-thread", current_thread()),
        ("multi-thread", multi.unwrap()),
    ]
}

pub fn current_thread() -> Runtime {
    let current = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    current.unwrap()
}

/// In ns, on a clock that all processes share.
pub fn now() -> u64 {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    u64::try_from(now.as_nanos()).unwrap()
}

/// This benchmark once more, as a child process that says what it sees, and is told what to do, line by
/// line.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    /// Until somebody else reads it.
    output: Option<BufReader<ChildStdout>>,
}

impl Peer {
    pub fn start(args: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: child.stdout.take().map(BufReader::new),
            child,
        }
    }

    /// The numbers in its next line.
    pub fn hear<const N: usize>(&mut self) -> [f64; N] {
        let mut line = String::new();
        let output = self.output.as_mut().expect("nobody else reads it");
        output.read_line(&mut line).unwrap();
        let numbers = numbers(&line).try_into();
        numbers.unwrap_or_else(|_| panic!("{line:?}"))
    }

    /// From here on the numbers in all its lines go there.
    pub fn tell(&mut self, name: usize, listener: Sender<(usize, Vec<f64>)>) {
        let output = self.output.take().expect("nobody else reads it");
        std::thread::spawn(move || {
            for line in output.lines() {
                // The benchmark may not care any more.
                let _ = listener.send((name, numbers(&line.unwrap())));
            }
        });
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn end(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn numbers(line: &str) -> Vec<f64> {
    let numbers = line.split_whitespace().map(|word| word.parse().unwrap());
    numbers.collect()
}
