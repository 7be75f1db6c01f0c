//! The keeper: a process that only holds `/dev/fuse` and starts a server, again and again should it die.
//!
//! As long as somebody holds the device, a dead server is not noticed: askers wait. What the dead one had taken from
//! the kernel and not answered lies in memory shared with its successor ([`RequestSlots`]); kernels since 6.9 can
//! also be asked to send it again.

use std::convert::Infallible;
use std::io::PipeReader;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::AtEnd;
use super::ahead::{self, Announcer};
use super::crew;
use super::launch::Launch;
use super::session::{Agreement, Over, Session, Unanswered};
use super::startup::Startup;
use super::tree::Tree;
use super::trouble::Reporter;
use super::watch::RELIEF_MAX;
use crate::host::containers::{KEEPER_NAME, SERVER_NAME, keeper_title};
use crate::mount::graft::Grafts;
use crate::mount::node_cache::{self, Maker};
use crate::squashfs::reader::Filesystem;
use crate::sys::fuse::{Device, RequestSlots};
use crate::sys::handover::Taker;
use crate::sys::notice::StandardError;
use crate::sys::process::{self, Ended, Fork};
use crate::sys::signal::{self, Taken};
use crate::sys::{self, affinity, namespace, title};

/// A server that lived this long was fine: what is counted against it begins anew.
const HEALTHY: Duration = Duration::from_secs(1);
/// How long to leave the CPUs to the launch and its server, whose death is not noticed meanwhile.
const LAUNCH_MAX: Duration = Duration::from_millis(5);
/// Longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Crashes in a row after which unanswered requests get `EIO`: one of them is what kills servers.
const CRASHES_TO_REFUSE: u32 = 3;
/// Crashes in a row after which there is no use in going on.
const CRASHES_TO_GIVE_UP: u32 = 20;
/// How long to try when no process can be made: half a minute.
const FORK_TRIES: u32 = 300;
const FORK_PAUSE: Duration = Duration::from_millis(100);
/// Exit status of a server or keeper that saw the file system go.
const UNMOUNTED: i32 = 0;
/// Exit status of one that could not go on.
const FAILED: i32 = 1;
/// Heaps for the server's threads to share, so that memory one of them frees serves the others.
const HEAPS: i32 = 2;
/// Bytes by which they grow: a block of 128 KiB and more in a system call less.
const HEAP_STEP: i32 = 1 << 20;

/// All that keeper and server need.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) image: Filesystem,
    pub(super) grafts: Grafts,
    pub(super) startup: Startup,
    pub(super) maker: Option<Maker>,
    pub(super) fuse: OwnedFd,
    /// The launcher's pipe.
    pub(super) ready: PipeReader,
    /// Gives the mount to hold.
    pub(super) taker: Taker,
    pub(super) threads: usize,
    /// Whether files that the launcher looks up are stored in the page cache.
    pub(super) is_ahead: bool,
    /// INIT flags that are not to be used although the kernel offers them.
    pub(super) masked: u64,
    /// Where the launcher is.
    pub(super) cpu: Option<usize>,
    pub(super) at_end: AtEnd,
}

impl Service {
    /// The launcher's part once there is a keeper: closes what is open. The memory is the keeper's too by now.
    pub(super) fn leave(self) {
        self.image.leave();
        std::mem::forget(self.grafts);
    }
}

/// What is left to do at the end: for the server, and again for the keeper, should the server be killed before.
static AT_END: Mutex<Option<AtEnd>> = Mutex::new(None);

/// Lives as the keeper until the file system is unmounted.
pub(super) fn run(mut service: Service) -> Infallible {
    let at_end = std::mem::take(&mut service.at_end);
    let held = at_end.held;
    *AT_END.lock().unwrap_or_else(PoisonError::into_inner) = Some(at_end);
    let status = match keep(service, held) {
        Ok(()) => UNMOUNTED,
        Err(_) => FAILED,
    };
    process::yield_to_all();
    finish();
    process::exit_now(status)
}

