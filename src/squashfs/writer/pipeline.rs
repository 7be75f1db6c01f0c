//! The block processor: blocks go in with a sequence number, N threads compress them, one thread stores them
//! in order.
//!
//! Memory is bounded by the blocks in being: a block is taken from the pool, filled, compressed, stored and
//! given back. The channels themselves are unbounded, since nothing enters them without a block. After a
//! failure everything keeps moving but nothing is compressed or stored, so no thread ever waits for another
//! that gave up.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::squashfs::compress::Compressor;
use crate::squashfs::format::DATA_UNCOMPRESSED;
use crate::squashfs::writer::output::{Layout, Output};
use crate::squashfs::writer::sink::Sink;
use crate::squashfs::writer::stored::{BlockSource, Fingerprint, Gatherer, Slice, StoredBlock};
use crate::squashfs::writer::{WriteError, WriterOptions};

/// Upper bound of the pool with many threads and large blocks, bytes.
const POOL_BYTES: usize = 128 << 20;

/// A buffer of one block size, filled from the front.
pub(super) struct Block {
    bytes: Box<[u8]>,
    length: usize,
}

impl Block {
    pub(super) fn new(size: usize) -> Block {
        Block { bytes: vec![0; size].into_boxed_slice(), length: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Up to `limit` bytes of what is not filled.
    pub(super) fn spare(&mut self, limit: u64) -> &mut [u8] {
        let spare = self.bytes.get_mut(self.length..).unwrap_or_default();
        let length = spare.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        spare.get_mut(..length).unwrap_or_default()
    }

    /// Counts `length` more bytes as filled.
    pub(super) fn advance(&mut self, length: usize) {
        self.length = self.length.saturating_add(length).min(self.bytes.len());
    }

    /// Fills with `length` zero bytes.
    pub(super) fn fill_zero(&mut self, length: usize) {
        let spare = self.spare(length as u64);
        spare.fill(0);
        let length = spare.len();
        self.advance(length);
    }

    pub(super) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} of {})", self.length, self.bytes.len())
    }
}

/// What a block is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// The next fragment block.
    Fragment {
        /// Its bytes before compression.
        length: u32,
    },
    /// The next data block of the file being stored.
    Data {
        /// Holes of one block each between the block before and this one.
        holes_before: u32,
        /// For a file's last data block: how many holes follow.
        last: Option<u32>,
    },
}

/// Where the content of a block comes from.
#[derive(Debug)]
pub(super) enum Content {
    /// The block holds it.
    Here,
    /// The block holds it, and it is to be stored as it is.
    Plain,
    /// From an earlier image, already compressed; the block is only room for it.
    Stored(Arc<BlockSource>, StoredBlock),
    /// Small files out of blocks of earlier images; the block is only room for them.
    Slices(Vec<Slice>),
}

#[derive(Debug)]
struct Job {
    sequence: u64,
    block: Block,
    content: Content,
    role: Role,
}

/// A block as it goes into the image.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) sequence: u64,
    pub(super) block: Block,
    /// Size with the flag for an uncompressed block, as in block lists and the fragment table.
    pub(super) size_word: u32,
    /// Of the stored bytes.
    pub(super) fingerprint: Fingerprint,
    pub(super) role: Role,
}

/// What the threads and the caller tell each other beside blocks.
#[derive(Debug, Default)]
pub(super) struct Shared {
    failed: AtomicBool,
    failure: Mutex<Option<WriteError>>,
    /// Position of the output, bytes.
    pub(super) bytes_out: AtomicU64,
}

impl Shared {
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The first failure is the one reported.
    pub(super) fn fail(&self, error: WriteError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.failed.swap(true, Ordering::AcqRel) {
            *failure = Some(error);
        }
    }

    fn take_failure(&self) -> WriteError {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take().unwrap_or(WriteError::GivenUp)
    }

    fn check(&self) -> Result<(), WriteError> {
        if self.has_failed() { Err(self.take_failure()) } else { Ok(()) }
    }
}

