//! One layer: fetched, verified, decompressed, read as tar, its names understood.

pub(super) mod chunk;
pub mod decompress;
mod gzip;
pub mod path;
pub mod stream;
pub mod tar;
pub mod verify;
