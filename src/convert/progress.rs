//! How far a conversion is: numbers that the stages count up and that whoever shows them reads when it likes.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::convert::source::SourceImage;

/// Counters of one conversion; never a callback, so nothing that shows progress can slow it down.
#[derive(Debug, Default)]
pub struct Progress {
    layers: Vec<LayerProgress>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    entries: AtomicU64,
}

/// Counters of one layer.
#[derive(Debug, Default)]
pub struct LayerProgress {
    state: AtomicU8,
    fetched: AtomicU64,
    total: Option<u64>,
}

/// What is happening to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LayerState {
    /// Nothing yet.
    Waiting = 0,
    /// Its blob is being read.
    Fetching = 1,
    /// Its blob was read and has the right digest.
    Fetched = 2,
    /// It is part of the tree, verified in full.
    Merged = 3,
}

impl Progress {
    /// All zero, for the layers of `image`.
    pub fn new(image: &SourceImage) -> Progress {
        let layer = |total| LayerProgress { total, ..LayerProgress::default() };
        Progress { layers: image.layers.iter().map(|info| layer(info.size)).collect(), ..Progress::default() }
    }

    /// The layers, bottom first.
    pub fn layers(&self) -> &[LayerProgress] {
        &self.layers
    }

    /// Uncompressed tar bytes read so far, over all layers.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Compressed bytes handed to the image file so far.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// Tar entries seen so far, over all layers.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(super) fn layer(&self, index: usize) -> &LayerProgress {
        /// Counts for nobody, when a caller brought the progress of another image.
        static NOBODY: LayerProgress =
            LayerProgress { state: AtomicU8::new(0), fetched: AtomicU64::new(0), total: None };
        self.layers.get(index).unwrap_or(&NOBODY)
    }

    pub(super) fn add_bytes_in(&self, count: u64) {
        self.bytes_in.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn set_bytes_out(&self, count: u64) {
        self.bytes_out.store(count, Ordering::Relaxed);
    }

    pub(super) fn add_entry(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }
}

impl LayerProgress {
    /// What is happening to it.
    pub fn state(&self) -> LayerState {
        match self.state.load(Ordering::Relaxed) {
            0 => LayerState::Waiting,
            1 => LayerState::Fetching,
            2 => LayerState::Fetched,
            _ => LayerState::Merged,
        }
    }

    /// Bytes of the blob read so far.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Bytes of the blob, where the manifest says.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// A state is only ever entered from below: a layer that is read again stays merged.
    pub(super) fn enter(&self, state: LayerState) {
        self.state.fetch_max(state as u8, Ordering::Relaxed);
    }

    pub(super) fn restart(&self) {
        self.fetched.store(0, Ordering::Relaxed);
    }

    pub(super) fn add_fetched(&self, count: u64) {
        self.fetched.fetch_add(count, Ordering::Relaxed);
    }
}
