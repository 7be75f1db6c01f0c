//! The FUSE wire format: requests from bytes, replies into bytes.
//!
//! All integers are in the machine's byte order. Source: Linux `include/uapi/linux/fuse.h`. What a kernel can do is
//! decided by the flags of its INIT, never by a version: vendors back-port.

/// Protocol version 7: the only one since 2005.
pub(super) const MAJOR: u32 = 7;
/// The minor version whose structures are used here; kernels since 4.18 (7.27) understand the replies.
pub(super) const MINOR: u32 = 38;
/// Node id of the root.
pub(super) const ROOT_ID: u64 = 1;
/// Bytes before the arguments of a request.
pub(super) const REQUEST_HEADER_BYTES: usize = 40;

/// Set in `unique` of a request that the kernel sends again after `FUSE_NOTIFY_RESEND`.
pub(super) const UNIQUE_RESEND: u64 = 1 << 63;
/// Notification code: content for the page cache.
const NOTIFY_STORE: i32 = 4;
/// Notification code: send again what is in flight.
pub(super) const NOTIFY_RESEND: i32 = 7;
/// Seconds for which names and attributes hold: an image never changes.
const FOREVER: u64 = i32::MAX as u64;
/// `d_ino` of an entry whose inode number is not known.
pub(super) const UNKNOWN_INODE: u64 = 0xffff_ffff;

/// INIT flags, bits 32 to 63 being `flags2`.
pub(super) mod init {
    pub(in super::super) const ASYNC_READ: u64 = 1 << 0;
    pub(in super::super) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in super::super) const ASYNC_DIO: u64 = 1 << 15;
    pub(in super::super) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(in super::super) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in super::super) const MAX_PAGES: u64 = 1 << 22;
    pub(in super::super) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in super::super) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(in super::super) const INIT_EXT: u64 = 1 << 30;
    pub(in super::super) const HAS_RESEND: u64 = 1 << 39;

    /// What the server asks for where the kernel offers it.
    pub(in super::super) const WANTED: u64 = ASYNC_READ
        | DO_READDIRPLUS
        | ASYNC_DIO
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | INIT_EXT
        | HAS_RESEND;
}

/// Flags of an OPEN or OPENDIR reply: keep the page cache, cache the listing.
const OPEN_KEEP_CACHE: u32 = 1 << 1;
const OPEN_CACHE_DIR: u32 = 1 << 3;

/// A request's number and what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Number to answer with.
    pub(super) unique: u64,
    /// Node id.
    pub(super) node: u64,
    /// The thread that asks, in the process namespace of who mounted; 0 if it is not seen from there.
    pub(super) asker: u32,
}

/// What the kernel wants, with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Init(Init),
    Lookup {
        name: &'a [u8],
    },
    GetAttr,
    ReadLink,
    Open,
    OpenDir,
    Read {
        offset: u64,
        size: u32,
    },
    /// With attributes where `plus`.
    ReadDir {
        offset: u64,
        size: u32,
        plus: bool,
    },
    StatFs,
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    /// RELEASE, RELEASEDIR, DESTROY: nothing to do, the kernel waits for the reply.
    Done,
    /// FORGET, BATCH_FORGET, INTERRUPT: the kernel waits for no reply. Nodes have no state to forget, and a request
    /// is never interrupted: an answer of EINTR to a page fault would kill the job with SIGBUS.
    Silent,
    /// Would change the file system.
    Change,
    /// Anything else: the kernel then stops asking or falls back to its own way.
    Unsupported,
}

/// What the kernel says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Init {
    /// Protocol version.
    pub(super) major: u32,
    /// Largest read-ahead, bytes.
    pub(super) max_readahead: u32,
    /// See [`init`].
    pub(super) flags: u64,
}

/// Reads integers off the front of a request.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*field))
    }

    fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*field))
    }

    /// Bytes up to a NUL, which must be there.
    fn name(&self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        self.0.get(..end)
    }
}

