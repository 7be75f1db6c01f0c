//! The tar reader against strangers: odd archives made by GNU tar, bsdtar and Python's `tarfile`, and thousands of damaged
//! ones. What this reader accepts, others must see the same way: an entry that only one of two readers sees is a way past
//! whoever looked at the image with the other. Where they differ nonetheless stands in a table with the reason.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use hpcrun::convert::Budget;
use hpcrun::convert::layer::tar::{Entry, EntryKind, Reader};
use hpcrun::image::digest::Digest;

use crate::layer_building::{Member, block, chain, fix_checksum, padded, pax_record, tar};
use crate::support::{self, Random, run, text};

/// Lists archives that come one after the other, each behind its length, as lines between `== NUMBER` and an end: `-- ok`,
/// or `-- ` and what was wrong. `ignore_zeros` is off: reading ends at the first end marker.
const PYTHON: &str = r#"
import hashlib, io, struct, sys, tarfile
kinds = {tarfile.DIRTYPE: 'd', tarfile.SYMTYPE: 'l', tarfile.LNKTYPE: 'h', tarfile.FIFOTYPE: 'p', tarfile.CHRTYPE: 'c',
         tarfile.BLKTYPE: 'b', tarfile.REGTYPE: 'f', tarfile.AREGTYPE: 'f', tarfile.GNUTYPE_SPARSE: 'f'}
out = sys.stdout.buffer
number = 0
while True:
    head = sys.stdin.buffer.read(8)
    if not head: break
    archive = sys.stdin.buffer.read(struct.unpack('<Q', head)[0])
    out.write(b'== %d\n' % number)
    number += 1
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode='r:', encoding='utf-8', errors='surrogateescape') as tar:
            for m in tar:
                kind = kinds.get(m.type, '?')
                if m.size > 1 << 24: raise ValueError('large')
                data = tar.extractfile(m).read() if kind == 'f' else b''
                if kind == 'f' and len(data) != m.size: raise ValueError('cut short')
                link = m.linkname if kind in 'lh' else ''
                line = f'{m.name.rstrip("/")!r} {kind} {m.mode & 0o7777:o} {m.uid}:{m.gid} {len(data)} {link!r} '
                line += hashlib.sha256(data).hexdigest()[:16] + '\n'
                out.write(line.encode('utf-8', 'surrogateescape'))
        out.write(b'-- ok\n')
    except Exception as error:
        out.write(b'-- ' + type(error).__name__.encode() + b'\n')
"#;

/// What Python makes of archives: lines, and whether it came to an end without an error.
fn python(archives: &[Vec<u8>]) -> Vec<(String, bool)> {
    let mut child = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3; does 'make test' install it?");
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            for archive in archives {
                input.write_all(&(archive.len() as u64).to_le_bytes()).unwrap();
                input.write_all(archive).unwrap();
            }
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    let listed = text(&output.stdout);
    let parts = listed.split("== ").skip(1).map(|part| {
        let (_, rest) = part.split_once('\n').unwrap();
        let (lines, verdict) = rest.rsplit_once("-- ").unwrap();
        (lines.to_owned(), verdict.trim() == "ok")
    });
    let parts: Vec<_> = parts.collect();
    assert_eq!(parts.len(), archives.len());
    parts
}

/// The bytes of a name as Python's `repr` shows them.
fn shown(name: &[u8]) -> String {
    let mut out = String::new();
    let quote = if name.contains(&b'\'') && !name.contains(&b'"') { '"' } else { '\'' };
    for chunk in name.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\n' => out += "\\n",
                '\r' => out += "\\r",
                '\t' => out += "\\t",
                '\\' => out += "\\\\",
                c if c == quote => out += &format!("\\{c}"),
                c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) || c as u32 == 0xad => {
                    out += &format!("\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out += &format!("\\udc{byte:02x}");
        }
    }
    format!("{quote}{out}{quote}")
}

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    let budget = Budget { file_bytes: 1 << 24, ..Budget::default() };
    let mut reader = Reader::new(bytes, budget);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| chain(&error))? {
        let mut data = Vec::new();
        if let EntryKind::File { size, segments } = &entry.kind {
            data.resize(*size as usize, 0);
            for segment in segments {
                let (mut at, end) = (segment.offset as usize, segment.end().unwrap() as usize);
                while at < end {
                    at += reader.read_data(&mut data[at..end]).map_err(|error| chain(&error))?;
                }
            }
        }
        all.push((entry, data));
    }
    Ok(all)
}

