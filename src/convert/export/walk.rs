//! Walks the tree of a squashfs and writes it as a tar: a directory before what it holds, names in the order of their
//! bytes, so that equal trees give equal tars.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::ops::ControlFlow;

use crate::convert::layer::tar::{END, Entry, EntryKind, Segment, can_hold_xattr, encode_header, padding_of};
use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::{FileLayout, Filesystem, Inode, InodeKind, ReadError, Xattr};

/// Bytes of a file that are read at a time.
const READ_SIZE: usize = 1 << 20;
/// Zeros are written by so many.
const ZEROS: [u8; 4096] = [0; 4096];
/// Deepest directory, components: what a conversion takes, and an end for trees that never end.
const DEPTH_MAX: usize = 256;
/// Most stretches of data that a file with holes is written in.
const SEGMENTS_MAX: usize = 1 << 16;

/// What the tar is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For any tar program: holes are written as zeros.
    Tar,
    /// A layer, in which some names mean something else; holes are written as zeros.
    Layer,
    /// For our own reader: holes stay holes.
    Convert,
}

/// What a tar could not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Sockets, which tar does not know.
    pub sockets: u64,
    /// Extended attributes with an empty value or with `=` in their name.
    pub xattrs: u64,
}

/// Why a tree was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The image is damaged.
    #[error("cannot read \"{}\"", .path.escape_ascii())]
    Read {
        /// The path in the image; empty for the root.
        path: Vec<u8>,
        /// The cause.
        source: ReadError,
    },
    /// A directory is in itself, or at two places.
    #[error("directory \"{}\" is at two places of the image", .0.escape_ascii())]
    Twice(Vec<u8>),
    /// A path without end.
    #[error("\"{}\" has more than {DEPTH_MAX} components", .0.escape_ascii())]
    TooDeep(Vec<u8>),
    /// A name that hides something when it is in a layer.
    #[error("\"{}\" would be a whiteout in a layer", .0.escape_ascii())]
    Whiteout(Vec<u8>),
    /// The tar could not be written.
    #[error("cannot write")]
    Write(#[from] io::Error),
}

impl WalkError {
    /// The error for whoever reads the stream; one of the stream itself as it is.
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            WalkError::Write(error) => error,
            error => io::Error::other(error),
        }
    }
}

/// Writes all of `filesystem` to `out`, the end marker included.
pub(crate) fn write_tar(
    filesystem: &Filesystem,
    out: &mut dyn Write,
    purpose: Purpose,
) -> Result<Losses, WalkError> {
    let mut walk = Walk {
        filesystem,
        out,
        purpose,
        first_names: HashMap::new(),
        seen: HashSet::new(),
        losses: Losses::default(),
    };
    let mut todo = vec![(Vec::new(), filesystem.root())];
    while let Some((path, reference)) = todo.pop() {
        let inode = filesystem.inode(reference).map_err(|source| at(&path, source))?;
        walk.write(&path, &inode)?;
        if let InodeKind::Directory(_) = &inode.kind {
            walk.push_children(&path, &inode, &mut todo)?;
        }
    }
    walk.out.write_all(&END)?;
    Ok(walk.losses)
}

fn at(path: &[u8], source: ReadError) -> WalkError {
    WalkError::Read { path: path.to_vec(), source }
}

struct Walk<'a> {
    filesystem: &'a Filesystem,
    out: &'a mut dyn Write,
    purpose: Purpose,
    /// The first name of each inode that has several.
    first_names: HashMap<u32, Vec<u8>>,
    /// Numbers of the directories met.
    seen: HashSet<u32>,
    losses: Losses,
}

