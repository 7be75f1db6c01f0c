//! Bombs: every limit is hit by an image made for it, named in one line, in bounded memory; a limit that the site has set
//! is a refusal with the rule's place.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use hpcrun::convert::{Budget, ConvertOptions, Destination, Limit, Progress, convert};
use hpcrun::image::digest::Digest;
use serde_json::json;

use crate::busybox_image::{archive_of, assert_fails, docker_archive, names_in};
use crate::layer_building::{Member, MemoryImage, chain, layer, pax_record, tar};
use crate::support::{self, as_user, binary, hpcrun, run, text};

/// What a conversion may take at most, whatever the image: MiB.
const MEMORY_MIB: u64 = 512;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The tar in a blob that is compressed or not.
fn unzip(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    match std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(blob), &mut tar) {
        Ok(_) => tar,
        Err(_) => blob.to_vec(),
    }
}

fn sparse(map: &str, segments: usize, size: &str) -> Member {
    Member::file("f", "")
        .pax("GNU.sparse.major", "0")
        .pax("GNU.sparse.minor", "1")
        .pax("GNU.sparse.size", size)
        .pax("GNU.sparse.numblocks", segments.to_string())
        .pax("GNU.sparse.map", map)
}

/// A limit, its value, and layers that exceed it: their blobs and their tars.
type Bomb = (Limit, u64, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// At least one bomb for every limit.
fn bombs() -> Vec<Bomb> {
    let zeros = tar(&[Member::file("zeros", vec![0; 32 << 20])]);
    let frames: Vec<u8> =
        zeros.chunks(1 << 20).flat_map(|piece| zstd::encode_all(piece, 1).unwrap()).collect();
    let members: Vec<u8> = zeros.chunks(1 << 20).flat_map(gzip).collect();
    let plain = |limit, most, tars: Vec<Vec<u8>>| (limit, most, tars.clone(), tars);
    let one = |limit, most, member: Member| plain(limit, most, vec![tar(&[member])]);
    let names: Vec<Member> = (0..20_000).map(|n| Member::file(format!("name-{n}"), "")).collect();
    let global = Member { data: vec![b'x'; 5000], ..Member::new(b'g', "g") };
    let long = Member { data: b"n\0".to_vec(), ..Member::new(b'L', "././@LongLink") };
    let mut attributes = Member::file("f", "");
    for number in 0..20 {
        attributes = attributes.pax(format!("SCHILY.xattr.user.{number}"), [b'v'; 50]);
    }
    vec![
        plain(Limit::Layers, 3, vec![layer("a=1"); 4]),
        (Limit::StreamBytes, 1 << 20, vec![gzip(&zeros)], vec![zeros.clone()]),
        (Limit::StreamBytes, 1 << 20, vec![frames.clone()], vec![zeros.clone()]),
        plain(Limit::StreamBytes, 1 << 20, vec![zeros.clone()]),
        (Limit::Expansion, 50, vec![members], vec![zeros.clone()]),
        (Limit::Expansion, 50, vec![gzip(&zeros)], vec![zeros.clone()]),
        (Limit::Expansion, 50, vec![frames], vec![zeros.clone()]),
        one(Limit::FileBytes, 1 << 40, sparse("", 0, "9223372036854775807")),
        one(Limit::FileBytes, 1 << 40, sparse("8796093022208,0", 1, "8796093022208")),
        plain(Limit::FileBytes, 10, vec![layer("a=12345 b=12345 c=1")]),
        plain(Limit::Entries, 3, vec![layer("a=1 a=1"), layer("a=1 a=1")]),
        plain(Limit::TreeBytes, 1 << 20, vec![tar(&names)]),
        one(Limit::ExtensionBytes, 1000, global),
        plain(Limit::Extensions, 16, vec![vec![long; 17].iter().flat_map(Member::bytes).collect()]),
        one(Limit::Segments, 2, sparse("0,0,1,0,2,0", 3, "10")),
        one(Limit::Depth, 10, Member::file("d/".repeat(10) + "f", "")),
        plain(Limit::Depth, 10, vec![layer(&format!("{}f l->{0} l/{0}f", "d/".repeat(9)))]),
        one(Limit::PathBytes, 20, Member::file("n".repeat(21), "")),
        one(Limit::NameBytes, 20, Member::file("n".repeat(21), "")),
        one(Limit::XattrValueBytes, 100, Member::file("f", "").pax("SCHILY.xattr.user.a", [b'v'; 101])),
        one(Limit::XattrBytes, 1000, attributes),
    ]
}

#[test]
fn every_limit_is_hit_and_named() {
    let mut hit: Vec<Limit> = Vec::new();
    for (limit, most, blobs, tars) in bombs() {
        let mut budget = Budget { expansion_floor_bytes: 1 << 20, ..Budget::default() };
        budget.set(limit, most);
        assert_eq!(budget.most(limit), most);
        let image = MemoryImage::new(blobs, tars.iter().map(|tar| Digest::of(tar)).collect());
        let dir = support::scratch();
        let options = ConvertOptions { budget, jobs: 1, ..ConvertOptions::default() };
        let destination = Destination::new(dir.path().join("out.sqsh"));
        let progress = Progress::new(&image.image);
        let error = convert(&image, &destination, &options, &progress, |_| Vec::new()).expect_err("a bomb");
        let line = chain(&error);
        assert_eq!(error.exceeded().map(|exceeded| exceeded.limit), Some(limit), "{line}");
        assert!(line.ends_with(&format!("exceed the limit of {most}")), "{line}");
        assert!(!line.contains('\n') && line.len() < 600, "{line}");
        assert_eq!(names_in(dir.path()), [""; 0], "{line}");
        hit.push(limit);
    }
    hit.dedup();
    assert_eq!(hit.len(), 14, "each limit has its bomb: {hit:?}");
}

/// A policy of the site: its file is root's, in a directory of root's.
fn site(policy: &str) -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    assert!(support::is_root(), "a policy file is root's: this test wants root");
    let dir = tempfile::Builder::new().prefix("hpcrun-site-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = dir.path().join("policy.toml");
    fs::write(&path, policy).unwrap();
    (dir, path)
}

/// Writes a docker-archive of these blobs to `dir`; gives the source's name. Bombs are not unpacked for a diff ID.
fn source(dir: &Path, blobs: &[Vec<u8>]) -> String {
    let diff_id = |blob: &Vec<u8>| match blob.len() {
        ..20_000_000 => Digest::of(&unzip(blob)).to_string(),
        _ => Digest::of(b"").to_string(),
    };
    let diff_ids: Vec<String> = blobs.iter().map(diff_id).collect();
    let path = dir.join("bomb.tar");
    fs::write(&path, archive_of(&json!({}), &diff_ids, blobs)).unwrap();
    format!("docker-archive:{}", path.display())
}

#[test]
fn a_limit_of_the_site_is_a_refusal_that_names_the_rule() {
    let mut attributes = Member::file("f", "");
    for number in 0..20 {
        attributes = attributes.pax(format!("SCHILY.xattr.user.{number}"), [b'v'; 50]);
    }
    let names: Vec<Member> = (0..20_000).map(|n| Member::file(format!("name-{n}"), "")).collect();
    let cases: [(&str, &str, Vec<Vec<u8>>); 8] = [
        ("max_layers = 1", "layers of the image exceed the limit of 1", vec![layer("a=1"), layer("a=2")]),
        ("max_size = \"4 KiB\"", "exceed the limit of 4096", vec![tar(&[Member::file("f", [1; 8000])])]),
        ("max_size = 10", "exceed the limit of 10", vec![gzip(&layer("a=1 b=2"))]),
        ("max_entries = 2", "entries exceed the limit of 2", vec![layer("a=1"), layer("a=1 b=1")]),
        ("max_memory = \"1 MiB\"", "memory for names and inodes exceed the limit", vec![tar(&names)]),
        ("max_depth = 2", "components of a path exceed the limit of 2", vec![layer("a/b/c=1")]),
        ("max_xattrs = 1000", "xattrs of one entry exceed the limit of 1000", vec![tar(&[attributes])]),
        (
            "max_sparse_segments = 2",
            "segments of a sparse file exceed the limit of 2",
            vec![tar(&[sparse("0,0,1,0,2,0", 3, "10")])],
        ),
    ];
    for (rule, what, blobs) in cases {
        let (_site, policy) = site(&format!("[home]\n[convert]\n{rule}\n"));
        let dir = support::scratch();
        let convert = || {
            let mut command = hpcrun(["convert", "--quiet"]);
            command.arg(source(dir.path(), &blobs)).arg(dir.path().join("out.sqsh"));
            command
        };
        let key = rule.split(' ').next().unwrap();
        let place = format!("policy.toml:3 [convert] {key})");
        let refused = run(convert().env("HPCRUN_POLICY", &policy));
        assert_fails(&refused, 122, &["refused by site policy", what, &place, "hint: "]);
        assert_eq!(names_in(dir.path()), ["bomb.tar"], "{rule}");
        // Without the rule it is an image like any other.
        support::stdout(&mut convert());
    }
    // hpcrun's own limit is no refusal, whatever else the site says.
    let (_site, policy) = site("[convert]\nmax_layers = 5\n");
    let dir = support::scratch();
    let mut command = hpcrun(["convert"]);
    command.arg(source(dir.path(), &[tar(&[Member::file("f", "").pax("path", "d/".repeat(300))])]));
    let output = run(command.arg(dir.path().join("out.sqsh")).env("HPCRUN_POLICY", policy));
    assert_fails(&output, 125, &["components of a path exceed the limit of 256"]);
}

/// Converts and must fail so; gives the peak of memory in MiB.
#[track_caller]
fn explode(dir: &Path, source: &str, expected: &str) -> u64 {
    let peak = dir.join("peak");
    let mut command = as_user("/usr/bin/time");
    command.args(["-q", "-f", "%M", "-o"]).arg(&peak).arg(binary());
    let output = run(command.args(["convert", "--quiet", source]).arg(dir.join("out.sqsh")));
    assert_fails(&output, 125, &[expected]);
    let mib = fs::read_to_string(&peak).unwrap().trim().parse::<u64>().unwrap() / 1024;
    fs::remove_file(peak).unwrap();
    assert_eq!(names_in(dir), ["bomb.tar"]);
    mib
}

/// Small blobs that would become very much, in one stream and in very many.
#[test]
fn compressed_bombs_stop_early_and_take_no_memory() {
    let head = Member::file("zeros", "").bytes();
    let mut head = head[..512].to_vec();
    head[124..136].copy_from_slice(b"777777777777");
    crate::layer_building::fix_checksum(&mut head);
    let zeros = vec![0; 64 << 20];
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    // 5 GiB each, the limit being looked at from 4 GiB on; gzip needs its best level for more than 1000:1.
    let best = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&zeros).unwrap();
        encoder.finish().unwrap()
    };
    assert!(zeros.len() / best.len() > 1000, "{} bytes", best.len());
    for blob in [[gzip(&head), best.repeat(80)].concat(), [zstd(&head), zstd(&zeros).repeat(80)].concat()] {
        let dir = support::scratch();
        let expected = "uncompressed bytes for each compressed byte exceed the limit of 1000";
        let mib = explode(dir.path(), &source(dir.path(), &[blob]), expected);
        assert!(mib < 200, "{mib} MiB");
    }
}

