//! A directory that is a root file system: what debootstrap, `apptainer build --sandbox` or `buildah mount` leave.
//!
//! It is walked by descriptors, links are never followed, and what lies on another file system is not part of it. A file
//! that changes while it is read is an error: the image would hold something that never was.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag};

use super::whole::{bare_config, check_layer, image_of};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::convert::generate::generate;
use crate::convert::layer::tar::{END, Entry, EntryKind, Segment, can_hold_xattr, encode_header, padding_of};
use crate::sys::{self, file, tree};

/// Deepest directory, components.
const DEPTH_MAX: usize = 256;
/// Most stretches of data that a file with holes is read in.
const SEGMENTS_MAX: usize = 1 << 16;
const READ_SIZE: usize = 256 << 10;

/// Who owns what is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever owns it on disk.
    #[default]
    Kept,
    /// All of it belongs to this user and group.
    Of {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// Why a directory was not read.
#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("cannot read \"{}\"", .path.escape_ascii())]
    Refused { path: Vec<u8>, source: sys::Error },
    #[error("cannot read \"{}\"", .path.escape_ascii())]
    Read { path: Vec<u8>, source: io::Error },
    #[error("\"{}\" changed while it was read", .0.escape_ascii())]
    Changed(Vec<u8>),
    #[error("\"{}\" has more than {DEPTH_MAX} components", .0.escape_ascii())]
    TooDeep(Vec<u8>),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// A directory tree.
#[derive(Debug)]
pub(super) struct DirectoryTree {
    root: OwnedFd,
    ownership: Ownership,
    image: SourceImage,
}

impl DirectoryTree {
    pub(super) fn open(
        path: &Path,
        origin: String,
        options: &SourceOptions,
    ) -> Result<DirectoryTree, SourceError> {
        let root = file::open_directory(path).map_err(|source| SourceError::Open {
            origin: origin.clone(),
            what: "the directory".to_owned(),
            source,
        })?;
        let image = image_of(origin, bare_config(&options.platform), None);
        Ok(DirectoryTree { root, ownership: options.ownership, image })
    }
}

impl Source for DirectoryTree {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        check_layer(&self.image, index)?;
        let origin = self.image.origin.clone();
        let failed = |source| SourceError::Read { path: origin.clone(), source };
        let root = self.root.try_clone().map_err(failed)?;
        let (ownership, shown) = (self.ownership, origin.clone());
        let stream = generate("read-directory", move |out| {
            let mut walk =
                Walk { out, ownership, device: 0, first_names: HashMap::new(), notes: Notes::default() };
            let result = walk.tree(root);
            walk.notes.tell(&shown);
            result.map_err(|error| match error {
                DirectoryError::Write(error) => error,
                error => io::Error::other(error),
            })
        });
        Ok(Box::new(stream.map_err(failed)?))
    }
}

/// What was left out.
#[derive(Debug, Default)]
struct Notes {
    sockets: u64,
    xattrs: u64,
}

impl Notes {
    fn tell(&self, origin: &str) {
        if self.sockets > 0 {
            log::warn!("sockets of {origin} left out: {}", self.sockets);
        }
        if self.xattrs > 0 {
            log::warn!("empty extended attributes of {origin} left out: {}", self.xattrs);
        }
    }
}

/// A name that waits for its turn.
struct Todo {
    parent: Arc<OwnedFd>,
    name: OsString,
    /// Relative to the root of the tree.
    path: Vec<u8>,
}

struct Walk<'a> {
    out: &'a mut dyn Write,
    ownership: Ownership,
    /// The file system of the root.
    device: u64,
    /// The first name of each inode that has several.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    notes: Notes,
}

