//! One layer: fetched, verified, decompressed, read as tar, its names understood.

pub mod decompress;
pub mod path;
pub mod stream;
pub mod tar;
pub mod verify;
