//! Any bytes as the layers of an image, merged, written as a squashfs and read back.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run layers`

#![no_main]
#![allow(dead_code, unused_imports, reason = "shared with the tests, of which this needs a part")]

#[path = "../../tests/it/hostile_squashfs/exercise.rs"]
mod exercise;
#[path = "../../tests/it/layer_building.rs"]
mod layer_building;
#[path = "../../tests/it/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::layers(bytes);
});
