//! Chunk hashes: what the converter writes of them, `hpcrun verify`, and image files that change under a running job.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::busybox_image::{assert_fails, assert_nobody_holds, busybox, convert, copy_in, image};
use crate::layer_building::{Member, tar};
use crate::support::{as_user, hpcrun, run, scratch, stdout, text};

/// Checks a file by docs/image-format.md alone; prints the root and the number of chunks, or what is wrong.
const ORACLE: &str = r#"
import hashlib, struct, sys
data = open(sys.argv[1], "rb").read()
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
footer = data[-128:]
table, count = struct.unpack_from("<QI", footer, 32)
squashfs_length, = struct.unpack_from("<Q", footer, 48)
for number in range(count):
    kind, flags, offset, length = struct.unpack_from("<IIQQ", data, table + 64 * number)
    if kind == 4:
        section = data[offset:offset + length]
version, entry, chunks, covered, page, zero = struct.unpack_from("<IIQQII", section)
assert (version, entry, page, zero) == (1, 36, 128, 0) and covered == squashfs_length
assert covered == struct.unpack_from("<Q", data, 40)[0]
entries = section[64:]
assert len(entries) == 36 * chunks
at = 0
for number in range(chunks):
    length, = struct.unpack_from("<I", entries, 36 * number)
    assert 0 < length <= 1 << 20
    assert sha(data[at:at + length]) == entries[36 * number + 4:36 * number + 36], number
    at += length
assert at == covered
level = [sha(b"\0", entries[at:at + 36 * 128]) for at in range(0, len(entries), 36 * 128)]
while len(level) > 1:
    level = [sha(b"\1", *level[at:at + 128]) for at in range(0, len(level), 128)]
assert level[0] == section[32:64]
print(level[0].hex(), chunks)
"#;

fn oracle(image: &Path) -> String {
    stdout(Command::new("python3").args(["-c", ORACLE]).arg(image))
}

fn verify(image: &Path) -> Command {
    let mut verify = hpcrun(["verify"]);
    verify.arg(image);
    verify
}

/// Writes `bytes` over what lies at `offset`.
fn overwrite(image: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(image).expect("open");
    file.write_all_at(bytes, offset).expect("write");
}

/// Bytes of the squashfs of an image file.
fn squashfs_length(image: &Path) -> u64 {
    let bytes = fs::read(image).expect("image");
    u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"))
}

#[test]
fn the_documented_hashes_are_in_the_file() {
    let said = oracle(image());
    let (root, chunks) = said.trim().split_once(' ').expect("two words");
    let inspected: Value = serde_json::from_str(&stdout(hpcrun(["inspect", "--json"]).arg(image()))).unwrap();
    assert_eq!(inspected["file"]["root_hash"], json!(format!("sha256:{root}")));
    assert!(stdout(hpcrun(["inspect"]).arg(image())).contains(&format!("sha256:{root}")));
    let output = run(&mut verify(image()));
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("whole: "), "{said}");
    assert!(said.contains(&format!("in {chunks} chunks")), "{said} {chunks}");
}

/// Equal files are stored once: what was written of the second is taken back, also from beyond a write to the disk.
#[test]
fn hashes_survive_duplicates_codecs_and_thread_counts() {
    let dir = scratch();
    let noise = |seed: u64, length: usize| {
        let mut random = crate::support::Random::new(seed);
        (0..length).map(|_| (random.next() >> 32) as u8).collect::<Vec<u8>>()
    };
    let twice = noise(7, 5 << 20);
    let members = [
        Member::file("a", twice.clone()),
        Member::file("b", noise(8, 300_000)),
        Member::file("c", twice.clone()),
        Member::file("d", "small\n"),
        Member::file("e", vec![0; 700_000]),
        Member::file("f", twice),
        Member::file("g", noise(9, 131_072)),
    ];
    let first = convert(dir.path(), "twice", &json!({}), &[tar(&members)]);
    let expected = oracle(&first);
    let archive = format!("docker-archive:{}", dir.path().join("twice.tar").display());
    let other = dir.path().join("other.sqsh");
    let cache = dir.path().join("cache");
    let cached = ["--layer-cache", cache.to_str().expect("UTF-8")];
    for options in [&["-j", "1"][..], &["-j", "5"], &cached, &cached] {
        stdout(hpcrun(["convert", "--force"]).args(options).arg(&archive).arg(&other));
        assert_eq!(oracle(&other), expected, "{options:?}");
        assert!(fs::read(&other).unwrap() == fs::read(&first).unwrap(), "{options:?}");
    }
    for options in [&["--compression", "gzip", "--block-size", "4K"][..], &["--compression", "lz4"]] {
        stdout(hpcrun(["convert", "--force"]).args(options).arg(&archive).arg(&other));
        assert_ne!(oracle(&other), expected);
        assert!(run(&mut verify(&other)).status.success(), "{options:?}");
    }
}