impl Walk<'_> {
    fn tree(&mut self, root: OwnedFd) -> Result<(), DirectoryError> {
        let refused = |source| DirectoryError::Refused { path: b".".to_vec(), source };
        let status = tree::status(root.as_fd()).map_err(refused)?;
        self.device = status.st_dev;
        let xattrs = tree::xattrs(root.as_fd()).map_err(refused)?;
        self.header(b"./", &status, EntryKind::Directory, xattrs)?;
        let mut todo = Vec::new();
        push_children(Arc::new(root), b"", &mut todo)?;
        while let Some(next) = todo.pop() {
            if let Some(directory) = self.write(&next)? {
                push_children(Arc::new(directory), &next.path, &mut todo)?;
            }
        }
        Ok(self.out.write_all(&END)?)
    }

    /// Writes one name; gives the directory if that is what it is and if its children belong to the tree.
    fn write(&mut self, todo: &Todo) -> Result<Option<OwnedFd>, DirectoryError> {
        let Todo { parent, name, path } = todo;
        let refused = |source| DirectoryError::Refused { path: path.clone(), source };
        let status = file::stat(parent.as_fd(), name).map_err(refused)?;
        let status = status.ok_or_else(|| DirectoryError::Changed(path.clone()))?;
        match kind_of(&status) {
            SFlag::S_IFDIR => return self.write_directory(parent.as_fd(), name, path),
            SFlag::S_IFSOCK => {
                self.notes.sockets += 1;
                return Ok(None);
            }
            _ => {}
        }
        if let Some(first) = self.first_name(path, &status) {
            self.header(path, &status, EntryKind::HardLink(first), Vec::new())?;
            return Ok(None);
        }
        let device = (device_major(status.st_rdev), device_minor(status.st_rdev));
        let kind = match kind_of(&status) {
            SFlag::S_IFREG => {
                self.write_file(parent.as_fd(), name, path, &status)?;
                return Ok(None);
            }
            SFlag::S_IFLNK => {
                let target = tree::link_target(parent.as_fd(), name).map_err(refused)?;
                EntryKind::Symlink(target.into_vec())
            }
            SFlag::S_IFBLK => EntryKind::BlockDevice(device.0, device.1),
            SFlag::S_IFCHR => EntryKind::CharacterDevice(device.0, device.1),
            _ => EntryKind::Fifo,
        };
        // None of the attributes that an image keeps can be on these.
        self.header(path, &status, kind, Vec::new())?;
        Ok(None)
    }

    fn write_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
    ) -> Result<Option<OwnedFd>, DirectoryError> {
        let refused = |source| DirectoryError::Refused { path: path.to_vec(), source };
        let directory = tree::open_directory_in(parent, name).map_err(refused)?;
        let status = tree::status(directory.as_fd()).map_err(refused)?;
        let xattrs = tree::xattrs(directory.as_fd()).map_err(refused)?;
        let entry_path = [path, b"/"].concat();
        self.header(&entry_path, &status, EntryKind::Directory, xattrs)?;
        if status.st_dev != self.device {
            log::warn!("\"{}\" is on another file system: it stays empty in the image", path.escape_ascii());
            return Ok(None);
        }
        Ok(Some(directory))
    }

    fn write_file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        seen: &FileStat,
    ) -> Result<(), DirectoryError> {
        let refused = |source| DirectoryError::Refused { path: path.to_vec(), source };
        let changed = || DirectoryError::Changed(path.to_vec());
        let mut file = tree::open_file_in(parent, name).map_err(refused)?;
        let status = tree::status(file.as_fd()).map_err(refused)?;
        if (status.st_dev, status.st_ino) != (seen.st_dev, seen.st_ino) {
            return Err(changed());
        }
        let size = u64::try_from(status.st_size).unwrap_or_default();
        let segments = segments(&file, size).map_err(refused)?;
        let xattrs = tree::xattrs(file.as_fd()).map_err(refused)?;
        let kind = EntryKind::File { size, segments: segments.clone() };
        self.header(path, &status, kind, xattrs)?;
        let mut stored = 0;
        for segment in segments {
            self.copy(&mut file, segment, path)?;
            stored += segment.length;
        }
        self.out.write_all([0; 512].get(..padding_of(stored)).unwrap_or_default())?;
        let after = tree::status(file.as_fd()).map_err(refused)?;
        let version = |status: &FileStat| (status.st_size, status.st_mtime, status.st_mtime_nsec);
        if version(&after) == version(&status) { Ok(()) } else { Err(changed()) }
    }

    fn copy(&mut self, file: &mut File, segment: Segment, path: &[u8]) -> Result<(), DirectoryError> {
        use std::os::unix::fs::FileExt as _;
        let mut buffer = vec![0; READ_SIZE];
        let (mut at, mut left) = (segment.offset, segment.length);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(READ_SIZE).min(READ_SIZE);
            let room = buffer.get_mut(..wanted).unwrap_or_default();
            let count = match file.read_at(room, at) {
                Ok(0) => return Err(DirectoryError::Changed(path.to_vec())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(DirectoryError::Read { path: path.to_vec(), source }),
            };
            self.out.write_all(room.get(..count).unwrap_or_default())?;
            at += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    fn header(
        &mut self,
        path: &[u8],
        status: &FileStat,
        kind: EntryKind,
        mut xattrs: Vec<tree::Xattr>,
    ) -> Result<(), DirectoryError> {
        let before = xattrs.len();
        xattrs.retain(|(name, value)| can_hold_xattr(name, value));
        self.notes.xattrs += (before - xattrs.len()) as u64;
        let (uid, gid) = match self.ownership {
            Ownership::Kept => (status.st_uid, status.st_gid),
            Ownership::Of { uid, gid } => (uid, gid),
        };
        let entry = Entry {
            path: path.to_vec(),
            kind,
            mode: u16::try_from(status.st_mode & 0o7777).unwrap_or_default(),
            uid,
            gid,
            mtime: u32::try_from(status.st_mtime.max(0)).unwrap_or(u32::MAX),
            xattrs,
            ignored_records: 0,
            offset: 0,
        };
        Ok(self.out.write_all(&encode_header(&entry))?)
    }

    /// Where this inode was met before.
    fn first_name(&mut self, path: &[u8], status: &FileStat) -> Option<Vec<u8>> {
        if status.st_nlink < 2 {
            return None;
        }
        let inode = (status.st_dev, status.st_ino);
        let known = self.first_names.get(&inode).cloned();
        if known.is_none() {
            self.first_names.insert(inode, path.to_vec());
        }
        known
    }
}

fn push_children(directory: Arc<OwnedFd>, path: &[u8], todo: &mut Vec<Todo>) -> Result<(), DirectoryError> {
    if path.split(|byte| *byte == b'/').count() >= DEPTH_MAX {
        return Err(DirectoryError::TooDeep(path.to_vec()));
    }
    let names = tree::names(directory.as_fd())
        .map_err(|source| DirectoryError::Refused { path: path.to_vec(), source })?;
    // The last is taken first.
    for name in names.into_iter().rev() {
        let path = match path {
            b"" => name.as_bytes().to_vec(),
            path => [path, b"/", name.as_bytes()].concat(),
        };
        todo.push(Todo { parent: Arc::clone(&directory), name, path });
    }
    Ok(())
}

fn segments(file: &File, size: u64) -> Result<Vec<Segment>, sys::Error> {
    let mut ranges = tree::data_ranges(file, size)?;
    if ranges.len() > SEGMENTS_MAX {
        ranges.truncate(SEGMENTS_MAX);
        if let Some((offset, length)) = ranges.last_mut() {
            *length = size - *offset;
        }
    }
    Ok(ranges.into_iter().map(|(offset, length)| Segment { offset, length }).collect())
}

fn kind_of(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
}

fn device_major(device: u64) -> u32 {
    u32::try_from(nix::sys::stat::major(device)).unwrap_or(u32::MAX)
}

fn device_minor(device: u64) -> u32 {
    u32::try_from(nix::sys::stat::minor(device)).unwrap_or(u32::MAX)
}
