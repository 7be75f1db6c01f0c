//! Plain facts about this node, and the one place that gathers them ([`probe`]).
//!
//! A [`Host`] is data: tests write one by hand for a laptop, a Slurm node, an old kernel.

pub mod cdi;
pub mod containers;
pub mod doctor;
pub mod features;
pub mod gpu;
pub mod launcher;
pub mod libraries;
pub mod probe;
pub mod processor;
pub mod step;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub use features::{Feature, Features, Kernel};
pub use launcher::Launcher;

/// An environment, in the order the kernel gave it. Bytes.
pub type Environment = Vec<(OsString, OsString)>;

/// What is true of this node and of the process that asks, as far as a launch needs to know.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Who launches.
    pub user: User,
    /// The node's name.
    pub hostname: OsString,
    /// The working directory, without links; none when it has been deleted or cannot be read.
    pub cwd: Option<PathBuf>,
    /// The kernel.
    pub kernel: Kernel,
    /// What the kernel lets this user do.
    pub features: Features,
    /// Processors online.
    pub cpus: usize,
    /// The x86-64 level of the processor, 1 to 4; none on other machines.
    pub isa_level: Option<u8>,
    /// What launched this process.
    pub launcher: Launcher,
    /// Inodes of the process's namespaces, by name, sorted.
    pub namespaces: Vec<(String, u64)>,
    /// Where this user's registry files of shared namespaces belong; none when no directory can hold them.
    pub share_directory: Option<PathBuf>,
    /// The environment as the caller of [`probe`] passed it.
    pub environment: Environment,
    /// What the host has at the paths that were asked about.
    pub paths: BTreeMap<PathBuf, PathFact>,
    /// What is mounted at the directories of premounted trees that were asked about; what is missing is no directory.
    pub trees: BTreeMap<PathBuf, TreeFact>,
    /// What the host has for the patterns of paths that were asked about, sorted.
    pub globs: BTreeMap<String, Vec<PathBuf>>,
    /// The bytes of `/etc/localtime`, which is a link into a directory that images lack or have otherwise.
    pub localtime: Option<Vec<u8>>,
    /// Graphics processors, if somebody looked for them.
    pub gpu: gpu::GpuFacts,
}

/// Who launches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Real user id.
    pub uid: u32,
    /// Effective user id; differs when somebody made hpcrun setuid.
    pub effective_uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Login name.
    pub name: OsString,
    /// The group's name.
    pub group_name: OsString,
    /// Full name and more, from the user database.
    pub gecos: OsString,
    /// Home directory.
    pub home: Option<PathBuf>,
    /// Whether the user database knows the user; else name and home are the environment's word.
    pub known: bool,
}

/// A directory at which the site may have mounted an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFact {
    /// The directory without links.
    pub resolved: PathBuf,
    /// Device of what is there.
    pub device: u64,
    /// Device of the directory above.
    pub device_above: u64,
    /// Who but root could have put it there: something wrong with it, or with a directory above.
    pub untrusted: Option<String>,
    /// Whether the kernel's squashfs serves it.
    pub is_squashfs: bool,
    /// Whether it is mounted read-only.
    pub is_read_only: bool,
    /// Whether set-id bits do nothing.
    pub is_nosuid: bool,
    /// Whether device nodes do nothing.
    pub is_nodev: bool,
    /// Its numbers.
    pub shape: TreeShape,
    /// What its loop device holds, if it is one.
    pub backing: Option<Backing>,
}

/// Numbers in which images differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeShape {
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// The inode number of the directory that is mounted.
    pub root: u64,
}

/// What a loop device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file, as the kernel names it.
    pub file: PathBuf,
    /// Where in it the device begins, bytes.
    pub offset: u64,
    /// Root of the tree of chunk hashes in the file of this name, if somebody has looked.
    pub hash: Option<[u8; 32]>,
}

/// What the host has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathFact {
    /// What is there.
    pub kind: Kind,
    /// The same place without links; the path itself when it cannot be resolved.
    pub resolved: PathBuf,
}

/// The kind of a thing to bind: what its mount point must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else that exists: it is bound onto a file.
    File,
    /// Nothing.
    Missing,
    /// Something that this user cannot reach, and what the kernel said.
    Unreachable(String),
}

impl Host {
    /// The value of a variable of the host's environment; the last one of a name counts.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        variable(&self.environment, name)
    }

    /// The resolved form of a path that was asked about, else the path itself.
    pub fn resolved(&self, path: &Path) -> PathBuf {
        self.paths.get(path).map_or_else(|| path.to_owned(), |fact| fact.resolved.clone())
    }

    /// The values behind the site policy's trusted variables; those that the host cannot vouch for are left out.
    pub fn trusted_variables(&self) -> Vec<(&'static str, OsString)> {
        self.user.trusted_variables(self.hostname.clone())
    }
}

impl User {
    /// As [`Host::trusted_variables`], on the node `hostname`.
    pub fn trusted_variables(&self, hostname: OsString) -> Vec<(&'static str, OsString)> {
        let mut values = vec![
            ("UID", OsString::from(self.uid.to_string())),
            ("GID", OsString::from(self.gid.to_string())),
            ("HOSTNAME", hostname),
        ];
        if !self.group_name.is_empty() {
            values.push(("GROUP", self.group_name.clone()));
        }
        if self.known {
            values.push(("USER", self.name.clone()));
            values.extend(self.home.iter().map(|home| ("HOME", home.clone().into_os_string())));
        }
        values
    }
}

/// The value of a variable; the last one of a name counts.
pub fn variable<'e>(environment: &'e [(OsString, OsString)], name: &str) -> Option<&'e OsStr> {
    environment.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.as_os_str())
}
