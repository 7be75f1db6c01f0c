//! A root that can be written to: the kernel's overlay of host directories, or of memory, over the served image.
//!
//! The mounter's capabilities in the user namespace write for the job, which has none. Extended attributes that only
//! the first user namespace may write are replaced by `user.*` ones (`userxattr`, Linux 5.11).

use std::path::{Path, PathBuf};

use crate::mount::bind::Tree;
use crate::mount::plan::Upper;
use crate::sys::Error;
use crate::sys::mount;
use crate::sys::path::{PathFd, make_directory_in, open_in_root};

/// In the directory of an overlay: what was written, and the kernel's own. The names are Apptainer's.
const UPPER: &str = "/upper";
const WORK: &str = "/work";

/// What goes over the root, opened before the new root covers anything of the host.
#[derive(Debug)]
pub(super) struct Layers {
    /// Only read, the last on top.
    read_only: Vec<PathFd>,
    written: Written,
}

#[derive(Debug)]
enum Written {
    Nowhere,
    Memory { size_bytes: Option<u64> },
    Directory { upper: PathFd, work: PathFd },
}

impl Layers {
    /// Opens host directories, which are made fit to be written to.
    pub(super) fn open(host: &Tree, layers: &[PathBuf], upper: &Upper) -> Result<Layers, Error> {
        let read_only = layers.iter().map(|layer| open_in_root(&host.open(layer)?, Path::new(UPPER)));
        let read_only = read_only.collect::<Result<_, _>>()?;
        let written = match upper {
            Upper::None => Written::Nowhere,
            Upper::Memory { size_bytes } => Written::Memory { size_bytes: *size_bytes },
            Upper::Directory(path) => writable(&host.open(path)?)?,
        };
        Ok(Layers { read_only, written })
    }

    /// Mounts the overlay over `root`, where that is mounted. What is covered lives on in the overlay.
    pub(super) fn lay(self, name: &Path, root: &Tree) -> Result<Tree, Error> {
        let place = || PathFd::open_directory(root.mount_point());
        let lower: Vec<String> =
            self.read_only.iter().rev().chain([root.top()]).map(PathFd::proc_path).collect();
        let mut data = format!("userxattr,lowerdir={}", lower.join(":"));
        let written = match self.written {
            Written::Memory { size_bytes } => {
                mount::tmpfs(&place()?, 0o700, size_bytes)?;
                writable(&place()?)?
            }
            written => written,
        };
        if let Written::Directory { upper, work } = &written {
            data.push_str(&format!(",upperdir={},workdir={}", upper.proc_path(), work.proc_path()));
        }
        let is_writable = !matches!(written, Written::Nowhere);
        mount::overlay(name, &place()?, is_writable, &data)?;
        Tree::at(root.mount_point())
    }
}

/// A directory with the two that an overlay needs. A link in the place of one is refused.
fn writable(directory: &PathFd) -> Result<Written, Error> {
    make_directory_in(directory, Path::new("upper"), 0o755)?;
    make_directory_in(directory, Path::new("work"), 0o700)?;
    let open = |name| open_in_root(directory, Path::new(name));
    Ok(Written::Directory { upper: open(UPPER)?, work: open(WORK)? })
}
