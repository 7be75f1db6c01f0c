//! What becomes of layers, rule by rule of `docs/layers.md` and for generated stacks, through the whole pipeline: threads,
//! compression, digests, squashfs; read back by `unsquashfs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpcrun::convert::{ConvertOptions, Destination, Progress, convert};
use hpcrun::image::digest::Digest;

use crate::layer_building::{Member, MemoryImage, chain, member, tar};
use crate::merge::model;
use crate::sources::layout::Packing;
use crate::support::{self, Random};

/// Lists trees: `d/`, `f=data`, `s->target`, `c!c1,3`, `h==first name`, with `@MODE:UID:XATTR` unless that is ordinary.
const LIST: &str = r#"
import os, stat, sys
for root in sys.argv[1:]:
    found = []
    for directory, directories, files in os.walk(root):
        found += [os.path.relpath(os.path.join(directory, name), root) for name in directories + files]
    first, words = {}, []
    for path in sorted(set(found)):
        full = os.path.join(root, path)
        s = os.lstat(full)
        if not stat.S_ISDIR(s.st_mode) and s.st_ino in first:
            words.append(f'{path}=={first[s.st_ino]}')
            continue
        first[s.st_ino] = path
        ordinary = 0o644
        if stat.S_ISDIR(s.st_mode): look, ordinary = '/', 0o755
        elif stat.S_ISLNK(s.st_mode): look, ordinary = '->' + os.readlink(full), 0o777
        elif stat.S_ISREG(s.st_mode):
            data = open(full, 'rb').read()
            look = '=~sparse' if data == bytes(4096) + b'S' * 100 + bytes(5804) else '=' + data.decode()
        elif stat.S_ISFIFO(s.st_mode): look = '!p'
        else:
            kind = 'c' if stat.S_ISCHR(s.st_mode) else 'b'
            look = f'!{kind}{os.major(s.st_rdev)},{os.minor(s.st_rdev)}'
        names = [name for name in os.listxattr(full, follow_symlinks=False) if name.startswith('user.')]
        xattr = ''.join(os.getxattr(full, name, follow_symlinks=False).decode() for name in names)
        mode = stat.S_IMODE(s.st_mode)
        if (mode, s.st_uid, xattr) != (ordinary, 0, ''): look += f'@{mode:o}:{s.st_uid}:{xattr}'
        words.append(path + look)
    print(' '.join(words))
"#;

/// What is at each of these places, in words.
fn list(roots: &[PathBuf]) -> Vec<String> {
    let mut lines = Vec::new();
    for roots in roots.chunks(200) {
        let listed = support::stdout(Command::new("python3").args(["-c", LIST]).args(roots));
        lines.extend(listed.lines().map(str::to_owned));
    }
    lines
}

/// The member of a word with metadata.
fn rich_member(word: &str) -> Member {
    let (word, meta) = word.split_once('@').unwrap_or((word, ""));
    let mut made = match word.split_once('!') {
        Some((name, "p")) => Member::new(b'6', name),
        Some((name, device)) => {
            let (major, minor) = device[1..].split_once(',').unwrap();
            let kind = if device.starts_with('c') { b'3' } else { b'4' };
            Member { device: (major.parse().unwrap(), minor.parse().unwrap()), ..Member::new(kind, name) }
        }
        None if word.ends_with("=~sparse") => Member::file(word.trim_end_matches("=~sparse"), [b'S'; 100])
            .pax("GNU.sparse.major", "0")
            .pax("GNU.sparse.minor", "1")
            .pax("GNU.sparse.size", "10000")
            .pax("GNU.sparse.numblocks", "1")
            .pax("GNU.sparse.map", "4096,100"),
        None => member(word),
    };
    if let [mode, uid, xattr] = meta.split(':').collect::<Vec<_>>()[..] {
        made = made.mode(u32::from_str_radix(mode, 8).unwrap()).owner(uid.parse().unwrap(), 0);
        if !xattr.is_empty() {
            made = made.pax("SCHILY.xattr.user.k", xattr);
        }
    }
    made
}

