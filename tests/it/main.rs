//! What the library does, seen from outside it: on the memory store, and on servers that the tests
//! start themselves. Each file is about one thing.
//!
//! * `conformance`: what is promised call by call, on both stores.
//! * `adapters`, `claim_each`: what can be done with the streams.
//! * `commands`: what the server receives; `batches`: which requests share a call.
//! * `cancellation`: everything dropped at every moment.
//! * `fencing`, `replicas`, `cluster`, `sentinel`, `unix_socket`: one facility or kind of server
//!   each.
//! * `bad_input`, `legacy_regressions`: mistakes of users, and of the ancestor.
//! * `layers`: which module imports which.

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
