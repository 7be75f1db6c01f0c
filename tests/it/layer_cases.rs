//! The hand-made layer stacks of `fixtures/layer-cases.tar.xz`, row by row, against what `docs/layers.md` decides.
//!
//! Each stack comes with the trees that six runtimes made of it: where those agree, ours must be the same.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on may panic"
)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use hpcrun::convert::{ConvertError, ConvertOptions, Merged};
use hpcrun::squashfs::writer::InodeKind;

use crate::layer_building::{MemorySink, chain, first_names, merge, walk};
use crate::support;

/// Members of a tar by name.
type Members = BTreeMap<String, Vec<u8>>;

/// The fixtures: `layer-cases/STACK/FILE`.
fn fixtures() -> &'static Members {
    static FIXTURES: OnceLock<Members> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layer-cases.tar.xz");
        members(&support::run(Command::new("xz").arg("-dc").arg(archive)).stdout)
    })
}

fn fixture(stack: &str, file: &str) -> &'static [u8] {
    &fixtures()[&format!("layer-cases/{stack}/{file}")]
}

fn members(archive: &[u8]) -> Members {
    let mut members = Members::new();
    for member in tar::Archive::new(archive).entries().expect("archive") {
        let mut member = member.expect("member");
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).expect("member");
        members.insert(member.path().expect("name").to_string_lossy().into_owned(), bytes);
    }
    members
}

/// The layers of a stack, bottom first.
fn layers(stack: &str) -> Vec<Vec<u8>> {
    let members = members(fixture(stack, "docker-archive.tar"));
    let manifest: serde_json::Value = serde_json::from_slice(&members["manifest.json"]).expect("JSON");
    let layers = manifest[0]["Layers"].as_array().expect("layers");
    layers.iter().map(|name| members[name.as_str().expect("name")].clone()).collect()
}

