//! Hostile squashfs images: crafted, cut short, and mutated by the thousand. Each must end in a clean refusal or in a
//! reading that stays within its bounds; the readings of two cache sizes must agree.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

pub(crate) mod exercise;

use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hpcrun::squashfs::reader::{Filesystem, Inode, ReadError, ReaderOptions};

use self::exercise::{Outcome, exercise};
use crate::support::{Random, run, scratch, seed, stdout, text};

/// Memory that reading any image may take, bytes.
const MEMORY_MAX: u64 = 256 << 20;
/// Longest time for all questions to one image, with room for a busy machine.
const TIME_MAX: Duration = Duration::from_secs(10);

const TINY: ReaderOptions = ReaderOptions { data_cache_bytes: 0, metadata_cache_bytes: 30_000 };

/// Opens an image and asks it everything; the refusal if it does not open.
fn examine(image: &File, options: ReaderOptions) -> Result<Outcome, ReadError> {
    let started = Instant::now();
    let filesystem = Filesystem::open(image.try_clone().unwrap(), 0, options)?;
    let outcome = exercise(&filesystem);
    let (taken, Outcome { inodes, bytes, .. }) = (started.elapsed(), &outcome);
    assert!(taken < TIME_MAX, "{inodes} inodes and {bytes} bytes took {taken:?}");
    Ok(outcome)
}

/// Reads twice, with large and with tiny caches, which must agree; gives the refusals.
#[track_caller]
fn refusals(image: &File) -> Vec<String> {
    match (examine(image, ReaderOptions::default()), examine(image, TINY)) {
        (Ok(large), Ok(tiny)) => {
            assert_eq!(large.digest, tiny.digest, "{:?}\n{:?}", large.errors, tiny.errors);
            large.errors.into_iter().collect()
        }
        (Err(large), Err(tiny)) => {
            assert_eq!(large.to_string(), tiny.to_string());
            vec![large.to_string()]
        }
        (large, tiny) => panic!("{large:?} against {tiny:?}"),
    }
}

fn scratch_file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A small tree with one of everything, packed by mksquashfs.
fn pack(options: &str, wide: usize) -> Vec<u8> {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("dir/sub")).unwrap();
    fs::create_dir(source.join("wide")).unwrap();
    fs::write(source.join("dir/x"), "x").unwrap();
    fs::write(source.join("dir/y"), "yy").unwrap();
    fs::write(source.join("plain"), "plain content\n").unwrap();
    fs::write(source.join("attributed"), "has xattrs\n").unwrap();
    let noise: Vec<u8> = (0..20_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(source.join("blocks"), &noise[..3 * 4096 + 100]).unwrap();
    fs::write(source.join("exact"), &noise[4096..3 * 4096]).unwrap();
    fs::write(source.join("squeezed"), "squeeze ".repeat(2000)).unwrap();
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(40_000).unwrap();
    sparse.write_all_at(b"end", 39_000).unwrap();
    symlink("target-of-link", source.join("link")).unwrap();
    for at in 0..wide {
        fs::write(source.join(format!("wide/{at:03}-{}", "w".repeat(200))), format!("{at}")).unwrap();
    }
    let shared = "shared ".repeat(20);
    for (file, name, value) in [
        ("attributed", "user.inline", "value"),
        ("attributed", "user.shared", shared.as_str()),
        ("dir", "user.shared", shared.as_str()),
        ("dir/sub", "user.shared", shared.as_str()),
    ] {
        stdout(Command::new("setfattr").args(["-n", name, "-v", value]).arg(source.join(file)));
    }
    let image = dir.path().join("image");
    stdout(
        Command::new("mksquashfs")
            .args([&source, &image])
            .args(["-noappend", "-no-progress", "-quiet", "-all-root", "-mkfs-time", "1", "-all-time", "1"])
            .args(["-p", "device c 600 0 0 4 5", "-p", "nothing b 600 0 0 7 8"])
            .args(options.split_whitespace()),
    );
    fs::read(image).unwrap()
}

/// Plain metadata, so that a field can be changed where it stands.
const PLAIN: &str = "-noI -noD -noF -noX -b 4096 -always-use-fragments";

/// An image whose fields are being changed. Positions are those of the format, counted from the superblock.
struct Craft(Vec<u8>);

/// The image before any change, with where the inode of each path lies.
type Good = (Vec<u8>, HashMap<Vec<u8>, usize>);

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let image = pack(PLAIN, 400);
        let table = u64::from_le_bytes(image[64..72].try_into().unwrap()) as usize;
        let filesystem = Filesystem::open(scratch_file(&image), 0, TINY).unwrap();
        let mut inodes = HashMap::new();
        let each = &mut |path: &[u8], inode: &Inode| {
            let at = table + inode.reference.block() as usize + 2 + usize::from(inode.reference.offset());
            inodes.insert(path.to_vec(), at);
            ControlFlow::Continue(())
        };
        filesystem.walk(each).unwrap();
        (image, inodes)
    })
}

impl Craft {
    fn new() -> Craft {
        Craft(good().0.clone())
    }

