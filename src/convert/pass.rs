//! One walk over the layers from the top down: entries go to the merge, the data of visible files to the sink.
//!
//! A layer comes from its source or out of the cache. Both give the same calls in the same order, so what is written
//! cannot tell which it was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Merged;
use super::ahead::Layers;
use super::budget::{Budget, Limit};
use super::cache::{CachedLayer, LayerRecord, Shelf};
use super::error::{ConvertError, LayerName};
use super::layer::stream::LayerStream;
use super::layer::tar::{Counts, Reader};
use super::order::Choice;
use super::pack::{self, CopyError, FileSink};
use super::progress::{LayerState, Progress};
use super::source::LayerInfo;
use super::tree::{Decision, LayerTree, LeafId, Merge, MergeOptions};
use crate::squashfs::writer::{FileId, WriteError};

/// Files that were stored, by entry number.
pub(super) type StoredFiles = BTreeMap<u32, FileId>;

/// What a walk needs besides layers.
pub(super) struct Pass<'a, 'c, 'o, 's, S> {
    infos: &'a [LayerInfo],
    sink: &'a mut S,
    progress: &'a Progress,
    /// What is written to, for messages.
    path: &'a Path,
    budget: Budget,
    options: MergeOptions,
    merge: Merge,
    counts: Counts,
    pub(super) choice: Choice<'c, 'o>,
    pub(super) shelf: Option<&'a mut Shelf<'s>>,
    /// Whether what is read from its source goes into the cache.
    pub(super) records: bool,
}

/// Files that turned out to be needed at the end of a layer.
struct Late {
    files: Vec<(u32, FileId)>,
    from_source: bool,
}

/// A file that a cached layer has to give.
struct Taken {
    leaf: LeafId,
    number: u32,
    /// Whether its data is wanted; else only its place in the tree.
    wanted: bool,
}

impl<'a, 'c, 'o, 's, S: FileSink> Pass<'a, 'c, 'o, 's, S> {
    pub(super) fn new(
        infos: &'a [LayerInfo],
        sink: &'a mut S,
        options: &MergeOptions,
        progress: &'a Progress,
        path: &'a Path,
    ) -> Pass<'a, 'c, 'o, 's, S> {
        Pass {
            infos,
            sink,
            progress,
            path,
            budget: options.budget,
            options: *options,
            merge: Merge::new(*options),
            counts: Counts::default(),
            choice: Choice::All,
            shelf: None,
            records: false,
        }
    }

    /// Walks over all layers.
    pub(super) fn walk(&mut self, layers: &mut dyn Layers) -> Result<(), ConvertError> {
        self.budget.check_len(Limit::Layers, self.infos.len()).map_err(ConvertError::Layers)?;
        for index in (0..self.infos.len()).rev() {
            self.merge_layer(index, layers)?;
            self.progress.layer(index).enter(LayerState::Merged);
        }
        Ok(())
    }

    /// The tree, after [`Pass::walk`].
    pub(super) fn finish(&mut self) -> Result<Merged, ConvertError> {
        let merge = std::mem::replace(&mut self.merge, Merge::new(self.options));
        let failed = |source| ConvertError::Merge { layer: LayerName::new(self.infos, 0), source };
        let (tree, notes) = merge.finish().map_err(failed)?;
        Ok(Merged { tree, entries: self.counts.entries, notes })
    }

    fn merge_layer(&mut self, index: usize, layers: &mut dyn Layers) -> Result<(), ConvertError> {
        if let Some(layer) = self.find_cached(index)
            && let Some(tree) = self.take_layer(index, &layer)?
        {
            let late = self.end_layer(index, layers, tree)?;
            if late.from_source {
                self.keep(LayerRecord::again(&layer), late, layer.tar_bytes());
            }
            return Ok(());
        }
        let mut record = self.begin_record(index);
        let bytes_before = self.progress.bytes_in();
        let tree = self.read_layer(index, layers, &mut record)?;
        let tar_bytes = self.progress.bytes_in().saturating_sub(bytes_before);
        let late = self.end_layer(index, layers, tree)?;
        if let Some(record) = record {
            self.keep(record, late, tar_bytes);
        }
        Ok(())
    }

