//! What this node has of graphics processors, as far as a job needs to know: whose, and which files of the host's driver.

use std::ffi::OsString;
use std::path::PathBuf;

use super::PathFact;
use super::cdi::{DeviceNode, Edits, Mount, ResolveError};
use crate::elf::version::GlibcVersion;

/// Whose devices are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// Those that the node has.
    #[default]
    Auto,
    /// Nobody's.
    None,
    /// NVIDIA's.
    Nvidia,
    /// AMD's.
    Amd,
    /// Intel's.
    Intel,
    /// Those of CDI specifications, by their names.
    Cdi(Vec<String>),
}

/// What to look for, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whose.
    pub mode: Mode,
    /// Directories of CDI specifications, the later the stronger.
    pub cdi_directories: Vec<PathBuf>,
    /// Where the driver's own tree begins; `/` almost everywhere.
    pub root: PathBuf,
    /// Whether the job has a `/dev` of its own, to which devices have to be added.
    pub with_devices: bool,
}

/// What was found. Nothing, by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuFacts {
    /// NVIDIA's driver.
    pub nvidia: Option<Nvidia>,
    /// Whether AMD's driver is loaded: `/dev/kfd`.
    pub amd: bool,
    /// Whether a render node is Intel's.
    pub intel: bool,
    /// Device nodes and directories of them, below `/dev`; looked at only where they have to be added.
    pub devices: Vec<(PathBuf, PathFact)>,
    /// What CDI specifications say of what was asked for.
    pub cdi: Option<Result<Cdi, ResolveError>>,
    /// CDI files that are not used, and why.
    pub problems: Vec<String>,
}

impl GpuFacts {
    /// Whether there is anything that a job could be given.
    pub fn is_nothing(&self) -> bool {
        *self == GpuFacts::default()
    }

    /// Whether libraries may come of it, which have to do with those of the image: AMD's and Intel's drivers bring none.
    pub fn may_have_libraries(&self) -> bool {
        let of_cdi = self.cdi.iter().flatten().flat_map(|cdi| &cdi.mounts);
        self.nvidia.is_some() || of_cdi.into_iter().any(|(_, _, library)| library.is_some())
    }
}

/// What CDI specifications say, and what the host has of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cdi {
    /// The devices that were asked for.
    pub names: Vec<String>,
    /// What they need.
    pub edits: Edits,
    /// Its mounts with what the host has there and, of libraries, what they say of themselves.
    pub mounts: Vec<(Mount, PathFact, Option<SharedObject>)>,
    /// Its device nodes with what the host has there.
    pub nodes: Vec<(DeviceNode, PathFact)>,
}

/// A shared object of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedObject {
    /// Where, without links.
    pub path: PathBuf,
    /// The name in its directory, which a link may have.
    pub file_name: OsString,
    /// The name that programs need it by; the file's where it says none.
    pub soname: OsString,
    /// The oldest C library that it can do with.
    pub glibc: Option<GlibcVersion>,
    /// The SONAMEs of the libraries that it needs.
    pub needed: Vec<OsString>,
}

/// NVIDIA's driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nvidia {
    /// The version of the kernel's part.
    pub version: Option<String>,
    /// The version of the libraries, by the name of `libcuda.so`.
    pub library_version: Option<String>,
    /// Libraries of that version.
    pub libraries: Vec<SharedObject>,
    /// Programs, configuration, sockets: the place on the host without the driver's root, and what is there.
    pub files: Vec<(PathBuf, PathFact)>,
    /// The node of unified memory, if it is missing: no CUDA program runs without it.
    pub lacks_uvm: Option<PathBuf>,
    /// The helper that makes device nodes.
    pub modprobe: Option<PathBuf>,
    /// Parts of divided devices (MIG), and whether each has its node.
    pub parts: Vec<(String, bool)>,
    /// Numbers of the devices.
    pub minors: Vec<u32>,
}

/// Lines `gpu0/gi1/ci0/access 31` of the kernel's list of capabilities.
pub fn parse_mig_minors(text: &str) -> Vec<(String, u32)> {
    let line = |line: &str| {
        let (name, minor) = line.trim().rsplit_once(' ')?;
        Some((name.to_owned(), minor.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The number in the line `Device Minor: 0` of what the kernel says of a device.
pub fn parse_minor(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("Device Minor:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says() {
        let minors =
            parse_mig_minors("config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\n\nx\ny z\n");
        let expected = [("config", 1), ("monitor", 2), ("gpu0/gi0/access", 3), ("gpu0/gi0/ci0/access", 4)];
        assert_eq!(minors, expected.map(|(name, minor)| (name.to_owned(), minor)));
        let information = "Model: \t\t NVIDIA H100\nIRQ:   \t\t 34\nDevice Minor: \t 3\nGPU Firmware: 1\n";
        assert_eq!(parse_minor(information), Some(3));
        assert_eq!(parse_minor("Model: x\n"), None);
    }
}
