//! The launch plan: every decision, made before the first namespace exists.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::binds::{self, Binds};
use super::command::{self, Command};
use super::env::{self, Circumstances};
pub use super::error::PlanError;
use super::explain::About;
use super::gpu::{self, ImageLibraries};
use super::inject::{Additions, Injection, Loaders};
use super::modules;
use super::request::{HomeWish, Isolation, LeftOut, Request, Verb};
use super::share_key::{Written, describe_share, share_key, share_scope};
use super::{identity, overlay, premounted};
use crate::host::Host;
use crate::image::config::ImageConfig;
use crate::mount::graft::Graft;
use crate::mount::node_cache::Wanted;
use crate::mount::plan::{MountPlan, Op, PlannedOp, Reason, RootSource, Upper};
use crate::mount::server::Startup;
use crate::policy::Policy;
use crate::policy::decide::{Decision, HostPath, ImageTraits, Variables};
use crate::policy::path::{is_within, normalise};

/// Serving threads beyond which readers of one image wait for its file and not for the server.
const DEFAULT_SERVER_THREADS: usize = 8;

/// Everything a launch will do.
#[derive(Debug, Clone, Default)]
pub struct LaunchPlan {
    /// The new root.
    pub mount: MountPlan,
    /// Additions to the image's tree, absolute paths; binds' mount points included.
    pub grafts: Vec<(PathBuf, Graft)>,
    /// The job's user id, the only one mapped.
    pub uid: u32,
    /// The job's group id, the only one mapped.
    pub gid: u32,
    /// The job's whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directories to try in order; the first that exists in the new root is taken.
    pub cwd: Vec<PathBuf>,
    /// What to exec: a path with a slash as it is, a bare name looked up in `search`.
    pub program: OsString,
    /// `argv`, `argv[0]` included.
    pub argv: Vec<OsString>,
    /// Directories of the image's PATH, for a bare `program`.
    pub search: Vec<PathBuf>,
    /// Ranks with equal keys share one set of namespaces on a node; none when each process has its own.
    pub share: Option<ShareKey>,
    /// Serving threads of the image server.
    pub server_threads: usize,
    /// What it reads before anybody asks for it; no decision of the plan.
    pub startup: Startup,
    /// How a copy of the image file on this node is found; no decision of the plan.
    pub node_cache: Option<Wanted>,
    /// Programs of the host that are run first, outside, as the user, by the rank that makes the container.
    pub before: Vec<HostCommand>,
    /// What else makes the job's process another than its caller's.
    pub guise: Guise,
    /// What `--explain` says beyond the above.
    pub about: About,
}

/// A program of the host that is run before there is any namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCommand {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<String>,
    /// What it makes: it is not run where that is there by now.
    pub makes: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// What makes the job's process another than its caller's, beyond root and environment. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guise {
    /// Whether user and group are 0 inside, and the caller's outside.
    pub is_root: bool,
    /// Its namespaces.
    pub isolation: Isolation,
    /// Its umask; none means the caller's.
    pub umask: Option<u32>,
}

impl LaunchPlan {
    /// User and group inside.
    pub fn ids_inside(&self) -> (u32, u32) {
        if self.guise.is_root { (0, 0) } else { (self.uid, self.gid) }
    }

    /// Whether everything in the image belongs to the user inside. A directory of somebody who is not mapped could not
    /// be written to, nor copied up by an overlay (`EOVERFLOW`).
    pub fn owns_image(&self) -> bool {
        self.mount.ops.iter().any(|planned| matches!(planned.op, Op::Overlay { .. }))
    }
}

/// What must be equal for two ranks to share namespaces: where the registry file lies and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareKey {
    /// Directory of this user's registry files, to be made with mode 0700 and checked.
    pub directory: PathBuf,
    /// File name: hex of a hash over user, image, plan, scope and namespaces.
    pub name: String,
}

