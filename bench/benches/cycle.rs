//! Acquire and done, on a key that nobody else wants: `cargo bench --bench cycle -- --quick`.
//!
//! All contenders take turns, in one process and on one server, for a slice of time each; what counts
//! is the median of a contender's slices. Each cycle has a key of its own.

mod cycles;
mod report;

use std::time::Duration;

use cycles::Contender;
use report::{Options, Row, median, print, runtimes};
use testkit::Server;

fn main() {
    let options = Options::parse();
    let slices = options.pick(7, 15);
    let mut rows = Vec::new();
    for (flavour, runtime) in runtimes() {
        let server = Server::start();
        let contenders = runtime.block_on(Contender::all(&server));
        for in_flight in [1, 64, 1024] {
            let time = Duration::from_millis(options.pick(150, 400));
            let seen = cycles::take_turns(&runtime, &contenders, in_flight, slices, time);
            let rates = seen.clone().map(|seen| median(seen.rates));
            let times = seen.map(|seen| median(seen.times));
            for (nth, name) in Contender::NAMES.iter().enumerate().skip(1) {
                let row = |unit, ours, theirs| Row {
                    bench: "cycle",
                    case: format!("{in_flight} in flight, {flavour}"),
                    peer: (*name).to_owned(),
                    unit,
                    ours,
                    theirs: Some(theirs),
                };
                rows.push(row("cycles/s", rates[0], rates[nth]));
                if in_flight == 1 {
                    rows.push(row("us, p50", times[0], times[nth]));
                }
            }
        }
    }
    print(&rows);
}
