//! The squashfs reader against the kernel's, on images of three foreign writers with every codec and layout.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use hpcrun::hint::Hint;
use hpcrun::squashfs::format::{InodeRef, SUPERBLOCK_SIZE};
use hpcrun::squashfs::reader::{
    Directory, FileLayout, Filesystem, Inode, InodeKind, Piece, ReadError, ReaderOptions, Xattr,
};

use crate::support::{Random, is_root, run, scratch, seed, stdout, text};

/// What must be equal between two readings of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    nlink: u64,
    inode: u64,
    content: Content,
    xattrs: Vec<Xattr>,
}

/// File content, kept small in messages.
#[derive(PartialEq, Eq)]
pub(crate) struct Content(Vec<u8>);

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {:?}...", self.0.len(), text(&self.0[..self.0.len().min(40)]))
    }
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Record>;

pub(crate) fn open(path: &Path) -> Filesystem {
    open_with(path, ReaderOptions::default())
}

#[track_caller]
fn open_with(path: &Path, options: ReaderOptions) -> Filesystem {
    match Filesystem::open(File::open(path).unwrap(), 0, options) {
        Ok(filesystem) => filesystem,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn cache_of(bytes: usize) -> ReaderOptions {
    ReaderOptions { data_cache_bytes: bytes, metadata_cache_bytes: bytes }
}

fn file_of(filesystem: &Filesystem, path: &str) -> FileLayout {
    match filesystem.resolve(path.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path} is missing")).kind {
        InodeKind::File(file) => file,
        other => panic!("{path}: {other:?}"),
    }
}

fn directory_of(filesystem: &Filesystem, path: &str) -> Directory {
    match filesystem.resolve(path.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path} is missing")).kind {
        InodeKind::Directory(directory) => directory,
        other => panic!("{path}: {other:?}"),
    }
}

/// Reads the whole tree with the reader under test; content by pieces of an odd length.
pub(crate) fn read_tree(filesystem: &Filesystem) -> Tree {
    let mut tree = Tree::new();
    let each = &mut |path: &[u8], inode: &Inode| {
        tree.insert(path.to_vec(), record(filesystem, inode));
        ControlFlow::Continue(())
    };
    filesystem.walk(each).unwrap();
    tree
}

fn record(filesystem: &Filesystem, inode: &Inode) -> Record {
    let (kind, content) = match &inode.kind {
        InodeKind::Directory(_) => ("directory".to_owned(), Vec::new()),
        InodeKind::File(file) => ("file".to_owned(), read_by(filesystem, file, 77_777)),
        InodeKind::Symlink(target) => ("symlink".to_owned(), target.to_vec()),
        InodeKind::BlockDevice(major, minor) => (format!("block {major} {minor}"), Vec::new()),
        InodeKind::CharacterDevice(major, minor) => (format!("character {major} {minor}"), Vec::new()),
        InodeKind::Fifo => ("fifo".to_owned(), Vec::new()),
        InodeKind::Socket => ("socket".to_owned(), Vec::new()),
        other => panic!("{other:?}"),
    };
    let mut xattrs = inode.xattr.map_or(Vec::new(), |index| {
        let all = filesystem.xattrs(index).unwrap();
        for (name, value) in &all {
            assert_eq!(filesystem.xattr(index, name).unwrap().as_ref(), Some(value));
        }
        assert_eq!(filesystem.xattr(index, b"user.absent").unwrap(), None);
        all
    });
    xattrs.sort();
    Record {
        kind,
        mode: inode.mode.into(),
        owner: (inode.uid, inode.gid),
        mtime: inode.mtime.into(),
        nlink: inode.nlink.into(),
        inode: inode.number.into(),
        content: Content(content),
        xattrs,
    }
}

fn read_by(filesystem: &Filesystem, file: &FileLayout, step: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < file.size {
        let before = bytes.len();
        for piece in filesystem.read(file, before as u64, step).unwrap() {
            bytes.extend_from_slice(&filesystem.bytes_of(&piece).unwrap());
        }
        assert!(bytes.len() > before && bytes.len() - before <= step);
    }
    bytes
}