/// The threads, and the caller's ends of their channels. Dropped, it stops and joins them.
#[derive(Debug)]
pub(super) struct Pipeline {
    block_size: usize,
    /// Blocks that may still be allocated.
    allowance: usize,
    next_sequence: u64,
    jobs: Option<Sender<Job>>,
    free: Receiver<Block>,
    /// Taken and given back unused.
    unused: Vec<Block>,
    workers: Vec<JoinHandle<()>>,
    storer: Option<JoinHandle<(Sink, Layout)>>,
    shared: Arc<Shared>,
}

impl Pipeline {
    /// Starts the threads; the data region begins after `head`. `record` keeps the digests of all blocks.
    pub(super) fn start(
        file: File,
        head: &[u8],
        options: &WriterOptions,
        record: bool,
    ) -> Result<Pipeline, WriteError> {
        let threads = options.threads.max(1);
        let block_size = usize::try_from(options.block_size).unwrap_or(usize::MAX);
        let (jobs, jobs_in) = unbounded();
        let (packed, packed_in) = unbounded();
        let (give_back, free) = unbounded();
        let shared = Arc::new(Shared::default());
        let least = 2 * threads + 8;
        let mut pipeline = Pipeline {
            block_size,
            allowance: (POOL_BYTES / block_size).clamp(least, least.max(16 * threads + 32)),
            next_sequence: 0,
            jobs: Some(jobs),
            free,
            unused: Vec::new(),
            workers: Vec::new(),
            storer: None,
            shared: Arc::clone(&shared),
        };
        for _ in 0..threads {
            let worker = Worker {
                jobs: jobs_in.clone(),
                packed: packed.clone(),
                give_back: give_back.clone(),
                shared: Arc::clone(&shared),
                record,
            };
            let options = options.clone();
            pipeline.workers.push(spawn("squashfs-pack", move || worker.run(&options))?);
        }
        let output = Output::new(Sink::new(file, head), shared, record);
        pipeline.storer = Some(spawn("squashfs-store", move || output.run(&packed_in, &give_back))?);
        Ok(pipeline)
    }

    pub(super) fn block_size(&self) -> usize {
        self.block_size
    }

    pub(super) fn bytes_out(&self) -> u64 {
        self.shared.bytes_out.load(Ordering::Relaxed)
    }

    pub(super) fn is_compressing(&self) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| !jobs.is_empty())
    }

    /// An empty block; waits for one when as many as allowed are under way.
    pub(super) fn block(&mut self) -> Result<Block, WriteError> {
        self.shared.check()?;
        if let Some(block) = self.unused.pop().or_else(|| self.free.try_recv().ok()) {
            return Ok(block);
        }
        if let Some(rest) = self.allowance.checked_sub(1) {
            self.allowance = rest;
            return Ok(Block::new(self.block_size));
        }
        let block = self.free.recv().map_err(|_| self.died())?;
        self.shared.check()?;
        Ok(block)
    }

    /// Takes an unused block back.
    pub(super) fn give_back(&mut self, mut block: Block) {
        block.truncate(0);
        self.unused.push(block);
    }

    /// Hands a block over for compression; blocks are stored in the order of these calls.
    pub(super) fn submit(&mut self, block: Block, role: Role) -> Result<(), WriteError> {
        self.send(block, Content::Here, role)
    }

    /// The same for a block that is not to be compressed.
    pub(super) fn submit_plain(&mut self, block: Block, role: Role) -> Result<(), WriteError> {
        self.send(block, Content::Plain, role)
    }

    /// The same for a block whose content is elsewhere.
    pub(super) fn take_over(&mut self, content: Content, role: Role) -> Result<(), WriteError> {
        let block = self.block()?;
        self.send(block, content, role)
    }

    fn send(&mut self, block: Block, content: Content, role: Role) -> Result<(), WriteError> {
        self.shared.check()?;
        let job = Job { sequence: self.next_sequence, block, content, role };
        self.next_sequence += 1;
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { Err(self.died()) }
    }

    /// Waits for all blocks to be stored.
    pub(super) fn finish(mut self) -> Result<(Sink, Layout), WriteError> {
        let stored = self.join();
        self.shared.check()?;
        stored.ok_or(WriteError::ThreadDied)
    }

    fn died(&self) -> WriteError {
        self.shared.fail(WriteError::ThreadDied);
        self.shared.take_failure()
    }

    fn join(&mut self) -> Option<(Sink, Layout)> {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                self.shared.fail(WriteError::ThreadDied);
            }
        }
        self.storer.take()?.join().ok()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if self.storer.is_some() || !self.workers.is_empty() {
            self.shared.fail(WriteError::GivenUp);
            self.join();
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(WriteError::StartThread)
}

