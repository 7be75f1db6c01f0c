//! The whole conversion in-process: what comes out, what is refused, and that nothing is left behind.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on may panic"
)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use hpcrun::convert::source::{Source, SourceError, SourceImage};
use hpcrun::convert::{
    Budget, ConvertError, ConvertOptions, Destination, LayerState, Progress, Summary, convert,
};
use hpcrun::image::digest::Digest;

use crate::layer_building::{Member, MemoryImage, chain, layer, padded, tar};
use crate::support::{self, Random};

fn options(jobs: usize) -> ConvertOptions {
    ConvertOptions { jobs, ..ConvertOptions::default() }
}

fn convert_to(image: &dyn Source, path: &Path, options: &ConvertOptions) -> Result<Summary, ConvertError> {
    let progress = Progress::new(image.image());
    convert(image, &Destination::new(path), options, &progress, |_| Vec::new())
}

/// Converts tars, bottom first, in `dir`; gives the root that `unsquashfs` makes of the image file.
pub(crate) fn convert_and_unsquash(dir: &Path, tars: &[Vec<u8>]) -> Result<PathBuf, String> {
    std::fs::create_dir_all(dir).expect("scratch");
    let image = dir.join("image.sqsh");
    let source = MemoryImage::plain(tars.to_vec());
    convert_to(&source, &image, &options(2)).map_err(|error| chain(&error))?;
    Ok(unsquash(&image))
}

fn unsquash(image: &Path) -> PathBuf {
    let root = image.with_extension("root");
    support::stdout(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&root).arg(image));
    root
}

/// The root that `umoci unpack` makes of tars, bottom first; none if it refuses them.
pub(crate) fn umoci_unpack(dir: &Path, tars: &[Vec<u8>]) -> Option<PathBuf> {
    std::fs::create_dir_all(dir).expect("scratch");
    let layout = dir.join("oci");
    let image = format!("{}:t", layout.display());
    support::stdout(Command::new("umoci").arg("init").arg("--layout").arg(&layout));
    support::stdout(Command::new("umoci").args(["new", "--image", &image]));
    for (number, tar) in tars.iter().enumerate() {
        let path = dir.join(format!("{number}.tar"));
        std::fs::write(&path, tar).expect("scratch");
        support::stdout(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(path));
    }
    let bundle = dir.join("bundle");
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image", &image]);
    if !support::is_root() {
        unpack.arg("--rootless");
    }
    support::run(unpack.arg(&bundle)).status.success().then(|| bundle.join("rootfs"))
}