/// A gzip stream of a tar of `count` members, made one by one.
fn flood(count: usize, member: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for number in 0..count {
        encoder.write_all(&member(number)).unwrap();
    }
    encoder.finish().unwrap()
}

/// Names, links, attributes and directories without end: refused before they take what a conversion may.
#[test]
fn floods_of_names_stay_within_memory() {
    let template = Member::file("n00000000", "").bytes();
    // A header made by changing eight digits and the checksum is made quickly.
    let numbered = |template: &[u8], at: usize, number: usize| {
        let mut block = template.to_vec();
        block[at..at + 8].copy_from_slice(format!("{number:08}").as_bytes());
        crate::layer_building::fix_checksum(&mut block);
        block
    };
    let many = |number: usize| {
        let body: Vec<u8> = (0..40)
            .flat_map(|n| {
                pax_record(format!("SCHILY.xattr.user.{n}").as_bytes(), number.to_string().as_bytes())
            })
            .collect();
        let header = Member { data: body, ..Member::new(b'x', "x") };
        [header.bytes(), numbered(&template, 1, number)].concat()
    };
    let deep =
        |number: usize| Member::directory("d").pax("path", format!("{number}/{}", "x/".repeat(250))).bytes();
    let promised = |number: usize| {
        let link = Member::hard_link("l", "t").pax("path", format!("{}{number}", "x/".repeat(240)));
        link.pax("linkpath", format!("{}{number}", "y/".repeat(240))).bytes()
    };
    let target = |number: usize| {
        Member::symlink("l", "t")
            .pax("path", format!("l{number}"))
            .pax("linkpath", format!("{number}{}", "t".repeat(4000)))
            .bytes()
    };
    let floods: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        ("names", flood(1_700_000, |number| numbered(&template, 1, number))),
        ("attributes", flood(60_000, many)),
        ("directories", flood(12_000, deep)),
        ("promised links", flood(230_000, promised)),
        ("targets", flood(80_000, target)),
    ]);
    for (what, blob) in floods {
        let dir = support::scratch();
        let source = source(dir.path(), &[blob]);
        let mib = explode(dir.path(), &source, "bytes of memory for names and inodes exceed the limit");
        println!("{what}: {mib} MiB");
        assert!(mib <= MEMORY_MIB, "{what}: {mib} MiB");
    }
}

