//! What a conversion remembers of a layer that it reads from the source, to put it into the cache at the end.

use super::CachedLayer;
use super::entries::EntryWriter;
use super::index::Totals;
use crate::convert::layer::tar::Entry;
use crate::image::digest::Digest;
use crate::squashfs::writer::FileId;

/// A layer on its way into the cache: about 20 bytes an entry.
#[derive(Debug)]
pub(in crate::convert) struct LayerRecord {
    pub(super) diff_id: Digest,
    /// Whether the cache has the layer already, unusable or without some files.
    pub(super) replaces: bool,
    pub(super) totals: Totals,
    pub(super) entries: Entries,
    /// Stored files by entry number.
    pub(super) files: Vec<(u32, FileId)>,
}

/// The entries of a layer, compressed.
#[derive(Debug)]
pub(super) enum Entries {
    Collected(EntryWriter),
    Known(Vec<u8>),
}

impl Entries {
    pub(super) fn finish(self) -> std::io::Result<Vec<u8>> {
        match self {
            Entries::Collected(entries) => entries.finish(),
            Entries::Known(bytes) => Ok(bytes),
        }
    }
}

impl LayerRecord {
    /// None where there is no memory for the compressor: then the layer is simply not kept.
    pub(super) fn new(diff_id: Digest, replaces: bool, block_size: u32) -> Option<LayerRecord> {
        let totals = Totals { block_size, ..Totals::default() };
        let entries = Entries::Collected(EntryWriter::new().ok()?);
        Some(LayerRecord { diff_id, replaces, totals, entries, files: Vec::new() })
    }

    /// For a layer out of the cache that lacked some files.
    pub(in crate::convert) fn again(layer: &CachedLayer) -> LayerRecord {
        let CachedLayer { diff_id, index, .. } = layer;
        LayerRecord {
            diff_id: diff_id.clone(),
            replaces: true,
            totals: index.totals,
            entries: Entries::Known(index.compressed_entries().to_vec()),
            files: Vec::new(),
        }
    }

    /// The next entry of the tar; false if it cannot be kept, and then the layer cannot.
    pub(in crate::convert) fn add_entry(&mut self, entry: &Entry) -> bool {
        let Some(entries) = self.totals.entries.checked_add(1) else { return false };
        self.totals.entries = entries;
        match &mut self.entries {
            Entries::Collected(entries) => entries.add(entry).is_ok(),
            Entries::Known(_) => false,
        }
    }

    /// The data of an entry is stored.
    pub(in crate::convert) fn add_file(&mut self, number: u32, file: FileId) {
        self.files.push((number, file));
    }

    /// Sizes of all regular files, bytes, holes included.
    pub(in crate::convert) fn set_file_bytes(&mut self, bytes: u64) {
        self.totals.file_bytes = bytes;
    }
}