/// Does what is left to do, once a process: whoever comes second, in another thread that sees the end, waits for the first.
fn finish() {
    let mut at_end = AT_END.lock().unwrap_or_else(PoisonError::into_inner);
    at_end.take().unwrap_or_default().run();
}

fn keep(service: Service, held: Option<RawFd>) -> Result<(), sys::Error> {
    let Service {
        mut image,
        grafts,
        startup,
        maker,
        fuse,
        ready,
        taker,
        threads,
        is_ahead,
        masked,
        cpu,
        at_end: _,
    } = service;
    image.be_patient();
    let reporter = Reporter::new(
        sys::file::path_of(image.file()).unwrap_or_default(),
        // Before it becomes /dev/null.
        StandardError::own(),
    );
    let tree = Tree::new(image, grafts);
    let device = Device::new(fuse);
    let own = [device.raw(), ready.as_raw_fd(), taker.raw()].into_iter();
    let of_image = node_cache::descriptors(tree.image(), maker.as_ref());
    become_helper(&own.chain(of_image).chain(held).collect::<Vec<_>>())?;
    let slots = RequestSlots::new(threads, RELIEF_MAX)?;
    let agreement = Agreement::new(slots.word(), masked);
    let mut launch = Launch::new(ready, cpu);
    launch.leave_cpu();
    let mut record = Record::default();
    let mut taker = Some(taker);
    let (mut announced, mut announcer) = is_ahead.then(ahead::way).transpose()?.unzip();
    // The first server is there before there is a mount: the launcher's first look at it is not to wait for a fork.
    loop {
        let born = Instant::now();
        match fork_patiently()? {
            Fork::Child => {
                process::set_name(SERVER_NAME);
                process::shape_heaps(HEAPS, HEAP_STEP);
                std::panic::set_hook(Box::new(|_| {}));
                let unanswered = record.unanswered();
                drop(announced);
                let mut session =
                    Session::new(tree, startup, device, agreement, unanswered, threads, reporter);
                session.announcer = announcer.map_or_else(Announcer::closed, Announcer::to);
                crew::serve(session, slots.into_slots(), launch, taker, maker, end_server)
            }
            Fork::Parent(server) => {
                drop((announcer.take(), taker.take()));
                if let Some(announced) = announced.take() {
                    // The launcher waits for the server, which was born on this CPU.
                    std::thread::yield_now();
                    ahead::start(announced, &tree, &device, &launch);
                }
                launch.wait_a_while(LAUNCH_MAX);
                settle(&tree);
                launch.forget_cpu();
                // A binding that stays makes later servers slower, not wrong.
                let _ = affinity::reset();
                match process::wait_among(server)? {
                    Ended::Exited(UNMOUNTED) => return Ok(()),
                    ended => match record.note(ended, born.elapsed()) {
                        Some(pause) => std::thread::sleep(pause),
                        None => return Ok(()),
                    },
                }
            }
        }
    }
}

/// Forks, and again if there is no room for a process: whatever killed the last server may have filled the node.
fn fork_patiently() -> Result<Fork, sys::Error> {
    let mut tries = FORK_TRIES;
    loop {
        match process::fork() {
            Err(error) if tries > 0 && matches!(error.errno, Errno::EAGAIN | Errno::ENOMEM) => {
                tries -= 1;
                std::thread::sleep(FORK_PAUSE);
            }
            forked => return forked,
        }
    }
}

fn end_server(over: Over) -> ! {
    process::yield_to_all();
    // Now: what the kernel still has to do of the mount may take a second, and a batch system kills what it finds after a job.
    if over == Over::Unmounted {
        finish();
    }
    process::exit_now(match over {
        Over::Unmounted => UNMOUNTED,
        Over::Failed => FAILED,
    })
}

