//! The chunks in which a layer goes from stage to stage: used again rather than allocated, for fresh memory costs the
//! kernel as much as a copy.

use std::io::{self, Read};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Bytes of a full chunk.
pub(super) const CHUNK_SIZE: usize = 256 << 10;
/// Chunks kept for later.
const SPARE_CHUNKS: usize = 48;

/// Chunks that nobody uses.
#[derive(Debug, Clone)]
pub(crate) struct Spare {
    take: Receiver<Vec<u8>>,
    give_back: Sender<Vec<u8>>,
}

impl Spare {
    pub(crate) fn new() -> Spare {
        let (give_back, take) = bounded(SPARE_CHUNKS);
        Spare { take, give_back }
    }

    /// Reads until a chunk is full or `stream` ends.
    pub(super) fn fill(&self, stream: &mut (impl Read + ?Sized)) -> io::Result<Vec<u8>> {
        let mut chunk = self.take.try_recv().unwrap_or_default();
        // Nothing to do for one that was full before.
        chunk.resize(CHUNK_SIZE, 0);
        let mut length = 0;
        while let Some(room @ [_, ..]) = chunk.get_mut(length..) {
            match stream.read(room) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        chunk.truncate(length);
        Ok(chunk)
    }

    /// Takes back a chunk that was read.
    pub(super) fn give_back(&self, chunk: Vec<u8>) {
        if chunk.capacity() >= CHUNK_SIZE {
            // Enough of them: this one is freed.
            let _ = self.give_back.try_send(chunk);
        }
    }
}
