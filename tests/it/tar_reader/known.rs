//! Cases that the tests of Go's `archive/tar` and Python's `tarfile` keep archives of, made anew from what they are about.
//! Docker, containerd and umoci read with Go, so what Go makes of one counts, unless it guesses.

use hpcrun::convert::layer::tar::EntryKind;

use super::{end, gnu_long, patched, read};
use crate::layer_building::{Member, pax_record};

/// What must come of an archive.
enum Expect {
    /// For each entry `PATH KIND SIZE UID:GID MTIME`.
    Entries(&'static [&'static str]),
    /// An error with these words.
    Refused(&'static str),
}

use Expect::{Entries, Refused};

/// An `x` header with these records, one after the other.
fn extended(records: &[(&str, &[u8])]) -> Vec<u8> {
    let data = records.iter().flat_map(|(key, value)| pax_record(key.as_bytes(), value)).collect();
    patched(&Member { data, ..Member::new(b'x', "PaxHeaders/f") }, &[])
}

/// An `x` header with this body, whatever it is.
fn extended_raw(body: &[u8]) -> Vec<u8> {
    patched(&Member { data: body.to_vec(), ..Member::new(b'x', "PaxHeaders/f") }, &[])
}

fn file() -> Vec<u8> {
    patched(&Member::file("f", "x"), &[])
}

/// A header of a file of no data with bytes changed.
fn changed(patches: &[(usize, &[u8])]) -> Vec<u8> {
    patched(&Member::file("f", "").owner(7, 8), patches)
}

/// A PAX sparse file of format 1.0: the map stands before the data.
fn sparse(size: &str, map: &str, data: &[u8]) -> Vec<u8> {
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    let mut body = map.as_bytes().to_vec();
    body.resize(body.len().next_multiple_of(512), 0);
    body.extend_from_slice(data);
    [extended(&records), patched(&Member::file("GNUSparseFile.0/f", body), &[])].concat()
}

fn shown(bytes: &[u8]) -> Result<Vec<String>, String> {
    let line = |(entry, data): (hpcrun::convert::layer::tar::Entry, Vec<u8>)| {
        let kind = match &entry.kind {
            EntryKind::File { .. } => "file".to_owned(),
            EntryKind::Directory => "directory".to_owned(),
            EntryKind::Symlink(target) => format!("->{}", target.escape_ascii()),
            EntryKind::HardLink(target) => format!("={}", target.escape_ascii()),
            other => format!("{other:?}"),
        };
        let (path, size) = (entry.path.escape_ascii(), data.len());
        format!("{path} {kind} {size} {}:{} {}", entry.uid, entry.gid, entry.mtime)
    };
    Ok(read(bytes)?.into_iter().map(line).collect())
}

