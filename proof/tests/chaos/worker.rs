//! The worker process of a fleet: takes part in the runs of many keys at once, does with its guards whatever
//! can be done with them, and tells all of it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::Builder as FredBuilder;
use fred::types::config::Config;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use redis_locking_worker::{Error, LockEvent, LockingWorker, OnceError, SettleError, WorkGuard};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder as RuntimeBuilder, Handle};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::now;
use crate::sampler::Sampler;
use crate::standstill::{Blocked, block};
use proof::history::{Answer, How, Look, Told, What, brief};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Unique on the resource.
    pub run: String,
    pub url: String,
    /// A server without faults, which keeps what the work writes.
    pub resource: String,
    pub seed: u64,
    /// Each incarnation has another.
    pub process: u32,
    pub label: String,
    pub keys: Vec<String>,
    pub lease_ms: u64,
    pub retention_ms: u64,
    pub max_attempts: u32,
    pub max_hold_ms: u64,
    pub renews: bool,
    pub rejoins: bool,
    /// Which database of the server it works in.
    pub database: u32,
    /// Whether some of its results have the longest length.
    pub large: bool,
    /// How many threads its runtime has; none is a current-thread runtime.
    pub threads: usize,
}

impl Orders {
    /// Roughly how long things take here, in ms.
    pub fn span(&self) -> u64 {
        self.lease_ms.min(1_000)
    }
}

/// Takes a write under no smaller token than it has seen, and keeps the tokens of those it took in order.
const WRITE: &str = "
    if tonumber(ARGV[1]) < tonumber(redis.call('LINDEX', KEYS[1], -1) or '0') then
        return 0
    end
    redis.call('RPUSH', KEYS[1], ARGV[1])
    return 1";

/// A key of a database as histories name it.
pub fn place(database: u32, key: &str) -> String {
    match database {
        0 => key.to_owned(),
        database => format!("{key} in database {database}"),
    }
}

/// What a worker says, line by line.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    Told(Told),
    Look(Look),
    Blocked(Blocked),
}

pub fn say(what: &Said) {
    let mut line = serde_json::to_string(what).unwrap();
    line.push('\n');
    let mut out = std::io::stdout().lock();
    // In one piece: the process may be killed at any moment.
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Where a run's writes for a key are kept.
pub fn written(run: &str, key: &str) -> String {
    format!("{run}:{key}")
}

/// How many of the results are large, where any are.
const LARGE: f64 = 0.03;

struct Process {
    orders: Orders,
    resource: Client,
    streams: AtomicU64,
    /// All is well again: no new participation, and no more failures.
    finish: CancellationToken,
    sampler: Arc<Sampler>,
}

/// How long after the last fault a worker may fail to connect: for two attempts of 2 s each.
const WELL_AGAIN: Duration = Duration::from_secs(5);

/// Takes part on a runtime as its orders say.
pub fn start(orders: Orders) {
    let runtime = match orders.threads {
        0 => RuntimeBuilder::new_current_thread().enable_all().build(),
        threads => RuntimeBuilder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build(),
    };
    let runtime = runtime.unwrap();
    runtime.block_on(run(orders));
}

async fn run(orders: Orders) {
    // Whoever takes part would go missing otherwise. The work's own panics come without this.
    let says = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        says(panic);
        std::process::abort();
    }));
    let lease = Duration::from_millis(orders.lease_ms);
    let mut builder = LockingWorker::builder(&orders.keys[0])
        .url(&orders.url)
        .label(&orders.label)
        .lock_timeout(lease)
        .retention(Duration::from_millis(orders.retention_ms))
        .max_attempts(orders.max_attempts)
        .max_hold(Duration::from_millis(orders.max_hold_ms))
        .rejoin(orders.rejoins);
    if orders.renews {
        builder = builder.renew();
    }
    let finish = CancellationToken::new();
    let sampler = Arc::new(Sampler::start());
    let (told, blocks) = (
        finish.clone(),
        Blocks {
            threads: orders.threads.max(1),
            runtime: Handle::current(),
            sampler: sampler.clone(),
        },
    );
    std::thread::spawn(move || take_orders(&told, &blocks));
    let mut well_since = None;
    let worker = loop {
        if finish.is_cancelled() {
            well_since.get_or_insert_with(Instant::now);
        }
        match builder.clone().build().await {
            Ok(worker) => break worker,
            // One attempt may time out on a machine that is busy with other fleets.
            Err(error) if well_since.is_some_and(|since| since.elapsed() > WELL_AGAIN) => {
                panic!("cannot take part though all is well: {error:?}")
            }
            // The server is out of reach, which this fleet is about.
            Err(error) => eprintln!("{}: {error}", orders.label),
        }
        sleep(Duration::from_millis(50)).await;
    };
    let resource = Config::from_url(&orders.resource).unwrap();
    let resource = FredBuilder::from_config(resource).build().unwrap();
    resource.init().await.unwrap();

    let keys = orders.keys.clone();
    let process = Arc::new(Process {
        orders,
        resource,
        streams: AtomicU64::new(0),
        finish,
        sampler: sampler.clone(),
    });
    let all = keys.into_iter().map(|key| {
        let worker = worker.with_key(&key).unwrap();
        tokio::spawn(participate(process.clone(), worker, key))
    });
    for participant in all.collect::<Vec<_>>() {
        participant.await.unwrap();
    }
    worker.close().await;
    // No line is to be cut off by the end of the process.
    sampler.stop();
}