/// The image file, as far as a plan depends on it.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    /// The image file as the user named it.
    pub typed: PathBuf,
    /// The same, absolute and without links.
    pub path: PathBuf,
    /// The file's size in bytes.
    pub size_bytes: u64,
    /// What makes two openings the same file.
    pub file: FileId,
    /// What the image was made from, if its trailer says so.
    pub origin: Option<String>,
    /// The image's digest, if its trailer has one.
    pub digest: Option<String>,
    /// Its squashfs.
    pub squashfs: SquashfsFacts,
    /// Its compressor, for people: `zstd`.
    pub compression: String,
    /// Its config; a file without one has the default.
    pub config: ImageConfig,
    /// The image's `/etc/passwd`, when it is a regular file of at most [`identity::IDENTITY_FILE_LIMIT_BYTES`].
    pub passwd: Option<Vec<u8>>,
    /// The image's `/etc/group`, likewise.
    pub group: Option<Vec<u8>>,
    /// The first of [`command::shell_candidates`] that the image has.
    pub shell: Option<PathBuf>,
    /// What its loaders go by; looked at only if the host's GPUs may bring libraries.
    pub loaders: Loaders,
    /// Those of its libraries that a GPU's driver has to do with, likewise.
    pub libraries: ImageLibraries,
    /// What the site's policy judges.
    pub traits: ImageTraits,
    /// Libraries of the host that modules of the site have for it, as [`super::mpi`] decided.
    pub modules: Injection,
}

/// The squashfs of an image file, by the numbers of its superblock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SquashfsFacts {
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// Its length, bytes.
    pub bytes_used: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Number of inodes.
    pub inodes: u32,
    /// Number of the root directory's inode.
    pub root: u32,
    /// Root of the tree of chunk hashes over it: what its content is, if the trailer has them.
    pub hash: Option<[u8; 32]>,
}

/// A file by what the kernel says of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileId {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Time of the last change of its contents, nanoseconds since 1970.
    pub modified_ns: i128,
}

/// Decides a launch. Data in, data out; `host` knows the paths of [`binds::paths_to_probe`].
pub fn plan(
    request: &Request,
    image: &ImageFacts,
    policy: &Policy,
    host: &Host,
) -> Result<LaunchPlan, PlanError> {
    check_host(host)?;
    let mut decisions = check_image(image, policy, host)?;
    check_options(request, policy)?;
    let modules = modules::chosen(request, image, policy, host)?;
    decisions.extend(modules::decisions(request, &modules, policy));
    let mut gpu = gpu::plan(request, image, policy, host)?;
    let mut injection = std::mem::take(&mut gpu.injection);
    injection.extend(image.modules.clone());
    let mut binds = binds::gather(request, image, &modules, policy, host, injection.binds())?;
    let additions = injection.additions(&image.loaders, &binds);
    binds.notes.extend(gpu.notes.into_iter().chain(additions.notes.iter().cloned()));
    let overlay = overlay::plan(request, policy, host)?;
    let guise = guise(request, policy)?;
    let (root, root_reason) = match &overlay {
        // The owners of a tree that the site mounted are not for us to change.
        Some(_) => (RootSource::Image(image.path.clone()), Reason::Default),
        // Nothing can be added to a tree that the kernel serves.
        None if !injection.is_empty() => {
            binds.notes.extend(premounted::unused(image, policy, host));
            (RootSource::Image(image.path.clone()), Reason::Default)
        }
        None => premounted::root(image, policy, host, &mut binds.notes),
    };
    check_fuse(&root, &binds, host)?;
    let (cwd, cwd_reason) = working_directories(request, &image.config, &binds, host)?;
    let scope = share_scope(request, policy, host, written(overlay.as_ref(), &binds));
    let scope = scope.filter(|_| guise.isolation == Isolation::default());
    let unshared_ranks = scope.is_none() && host.launcher.may_have_siblings();
    let home = identity::home_of_request(request, host);
    let circumstances = Circumstances {
        image: &image.path,
        shell: image.shell.as_deref(),
        home: home.as_deref(),
        binds: &binds,
        cwd: cwd.first().filter(|first| Some(*first) == host.cwd.as_ref()).map(PathBuf::as_path),
        unshared_ranks,
        injected: &additions.variables,
        modules: &modules,
    };
    let job_env = env::job_env(request, &image.config, policy, host, &circumstances)?;
    let Command { program, argv, image_field } = command::of_request(request, image, host)?;
    let grafts = match &root {
        RootSource::Image(_) => grafts(request, image, host, &binds, &additions)?,
        // The kernel serves that tree: nothing can be added to it.
        RootSource::Premounted { .. } => Vec::new(),
    };
    let mount = mount_plan(PlannedOp { op: Op::Root(root), reason: root_reason }, overlay, &binds);
    let path = job_env.variables.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let search = command::search_path(path);
    let server_threads = server_threads(policy, host);
    let share =
        scope.as_ref().and_then(|scope| share_key(scope, image, policy, host, &mount, &grafts, &guise));
    let about = About {
        image: describe(image),
        added: additions.described,
        decisions,
        env_changes: job_env.changes,
        cwd_reason,
        exec_reason: exec_reason(request, image_field),
        share: describe_share(scope.as_deref(), host, unshared_ranks),
        warnings: elsewhere(request, &cwd, host)
            .into_iter()
            .chain(rank_as_root(&guise, host))
            .chain(gpu.warnings)
            .collect(),
        forced: forced(&binds),
        notes: notes_on(binds.notes, host),
    };
    Ok(LaunchPlan {
        mount,
        grafts,
        uid: host.user.uid,
        gid: host.user.gid,
        env: job_env.variables,
        cwd,
        program,
        argv,
        search,
        share,
        server_threads,
        startup: Startup::Nothing,
        node_cache: None,
        before: gpu.before.into_iter().collect(),
        guise,
        about,
    })
}

