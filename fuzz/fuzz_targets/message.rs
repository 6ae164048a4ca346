//! Any bytes as a message: never a panic, and what is accepted has no other text.
#![no_main]

#[path = "../../testkit/src/text.rs"]
mod text;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    text::decode(bytes);
});
