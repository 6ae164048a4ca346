//! What a cycle costs on a server that remembers many keys: `cargo bench --bench keys -- --quick`.
//!
//! Two servers take turns: one that knows no other keys, and one with so many live records, as long as ours
//! and with a time to live, as ours have.

mod cycles;
mod report;

use std::time::Duration;

use cycles::Contender;
use report::{Options, Row, median, print, runtimes};
use testkit::{Server, command};

fn main() {
    let options = Options::parse();
    let [(flavour, runtime), _] = runtimes();
    let (slices, time) = (options.pick(3, 15), Duration::from_millis(150));
    let mut rows = Vec::new();
    for keys in [1, 1_000, 10_000, 100_000, 1_000_000] {
        let servers = [Server::start(), Server::start()];
        runtime.block_on(fill(&servers[1], keys));
        let [alone, among] = &servers;
        let contenders = runtime.block_on(async {
            [
                Contender::ours(among).await,
                Contender::ours(alone).await,
                Contender::raw(among).await,
                Contender::raw(alone).await,
            ]
        });
        for in_flight in [1, 64] {
            let seen = cycles::take_turns(&runtime, &contenders, in_flight, slices, time);
            let (unit, seen) = match in_flight {
                1 => ("us, p50", seen.map(|seen| median(seen.times))),
                _ => ("cycles/s", seen.map(|seen| median(seen.rates))),
            };
            // How raw commands fare tells what of it is the server's own.
            for (who, among, alone) in [("ours", seen[0], seen[1]), ("raw fred", seen[2], seen[3])]
            {
                rows.push(Row {
                    bench: "keys",
                    case: format!("{who}, {keys} live keys, {in_flight} in flight, {flavour}"),
                    peer: "no other keys".to_owned(),
                    unit,
                    ours: among,
                    theirs: Some(alone),
                });
            }
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
        command(
            &client,
            [b"EVAL", SCRIPT, b"0", from.as_bytes(), to.as_bytes()],
        )
        .await;
    }
    let size = command(&client, [b"DBSIZE"]).await;
    assert_eq!(size.as_u64(), Some(keys as u64));
}