/// Lets go of everything that belongs to the process this one was forked from: its directory, descriptors, terminal,
/// signals, CPU binding. The launcher waits for it: what can wait does [`settle`].
fn become_helper(keep: &[i32]) -> Result<(), sys::Error> {
    process::set_name(KEEPER_NAME);
    let _ = Taken::all()?;
    nix::unistd::chdir("/").map_err(|errno| sys::Error::new("chdir(\"/\")", errno))?;
    process::null_standard_streams()?;
    process::close_all_but(keep);
    process::set_undumpable()?;
    // A binding that stays makes the server slower, not wrong.
    let _ = affinity::reset();
    Ok(())
}

/// What a keeper and a server do once nobody waits for them.
///
/// Signals are held back until then, and ignored from then on. Lets `ps`, and 'hpcrun ps', tell whom this serves with what;
/// also that nobody who kills a job by its command line (`pkill -f`) means us. Only a courtesy: without it all works.
pub(super) fn settle(tree: &Tree) {
    let _ = signal::ignore_all();
    if let Ok(user_namespace) = namespace::own_user_namespace() {
        let image = sys::path::name_of(tree.image().file()).unwrap_or_default();
        let _ = title::set(&keeper_title(user_namespace, &image));
    }
}

/// How servers have ended of late.
#[derive(Debug, Default)]
struct Record {
    /// Deaths in a row, each within a second.
    deaths: u32,
    /// Of these, the ones by a fault of their own.
    crashes: u32,
}

impl Record {
    /// Notes the end of a server after `life`; gives the pause before the next one, or `None` if there is to be none.
    ///
    /// SIGKILL comes from outside (the OOM killer, a person), so it is never held against the requests in flight.
    fn note(&mut self, ended: Ended, life: Duration) -> Option<Duration> {
        if life >= HEALTHY {
            *self = Record::default();
        }
        self.deaths = self.deaths.saturating_add(1);
        if ended != Ended::Killed(libc::SIGKILL) {
            self.crashes = self.crashes.saturating_add(1);
        }
        if self.crashes >= CRASHES_TO_GIVE_UP {
            return None;
        }
        // The first two restarts are immediate, then 1 ms, 2 ms, 4 ms ...
        let doublings = self.deaths.saturating_sub(3).min(10);
        let pause = if self.deaths < 3 { Duration::ZERO } else { Duration::from_millis(1 << doublings) };
        Some(pause.min(PAUSE_MAX))
    }

    fn unanswered(&self) -> Unanswered {
        if self.crashes >= CRASHES_TO_REFUSE { Unanswered::Refuse } else { Unanswered::Serve }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YOUNG: Duration = Duration::from_millis(5);
    const KILLED: Ended = Ended::Killed(libc::SIGKILL);
    const CRASHED: Ended = Ended::Killed(libc::SIGSEGV);

    #[test]
    fn kills_are_always_survived_and_never_blamed_on_requests() {
        let mut record = Record::default();
        for _ in 0..1000 {
            assert!(record.note(KILLED, YOUNG).is_some_and(|pause| pause <= PAUSE_MAX));
            assert_eq!(record.unanswered(), Unanswered::Serve);
        }
        assert_eq!(record.note(KILLED, HEALTHY), Some(Duration::ZERO));
    }

    #[test]
    fn a_request_that_crashes_servers_is_refused_in_the_end() {
        let mut record = Record::default();
        let mut outcomes = Vec::new();
        while record.note(CRASHED, YOUNG).is_some() {
            outcomes.push(record.unanswered());
        }
        assert_eq!(outcomes.len(), 19);
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == Unanswered::Serve).count(), 2);
    }

    #[test]
    fn a_healthy_life_clears_the_record() {
        let mut record = Record::default();
        for _ in 0..100 {
            assert_eq!(record.note(CRASHED, HEALTHY), Some(Duration::ZERO));
            assert_eq!(record.unanswered(), Unanswered::Serve);
        }
    }
}