/// Reads the tree below a directory with the kernel.
fn kernel_tree(root: &Path) -> Tree {
    let xattrs = kernel_xattrs(root);
    let mut tree = Tree::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        let mut content = Vec::new();
        let kind = if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else if kind.is_file() {
            content = fs::read(&path).unwrap();
            "file".to_owned()
        } else if kind.is_symlink() {
            content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
            "symlink".to_owned()
        } else if kind.is_block_device() {
            format!("block {major} {minor}")
        } else if kind.is_char_device() {
            format!("character {major} {minor}")
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            "socket".to_owned()
        };
        let name = [b"/", path.strip_prefix(root).unwrap().as_os_str().as_bytes()].concat();
        let record = Record {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: metadata.mtime(),
            nlink: metadata.nlink(),
            inode: metadata.ino(),
            content: Content(content),
            xattrs: xattrs.get(&path).cloned().unwrap_or_default(),
        };
        tree.insert(name, record);
    }
    tree
}

/// All xattrs below a directory, through getfattr.
fn kernel_xattrs(root: &Path) -> HashMap<PathBuf, Vec<Xattr>> {
    let output = run(Command::new("getfattr")
        .args(["-R", "-h", "-P", "-d", "-m", "-", "-e", "hex", "--absolute-names"])
        .arg(root));
    // What the kernel says of an image without xattrs.
    let refused = text(&output.stderr).lines().any(|line| !line.ends_with(": Operation not supported"));
    assert!(!refused, "{}", text(&output.stderr));
    let dump = text(&output.stdout);
    let mut all: HashMap<PathBuf, Vec<Xattr>> = HashMap::new();
    let mut path = PathBuf::new();
    for line in dump.lines() {
        if let Some(name) = line.strip_prefix("# file: ") {
            path = PathBuf::from(name);
        } else if let Some((name, value)) = line.split_once('=') {
            let hex = value.strip_prefix("0x").unwrap().as_bytes();
            let value = hex.chunks(2).map(|pair| u8::from_str_radix(&text(pair), 16).unwrap()).collect();
            all.entry(path.clone()).or_default().push((name.into(), value));
        } else if !line.is_empty() {
            all.entry(path.clone()).or_default().push((line.into(), Vec::new()));
        }
    }
    all.values_mut().for_each(|xattrs| xattrs.sort());
    all
}

#[track_caller]
pub(crate) fn assert_equal(ours: &Tree, theirs: &Tree, what: &str) {
    let names = |tree: &Tree| tree.keys().map(|name| text(name)).collect::<BTreeSet<_>>();
    let (our_names, their_names) = (names(ours), names(theirs));
    let differing: Vec<_> = our_names.symmetric_difference(&their_names).take(5).collect();
    assert!(differing.is_empty(), "{what}: only one side has {differing:?}");
    for (name, record) in ours {
        assert!(*record == theirs[name], "{what}: {}: {record:?} against {:?}", text(name), theirs[name]);
    }
}

/// An image mounted by the kernel for as long as this lives.
struct KernelMount(tempfile::TempDir);

impl KernelMount {
    #[track_caller]
    fn new(image: &Path) -> KernelMount {
        assert!(is_root(), "the kernel as an oracle needs root");
        let dir = scratch();
        stdout(Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).args([image, dir.path()]));
        KernelMount(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.path()));
    }
}

/// Bytes that compress to about half.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|at| if at % 64 < 32 { (random.next() % 256) as u8 } else { (at / 64) as u8 }).collect()
}

/// A source tree with everything that squashfs can hold, made once and removed with its last user.
pub(crate) fn source_tree() -> Arc<tempfile::TempDir> {
    static TREE: Mutex<Weak<tempfile::TempDir>> = Mutex::new(Weak::new());
    let mut tree = TREE.lock().unwrap();
    tree.upgrade().unwrap_or_else(|| {
        let dir = scratch();
        fill_source_tree(dir.path());
        let made = Arc::new(dir);
        *tree = Arc::downgrade(&made);
        made
    })
}

/// One of the names of a directory whose listing is long enough for an index.
fn many(at: u32) -> String {
    format!("many/entry-number-{at:05}-{}", "long".repeat(at as usize % 20))
}

const SIZES: [usize; 14] =
    [0, 1, 2, 4095, 4096, 4097, 8192, 131_071, 131_072, 131_073, 262_144, 300_001, 1_048_576, 1_234_567];