/// Everything below a directory, a line a path. Times of directories are left out: where no entry gives one, it is the
/// time of unpacking.
pub(crate) fn list(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first: HashMap<u64, OsString> = HashMap::new();
    let mut todo = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("directory") {
            let path = entry.expect("entry").path();
            if path.symlink_metadata().expect("metadata").is_dir() {
                todo.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    for path in all {
        let meta = path.symlink_metadata().expect("metadata");
        let kind = meta.file_type();
        let name = path.strip_prefix(root).expect("below").as_os_str().to_owned();
        let detail = if kind.is_dir() {
            "d".to_owned()
        } else if kind.is_symlink() {
            format!("l {} -> {:?}", meta.mtime(), path.read_link().expect("link"))
        } else if kind.is_file() {
            format!("f {} {}", meta.mtime(), Digest::of(&std::fs::read(&path).expect("file")).hex())
        } else {
            let letter = if kind.is_fifo() { 'p' } else { 'n' };
            format!("{letter} {} {:x}", meta.mtime(), meta.rdev())
        };
        let head = first.entry(meta.ino()).or_insert_with(|| name.clone());
        let link = if kind.is_dir() { String::new() } else { format!(" =={head:?} {}", meta.nlink()) };
        let mode = if kind.is_symlink() { 0o777 } else { meta.mode() & 0o7777 };
        lines.push(format!("{name:?} {mode:o} {}:{} {detail}{link}", meta.uid(), meta.gid()));
    }
    lines
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("in memory")
}

/// Three layers with a few MiB of text and noise, links, holes, whiteouts.
fn sample() -> Vec<Vec<u8>> {
    let mut random = Random::new(1);
    let mut noise = |size: usize| (0..size).map(|_| random.next() as u8).collect::<Vec<_>>();
    let text = b"All work and no play makes Jack a dull boy.\n".repeat(40_000);
    let hole = Member::file("lib/holes", padded(b"x"))
        .pax("GNU.sparse.major", "0")
        .pax("GNU.sparse.minor", "1")
        .pax("GNU.sparse.size", "3000000")
        .pax("GNU.sparse.numblocks", "1")
        .pax("GNU.sparse.map", "1000000,512");
    let mut lower = vec![
        Member::directory("lib").mode(0o2775).owner(3, 4),
        Member::file("lib/text", &text),
        Member::file("lib/noise", noise(1_500_000)),
        Member::hard_link("lib/noise2", "lib/noise"),
        Member::file("lib/gone", "gone"),
        Member::symlink("lib64", "lib"),
        hole,
        Member::file("lib/cap", "x")
            .pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        Member { device: (1, 3), ..Member::new(b'3', "null").mode(0o666) },
        Member::new(b'6', "pipe"),
    ];
    lower.extend((0..500).map(|n| Member::file(format!("lib/small-{n}"), format!("number {n}"))));
    let middle =
        [Member::file("lib/.wh.noise", ""), Member::file("lib/text", "short"), Member::directory("etc")];
    let upper = [Member::file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), Member::file("lib/.wh.gone", "")];
    vec![tar(&lower), tar(&middle), tar(&upper)]
}

#[test]
fn equals_umoci_and_reads_again_what_a_hidden_name_still_needs() {
    let scratch = support::scratch();
    let tars = sample();
    let ours = convert_and_unsquash(scratch.path(), &tars).expect("converts");
    let theirs = umoci_unpack(scratch.path(), &tars).expect("umoci unpacks");
    assert_eq!(list(&ours), list(&theirs));
    let noise2 = ours.join("lib/noise2").metadata().expect("kept under its other name");
    assert_eq!((noise2.len(), noise2.nlink()), (1_500_000, 1));
    let holes = ours.join("lib/holes").metadata().expect("file");
    assert_eq!(holes.len(), 3_000_000);
}

#[test]
fn compression_of_layers_and_jobs_do_not_show() {
    let scratch = support::scratch();
    let tars = sample();
    let diff_ids = || tars.iter().map(|tar| Digest::of(tar)).collect::<Vec<_>>();
    let (head, tail) = tars[0].split_at(70_001);
    let blobs = [
        ("plain", tars.clone()),
        ("gzip", tars.iter().map(|tar| gzip(tar)).collect()),
        ("zstd", tars.iter().map(|tar| zstd(tar)).collect()),
        ("mixed", vec![[gzip(head), gzip(tail)].concat(), tars[1].clone(), zstd(&tars[2])]),
    ];
    let mut files = Vec::new();
    for (name, blobs) in blobs {
        for jobs in [1, 2, 5] {
            let path = scratch.path().join(format!("{name}-{jobs}.sqsh"));
            let image = MemoryImage::new(blobs.clone(), diff_ids());
            convert_to(&image, &path, &options(jobs)).expect("converts");
            files.push((name, jobs, std::fs::read(&path).expect("image file")));
        }
    }
    for (name, jobs, bytes) in &files {
        assert!(*bytes == files[0].2, "{name} layers with {jobs} jobs give other bytes");
    }
}

#[test]
fn created_is_the_time_of_the_image_and_of_implied_directories() {
    let scratch = support::scratch();
    let mut image = MemoryImage::plain(vec![layer("implied/f=1")]);
    image.image.config.created = "2001-09-09T01:46:40.5Z".to_owned();
    let path = scratch.path().join("image.sqsh");
    convert_to(&image, &path, &options(1)).expect("converts");
    let bytes = std::fs::read(&path).expect("image file");
    assert_eq!(bytes[8..12], 1_000_000_000_u32.to_le_bytes());
    let root = unsquash(&path);
    assert_eq!(root.join("implied").metadata().expect("directory").mtime(), 1_000_000_000);
}

#[test]
fn the_trailer_follows_the_squashfs() {
    let scratch = support::scratch();
    let image = MemoryImage::plain(sample());
    let progress = Progress::new(&image.image);
    let path = scratch.path().join("image.sqsh");
    let summary = convert(&image, &Destination::new(&path), &options(2), &progress, |squashfs| {
        assert!(squashfs.bytes_used > 0);
        b"trailer".to_vec()
    })
    .expect("converts");
    let bytes = std::fs::read(&path).expect("image file");
    let at = summary.squashfs.bytes_used as usize;
    assert_eq!(bytes[at..][..7], *b"trailer");
    assert!(bytes[at + 7..].iter().all(|byte| *byte == 0), "padding");
    assert_eq!(bytes.len() % 4096, 0);
    assert_eq!(bytes.len() as u64, summary.file_size);
    support::stdout(Command::new("unsquashfs").arg("-lln").arg(&path));
    for progress in progress.layers() {
        assert_eq!((progress.state(), Some(progress.fetched())), (LayerState::Merged, progress.total()));
    }
    assert!(progress.bytes_in() >= image.blobs.iter().map(|blob| blob.len() as u64).sum());
    assert_eq!(progress.entries(), summary.entries);
    assert!(progress.bytes_out() > 0);
    assert_eq!(std::fs::metadata(&path).expect("image file").permissions().mode() & 0o7133, 0);
}

/// A source that must not be touched.
#[derive(Debug)]
struct Untouchable(SourceImage);

impl Source for Untouchable {
    fn image(&self) -> &SourceImage {
        &self.0
    }

    fn open_layer(&self, _: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        panic!("work was begun")
    }
}

#[test]
fn an_existing_destination_is_refused_before_any_work() {
    let scratch = support::scratch();
    let source = Untouchable(MemoryImage::plain(vec![layer("f=1")]).image);
    let check = |path: &Path, force, expected: &str| {
        let destination = Destination { path: path.to_owned(), force };
        let result = convert(&source, &destination, &options(1), &Progress::new(&source.0), |_| Vec::new());
        let error = chain(&result.expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    };
    let file = scratch.path().join("file");
    std::fs::write(&file, "precious").expect("scratch");
    check(&file, false, "already exists");
    let dangling = scratch.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).expect("scratch");
    check(&dangling, false, "already exists");
    for force in [false, true] {
        check(scratch.path(), force, "is no place for a file");
        check(&scratch.path().join("new/"), force, "is no place for a file");
        check(&scratch.path().join(".."), force, "is no place for a file");
        check(Path::new(""), force, "is no place for a file");
        check(&scratch.path().join("none/file"), force, "No such file or directory (ENOENT)");
        check(&file.join("file"), force, "Not a directory (ENOTDIR)");
    }
    assert_eq!(std::fs::read(&file).expect("untouched"), b"precious");
}

#[test]
fn force_replaces_only_at_the_end() {
    let scratch = support::scratch();
    let file = scratch.path().join("file");
    std::fs::write(&file, "precious").expect("scratch");
    let destination = Destination { path: file.clone(), force: true };
    let good = MemoryImage::plain(vec![layer("f=1")]);
    let bad = MemoryImage::plain(vec![layer("../f=1")]);
    let run = |image: &MemoryImage| {
        convert(image, &destination, &options(1), &Progress::new(&image.image), |_| Vec::new())
    };
    run(&bad).expect_err("refused");
    assert_eq!(std::fs::read(&file).expect("untouched"), b"precious");
    run(&good).expect("converts");
    assert_eq!(&std::fs::read(&file).expect("replaced")[..4], b"hsqs");
    assert_eq!(names_in(scratch.path()), ["file"]);
    // A link is replaced, not what it leads to.
    let target = scratch.path().join("target");
    std::fs::write(&target, "precious").expect("scratch");
    std::fs::remove_file(&file).expect("scratch");
    std::os::unix::fs::symlink("target", &file).expect("scratch");
    run(&good).expect("converts");
    assert!(file.symlink_metadata().expect("file").is_file());
    assert_eq!(std::fs::read(&target).expect("untouched"), b"precious");
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Converts what must be refused; the error's text. Nothing may be left.
#[track_caller]
fn refusal(image: &dyn Source, options: &ConvertOptions) -> String {
    let scratch = support::scratch();
    let result = convert_to(image, &scratch.path().join("image.sqsh"), options);
    let error = chain(&result.expect_err("refused"));
    assert_eq!(names_in(scratch.path()), [""; 0], "left behind after: {error}");
    error
}

#[test]
fn layers_that_are_not_what_they_should_be() {
    let tars = sample();
    let good =
        |blobs: Vec<Vec<u8>>| MemoryImage::new(blobs, tars.iter().map(|tar| Digest::of(tar)).collect());
    let zipped: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
    let check = |image: &MemoryImage, expected: &[&str]| {
        let error = refusal(image, &options(2));
        assert!(expected.iter().all(|text| error.contains(text)), "{error}\nlacks {expected:?}");
    };
    let other = Digest::of(b"other");
    for blobs in [tars.clone(), zipped.clone(), tars.iter().map(|tar| zstd(tar)).collect()] {
        let mut image = good(blobs.clone());
        image.image.layers[1].digest = Some(other.clone());
        let got = Digest::of(&blobs[1]);
        check(&image, &["layer 2 of 3", "the digest should be", other.as_str(), "and is", got.as_str()]);
        let mut image = good(blobs.clone());
        image.image.layers[1].diff_id = Some(other.clone());
        check(
            &image,
            &["layer 2 of 3", "the diff ID should be", other.as_str(), Digest::of(&tars[1]).as_str()],
        );
        // A docker archive has diff IDs only.
        image.image.layers[1].digest = None;
        image.image.layers[1].size = None;
        check(&image, &["layer 2 of 3", "the diff ID should be"]);
        let mut image = good(blobs.clone());
        *image.image.layers[0].size.as_mut().expect("size") += 1;
        check(&image, &["layer 1 of 3", "the manifest states"]);
        let mut image = good(blobs.clone());
        *image.image.layers[0].size.as_mut().expect("size") -= 1;
        check(&image, &["layer 1 of 3", "longer than"]);
        // Damage on the way: the digest explains it better than the decoder or the tar.
        for at in [0, 20, blobs[0].len() / 2] {
            let mut image = good(blobs.clone());
            image.blobs[0][at] ^= 0x10;
            check(&image, &["layer 1 of 3", "the digest should be"]);
        }
        let mut image = good(blobs.clone());
        image.blobs[0].truncate(blobs[0].len() / 2);
        check(&image, &["layer 1 of 3", "bytes, the manifest states"]);
    }
    // Named rightly, but no good.
    let mut cut = zipped.clone();
    cut[0].truncate(zipped[0].len() / 2);
    check(&good(cut), &["layer 1 of 3", "the gzip stream is corrupt"]);
    let mut trailing = zipped.clone();
    trailing[2].extend(b"garbage");
    check(&good(trailing), &["layer 3 of 3", "the gzip stream is corrupt"]);
    let half = tars[0][..tars[0].len() / 2].to_vec();
    check(&MemoryImage::plain(vec![half]), &["layer 1 of 1", "entry \"", "the tar ends early"]);
    check(&MemoryImage::plain(vec![b"\xfd7zXZ\0...".to_vec()]), &["compressed with xz"]);
    check(&MemoryImage::plain(vec![b"no tar at all".repeat(100)]), &["not a tar header"]);
    let names = [("../evil", "the path leaves the image"), (".wh..", "the whiteout names no file")];
    for (name, text) in names {
        check(&MemoryImage::plain(vec![tar(&[Member::file(name, "x")])]), &[name, text]);
    }
}

/// A source whose layers cannot be opened, or break off, or change between one reading and the next.
#[derive(Debug)]
struct Faulty {
    image: SourceImage,
    blobs: Vec<Vec<u8>>,
    fault: Fault,
    opened: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Open,
    Read,
    Change,
}

impl Source for Faulty {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let mut blob = self.blobs[index].clone();
        let is_again = index == 0 && self.opened.fetch_add(1, Ordering::Relaxed) > 0;
        match self.fault {
            Fault::Open if index == 0 => Err(SourceError::Read {
                path: "/blobs/zero".into(),
                source: std::io::ErrorKind::PermissionDenied.into(),
            }),
            Fault::Read if index == 0 => Ok(Box::new(std::io::Cursor::new(blob).chain(Broken))),
            Fault::Change if is_again => {
                blob[600] ^= 1;
                Ok(Box::new(std::io::Cursor::new(blob)))
            }
            _ => Ok(Box::new(std::io::Cursor::new(blob))),
        }
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the wire is cut"))
    }
}

#[test]
fn sources_that_fail() {
    let faulty = |fault| {
        let MemoryImage { image, blobs } = MemoryImage::plain(vec![layer("a=1 b=>a"), layer("a=2")]);
        Faulty { image, blobs, fault, opened: AtomicUsize::new(0) }
    };
    let error = refusal(&faulty(Fault::Open), &options(1));
    assert!(error.contains("layer 1 of 2") && error.contains("/blobs/zero"), "{error}");
    let error = refusal(&faulty(Fault::Read), &options(1));
    assert!(error.contains("cannot fetch the layer") && error.contains("the wire is cut"), "{error}");
    let source = faulty(Fault::Change);
    let error = refusal(&source, &options(1));
    assert!(error.contains("the diff ID should be") || error.contains("the digest should be"), "{error}");
    assert!(source.opened.load(Ordering::Relaxed) > 1, "the layer was not read again");
}

#[test]
fn bombs_stop_early() {
    let zeros = vec![0; 64 << 20];
    let file = tar(&[Member::file("zeros", &zeros)]);
    let budget = Budget { expansion: 100, expansion_floor_bytes: 1 << 20, ..Budget::default() };
    for blob in [gzip(&file), zstd(&file)] {
        let image = MemoryImage::new(vec![blob], vec![Digest::of(&file)]);
        let error = refusal(&image, &ConvertOptions { budget, ..options(1) });
        assert!(
            error.contains("uncompressed bytes for each compressed byte exceed the limit of 100"),
            "{error}"
        );
        let stream = Budget { stream_bytes: 1 << 20, ..Budget::default() };
        let error = refusal(&image, &ConvertOptions { budget: stream, ..options(1) });
        assert!(error.contains("uncompressed bytes of a layer exceed the limit of 1048576"), "{error}");
        let file_budget = Budget { file_bytes: 1 << 20, ..Budget::default() };
        let error = refusal(&image, &ConvertOptions { budget: file_budget, ..options(1) });
        assert!(error.contains("bytes of all files exceed the limit of 1048576"), "{error}");
    }
    let claim = Member::file("f", [b'x'; 512])
        .pax("GNU.sparse.major", "0")
        .pax("GNU.sparse.minor", "1")
        .pax("GNU.sparse.size", "8796093022208")
        .pax("GNU.sparse.numblocks", "1")
        .pax("GNU.sparse.map", "0,512");
    let error = refusal(&MemoryImage::plain(vec![tar(&[claim])]), &options(1));
    assert!(error.contains("bytes of all files exceed"), "{error}");
}

/// A small file system of its own.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Tmpfs {
        assert!(support::is_root(), "mounting a small tmpfs needs root");
        let dir = support::scratch();
        support::stdout(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o"])
                .arg(format!("size={size}"))
                .arg("tmpfs")
                .arg(dir.path()),
        );
        Tmpfs(dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let disk = Tmpfs::new("300k");
    let path = disk.0.path().join("image.sqsh");
    let image = MemoryImage::plain(sample());
    let error = chain(&convert_to(&image, &path, &options(2)).expect_err("no space"));
    assert!(error.contains("image.sqsh") && error.contains("No space left on device"), "{error}");
    assert_eq!(names_in(disk.0.path()), [""; 0]);
}

/// Runs one of the ignored tests below as a process of its own, under `wrapper`.
fn child(wrapper: &[&str], test: &str, dir: &Path) -> Command {
    let own = std::env::current_exe().expect("own path");
    let mut words = wrapper.iter().map(OsString::from).chain([own.into_os_string()]);
    let mut command = Command::new(words.next().expect("a word"));
    command.args(words).args(["--exact", test, "--ignored", "--nocapture"]).env("HPCRUN_TEST_DIR", dir);
    command
}

fn child_dir() -> PathBuf {
    std::env::var_os("HPCRUN_TEST_DIR").expect("run by another test").into()
}

#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_converts() {
    let image = MemoryImage::plain(sample());
    convert_to(&image, &child_dir().join("image.sqsh"), &options(2)).expect("converts");
}

