//! The session: requests in, replies out, on several threads that share one `/dev/fuse`.

use std::io::IoSlice;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use super::ahead::Announcer;
use super::lone_client::{LoneClient, Seat};
use super::prefetch::Prefetcher;
use super::protocol::{self, Header, Init, NOTIFY_RESEND, Operation, UNIQUE_RESEND, init};
use super::startup::{Prefetch, Startup};
use super::tree::{Node, Offer, Tree, unreadable};
use super::trouble::{self, Reporter};
use super::watch::Watch;
use crate::mount::graft::{self, NodeKind};
use crate::squashfs::reader::{FileLayout, Filesystem, InodeKind, Piece, ReadError};
use crate::sys::fuse::{Device, RequestSlot};

/// From which holes are answered.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Longest listing sent at a time, bytes.
const LISTING_BYTES: usize = 256 << 10;
/// Bytes of the listing from which on attributes are only sent if names of the directory are looked up: to take them in
/// costs the kernel 2 us an entry, ten times the listing itself, and who lists 10,000 names or more rarely asks for
/// all. A hint only: what an entry is does not depend on it.
const HUGE_LISTING: u64 = 256 << 10;
/// Directories remembered as looked up in.
const DIRECTORIES_REMEMBERED: u64 = 64;
/// Longest read whose client is taken to wait for it, bytes.
const SHORT_READ: u32 = 64 << 10;
/// Longest link target the kernel takes, bytes (`PATH_MAX` less the NUL).
const TARGET_MAX: usize = 4095;

/// What was agreed with the kernel at INIT, which it sends first and once: known to every later server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreement {
    /// See [`init`]; 0 before INIT.
    flags: &'static AtomicU64,
    /// Flags not to be used although the kernel offers them.
    masked: u64,
}

impl Agreement {
    /// `flags` is memory that all servers share, 0 at first.
    pub(super) fn new(flags: &'static AtomicU64, masked: u64) -> Agreement {
        Agreement { flags, masked }
    }

    pub(super) fn has(self, flag: u64) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Takes what is wanted of what the kernel offers.
    fn agree(self, offered: u64) -> u64 {
        let accepted = offered & init::WANTED & !self.masked;
        self.flags.store(accepted, Ordering::Relaxed);
        accepted
    }
}

/// What becomes of requests that the previous server had taken and not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// They are answered like any other.
    Serve,
    /// They get `EIO`: one of them seems to kill servers.
    Refuse,
}

/// Why a server stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// The file system is gone.
    Unmounted,
    /// The device refused to be read.
    Failed,
}

/// One mounted file system being served.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) tree: Tree,
    pub(super) prefetcher: Prefetcher,
    pub(super) startup: Prefetch,
    device: Device,
    pub(super) agreement: Agreement,
    unanswered: Unanswered,
    pub(super) watch: Watch,
    reporter: Reporter,
    pub(super) lone_client: LoneClient,
    pub(super) announcer: Announcer,
    /// Directories of which names were looked up lately: see [`HUGE_LISTING`].
    looked_up_in: Vec<AtomicU64>,
}

/// A slot with its number, which is that of its thread's place in the watch.
pub(super) type Place = (usize, RequestSlot);

/// The reply under construction; one a thread, used again and again.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// Header and content.
    bytes: Vec<u8>,
    /// Content that goes out from where it lies.
    pieces: Vec<Piece>,
    /// The plain pieces' bytes, one after the other; longer than they are, so that it need not be cleared.
    plain: Vec<u8>,
}

impl Reply {
    /// Reads the plain pieces.
    fn fill_plain(&mut self, image: &Filesystem) -> Result<(), ReadError> {
        let mut at = 0;
        for piece in &self.pieces {
            if let Piece::Plain { position, length } = piece {
                let end = at + length;
                if self.plain.len() < end {
                    self.plain.resize(end, 0);
                }
                image.read_plain(*position, self.plain.get_mut(at..end).unwrap_or_default())?;
                at = end;
            }
        }
        Ok(())
    }
}