#[test]
fn verify_names_the_first_damaged_bytes() {
    let dir = scratch();
    let length = squashfs_length(image());
    for threads in ["1", "4"] {
        for at in [200, length / 3, length / 2, length - 5] {
            let own = copy_in(dir.path());
            overwrite(&own, length - 1, b"?");
            overwrite(&own, at, &b"damage"[..6.min((length - at) as usize)]);
            let line = assert_fails(&run(verify(&own).args(["-j", threads])), 1, &["is damaged: bytes"]);
            let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
            let (from, to) = (numbers.next().expect("offset"), numbers.next().expect("offset"));
            assert!(from <= at && at < to && to - from <= 1 << 20, "{at}: {line}");
        }
    }
}

#[test]
fn verify_tells_damage_from_files_without_hashes() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let whole = fs::read(&own).unwrap();
    let length = squashfs_length(&own);
    // Cut short inside the squashfs.
    fs::write(&own, &whole[..length as usize / 2]).unwrap();
    assert_fails(&run(&mut verify(&own)), 1, &["truncated"]);
    // Damage in each part of the trailer but its padding.
    for (from_end, part) in [(20, "footer"), (128 + 10, "table")] {
        let mut bad = whole.clone();
        let at = bad.len() - from_end;
        bad[at] ^= 1;
        fs::write(&own, bad).unwrap();
        assert_fails(&run(&mut verify(&own)), 1, &[part]);
    }
    let trailer = length.next_multiple_of(4096) as usize;
    let mut bad = whole.clone();
    bad[trailer] ^= 1;
    fs::write(&own, bad).unwrap();
    assert_fails(&run(&mut verify(&own)), 1, &["section 1", "does not match"]);
    // No trailer at all.
    fs::write(&own, &whole[..trailer]).unwrap();
    assert_fails(&run(&mut verify(&own)), 125, &["it holds no chunk hashes", "hpcrun convert"]);
    assert_fails(&run(&mut verify(&dir.path().join("nothing"))), 125, &["cannot open image"]);
}

/// A job that says when it is there, and then waits for a line.
fn waiting_job(options: &[&str], image: &Path, script: &str) -> Child {
    let mut exec = hpcrun(["exec"]);
    exec.args(options).arg(image).args(["sh", "-c", &format!("echo here; read line; {script}")]);
    let mut child =
        exec.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let mut line = [0; 5];
    child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("the job starts");
    assert_eq!(&line, b"here\n");
    child
}

/// Lets it go on; what it wrote to standard output, and its exit status.
fn go_on(mut child: Child) -> (Vec<u8>, Option<i32>) {
    child.stdin.take().expect("piped").write_all(b"\n").expect("the job reads");
    let output = child.wait_with_output().expect("wait");
    (output.stdout, output.status.code())
}

/// An image with a large file in many blocks of its own, of bytes that depend on `seed`.
fn large(dir: &Path, name: &str, seed: u64) -> (PathBuf, Vec<u8>) {
    let mut random = crate::support::Random::new(seed);
    let content: Vec<u8> = (0..3 << 20).map(|_| b'a' + (random.next() >> 60) as u8).collect();
    let members = [busybox(), vec![Member::file("large", content.clone())]].concat();
    (convert(dir, name, &json!({"Env": ["PATH=/bin"]}), &[tar(&members)]), content)
}

