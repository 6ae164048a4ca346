//! Holders whose threads, whose process or whose machine stand still.
//!
//! This binary is also the holder: `standstill --holder URL LEASE_MS OPTIONS…` acquires the work, says what becomes of
//! its guard on its standard output, and does what its standard input says. `STANDSTILL_RUNS` is how often each test
//! of a blocked runtime is repeated; once by default.

mod blocked;
mod holder;
mod stopped;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, url, lease, options @ ..] = &args[..]
        && mode == "--holder"
    {
        holder::run(url, lease.parse().unwrap(), options);
        return ExitCode::SUCCESS;
    }
    let mut tests = Vec::new();
    let mut add = |tests_of: &[(&str, fn())]| {
        for (name, run) in tests_of {
            let run = *run;
            tests.push(Trial::test(*name, move || {
                run();
                Ok::<(), Failed>(())
            }));
        }
    };
    add(blocked::TESTS);
    add(stopped::TESTS);
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
