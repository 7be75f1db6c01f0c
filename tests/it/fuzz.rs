//! A bounded, seeded run of every parser of outside bytes on damaged input: no panic, no endless loop, and what is accepted
//! holds together. `make fuzz` runs the same with fresh seeds, and guided by coverage where the toolchain can.

pub(crate) mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};

use hpcrun::elf::library_cache::{Entry, LibraryCache};

use crate::layer_building::{Member, fix_checksum, layer, tar};
use crate::support::{self, Random};

/// Runs `target` on `rounds` mutants of `corpus`; both outcomes must come up often enough to say that the mutants reach
/// the checks behind the first one.
#[track_caller]
fn fuzz(
    rounds: u64,
    corpus: &[Vec<u8>],
    mutate: impl Fn(&mut Vec<u8>, &mut Random, &[Vec<u8>]),
    target: impl Fn(&[u8]) -> bool,
) {
    let seed = support::seed();
    for input in corpus {
        assert!(target(input), "the corpus is good: {}", input.escape_ascii());
    }
    let mut accepted = 0;
    for round in 0..rounds {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(round));
        let mut input = corpus[random.below(corpus.len() as u64) as usize].clone();
        for _ in 0..1 + random.below(4) {
            mutate(&mut input, &mut random, corpus);
        }
        match catch_unwind(AssertUnwindSafe(|| target(&input))) {
            Ok(good) => accepted += u64::from(good),
            Err(_) => panic!("HPCRUN_SEED={seed}: round {round}: {}", input.escape_ascii()),
        }
    }
    let refused = rounds - accepted;
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > rounds / 50 && refused > rounds / 50, "{accepted} accepted, {refused} refused");
}

/// Changes, cuts, repeats or joins bytes.
fn mutate_bytes(input: &mut Vec<u8>, random: &mut Random, corpus: &[Vec<u8>]) {
    if input.is_empty() {
        input.push(b'0');
    }
    let length = input.len() as u64;
    let at = random.below(length) as usize;
    let end = (at + 1 + random.below(40) as usize).min(input.len());
    match random.below(7) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = b"0123456789\n ,=\0\xff\x80{}[]\":/@-"[random.below(26) as usize],
        2 => input.truncate(at.max(1)),
        3 => drop(input.drain(at..end)),
        4 => {
            let piece = input[at..end].to_vec();
            let to = random.below(length) as usize;
            input.splice(to..to, piece);
        }
        5 => {
            let other = &corpus[random.below(corpus.len() as u64) as usize];
            let from = random.below(other.len().max(1) as u64) as usize;
            input.truncate(at);
            input.extend_from_slice(other.get(from..).unwrap_or_default());
        }
        _ => {
            let numbers = ["0", "-1", "4294967296", "9223372036854775807", "18446744073709551616", "1e99"];
            let number = numbers[random.below(numbers.len() as u64) as usize];
            input.splice(at..at, number.bytes());
        }
    }
}

/// The same with whole blocks of a tar, and the checksums right again: most damage would only be a wrong one.
fn mutate_tar(input: &mut Vec<u8>, random: &mut Random, corpus: &[Vec<u8>]) {
    if random.below(3) == 0 {
        let blocks = (input.len() / 512).max(1) as u64;
        let (from, to) = (random.below(blocks) as usize * 512, random.below(blocks) as usize * 512);
        let block = input.get(from..from + 512).unwrap_or_default().to_vec();
        if random.below(2) == 0 {
            input.splice(to..to, block);
        } else if let Some(old) = input.get_mut(to..to + block.len()) {
            old.copy_from_slice(&block);
        }
    } else {
        // In a header, where it tells, and not in data: those are the blocks that begin with a name.
        let length = input.len();
        mutate_bytes(input, random, corpus);
        if input.len() < length && random.below(4) > 0 {
            input.resize(length, 0);
        }
    }
    for header in input.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        fix_checksum(header);
    }
}