impl Walk<'_> {
    fn push_children(
        &mut self,
        path: &[u8],
        inode: &Inode,
        todo: &mut Vec<(Vec<u8>, InodeRef)>,
    ) -> Result<(), WalkError> {
        let InodeKind::Directory(directory) = &inode.kind else { return Ok(()) };
        if !self.seen.insert(inode.number) {
            return Err(WalkError::Twice(path.to_vec()));
        }
        if path.split(|byte| *byte == b'/').count() >= DEPTH_MAX {
            return Err(WalkError::TooDeep(path.to_vec()));
        }
        let start = todo.len();
        let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        self.filesystem
            .read_directory(directory, 0, &mut |entry| {
                todo.push(([prefix.as_slice(), entry.name].concat(), entry.inode));
                ControlFlow::Continue(())
            })
            .map_err(|source| at(path, source))?;
        // The last is taken first.
        if let Some(children) = todo.get_mut(start..) {
            children.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        }
        Ok(())
    }

    fn write(&mut self, path: &[u8], inode: &Inode) -> Result<(), WalkError> {
        self.refuse_whiteout(path, inode)?;
        let Some(entry) = self.entry(path, inode)? else {
            self.losses.sockets += 1;
            return Ok(());
        };
        self.out.write_all(&encode_header(&entry))?;
        if let (InodeKind::File(file), EntryKind::File { segments, .. }) = (&inode.kind, &entry.kind) {
            self.write_data(path, file, segments)?;
        }
        Ok(())
    }

    fn refuse_whiteout(&self, path: &[u8], inode: &Inode) -> Result<(), WalkError> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let is_whiteout = name.starts_with(b".wh.") || matches!(inode.kind, InodeKind::CharacterDevice(0, 0));
        if self.purpose == Purpose::Layer && is_whiteout {
            return Err(WalkError::Whiteout(path.to_vec()));
        }
        Ok(())
    }

    /// The tar entry of an inode; none for a socket.
    fn entry(&mut self, path: &[u8], inode: &Inode) -> Result<Option<Entry>, WalkError> {
        let kind = match &inode.kind {
            InodeKind::Socket => return Ok(None),
            InodeKind::Directory(_) => EntryKind::Directory,
            kind => match self.first_name(path, inode) {
                Some(first) => EntryKind::HardLink(first),
                None => self.leaf_kind(path, kind)?,
            },
        };
        let is_link = matches!(kind, EntryKind::HardLink(_));
        let xattrs = if is_link { Vec::new() } else { self.xattrs(path, inode)? };
        let path = match inode.kind {
            InodeKind::Directory(_) => [if path.is_empty() { b"." } else { path }, b"/"].concat(),
            _ => path.to_vec(),
        };
        let Inode { mode, uid, gid, mtime, .. } = *inode;
        Ok(Some(Entry { path, kind, mode, uid, gid, mtime, xattrs, ignored_records: 0, offset: 0 }))
    }

    /// Where this inode was met before.
    fn first_name(&mut self, path: &[u8], inode: &Inode) -> Option<Vec<u8>> {
        if inode.nlink < 2 {
            return None;
        }
        let known = self.first_names.get(&inode.number).cloned();
        if known.is_none() {
            self.first_names.insert(inode.number, path.to_vec());
        }
        known
    }

    fn leaf_kind(&self, path: &[u8], kind: &InodeKind) -> Result<EntryKind, WalkError> {
        Ok(match kind {
            InodeKind::File(file) => {
                let segments = self.segments(file).map_err(|source| at(path, source))?;
                EntryKind::File { size: file.size, segments }
            }
            InodeKind::Symlink(target) => EntryKind::Symlink(target.to_vec()),
            InodeKind::BlockDevice(major, minor) => EntryKind::BlockDevice(*major, *minor),
            InodeKind::CharacterDevice(major, minor) => EntryKind::CharacterDevice(*major, *minor),
            // Sockets and directories do not come here.
            _ => EntryKind::Fifo,
        })
    }

    fn segments(&self, file: &FileLayout) -> Result<Vec<Segment>, ReadError> {
        if file.size == 0 {
            return Ok(Vec::new());
        }
        let ranges = match self.purpose {
            Purpose::Convert => self.filesystem.data_ranges(file, SEGMENTS_MAX)?,
            Purpose::Tar | Purpose::Layer => vec![(0, file.size)],
        };
        Ok(ranges.into_iter().map(|(offset, length)| Segment { offset, length }).collect())
    }

    fn xattrs(&mut self, path: &[u8], inode: &Inode) -> Result<Vec<Xattr>, WalkError> {
        let Some(index) = inode.xattr else { return Ok(Vec::new()) };
        let mut xattrs = self.filesystem.xattrs(index).map_err(|source| at(path, source))?;
        let before = xattrs.len();
        xattrs.retain(|(name, value)| can_hold_xattr(name, value));
        xattrs.sort();
        self.losses.xattrs += (before - xattrs.len()) as u64;
        Ok(xattrs)
    }

    fn write_data(&mut self, path: &[u8], file: &FileLayout, segments: &[Segment]) -> Result<(), WalkError> {
        let mut stored = 0;
        for segment in segments {
            let end = segment.offset.saturating_add(segment.length);
            let mut offset = segment.offset;
            while offset < end {
                let length = usize::try_from(end - offset).unwrap_or(READ_SIZE).min(READ_SIZE);
                let pieces = self.filesystem.read(file, offset, length).map_err(|source| at(path, source))?;
                for piece in &pieces {
                    let data = self.filesystem.bytes_of(piece).map_err(|source| at(path, source))?;
                    self.out.write_all(&data)?;
                }
                offset += length as u64;
            }
            stored += segment.length;
        }
        write_zeros(self.out, padding_of(stored))?;
        Ok(())
    }
}

fn write_zeros(out: &mut dyn Write, mut count: usize) -> io::Result<()> {
    while count > 0 {
        let zeros = ZEROS.get(..count.min(ZEROS.len())).unwrap_or(&ZEROS);
        out.write_all(zeros)?;
        count -= zeros.len();
    }
    Ok(())
}
