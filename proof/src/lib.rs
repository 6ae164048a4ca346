//! The checker of histories. It verifies what fleets under faults did.

pub mod history;
