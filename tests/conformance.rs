//! What every store promises, run on the memory store (on the paused clock) and on a real server.

mod common;

#[path = "conformance/administration.rs"]
mod administration;
#[path = "conformance/events.rs"]
mod events;
#[path = "conformance/guards.rs"]
mod guards;
#[path = "conformance/transitions.rs"]
mod transitions;