/// One compression thread.
struct Worker {
    jobs: Receiver<Job>,
    /// `None` makes the storing thread look at the failure.
    packed: Sender<Option<Packed>>,
    give_back: Sender<Block>,
    shared: Arc<Shared>,
    record: bool,
}

impl Worker {
    fn run(&self, options: &WriterOptions) {
        if let Err(error) = self.compress_all(options) {
            self.fail(error);
        }
        // Keep the blocks moving, so that the caller comes to see the failure.
        for job in &self.jobs {
            self.recycle(job.block);
        }
    }

    fn compress_all(&self, options: &WriterOptions) -> Result<(), WriteError> {
        let _watch = PanicWatch(self);
        let mut compressor =
            Compressor::new(options.compression, options.block_size).map_err(WriteError::Compress)?;
        let block_size = usize::try_from(options.block_size).unwrap_or(usize::MAX);
        let mut scratch = Block::new(block_size);
        let mut gatherer = Gatherer::new(options.compression.codec(), block_size);
        for mut job in &self.jobs {
            if self.shared.has_failed() {
                self.recycle(job.block);
                continue;
            }
            let packed = match &job.content {
                Content::Stored(from, stored) => {
                    from.read(stored, &mut job.block)?;
                    let StoredBlock { size_word, fingerprint, .. } = *stored;
                    let Job { sequence, block, role, .. } = job;
                    Packed { sequence, block, size_word, fingerprint, role }
                }
                Content::Slices(slices) => {
                    gatherer.gather(slices, &mut job.block)?;
                    pack(job, &mut scratch, &mut compressor, self.record)?
                }
                Content::Here => pack(job, &mut scratch, &mut compressor, self.record)?,
                Content::Plain => {
                    let Job { sequence, block, role, .. } = job;
                    packed(sequence, block, DATA_UNCOMPRESSED, role, self.record)
                }
            };
            if self.packed.send(Some(packed)).is_err() {
                return Err(WriteError::ThreadDied);
            }
        }
        Ok(())
    }

    fn fail(&self, error: WriteError) {
        self.shared.fail(error);
        // Without a storing thread nobody waits for a block either.
        let _ = self.packed.send(None);
    }

    fn recycle(&self, mut block: Block) {
        block.truncate(0);
        // The caller may be gone already; then the block is simply freed.
        let _ = self.give_back.send(block);
    }
}

/// A block lost in a panic would leave the others waiting for its turn.
struct PanicWatch<'a>(&'a Worker);

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(WriteError::ThreadDied);
        }
    }
}

/// Compresses a block into `scratch`, which becomes the packed block while the job's becomes the next
/// scratch; a block that does not shrink by 1/64 is kept as it is: reading it costs less than the space.
fn pack(
    job: Job,
    scratch: &mut Block,
    compressor: &mut Compressor,
    record: bool,
) -> Result<Packed, WriteError> {
    let Job { sequence, mut block, role, .. } = job;
    scratch.truncate(0);
    let worthwhile = block.len() - block.len() / 64 - usize::from(block.len() > 0);
    let compressed = compressor
        .compress(block.filled(), scratch.spare(worthwhile as u64))
        .map_err(WriteError::Compress)?;
    let flag = match compressed {
        Some(length) => {
            scratch.advance(length);
            std::mem::swap(&mut block, scratch);
            0
        }
        None => DATA_UNCOMPRESSED,
    };
    Ok(packed(sequence, block, flag, role, record))
}

/// A block as it is to be stored; `flag` says how.
fn packed(sequence: u64, block: Block, flag: u32, role: Role, record: bool) -> Packed {
    let size_word = u32::try_from(block.len()).unwrap_or(u32::MAX) | flag;
    let fingerprint = Fingerprint::of(block.filled(), record);
    Packed { sequence, block, size_word, fingerprint, role }
}