    fn u16(&self, at: usize) -> usize {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap()).into()
    }

    fn u32(&self, at: usize) -> usize {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64(&self, at: usize) -> usize {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap()) as usize
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    /// Where an inode lies.
    fn inode(&self, path: &str) -> usize {
        good().1[path.as_bytes()]
    }

    /// Where the listing of a directory lies: the header of its first run.
    fn listing(&self, path: &str) -> usize {
        let inode = self.inode(path);
        let (block, byte) = match self.u16(inode) {
            1 => (self.u32(inode + 16), self.u16(inode + 26)),
            8 => (self.u32(inode + 24), self.u16(inode + 34)),
            other => panic!("{path} has type {other}"),
        };
        self.u64(72) + block + 2 + byte
    }

    /// Where entry 0 of the fragment table lies.
    fn fragment(&self) -> usize {
        self.u64(self.u64(80)) + 2
    }

    /// Where the first list of the xattr table lies.
    fn xattr_list(&self) -> usize {
        self.u64(self.u64(56) + 16) + 2
    }

    /// Where the first name of the first list lies; values stored out of line come before.
    fn xattr_pairs(&self) -> usize {
        self.u64(self.u64(56)) + 2 + self.u16(self.xattr_list())
    }
}

/// What must come of a crafted image.
enum Expect {
    /// One of the refusals contains this.
    Refused(&'static str),
    /// No refusal at all.
    Accepted,
    /// Bounded, whatever it reads.
    Survived,
}
use Expect::{Accepted, Refused, Survived};

type Case = (String, Box<dyn Fn(&mut Craft)>, Expect);

fn case(name: impl Into<String>, expect: Expect, change: impl Fn(&mut Craft) + 'static) -> Case {
    (name.into(), Box::new(change), expect)
}

fn superblock_cases() -> Vec<Case> {
    let mut cases = vec![
        case("magic", Refused("no squashfs at byte 0"), |c| c.put(0, *b"sqsh")),
        case("no inodes", Refused("inode number"), |c| c.put(4, [0; 4])),
        case("too few inodes", Refused("the image has 1 to 3"), |c| c.put(4, 3_u32.to_le_bytes())),
        case("2^32-1 inodes", Refused("index of 4294967295 entries of the export table"), |c| {
            c.put(4, [0xff; 4])
        }),
        case("fragments 2^32-1", Refused("fragment table does not fit"), |c| c.put(16, [0xff; 4])),
        case("no fragments", Refused("file with fragment 0 of 0"), |c| c.put(16, [0; 4])),
        case("fragments without a table", Refused("fragments without a table"), |c| c.put(80, [0xff; 8])),
        case("no ids", Refused("no user or group ids"), |c| c.put(26, [0; 2])),
        case("65535 ids", Refused("id table"), |c| c.put(26, [0xff; 2])),
        case("a flag for everything", Accepted, |c| c.put(24, [0xff; 2])),
        case("no flag at all", Accepted, |c| c.put(24, [0; 2])),
        case("without an export table", Accepted, |c| c.put(88, [0xff; 8])),
        case("without an xattr table", Accepted, |c| c.put(56, [0xff; 8])),
        case("the root past its table", Refused("outside the inode table"), |c| {
            c.put(32, [0, 0, 0xff, 0xff, 0xff, 0, 0, 0])
        }),
        case("the root at 2^64-1", Refused("outside the inode table"), |c| c.put(32, [0xff; 8])),
        case("the root at byte 8192", Refused("at byte"), |c| c.put(32, 0x2000_u64.to_le_bytes())),
        case("the root at byte 65535", Refused("byte 65535 of a metadata block"), |c| {
            c.put(32, 0xffff_u64.to_le_bytes())
        }),
        case("the root between blocks", Refused("at byte"), |c| c.put(32, (1_u64 << 16).to_le_bytes())),
        case("the root is a file", Refused("the root is not a directory"), |c| {
            let reference = (c.inode("/plain") - c.u64(64) - 2) as u64;
            c.put(32, reference.to_le_bytes());
        }),
        case("length 2^63", Refused("superblock says 9223372036854775808 bytes"), |c| {
            c.put(40, (1_u64 << 63).to_le_bytes())
        }),
        case("length 2^64-1", Refused("superblock says"), |c| c.put(40, [0xff; 8])),
        case("length 2^62", Refused("image is truncated"), |c| c.put(40, (1_u64 << 62).to_le_bytes())),
        case("length 0", Refused("past the end of the image"), |c| c.put(40, [0; 8])),
        case("length up to the tables", Refused("past the end of the image"), |c| {
            let table = c.u64(64) as u64;
            c.put(40, table.to_le_bytes());
        }),
    ];
    for (size, log) in [
        (0_u32, 0_u16),
        (4095, 12),
        (2048, 11),
        (3 << 12, 13),
        (1 << 21, 21),
        (1 << 31, 31),
        (4096, 13),
        (8192, 0xffff),
    ] {
        cases.push(case(format!("block size {size}, {log}"), Refused("no squashfs at byte 0"), move |c| {
            c.put(12, size.to_le_bytes());
            c.put(22, log.to_le_bytes());
        }));
    }
    for version in [[1, 0, 0, 0], [3, 0, 1, 0], [4, 0, 1, 0], [5, 0, 0, 0], [0, 4, 0, 0]] {
        cases.push(case(format!("version {version:?}"), Refused("no squashfs at byte 0"), move |c| {
            c.put(28, version)
        }));
    }
    for codec in [0_u16, 7, 0xffff] {
        cases.push(case(format!("codec {codec}"), Refused("image is compressed with"), move |c| {
            c.put(20, codec.to_le_bytes())
        }));
    }
    // A codec that is not the image's is not noticed as long as nothing is compressed.
    for codec in [2_u16, 3, 4, 5, 6] {
        cases.push(case(format!("other codec {codec}"), Accepted, move |c| c.put(20, codec.to_le_bytes())));
    }
    let tables =
        [("id", 48), ("xattr", 56), ("inode", 64), ("directory", 72), ("fragment", 80), ("export", 88)];
    for (name, at) in tables {
        for (what, value) in [
            ("at 0", 0),
            ("at 1", 1),
            ("at 95", 95),
            ("past the end", 1 << 40),
            ("at 2^63", 1_u64 << 63),
            ("at 2^64-2", u64::MAX - 1),
        ] {
            cases.push(case(format!("{name} table {what}"), Refused("superblock puts the"), move |c| {
                c.put(at, value.to_le_bytes())
            }));
        }
        cases.push(case(format!("{name} table in the last byte"), Refused(" at byte "), move |c| {
            let last = (c.u64(40) - 1) as u64;
            c.put(at, last.to_le_bytes());
        }));
        for (other_name, other) in tables {
            if other != at {
                cases.push(case(
                    format!("{name} table on the {other_name} table"),
                    Refused("superblock puts the"),
                    move |c| {
                        let start = c.u64(other) as u64;
                        c.put(at, start.to_le_bytes());
                    },
                ));
            }
        }
    }
    cases
}

fn metadata_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (table, at) in [("inode", 64), ("directory", 72)] {
        for (what, header) in [
            ("empty", 0_u16),
            ("empty, uncompressed", 0x8000),
            ("8193 bytes", 8193),
            ("8193 bytes, uncompressed", 0x8000 | 8193),
            ("32767 bytes", 0xffff),
        ] {
            cases.push(case(
                format!("{table} block of {what}"),
                Refused("stored bytes, not 1 to 8192"),
                move |c| {
                    let position = c.u64(at);
                    c.put(position, header.to_le_bytes());
                },
            ));
        }
        cases.push(case(
            format!("{table} block that is not compressed"),
            Refused("malformed gzip data"),
            move |c| {
                let position = c.u64(at);
                c.put(position, 0x2000_u16.to_le_bytes());
            },
        ));
        cases.push(case(format!("{table} block of one byte"), Refused(" at byte "), move |c| {
            let position = c.u64(at);
            c.put(position, 0x8001_u16.to_le_bytes());
        }));
    }
    for (name, table) in [("fragment", 80), ("export", 88), ("id", 48)] {
        for (what, position) in [("0", 0_u64), ("2^64-1", u64::MAX), ("the data", 96), ("2^40", 1 << 40)] {
            cases.push(case(
                format!("index of the {name} table names {what}"),
                Refused("metadata block wanted outside"),
                move |c| {
                    let index = c.u64(table);
                    c.put(index, position.to_le_bytes());
                },
            ));
        }
        cases.push(case(
            format!("index of the {name} table names itself"),
            Refused("outside the"),
            move |c| {
                let index = c.u64(table);
                c.put(index, (index as u64).to_le_bytes());
            },
        ));
    }
    cases.push(case("last directory block runs into the next table", Refused(" at byte "), |c| {
        let root = c.u64(32);
        let at = c.u64(64) + (root >> 16) + 2 + (root & 0xffff);
        let (block, start) = (c.u32(at + 16), c.u64(72));
        c.put(start + block, 0xa000_u16.to_le_bytes());
    }));
    cases
}