/// Converts a stack in words, bottom first, each layer packed in its own way; gives the unpacked root.
fn convert_stack(dir: &Path, stack: &[Vec<String>]) -> Result<PathBuf, String> {
    let tars: Vec<Vec<u8>> = stack
        .iter()
        .map(|words| tar(&words.iter().map(|word| rich_member(word)).collect::<Vec<_>>()))
        .collect();
    let packings = [Packing::Gzip, Packing::Zstd, Packing::Plain];
    let blobs = tars.iter().zip(packings.iter().cycle()).map(|(tar, packing)| packing.pack(tar)).collect();
    let image = MemoryImage::new(blobs, tars.iter().map(|tar| Digest::of(tar)).collect());
    fs::create_dir(dir).unwrap();
    let path = dir.join("image.sqsh");
    let options = ConvertOptions { jobs: 2, block_size: 4096, ..ConvertOptions::default() };
    let progress = Progress::new(&image.image);
    convert(&image, &Destination::new(&path), &options, &progress, |_| Vec::new())
        .map_err(|error| chain(&error))?;
    let root = dir.join("root");
    support::stdout(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&root).arg(path));
    Ok(root)
}

/// Where trees with devices and owners can be unpacked.
fn scratch() -> tempfile::TempDir {
    assert!(support::is_root(), "devices and owners need root");
    tempfile::Builder::new().prefix("hpcrun-rules-").tempdir_in("/var/tmp").unwrap()
}

/// Stacks of every shape with metadata, devices, sparse files: the model against what `unsquashfs` finds in the image.
#[test]
fn generated_stacks_through_the_pipeline_equal_the_model() {
    let seed = support::seed();
    let dir = scratch();
    let (mut roots, mut expected, mut refused) = (Vec::new(), Vec::new(), 0);
    for number in 0..400_u64 {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let mut stack = model::generate(&mut random, model::Shape::Any);
        model::enrich(&mut stack, &mut random);
        let converted = convert_stack(&dir.path().join(number.to_string()), &stack);
        match (model::merge(&stack), converted) {
            (Ok(tree), Ok(root)) => {
                roots.push(root);
                expected.push((number, stack, tree));
            }
            (Err(_), Err(_)) => refused += 1,
            (model, ours) => {
                panic!("HPCRUN_SEED={seed}: stack {number}: {stack:#?}\nmodel {model:?}\nours {ours:?}")
            }
        }
    }
    for ((number, stack, tree), found) in expected.iter().zip(list(&roots)) {
        assert_eq!(*tree, found, "HPCRUN_SEED={seed}: stack {number}: {stack:#?}");
    }
    println!("{} trees, {refused} refused", expected.len());
    assert!(expected.len() >= 200, "{} trees, {refused} refused", expected.len());
}

