//! The entries of a layer, in the order of its tar, compressed.

use std::io::{BufReader, Read, Write};

use super::wire::{Input, Output};
use crate::convert::layer::tar::{Entry, EntryKind};

/// Fast: this runs in the thread that reads the tar.
const LEVEL: i32 = 1;

/// Collects entries while a layer is read.
pub(super) struct EntryWriter {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    record: Output,
}

impl std::fmt::Debug for EntryWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EntryWriter").finish_non_exhaustive()
    }
}

impl EntryWriter {
    pub(super) fn new() -> std::io::Result<EntryWriter> {
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
        Ok(EntryWriter { encoder, record: Output::default() })
    }

    pub(super) fn add(&mut self, entry: &Entry) -> std::io::Result<()> {
        let record = &mut self.record;
        record.0.clear();
        record.bytes(&entry.path);
        match &entry.kind {
            EntryKind::Directory => record.byte(b'd'),
            EntryKind::File { size, .. } => {
                record.byte(b'f');
                record.number(*size);
            }
            EntryKind::HardLink(target) => {
                record.byte(b'h');
                record.bytes(target);
            }
            EntryKind::Symlink(target) => {
                record.byte(b'l');
                record.bytes(target);
            }
            EntryKind::CharacterDevice(major, minor) => put_device(record, b'c', *major, *minor),
            EntryKind::BlockDevice(major, minor) => put_device(record, b'b', *major, *minor),
            EntryKind::Fifo => record.byte(b'p'),
        }
        for number in [u32::from(entry.mode), entry.uid, entry.gid, entry.mtime, entry.ignored_records] {
            record.number(u64::from(number));
        }
        record.number(entry.offset);
        for (name, value) in &entry.xattrs {
            record.bytes(name);
            record.bytes(value);
        }
        let mut length = Output::default();
        length.number(record.0.len() as u64);
        self.encoder.write_all(&length.0)?;
        self.encoder.write_all(&record.0)
    }

    pub(super) fn finish(self) -> std::io::Result<Vec<u8>> {
        self.encoder.finish()
    }
}

fn put_device(record: &mut Output, kind: u8, major: u32, minor: u32) {
    record.byte(kind);
    record.number(u64::from(major));
    record.number(u64::from(minor));
}

/// Gives entries back. Where a file's stored bytes belong is not among them: its data is not read from the tar.
pub(in crate::convert) struct EntryReader<'a> {
    decoder: BufReader<zstd::stream::read::Decoder<'static, &'a [u8]>>,
    record: Vec<u8>,
}

impl<'a> EntryReader<'a> {
    pub(super) fn new(compressed: &'a [u8]) -> Option<EntryReader<'a>> {
        let decoder = zstd::stream::read::Decoder::with_buffer(compressed).ok()?;
        Some(EntryReader { decoder: BufReader::with_capacity(64 << 10, decoder), record: Vec::new() })
    }

    /// The next entry, `None` if there is no sound one: the caller knows how many there are.
    pub(in crate::convert) fn next_entry(&mut self) -> Option<Entry> {
        let length = self.read_length()?;
        self.record.clear();
        let got = self.decoder.by_ref().take(length).read_to_end(&mut self.record).ok()?;
        if got as u64 != length {
            return None;
        }
        parse(Input(&self.record))
    }

    fn read_length(&mut self) -> Option<u64> {
        let mut bytes = [0; 10];
        for end in 1..=bytes.len() {
            self.decoder.read_exact(bytes.get_mut(end - 1..end)?).ok()?;
            let read = bytes.get(..end)?;
            if read.last()? & 0x80 == 0 {
                return Input(read).number();
            }
        }
        None
    }
}

fn parse(mut input: Input<'_>) -> Option<Entry> {
    let path = input.bytes()?.to_vec();
    let kind = match input.byte()? {
        b'd' => EntryKind::Directory,
        b'f' => EntryKind::File { size: input.number()?, segments: Vec::new() },
        b'h' => EntryKind::HardLink(input.bytes()?.to_vec()),
        b'l' => EntryKind::Symlink(input.bytes()?.to_vec()),
        b'c' => EntryKind::CharacterDevice(input.small()?, input.small()?),
        b'b' => EntryKind::BlockDevice(input.small()?, input.small()?),
        b'p' => EntryKind::Fifo,
        _ => return None,
    };
    let mode = input.small()?;
    let (uid, gid) = (input.small()?, input.small()?);
    let (mtime, ignored_records) = (input.small()?, input.small()?);
    let offset = input.number()?;
    let mut xattrs = Vec::new();
    while !input.is_empty() {
        xattrs.push((input.bytes()?.to_vec(), input.bytes()?.to_vec()));
    }
    Some(Entry { path, kind, mode, uid, gid, mtime, xattrs, ignored_records, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        Entry {
            path: path.to_vec(),
            kind,
            mode: 0o7755,
            uid: u32::MAX,
            gid: 1000,
            mtime: 1_700_000_000,
            xattrs: vec![(b"user.a".to_vec(), b"\0\xff".to_vec()), (b"user.b".to_vec(), Vec::new())],
            ignored_records: 2,
            offset: 1 << 40,
        }
    }

    fn samples() -> Vec<Entry> {
        let long = vec![b'x'; 5000];
        vec![
            entry(b"./a/\xff\n", EntryKind::Directory),
            entry(b"f", EntryKind::File { size: u64::MAX, segments: Vec::new() }),
            entry(b"", EntryKind::HardLink(b"target".to_vec())),
            entry(&long, EntryKind::Symlink(long.clone())),
            entry(b"c", EntryKind::CharacterDevice(4095, 1_048_575)),
            entry(b"b", EntryKind::BlockDevice(0, 0)),
            Entry { xattrs: Vec::new(), ..entry(b"p", EntryKind::Fifo) },
        ]
    }

    #[test]
    fn entries_come_back() {
        let mut writer = EntryWriter::new().unwrap();
        samples().iter().for_each(|entry| writer.add(entry).unwrap());
        let bytes = writer.finish().unwrap();
        let mut reader = EntryReader::new(&bytes).unwrap();
        for entry in samples() {
            assert_eq!(reader.next_entry(), Some(entry));
        }
        assert_eq!(reader.next_entry(), None);
    }

    #[test]
    fn any_byte_changed_or_missing_is_survived() {
        let mut writer = EntryWriter::new().unwrap();
        samples().iter().for_each(|entry| writer.add(entry).unwrap());
        let bytes = writer.finish().unwrap();
        let drain = |bytes: &[u8]| {
            let Some(mut reader) = EntryReader::new(bytes) else { return 0 };
            (0..100).take_while(|_| reader.next_entry().is_some()).count()
        };
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(drain(&changed) < 100);
            }
            assert!(drain(&bytes[..at]) <= samples().len());
        }
    }
}