fn inode_cases() -> Vec<Case> {
    let mut cases = vec![
        case("inode number 0", Refused("inode number 0"), |c| c.put(c.inode("/plain") + 12, [0; 4])),
        case("inode number 2^32-1", Refused("inode number 4294967295"), |c| {
            c.put(c.inode("/plain") + 12, [0xff; 4])
        }),
        case("inode number of another", Refused("which is inode"), |c| {
            let other = c.u32(c.inode("/link") + 12) as u32;
            c.put(c.inode("/plain") + 12, other.to_le_bytes());
        }),
        case("user out of range", Refused("has id index 1 of 1"), |c| c.put(c.inode("/plain") + 4, [1, 0])),
        case("group out of range", Refused("has id index 65535 of 1"), |c| {
            c.put(c.inode("/plain") + 6, [0xff; 2])
        }),
        case("mode with type bits", Accepted, |c| c.put(c.inode("/plain") + 2, [0xff; 2])),
        case("no links", Accepted, |c| c.put(c.inode("/link") + 16, [0; 4])),
        case("2^32-1 links", Accepted, |c| c.put(c.inode("/link") + 16, [0xff; 4])),
        case("file data past the end", Refused("past the end of the image"), |c| {
            c.put(c.inode("/blocks") + 16, [0xff; 4])
        }),
        case("file data in the superblock", Survived, |c| c.put(c.inode("/blocks") + 16, [0; 4])),
        case("fragment = count", Refused("file with fragment"), |c| {
            let count = c.u32(16) as u32;
            c.put(c.inode("/plain") + 20, count.to_le_bytes());
        }),
        case("fragment 2^32-2", Refused("file with fragment 4294967294"), |c| {
            c.put(c.inode("/plain") + 20, 0xffff_fffe_u32.to_le_bytes())
        }),
        case("fragment of none", Refused(" at byte "), |c| c.put(c.inode("/plain") + 20, [0xff; 4])),
        case("tail past the block size", Refused("past its end"), |c| {
            c.put(c.inode("/plain") + 24, 4090_u32.to_le_bytes())
        }),
        case("tail at 2^32-1", Refused("past its end"), |c| c.put(c.inode("/plain") + 24, [0xff; 4])),
        case("tail past the fragment", Refused("a file has its tail at"), |c| {
            c.put(c.inode("/plain") + 24, 4082_u32.to_le_bytes())
        }),
        case("size of one block more", Refused(" at byte "), |c| {
            c.put(c.inode("/plain") + 28, 4096_u32.to_le_bytes())
        }),
        case("size 2^32-1", Refused(" at byte "), |c| c.put(c.inode("/plain") + 28, [0xff; 4])),
        case("size 2^63", Refused("more than the table holds"), |c| {
            c.put(c.inode("/attributed") + 24, (1_u64 << 63).to_le_bytes())
        }),
        case("size 2^64-1", Refused("more than the table holds"), |c| {
            c.put(c.inode("/attributed") + 24, [0xff; 8])
        }),
        case("size 2^40", Refused("more than the table holds"), |c| {
            c.put(c.inode("/attributed") + 24, (1_u64 << 40).to_le_bytes())
        }),
        case("data at 2^64-1", Refused("past the end of the image"), |c| {
            let at = c.inode("/sparse");
            c.put(at + 16, [0xff; 8]);
        }),
        case("hole bytes 2^64-1", Accepted, |c| c.put(c.inode("/sparse") + 32, [0xff; 8])),
        case("block with unknown bits", Refused("with unknown bits"), |c| {
            c.put(c.inode("/blocks") + 32, 0x0200_0010_u32.to_le_bytes())
        }),
        case("block of 4097 bytes", Refused("takes 4097 bytes"), |c| {
            c.put(c.inode("/blocks") + 32, 0x0100_1001_u32.to_le_bytes())
        }),
        case("block of 2^24-1 bytes", Refused("takes 16777215 bytes"), |c| {
            c.put(c.inode("/blocks") + 32, 0x01ff_ffff_u32.to_le_bytes())
        }),
        case("empty uncompressed block", Refused("takes 0 bytes"), |c| {
            c.put(c.inode("/blocks") + 32, 0x0100_0000_u32.to_le_bytes())
        }),
        case("short uncompressed block", Refused("stored uncompressed, not 4096"), |c| {
            c.put(c.inode("/blocks") + 32, 0x0100_0fff_u32.to_le_bytes())
        }),
        case("block that is not compressed", Refused("malformed gzip data"), |c| {
            c.put(c.inode("/blocks") + 32, 0x0000_1000_u32.to_le_bytes())
        }),
        case("holes for blocks", Survived, |c| c.put(c.inode("/blocks") + 32, [0; 12])),
        case("xattr index out of range", Refused("has xattr index"), |c| {
            c.put(c.inode("/attributed") + 52, 1000_u32.to_le_bytes())
        }),
        case("xattr index 2^32-2", Refused("has xattr index"), |c| {
            c.put(c.inode("/attributed") + 52, 0xffff_fffe_u32.to_le_bytes())
        }),
        case("another's xattrs", Accepted, |c| c.put(c.inode("/attributed") + 52, [0; 4])),
        case("empty link", Refused("symbolic link of 0 bytes"), |c| c.put(c.inode("/link") + 20, [0; 4])),
        case("link of 65536 bytes", Refused("symbolic link of 65536 bytes"), |c| {
            c.put(c.inode("/link") + 20, 65_536_u32.to_le_bytes())
        }),
        case("link of 2^32-1 bytes", Refused("symbolic link of 4294967295 bytes"), |c| {
            c.put(c.inode("/link") + 20, [0xff; 4])
        }),
        case("link of 65535 bytes", Refused(" at byte "), |c| {
            c.put(c.inode("/link") + 20, 65_535_u32.to_le_bytes())
        }),
        case("link with a NUL", Refused("symbolic link with a NUL byte"), |c| {
            c.put(c.inode("/link") + 30, [0])
        }),
        case("link to itself", Refused("too many symbolic links"), |c| {
            let at = c.inode("/link");
            c.put(at + 20, 4_u32.to_le_bytes());
            c.put(at + 24, *b"link");
        }),
        case("device numbers 2^32-1", Accepted, |c| c.put(c.inode("/device") + 20, [0xff; 4])),
        case("directory block 2^32-1", Refused("does not fit the directory table"), |c| {
            let at = c.inode("/");
            c.put(at + 16, [0xff; 4]);
        }),
        case("directory size 0", Refused("directory of size 0"), |c| c.put(c.inode("/") + 24, [0; 2])),
        case("directory size 2", Refused("directory of size 2"), |c| c.put(c.inode("/") + 24, [2, 0])),
        case("directory size 3", Accepted, |c| c.put(c.inode("/") + 24, [3, 0])),
        case("directory size 4", Refused("past the end of its listing"), |c| {
            c.put(c.inode("/") + 24, [4, 0])
        }),
        case("directory size 65535", Survived, |c| c.put(c.inode("/") + 24, [0xff; 2])),
        case("directory at byte 65535", Refused("byte 65535 of a metadata block"), |c| {
            c.put(c.inode("/") + 26, [0xff; 2])
        }),
        case("directory at byte 8192", Survived, |c| c.put(c.inode("/") + 26, [0, 0x20])),
        case("directory size 2^32-1", Refused("does not fit the directory table"), |c| {
            c.put(c.inode("/wide") + 20, [0xff; 4])
        }),
        case("directory index of 65535", Refused("directory index of 65535 entries"), |c| {
            c.put(c.inode("/wide") + 32, [0xff; 2])
        }),
        case("directory without its index", Accepted, |c| c.put(c.inode("/wide") + 32, [0; 2])),
        case("one entry more in the index", Refused(" at byte "), |c| {
            let at = c.inode("/wide");
            let count = c.u16(at + 32) as u16 + 1;
            c.put(at + 32, count.to_le_bytes());
        }),
        case("index byte 2^32-1", Refused("directory index names byte 4294967295"), |c| {
            c.put(c.inode("/wide") + 40, [0xff; 4])
        }),
        case("index block 2^32-1", Refused("outside the directory table"), |c| {
            c.put(c.inode("/wide") + 44, [0xff; 4])
        }),
        case("index into the middle of a run", Survived, |c| {
            c.put(c.inode("/wide") + 40, 1001_u32.to_le_bytes())
        }),
        case("index name of 257 bytes", Refused("over 256"), |c| {
            c.put(c.inode("/wide") + 48, 256_u32.to_le_bytes())
        }),
        case("index name of 2^32 bytes", Refused("over 256"), |c| c.put(c.inode("/wide") + 48, [0xff; 4])),
        case("parent is itself", Accepted, |c| {
            let at = c.inode("/dir/sub");
            let number = c.u32(at + 12) as u32;
            c.put(at + 28, number.to_le_bytes());
        }),
    ];
    for number in [0_u16, 15, 16, 0x100, 0xffff] {
        cases.push(case(format!("inode type {number}"), Refused("inode type "), move |c| {
            c.put(c.inode("/link"), number.to_le_bytes());
        }));
    }
    for number in [1_u16, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] {
        cases.push(case(format!("a link of type {number}"), Refused(" at byte "), move |c| {
            if number == 10 {
                // The extended form of the same kind reads past the target, which may pass; its entry's type fits.
                c.put(c.inode("/link") + 12, [0; 4]);
            }
            c.put(c.inode("/link"), number.to_le_bytes());
        }));
    }
    cases
}

