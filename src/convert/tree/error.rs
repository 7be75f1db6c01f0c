//! Why layers do not make a tree.

use crate::convert::budget::Exceeded;
use crate::convert::layer::path::PathError;

/// An entry, or a whole layer, that cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A name that no tree can hold.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file, link or device called `/`.
    #[error("the root of an image must be a directory")]
    RootNotDirectory,
    /// A parent that this layer made something else.
    #[error("\"{}\" is not a directory", .0.escape_ascii())]
    ParentNotDirectory(Vec<u8>),
    /// Symbolic links that lead to each other.
    #[error("too many symbolic links on the way to it")]
    SymlinkLoop,
    /// A symbolic link to nothing.
    #[error("the target of the symbolic link is empty, contains NUL or exceeds {limit} bytes")]
    Target {
        /// Bytes it may have.
        limit: usize,
    },
    /// A hard link whose target no layer has.
    #[error("hard link \"{}\" has no target: \"{}\" does not exist", .link.escape_ascii(), .target.escape_ascii())]
    LinkMissing {
        /// The new name.
        link: Vec<u8>,
        /// The name it should share a file with.
        target: Vec<u8>,
    },
    /// Hard links without a file among them.
    #[error("hard links lead only to each other")]
    LinkCycle,
    /// A hard link to a directory.
    #[error("hard link \"{}\" leads to the directory \"{}\"", .link.escape_ascii(), .target.escape_ascii())]
    LinkToDirectory {
        /// The new name.
        link: Vec<u8>,
        /// The directory.
        target: Vec<u8>,
    },
    /// More than the budget allows.
    #[error(transparent)]
    Budget(#[from] Exceeded),
    /// More names, inodes or bytes of names than 32 bits can count.
    #[error("the tree has more names than can be counted")]
    Full,
    /// A file that is part of the result and was never stored: a bug.
    #[error("a file of the tree was not stored")]
    NotStored,
}
