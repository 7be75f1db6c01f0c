//! The tar reader: tables of headers by hand, archives made by GNU tar and Python, and damaged ones.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on may panic"
)]

mod known;

use std::io::Write;
use std::process::{Command, Stdio};

use hpcrun::convert::Budget;
use hpcrun::convert::layer::tar::{Entry, EntryKind, Reader};

use crate::layer_building::{Member, block, chain, fix_checksum, padded, pax_record, tar};
use crate::support::{self, Random};

/// All entries with their data, holes filled in.
fn read_with(bytes: &[u8], budget: Budget) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    let mut reader = Reader::new(bytes, budget);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| chain(&error))? {
        let mut data = Vec::new();
        if let EntryKind::File { size, segments } = &entry.kind {
            assert!(*size < 1 << 28, "a test would fill the memory");
            data.resize(*size as usize, 0);
            for segment in segments {
                let mut at = segment.offset as usize;
                let end = segment.end().expect("checked") as usize;
                while at < end {
                    at += reader.read_data(&mut data[at..end]).map_err(|error| chain(&error))?;
                }
            }
        }
        all.push((entry, data));
    }
    Ok(all)
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    read_with(bytes, Budget::default())
}

/// The only entry of a tar.
#[track_caller]
fn one(bytes: &[u8]) -> (Entry, Vec<u8>) {
    let mut all = read(bytes).expect("readable");
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let error = read(bytes).expect_err("refused");
    assert!(error.contains(expected), "{error}");
}

/// A header block with bytes changed and the checksum right again.
fn patched(member: &Member, patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut header = block(member, member.data.len());
    for (at, bytes) in patches {
        header[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    fix_checksum(&mut header);
    [header, padded(&member.data)].concat()
}

/// A GNU `L` or `K` member.
fn gnu_long(type_flag: u8, name: &[u8]) -> Vec<u8> {
    let body = [name, b"\0"].concat();
    patched(&Member { data: body, ..Member::new(type_flag, "././@LongLink") }, &[(257, b"ustar  \0")])
}

fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn every_type() {
    let cases = [
        (Member::directory("d/"), EntryKind::Directory),
        (Member::symlink("s", "to"), EntryKind::Symlink(b"to".to_vec())),
        (Member::hard_link("h", "to"), EntryKind::HardLink(b"to".to_vec())),
        (Member { device: (1, 3), ..Member::new(b'3', "c") }, EntryKind::CharacterDevice(1, 3)),
        (
            Member { device: (4095, 1_048_575), ..Member::new(b'4', "b") },
            EntryKind::BlockDevice(4095, 1_048_575),
        ),
        (Member::new(b'6', "p"), EntryKind::Fifo),
    ];
    for (member, kind) in cases {
        let (entry, _) = one(&tar(std::slice::from_ref(&member)));
        assert_eq!((entry.path, entry.kind), (member.name, kind));
    }
    let (entry, data) = one(&tar(&[Member::file("f", "data").mode(0o4751).owner(1, 2)]));
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o4751, 1, 2, 1_000_000_000));
    assert_eq!(data, b"data");
}

#[test]
fn unknown_types_are_refused() {
    for type_flag in (0..=255u8).filter(|flag| !b"\0".contains(flag) && !(b'0'..=b'6').contains(flag)) {
        let bytes = end(patched(&Member::new(type_flag, "odd"), &[]));
        match type_flag {
            b'x' | b'g' | b'L' | b'K' | b'S' => {}
            _ => refused(&bytes, "are not supported"),
        }
    }
    refused(&end(patched(&Member::new(b'S', "s"), &[])), "type 'S' outside a GNU header");
}

#[test]
fn version_7_directories_end_in_a_slash() {
    let kind = |type_flag, name| one(&end(patched(&Member::new(type_flag, name), &[]))).0.kind;
    let file = EntryKind::File { size: 0, segments: vec![] };
    assert_eq!(kind(0, "d/"), EntryKind::Directory);
    assert_eq!(kind(0, "f"), file);
    assert_eq!(kind(b'0', "notdir/"), file);
    let long = Member::new(0, "f").pax("path", "from-pax/");
    assert_eq!(one(&tar(&[long])).0.kind, EntryKind::Directory);
}