fn fill_source_tree(root: &Path) {
    for (at, size) in SIZES.into_iter().enumerate() {
        fs::write(root.join(format!("size-{size}")), bytes(at as u64, size)).unwrap();
    }
    fs::write(root.join("zeros"), vec![0; 700_000]).unwrap();
    let mut random = Random::new(99);
    let noise: Vec<u8> = (0..300_000).map(|_| (random.next() >> 20) as u8).collect();
    fs::write(root.join("noise"), noise).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(5_000_000).unwrap();
    sparse.write_all_at(b"in the middle", 2_222_222).unwrap();
    sparse.write_all_at(b"at the end", 4_999_990).unwrap();
    fs::copy(root.join("size-300001"), root.join("duplicate")).unwrap();
    fs::hard_link(root.join("size-4097"), root.join("hard-link")).unwrap();
    fs::create_dir_all(root.join("deep/a/b/c/d/e/f")).unwrap();
    fs::hard_link(root.join("size-4097"), root.join("deep/a/b/hard-link")).unwrap();
    fs::write(root.join("deep/a/b/c/d/e/f/leaf"), "leaf\n").unwrap();
    symlink("size-1", root.join("link")).unwrap();
    symlink("x/".repeat(2000), root.join("long-link")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for at in 0..1500 {
        fs::write(root.join(many(at)), format!("{at}\n")).unwrap();
    }
    fs::create_dir(root.join("names")).unwrap();
    for name in ["-", "...", "a b", "ue-\u{fc}", &"n".repeat(255), "back\\slash", "new\nline"] {
        fs::write(root.join("names").join(name), name).unwrap();
    }
    fs::write(root.join("names").join(OsStr::from_bytes(b"\xff\xfe\x80")), "not utf-8").unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    for (name, mode) in [("size-2", 0o4755), ("size-4095", 0o2710), ("size-8192", 0), ("empty", 0o1777)] {
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    set_xattrs(root);
    if is_root() {
        make_nodes(root);
    }
    for (name, seconds) in [("size-0", 0), ("size-1", 1), ("noise", 4_000_000_000), ("deep/a", 1_234_567_890)]
    {
        let file = File::open(root.join(name)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }
}

fn set_xattrs(root: &Path) {
    let mut dump = String::new();
    let mut set = |path: &str, pairs: &[(&str, &str)]| {
        dump += &format!("# file: {path}\n");
        dump.extend(pairs.iter().map(|(name, value)| format!("{name}=\"{value}\"\n")));
        dump += "\n";
    };
    set("size-1", &[("user.one", "1"), ("user.empty", "")]);
    set("deep", &[("user.on-a-directory", "yes")]);
    // A value that several inodes share is stored once, out of line.
    let shared = "shared value ".repeat(20);
    for at in 0..200 {
        set(&many(at), &[("user.shared", &shared), ("user.own", &format!("value number {at}"))]);
    }
    if is_root() {
        set("size-2", &[("trusted.overlay.opaque", "y")]);
        set("size-4096", &[("security.other", "label"), ("trusted.x", "\\000\\001\\377")]);
        set("link", &[("trusted.on-a-link", "too")]);
        set("size-300001", &[("user.long", &"0123456789abcdef".repeat(200))]);
    }
    let path = scratch();
    let path = path.path().join("xattrs");
    fs::write(&path, dump).unwrap();
    stdout(Command::new("setfattr").arg("-h").arg(format!("--restore={}", path.display())).current_dir(root));
}

fn make_nodes(root: &Path) {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    for (name, kind, major, minor) in [
        ("null", SFlag::S_IFCHR, 1, 3),
        ("disk", SFlag::S_IFBLK, 8, 17),
        ("large", SFlag::S_IFCHR, 4095, 1_048_575),
        ("odd", SFlag::S_IFBLK, 259, 70_000),
    ] {
        mknod(&root.join(name), kind, Mode::from_bits_truncate(0o620), makedev(major, minor)).unwrap();
    }
    for (name, uid, gid) in [("size-1", 1000, 100), ("many", 4_000_000_000, 65_534), ("fifo", 1, 0)] {
        chown(root.join(name), Some(uid), Some(gid)).unwrap();
    }
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        &root.join("link"),
        Some(7.into()),
        Some(8.into()),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// `mksquashfs` of the source tree with the options given.
pub(crate) fn make_image(options: &str) -> (tempfile::TempDir, PathBuf) {
    make_image_of(source_tree().path(), options)
}

pub(crate) fn make_image_of(source: &Path, options: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let image = dir.path().join("image.sqsh");
    stdout(
        Command::new("mksquashfs")
            .args([source, &image])
            .args(["-noappend", "-no-progress", "-quiet"])
            .args(options.split_whitespace()),
    );
    (dir, image)
}

/// Reads an image in several ways, all of which must agree with the kernel's mount of it.
#[track_caller]
pub(crate) fn check_against_kernel(image: &Path, what: &str) {
    let mount = KernelMount::new(image);
    let theirs = kernel_tree(mount.path());
    let filesystem = open(image);
    let ours = read_tree(&filesystem);
    assert_equal(&ours, &theirs, what);
    assert_equal(&read_tree(&filesystem), &ours, "second walk");
    assert_equal(&read_tree(&open_with(image, cache_of(60_000))), &ours, "with tiny caches");
    check_lookups(&filesystem, &ours);
}

/// Every name is found, one that is not there is not, and the export table agrees.
fn check_lookups(filesystem: &Filesystem, tree: &Tree) {
    for (path, record) in tree.iter().filter(|(path, _)| path.len() > 1) {
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap();
        let (parent, name) = (&path[..slash.max(1)], &path[slash + 1..]);
        let parent = filesystem.resolve(parent).unwrap().unwrap();
        let InodeKind::Directory(directory) = &parent.kind else { panic!("{parent:?}") };
        let found =
            filesystem.lookup_inode(directory, name).unwrap().unwrap_or_else(|| panic!("{}", text(path)));
        assert_eq!(u64::from(found.number), record.inode);
        assert_eq!(filesystem.lookup(directory, name).unwrap(), Some(found.reference));
        if let Some(reference) = filesystem.inode_by_number(found.number).unwrap() {
            assert_eq!(reference, found.reference);
        }
        for absent in [[name, b"~"].concat(), name[..name.len() - 1].to_vec(), [b"!", name].concat()] {
            let there = tree.contains_key(&[&path[..=slash], &absent].concat());
            assert_eq!(filesystem.lookup(directory, &absent).unwrap().is_some(), there && !absent.is_empty());
        }
    }
    assert_eq!(filesystem.inode_by_number(0).unwrap(), None);
    assert_eq!(filesystem.inode_by_number(u32::MAX).unwrap(), None);
}

#[test]
fn every_codec_reads_as_the_kernel_does() {
    let _source = source_tree();
    for codec in ["gzip", "xz", "lz4", "zstd"] {
        let (_dir, image) = make_image(&format!("-comp {codec}"));
        check_against_kernel(&image, codec);
    }
}

#[test]
fn every_layout_reads_as_the_kernel_does() {
    let _source = source_tree();
    for options in [
        "-comp zstd -Xcompression-level 3 -b 4K",
        "-comp gzip -Xcompression-level 1 -b 1M",
        "-comp lz4 -Xhc -b 64K -always-use-fragments",
        "-comp zstd -Xcompression-level 1 -no-fragments",
        "-comp gzip -noI -noD -noF -noX",
        "-comp gzip -noI -always-use-fragments -b 16K",
        "-comp zstd -Xcompression-level 1 -noD -noX -no-exports",
        "-comp zstd -Xcompression-level 1 -noF -no-duplicates -no-hardlinks",
        "-comp xz -b 8K -Xbcj x86 -no-sparse",
        "-comp gzip -no-xattrs -all-root",
    ] {
        let (_dir, image) = make_image(options);
        check_against_kernel(&image, options);
    }
}

#[test]
fn images_of_other_writers_read_as_the_kernel_does() {
    let _source = source_tree();
    let (dir, image) = make_image("-comp gzip -Xcompression-level 1");
    let tar = dir.path().join("tree.tar");
    stdout(Command::new("sh").arg("-c").arg(format!("sqfs2tar {} > {}", image.display(), tar.display())));
    for command in [
        "tar2sqfs -q -c zstd -X level=3 OUT < TAR",
        "tar2sqfs -q -c lz4 -b 16384 OUT < TAR",
        "tar2sqfs -q -c gzip -x OUT < TAR",
        "sqfstar -quiet -no-progress -comp gzip OUT < TAR",
        "gensquashfs -q -c xz -b 65536 --pack-dir SOURCE OUT",
    ] {
        let out = dir.path().join("other.sqsh");
        let line = command
            .replace("OUT", out.to_str().unwrap())
            .replace("TAR", tar.to_str().unwrap())
            .replace("SOURCE", source_tree().path().to_str().unwrap());
        stdout(Command::new("sh").arg("-c").arg(line));
        check_against_kernel(&out, command);
        fs::remove_file(out).unwrap();
    }
}

#[test]
fn a_squashfs_inside_a_larger_file_reads_the_same() {
    let (dir, image) = make_image("-comp zstd -Xcompression-level 1 -nopad");
    let expected = read_tree(&open(&image));
    let squashfs = fs::read(&image).unwrap();
    for (before, after) in [(1, 0), (4096, 1), (12_345, 100_000)] {
        let path = dir.path().join("partition");
        fs::write(&path, [&vec![0xa5; before], squashfs.as_slice(), &vec![0xa5; after]].concat()).unwrap();
        let file = File::open(&path).unwrap();
        let filesystem = Filesystem::open(file, before as u64, ReaderOptions::default()).unwrap();
        assert_equal(&read_tree(&filesystem), &expected, "at an offset");
        let file = File::open(&path).unwrap();
        let error = Filesystem::open(file, before as u64 + 1, ReaderOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("no squashfs at byte {}", before + 1));
    }
}

/// Reads at random from several threads through one `Filesystem`; every byte is compared with the source.
fn read_concurrently(filesystem: &Filesystem, names: &[&str], seed: u64, reads: usize) {
    let seed = crate::support::seed().wrapping_mul(1_000_003).wrapping_add(seed);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                let mut random = Random::new(seed.wrapping_add(thread));
                for _ in 0..reads {
                    let name = names[random.below(names.len() as u64) as usize];
                    let file = file_of(filesystem, &format!("/{name}"));
                    let offset = random.below(file.size + 10);
                    let magnitude = random.below(20);
                    let length = random.below(1 << magnitude) as usize;
                    let got = filesystem.read_bytes(&file, offset, length).unwrap();
                    let wanted = length.min(file.size.saturating_sub(offset) as usize);
                    let mut expected = vec![0; wanted];
                    File::open(source_tree().path().join(name))
                        .unwrap()
                        .read_exact_at(&mut expected, offset)
                        .unwrap();
                    assert!(got == expected, "{name}: {length} bytes at {offset}");
                }
            });
        }
    });
}

