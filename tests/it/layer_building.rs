//! Layers written by hand, an image source in memory, and trees as text: what the tests of tar, merge and conversion
//! share.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on may panic"
)]

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;

use hpcrun::convert::layer::stream::{LayerError, LayerStream};
use hpcrun::convert::source::{LayerInfo, Source, SourceError, SourceImage};
use hpcrun::convert::{
    ConvertError, ConvertOptions, FileSink, Layers, Merged, Progress, merge_layers, merge_options,
};
use hpcrun::image::config::ImageConfig;
use hpcrun::image::digest::Digest;
use hpcrun::squashfs::writer::{FileId, InodeIndex, InodeKind, Tree, WriteError};

/// The time that all members have unless they say otherwise.
pub(crate) const MTIME: i64 = 1_000_000_000;

/// One tar member as it is going to be written.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) type_flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    pub(crate) fn new(type_flag: u8, name: impl AsRef<[u8]>) -> Member {
        Member {
            name: name.as_ref().to_vec(),
            type_flag,
            mode: if type_flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: MTIME,
            link: Vec::new(),
            device: (0, 0),
            data: Vec::new(),
            pax: Vec::new(),
        }
    }

    pub(crate) fn directory(name: impl AsRef<[u8]>) -> Member {
        Member::new(b'5', name)
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Member {
        Member { data: data.as_ref().to_vec(), ..Member::new(b'0', name) }
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
        Member { link: target.as_ref().to_vec(), ..Member::new(b'1', name) }
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
        Member { link: target.as_ref().to_vec(), mode: 0o777, ..Member::new(b'2', name) }
    }

    pub(crate) fn mode(self, mode: u32) -> Member {
        Member { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Member {
        Member { uid, gid, ..self }
    }

    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Member {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// The member in `ustar` with a PAX header where it has records.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pax.is_empty() {
            let body: Vec<u8> = self.pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            out.extend(block(
                &Member { name: b"PaxHeaders/x".to_vec(), ..Member::new(b'x', "") },
                body.len(),
            ));
            out.extend(padded(&body));
        }
        out.extend(block(self, self.data.len()));
        out.extend(padded(&self.data));
        out
    }
}

/// `LENGTH KEY=VALUE\n`.
pub(crate) fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// The header block of a member.
pub(crate) fn block(member: &Member, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &member.name[..member.name.len().min(100)]);
    put(100, format!("{:07o}\0", member.mode).as_bytes());
    put(108, &number(u64::from(member.uid), 8));
    put(116, &number(u64::from(member.gid), 8));
    put(124, &number(size as u64, 12));
    put(136, &number(member.mtime as u64, 12));
    put(156, &[member.type_flag]);
    put(157, &member.link[..member.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", member.device.0).as_bytes());
    put(337, format!("{:07o}\0", member.device.1).as_bytes());
    fix_checksum(&mut block);
    block
}

/// Octal where it fits, else base-256.
fn number(value: u64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0digits$o}\0", digits = width - 1);
    if octal.len() == width {
        return octal.into_bytes();
    }
    let mut bytes = vec![if value >> 63 == 1 { 0xff } else { 0 }; width];
    bytes[width - 8.min(width)..].copy_from_slice(&value.to_be_bytes()[8 - 8.min(width)..]);
    bytes[0] |= 0x80;
    bytes
}

/// Writes the checksum of a header block.
pub(crate) fn fix_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// `data` filled up to whole blocks.
pub(crate) fn padded(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    out.resize(data.len().next_multiple_of(512), 0);
    out
}

/// A whole tar.
pub(crate) fn tar(members: &[Member]) -> Vec<u8> {
    let mut out: Vec<u8> = members.iter().flat_map(Member::bytes).collect();
    out.resize(out.len() + 1024, 0);
    out
}

/// A member from a word: `d/`, `f=data`, `s->target`, `h=>target`; without any of these an empty file (a whiteout).
pub(crate) fn member(word: &str) -> Member {
    if let Some((name, target)) = word.split_once("->") {
        Member::symlink(name, target)
    } else if let Some((name, target)) = word.split_once("=>") {
        Member::hard_link(name, target)
    } else if let Some((name, data)) = word.split_once('=') {
        Member::file(name, data)
    } else if word.ends_with('/') {
        Member::directory(word)
    } else {
        Member::file(word, "")
    }
}

/// A layer from words.
pub(crate) fn layer(words: &str) -> Vec<u8> {
    tar(&words.split_whitespace().map(member).collect::<Vec<_>>())
}

/// An image whose blobs are in memory.
#[derive(Debug)]
pub(crate) struct MemoryImage {
    pub(crate) image: SourceImage,
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl MemoryImage {
    /// Of uncompressed layers, bottom first.
    pub(crate) fn plain(tars: Vec<Vec<u8>>) -> MemoryImage {
        let diff_ids = tars.iter().map(|tar| Digest::of(tar)).collect();
        MemoryImage::new(tars, diff_ids)
    }

    /// Of blobs that become these tars.
    pub(crate) fn new(blobs: Vec<Vec<u8>>, diff_ids: Vec<Digest>) -> MemoryImage {
        let info = |(blob, diff_id): (&Vec<u8>, Digest)| LayerInfo {
            digest: Some(Digest::of(blob)),
            diff_id: Some(diff_id),
            size: Some(blob.len() as u64),
            media_type: String::new(),
        };
        let image = SourceImage {
            origin: "memory:image".to_owned(),
            manifest: Vec::new(),
            manifest_digest: Digest::of(b""),
            manifest_media_type: String::new(),
            config: ImageConfig::default(),
            layers: blobs.iter().zip(diff_ids).map(info).collect(),
            whole_tree: false,
        };
        MemoryImage { image, blobs }
    }
}

impl Source for MemoryImage {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        Ok(Box::new(Cursor::new(self.blobs[index].clone())))
    }
}

/// Files in memory in place of a squashfs. Small blocks, so that every test crosses them.
#[derive(Debug, Default)]
pub(crate) struct MemorySink {
    pub(crate) files: Vec<Vec<u8>>,
    open: Option<(u64, Vec<u8>)>,
    spare: Vec<u8>,
}

impl FileSink for MemorySink {
    fn begin_file(&mut self, size: u64) -> Result<(), WriteError> {
        assert!(self.open.is_none(), "the last file was not ended");
        self.open = Some((size, Vec::new()));
        Ok(())
    }

    fn spare(&mut self) -> Result<&mut [u8], WriteError> {
        let (size, data) = self.open.as_ref().expect("a file is open");
        let room = (*size - data.len() as u64).min(100);
        assert!(room > 0, "the file is complete");
        self.spare = vec![0xee; room as usize];
        Ok(&mut self.spare)
    }

    fn advance(&mut self, length: usize) -> Result<(), WriteError> {
        let (_, data) = self.open.as_mut().expect("a file is open");
        data.extend_from_slice(&self.spare[..length]);
        Ok(())
    }

    fn skip(&mut self, length: u64) -> Result<(), WriteError> {
        let (_, data) = self.open.as_mut().expect("a file is open");
        data.resize(data.len() + length as usize, 0);
        Ok(())
    }

    fn end_file(&mut self) -> Result<FileId, WriteError> {
        let (size, data) = self.open.take().expect("a file is open");
        assert_eq!(data.len() as u64, size, "size announced and data given");
        self.files.push(data);
        Ok(FileId(self.files.len() as u32 - 1))
    }

    fn bytes_out(&self) -> u64 {
        0
    }
}

/// Layers without threads or digests.
#[derive(Debug)]
pub(crate) struct MemoryLayers(pub(crate) Vec<Vec<u8>>);

struct Plain<'a>(&'a [u8]);

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl LayerStream for Plain<'_> {
    fn finish(&mut self) -> Result<(), LayerError> {
        Ok(())
    }
}

