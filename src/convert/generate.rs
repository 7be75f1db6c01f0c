//! A stream that one thread writes and another reads, a few MiB apart.

use std::io::{self, Read, Write};
use std::thread::Builder;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Bytes of a full chunk.
const CHUNK_SIZE: usize = 256 << 10;
/// Chunks that may wait for the reader.
const CHUNKS: usize = 16;

/// Runs `work` in a thread of its own; gives what it writes. An error of `work` comes in place of the end. Once the
/// reader is dropped, writing fails with `EPIPE`, which `work` should take for its end.
pub(super) fn generate(
    name: &str,
    work: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> io::Result<Generated> {
    let (sender, chunks) = bounded(CHUNKS);
    Builder::new().name(name.to_owned()).spawn(move || {
        let mut writer = ChunkWriter { chunk: Vec::with_capacity(CHUNK_SIZE), sender };
        let end = work(&mut writer).and_then(|()| writer.flush()).map(|()| Vec::new());
        // A reader that is gone does not want to know.
        let _ = writer.sender.send(end);
    })?;
    Ok(Generated { chunks, chunk: Vec::new(), at: 0, ended: false })
}

struct ChunkWriter {
    chunk: Vec<u8>,
    sender: Sender<io::Result<Vec<u8>>>,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_SIZE.saturating_sub(self.chunk.len());
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.chunk.extend_from_slice(taken);
        if self.chunk.len() >= CHUNK_SIZE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_SIZE));
        self.sender.send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The reader's end.
#[derive(Debug)]
pub(super) struct Generated {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Generated {
    /// The next chunk as it was written; none at the end.
    pub(super) fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        let stopped = || Err(io::Error::other("the thread that reads the tree stopped without an error"));
        let chunk = self.chunks.recv().unwrap_or_else(|_| stopped());
        self.ended = chunk.as_ref().map_or(true, Vec::is_empty);
        chunk.map(|chunk| (!chunk.is_empty()).then_some(chunk))
    }
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.chunk.len() && !buffer.is_empty() {
            self.chunk = self.next_chunk()?.unwrap_or_default();
            self.at = 0;
        }
        let count = self.chunk.get(self.at..).unwrap_or_default().read(buffer)?;
        self.at = self.at.saturating_add(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5_000_000).collect();
        let written = bytes.clone();
        let mut reader =
            generate("test", move |out| written.chunks(300_001).try_for_each(|chunk| out.write_all(chunk)))
                .expect("a thread");
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("readable");
        assert!(read == bytes);
        assert_eq!(reader.read(&mut [0; 10]).expect("still the end"), 0);
    }

    #[test]
    fn an_error_comes_in_place_of_the_end() {
        let mut reader = generate("test", |out| {
            out.write_all(&[1; 10])?;
            Err(io::Error::other("no more"))
        })
        .expect("a thread");
        assert_eq!(reader.read_to_end(&mut Vec::new()).expect_err("an error").to_string(), "no more");
    }

    #[test]
    fn a_reader_that_goes_ends_the_writer() {
        let (told, ended) = bounded(1);
        let reader = generate("test", move |out| {
            let end = loop {
                if let Err(error) = out.write_all(&[0; 100_000]) {
                    break error;
                }
            };
            let _ = told.send(end.kind());
            Err(end)
        });
        drop(reader.expect("a thread"));
        assert_eq!(ended.recv().expect("it ends"), io::ErrorKind::BrokenPipe);
    }
}