    /// Lays a layer under the result, and stores the few files that turn out to be needed only now.
    fn end_layer(
        &mut self,
        index: usize,
        layers: &mut dyn Layers,
        tree: LayerTree,
    ) -> Result<Late, ConvertError> {
        self.sink.end_layer().map_err(|source| self.write_failed(source))?;
        let layer = LayerName::new(self.infos, index);
        let needed = self.merge.end_layer(tree).map_err(|source| ConvertError::Merge { layer, source })?;
        let wanted = needed.keys().copied().filter(|number| self.choice.wants_hidden((index, *number)));
        let (stored, from_source) = self.store_files(index, layers, &wanted.collect())?;
        let mut files = Vec::new();
        for (number, leaf) in needed {
            let file = self.choice.settle((index, number), stored.get(&number).copied());
            self.merge.store(leaf, file);
            files.push((number, file));
        }
        Ok(Late { files, from_source })
    }

    /// Stores some files of a layer alone, by entry number; says whether they had to come from the source.
    pub(super) fn store_files(
        &mut self,
        index: usize,
        layers: &mut dyn Layers,
        wanted: &BTreeSet<u32>,
    ) -> Result<(StoredFiles, bool), ConvertError> {
        if wanted.is_empty() {
            return Ok((StoredFiles::new(), false));
        }
        let cached = self.find_cached(index).filter(|layer| {
            let mut files = layer.files();
            wanted.iter().all(|number| files.find(*number).is_some())
        });
        let files = match &cached {
            Some(layer) => self.take_files(layer, wanted),
            None => self.read_files(index, layers, wanted),
        }?;
        self.sink.end_layer().map_err(|source| self.write_failed(source))?;
        Ok((files, cached.is_none()))
    }

    /// Keeps the record of a layer for the cache.
    fn keep(&mut self, mut record: LayerRecord, late: Late, tar_bytes: u64) {
        if let Some(shelf) = self.shelf.as_mut().filter(|_| self.records) {
            late.files.into_iter().for_each(|(number, file)| record.add_file(number, file));
            shelf.keep(record, tar_bytes);
        }
    }

    // ---- from the source -------------------------------------------------------------------------------------------

    fn begin_record(&self, index: usize) -> Option<LayerRecord> {
        let shelf = self.shelf.as_ref().filter(|_| self.records)?;
        shelf.record(self.infos.get(index)?.diff_id.as_ref()?)
    }

    /// Reads and verifies one layer.
    fn read_layer(
        &mut self,
        index: usize,
        layers: &mut dyn Layers,
        record: &mut Option<LayerRecord>,
    ) -> Result<LayerTree, ConvertError> {
        let name = LayerName::new(self.infos, index);
        let unusable = |source| ConvertError::Layer { layer: name.clone(), source };
        let mut stream = layers.open(index).map_err(unusable)?;
        let mut tree = self.merge.begin_layer();
        let read = self.read_entries(index, &mut *stream, &mut tree, record);
        if read.as_ref().err().is_none_or(ConvertError::doubts_bytes) {
            // Read to the end in any case: bytes behind the tar belong to the digests, and where the tar makes no sense
            // a wrong digest is the better explanation.
            stream.finish().map_err(unusable)?;
        }
        read.map(|()| tree)
    }

