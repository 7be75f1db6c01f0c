//! Why a store cannot be used.

use std::path::PathBuf;

use crate::hint::Hint;
use crate::sys;

/// Why a store cannot be used, or something in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be opened.
    #[error("cannot use the image store's {}", path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: sys::Error,
    },
    /// It cannot be made.
    #[error("cannot make the image store's {}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: sys::Error,
    },
    /// Somebody else could have put images there.
    #[error("the image store's {} is not used: {why}", path.display())]
    Untrusted {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is a link, a pipe or a directory in the place of a file, or a file that may not be read.
    #[error("the image store's {} is no file that can be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// It does not say what it should.
    #[error("the image store's {} is damaged", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write to the image store's {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: sys::Error,
    },
    /// Another rank says what the word means, and this node cannot read it.
    #[error("cannot read what this job step agreed on in {}", path.display())]
    Disagreed {
        /// The record.
        path: PathBuf,
    },
}

impl Hint for StoreError {
    fn hints(&self) -> Vec<String> {
        use nix::errno::Errno;
        match self {
            StoreError::Malformed { path } | StoreError::Unreadable { path } => {
                vec![format!("remove {} and pull or tag the image again", path.display())]
            }
            StoreError::Write { source, .. } | StoreError::Make { source, .. }
                if matches!(source.errno, Errno::EROFS | Errno::EACCES | Errno::ENOSPC | Errno::EDQUOT) =>
            {
                vec!["HPCRUN_STORE=DIR names another directory for your images".to_owned()]
            }
            StoreError::Disagreed { .. } => {
                vec!["name the image by its digest, which means the same everywhere".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}
