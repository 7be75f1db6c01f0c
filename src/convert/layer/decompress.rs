//! Which compression a blob has, told by its bytes alone, and how it is undone.

use std::io::{self, BufRead, Read};

use super::gzip::GzipReader;

/// How a blob is stored. Media types are only hints: they are wrong often and absent in docker archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A tar as it is.
    Plain,
    /// One gzip member or several.
    Gzip,
    /// One Zstandard frame or several, with skippable ones between.
    Zstd,
}

impl Compression {
    /// The name people know.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Plain => "tar",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// Largest window of a Zstandard frame, as a power of two: 128 MiB, as `zstd -d` allows without being asked.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Window that any frame may ask for, whatever the first one says: 32 MiB, the most that makers of many frames use
/// (zstd:chunked; the levels 20 to 22 of `zstd` make one frame, which tells).
const ZSTD_WINDOW_LOG_USUAL: u32 = 25;

/// Recognises the compression from a blob's first bytes (a header block of 512 is plenty). The error is the name of a
/// compression that layers do not have.
pub fn detect(start: &[u8]) -> Result<Compression, &'static str> {
    // A tar whose first name looks like another magic number is still a tar.
    if start.get(257..262) == Some(b"ustar") {
        return Ok(Compression::Plain);
    }
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => Err("bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
        _ => Ok(Compression::Plain),
    }
}

/// Memory that the decoder of a blob takes at most, bytes; `start` are the blob's first bytes.
pub fn held_bytes(start: &[u8], compression: Compression) -> u64 {
    match compression {
        Compression::Plain => 0,
        Compression::Gzip => 64 << 10,
        // The window, and blocks on their way in and out of it.
        Compression::Zstd => (1 << window_log(start)) + (1 << 20),
    }
}

/// Largest window that the frames of a Zstandard blob may have, as a power of two: what the first frame asks for, so
/// that it is known beforehand, but at least the usual and at most the largest (RFC 8878, 3.1.1.1).
fn window_log(start: &[u8]) -> u32 {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let window = match start {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] if descriptor & SINGLE_SEGMENT != 0 => {
            content_size(*descriptor, rest)
        }
        [0x28, 0xb5, 0x2f, 0xfd, _, window, ..] => {
            let base = 1_u64 << (10 + (window >> 3));
            Some(base + base / 8 * u64::from(window & 7))
        }
        // A skippable frame tells nothing about those behind it.
        _ => None,
    };
    let log =
        window.and_then(u64::checked_next_power_of_two).map_or(ZSTD_WINDOW_LOG_MAX, u64::trailing_zeros);
    log.clamp(ZSTD_WINDOW_LOG_USUAL, ZSTD_WINDOW_LOG_MAX)
}

/// The content size of a frame that is one segment, which is its window.
fn content_size(descriptor: u8, rest: &[u8]) -> Option<u64> {
    let dictionary_id = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?;
    let field = rest.get(dictionary_id..)?;
    let size: u64 = match (descriptor >> 6, field) {
        (0, [a, ..]) => u64::from(*a),
        (1, [a, b, ..]) => u64::from(u16::from_le_bytes([*a, *b])) + 256,
        (2, [a, b, c, d, ..]) => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
        (3, [a, b, c, d, e, f, g, h, ..]) => u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
        _ => return None,
    };
    Some(size)
}