    fn read_entries(
        &mut self,
        index: usize,
        stream: &mut dyn LayerStream,
        tree: &mut LayerTree,
        record: &mut Option<LayerRecord>,
    ) -> Result<(), ConvertError> {
        let name = LayerName::new(self.infos, index);
        let unreadable = |source| ConvertError::Tar { layer: name.clone(), source };
        let mut reader = Reader::continuing(stream, self.budget, self.counts);
        let mut number = 0;
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            self.progress.add_entry();
            self.merge.hold(reader.input().held_bytes());
            let decision = self.merge.apply(tree, &entry).map_err(|source| {
                let entry_name = entry.path.as_slice().into();
                ConvertError::Entry { layer: name.clone(), entry: entry_name, offset: entry.offset, source }
            })?;
            if record.as_mut().is_some_and(|record| !record.add_entry(&entry)) {
                *record = None;
            }
            if let Decision::Store(leaf) = decision {
                let mut stored = None;
                if self.choice.wants((index, number), &entry.path) {
                    let file = pack::store_file(&mut reader, &entry, self.sink, self.progress);
                    stored = Some(file.map_err(|error| self.copy_failed(&name, error))?);
                    self.progress.set_bytes_out(self.sink.bytes_out());
                }
                let file = self.choice.settle((index, number), stored);
                self.merge.store(leaf, file);
                if let Some(record) = record {
                    record.add_file(number, file);
                }
            }
            number += 1;
        }
        if let Some(record) = record {
            record.set_file_bytes(reader.counts().file_bytes.saturating_sub(self.counts.file_bytes));
        }
        self.counts = reader.counts();
        Ok(())
    }

    /// Reads a layer once more, for some of its files.
    fn read_files(
        &mut self,
        index: usize,
        layers: &mut dyn Layers,
        wanted: &BTreeSet<u32>,
    ) -> Result<StoredFiles, ConvertError> {
        let mut files = StoredFiles::new();
        let name = LayerName::new(self.infos, index);
        let unusable = |source| ConvertError::Layer { layer: name.clone(), source };
        let mut stream = layers.open(index).map_err(unusable)?;
        let mut reader = Reader::new(&mut *stream, self.budget);
        let unreadable = |source| ConvertError::Tar { layer: name.clone(), source };
        let mut number = 0;
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            if wanted.contains(&number) {
                let file = pack::store_file(&mut reader, &entry, self.sink, self.progress);
                files.insert(number, file.map_err(|error| self.copy_failed(&name, error))?);
            }
            number += 1;
        }
        // The same digests again, so these are the same entries.
        stream.finish().map_err(unusable)?;
        Ok(files)
    }

    // ---- from the cache --------------------------------------------------------------------------------------------

    /// The layer out of the cache, if it is there and within the budget: a refusal is the reader's, not ours.
    fn find_cached(&self, index: usize) -> Option<CachedLayer> {
        let layer = self.shelf.as_ref()?.find(self.infos.get(index)?.diff_id.as_ref()?, index)?;
        let counts = layer.counts_after(self.counts)?;
        let Budget { entries, file_bytes, stream_bytes, .. } = self.budget;
        let fits =
            counts.entries <= entries && counts.file_bytes <= file_bytes && layer.tar_bytes() <= stream_bytes;
        fits.then_some(layer)
    }

    /// Merges a cached layer and takes its files over. None if it lacks one, or is not sound: then nothing has happened.
    fn take_layer(&mut self, index: usize, layer: &CachedLayer) -> Result<Option<LayerTree>, ConvertError> {
        let mut tree = self.merge.begin_layer();
        let Some(taken) = self.apply_cached(index, layer, &mut tree) else {
            self.merge.abandon_layer(tree);
            return Ok(None);
        };
        let mut files = layer.files();
        for Taken { leaf, number, wanted } in taken {
            let mut stored = None;
            if wanted && let Some(file) = files.find(number) {
                let file = self.sink.take_over(layer.source(), &file);
                stored = Some(file.map_err(|source| self.write_failed(source))?);
                self.progress.set_bytes_out(self.sink.bytes_out());
            }
            let file = self.choice.settle((index, number), stored);
            self.merge.store(leaf, file);
        }
        self.counts = layer.counts_after(self.counts).unwrap_or(self.counts);
        if let Some(shelf) = &mut self.shelf {
            shelf.hits += u64::from(self.records);
            self.progress.layer(index).pass_over();
        }
        Ok(Some(tree))
    }

    /// Applies the entries; gives the visible files, if all that are wanted have data.
    fn apply_cached(
        &mut self,
        index: usize,
        layer: &CachedLayer,
        tree: &mut LayerTree,
    ) -> Option<Vec<Taken>> {
        let mut taken = Vec::new();
        let (mut entries, mut files) = (layer.entries()?, layer.files());
        for number in 0..layer.entry_count() {
            let entry = entries.next_entry()?;
            self.progress.add_entry();
            if let Decision::Store(leaf) = self.merge.apply(tree, &entry).ok()? {
                let wanted = self.choice.wants((index, number), &entry.path);
                // What an earlier pass had to read from the source is going to be wanted in the cache.
                if (wanted || self.records) && files.find(number).is_none() {
                    return None;
                }
                taken.push(Taken { leaf, number, wanted });
            }
        }
        Some(taken)
    }

    fn take_files(
        &mut self,
        layer: &CachedLayer,
        wanted: &BTreeSet<u32>,
    ) -> Result<StoredFiles, ConvertError> {
        let (mut stored, mut files) = (StoredFiles::new(), layer.files());
        for number in wanted {
            if let Some(file) = files.find(*number) {
                let file = self.sink.take_over(layer.source(), &file);
                stored.insert(*number, file.map_err(|source| self.write_failed(source))?);
            }
        }
        Ok(stored)
    }

    // ---- errors ----------------------------------------------------------------------------------------------------

    fn copy_failed(&self, name: &LayerName, error: CopyError) -> ConvertError {
        match error {
            CopyError::Read(source) => ConvertError::Tar { layer: name.clone(), source },
            CopyError::Write(source) => self.write_failed(source),
        }
    }

    fn write_failed(&self, source: WriteError) -> ConvertError {
        ConvertError::Write { path: self.path.to_owned(), source }
    }
}
