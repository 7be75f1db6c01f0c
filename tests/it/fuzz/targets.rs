//! What is done with bytes that nobody has looked at, and what must then hold. Shared with the coverage-guided targets
//! in `fuzz/`.

use std::fs::File;
use std::path::Path;

use hpcrun::convert::layer::tar::{EntryKind, Reader};
use hpcrun::convert::{Budget, ConvertOptions, Merged, Progress, merge_layers, merge_options};
use hpcrun::elf::library_cache::{self, Entry, LibraryCache};
use hpcrun::host::cdi::Spec;
use hpcrun::image::config::ImageConfig;
use hpcrun::image::digest::Digest;
use hpcrun::image::manifest::Document;
use hpcrun::image::platform::Platform;
use hpcrun::image::reference::{Reference, SourceReference};
use hpcrun::squashfs::compress::Compression;
use hpcrun::squashfs::reader::{Filesystem, ReaderOptions};
use hpcrun::squashfs::writer::{Writer, WriterOptions};

use crate::exercise;
use crate::layer_building::{MemoryImage, MemoryLayers};

/// Enough for what a few KiB can honestly hold.
fn budget() -> Budget {
    Budget { file_bytes: 8 << 20, tree_bytes: 8 << 20, segments: 5000, ..Budget::default() }
}

/// Any bytes as a tar: an end or an error, and nothing in an entry that its budget forbids. Gives the entries.
pub(crate) fn tar(bytes: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(bytes, budget());
    let mut entries = 0;
    while let Some(entry) = reader.next_entry().ok()? {
        entries += 1;
        assert!(entry.mode <= 0o7777 && entry.offset < bytes.len() as u64);
        assert!(entry.xattrs.is_sorted_by(|a, b| a.0 < b.0));
        let EntryKind::File { size, segments } = &entry.kind else { continue };
        let (mut at, mut buffer) = (0, [0; 4096]);
        for segment in segments {
            assert!(segment.offset >= at && segment.length > 0);
            at = segment.end().filter(|end| end <= size).expect("inside the file");
            let mut left = segment.length;
            while left > 0 {
                let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let got = reader.read_data(&mut buffer[..most]).ok()?;
                assert!(got > 0 && got <= most);
                left -= got as u64;
            }
        }
    }
    Some(entries)
}

/// Separates layers in what is fuzzed.
pub(crate) const SEPARATOR: &[u8] = b"==== the next layer, above ====\n";

/// Any bytes as layers: refused, or merged into a squashfs that the reader finds no fault with. Gives the inodes.
pub(crate) fn layers(bytes: &[u8]) -> Option<usize> {
    let mut tars = vec![Vec::new()];
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        match rest.strip_prefix(SEPARATOR) {
            Some(next) if tars.len() < 8 => {
                tars.push(Vec::new());
                rest = next;
            }
            _ => {
                tars.last_mut().expect("one at least").push(*first);
                rest = after;
            }
        }
    }
    let infos = MemoryImage::plain(vec![Vec::new(); tars.len()]).image;
    let options = ConvertOptions { budget: budget(), ..ConvertOptions::default() };
    let output = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let writing = WriterOptions { compression: Compression::Lz4, block_size: 4096, threads: 1, mkfs_time: 0 };
    let mut writer = Writer::create(output, writing).expect("a writer");
    let merged = merge_layers(
        &infos.layers,
        &mut MemoryLayers(tars),
        &mut writer,
        &merge_options(&options, 0),
        &Progress::new(&infos),
        Path::new("memory"),
    );
    let Merged { tree, .. } = merged.ok()?;
    let (file, summary): (File, _) = writer.finish(&tree).expect("what is merged can be written");
    let filesystem = Filesystem::open(file, 0, ReaderOptions::default()).expect("our own image");
    let outcome = exercise::exercise(&filesystem);
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    assert_eq!(outcome.inodes, (summary.inodes as usize).min(2000));
    Some(outcome.inodes)
}

/// Any bytes as the JSON of an image: understood or refused. Gives whether anything was understood.
pub(crate) fn json(bytes: &[u8]) -> bool {
    let config = ImageConfig::parse(bytes);
    if let Ok(config) = &config {
        assert_eq!(config.raw, bytes, "kept verbatim");
        let _ = config.platform();
    }
    let documents = [None, Some("application/vnd.oci.image.manifest.v1+json"), Some("text/plain")]
        .map(|declared| Document::parse(bytes, declared).map(|document| document.media_type().len()).is_ok());
    config.is_ok() || documents.contains(&true)
}

/// Any bytes as a cache of libraries: refused, or one that can be added to and is read back as it was written.
pub(crate) fn library_cache(bytes: &[u8]) -> bool {
    let _ = library_cache::path_of(bytes, b"libc.so.6");
    let Ok(mut cache) = LibraryCache::parse(bytes) else { return false };
    cache.put_first([Entry::new(b"libcuda.so.1".to_vec(), b"/.hpcrun/lib/libcuda.so.1".to_vec())]);
    let written = cache.to_bytes().expect("shorter than 4 GiB");
    assert_eq!(LibraryCache::parse(&written).as_ref(), Ok(&cache));
    assert_eq!(library_cache::path_of(&written, b"no such name"), None);
    true
}

/// Any bytes as a CDI specification: refused or understood, as YAML and as JSON.
pub(crate) fn cdi(bytes: &[u8]) -> bool {
    let read = |path: &str| Spec::parse(Path::new(path), bytes);
    let _ = read("x.json");
    read("x.yaml").is_ok()
}

/// Any text as a name: understood names print as themselves. Gives whether it was understood.
pub(crate) fn name(text: &str) -> bool {
    let reference = Reference::parse(text);
    if let Ok(reference) = &reference {
        let again = Reference::parse(&reference.to_string());
        assert_eq!(again.as_ref(), Ok(reference), "{text:?} prints as {reference}");
    }
    let digest = Digest::parse(text);
    if let Ok(digest) = &digest {
        assert_eq!(digest.to_string(), text);
    }
    let platform = Platform::parse(text);
    if let Ok(platform) = &platform {
        assert_eq!(Platform::parse(&platform.to_string()).as_ref().ok(), Some(platform), "{text:?}");
    }
    for transport in ["", "docker://", "docker-archive:", "oci:", "oci-archive:"] {
        let _ = SourceReference::parse(format!("{transport}{text}").as_ref(), &|path| path.is_absolute());
    }
    reference.is_ok() || digest.is_ok() || platform.is_ok()
}
