//! Any bytes as a CDI specification.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run cdi`

#![no_main]
#![allow(dead_code, unused_imports, reason = "shared with the tests, of which this needs a part")]

#[path = "../../tests/it/hostile_squashfs/exercise.rs"]
mod exercise;
#[path = "../../tests/it/layer_building.rs"]
mod layer_building;
#[path = "../../tests/it/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::cdi(bytes);
});