#[test]
fn threads_read_odd_pieces_through_caches_of_any_size() {
    let _source = source_tree();
    let names = [
        "size-300001",
        "size-1234567",
        "size-131073",
        "zeros",
        "noise",
        "sparse",
        "many/entry-number-00042-longlong",
    ];
    for options in ["-comp zstd -Xcompression-level 1 -b 64K -always-use-fragments", "-comp lz4 -b 4K"] {
        let (_dir, image) = make_image(options);
        for (at, bytes) in [0, 5000, 200_000, 32 << 20].into_iter().enumerate() {
            read_concurrently(&open_with(&image, cache_of(bytes)), &names, 1000 * at as u64, 300);
        }
    }
}

#[test]
fn prefetched_and_plain_reads_agree() {
    let _source = source_tree();
    let (_dir, image) = make_image("-comp zstd -Xcompression-level 1 -b 16K");
    let filesystem = open(&image);
    let file = file_of(&filesystem, "/size-1234567");
    filesystem.prefetch(&file, 100_000, 500_000).unwrap();
    filesystem.prefetch(&file, u64::MAX - 5, usize::MAX).unwrap();
    filesystem.prefetch(&file, 0, usize::MAX).unwrap();
    let expected = fs::read(source_tree().path().join("size-1234567")).unwrap();
    assert!(filesystem.read_bytes(&file, 0, usize::MAX).unwrap() == expected);
    assert!(filesystem.read(&file, file.size, 1).unwrap().is_empty());
    assert!(filesystem.read(&file, 0, 0).unwrap().is_empty());
    assert!(filesystem.read(&file, u64::MAX, usize::MAX).unwrap().is_empty());
}

