//! Both stores, on a clock that the test moves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use redis_locking_worker::internals::{
    MemoryStore, Op, Outcome, Pace, RedisStore, Reply, Store, Token,
};
use redis_locking_worker::{Key, Memory};

use super::{Server, command};

/// A store whose time the test moves.
#[allow(async_fn_in_trait)]
pub trait Bench {
    type Store: Store;

    fn store(&mut self) -> &mut Self::Store;

    /// Lets time pass on the store.
    async fn pass(&mut self, ms: u64);

    /// Returns the ms until the key is forgotten, and the number of waiters.
    async fn life(&mut self, key: &Key) -> Option<(u64, u64)>;

    /// Removes the record, as a flush or an eviction would.
    async fn lose(&mut self, key: &Key);

    async fn apply(&mut self, key: &Key, op: &Op) -> Reply {
        self.store().apply(key, op).await.unwrap()
    }
}

/// The memory store, on Tokio's paused clock.
pub struct MemoryBench {
    memory: Memory,
    store: MemoryStore,
}

impl Default for MemoryBench {
    fn default() -> Self {
        let memory = Memory::new();
        let store = MemoryStore::new(&memory);
        Self { memory, store }
    }
}

impl MemoryBench {
    pub fn now(&self) -> u64 {
        self.store.now()
    }
}

impl Bench for MemoryBench {
    type Store = MemoryStore;

    fn store(&mut self) -> &mut MemoryStore {
        &mut self.store
    }

    async fn pass(&mut self, ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    async fn life(&mut self, key: &Key) -> Option<(u64, u64)> {
        self.store.life(key).map(|(ms, line)| (ms, line as u64))
    }

    async fn lose(&mut self, key: &Key) {
        self.memory.remove(key);
    }
}

/// The scripts on a real server. They read the time from a key instead of the server's clock.
/// Moving the time also shortens the TTL of each key.
pub struct RedisBench {
    store: RedisStore,
    client: Client,
    now: u64,
    _server: Server,
}

impl RedisBench {
    /// Starts a server whose time begins at `now`, in µs.
    pub async fn new(now: u64) -> Self {
        Self::with_scripts(now, |script| script).await
    }

    /// Starts such a server with scripts that the test has edited.
    pub async fn with_scripts(now: u64, edit: impl Fn(String) -> String) -> Self {
        let server = Server::start();
        let client = server.client().await;
        let store = RedisStore::with_client(client.clone(), None, Pace::default())
            .await
            .unwrap();
        let store = store.edit_scripts(|script| {
            let clock = "redis.call('TIME')";
            let still = "(function(now) return { string.sub(now, 1, -7), string.sub(now, -6) } end)\
                (redis.call('GET', 'bench:now'))";
            assert!(script.contains(clock));
            edit(script.replace(clock, still))
        });
        let mut bench = Self {
            store,
            client,
            now,
            _server: server,
        };
        bench.pass(0).await;
        bench
    }

    pub async fn flush(&mut self) {
        command(&self.client, [b"FLUSHALL"]).await;
        self.pass(0).await;
    }

    pub async fn eval(&self, script: &str, args: Vec<Value>) -> Value {
        let eval = CustomCommand::new_static("EVAL", ClusterHash::FirstKey, false);
        let head = [Value::from(script), Value::from(0)];
        self.client
            .custom(eval, head.into_iter().chain(args).collect())
            .await
            .unwrap()
    }
}

impl Bench for RedisBench {
    type Store = RedisStore;

    fn store(&mut self) -> &mut RedisStore {
        &mut self.store
    }

    async fn pass(&mut self, ms: u64) {
        self.now += ms * 1_000;
        let script = "redis.call('SET', 'bench:now', ARGV[1])
            for _, key in ipairs(redis.call('KEYS', '*')) do
                local left = redis.call('PTTL', key)
                if left >= 0 and left <= tonumber(ARGV[2]) then
                    redis.call('DEL', key)
                elseif left >= 0 then
                    redis.call('PEXPIRE', key, left - ARGV[2])
                end
            end";
        let args = vec![self.now.to_string().into(), ms.to_string().into()];
        self.eval(script, args).await;
    }

    async fn life(&mut self, key: &Key) -> Option<(u64, u64)> {
        let [record, line] = key.server_names();
        // A queue that outlived its record belongs to no run.
        let script = "local record = redis.call('GET', ARGV[1])
            local has_line = record and string.find(record, ' line=1 ', 1, true)
            return { redis.call('PTTL', ARGV[1]), has_line and redis.call('ZCARD', ARGV[2]) or 0 }";
        let args = vec![Value::from(record), Value::from(line)];
        let (ttl, line): (i64, u64) = self.eval(script, args).await.convert().unwrap();
        Some((u64::try_from(ttl).ok()?, line))
    }

    async fn lose(&mut self, key: &Key) {
        command(&self.client, [b"DEL", key.as_bytes()]).await;
    }
}

pub const LEASE: u64 = 5_000;
pub const RETENTION: u64 = 20_000;
pub const WINDOW: u64 = 500;

pub fn token(number: u128) -> Token {
    Token::from_number(number)
}

pub fn label(number: u128) -> Arc<str> {
    format!("worker-{number}").into()
}

pub fn claim(number: u128) -> Op {
    claim_with(number, 3, RETENTION)
}

pub fn claim_with(number: u128, max_attempts: u32, retention: u64) -> Op {
    Op::Claim {
        token: token(number),
        label: label(number),
        lease: LEASE,
        max_attempts,
        retention,
    }
}

pub fn settle(fence: u64, outcome: Outcome) -> Op {
    Op::Settle {
        fence,
        outcome,
        window: WINDOW,
    }
}

pub fn renew(fence: u64, checkpoint: Option<&'static str>) -> Op {
    Op::Renew {
        fence,
        lease: LEASE,
        checkpoint: checkpoint.map(Bytes::from),
    }
}

pub fn withdraw(number: u128) -> Op {
    Op::Withdraw {
        token: token(number),
        label: label(number),
        except_fence: None,
        window: WINDOW,
    }
}

/// Withdraws, but does not give back the grant with this fencing token.
pub fn withdraw_except(number: u128, fence: u64) -> Op {
    Op::Withdraw {
        token: token(number),
        label: label(number),
        except_fence: Some(fence),
        window: WINDOW,
    }
}