/// Splits a request into header and operation. `None` if there is no whole header; an operation whose arguments are
/// short is [`Operation::Unsupported`].
pub(super) fn parse(request: &[u8]) -> Option<(Header, Operation<'_>)> {
    let mut fields = Fields(request);
    let _length = fields.u32()?;
    let opcode = fields.u32()?;
    let (unique, node) = (fields.u64()?, fields.u64()?);
    let (_uid, _gid) = (fields.u32()?, fields.u32()?);
    let header = Header { unique, node, asker: fields.u32()? };
    let arguments = request.get(REQUEST_HEADER_BYTES..)?;
    Some((header, parse_operation(opcode, arguments).unwrap_or(Operation::Unsupported)))
}

fn parse_operation(opcode: u32, arguments: &[u8]) -> Option<Operation<'_>> {
    let mut fields = Fields(arguments);
    Some(match opcode {
        1 => Operation::Lookup { name: fields.name()? },
        2 | 36 | 42 => Operation::Silent,
        3 => Operation::GetAttr,
        5 => Operation::ReadLink,
        // SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK WRITE SETXATTR REMOVEXATTR CREATE FALLOCATE RENAME2
        // COPY_FILE_RANGE TMPFILE
        4 | 6 | 8..=13 | 16 | 21 | 24 | 35 | 43 | 45 | 47 | 51 => Operation::Change,
        14 => Operation::Open,
        15 => {
            let (offset, size) = parse_range(&mut fields)?;
            Operation::Read { offset, size }
        }
        17 => Operation::StatFs,
        18 | 29 | 38 => Operation::Done,
        22 => {
            let size = fields.u32()?;
            fields.u32()?;
            Operation::GetXattr { name: fields.name()?, size }
        }
        23 => Operation::ListXattr { size: fields.u32()? },
        26 => Operation::Init(parse_init(&mut fields)?),
        27 => Operation::OpenDir,
        28 | 44 => {
            let (offset, size) = parse_range(&mut fields)?;
            Operation::ReadDir { offset, size, plus: opcode == 44 }
        }
        _ => Operation::Unsupported,
    })
}

/// `offset` and `size` of `fuse_read_in`, after the file handle.
fn parse_range(fields: &mut Fields<'_>) -> Option<(u64, u32)> {
    fields.u64()?;
    Some((fields.u64()?, fields.u32()?))
}

fn parse_init(fields: &mut Fields<'_>) -> Option<Init> {
    let (major, _minor) = (fields.u32()?, fields.u32()?);
    let max_readahead = fields.u32()?;
    let low = u64::from(fields.u32()?);
    // Kernels before 5.17 send no flags2 and do not set INIT_EXT.
    let high = if low & init::INIT_EXT == 0 { 0 } else { u64::from(fields.u32().unwrap_or(0)) };
    Some(Init { major, max_readahead, flags: high << 32 | low })
}

/// A node's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    /// `st_ino`.
    pub(super) number: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Seconds since the epoch, for all three times.
    pub(super) mtime: u64,
    /// File type and permission bits.
    pub(super) mode: u32,
    /// Hard links.
    pub(super) nlink: u32,
    /// Owner.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
    /// Device number, major and minor.
    pub(super) device: (u32, u32),
}

/// Starts every reply: its whole length is filled in by [`finish_header`].
pub(super) fn put_header(out: &mut Vec<u8>, error: i32, unique: u64) {
    put_u32s(out, &[0]);
    out.extend(error.to_ne_bytes());
    put_u64s(out, &[unique]);
}

/// Writes the length of the whole message, `out` and what follows it, into the header at the front of `out`.
pub(super) fn finish_header(out: &mut [u8], following: usize) {
    let length = u32::try_from(out.len().saturating_add(following)).unwrap_or(u32::MAX);
    if let Some(field) = out.first_chunk_mut::<4>() {
        *field = length.to_ne_bytes();
    }
}