#[test]
fn reading_once_gives_the_same_as_reading() {
    let _source = source_tree();
    let (_dir, image) = make_image("-comp zstd -Xcompression-level 1 -b 16K");
    let filesystem = open(&image);
    let file = file_of(&filesystem, "/size-1234567");
    let expected = fs::read(source_tree().path().join("size-1234567")).unwrap();
    for step in [5_000, 16_384, 40_000, 131_072] {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < file.size {
            for piece in filesystem.read_once(&file, bytes.len() as u64, step).unwrap() {
                bytes.extend_from_slice(&filesystem.bytes_of(&piece).unwrap());
            }
        }
        assert!(bytes == expected, "in steps of {step}");
    }
}

#[test]
fn the_files_of_the_inode_table_are_those_of_the_tree() {
    let _source = source_tree();
    let (_dir, image) = make_image("-comp zstd -Xcompression-level 1 -b 16K");
    let filesystem = open(&image);
    let first = InodeRef::new(0, 0);
    let mut expected = BTreeSet::new();
    let walked = &mut |_: &[u8], inode: &Inode| {
        if matches!(inode.kind, InodeKind::File(_)) && inode.reference != first {
            expected.insert(inode.reference.0);
        }
        ControlFlow::Continue(())
    };
    filesystem.walk(walked).unwrap();
    let mut found = Vec::new();
    let each = &mut |reference: InodeRef, layout: FileLayout| {
        match filesystem.inode(reference).unwrap().kind {
            InodeKind::File(same) => assert_eq!(same.size, layout.size),
            other => panic!("{other:?}"),
        }
        found.push(reference.0);
        ControlFlow::Continue(())
    };
    filesystem.files_after(first, each).unwrap();
    assert!(found.len() > 100, "{}", found.len());
    assert!(found.iter().eq(&expected), "{} found, {} in the tree", found.len(), expected.len());
    let mut few = 0;
    let each = &mut |_: InodeRef, _: FileLayout| {
        few += 1;
        if few < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    filesystem.files_after(first, each).unwrap();
    assert_eq!(few, 3);
}

#[test]
fn holes_cost_no_memory() {
    let (_dir, image) = make_image("-comp gzip");
    let filesystem = open(&image);
    let zeros = file_of(&filesystem, "/zeros");
    let pieces = filesystem.read(&zeros, 1, 650_000).unwrap();
    assert!(matches!(pieces.as_slice(), [Piece::Zero(650_000)]), "{pieces:?}");
}

/// A file of over 4 GiB with a million blocks: positions at random must not add up the whole block list each time.
#[test]
fn a_huge_sparse_file_reads_at_random() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("huge")).unwrap();
    let size = (4 << 30) + 12_345_678;
    file.set_len(size).unwrap();
    let mut random = Random::new(seed());
    let mut marks = BTreeMap::new();
    for at in 0..2000_u64 {
        let offset = random.below(size - 8) / 8 * 8;
        file.write_all_at(&at.to_le_bytes(), offset).unwrap();
        marks.insert(offset, at);
    }
    // Of the writers at hand, this one alone does not read the holes.
    let image = dir.path().join("huge.sqsh");
    let line = format!(
        "tar -c --sparse -C {} huge | tar2sqfs -q -c lz4 -b 4096 {}",
        source.display(),
        image.display()
    );
    stdout(Command::new("sh").arg("-c").arg(line));
    let filesystem = open(&image);
    let huge = file_of(&filesystem, "/huge");
    assert_eq!(huge.size, size);
    let first = Instant::now();
    filesystem.read_bytes(&huge, size - 1, 1).unwrap();
    let (first, rest) = (first.elapsed(), Instant::now());
    for (offset, mark) in &marks {
        // A fresh layout each time, as a stateless server has it.
        let huge = file_of(&filesystem, "/huge");
        assert_eq!(filesystem.read_bytes(&huge, *offset, 8).unwrap(), mark.to_le_bytes());
    }
    let (count, rest) = (marks.len() as u32, rest.elapsed());
    println!("the last byte first: {first:?}; then {:?} for each of {count} reads at random", rest / count);
    assert!(rest < Duration::from_secs(10), "{rest:?}");
}

