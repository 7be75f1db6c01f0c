//! The squashfs writer, judged by others: unsquashfs, the kernel, libsquashfs (sqfs2tar) and backhand.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{major, minor};
use sha2::{Digest, Sha256};

use hpcrun::hint::Hint;
use hpcrun::squashfs::compress::Compression;
use hpcrun::squashfs::format::{BLOCK_SIZE_MAX, Superblock, flags};
use hpcrun::squashfs::writer::{
    EntryError, FILE_BLOCKS_MAX, FileId, Inode, InodeKind, Summary, Tree, WriteError, Writer, WriterOptions,
};

use crate::support::{Random, run, scratch, seed, stdout, text};

const CODECS: [Compression; 4] =
    [Compression::Zstd(3), Compression::Gzip(6), Compression::Lz4, Compression::Xz(1)];

fn options(compression: Compression, block_size: u32, threads: usize) -> WriterOptions {
    WriterOptions { compression, block_size, threads, mkfs_time: 1_700_000_000 }
}

/// An image being made, with a tree that is addressed by path.
struct Image {
    path: PathBuf,
    writer: Writer,
    tree: Tree,
    directories: HashMap<String, u32>,
    random: Random,
    block_size: usize,
}

impl Image {
    fn new(path: PathBuf, options: WriterOptions) -> Image {
        let block_size = options.block_size as usize;
        let writer = Writer::create(File::create_new(&path).unwrap(), options).unwrap();
        let mut image = Image {
            path,
            writer,
            tree: Tree::default(),
            directories: HashMap::new(),
            random: Random::new(1),
            block_size,
        };
        image.tree.inodes.push(inode(InodeKind::Directory(Vec::new())));
        image.directories.insert(String::new(), 0);
        image
    }

    /// Adds an inode under `path`, whose directory exists; gives its index.
    fn add(&mut self, path: &str, inode: Inode) -> u32 {
        let index = u32::try_from(self.tree.inodes.len()).unwrap();
        if matches!(inode.kind, InodeKind::Directory(_)) {
            self.directories.insert(path.to_owned(), index);
        }
        self.tree.inodes.push(inode);
        self.link(path.as_bytes(), index);
        index
    }

    /// Adds a name for an inode.
    fn link(&mut self, path: &[u8], index: u32) {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = match slash {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let directory = self.directories[std::str::from_utf8(directory).unwrap()];
        let InodeKind::Directory(entries) = &mut self.tree.inodes[directory as usize].kind else {
            panic!("no directory")
        };
        entries.push((name.to_vec(), index));
    }

    /// Writes a file's data in pieces of odd sizes.
    fn data(&mut self, content: &[u8]) -> FileId {
        self.writer.begin_file(content.len() as u64).unwrap();
        let mut rest = content;
        while !rest.is_empty() {
            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
            if zeros > 0 && self.random.below(2) == 0 {
                self.writer.skip(zeros as u64).unwrap();
                rest = &rest[zeros..];
                continue;
            }
            let spare = self.writer.spare().unwrap();
            assert!(!spare.is_empty() && spare.len() <= rest.len());
            let most = spare.len();
            let length = match self.random.below(3) {
                0 => 1 + self.random.below(most as u64) as usize,
                _ => most,
            };
            spare[..length].copy_from_slice(&rest[..length]);
            self.writer.advance(length).unwrap();
            rest = &rest[length..];
        }
        assert!(self.writer.spare().unwrap().is_empty());
        self.writer.end_file().unwrap()
    }

    fn file(&mut self, path: &str, content: &[u8]) -> u32 {
        let id = self.data(content);
        self.add(path, inode(InodeKind::File(id)))
    }

    fn directory(&mut self, path: &str) -> u32 {
        self.add(path, inode(InodeKind::Directory(Vec::new())))
    }

    fn finish(self) -> (PathBuf, Summary) {
        let (file, summary) = self.writer.finish(&self.tree).unwrap();
        let length = file.metadata().unwrap().len();
        assert_eq!(length, summary.bytes_used.next_multiple_of(4096));
        check_superblock(&self.path, &summary);
        (self.path, summary)
    }
}

fn inode(kind: InodeKind) -> Inode {
    let mode = if matches!(kind, InodeKind::Directory(_)) { 0o755 } else { 0o644 };
    Inode { kind, mode, uid: 0, gid: 0, mtime: 1_600_000_000, xattrs: Vec::new() }
}

/// The superblock agrees with the summary, and unsquashfs has nothing to say about it.
#[track_caller]
fn check_superblock(image: &Path, summary: &Summary) {
    let superblock = superblock(image);
    assert_eq!((superblock.bytes_used, superblock.inode_count), (summary.bytes_used, summary.inodes));
    for option in ["-s", "-lls"] {
        let output = run(Command::new("unsquashfs").arg(option).arg(image));
        assert!(output.status.success(), "unsquashfs {option}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "unsquashfs {option}");
    }
}

fn superblock(image: &Path) -> Superblock {
    let mut head = [0; 96];
    File::open(image).unwrap().read_exact_at(&mut head, 0).unwrap();
    Superblock::parse(&head).unwrap()
}

/// What can be observed of one path.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    /// First path with the same inode.
    link_of: String,
    /// Name and value in hexadecimal.
    xattrs: BTreeSet<(String, String)>,
}

type Snapshot = BTreeMap<Vec<u8>, Seen>;

/// What the tree of an image should look like, from its own description.
fn expected(tree: &Tree, contents: &HashMap<FileId, Vec<u8>>) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut first_paths: HashMap<u32, String> = HashMap::new();
    let mut paths = vec![(Vec::new(), tree.root)];
    let mut all = BTreeMap::new();
    while let Some((path, index)) = paths.pop() {
        if let InodeKind::Directory(entries) = &tree.inodes[index as usize].kind {
            for (name, child) in entries {
                paths.push(([path.as_slice(), name].join(&b'/'), *child));
            }
        }
        all.insert(path, index);
    }
    for (path, index) in &all {
        first_paths.entry(*index).or_insert_with(|| text(path));
    }
    for (path, index) in all {
        let inode = &tree.inodes[index as usize];
        let kind = match &inode.kind {
            InodeKind::Directory(_) => "directory".to_owned(),
            InodeKind::File(id) => file_kind(&contents[id]),
            InodeKind::Symlink(target) => format!("symlink {}", text(target)),
            InodeKind::BlockDevice(major, minor) => format!("block {major}:{minor}"),
            InodeKind::CharacterDevice(major, minor) => format!("character {major}:{minor}"),
            InodeKind::Fifo => "fifo".to_owned(),
            InodeKind::Socket => "socket".to_owned(),
        };
        let xattrs = inode.xattrs.iter().map(|(name, value)| (text(name), hexadecimal(value))).collect();
        let seen = Seen {
            kind,
            mode: inode.mode.into(),
            owner: (inode.uid, inode.gid),
            mtime: inode.mtime.into(),
            link_of: first_paths[&index].clone(),
            xattrs,
        };
        snapshot.insert(path, seen);
    }
    snapshot
}