/// What blocks need to know.
struct Blocks {
    threads: usize,
    runtime: Handle,
    sampler: Arc<Sampler>,
}

/// Lines on standard input: to finish, or to block threads. With its end the fleet has gone.
fn take_orders(finish: &CancellationToken, blocks: &Blocks) {
    for order in std::io::stdin().lines().map_while(Result::ok) {
        match &order[..] {
            "finish" => finish.cancel(),
            order => {
                let order = serde_json::from_str(order).unwrap();
                let Blocks {
                    threads,
                    runtime,
                    sampler,
                } = blocks;
                say(&Said::Blocked(block(order, *threads, runtime, sampler)));
            }
        }
    }
    std::process::exit(1);
}

struct Stream {
    process: Arc<Process>,
    key: String,
    nth: u64,
}

impl Stream {
    fn tell(&self, what: What) {
        self.tell_at(now(), what);
    }

    fn tell_at(&self, at: u64, what: What) {
        let told = Told {
            at,
            process: self.process.orders.process,
            stream: self.nth,
            key: self.key.clone(),
            what,
        };
        say(&Said::Told(told));
    }
}

async fn participate(process: Arc<Process>, worker: LockingWorker, key: String) {
    let orders = &process.orders;
    let mut hasher = DefaultHasher::new();
    (orders.seed, orders.process, &key).hash(&mut hasher);
    let mut random = StdRng::seed_from_u64(hasher.finish());
    // At least once.
    loop {
        let nth = u64::from(orders.process) << 32 | process.streams.fetch_add(1, Ordering::Relaxed);
        let stream = Stream {
            process: process.clone(),
            key: place(orders.database, &key),
            nth,
        };
        match random.gen_bool(0.15) {
            true => once(&stream, &worker, &mut random).await,
            false => follow(&stream, &worker, &mut random).await,
        }
        if process.finish.is_cancelled() {
            return;
        }
        let pause = random.gen_range(0..orders.span());
        let _ = timeout(Duration::from_millis(pause), process.finish.cancelled()).await;
    }
}

/// How long a stream waits for its end.
fn patience(stream: &Stream, random: &mut StdRng) -> Duration {
    let longest = 2 * stream.process.orders.span();
    match random.gen_bool(0.15) {
        true => Duration::from_millis(random.gen_range(0..longest)),
        false => Duration::MAX,
    }
}

