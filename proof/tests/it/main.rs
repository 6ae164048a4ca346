//! What is promised, held against everything that goes wrong: one test or more for each fault of
//! the catalogue, the scripts against their specification, and what telemetry tells.
//!
//! * `faults`: a test for each fault that a server, a connection or a clock can have. `processes`
//!   and `standstill`, binaries of their own, have those of workers: killed, stopped, blocked,
//!   asleep, paused, forked.
//! * `equivalence`: random operations on both stores.
//! * `decoders`: texts that are no records; `fuzz/` searches them deeper.
//! * `history`: the checker of histories, checked.
//! * `observability`: spans, events and figures; `slots`: keys of any bytes in a cluster.
//!
//! `model` and `chaos` are binaries of their own too. `cargo mutants` breaks the code on
//! purpose and expects a test to fail for each break. `scripts/compatibility.sh` runs the tests on
//! newer servers.

mod decoders;
mod equivalence;
mod faults;
mod history;
mod observability;
mod slots;