/// The reply to INIT.
pub(super) fn put_init(out: &mut Vec<u8>, kernel: &Init, accepted: u64) {
    let [low, high] = halves(accepted);
    // max_readahead: what the kernel offers is all it grants. max_background 64 and congestion threshold 48: one
    // reader's read-ahead never fills them. max_write 4096 is the least, so that a request fits its buffer.
    // time_gran 1 s as squashfs has it. max_pages 256: reads of 1 MiB.
    put_u32s(out, &[MAJOR, MINOR, kernel.max_readahead, low]);
    put_u16s(out, &[64, 48]);
    put_u32s(out, &[4096, 1_000_000_000]);
    put_u16s(out, &[256, 0]);
    put_u32s(out, &[high, 0, 0, 0, 0, 0, 0, 0]);
}

/// `fuse_entry_out`: the node that a name leads to.
pub(super) fn put_entry(out: &mut Vec<u8>, node: u64, attributes: &Attributes) {
    put_u64s(out, &[node, 0, FOREVER, FOREVER, 0]);
    put_attributes(out, attributes);
}

/// `fuse_entry_out` of a name that does not exist, and never will.
pub(super) fn put_negative_entry(out: &mut Vec<u8>) {
    put_u64s(out, &[0, 0, FOREVER, FOREVER, 0]);
    out.resize(out.len() + ATTRIBUTE_BYTES, 0);
}

/// `fuse_attr_out`.
pub(super) fn put_attributes_reply(out: &mut Vec<u8>, attributes: &Attributes) {
    put_u64s(out, &[FOREVER, 0]);
    put_attributes(out, attributes);
}

/// Bytes of `fuse_attr`.
const ATTRIBUTE_BYTES: usize = 88;
/// Bytes of `fuse_entry_out`.
const ENTRY_BYTES: usize = 40 + ATTRIBUTE_BYTES;

/// `st_blksize` of directories with longer listings: C libraries make their buffers as large, and the kernel asks for as
/// much at a time.
const LISTING_BLOCK_BYTES: u32 = 256 << 10;

fn put_attributes(out: &mut Vec<u8>, attributes: &Attributes) {
    let Attributes { number, size, mtime, mode, nlink, uid, gid, device } = *attributes;
    put_u64s(out, &[number, size, size.div_ceil(512), mtime, mtime, mtime]);
    let is_long_listing = mode & libc::S_IFMT == libc::S_IFDIR && size > u64::from(LISTING_BLOCK_BYTES);
    // 0 lets the kernel report a page, as ordinary file systems do.
    let block_size = if is_long_listing { LISTING_BLOCK_BYTES } else { 0 };
    // No nanoseconds.
    put_u32s(out, &[0, 0, 0, mode, nlink, uid, gid, encode_device(device), block_size, 0]);
}

/// The kernel's `new_encode_dev`: 12 bits of major, 20 of minor.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// `fuse_open_out` without a file handle.
pub(super) fn put_open(out: &mut Vec<u8>, directory: bool) {
    let flags = if directory { OPEN_KEEP_CACHE | OPEN_CACHE_DIR } else { OPEN_KEEP_CACHE };
    put_u64s(out, &[0]);
    put_u32s(out, &[flags, 0]);
}

/// What statfs tells of an image: blocks, their size in bytes, inodes.
pub(super) fn put_statfs(out: &mut Vec<u8>, blocks: u64, block_size: u32, inodes: u64) {
    put_u64s(out, &[blocks, 0, 0, inodes, 0]);
    put_u32s(out, &[block_size, 256, block_size, 0, 0, 0, 0, 0, 0, 0]);
}

/// A whole `FUSE_NOTIFY_STORE` but for the content, `length` bytes of `node` from `offset`, that goes behind it.
pub(super) fn put_store(out: &mut Vec<u8>, node: u64, offset: u64, length: usize) {
    put_header(out, NOTIFY_STORE, 0);
    put_u64s(out, &[node, offset]);
    put_u32s(out, &[u32::try_from(length).unwrap_or(u32::MAX), 0]);
    finish_header(out, length);
}