#[test]
fn numbers_of_every_shape() {
    let mode = |bytes: &[u8]| one(&end(patched(&Member::file("f", ""), &[(100, bytes)]))).0.mode;
    assert_eq!(mode(b"0100644\0"), 0o644);
    assert_eq!(mode(b"  755 \0 "), 0o755);
    assert_eq!(mode(b"\0\0\0\0\0\0\0\0"), 0);
    assert_eq!(mode(b"7777777\0"), 0o7777);
    let uid = |bytes: &[u8]| read(&end(patched(&Member::file("f", ""), &[(108, bytes)])));
    assert_eq!(uid(b"\x80\0\0\0\xff\xff\xff\xff").expect("fits")[0].0.uid, u32::MAX);
    assert!(uid(b"\x80\0\0\x01\0\0\0\0").expect_err("too large").contains("uid is out of range: 4294967296"));
    assert!(
        uid(b"\xff\xff\xff\xff\xff\xff\xff\xfe").expect_err("negative").contains("uid is out of range: -2")
    );
    assert!(uid(b"nobody\0\0").expect_err("no number").contains("uid is not a number"));
    let mtime = |mtime| one(&tar(&[Member { mtime, ..Member::file("f", "") }])).0.mtime;
    assert_eq!([mtime(-5), mtime(0), mtime(5_000_000_000), mtime(i64::MAX)], [0, 0, u32::MAX, u32::MAX]);
    let pax_mtime = |text: &str| one(&tar(&[Member::file("f", "").pax("mtime", text)])).0.mtime;
    assert_eq!([pax_mtime("7.999"), pax_mtime("-2.5"), pax_mtime("99999999999")], [7, 0, u32::MAX]);
    refused(&end(patched(&Member::file("f", ""), &[(124, b"-0000000001\0")])), "size is not a number");
    refused(&end(patched(&Member::file("f", ""), &[(124, &[0xff; 12])])), "size is out of range: -1");
    refused(&end(patched(&Member::new(b'3', "c"), &[(329, b"0010000\0")])), "major is out of range: 4096");
}

