//! The rules of a policy as types: every rule knows its line. [`super::read`] makes them.

pub mod gpu;
pub mod images;
pub mod log;
pub mod modules;
pub mod mpi;
pub mod store;

use std::path::PathBuf;

pub use gpu::Gpu;
pub use images::{Images, MirrorRule, RegistryRule, VERIFY_WORDS, Verify};
pub use log::Log;
pub use modules::Module;
pub use mpi::Mpi;
pub use store::Store;

use super::file::{Located, Position};
use super::pattern::Pattern;
use super::template::Template;

/// All rules of a policy; the default is a site that says nothing.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// `[binds]`
    pub binds: Binds,
    /// `[home]`
    pub home: Home,
    /// `[env]`
    pub env: EnvRules,
    /// `[images]`
    pub images: Images,
    /// `[store]`
    pub store: Store,
    /// `[gpu]`
    pub gpu: Gpu,
    /// `[mpi]`
    pub mpi: Mpi,
    /// `[modules]`, in the order of the file.
    pub modules: Vec<Module>,
    /// `[launch]`
    pub launch: LaunchRules,
    /// `[convert]`
    pub convert: ConvertLimits,
    /// `[premounted]`
    pub premounted: Premounts,
    /// `[log]`
    pub log: Log,
    /// `[policy]`
    pub policy: PolicyRules,
}

/// `[binds]`: what is bound, and what users may bind.
#[derive(Debug, Clone, Default)]
pub struct Binds {
    /// Bound in every launch; a user can neither leave them out nor cover them.
    pub forced: Vec<BindRule>,
    /// Bound where the source exists; a user's bind onto the same destination takes its place.
    pub optional: Vec<BindRule>,
    /// Host paths that no user's bind may show: neither they, nor what is below them, nor a directory that holds them.
    pub denied: Vec<PathRule>,
    /// Host paths within which users' binds must lie; none when everything but the denied may be bound.
    pub allowed: Option<Listed<PathRule>>,
}

/// One bind of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindRule {
    /// Absolute host path, with variables.
    pub source: Template,
    /// Absolute path in the new root, with variables; none means the source's.
    pub destination: Option<Template>,
    /// Whether the job may not write.
    pub read_only: bool,
    /// Whether a missing source (or an unset variable) leaves the bind out rather than refusing the launch.
    pub optional: bool,
    /// The images that it is for; none means all.
    pub when: Option<Located<Pattern>>,
    /// The nodes that it is for; none means all.
    pub hosts: Option<Located<Pattern>>,
    /// Where the rule stands.
    pub at: Position,
}

/// A host path, with variables that users cannot choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// Absolute.
    pub path: Template,
    /// Where the rule stands.
    pub at: Position,
}

/// A list that says something even when it is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// The elements.
    pub rules: Vec<T>,
    /// Where the list stands.
    pub at: Position,
}

/// `[home]`
#[derive(Debug, Clone, Default)]
pub struct Home {
    /// Whether the home directory is bound; none means yes.
    pub bind: Option<Located<bool>>,
    /// Whether it is read-only; none means no.
    pub read_only: Option<Located<bool>>,
}

/// `[env]`
#[derive(Debug, Clone, Default)]
pub struct EnvRules {
    /// Variables given a value, over the image's; a user's `--env` is stronger.
    pub set: Vec<SetRule>,
    /// Directories put before a list such as PATH.
    pub prepend: Vec<SetRule>,
    /// Variables that no job sees, whoever set them.
    pub unset: Vec<NameRule>,
    /// Variables whose host value reaches the job even where the image sets them or hpcrun would strip them.
    pub pass: Vec<NameRule>,
}

/// A variable and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRule {
    /// The variable's name.
    pub name: String,
    /// Its value.
    pub value: Template,
    /// Where the rule stands.
    pub at: Position,
}

/// Names of environment variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRule {
    /// Which.
    pub pattern: NamePattern,
    /// Where the rule stands.
    pub at: Position,
}

/// A variable's name, or all names of a beginning (`SLURM_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    /// This name.
    Exact(String),
    /// Names that begin so.
    Prefix(String),
}

impl NamePattern {
    /// Whether the name fits.
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            NamePattern::Exact(exact) => exact.as_bytes() == name,
            NamePattern::Prefix(prefix) => name.starts_with(prefix.as_bytes()),
        }
    }
}

