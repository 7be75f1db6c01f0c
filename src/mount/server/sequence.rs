//! Files read one after the other, in the order in which the image has them.
//!
//! Whoever copies, archives, searches or imports a directory reads its files by name, and writers put them into the inode
//! table by name. So the next files are known before they are opened; small ones are a request each, with no stretch
//! for the kernel to read ahead.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::{FileLayout, Filesystem};

/// Sequences watched at a time.
const SEQUENCES: usize = 4;
/// Files known ahead; the next one read may be any of them, as readers leave some out.
const KNOWN_AHEAD: usize = 16;
/// Files in order before anything is decompressed for it.
const ORDERLY_FILES: u32 = 3;
/// Bytes of files and fragments in flight ahead of the reader.
const BYTES_AHEAD: u64 = 1 << 20;
/// Most bytes of one file; if it is read in order, its own read-ahead goes on from there.
const FILE_BYTES_AHEAD: u64 = 256 << 10;

/// The files being read in order, and the rest: for a lock.
#[derive(Debug, Default)]
pub(super) struct Sequences(VecDeque<Sequence>);

/// One reader, or several who share their files out.
#[derive(Debug)]
struct Sequence {
    /// The furthest file read.
    last: InodeRef,
    /// What follows it.
    ahead: VecDeque<Ahead>,
    /// Files read in order.
    orderly: u32,
    /// The fragment queued last.
    fragment: Option<u32>,
}

/// A file not read yet.
#[derive(Debug)]
struct Ahead {
    inode: InodeRef,
    layout: FileLayout,
    /// Bytes to decompress for it, once it is queued.
    queued: Option<u64>,
}

impl Sequences {
    /// Notes that the first bytes of a file are read, and gives the files to decompress, with how much of each.
    pub(super) fn note(&mut self, image: &Filesystem, inode: InodeRef) -> Vec<(InodeRef, FileLayout, u64)> {
        let known = self.0.iter().position(|sequence| sequence.expects(inode));
        let mut sequence = known.and_then(|at| self.0.remove(at)).unwrap_or_else(|| Sequence::new(inode));
        sequence.advance(inode);
        sequence.look_ahead(image);
        let next = sequence.take();
        if self.0.len() >= SEQUENCES {
            self.0.pop_front();
        }
        self.0.push_back(sequence);
        next
    }
}

impl Sequence {
    fn new(inode: InodeRef) -> Sequence {
        Sequence { last: inode, ahead: VecDeque::new(), orderly: 0, fragment: None }
    }

    /// Whether the file is one of the next, or the one that another reader was about to read.
    fn expects(&self, inode: InodeRef) -> bool {
        inode == self.last || self.ahead.iter().any(|next| next.inode == inode)
    }

    fn advance(&mut self, inode: InodeRef) {
        if let Some(at) = self.ahead.iter().position(|next| next.inode == inode) {
            self.ahead.drain(..=at);
            self.last = inode;
            self.orderly = self.orderly.saturating_add(1);
        }
    }

    /// Fills up what is known ahead. What cannot be read ends the sequence; whoever reads it is told.
    fn look_ahead(&mut self, image: &Filesystem) {
        if self.ahead.len() > KNOWN_AHEAD / 2 {
            return;
        }
        let from = self.ahead.back().map_or(self.last, |next| next.inode);
        let _ = image.files_after(from, &mut |inode, layout| {
            self.ahead.push_back(Ahead { inode, layout, queued: None });
            if self.ahead.len() < KNOWN_AHEAD { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }

    fn take(&mut self) -> Vec<(InodeRef, FileLayout, u64)> {
        let mut files = Vec::new();
        if self.orderly < ORDERLY_FILES {
            return files;
        }
        let mut in_flight: u64 = self.ahead.iter().filter_map(|next| next.queued).sum();
        for next in &mut self.ahead {
            if in_flight >= BYTES_AHEAD {
                break;
            }
            if next.queued.is_some() {
                continue;
            }
            let fragment = next.layout.fragment();
            let is_new = fragment.is_some() && fragment != self.fragment;
            self.fragment = fragment.or(self.fragment);
            let length = next.layout.size.min(FILE_BYTES_AHEAD);
            // A fragment is decompressed once, for the first of the files in it.
            let wanted = if next.layout.has_blocks() || is_new { length } else { 0 };
            next.queued = Some(wanted);
            in_flight += wanted;
            if wanted > 0 {
                files.push((next.inode, next.layout.clone(), wanted));
            }
        }
        files
    }
}