impl Session {
    /// A session of `threads` serving threads.
    pub(super) fn new(
        tree: Tree,
        startup: Startup,
        device: Device,
        agreement: Agreement,
        unanswered: Unanswered,
        threads: usize,
        reporter: Reporter,
    ) -> Session {
        let prefetcher = Prefetcher::new(tree.image().superblock().block_size);
        Session {
            tree,
            prefetcher,
            startup: Prefetch::new(startup),
            device,
            agreement,
            unanswered,
            watch: Watch::new(threads),
            reporter,
            lone_client: LoneClient::new(),
            announcer: Announcer::closed(),
            looked_up_in: (0..DIRECTORIES_REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Answers what a predecessor had taken. All of it is watched from the first moment on: any may have to be aborted
    /// while another one waits.
    pub(super) fn answer_left_over<'a>(&self, places: impl Iterator<Item = &'a Place> + Clone) {
        let left_over = || {
            places.clone().filter_map(|(number, slot)| slot.unanswered().map(|request| (*number, request)))
        };
        for (number, request) in left_over() {
            if let Some((header, _)) = protocol::parse(request) {
                self.watch.begin(number, &header);
            }
        }
        let mut reply = Reply::default();
        for (number, request) in left_over() {
            self.answer(number, request, true, &mut reply);
        }
    }

    /// One thread's life. A panic outside of a request ends the whole server: a thread lost quietly would take its
    /// request with it, and the asker would wait for ever.
    pub(super) fn serve_to_the_end(&self, place: Place) -> Over {
        catch_unwind(AssertUnwindSafe(|| self.serve(place))).unwrap_or(Over::Failed)
    }

    /// Says whether the kernel sends again what it waits for.
    pub(super) fn ask_to_resend(&self) -> bool {
        let mut message = Vec::new();
        protocol::put_header(&mut message, NOTIFY_RESEND, 0);
        protocol::finish_header(&mut message, 0);
        self.device.write(&[IoSlice::new(&message)]).is_ok()
    }

    /// One thread's loop.
    fn serve(&self, (number, mut slot): Place) -> Over {
        let mut reply = Reply::default();
        let mut seat = Seat::new();
        loop {
            slot.clear();
            seat.follow(&self.lone_client);
            match self.device.read(slot.buffer()) {
                Ok(length) => self.answer(number, slot.filled(length), false, &mut reply),
                // ENOENT: the request was taken back while it was being read.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => {}
                Err(Errno::ENODEV) => return Over::Unmounted,
                Err(_) => return Over::Failed,
            }
        }
    }

    /// Answers one request, at a place in the watch. A panic on the way is a bug of ours, which costs that request an
    /// `EIO` and nobody else anything.
    fn answer(&self, place: usize, request: &[u8], is_left_over: bool, reply: &mut Reply) {
        let Some((header, operation)) = protocol::parse(request) else { return };
        match operation {
            Operation::Silent => return,
            // Asked for ahead, or long enough for the client to go on elsewhere meanwhile.
            Operation::Read { size, .. } if size > SHORT_READ => self.lone_client.forget(),
            Operation::Read { .. } => self.lone_client.note_read(header.asker),
            _ => self.lone_client.note(header.asker),
        }
        self.watch.begin(place, &header);
        let is_left_over = is_left_over || header.unique & UNIQUE_RESEND != 0;
        reply.bytes.clear();
        reply.pieces.clear();
        protocol::put_header(&mut reply.bytes, 0, header.unique);
        let outcome = if is_left_over && self.unanswered == Unanswered::Refuse {
            Err(Errno::EIO)
        } else {
            catch_unwind(AssertUnwindSafe(|| self.handle(&header, operation, reply)))
                .unwrap_or(Err(Errno::EIO))
        };
        // What spoils an entry of a listing is told to whoever asks for that entry.
        if let Some(error) = trouble::noted()
            && outcome.is_err()
        {
            self.reporter.report(header.asker, &error);
        }
        let sent = match outcome {
            Ok(()) => self.send(reply),
            Err(errno) => self.send_error(header.unique, errno, reply),
        };
        // ENOENT: the asker has gone. Anything else but an unmounted file system means that the kernel did not take
        // the reply, and an asker without one would wait for ever.
        if !matches!(sent, Ok(()) | Err(Errno::ENOENT | Errno::ENODEV)) {
            let _ = self.send_error(header.unique, Errno::EIO, reply);
        }
        self.watch.end(place);
        reply.pieces.clear();
        reply.bytes.shrink_to(LISTING_BYTES);
        reply.plain.truncate(LISTING_BYTES);
        reply.plain.shrink_to(LISTING_BYTES);
    }

    /// Sends header, content and pieces with one call, each from where it lies.
    fn send(&self, reply: &mut Reply) -> Result<(), Errno> {
        let following = reply.pieces.iter().map(Piece::length).sum();
        protocol::finish_header(&mut reply.bytes, following);
        let mut parts = vec![IoSlice::new(&reply.bytes)];
        let mut plain = reply.plain.as_slice();
        for piece in &reply.pieces {
            match piece {
                Piece::Data { block, start, length } => {
                    let bytes = block.get(*start..).and_then(|rest| rest.get(..*length)).ok_or(Errno::EIO)?;
                    parts.push(IoSlice::new(bytes));
                }
                Piece::Plain { length, .. } => {
                    let (bytes, rest) = plain.split_at_checked(*length).ok_or(Errno::EIO)?;
                    parts.push(IoSlice::new(bytes));
                    plain = rest;
                }
                Piece::Zero(length) => {
                    let mut left = *length;
                    while left > 0 {
                        let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
                        parts.push(IoSlice::new(zeros));
                        left -= zeros.len();
                    }
                }
            }
        }
        self.device.write(&parts)
    }

    pub(super) fn send_error(&self, unique: u64, errno: Errno, reply: &mut Reply) -> Result<(), Errno> {
        reply.bytes.clear();
        reply.pieces.clear();
        protocol::put_header(&mut reply.bytes, -(errno as i32), unique);
        self.send(reply)
    }

    /// Puts the reply to one request together, or says what is wrong with it.
    fn handle(&self, header: &Header, operation: Operation<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let node = || self.tree.node(header.node);
        match operation {
            Operation::Lookup { name } => self.look_up(header.node, name, reply),
            Operation::GetAttr => {
                protocol::put_attributes_reply(&mut reply.bytes, &self.tree.attributes(node()?)?);
                Ok(())
            }
            Operation::ReadLink => self.read_link(node()?, reply),
            Operation::Read { offset, size } => self.read(node()?, offset, size, reply),
            Operation::ReadDir { offset, size, plus } => self.list(header.node, (offset, size), plus, reply),
            Operation::GetXattr { name, size } => self.xattr(node()?, name, size, reply),
            Operation::ListXattr { size } => self.list_xattrs(node()?, size, reply),
            Operation::StatFs => self.statfs(reply),
            Operation::Open if self.agreement.has(init::NO_OPEN_SUPPORT) => Err(Errno::ENOSYS),
            Operation::OpenDir if self.agreement.has(init::NO_OPENDIR_SUPPORT) => Err(Errno::ENOSYS),
            Operation::Open => {
                protocol::put_open(&mut reply.bytes, false);
                Ok(())
            }
            Operation::OpenDir => {
                protocol::put_open(&mut reply.bytes, true);
                Ok(())
            }
            Operation::Done | Operation::Silent => Ok(()),
            Operation::Change => Err(Errno::EROFS),
            Operation::Init(kernel) => self.initialise(&kernel, reply),
            Operation::Unsupported => Err(Errno::ENOSYS),
        }
    }

    /// A kernel of a later major version sends INIT again after this reply, with ours.
    fn initialise(&self, kernel: &Init, reply: &mut Reply) -> Result<(), Errno> {
        if kernel.major < protocol::MAJOR {
            return Err(Errno::EPROTO);
        }
        protocol::put_init(&mut reply.bytes, kernel, self.agreement.agree(kernel.flags));
        Ok(())
    }

    fn look_up(&self, directory: u64, name: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        match self.tree.lookup(self.tree.node(directory)?, name)? {
            Some((id, attributes)) => {
                if attributes.mode & libc::S_IFMT == libc::S_IFREG {
                    self.announcer.looked_up(id);
                }
                if let Some(place) = self.looked_up_in(directory) {
                    place.store(directory, Ordering::Relaxed);
                }
                protocol::put_entry(&mut reply.bytes, id, &attributes);
            }
            None => protocol::put_negative_entry(&mut reply.bytes),
        }
        Ok(())
    }

    /// Where to remember that names of a directory are looked up.
    fn looked_up_in(&self, directory: u64) -> Option<&AtomicU64> {
        self.looked_up_in.get(usize::try_from(directory % DIRECTORIES_REMEMBERED).unwrap_or(0))
    }

    /// Whether somebody wants to know more of this directory's entries than their names.
    fn is_looked_up_in(&self, directory: u64) -> bool {
        self.looked_up_in(directory).is_some_and(|place| place.load(Ordering::Relaxed) == directory)
    }

    fn read_link(&self, node: Node<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let target = self.tree.link_target(node)?;
        if target.len() > TARGET_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        reply.bytes.extend_from_slice(&target);
        Ok(())
    }

    fn read(&self, node: Node<'_>, offset: u64, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        let length = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        match node {
            Node::Image(reference) => {
                let open = || file_layout(self.tree.inode(reference)?.kind);
                let range = (offset, u64::from(size));
                let (layout, in_order) = self.prefetcher.note_read(&self.tree, reference, range, open)?;
                let image = self.tree.image();
                let pieces = if in_order {
                    image.read_once(&layout, offset, length)
                } else {
                    image.read(&layout, offset, length)
                };
                reply.pieces = pieces.map_err(unreadable)?;
                reply.fill_plain(image).map_err(unreadable)?;
            }
            Node::Graft(_, graft::Node { kind: NodeKind::File { content, .. }, .. }) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let length = length.min(content.len() - start);
                reply.pieces.push(Piece::Data { block: Arc::clone(content), start, length });
            }
            Node::Graft(..) => return Err(Errno::EISDIR),
        }
        Ok(())
    }