#[test]
fn checksums_signed_and_unsigned() {
    let name = b"\xff\xfe\xe4";
    let mut header = block(&Member::file(name, ""), 0);
    assert_eq!(one(&end(header.clone())).0.path, name);
    header[148..156].fill(b' ');
    let signed: i32 = header.iter().map(|byte| i32::from(*byte as i8)).sum();
    header[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert_eq!(one(&end(header.clone())).0.path, name);
    header[0] ^= 1;
    refused(&end(header), "checksum does not match");
    refused(&[b'x'; 512], "checksum does not match");
}

#[test]
fn names_come_from_prefix_pax_and_gnu_extensions() {
    let member = Member::file("name", "");
    let prefixed = patched(&member, &[(345, b"some/prefix")]);
    assert_eq!(one(&end(prefixed)).0.path, b"some/prefix/name");
    let star = patched(&member, &[(345, &[b'p'; 131]), (508, b"tar\0")]);
    assert_eq!(one(&end(star)).0.path, [&[b'p'; 131][..], b"/name"].concat());
    let version_7 = patched(&member, &[(257, &[0; 8]), (345, b"ignored")]);
    assert_eq!(one(&end(version_7)).0.path, b"name");
    let gnu_times = patched(&member, &[(257, b"ustar  \0"), (345, b"12345670123\x0012345670123\0")]);
    assert_eq!(one(&end(gnu_times)).0.path, b"name");
    let old_go = patched(&member, &[(257, b"ustar  \0"), (345, b"prefix/of/go")]);
    assert_eq!(one(&end(old_go)).0.path, b"prefix/of/go/name");

    let long = "long/".repeat(60);
    let bytes = [gnu_long(b'L', long.as_bytes()), member.bytes()].concat();
    assert_eq!(one(&end(bytes)).0.path, long.as_bytes());
    let bytes =
        [gnu_long(b'K', long.as_bytes()), gnu_long(b'L', b"x"), Member::symlink("s", "t").bytes()].concat();
    let (entry, _) = one(&end(bytes));
    assert_eq!((&entry.path[..], entry.kind), (&b"x"[..], EntryKind::Symlink(long.into_bytes())));
    let bytes = [gnu_long(b'L', b"gnu"), member.clone().pax("path", "pax").bytes()].concat();
    assert_eq!(one(&end(bytes)).0.path, b"gnu");
    let bytes = [gnu_long(b'L', b"cut\0off"), member.bytes()].concat();
    assert_eq!(one(&end(bytes)).0.path, b"cut");
    let (entry, _) = one(&tar(&[member.clone().pax("path", b"pax\xff\n=name")]));
    assert_eq!(entry.path, b"pax\xff\n=name");
    refused(&tar(&[member.pax("path", b"a\0b")]), "a name contains NUL");
}

#[test]
fn pax_overrules_the_header() {
    let big = Member::file("f", "").owner(7, 7).pax("uid", "4294967295").pax("gid", "3000000000");
    let (entry, _) = one(&tar(&[big]));
    assert_eq!((entry.uid, entry.gid), (u32::MAX, 3_000_000_000));
    refused(&tar(&[Member::file("f", "").pax("uid", "4294967296")]), "uid is out of range");
    refused(&tar(&[Member::file("f", "").pax("uid", "-1")]), "uid is out of range");
    refused(&tar(&[Member::file("f", "").pax("uid", "x")]), "uid is not a number");
    refused(&tar(&[Member::file("f", "").pax("mtime", "x")]), "mtime is not a number");
    let (entry, _) = one(&tar(&[Member::symlink("s", "short").pax("linkpath", "a\n22 linkpath=evil\n")]));
    assert_eq!(entry.kind, EntryKind::Symlink(b"a\n22 linkpath=evil\n".to_vec()));
}

/// Which size counts, where several are given: readers that disagree see different entries.
#[test]
fn sizes_that_disagree() {
    let hidden = Member::file("hidden", "x").bytes();
    // Header 0, PAX says all of the next member is data.
    let header = patched(&Member::file("outer", ""), &[]);
    let record = pax_record(b"size", hidden.len().to_string().as_bytes());
    let pax = patched(&Member { data: record, ..Member::new(b'x', "p") }, &[]);
    let (entry, data) = one(&end([pax.clone(), header, hidden.clone()].concat()));
    assert_eq!((&entry.path[..], data), (&b"outer"[..], hidden.clone()));
    // Header says data, PAX says 0: the data is the next header.
    let mut header = block(&Member::file("outer", ""), hidden.len());
    fix_checksum(&mut header);
    let pax0 = patched(&Member { data: pax_record(b"size", b"0"), ..Member::new(b'x', "p") }, &[]);
    let all = read(&end([pax0, header.clone(), hidden.clone()].concat())).expect("readable");
    assert_eq!(all.iter().map(|(entry, _)| &entry.path[..]).collect::<Vec<_>>(), [&b"outer"[..], b"hidden"]);
    // Types without data ignore both.
    for type_flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let mut header =
            block(&Member { link: b"t".to_vec(), ..Member::new(type_flag, "outer") }, hidden.len());
        fix_checksum(&mut header);
        for bytes in
            [[header.clone(), hidden.clone()].concat(), [pax.clone(), header, hidden.clone()].concat()]
        {
            let all = read(&end(bytes)).expect("readable");
            assert_eq!(all.len(), 2, "type {}", type_flag.escape_ascii());
        }
    }
    // A global size means nothing.
    let global = patched(&Member { data: pax_record(b"size", b"512"), ..Member::new(b'g', "g") }, &[]);
    let all = read(&end([global, Member::file("f", "").bytes(), hidden].concat())).expect("readable");
    assert_eq!(all.len(), 2);
    // The size of an extension is its header's, whatever PAX says.
    let long = gnu_long(b'L', b"long-name");
    let size1 = patched(&Member { data: pax_record(b"size", b"1"), ..Member::new(b'x', "p") }, &[]);
    let file = patched(&Member::file("f", "d"), &[]);
    assert_eq!(one(&end([size1, long, file].concat())).0.path, b"long-name");
    refused(&tar(&[Member::file("f", "").pax("size", "-1")]), "size is out of range");
    refused(&tar(&[Member::file("f", "").pax("size", "9999999999999999999")]), "size is not a number");
    refused(&tar(&[Member::file("f", "").pax("size", "100000")]), "the tar ends early");
}