/// `fuse_getxattr_out`: how long the value or list is.
pub(super) fn put_xattr_size(out: &mut Vec<u8>, size: u32) {
    put_u32s(out, &[size, 0]);
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListedEntry<'a> {
    /// Its name.
    pub(super) name: &'a [u8],
    /// `d_ino`.
    pub(super) number: u64,
    /// `d_off`: where to go on after this entry.
    pub(super) next: u64,
    /// `d_type`.
    pub(super) entry_type: u32,
}

/// Appends an entry if `out` stays within `limit` bytes; says whether it did. With `plus`, the node id and attributes
/// go along; `Some(None)` leaves them out for this entry, which the kernel then looks up when it needs it.
pub(super) fn put_listed(
    out: &mut Vec<u8>,
    limit: usize,
    entry: &ListedEntry<'_>,
    plus: Option<Option<(u64, Attributes)>>,
) -> bool {
    let fixed = if plus.is_some() { ENTRY_BYTES + 24 } else { 24 };
    let end = (out.len() + fixed + entry.name.len()).next_multiple_of(8);
    if end > limit {
        return false;
    }
    match &plus {
        Some(Some((node, attributes))) => put_entry(out, *node, attributes),
        Some(None) => out.resize(out.len() + ENTRY_BYTES, 0),
        None => {}
    }
    let name_length = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
    put_u64s(out, &[entry.number, entry.next]);
    put_u32s(out, &[name_length, entry.entry_type]);
    out.extend_from_slice(entry.name);
    out.resize(out.len().next_multiple_of(8), 0);
    true
}

fn halves(flags: u64) -> [u32; 2] {
    [(flags & 0xffff_ffff) as u32, (flags >> 32) as u32]
}

fn put_u16s(out: &mut Vec<u8>, fields: &[u16]) {
    fields.iter().for_each(|field| out.extend(field.to_ne_bytes()));
}

fn put_u32s(out: &mut Vec<u8>, fields: &[u32]) {
    fields.iter().for_each(|field| out.extend(field.to_ne_bytes()));
}

