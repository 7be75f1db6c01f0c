//! Enacts a launch plan: joins or makes the namespaces and the root, and becomes the job.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::hint::Hint;
use crate::launch::isolate;
use crate::launch::job::{self, Job};
use crate::launch::overlay_lock;
use crate::launch::plan::LaunchPlan;
use crate::launch::share::{self, Group, ShareError};
use crate::launch::warm_up::Start;
use crate::mount::Filesystem;
use crate::mount::enact::{self as mounts, MountError, Served};
use crate::mount::graft::Grafts;
use crate::mount::node_cache::{Cached, Maker, Unusable};
use crate::mount::server::{self, AtEnd, Launching, ServerOptions, Startup};
use crate::sys::namespace::{self, NamespaceIds, Namespaces};
use crate::sys::path::PathFd;
use crate::sys::privilege::{self, Privileges};
use crate::sys::{self, fuse};

/// What happens on the way to the job.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An op of the mount plan.
    Mount(mounts::Event<'a>),
    /// The namespaces of another rank are joined; no op is done.
    Joined {
        /// That rank's process.
        pid: i32,
    },
    /// The image is read from a copy on this node.
    Copy {
        /// The copy.
        path: &'a Path,
        /// Whether another user made it, so that all that is read is checked.
        is_checked: bool,
    },
    /// A copy of the image is made on this node while the job runs.
    Copying {
        /// The cache.
        directory: &'a Path,
    },
    /// There is no copy of the image on this node, and none is made.
    NoCopy {
        /// Why.
        cause: &'a Unusable,
    },
    /// A container is about to be made: after this the host is no more to be seen.
    Creating,
    /// The container that this process has made is complete; the program is executed next.
    Created {
        /// Whether other ranks may join it.
        is_shared: bool,
    },
    /// Ranks cannot share: this one goes on alone, and MPI inside a node may be slow or fail. Worth a warning.
    NotShared {
        /// Why.
        cause: &'a ShareError,
    },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Mount(event) => event.fmt(f),
            Event::Joined { pid } => write!(f, "join the namespaces of process {pid}"),
            Event::Copy { path, is_checked: false } => write!(f, "read the image from {}", path.display()),
            Event::Copy { path, is_checked: true } => {
                write!(f, "read the image from {}, checking all of it", path.display())
            }
            Event::Copying { directory } => {
                write!(f, "copy the image to {} while the job runs", directory.display())
            }
            Event::NoCopy { cause } => {
                write!(f, "no copy of the image on this node: {cause}")?;
                write_source(f, cause)
            }
            Event::Creating => f.write_str("make a container"),
            Event::Created { .. } => f.write_str("the container is complete"),
            Event::NotShared { cause } => {
                write!(f, "ranks do not share namespaces: {cause}")?;
                write_source(f, cause)
            }
        }
    }
}

fn write_source(f: &mut fmt::Formatter<'_>, error: &dyn std::error::Error) -> fmt::Result {
    error.source().map_or(Ok(()), |source| write!(f, ": {source}"))
}

