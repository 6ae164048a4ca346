//! What all benchmarks have in common: their options, and how they tell what they saw.
#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::time::Duration;

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
pub fn runtimes() -> [(&'static str, tokio::runtime::Runtime); 2] {
    let current = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let multi = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    [
        ("current-thread", current.unwrap()),
        ("multi-thread", multi.unwrap()),
    ]
}