fn put_u64s(out: &mut Vec<u8>, fields: &[u64]) {
    fields.iter().for_each(|field| out.extend(field.to_ne_bytes()));
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests {
    use super::*;

    fn request(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_u32s(&mut bytes, &[(REQUEST_HEADER_BYTES + arguments.len()) as u32, opcode]);
        put_u64s(&mut bytes, &[11, 22]);
        put_u32s(&mut bytes, &[1000, 1000, 33, 0]);
        bytes.extend_from_slice(arguments);
        bytes
    }

    fn u64s(fields: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_u64s(&mut bytes, fields);
        bytes
    }

    #[track_caller]
    fn check(opcode: u32, arguments: &[u8], expected: Operation<'_>) {
        let bytes = request(opcode, arguments);
        assert_eq!(
            parse(&bytes),
            Some((Header { unique: 11, node: 22, asker: 33 }, expected)),
            "opcode {opcode}"
        );
    }

    #[test]
    fn requests_parse() {
        check(1, b"name\0", Operation::Lookup { name: b"name" });
        check(1, b"\0", Operation::Lookup { name: b"" });
        check(2, &u64s(&[1]), Operation::Silent);
        check(3, &u64s(&[0, 0]), Operation::GetAttr);
        check(5, b"", Operation::ReadLink);
        check(14, &u64s(&[0]), Operation::Open);
        check(15, &u64s(&[0, 4096, 131072, 0, 0]), Operation::Read { offset: 4096, size: 131072 });
        check(17, b"", Operation::StatFs);
        check(18, &u64s(&[0; 3]), Operation::Done);
        check(22, b"\x10\0\0\0\0\0\0\0user.x\0", get_xattr(b"user.x", 16));
        check(23, &u64s(&[7]), Operation::ListXattr { size: 7 });
        check(27, &u64s(&[0]), Operation::OpenDir);
        check(28, &u64s(&[0, 5, 99]), Operation::ReadDir { offset: 5, size: 99, plus: false });
        check(44, &u64s(&[0, 5, 99]), Operation::ReadDir { offset: 5, size: 99, plus: true });
        check(36, &u64s(&[3]), Operation::Silent);
        check(38, b"", Operation::Done);
        for change in [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51] {
            check(change, b"", Operation::Change);
        }
        for unsupported in [0, 7, 19, 20, 25, 30, 31, 34, 37, 39, 40, 46, 48, 50, 52, 4096, u32::MAX] {
            check(unsupported, b"", Operation::Unsupported);
        }
    }

    fn get_xattr(name: &[u8], size: u32) -> Operation<'_> {
        Operation::GetXattr { name, size }
    }

    #[test]
    fn short_requests_are_refused() {
        for length in 0..REQUEST_HEADER_BYTES {
            assert_eq!(parse(&request(3, b"")[..length]), None);
        }
        check(1, b"unterminated", Operation::Unsupported);
        check(15, &[0; 19], Operation::Unsupported);
        check(22, &[0; 8], Operation::Unsupported);
        check(26, &[0; 15], Operation::Unsupported);
        check(44, &[0; 3], Operation::Unsupported);
    }

    #[test]
    fn init_flags_have_a_second_half_only_where_announced() {
        let init = |low: u64, high: u32| {
            let mut bytes = Vec::new();
            put_u32s(&mut bytes, &[7, 40, 131072, low as u32, high]);
            match parse_operation(26, &bytes) {
                Some(Operation::Init(init)) => init.flags,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(init(init::INIT_EXT, 1 << 7), init::INIT_EXT | init::HAS_RESEND);
        assert_eq!(init(init::ASYNC_READ, 1 << 7), init::ASYNC_READ);
    }

    const FILE: Attributes = Attributes {
        number: 5,
        size: 513,
        mtime: 9,
        mode: 0o100644,
        nlink: 1,
        uid: 2,
        gid: 3,
        device: (0, 0),
    };

    /// Sizes from the kernel's header.
    #[test]
    fn replies_have_the_sizes_of_the_kernel_structures() {
        let size = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put(&mut out);
            out.len()
        };
        let kernel = Init { major: 7, max_readahead: 0, flags: 0 };
        assert_eq!(size(&|out| put_header(out, 0, 0)), 16);
        assert_eq!(size(&|out| put_init(out, &kernel, 0)), 64);
        assert_eq!(size(&|out| put_entry(out, 2, &FILE)), 128);
        assert_eq!(size(&|out| put_negative_entry(out)), 128);
        assert_eq!(size(&|out| put_attributes_reply(out, &FILE)), 104);
        assert_eq!(size(&|out| put_open(out, true)), 16);
        assert_eq!(size(&|out| put_statfs(out, 1, 2, 3)), 80);
        assert_eq!(size(&|out| put_xattr_size(out, 1)), 8);
    }

    #[test]
    fn attributes_count_sectors_and_encode_devices() {
        let mut out = Vec::new();
        put_attributes(&mut out, &Attributes { device: (0x812, 0xabcde), ..FILE });
        assert_eq!(out[16..24], 2u64.to_ne_bytes());
        assert_eq!(out[76..80], 0xabc8_12de_u32.to_ne_bytes());
    }

    #[test]
    fn the_header_counts_what_follows() {
        let mut out = Vec::new();
        put_header(&mut out, -5, 77);
        finish_header(&mut out, 100);
        assert_eq!(out[..4], 116u32.to_ne_bytes());
        assert_eq!(out[4..8], (-5i32).to_ne_bytes());
        assert_eq!(out[8..16], 77u64.to_ne_bytes());
    }

    #[test]
    fn listings_are_padded_and_never_pass_the_limit() {
        let entry = ListedEntry { name: b"abc", number: 1, next: 2, entry_type: 8 };
        for (plus, bytes) in [(None, 32), (Some(None), 160), (Some(Some((4, FILE))), 160)] {
            let mut out = Vec::new();
            assert!(put_listed(&mut out, bytes, &entry, plus));
            assert_eq!(out.len(), bytes);
            assert!(!put_listed(&mut out, 2 * bytes - 1, &entry, plus));
            assert!(put_listed(&mut out, 2 * bytes, &entry, plus));
            assert_eq!(out.len(), 2 * bytes);
        }
    }
}
