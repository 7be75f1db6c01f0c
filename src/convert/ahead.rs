//! Layers in the order in which the merge wants them, the next ones already on their way.

use std::collections::BTreeMap;
use std::thread::Scope;

use super::budget::Budget;
use super::layer::chunk::Spare;
use super::layer::stream::{Fetch, Held, LayerError, LayerStream, Tar};
use super::progress::Progress;
use super::source::Source;

/// Layers that are fetched before it is their turn, each up to 8 MiB.
const FETCH_AHEAD: usize = 3;

/// Hands out the layers of an image from the top down.
pub trait Layers {
    /// Opens layer `index` (0 = bottom). Each is opened in turn from the top down; a layer may be opened again before
    /// the next one is.
    fn open(&mut self, index: usize) -> Result<Box<dyn LayerStream + '_>, LayerError>;
}

/// Fetches a few layers ahead and decompresses one ahead (a Zstandard window may take 128 MiB, so not more).
pub(super) struct Ahead<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    source: &'env dyn Source,
    progress: &'env Progress,
    budget: Budget,
    spare: Spare,
    /// Layers that are opened only if somebody asks for them.
    unlikely: Vec<bool>,
    held: Held,
    /// The lowest layer that was started.
    started: usize,
    fetching: BTreeMap<usize, Fetch>,
    opened: BTreeMap<usize, Tar<'env>>,
}

impl<'scope, 'env> Ahead<'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        source: &'env dyn Source,
        progress: &'env Progress,
        budget: Budget,
        unlikely: Vec<bool>,
    ) -> Ahead<'scope, 'env> {
        let started = source.image().layers.len();
        let (fetching, opened) = (BTreeMap::new(), BTreeMap::new());
        let (spare, held) = (Spare::new(), Held::default());
        Ahead { scope, source, progress, budget, spare, held, unlikely, started, fetching, opened }
    }

    fn is_unlikely(&self, index: usize) -> bool {
        self.unlikely.get(index).copied().unwrap_or(false)
    }

    /// Starts fetching all layers down to `lowest`.
    fn fetch_down_to(&mut self, lowest: usize) -> Result<(), LayerError> {
        while self.started > lowest {
            let index = self.started - 1;
            self.started = index;
            if self.is_unlikely(index) {
                continue;
            }
            let fetch = Fetch::start(self.scope, self.source, index, self.progress, &self.spare)?;
            self.fetching.insert(index, fetch);
        }
        Ok(())
    }

    /// Takes a layer whose turn it is, or which is opened again.
    fn take(&mut self, index: usize) -> Result<Tar<'env>, LayerError> {
        if let Some(tar) = self.opened.remove(&index) {
            return Ok(tar);
        }
        let fetch = match self.fetching.remove(&index) {
            Some(fetch) => fetch,
            None => Fetch::start(self.scope, self.source, index, self.progress, &self.spare)?,
        };
        fetch.decompress(self.scope, self.source, self.progress, self.budget, &self.held)
    }
}

impl Layers for Ahead<'_, '_> {
    fn open(&mut self, index: usize) -> Result<Box<dyn LayerStream + '_>, LayerError> {
        self.fetch_down_to(index)?;
        let tar = self.take(index)?;
        self.fetch_down_to(index.saturating_sub(FETCH_AHEAD))?;
        if let Some(next) = (0..index).rev().find(|next| !self.is_unlikely(*next))
            && !self.opened.contains_key(&next)
        {
            let ahead = self.take(next)?;
            self.opened.insert(next, ahead);
        }
        Ok(Box::new(tar))
    }
}
