//! Processes that are stopped, and machines that sleep or are paused.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use redis_locking_worker::WorkGuard;
use tokio::runtime::Runtime;

use crate::holder::Holder;
use testkit::clocks::{Clock, Clocks};
use testkit::{Server, acquired, locked};

pub const TESTS: &[(&str, fn())] = &[
    (
        "a_process_stopped_past_its_lease_is_told_that_it_stalled",
        stopped,
    ),
    ("a_machine_that_slept_holds_no_more", slept),
    ("a_machine_that_slept_is_told_without_a_look", slept_unasked),
    ("a_machine_that_slept_renews_no_more", slept_renewing),
    (
        "a_machine_whose_wall_clock_slept_too_holds_no_more",
        slept_unaware,
    ),
    ("a_paused_virtual_machine_holds_no_more", paused),
    (
        "a_paused_virtual_machine_is_told_without_a_look",
        paused_unasked,
    ),
    (
        "a_paused_virtual_machine_asks_before_it_goes_on",
        paused_renewing,
    ),
    (
        "a_wall_clock_set_forward_costs_no_renewed_guard",
        set_forward,
    ),
    ("a_forked_child_has_no_part_in_the_work", forked),
    ("a_thread_that_cannot_be_started_is_an_error", no_threads),
];

const LEASE: Duration = Duration::from_secs(2);

const STOOD: Duration = Duration::from_secs(3);

fn holder(clocks: &Clocks, server: &Server, lease: Duration, options: &[&str]) -> Holder {
    let environment = clocks.environment();
    let environment = environment
        .each_ref()
        .map(|(name, value)| (*name, &value[..]));
    let mut holder = Holder::start(&server.url(), lease, options, &environment);
    assert_eq!(holder.hear(), "acquired");
    holder
}

fn wait_for_it(server: &Server, runtime: &Runtime) -> impl FnOnce() -> WorkGuard {
    let builder = server.builder("job").label("next");
    let mut events = runtime.block_on(async {
        let mut events = builder.build().await.unwrap().acquire();
        locked(&mut events).await;
        events
    });
    let runtime = runtime.handle().clone();
    move || runtime.block_on(acquired(&mut events))
}

fn stopped() {
    let (server, runtime) = (Server::start(), Runtime::new().unwrap());
    let mut holder = Holder::start(&server.url(), LEASE, &["renew"], &[]);
    assert_eq!(holder.hear(), "acquired");
    holder.say("look");
    assert_eq!(holder.hear(), "valid");
    let next = wait_for_it(&server, &runtime);
    holder.signal(Signal::SIGSTOP);
    let guard = next();
    assert_eq!(guard.attempt(), 2);
    holder.signal(Signal::SIGCONT);
    let lost = holder.hear();
    assert!(lost.contains("did not run for"), "{lost}");
    holder.say("done");
    assert_eq!(holder.hear(), "the lease was lost: attempt 2 went to next");
    runtime.block_on(guard.done()).unwrap();
}

/// The holder's process stands still, and these clocks of its with it, until another holds the work.
fn stand_still(options: &[&str], clocks: &[Clock], looks: bool) -> (Holder, Server) {
    let (server, runtime) = (Server::start(), Runtime::new().unwrap());
    let shim = Clocks::compile();
    let mut holder = holder(&shim, &server, LEASE, options);
    if options.contains(&"renew") {
        // A renewal is due later than all this takes.
        holder.say("look");
        assert_eq!(holder.hear(), "valid");
    }
    let next = wait_for_it(&server, &runtime);
    holder.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let guard = next();
    assert_eq!(guard.attempt(), 2);
    std::thread::sleep(STOOD.saturating_sub(began.elapsed()));
    for clock in clocks {
        shim.set(*clock, -i64::try_from(STOOD.as_secs()).unwrap());
    }
    // The next holder is at work.
    std::mem::forget(guard);
    if looks {
        holder.say("look");
    }
    if options.contains(&"cut off") {
        server.signal(Signal::SIGSTOP);
    }
    holder.signal(Signal::SIGCONT);
    (holder, server)
}

