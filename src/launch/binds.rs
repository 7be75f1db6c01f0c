//! Which host paths appear in the new root, where, and who says so. Pure.
//!
//! Four parties name binds. Where two name one destination, the stronger wins: forced by the site, then the user, then
//! offered by the site, then hpcrun's defaults. A user's bind that would cover a forced one is refused, so that nobody
//! computes with other data than he thinks. The result is sorted: parents before what lies in them.

mod bind;
mod of_launcher;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use self::bind::{Bind, Binds, Party, Shown};
pub(super) use self::bind::{nearest, parent};
use self::of_launcher::directories as launcher_directories;
use super::modules;
use super::plan::{ImageFacts, PlanError};
use super::precedence::{check_mount_points, settle};
use super::private;
use super::request::{BindOption, HomeWish, LeftOut, Request};
use crate::host::{Host, Kind};
use crate::mount::plan::{Access, Need, Reason};
use crate::policy::decide::{ChosenModule, HostPath, SiteBind, Variables};
use crate::policy::path::{is_within, normalise};
use crate::policy::template::Origin;
use crate::policy::{Policy, Rule};

/// The host's own, in every launch: without them there is no job. A job that replaced `/proc` could feign the kernel's
/// answers to those who come after it.
const SYSTEM: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Files that a network needs and that are this node's, not the image's.
const NODE_FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];

/// Directories of an operating system: bound because somebody stands in them, they would hide the image's.
const SYSTEM_TREES: [&str; 9] =
    ["/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"];

/// Directories that hold too much to be bound because somebody stands in them; what lies below them is another matter.
const SYSTEM_PARENTS: [&str; 9] = ["/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/var"];

