//! Any image source into one image file: streaming, without privilege, without unpacking to disk.
//!
//! ```text
//! fetch + digest -> decompress -> diff ID -> tar -> merge decision -> squashfs writer -> trailer -> name
//! ```
//!
//! The first three stages run ahead in threads; the tar is read and merged by the calling thread, which hands file data
//! to the compressing threads of the writer. Memory is bounded by the queues between them and by the names in the tree.

mod ahead;
pub mod budget;
mod created;
mod error;
pub mod layer;
mod options;
mod pack;
mod progress;
mod publish;
pub mod source;
pub mod tree;

use std::path::Path;

pub use ahead::Layers;
pub use budget::Budget;
pub use error::{ConvertError, LayerName};
pub use options::ConvertOptions;
pub use pack::FileSink;
pub use progress::{Bottleneck, LayerProgress, LayerState, Progress};
pub use publish::Destination;

use crate::squashfs::writer::{self, Tree, Writer, WriterOptions};
use ahead::Ahead;
use layer::stream::LayerStream;
use layer::tar::{Counts, Reader};
use pack::CopyError;
use progress::Wait;
use publish::Unpublished;
use source::{LayerInfo, Source};
use tree::{Decision, LayerTree, Merge, MergeOptions, Notes, Rescan};

/// What a conversion made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The squashfs part.
    pub squashfs: writer::Summary,
    /// Length of the image file, trailer included, bytes.
    pub file_size: u64,
    /// Tar entries of all layers.
    pub entries: u64,
    /// What could not be kept.
    pub notes: Notes,
}

/// Converts the image of `source` into one file at `destination`, which appears complete or not at all.
///
/// `trailer` gives the bytes that follow the squashfs, from the padding on (see [`crate::image::trailer`]). `progress` must be made for the same
/// image.
pub fn convert(
    source: &dyn Source,
    destination: &Destination,
    options: &ConvertOptions,
    progress: &Progress,
    trailer: impl FnOnce(&writer::Summary) -> Vec<u8>,
) -> Result<Summary, ConvertError> {
    let image = source.image();
    let path = &destination.path;
    let (unpublished, output) = Unpublished::create(destination)?;
    let created = created::parse_created(&image.config.created);
    let write_failed = |source| ConvertError::Write { path: path.clone(), source };
    let mut writer = Writer::create(output, writer_options(options, created)).map_err(write_failed)?;
    let merged = std::thread::scope(|scope| {
        let mut layers = Ahead::new(scope, source, progress, options.budget);
        merge_layers(
            &image.layers,
            &mut layers,
            &mut writer,
            &merge_options(options, created),
            progress,
            path,
        )
    })?;
    progress.wait_for(Wait::End);
    let (output, squashfs) = writer.finish(&merged.tree).map_err(write_failed)?;
    progress.set_bytes_out(squashfs.data_bytes_out);
    let trailer = trailer(&squashfs);
    let file_size = publish::append(&output, squashfs.bytes_used, &trailer)
        .map_err(|source| ConvertError::Trailer { path: path.clone(), source })?;
    unpublished.publish(&output)?;
    Ok(Summary { squashfs, file_size, entries: merged.entries, notes: merged.notes })
}

fn writer_options(options: &ConvertOptions, mkfs_time: u32) -> WriterOptions {
    let ConvertOptions { compression, block_size, jobs, .. } = *options;
    WriterOptions { compression, block_size, threads: jobs.max(1), mkfs_time }
}

/// What a merge of layers needs to know of the options and of the image.
pub fn merge_options(options: &ConvertOptions, implied_mtime: u32) -> MergeOptions {
    let ConvertOptions { budget, root_meta, keep_trusted_xattrs, .. } = *options;
    MergeOptions { budget, root_meta, keep_trusted_xattrs, implied_mtime }
}

/// The tree that all layers make together; its file data is already in the sink.
#[derive(Debug)]
pub struct Merged {
    /// The tree.
    pub tree: Tree,
    /// Tar entries of all layers.
    pub entries: u64,
    /// What could not be kept.
    pub notes: Notes,
}