/// An image with one directory of 100,000 entries, by the writer named; `SOURCE` is the tree.
fn wide_image(writer: &str, entries: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let (source, image) = (dir.path().join("source"), dir.path().join("wide.sqsh"));
    fs::create_dir_all(source.join("wide")).unwrap();
    for at in 0..entries {
        File::create(source.join("wide").join(wide_name(at))).unwrap();
    }
    let line = writer.replace("OUT", image.to_str().unwrap()).replace("SOURCE", source.to_str().unwrap());
    stdout(Command::new("sh").arg("-c").arg(line));
    (dir, image)
}

fn wide_name(at: u32) -> String {
    format!("entry-{at:06}-{}", "x".repeat(at as usize % 60))
}

/// Lists a directory in several goes, each of which continues where the last broke off.
fn list_in_goes(
    filesystem: &Filesystem,
    directory: &Directory,
    mut go: impl FnMut() -> u64,
) -> Vec<(Vec<u8>, u64)> {
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let (before, from, mut left) = (names.len(), cookie, go());
        let each = &mut |entry: hpcrun::squashfs::reader::Entry<'_>| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            cookie = entry.next;
            assert_ne!(cookie, 0);
            assert!(i64::try_from(cookie).is_ok(), "a directory offset is signed");
            names.push((entry.name.to_vec(), cookie));
            ControlFlow::Continue(())
        };
        filesystem.read_directory(directory, from, each).unwrap();
        if names.len() == before {
            return names;
        }
    }
}