fn file_kind(content: &[u8]) -> String {
    format!("file {} {}", content.len(), hexadecimal(&Sha256::digest(content)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is really there below a directory.
fn snapshot(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut first_paths = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    let mut all = BTreeMap::new();
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let relative = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let relative = if relative.is_empty() { relative } else { [b"/", relative.as_slice()].concat() };
        all.insert(relative, (path, metadata));
    }
    let xattrs = all_xattrs(root);
    for (relative, (_, metadata)) in &all {
        first_paths.entry(metadata.ino()).or_insert_with(|| text(relative));
    }
    let links = all.values().filter(|(_, metadata)| !metadata.is_dir()).fold(
        HashMap::new(),
        |mut links: HashMap<u64, u64>, (_, metadata)| {
            *links.entry(metadata.ino()).or_default() += 1;
            links
        },
    );
    for (relative, (path, metadata)) in all {
        let kind = metadata.file_type();
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        if !kind.is_dir() {
            assert_eq!(metadata.nlink(), links[&metadata.ino()], "links of {}", text(&relative));
        }
        let kind = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_file() {
            file_kind(&fs::read(&path).unwrap())
        } else if kind.is_symlink() {
            format!("symlink {}", text(fs::read_link(&path).unwrap().as_os_str().as_bytes()))
        } else if kind.is_block_device() {
            format!("block {major}:{minor}")
        } else if kind.is_char_device() {
            format!("character {major}:{minor}")
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            assert!(kind.is_socket());
            "socket".to_owned()
        };
        let seen = Seen {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: metadata.mtime(),
            link_of: first_paths[&metadata.ino()].clone(),
            xattrs: xattrs.get(&relative).cloned().unwrap_or_default(),
        };
        snapshot.insert(relative, seen);
    }
    snapshot
}

/// Xattrs by path, as `getfattr` tells them.
fn all_xattrs(root: &Path) -> HashMap<Vec<u8>, BTreeSet<(String, String)>> {
    let output = run(Command::new("getfattr")
        .args(["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", "--"])
        .arg(root));
    // The kernel says so where an image has no xattr table.
    for complaint in text(&output.stderr).lines() {
        assert!(complaint.ends_with(": Operation not supported"), "{complaint}");
    }
    let mut all: HashMap<Vec<u8>, BTreeSet<(String, String)>> = HashMap::new();
    let mut path = Vec::new();
    for line in text(&output.stdout).lines() {
        if let Some(file) = line.strip_prefix("# file: ") {
            path = file.as_bytes()[root.as_os_str().len()..].to_vec();
        } else if let Some((name, value)) = line.split_once('=') {
            let value = value.strip_prefix("0x").unwrap_or(value);
            all.entry(path.clone()).or_default().insert((name.to_owned(), value.to_owned()));
        } else if !line.is_empty() {
            all.entry(path.clone()).or_default().insert((line.to_owned(), String::new()));
        }
    }
    all
}

/// A kernel mount of an image, undone on drop.
struct Mounted(tempfile::TempDir);

impl Mounted {
    #[track_caller]
    fn new(image: &Path) -> Mounted {
        let directory = scratch();
        stdout(
            Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).arg(image).arg(directory.path()),
        );
        Mounted(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0.path()));
    }
}

