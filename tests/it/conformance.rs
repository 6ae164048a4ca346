//! What every store promises, run on the memory store (on the paused clock) and on a real server.

mod administration;
mod events;
mod guards;
mod transitions;