fn directory_cases() -> Vec<Case> {
    let mut cases = vec![
        case("run of 257 entries", Refused("directory run of 257 entries"), |c| {
            c.put(c.listing("/"), 256_u32.to_le_bytes())
        }),
        case("run of 2^32 entries", Refused("directory run of 4294967296 entries"), |c| {
            c.put(c.listing("/"), [0xff; 4])
        }),
        case("run of 256 entries", Refused(" at byte "), |c| c.put(c.listing("/"), 255_u32.to_le_bytes())),
        case("run of one entry", Refused(" at byte "), |c| c.put(c.listing("/"), [0; 4])),
        case("run in inode block 2^32-1", Refused("outside the inode table"), |c| {
            c.put(c.listing("/") + 4, [0xff; 4])
        }),
        case("run of inode 0", Refused("directory entry for inode 0"), |c| c.put(c.listing("/") + 8, [0; 4])),
        case("run of inode 2^32-1", Refused("directory entry for inode 4294967295"), |c| {
            c.put(c.listing("/") + 8, [0xff; 4])
        }),
        case("delta -32768", Refused("-32768, the image has"), |c| {
            c.put(c.listing("/") + 14, 0x8000_u16.to_le_bytes())
        }),
        case("delta 32767", Refused("+32767, the image has"), |c| {
            c.put(c.listing("/") + 14, 0x7fff_u16.to_le_bytes())
        }),
        case("entry at inode byte 65535", Refused("byte 65535 of a metadata block"), |c| {
            c.put(c.listing("/") + 12, [0xff; 2])
        }),
        case("entry at inode byte 1", Refused(" at byte "), |c| c.put(c.listing("/") + 12, [1, 0])),
        case("entry type 0", Refused("directory entry of type 0"), |c| c.put(c.listing("/") + 16, [0; 2])),
        case("entry type 8", Refused("directory entry of type 8"), |c| c.put(c.listing("/") + 16, [8, 0])),
        case("entry of another type", Refused("of type 7, which is inode"), |c| {
            c.put(c.listing("/") + 16, [7, 0])
        }),
        case("name of 257 bytes", Refused("over 256"), |c| c.put(c.listing("/") + 18, 256_u16.to_le_bytes())),
        case("name of 65536 bytes", Refused("over 256"), |c| c.put(c.listing("/") + 18, [0xff; 2])),
        case("name of 1 byte", Refused(" at byte "), |c| c.put(c.listing("/") + 18, [0; 2])),
        case("name with a slash", Refused("directory entry named \"at/"), |c| {
            c.put(c.listing("/") + 22, *b"/")
        }),
        case("name with a NUL", Refused("directory entry named \"at\\x00"), |c| {
            c.put(c.listing("/") + 22, [0])
        }),
        case("name ..", Refused("directory entry named \"..\""), |c| {
            let at = c.listing("/dir");
            let more = 12 + 8 + 1 + 8;
            // The second entry, "x" after "sub" or alike, made two bytes long over the one behind it.
            c.put(at + 18, 1_u16.to_le_bytes());
            c.put(at + 20, *b"..");
            c.put(at + more, [0; 2]);
        }),
        case("unsorted", Survived, |c| c.put(c.listing("/") + 20, [0xff])),
        case("one name twice", Survived, |c| {
            let at = c.listing("/dir") + 12;
            let second = at + 8 + c.u16(at + 6) + 1;
            let third = second + 8 + c.u16(second + 6) + 1;
            c.0[second + 8] = c.0[third + 8];
        }),
        case("the root below itself", Refused("lies under two names"), |c| redirect(c, "/")),
        case("a directory in itself", Refused("lies under two names"), |c| redirect(c, "/dir")),
        case("a directory under two names", Refused("lies under two names"), |c| redirect(c, "/wide")),
    ];
    for (name, at) in [(".", *b"."), ("/", *b"/"), ("NUL", [0])] {
        cases.push(case(format!("name {name}"), Refused("directory entry named"), move |c| {
            let entry = entry(c, "/dir", "x");
            c.put(entry + 8, at);
        }));
    }
    cases
}

