//! A layer as a stream of verified tar bytes, produced by threads that run ahead of the reader.
//!
//! ```text
//! fetch + digest  --8 MiB-->  decompress  --1 MiB-->  diff ID  --1 MiB-->  the reader
//! ```
//!
//! Each arrow is a bounded queue of chunks that change owner and are never copied. A stage that finds something wrong
//! sends that in place of the end; a stage whose reader is gone stops.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, Scope};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::chunk::Spare;
use super::decompress::{self, Compression};
use super::verify::{Part, Verifier};
use crate::convert::budget::{Budget, Exceeded, Limit};
use crate::convert::progress::{LayerProgress, LayerState, Progress, Wait};
use crate::convert::source::{LayerInfo, Source, SourceError};
use crate::image::digest::Digest;

/// Chunks of a blob that may wait for decompression: what a layer may be fetched ahead.
const BLOB_CHUNKS: usize = 32;
/// Chunks between the later stages.
const TAR_CHUNKS: usize = 4;

/// Why a layer is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The source does not hand it out.
    #[error("cannot open the layer")]
    Open(#[source] SourceError),
    /// The source fails while it is read.
    #[error("cannot fetch the layer")]
    Fetch(#[source] io::Error),
    /// No decoder for it.
    #[error("the layer is compressed with {0}, which no image format allows")]
    Unsupported(&'static str),
    /// The compressed stream is broken.
    #[error("the {} stream is corrupt", .compression.name())]
    Corrupt {
        /// The compression found.
        compression: Compression,
        /// What the decoder says.
        source: io::Error,
    },
    /// More bytes than announced.
    #[error("the blob is longer than the {expected} bytes that the manifest states")]
    TooLong {
        /// Bytes announced.
        expected: u64,
    },
    /// Fewer bytes than announced.
    #[error("the blob has {got} bytes, the manifest states {expected}")]
    Size {
        /// Bytes announced.
        expected: u64,
        /// Bytes found.
        got: u64,
    },
    /// The bytes are not those that were named.
    #[error("the {part} should be {expected} and is {got}")]
    Digest {
        /// What was hashed.
        part: Part,
        /// As the manifest or the config has it.
        expected: Digest,
        /// As computed.
        got: Digest,
    },
    /// More than the budget allows.
    #[error(transparent)]
    Budget(#[from] Exceeded),
    /// No thread for a stage.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A stage ended without a verdict: a bug.
    #[error("reading the layer stopped without an error")]
    Stopped,
}

impl LayerError {
    /// Whether the bytes are not those of the blob that the manifest names.
    pub(crate) fn is_of_another_blob(&self) -> bool {
        match self {
            LayerError::TooLong { .. } | LayerError::Size { .. } => true,
            LayerError::Digest { part, .. } => *part == Part::Blob,
            _ => false,
        }
    }
}

/// Tar bytes of a layer that carry a verdict at their end.
pub trait LayerStream: Read {
    /// Reads whatever is left and gives the verdict: every byte fetched, every digest as it should be.
    ///
    /// After a read that failed this is the reason.
    fn finish(&mut self) -> Result<(), LayerError>;

    /// Memory that decoders of the image hold now, this layer's and others', bytes.
    fn held_bytes(&self) -> u64 {
        0
    }
}

/// Memory that the decoders of one image hold, bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Arc<AtomicU64>);

/// One decoder's part of it.
struct Holding<'a> {
    held: &'a Held,
    bytes: u64,
}

impl Held {
    fn hold(&self, bytes: u64) -> Holding<'_> {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Holding { held: self, bytes }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What goes through a queue.
struct Chunk {
    /// None at all are the end, verified as far as the sender can.
    bytes: Vec<u8>,
    /// How the blob is stored.
    compression: Compression,
}

type Piece = Result<Chunk, LayerError>;

/// The blob of a layer on its way here.
#[derive(Debug)]
pub(crate) struct Fetch {
    index: usize,
    pieces: Receiver<Piece>,
    spare: Spare,
}

impl Fetch {
    /// Starts to fetch layer `index` of `source`, a few MiB ahead of whoever reads it.
    pub(crate) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        source: &'env dyn Source,
        index: usize,
        progress: &'env Progress,
        spare: &Spare,
    ) -> Result<Fetch, LayerError> {
        let (sender, pieces) = bounded(BLOB_CHUNKS);
        let of_fetch = spare.clone();
        let work = move || send_end(&sender, fetch(source, index, progress, &of_fetch, &sender));
        start_thread(scope, format!("fetch-{index}"), work)?;
        Ok(Fetch { index, pieces, spare: spare.clone() })
    }

    /// Starts to decompress what is fetched.
    pub(crate) fn decompress<'scope, 'env>(
        self,
        scope: &'scope Scope<'scope, 'env>,
        source: &'env dyn Source,
        progress: &'env Progress,
        budget: Budget,
        held: &Held,
    ) -> Result<Tar<'env>, LayerError> {
        let Fetch { index, pieces, spare } = self;
        let (to_hash, inflated) = bounded(TAR_CHUNKS);
        let (of_inflate, inflate_held) = (spare.clone(), held.clone());
        let work = move || {
            let progress = progress.layer(index);
            send_end(&to_hash, inflate(pieces, of_inflate, progress, &to_hash, &budget, &inflate_held));
        };
        start_thread(scope, format!("inflate-{index}"), work)?;
        let (to_reader, pieces) = bounded(TAR_CHUNKS);
        let layer = source.image().layers.get(index);
        let work = move || send_end(&to_reader, verify_tar(layer, &inflated, &to_reader));
        start_thread(scope, format!("diff-id-{index}"), work)?;
        Ok(Tar { index, pieces, spare, chunk: Vec::new(), at: 0, end: None, progress, held: held.clone() })
    }
}

fn start_thread<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    name: String,
    work: impl FnOnce() + Send + 'scope,
) -> Result<(), LayerError> {
    Builder::new().name(name).spawn_scoped(scope, work).map(drop).map_err(LayerError::Thread)
}

