//! Compressing blocks: one context per thread, output never longer than the input.

use std::fmt;

use libdeflater::{CompressionError, CompressionLvl};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd::zstd_safe::{CCtx, CParameter, get_error_name};

use crate::squashfs::format::{Codec, METADATA_BLOCK_SIZE};

/// Smallest dictionary of xz, bytes.
#[expect(clippy::cast_possible_truncation, reason = "8192")]
const XZ_DICTIONARY_MIN: u32 = METADATA_BLOCK_SIZE as u32;

/// Codec and level as chosen for a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard, level 1 to 22.
    Zstd(i32),
    /// zlib streams, level 1 to 12 (made by libdeflate).
    Gzip(u32),
    /// LZ4 blocks, no level.
    Lz4,
    /// xz, preset 0 to 9.
    Xz(u32),
}

impl Default for Compression {
    /// Zstandard level 3: 36 times faster than the level 15 of mksquashfs for an eighth more space.
    fn default() -> Compression {
        Compression::Zstd(3)
    }
}

/// Why a codec could not be set up or refused a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// The codec has no such level.
    #[error("{} has no level {level}, only {lowest} to {highest}", codec.name())]
    Level {
        /// The codec.
        codec: Codec,
        /// The level asked for.
        level: i64,
        /// Lowest level.
        lowest: u32,
        /// Highest level.
        highest: u32,
    },
    /// The library refused.
    #[error("{} failed: {reason}", codec.name())]
    Library {
        /// The codec.
        codec: Codec,
        /// The library's words.
        reason: String,
    },
}

impl Compression {
    /// The codec as the superblock names it.
    pub fn codec(self) -> Codec {
        match self {
            Compression::Zstd(_) => Codec::Zstd,
            Compression::Gzip(_) => Codec::Gzip,
            Compression::Lz4 => Codec::Lz4,
            Compression::Xz(_) => Codec::Xz,
        }
    }

    /// Refuses a level that the codec lacks.
    pub fn check(self) -> Result<(), CompressError> {
        let (level, lowest, highest) = match self {
            Compression::Zstd(level) => (i64::from(level), 1, 22),
            Compression::Gzip(level) => (i64::from(level), 1, 12),
            Compression::Xz(level) => (i64::from(level), 0, 9),
            Compression::Lz4 => return Ok(()),
        };
        if (i64::from(lowest)..=i64::from(highest)).contains(&level) {
            return Ok(());
        }
        Err(CompressError::Level { codec: self.codec(), level, lowest, highest })
    }

    /// The compressor options that follow the superblock; `None` where readers assume the same without them.
    ///
    /// Only lz4 needs them to be read at all. Level 10 to 12 of gzip are libdeflate's own: unsquashfs calls
    /// an image that states them corrupt, so they stay unstated (readers do not need the level).
    pub fn options(self) -> Option<Vec<u8>> {
        const LZ4_LEGACY: u32 = 1;
        const LZ4_FLAGS: u32 = 0;
        const GZIP_WINDOW_BITS: u16 = 15;
        const GZIP_DEFAULT_STRATEGY: u16 = 0;
        match self {
            Compression::Lz4 => Some([LZ4_LEGACY.to_le_bytes(), LZ4_FLAGS.to_le_bytes()].concat()),
            Compression::Zstd(15) | Compression::Gzip(9..) | Compression::Xz(_) => None,
            Compression::Zstd(level) => Some(level.to_le_bytes().to_vec()),
            Compression::Gzip(level) => {
                let [low, high] = GZIP_WINDOW_BITS.to_le_bytes();
                let [strategy_low, strategy_high] = GZIP_DEFAULT_STRATEGY.to_le_bytes();
                Some([level.to_le_bytes(), [low, high, strategy_low, strategy_high]].concat())
            }
        }
    }
}

/// A codec's context, reused for many blocks. What it makes of a block does not depend on the blocks before.
pub struct Compressor {
    engine: Engine,
    /// zstd at its fastest, to spare slow codecs blocks that no codec shrinks.
    probe: Option<CCtx<'static>>,
}

