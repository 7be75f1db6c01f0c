//! The storing thread: takes packed blocks back into their order, stores them, and stores equal files once.
//!
//! Every decision here depends on the order of blocks alone, so the image does not depend on the number of
//! threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender};
use sha2::{Digest, Sha256};

use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::chunks::Chunks;
use crate::squashfs::writer::pipeline::{Block, Packed, Role, Shared};
use crate::squashfs::writer::sink::Sink;
use crate::squashfs::writer::stored::{Fingerprint, StoredBlock, StoredFragment, StoredWord};

/// In [`Layout::words`]: the other bits count holes. Sizes of blocks never reach this bit.
const HOLES: u32 = 1 << 31;

/// Where the data of one file lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// File offset of the first data block.
    pub(super) start: u64,
    first_word: usize,
    words: usize,
}

/// What a block list consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockWords {
    /// One data block: its size with the flag for an uncompressed one.
    Data(u32),
    /// So many holes of one block each.
    Holes(u32),
}

/// Where all file data lies.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Files of at least one data block, in the order in which they came.
    runs: Vec<Run>,
    /// Block lists of all runs: block sizes, and holes as counts, so that a hole of terabytes is 4 bytes.
    words: Vec<u32>,
    /// Offset and size word of each fragment block.
    pub(super) fragments: Vec<(u64, u32)>,
    /// All that is stored, head and blocks.
    pub(super) chunks: Chunks,
    /// Fingerprints of the stored blocks, where they are wanted.
    record: Option<Record>,
}

/// What taking blocks over into a later image needs to know of them.
#[derive(Debug, Default)]
struct Record {
    /// Of each of [`Layout::words`]; of no meaning for holes.
    words: Vec<Fingerprint>,
    /// Of each fragment block, with its length before compression.
    fragments: Vec<(Fingerprint, u32)>,
}

impl Layout {
    pub(super) fn run(&self, number: u32) -> Option<Run> {
        self.runs.get(usize::try_from(number).ok()?).copied()
    }

    pub(super) fn block_list(&self, run: Run) -> impl Iterator<Item = BlockWords> + '_ {
        let words = self.words.get(run.first_word..).unwrap_or_default();
        words.iter().take(run.words).map(|word| match word & HOLES {
            0 => BlockWords::Data(*word),
            _ => BlockWords::Holes(word & !HOLES),
        })
    }

    /// The blocks of a run with their fingerprints; none if those were not recorded.
    pub(super) fn stored_words(&self, run: Run) -> Option<Vec<StoredWord>> {
        let fingerprints = self.record.as_ref()?.words.get(run.first_word..)?;
        let mut position = run.start;
        let word = |(word, fingerprint): (BlockWords, &Fingerprint)| match word {
            BlockWords::Holes(count) => StoredWord::Holes(count),
            BlockWords::Data(size_word) => {
                let block = StoredBlock { position, size_word, fingerprint: *fingerprint };
                position += u64::from(block.size());
                StoredWord::Data(block)
            }
        };
        Some(self.block_list(run).zip(fingerprints).map(word).collect())
    }

    /// A fragment block with its fingerprint; none if that was not recorded.
    pub(super) fn stored_fragment(&self, index: u32) -> Option<StoredFragment> {
        let index = usize::try_from(index).ok()?;
        let (position, size_word) = *self.fragments.get(index)?;
        let (fingerprint, length) = *self.record.as_ref()?.fragments.get(index)?;
        Some(StoredFragment { block: StoredBlock { position, size_word, fingerprint }, length })
    }
}

/// A file whose blocks are coming in.
#[derive(Debug)]
struct Open {
    start: u64,
    first_word: usize,
    first_chunk: usize,
    /// Over block list and digests of the stored blocks: equal only for equal runs (layers are untrusted,
    /// hence SHA-256).
    digest: Sha256,
}

#[derive(Debug)]
pub(super) struct Output {
    sink: Sink,
    layout: Layout,
    open: Option<Open>,
    runs_by_digest: HashMap<[u8; 32], u32>,
    shared: Arc<Shared>,
}

