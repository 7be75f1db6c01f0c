//! LZO1X decompression, for images of tools that still pack with it (podman-hpc, older firmware tools). Nothing here
//! writes LZO.
//!
//! The stream as the kernel's `Documentation/staging/lzo.rst` describes it: instructions that copy from the output
//! produced so far, each followed by up to three literals, and runs of literals.

/// The distance at which the last instruction ends the stream.
const END_DISTANCE: usize = 16_384;
/// What may come after literals in a run: another meaning of the instructions below 16.
const AFTER_RUN: usize = 4;

/// Decompresses all of `input` into the start of `output`; gives the number of bytes written.
pub(super) fn decompress(input: &[u8], output: &mut [u8]) -> Result<usize, &'static str> {
    let mut stream = Stream { input, output, written: 0 };
    // How many literals came last, 0 to 3, or `AFTER_RUN`.
    let mut state = 0;
    if let Some(length) = input.first().and_then(|first| first.checked_sub(17)).filter(|length| *length > 0) {
        stream.byte()?;
        stream.literals(length.into())?;
        state = usize::from(length).min(AFTER_RUN);
    }
    loop {
        let instruction = usize::from(stream.byte()?);
        if instruction < 16 && state == 0 {
            let length = stream.length(instruction, 15)? + 3;
            stream.literals(length)?;
            state = AFTER_RUN;
            continue;
        }
        let (distance, length, literals) = match instruction {
            64.. => {
                let distance = usize::from(stream.byte()?) << 3 | (instruction >> 2 & 7);
                (distance + 1, (instruction >> 5) + 1, instruction & 3)
            }
            32..64 => {
                let length = stream.length(instruction & 31, 31)? + 2;
                let word = stream.word()?;
                ((word >> 2) + 1, length, word & 3)
            }
            16..32 => {
                let length = stream.length(instruction & 7, 7)? + 2;
                let word = stream.word()?;
                let distance = END_DISTANCE + ((instruction & 8) << 11) + (word >> 2);
                if distance == END_DISTANCE {
                    return stream.end();
                }
                (distance, length, word & 3)
            }
            _ => {
                let near = usize::from(stream.byte()?) << 2 | instruction >> 2;
                let (offset, length) = if state == AFTER_RUN { (2049, 3) } else { (1, 2) };
                (near + offset, length, instruction & 3)
            }
        };
        stream.copy(distance, length)?;
        stream.literals(literals)?;
        state = literals;
    }
}

struct Stream<'a> {
    input: &'a [u8],
    output: &'a mut [u8],
    written: usize,
}

const CUT: &str = "the input is cut short";
const LONG: &str = "the output is longer than its block";

