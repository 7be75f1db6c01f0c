//! The `/dev/fuse` device, and the memory that requests are read into.
#![expect(unsafe_code, reason = "memory shared between processes is a raw mapping")]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;

use super::Error;

/// Bytes of a request buffer; the kernel refuses shorter ones (`FUSE_MIN_READ_BUFFER`).
pub const REQUEST_BYTES: usize = 8192;
/// Bytes of the smallest page.
const PAGE_BYTES: usize = 4096;
/// Where a request's header holds its number.
const UNIQUE: std::ops::Range<usize> = 8..16;
/// Bytes behind the buffers, for [`RequestSlots::word`]; as many as a buffer, which keeps everything aligned.
const WORD_BYTES: usize = REQUEST_BYTES;

/// Opens `/dev/fuse`. Call it inside the user namespace that will mount: the kernel compares the two.
pub fn open_device() -> Result<OwnedFd, Error> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map(OwnedFd::from)
        .map_err(|error| Error::from_io("open(\"/dev/fuse\", RDWR)", &error))
}

/// The device of one mount, shared by the threads that serve it.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Serves the connection behind this descriptor.
    pub fn new(fd: OwnedFd) -> Device {
        Device(File::from(fd))
    }

    /// Another descriptor number is not made: this is the one to keep when all others are closed.
    pub fn raw(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }

    /// Blocks until the kernel has a request. `ENODEV` says that the file system was unmounted.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        (&self.0).read(buffer).map_err(|error| errno(&error))
    }

    /// Sends one reply or notification, whose parts (1024 at most) the kernel takes as one message.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        (&self.0).write_vectored(parts).map(drop).map_err(|error| errno(&error))
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Request buffers in memory that outlives the process reading into them: what a killed server had taken from the
/// kernel and not answered lies there for its successor.
#[derive(Debug)]
pub struct RequestSlots {
    base: NonNull<u8>,
    count: usize,
}

/// One request buffer, used by one thread.
#[derive(Debug)]
pub struct RequestSlot(&'static mut [u8]);

impl RequestSlots {
    /// Maps `count` empty slots, shared with every process forked from now on, and `reserve` more, whose memory is there
    /// only when they are used: [`RequestSlot::populate`] those first.
    pub fn new(count: usize, reserve: usize) -> Result<RequestSlots, Error> {
        let all = count.saturating_add(reserve);
        let length = all.saturating_mul(REQUEST_BYTES).saturating_add(WORD_BYTES);
        // SAFETY: a new anonymous mapping touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => {
                // SAFETY: the mapping is that long and nobody else knows of it yet.
                populate(unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), count * REQUEST_BYTES) });
                Ok(RequestSlots { base, count: all })
            }
            _ => Err(Error::last(format!("mmap({length}, SHARED|ANONYMOUS)"))),
        }
    }

    /// A number in the same memory, 0 at first, that all processes share.
    pub fn word(&self) -> &'static AtomicU64 {
        // SAFETY: `new` mapped WORD_BYTES bytes behind the buffers, zeroed and aligned to a page; they are never
        // unmapped, and used in no other way.
        unsafe { &*self.base.add(self.count * REQUEST_BYTES).as_ptr().cast::<AtomicU64>() }
    }

    /// The slots, for the process that uses them from now on. Of the processes that share the mapping only one may
    /// be alive and past this call.
    pub fn into_slots(self) -> Vec<RequestSlot> {
        (0..self.count)
            .map(|index| {
                // SAFETY: the mapping holds `count` buffers, is never unmapped, and each buffer is handed out once
                // because `self` is consumed. The other process that has the mapping, the keeper, never looks into
                // it, and the previous user of the slots is dead.
                RequestSlot(unsafe {
                    std::slice::from_raw_parts_mut(
                        self.base.add(index * REQUEST_BYTES).as_ptr(),
                        REQUEST_BYTES,
                    )
                })
            })
            .collect()
    }
}

/// Makes sure that the pages of `memory` are there: a read(2) that has to fault one in while its process is being
/// killed would lose the request.
fn populate(memory: &mut [u8]) {
    for page in memory.chunks_mut(PAGE_BYTES) {
        if let Some(first) = page.first_mut() {
            let value = std::hint::black_box(*first);
            // SAFETY: one byte, borrowed for writing. Volatile, because writing back what is there is no work to a compiler.
            unsafe { std::ptr::write_volatile(first, value) };
        }
    }
}

impl RequestSlot {
    /// Makes sure that the slot's memory is there, which that of a slot in reserve need not be.
    pub fn populate(&mut self) {
        populate(self.0);
    }

    /// Marks the slot as holding no unanswered request.
    pub fn clear(&mut self) {
        if let Some(unique) = self.0.get_mut(UNIQUE) {
            unique.fill(0);
        }
    }

    /// The buffer to read into; [`RequestSlot::clear`] first.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.0
    }

    /// The first `length` bytes.
    pub fn filled(&self, length: usize) -> &[u8] {
        self.0.get(..length).unwrap_or(self.0)
    }

    /// The request that was taken from the kernel into this slot and perhaps not answered.
    pub fn unanswered(&self) -> Option<&[u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let unique = rest.get(UNIQUE.start - 4..UNIQUE.end - 4)?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        if unique.iter().all(|byte| *byte == 0) { None } else { self.0.get(..length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Ended, Fork, exit_now, fork, wait};

    #[test]
    fn a_successor_finds_the_unanswered_request() {
        let slots = RequestSlots::new(2, 1).expect("slots");
        match fork().expect("fork") {
            Fork::Child => {
                let mut slots = slots.into_slots();
                for (slot, unique) in slots.iter_mut().zip([7u64, 0, 9]) {
                    slot.buffer()[..4].copy_from_slice(&40u32.to_ne_bytes());
                    slot.buffer()[UNIQUE].copy_from_slice(&unique.to_ne_bytes());
                }
                slots[2].clear();
                exit_now(0);
            }
            Fork::Parent(pid) => assert_eq!(wait(pid), Ok(Ended::Exited(0))),
        }
        let slots = slots.into_slots();
        let found: Vec<_> = slots.iter().map(|slot| slot.unanswered().map(<[u8]>::len)).collect();
        assert_eq!(found, [Some(40), None, None]);
    }

    #[test]
    fn a_length_beyond_the_slot_is_no_request() {
        let mut slots = RequestSlots::new(1, 0).expect("slots").into_slots();
        slots[0].buffer()[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        slots[0].buffer()[UNIQUE].fill(1);
        assert_eq!(slots[0].unanswered(), None);
    }
}
