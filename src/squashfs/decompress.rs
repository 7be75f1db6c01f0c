//! Decompressing blocks: one context per thread, output never longer than its buffer.
//!
//! The input is hostile. Callers hand in zeroed buffers and use only the bytes reported as written, so that nothing a
//! codec left behind, nor the content of an earlier block, can ever be shown.

use std::cell::RefCell;

use liblzma::stream::{Action, Status, Stream};

use crate::squashfs::format::Codec;
use crate::squashfs::lzo;

/// Memory one xz or lzma block may ask for, bytes. Dictionaries are at most a block (1 MiB) long, and the decoder takes
/// 100 KB beside; a stream that names a larger one is refused by the kernel as well.
const XZ_MEMORY_MAX: u64 = 2 << 20;

/// Why a block could not be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// The codec refused its input, or the output would be longer than the buffer.
    #[error("malformed {codec} data: {reason}")]
    Malformed {
        /// The codec's name.
        codec: &'static str,
        /// In the codec's words.
        reason: String,
    },
}

/// Decompresses one block into `output`; gives the number of bytes written from its start.
/// An error if the data is longer than `output`.
pub fn decompress(codec: Codec, input: &[u8], output: &mut [u8]) -> Result<usize, DecompressError> {
    let malformed = |reason: String| DecompressError::Malformed { codec: codec.name(), reason };
    let written = match codec {
        Codec::Gzip => gzip(input, output).map_err(malformed)?,
        Codec::Zstd => zstd(input, output).map_err(malformed)?,
        Codec::Lz4 => {
            lz4_flex::block::decompress_into(input, output).map_err(|error| malformed(error.to_string()))?
        }
        Codec::Xz => xz(Stream::new_stream_decoder(XZ_MEMORY_MAX, 0), input, output).map_err(malformed)?,
        Codec::Lzma => xz(Stream::new_lzma_decoder(XZ_MEMORY_MAX), input, output).map_err(malformed)?,
        Codec::Lzo => lzo::decompress(input, output).map_err(|error| malformed(error.to_owned()))?,
    };
    if written > output.len() {
        return Err(malformed(format!("{written} bytes of output do not fit {}", output.len())));
    }
    Ok(written)
}

/// How long the output of `input` claims to be, bytes: so that memory of that size can be had before. Of zstd only, and
/// only a claim.
pub fn claimed_length(codec: Codec, input: &[u8]) -> Option<usize> {
    if codec != Codec::Zstd {
        return None;
    }
    zstd::zstd_safe::get_frame_content_size(input)
        .ok()
        .flatten()
        .and_then(|length| usize::try_from(length).ok())
}

fn gzip(input: &[u8], output: &mut [u8]) -> Result<usize, String> {
    thread_local! {
        static CONTEXT: RefCell<libdeflater::Decompressor> = RefCell::new(libdeflater::Decompressor::new());
    }
    CONTEXT
        .with_borrow_mut(|context| context.zlib_decompress(input, output))
        .map_err(|error| error.to_string())
}

fn zstd(input: &[u8], output: &mut [u8]) -> Result<usize, String> {
    thread_local! {
        static CONTEXT: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
    }
    CONTEXT
        .with_borrow_mut(|context| context.decompress_to_buffer(input, output))
        .map_err(|error| error.to_string())
}

