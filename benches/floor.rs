//! The least that a conversion can cost: the layers gunzipped and their bytes compressed in blocks, nothing else. No
//! digest, no tar, no output. `benches/convert` holds hpcrun against it.
//!
//! usage: floor JOBS gzip|libdeflate LAYER...      (prints the seconds taken, and the bytes in and out)
//!
//! `gzip` inflates as a stream, with the library that hpcrun uses; `libdeflate` is the fastest library there is, but
//! needs each layer and its tar in memory as a whole. The floor is the quicker of the two.

#![expect(clippy::print_stdout, reason = "a measuring program")]

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use hpcrun::squashfs::compress::{Compression, Compressor};

/// As hpcrun's own default.
const BLOCK_SIZE: usize = 128 << 10;
const BLOB_BUFFER: usize = 256 << 10;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Debug, Default)]
struct Totals {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: floor JOBS gzip|libdeflate LAYER...";
    let jobs: usize = arguments.next().ok_or(usage)?.parse()?;
    let library = arguments.next().ok_or(usage)?;
    let layers: Vec<String> = arguments.collect();
    let totals = Totals::default();
    let begun = Instant::now();
    match library.as_str() {
        "gzip" => stream(jobs, &layers, &totals)?,
        "libdeflate" => whole(jobs, &layers, &totals)?,
        _ => return Err(usage.into()),
    }
    let seconds = begun.elapsed().as_secs_f64();
    let total = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!("{} bytes in, {} bytes out, {seconds:.3}", total(&totals.bytes_in), total(&totals.bytes_out));
    Ok(())
}

fn compressor() -> Result<Compressor> {
    Ok(Compressor::new(Compression::default(), BLOCK_SIZE.try_into()?)?)
}

/// Compresses one block and counts it.
fn pack(block: &[u8], scratch: &mut [u8], compressor: &mut Compressor, totals: &Totals) -> Result<()> {
    let room = scratch.get_mut(..block.len().saturating_sub(1)).unwrap_or_default();
    let length = compressor.compress(block, room)?.unwrap_or(block.len());
    totals.bytes_in.fetch_add(block.len() as u64, Ordering::Relaxed);
    totals.bytes_out.fetch_add(length as u64, Ordering::Relaxed);
    Ok(())
}

/// A thread inflates each layer, `jobs` threads compress.
fn stream(jobs: usize, layers: &[String], totals: &Totals) -> Result<()> {
    let blocks_in_flight = 16 * jobs + 32;
    let (filled, to_pack) = bounded::<(Vec<u8>, usize)>(blocks_in_flight);
    let (give_back, free) = bounded(blocks_in_flight);
    for _ in 0..blocks_in_flight {
        give_back.send(vec![0; BLOCK_SIZE])?;
    }
    std::thread::scope(|scope| {
        let inflating: Vec<_> = layers
            .iter()
            .map(|layer| {
                let (filled, free) = (filled.clone(), free.clone());
                scope.spawn(move || -> Result<()> {
                    let blob = BufReader::with_capacity(BLOB_BUFFER, File::open(layer)?);
                    let mut tar = flate2::bufread::MultiGzDecoder::new(blob);
                    loop {
                        let mut block: Vec<u8> = free.recv()?;
                        let length = fill(&mut tar, &mut block)?;
                        if length == 0 {
                            return Ok(());
                        }
                        filled.send((block, length))?;
                    }
                })
            })
            .collect();
        drop(filled);
        let packing: Vec<_> = (0..jobs)
            .map(|_| {
                let (to_pack, give_back): (Receiver<(Vec<u8>, usize)>, _) =
                    (to_pack.clone(), give_back.clone());
                scope.spawn(move || -> Result<()> {
                    let (mut compressor, mut scratch) = (compressor()?, vec![0; BLOCK_SIZE]);
                    for (block, length) in to_pack {
                        let content = block.get(..length).unwrap_or_default();
                        pack(content, &mut scratch, &mut compressor, totals)?;
                        give_back.send(block)?;
                    }
                    Ok(())
                })
            })
            .collect();
        inflating.into_iter().chain(packing).try_for_each(|thread| thread.join().map_err(|_| "panicked")?)
    })
}

fn fill(tar: &mut impl Read, block: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while let Some(room @ [_, ..]) = block.get_mut(length..) {
        match tar.read(room)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// `jobs` threads take layers to inflate, the largest first, and then blocks of those that are ready.
fn whole(jobs: usize, layers: &[String], totals: &Totals) -> Result<()> {
    let sized = layers.iter().map(|path| Ok((File::open(path)?.metadata()?.len(), path)));
    let mut layers = sized.collect::<Result<Vec<_>>>()?;
    layers.sort_unstable();
    let layers = Mutex::new(layers);
    std::thread::scope(|scope| {
        let (to_pack, ready) = crossbeam_channel::unbounded::<(Arc<Vec<u8>>, usize)>();
        let threads: Vec<_> = (0..jobs)
            .map(|_| {
                let (layers, to_pack, ready) = (&layers, to_pack.clone(), ready.clone());
                scope.spawn(move || -> Result<()> {
                    let next = || layers.lock().ok()?.pop();
                    while let Some((_, path)) = next() {
                        let tar = Arc::new(inflate(path)?);
                        for at in (0..tar.len()).step_by(BLOCK_SIZE) {
                            to_pack.send((Arc::clone(&tar), at))?;
                        }
                    }
                    drop(to_pack);
                    let (mut compressor, mut scratch) = (compressor()?, vec![0; BLOCK_SIZE]);
                    for (tar, at) in ready {
                        let block = tar.get(at..tar.len().min(at + BLOCK_SIZE)).unwrap_or_default();
                        pack(block, &mut scratch, &mut compressor, totals)?;
                    }
                    Ok(())
                })
            })
            .collect();
        drop((to_pack, ready));
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "panicked")?)
    })
}

/// A gzip file of one member, whose last four bytes are the length of its content.
fn inflate(path: &str) -> Result<Vec<u8>> {
    let blob = std::fs::read(path)?;
    let (_, length) = blob.split_last_chunk::<4>().ok_or("no gzip file")?;
    let mut tar = vec![0; u32::from_le_bytes(*length).try_into()?];
    libdeflater::Decompressor::new().gzip_decompress(&blob, &mut tar)?;
    Ok(tar)
}