#[test]
fn global_headers_are_checked_and_ignored() {
    let records =
        [pax_record(b"path", b"evil"), pax_record(b"uid", b"7"), pax_record(b"mtime", b"7")].concat();
    let global = patched(&Member { data: records, ..Member::new(b'g', "pax_global_header") }, &[]);
    let (entry, _) = one(&end([global.clone(), Member::file("f", "").bytes()].concat()));
    assert_eq!((&entry.path[..], entry.uid, entry.mtime), (&b"f"[..], 0, 1_000_000_000));
    let broken = patched(&Member { data: b"nonsense".to_vec(), ..Member::new(b'g', "g") }, &[]);
    refused(&end([broken, Member::file("f", "").bytes()].concat()), "malformed PAX record 1");
    let pax = patched(&Member { data: pax_record(b"path", b"x"), ..Member::new(b'x', "p") }, &[]);
    refused(
        &end([pax.clone(), global, Member::file("f", "").bytes()].concat()),
        "followed by a global header",
    );
    refused(&end(pax), "followed by the end of the tar");
}

#[test]
fn extended_attributes_are_bytes() {
    let value = b"\x01\0\n22 path=evil\n\xff";
    let member = Member::file("f", "")
        .pax("SCHILY.xattr.user.b", value)
        .pax("SCHILY.xattr.user.a=x", "v")
        .pax("SCHILY.acl.access", "user::rw-")
        .pax("LIBARCHIVE.xattr.user.c", "dmFsdWU=");
    let (entry, _) = one(&tar(&[member]));
    // A key ends at the first '=', as in Go.
    let expected = [(b"user.a".to_vec(), b"x=v".to_vec()), (b"user.b".to_vec(), value.to_vec())];
    assert_eq!((entry.xattrs, entry.ignored_records), (expected.to_vec(), 2));
    let large = Member::file("f", "").pax("SCHILY.xattr.user.a", vec![0; (64 << 10) + 1]);
    refused(&tar(&[large]), "bytes of an xattr value exceed the limit of 65536");
}