/// By `once`, which tells its caller only the end.
async fn once(stream: &Stream, worker: &LockingWorker, random: &mut StdRng) {
    stream.tell(What::Joined { rejoins: true });
    let leaves = sleep(patience(stream, random));
    let mut turns = StdRng::seed_from_u64(random.r#gen());
    let mut once = Box::pin(worker.once(|guard| turn(stream, guard, turns.r#gen())));
    let ended = tokio::select! {
        ended = &mut once => ended,
        () = leaves => {
            stream.tell(What::Left);
            drop(once);
            return;
        }
    };
    stream.tell(match ended {
        Ok(result) => {
            let text = std::str::from_utf8(&result).unwrap();
            let mut words = text.split(' ').skip(1);
            let attempt = words.next().unwrap().parse().unwrap();
            let holder = words.next().unwrap().to_owned();
            What::Completed {
                holder,
                attempt,
                result: brief(&result),
            }
        }
        Err(OnceError::GaveUp(_)) => What::GaveUp,
        Err(error) => What::Fatal(error.to_string()),
    });
    stream.tell(What::End);
}

/// A turn that `once` gives to its work, and may end half-way, or before it begins.
fn turn(
    stream: &Stream,
    guard: Arc<WorkGuard>,
    seed: u64,
) -> impl Future<Output = Result<Vec<u8>, &'static str>> {
    let mut random = StdRng::seed_from_u64(seed);
    let fence = guard.fencing_token();
    stream.tell(What::Acquired {
        fence,
        attempt: guard.attempt(),
    });
    stream.process.sampler.add(&stream.key, &guard);
    let turn = Turn {
        stream,
        fence,
        how: How::Dropped,
    };
    async move {
        let mut turn = turn;
        labor(stream, &guard, &mut random).await;
        write(stream, &guard).await;
        if !stream.process.finish.is_cancelled() && random.gen_bool(0.3) {
            turn.how = How::Failed;
            return Err("it did not work");
        }
        let result = result(stream, &guard, &mut random);
        turn.how = How::Done(brief(&result));
        Ok(result)
    }
}

/// Tells how it ends.
struct Turn<'a> {
    stream: &'a Stream,
    fence: u64,
    how: How,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let (fence, how) = (self.fence, self.how.clone());
        self.stream
            .process
            .sampler
            .withdraw(&self.stream.key, fence);
        self.stream.tell(What::Ending { fence, how });
    }
}

/// By the events themselves.
async fn follow(stream: &Stream, worker: &LockingWorker, random: &mut StdRng) {
    let orders = &stream.process.orders;
    stream.tell(What::Joined {
        rejoins: orders.rejoins,
    });
    let mut events = worker.acquire();
    let mut leaves = pin!(sleep(patience(stream, random)));
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut leaves, if !stream.process.finish.is_cancelled() => {
                stream.tell(What::Left);
                return;
            }
        };
        let what = match event {
            None => {
                stream.tell(What::End);
                // For ever.
                assert!(events.next().await.is_none());
                return;
            }
            Some(LockEvent::Acquired(guard)) => {
                stream.tell(What::Acquired {
                    fence: guard.fencing_token(),
                    attempt: guard.attempt(),
                });
                if random.gen_bool(0.1) && !stream.process.finish.is_cancelled() {
                    stream.tell(What::Left);
                    drop(events);
                    work(stream, guard, random).await;
                    return;
                }
                work(stream, guard, random).await;
                continue;
            }
            Some(LockEvent::Completed(completed)) => What::Completed {
                holder: completed.holder,
                attempt: completed.attempt,
                result: brief(&completed.result),
            },
            Some(LockEvent::GaveUp(_)) => What::GaveUp,
            Some(LockEvent::Failed(_)) => What::Failed,
            Some(LockEvent::Error(error)) if error.is_fatal() => What::Fatal(chain(&error)),
            Some(_) => What::NotTerminal,
        };
        stream.tell(what);
    }
}

fn chain(error: &Error) -> String {
    let source = std::error::Error::source(error);
    format!("{error}: {source:?}")
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    Done,
    /// Asks, and does not wait for the answer.
    DoneUnheard,
    /// Holds on until the lease is lost, and says that it is done.
    Late,
    /// Works for longer than a lease under `run`, which ends it in time or is renewed.
    Long,
    Fail,
    FailPermanently,
    HandOff,
    Drop,
    Panic,
    Checkpoint,
    /// Asks for a longer lease, and is done.
    Extend,
    Forget,
}

const PLANS: [(Plan, u32); 12] = [
    (Plan::Done, 30),
    (Plan::DoneUnheard, 5),
    (Plan::Late, 5),
    (Plan::Long, 8),
    (Plan::Fail, 12),
    (Plan::FailPermanently, 2),
    (Plan::HandOff, 8),
    (Plan::Drop, 15),
    (Plan::Panic, 4),
    (Plan::Checkpoint, 8),
    (Plan::Extend, 6),
    (Plan::Forget, 3),
];