impl Output {
    pub(super) fn new(sink: Sink, shared: Arc<Shared>, record: bool) -> Output {
        let layout =
            Layout { chunks: Chunks::new(), record: record.then(Record::default), ..Layout::default() };
        Output { sink, layout, open: None, runs_by_digest: HashMap::new(), shared }
    }

    /// Stores blocks by sequence number until no more can come.
    pub(super) fn run(mut self, packed: &Receiver<Option<Packed>>, free: &Sender<Block>) -> (Sink, Layout) {
        let mut early = BTreeMap::new();
        let mut next = 0;
        let recycle = |packed: Packed| {
            let mut block = packed.block;
            block.truncate(0);
            // The caller may be gone already; then the block is simply freed.
            let _ = free.send(block);
        };
        for packed in packed {
            early.extend(packed.map(|packed| (packed.sequence, packed)));
            while let Some(packed) = early.remove(&next) {
                next += 1;
                if !self.shared.has_failed()
                    && let Err(error) = self.store(&packed)
                {
                    self.shared.fail(error);
                }
                recycle(packed);
            }
            if self.shared.has_failed() {
                std::mem::take(&mut early).into_values().for_each(recycle);
            }
        }
        (self.sink, self.layout)
    }

    fn store(&mut self, packed: &Packed) -> Result<(), WriteError> {
        match packed.role {
            Role::Fragment { length } => {
                self.layout.fragments.push((self.sink.position(), packed.size_word));
                if let Some(record) = &mut self.layout.record {
                    record.fragments.push((packed.fingerprint, length));
                }
                self.append(packed)?;
            }
            Role::Data { holes_before, last } => {
                self.store_data(packed, holes_before)?;
                if let Some(holes) = last {
                    self.push_holes(holes);
                    self.close();
                }
            }
        }
        self.shared.bytes_out.store(self.sink.position(), Ordering::Relaxed);
        Ok(())
    }

    fn store_data(&mut self, packed: &Packed, holes_before: u32) -> Result<(), WriteError> {
        if self.open.is_none() {
            self.open = Some(Open {
                start: self.sink.position(),
                first_word: self.layout.words.len(),
                first_chunk: self.layout.chunks.count(),
                digest: Sha256::new(),
            });
        }
        self.push_holes(holes_before);
        self.push_word(packed.size_word, packed.fingerprint);
        if let Some(open) = &mut self.open {
            open.digest.update(packed.fingerprint.digest);
        }
        self.append(packed)
    }

    fn append(&mut self, packed: &Packed) -> Result<(), WriteError> {
        self.layout.chunks.push(packed.block.filled(), packed.fingerprint.digest);
        self.sink.append(packed.block.filled())
    }

    fn push_holes(&mut self, holes: u32) {
        if holes > 0 {
            self.push_word(holes | HOLES, Fingerprint::default());
        }
    }

    fn push_word(&mut self, word: u32, fingerprint: Fingerprint) {
        self.layout.words.push(word);
        if let Some(record) = &mut self.layout.record {
            record.words.push(fingerprint);
        }
        if let Some(open) = &mut self.open {
            open.digest.update(word.to_le_bytes());
        }
    }

    /// Ends a file: if an earlier run is the same, this one is taken back and the earlier one used.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let number = u32::try_from(self.layout.runs.len()).unwrap_or(u32::MAX);
        let digest = open.digest.finalize().into();
        let earlier = self.runs_by_digest.get(&digest).and_then(|number| self.layout.run(*number));
        let run = match earlier {
            Some(run) => {
                self.sink.rewind(open.start);
                self.layout.words.truncate(open.first_word);
                self.layout.chunks.truncate(open.first_chunk);
                if let Some(record) = &mut self.layout.record {
                    record.words.truncate(open.first_word);
                }
                run
            }
            None => {
                self.runs_by_digest.insert(digest, number);
                let words = self.layout.words.len() - open.first_word;
                Run { start: open.start, first_word: open.first_word, words }
            }
        };
        self.layout.runs.push(run);
    }
}

#[cfg(test)]
impl Layout {
    /// A layout whose run 0 is one data block at `start`.
    pub(super) fn with_one_block(start: u64, size_word: u32) -> Layout {
        let run = Run { start, first_word: 0, words: 1 };
        Layout { runs: vec![run], words: vec![size_word], ..Layout::default() }
    }
}