/// The uncompressed bytes of `blob`. Bytes after the last gzip member or Zstandard frame are an error, as in Go.
pub fn decoder<'a>(
    mut blob: impl BufRead + Send + 'a,
    compression: Compression,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::Plain => Box::new(blob),
        // Several members are normal: eStargz has one for each file.
        Compression::Gzip => Box::new(GzipReader::new(blob)),
        Compression::Zstd => {
            let window_log = window_log(blob.fill_buf()?);
            let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
            decoder.window_log_max(window_log)?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).expect("in memory")
    }

    fn skippable(bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).expect("short");
        [&[0x5e, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), bytes].concat()
    }

    fn decode(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(blob, detect(blob).expect("known"))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn detects_by_bytes() {
        let cases: &[(&[u8], Result<Compression, &str>)] = &[
            (b"", Ok(Compression::Plain)),
            (b"a", Ok(Compression::Plain)),
            (b"\x1f\x8b\x08", Ok(Compression::Gzip)),
            (b"\x28\xb5\x2f\xfd", Ok(Compression::Zstd)),
            (b"\x50\x2a\x4d\x18", Ok(Compression::Zstd)),
            (b"\x5f\x2a\x4d\x18", Ok(Compression::Zstd)),
            (b"\xfd7zXZ\0", Err("xz")),
            (b"BZh91AY&SY", Err("bzip2")),
            (b"BZhello", Ok(Compression::Plain)),
            (b"\x04\x22\x4d\x18", Err("lz4")),
            (&[0; 1024], Ok(Compression::Plain)),
        ];
        for (start, expected) in cases {
            assert_eq!(detect(start), *expected, "{}", start.escape_ascii());
        }
        let mut tar = [0; 512];
        tar[..8].copy_from_slice(b"BZh91AY&");
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(detect(&tar), Ok(Compression::Plain));
    }

    #[test]
    fn decodes_members_and_frames_one_after_the_other() {
        let (a, b) = (b"first ".repeat(1000), b"second".repeat(1000));
        let both = [&a[..], &b].concat();
        let cases = [
            [gzip(&a), gzip(&b)].concat(),
            [gzip(&a), gzip(b""), gzip(&b)].concat(),
            [zstd(&a), zstd(&b)].concat(),
            [skippable(b"toc"), zstd(&a), skippable(b""), zstd(&b), skippable(b"toc"), skippable(b"toc")]
                .concat(),
            both.clone(),
        ];
        for (index, blob) in cases.iter().enumerate() {
            assert_eq!(decode(blob).expect("valid"), both, "case {index}");
        }
    }

    #[test]
    fn refuses_garbage_and_cuts() {
        for whole in [gzip(&b"text".repeat(5000)), zstd(&b"text".repeat(5000))] {
            assert!(decode(&[&whole[..], b"garbage"].concat()).is_err());
            assert!(decode(&[&whole[..], &[0; 512]].concat()).is_err());
            for cut in [whole.len() - 1, whole.len() - 4, whole.len() / 2, 12] {
                assert!(decode(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
            }
        }
    }

    #[test]
    fn windows_are_known_from_the_first_frame() {
        let frame = |log: u32, size: Option<u64>| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("encoder");
            encoder.window_log(log).expect("parameter");
            encoder.set_pledged_src_size(size).expect("parameter");
            encoder
                .write_all(&vec![b'x'; size.map_or(5000, |size| usize::try_from(size).expect("small"))])
                .expect("in memory");
            encoder.finish().expect("in memory")
        };
        for (log, expected) in [(10, 25), (23, 25), (25, 25), (26, 26), (27, 27)] {
            assert_eq!(window_log(&frame(log, None)), expected, "window 2^{log}");
        }
        for size in [0, 255, 256, 65_535, 65_536, 70_000, 40 << 20] {
            let expected = if size > 32 << 20 { 26 } else { 25 };
            assert_eq!(window_log(&frame(27, Some(size))), expected, "content of {size}");
        }
        assert_eq!(window_log(&skippable(b"toc")), 27);
        assert_eq!(window_log(b"\x28\xb5\x2f\xfd"), 27);
        // A later frame may not need more than the first, or than usual.
        assert!(decode(&[frame(10, None), frame(25, None)].concat()).is_ok());
        assert!(decode(&[frame(26, None), frame(26, None)].concat()).is_ok());
        assert!(decode(&[frame(10, None), frame(26, None)].concat()).is_err());
    }

    #[test]
    fn refuses_a_window_beyond_the_limit() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("encoder");
        encoder.window_log(28).expect("parameter");
        encoder.write_all(&b"text".repeat(5000)).expect("in memory");
        let blob = encoder.finish().expect("in memory");
        assert!(decode(&blob).is_err());
    }
}