/// What is just within the budget takes no more than it may either, tables and all.
#[test]
fn a_million_files_fit_into_memory() {
    let template = [Member::file("n00000000", "00000000").bytes(), Vec::new()].concat();
    let blob = flood(1_000_000, |number| {
        let mut member = template.clone();
        member[1..9].copy_from_slice(format!("{number:08}").as_bytes());
        member[512..520].copy_from_slice(format!("{number:08}").as_bytes());
        crate::layer_building::fix_checksum(&mut member[..512]);
        member
    });
    let tar = unzip(&blob);
    let dir = support::scratch();
    let path = dir.path().join("many.tar");
    fs::write(&path, archive_of(&json!({}), &[Digest::of(&tar).to_string()], &[blob])).unwrap();
    drop(tar);
    let peak = dir.path().join("peak");
    let mut command = as_user("/usr/bin/time");
    command.args(["-q", "-f", "%M", "-o"]).arg(&peak).arg(binary()).args(["convert", "--quiet"]);
    support::stdout(
        command.arg(format!("docker-archive:{}", path.display())).arg(dir.path().join("out.sqsh")),
    );
    let mib = fs::read_to_string(&peak).unwrap().trim().parse::<u64>().unwrap() / 1024;
    println!("a million files: {mib} MiB");
    assert!(mib <= MEMORY_MIB, "{mib} MiB");
}

/// The JSON of an image is bounded as registries bound it.
#[test]
fn json_bombs_are_refused_by_size() {
    let config = json!({"Labels": {"padding": "x".repeat(9 << 20)}});
    let dir = support::scratch();
    fs::write(dir.path().join("bomb.tar"), docker_archive(&config, &[layer("a=1")])).unwrap();
    let source = format!("docker-archive:{}", dir.path().join("bomb.tar").display());
    let output = run(hpcrun(["convert", &source]).arg(dir.path().join("out.sqsh")));
    assert_fails(&output, 125, &["bomb.tar", "more than the limit of"]);
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let manifest = tar(&[Member::file("manifest.json", deep)]);
    fs::write(dir.path().join("bomb.tar"), manifest).unwrap();
    let output = run(hpcrun(["convert", &source]).arg(dir.path().join("out.sqsh")));
    let line = assert_fails(&output, 125, &["bomb.tar"]);
    assert!(line.len() < 400, "{}", text(line.as_bytes()));
}