#[test]
fn a_directory_of_100000_entries() {
    // The other writers take minutes for as many.
    for (writer, entries) in [
        ("mksquashfs SOURCE OUT -quiet -no-progress -comp gzip", 100_000),
        ("tar -c -C SOURCE wide | tar2sqfs -q -c zstd -X level=1 OUT", 5_000),
    ] {
        let (_dir, image) = wide_image(writer, entries);
        let filesystem = open(&image);
        let wide = directory_of(&filesystem, "/wide");
        let started = Instant::now();
        let all = list_in_goes(&filesystem, &wide, || u64::MAX);
        let expected: BTreeSet<_> = (0..entries).map(wide_name).collect();
        assert!(all.iter().map(|(name, _)| text(name)).eq(expected), "{writer}");
        let whole = started.elapsed();

        let mut random = Random::new(5);
        let started = Instant::now();
        let goes = list_in_goes(&filesystem, &wide, || 1 + random.below(60));
        let in_goes = started.elapsed();
        assert!(goes == all, "{writer}");

        let cookies: BTreeSet<_> = all.iter().map(|(_, cookie)| cookie).collect();
        assert_eq!(cookies.len(), all.len());
        for _ in 0..500 {
            let at = random.below(all.len() as u64 - 1) as usize;
            let mut next = None;
            let each = &mut |entry: hpcrun::squashfs::reader::Entry<'_>| {
                next = Some((entry.name.to_vec(), entry.next));
                ControlFlow::Break(())
            };
            filesystem.read_directory(&wide, all[at].1, each).unwrap();
            assert_eq!(next.as_ref(), Some(&all[at + 1]));
        }
        filesystem.read_directory(&wide, all.last().unwrap().1, &mut |entry| panic!("{entry:?}")).unwrap();
        filesystem.read_directory(&wide, u64::MAX, &mut |entry| panic!("{entry:?}")).unwrap();

        let started = Instant::now();
        for at in (0..entries).step_by(37) {
            assert!(filesystem.lookup(&wide, wide_name(at).as_bytes()).unwrap().is_some());
            assert!(filesystem.lookup(&wide, format!("entry-{at:06}~").as_bytes()).unwrap().is_none());
        }
        let lookup = started.elapsed() / (entries / 37 * 2);
        println!("{writer}: list {whole:?}, in small goes {in_goes:?}, a look-up {lookup:?}");
        assert!(in_goes < Duration::from_secs(10), "{in_goes:?}");
    }
}

