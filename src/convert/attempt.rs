//! One try at writing the squashfs of an image. A cached layer that proves damaged on the way ends it, and so does a
//! server whose layer proves to be another one, which shows only at the layer's end; the next try does without either.

use std::fs::File;
use std::path::Path;
use std::thread::{self, Scope};

use super::ahead::Ahead;
use super::cache::{self, Shelf};
use super::created;
use super::error::ConvertError;
use super::layer::stream::LayerError;
use super::options::ConvertOptions;
use super::order::{Choice, Order, Survey, Surveyed};
use super::pass::Pass;
use super::progress::{Progress, Wait};
use super::source::Source;
use super::tree::MergeOptions;
use super::{Merged, merge_options};
use crate::squashfs::writer::{self, WriteError, Writer, WriterOptions, Written};

pub(super) struct Attempt<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) options: &'a ConvertOptions,
    pub(super) order: Option<&'a Order>,
    pub(super) progress: &'a Progress,
    /// What is written, for messages.
    pub(super) path: &'a Path,
}

/// A squashfs, written but for what follows it.
pub(super) struct Image {
    pub(super) squashfs: writer::Summary,
    pub(super) written: Written,
    pub(super) merged: Merged,
    pub(super) unknown_paths: usize,
}

impl<'a> Attempt<'a> {
    /// Writes the squashfs to the start of `output`, which is empty.
    pub(super) fn write(&self, output: &File, shelf: &mut Shelf<'_>) -> Result<Image, ConvertError> {
        let write_failed = |source| ConvertError::Write { path: self.path.to_owned(), source };
        let own =
            output.try_clone().map_err(|source| write_failed(WriteError::Output { offset: 0, source }))?;
        let created = created::parse_created(&self.source.image().config.created);
        let options = writer_options(self.options, created);
        let writer = match shelf.is_recording() {
            true => Writer::create_recording(own, options),
            false => Writer::create(own, options),
        };
        let mut writer = writer.map_err(write_failed)?;
        let whole_tree = self.source.image().whole_tree;
        let merge_options = MergeOptions { whole_tree, ..merge_options(self.options, created) };
        let surveyed = match self.order.filter(|order| !order.is_empty()) {
            Some(order) => self.store_listed(order, &mut writer, &merge_options, shelf)?,
            None => Surveyed::default(),
        };
        let merged = self.store_rest(&surveyed, &mut writer, &merge_options, shelf)?;
        self.progress.wait_for(Wait::End);
        let (_, squashfs, written) = writer.finish_recorded(&merged.tree).map_err(write_failed)?;
        Ok(Image { squashfs, written, merged, unknown_paths: surveyed.unknown })
    }

    /// The first of two passes: stores the data of listed files.
    fn store_listed(
        &self,
        order: &Order,
        writer: &mut Writer,
        options: &MergeOptions,
        shelf: &mut Shelf<'_>,
    ) -> Result<Surveyed, ConvertError> {
        thread::scope(|scope| {
            let infos = &self.source.image().layers;
            let mut survey = Survey::new(order);
            let mut layers = self.layers(scope, |index| self.is_cached(shelf, index));
            let mut pass = Pass::new(infos, writer, options, self.progress, self.path);
            (pass.shelf, pass.choice) = (Some(&mut *shelf), Choice::Listed(&mut survey));
            pass.walk(&mut layers)?;
            let tree = pass.finish()?.tree;
            let mut surveyed = survey.finish(order, &tree);
            let mut pass = Pass::new(infos, writer, options, self.progress, self.path);
            pass.shelf = Some(shelf);
            // What else is to be read of them is read again.
            let mut layers = self.layers(scope, |_| true);
            for (layer, numbers) in std::mem::take(&mut surveyed.missing).iter().rev() {
                let (files, _) = pass.store_files(*layer, &mut layers, numbers)?;
                surveyed.stored.extend(files.into_iter().map(|(number, file)| ((*layer, number), file)));
            }
            Ok(surveyed)
        })
    }

    /// The only pass, or the second of two: stores everything that is not stored yet, and makes the tree.
    fn store_rest(
        &self,
        surveyed: &Surveyed,
        writer: &mut Writer,
        options: &MergeOptions,
        shelf: &mut Shelf<'_>,
    ) -> Result<Merged, ConvertError> {
        thread::scope(|scope| {
            let mut layers = self.layers(scope, |index| self.is_cached(shelf, index));
            let mut pass = Pass::new(&self.source.image().layers, writer, options, self.progress, self.path);
            pass.records = shelf.is_recording();
            (pass.shelf, pass.choice) = (Some(shelf), Choice::Rest(&surveyed.stored));
            pass.walk(&mut layers)?;
            pass.finish()
        })
    }

    fn is_cached(&self, shelf: &Shelf<'_>, index: usize) -> bool {
        let diff_id = self.source.image().layers.get(index).and_then(|layer| layer.diff_id.as_ref());
        diff_id.is_some_and(|diff_id| shelf.has(diff_id))
    }

    /// The layers of the source; those that are `unlikely` to be wanted are not fetched ahead.
    fn layers<'scope, 'env>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        unlikely: impl Fn(usize) -> bool,
    ) -> Ahead<'scope, 'env>
    where
        'a: 'env,
    {
        let unlikely = (0..self.source.image().layers.len()).map(unlikely).collect();
        Ahead::new(scope, self.source, self.progress, self.options.budget, unlikely)
    }
}

/// Leaves out what made a try fail; the error is back where nothing can be left out.
pub(super) fn give_another_chance(
    error: ConvertError,
    source: &dyn Source,
    shelf: &mut Shelf<'_>,
) -> Result<(), ConvertError> {
    let layers = &source.image().layers;
    match &error {
        ConvertError::Write { source: WriteError::Stored { number, .. }, .. } => {
            let diff_id = layers.get(*number).and_then(|layer| layer.diff_id.as_ref());
            let Some(diff_id) = diff_id else { return Err(error) };
            log::info!("layer cache: {diff_id} is damaged: {}", cache::with_causes(&error));
            shelf.refuse(diff_id);
        }
        ConvertError::Layer { layer, source: why } if why.is_of_another_blob() => {
            match source.distrust_layer(layer.index, &why.to_string()) {
                Ok(true) => shelf.begin_anew(),
                Ok(false) => return Err(error),
                Err(source) => {
                    let (layer, source) = (layer.clone(), LayerError::Open(source));
                    return Err(ConvertError::Layer { layer, source });
                }
            }
        }
        _ => match error.unproven_layer() {
            Some(layer) if source.distrust_layer(layer, &error.to_string()).unwrap_or(false) => {
                shelf.begin_anew();
            }
            _ => return Err(error),
        },
    }
    Ok(())
}

fn writer_options(options: &ConvertOptions, mkfs_time: u32) -> WriterOptions {
    let ConvertOptions { compression, block_size, jobs, .. } = *options;
    WriterOptions { compression, block_size, threads: jobs.max(1), mkfs_time }
}
