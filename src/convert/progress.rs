//! How far a conversion is: numbers that the stages count up and that whoever shows them reads when it likes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::convert::source::SourceImage;

/// Counters of one conversion; never a callback, so nothing that shows progress can slow it down.
#[derive(Debug, Default)]
pub struct Progress {
    layers: Vec<LayerProgress>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    entries: AtomicU64,
    /// The layer being merged.
    current: AtomicUsize,
    wait: AtomicU8,
}

/// What the thread that merges is about to wait for, if it has to wait at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Wait {
    /// Nothing: it works.
    Nothing = 0,
    /// The next bytes of a tar.
    Tar = 1,
    /// A free block, while blocks queue for compression.
    Compression = 2,
    /// A free block, while none does.
    Disk = 3,
    /// All layers are merged.
    End = 4,
}

/// What a conversion is held up by at this moment. One look says little: look often and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bottleneck {
    /// The source, and the digest of what it sends.
    Source,
    /// Decompression of the layer being merged, and its diff ID.
    Decompression,
    /// Merging: nothing else is waited for.
    Merge,
    /// Compression of blocks.
    Compression,
    /// The disk that the image file is written to.
    Disk,
    /// All data is stored: metadata tables are written and the file is synced.
    End,
}

/// Counters of one layer.
#[derive(Debug, Default)]
pub struct LayerProgress {
    state: AtomicU8,
    fetched: AtomicU64,
    total: Option<u64>,
    /// Whether its decompression waits for the source.
    starved: AtomicBool,
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

    /// What holds the conversion up right now.
    pub fn bottleneck(&self) -> Bottleneck {
        const TAR: u8 = Wait::Tar as u8;
        const COMPRESSION: u8 = Wait::Compression as u8;
        const DISK: u8 = Wait::Disk as u8;
        const END: u8 = Wait::End as u8;
        match self.wait.load(Ordering::Relaxed) {
            TAR if self.layer(self.current()).starved.load(Ordering::Relaxed) => Bottleneck::Source,
            TAR => Bottleneck::Decompression,
            COMPRESSION => Bottleneck::Compression,
            DISK => Bottleneck::Disk,
            END => Bottleneck::End,
            _ => Bottleneck::Merge,
        }
    }

    /// The layer being merged (0 = bottom).
    pub fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    pub(super) fn wait_for(&self, wait: Wait) {
        self.wait.store(wait as u8, Ordering::Relaxed);
    }

    pub(super) fn wait_for_tar(&self, layer: usize) {
        self.current.store(layer, Ordering::Relaxed);
        self.wait_for(Wait::Tar);
    }

    pub(super) fn layer(&self, index: usize) -> &LayerProgress {
        /// Counts for nobody, when a caller brought the progress of another image.
        static NOBODY: LayerProgress = LayerProgress {
            state: AtomicU8::new(0),
            fetched: AtomicU64::new(0),
            total: None,
            starved: AtomicBool::new(false),
        };
        self.layers.get(index).unwrap_or(&NOBODY)
    }

    pub(super) fn add_bytes_in(&self, count: u64) {
        self.bytes_in.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn set_bytes_out(&self, count: u64) {
        self.bytes_out.store(count, Ordering::Relaxed);
    }

    /// The conversion begins anew.
    pub(super) fn begin_anew(&self) {
        self.bytes_in.store(0, Ordering::Relaxed);
        self.entries.store(0, Ordering::Relaxed);
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

    pub(super) fn set_starved(&self, starved: bool) {
        self.starved.store(starved, Ordering::Relaxed);
    }

    pub(super) fn restart(&self) {
        self.fetched.store(0, Ordering::Relaxed);
    }

    /// The layer came from elsewhere: its blob is not going to be read.
    pub(super) fn pass_over(&self) {
        self.fetched.store(self.total.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn add_fetched(&self, count: u64) {
        self.fetched.fetch_add(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottleneck_of_a_starved_decompressor_is_the_source() {
        let layers = vec![LayerProgress::default(), LayerProgress::default()];
        let progress = Progress { layers, ..Progress::default() };
        assert_eq!(progress.bottleneck(), Bottleneck::Merge);
        progress.layer(0).set_starved(true);
        progress.wait_for_tar(1);
        assert_eq!(progress.bottleneck(), Bottleneck::Decompression);
        progress.wait_for_tar(0);
        assert_eq!(progress.bottleneck(), Bottleneck::Source);
        for (wait, bottleneck) in [
            (Wait::Compression, Bottleneck::Compression),
            (Wait::Disk, Bottleneck::Disk),
            (Wait::Nothing, Bottleneck::Merge),
            (Wait::End, Bottleneck::End),
        ] {
            progress.wait_for(wait);
            assert_eq!(progress.bottleneck(), bottleneck);
        }
    }
}