/// Where the entry of a name lies in a listing of one run.
fn entry(craft: &Craft, directory: &str, name: &str) -> usize {
    let mut at = craft.listing(directory) + 12;
    loop {
        let length = craft.u16(at + 6) + 1;
        if craft.0[at + 8..at + 8 + length] == *name.as_bytes() {
            return at;
        }
        at += 8 + length;
    }
}

/// Makes the entry of `/dir/sub` and its run name another inode.
fn redirect(craft: &mut Craft, target: &str) {
    let (run, sub, inode) = (craft.listing("/dir"), entry(craft, "/dir", "sub"), craft.inode(target));
    let within = inode - craft.u64(64);
    // All blocks before the last are full and uncompressed.
    let block = within / (8192 + 2) * (8192 + 2);
    craft.put(run + 4, (block as u32).to_le_bytes());
    craft.put(run + 8, (craft.u32(inode + 12) as u32).to_le_bytes());
    craft.put(sub, ((within - block - 2) as u16).to_le_bytes());
    craft.put(sub + 2, [0; 2]);
    // The entries behind it, which shared the run, go.
    craft.put(run, [0; 4]);
    let size = 3 + sub + 8 + "sub".len() - run;
    craft.put(craft.inode("/dir") + 20, (size as u32).to_le_bytes());
}

