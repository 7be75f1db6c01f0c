//! Layers as an earlier conversion left them: their entries, and their data already compressed.
//!
//! A layer is found by its diff ID and by everything that decides what its blocks look like. What is found is used only
//! if nobody else could have written it and if its checksums are right, down to each block; anything else is passed over
//! and the layer is read from its source. The image file does not depend on what the cache had (`docs/layer-cache.md`).

mod directory;
mod entries;
mod fill;
mod index;
mod record;
mod wire;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use record::LayerRecord;

use self::directory::Directory;
use self::entries::EntryReader;
use self::fill::Plan;
use self::index::{Files, Index};
use super::layer::tar::Counts;
use super::options::ConvertOptions;
use crate::image::digest::Digest;
use crate::squashfs::compress::Compression;
use crate::squashfs::writer::{BlockSource, StoredFile, Written};
use crate::sys;

/// To be raised whenever the same layer gives other blocks or entries than before, or the file another layout.
const FORMAT: u32 = 3;

/// Why a directory is no cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// It is not there and cannot be made, or cannot be opened.
    #[error("cannot open the layer cache {}", .path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Somebody else could put layers there.
    #[error("the layer cache {} is not used: {why}", .path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Why a layer did not get into the cache.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error(transparent)]
    System(#[from] sys::Error),
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

/// A directory of converted layers.
#[derive(Debug)]
pub struct LayerCache {
    directory: Directory,
}

impl LayerCache {
    /// Opens the cache in `path`, which is made with mode 0700 if it is missing. `limit` is the most bytes that it may
    /// grow to; the layers used least recently go first.
    pub fn open(path: &Path, limit: u64) -> Result<LayerCache, CacheError> {
        Directory::open(path, limit).map(|directory| LayerCache { directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// The cache as one conversion sees it.
#[derive(Debug)]
pub(super) struct Shelf<'a> {
    cache: Option<&'a LayerCache>,
    /// Everything but the layer that decides what blocks look like.
    parameters: String,
    block_size: u32,
    /// Layers that turned out to be damaged.
    refused: Vec<Digest>,
    records: Vec<LayerRecord>,
    /// Layers that were not read from their source.
    pub(super) hits: u64,
}

impl<'a> Shelf<'a> {
    pub(super) fn new(cache: Option<&'a LayerCache>, options: &ConvertOptions) -> Shelf<'a> {
        let ConvertOptions { compression, block_size, .. } = *options;
        let parameters = parameters(compression, block_size);
        Shelf { cache, parameters, block_size, refused: Vec::new(), records: Vec::new(), hits: 0 }
    }

    /// Whether layers are to be recorded.
    pub(super) fn is_recording(&self) -> bool {
        self.cache.is_some()
    }

    /// Begins anew, without this layer.
    pub(super) fn refuse(&mut self, diff_id: &Digest) {
        self.refused.push(diff_id.clone());
        self.begin_anew();
    }

    /// Forgets what a try that came to nothing noted.
    pub(super) fn begin_anew(&mut self) {
        self.records.clear();
        self.hits = 0;
    }

    fn key(&self, diff_id: &Digest) -> String {
        format!("{diff_id} {}", self.parameters)
    }

    fn cache(&self, diff_id: &Digest) -> Option<&'a LayerCache> {
        self.cache.filter(|_| !self.refused.contains(diff_id))
    }

    /// Whether the cache seems to have a layer; nothing is checked yet.
    pub(super) fn has(&self, diff_id: &Digest) -> bool {
        self.cache(diff_id).is_some_and(|cache| cache.directory.has(&file_name(diff_id, &self.parameters)))
    }

    /// The layer, if the cache has it. `number` tells its blocks from those of other layers.
    pub(super) fn find(&self, diff_id: &Digest, number: usize) -> Option<CachedLayer> {
        let directory = &self.cache(diff_id)?.directory;
        let name = file_name(diff_id, &self.parameters);
        let file = directory.open_layer(&name)?;
        match Index::read(&file, &self.key(diff_id)) {
            Ok(index) if index.totals.block_size == self.block_size => {
                directory::touch(&file);
                let source = Arc::new(BlockSource { file, number });
                Some(CachedLayer { diff_id: diff_id.clone(), index, source })
            }
            Ok(_) => None,
            Err(error) => {
                log::info!("layer cache: {diff_id} is passed over: {}", with_causes(&error));
                None
            }
        }
    }

    /// A record for a layer that is going to be read from its source; none without a cache.
    pub(super) fn record(&self, diff_id: &Digest) -> Option<LayerRecord> {
        let directory = &self.cache?.directory;
        // An image may have a layer twice, and show other files of it each time.
        let again = self.records.iter().any(|record| record.diff_id == *diff_id);
        let replaces = again || directory.has(&file_name(diff_id, &self.parameters));
        LayerRecord::new(diff_id.clone(), replaces, self.block_size)
    }

    /// Keeps the record of a layer that was read and verified to its end, `tar_bytes` of tar.
    pub(super) fn keep(&mut self, mut record: LayerRecord, tar_bytes: u64) {
        record.totals.tar_bytes = tar_bytes;
        self.records.push(record);
    }

    /// Puts what was recorded into the cache. The conversion is done by then: a failure is worth a warning, no more.
    pub(super) fn fill(self, image: &File, written: &Written) {
        let Some(LayerCache { directory }) = self.cache else { return };
        let Shelf { parameters, refused, records, .. } = self;
        for record in records {
            let diff_id = record.diff_id.clone();
            let use_before = !refused.contains(&diff_id);
            match put(directory, record, &parameters, use_before, image, written) {
                Ok(()) => {}
                Err(error) => {
                    let (path, error) = (directory.path().display(), with_causes(&error));
                    // What ails one layer ails them all.
                    return log::warn!("the layers are not kept in {path}: {error}");
                }
            }
        }
    }
}

fn put(
    directory: &Directory,
    record: LayerRecord,
    parameters: &str,
    use_before: bool,
    image: &File,
    written: &Written,
) -> Result<(), FillError> {
    let (diff_id, replaces) = (record.diff_id.clone(), record.replaces);
    let name = file_name(&diff_id, parameters);
    if !replaces && directory.has(&name) {
        // Another process was faster.
        return Ok(());
    }
    let key = format!("{diff_id} {parameters}");
    let before = directory.open_layer(&name).filter(|_| replaces && use_before);
    let before = before.and_then(|file| Index::read(&file, &key).ok().map(|index| (file, index)));
    let plan = Plan::new(record, &key, written, before.as_ref().map(|(_, index)| index))?;
    if !directory.make_room(plan.size()) {
        log::info!("layer cache: {diff_id} is not kept: its {} bytes exceed the limit", plan.size());
        return Ok(());
    }
    let write = |file: &File| plan.write(file, image, before.as_ref().map(|(file, _)| file));
    directory.publish(&name, replaces, write)
}

/// A layer of the cache, its index checked, its blocks not yet.
#[derive(Debug)]
pub(super) struct CachedLayer {
    diff_id: Digest,
    index: Index,
    source: Arc<BlockSource>,
}

impl CachedLayer {
    /// What it adds to the counts of the layers above it; none if that does not fit.
    pub(super) fn counts_after(&self, before: Counts) -> Option<Counts> {
        Some(Counts {
            entries: before.entries.checked_add(u64::from(self.index.totals.entries))?,
            file_bytes: before.file_bytes.checked_add(self.index.totals.file_bytes)?,
        })
    }

    /// Bytes of its tar.
    pub(super) fn tar_bytes(&self) -> u64 {
        self.index.totals.tar_bytes
    }

    /// How many entries it has.
    pub(super) fn entry_count(&self) -> u32 {
        self.index.totals.entries
    }

    /// Its entries, in order.
    pub(super) fn entries(&self) -> Option<EntryReader<'_>> {
        self.index.entries()
    }

    /// Its files that have data here, by entry number.
    pub(super) fn files(&self) -> FilesByNumber<'_> {
        FilesByNumber { files: self.index.files(), ahead: None }
    }

    /// What its blocks are read from.
    pub(super) fn source(&self) -> &Arc<BlockSource> {
        &self.source
    }
}

/// Finds files by ascending entry number.
#[derive(Debug)]
pub(super) struct FilesByNumber<'a> {
    files: Files<'a>,
    ahead: Option<(u32, StoredFile)>,
}

impl FilesByNumber<'_> {
    /// The file of entry `number`, which must be larger than the one before; none if it has no data here.
    pub(super) fn find(&mut self, number: u32) -> Option<StoredFile> {
        loop {
            let (next, file) = match self.ahead.take() {
                Some(ahead) => ahead,
                None => self.files.next_file().flatten()?,
            };
            if next == number {
                return Some(file);
            }
            if next > number {
                self.ahead = Some((next, file));
                return None;
            }
        }
    }
}

/// The parameters in words. The version stands for the codecs compiled in and for the writer's habits.
fn parameters(compression: Compression, block_size: u32) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let zstd = zstd::zstd_safe::version_number();
    format!("format {FORMAT} hpcrun {version} zstd {zstd} {compression:?} {block_size}")
}

/// A digest in hexadecimal for each half of the key, so a name holds nothing that a file system could misread.
fn file_name(diff_id: &Digest, parameters: &str) -> String {
    let parameters = Digest::of(parameters.as_bytes());
    let parameters = parameters.hex().get(..16).unwrap_or_default();
    format!("{}-{}-{parameters}.layer", diff_id.algorithm().name(), diff_id.hex())
}

/// An error with its causes, for a message that is no failure.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