fn check_host(host: &Host) -> Result<(), PlanError> {
    let (uid, effective_uid) = (host.user.uid, host.user.effective_uid);
    if uid != effective_uid {
        return Err(PlanError::Setuid { uid, effective_uid });
    }
    match host.features.userns.why_not() {
        Some(why) => Err(PlanError::UserNamespaces { why: why.to_owned() }),
        None => Ok(()),
    }
}

/// A premounted tree needs no image server.
fn check_fuse(root: &RootSource, binds: &Binds, host: &Host) -> Result<(), PlanError> {
    let is_image = |bind: &binds::Bind| matches!(bind.shown, binds::Shown::Image(_));
    let is_served = matches!(root, RootSource::Image(_)) || binds.binds.iter().any(is_image);
    match host.features.fuse.why_not().filter(|_| is_served) {
        Some(why) => Err(PlanError::Fuse { why: why.to_owned() }),
        None => Ok(()),
    }
}

fn written(overlay: Option<&PlannedOp>, binds: &Binds) -> Written {
    let is_memory = |bind: &binds::Bind| matches!(bind.shown, binds::Shown::Memory { .. });
    match overlay.map(|planned| &planned.op) {
        Some(Op::Overlay { upper: Upper::Memory { .. }, .. }) => Written::InMemory,
        _ if binds.binds.iter().any(is_memory) => Written::InMemory,
        Some(Op::Overlay { upper: Upper::Directory(_), .. }) => Written::ToDirectory,
        _ => Written::Elsewhere,
    }
}

fn guise(request: &Request, policy: &Policy) -> Result<Guise, PlanError> {
    if request.root_mapped {
        policy.fakeroot()?;
    }
    Ok(Guise { is_root: request.root_mapped, isolation: request.isolation, umask: request.umask })
}

/// MPI libraries and launchers compare user ids inside and outside.
fn rank_as_root(guise: &Guise, host: &Host) -> Option<String> {
    let text = "--fakeroot makes this rank user 0, which launchers and other ranks take for somebody else";
    (guise.is_root && host.launcher.may_have_siblings()).then(|| text.to_owned())
}