fn table_cases() -> Vec<Case> {
    let mut cases = vec![
        case("fragment at 2^64-1", Refused("ends past the end of the image"), |c| {
            c.put(c.fragment(), [0xff; 8])
        }),
        case("fragment past the end", Refused("ends past the end of the image"), |c| {
            let end = c.u64(40) as u64;
            c.put(c.fragment(), end.to_le_bytes());
        }),
        case("fragment of 0 bytes", Refused("is empty"), |c| c.put(c.fragment() + 8, [0; 4])),
        case("fragment of 4097 bytes", Refused("takes 4097 bytes"), |c| {
            c.put(c.fragment() + 8, 0x0100_1001_u32.to_le_bytes())
        }),
        case("fragment of 2^24-1 bytes", Refused("takes 16777215 bytes"), |c| {
            c.put(c.fragment() + 8, 0x01ff_ffff_u32.to_le_bytes())
        }),
        case("fragment with unknown bits", Refused("with unknown bits"), |c| {
            c.put(c.fragment() + 8, 0x8000_0010_u32.to_le_bytes())
        }),
        case("fragment of 1 byte", Refused("is 1 bytes long"), |c| {
            c.put(c.fragment() + 8, 0x0100_0001_u32.to_le_bytes())
        }),
        case("fragment that is not compressed", Refused("malformed gzip data"), |c| {
            let size = c.u32(c.fragment() + 8) as u32 & 0xff_ffff;
            c.put(c.fragment() + 8, size.to_le_bytes());
        }),
        case("exports of nonsense", Survived, |c| {
            let block = c.u64(c.u64(88));
            c.put(block + 2, [0xff; 16]);
        }),
        case("id 2^32-1", Accepted, |c| {
            let block = c.u64(c.u64(48));
            c.put(block + 2, [0xff; 4]);
        }),
        case("xattr pairs at 0", Refused("outside the metadata before it"), |c| c.put(c.u64(56), [0; 8])),
        case("xattr pairs at 2^64-1", Refused("outside the metadata before it"), |c| {
            c.put(c.u64(56), [0xff; 8])
        }),
        case("xattr pairs on their header", Refused("outside the metadata before it"), |c| {
            let at = c.u64(56);
            c.put(at, (at as u64).to_le_bytes());
        }),
        case("2^32-1 xattr lists", Refused("xattr table does not fit"), |c| c.put(c.u64(56) + 8, [0xff; 4])),
        case("no xattr lists", Accepted, |c| c.put(c.u64(56) + 8, [0; 4])),
        case("xattr list at 2^64-1", Refused("outside the xattr table"), |c| {
            c.put(c.xattr_list(), [0xff; 8])
        }),
        case("xattr list at byte 65535", Refused("byte 65535 of a metadata block"), |c| {
            c.put(c.xattr_list(), 0xffff_u64.to_le_bytes())
        }),
        case("2^32-1 xattrs", Refused(" at byte "), |c| c.put(c.xattr_list() + 8, [0xff; 4])),
        case("no xattrs in a list", Accepted, |c| c.put(c.xattr_list() + 8, [0; 4])),
        case("xattr list of size 2^32-1", Accepted, |c| c.put(c.xattr_list() + 12, [0xff; 4])),
        case("xattr index names 0", Refused("outside the xattr table"), |c| c.put(c.u64(56) + 16, [0; 8])),
        case("xattr of type 3", Refused("xattr of type 0x3"), |c| c.put(c.xattr_pairs(), [3, 0])),
        case("xattr of type 0xffff", Refused("xattr of type 0xffff"), |c| c.put(c.xattr_pairs(), [0xff; 2])),
        case("xattr name of 0 bytes", Refused("xattr name of 0 bytes"), |c| {
            c.put(c.xattr_pairs() + 2, [0; 2])
        }),
        case("xattr name of 65535 bytes", Refused("xattr name of 65535 bytes"), |c| {
            c.put(c.xattr_pairs() + 2, [0xff; 2])
        }),
        case("xattr name with a NUL", Refused("xattr name with a NUL"), |c| c.put(c.xattr_pairs() + 5, [0])),
        case("xattr value of 1 GiB", Refused("xattr value of 1073741824 bytes"), |c| {
            let at = c.xattr_pairs();
            let name = c.u16(at + 2);
            c.put(at + 4 + name, (1_u32 << 30).to_le_bytes());
        }),
        case("xattr value of 65537 bytes", Refused("xattr value of 65537 bytes"), |c| {
            let at = c.xattr_pairs();
            let name = c.u16(at + 2);
            c.put(at + 4 + name, 65_537_u32.to_le_bytes());
        }),
        case("inline value read as a reference", Refused(" at byte "), |c| {
            let at = c.xattr_pairs();
            let flags = c.u16(at) as u16 | 0x100;
            c.put(at, flags.to_le_bytes());
        }),
    ];
    for (what, reference) in [("2^64-1", u64::MAX), ("byte 65535", 0xffff), ("2^40", 1 << 40), ("itself", 0)]
    {
        let expect = if reference == 0 { Survived } else { Refused(" at byte ") };
        cases.push(case(format!("out-of-line value at {what}"), expect, move |c| {
            let at = out_of_line(c);
            c.put(at, reference.to_le_bytes());
        }));
    }
    cases
}

