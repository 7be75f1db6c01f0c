//! A gzip stream undone: members one after the other, each a header, a deflate stream, and what it must add up to.
//!
//! Only the deflate stream is left to zlib-rs. Its CRC-32 takes a sixth of its time; that of libdeflate, which is linked
//! anyhow, next to none (docs/dependencies.md).

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Crc;

/// Longest header of a member, bytes: a file name and a comment of any sane length.
const HEADER_MAX: u32 = 64 << 10;

/// Bits of the header's flags (RFC 1952, 2.3.1).
const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// The content of all members of `blob`. Bytes after the last one are an error, as in Go.
pub(super) struct GzipReader<R> {
    blob: R,
    deflate: Decompress,
    inside: bool,
    /// Of the content of the member so far.
    crc: Crc,
    /// Bytes of the content so far, modulo 2^32.
    length: u32,
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(blob: R) -> GzipReader<R> {
        GzipReader { blob, deflate: Decompress::new(false), inside: false, crc: Crc::new(), length: 0 }
    }

    /// Reads the header of the next member; false at the end.
    fn begin_member(&mut self) -> io::Result<bool> {
        if self.blob.fill_buf()?.is_empty() {
            return Ok(false);
        }
        Header { blob: &mut self.blob, crc: Crc::new(), left: HEADER_MAX }.skip()?;
        self.deflate.reset(false);
        (self.inside, self.crc, self.length) = (true, Crc::new(), 0);
        Ok(true)
    }

    /// Inflates into `buffer`, which is not empty; gives how much, none only at the end of the member.
    fn inflate(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.blob.fill_buf()?;
            let is_cut = input.is_empty();
            let (taken, made) = (self.deflate.total_in(), self.deflate.total_out());
            let status = self.deflate.decompress(input, buffer, FlushDecompress::None);
            let status = status.map_err(|_| invalid("the deflate stream makes no sense"))?;
            let since = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            let (taken, made) =
                (since(self.deflate.total_in(), taken), since(self.deflate.total_out(), made));
            self.blob.consume(taken);
            let content = buffer.get(..made).unwrap_or_default();
            self.crc.update(content);
            self.length = self.length.wrapping_add(u32::try_from(made).unwrap_or(u32::MAX));
            if status == Status::StreamEnd {
                self.end_member()?;
                return Ok(made);
            }
            if made > 0 {
                return Ok(made);
            }
            if is_cut {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if taken == 0 {
                return Err(invalid("the deflate stream does not go on"));
            }
        }
    }

    /// Reads the trailer of the member and holds its content against it.
    fn end_member(&mut self) -> io::Result<()> {
        self.inside = false;
        let mut trailer = [0; 8];
        self.blob.read_exact(&mut trailer)?;
        let (crc, length) = (self.crc.sum().to_le_bytes(), self.length.to_le_bytes());
        match trailer.split_first_chunk::<4>() {
            Some((stated, _)) if *stated != crc => Err(invalid("the content has another CRC-32 than stated")),
            Some((_, stated)) if *stated != length => {
                Err(invalid("the content has another length than stated"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if !self.inside && !self.begin_member()? {
                break;
            }
            match self.inflate(buffer)? {
                0 => {}
                made => return Ok(made),
            }
        }
        Ok(0)
    }
}

/// The header of a member, read only to get past it.
struct Header<'a, R> {
    blob: &'a mut R,
    crc: Crc,
    /// Bytes that it may still have.
    left: u32,
}

impl<R: BufRead> Header<'_, R> {
    fn skip(&mut self) -> io::Result<()> {
        let [magic, magic_too, method, flags, ..] = self.bytes::<10>()?;
        if [magic, magic_too] != [0x1f, 0x8b] {
            return Err(invalid("what follows is no gzip member"));
        }
        if method != 8 || flags & RESERVED != 0 {
            return Err(invalid("the gzip header is of no known kind"));
        }
        if flags & EXTRA != 0 {
            let length = u16::from_le_bytes(self.bytes()?);
            for _ in 0..length {
                self.bytes::<1>()?;
            }
        }
        for text in [NAME, COMMENT] {
            while flags & text != 0 && self.bytes()? != [0] {}
        }
        if flags & HEADER_CRC != 0 {
            let [low, high, ..] = self.crc.sum().to_le_bytes();
            if self.bytes()? != [low, high] {
                return Err(invalid("the gzip header has another CRC than stated"));
            }
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let length = u32::try_from(N).unwrap_or(u32::MAX);
        self.left = self.left.checked_sub(length).ok_or_else(|| invalid("the gzip header is too long"))?;
        let mut bytes = [0; N];
        self.blob.read_exact(&mut bytes)?;
        self.crc.update(&bytes);
        Ok(bytes)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A member by hand: header with these flags and what belongs to them, content, trailer.
    fn member(flags: u8, after_header: &[u8], content: &[u8]) -> Vec<u8> {
        let header = [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255], after_header].concat();
        let mut encoder = flate2::write::DeflateEncoder::new(header, flate2::Compression::fast());
        encoder.write_all(content).expect("in memory");
        let mut member = encoder.finish().expect("in memory");
        let mut crc = Crc::new();
        crc.update(content);
        member.extend(crc.sum().to_le_bytes());
        member.extend(u32::try_from(content.len()).expect("short").to_le_bytes());
        member
    }

    /// Reads `blob` through buffers of these sizes on both sides.
    fn read(blob: &[u8], input: usize, output: usize) -> io::Result<Vec<u8>> {
        let mut reader = GzipReader::new(io::BufReader::with_capacity(input, blob));
        let (mut content, mut buffer) = (Vec::new(), vec![0; output]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(content),
                count => content.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| b"gzip of several members\n"[at * at / 7 % 24]).collect()
    }

    #[test]
    fn any_buffers_give_the_content_of_all_members() {
        let (one, two) = (text(70_000), text(3));
        let blob = [
            member(0, b"", &one),
            member(0, b"", b""),
            member(EXTRA | NAME | COMMENT, b"\x03\0abcname\0comment\0", &two),
        ]
        .concat();
        for input in [1, 2, 7, 100, 1 << 20] {
            for output in [1, 3, 1000, 32768, 1 << 20] {
                assert_eq!(read(&blob, input, output).expect("valid"), [&one[..], &two].concat());
            }
        }
    }

    #[test]
    fn every_byte_of_the_frame_counts() {
        let whole = member(0, b"", &text(5000));
        let end = whole.len();
        for at in [0, 1, 2, 3, end - 8, end - 5, end - 4, end - 1] {
            let mut broken = whole.clone();
            broken[at] ^= 0x80;
            assert!(read(&broken, 4096, 4096).is_err(), "byte {at} of {end}");
        }
        for cut in 1..end {
            assert!(read(&whole[..cut], 4096, 4096).is_err(), "cut at {cut}");
        }
        assert_eq!(read(b"", 1, 1).expect("no member at all"), b"");
    }

    #[test]
    fn the_header_has_its_own_checksum_and_an_end() {
        let mut crc = Crc::new();
        crc.update(&[0x1f, 0x8b, 8, HEADER_CRC, 0, 0, 0, 0, 0, 255]);
        let [low, high, ..] = crc.sum().to_le_bytes();
        assert_eq!(read(&member(HEADER_CRC, &[low, high], b"x"), 10, 10).expect("valid"), b"x");
        assert!(read(&member(HEADER_CRC, &[low, !high], b"x"), 10, 10).is_err());
        assert!(read(&member(NAME, &[b'n'; 100_000], b"x"), 10, 10).is_err());
        assert!(read(&member(RESERVED, b"", b"x"), 10, 10).is_err());
    }
}