fn check_image(image: &ImageFacts, policy: &Policy, host: &Host) -> Result<Vec<(String, Reason)>, PlanError> {
    let trusted = host.trusted_variables();
    let variables = Variables { trusted: &trusted, environment: &host.environment };
    let path = HostPath { typed: image.typed.as_os_str(), resolved: &image.path };
    let place = policy.image_file(path, &variables, &|path: &Path| host.resolved(path))?;
    let place = place.map(|rule| Decision { what: "image lies where it may".to_owned(), rule });
    let traits = policy.image(&image.path, &image.traits, host.user.uid)?;
    let line = |Decision { what, rule }| (what, Reason::Policy { file: rule.file, line: rule.line });
    Ok(place.into_iter().chain(traits).map(line).collect())
}

/// The options that a site may keep from its users, but for those that are judged with their values.
fn check_options(request: &Request, policy: &Policy) -> Result<(), PlanError> {
    if let Some(option) = request.contain {
        policy.contain(option)?;
    }
    let whole = request.contain.filter(|option| *option == "--containall");
    if request.isolation.processes.is_some() {
        policy.process_namespace(whole.unwrap_or("--pid"))?;
    }
    if request.isolation.ipc {
        policy.ipc_namespace(whole.unwrap_or("--ipc"))?;
    }
    match &request.home {
        HomeWish::SiteDefault => {}
        HomeWish::LeaveOut => policy.no_home("--no-home")?,
        HomeWish::At(option) => policy.no_home(&option.option)?,
    }
    if request.left_out.contains(&LeftOut::SiteBinds) {
        policy.no_site_binds("--no-mount bind-paths")?;
    }
    Ok(())
}

fn mount_plan(root: PlannedOp, overlay: Option<PlannedOp>, binds: &Binds) -> MountPlan {
    let mut ops: Vec<PlannedOp> = [root].into_iter().chain(overlay).collect();
    ops.extend(binds.binds.iter().map(|bind| bind.op(&binds.binds)));
    ops.push(PlannedOp { op: Op::PivotRoot, reason: Reason::Default });
    MountPlan { ops }
}

/// What the image server adds: a mount point for every bind, and the files that say who runs and when.
fn grafts(
    request: &Request,
    image: &ImageFacts,
    host: &Host,
    binds: &Binds,
    additions: &Additions,
) -> Result<Vec<(PathBuf, Graft)>, PlanError> {
    let mut grafts: Vec<(PathBuf, Graft)> =
        binds.binds.iter().map(|bind| (bind.destination.clone(), bind.graft())).collect();
    grafts.extend(additions.grafts.iter().cloned());
    let shell = image.shell.as_deref().unwrap_or(Path::new("/bin/sh"));
    let user = identity::inside(host, request);
    let passwd = identity::passwd(image.passwd.as_deref(), &user, shell)?;
    let group = identity::group(image.group.as_deref(), &user)?;
    // A bind would follow the link that /etc/localtime is and cover a zone of the image with another.
    let localtime = host.localtime.clone();
    let files = [("/etc/passwd", Some(passwd)), ("/etc/group", Some(group)), ("/etc/localtime", localtime)];
    for (path, content) in files {
        let Some(content) = content else {
            continue;
        };
        if !binds.covers(Path::new(path)) {
            grafts.push((PathBuf::from(path), Graft::Content { mode: 0o644, content: Arc::from(content) }));
        }
    }
    Ok(grafts)
}

/// Where the job starts, best first, and why.
fn working_directories(
    request: &Request,
    config: &ImageConfig,
    binds: &Binds,
    host: &Host,
) -> Result<(Vec<PathBuf>, Reason), PlanError> {
    let root = Path::new("/");
    if let Some(path) = &request.cwd {
        let error = |why| Err(PlanError::Cwd { path: path.clone(), why });
        if !path.is_absolute() {
            return error("it is not an absolute path");
        }
        let path = normalise(root, path);
        if is_inside_proc(&path) {
            return error("what lies below /proc may lead out of the new root");
        }
        return Ok((vec![path], Reason::Flag("--cwd".to_owned())));
    }
    let hosts = host.cwd.clone().filter(|cwd| binds.shows(cwd));
    let hosts = hosts.map(|path| (path, Reason::Host("working directory".to_owned())));
    // Docker takes a relative one from the root. An image that names /proc/self/fd/N wants a directory that was left
    // open: it gets none.
    let images = Some(config.working_dir.as_str()).filter(|path| !path.is_empty());
    let images = images.map(|path| normalise(root, Path::new(path))).filter(|path| !is_inside_proc(path));
    let images = images.map(|path| (path, Reason::Image("WorkingDir")));
    let hosts = match (&request.contain, identity::home(host, request)) {
        (Some(flag), Some(home)) => Some((home, Reason::Flag((*flag).to_owned()))),
        _ => hosts,
    };
    // What the image was made to run may be named relative to its own directory.
    let choices = if is_run(request) { [images, hosts] } else { [hosts, images] };
    let choices: Vec<(PathBuf, Reason)> = choices.into_iter().flatten().collect();
    let reason = choices.first().map_or(Reason::Default, |(_, reason)| reason.clone());
    let mut candidates: Vec<PathBuf> = choices.into_iter().map(|(path, _)| path).collect();
    candidates.push(root.to_owned());
    candidates.dedup();
    Ok((candidates, reason))
}