/// A file of 10000 bytes with data at 4096 and at its end, in a format's own words.
fn sparse_members() -> Vec<(&'static str, Vec<u8>)> {
    let stored = [vec![b'a'; 512], vec![b'b'; 100]].concat();
    let pax = |records: &[(&str, &str)]| {
        let mut member = Member::file("GNUSparseFile.0/f", &stored);
        for (key, value) in records {
            member = member.pax(key, value);
        }
        member.bytes()
    };
    let format_00 = pax(&[
        ("GNU.sparse.size", "10000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "4096"),
        ("GNU.sparse.numbytes", "512"),
        ("GNU.sparse.offset", "9900"),
        ("GNU.sparse.numbytes", "100"),
        ("GNU.sparse.name", "f"),
    ]);
    let format_01 = pax(&[
        ("GNU.sparse.major", "0"),
        ("GNU.sparse.minor", "1"),
        ("GNU.sparse.name", "f"),
        ("GNU.sparse.size", "10000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.map", "4096,512,9900,100"),
    ]);
    let with_map = [padded(b"2\n4096\n512\n9900\n100\n"), stored.clone()].concat();
    let format_10 = Member::file("GNUSparseFile.0/f", with_map)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.realsize", "10000")
        .bytes();
    let old = patched(
        &Member { data: stored, ..Member::new(b'S', "f") },
        &[
            (257, b"ustar  \0"),
            (386, b"00000010000\x0000000001000\x0000000023254\x0000000000144\0"),
            (483, b"00000023420\0"),
        ],
    );
    vec![("0.0", format_00), ("0.1", format_01), ("1.0", format_10), ("old GNU", old)]
}

#[test]
fn sparse_files_of_every_format() {
    let mut expected = vec![0; 10_000];
    expected[4096..4608].fill(b'a');
    expected[9900..].fill(b'b');
    for (format, member) in sparse_members() {
        let all = read(&end([member, Member::file("after", "x").bytes()].concat())).expect(format);
        assert_eq!(all[0].0.path, b"f", "{format}");
        assert!(all[0].1 == expected, "{format}");
        assert_eq!((&all[1].0.path[..], &all[1].1[..]), (&b"after"[..], &b"x"[..]), "{format}");
        let EntryKind::File { segments, .. } = &all[0].0.kind else { panic!("{format}: no file") };
        assert_eq!(segments.len(), 2, "{format}: holes stay holes");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let with = |map: &str, count: &str, size: &str| {
        let member = Member::file("f", [b'x'; 100])
            .pax("GNU.sparse.major", "0")
            .pax("GNU.sparse.minor", "1")
            .pax("GNU.sparse.size", size)
            .pax("GNU.sparse.numblocks", count)
            .pax("GNU.sparse.map", map);
        read(&tar(&[member]))
    };
    assert!(with("0,50,60,50", "2", "200").is_ok());
    assert!(with("0,50,60,50,200,0", "3", "200").is_ok());
    let cases = [
        ("0,50,40,50", "2", "200"),
        ("60,50,0,50", "2", "200"),
        ("0,50,160,50", "2", "200"),
        ("0,50,60,49", "2", "200"),
        ("0,50,60,51", "2", "200"),
        ("0,50,60,50", "3", "200"),
        ("0,50,60,50", "-1", "200"),
        ("0,50,60", "2", "200"),
        ("0,50,x,50", "2", "200"),
        ("-1,50,60,50", "2", "200"),
        ("0,50,18446744073709551615,50", "2", "200"),
        ("0,50,9223372036854775807,50", "2", "9223372036854775807"),
        ("0,50,60,50", "2", "-200"),
        ("0,50,60,50", "", "200"),
    ];
    for (map, count, size) in cases {
        assert!(with(map, count, size).is_err(), "{map} {count} {size}");
    }
    let in_data = |text: &[u8]| {
        let data = [padded(text), vec![b'x'; 100]].concat();
        let member = Member::file("f", data)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.realsize", "200");
        read(&tar(&[member]))
    };
    assert!(in_data(b"1\n100\n100\n").is_ok());
    for text in [
        &b"1\n100\n99\n"[..],
        b"",
        b"1\n\n100\n",
        b"x\n",
        b"1\n100\n100",
        b"99999999999999999999999\n",
        b"3000000\n",
    ] {
        assert!(in_data(text).is_err(), "{}", text.escape_ascii());
    }
    refused(
        &tar(&[Member::file("f", "").pax("GNU.sparse.major", "2").pax("GNU.sparse.minor", "0")]),
        "unknown version",
    );
    let directory = Member::directory("d").pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
    refused(&tar(&[directory]), "only regular files can be sparse");
}

#[test]
fn a_small_tar_cannot_claim_much() {
    let claim = Member::file("f", [b'x'; 512])
        .pax("GNU.sparse.major", "0")
        .pax("GNU.sparse.minor", "1")
        .pax("GNU.sparse.size", "8796093022208")
        .pax("GNU.sparse.numblocks", "1")
        .pax("GNU.sparse.map", "0,512");
    refused(&tar(&[claim]), "bytes of all files exceed the limit of 1099511627776");
    let small = Budget { entries: 3, file_bytes: 10, extensions: 2, segments: 1, ..Budget::default() };
    let four = [(); 4].map(|()| Member::file("f", ""));
    assert!(read_with(&tar(&four), small).expect_err("4").contains("entries exceed the limit of 3"));
    assert!(read_with(&tar(&[Member::file("f", [0; 11])]), small).expect_err("11").contains("limit of 10"));
    let chain =
        [gnu_long(b'L', b"a"), gnu_long(b'K', b"b"), gnu_long(b'L', b"c"), Member::file("f", "").bytes()];
    assert!(
        read_with(&end(chain.concat()), small).expect_err("3").contains("extension headers of one entry")
    );
    for (format, member) in sparse_members() {
        let error = read_with(&end(member), Budget { segments: 1, ..Budget::default() }).expect_err(format);
        assert!(error.contains("segments of a sparse file exceed the limit of 1"), "{format}: {error}");
    }
    let mut huge = block(&Member::new(b'x', "p"), (1 << 20) + 1);
    fix_checksum(&mut huge);
    refused(&huge, "bytes of an extension header exceed the limit of 1048576");
}

#[test]
fn the_end_of_a_tar() {
    let file = Member::file("f", "data").bytes();
    let names = |bytes: &[u8]| read(bytes).map(|all| all.len());
    assert_eq!(names(b""), Ok(0));
    assert_eq!(names(&[0; 512]), Ok(0));
    assert_eq!(names(&[0; 1024]), Ok(0));
    assert_eq!(names(&file), Ok(1), "no end marker");
    assert_eq!(names(&file[..516]), Ok(1), "no padding either");
    assert_eq!(names(&[&file[..], &[0; 512]].concat()), Ok(1));
    assert_eq!(names(&[&file[..], &[0; 1024], b"garbage"].concat()), Ok(1));
    assert_eq!(names(&[&file[..], &[0; 1024], &file[..]].concat()), Ok(1), "a second archive is not read");
    refused(&[&file[..], &[0; 512], &file[..]].concat(), "a block of zeros is followed by data");
    refused(&file[..515], "the tar ends early, 1 bytes before the end of the file");
    refused(&file[..512], "the tar ends early, 4 bytes before the end of the file");
    refused(
        &[&file[..], &file[..100]].concat(),
        "the tar ends early, 412 bytes before the end of the header",
    );
}

#[test]
fn errors_name_entry_and_place() {
    let bytes = tar(&[Member::file("good", "x"), Member::new(b'Z', b"a/bad\xff")]);
    refused(&bytes, "entry \"a/bad\\xff\" at byte 1024: entries of type 'Z' are not supported");
    let mut bytes = tar(&[Member::file("good", "x")]);
    bytes[1024] = 1;
    refused(&bytes, "tar header at byte 1024: not a tar header");
}

/// What a stranger reads from the same bytes: name, type, mode, owner, time, size, target, and the data's digest.
const PYTHON_LIST: &str = r#"
import hashlib, sys, tarfile, io
kinds = {tarfile.DIRTYPE: 'd', tarfile.SYMTYPE: 'l', tarfile.LNKTYPE: 'h', tarfile.FIFOTYPE: 'p',
         tarfile.CHRTYPE: 'c', tarfile.BLKTYPE: 'b'}
with tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read()), mode='r:', encoding='utf-8',
                  errors='surrogateescape') as tar:
    for m in tar:
        kind = 'f' if m.isreg() or m.issparse() else kinds[m.type]
        data = tar.extractfile(m).read() if kind == 'f' else b''
        link = m.linkname if kind in 'lh' else ''
        line = f'{m.name.rstrip("/")} {kind} {m.mode & 0o7777:o} {m.uid}:{m.gid} {int(m.mtime)} {len(data)} {link} '
        sys.stdout.buffer.write(line.encode('utf-8', 'surrogateescape') + hashlib.sha256(data).hexdigest().encode() + b'\n')