#[test]
fn only_the_output_is_created() {
    let scratch = support::scratch();
    let log = scratch.path().join("log");
    let out = scratch.path().join("out");
    std::fs::create_dir(&out).expect("scratch");
    let calls = "--trace=open,openat,openat2,creat,mkdir,mkdirat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,mknod,mknodat,unlink,unlinkat";
    let strace = ["strace", "-f", "-o", log.to_str().expect("ASCII"), calls];
    support::stdout(&mut child(&strace, "convert::child_converts", &out));
    let log = std::fs::read_to_string(log).expect("strace's log");
    let changing: Vec<&str> = log
        .lines()
        .filter(|line| {
            !line.contains("open")
                || line.contains("O_CREAT")
                || line.contains("O_TMPFILE")
                || line.contains("O_WRONLY")
        })
        .filter(|line| line.contains('(') && !line.contains("resumed"))
        // The output again, for direct writes.
        .filter(|line| !(line.contains("\"/proc/self/fd/") && line.contains("O_DIRECT")))
        .collect();
    let is_expected = |line: &&&str| {
        line.contains("O_TMPFILE") || line.contains("linkat(") && line.contains("\"image.sqsh\"")
    };
    assert_eq!(changing.iter().filter(is_expected).count(), 2, "{changing:#?}");
    assert_eq!(changing.len(), 2, "{changing:#?}");
    assert_eq!(names_in(&out), ["image.sqsh"]);
}

