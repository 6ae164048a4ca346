//! The checker of histories. It verifies what fleets under faults did (`tests/chaos/`).
//! `tests/it/history.rs` checks the checker.

pub mod history;
