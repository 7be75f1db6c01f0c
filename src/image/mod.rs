//! Shared nouns: reference, digest, platform, manifest, config, the image file's trailer and its parts. Bytes in, types out.
//!
//! Pure: no file, no environment, no clock. All that comes from outside is bounded before it is parsed.

pub mod calendar;
pub mod chunks;
pub mod config;
pub mod digest;
pub mod facts;
pub mod foreign;
mod json;
pub mod manifest;
pub mod platform;
pub mod profile;
pub mod reference;
pub mod sif;
pub mod signature;
pub mod store;
pub mod trailer;