enum Engine {
    Zstd(CCtx<'static>),
    Gzip(libdeflater::Compressor),
    /// lz4_flex insists on room for the worst case, which the caller's buffer has not.
    Lz4 {
        table: CompressTable,
        worst_case: Vec<u8>,
    },
    /// liblzma's bindings cannot restart a stream; what it allocates for each is cheap beside what it
    /// computes.
    Xz(Filters),
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// A context for blocks of up to `block_size` bytes and for metadata blocks.
    pub fn new(compression: Compression, block_size: u32) -> Result<Compressor, CompressError> {
        compression.check()?;
        let codec = compression.codec();
        let library = |reason: String| CompressError::Library { codec, reason };
        let engine = match compression {
            Compression::Zstd(level) => Engine::Zstd(zstd_context(level)?),
            Compression::Gzip(level) => {
                let level = i32::try_from(level).ok().and_then(|level| CompressionLvl::new(level).ok());
                let level = level.ok_or_else(|| library("unknown level".to_owned()))?;
                Engine::Gzip(libdeflater::Compressor::new(level))
            }
            // Always the large table: a small one that grows would make the output depend on earlier blocks.
            Compression::Lz4 => Engine::Lz4 { table: CompressTable::large(), worst_case: Vec::new() },
            Compression::Xz(preset) => {
                let mut options =
                    LzmaOptions::new_preset(preset).map_err(|error| library(error.to_string()))?;
                // The dictionary that the kernel allocates when the image states none
                // (fs/squashfs/xz_wrapper.c).
                options.dict_size(block_size.max(XZ_DICTIONARY_MIN));
                let mut filters = Filters::new();
                filters.lzma2(&options);
                Engine::Xz(filters)
            }
        };
        // zstd and lz4 notice by themselves, and are through with noise in no time.
        let probe = match compression {
            Compression::Gzip(_) | Compression::Xz(_) => Some(zstd_context(1)?),
            Compression::Zstd(_) | Compression::Lz4 => None,
        };
        Ok(Compressor { engine, probe })
    }

    /// Compresses `input` into the front of `output` and gives the length; `None` if it does not fit there.
    /// Noise is not tried in earnest.
    pub fn compress(&mut self, input: &[u8], output: &mut [u8]) -> Result<Option<usize>, CompressError> {
        if let Some(probe) = &mut self.probe
            && is_evenly_distributed(input)
            && compress_zstd(probe, input, output)?.is_none()
        {
            return Ok(None);
        }
        match &mut self.engine {
            Engine::Zstd(context) => compress_zstd(context, input, output),
            Engine::Gzip(context) => match context.zlib_compress(input, output) {
                Ok(length) => Ok(Some(length)),
                Err(CompressionError::InsufficientSpace) => Ok(None),
            },
            Engine::Lz4 { table, worst_case } => compress_lz4(table, worst_case, input, output),
            Engine::Xz(filters) => compress_xz(filters, input, output),
        }
    }
}

fn zstd_context(level: i32) -> Result<CCtx<'static>, CompressError> {
    let library = |reason: &str| CompressError::Library { codec: Codec::Zstd, reason: reason.to_owned() };
    let mut context = CCtx::try_create().ok_or_else(|| library("out of memory"))?;
    context
        .set_parameter(CParameter::CompressionLevel(level))
        .map_err(|code| library(get_error_name(code)))?;
    Ok(context)
}

/// Whether all byte values are about equally frequent, as in noise and in what is compressed already.
fn is_evenly_distributed(bytes: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    for byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    // Noise of n bytes has a sum of n * n / 256 + n; text and code have a multiple of it.
    let length = bytes.len() as u64;
    squares.saturating_mul(256) < length * length / 4 * 5 + 256 * length
}

fn compress_zstd(
    context: &mut CCtx<'static>,
    input: &[u8],
    output: &mut [u8],
) -> Result<Option<usize>, CompressError> {
    const TOO_SMALL: usize = (ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize).wrapping_neg();
    match context.compress2(output, input) {
        Ok(length) => Ok(Some(length)),
        Err(TOO_SMALL) => Ok(None),
        Err(code) => {
            Err(CompressError::Library { codec: Codec::Zstd, reason: get_error_name(code).to_owned() })
        }
    }
}

fn compress_lz4(
    table: &mut CompressTable,
    worst_case: &mut Vec<u8>,
    input: &[u8],
    output: &mut [u8],
) -> Result<Option<usize>, CompressError> {
    worst_case.resize(worst_case.len().max(get_maximum_output_size(input.len())), 0);
    let length = compress_into_with_table(input, worst_case, table)
        .map_err(|error| CompressError::Library { codec: Codec::Lz4, reason: error.to_string() })?;
    let (Some(from), Some(to)) = (worst_case.get(..length), output.get_mut(..length)) else {
        return Ok(None);
    };
    to.copy_from_slice(from);
    Ok(Some(length))
}