"#;

fn python_list(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("python3")
        .args(["-c", PYTHON_LIST])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3; does 'make test' install it?");
    child.stdin.take().expect("piped").write_all(bytes).expect("python reads");
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success());
    output.stdout
}

fn own_list(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, data) in read(bytes).expect("readable") {
        let (kind, link): (_, &[u8]) = match &entry.kind {
            EntryKind::Directory => ('d', b""),
            EntryKind::File { .. } => ('f', b""),
            EntryKind::HardLink(target) => ('h', target),
            EntryKind::Symlink(target) => ('l', target),
            EntryKind::CharacterDevice(..) => ('c', b""),
            EntryKind::BlockDevice(..) => ('b', b""),
            EntryKind::Fifo => ('p', b""),
        };
        let name = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let digest = hpcrun::image::digest::Digest::of(&data);
        out.extend_from_slice(name);
        let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        out.extend_from_slice(format!(" {kind} {mode:o} {uid}:{gid} {mtime} {} ", data.len()).as_bytes());
        out.extend_from_slice(link);
        out.extend_from_slice(format!(" {}\n", digest.hex()).as_bytes());
    }
    out
}

#[track_caller]
fn same_as_python(bytes: &[u8], what: &str) {
    let (ours, theirs) = (own_list(bytes), python_list(bytes));
    assert!(!ours.is_empty(), "{what}: nothing read");
    assert_eq!(support::text(&ours), support::text(&theirs), "{what}");
}

