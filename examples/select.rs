//! A lock, a queue of jobs, a clock and a shutdown signal in one loop, put together by combinators.
//!
//! ```text
//! cargo run --example select
//! ```
//!
//! Three workers write a report, one page after another, which only one may be at; beside it, all of
//! them work off a queue. When the one with the report has written half of it, it gets SIGTERM: the
//! job in hand is finished, what was claimed goes back, and another worker writes on where it
//! stopped. When everything is done, the others get SIGTERM too.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free port and
//! stops again), the workers are processes and the signal is a signal. With neither they are tasks on
//! the memory store, and it is a token that is cancelled.

mod common;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use common::{Fleet, Result, Role, check};
use futures::stream::select;
use futures::{Stream, StreamExt};
use redis_locking_worker::{ClaimError, ClaimExt, LockEvent, LockStreamExt, WorkGuard};
use tokio::time::{interval, sleep};
use tokio_stream::wrappers::IntervalStream;

const WORKERS: u32 = 3;
const PAGES: u32 = 20;
const JOBS: u32 = 60;

/// Everything that a worker may have to do next.
enum Event {
    Report(LockEvent),
    Page,
    Job(Result<(u32, WorkGuard), ClaimError<u32>>),
}

/// In place of a topic, where every worker hears of every job.
fn queue() -> impl Stream<Item = u32> {
    let arrivals = IntervalStream::new(interval(Duration::from_millis(10)));
    arrivals
        .zip(futures::stream::iter(1..=JOBS))
        .map(|(_, job)| job)
}

/// The first page that the worker before has not written.
fn next_page(guard: &WorkGuard) -> u32 {
    let checkpoint = guard.previous().map(|previous| &previous.checkpoint[..]);
    let written = std::str::from_utf8(checkpoint.unwrap_or_default()).unwrap_or_default();
    written.parse::<u32>().map_or(1, |page| page + 1)
}

async fn work(role: Role) -> Result<()> {
    let shutdown = role.shutdown()?;
    let builder = role.builder().renew().retention(Duration::from_secs(60));
    let worker = builder.build().await?;

    let report = worker.acquire().without_status().map(Event::Report);
    let pages = IntervalStream::new(interval(Duration::from_millis(50))).map(|_| Event::Page);
    let jobs = queue()
        .claim_each(&worker, |job| format!("{}:{job}", role.key))
        .map(Event::Job);
    let mut events = select(report, select(pages, jobs)).take_until(shutdown);

    let mut writing = None;
    while let Some(event) = events.next().await {
        match event {
            Event::Report(LockEvent::Acquired(guard)) => {
                let page = next_page(&guard);
                role.says(format!("begins {} {page}", guard.attempt()));
                writing = Some((guard, page));
            }
            Event::Report(LockEvent::Error(error)) if error.is_fatal() => return Err(error.into()),
            Event::Report(_) => {}
            Event::Page => match writing.take() {
                Some((guard, page)) if page <= PAGES => {
                    role.says(format!("page {page}"));
                    guard.checkpoint(page.to_string()).await?;
                    writing = Some((guard, page + 1));
                }
                Some((guard, _)) => {
                    guard.done().await?;
                    role.says("done");
                }
                None => {}
            },
            Event::Job(claimed) => {
                let (job, guard) = claimed?;
                guard.run(sleep(Duration::from_millis(20))).await?;
                role.says(format!("job {job}"));
                guard.done().await?;
            }
        }
    }
    // What was claimed and not begun goes back with the streams, the report to whoever waits for it.
    drop(events);
    if let Some((guard, _)) = writing {
        guard.hand_off().await?;
    }
    worker.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(|role, ()| work(role), |()| fleet()).await
}

async fn fleet() -> Result<()> {
    let mut fleet = Fleet::of("select").await?;
    fleet.start_all(WORKERS, work)?;
    let (mut begun, mut pages) = (Vec::new(), BTreeMap::<u32, Vec<u32>>::new());
    let (mut half, mut done) = (false, false);
    let (mut jobs, mut shares) = (BTreeMap::<u32, u32>::new(), BTreeMap::new());
    while let Some((number, line)) = fleet.hear().await {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["begins", attempt, page] => {
                println!("Worker {number} begins attempt #{attempt} at page {page}");
                begun.push((number, attempt.parse::<u32>()?, page.parse()?));
            }
            ["page", page] => {
                let page = page.parse()?;
                pages.entry(number).or_default().push(page);
                if page >= PAGES / 2 && !half {
                    half = true;
                    println!("Worker {number} has written page {page}, and gets SIGTERM");
                    fleet.terminate(number)?;
                }
            }
            ["done"] => {
                println!("Worker {number} has written the last page");
                done = true;
            }
            ["job", job] => {
                *jobs.entry(job.parse()?).or_insert(0) += 1;
                *shares.entry(number).or_insert(0) += 1;
            }
            _ => println!("{line}"),
        }
        if done && jobs.len() as u32 == JOBS {
            fleet.terminate_all()?;
        }
    }
    fleet.end().await?;

    for (number, share) in shares {
        println!("Worker {number} has done {share} jobs");
    }
    let each_once = (1..=JOBS).map(|job| (job, 1));
    check(jobs.into_iter().eq(each_once), "each job is done once")?;
    let mut wrote = |number, expected: RangeInclusive<u32>| {
        expected.eq(pages.remove(&number).unwrap_or_default())
    };
    let goes_on = match begun[..] {
        [(first, 1, 1), (second, 1, page)] => {
            wrote(first, 1..=page - 1) && wrote(second, page..=PAGES)
        }
        // On a slow machine the signal may come too late.
        [(only, 1, 1)] => wrote(only, 1..=PAGES),
        _ => false,
    };
    check(
        goes_on,
        "each page is written once: the second worker goes on where the first stopped, and no attempt is counted",
    )
}