/// The tree in the words of the fixtures.
fn describe(result: Result<(Merged, MemorySink), ConvertError>) -> String {
    let (Merged { tree, .. }, sink) = match result {
        Ok(merged) => merged,
        Err(error) => return format!("ERROR: {}\n", chain(&error)),
    };
    let paths = walk(&tree);
    let first = first_names(&paths);
    let mut out = String::new();
    for (path, index) in &paths {
        let inode = &tree.inodes[*index as usize];
        let (letter, rest) = match &inode.kind {
            InodeKind::Directory(_) => ('d', String::new()),
            InodeKind::File(id) => ('f', content(&sink.files[id.0 as usize])),
            InodeKind::Symlink(target) => ('l', format!("-> {}", target.escape_ascii())),
            InodeKind::BlockDevice(major, minor) => ('b', format!("{major}:{minor}")),
            InodeKind::CharacterDevice(major, minor) => ('c', format!("{major}:{minor}")),
            InodeKind::Fifo => ('p', String::new()),
            InodeKind::Socket => ('s', String::new()),
        };
        let mode = if letter == 'l' { "    ".to_owned() } else { format!("{:04o}", inode.mode) };
        let mtime = match inode.mtime {
            1_000_000_000 => "-".to_owned(),
            0 if letter == 'd' => "NOW".to_owned(),
            seconds => format!("{seconds}"),
        };
        let path = if path.is_empty() { "/".to_owned() } else { path.escape_ascii().to_string() };
        out += &format!("{path} {letter} {mode} {}:{} {mtime} {rest}", inode.uid, inode.gid);
        let head = first[index].escape_ascii().to_string();
        if head != path && letter != 'd' {
            out += &format!(" =={}", head.trim_start_matches('/'));
        }
        if !inode.xattrs.is_empty() {
            let pair = |(name, value): &(Vec<u8>, Vec<u8>)| {
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{}={hex}", name.escape_ascii())
            };
            out += &format!(" {{{}}}", inode.xattrs.iter().map(pair).collect::<Vec<_>>().join(","));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

fn content(bytes: &[u8]) -> String {
    if bytes.len() <= 64 {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let digest = hpcrun::image::digest::Digest::of(bytes);
    format!("len={} sha={}", bytes.len(), &digest.hex()[..8])
}

#[test]
fn every_stack_is_what_the_table_decides() {
    let mut wrong = Vec::new();
    for (name, expected) in EXPECTED {
        let got = describe(merge(&layers(name), &ConvertOptions::default()));
        if got != *expected {
            wrong.push(format!("{name}\nexpected:\n{expected}got:\n{got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_stack_has_a_row() {
    let stacks = fixtures().keys().filter_map(|path| path.strip_suffix("/docker-archive.tar"));
    let mut found: Vec<&str> = stacks.filter_map(|path| path.strip_prefix("layer-cases/")).collect();
    found.sort_unstable();
    assert_eq!(found, EXPECTED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

/// Where all runtimes agree and we do not, and why.
const DELIBERATE: &[(&str, &str)] = &[
    ("28_hl_forward", "they all fail on a link before its target; it costs nothing to support"),
    ("37_name_escape", "they clamp `..` to the root; newer ones refuse, as we do"),
    ("38_name_escape_deep", "the same"),
    ("41c_xattr_overlay", "they keep marks of overlayfs, which would act if the image became a lower layer"),
    ("43_sparse_gnu_old", "they all fail on old GNU sparse files"),
    ("53b_ids_over32", "they silently make the owner root"),
];

#[test]
fn where_all_runtimes_agree_we_do_too() {
    const RUNTIMES: [&str; 6] =
        ["docker", "ctr-overlayfs", "ctr-native", "buildah-overlay", "buildah-vfs", "umoci"];
    let mut differing = Vec::new();
    let mut agreed = 0;
    for (name, ours) in EXPECTED {
        let read = |runtime| comparable(&support::text(fixture(name, &format!("{runtime}.txt"))));
        let theirs = RUNTIMES.map(read);
        if theirs.iter().all(|tree| *tree == theirs[0]) {
            agreed += 1;
            if comparable(ours) != theirs[0] {
                differing.push(*name);
            }
        }
    }
    assert!(agreed >= 35, "the runtimes agree on {agreed} stacks only");
    assert_eq!(differing, DELIBERATE.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

/// A described tree without what runtimes cannot agree on: times, the root, whiteouts that show through.
fn comparable(tree: &str) -> Vec<String> {
    if tree.starts_with("ERROR") {
        return vec!["ERROR".to_owned()];
    }
    let keep = |line: &&str| !line.starts_with("/ ") && !line.contains(" GHOST ");
    let without_time = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let time = words.iter().position(|word| word.contains(':')).expect("an owner") + 1;
        words
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != time)
            .map(|(_, word)| *word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    tree.lines().filter(keep).map(without_time).collect()
}

/// What `docs/layers.md` decides for each stack: path, type, mode, owner, time (`-` is 1000000000, `NOW` the time of the
/// image), content or target, `==` the first name of the inode, extended attributes.
const EXPECTED: &[(&str, &str)] = &[
    (
        "01_wh_file",
        r#"/ d 0755 0:0 NOW
/a d 0755 0:0 -
/a/g f 0644 0:0 - "keep"
"#,
    ),
    (
        "02_wh_then_readd",
        r#"/ d 0755 0:0 NOW
/a d 0755 0:0 -
/a/f f 0644 0:0 - "new"
"#,
    ),
    (
        "04_whdir_then_readd",
        r#"/ d 0755 0:0 NOW
/d d 0700 0:0 -
/d/z f 0644 0:0 - "z"
"#,
    ),
    (
        "05_readd_then_whdir",
        r#"/ d 0755 0:0 NOW
/d d 0700 0:0 -
/d/z f 0644 0:0 - "z"
"#,
    ),
    (
        "07_opq_last",
        r#"/ d 0755 0:0 NOW
/d d 0755 0:0 -
/d/n f 0644 0:0 - "n"
"#,
    ),
    (
        "08_opq_last_nested",
        r#"/ d 0755 0:0 NOW
/a d 0755 0:0 -
/a/b d 0755 0:0 -
/a/b/c d 0755 0:0 -
/a/b/c/foo f 0644 0:0 - "foo"
"#,
    ),
    (
        "10_dir_to_file",
        r#"/ d 0755 0:0 NOW
/p f 0644 0:0 - "file"
"#,
    ),
    (
        "11_dir_file_dir",
        r#"/ d 0755 0:0 NOW
/p d 0755 0:0 -
/p/new f 0644 0:0 - "new"
"#,
    ),
    (
        "13_implicit_over_file",
        r#"/ d 0755 0:0 NOW
/p d 0755 0:0 NOW
/p/x f 0644 0:0 - "x"
"#,
    ),
    (
        "14_implicit_existing_attr",
        r#"/ d 0755 0:0 NOW
/d d 1777 5:6 -  {user.k=76}
/d/o f 0644 0:0 - "o"
/d/x f 0644 0:0 - "x"
"#,
    ),
    (
        "16_wh_implicit_parent_attr",
        r#"/ d 0755 0:0 NOW
/d d 1777 5:0 -
/d/y f 0644 0:0 - "y"
"#,
    ),
    (
        "17_symlink_parent_lower",
        r#"/ d 0755 0:0 NOW
/link d 0755 0:0 NOW
/link/file f 0644 0:0 - "f"
/real d 0755 0:0 -
/real/r f 0644 0:0 - "r"
"#,
    ),
    (
        "19_symlink_lower_dir_entry",
        r#"/ d 0755 0:0 NOW
/lib d 0755 0:0 -
/lib/b f 0644 0:0 - "b"
/usr d 0755 0:0 -
/usr/lib d 0755 0:0 -
/usr/lib/a f 0644 0:0 - "a"
"#,
    ),
    (
        "20_wh_through_symlink",
        r#"/ d 0755 0:0 NOW
/link l      0:0 - -> real
/real d 0755 0:0 -
/real/x f 0644 0:0 - "x"
"#,
    ),
    (
        "22_hl_lower",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "1"
/b f 0644 0:0 - "1" ==a
"#,
    ),
    (
        "23_hl_target_masked",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "new"
/b f 0644 0:0 - "old"
"#,
    ),
    (
        "25_hl_lower_then_overwrite",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "new"
/b f 0644 0:0 - "old"
"#,
    ),
    (
        "26_overwrite_then_hl",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "new"
/b f 0644 0:0 - "new" ==a
"#,
    ),
    (
        "28_hl_forward",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "data"
/b f 0644 0:0 - "data" ==a
"#,
    ),
    (
        "29_hl_to_symlink",
        r#"/ d 0755 0:0 NOW
/h l      0:0 - -> t
/s l      0:0 - -> t ==h
/t f 0644 0:0 - "t"
"#,
    ),
    (
        "31_hl_meta_differs",
        r#"/ d 0755 0:0 NOW
/a f 0644 1:0 - "1"
/b f 0644 1:0 - "1" ==a
"#,
    ),
    (
        "32_dup_file",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "two"
"#,
    ),
    (
        "34_dup_file_then_dir",
        r#"/ d 0755 0:0 NOW
/p d 0755 0:0 -
/p/x f 0644 0:0 - "x"
"#,
    ),
    (
        "35_dup_dir_then_file",
        r#"/ d 0755 0:0 NOW
/p f 0644 0:0 - "file"
"#,
    ),
    (
        "37_name_escape",
        r#"ERROR: cannot merge layer 1 of 1 (sha256:e3b0c44298fc): entry "../escape" at byte 1024: the path leaves the image
"#,
    ),
    (
        "38_name_escape_deep",
        r#"ERROR: cannot merge layer 1 of 1 (sha256:e3b0c44298fc): entry "a/../../escape2" at byte 512: the path leaves the image
"#,
    ),
    (
        "40_root_entry_upper",
        r#"/ d 0755 0:0 NOW
/f f 0644 0:0 - "x"
/g f 0644 0:0 - "x"
"#,
    ),
    (
        "41_xattrs",
        r#"/ d 0755 0:0 NOW
/bin f 0644 0:0 - "x" {user.bin=00013d0aff}
/d d 0755 0:0 -  {user.dir=64}
/f f 0644 0:0 - "f" {security.capability=0100000200040000000000000000000000000000,user.foo=626172}
/g f 0644 0:0 - "g"
/sel f 0644 0:0 - "f"
"#,
    ),
    (
        "41c_xattr_overlay",
        r#"/ d 0755 0:0 NOW
/d d 0755 0:0 -
/d/x f 0644 0:0 - "x"
"#,
    ),
    (
        "41d_xattr_acl",
        r#"/ d 0755 0:0 NOW
/f f 0664 0:0 - "f"
/g f 0644 0:0 - "g"
"#,
    ),
    (
        "43_sparse_gnu_old",
        r#"/ d 0755 0:0 NOW
/after f 0644 0:0 - "after"
/gnuold f 0644 0:0 - len=10000 sha=fb1c077f
"#,
    ),
    (
        "44_sparse_pax10",
        r#"/ d 0755 0:0 NOW
/after f 0644 0:0 - "after"
/pax10 f 0644 0:0 - len=10000 sha=fb1c077f
"#,
    ),
    (
        "45b_sparse_pax00",
        r#"/ d 0755 0:0 NOW
/after f 0644 0:0 - "after"
/pax00 f 0644 0:0 - len=10000 sha=fb1c077f
"#,
    ),
    (
        "46_longname_gnu",
        r#"/ d 0755 0:0 NOW
/LLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLL f 0644 0:0 - "d"
/sl l      0:0 - -> LLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLL
"#,
    ),
    (
        "48_nonutf8",
        r#"/ d 0755 0:0 NOW
/bin\xff f 0644 0:0 - "d"
/lat\xe9n f 0644 0:0 - "d"
/pax\xff\xfe f 0644 0:0 - "d"
"#,
    ),
    (
        "49_global_pax",
        r#"/ d 0755 0:0 NOW
/f f 0644 0:0 - "f"
/g f 0644 0:0 - "g"
"#,
    ),
    (
        "51_devices",
        r#"/ d 0755 0:0 NOW
/b b 0660 0:0 - 7:0
/big c 0644 0:0 - 511:1048575
/c c 0666 0:0 - 1:3
/p p 0600 0:0 -
"#,
    ),
    (
        "52_char00_whiteout_dev",
        r#"/ d 0755 0:0 NOW
/k f 0644 0:0 - "k"
"#,
    ),
    (
        "53b_ids_over32",
        r#"ERROR: cannot read layer 1 of 1 (sha256:e3b0c44298fc): entry "px" at byte 0: uid is out of range: 4294967296
"#,
    ),
    (
        "54_mtime",
        r#"/ d 0755 0:0 NOW
/frac f 0644 0:0 - "x"
/future f 0644 0:0 4294967295 "x"
/huge f 0644 0:0 4294967295 "x"
/neg f 0644 0:0 0 "x"
/negpax f 0644 0:0 0 "x"
"#,
    ),
    (
        "56_wh_empty_name",
        r#"ERROR: cannot merge layer 2 of 2 (sha256:e3b0c44298fc): entry ".wh." at byte 0: the whiteout names no file
"#,
    ),
    (
        "57_wh_as_dir",
        r#"/ d 0755 0:0 NOW
"#,
    ),
    (
        "58b_wh_symlink",
        r#"/ d 0755 0:0 NOW
"#,
    ),
    (
        "59_aufs_meta",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "x"
/h1 f 0644 0:0 - "linkdata"
"#,
    ),
    (
        "61_opq_root",
        r#"/ d 0755 0:0 NOW
/n f 0644 0:0 - "x"
"#,
    ),
    (
        "62_empty_layer",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "x"
/b f 0644 0:0 - "x"
"#,
    ),
    (
        "64_one_zero_block",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "x"
"#,
    ),
    (
        "65_trailing_garbage",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "x"
"#,
    ),
    (
        "67_typeflag7_nul",
        r#"ERROR: cannot read layer 1 of 1 (sha256:e3b0c44298fc): entry "seven" at byte 0: entries of type '7' are not supported
"#,
    ),
    (
        "68_unknown_type",
        r#"ERROR: cannot read layer 1 of 1 (sha256:e3b0c44298fc): entry "odd" at byte 1024: entries of type 'Z' are not supported
"#,
    ),
    (
        "69_slash_on_file",
        r#"/ d 0755 0:0 NOW
/notdir f 0644 0:0 - "x"
"#,
    ),
    (
        "70_hl_via_symlinkdir",
        r#"/ d 0755 0:0 NOW
/h f 0644 0:0 - "f"
/link l      0:0 - -> real
/real d 0755 0:0 -
/real/f f 0644 0:0 - "f" ==h
"#,
    ),
    (
        "72_hl_with_data",
        r#"ERROR: cannot read layer 1 of 1 (sha256:e3b0c44298fc): tar header at byte 1536: not a tar header: its checksum does not match
"#,
    ),
    (
        "73_wh_then_implicit_child",
        r#"/ d 0755 0:0 NOW
/d d 0755 0:0 NOW
/d/y f 0644 0:0 - "x"
"#,
    ),
    (
        "75_wh_nonexistent",
        r#"/ d 0755 0:0 NOW
/a f 0644 0:0 - "x"
"#,
    ),
    (
        "76_symlink_abs_out",
        r#"ERROR: cannot merge layer 1 of 1 (sha256:e3b0c44298fc): entry "s3" at byte 1024: the target of the symbolic link is empty, contains NUL or exceeds 4095 bytes
"#,
    ),
    (
        "78_symlink_perm",
        r#"/ d 0755 0:0 NOW
/s l      4:0 - -> t
/t f 0644 0:0 - "x"
"#,
    ),
    (
        "79_setuid",
        r#"/ d 0755 0:0 NOW
/sg f 2755 3:4 - "x"
/sgd d 2775 0:5 -
/st d 1777 0:0 -
/su f 4755 0:0 - "x"
"#,
    ),
    (
        "81_wh_dir_upper_file_below",
        r#"/ d 0755 0:0 NOW
/d d 0755 0:0 -
/d/z f 0644 0:0 - "z"
"#,
    ),
    (
        "82_hl_lower_deep_masked",
        r#"/ d 0755 0:0 NOW
/b f 0644 0:0 - "old"
"#,
    ),
    (
        "84_symlink_chain_parent",
        r#"/ d 0755 0:0 NOW
/x d 0755 0:0 -
/x/f f 0644 0:0 - "f"
/y l      0:0 - -> x
/z l      0:0 - -> y
"#,
    ),
    (
        "85_symlink_loop_parent",
        r#"ERROR: cannot merge layer 1 of 1 (sha256:e3b0c44298fc): entry "z/f" at byte 1024: too many symbolic links on the way to it
"#,
    ),
    (
        "87_file_as_parent_same",
        r#"ERROR: cannot merge layer 1 of 1 (sha256:e3b0c44298fc): entry "p/x" at byte 1024: "/p" is not a directory
"#,
    ),
    (
        "88_wh_parent_is_file_lower",
        r#"/ d 0755 0:0 NOW
/p f 0644 0:0 - "file"
"#,
    ),
    (
        "90_wh_escape",
        r#"ERROR: cannot merge layer 2 of 2 (sha256:e3b0c44298fc): entry "d/.wh..." at byte 0: the whiteout names no file
"#,
    ),
];
