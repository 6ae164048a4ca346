//! What a transition costs the server, by how many travel in a call: `cargo bench --bench server -- --quick`.
//!
//! The server's own count (`INFO commandstats`) of the time in `EVALSHA`, and in the commands that a plain
//! lock sends instead. Reading requests and writing answers is not in it; nor is the network.

mod report;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{KeysInterface, LuaInterface};
use fred::types::{Expiration, SetOptions};
use redis_locking_worker::Key;
use redis_locking_worker::internals::{Failure, Op, Outcome, Pace, RedisStore, Reply, Store};
use report::{Options, Row, current_thread, print};
use testkit::bench::{claim, settle};
use testkit::{Server, command};

fn main() {
    let options = Options::parse();
    current_thread().block_on(async {
        let server = Server::start();
        let client = server.client().await;
        let store = RedisStore::with_client(client.clone(), None, Pace::default())
            .await
            .unwrap();
        let mut rows = Vec::new();
        for together in [1, 8, 32, 128, 256] {
            rows.extend(scripts(&client, &store, together, options.pick(20_000, 60_000)).await);
        }
        rows.extend(plain(&client, options.pick(5_000, 20_000)).await);
        print(&rows);
    });
}

fn row(case: String, ours: f64) -> Row {
    Row {
        bench: "server",
        case,
        peer: String::new(),
        unit: "us of the server an item",
        ours,
        theirs: None,
    }
}

/// Claims of absent keys; then either their completion, or a waiter each and their failure.
async fn scripts(client: &Client, store: &RedisStore, together: usize, items: usize) -> Vec<Row> {
    let mut spent = [0.0; 4];
    let calls = items / together;
    // The first call is to warm up.
    for call in 0..=calls {
        let ends_well = call % 2 == 0;
        let keys: Vec<Key> = (0..together)
            .map(|nth| Key::new(format!("server:{call}:{nth}")).unwrap())
            .collect();
        let mut fences = Vec::new();
        for step in 0..if ends_well { 2 } else { 3 } {
            let op = |nth: usize| match (step, ends_well) {
                (0, _) => claim(1),
                (1, false) => claim(2),
                (_, true) => settle(fences[nth], Outcome::Done(Bytes::new())),
                (_, false) => settle(fences[nth], Outcome::Fail(Failure::Dropped)),
            };
            let ops: Vec<Op> = (0..together).map(op).collect();
            let asked: Vec<(&Key, &Op)> = keys.iter().zip(&ops).collect();
            command(client, [b"CONFIG", b"RESETSTAT"]).await;
            let answers = store.apply_all(&asked).await;
            if call > 0 {
                spent[if step > 0 && !ends_well {
                    step + 1
                } else {
                    step
                }] += spent_in(client, "evalsha").await;
            }
            if step == 0 {
                let fence = |answer: Result<Reply, _>| answer.unwrap().record().unwrap().fence;
                fences = answers.into_iter().map(fence).collect();
            }
        }
    }
    let well = (calls / 2 * together) as f64;
    let ill = (calls.div_ceil(2) * together) as f64;
    let name = |what| format!("{what}, {together} a call");
    vec![
        row(name("claim"), spent[0] / (well + ill)),
        row(name("done"), spent[1] / well),
        row(name("claim that waits"), spent[2] / ill),
        row(name("failure with a waiter"), spent[3] / ill),
    ]
}

/// What a plain lock sends.
async fn plain(client: &Client, items: usize) -> Vec<Row> {
    const COMPARE_AND_DELETE: &str = "
        if redis.call('GET', KEYS[1]) == ARGV[1] then
            return redis.call('DEL', KEYS[1])
        end
        return 0";
    let sha: String = client.script_load(COMPARE_AND_DELETE).await.unwrap();
    let (mut set, mut deleted) = (0.0, 0.0);
    for nth in 0..items {
        let key = format!("plain:{nth}");
        command(client, [b"CONFIG", b"RESETSTAT"]).await;
        let px = Some(Expiration::PX(5_000));
        let _: () = client
            .set(&key, "token", px, Some(SetOptions::NX), false)
            .await
            .unwrap();
        set += spent_in(client, "set").await;
        let _: () = client.evalsha(&sha, key, "token").await.unwrap();
        deleted += spent_in(client, "evalsha").await;
    }
    vec![
        row("SET NX PX".to_owned(), set / items as f64),
        row(
            "compare and delete, 1 a call".to_owned(),
            deleted / items as f64,
        ),
    ]
}

/// In µs, since the statistics were reset.
async fn spent_in(client: &Client, name: &str) -> f64 {
    let info = command(client, [b"INFO", b"commandstats"]).await;
    let info = info.into_string().unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:")));
    let (_, spent) = line.expect("it was called").split_once("usec=").unwrap();
    spent.split(',').next().unwrap().parse().unwrap()
}