/// A rule, the layers that it is about in words (bottom first), and the tree or a part of the error.
type Rule = (&'static str, &'static [&'static str], Result<&'static str, &'static str>);

/// Every row of the table in `docs/layers.md` that a few words can show; `tests/it/layer_cases.rs` has the fixtures.
const RULES: &[Rule] = &[
    ("a whiteout hides with all below", &["d/ d/e/ d/e/f=1 g=2", ".wh.d"], Ok("g=2")),
    ("then the same name again", &["d/ d/f=1", "d/.wh.f d/f=2"], Ok("d/ d/f=2")),
    ("the name first, then the whiteout", &["d/ d/f=1", "d/f=2 d/.wh.f"], Ok("d/ d/f=2")),
    (
        "a whiteout of a directory that comes again",
        &["d/ d/x=1", ".wh.d d/@700:0: d/z=2"],
        Ok("d/@700:0: d/z=2"),
    ),
    ("opaque first", &["d/ d/a=1", "d/ d/.wh..wh..opq d/n=2"], Ok("d/ d/n=2")),
    ("opaque last", &["d/ d/a=1", "d/ d/n=2 d/.wh..wh..opq"], Ok("d/ d/n=2")),
    ("opaque without an entry keeps metadata", &["d/@1777:7:1 d/a=1", "d/.wh..wh..opq"], Ok("d/@1777:7:1")),
    ("opaque root", &["a=1", ".wh..wh..opq n=2"], Ok("n=2")),
    ("a file becomes a directory", &["p=1", "p/ p/x=2"], Ok("p/ p/x=2")),
    ("a directory becomes a file", &["p/ p/x=1", "p=2"], Ok("p=2")),
    ("directory, file, directory", &["p/ p/old=1", "p=2", "p/ p/new=3"], Ok("p/ p/new=3")),
    ("directory, whiteout, directory", &["p/@700:7: p/old=1", ".wh.p", "p/new=3"], Ok("p/ p/new=3")),
    ("an implied directory over a file", &["p=1", "p/x=2"], Ok("p/ p/x=2")),
    ("a parent keeps the lower metadata", &["d/@1777:7:1", "d/x=2"], Ok("d/@1777:7:1 d/x=2")),
    ("also where only a whiteout is in it", &["d/@1777:7: d/x=1 d/y=2", "d/.wh.x"], Ok("d/@1777:7: d/y=2")),
    ("a parent that exists nowhere", &["a/b/c=1"], Ok("a/ a/b/ a/b/c=1")),
    ("a parent that is a lower symbolic link", &["real/ link->real", "link/f=1"], Ok("link/ link/f=1 real/")),
    ("of the same layer, it is followed", &["x/ y->x z->y z/f=1"], Ok("x/ x/f=1 y->x z->y")),
    ("and made, if it leads nowhere", &["l->to/it l/f=1"], Ok("l->to/it to/ to/it/ to/it/f=1")),
    ("a loop on the way", &["y->z z->y z/f=1"], Err("too many symbolic links")),
    ("a directory replaces a lower link", &["lib->usr usr/", "lib/ lib/b=1"], Ok("lib/ lib/b=1 usr/")),
    (
        "a whiteout below a lower link",
        &["real/ real/x=1 link->real", "link/.wh.x"],
        Ok("link->real real/ real/x=1"),
    ),
    ("a whiteout of nothing", &["a=1", "no/such/.wh.x"], Ok("a=1")),
    ("a whiteout below a file", &["p=1", "p/.wh.x"], Ok("p=1")),
    (
        "a directory named like a whiteout",
        &["etc/ etc/a=1", ".wh.etc/f=2"],
        Ok(".wh.etc/ .wh.etc/f=2 etc/ etc/a=1"),
    ),
    ("whiteouts of no name", &["a=1", ".wh."], Err("the whiteout names no file")),
    ("of the directory itself", &["a=1", ".wh.."], Err("the whiteout names no file")),
    ("of the parent", &["d/ d/a=1", "d/.wh..."], Err("the whiteout names no file")),
    ("a whiteout that is a directory", &["a=1 b=2", ".wh.a/"], Ok("b=2")),
    ("a whiteout that is a link", &["a=1 b=2", ".wh.a->x"], Ok("b=2")),
    ("a whiteout with content", &["a=1 b=2", ".wh.a=3"], Ok("b=2")),
    ("bookkeeping of aufs", &[".wh..wh.plnk/ .wh..wh.plnk/1=d .wh..wh.aufs h=>.wh..wh.plnk/1"], Ok("h=d")),
    ("a hard link", &["a=1 b=>a"], Ok("a=1 b==a")),
    ("its own header counts for nothing", &["a=1@700:7: b=>a"], Ok("a=1@700:7: b==a")),
    ("a link whose target is replaced above", &["a=1 b=>a", "a=2"], Ok("a=2 b=1")),
    ("a link whose target is hidden above", &["a=1 b=>a", ".wh.a"], Ok("b=1")),
    ("a link across layers", &["a=1", "b=>a"], Ok("a=1 b==a")),
    ("and its target replaced after it", &["a=1", "b=>a a=2"], Ok("a=2 b=1")),
    ("and before it", &["a=1", "a=2 b=>a"], Ok("a=2 b==a")),
    ("and hidden in the same layer", &["a=1", "b=>a .wh.a"], Ok("b=1")),
    ("chains across layers", &["a=1", "b=>a .wh.a", "c=>b .wh.b"], Ok("c=1")),
    ("a link before its target", &["b=>a a=1"], Ok("a=1 b==a")),
    ("a link to a link", &["t=1 s->t h=>s"], Ok("h->t s==h t=1")),
    ("a link's target is cleaned", &["a=1 b=>./x/../a"], Ok("a=1 b==a")),
    ("and may be absolute", &["a=1 b=>/a"], Ok("a=1 b==a")),
    ("a link to nothing", &["b=>a"], Err("\"/b\" has no target")),
    ("a link to a directory", &["d/ b=>d"], Err("leads to the directory")),
    ("a link out of the image", &["b=>../a"], Err("leaves the image")),
    ("equal names, the last wins", &["a=1 a=2"], Ok("a=2")),
    ("file, then directory", &["a=1 a/ a/x=2"], Ok("a/ a/x=2")),
    ("directory, then file", &["a/ a/x=1 a=2"], Ok("a=2")),
    ("names are cleaned", &["./a=1 /b=2 c//d=3 c/./e=4 c/../f=5"], Ok("a=1 b=2 c/ c/d=3 c/e=4 f=5")),
    ("but may not leave", &["a/../../x=1"], Err("leaves the image")),
    ("an entry for the root", &["/@700:7: a=1"], Ok("a=1")),
    ("or what is no directory", &["/=1"], Err("the root of an image must be a directory")),
    ("a file as a parent", &["p=1 p/x=2"], Err("is not a directory")),
    ("a whiteout as overlayfs writes it", &["a=1 b=2", "a!c0,0"], Ok("b=2")),
    ("devices and pipes", &["c!c1,3 d!b7,300 p!p"], Ok("c!c1,3 d!b7,300 p!p")),
    ("an upper entry gives all metadata", &["d/@1777:7:1 d/x=1", "d/"], Ok("d/ d/x=1")),
    ("attributes of an upper file", &["f=1@700:7:1", "f=2"], Ok("f=2")),
    ("modes keep twelve bits", &["f=1@4711:0: d/@1777:0:"], Ok("d/@1777:0: f=1@4711:0:")),
    ("sparse files", &["f=~sparse"], Ok("f=~sparse")),
    ("an empty layer", &["a=1", "", "b=2"], Ok("a=1 b=2")),
    ("targets of symbolic links are data", &["a->/../..//x b->."], Ok("a->/../..//x b->.")),
    ("one layer at two places", &["f=1", ".wh.f", "f=1", ".wh.f"], Ok("")),
];

#[test]
fn every_rule_holds_through_the_pipeline() {
    let dir = scratch();
    let (mut roots, mut trees) = (Vec::new(), Vec::new());
    for (number, (rule, layers, expected)) in RULES.iter().enumerate() {
        let words = |words: &&str| words.split_whitespace().map(str::to_owned).collect();
        let stack: Vec<Vec<String>> = layers.iter().map(words).collect();
        match (convert_stack(&dir.path().join(number.to_string()), &stack), expected) {
            (Ok(root), Ok(tree)) => {
                roots.push(root);
                trees.push((rule, tree));
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{rule}: {error}"),
            (found, _) => panic!("{rule}: {found:?}"),
        }
    }
    for ((rule, tree), found) in trees.into_iter().zip(list(&roots)) {
        assert_eq!(*tree, found, "{rule}");
    }
}
