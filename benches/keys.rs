//! What a cycle costs on a server that remembers many keys: `cargo bench --bench keys -- --quick`.
//!
//! Two servers take turns: one that knows no other keys, and one with so many live records, as long as ours
//! and with a time to live, as ours have.

#[path = "../tests/common/mod.rs"]
mod common;
mod cycles;
mod report;

use std::time::Duration;

use common::{Server, command};
use cycles::Contender;
use report::{Options, Row, median, print, runtimes};

fn main() {
    let options = Options::parse();
    let [(flavour, runtime), _] = runtimes();
    let (slices, time) = (options.pick(5, 25), Duration::from_millis(200));
    let mut rows = Vec::new();
    for keys in [1, 1_000, 10_000, 100_000, 1_000_000] {
        let servers = [Server::start(), Server::start()];
        runtime.block_on(fill(&servers[1], keys));
        let contenders = servers.each_ref().map(|server| runtime.block_on(Contender::ours(server)));
        for in_flight in [1, 64] {
            let [alone, among] = cycles::take_turns(&runtime, &contenders, in_flight, slices, time);
            let (among, alone) = match in_flight {
                1 => (among.times, alone.times),
                _ => (among.rates, alone.rates),
            };
            rows.push(Row {
                bench: "keys",
                case: format!("{keys} live keys, {in_flight} in flight, {flavour}"),
                peer: "no other keys".to_owned(),
                unit: if in_flight == 1 { "us, p50" } else { "cycles/s" },
                ours: median(among),
                theirs: Some(median(alone)),
            });
        }
    }
    print(&rows);
}

async fn fill(server: &Server, keys: usize) {
    const SCRIPT: &[u8] = b"
        for n = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
            redis.call('SET', 'live:' .. n, string.rep('x', 200), 'PX', 3600000)
        end";
    let client = server.client().await;
    for from in (0..keys).step_by(10_000) {
        let (from, to) = (from.to_string(), (from + 10_000).min(keys).to_string());
        command(&client, [b"EVAL", SCRIPT, b"0", from.as_bytes(), to.as_bytes()]).await;
    }
    let size = command(&client, [b"DBSIZE"]).await;
    assert_eq!(size.as_u64(), Some(keys as u64));
}
