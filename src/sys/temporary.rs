//! A temporary file that has a name and goes when the process does, by the end of its scope or by a signal.
//!
//! Only file systems without `O_TMPFILE` need it, and the instant in which a finished file replaces another. What SIGKILL
//! or a crash leaves is found and removed by the next one in the same directory: whoever uses a temporary has it locked.

#![expect(unsafe_code, reason = "a signal handler")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Error, file, process};

/// Conversions of one process that may use a named temporary at once.
const SLOTS: usize = 64;

/// How names of temporaries begin.
const PREFIX: &str = ".hpcrun-";
/// How they end.
const SUFFIX: &str = ".partial";

/// The signals that end a program by default and that people and batch systems send.
const SIGNALS: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGXCPU];

/// What the handler unlinks. Entries are never freed, since it may run at any time.
static REGISTERED: [AtomicPtr<Doomed>; SLOTS] = [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS];

struct Doomed {
    directory: RawFd,
    name: CString,
}

/// A name in a directory that is unlinked on drop, and by SIGHUP, SIGINT, SIGTERM and SIGXCPU.
#[derive(Debug)]
pub struct Temporary {
    directory: OwnedFd,
    name: OsString,
    slot: Option<&'static AtomicPtr<Doomed>>,
}

/// Without a lock, this long untouched is abandoned, on whatever node it was made: a lock may be known to one node only.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
/// Where there are no locks, this long untouched is abandoned if its maker has gone.
const UNTOUCHED: Duration = Duration::from_secs(60 * 60);

impl Temporary {
    /// Removes what dead processes of this user have left in `directory`. What cannot be removed stays.
    pub fn sweep(directory: BorrowedFd<'_>) {
        for name in Temporary::abandoned(directory) {
            let _ = file::unlink(directory, &name);
        }
    }

    /// The names of what dead processes of this user have left in `directory`.
    pub fn abandoned(directory: BorrowedFd<'_>) -> Vec<OsString> {
        let here = format!("{PREFIX}{}-", node());
        let is_abandoned = |name: &OsString| {
            let bytes = name.as_bytes();
            bytes.starts_with(PREFIX.as_bytes())
                && bytes.ends_with(SUFFIX.as_bytes())
                && file::open_regular(directory, name)
                    .is_some_and(|file| is_abandoned(&file, bytes, bytes.starts_with(here.as_bytes())))
        };
        file::names(directory).into_iter().filter(is_abandoned).collect()
    }