/// A stream a block: the bindings cannot reset one, and its memory is a dictionary of at most a block.
fn xz(
    decoder: Result<Stream, liblzma::stream::Error>,
    input: &[u8],
    output: &mut [u8],
) -> Result<usize, String> {
    let mut stream = decoder.map_err(|error| error.to_string())?;
    match stream.process(input, output, Action::Finish) {
        Ok(Status::StreamEnd) => usize::try_from(stream.total_out()).map_err(|error| error.to_string()),
        Ok(_) => Err("the stream is cut short or longer than its block".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compress(codec: Codec, data: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Gzip => {
                let mut compressor =
                    libdeflater::Compressor::new(libdeflater::CompressionLvl::new(6).unwrap());
                let mut out = vec![0; compressor.zlib_compress_bound(data.len())];
                let length = compressor.zlib_compress(data, &mut out).unwrap();
                out.truncate(length);
                out
            }
            Codec::Zstd => zstd::bulk::compress(data, 3).unwrap(),
            Codec::Lz4 => lz4_flex::block::compress(data),
            Codec::Xz => {
                let mut options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
                options.dict_size(131_072);
                let mut filters = liblzma::stream::Filters::new();
                filters.lzma2(&options);
                let stream = Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
                let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Codec::Lzma => {
                let mut options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
                options.dict_size(131_072);
                let stream = Stream::new_lzma_encoder(&options).unwrap();
                let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            // Literals only: a run of them, then the end of the stream.
            Codec::Lzo => {
                let zeros = (data.len() - 19) / 255;
                let last = data.len() - 18 - 255 * zeros;
                [&vec![0; 1 + zeros][..], &[u8::try_from(last).unwrap()], data, &[17, 0, 0]].concat()
            }
        }
    }

    const ALL: [Codec; 6] = [Codec::Gzip, Codec::Zstd, Codec::Lz4, Codec::Xz, Codec::Lzma, Codec::Lzo];

    fn sample(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at * at / 7 % 251).unwrap()).collect()
    }

    #[test]
    fn zstd_claims_a_length() {
        let packed = compress(Codec::Zstd, &sample(5000));
        assert_eq!(claimed_length(Codec::Zstd, &packed), Some(5000));
        assert_eq!(claimed_length(Codec::Zstd, b""), None);
        assert_eq!(claimed_length(Codec::Zstd, b"no frame"), None);
        assert_eq!(claimed_length(Codec::Gzip, &packed), None);
    }

    #[test]
    fn restores_what_was_compressed() {
        for codec in ALL {
            for length in [19, 100, 4095, 8192, 131_072] {
                let data = sample(length);
                let packed = compress(codec, &data);
                let mut out = vec![0; length];
                assert_eq!(decompress(codec, &packed, &mut out), Ok(length), "{codec:?} {length}");
                assert!(out == data, "{codec:?} {length}");
                let mut roomy = vec![0; length + 77];
                assert_eq!(decompress(codec, &packed, &mut roomy), Ok(length), "{codec:?} {length}");
                // What follows is the codec's scratch space: zstd leaves bytes there.
                assert!(roomy.starts_with(&data), "{codec:?} {length}");
            }
        }
    }

    #[test]
    fn refuses_output_longer_than_the_buffer() {
        for codec in ALL {
            let packed = compress(codec, &sample(10_000));
            for room in [0, 1, 5000, 9999] {
                assert!(decompress(codec, &packed, &mut vec![0; room]).is_err(), "{codec:?} {room}");
            }
        }
    }

    #[test]
    fn cut_or_empty_input_never_passes_as_whole() {
        for codec in ALL {
            let data = sample(5000);
            let packed = compress(codec, &data);
            for keep in 0..packed.len() {
                let mut out = vec![0; data.len()];
                let got = decompress(codec, &packed[..keep], &mut out);
                assert!(got.as_ref().map_or(true, |n| *n < data.len()), "{codec:?} {keep}: {got:?}");
            }
        }
    }

    #[test]
    fn mutants_stay_within_the_buffer() {
        let mut state = 1_u64;
        let mut random = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % bound
        };
        let data = [sample(3000), vec![7; 3000], sample(2192)].concat();
        for codec in ALL {
            let packed = compress(codec, &data);
            let mut out = vec![0; data.len()];
            for _ in 0..4000 {
                let mut mutant = packed.clone();
                for _ in 0..=random(3) {
                    let at = random(mutant.len());
                    mutant[at] = [0, 1, 0x7f, 0x80, 0xff, u8::try_from(random(256)).unwrap()][random(6)];
                }
                mutant.truncate(packed.len() - [0, random(packed.len())][random(2)]);
                if let Ok(length) = decompress(codec, &mutant, &mut out) {
                    assert!(length <= out.len(), "{codec:?}");
                }
            }
        }
    }

    #[test]
    fn xz_with_a_huge_dictionary_is_refused() {
        let options = liblzma::stream::LzmaOptions::new_preset(9).unwrap();
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let stream = Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(&sample(100)).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(decompress(Codec::Xz, &packed, &mut [0; 100]).is_err());
    }
}
