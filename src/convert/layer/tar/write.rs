//! Writes the headers of a tar that GNU tar, Python, Go and our own reader take for the same tree: POSIX ustar, and PAX
//! records for what does not fit into it.
//!
//! What comes out depends on the entry alone: no time, no user and no process number of whoever writes.

use super::entry::{Entry, EntryKind, Segment};

const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = 512;
/// Longest name and longest link target in a ustar header, bytes.
const NAME_MAX: usize = 100;
/// Largest owner in seven octal digits.
const ID_MAX: u32 = 0o777_7777;
/// Largest size in eleven octal digits.
const SIZE_MAX: u64 = 0o777_7777_7777;
/// Where the checksum lies.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// What ends a tar.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Bytes that fill data of `length` bytes up to whole blocks.
pub fn padding_of(length: u64) -> usize {
    let beyond = length % BLOCK_BYTES;
    usize::try_from((BLOCK_BYTES - beyond) % BLOCK_BYTES).unwrap_or_default()
}

/// All that comes before the data of `entry`: its header, before it the PAX header if it needs one, and for a file with
/// holes the map of its segments. The data of the segments must follow, then [`padding_of`] their length together with
/// the map's.
///
/// [`Entry::ignored_records`] and [`Entry::offset`] have no place in a tar. Extended attributes whose value is empty, or
/// whose name has a `=`, cannot be written: see [`can_hold_xattr`](super::can_hold_xattr).
pub fn encode_header(entry: &Entry) -> Vec<u8> {
    let data = Data::of(&entry.kind);
    let mut records = Vec::new();
    let path = match &data {
        Data::Sparse { size, .. } => {
            for (key, value) in [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")] {
                push_record(&mut records, key.as_bytes(), value.as_bytes());
            }
            push_record(&mut records, b"GNU.sparse.name", &entry.path);
            push_record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
            // What readers without an idea of sparse files make of it must not look like the file.
            [b"GNUSparseFile.0/", last_component(&entry.path)].concat()
        }
        _ => entry.path.clone(),
    };
    if path.len() > NAME_MAX {
        push_record(&mut records, b"path", &path);
    }
    let (type_flag, target, device) = head(&entry.kind);
    if target.len() > NAME_MAX {
        push_record(&mut records, b"linkpath", target);
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > ID_MAX {
            push_record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    let stored = data.stored();
    if stored > SIZE_MAX {
        push_record(&mut records, b"size", stored.to_string().as_bytes());
    }
    for (name, value) in entry.xattrs.iter().filter(|(name, value)| can_hold_xattr(name, value)) {
        push_record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    let mut out = Vec::new();
    if !records.is_empty() {
        let name = [b"PaxHeaders/", last_component(&entry.path)].concat();
        let head =
            Head { name: &name, type_flag: b'x', mode: 0o644, size: records.len() as u64, ..Head::default() };
        out.extend_from_slice(&head.block());
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let head = Head {
        name: &path,
        type_flag,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: stored,
        mtime: entry.mtime,
        target,
        device,
    };
    out.extend_from_slice(&head.block());
    if let Data::Sparse { map, .. } = data {
        out.extend_from_slice(&map);
    }
    out
}

/// Whether a PAX record can hold the attribute: an empty value would take it back, and `=` ends the key.
pub fn can_hold_xattr(name: &[u8], value: &[u8]) -> bool {
    !value.is_empty() && !name.contains(&b'=') && !name.contains(&0)
}

/// The data that follows a header.
enum Data {
    None,
    Whole(u64),
    Sparse {
        /// Length of the file, bytes.
        size: u64,
        /// The map, in whole blocks.
        map: Vec<u8>,
        /// Bytes of the segments.
        stored: u64,
    },
}

impl Data {
    fn of(kind: &EntryKind) -> Data {
        let EntryKind::File { size, segments } = kind else { return Data::None };
        match segments.as_slice() {
            [] if *size == 0 => Data::Whole(0),
            [Segment { offset: 0, length }] if length == size => Data::Whole(*size),
            segments => {
                let numbers = segments.iter().flat_map(|segment| [segment.offset, segment.length]);
                let lines = [segments.len() as u64].into_iter().chain(numbers);
                let mut map: Vec<u8> = lines.flat_map(|number| format!("{number}\n").into_bytes()).collect();
                map.resize(map.len().next_multiple_of(BLOCK), 0);
                let stored = segments.iter().fold(0u64, |sum, segment| sum.saturating_add(segment.length));
                Data::Sparse { size: *size, map, stored }
            }
        }
    }

    /// Bytes between the header and the padding.
    fn stored(&self) -> u64 {
        match self {
            Data::None => 0,
            Data::Whole(size) => *size,
            Data::Sparse { map, stored, .. } => stored.saturating_add(map.len() as u64),
        }
    }
}

/// Type flag, link target, device number.
fn head(kind: &EntryKind) -> (u8, &[u8], (u32, u32)) {
    match kind {
        EntryKind::File { .. } => (b'0', b"", (0, 0)),
        EntryKind::HardLink(target) => (b'1', target, (0, 0)),
        EntryKind::Symlink(target) => (b'2', target, (0, 0)),
        EntryKind::CharacterDevice(major, minor) => (b'3', b"", (*major, *minor)),
        EntryKind::BlockDevice(major, minor) => (b'4', b"", (*major, *minor)),
        EntryKind::Directory => (b'5', b"", (0, 0)),
        EntryKind::Fifo => (b'6', b"", (0, 0)),
    }
}

fn last_component(path: &[u8]) -> &[u8] {
    let name = path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()).unwrap_or_default();
    // Room for the directory before it.
    name.get(..name.len().min(80)).unwrap_or_default()
}

/// Appends `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The fields of a ustar header. What is too large for one is cut: the PAX record before it says it in full.
#[derive(Default)]
struct Head<'a> {
    name: &'a [u8],
    type_flag: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: u32,
    target: &'a [u8],
    device: (u32, u32),
}

impl Head<'_> {
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, room: usize, bytes: &[u8]| {
            let bytes = bytes.get(..bytes.len().min(room)).unwrap_or_default();
            if let Some(field) = block.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        let id = |id: u32| if id > ID_MAX { 0 } else { u64::from(id) };
        put(0, NAME_MAX, self.name);
        put(100, 8, &octal(u64::from(self.mode), 7));
        put(108, 8, &octal(id(self.uid), 7));
        put(116, 8, &octal(id(self.gid), 7));
        put(124, 12, &octal(if self.size > SIZE_MAX { 0 } else { self.size }, 11));
        put(136, 12, &octal(u64::from(self.mtime), 11));
        put(CHECKSUM.start, 8, b"        ");
        put(156, 1, &[self.type_flag]);
        put(157, NAME_MAX, self.target);
        put(257, 8, b"ustar\x0000");
        if matches!(self.type_flag, b'3' | b'4') {
            put(329, 8, &octal(u64::from(self.device.0), 7));
            put(337, 8, &octal(u64::from(self.device.1), 7));
        }
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        if let Some(field) = block.get_mut(CHECKSUM) {
            let digits = octal(sum, 6);
            for (to, from) in field.iter_mut().zip(digits.iter().chain(b" ")) {
                *to = *from;
            }
        }
        block
    }
}

/// `number` in octal digits with a NUL behind them.
fn octal(number: u64, digits: usize) -> Vec<u8> {
    format!("{number:0digits$o}\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::Reader;
    use super::*;
    use crate::convert::budget::Budget;

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        let meta = (0o4755, 1000, 2_000_000, 1_700_000_000);
        Entry {
            path: path.to_vec(),
            kind,
            mode: meta.0,
            uid: meta.1,
            gid: meta.2,
            mtime: meta.3,
            xattrs: Vec::new(),
            ignored_records: 0,
            offset: 0,
        }
    }

    fn file(size: u64, segments: &[(u64, u64)]) -> EntryKind {
        let segments = segments.iter().map(|(offset, length)| Segment { offset: *offset, length: *length });
        EntryKind::File { size, segments: segments.collect() }
    }

    /// The entry as our own reader has it.
    #[track_caller]
    fn check(written: &Entry) {
        let mut tar = encode_header(written);
        let stored = match &written.kind {
            EntryKind::File { segments, .. } => segments.iter().map(|segment| segment.length).sum(),
            _ => 0,
        };
        assert!(tar.len().is_multiple_of(BLOCK));
        tar.resize(tar.len() + usize::try_from(stored).unwrap_or(0) + padding_of(stored), 7);
        tar.extend_from_slice(&END);
        let mut reader = Reader::new(tar.as_slice(), Budget::default());
        let mut read = reader.next_entry().expect("readable").expect("an entry");
        assert_eq!(read.offset, 0);
        read.offset = written.offset;
        assert_eq!(read, *written);
        assert_eq!(reader.next_entry().expect("readable"), None);
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let long = [&b"long/".repeat(60)[..], b"name"].concat();
        let kinds = [
            EntryKind::Directory,
            file(0, &[]),
            file(1, &[(0, 1)]),
            file(512, &[(0, 512)]),
            file(100_000, &[]),
            file(100_000, &[(512, 512), (99_000, 1000)]),
            file(1 << 40, &[(0, 3), (1 << 39, 700)]),
            EntryKind::HardLink(b"a".to_vec()),
            EntryKind::HardLink(long.clone()),
            EntryKind::Symlink(b"../x".to_vec()),
            EntryKind::Symlink(b"x".repeat(100)),
            EntryKind::Symlink(b"x".repeat(101)),
            EntryKind::Symlink(vec![0xff; 4095]),
            EntryKind::CharacterDevice(4095, (1 << 20) - 1),
            EntryKind::BlockDevice(8, 1),
            EntryKind::Fifo,
        ];
        for kind in &kinds {
            for path in [&b"a"[..], b"dir/caf\xc3\xa9 \xff\n", &long, &b"x".repeat(100), &b"x".repeat(101)] {
                check(&entry(path, kind.clone()));
            }
        }
    }

    #[test]
    fn owners_times_and_attributes() {
        for id in [0, ID_MAX, ID_MAX + 1, u32::MAX] {
            for mtime in [0, u32::MAX] {
                check(&Entry { uid: id, gid: id, mtime, ..entry(b"a", EntryKind::Directory) });
            }
        }
        for mode in [0, 0o7777] {
            check(&Entry { mode, ..entry(b"a", EntryKind::Fifo) });
        }
        let value: Vec<u8> = (0..=255).collect();
        for length in [1, 70, 71, 72, 970, 971, 972, 60_000] {
            let xattrs = vec![
                (b"security.capability".to_vec(), value.clone()),
                (b"user.x\xff".to_vec(), vec![b'\n'; length]),
            ];
            check(&Entry { xattrs, ..entry(b"a", file(3, &[(0, 3)])) });
        }
    }

    #[test]
    fn large_files_get_a_size_record() {
        for size in [SIZE_MAX, SIZE_MAX + 1, 1 << 39] {
            let tar = encode_header(&entry(b"a", file(size, &[(0, size)])));
            let mut reader = Reader::new(tar.as_slice(), Budget::default());
            let read = reader.next_entry().expect("readable").expect("an entry");
            assert_eq!(read.kind, file(size, &[(0, size)]));
        }
    }

    #[test]
    fn what_no_record_can_hold_is_left_out() {
        assert!(can_hold_xattr(b"user.a", b"1"));
        let xattrs = vec![(b"user.empty".to_vec(), Vec::new()), (b"user.a=b".to_vec(), b"1".to_vec())];
        for (name, value) in &xattrs {
            assert!(!can_hold_xattr(name, value));
        }
        let tar = encode_header(&Entry { xattrs, ..entry(b"a", EntryKind::Fifo) });
        assert_eq!(tar.len(), BLOCK);
    }
}