fn is_run(request: &Request) -> bool {
    matches!(request.verb, Verb::Run { .. })
}

/// The warning that relative paths of the command line will not mean what they do here.
fn elsewhere(request: &Request, cwd: &[PathBuf], host: &Host) -> Option<String> {
    let own = host.cwd.as_ref()?;
    let first = cwd.first()?;
    let is_meant = request.cwd.is_some()
        || request.contain.is_some()
        || is_run(request)
        || own == first
        || own == Path::new("/");
    let text = || format!("{} is not in the new root: the job starts in {}", own.display(), first.display());
    (!is_meant).then(text)
}

fn is_inside_proc(path: &Path) -> bool {
    is_within(path, Path::new("/proc")) && path != Path::new("/proc")
}

fn server_threads(policy: &Policy, host: &Host) -> usize {
    let chosen = policy.rules().launch.server_threads.as_ref().map(|threads| threads.value);
    let chosen = chosen.and_then(|threads| usize::try_from(threads).ok());
    chosen.unwrap_or_else(|| host.cpus.clamp(1, DEFAULT_SERVER_THREADS))
}

/// The image in a line: `astro.sqsh  sha256:9f3c...  (linux/amd64, zstd, 1.2 GiB)`.
fn describe(image: &ImageFacts) -> String {
    let mut parts = Vec::new();
    if !image.config.os.is_empty() || !image.config.architecture.is_empty() {
        parts.push(format!("{}/{}", image.config.os, image.config.architecture));
    }
    if !image.compression.is_empty() {
        parts.push(image.compression.clone());
    }
    parts.push(size(image.size_bytes));
    let digest = image.digest.as_ref().map(|digest| format!("  {digest}")).unwrap_or_default();
    format!("{}{digest}  ({})", image.path.display(), parts.join(", "))
}

/// A size with three digits or so: `1.2 GiB`.
fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = (u128::from(bytes) * 10 + u128::from(*unit) / 2) / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

fn exec_reason(request: &Request, image_field: Option<&'static str>) -> Reason {
    match (image_field, &request.verb) {
        (Some(field), _) => Reason::Image(field),
        (None, Verb::Shell) if request.shell.is_some() => Reason::Flag("--shell".to_owned()),
        (None, Verb::Shell) => Reason::Default,
        (None, Verb::Run { .. }) if request.entrypoint.is_some() => Reason::Flag("--entrypoint".to_owned()),
        (None, _) => Reason::Flag("command line".to_owned()),
    }
}

fn notes_on(mut notes: Vec<String>, host: &Host) -> Vec<String> {
    if let Some(why) = host.features.pidfd_setns.why_not() {
        notes.push(format!("ranks join each namespace by itself: {why}"));
    }
    if let Some(why) = host.features.fuse_resend.why_not() {
        notes.push(format!("reads in flight fail if the image server is killed: {why}"));
    }
    notes
}

fn forced(binds: &Binds) -> Vec<PathBuf> {
    let forced = binds.binds.iter().filter(|bind| bind.party == binds::Party::Forced);
    forced.map(|bind| bind.destination.clone()).collect()
}
