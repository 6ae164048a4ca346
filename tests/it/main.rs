//! What the library does, seen from outside it: on the memory store, and on servers that the tests
//! start themselves.

mod adapters;
mod bad_input;
mod batches;
mod cancellation;
mod claim_each;
mod cluster;
mod commands;
mod conformance;
mod fencing;
mod layers;
mod legacy_regressions;
mod replicas;
mod sentinel;
#[cfg(feature = "unix-sockets")]
mod unix_socket;
