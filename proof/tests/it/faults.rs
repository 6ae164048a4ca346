//! The faults that a fleet lives through, by where they come from. docs/reliability.md lists them.

#[cfg(target_os = "linux")]
mod clock;
mod cluster;
mod connections;
mod databases;
mod failover;
mod secured;
mod server;
mod silence;
#[cfg(feature = "tls")]
mod tls;

use redis_locking_worker::{Acquire, Error, LockEvent, WorkGuard};
use testkit::next;

/// Reads on to an event of this kind, counting the outages told of on the way.
async fn until_acquired(stream: &mut Acquire) -> (WorkGuard, usize) {
    let mut outages = 0;
    loop {
        match next(stream).await {
            LockEvent::Acquired(guard) => return (guard, outages),
            LockEvent::Error(error) => {
                assert!(error.is_retryable(), "{error:?}");
                outages += 1;
            }
            event if event.is_terminal() => panic!("{event:?}"),
            _ => {}
        }
    }
}

async fn outage(stream: &mut Acquire, of: &str) {
    match next(stream).await {
        LockEvent::Error(Error::Unavailable { key, .. }) => assert_eq!(key.to_string(), of),
        other => panic!("{other:?}"),
    }
}

/// An outage, and what the server said.
async fn refusal(stream: &mut Acquire) -> String {
    match next(stream).await {
        LockEvent::Error(Error::Unavailable { source, .. }) => testkit::details(&source).to_owned(),
        other => panic!("{other:?}"),
    }
}

/// An error and its causes, as a user's log shows them.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The tests that docs/reliability.md names are there, in the files that it names.
#[test]
fn the_catalogue_names_tests_that_there_are() {
    let rows = include_str!("../../../docs/reliability.md")
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("`: `"));
    let mut named = 0;
    for row in rows {
        let mut source = String::new();
        for word in row.split('`').skip(1).step_by(2) {
            let roots = [
                "src",
                "tests/it",
                "proof/tests",
                "proof/tests/it",
                "cli/tests",
            ];
            let files = roots.map(|root| format!("../{root}/{word}.rs"));
            match files
                .iter()
                .find_map(|file| std::fs::read_to_string(file).ok())
            {
                Some(text) => source = text,
                None if word.matches('_').count() > 2 => {
                    named += 1;
                    let there = [format!("fn {word}("), format!("\"{word}\"")];
                    assert!(
                        there.iter().any(|text| source.contains(text)),
                        "{word} is not in its file"
                    );
                }
                None => {}
            }
        }
    }
    assert!(named > 60, "only {named}");
}
