//! Compresses a stream in pieces, each a gzip member or Zstandard frame of its own, so that all processors can take
//! part and the bytes depend on none of them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::thread::Builder;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::generate::Generated;

/// Bytes of a piece before compression.
const PIECE_SIZE: usize = 2 << 20;

/// How what is exported is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip at this level, 1 to 12.
    Gzip(u32),
    /// Zstandard at this level, 1 to 22.
    Zstd(i32),
}

/// Which end of the copy failed.
#[derive(Debug)]
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies all of `input` to `output`, compressed by `threads` threads; `each` sees the bytes before compression.
pub(super) fn copy(
    mut input: Generated,
    packing: Packing,
    threads: usize,
    mut each: impl FnMut(&[u8]),
    output: &mut dyn Write,
) -> Result<(), CopyError> {
    if packing == Packing::Plain {
        while let Some(chunk) = input.next_chunk().map_err(CopyError::Read)? {
            each(&chunk);
            output.write_all(&chunk).map_err(CopyError::Write)?;
        }
        return output.flush().map_err(CopyError::Write);
    }
    std::thread::scope(|scope| {
        let workers = (0..threads.max(1))
            .map(|number| {
                let (work, pieces) = bounded::<Vec<u8>>(1);
                let (done, packed) = bounded(1);
                Builder::new()
                    .name(format!("pack-{number}"))
                    .spawn_scoped(scope, move || {
                        for piece in pieces {
                            if done.send(compress(&piece, packing)).is_err() {
                                break;
                            }
                        }
                    })
                    .map(|_| Worker { work, packed })
            })
            .collect::<io::Result<Vec<Worker>>>()
            .map_err(CopyError::Read)?;
        let mut crew = Crew { busy: VecDeque::new(), free: workers.into() };
        while let Some(piece) = next_piece(&mut input, &mut each)? {
            if crew.free.is_empty() {
                crew.write_oldest(output)?;
            }
            if let Some(worker) = crew.free.pop_front() {
                worker.work.send(piece).map_err(|_| stopped())?;
                crew.busy.push_back(worker);
            }
        }
        while !crew.busy.is_empty() {
            crew.write_oldest(output)?;
        }
        output.flush().map_err(CopyError::Write)
    })
}

struct Worker {
    work: Sender<Vec<u8>>,
    packed: Receiver<io::Result<Vec<u8>>>,
}

/// Workers with a piece, the oldest first, and those without.
struct Crew {
    busy: VecDeque<Worker>,
    free: VecDeque<Worker>,
}

impl Crew {
    fn write_oldest(&mut self, output: &mut dyn Write) -> Result<(), CopyError> {
        if let Some(worker) = self.busy.pop_front() {
            let packed = worker.packed.recv().map_err(|_| stopped())?.map_err(CopyError::Read)?;
            output.write_all(&packed).map_err(CopyError::Write)?;
            self.free.push_back(worker);
        }
        Ok(())
    }
}

fn stopped() -> CopyError {
    CopyError::Read(io::Error::other("a thread that compresses stopped without an error"))
}

/// Gathers chunks until a piece is full.
fn next_piece(input: &mut Generated, each: &mut impl FnMut(&[u8])) -> Result<Option<Vec<u8>>, CopyError> {
    let mut piece = Vec::new();
    while piece.len() < PIECE_SIZE {
        let Some(chunk) = input.next_chunk().map_err(CopyError::Read)? else { break };
        each(&chunk);
        piece.extend_from_slice(&chunk);
    }
    Ok((!piece.is_empty()).then_some(piece))
}

fn compress(piece: &[u8], packing: Packing) -> io::Result<Vec<u8>> {
    match packing {
        Packing::Plain => Ok(piece.to_vec()),
        Packing::Zstd(level) => zstd::bulk::compress(piece, level),
        Packing::Gzip(level) => {
            let level = i32::try_from(level).unwrap_or(6);
            let level = libdeflater::CompressionLvl::new(level).unwrap_or_default();
            let mut compressor = libdeflater::Compressor::new(level);
            let mut packed = vec![0; compressor.gzip_compress_bound(piece.len())];
            let length = compressor.gzip_compress(piece, &mut packed).map_err(io::Error::other)?;
            packed.truncate(length);
            Ok(packed)
        }
    }
}
