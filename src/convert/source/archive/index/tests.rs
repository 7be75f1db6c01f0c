//! Archives as tools write them and as attackers do.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use super::*;

impl Forward for io::Cursor<Vec<u8>> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let end = self.position().checked_add(count).filter(|end| *end <= self.get_ref().len() as u64);
        self.set_position(end.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A header block with a right checksum.
fn header(name: &str, kind: u8, size: &str, link: &str, magic: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..124 + size.len()].copy_from_slice(size.as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..257 + magic.len()].copy_from_slice(magic);
    seal(block)
}

fn seal(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    [header(name, b'0', &format!("{:011o}", content.len()), "", b"ustar\x0000"), padded(content)].concat()
}

fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    [header("ext", kind, &format!("{:011o}", content.len()), "", b"ustar\x0000"), padded(content)].concat()
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length += 1;
        }
        text += &format!("{length}{rest}");
    }
    extension(b'x', text.as_bytes())
}

fn read(parts: &[Vec<u8>]) -> Result<Index, ArchiveError> {
    Index::read(io::Cursor::new(parts.concat()), 0)
}

/// `name:size` or `name->target` of all members, sorted.
#[track_caller]
fn check(parts: &[Vec<u8>], expected: &str) {
    let index = read(parts).unwrap_or_else(|error| panic!("{error}"));
    let mut lines: Vec<String> = index
        .members
        .iter()
        .map(|(name, member)| {
            let name = String::from_utf8_lossy(name);
            match member {
                Member::File { size, .. } => format!("{name}:{size}"),
                Member::Symlink(target) => format!("{name}->{}", String::from_utf8_lossy(target)),
                Member::HardLink(target) => format!("{name}=>{}", String::from_utf8_lossy(target)),
                Member::Other => format!("{name}/"),
            }
        })
        .collect();
    lines.sort();
    assert_eq!(lines.join(" "), expected);
}