#[test]
fn resolves_paths_inside_the_image_only() {
    let dir = scratch();
    let root = dir.path().join("source");
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("usr/bin/sh"), "shell").unwrap();
    fs::write(root.join("a/file"), "file").unwrap();
    for (name, target) in [
        ("bin", "usr/bin"),
        ("abs", "/usr/bin/sh"),
        ("out", "../../../../usr/bin/sh"),
        ("a/b/up", "../../bin/sh"),
        ("a/b/out", "/../../a/file"),
        ("loop", "loop"),
        ("ping", "pong"),
        ("pong", "ping"),
        ("dangling", "nowhere/at/all"),
        ("through-file", "a/file/x"),
        ("root", "/"),
        ("slash", "a/file/"),
    ] {
        symlink(target, root.join(name)).unwrap();
    }
    for at in 0..41 {
        let target = if at == 0 { "a/file".to_owned() } else { format!("chain-{}", at - 1) };
        symlink(target, root.join(format!("chain-{at}"))).unwrap();
    }
    let (_dir, image) = make_image_of(&root, "-comp gzip");
    let filesystem = open(&image);
    let content = |path: &str| {
        filesystem.read_bytes(&file_of(&filesystem, path), 0, 100).map(|all| text(&all)).unwrap()
    };
    for path in ["/usr/bin/sh", "/bin/sh", "bin/sh", "/abs", "/out", "/a/b/up", "//usr/./bin/../bin//sh"] {
        assert_eq!(content(path), "shell", "{path}");
    }
    for path in [
        "/a/b/out",
        "/root/a/file",
        "/../../a/file",
        "/chain-39",
        "/a/b/../file",
        "/root/root/root/a/b/../file",
    ] {
        assert_eq!(content(path), "file", "{path}");
    }
    for path in [
        "/dangling",
        "/nothing",
        "/a/file/x",
        "/a/file/",
        "/a/file/.",
        "/a/file/..",
        "/through-file",
        "/slash",
        "/abs/",
        &format!("/{}", "n".repeat(300)),
    ] {
        assert!(filesystem.resolve(path.as_bytes()).unwrap().is_none(), "{path}");
    }
    for path in ["/", "", "/..", "/root", "/root/", "/a/..", "/bin/../.."] {
        let found = filesystem.resolve(path.as_bytes()).unwrap().unwrap();
        assert_eq!(found.reference, filesystem.root(), "{path}");
    }
    for path in ["/loop", "/ping/x", "/chain-40"] {
        let error = filesystem.resolve(path.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), format!("too many symbolic links in {path}"));
    }
}

#[test]
fn refuses_what_it_cannot_read_with_the_reason() {
    let (dir, image) = make_image("-comp gzip -Xcompression-level 1 -nopad");
    let good = fs::read(&image).unwrap();
    let path = dir.path().join("bad");
    let refusal = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        let error = Filesystem::open(File::open(&path).unwrap(), 0, ReaderOptions::default()).unwrap_err();
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        (format!("{error}{source}"), error.hints().join("; "))
    };
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let length = good.len();
    let check = |content: &[u8], message: &str, hint: &str| {
        assert_eq!(refusal(content), (message.to_owned(), hint.to_owned()));
    };
    check(&[], "no squashfs at byte 0: 0 bytes are too few for a squashfs superblock of 96 bytes", "");
    check(
        &[7; 5000],
        "no squashfs at byte 0: not a squashfs file: magic number is 0x07070707, not 0x73717368",
        "",
    );
    check(
        &good[..length - 1],
        &format!("image is truncated: it is {} bytes long, its superblock says {length}", length - 1),
        "the copy was cut short: copy or convert the image again",
    );
    let unpack = "the tool that wrote it may unpack it; then pack it with mksquashfs -comp zstd";
    for id in [0, 7, 255] {
        let message = format!("image is compressed with codec {id}, which squashfs 4.0 does not have");
        check(&patched(20, &[id]), &message, unpack);
    }
    let error = Filesystem::open(File::open("/").unwrap(), 0, ReaderOptions::default()).unwrap_err();
    assert!(matches!(error, ReadError::Io { offset: 0, length: 96, .. }), "{error}");
}

/// A file that shrinks under its reader gives errors, never old bytes or a crash.
#[test]
fn an_image_cut_while_open_gives_io_errors() {
    let (_dir, image) = make_image("-comp gzip -Xcompression-level 1");
    let filesystem = open_with(&image, cache_of(0));
    let file = file_of(&filesystem, "/size-1234567");
    File::options().write(true).open(&image).unwrap().set_len(SUPERBLOCK_SIZE as u64).unwrap();
    let error = filesystem.read(&file, 0, 10).unwrap_err();
    assert!(error.to_string().contains("the file ends") || matches!(error, ReadError::Io { .. }), "{error}");
    assert!(filesystem.inode(filesystem.root()).is_err());
}

#[test]
fn opening_costs_little_and_an_unknown_reference_is_refused() {
    let (_dir, image) = make_image("-comp zstd -Xcompression-level 1");
    let mut best = Duration::MAX;
    for _ in 0..50 {
        let started = Instant::now();
        let filesystem = open(&image);
        best = best.min(started.elapsed());
        for reference in [0x7fff, 1 << 40, u64::MAX, u64::MAX >> 16 << 16] {
            assert!(filesystem.inode(InodeRef(reference)).is_err(), "{reference:#x}");
        }
        assert!(filesystem.xattrs(1_000_000).is_err());
    }
    println!("open: {best:?}");
    assert!(best < Duration::from_millis(20), "{best:?}");
}