/// `[launch]`
#[derive(Debug, Clone, Default)]
pub struct LaunchRules {
    /// Which processes of a node share namespaces; none means those of a step.
    pub share: Option<Located<Share>>,
    /// Serving threads of the image server; none means hpcrun's choice.
    pub server_threads: Option<Located<u64>>,
    /// Whether `--overlay` is allowed; none means yes.
    pub allow_overlay: Option<Located<bool>>,
    /// Whether `--writable-tmpfs` is allowed; none means yes.
    pub allow_writable_tmpfs: Option<Located<bool>>,
    /// Whether `--fakeroot` is allowed; none means yes.
    pub allow_fakeroot: Option<Located<bool>>,
    /// Whether `--pid` is allowed; none means yes.
    pub allow_pid: Option<Located<bool>>,
    /// Whether `--ipc` is allowed; none means yes.
    pub allow_ipc: Option<Located<bool>>,
    /// Whether `--contain` and `--containall` are allowed; none means yes.
    pub allow_contain: Option<Located<bool>>,
    /// Whether users may leave the home directory out or put another in its place; none means yes.
    pub allow_no_home: Option<Located<bool>>,
    /// Whether users may leave out the site's optional binds; none means yes.
    pub allow_no_binds: Option<Located<bool>>,
    /// Bytes that each private file system in memory may hold; none means the kernel's limit, half of the memory.
    pub max_tmpfs_bytes: Option<Located<u64>>,
}

/// Which processes of a user on a node share one set of namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Share {
    /// Those of one job step.
    #[default]
    Step,
    /// Those of one job.
    Job,
    /// None: each has its own.
    None,
}

/// The words for [`Share`] on the command line and in the policy.
pub const SHARE_WORDS: [(&str, Share); 3] =
    [("step", Share::Step), ("job", Share::Job), ("none", Share::None)];

/// `[convert]`: limits on a conversion and what it may do; none means hpcrun's own.
#[derive(Debug, Clone, Default)]
pub struct ConvertLimits {
    /// Layers of an image.
    pub max_layers: Option<Located<u64>>,
    /// Uncompressed bytes of a layer, and of all files of an image.
    pub max_size_bytes: Option<Located<u64>>,
    /// Uncompressed bytes for each compressed byte of a large layer.
    pub max_expansion: Option<Located<u64>>,
    /// Entries of an image.
    pub max_entries: Option<Located<u64>>,
    /// Memory for names and inodes, bytes.
    pub max_memory_bytes: Option<Located<u64>>,
    /// Components of a path.
    pub max_depth: Option<Located<u64>>,
    /// Bytes of all xattrs of one entry.
    pub max_xattrs_bytes: Option<Located<u64>>,
    /// Segments of one sparse file.
    pub max_sparse_segments: Option<Located<u64>>,
    /// Compressing threads.
    pub max_jobs: Option<Located<u64>>,
    /// Directory of each user's layer cache; none means that there is one only if the user names it.
    pub layer_cache: Option<Located<Template>>,
    /// Bytes that a layer cache may take.
    pub layer_cache_size: Option<Located<u64>>,
    /// Whether layers may be kept in a layer cache; none means yes.
    pub allow_layer_cache: Option<Located<bool>>,
    /// Whether layers may be fetched from where a manifest says, which need not be the registry; none means no.
    pub allow_foreign_layers: Option<Located<bool>>,
}

/// `[premounted]`
#[derive(Debug, Clone, Default)]
pub struct Premounts {
    /// Trees of image files by their paths.
    pub trees: Vec<Premounted>,
    /// Where the tree of an image is found by its digest: an absolute path in which `{digest}` stands for the hex digits.
    pub directory: Option<Located<String>>,
}

/// What stands for an image's digest in `[premounted] directory`.
pub const DIGEST_PLACE: &str = "{digest}";

/// A tree that the site has mounted from an image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Premounted {
    /// The image file.
    pub image: PathBuf,
    /// Where its tree is.
    pub directory: PathBuf,
    /// Where the rule stands.
    pub at: Position,
}

/// `[policy]`: what the policy says about itself.
#[derive(Debug, Clone, Default)]
pub struct PolicyRules {
    /// Whether `HPCRUN_POLICY` may name another policy; none means no.
    pub allow_user_file: Option<Located<bool>>,
}