/// Unpacks with unsquashfs, which must have nothing to complain about.
#[track_caller]
fn unsquash(image: &Path) -> tempfile::TempDir {
    let directory = scratch();
    let output = run(Command::new("unsquashfs")
        .args(["-no-progress", "-quiet", "-force", "-dest"])
        .arg(directory.path().join("root"))
        .arg(image));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    directory
}

#[track_caller]
fn check_same(oracle: &str, got: &Snapshot, expected: &Snapshot) {
    for (path, expected) in expected {
        let got = got.get(path);
        let mut expected = expected.clone();
        if expected.kind.starts_with("symlink") {
            // Unpacked, links have all permissions wherever one looks.
            expected.mode = got.map_or(0, |got| got.mode);
        }
        assert_eq!(got, Some(&expected), "{oracle}: {}", text(path));
    }
    for path in got.keys() {
        assert!(expected.contains_key(path), "{oracle}: {} should not be there", text(path));
    }
}

/// The kernel and unsquashfs see the tree as it was meant, every attribute of it.
#[track_caller]
fn check_kernel_and_unsquashfs(image: &Path, expected: &Snapshot) {
    check_same("kernel", &snapshot(Mounted::new(image).path()), expected);
    check_same("unsquashfs", &snapshot(&unsquash(image).path().join("root")), expected);
}

/// Kind, mode, owner and mtime of a tar entry.
type TarSeen = (String, u32, (u64, u64), u64);

/// What libsquashfs makes of an image, by path.
fn sqfs2tar(image: &Path) -> BTreeMap<Vec<u8>, TarSeen> {
    // Its xattrs come as a second extended header for one member, which tar readers refuse.
    let output = run(Command::new("sqfs2tar").arg("--no-xattr").arg(image));
    assert!(output.status.success(), "sqfs2tar: {}", text(&output.stderr));
    let mut seen = BTreeMap::new();
    for entry in tar::Archive::new(output.stdout.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let header = entry.header();
        let (mode, mtime) = (header.mode().unwrap(), header.mtime().unwrap());
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        let device = || (header.device_major().unwrap().unwrap(), header.device_minor().unwrap().unwrap());
        let kind = match header.entry_type() {
            tar::EntryType::Directory => "directory".to_owned(),
            tar::EntryType::Symlink => format!("symlink {}", text(&entry.link_name_bytes().unwrap())),
            tar::EntryType::Link => format!("link {}", text(&entry.link_name_bytes().unwrap())),
            tar::EntryType::Block => format!("block {}:{}", device().0, device().1),
            tar::EntryType::Char => format!("character {}:{}", device().0, device().1),
            tar::EntryType::Fifo => "fifo".to_owned(),
            _ => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                file_kind(&content)
            }
        };
        seen.insert(path, (kind, mode, owner, mtime));
    }
    seen
}

/// libsquashfs sees the same; of several names of a file it makes links to one.
#[track_caller]
fn check_sqfs2tar(image: &Path, all: &Snapshot) {
    let got = sqfs2tar(image);
    let mut count = 0;
    for (path, expected) in all {
        // The root has no entry, and tar knows no sockets.
        if path.is_empty() || expected.kind == "socket" {
            continue;
        }
        count += 1;
        let (kind, mode, owner, mtime) = &got[&path[1..]];
        if let Some(target) = kind.strip_prefix("link ") {
            let target = format!("/{}", target.trim_start_matches('/'));
            assert_eq!(all[target.as_bytes()].link_of, expected.link_of, "sqfs2tar: {}", text(path));
            continue;
        }
        assert_eq!(kind, &expected.kind, "sqfs2tar: {}", text(path));
        let owner = (u32::try_from(owner.0).unwrap(), u32::try_from(owner.1).unwrap());
        assert_eq!((owner, *mtime as i64), (expected.owner, expected.mtime), "sqfs2tar: {}", text(path));
        if !kind.starts_with("symlink") {
            assert_eq!(*mode & 0o7777, expected.mode, "sqfs2tar: {}", text(path));
        }
    }
    assert_eq!(got.len(), count, "sqfs2tar: entries");
}