/// Tells the next stage how this one ended. It may be gone: then nobody wants to know.
fn send_end(next: &Sender<Piece>, end: Result<Compression, LayerError>) {
    let _ = next.send(end.map(|compression| Chunk { bytes: Vec::new(), compression }));
}

/// Stage 1: reads the blob and checks its size and digest.
fn fetch(
    source: &dyn Source,
    index: usize,
    progress: &Progress,
    spare: &Spare,
    next: &Sender<Piece>,
) -> Result<Compression, LayerError> {
    let layer = source.image().layers.get(index).ok_or(LayerError::Stopped)?;
    let progress = progress.layer(index);
    progress.enter(LayerState::Fetching);
    progress.restart();
    let mut blob = source.open_layer(index).map_err(LayerError::Open)?;
    let mut bytes = spare.fill(&mut *blob).map_err(LayerError::Fetch)?;
    let compression = decompress::detect(&bytes).map_err(LayerError::Unsupported)?;
    let mut verifier = Verifier::for_blob(layer, compression == Compression::Plain);
    while !bytes.is_empty() {
        verifier.update(&bytes)?;
        progress.add_fetched(bytes.len() as u64);
        if next.send(Ok(Chunk { bytes, compression })).is_err() {
            return Ok(compression);
        }
        bytes = spare.fill(&mut *blob).map_err(LayerError::Fetch)?;
    }
    verifier.finish()?;
    progress.enter(LayerState::Fetched);
    Ok(compression)
}

/// Stage 2: undoes the compression; a plain blob passes through.
fn inflate(
    pieces: Receiver<Piece>,
    spare: Spare,
    progress: &LayerProgress,
    next: &Sender<Piece>,
    budget: &Budget,
    held: &Held,
) -> Result<Compression, LayerError> {
    let taken = Arc::default();
    let mut blob =
        Blob { pieces, spare, progress, chunk: Vec::new(), at: 0, taken, ended: false, error: None };
    let Some(compression) = blob.next_chunk()? else { return Ok(Compression::Plain) };
    if compression == Compression::Plain {
        return pass_through(blob, next, budget);
    }
    let _holding = held.hold(decompress::held_bytes(&blob.chunk, compression));
    let end = inflate_all(&mut blob, compression, next, budget);
    if let Err(LayerError::Corrupt { .. }) = end {
        // The blob's own verdict explains more: it may be corrupt because it is not the blob that was named.
        blob.drain()?;
    }
    end.map(|()| compression)
}

fn pass_through(
    mut blob: Blob<'_>,
    next: &Sender<Piece>,
    budget: &Budget,
) -> Result<Compression, LayerError> {
    let compression = Compression::Plain;
    loop {
        budget.check(Limit::StreamBytes, blob.taken.load(Ordering::Relaxed))?;
        let bytes = std::mem::take(&mut blob.chunk);
        if next.send(Ok(Chunk { bytes, compression })).is_err() || blob.next_chunk()?.is_none() {
            return Ok(compression);
        }
    }
}

