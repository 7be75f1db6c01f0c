//! Any bytes as a cache of libraries.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run library_cache`

#![no_main]
#![allow(dead_code, unused_imports, reason = "shared with the tests, of which this needs a part")]

#[path = "../../tests/it/hostile_squashfs/exercise.rs"]
mod exercise;
#[path = "../../tests/it/layer_building.rs"]
mod layer_building;
#[path = "../../tests/it/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::library_cache(bytes);
});
