//! Serving a lone client on its own CPU.
//!
//! Who walks a tree or looks for names asks for one thing after the other, and each time waits for the answer. On one CPU
//! that is two switches between threads; between two CPUs it is two times waking one up, which takes two to ten times
//! as long (measured on a virtual machine: 14 us a request against 30 us, 80 us where the CPUs fall asleep). The kernel
//! does not know that its client waits, and wakes the server wherever a CPU is free.
//!
//! So serving threads follow a client that asks alone, for as long as it does. While several ask, or one reads long
//! stretches, which the kernel asks for ahead, they are where the kernel puts them.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::sys::affinity;

/// Requests in a row that make a client a lone one.
const LONE: u32 = 16;
/// Requests after which to look again where it is: a look costs as much as half a request.
const LOOK_AGAIN: u32 = 64;
/// No CPU.
const ANYWHERE: usize = usize::MAX;

/// Who asks, and where. All of it is a hint: threads that disagree for a moment are slower, not wrong.
#[derive(Debug)]
pub(super) struct LoneClient {
    /// The last who asked.
    client: AtomicU32,
    /// Requests of its in a row.
    streak: AtomicU32,
    /// Where serving threads should be.
    cpu: AtomicUsize,
}

/// Where one serving thread has put itself.
#[derive(Debug)]
pub(super) struct Seat(usize);

impl LoneClient {
    pub(super) fn new() -> LoneClient {
        LoneClient { client: AtomicU32::new(0), streak: AtomicU32::new(0), cpu: AtomicUsize::new(ANYWHERE) }
    }

    /// Notes a request whose client waits for the answer.
    pub(super) fn note(&self, client: u32) {
        if client == 0 || self.client.load(Ordering::Relaxed) != client {
            self.client.store(client, Ordering::Relaxed);
            self.forget();
            return;
        }
        let streak = self.streak.load(Ordering::Relaxed).wrapping_add(1);
        self.streak.store(streak, Ordering::Relaxed);
        if streak % LOOK_AGAIN == LONE {
            self.cpu.store(affinity::cpu_of_thread(client).unwrap_or(ANYWHERE), Ordering::Relaxed);
        }
    }

    /// Notes a short read, whose client may not wait for it: somebody else's ends the following.
    pub(super) fn note_read(&self, client: u32) {
        if self.client.load(Ordering::Relaxed) != client {
            self.forget();
        }
    }

    /// Nobody is followed until somebody has asked alone again.
    pub(super) fn forget(&self) {
        if self.streak.load(Ordering::Relaxed) != 0 || self.cpu.load(Ordering::Relaxed) != ANYWHERE {
            self.streak.store(0, Ordering::Relaxed);
            self.cpu.store(ANYWHERE, Ordering::Relaxed);
        }
    }
}

impl Seat {
    /// Of a thread that may run everywhere.
    pub(super) fn new() -> Seat {
        Seat(ANYWHERE)
    }

    /// Moves the calling thread to where the lone client is, if there is one, or lets it go from there.
    pub(super) fn follow(&mut self, lone: &LoneClient) {
        let cpu = lone.cpu.load(Ordering::Relaxed);
        if cpu == self.0 {
            return;
        }
        self.0 = cpu;
        // A thread that cannot be moved serves from where it is.
        let _ = if cpu == ANYWHERE { affinity::reset() } else { affinity::pin(cpu) };
    }
}