/// What this reader makes of an archive, in Python's words.
fn ours(bytes: &[u8]) -> Result<String, String> {
    let mut out = String::new();
    for (entry, data) in entries(bytes)? {
        let (kind, link): (_, &[u8]) = match &entry.kind {
            EntryKind::Directory => ('d', b""),
            EntryKind::File { .. } => ('f', b""),
            EntryKind::HardLink(target) => ('h', target),
            EntryKind::Symlink(target) => ('l', target),
            EntryKind::CharacterDevice(..) => ('c', b""),
            EntryKind::BlockDevice(..) => ('b', b""),
            EntryKind::Fifo => ('p', b""),
        };
        let mut name = &entry.path[..];
        while let Some(shorter) = name.strip_suffix(b"/") {
            name = shorter;
        }
        let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
        let digest = Digest::of(&data);
        out += &format!("{} {kind} {mode:o} {uid}:{gid} {} ", shown(name), data.len());
        out += &format!("{} {}\n", shown(link), &digest.hex()[..16]);
    }
    Ok(out)
}

/// A header with bytes changed and the checksum right again, and its data.
fn patched(member: &Member, patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut header = block(member, member.data.len());
    for (at, bytes) in patches {
        header[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    fix_checksum(&mut header);
    [header, padded(&member.data)].concat()
}

fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Odd archives by hand.
fn odd() -> Vec<(&'static str, Vec<u8>)> {
    let file = |name: &str| Member::file(name, "data");
    let global = |records: &[u8]| patched(&Member { data: records.to_vec(), ..Member::new(b'g', "g") }, &[]);
    let pax = |records: &[u8]| patched(&Member { data: records.to_vec(), ..Member::new(b'x', "x") }, &[]);
    let long = |flag: u8, name: &[u8]| {
        patched(
            &Member { data: [name, b"\0"].concat(), ..Member::new(flag, "././@LongLink") },
            &[(257, b"ustar  \0")],
        )
    };
    let one = tar(&[file("a"), file("b")]);
    let size = |value: &str| pax_record(b"size", value.as_bytes());
    vec![
        ("plain", one.clone()),
        ("concatenated", [one.clone(), one.clone()].concat()),
        ("no end", one[..one.len() - 1024].to_vec()),
        ("one block of zeros", one[..one.len() - 512].to_vec()),
        ("cut in the data", one[..514].to_vec()),
        ("cut in a header", one[..1100].to_vec()),
        ("garbage behind the end", [one.clone(), vec![b'x'; 700]].concat()),
        ("lone zero block inside", [&one[..1024], &[0; 512], &one[1024..]].concat()),
        ("version 7", end(patched(&Member::new(0, "old"), &[(257, &[0; 8])]))),
        ("version 7 directory", end(patched(&Member::new(0, "old/"), &[(257, &[0; 8])]))),
        ("slash on a file", end(patched(&Member::new(b'0', "f/"), &[]))),
        ("ustar prefix", end(patched(&file("name"), &[(345, b"some/prefix")]))),
        ("base-256 uid", end(patched(&file("f"), &[(108, b"\x80\0\0\0\xff\xff\xff\xf0")]))),
        ("base-256 size", end(patched(&file("f"), &[(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x04")]))),
        ("negative uid", end(patched(&file("f"), &[(108, &[0xff; 8])]))),
        ("negative size", end(patched(&file("f"), &[(124, &[0xff; 12])]))),
        ("negative mtime", tar(&[Member { mtime: -5, ..file("f") }])),
        ("spaces in numbers", end(patched(&file("f"), &[(100, b"  755 \0 ")]))),
        ("no number at all", end(patched(&file("f"), &[(108, b"nobody\0\0")]))),
        ("python's numbers", end(patched(&file("f"), &[(108, b"0o17\0\0\0\0")]))),
        ("underscores in numbers", end(patched(&file("f"), &[(108, b"1_7\0\0\0\0\0")]))),
        ("GNU long name", end([long(b'L', &b"n".repeat(300)), file("n").bytes()].concat())),
        ("GNU long link", end([long(b'K', &b"n".repeat(300)), Member::symlink("l", "n").bytes()].concat())),
        (
            "both GNU long",
            end([long(b'K', b"to"), long(b'L', b"from"), Member::symlink("l", "n").bytes()].concat()),
        ),
        ("GNU long and PAX", end([long(b'L', b"gnu"), file("n").pax("path", "pax").bytes()].concat())),
        (
            "PAX and GNU long",
            end([pax(&pax_record(b"path", b"pax")), long(b'L', b"gnu"), file("n").bytes()].concat()),
        ),
        ("PAX path", tar(&[file("x").pax("path", b"p/\xff\xfe=\n")])),
        ("PAX newline in a link", tar(&[Member::symlink("s", "x").pax("linkpath", "a\n22 linkpath=evil\n")])),
        (
            "PAX size larger",
            end([pax(&size("1024")), patched(&Member::file("f", ""), &[]), vec![b'x'; 1024]].concat()),
        ),
        ("PAX size smaller", end([pax(&size("0")), block(&file("f"), 1024), file("in").bytes()].concat())),
        (
            "PAX size of a link",
            end([pax(&size("512")), patched(&Member::symlink("l", "t"), &[]), file("in").bytes()].concat()),
        ),
        ("size of a directory", end([block(&Member::directory("d"), 512), file("in").bytes()].concat())),
        (
            "size of a hard link",
            end([file("a").bytes(), block(&Member::hard_link("h", "a"), 512), file("in").bytes()].concat()),
        ),
        ("global path", end([global(&pax_record(b"path", b"evil")), file("f").bytes()].concat())),
        ("global owner", end([global(&pax_record(b"uid", b"7")), file("f").bytes()].concat())),
        ("global size", end([global(&size("0")), file("f").bytes(), file("g").bytes()].concat())),
        (
            "two PAX headers",
            end([pax(&pax_record(b"path", b"one")), pax(&pax_record(b"uid", b"5")), file("f").bytes()]
                .concat()),
        ),
        ("hdrcharset", tar(&[file("x").pax("hdrcharset", "BINARY").pax("path", b"bin\xff")])),
        ("PAX empty value", tar(&[file("x").pax("path", "other").pax("path", "")])),
        ("type 7", end(patched(&Member::new(b'7', "seven"), &[]))),
        ("unknown type", end(patched(&Member::new(b'Z', "odd"), &[]))),
        ("volume label", end(patched(&Member::new(b'V', "label"), &[(257, b"ustar  \0")]))),
        ("not UTF-8", tar(&[file("x").pax("path", b"\xe4\xf6"), Member::file(b"\xff", "d")])),
        ("all zeros", vec![0; 10240]),
    ]
}

/// Where Python sees something else in what this reader accepts, and why.
const PYTHON_DIFFERS: &[(&str, &str)] = &[
    ("PAX and GNU long", "the first of the two wins there; a GNU long name beats a PAX path in Go"),
    ("PAX empty value", "an empty value is an empty name there; it takes the record back (pax(5))"),
    ("global owner", "applied to all that follows; no runtime applies global records"),
    ("global path", "the same"),
    ("global size", "the same"),
    ("two PAX headers", "records add up there; the last header is the one in Go"),
];

#[test]
fn odd_archives_against_python() {
    let archives = odd();
    let theirs = python(&archives.iter().map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>());
    let mut differing = BTreeMap::new();
    let (mut same, mut refused) = (0, 0);
    for ((name, bytes), (their_list, their_ok)) in archives.iter().zip(theirs) {
        match ours(bytes) {
            Ok(list) if list == their_list && their_ok => same += 1,
            Ok(list) => drop(differing.insert(*name, (list, their_list, their_ok))),
            Err(_) => refused += 1,
        }
    }
    println!("{same} the same, {refused} refused here");
    let expected: Vec<&str> = PYTHON_DIFFERS.iter().map(|(name, _)| *name).collect();
    let found: Vec<&str> = differing.keys().copied().collect();
    assert_eq!(found, expected, "{differing:#?}");
    assert!(same >= 15 && refused >= 8, "{same} the same, {refused} refused");
}

/// Names, types, sizes and owners as `tar --list --verbose` has them; none if tar finds a fault.
fn gnu_tar(bytes: &[u8], dir: &Path) -> Option<Vec<String>> {
    let path = dir.join("archive.tar");
    fs::write(&path, bytes).unwrap();
    let output = run(Command::new("tar")
        .args(["--list", "--verbose", "--numeric-owner", "--quoting-style=escape", "--utc", "--file"])
        .arg(&path)
        .env("LC_ALL", "C"));
    if !output.status.success() || !output.stderr.is_empty() {
        return None;
    }
    let lines = text(&output.stdout);
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap()[..1].replace('-', "f");
        let (owner, size) = (words.next().unwrap(), words.next().unwrap());
        let rest: Vec<&str> = words.skip(2).collect();
        let size = if "fh".contains(&kind) { size } else { "0" };
        let name = rest.join(" ");
        let name = name.split(" -> ").next().unwrap().split(" link to ").next().unwrap();
        format!("{kind} {owner} {size} {}", name.trim_end_matches('/'))
    };
    Some(lines.lines().map(line).collect())
}

fn as_gnu_tar(bytes: &[u8]) -> Option<Vec<String>> {
    let line = |(entry, data): (Entry, Vec<u8>)| {
        let kind = match &entry.kind {
            EntryKind::Directory => 'd',
            EntryKind::File { .. } => 'f',
            EntryKind::HardLink(_) => 'h',
            EntryKind::Symlink(_) => 'l',
            EntryKind::CharacterDevice(..) => 'c',
            EntryKind::BlockDevice(..) => 'b',
            EntryKind::Fifo => 'p',
        };
        let name = text(&entry.path).split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{kind} {}/{} {} {}", entry.uid, entry.gid, data.len(), name.trim_end_matches('/'))
    };
    Some(entries(bytes).ok()?.into_iter().map(line).collect())
}

/// Archives by producers that are not ours, of a tree with all that a user can make.
fn produced() -> Vec<(String, Vec<u8>)> {
    let dir = support::scratch();
    let script = r#"
        umask 022
        mkdir -p plain/deep "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 120))"
        echo hello > plain/file; : > plain/empty; head -c 100000 /dev/zero | tr '\0' z > plain/large
        ln plain/file plain/hard; ln -s file plain/soft; ln -s "$(printf 't%.0s' $(seq 200))" plain/longlink
        mkfifo plain/pipe; chmod 4755 plain/file; chmod 1777 plain/deep
        echo long > "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 120))/$(printf 'f%.0s' $(seq 100))"
        truncate -s 300K plain/sparse
        for at in 10 20 30 40 50 60; do printf data | dd of=plain/sparse bs=4096 seek=$at conv=notrunc status=none; done
    "#;
    support::stdout(Command::new("bash").arg("-euc").arg(script).current_dir(dir.path()));
    let mut archives = Vec::new();
    let mut make = |program: &str, options: &[&str]| {
        let output = run(Command::new(program).args(options).arg(".").current_dir(dir.path()));
        assert!(!output.stdout.is_empty(), "{program} {options:?}: {}", text(&output.stderr));
        archives.push((format!("{program} {}", options.join(" ")), output.stdout));
    };
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        make("tar", &["--create", "--sort=name", "--format", format]);
    }
    make("tar", &["--create", "--sort=name", "--format=gnu", "--sparse"]);
    for version in ["0.0", "0.1", "1.0"] {
        make("tar", &["--create", "--sort=name", "--format=posix", "--sparse", "--sparse-version", version]);
    }
    for format in ["v7tar", "ustar", "gnutar", "pax", "paxr"] {
        make("bsdtar", &["--create", "--file=-", "--format", format]);
    }
    archives
}

#[test]
fn archives_of_every_producer_against_python_and_gnu_tar() {
    let dir = support::scratch();
    let archives = produced();
    let theirs = python(&archives.iter().map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>());
    for ((producer, bytes), (their_list, their_ok)) in archives.iter().zip(theirs) {
        assert!(their_ok, "{producer}");
        assert_eq!(ours(bytes).as_ref(), Ok(&their_list), "{producer}");
        // GNU tar shows no size for a hard link of bsdtar, whose headers have one.
        let drop_sizes = |lines: Option<Vec<String>>| -> Vec<String> {
            lines.unwrap().into_iter().filter(|line| !line.starts_with('h')).collect()
        };
        assert_eq!(drop_sizes(as_gnu_tar(bytes)), drop_sizes(gnu_tar(bytes, dir.path())), "{producer}");
    }
}

/// Thousands of damaged archives: whatever is accepted here and there is the same.
#[test]
fn mutants_are_never_read_differently() {
    let rich = |name: &str| {
        Member::file(name, vec![b'd'; 700])
            .pax("path", format!("pax/{name}"))
            .pax("mtime", "1.5")
            .owner(70_000, 8)
    };
    let sparse = Member::file("sparse", [b'x'; 600])
        .pax("GNU.sparse.major", "0")
        .pax("GNU.sparse.minor", "1")
        .pax("GNU.sparse.name", "sparse")
        .pax("GNU.sparse.size", "10000")
        .pax("GNU.sparse.numblocks", "2")
        .pax("GNU.sparse.map", "4096,500,9900,100");
    let long = patched(
        &Member {
            data: [&b"long/".repeat(40)[..], b"name\0"].concat(),
            ..Member::new(b'L', "././@LongLink")
        },
        &[(257, b"ustar  \0")],
    );
    let original = [
        Member::directory("d/").bytes(),
        rich("one").bytes(),
        long.clone(),
        Member::file("x", "behind a long name").bytes(),
        Member::hard_link("h", "d/one").bytes(),
        sparse.bytes(),
        Member::symlink("s", "target").bytes(),
        tar(&[Member::file("last", "end")]),
    ]
    .concat();
    let seed = support::seed();
    let mutants: Vec<Vec<u8>> = (0..6000)
        .map(|round| {
            let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(round));
            mutate(&original, &mut random)
        })
        .collect();
    let theirs = python(&mutants);
    let dir = support::scratch();
    let (mut same, mut stricter, mut unexplained) = (0, 0, Vec::new());
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, (mutant, (their_list, their_ok))) in mutants.iter().zip(theirs).enumerate() {
        let Ok(list) = ours(mutant) else {
            stricter += 1;
            continue;
        };
        if their_ok && list == their_list {
            same += 1;
            continue;
        }
        // Two of three readers agree, or the difference has a name.
        let agrees_with_gnu = || {
            let gnu = gnu_tar(mutant, dir.path());
            (gnu.is_some() && gnu == as_gnu_tar(mutant)).then_some("as GNU tar")
        };
        match difference(mutant, &long, &list, &their_list, their_ok).or_else(agrees_with_gnu) {
            Some(name) => *known.entry(name).or_default() += 1,
            None => unexplained.push(format!("mutant {number}\nours:\n{list}python:\n{their_list}")),
        }
    }
    unexplained.truncate(3);
    assert!(unexplained.is_empty(), "HPCRUN_SEED={seed}: {}", unexplained.join("\n"));
    println!("{same} the same, {stricter} refused here, {known:?}");
    assert!(same > 1000 && stricter > 1000, "{same} the same, {stricter} refused here, {known:?}");
}

fn mutate(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..1 + random.below(2) {
        let at = random.below(bytes.len() as u64) as usize;
        // Mostly the fields that tell where things are.
        let at = if random.below(3) > 0 { at / 512 * 512 + 100 + random.below(60) as usize } else { at };
        let Some(byte) = bytes.get_mut(at) else { continue };
        match random.below(4) {
            0 => *byte ^= 1 << random.below(8),
            1 | 2 => *byte = b"01234567\0 x125Lg"[random.below(16) as usize],
            _ => bytes.truncate(at.max(512)),
        }
    }
    for header in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        fix_checksum(header);
    }
    bytes
}

/// The name of a difference between this reader and Python that is meant to be.
fn difference(bytes: &[u8], long: &[u8], ours: &str, theirs: &str, their_ok: bool) -> Option<&'static str> {
    if !their_ok {
        return Some("Python refuses more");
    }
    let headers = || bytes.chunks_exact(512).filter(|block| block[257..262] == *b"ustar");
    if headers().any(|block| block[156] == b'g') {
        return Some("Python applies global records");
    }
    // Python reads the name up to its NUL, whatever the size; Go cuts it there.
    if headers().any(|block| block[156] == b'L' && block[124..136] != long[124..136]) {
        return Some("the size of a long name");
    }
    // It takes an invalid header behind the first for the end of the archive.
    (ours.starts_with(theirs) || theirs.starts_with(ours)).then_some("Python ends earlier or later")
}