#[test]
fn an_image_overwritten_under_a_job_gives_its_bytes_or_an_error() {
    let dir = scratch();
    let (_, content) = large(dir.path(), "image", 1);
    let (other, _) = large(dir.path(), "other", 2);
    let other = fs::read(other).unwrap();
    let own = dir.path().join("image.sqsh");
    let whole = fs::read(&own).unwrap();
    let length = squashfs_length(&own) as usize;
    // All of it, by an image of the same shape whose every block decompresses well; parts of it, in which the job comes
    // across good blocks first; the hashes alone; noise.
    let changes: [(usize, &[u8]); 4] = [
        (0, &other),
        (length / 2, &other[length / 2..length]),
        (length.next_multiple_of(4096), &other[length.next_multiple_of(4096)..]),
        (length / 3, &[0x5a; 700_000]),
    ];
    for (offset, bytes) in changes {
        fs::write(&own, &whole).unwrap();
        let job = waiting_job(&[], &own, "cat /large");
        overwrite(&own, offset as u64, bytes);
        let (read, status) = go_on(job);
        assert!(content.starts_with(&read), "{offset}: wrong bytes among {}", read.len());
        assert_eq!(status == Some(0), read.len() == content.len(), "{offset}: {status:?} {}", read.len());
        assert!(read.len() < content.len(), "{offset}: nothing was noticed");
        if offset == length / 2 {
            assert!(!read.is_empty(), "the first half is as it was");
        }
        assert_nobody_holds(&own);
    }
}

#[test]
fn a_truncated_image_gives_errors_and_no_signal() {
    let dir = scratch();
    let (own, content) = large(dir.path(), "image", 3);
    let job = waiting_job(&[], &own, "cat /large; echo \"status $?\"; :");
    fs::File::options().write(true).open(&own).unwrap().set_len(4096).unwrap();
    let (read, status) = go_on(job);
    // The builtins of the shell need nothing of the image.
    let said = text(&read[read.len().saturating_sub(20)..]);
    assert!(status == Some(0) && said.contains("status 1"), "{status:?} {said}");
    assert!(read.len() < content.len());
    assert_nobody_holds(&own);
}

#[test]
fn a_touched_renamed_or_deleted_image_is_as_good_as_before() {
    let dir = scratch();
    let (own, content) = large(dir.path(), "image", 4);
    let renamed = dir.path().join("renamed");
    let changes: [(&Path, &dyn Fn()); 3] = [
        (&own, &|| drop(stdout(Command::new("touch").arg(&own)))),
        (&own, &|| fs::rename(&own, &renamed).unwrap()),
        (&renamed, &|| fs::remove_file(&renamed).unwrap()),
    ];
    for (path, change) in changes {
        let job = waiting_job(&[], path, "cat /large");
        change();
        let (read, status) = go_on(job);
        assert!(read == content && status == Some(0), "{status:?}");
    }
}

#[test]
fn verifying_always_finds_damage_that_was_there_before() {
    let dir = scratch();
    let (own, content) = large(dir.path(), "image", 5);
    let length = squashfs_length(&own);
    let cat = |options: &[&str]| run(hpcrun(["exec"]).args(options).arg(&own).args(["cat", "/large"]));
    let good = cat(&["--verify"]);
    assert!(good.status.success() && good.stdout == content);
    // Most of the file is the large file's blocks.
    overwrite(&own, length / 2, b"damage");
    let bad = cat(&["--verify"]);
    assert!(!bad.status.success() && content.starts_with(&bad.stdout), "{}", bad.status);
    let policy = dir.path().join("policy.toml");
    fs::write(&policy, "[images]\nverify = \"always\"\n").unwrap();
    let mut exec = as_user("env");
    exec.arg(format!("HPCRUN_POLICY={}", policy.display())).arg(crate::support::binary());
    let by_policy = run(exec.arg("exec").arg(&own).args(["cat", "/large"]));
    assert!(!by_policy.status.success() && content.starts_with(&by_policy.stdout), "{}", by_policy.status);
}