#[test]
fn cases_of_go_and_python() {
    let prefix = [&[b'p'; 131][..], b"00000000000 00000000000 "].concat();
    let cases: Vec<(&str, Vec<u8>, Expect)> = vec![
        ("nil-uid", changed(&[(108, &[0; 8])]), Entries(&["f file 0 0:8 1000000000"])),
        ("blank-uid", changed(&[(108, b"        ")]), Entries(&["f file 0 0:8 1000000000"])),
        (
            "base-256 uid",
            changed(&[(108, &[0x80, 0, 0, 0, 0, 0x20, 0, 0])]),
            Entries(&["f file 0 2097152:8 1000000000"]),
        ),
        ("base-256 negative uid", changed(&[(108, &[0xff; 8])]), Refused("uid")),
        ("neg-size", changed(&[(124, &[0xff; 12])]), Refused("size")),
        ("a size in octal that is no number", changed(&[(124, b"0000000009z\0")]), Refused("size")),
        (
            "star: times where others have the end of the prefix",
            changed(&[(345, &prefix), (508, b"tar\0")]),
            Entries(&[concat!(
                "pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
                "ppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp/f file 0 7:8 1000000000"
            )]),
        ),
        (
            "pax-multi-hdrs: the last counts, whole",
            [extended(&[("path", b"first")]), extended(&[("mtime", b"5")]), file()].concat(),
            Entries(&["f file 1 0:0 5"]),
        ),
        (
            "the last of two records of a key counts",
            [extended(&[("path", b"first"), ("path", b"second")]), file()].concat(),
            Entries(&["second file 1 0:0 1000000000"]),
        ),
        (
            "an empty record takes an earlier one back",
            [extended(&[("path", b"first"), ("path", b"")]), file()].concat(),
            Entries(&["f file 1 0:0 1000000000"]),
        ),
        (
            "gnu-multi-hdrs: the last long name counts",
            [gnu_long(b'L', b"first"), gnu_long(b'L', b"second"), file()].concat(),
            Entries(&["second file 1 0:0 1000000000"]),
        ),
        (
            "gnu-not-utf8: names are bytes",
            [gnu_long(b'L', b"hi\x80\x81"), file()].concat(),
            Entries(&["hi\\x80\\x81 file 1 0:0 1000000000"]),
        ),
        (
            "hdrcharset=BINARY: names are bytes there too",
            [extended(&[("hdrcharset", b"BINARY"), ("path", b"\xe4\xf6")]), file()].concat(),
            Entries(&["\\xe4\\xf6 file 1 0:0 1000000000"]),
        ),
        (
            "pax-records: what nobody knows is passed over",
            [extended(&[("GOLANG.pkg", b"tar"), ("comment", b"a=b\nc"), ("uname", b"x")]), file()].concat(),
            Entries(&["f file 1 0:0 1000000000"]),
        ),
        ("pax-nul-path", [extended(&[("path", b"a\0b")]), file()].concat(), Refused("NUL")),
        ("pax-nul-link", [extended(&[("linkpath", b"a\0b")]), file()].concat(), Refused("NUL")),
        (
            "pax-nul-xattrs: a value may hold it",
            [extended(&[("SCHILY.xattr.user.x", b"a\0b")]), file()].concat(),
            Entries(&["f file 1 0:0 1000000000"]),
        ),
        (
            "pax-nul-xattrs: a key may not",
            [extended(&[("SCHILY.xattr.user\0x", b"a")]), file()].concat(),
            Refused("a key contains NUL"),
        ),
        ("pax-bad-mtime", [extended(&[("mtime", b"12z")]), file()].concat(), Refused("mtime")),
        ("pax-bad-hdr: no record", [extended_raw(b"invalid"), file()].concat(), Refused("its length")),
        (
            "pax-bad-hdr: a length of 0 that would never end",
            [extended_raw(b"0 path=f\n"), file()].concat(),
            Refused("too small"),
        ),
        (
            "pax-bad-hdr: a length beyond the header",
            [extended_raw(b"99 path=f\n"), file()].concat(),
            Refused("beyond the header"),
        ),
        (
            "pax-bad-hdr: a length that ends before the newline",
            [extended_raw(b"8 path=f\n"), file()].concat(),
            Refused("newline"),
        ),
        (
            "pax-bad-hdr-large",
            {
                let header = patched(&Member::new(b'x', "PaxHeaders/f"), &[(124, b"77777777777\0")]);
                [header, file()].concat()
            },
            Refused("limit"),
        ),
        (
            "trailing-slash",
            [extended(&[("path", b"a/very/long/name/")]), patched(&Member::directory("d"), &[])].concat(),
            Entries(&["a/very/long/name/ directory 0 0:0 1000000000"]),
        ),
        ("gnu-incremental: a directory's list", patched(&Member::new(b'D', "d/"), &[]), Refused("type")),
        ("a volume's label", patched(&Member::new(b'V', "label"), &[]), Refused("type")),
        ("the rest of a file of another volume", patched(&Member::new(b'M', "f"), &[]), Refused("type")),
        ("suntar: its own extended header", patched(&Member::new(b'X', "f"), &[]), Refused("type")),
        ("conttype: a contiguous file", patched(&Member::new(b'7', "f"), &[]), Refused("type")),
        (
            "pax-nil-sparse-data: all of it is data",
            sparse("1000", "1\n0\n1000\n", &[b'x'; 1000]),
            Entries(&["sparse file 1000 0:0 1000000000"]),
        ),
        (
            "pax-nil-sparse-hole: none of it is",
            sparse("1000", "1\n1000\n0\n", b""),
            Entries(&["sparse file 1000 0:0 1000000000"]),
        ),
        (
            "sparse: no segment at all",
            sparse("1000", "0\n", b""),
            Entries(&["sparse file 1000 0:0 1000000000"]),
        ),
        ("sparse: a map that never ends", sparse("1000", &"1".repeat(512), b""), Refused("")),
        ("sparse: segments that go back", sparse("9", "2\n5\n1\n0\n1\n", b"xy"), Refused("")),
    ];
    for (name, bytes, expected) in cases {
        match (shown(&end(bytes)), expected) {
            (Ok(lines), Entries(expected)) => assert_eq!(lines, expected, "{name}"),
            (Err(error), Refused(part)) => assert!(error.contains(part), "{name}: {error}"),
            (Ok(lines), Refused(part)) => panic!("{name}: {lines:?}, not {part}"),
            (Err(error), Entries(_)) => panic!("{name}: {error}"),
        }
    }
}