    /// Calls `make` with fresh names, `.hpcrun-NODE-PID-N.partial`, until it makes something (gives `Some`).
    fn create<T>(
        directory: BorrowedFd<'_>,
        mut make: impl FnMut(&OsStr) -> Result<Option<T>, Error>,
    ) -> Result<(Temporary, T), Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = directory
            .try_clone_to_owned()
            .map_err(|error| Error::from_io("fcntl(directory, DUPFD_CLOEXEC)", &error))?;
        let mut temporary = Temporary { directory: own, name: OsString::new(), slot: None };
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from(format!("{PREFIX}{}-{}-{number}{SUFFIX}", node(), std::process::id()));
            // Registered before it exists: a signal in between unlinks nothing, after it the file.
            temporary.register(&name)?;
            if let Some(made) = make(&name)? {
                temporary.name = name;
                return Ok((temporary, made));
            }
            temporary.unregister();
        }
    }

    /// A new file with such a name.
    pub fn create_file(directory: BorrowedFd<'_>, mode: u32) -> Result<(Temporary, File), Error> {
        loop {
            let made = Temporary::create(directory, |name| file::create_new(directory, name, mode))?;
            // Another process may have swept it before it was locked.
            if hold(&made.1) {
                return Ok(made);
            }
        }
    }

    /// A new file with this name, which goes as all temporaries do; none if something has it. [`Temporary::sweep`] leaves it.
    pub fn create_named(
        directory: BorrowedFd<'_>,
        name: &OsStr,
        mode: u32,
    ) -> Result<Option<(Temporary, File)>, Error> {
        let own = directory
            .try_clone_to_owned()
            .map_err(|error| Error::from_io("fcntl(directory, DUPFD_CLOEXEC)", &error))?;
        let mut temporary = Temporary { directory: own, name: OsString::new(), slot: None };
        // Registered afterwards: before, a signal could unlink what has the name already.
        let Some(file) = file::create_new(directory, name, mode)? else { return Ok(None) };
        temporary.name = name.to_owned();
        temporary.register(name)?;
        Ok(Some((temporary, file)))
    }

    /// A new file without a name or, where the file system has no such files, with a temporary one.
    pub fn or_unnamed(directory: BorrowedFd<'_>, mode: u32) -> Result<(Option<Temporary>, File), Error> {
        match file::create_unnamed(directory, mode)? {
            Some(file) => Ok((None, file)),
            None => Temporary::create_file(directory, mode).map(|(temporary, file)| (Some(temporary), file)),
        }
    }

    /// Gives such a name to a file that has none: no call gives it one that is taken, a rename does.
    pub fn link(directory: BorrowedFd<'_>, unnamed: &File) -> Result<Temporary, Error> {
        hold(unnamed);
        let link = |name: &OsStr| Ok(file::link_unnamed(unnamed, directory, name)?.then_some(()));
        Temporary::create(directory, link).map(|(temporary, ())| temporary)
    }

    /// Renames it over whatever is called `name`.
    pub fn replace(mut self, name: &OsStr) -> Result<(), Error> {
        file::rename(self.directory.as_fd(), &self.name, name)?;
        self.forget();
        Ok(())
    }

    /// Renames it unless something is called `name`; then it is removed and the answer is false.
    pub fn publish(mut self, name: &OsStr) -> Result<bool, Error> {
        let published = file::rename_new(self.directory.as_fd(), &self.name, name)?;
        if published {
            self.forget();
        }
        Ok(published)
    }

    fn forget(&mut self) {
        self.unregister();
        self.name.clear();
    }

    fn register(&mut self, name: &OsStr) -> Result<(), Error> {
        install_handlers()?;
        let name = CString::new(name.as_bytes()).map_err(|_| Error::new("temporary name", Errno::EINVAL))?;
        let doomed = Box::into_raw(Box::new(Doomed { directory: self.directory.as_raw_fd(), name }));
        let claim = |slot: &&AtomicPtr<Doomed>| {
            slot.compare_exchange(ptr::null_mut(), doomed, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        self.slot = REGISTERED.iter().find(claim);
        self.slot.map(drop).ok_or_else(|| Error::new("temporary file", Errno::EMFILE))
    }

    fn unregister(&mut self) {
        if let Some(slot) = self.slot.take() {
            // The few bytes stay allocated: a handler on another thread may be reading them.
            slot.store(ptr::null_mut(), Ordering::SeqCst);
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // Nothing can be done about a failure, and the error that led here matters more.
            let _ = file::unlink(self.directory.as_fd(), &self.name);
        }
        self.unregister();
    }
}

/// Locks a file so that nobody takes it for abandoned; false if somebody did already. Where there are no locks, nobody
/// can tell, and all are left alone.
fn hold(file: &File) -> bool {
    let _ = file.try_lock();
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

/// Whether nobody is at work on it any more. Locks it on the way.
fn is_abandoned(file: &File, name: &[u8], made_here: bool) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
    if metadata.uid() != nix::unistd::geteuid().as_raw() || !(made_here || age > ABANDONED) {
        return false;
    }
    match file.try_lock() {
        Ok(()) => true,
        Err(std::fs::TryLockError::WouldBlock) => false,
        // No locks here. The process may be of another process namespace, so its absence alone says little.
        Err(std::fs::TryLockError::Error(_)) => {
            age > ABANDONED || (age > UNTOUCHED && maker(name).is_some_and(|pid| !process::exists(pid)))
        }
    }
}

/// The process that a temporary's name says.
fn maker(name: &[u8]) -> Option<i32> {
    let mut parts = std::str::from_utf8(name).ok()?.rsplit('-');
    parts.next()?;
    parts.next()?.parse().ok()
}

/// This node's name as a part of a file's name.
pub fn node() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').take(64).collect()
}

/// Handles those of [`SIGNALS`] that would end the process. Ignored ones (`nohup`) stay ignored.
fn install_handlers() -> Result<(), Error> {
    static INSTALL: Once = Once::new();
    let mut result = Ok(());
    INSTALL.call_once(|| {
        result = SIGNALS.into_iter().try_for_each(|signal| {
            let action =
                SigAction::new(SigHandler::Handler(unlink_and_die), SaFlags::SA_RESETHAND, SigSet::all());
            // SAFETY: `unlink_and_die` calls only async-signal-safe functions and touches only statics that are never
            // freed.
            let old = unsafe { sigaction(signal, &action) };
            let old = old.map_err(|errno| Error::new(format!("sigaction({signal})"), errno))?;
            if !matches!(old.handler(), SigHandler::SigDfl) {
                // SAFETY: puts back what was there a moment ago.
                unsafe { sigaction(signal, &old) }
                    .map_err(|errno| Error::new(format!("sigaction({signal})"), errno))?;
            }
            Ok(())
        });
    });
    result
}

/// Unlinks what is registered and ends the process by the same signal, as if it had not been handled.
extern "C" fn unlink_and_die(signal: libc::c_int) {
    for slot in &REGISTERED {
        let doomed = slot.load(Ordering::SeqCst);
        if !doomed.is_null() {
            // SAFETY: a pointer in a slot came from Box::into_raw and is never freed; unlinkat(2) is
            // async-signal-safe.
            unsafe { libc::unlinkat((*doomed).directory, (*doomed).name.as_ptr(), 0) };
        }
    }
    // SAFETY: raise(3) is async-signal-safe. SA_RESETHAND has restored the default action, which takes effect when this
    // handler returns and the signal is unblocked.
    unsafe { libc::raise(signal) };
}
