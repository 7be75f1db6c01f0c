//! `[images]`: where images may come from, where they may lie, whose and what they may be.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::{Listed, PathRule};
use crate::image::digest::Digest;
use crate::policy::file::{Located, Position};

/// Whose keys may sign images, where the policy names no other file.
pub const SIGNERS_PATH: &str = "/etc/hpcrun/allowed_signers";

/// `[images]`
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// Host directories in which image files must lie; none when any will do.
    pub directories: Option<Listed<PathRule>>,
    /// Whose the image files must be; none when anybody's will do.
    pub owners: Option<Listed<Located<Owner>>>,
    /// What they must be; none when every kind will do.
    pub formats: Option<Listed<Located<Format>>>,
    /// Registries from which images may come; none when any will do.
    pub registries: Option<Listed<RegistryRule>>,
    /// Registries from which none may come, whatever else is allowed.
    pub deny_registries: Vec<RegistryRule>,
    /// Where to fetch from before the registry itself.
    pub mirrors: Vec<MirrorRule>,
    /// Whether an image file must have a good signature of one of the signers; none means no.
    pub require_signature: Option<Located<bool>>,
    /// The file that lists the signers; none means [`SIGNERS_PATH`].
    pub signers: Option<Located<PathBuf>>,
    /// Images that may not be run or fetched: digests of manifests, configs, layers or whole image files.
    pub deny_digests: Vec<Located<Digest>>,
    /// When what a launch reads is held against the chunk hashes; none means from the first sign of a change on.
    pub verify: Option<Located<Verify>>,
}

/// Whose an image file may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The administrator's, `"root"`.
    Root,
    /// The user's who launches, `"self"`.
    Myself,
    /// This user's, by number.
    Uid(u32),
    /// This user's, by the name in the user database.
    Name(String),
}

impl Owner {
    /// Whether a file of `uid` is this owner's. `name` is what the user database calls `uid`, `caller` who launches.
    pub fn is(&self, uid: u32, name: Option<&OsStr>, caller: u32) -> bool {
        match self {
            Owner::Root => uid == 0,
            Owner::Myself => uid == caller,
            Owner::Uid(number) => uid == *number,
            Owner::Name(own) => name.is_some_and(|name| name == OsStr::new(own)),
        }
    }
}

/// What an image file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A squashfs with hpcrun's trailer.
    Hpcrun,
    /// A squashfs of another tool.
    Squashfs,
    /// A SIF of Apptainer or Singularity.
    Sif,
}

/// The words for [`Format`].
pub const FORMAT_WORDS: [(&str, Format); 3] =
    [("hpcrun", Format::Hpcrun), ("squashfs", Format::Squashfs), ("sif", Format::Sif)];

impl Format {
    /// Its word in the policy.
    pub fn word(self) -> &'static str {
        FORMAT_WORDS.iter().find(|(_, format)| *format == self).map_or("", |(word, _)| word)
    }
}

/// When the bytes of an image file are held against its chunk hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// Never.
    Never,
    /// From the first sign on that the file changed after it was opened.
    #[default]
    Changed,
    /// Every time.
    Always,
}

/// The words for [`Verify`] in the policy.
pub const VERIFY_WORDS: [(&str, Verify); 3] =
    [("never", Verify::Never), ("changed", Verify::Changed), ("always", Verify::Always)];

/// A registry, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryRule {
    /// `host[:port]`, or `*.domain`.
    pub host: String,
    /// The beginning of the repository by whole components; empty means all.
    pub repository: String,
    /// Where the rule stands.
    pub at: Position,
}

/// A registry, or a part of one, and the places that hold copies of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorRule {
    /// What is mirrored; no wildcard.
    pub registry: RegistryRule,
    /// Where, best first: `host[:port][/repository]`, which stands in place of `registry`.
    pub mirrors: Vec<RegistryRule>,
}