    fn list(&self, id: u64, (offset, size): (u64, u32), plus: bool, reply: &mut Reply) -> Result<(), Errno> {
        let directory = self.tree.node(id)?;
        let size = usize::try_from(size).unwrap_or(LISTING_BYTES).min(LISTING_BYTES);
        let limit = reply.bytes.len() + size;
        let is_huge = plus && self.tree.attributes(directory)?.size > HUGE_LISTING;
        let with_attributes = !is_huge || self.is_looked_up_in(id);
        self.tree.list(directory, offset, &mut |offer: Offer<'_>| {
            let found = plus.then(|| with_attributes.then(|| self.tree.offered(&offer)).flatten());
            if protocol::put_listed(&mut reply.bytes, limit, &offer.entry, found) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
    }

    fn xattr(&self, node: Node<'_>, name: &[u8], size: u32, reply: &mut Reply) -> Result<(), Errno> {
        if !self.tree.image().has_xattrs() {
            return Err(Errno::ENOSYS);
        }
        let all = self.tree.xattrs(node)?;
        let (_, value) = all.iter().find(|(known, _)| known == name).ok_or(Errno::ENODATA)?;
        put_sized(value, size, reply)
    }

    fn list_xattrs(&self, node: Node<'_>, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        if !self.tree.image().has_xattrs() {
            return Err(Errno::ENOSYS);
        }
        let mut names = Vec::new();
        for (name, _) in self.tree.xattrs(node)? {
            names.extend_from_slice(&name);
            names.push(0);
        }
        put_sized(&names, size, reply)
    }

    fn statfs(&self, reply: &mut Reply) -> Result<(), Errno> {
        let superblock = self.tree.image().superblock();
        let blocks = superblock.bytes_used.div_ceil(u64::from(superblock.block_size.max(1)));
        let inodes = u64::from(superblock.inode_count);
        protocol::put_statfs(&mut reply.bytes, blocks, superblock.block_size, inodes);
        Ok(())
    }
}

fn file_layout(kind: InodeKind) -> Result<FileLayout, Errno> {
    match kind {
        InodeKind::File(layout) => Ok(layout),
        InodeKind::Directory(_) => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

/// An xattr value or list, or how long it is when the caller has no room at all.
fn put_sized(value: &[u8], size: u32, reply: &mut Reply) -> Result<(), Errno> {
    let length = u32::try_from(value.len()).map_err(|_| Errno::E2BIG)?;
    if size == 0 {
        protocol::put_xattr_size(&mut reply.bytes, length);
    } else if length > size {
        return Err(Errno::ERANGE);
    } else {
        reply.bytes.extend_from_slice(value);
    }
    Ok(())
}