fn inflate_all(
    blob: &mut Blob<'_>,
    compression: Compression,
    next: &Sender<Piece>,
    budget: &Budget,
) -> Result<(), LayerError> {
    let corrupt = |source| LayerError::Corrupt { compression, source };
    let (taken, spare) = (Arc::clone(&blob.taken), blob.spare.clone());
    let mut made: u64 = 0;
    let mut decoder = decompress::decoder(blob, compression).map_err(corrupt)?;
    loop {
        let bytes = spare.fill(&mut *decoder).map_err(corrupt)?;
        made = made.saturating_add(bytes.len() as u64);
        let allowed = taken.load(Ordering::Relaxed).saturating_mul(budget.expansion);
        if made > allowed.max(budget.expansion_floor_bytes) {
            return Err(budget.exceeded(Limit::Expansion).into());
        }
        budget.check(Limit::StreamBytes, made)?;
        if bytes.is_empty() || next.send(Ok(Chunk { bytes, compression })).is_err() {
            return Ok(());
        }
    }
}

/// The queue between fetching and decompressing, as the reader that decoders want.
struct Blob<'a> {
    pieces: Receiver<Piece>,
    spare: Spare,
    progress: &'a LayerProgress,
    chunk: Vec<u8>,
    at: usize,
    /// Bytes taken from the queue.
    taken: Arc<AtomicU64>,
    ended: bool,
    error: Option<LayerError>,
}

impl Blob<'_> {
    /// Waits for the next chunk; none at the end.
    fn next_chunk(&mut self) -> Result<Option<Compression>, LayerError> {
        if self.ended {
            return Ok(None);
        }
        self.progress.set_starved(true);
        let piece = self.pieces.recv();
        self.progress.set_starved(false);
        let Chunk { bytes, compression } = piece.unwrap_or(Err(LayerError::Stopped))?;
        self.taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.at = 0;
        self.spare.give_back(std::mem::replace(&mut self.chunk, bytes));
        self.ended = self.chunk.is_empty();
        Ok((!self.ended).then_some(compression))
    }

    /// Reads the blob to its end for its verdict.
    fn drain(&mut self) -> Result<(), LayerError> {
        match self.error.take() {
            Some(error) => Err(error),
            None => {
                while self.next_chunk()?.is_some() {}
                Ok(())
            }
        }
    }
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.chunk.len()
            && let Err(error) = self.next_chunk()
        {
            self.error = Some(error);
            return Err(io::Error::other("the blob cannot be read"));
        }
        Ok(self.chunk.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.at = self.at.saturating_add(count);
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Stage 3: checks the diff ID of what was decompressed; that of a plain blob is checked where it is fetched.
fn verify_tar(
    layer: Option<&LayerInfo>,
    pieces: &Receiver<Piece>,
    next: &Sender<Piece>,
) -> Result<Compression, LayerError> {
    let mut verifier = Verifier::for_tar(layer.ok_or(LayerError::Stopped)?);
    loop {
        let chunk = pieces.recv().unwrap_or(Err(LayerError::Stopped))?;
        let compression = chunk.compression;
        if chunk.bytes.is_empty() {
            if compression != Compression::Plain {
                verifier.finish()?;
            }
            return Ok(compression);
        }
        if compression != Compression::Plain {
            verifier.update(&chunk.bytes)?;
        }
        if next.send(Ok(chunk)).is_err() {
            return Ok(compression);
        }
    }
}

/// The reader's end of the queues.
#[derive(Debug)]
pub(crate) struct Tar<'a> {
    index: usize,
    pieces: Receiver<Piece>,
    spare: Spare,
    chunk: Vec<u8>,
    at: usize,
    end: Option<Result<(), LayerError>>,
    progress: &'a Progress,
    held: Held,
}

impl Tar<'_> {
    fn next_chunk(&mut self) {
        self.at = 0;
        self.progress.wait_for_tar(self.index);
        let piece = self.pieces.recv();
        self.progress.wait_for(Wait::Nothing);
        match piece.unwrap_or(Err(LayerError::Stopped)) {
            Ok(chunk) => {
                self.progress.add_bytes_in(chunk.bytes.len() as u64);
                self.spare.give_back(std::mem::replace(&mut self.chunk, chunk.bytes));
                if self.chunk.is_empty() {
                    self.end = Some(Ok(()));
                }
            }
            Err(error) => {
                self.chunk = Vec::new();
                self.end = Some(Err(error));
            }
        }
    }
}

impl Read for Tar<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.chunk.len() && self.end.is_none() && !buffer.is_empty() {
            self.next_chunk();
        }
        if let Some(Err(_)) = self.end {
            return Err(io::Error::other("the layer cannot be read"));
        }
        let count = self.chunk.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at = self.at.saturating_add(count);
        Ok(count)
    }
}

impl LayerStream for Tar<'_> {
    fn finish(&mut self) -> Result<(), LayerError> {
        while self.end.is_none() {
            self.next_chunk();
        }
        self.end.replace(Ok(())).unwrap_or(Err(LayerError::Stopped))
    }

    fn held_bytes(&self) -> u64 {
        self.held.0.load(Ordering::Relaxed)
    }
}