async fn work(stream: &Stream, guard: WorkGuard, random: &mut StdRng) {
    let guard = Arc::new(guard);
    let fence = guard.fencing_token();
    let sampler = &stream.process.sampler;
    sampler.add(&stream.key, &guard);
    let lease = stream.process.orders.span();
    let calm = stream.process.finish.is_cancelled();
    let (plan, _) = match calm {
        true => PLANS[0],
        false => *PLANS.choose_weighted(random, |plan| plan.1).unwrap(),
    };
    labor(stream, &guard, random).await;
    match plan {
        // As long as it is said to be valid nobody else may have been let in, news of it or not.
        Plan::Late => {
            let looking = async {
                loop {
                    look(stream, &guard).await;
                    sleep(Duration::from_millis(lease / 20)).await;
                }
            };
            let lost = timeout(Duration::from_millis(4 * lease), guard.lost());
            tokio::select! {
                _ = lost => {}
                () = looking => {}
            }
            look(stream, &guard).await;
        }
        Plan::Long => {
            let span = Duration::from_millis(random.gen_range(0..3 * lease));
            let _ = guard.run(sleep(span)).await;
            look(stream, &guard).await;
        }
        Plan::Checkpoint => {
            let _ = guard.checkpoint(fence.to_string()).await;
            look(stream, &guard).await;
        }
        Plan::Extend => {
            let longer = stream.process.orders.lease_ms + random.gen_range(0..lease);
            // It may be more than the cap leaves.
            let _ = guard.extend(Duration::from_millis(longer)).await;
            look(stream, &guard).await;
        }
        _ => {}
    }
    write(stream, &guard).await;
    let end = |how| stream.tell(What::Ending { fence, how });
    let result = result(stream, &guard, random);
    if plan == Plan::Forget {
        end(How::Forgotten);
        // It is looked at for as long as its process lives.
        std::mem::forget(guard);
        return;
    }
    sampler.withdraw(&stream.key, fence);
    let guard = Arc::into_inner(guard).expect("a guard with one owner");
    let settled = match plan {
        Plan::Done | Plan::Late | Plan::Long | Plan::Extend => {
            end(How::Done(brief(&result)));
            guard.done_with(result).await
        }
        Plan::DoneUnheard => {
            end(How::Done(brief(&result)));
            let mut done = Box::pin(guard.done_with(result));
            let _ = futures::poll!(&mut done);
            return;
        }
        Plan::Fail | Plan::Checkpoint => {
            end(How::Failed);
            guard.fail("it did not work").await
        }
        Plan::FailPermanently => {
            end(How::FailedPermanently);
            guard.fail_permanently("it will not work").await
        }
        Plan::HandOff => {
            end(How::HandedOff);
            guard.hand_off().await
        }
        Plan::Drop => {
            end(How::Dropped);
            drop(guard);
            return stream.tell(What::Ended {
                fence,
                answer: Answer::Unknown,
            });
        }
        Plan::Panic => {
            end(How::Dropped);
            let work = tokio::spawn(async move {
                let _guard = guard;
                std::panic::resume_unwind(Box::new("the work panics"));
            });
            let _ = work.await;
            return;
        }
        Plan::Forget => unreachable!("it was forgotten"),
    };
    let answer = match settled {
        Ok(()) => Answer::Ok,
        Err(SettleError::Lost(_)) => Answer::Lost,
        Err(SettleError::Refused(_)) => Answer::Refused,
        Err(_) => Answer::Unknown,
    };
    stream.tell(What::Ended { fence, answer });
}

async fn labor(stream: &Stream, guard: &WorkGuard, random: &mut StdRng) {
    let longest = stream.process.orders.span() / 10;
    for _ in 0..random.gen_range(0..4) {
        look(stream, guard).await;
        write(stream, guard).await;
        sleep(Duration::from_millis(random.gen_range(0..longest))).await;
    }
    look(stream, guard).await;
}

/// Says whose it is, and may be as long as a result can be.
fn result(stream: &Stream, guard: &WorkGuard, random: &mut StdRng) -> Vec<u8> {
    let (fence, attempt) = (guard.fencing_token(), guard.attempt());
    let orders = &stream.process.orders;
    let mut result = format!("{fence} {attempt} {} ", orders.label).into_bytes();
    if orders.large && random.gen_bool(LARGE) {
        result.resize(WorkGuard::MAX_RESULT, b'x');
    }
    result
}

/// Whether it is valid, no earlier than said.
async fn look(stream: &Stream, guard: &WorkGuard) {
    let at = now();
    if guard.is_valid() {
        let fence = guard.fencing_token();
        stream.tell_at(at, What::Valid { fence });
    }
    tokio::task::yield_now().await;
}

/// Whoever believes to be the holder writes, valid or not: the fence is what counts.
async fn write(stream: &Stream, guard: &WorkGuard) {
    let fence = guard.fencing_token();
    let keys = vec![written(&stream.process.orders.run, &stream.key)];
    let args = vec![fence.to_string()];
    let accepted: bool = stream
        .process
        .resource
        .eval(WRITE, keys, args)
        .await
        .unwrap();
    stream.tell(What::Wrote { fence, accepted });
}