fn compress_xz(filters: &Filters, input: &[u8], output: &mut [u8]) -> Result<Option<usize>, CompressError> {
    let library = |error: liblzma::stream::Error| CompressError::Library {
        codec: Codec::Xz,
        reason: error.to_string(),
    };
    // The kernel's decoder knows no other check.
    let mut stream = Stream::new_stream_encoder(filters, Check::Crc32).map_err(library)?;
    match stream.process(input, output, Action::Finish) {
        Ok(Status::StreamEnd) => Ok(usize::try_from(stream.total_out()).ok()),
        Ok(_) => Ok(None),
        Err(error) => Err(library(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 6] = [
        Compression::Zstd(3),
        Compression::Gzip(1),
        Compression::Gzip(12),
        Compression::Lz4,
        Compression::Xz(0),
        Compression::Xz(9),
    ];

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn text(length: usize) -> Vec<u8> {
        let words = ["squash ", "file ", "system ", "image ", "block ", "inode ", "node ", "table\n"];
        let picked = noise(length).into_iter().flat_map(|byte| words[usize::from(byte / 32)].bytes());
        picked.take(length).collect()
    }

    #[test]
    fn gives_nothing_rather_than_more() {
        for compression in ALL {
            let mut compressor = Compressor::new(compression, 131_072).unwrap();
            for length in [1, 10, 4096, 131_072] {
                let input = noise(length);
                let mut output = vec![0; length - 1];
                assert_eq!(compressor.compress(&input, &mut output), Ok(None), "{compression:?}, {length}");
                let input = text(length);
                let compressed = compressor.compress(&input, &mut output).unwrap();
                assert_eq!(compressed.is_some(), length > 10, "{compression:?}, {length}");
                assert_eq!(compressor.compress(&input, &mut []), Ok(None));
            }
        }
    }

    #[test]
    fn a_block_is_the_same_after_whatever_blocks() {
        for compression in ALL {
            let mut used = Compressor::new(compression, 65536).unwrap();
            let inputs =
                [text(65536), noise(65536), text(100), vec![7; 65536], text(30000), vec![], text(65535)];
            for input in &inputs {
                let (mut one, mut other) = (vec![0; 65536], vec![0; 65536]);
                let mut fresh = Compressor::new(compression, 65536).unwrap();
                let length = used.compress(input, &mut one).unwrap();
                assert_eq!(fresh.compress(input, &mut other).unwrap(), length);
                let length = length.unwrap_or(0);
                assert!(one[..length] == other[..length], "{compression:?}, {} bytes", input.len());
            }
        }
    }

    #[test]
    fn repeated_noise_is_compressed_all_the_same() {
        let input = noise(4096).repeat(16);
        for compression in ALL {
            let mut output = vec![0; input.len()];
            let length = Compressor::new(compression, 65536).unwrap().compress(&input, &mut output).unwrap();
            // Deflate and LZ4 reach back 4 KiB as well.
            assert!(length.unwrap() < 10_000, "{compression:?}");
        }
    }

    #[test]
    fn levels_are_checked_and_stated_where_readers_need_or_accept_them() {
        for (compression, ok, options) in [
            (Compression::Zstd(0), false, Some(4)),
            (Compression::Zstd(1), true, Some(4)),
            (Compression::Zstd(15), true, None),
            (Compression::Zstd(22), true, Some(4)),
            (Compression::Zstd(23), false, Some(4)),
            (Compression::Gzip(0), false, Some(8)),
            (Compression::Gzip(8), true, Some(8)),
            (Compression::Gzip(9), true, None),
            (Compression::Gzip(12), true, None),
            (Compression::Gzip(13), false, None),
            (Compression::Lz4, true, Some(8)),
            (Compression::Xz(0), true, None),
            (Compression::Xz(10), false, None),
        ] {
            assert_eq!(compression.check().is_ok(), ok, "{compression:?}");
            assert_eq!(compression.options().map(|options| options.len()), options, "{compression:?}");
        }
        let error = Compression::Gzip(13).check().unwrap_err();
        assert_eq!(error.to_string(), "gzip has no level 13, only 1 to 12");
    }
}