/// A directory with everything an ordinary user can make in it.
fn populate(dir: &std::path::Path) {
    let script = r#"
        umask 022
        mkdir -p plain/deep/er "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 120))"
        echo hello > plain/file; : > plain/empty; head -c 100000 /dev/urandom > plain/random
        ln plain/file plain/hard; ln -s file plain/soft; ln -s "$(printf 't%.0s' $(seq 200))" plain/longlink
        mkfifo plain/pipe; chmod 4755 plain/file; chmod 1777 plain/deep
        echo long > "$(printf 'd%.0s' $(seq 90))/$(printf 'e%.0s' $(seq 120))/$(printf 'f%.0s' $(seq 100))"
        echo odd > "$(printf 'plain/\344\377 new\nline')"
        truncate -s 3M plain/sparse
        printf start | dd of=plain/sparse conv=notrunc status=none
        for at in 100 200 300 400 500 600 700; do
            printf data | dd of=plain/sparse bs=4096 seek=$at conv=notrunc status=none
        done
        truncate -s 1M plain/hole
        touch -d '1965-01-02 03:04:05' plain/empty; touch -d '2001-01-02 03:04:05.678' plain/file
    "#;
    support::stdout(Command::new("bash").arg("-euc").arg(script).current_dir(dir));
}

#[test]
fn archives_of_gnu_tar_in_every_format() {
    let dir = support::scratch();
    populate(dir.path());
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax", "posix"] {
        for sparse in [
            &[][..],
            &["--sparse"],
            &["--sparse", "--sparse-version=0.0"],
            &["--sparse", "--sparse-version=0.1"],
        ] {
            let is_possible = match format {
                "v7" | "ustar" => sparse.is_empty(),
                "pax" => true,
                _ => sparse.len() < 2,
            };
            if !is_possible {
                continue;
            }
            let output = Command::new("tar")
                .args(["-c", "--sort=name", "--format", format])
                .args(sparse)
                .arg(".")
                .current_dir(dir.path())
                .output()
                .expect("tar");
            // The older formats cannot hold everything; what they leave out they say, and the archive is good.
            assert!(output.status.success() || ["v7", "ustar", "oldgnu"].contains(&format), "{format}");
            let mut ours = own_list(&output.stdout);
            let theirs = python_list(&output.stdout);
            // Python keeps negative times.
            let negative = support::text(&theirs).lines().filter(|line| line.contains(" -1")).count();
            if negative > 0 {
                let fix = |list: &[u8]| {
                    let keep = |line: &&str| !line.starts_with("./plain/empty ");
                    support::text(list).lines().filter(keep).collect::<Vec<_>>().join("\n").into_bytes()
                };
                ours = fix(&ours);
                assert_eq!(support::text(&ours), support::text(&fix(&theirs)), "{format} {sparse:?}");
            } else {
                assert_eq!(support::text(&ours), support::text(&theirs), "{format} {sparse:?}");
            }
        }
    }
}

