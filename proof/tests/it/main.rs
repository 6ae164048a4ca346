//! What is promised, held against everything that goes wrong: one test or more for each fault of the
//! catalogue, the scripts against their specification, and what telemetry tells.

mod decoders;
mod equivalence;
mod faults;
mod history;
mod observability;
mod slots;