impl Layers for MemoryLayers {
    fn open(&mut self, index: usize) -> Result<Box<dyn LayerStream + '_>, LayerError> {
        Ok(Box::new(Plain(&self.0[index])))
    }
}

/// Merges tars, bottom first, as a conversion would.
pub(crate) fn merge(
    tars: &[Vec<u8>],
    options: &ConvertOptions,
) -> Result<(Merged, MemorySink), ConvertError> {
    let infos = MemoryImage::plain(vec![Vec::new(); tars.len()]).image;
    let mut sink = MemorySink::default();
    let progress = Progress::new(&infos);
    let merged = merge_layers(
        &infos.layers,
        &mut MemoryLayers(tars.to_vec()),
        &mut sink,
        &merge_options(options, 0),
        &progress,
        Path::new("memory"),
    )?;
    Ok((merged, sink))
}

/// An error with all its causes, as a user sees it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Every path of a tree with its inode, sorted, the root as an empty path.
pub(crate) fn walk(tree: &Tree) -> Vec<(Vec<u8>, InodeIndex)> {
    let mut out = Vec::new();
    let mut todo = vec![(Vec::new(), tree.root)];
    while let Some((path, index)) = todo.pop() {
        if let InodeKind::Directory(entries) = &tree.inodes[index as usize].kind {
            for (name, child) in entries {
                todo.push(([&path[..], b"/", name].concat(), *child));
            }
        }
        out.push((path, index));
    }
    out.sort();
    out
}

/// Each path's first path with the same inode.
pub(crate) fn first_names(paths: &[(Vec<u8>, InodeIndex)]) -> HashMap<InodeIndex, Vec<u8>> {
    let mut first = HashMap::new();
    for (path, index) in paths {
        first.entry(*index).or_insert_with(|| path.clone());
    }
    first
}
