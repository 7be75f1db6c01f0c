//! CUDA's forward compatibility: an image brings the user part of a newer driver for hosts whose driver is older.
//!
//! Source: the container toolkit's `enable-cuda-compat` hook.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::policy::rules::gpu::CudaCompat;

/// Where images have it.
pub const DIRECTORY: &str = "/usr/local/cuda/compat";

/// The section with what the library says of the drivers that it runs on.
pub const NOTE_SECTION: &[u8] = b".note.cuda.fwd_compatibility";

/// Libraries of an image for older drivers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compat {
    /// The version in the name of its `libcuda.so`.
    pub version: String,
    /// The section [`NOTE_SECTION`] of that.
    pub note: Option<Vec<u8>>,
    /// All libraries: SONAME and place.
    pub libraries: Vec<(OsString, PathBuf)>,
}

/// What the library says.
#[derive(Debug, Deserialize)]
struct Note {
    #[serde(rename = "Driver")]
    drivers: Vec<u32>,
    #[serde(rename = "CUDA Version")]
    cuda: String,
}

impl Compat {
    /// Whether it is used with a host's driver of this version.
    pub(super) fn is_used(&self, driver: &str, choice: CudaCompat) -> bool {
        match choice {
            CudaCompat::Never => false,
            CudaCompat::Always => true,
            CudaCompat::Auto => {
                let (Some(host), Some(own)) = (major(driver), major(&self.version)) else { return false };
                match self.note.as_deref().and_then(note) {
                    Some(note) => {
                        let of_host = super::requirement::cuda_of_driver(driver);
                        note.drivers.contains(&host) && cuda(&note.cuda) > of_host
                    }
                    None => host < own,
                }
            }
        }
    }

    /// The CUDA that it brings.
    pub(super) fn cuda(&self) -> Option<(u32, u32)> {
        let noted = self.note.as_deref().and_then(note).and_then(|note| cuda(&note.cuda));
        noted.or_else(|| super::requirement::cuda_of_driver(&self.version))
    }
}

/// The JSON in an ELF note: behind the sizes of name and content, the type and the name.
fn note(section: &[u8]) -> Option<Note> {
    let start = section.iter().position(|byte| *byte == b'{')?;
    let end = section.iter().rposition(|byte| *byte == b'}')?;
    serde_json::from_slice(section.get(start..=end)?).ok()
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn cuda(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The version in `libcuda.so.550.54.14`; none for `libcuda.so.1`.
pub fn version_of(file_name: &str) -> Option<&str> {
    file_name.strip_prefix("libcuda.so.").filter(|version| version.contains('.'))
}

/// The place of a compatibility library.
pub fn place(file_name: &OsString) -> PathBuf {
    Path::new(DIRECTORY).join(file_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_where_the_host_is_older() {
        let noted = br#"....{"Driver": [470, 535], "CUDA Version": "12.6"}"#.to_vec();
        for (version, note, driver, choice, expected) in [
            ("560.35", None, "535.104", CudaCompat::Auto, true),
            ("560.35", None, "560.10", CudaCompat::Auto, false),
            ("560.35", None, "570.1", CudaCompat::Auto, false),
            ("560.35", None, "570.1", CudaCompat::Always, true),
            ("560.35", None, "535.104", CudaCompat::Never, false),
            ("560.35", Some(&noted), "535.104", CudaCompat::Auto, true),
            ("560.35", Some(&noted), "550.1", CudaCompat::Auto, false),
            ("560.35", Some(&b"no note".to_vec()), "535.104", CudaCompat::Auto, true),
            ("x", None, "535.104", CudaCompat::Auto, false),
        ] {
            let compat = Compat { version: version.to_owned(), note: note.cloned(), libraries: Vec::new() };
            assert_eq!(compat.is_used(driver, choice), expected, "{version} {driver} {choice:?}");
        }
        let compat = Compat { version: "560.35".to_owned(), note: Some(noted), libraries: Vec::new() };
        assert_eq!(compat.cuda(), Some((12, 6)));
    }

    #[test]
    fn versions() {
        assert_eq!(version_of("libcuda.so.560.35.03"), Some("560.35.03"));
        assert_eq!(version_of("libcuda.so.1"), None);
        assert_eq!(version_of("libcudadebugger.so.560.35"), None);
    }
}