fn noise(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Compressible, but not the same twice.
fn prose(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        bytes.extend(format!("{} lorem ipsum ", random.below(1000)).bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tree of everything, with content drawn from `seed`; gives the expectation.
fn everything(image: &mut Image, seed: u64) -> Snapshot {
    let mut random = Random::new(seed);
    let block = image.block_size;
    let mut contents = HashMap::new();
    let mut files = Vec::new();
    let mut directories = vec![String::new()];
    for number in 0..120 {
        let parent = directories[random.below(directories.len() as u64) as usize].clone();
        let path = format!("{parent}/{}{number}", ["a", "m.x", "Z-", "\u{e9}"][random.below(4) as usize]);
        let kind = match random.below(12) {
            0 | 1 => {
                directories.push(path.clone());
                InodeKind::Directory(Vec::new())
            }
            2 => InodeKind::Symlink(
                noise(&mut random, 1 + number % 60).iter().map(|b| b % 26 + b'a').collect(),
            ),
            3 => InodeKind::BlockDevice(random.below(4096) as u32, random.below(1 << 20) as u32),
            4 => InodeKind::CharacterDevice(random.below(4096) as u32, random.below(1 << 20) as u32),
            5 => InodeKind::Fifo,
            6 => InodeKind::Socket,
            _ => {
                let content = random_content(&mut random, block, &contents);
                let id = image.data(&content);
                contents.insert(id, content);
                InodeKind::File(id)
            }
        };
        let plain = matches!(kind, InodeKind::File(_) | InodeKind::Directory(_));
        let is_file = matches!(kind, InodeKind::File(_));
        let added = Inode {
            kind,
            mode: random.below(0o10000) as u16,
            uid: [0, 1000, 4_000_000_000, 65534][random.below(4) as usize],
            gid: random.below(40) as u32,
            mtime: random.next() as u32 & 0x7fff_ffff,
            xattrs: random_xattrs(&mut random, plain),
        };
        let index = image.add(&path, added);
        if is_file {
            files.push(index);
        }
        if random.below(6) == 0 && !files.is_empty() {
            let file = files[random.below(files.len() as u64) as usize];
            image.link(format!("{parent}/link{number}").as_bytes(), file);
        }
    }
    expected(&image.tree, &contents)
}

fn random_content(random: &mut Random, block: usize, earlier: &HashMap<FileId, Vec<u8>>) -> Vec<u8> {
    let length = match random.below(4) {
        0 => random.below(200) as usize,
        1 => random.below(block as u64) as usize,
        2 => block * random.below(4) as usize,
        _ => random.below(4 * block as u64) as usize,
    };
    match random.below(6) {
        0 => noise(random, length),
        1 => vec![0; length],
        2 if !earlier.is_empty() => {
            let mut all: Vec<_> = earlier.iter().collect();
            all.sort();
            all[random.below(all.len() as u64) as usize].1.clone()
        }
        3 => {
            let mut content = prose(random, length);
            for _ in 0..3 {
                let start = random.below(length as u64 + 1) as usize;
                let end = (start + random.below(2 * block as u64) as usize).min(length);
                content[start..end].fill(0);
            }
            content
        }
        _ => prose(random, length),
    }
}

fn random_xattrs(random: &mut Random, plain: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut xattrs = Vec::new();
    if random.below(3) > 0 {
        return xattrs;
    }
    if plain {
        xattrs.push((b"user.note".to_vec(), vec![b'v'; random.below(4) as usize * 30]));
    }
    if random.below(2) == 0 {
        xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
    }
    if random.below(2) == 0 {
        xattrs.push((b"security.test".to_vec(), noise(random, 40)));
    }
    xattrs
}

/// The bytes of one image of everything.
fn image_of_everything(directory: &Path, options: WriterOptions, seed: u64) -> Vec<u8> {
    let path = directory.join("threads.sqsh");
    let mut image = Image::new(path, options);
    everything(&mut image, seed);
    let (path, _) = image.finish();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

#[test]
fn random_trees_read_back_by_three_readers() {
    let directory = scratch();
    let sizes = [4096, 131_072, 16384, BLOCK_SIZE_MAX, 65536, 8192];
    for (round, block_size) in sizes.into_iter().enumerate() {
        let compression = CODECS[round % CODECS.len()];
        let seed = seed().wrapping_mul(1000).wrapping_add(round as u64);
        println!("{compression:?}, {block_size}");
        let path = directory.path().join(format!("{round}.sqsh"));
        let mut image = Image::new(path, options(compression, block_size, 2));
        let expected = everything(&mut image, seed);
        let (path, _) = image.finish();
        check_kernel_and_unsquashfs(&path, &expected);
        check_sqfs2tar(&path, &expected);
    }
}

#[test]
fn threads_do_not_show_in_the_bytes() {
    let directory = scratch();
    let seed = seed();
    for compression in CODECS {
        println!("{compression:?}");
        let one = image_of_everything(directory.path(), options(compression, 8192, 1), seed);
        for threads in [2, 7] {
            let many = image_of_everything(directory.path(), options(compression, 8192, threads), seed);
            assert!(one == many, "{compression:?}: 1 and {threads} threads differ");
        }
    }
}

#[test]
fn every_codec_is_read_by_the_kernel_at_every_block_size() {
    let directory = scratch();
    let mut random = Random::new(3);
    let levels = [
        Compression::Zstd(1),
        Compression::Zstd(15),
        Compression::Zstd(22),
        Compression::Gzip(1),
        Compression::Gzip(9),
        Compression::Gzip(12),
        Compression::Lz4,
        Compression::Xz(0),
        Compression::Xz(9),
    ];
    for compression in levels {
        for block_size in [4096, 32768, BLOCK_SIZE_MAX] {
            let path = directory.path().join("codec.sqsh");
            let mut image = Image::new(path, options(compression, block_size, 2));
            let text = prose(&mut random, 3 * block_size as usize / 2);
            let raw = noise(&mut random, block_size as usize + 100);
            image.file("/text", &text);
            image.file("/raw", &raw);
            image.file("/small", &text[..1000]);
            let (path, summary) = image.finish();
            assert!(summary.data_bytes_out < summary.data_bytes_in, "{compression:?}, {block_size}");
            let unpacked = unsquash(&path);
            let mounted = Mounted::new(&path);
            for root in [unpacked.path().join("root"), mounted.path().to_path_buf()] {
                assert!(fs::read(root.join("text")).unwrap() == text, "{compression:?}, {block_size}");
                assert!(fs::read(root.join("raw")).unwrap() == raw, "{compression:?}, {block_size}");
                assert!(fs::read(root.join("small")).unwrap() == text[..1000], "{compression:?}");
            }
            drop(mounted);
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn sizes_around_a_block_go_where_they_should() {
    let directory = scratch();
    let mut random = Random::new(4);
    let mut image = Image::new(directory.path().join("sizes.sqsh"), options(Compression::Gzip(6), 4096, 2));
    let mut contents = HashMap::new();
    for size in [0, 1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 12288] {
        for kind in 0..3 {
            let content = match kind {
                0 => prose(&mut random, size),
                1 => noise(&mut random, size),
                _ => vec![0; size],
            };
            let id = image.data(&content);
            image.add(&format!("/{size}-{kind}"), inode(InodeKind::File(id)));
            contents.insert(id, content);
        }
    }
    let expected = expected(&image.tree, &contents);
    let (path, _) = image.finish();
    // 1 to 4095 bytes of prose and noise: 8204 bytes need three fragment blocks in this order.
    assert_eq!(superblock(&path).fragment_count, 3);
    check_kernel_and_unsquashfs(&path, &expected);
    check_sqfs2tar(&path, &expected);
    let read = fs::File::open(&path).unwrap();
    let filesystem = backhand::FilesystemReader::from_reader(std::io::BufReader::new(read)).unwrap();
    for node in filesystem.files() {
        if let backhand::InnerNode::File(file) = &node.inner {
            let mut content = Vec::new();
            filesystem.file(file).reader().read_to_end(&mut content).unwrap();
            let seen = &expected[node.fullpath.as_os_str().as_bytes()];
            assert_eq!(file_kind(&content), seen.kind, "backhand: {}", node.fullpath.display());
        }
    }
}

#[test]
fn equal_files_are_stored_once() {
    let directory = scratch();
    let mut random = Random::new(5);
    let large = prose(&mut random, 5 << 20);
    let holed = [&large[..300_000], &vec![0; 600_000], &large[..50_000]].concat();
    let small = noise(&mut random, 3000);
    // Noise of more than one write of the sink, so that a duplicate is taken back from the disk.
    let huge = noise(&mut random, 9 << 20);
    let all = [large, holed, small, huge];
    let build = |name: &str, copies: usize| {
        let mut image = Image::new(directory.path().join(name), options(Compression::Zstd(1), 65536, 2));
        for copy in 0..copies {
            for (number, content) in all.iter().enumerate() {
                image.file(&format!("/{number}-{copy}"), content);
            }
        }
        image.file("/last", b"after the duplicates");
        image.finish()
    };
    let (_, once) = build("once", 1);
    let (path, thrice) = build("thrice", 3);
    assert_eq!(thrice.data_bytes_out, once.data_bytes_out);
    assert_eq!(thrice.data_bytes_in - 20, 3 * (once.data_bytes_in - 20));
    let mounted = Mounted::new(&path);
    for copy in 0..3 {
        for (number, content) in all.iter().enumerate() {
            let read = fs::read(mounted.path().join(format!("{number}-{copy}"))).unwrap();
            assert!(read == *content, "{number}-{copy}");
        }
    }
    assert_eq!(fs::read(mounted.path().join("last")).unwrap(), b"after the duplicates");
}

#[test]
fn nearly_equal_files_stay_apart() {
    let directory = scratch();
    let mut random = Random::new(6);
    let mut image = Image::new(directory.path().join("near.sqsh"), options(Compression::Lz4, 4096, 2));
    let base = noise(&mut random, 3 * 4096);
    let mut contents = HashMap::new();
    let mut variants = vec![base.clone(), base[..2 * 4096].to_vec(), base[..2 * 4096 + 1].to_vec()];
    for at in [0, 4096, 3 * 4096 - 1] {
        let mut other = base.clone();
        other[at] ^= 1;
        variants.push(other);
    }
    // The same blocks with holes elsewhere, and a last hole of another length.
    let zeros = vec![0; 4096];
    variants.push([&base[..4096], &zeros, &base[4096..8192]].concat());
    variants.push([&zeros, &base[..4096], &base[4096..8192]].concat());
    variants.push([&base[..4096], &base[4096..8192], &zeros].concat());
    variants.push([&base[..4096], &base[4096..8192], &zeros[..7]].concat());
    for (number, content) in variants.into_iter().enumerate() {
        let id = image.data(&content);
        image.add(&format!("/{number}"), inode(InodeKind::File(id)));
        contents.insert(id, content);
    }
    let expected = expected(&image.tree, &contents);
    let (path, _) = image.finish();
    check_kernel_and_unsquashfs(&path, &expected);
}

#[test]
fn sparse_files_of_any_size_take_no_time_or_space() {
    const TERABYTE: u64 = 1 << 40;
    let directory = scratch();
    let path = directory.path().join("sparse.sqsh");
    let mut image = Image::new(path, options(Compression::Zstd(3), 131_072, 2));
    // Data in the middle and at the end of 4 TiB, past 2^32 by far.
    let writer = &mut image.writer;
    writer.begin_file(4 * TERABYTE + 5).unwrap();
    writer.skip(TERABYTE + 77).unwrap();
    writer.spare().unwrap()[..6].copy_from_slice(b"middle");
    writer.advance(6).unwrap();
    writer.skip(3 * TERABYTE - 77 - 6).unwrap();
    writer.spare().unwrap()[..5].copy_from_slice(b"final");
    writer.advance(5).unwrap();
    let id = writer.end_file().unwrap();
    image.add("/data", inode(InodeKind::File(id)));
    for (name, size) in [("/hole", TERABYTE + 1), ("/short", 100), ("/block", 131_072)] {
        image.writer.begin_file(size).unwrap();
        image.writer.skip(size).unwrap();
        let id = image.writer.end_file().unwrap();
        image.add(name, inode(InodeKind::File(id)));
    }
    let (path, summary) = image.finish();
    assert_eq!(summary.data_bytes_in, 5 * TERABYTE + 6 + 100 + 131_072);
    assert!(summary.bytes_used < 8 << 20, "{}", summary.bytes_used);
    let mounted = Mounted::new(&path);
    let open = |name: &str| File::open(mounted.path().join(name)).unwrap();
    let at = |file: &File, offset: u64, length: usize| {
        let mut bytes = vec![1; length];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    let data = open("data");
    assert_eq!(data.metadata().unwrap().len(), 4 * TERABYTE + 5);
    // Two blocks hold data, one of them short.
    assert_eq!(data.metadata().unwrap().blocks(), (131_072u64 + 5).div_ceil(512));
    assert_eq!(at(&data, TERABYTE + 75, 10), b"\0\0middle\0\0");
    assert_eq!(at(&data, 4 * TERABYTE - 2, 7), b"\0\0final");
    assert_eq!(at(&data, 2 * TERABYTE, 4096), [0; 4096]);
    for (name, size) in [("hole", TERABYTE + 1), ("short", 100), ("block", 131_072)] {
        let file = open(name);
        assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), (size, 0), "{name}");
        assert_eq!(at(&file, size - 100, 100), [0; 100], "{name}");
    }
}

#[test]
fn directories_of_100_000_entries_are_searched_and_listed() {
    let directory = scratch();
    let mut image = Image::new(directory.path().join("wide.sqsh"), options(Compression::Zstd(3), 131_072, 2));
    image.directory("/wide");
    let empty = image.file("/empty", b"");
    let mut names = BTreeSet::new();
    // Out of order; every 50th a link to an inode far away, so that headers cannot cover all.
    for number in (0..100_000).rev() {
        let name = format!("entry-{}", number * 7919 % 100_000);
        match number % 50 {
            0 => image.link(format!("/wide/{name}").as_bytes(), empty),
            _ => {
                image.add(&format!("/wide/{name}"), inode(InodeKind::Symlink(name.clone().into_bytes())));
            }
        }
        names.insert(name);
    }
    let long = "n".repeat(255);
    image.add(&format!("/wide/{long}"), inode(InodeKind::Fifo));
    names.insert(long);
    let (path, summary) = image.finish();
    assert_eq!(summary.inodes, 3 + 98_000 + 1);
    let mounted = Mounted::new(&path);
    let wide = mounted.path().join("wide");
    let listed: BTreeSet<String> =
        fs::read_dir(&wide).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(listed == names);
    for name in names.iter().step_by(997).chain(names.iter().rev().take(3)) {
        let seen = fs::symlink_metadata(wide.join(name)).unwrap();
        if seen.is_symlink() {
            assert_eq!(fs::read_link(wide.join(name)).unwrap(), Path::new(name));
        }
    }
    for absent in ["a", "entry-", "entry-100000", "entry-5x", "zzz"] {
        assert!(fs::symlink_metadata(wide.join(absent)).is_err(), "{absent}");
    }
    let listed = stdout(Command::new("unsquashfs").args(["-no-progress", "-ls"]).arg(&path));
    assert_eq!(listed.lines().filter(|line| line.contains("/wide/")).count(), 100_001);
    assert_eq!(sqfs2tar(&path).len(), 100_003);
}

#[test]
fn long_names_fill_headers_across_metadata_blocks() {
    let directory = scratch();
    let mut random = Random::new(9);
    let mut image = Image::new(directory.path().join("names.sqsh"), options(Compression::Lz4, 4096, 1));
    let mut contents = HashMap::new();
    for directory in 0..40 {
        image.directory(&format!("/{directory}"));
        for number in 0..random.below(300) {
            let length = 1 + random.below(256) as usize;
            let name = format!("{number:03}{}", "x".repeat(length - length.min(3)));
            let content = name.clone().into_bytes();
            let id = image.data(&content);
            image.add(&format!("/{directory}/{name}"), inode(InodeKind::File(id)));
            contents.insert(id, content);
        }
    }
    let expected = expected(&image.tree, &contents);
    let (path, _) = image.finish();
    let mounted = Mounted::new(&path);
    check_same("kernel", &snapshot(mounted.path()), &expected);
    // By name, through the index.
    for path in expected.keys() {
        assert!(fs::symlink_metadata(mounted.path().join(text(&path[1.min(path.len())..]))).is_ok());
    }
    check_sqfs2tar(&path, &expected);
}

#[test]
fn deep_trees_need_no_deep_stack() {
    let directory = scratch();
    let mut image = Image::new(directory.path().join("deep.sqsh"), options(Compression::Zstd(3), 4096, 1));
    let depth = 100_000;
    for index in 0..depth {
        let InodeKind::Directory(entries) = &mut image.tree.inodes[index].kind else {
            panic!("no directory")
        };
        entries.push((b"d".to_vec(), index as u32 + 1));
        image.tree.inodes.push(inode(InodeKind::Directory(Vec::new())));
    }
    let (file, summary) = image.writer.finish(&image.tree).unwrap();
    drop(file);
    assert_eq!(summary.inodes, depth as u32 + 1);
    let mounted = Mounted::new(&image.path);
    let deep = mounted.path().join("d/".repeat(1500));
    assert!(fs::symlink_metadata(deep).unwrap().is_dir());
}

#[test]
fn hard_links_across_directories_share_one_inode() {
    let directory = scratch();
    let mut image = Image::new(directory.path().join("links.sqsh"), options(Compression::Zstd(3), 4096, 2));
    for name in ["/a", "/b", "/b/c"] {
        image.directory(name);
    }
    let file = image.file("/b/c/file", b"shared");
    let device = image.add("/device", inode(InodeKind::CharacterDevice(1, 3)));
    let symlink = image.add("/a/symlink", inode(InodeKind::Symlink(b"x".to_vec())));
    image.link(b"/a/file", file);
    image.link(b"/zfile", file);
    image.link(b"/b/device", device);
    image.link(b"/b/symlink", symlink);
    let contents = HashMap::from([(FileId(0), b"shared".to_vec())]);
    let expected = expected(&image.tree, &contents);
    let (path, summary) = image.finish();
    assert_eq!(summary.inodes, 7);
    check_kernel_and_unsquashfs(&path, &expected);
    check_sqfs2tar(&path, &expected);
    let mounted = Mounted::new(&path);
    assert_eq!(fs::metadata(mounted.path().join("a/file")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(mounted.path()).unwrap().nlink(), 4);
    assert_eq!(fs::metadata(mounted.path()).unwrap().ino(), 1);
}

#[test]
fn xattrs_of_every_kind_of_inode_are_kept() {
    // A version 2 capability of CAP_NET_RAW, permitted and effective: the kernel checks the form when it is
    // unpacked.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let directory = scratch();
    let mut image = Image::new(directory.path().join("xattrs.sqsh"), options(Compression::Gzip(9), 4096, 2));
    let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    let long = vec![b'l'; 3000];
    let kinds = [
        ("/dir", InodeKind::Directory(Vec::new())),
        ("/link", InodeKind::Symlink(b"target".to_vec())),
        ("/block", InodeKind::BlockDevice(8, 1)),
        ("/character", InodeKind::CharacterDevice(1, 9)),
        ("/fifo", InodeKind::Fifo),
        ("/socket", InodeKind::Socket),
    ];
    for (name, kind) in kinds {
        let xattrs = vec![pair("trusted.kind", name.as_bytes()), pair("security.long", &long)];
        image.add(name, Inode { xattrs, ..inode(kind) });
    }
    let id = image.data(b"with capability");
    let mut xattrs = vec![
        pair("user.empty", b""),
        pair("security.capability", &CAPABILITY),
        pair("user.binary", &[0, 255, b'\n', b'"', 0]),
        pair("trusted.long", &long),
    ];
    image.add("/file", Inode { xattrs: xattrs.clone(), ..inode(InodeKind::File(id)) });
    xattrs.reverse();
    image.add("/same", Inode { xattrs, ..inode(InodeKind::File(id)) });
    for number in 0..600u32 {
        let xattrs = vec![pair("user.number", &number.to_le_bytes()), pair("user.long", &long[..9])];
        image.add(&format!("/{number}"), Inode { xattrs, ..inode(InodeKind::File(id)) });
    }
    let contents = HashMap::from([(id, b"with capability".to_vec())]);
    let expected = expected(&image.tree, &contents);
    let (path, _) = image.finish();
    assert_eq!(superblock(&path).flags & flags::NO_XATTRS, 0);
    check_kernel_and_unsquashfs(&path, &expected);
}

#[test]
fn an_image_of_nothing_is_an_image() {
    let directory = scratch();
    let image = Image::new(directory.path().join("empty.sqsh"), options(Compression::Zstd(3), 131_072, 2));
    let expected = expected(&image.tree, &HashMap::new());
    let (path, summary) = image.finish();
    assert_eq!((summary.inodes, summary.data_bytes_in, summary.data_bytes_out), (1, 0, 0));
    assert_ne!(superblock(&path).flags & flags::NO_XATTRS, 0);
    check_kernel_and_unsquashfs(&path, &expected);
}

#[test]
fn a_full_disk_is_told_at_the_next_call() {
    for threads in [1, 2, 7] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut writer = Writer::create(full, options(Compression::Zstd(1), 65536, threads)).unwrap();
        let content = noise(&mut Random::new(10), 64 << 20);
        let error = write_all(&mut writer, &content).unwrap_err();
        let WriteError::Output { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(28), "{error}");
        // It stays dead, and neither hangs nor panics.
        assert!(matches!(writer.spare(), Err(WriteError::GivenUp)));
    }
}

#[test]
fn a_disk_that_fills_up_at_the_end_is_told_by_finish() {
    let directory = scratch();
    stdout(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(directory.path()));
    let directory = Mounted(directory);
    let file = File::create_new(directory.path().join("full.sqsh")).unwrap();
    let mut writer = Writer::create(file, options(Compression::Zstd(1), 65536, 2)).unwrap();
    write_all(&mut writer, &noise(&mut Random::new(11), 3 << 20)).unwrap();
    let tree = Tree { inodes: vec![inode(InodeKind::Directory(Vec::new()))], root: 0 };
    let error = writer.finish(&tree).unwrap_err();
    let WriteError::Output { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(28), "{error}");
    assert_eq!(error.hints(), ["free space on the destination's file system"]);
    let mut head = [1; 96];
    File::open(directory.path().join("full.sqsh")).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head, [0; 96], "nobody may take it for an image");
}

#[test]
fn the_caller_is_held_back_when_it_is_faster_than_the_threads() {
    for threads in [1, 3] {
        let mut writer =
            Writer::create(tempfile::tempfile().unwrap(), options(Compression::Lz4, 65536, threads)).unwrap();
        write_all(&mut writer, &noise(&mut Random::new(13), 32 << 20)).unwrap();
        // At most 16 blocks for each thread and 32 more are under way.
        let under_way = (16 * threads as u64 + 32) * 65536;
        assert!(writer.bytes_out() >= (32 << 20) - under_way, "{threads}: {}", writer.bytes_out());
    }
}

fn write_all(writer: &mut Writer, mut content: &[u8]) -> Result<FileId, WriteError> {
    writer.begin_file(content.len() as u64)?;
    while !content.is_empty() {
        let spare = writer.spare()?;
        let (now, later) = content.split_at(spare.len().min(content.len()));
        spare[..now.len()].copy_from_slice(now);
        writer.advance(now.len())?;
        content = later;
    }
    writer.end_file()
}

#[test]
fn a_writer_dropped_midway_stops_its_threads() {
    let directory = scratch();
    let path = directory.path().join("dropped");
    let file = File::create_new(&path).unwrap();
    file.lock().unwrap();
    let mut writer = Writer::create(file, options(Compression::Xz(9), 65536, 3)).unwrap();
    write_all(&mut writer, &prose(&mut Random::new(12), 4 << 20)).unwrap();
    writer.begin_file(10).unwrap();
    drop(writer);
    // The lock goes with the last thread that holds the file.
    File::open(&path).unwrap().try_lock().unwrap();
}

#[test]
fn calls_and_options_that_make_no_sense_are_refused() {
    let file = || tempfile::tempfile().unwrap();
    for block_size in [0, 1, 2048, 5000, 4097, 2 << 20, 1 << 31] {
        let refused = Writer::create(file(), options(Compression::Lz4, block_size, 1));
        assert!(matches!(refused, Err(WriteError::BlockSize(size)) if size == block_size));
    }
    for compression in [
        Compression::Zstd(0),
        Compression::Zstd(23),
        Compression::Zstd(-1),
        Compression::Gzip(0),
        Compression::Gzip(13),
        Compression::Xz(10),
    ] {
        let refused = Writer::create(file(), options(compression, 4096, 1));
        assert!(matches!(refused, Err(WriteError::Compress(_))), "{compression:?}");
    }
    let new = || Writer::create(file(), options(Compression::Zstd(3), 4096, 0)).unwrap();
    let tree = Tree { inodes: vec![inode(InodeKind::Directory(Vec::new()))], root: 0 };

    assert!(matches!(new().end_file(), Err(WriteError::OutOfTurn(_))));
    assert!(matches!(new().spare(), Err(WriteError::OutOfTurn(_))));
    assert!(matches!(new().skip(1), Err(WriteError::OutOfTurn(_))));
    let mut writer = new();
    writer.begin_file(10).unwrap();
    assert!(matches!(writer.begin_file(10), Err(WriteError::OutOfTurn(_))));
    assert!(matches!(writer.advance(11), Err(WriteError::FileLength { expected: 10, got: 11 })));
    assert!(matches!(writer.skip(11), Err(WriteError::FileLength { expected: 10, got: 11 })));
    writer.advance(9).unwrap();
    assert!(matches!(writer.end_file(), Err(WriteError::FileLength { expected: 10, got: 9 })));
    assert!(matches!(writer.finish(&tree), Err(WriteError::OutOfTurn(_))));
    let limit = 4096 * FILE_BLOCKS_MAX;
    assert!(matches!(new().begin_file(limit + 1), Err(WriteError::FileTooLarge { .. })));
    let dangling = Tree { inodes: vec![inode(InodeKind::Directory(vec![(b"x".to_vec(), 1)]))], root: 0 };
    let error = new().finish(&dangling).unwrap_err();
    assert_eq!(error.to_string(), "cannot store /x");
    assert!(matches!(error, WriteError::Entry { source: EntryError::NoInode(1), .. }));
}