impl Stream<'_> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (first, rest) = self.input.split_first().ok_or(CUT)?;
        self.input = rest;
        Ok(*first)
    }

    fn word(&mut self) -> Result<usize, &'static str> {
        let (first, rest) = self.input.split_first_chunk().ok_or(CUT)?;
        self.input = rest;
        Ok(u16::from_le_bytes(*first).into())
    }

    /// A length in the bits of an instruction; 0 there means that it goes on in bytes of 255 each, written as 0.
    fn length(&mut self, bits: usize, base: usize) -> Result<usize, &'static str> {
        if bits != 0 {
            return Ok(bits);
        }
        let mut length = base;
        loop {
            match self.byte()? {
                // Bounded by the input, a block at most.
                0 => length += 255,
                last => return Ok(length + usize::from(last)),
            }
        }
    }

    fn literals(&mut self, length: usize) -> Result<(), &'static str> {
        let (from, rest) = self.input.split_at_checked(length).ok_or(CUT)?;
        let to = self.output.get_mut(self.written..).and_then(|room| room.get_mut(..length)).ok_or(LONG)?;
        to.copy_from_slice(from);
        self.input = rest;
        self.written += length;
        Ok(())
    }

    /// Repeats what was written `distance` bytes ago. The copy may overlap itself: then it repeats a pattern.
    fn copy(&mut self, distance: usize, length: usize) -> Result<(), &'static str> {
        let start = self.written.checked_sub(distance).ok_or("a distance leads out of the block")?;
        let end = self.written + length;
        if end > self.output.len() {
            return Err(LONG);
        }
        while self.written < end {
            let available = self.written - start;
            let count = available.min(end - self.written);
            self.output.copy_within(start..start + count, self.written);
            self.written += count;
        }
        Ok(())
    }

    fn end(&self) -> Result<usize, &'static str> {
        if self.input.is_empty() { Ok(self.written) } else { Err("bytes follow the end of the stream") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(input: &[u8], room: usize) -> Result<Vec<u8>, &'static str> {
        let mut output = vec![0; room];
        let length = decompress(input, &mut output)?;
        output.truncate(length);
        Ok(output)
    }

    const END: [u8; 3] = [17, 0, 0];

    /// Each instruction once, put together by hand; whole images of mksquashfs are in `tests/it/foreign_images.rs`.
    #[test]
    fn every_instruction() {
        let far: Vec<u8> = (0..20_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        // A run of 20,000 literals: 18 + 78 * 255 + 92.
        let run = [&[0][..], &[0; 78], &[92], &far].concat();
        for (stream, expected) in [
            (vec![], &b""[..]),
            (vec![20, b'a', b'b', b'c'], b"abc"),
            (vec![2, b'a', b'b', b'c', b'd', b'e'], b"abcde"),
            // 64..: 3 bytes from 3 back, then one literal.
            (vec![20, b'a', b'b', b'c', 64 | 2 << 2 | 1, 0, b'!'], b"abcabc!"),
            // 128..: 8 bytes from 1 back.
            (vec![18, b'x', 0xe0, 0], b"xxxxxxxxx"),
            // 32..: 4 bytes from 2 back; and 33 + 2.
            (vec![19, b'a', b'b', 34, 1 << 2, 0], b"ababab"),
            (vec![19, b'a', b'b', 32, 2, 1 << 2, 0], b"ababababababababababababababababababa"),
            // After one literal, an instruction below 16: 2 bytes from 1 back.
            (vec![18, b'z', 0, 0], b"zzz"),
        ] {
            assert_eq!(unpack(&[&stream[..], &END].concat(), 100).as_deref(), Ok(expected), "{stream:?}");
        }
        // 16..32: 3 bytes from 16,384 + 1 back. After a run, an instruction below 16: 3 bytes from 2,049 back.
        let stream = [&run[..], &[17, 1 << 2, 0], &END].concat();
        let at = 20_000 - 16_385;
        assert!(unpack(&stream, 30_000).unwrap() == [&far[..], &far[at..at + 3]].concat());
        let stream = [&run[..], &[0, 0], &END].concat();
        let at = 20_000 - 2_049;
        assert!(unpack(&stream, 30_000).unwrap() == [&far[..], &far[at..at + 3]].concat());
    }

    #[test]
    fn lies_are_refused() {
        let good = [&[19, b'a', b'b', 34, 1 << 2, 0][..], &END].concat();
        for cut in 0..good.len() {
            assert!(unpack(&good[..cut], 100).is_err(), "{cut}");
        }
        for room in 0..6 {
            assert_eq!(unpack(&good, room), Err(LONG), "{room}");
        }
        assert_eq!(unpack(&[&good[..], &[0]].concat(), 100), Err("bytes follow the end of the stream"));
        assert_eq!(unpack(&[18, b'a', 0xe0, 1, 17, 0, 0], 100), Err("a distance leads out of the block"));
    }

    #[test]
    fn noise_ends_within_its_block() {
        let mut state = 1_u64;
        let mut output = [0; 4096];
        for _ in 0..50_000 {
            let mut noise = [0; 40];
            for byte in &mut noise {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
            if let Ok(length) = decompress(&noise, &mut output) {
                assert!(length <= output.len());
            }
        }
    }
}
