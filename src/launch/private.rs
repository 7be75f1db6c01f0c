//! Directories of the job's own in place of the host's: `--contain`, `--scratch`, `--workdir`. Pure.

use std::path::{Path, PathBuf};

use super::binds::{Bind, Party, Shown, Site, check_destination, host_path};
use super::plan::PlanError;
use super::request::{HomeWish, LeftOut, Request, ScratchOption};
use crate::host::{Host, Kind};
use crate::mount::plan::{Access, Entry, Need, Reason};
use crate::policy::path::normalise;

/// Devices of a contained job: the harmless ones.
const DEVICES: [&str; 6] = ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"];

/// Links that programs expect in `/dev`.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// Every host path about which [`mounts`] asks [`Host::paths`].
pub(super) fn paths_to_probe(request: &Request, host: &Host) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = request.workdir.iter().map(|workdir| host_path(workdir, host)).collect();
    if request.contain.is_some() {
        paths.extend(DEVICES.iter().map(PathBuf::from));
        paths.push(PathBuf::from("/dev/pts"));
    }
    paths
}

/// The private mounts of a launch.
pub(super) fn mounts(request: &Request, site: &Site<'_>) -> Result<Vec<Bind>, PlanError> {
    let workdir = workdir(request, site)?;
    let private = Private { size_bytes: site.policy.tmpfs_size(None)?, workdir };
    let mut mounts = Vec::new();
    if let Some(flag) = request.contain {
        let reason = Reason::Flag(flag.to_owned());
        mounts.extend(private.contained(request, site.host, &reason));
    }
    for ScratchOption { directory, is_ambient } in &request.scratch {
        let party = if *is_ambient { Party::Ambient } else { Party::User };
        let reason = Reason::Flag(format!("--scratch {}", directory.display()));
        if !directory.is_absolute() {
            return Err(PlanError::RelativeScratch { path: directory.clone() });
        }
        let destination = normalise(Path::new("/"), directory);
        check_destination(&destination, &reason)?;
        let below = Path::new("scratch").join(destination.strip_prefix("/").unwrap_or(&destination));
        mounts.push(private.directory(&destination, &below, 0o755, party, &reason));
    }
    Ok(mounts)
}

/// The resolved `--workdir`, which is a host directory that the user may bind.
fn workdir(request: &Request, site: &Site<'_>) -> Result<Option<PathBuf>, PlanError> {
    let Some(typed) = &request.workdir else {
        return Ok(None);
    };
    if request.contain.is_none() && request.scratch.is_empty() {
        return Err(PlanError::IdleWorkdir { path: typed.clone() });
    }
    let reason = Reason::Flag(format!("--workdir {}", typed.display()));
    let path = host_path(typed, site.host);
    if !site.is_directory(&path, &reason)? {
        let why = "it is not a directory".to_owned();
        return Err(PlanError::BindSource { path, option: reason, why });
    }
    let resolved = site.host.resolved(&path);
    site.judge(typed.as_os_str(), &resolved)?;
    Ok(Some(resolved))
}

/// Where private directories are: in memory, or below a host directory.
struct Private {
    size_bytes: Option<u64>,
    workdir: Option<PathBuf>,
}

impl Private {
    fn directory(&self, destination: &Path, below: &Path, mode: u32, party: Party, reason: &Reason) -> Bind {
        let shown = match &self.workdir {
            Some(workdir) => Shown::Host { path: workdir.join(below), need: Need::Made, is_directory: true },
            None => self.memory(mode, Vec::new()),
        };
        let (destination, reason) = (destination.to_owned(), reason.clone());
        Bind { shown, destination, access: Access::ReadWrite, party, reason }
    }

    fn memory(&self, mode: u32, entries: Vec<(PathBuf, Entry)>) -> Shown {
        Shown::Memory { mode, size_bytes: self.size_bytes, entries }
    }

    /// What a contained job has instead of the host's.
    fn contained(&self, request: &Request, host: &Host, reason: &Reason) -> Vec<Bind> {
        let own = |destination: &str, below: &str, mode| {
            self.directory(Path::new(destination), Path::new(below), mode, Party::Default, reason)
        };
        let mut mounts = vec![own("/tmp", "tmp", 0o1777), own("/var/tmp", "var_tmp", 0o1777)];
        let home = host.user.home.as_deref().map(|home| normalise(Path::new("/"), home));
        if let Some(home) = home.filter(|_| request.home == HomeWish::SiteDefault)
            && check_destination(&home, reason).is_ok()
        {
            mounts.push(self.directory(&home, Path::new("home"), 0o700, Party::Default, reason));
        }
        if !request.left_out.contains(&LeftOut::System("/dev")) {
            mounts.extend(self.devices(host, reason));
        }
        mounts
    }

    /// A `/dev` with what every program may have.
    fn devices(&self, host: &Host, reason: &Reason) -> Vec<Bind> {
        let mount = |destination: &str, shown| Bind {
            shown,
            destination: PathBuf::from(destination),
            access: Access::ReadWrite,
            party: Party::Default,
            reason: reason.clone(),
        };
        let links =
            DEVICE_LINKS.map(|(name, target)| (PathBuf::from(name), Entry::Link(PathBuf::from(target))));
        let mut mounts = vec![
            mount("/dev", self.memory(0o755, links.to_vec())),
            mount("/dev/shm", self.memory(0o1777, Vec::new())),
        ];
        for path in DEVICES.into_iter().chain(["/dev/pts"]) {
            let Some(fact) = host.paths.get(Path::new(path)) else { continue };
            if matches!(fact.kind, Kind::Directory | Kind::File) {
                let is_directory = fact.kind == Kind::Directory;
                let host = Shown::Host { path: fact.resolved.clone(), need: Need::Optional, is_directory };
                mounts.push(mount(path, host));
            }
        }
        mounts
    }
}
