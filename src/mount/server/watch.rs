//! The watch: sees which requests a slow or hung store keeps waiting, so that nobody else waits with them.
//!
//! The kernel lets nobody go whose request a server has taken, not even a process that is being killed. So a thread looks
//! around a few times a second while requests are being worked on, and sleeps while none is:
//!
//! - whose asker is being killed or has gone is answered at once, whatever the store does;
//! - when every serving thread waits, another one begins to serve, up to [`RELIEF_MAX`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use super::protocol::Header;
use crate::sys::process;

/// Threads that serve while all others wait, at most.
pub(super) const RELIEF_MAX: usize = 16;
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);
/// A request that has been worked on for so many looks waits for the store.
const WAITING_LOOKS: u32 = 2;

/// What each serving thread is doing.
#[derive(Debug)]
pub(super) struct Watch {
    /// Those of the ordinary threads first, then those of the relief.
    places: Box<[Place]>,
    /// Counts the looks.
    now: AtomicU32,
    is_asleep: AtomicBool,
    watcher: OnceLock<Thread>,
}

/// The request that one thread works on.
#[derive(Debug, Default)]
struct Place {
    /// Its number; 0 for none.
    unique: AtomicU64,
    /// The thread that waits for the answer.
    asker: AtomicU32,
    /// When it was begun, in looks.
    since: AtomicU32,
}

/// A request that is being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Busy {
    unique: u64,
    asker: u32,
    looks: u32,
}

impl Place {
    /// The request of this place; none if there is none or it is changing just now. Numbers are never used twice, so that
    /// the asker read between two equal ones is the right one.
    fn busy(&self, now: u32) -> Option<Busy> {
        let unique = self.unique.load(Ordering::SeqCst);
        let asker = self.asker.load(Ordering::SeqCst);
        let since = self.since.load(Ordering::SeqCst);
        (unique != 0 && unique == self.unique.load(Ordering::SeqCst)).then_some(Busy {
            unique,
            asker,
            looks: now.wrapping_sub(since),
        })
    }
}

impl Watch {
    /// A watch over `threads` serving threads and their relief.
    pub(super) fn new(threads: usize) -> Watch {
        Watch {
            places: (0..threads.saturating_add(RELIEF_MAX)).map(|_| Place::default()).collect(),
            now: AtomicU32::new(0),
            is_asleep: AtomicBool::new(false),
            watcher: OnceLock::new(),
        }
    }

    /// The thread of `place` begins to work on a request.
    pub(super) fn begin(&self, place: usize, header: &Header) {
        let Some(place) = self.places.get(place) else { return };
        place.asker.store(header.asker, Ordering::Release);
        place.since.store(self.now.load(Ordering::Relaxed), Ordering::Release);
        // Ordered before the look at the sleeper, as in `sleep` the other way round: one of the two sees the other.
        place.unique.store(header.unique, Ordering::SeqCst);
        if self.is_asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// It has answered.
    pub(super) fn end(&self, place: usize) {
        if let Some(place) = self.places.get(place) {
            place.unique.store(0, Ordering::Release);
        }
    }

    #[cold]
    fn wake(&self) {
        if self.is_asleep.swap(false, Ordering::SeqCst)
            && let Some(watcher) = self.watcher.get()
        {
            watcher.unpark();
        }
    }

    /// Watches for ever: `abort` gets the number of a request whose asker is being killed or has gone, `relieve` starts one
    /// more thread.
    pub(super) fn keep(&self, abort: &mut dyn FnMut(u64), relieve: &mut dyn FnMut()) -> ! {
        let _ = self.watcher.set(std::thread::current());
        // The number last aborted in each place, to do that once.
        let mut aborted = vec![0; self.places.len()];
        let mut serving = self.places.len() - RELIEF_MAX;
        loop {
            self.sleep();
            let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            for (place, aborted) in self.places.iter().zip(&mut aborted) {
                if let Some(busy) = place.busy(now)
                    && busy.looks >= WAITING_LOOKS
                    && busy.unique != *aborted
                    && process::is_ending(busy.asker)
                {
                    abort(busy.unique);
                    *aborted = busy.unique;
                }
            }
            if serving < self.places.len() && self.all_wait(now, serving) {
                relieve();
                serving += 1;
            }
        }
    }

    /// Whether as many threads as there are have been waiting for a while.
    fn all_wait(&self, now: u32, serving: usize) -> bool {
        let waits = |place: &Place| place.busy(now).is_some_and(|busy| busy.looks >= WAITING_LOOKS);
        self.places.iter().filter(|place| waits(place)).count() >= serving
    }

    /// Until the next look; as long as nothing is being worked on, that is when the next request begins.
    fn sleep(&self) {
        std::thread::sleep(PERIOD);
        if self.is_idle() {
            self.is_asleep.store(true, Ordering::SeqCst);
            while self.is_idle() && self.is_asleep.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.is_asleep.store(false, Ordering::SeqCst);
            std::thread::sleep(PERIOD);
        }
    }

    fn is_idle(&self) -> bool {
        self.places.iter().all(|place| place.unique.load(Ordering::SeqCst) == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;

    /// A thread id that no process has: above the kernel's `PID_MAX_LIMIT`.
    const GONE: u32 = (1 << 22) + 1;

    #[derive(Debug, PartialEq)]
    enum Deed {
        Aborted(u64),
        Relieved,
    }

    fn watched(threads: usize) -> (Arc<Watch>, std::sync::mpsc::Receiver<Deed>) {
        let watch = Arc::new(Watch::new(threads));
        let (sender, deeds) = channel();
        let kept = Arc::clone(&watch);
        std::thread::spawn(move || {
            let relief = sender.clone();
            kept.keep(&mut |unique| drop(sender.send(Deed::Aborted(unique))), &mut || {
                drop(relief.send(Deed::Relieved));
            })
        });
        (watch, deeds)
    }

    fn header(unique: u64, asker: u32) -> Header {
        Header { unique, node: 1, asker }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn who_has_gone_is_answered_once_and_who_lives_is_not() {
        let (watch, deeds) = watched(3);
        watch.begin(0, &header(10, GONE));
        watch.begin(1, &header(12, std::process::id()));
        assert_eq!(deeds.recv_timeout(LONG), Ok(Deed::Aborted(10)));
        assert_eq!(deeds.recv_timeout(4 * PERIOD), Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn the_watch_wakes_up_for_a_request_after_idleness() {
        let (watch, deeds) = watched(2);
        for unique in [2, 4, 6] {
            assert_eq!(deeds.recv_timeout(3 * PERIOD), Err(RecvTimeoutError::Timeout));
            watch.begin(0, &header(unique, GONE));
            assert_eq!(deeds.recv_timeout(LONG), Ok(Deed::Aborted(unique)));
            watch.end(0);
        }
    }

    #[test]
    fn relief_comes_when_all_wait_and_ends_somewhere() {
        let own = std::process::id();
        let (watch, deeds) = watched(2);
        watch.begin(0, &header(2, own));
        assert_eq!(deeds.recv_timeout(4 * PERIOD), Err(RecvTimeoutError::Timeout), "one is free");
        watch.begin(1, &header(4, own));
        for place in 2..2 + RELIEF_MAX {
            assert_eq!(deeds.recv_timeout(LONG), Ok(Deed::Relieved));
            watch.begin(place, &header(100 + place as u64, own));
        }
        assert_eq!(deeds.recv_timeout(4 * PERIOD), Err(RecvTimeoutError::Timeout), "no more than that");
    }
}