/// Merges layers from the top down: the data of files that are part of the result goes to `sink` as it streams past,
/// everything else stays in memory. `path` is what is written to, for messages.
pub fn merge_layers(
    infos: &[LayerInfo],
    layers: &mut dyn Layers,
    sink: &mut impl FileSink,
    options: &MergeOptions,
    progress: &Progress,
    path: &Path,
) -> Result<Merged, ConvertError> {
    let limit = options.budget.layers;
    if infos.len() > limit {
        return Err(ConvertError::Layers { count: infos.len(), limit });
    }
    let merge = Merge::new(*options);
    let mut pass =
        Pass { infos, sink, progress, path, budget: options.budget, merge, counts: Counts::default() };
    for index in (0..infos.len()).rev() {
        let wanted = pass.merge_layer(index, layers)?;
        if !wanted.is_empty() {
            pass.rescan_layer(index, layers, &wanted)?;
        }
        progress.layer(index).enter(LayerState::Merged);
    }
    let failed = |source| ConvertError::Merge { layer: LayerName::new(infos, 0), source };
    let (tree, notes) = pass.merge.finish().map_err(failed)?;
    Ok(Merged { tree, entries: pass.counts.entries, notes })
}

/// The one pass over all layers.
struct Pass<'a, S> {
    infos: &'a [LayerInfo],
    sink: &'a mut S,
    progress: &'a Progress,
    path: &'a Path,
    budget: Budget,
    merge: Merge,
    counts: Counts,
}

impl<S: FileSink> Pass<'_, S> {
    /// Reads and verifies one layer and lays it under the result.
    fn merge_layer(&mut self, index: usize, layers: &mut dyn Layers) -> Result<Rescan, ConvertError> {
        let name = LayerName::new(self.infos, index);
        let unusable = |source| ConvertError::Layer { layer: name.clone(), source };
        let mut stream = layers.open(index).map_err(unusable)?;
        let mut tree = self.merge.begin_layer();
        let read = self.read_entries(&name, &mut *stream, &mut tree);
        if read.as_ref().err().is_none_or(ConvertError::doubts_bytes) {
            // Read to the end in any case: bytes behind the tar belong to the digests, and where the tar makes no sense
            // a wrong digest is the better explanation.
            stream.finish().map_err(unusable)?;
        }
        read?;
        self.merge.end_layer(tree).map_err(|source| ConvertError::Merge { layer: name.clone(), source })
    }

    fn read_entries(
        &mut self,
        name: &LayerName,
        stream: &mut dyn LayerStream,
        tree: &mut LayerTree,
    ) -> Result<(), ConvertError> {
        let unreadable = |source| ConvertError::Tar { layer: name.clone(), source };
        let mut reader = Reader::continuing(stream, self.budget, self.counts);
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            self.progress.add_entry();
            let decision = self.merge.apply(tree, &entry).map_err(|source| {
                let entry_name = entry.path.as_slice().into();
                ConvertError::Entry { layer: name.clone(), entry: entry_name, offset: entry.offset, source }
            })?;
            if let Decision::Store(leaf) = decision {
                let file = pack::store_file(&mut reader, &entry, self.sink, self.progress);
                self.merge.store(leaf, file.map_err(|error| self.copy_failed(name, error))?);
                self.progress.set_bytes_out(self.sink.bytes_out());
            }
        }
        self.counts = reader.counts();
        Ok(())
    }

    /// Reads a layer again for the few files that turned out to be needed at its end.
    fn rescan_layer(
        &mut self,
        index: usize,
        layers: &mut dyn Layers,
        wanted: &Rescan,
    ) -> Result<(), ConvertError> {
        let name = LayerName::new(self.infos, index);
        let unusable = |source| ConvertError::Layer { layer: name.clone(), source };
        let mut stream = layers.open(index).map_err(unusable)?;
        let mut reader = Reader::new(&mut *stream, self.budget);
        let unreadable = |source| ConvertError::Tar { layer: name.clone(), source };
        let mut number = 0;
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            if let Some(leaf) = wanted.get(&number) {
                let file = pack::store_file(&mut reader, &entry, self.sink, self.progress);
                self.merge.store(*leaf, file.map_err(|error| self.copy_failed(&name, error))?);
            }
            number += 1;
        }
        // The same digests again, so these are the same entries.
        stream.finish().map_err(unusable)
    }

    fn copy_failed(&self, name: &LayerName, error: CopyError) -> ConvertError {
        match error {
            CopyError::Read(source) => ConvertError::Tar { layer: name.clone(), source },
            CopyError::Write(source) => ConvertError::Write { path: self.path.to_owned(), source },
        }
    }
}
