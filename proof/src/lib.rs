//! The checker of histories, which the fleets under faults are held against.

pub mod history;