/// Every host path about which [`gather`] asks [`Host::paths`]; `modules` are those of the launch.
pub fn paths_to_probe(
    request: &Request,
    modules: &[ChosenModule<'_>],
    policy: &Policy,
    host: &Host,
) -> Vec<PathBuf> {
    let trusted = host.trusted_variables();
    let variables = Variables { trusted: &trusted, environment: &host.environment };
    let mut paths: Vec<PathBuf> = NODE_FILES.iter().map(PathBuf::from).collect();
    paths.push(PathBuf::from("/tmp"));
    paths.extend(host.user.home.as_deref().map(|home| normalise(Path::new("/"), home)));
    paths.extend(host.cwd.clone());
    paths.extend(launcher_directories(host).map(|(_, path)| path));
    paths.extend(policy.rule_paths(&variables));
    // Refusals are found again, and reported, by gather.
    let of_modules = modules.iter().map(|chosen| policy.module_binds(chosen.module, &variables, None));
    for bind in of_modules.chain([policy.site_binds(&variables, None)]).flatten().flat_map(|(binds, _)| binds)
    {
        paths.push(bind.source);
        paths.push(bind.destination);
    }
    paths.extend(host.globs.values().flatten().cloned());
    let home = match &request.home {
        HomeWish::At(option) => Some(option),
        HomeWish::SiteDefault | HomeWish::LeaveOut => None,
    };
    for option in request.binds.iter().chain(home) {
        let source = source_of(option, host);
        paths.push(destination_of(option, &source));
        paths.push(source);
    }
    paths.extend(private::paths_to_probe(request, host));
    paths.extend(request.writable.overlays.iter().map(|overlay| host_path(&overlay.directory, host)));
    paths.sort();
    paths.dedup();
    paths
}

/// Gathers the binds of a launch; `injected` are those of the host's software.
pub fn gather(
    request: &Request,
    image: &ImageFacts,
    chosen: &[ChosenModule<'_>],
    policy: &Policy,
    host: &Host,
    injected: Vec<Bind>,
) -> Result<Binds, PlanError> {
    let trusted = host.trusted_variables();
    let site =
        Site { policy, host, variables: Variables { trusted: &trusted, environment: &host.environment } };
    let image = image.traits.name(&image.path);
    let (mut site_binds, mut notes) = policy.site_binds(&site.variables, Some(&image))?;
    for module in chosen {
        let (binds, left_out) = policy.module_binds(module.module, &site.variables, Some(&image))?;
        site_binds.extend(binds);
        notes.extend(left_out);
    }
    let mut wanted = defaults(request, host);
    wanted.extend(injected);
    match &request.home {
        HomeWish::At(option) => wanted.push(site.user_bind(option)?),
        HomeWish::LeaveOut | HomeWish::SiteDefault if request.contain.is_some() => {}
        HomeWish::LeaveOut | HomeWish::SiteDefault => wanted.extend(home(request, &site, &mut notes)),
    }
    wanted.extend(private::mounts(request, &site)?);
    wanted.extend(modules::devices(request, chosen, policy, host));
    for bind in site_binds {
        match why_without(request, &bind) {
            Some(flag) => notes.push(format!("{} left out ({flag})", bind.destination.display())),
            None => wanted.extend(site.bind(bind, &mut notes)?),
        }
    }
    for option in &request.binds {
        wanted.push(site.user_bind(option)?);
    }
    check_left_out(request, &wanted, policy)?;
    wanted.retain(|bind| !is_left_out(request, bind, &mut notes));
    let mut binds = Binds { binds: settle(wanted, &mut notes)?, notes };
    for (why, directory) in extra_directories(request, host) {
        site.add_directory(&mut binds, &why, &directory);
    }
    binds.binds.sort_by(|a, b| a.destination.cmp(&b.destination));
    check_mount_points(&mut binds, host)?;
    Ok(binds)
}

/// What is bound whoever asks for whatever.
fn defaults(request: &Request, host: &Host) -> Vec<Bind> {
    let system = SYSTEM.iter().map(|path| default_bind(path.into(), path.into(), true, Need::Required));
    let mut system: Vec<Bind> = system.collect();
    let files = NODE_FILES.iter().filter_map(|path| present(host, Path::new(path), false));
    if request.isolation.processes.is_some() {
        for bind in system.iter_mut().filter(|bind| bind.destination == Path::new("/proc")) {
            bind.shown = Shown::Processes;
            bind.reason = Reason::Flag("--pid".to_owned());
        }
    }
    let tmp = match request.contain {
        None => present(host, Path::new("/tmp"), true),
        Some(_) => {
            system.retain(|bind| bind.destination != Path::new("/dev"));
            None
        }
    };
    system.into_iter().chain(tmp).chain(files).collect()
}

/// The option by which the user does without a bind that the site offers; what it forces stays.
fn why_without(request: &Request, bind: &SiteBind) -> Option<&'static str> {
    let no_site_binds = request.left_out.contains(&LeftOut::SiteBinds).then_some("--no-mount bind-paths");
    no_site_binds.or(request.contain).filter(|_| !bind.forced)
}

/// A site's optional bind is left out by its path only where it may be left out at all.
fn check_left_out(request: &Request, wanted: &[Bind], policy: &Policy) -> Result<(), PlanError> {
    for left_out in &request.left_out {
        let LeftOut::Path(path) = left_out else { continue };
        if wanted.iter().any(|bind| bind.party == Party::Offered && bind.destination == *path) {
            policy.no_site_binds(&format!("--no-mount {}", path.display()))?;
        }
    }
    Ok(())
}

/// Whether the user does without a mount that he has not asked for himself.
fn is_left_out(request: &Request, bind: &Bind, notes: &mut Vec<String>) -> bool {
    let is_named = |left_out: &LeftOut| match left_out {
        LeftOut::Tmp => ["/tmp", "/var/tmp"].iter().any(|tmp| bind.destination == Path::new(tmp)),
        LeftOut::System(system) => is_within(&bind.destination, Path::new(system)),
        LeftOut::Path(path) => bind.destination == *path,
        LeftOut::Cwd | LeftOut::SiteBinds => false,
    };
    if bind.party > Party::Offered || !request.left_out.iter().any(is_named) {
        return false;
    }
    notes.push(format!("{} left out (--no-mount)", bind.destination.display()));
    true
}

/// A default bind of `path` onto itself, if the host has it and it is of the right kind.
fn present(host: &Host, path: &Path, is_directory: bool) -> Option<Bind> {
    let fact = host.paths.get(path)?;
    let wanted = if is_directory { Kind::Directory } else { Kind::File };
    (fact.kind == wanted)
        .then(|| default_bind(fact.resolved.clone(), path.to_owned(), is_directory, Need::Optional))
}

fn default_bind(source: PathBuf, destination: PathBuf, is_directory: bool, need: Need) -> Bind {
    Bind {
        shown: Shown::Host { path: source, need, is_directory },
        destination,
        access: Access::ReadWrite,
        party: Party::Default,
        reason: Reason::Default,
    }
}

/// The home directory, onto its own name in the user database.
fn home(request: &Request, site: &Site<'_>, notes: &mut Vec<String>) -> Option<Bind> {
    let (wanted, read_only, rule) = site.policy.home();
    let by_site = rule.map(reason_of);
    if request.home == HomeWish::LeaveOut {
        notes.push("home directory left out (--no-home)".to_owned());
        return None;
    }
    if !wanted {
        let why = by_site.unwrap_or(Reason::Default);
        notes.push(format!("home directory left out ({why})"));
        return None;
    }
    let home = site.host.user.home.as_deref().map(|home| normalise(Path::new("/"), home))?;
    let mut bind = present(site.host, &home, true).or_else(|| {
        notes.push(format!("home directory {} left out: {}", home.display(), why_absent(site.host, &home)));
        None
    })?;
    if is_operating_system(&home) && home != Path::new("/root") {
        notes.push(format!("home directory {} left out: it would hide the image's", home.display()));
        return None;
    }
    if !site.host.user.known
        && let Some(source) = bind.source()
        && let Err(refusal) = site.judge(home.as_os_str(), source)
    {
        notes.push(format!("home directory left out: {refusal}"));
        return None;
    }
    if read_only {
        bind.access = Access::ReadOnly;
    }
    bind.reason = by_site.unwrap_or(Reason::Default);
    Some(bind)
}

fn why_absent(host: &Host, path: &Path) -> String {
    match host.paths.get(path).map(|fact| &fact.kind) {
        Some(Kind::Unreachable(why)) => why.clone(),
        Some(Kind::File) => "it is not a directory".to_owned(),
        Some(Kind::Directory) => "it is a directory".to_owned(),
        Some(Kind::Missing) | None => format!("it does not exist on {}", host.hostname.display()),
    }
}

/// The policy with what it needs to judge.
pub(super) struct Site<'a> {
    pub(super) policy: &'a Policy,
    pub(super) host: &'a Host,
    variables: Variables<'a>,
}