/// Why the process did not become the job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnactError {
    /// hpcrun is installed with more rights than it wants.
    #[error("hpcrun was started with more rights than its caller has")]
    Elevated,
    /// The process has threads: a mistake of hpcrun.
    #[error("cannot create namespaces with {threads} threads")]
    Threads {
        /// How many.
        threads: usize,
    },
    /// The kernel takes no zero byte there.
    #[error("{what} holds a zero byte")]
    NulByte {
        /// Where.
        what: String,
    },
    /// The process cannot be looked at.
    #[error("cannot inspect the own process")]
    Inspect {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// No user namespace.
    #[error("cannot create a user namespace")]
    UserNamespace {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The directory of a writable overlay is another launch's.
    #[error("the overlay {} is in use by another launch", .path.display())]
    OverlayInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory of a writable overlay cannot be locked.
    #[error("cannot lock the overlay {}", .path.display())]
    OverlayLock {
        /// The directory.
        path: PathBuf,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// No process or IPC namespace.
    #[error("cannot isolate the job")]
    Isolate {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// No id map.
    #[error("cannot map user {uid} and group {gid}")]
    MapIds {
        /// The job's user id.
        uid: u32,
        /// The job's group id.
        gid: u32,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The image cannot be mounted without it.
    #[error("cannot open the FUSE device")]
    OpenFuse {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The image server did not start.
    #[error("cannot start the image server")]
    StartServer {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The new root could not be built.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Privilege could not be dropped.
    #[error("cannot drop privileges")]
    Privileges {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// Privilege was dropped, and yet the kernel says that some is left.
    #[error("privileges are left after dropping all: {held}")]
    PrivilegesLeft {
        /// What the kernel says.
        held: Privileges,
    },
    /// None of the working directories can be entered.
    #[error("cannot enter the working directory {}", .directory.display())]
    WorkingDirectory {
        /// The first choice.
        directory: PathBuf,
        /// The refusal of the first choice.
        source: sys::Error,
    },
    /// `SIGPIPE` could not be set back.
    #[error("cannot restore signals")]
    Signals {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// There is no such program: exit status 127.
    #[error("{} not found{}", .program.display(), searched_text(.searched.as_deref()))]
    NotFound {
        /// As the plan has it.
        program: OsString,
        /// For a bare name, the directories that it was looked for in, joined by `:`.
        searched: Option<String>,
    },
    /// The program is there and cannot be executed: exit status 126.
    #[error("cannot execute {}: {reason}", .program.display())]
    NotExecutable {
        /// The file.
        program: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// The kernel's refusal.
        source: sys::Error,
    },
}

fn searched_text(searched: Option<&str>) -> String {
    match searched {
        Some("") => " (there is no PATH to look in)".to_owned(),
        Some(directories) => format!(" in {directories}"),
        None => String::new(),
    }
}

impl EnactError {
    /// The image server, or what the launcher has to do with it, failed.
    pub(super) fn server(source: sys::Error) -> EnactError {
        EnactError::StartServer { source }
    }

    /// The exit status that says what happened, as env(1) and Docker have it: 126 not executable, 127 not found, 125
    /// anything else that kept the job from starting.
    pub fn exit_status(&self) -> u8 {
        match self {
            EnactError::NotExecutable { .. } => 126,
            EnactError::NotFound { .. } => 127,
            _ => 125,
        }
    }
}

/// Becomes the job of `plan`: same process, with the plan's root, no privilege, the plan's environment and everything
/// else as it was. Returns only if that fails; the process then is somewhere on the way and can only report and exit.
///
/// `images` are the files that the plan serves, in its order, `grafts` its additions to the root; neither is used if
/// another rank's namespaces are joined. `observer` hears what is done just before it is done. The caller has one
/// thread.
pub fn enact(
    plan: LaunchPlan,
    images: Vec<Filesystem>,
    grafts: Grafts,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Infallible, EnactError> {
    require_plain_process()?;
    let job = Job::prepare(&plan)?;
    let mut group = plan.share.as_ref().and_then(|key| heard(Group::open(key, plan.uid), observer));
    let (namespaces, launching) = enter(&plan, images, grafts, group.as_mut(), observer)?;
    let (is_joined, is_shared) = (group.as_ref().is_some_and(Group::is_joined), group.is_some());
    if let Some(group) = group {
        // Once it is registered another rank may come in, and read.
        launching.iter().try_for_each(Launching::end_storing).map_err(EnactError::server)?;
        heard(group.register(std::process::id().cast_signed(), namespaces), observer);
    }
    if let Some(umask) = plan.guise.umask {
        sys::process::set_umask(umask);
    }
    if !is_joined {
        observer(Event::Created { is_shared });
    }
    job.run(launching)
}

/// Enters the group's namespaces, or else new ones with a new root. Takes images and grafts in either case: nothing of
/// ours may be open any more when the job's paths are looked up.
fn enter(
    plan: &LaunchPlan,
    images: Vec<Filesystem>,
    grafts: Grafts,
    group: Option<&mut Group>,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<(NamespaceIds, Option<Launching>), EnactError> {
    match group.and_then(|group| join(group, observer)) {
        Some(namespaces) => Ok((namespaces, None)),
        None => create(plan, images, grafts, observer),
    }
}

/// The value, or none after telling the observer that ranks cannot share.
fn heard<T>(result: Result<T, ShareError>, observer: &mut dyn FnMut(Event<'_>)) -> Option<T> {
    result.inspect_err(|cause| observer(Event::NotShared { cause })).ok()
}

/// Joins the group's namespaces, if any of its members lives.
fn join(group: &mut Group, observer: &mut dyn FnMut(Event<'_>)) -> Option<NamespaceIds> {
    match heard(group.join(), observer)? {
        Some((pid, namespaces)) => {
            observer(Event::Joined { pid });
            Some(namespaces)
        }
        None => {
            group.sweep();
            None
        }
    }
}

/// Makes the namespaces and, in them, the root.
fn create(
    plan: &LaunchPlan,
    images: Vec<Filesystem>,
    grafts: Grafts,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<(NamespaceIds, Option<Launching>), EnactError> {
    let lock = overlay_lock::take(&plan.mount)?;
    observer(Event::Creating);
    let mut maker = find_copy(plan, images.first(), observer);
    let inspect = |source| EnactError::Inspect { source };
    // Opened while /proc is the host's: what the new root has there is not for us to trust.
    let process = PathFd::open_directory(Path::new("/proc/self")).map_err(inspect)?;
    namespace::unshare_user().map_err(|source| EnactError::UserNamespace { source })?;
    let (uid, gid) = (plan.uid, plan.gid);
    namespace::map_ids_as(&process, plan.ids_inside(), (uid, gid)).map_err(|source| EnactError::MapIds {
        uid,
        gid,
        source,
    })?;
    // Before the image is the server's.
    let start = images.first().filter(|image| is_stored_ahead(plan, image));
    let start = start.map(|image| Start::of(image, &job::paths(&plan.program, &plan.search)));
    // A premounted root has no server: the first one is then a data image's.
    let mut grafts = plan.mount.is_served().then_some(grafts);
    let mut served = Vec::with_capacity(images.len());
    for image in images {
        served.push(serve(plan, image, grafts.take(), maker.take(), lock)?);
    }
    let process = isolate::isolate(plan.guise.isolation, process)?;
    let launching = mounts::enact(&plan.mount, served, &mut |event| match event {
        mounts::Event::Served { root, launching } => warm_up(start.as_ref(), root, launching),
        event => observer(Event::Mount(event)),
    })?;
    Ok((Namespaces::of(&process).map_err(inspect)?.ids(), launching))
}

/// Whether what the job's start reads is to be in the page cache before the job asks for it. Nobody asks for it then: a trace
/// would not see it.
fn is_stored_ahead(plan: &LaunchPlan, root: &Filesystem) -> bool {
    plan.mount.is_served() && !root.is_watched()
}

/// From now on until the job begins, this process reads nothing of the image: files may be stored.
fn warm_up(start: Option<&Start>, root: &PathFd, launching: &Launching) {
    if let Some(start) = start
        && launching.let_store().is_ok()
    {
        start.look_up(root);
    }
}

/// Has the root's image read from a copy on this node, or gives who makes one. Before there is a user namespace, in which
/// nobody could tell any more whose files the copies are.
fn find_copy(
    plan: &LaunchPlan,
    root: Option<&Filesystem>,
    observer: &mut dyn FnMut(Event<'_>),
) -> Option<Maker> {
    let (wanted, root) = plan.node_cache.as_ref().zip(root)?;
    match wanted.find(plan.uid) {
        Ok(Cached::Copy(copy)) => {
            observer(Event::Copy { path: &copy.path, is_checked: copy.is_checked() });
            copy.give_to(root, &wanted.original);
            None
        }
        Ok(Cached::Missing(maker)) => {
            observer(Event::Copying { directory: &wanted.settings.directory });
            Some(maker)
        }
        Err(cause) => {
            observer(Event::NoCopy { cause: &cause });
            None
        }
    }
}

/// Starts the image server, which stays in the host's mount namespace: so the mount ends with the job's last process,
/// and the server with the mount.
///
/// `grafts` are the root's; another image has none.
fn serve(
    plan: &LaunchPlan,
    image: Filesystem,
    grafts: Option<Grafts>,
    maker: Option<Maker>,
    lock: Option<RawFd>,
) -> Result<Served, EnactError> {
    let device = fuse::open_device().map_err(|source| EnactError::OpenFuse { source })?;
    let startup = if grafts.is_some() { plan.startup.clone() } else { Startup::Nothing };
    let ahead = grafts.is_some() && is_stored_ahead(plan, &image);
    let options = ServerOptions { threads: plan.server_threads, startup, maker, ahead };
    let registry = plan.share.clone().filter(|_| grafts.is_some());
    let at_end = AtEnd::new(move || registry.iter().for_each(share::remove_abandoned));
    let at_end = at_end.holding(lock.filter(|_| grafts.is_some()));
    let (uid, gid) = plan.ids_inside();
    let mut grafts = grafts.unwrap_or_default();
    if plan.owns_image() {
        grafts.own_all(uid, gid);
    }
    let server = server::start_until(image, grafts, &device, options, at_end).map_err(EnactError::server)?;
    Ok(Served { fuse: device, server, uid, gid })
}

/// A setuid hpcrun would hand its rights to the image; threads make the kernel refuse user namespaces, with `EINVAL`.
pub(super) fn require_plain_process() -> Result<(), EnactError> {
    if privilege::is_elevated() {
        return Err(EnactError::Elevated);
    }
    match namespace::thread_count().map_err(|source| EnactError::Inspect { source })? {
        1 => Ok(()),
        threads => Err(EnactError::Threads { threads }),
    }
}

impl Hint for EnactError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            EnactError::Mount(error) => return error.hints(),
            EnactError::UserNamespace { source } => return user_namespace_hints(source.errno),
            EnactError::OpenFuse { source } => return fuse_hints(source.errno),
            EnactError::MapIds { .. } => {
                "hpcrun maps your own user and group id only, which every kernel since 3.19 allows; a security module \
                 may forbid it: run 'hpcrun doctor'"
            }
            EnactError::Elevated => {
                "hpcrun needs no privilege: an admin removes its setuid bit and file capabilities ('chmod ug-s', \
                 'setcap -r')"
            }
            EnactError::OverlayInUse { .. } => {
                "one launch at a time can write to an overlay; add ':ro' to read it, or give each its own directory"
            }
            EnactError::OverlayLock { .. } => "it must be a directory of yours on a file system with locks",
            EnactError::Isolate { .. } => "'sysctl user' shows the limits of namespaces on this node",
            EnactError::WorkingDirectory { .. } => "choose another one with --cwd, or bind it with --bind",
            EnactError::StartServer { source } if source.errno == Errno::EAGAIN => {
                "the limit of processes is too low; see 'ulimit -u'"
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

fn user_namespace_hints(errno: Errno) -> Vec<String> {
    let hint = match errno {
        Errno::EPERM | Errno::EACCES => {
            "this node forbids user namespaces to ordinary users: an admin allows them with 'sysctl \
             kernel.unprivileged_userns_clone=1' (Debian), an AppArmor profile for hpcrun or \
             kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); inside another container its seccomp profile \
             must allow unshare"
        }
        Errno::ENOSPC => {
            "the limit of user namespaces is reached, or 0 on this node: an admin raises it with 'sysctl \
             user.max_user_namespaces=63414' (RHEL, SLES)"
        }
        Errno::EUSERS => "user namespaces are nested too deep: the kernel allows 32 levels",
        Errno::ENOSYS | Errno::EINVAL => "this kernel has no user namespaces (CONFIG_USER_NS)",
        Errno::ENOMEM => "this node is out of memory",
        _ => return Vec::new(),
    };
    vec![hint.to_owned(), "run 'hpcrun doctor' to see what this node allows".to_owned()]
}

fn fuse_hints(errno: Errno) -> Vec<String> {
    let hint = match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
            "this node has not loaded FUSE: an admin runs 'modprobe fuse' (and names it in \
             /etc/modules-load.d to keep it); inside another container, pass the device to that (--device /dev/fuse)"
        }
        Errno::EACCES | Errno::EPERM => {
            "/dev/fuse is closed to you: an admin runs 'chmod 0666 /dev/fuse', as udev does by default"
        }
        _ => return Vec::new(),
    };
    vec![hint.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> sys::Error {
        sys::Error::new("call()", errno)
    }

    #[track_caller]
    fn check_hint(error: &EnactError, expected: &str) {
        let hints = error.hints().join("\n");
        assert!(hints.contains(expected), "{error}: {hints}");
        assert!(!hints.contains("  ") && !hints.ends_with('.'), "{hints}");
    }

    #[test]
    fn hints_name_the_remedy() {
        let userns = |errno| EnactError::UserNamespace { source: refused(errno) };
        check_hint(&userns(Errno::EPERM), "kernel.apparmor_restrict_unprivileged_userns");
        check_hint(&userns(Errno::EPERM), "kernel.unprivileged_userns_clone");
        check_hint(&userns(Errno::ENOSPC), "user.max_user_namespaces");
        let fuse = |errno| EnactError::OpenFuse { source: refused(errno) };
        check_hint(&fuse(Errno::ENOENT), "modprobe fuse");
        check_hint(&fuse(Errno::EACCES), "chmod 0666 /dev/fuse");
        check_hint(&EnactError::Elevated, "setcap -r");
    }

    #[test]
    fn exit_statuses_are_those_of_env() {
        let not_found = EnactError::NotFound { program: "x".into(), searched: Some("/bin".to_owned()) };
        assert_eq!((not_found.exit_status(), not_found.to_string().as_str()), (127, "x not found in /bin"));
        let not_executable = EnactError::NotExecutable {
            program: "/x".into(),
            reason: "it is a directory".to_owned(),
            source: refused(Errno::EACCES),
        };
        assert_eq!(not_executable.exit_status(), 126);
        assert_eq!(not_executable.to_string(), "cannot execute /x: it is a directory");
        assert_eq!(EnactError::Threads { threads: 2 }.exit_status(), 125);
    }
}