/// A source that says when it is read and then never gives anything.
#[derive(Debug)]
struct Endless(SourceImage);

impl Source for Endless {
    fn image(&self) -> &SourceImage {
        &self.0
    }

    fn open_layer(&self, _: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        println!("reading");
        std::thread::sleep(std::time::Duration::from_secs(60));
        Ok(Box::new(std::io::empty()))
    }
}

#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_converts_forever() {
    let source = Endless(MemoryImage::plain(vec![layer("f=1")]).image);
    let _ = convert_to(&source, &child_dir().join("image.sqsh"), &options(1));
}

#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_holds_a_named_temporary() {
    use std::os::fd::AsFd;
    let dir = std::fs::File::open(child_dir()).expect("directory");
    let (_temporary, mut file) =
        hpcrun::sys::temporary::Temporary::create_file(dir.as_fd(), 0o644).expect("temporary");
    file.write_all(b"half").expect("written");
    println!("reading");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_signal_leaves_nothing() {
    use nix::sys::signal::{Signal, kill};
    use std::io::BufRead;
    use std::os::unix::process::ExitStatusExt;
    for test in ["convert::child_converts_forever", "convert::child_holds_a_named_temporary"] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let scratch = support::scratch();
            let mut child = child(&["env"], test, scratch.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("own program");
            let output = std::io::BufReader::new(child.stdout.take().expect("piped"));
            assert!(
                output.lines().any(|line| line.expect("text").contains("reading")),
                "{test} did not start"
            );
            let named = test.contains("named");
            assert_eq!(names_in(scratch.path()).len(), usize::from(named), "{test}");
            kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).expect("own child");
            let status = child.wait().expect("own child");
            assert_eq!(status.signal(), Some(signal as i32), "{test}");
            assert_eq!(names_in(scratch.path()), [""; 0], "{test} after {signal}");
        }
    }
}

#[test]
fn named_temporaries_go_or_take_their_name() {
    use hpcrun::sys::temporary::Temporary;
    use std::os::fd::AsFd;
    let scratch = support::scratch();
    let dir = std::fs::File::open(scratch.path()).expect("directory");
    let make = |text: &str| {
        let (temporary, mut file) = Temporary::create_file(dir.as_fd(), 0o644).expect("temporary");
        file.write_all(text.as_bytes()).expect("written");
        temporary
    };
    drop(make("dropped"));
    assert_eq!(names_in(scratch.path()), [""; 0]);
    assert_eq!(make("first").publish("name".as_ref()), Ok(true));
    assert_eq!(make("second").publish("name".as_ref()), Ok(false));
    assert_eq!(std::fs::read(scratch.path().join("name")).expect("file"), b"first");
    assert_eq!(make("third").replace("name".as_ref()), Ok(()));
    assert_eq!(std::fs::read(scratch.path().join("name")).expect("file"), b"third");
    assert_eq!(names_in(scratch.path()), ["name"]);
    assert!(scratch.path().as_os_str().as_bytes().starts_with(b"/tmp/"));
}