/// Either line may come first: the one who looks, or the one who waits to be told.
fn hears_that_it_is_lost(holder: &mut Holder) {
    let woke = Instant::now();
    let mut lines = [holder.hear(), holder.hear()];
    lines.sort();
    let [lost, looked] = lines;
    println!("{lost}, told within {:?}", woke.elapsed());
    assert!(lost.starts_with("lost: "), "{lost}");
    assert_eq!(looked, "not valid", "at the first look");
    assert!(woke.elapsed() < Duration::from_millis(1_500));
}

fn slept() {
    let (mut holder, _server) = stand_still(&[], &[Clock::Monotonic], true);
    hears_that_it_is_lost(&mut holder);
}

/// The wall clock tells of a sleep too, to the one who looks; so here nothing does.
fn slept_unasked() {
    is_told_without_a_look(&[Clock::Monotonic]);
}

/// Only the wall clock tells of a pause, and a server that is out of reach, as after a resume, does not.
fn paused_unasked() {
    is_told_without_a_look(&[Clock::Monotonic, Clock::Boot]);
}

fn is_told_without_a_look(clocks: &[Clock]) {
    for options in [&[][..], &["renew"], &["renew", "cut off"]] {
        let (mut holder, _server) = stand_still(options, clocks, false);
        let woke = Instant::now();
        let lost = holder.hear();
        println!("{lost}, told within {:?}", woke.elapsed());
        assert!(lost.starts_with("lost: "), "{lost}");
        assert!(woke.elapsed() < Duration::from_millis(1_500));
    }
}

fn slept_renewing() {
    let (mut holder, _server) = stand_still(&["renew"], &[Clock::Monotonic], true);
    hears_that_it_is_lost(&mut holder);
}

/// Only the clock that counts sleep tells of it.
fn slept_unaware() {
    for options in [&[][..], &["renew"]] {
        let (mut holder, _server) = stand_still(options, &[Clock::Monotonic, Clock::Wall], true);
        hears_that_it_is_lost(&mut holder);
    }
}

fn paused() {
    let (mut holder, _server) = stand_still(&[], &[Clock::Monotonic, Clock::Boot], true);
    hears_that_it_is_lost(&mut holder);
}

fn paused_renewing() {
    let (mut holder, _server) = stand_still(&["renew"], &[Clock::Monotonic, Clock::Boot], true);
    hears_that_it_is_lost(&mut holder);
}

fn set_forward() {
    // Its next renewal would be due long after this.
    let long = 15 * LEASE;
    let server = Server::start();
    let clocks = Clocks::compile();
    let mut holder = holder(&clocks, &server, long, &["renew"]);
    holder.say("look");
    assert_eq!(holder.hear(), "valid");
    clocks.set(Clock::Wall, 3_600);
    // The keeper looks at the clocks once a second, and asks the server.
    std::thread::sleep(Duration::from_millis(1_500));
    holder.say("look");
    assert_eq!(holder.hear(), "valid");
    holder.say("done");
    let done = [holder.hear(), holder.hear()];
    assert!(done.contains(&"done".to_owned()), "{done:?}");
}

fn forked() {
    let server = Server::start();
    let mut holder = Holder::start(&server.url(), LEASE, &["renew"], &[]);
    assert_eq!(holder.hear(), "acquired");
    holder.say("fork");
    let child = holder.hear();
    assert_eq!(
        child,
        "child: false: the lease belongs to the process that this one was forked from"
    );
    holder.say("check");
    assert_eq!(holder.hear(), "valid", "the parent's guard is as it was");
    holder.say("done");
    let done = [holder.hear(), holder.hear()];
    assert!(done.contains(&"done".to_owned()), "{done:?}");
}

fn no_threads() {
    let server = Server::start();
    let mut holder = Holder::start(&server.url(), LEASE, &["renew", "no-threads"], &[]);
    let told = holder.hear();
    assert_eq!(told, "WouldBlock");
}