impl Site<'_> {
    /// What the policy says to a user's bind.
    pub(super) fn judge(
        &self,
        typed: &OsStr,
        resolved: &Path,
    ) -> Result<Option<Rule>, crate::policy::Refusal> {
        let resolve = |path: &Path| self.host.resolved(path);
        self.policy.user_bind(HostPath { typed, resolved }, &self.variables, &resolve)
    }

    /// A site's bind, unless it is optional and its source is not there.
    fn bind(&self, bind: SiteBind, notes: &mut Vec<String>) -> Result<Option<Bind>, PlanError> {
        let reason = reason_of(bind.rule.clone());
        let fact = self.host.paths.get(&bind.source);
        let is_directory = match fact.map(|fact| &fact.kind) {
            Some(Kind::Directory) => true,
            Some(Kind::File) => false,
            _ if bind.optional => {
                let why = why_absent(self.host, &bind.source);
                notes.push(format!("{} left out: {why} ({reason})", bind.source.display()));
                return Ok(None);
            }
            _ => {
                let why = why_absent(self.host, &bind.source);
                return Err(PlanError::SiteSource { path: bind.source, reason, why });
            }
        };
        let source = self.host.resolved(&bind.source);
        if bind.origin == Origin::Environment {
            // The user's environment chose the path: the rule is the site's and the wish is the user's.
            if let Err(refusal) = self.judge(bind.source.as_os_str(), &source) {
                notes.push(format!("{} left out: {refusal}", bind.source.display()));
                return if bind.optional { Ok(None) } else { Err(refusal.into()) };
            }
        }
        check_destination(&bind.destination, &reason)?;
        let need = if bind.optional { Need::Optional } else { Need::Required };
        Ok(Some(Bind {
            shown: Shown::Host { path: source, need, is_directory },
            destination: bind.destination,
            access: if bind.read_only { Access::ReadOnly } else { Access::ReadWrite },
            party: if bind.forced { Party::Forced } else { Party::Offered },
            reason,
        }))
    }

    /// A user's `--bind`.
    fn user_bind(&self, option: &BindOption) -> Result<Bind, PlanError> {
        let path = source_of(option, self.host);
        let reason = Reason::Flag(format!("{} {}", option.option, option.typed.display()));
        let is_directory = self.is_directory(&path, &reason)?;
        let source = self.host.resolved(&path);
        self.judge(option.spec.source.as_os_str(), &source)?;
        let destination = destination_of(option, &path);
        check_destination(&destination, &reason)?;
        let read_only = option.spec.read_only || option.is_image;
        let shown = match option.is_image {
            false => Shown::Host { path: source, need: Need::Required, is_directory },
            true if is_directory => {
                let why = "it is a directory, not an image file".to_owned();
                return Err(PlanError::BindSource { path, option: reason, why });
            }
            true => {
                let file = HostPath { typed: option.spec.source.as_os_str(), resolved: &source };
                self.policy.image_file(file, &self.variables, &|path: &Path| self.host.resolved(path))?;
                Shown::Image(source)
            }
        };
        Ok(Bind {
            shown,
            destination,
            access: if read_only { Access::ReadOnly } else { Access::ReadWrite },
            party: if option.is_ambient { Party::Ambient } else { Party::User },
            reason,
        })
    }

    /// Whether what a user names is a directory; an error if it is nothing.
    pub(super) fn is_directory(&self, path: &Path, reason: &Reason) -> Result<bool, PlanError> {
        let why = match self.host.paths.get(path).map(|fact| &fact.kind) {
            Some(Kind::Directory) => return Ok(true),
            Some(Kind::File) => return Ok(false),
            _ => why_absent(self.host, path),
        };
        Err(PlanError::BindSource { path: path.to_owned(), option: reason.clone(), why })
    }

    /// Adds a directory that should be seen where the host has it, if nothing stands against it.
    fn add_directory(&self, binds: &mut Binds, why: &Reason, directory: &Path) {
        let Some(mut bind) = present(self.host, directory, true) else {
            return;
        };
        let Some(source) = bind.source().map(Path::to_owned) else {
            return;
        };
        if binds.shows(directory) || binds.shown_at(directory).is_some_and(|shown| shown == source) {
            return;
        }
        let left_out = match nearest(&binds.binds, directory) {
            Some(above) if above.party > Party::Default => Some(format!("inside a bind ({})", above.reason)),
            _ if is_operating_system(directory) => Some("it would hide the image's".to_owned()),
            _ => self.judge(directory.as_os_str(), &source).err().map(|refusal| refusal.to_string()),
        };
        match left_out {
            Some(because) => binds.notes.push(format!("{} ({why}) left out: {because}", directory.display())),
            None => {
                bind.reason = why.clone();
                binds.binds.push(bind);
            }
        }
    }
}