#[track_caller]
fn check_refused(parts: &[Vec<u8>], part: &str) {
    match read(parts) {
        Ok(index) => panic!("accepted: {:?}", index.members),
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
    }
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

#[test]
fn members() {
    check(&[file("a", b"xyz"), file("d/b", b""), end()], "a:3 d/b:0");
    check(&[file("./a", b"1"), file("./d//b", b"2"), end()], "a:1 d/b:1");
    check(&[file("a", b"1"), file("a", b"22"), end()], "a:2");
    check(&[header("d/", b'5', "0", "", b"ustar\x0000"), end()], "d/");
    check(&[header("d/", 0, "0", "", b""), end()], "d/");
    check(&[header("v7", 0, "0", "", b""), end()], "v7:0");
    check(&[header("l", b'2', "0", "../x", b"ustar  \0"), end()], "l->../x");
    check(&[header("h", b'1', "0", "a", b"ustar\x0000"), file("a", b"1"), end()], "a:1 h=>a");
    check(&[header("h", b'1', "00000001000", "a", b"ustar\x0000"), file("a", b"1"), end()], "a:1 h=>a");
    check(&[header("p", b'6', "0", "", b"ustar\x0000"), end()], "p/");
    check(&[file("../out", b"1"), file("/abs", b"2"), file("a/../b", b"3"), end()], "b:1");
    check(&[file("a", b"1"), vec![0; 512]], "a:1");
    check(&[file("a", b"1")], "a:1");
    check(&[file("a", b"1"), end(), file("late", b"2")], "a:1");
    check(&[end()], "");
}

#[test]
fn long_names_and_sizes() {
    let long = "n".repeat(300);
    check(
        &[extension(b'L', format!("{long}\0").as_bytes()), file("short", b"1"), end()],
        &format!("{long}:1"),
    );
    check(&[pax(&[("path", &long), ("mtime", "1.5")]), file("short", b"1"), end()], &format!("{long}:1"));
    check(&[pax(&[("path", "a\nb=c")]), file("s", b"1"), end()], "a\nb=c:1");
    let link = header("l", b'2', "0", "short", b"ustar\x0000");
    check(&[extension(b'K', b"long/target\0"), link.clone(), end()], "l->long/target");
    check(&[pax(&[("linkpath", "p/t")]), link, end()], "l->p/t");
    check(&[pax(&[("path", "x")]), file("a", b"1"), file("b", b"2"), end()], "b:1 x:1");
    check(&[extension(b'g', b"20 path=everywhere\n"), file("a", b"1"), end()], "a:1");
    check(&[pax(&[("size", "600")]), file("a", b""), vec![1; 1024], end()], "a:600");

    let mut block = header("name", b'0', "00000000001", "", b"ustar\x0000");
    block[345..348].copy_from_slice(b"dir");
    check(&[seal(block.clone()), padded(b"1"), end()], "dir/name:1");
    block[257..265].copy_from_slice(b"ustar  \0");
    check(&[seal(block), padded(b"1"), end()], "name:1");

    let mut big = header("big", b'0', "", "", b"ustar\x0000");
    big[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    check(&[seal(big), vec![1; 1024], end()], "big:513");
}

#[test]
fn content_is_where_the_index_says() {
    let bytes = [file("a", b"first"), pax(&[("path", "b")]), file("x", b"second"), end()].concat();
    let index = Index::read(io::Cursor::new(bytes.clone()), 1 << 20).unwrap();
    for (name, content) in [("a", b"first".as_slice()), ("b", b"second")] {
        let Some(Member::File { offset, size }) = index.members.get(name.as_bytes()) else {
            panic!("{name}")
        };
        assert_eq!(&bytes[*offset as usize..][..*size as usize], content);
        assert_eq!(index.kept.get(offset).map(Vec::as_slice), Some(content), "kept too");
    }
}

#[test]
fn refused() {
    check_refused(&[], "not a tar archive");
    check_refused(&[b"hello".to_vec()], "not a tar archive");
    check_refused(&[vec![7; 4096]], "not a tar archive");
    check_refused(&[file("a", b"1"), vec![7; 512]], "header at byte 1024 is malformed: wrong checksum");
    check_refused(&[file("a", b"1"), vec![0; 512], file("b", b"1")], "a lone zero block");
    check_refused(&[file("a", b"1"), vec![0; 100]], "cut short");
    check_refused(&[header("a", b'0', "00000001000", "", b""), vec![1; 100]], "cut short in member \"a\"");
    check_refused(&[header("a", b'0', "77777777777", "", b""), vec![1; 512]], "cut short in member \"a\"");
    check_refused(&[header("a", b'0', "zzz", "", b"")], "bad size");
    let mut negative = header("a", b'0', "", "", b"");
    negative[124..136].copy_from_slice(&[0xff; 12]);
    check_refused(&[seal(negative)], "bad size");
    let mut huge = header("a", b'0', "", "", b"");
    huge[124..136].copy_from_slice(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    check_refused(&[seal(huge)], "bad size");
    check_refused(&[header("a", b'S', "0", "", b"")], "sparse");
    check_refused(&[pax(&[("GNU.sparse.major", "1")]), file("a", b""), end()], "sparse");
    check_refused(&[pax(&[("path", "a\0b")]), file("a", b""), end()], "NUL byte");
    check_refused(&[pax(&[("size", "-1")]), file("a", b""), end()], "bad PAX record");
    check_refused(&[pax(&[("size", "99999999999999999999")]), file("a", b""), end()], "bad PAX record");
    for record in ["5 a=b\n", "99 a=b\n", "a=b\n", "6 a=b", "6 a-b\n", "0 a=b\n", " 6 a=b\n", "3 \n"] {
        check_refused(&[extension(b'x', record.as_bytes()), file("a", b""), end()], "bad PAX record");
    }
    check_refused(&[header("x", b'x', "00010000001", "", b"")], "too large");
    check_refused(&[extension(b'L', b"name\0")], "after an extended header");
    for name in ["manifest.json", "./index.json", "oci-layout"] {
        check_refused(&[file(name, b"1"), file(name, b"2"), end()], "twice");
    }
}

#[test]
fn names() {
    for (name, directory, expected) in [
        ("a/b", "", Some("a/b")),
        ("./a//b/.", "", Some("a/b")),
        ("a/../b", "", Some("b")),
        ("..", "", None),
        ("../a", "", None),
        ("a/../../b", "", None),
        ("/a", "", None),
        ("../x", "d", Some("x")),
        ("../x", "d/e", Some("d/x")),
        ("../../x", "d", None),
        ("/x", "d", None),
        ("a\0b", "", None),
        ("", "", Some("")),
    ] {
        let found = clean(name.as_bytes(), directory.as_bytes());
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name:?} in {directory:?}");
    }
    assert_eq!(parent(b"a/b/c"), b"a/b");
    assert_eq!(parent(b"c"), b"");
}

#[test]
fn random_damage_never_panics() {
    let good = [file("a", b"first"), pax(&[("path", "b")]), file("x", b"second"), end()].concat();
    let mut state = 88_172_645_463_325_252u64;
    for _ in 0..5_000 {
        let mut bad = good.clone();
        for _ in 0..3 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state as usize % bad.len();
            bad[at] = (state >> 40) as u8;
        }
        bad.truncate(bad.len() - (state >> 20) as usize % 600);
        let _ = Index::read(io::Cursor::new(bad), 1 << 20);
    }
}