/// Layers of every kind of entry.
fn tars() -> Vec<Vec<u8>> {
    let sparse = Member::file("sparse", [b'x'; 600])
        .pax("GNU.sparse.major", "0")
        .pax("GNU.sparse.minor", "1")
        .pax("GNU.sparse.size", "10000")
        .pax("GNU.sparse.numblocks", "2")
        .pax("GNU.sparse.map", "4096,500,9900,100");
    let map = [&b"1\n4096\n88\n"[..], &[0; 502], &[b'y'; 88]].concat();
    let in_data = Member::file("GNUSparseFile.0/in-data", map)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "in-data")
        .pax("GNU.sparse.realsize", "5000");
    let rich = Member::file("f", vec![b'd'; 5000])
        .pax("path", "p/q")
        .pax("SCHILY.xattr.user.a", "v")
        .pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n22 path=evil\n".as_slice())
        .pax("mtime", "1.5")
        .owner(70_000, 80_000);
    let long =
        Member { data: [&b"long/".repeat(40)[..], b"name\0"].concat(), ..Member::new(b'L', "././@LongLink") };
    let device = Member { device: (1, 3), ..Member::new(b'3', "null") };
    vec![
        tar(&[Member::directory("d/"), rich, Member::hard_link("h", "p/q"), Member::symlink("s", "d/x")]),
        tar(&[sparse, in_data, device, Member::new(b'6', "pipe")]),
        tar(&[long, Member::file("x", "behind a long name"), Member::file("d/.wh.a", "")]),
        layer("a=1 b=>a d/ d/e/ d/e/f=2 l->d l/g=3 .wh.old d/.wh..wh..opq"),
    ]
}

#[test]
fn tars_are_read_or_refused() {
    fuzz(20_000, &tars(), mutate_tar, |bytes| targets::tar(bytes).is_some());
}

#[test]
fn layers_become_sound_squashfs_or_are_refused() {
    let mut corpus = tars();
    let stacks = [
        ["a=1 d/ d/x=1 d/y=2 h=>d/x", "a=2 .wh.d d/ d/z=3", "b=>a e->d e/new=4"],
        ["p/ p/old=1", "p=file", "p/ p/new=2"],
        ["real/ real/r=1 link->real", "link/.wh.x t=1", "l=>t .wh.t"],
    ];
    for stack in stacks {
        corpus.push(stack.map(layer).join(targets::SEPARATOR));
    }
    fuzz(3_000, &corpus, mutate_tar, |bytes| targets::layers(bytes).is_some());
}

#[test]
fn json_is_understood_or_refused() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let descriptor = |kind: &str| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": 7});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json"), "layers": [descriptor("layer.v1.tar+gzip")], "annotations": {"a": "b"},
    });
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor("manifest.v1+json"), {"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": 8, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}],
    });
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin", "X"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": null, "WorkingDir": "/w",
            "Labels": {"a": "b"}, "User": "1000:1000", "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [digest]}, "history": [{"created_by": "x", "empty_layer": true}],
    });
    let corpus = [manifest, index, config].map(|json| json.to_string().into_bytes());
    fuzz(30_000, &corpus, mutate_bytes, targets::json);
}

#[test]
fn names_are_understood_or_refused() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let corpus = [
        "debian",
        "debian:12",
        "registry.example.org:5000/group/app:tag-1.0_x",
        "localhost/a/b",
        "[::1]:5000/app",
        "127.0.0.1:5000/x/y:z",
        "linux/arm64/v8",
        &digest,
        &format!("docker.io/library/debian:12@{digest}"),
    ]
    .map(|text| text.as_bytes().to_vec());
    fuzz(60_000, &corpus, mutate_bytes, |bytes| std::str::from_utf8(bytes).is_ok_and(targets::name));
}

#[test]
fn library_caches_are_read_or_refused() {
    let own = std::fs::read("/etc/ld.so.cache").expect("/etc/ld.so.cache");
    let mut small = LibraryCache::default();
    small.put_first([
        Entry::new(b"libz.so.1".to_vec(), b"/lib/libz.so.1".to_vec()),
        Entry::new(b"libc.so.6".to_vec(), b"/lib/libc.so.6".to_vec()),
    ]);
    let small = small.to_bytes().expect("a cache");
    let mut old = b"ld.so-1.7.0\0\x01\0\0\0".to_vec();
    old.resize(32, 0);
    old.extend_from_slice(&small);
    fuzz(10_000, &[small, old], mutate_bytes, targets::library_cache);
    fuzz(300, &[own], mutate_bytes, targets::library_cache);
}

#[test]
fn device_specifications_are_understood_or_refused() {
    let corpus = [
        include_str!("../fixtures/cdi/nvidia.yaml").replace("HOST_LIBRARY", "/opt/libcuda.so").into_bytes(),
        br#"{"cdiVersion": "0.3.0", "kind": "a/b", "devices": [{"name": "c", "containerEdits": {"env": ["A=1"]}}]}"#.to_vec(),
    ];
    fuzz(5_000, &corpus, mutate_bytes, targets::cdi);
}
