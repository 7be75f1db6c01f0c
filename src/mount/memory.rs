//! What a file system in memory begins with.

use std::path::{Path, PathBuf};

use crate::mount::plan::Entry;
use crate::sys::Error;
use crate::sys::path::{PathFd, make_directory_in, make_file_in, make_link_in};

/// Fills the new file system at `top`, which nobody else has seen yet.
pub(super) fn fill(top: &PathFd, entries: &[(PathBuf, Entry)]) -> Result<(), Error> {
    for (path, entry) in entries {
        make_parents(top, path)?;
        match entry {
            Entry::Directory => make_directory_in(top, path, 0o755)?,
            Entry::File => make_file_in(top, path)?,
            Entry::Link(target) => make_link_in(top, path, target)?,
        }
    }
    Ok(())
}

fn make_parents(top: &PathFd, path: &Path) -> Result<(), Error> {
    let mut parents: Vec<&Path> =
        path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    parents.reverse();
    parents.into_iter().try_for_each(|parent| make_directory_in(top, parent, 0o755))
}