/// The working directory and the launcher's directories, with the reason of each.
fn extra_directories(request: &Request, host: &Host) -> Vec<(Reason, PathBuf)> {
    let is_wanted = request.contain.is_none() && !request.left_out.contains(&LeftOut::Cwd);
    let cwd =
        host.cwd.clone().filter(|_| is_wanted).map(|cwd| (Reason::Host("working directory".to_owned()), cwd));
    let launcher = launcher_directories(host).map(|(name, path)| (Reason::Host(name), path));
    cwd.into_iter().chain(launcher).collect()
}

/// Whether a directory is the operating system's rather than somebody's.
fn is_operating_system(path: &Path) -> bool {
    SYSTEM_PARENTS.iter().any(|parent| path == Path::new(parent))
        || SYSTEM_TREES.iter().chain(&SYSTEM).any(|tree| is_within(path, Path::new(tree)))
}

/// The host path of a `--bind`, absolute and not resolved.
pub(super) fn source_of(option: &BindOption, host: &Host) -> PathBuf {
    host_path(Path::new(&option.spec.source), host)
}

/// A host path as the user means it, absolute and not resolved.
pub(super) fn host_path(path: &Path, host: &Host) -> PathBuf {
    match &host.cwd {
        Some(cwd) => cwd.join(path),
        None => Path::new("/").join(path),
    }
}

pub(super) fn destination_of(option: &BindOption, source: &Path) -> PathBuf {
    normalise(Path::new("/"), option.spec.destination.as_ref().map_or(source, Path::new))
}

/// Refuses destinations that are the host's in every launch.
pub(super) fn check_destination(destination: &Path, reason: &Reason) -> Result<(), PlanError> {
    let below = |tree: &str| is_within(destination, Path::new(tree));
    let taken =
        destination == Path::new("/") || destination == Path::new("/dev") || below("/proc") || below("/sys");
    if taken {
        return Err(PlanError::Destination { path: destination.to_owned(), reason: reason.clone() });
    }
    Ok(())
}

fn reason_of(rule: Rule) -> Reason {
    Reason::Policy { file: rule.file, line: rule.line }
}