/// Where the reference of an out-of-line xattr value lies.
fn out_of_line(craft: &Craft) -> usize {
    let (mut at, end) = (craft.xattr_pairs(), craft.xattr_list());
    while at < end {
        let value = at + 4 + craft.u16(at + 2);
        if craft.u16(at) & 0x100 != 0 {
            return value + 4;
        }
        at = value + 4 + craft.u32(value);
    }
    panic!("no value is out of line");
}

#[test]
fn crafted_images_are_refused_with_the_reason() {
    let cases: Vec<Case> =
        [superblock_cases(), metadata_cases(), inode_cases(), directory_cases(), table_cases()]
            .into_iter()
            .flatten()
            .collect();
    assert!(cases.len() >= 120, "{}", cases.len());
    println!("{} images", cases.len());
    let good = refusals(&scratch_file(&Craft::new().0));
    assert!(good.is_empty(), "{good:?}");
    let mut failures = Vec::new();
    for (name, change, expect) in cases {
        let mut craft = Craft::new();
        change(&mut craft);
        let got = refusals(&scratch_file(&craft.0));
        let as_expected = match expect {
            Refused(text) => got.iter().any(|refusal| refusal.contains(text)),
            Accepted => got.is_empty(),
            Survived => true,
        };
        if !as_expected {
            failures.push(format!("{name}: {got:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every third length of three small images, once as it is and once with a superblock that owns up to it.
#[test]
fn truncated_images_are_refused_or_read_within_bounds() {
    for options in [
        "-noI -noD -noF -noX -b 4096",
        "-comp zstd -b 4096",
        "-comp xz -b 4096 -no-fragments",
        "-comp lz4 -b 1M -no-exports",
        "-comp lzo -b 4096",
    ] {
        let image = pack(options, 5);
        let used = u64::from_le_bytes(image[40..48].try_into().unwrap());
        let file = scratch_file(&image);
        for length in (0..used).rev().step_by(3) {
            file.set_len(length).unwrap();
            let error = examine(&file, TINY).expect_err("opened");
            if length >= 96 {
                let expected = format!("it is {length} bytes long, its superblock says {used}");
                assert!(error.to_string().contains(&expected), "{error}");
                file.write_all_at(&length.to_le_bytes(), 40).unwrap();
                let _ = examine(&file, TINY);
                file.write_all_at(&used.to_le_bytes(), 40).unwrap();
            }
        }
    }
}

const MUTANTS: u64 = 21_000;

/// The mutants are read by a process of their own, whose memory is limited.
#[test]
fn mutated_images_never_crash_hang_or_fill_memory() {
    let seed = seed();
    let child = run(Command::new("prlimit")
        .args([&format!("--data={MEMORY_MAX}"), "--core=0", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "hostile_squashfs::mutants", "--ignored", "--nocapture"])
        .env("HPCRUN_SEED", seed.to_string()));
    let output = text(&child.stdout) + &text(&child.stderr);
    assert!(child.status.success() && output.contains("mutants, "), "{}: {output}", child.status);
    print!("{output}");
}

#[test]
#[ignore = "run by mutated_images_never_crash_hang_or_fill_memory"]
fn mutants() {
    let seed = seed();
    // The first are slow to read, one because it is large: they take part now and then.
    let bases: Vec<Vec<u8>> = [
        PLAIN,
        "-comp xz -b 4096 -noI -no-fragments",
        "-comp xz -b 1M -Xbcj x86",
        "-comp lzma -b 8192 -noI",
        "-comp zstd -b 4096",
        "-comp lz4 -b 4096 -noI -noX",
        "-comp gzip -noD -noF -b 8192",
        PLAIN,
        "-comp gzip -b 1M -noI -noX -no-exports",
        "-comp lz4 -Xhc -b 1M -noI -no-exports -no-xattrs",
        "-comp lzo -b 4096 -noI -noX",
        "-comp lzo -b 1M -no-exports",
    ]
    .into_iter()
    .enumerate()
    .map(|(at, options)| pack(options, if at == 0 { 330 } else { 20 }))
    .collect();
    let (started, mut opened, mut clean, mut slowest) = (Instant::now(), 0, 0, Duration::ZERO);
    for number in 0..MUTANTS {
        let (slow, quick) = bases.split_at(4);
        let base = match number as usize {
            number if number % 16 == 0 => &slow[number / 16 % slow.len()],
            number => &quick[number % quick.len()],
        };
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let image = mutate(base, &mut random);
        let before = Instant::now();
        let outcome = std::panic::catch_unwind(|| {
            let file = scratch_file(&image);
            if number % 8 == 0 {
                Ok(refusals(&file).len())
            } else {
                examine(&file, ReaderOptions::default()).map(|outcome| outcome.errors.len())
            }
        });
        let taken = before.elapsed();
        slowest = slowest.max(taken);
        match outcome {
            Ok(Ok(errors)) => (opened, clean) = (opened + 1, clean + u64::from(errors == 0)),
            Ok(Err(_)) => {}
            Err(_) => panic!("HPCRUN_SEED={seed}: mutant {number} panics"),
        }
    }
    let peak = fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let peak = peak.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!(
        "{MUTANTS} mutants, {opened} opened, {clean} without a refusal, slowest {slowest:?}, {:?} in all, {peak}",
        started.elapsed()
    );
}

/// One to four edits, most of them in the tables at the end, the others in the superblock or anywhere.
fn mutate(base: &[u8], random: &mut Random) -> Vec<u8> {
    const INTERESTING: [u64; 14] = [
        0,
        1,
        3,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 63,
        u64::MAX,
        8191,
        8192,
        8193,
        4097,
    ];
    let mut image = base.to_vec();
    let length = image.len() as u64;
    let tables = u64::from_le_bytes(base[64..72].try_into().unwrap()).min(length - 1);
    for _ in 0..=random.below(4) {
        let at = match random.below(8) {
            0 => random.below(96),
            1 | 2 => random.below(length),
            _ => tables + random.below(length - tables),
        } as usize;
        let edit: Vec<u8> = match random.below(5) {
            0 => vec![random.next() as u8],
            1 => vec![image[at] ^ 1 << random.below(8)],
            2 => vec![0xff; 4],
            3 => (0..8).map(|_| random.next() as u8).collect(),
            _ => {
                let width = 1 << random.below(4);
                let value = INTERESTING[random.below(INTERESTING.len() as u64) as usize];
                value.to_le_bytes()[..width].to_vec()
            }
        };
        let end = (at + edit.len()).min(image.len());
        image[at..end].copy_from_slice(&edit[..end - at]);
    }
    image
}