#[test]
fn archives_of_python_in_every_format() {
    const WRITE: &str = r#"
import sys, tarfile, io
out = io.BytesIO()
with tarfile.open(fileobj=out, mode='w', format=int(sys.argv[1]), encoding='utf-8', errors='surrogateescape') as tar:
    def add(name, kind=tarfile.REGTYPE, data=b'', **fields):
        info = tarfile.TarInfo(name); info.type = kind; info.size = len(data)
        for key, value in fields.items(): setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data))
    add('dir', tarfile.DIRTYPE, mode=0o755)
    add('dir/file', data=b'x' * 1000, uid=1000, gid=2000, mtime=1234567890)
    add('dir/hard', tarfile.LNKTYPE, linkname='dir/file')
    add('dir/soft', tarfile.SYMTYPE, linkname='../else/where')
    add('fifo', tarfile.FIFOTYPE)
    add('null', tarfile.CHRTYPE, devmajor=1, devminor=3)
    add('loop', tarfile.BLKTYPE, devmajor=7, devminor=0)
    add('n' * 99)
    add('p/' * 60 + 'q' * 90)
    if int(sys.argv[1]) != tarfile.USTAR_FORMAT:
        add('n' * 150); add('l', tarfile.SYMTYPE, linkname='t' * 150)
        add('big-ids', uid=4294967294, gid=3000000)
        add('future', mtime=4000000000)
        add('\u00fc\u4e2d', data=b'y')
sys.stdout.buffer.write(out.getvalue())
"#;
    for format in ["0", "1", "2"] {
        let output = support::run(Command::new("python3").args(["-c", WRITE, format]));
        assert!(output.status.success(), "{}", support::text(&output.stderr));
        same_as_python(&output.stdout, &format!("format {format}"));
    }
}

/// Damage of every kind: no panic, no endless loop, no more memory than the budget allows.
#[test]
fn damaged_archives_end_in_an_error_or_an_end() {
    let mut original = Vec::new();
    for (_, member) in sparse_members() {
        original.extend(member);
    }
    original.extend(gnu_long(b'L', &b"long/".repeat(40)));
    let rich = Member::file("f", vec![b'd'; 1500])
        .pax("path", "p/q")
        .pax("SCHILY.xattr.user.a", "v")
        .pax("mtime", "1.5");
    for member in [rich, Member::hard_link("h", "f"), Member::symlink("s", "f"), Member::directory("d/")] {
        original.extend(member.bytes());
    }
    let original = end(original);
    assert_eq!(read(&original).expect("whole").len(), 8);
    let budget = Budget { file_bytes: 1 << 20, ..Budget::default() };
    let seed = support::seed();
    let mut random = Random::new(seed);
    let (mut fine, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = original.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = b"0123456789\n ,=\0\xff\x80"[random.below(17) as usize],
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let (from, to) = (at / 512 * 512, random.below(bytes.len() as u64) as usize / 512 * 512);
                    let block = bytes[from..(from + 512).min(bytes.len())].to_vec();
                    let end = (to + block.len()).min(bytes.len());
                    bytes[to..end].copy_from_slice(&block[..end - to]);
                }
            }
        }
        // Most damage would only be a wrong checksum.
        for header in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
            fix_checksum(header);
        }
        match read_with(&bytes, budget) {
            Ok(_) => fine += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(fine > 500 && refused > 500, "{fine} fine, {refused} refused: no good mixture");
}
