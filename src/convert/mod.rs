//! Any image source into one image file: streaming, without privilege, without unpacking to disk.
//!
//! ```text
//! fetch + digest -> decompress -> diff ID -> tar -> merge decision -> squashfs writer -> trailer -> name
//! ```
//!
//! The first three stages run ahead in threads; the tar is read and merged by the calling thread, which hands file data
//! to the compressing threads of the writer. Memory is bounded by the queues between them and by the names in the tree.

mod ahead;
mod attempt;
pub mod budget;
mod cache;
mod created;
mod error;
pub mod export;
pub mod facts;
mod generate;
pub mod keep;
pub mod layer;
mod options;
mod order;
mod pack;
mod pass;
mod plain;
mod progress;
mod publish;
pub mod source;
pub mod tree;

use std::fs::File;
use std::path::Path;

pub use ahead::Layers;
pub use budget::{Budget, Exceeded, Limit};
pub use cache::{CacheError, LayerCache};
pub use error::{ConvertError, LayerName};
pub use options::ConvertOptions;
pub use order::Order;
pub use pack::FileSink;
pub use progress::{Bottleneck, LayerProgress, LayerState, Progress};
pub use publish::Destination;

use crate::image::chunks;
use crate::squashfs::reader::{Filesystem, ReaderOptions};
use crate::squashfs::writer::{self, Tree};
use attempt::{Attempt, Image};
use cache::Shelf;
use pass::Pass;
use publish::Unpublished;
use source::{LayerInfo, Source};
use tree::{MergeOptions, Notes};

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
    /// Layers that came out of the layer cache.
    pub cached_layers: u64,
    /// Paths of [`Extras::order`] that are no regular file of the image.
    pub unknown_paths: usize,
}

/// What a conversion can do without.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Where to look for layers that were converted before, and to keep those that were not. The image file does not
    /// depend on it.
    pub cache: Option<&'a LayerCache>,
    /// Files whose data goes first.
    pub order: Option<&'a Order>,
}

/// Converts the image of `source` into one file at `destination`, which appears complete or not at all.
///
/// `trailer` gives the bytes that follow the squashfs, from the padding on (see [`crate::image::trailer`]), out of a
/// summary. `progress` must be made for the same image.
pub fn convert(
    source: &dyn Source,
    destination: &Destination,
    options: &ConvertOptions,
    progress: &Progress,
    trailer: impl FnOnce(&writer::Summary) -> Vec<u8>,
) -> Result<Summary, ConvertError> {
    convert_with(Extras::default(), source, destination, options, progress, trailer)
}

/// The same with `extras`.
pub fn convert_with(
    extras: Extras<'_>,
    source: &dyn Source,
    destination: &Destination,
    options: &ConvertOptions,
    progress: &Progress,
    trailer: impl FnOnce(&writer::Summary) -> Vec<u8>,
) -> Result<Summary, ConvertError> {
    convert_described(extras, source, destination, options, progress, |summary, _| trailer(summary))
}

/// The sections of a trailer that follow from what was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// The chunk hashes, see [`crate::image::chunks`].
    pub hashes: Vec<u8>,
    /// The facts, see [`crate::image::facts`].
    pub facts: Vec<u8>,
}

/// The same; `trailer` also gets what was found out about the squashfs.
pub fn convert_described(
    extras: Extras<'_>,
    source: &dyn Source,
    destination: &Destination,
    options: &ConvertOptions,
    progress: &Progress,
    trailer: impl FnOnce(&writer::Summary, Described) -> Vec<u8>,
) -> Result<Summary, ConvertError> {
    let path = &destination.path;
    let (unpublished, output) = Unpublished::create(destination)?;
    let mut shelf = Shelf::new(extras.cache, options);
    let image = loop {
        let attempt = Attempt { source, options, progress, path, order: extras.order };
        match attempt.write(&output, &mut shelf) {
            Ok(image) => break image,
            Err(error) => {
                attempt::give_another_chance(error, source, &mut shelf)?;
                progress.begin_anew();
                output.set_len(0).map_err(|source| ConvertError::Trailer { path: path.clone(), source })?;
            }
        }
    };
    let Image { squashfs, written, merged, unknown_paths } = image;
    progress.set_bytes_out(squashfs.data_bytes_out);
    let hashes = chunks::encode(written.chunks().iter().map(|chunk| (chunk.length, chunk.digest)));
    let facts = facts(&output, &merged.tree, path)?;
    let trailer = trailer(&squashfs, Described { hashes, facts });
    let file_size = publish::append(&output, squashfs.bytes_used, &trailer)
        .map_err(|source| ConvertError::Trailer { path: path.clone(), source })?;
    let cached_layers = shelf.hits;
    std::thread::scope(|scope| {
        // While the disk is busy with the image file. Without a thread the layers are not kept, this once.
        let fill = || shelf.fill(&output, &written);
        let _ = std::thread::Builder::new().name("layer-cache".to_owned()).spawn_scoped(scope, fill);
        unpublished.publish(&output)
    })?;
    let (entries, notes) = (merged.entries, merged.notes);
    Ok(Summary { squashfs, file_size, entries, notes, cached_layers, unknown_paths })
}

/// The section with the facts of the squashfs at the start of `output`, which holds `tree`.
fn facts(output: &File, tree: &Tree, path: &Path) -> Result<Vec<u8>, ConvertError> {
    let failed = |source| ConvertError::Trailer { path: path.to_owned(), source };
    let own = output.try_clone().map_err(failed)?;
    let written = Filesystem::open(own, 0, ReaderOptions::default());
    let written = written.map_err(|error| failed(std::io::Error::other(error)))?;
    Ok(facts::of_tree(tree, &written).encode())
}

/// What a merge of layers needs to know of the options and of the image.
pub fn merge_options(options: &ConvertOptions, implied_mtime: u32) -> MergeOptions {
    let ConvertOptions { budget, root_meta, keep_trusted_xattrs, .. } = *options;
    MergeOptions { budget, root_meta, whole_tree: false, keep_trusted_xattrs, implied_mtime }
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
    let mut pass = Pass::new(infos, sink, options, progress, path);
    pass.walk(layers)?;
    pass.finish()
}
