//! The files of a new root before there is one: those of the image, and those that the plan binds over it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cli::image_file::ImageFile;
use crate::convert::facts;
use crate::elf::{Object, Symbols, library_cache};
use crate::host::libraries;
use crate::launch::plan::LaunchPlan;
use crate::mount::plan::Op;
use crate::squashfs::reader::InodeKind;

/// A root that is planned.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewRoot<'a> {
    pub(super) plan: &'a LaunchPlan,
    pub(super) image: &'a ImageFile,
}

impl NewRoot<'_> {
    /// The program that will be executed, and the object in it; without one, it is a script. None where there is none.
    pub(super) fn program(&self) -> Option<(Vec<u8>, Option<Object>)> {
        let program = self.plan.program.as_bytes();
        let candidates: Vec<PathBuf> = if program.contains(&b'/') {
            let here = self.plan.cwd.first().map_or(Path::new("/"), PathBuf::as_path);
            vec![here.join(OsStr::from_bytes(program))]
        } else {
            self.plan.search.iter().map(|directory| directory.join(OsStr::from_bytes(program))).collect()
        };
        let found = candidates.into_iter().find(|path| self.is_program(path))?;
        let path = found.into_os_string().as_bytes().to_vec();
        let object = self.object(&path);
        Some((path, object))
    }

    fn is_program(&self, path: &Path) -> bool {
        match self.on_host(path) {
            Some(path) => path.is_file(),
            None => {
                let found = self.image.resolve(path.as_os_str().as_bytes()).ok().flatten();
                found.is_some_and(|inode| matches!(inode.kind, InodeKind::File(_)) && inode.mode & 0o111 != 0)
            }
        }
    }

    /// The object at a path.
    pub(super) fn object(&self, path: &[u8]) -> Option<Object> {
        match self.on_host(Path::new(OsStr::from_bytes(path))) {
            Some(path) => libraries::object(&path),
            None => facts::object_at(&self.image.filesystem, path),
        }
    }

    /// Its dynamic symbols.
    pub(super) fn symbols(&self, path: &[u8], object: &Object) -> Option<Symbols> {
        match self.on_host(Path::new(OsStr::from_bytes(path))) {
            Some(path) => libraries::symbols_of(&path, object),
            None => facts::symbols_at(&self.image.filesystem, path),
        }
    }

    /// The loader's list of libraries; empty where there is none.
    pub(super) fn library_cache(&self) -> Vec<u8> {
        let cache = self.image.small_file(library_cache::PATH.as_bytes(), library_cache::MAX_BYTES);
        cache.ok().flatten().unwrap_or_default()
    }

    /// The directories of the job's `LD_LIBRARY_PATH`.
    pub(super) fn library_path(&self) -> Vec<Vec<u8>> {
        let value = self.plan.env.iter().find(|(name, _)| name == "LD_LIBRARY_PATH");
        let value = value.map(|(_, value)| value.as_bytes()).unwrap_or_default();
        value.split(|byte| *byte == b':').filter(|part| part.starts_with(b"/")).map(<[u8]>::to_vec).collect()
    }

    /// The host path behind a path of the new root; none if it is the image's.
    fn on_host(&self, path: &Path) -> Option<PathBuf> {
        let mut nearest: Option<(&Path, &Path)> = None;
        for planned in &self.plan.mount.ops {
            if let Op::Bind { source, destination, .. } = &planned.op
                && path.starts_with(destination)
                && nearest.is_none_or(|(known, _)| destination.starts_with(known))
            {
                nearest = Some((destination, source));
            }
        }
        let (destination, source) = nearest?;
        let rest = path.strip_prefix(destination).ok()?;
        Some(if rest.as_os_str().is_empty() { source.to_owned() } else { source.join(rest) })
    }
}
