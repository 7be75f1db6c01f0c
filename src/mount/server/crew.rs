//! The threads of a server: which there are, when they begin, and on which CPU.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::hold::Hold;
use super::keeper;
use super::launch::Launch;
use super::protocol::init;
use super::session::{Over, Place, Reply, Session};
use super::watch::RELIEF_MAX;
use crate::mount::node_cache::Maker;
use crate::sys::affinity;
use crate::sys::fuse::RequestSlot;
use crate::sys::handover::Taker;

/// Stack of a serving thread, bytes: the codecs keep their state on the heap.
const STACK_BYTES: usize = 512 << 10;
/// How long after the launch one thread goes on serving alone: the job's own start is a chain of short requests too, and
/// a job that is over by then never needs the others.
const SETTLING: Duration = Duration::from_millis(25);
/// Threads that decompress ahead, at most.
const PREFETCH_THREADS: usize = 4;

/// Serves until the file system is unmounted, on one thread for each slot but the last [`RELIEF_MAX`]. What a
/// predecessor left unanswered comes first: through the kernel where it can send again, else from its slots.
///
/// Until the launch is over one thread serves, on the launcher's CPU: its requests come one by one.
pub(super) fn serve(
    session: Session,
    mut slots: Vec<RequestSlot>,
    launch: Launch,
    taker: Option<Taker>,
    maker: Option<Maker>,
    ended: fn(Over) -> !,
) -> ! {
    let session = Arc::new(session);
    if session.agreement.has(init::HAS_RESEND) && session.ask_to_resend() {
        slots.iter_mut().for_each(RequestSlot::clear);
    }
    let mut places: Vec<Place> = slots.into_iter().enumerate().collect();
    let mut relief = places.split_off(places.len().saturating_sub(RELIEF_MAX));
    let mut left_over: Vec<Place> = relief.extract_if(.., |(_, slot)| slot.unanswered().is_some()).collect();
    let mut watcher = Some(Watcher { session: Arc::clone(&session), relief, ended });
    if places.iter().chain(&left_over).any(|(_, slot)| slot.unanswered().is_some()) {
        // The store may hang still.
        watcher.take().map(|watcher| spawn(move || watcher.run()));
        session.answer_left_over(places.iter().chain(&left_over));
    }
    left_over.iter_mut().for_each(|(_, slot)| slot.clear());
    let mut places = places.into_iter();
    let own = places.next();
    let helper = Helper {
        session: Arc::clone(&session),
        launch: launch.clone(),
        taker,
        maker,
        places: places.collect(),
        watcher,
        first: affinity::thread_id(),
        ended,
    };
    if spawn(move || helper.run()) {
        launch.join_cpu();
    }
    if !launch.is_mounted() {
        ended(Over::Unmounted);
    }
    drop(launch);
    ended(own.map_or(Over::Failed, |place| session.serve_to_the_end(place)))
}

/// Starts all threads but the first, which begins to serve meanwhile.
struct Helper {
    session: Arc<Session>,
    launch: Launch,
    /// Of the first server: gives the mount to hold.
    taker: Option<Taker>,
    /// To be at work after the launch.
    maker: Option<Maker>,
    /// Of the other serving threads.
    places: Vec<Place>,
    /// None if it is at work already.
    watcher: Option<Watcher>,
    /// The first thread.
    first: i32,
    ended: fn(Over) -> !,
}

impl Helper {
    fn run(self) {
        let Helper { session, launch, taker, maker, places, watcher, first, ended } = self;
        watcher.map(|watcher| spawn(move || watcher.run()));
        for _ in 0..session.startup.threads() {
            let session = Arc::clone(&session);
            spawn(move || session.startup.work(&session.tree));
        }
        let hold = taker.and_then(|taker| Hold::take(&taker));
        launch.wait_for_end();
        session.announcer.close();
        drop(launch);
        let hold = match hold {
            Some(hold) => hold.for_a_while(SETTLING),
            None => {
                std::thread::sleep(SETTLING);
                None
            }
        };
        keeper::settle(&session.tree);
        // Threads have the affinity of the one that starts them.
        let _ = affinity::reset();
        let _ = affinity::reset_thread(first);
        for _ in 0..places.len().saturating_add(1).min(PREFETCH_THREADS) {
            let session = Arc::clone(&session);
            spawn(move || session.prefetcher.work(&session.tree));
        }
        if let Some(maker) = maker {
            let session = Arc::clone(&session);
            // A copy that cannot be made leaves everything as it is.
            spawn(move || drop(maker.make(session.tree.image())));
        }
        session.lone_client.forget();
        for place in places {
            let session = Arc::clone(&session);
            spawn(move || ended(session.serve_to_the_end(place)));
        }
        drop(session);
        if let Some(hold) = hold {
            hold.until_its_end();
        }
    }
}

/// Keeps the watch and, when all threads wait for the store, starts those that relieve them.
struct Watcher {
    session: Arc<Session>,
    relief: Vec<Place>,
    ended: fn(Over) -> !,
}

impl Watcher {
    fn run(self) -> ! {
        let Watcher { session, relief, ended } = self;
        let mut relief = relief.into_iter();
        let abort = &mut |unique| {
            // The thread that works on it will hear that the asker has gone.
            let _ = session.send_error(unique, Errno::EINTR, &mut Reply::default());
        };
        session.watch.keep(abort, &mut || {
            let Some((number, mut slot)) = relief.next() else { return };
            let session = Arc::clone(&session);
            spawn(move || {
                // The watcher was started while the launcher had a CPU of its own.
                let _ = affinity::reset();
                slot.populate();
                ended(session.serve_to_the_end((number, slot)))
            });
        })
    }
}

/// Starts a thread, or does without: a process limit must not end the service. Says which.
fn spawn(work: impl FnOnce() + Send + 'static) -> bool {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).is_ok()
}
