//! `[gpu]`: which devices' libraries jobs get, and from where.

use std::path::PathBuf;

use super::Listed;
use crate::policy::file::Located;

/// `[gpu]`
#[derive(Debug, Clone, Default)]
pub struct Gpu {
    /// Whose devices; none means those that the node has.
    pub mode: Option<Located<GpuMode>>,
    /// Directories of CDI specifications, the later the stronger; none means [`CDI_DIRECTORIES`].
    pub cdi_dirs: Option<Listed<Located<PathBuf>>>,
    /// What becomes of a launch whose devices cannot be given whole; none means a warning.
    pub require: Option<Located<GpuRequire>>,
    /// Whether the image's CUDA compatibility libraries are used; none means where the host's driver is too old.
    pub cuda_compat: Option<Located<CudaCompat>>,
    /// Whether missing device nodes may be asked for by the driver's own setuid helper; none means yes.
    pub modprobe: Option<Located<bool>>,
    /// Whether users may choose another mode; none means yes.
    pub allow_user: Option<Located<bool>>,
}

/// Where CDI specifications lie unless the site says otherwise.
pub const CDI_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Whose devices a job gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GpuMode {
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
    /// That of a CDI specification, `vendor.example/class=name`.
    Cdi(String),
}

/// The words for [`GpuMode`], but for `cdi:NAME`.
pub const GPU_MODE_WORDS: [(&str, GpuMode); 5] = [
    ("auto", GpuMode::Auto),
    ("none", GpuMode::None),
    ("nvidia", GpuMode::Nvidia),
    ("amd", GpuMode::Amd),
    ("intel", GpuMode::Intel),
];

impl GpuMode {
    /// Parses `auto`, `none`, `nvidia`, `amd`, `intel` or `cdi:NAME`, for the policy and the command line.
    pub fn parse(text: &str) -> Option<GpuMode> {
        if let Some(name) = text.strip_prefix("cdi:") {
            return is_cdi_device(name).then(|| GpuMode::Cdi(name.to_owned()));
        }
        GPU_MODE_WORDS.iter().find(|(word, _)| *word == text).map(|(_, mode)| mode.clone())
    }
}

/// `vendor.example/class=device`, in the characters of the CDI specification.
fn is_cdi_device(name: &str) -> bool {
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let Some((kind, device)) = name.split_once('=') else {
        return false;
    };
    kind.split_once('/').is_some_and(|(vendor, class)| plain(vendor, "_-.") && plain(class, "_-."))
        && plain(device, "_-.:")
}

/// What becomes of a launch whose devices cannot be given whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GpuRequire {
    /// It goes on and says so.
    #[default]
    Warn,
    /// It fails.
    Fail,
    /// It goes on without a word.
    Off,
}

/// The words for [`GpuRequire`].
pub const GPU_REQUIRE_WORDS: [(&str, GpuRequire); 3] =
    [("warn", GpuRequire::Warn), ("fail", GpuRequire::Fail), ("off", GpuRequire::Off)];

/// Whether the image's CUDA compatibility libraries come before the host's driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CudaCompat {
    /// Where the host's driver is older than the image's CUDA.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Wherever the image has them.
    Always,
}

/// The words for [`CudaCompat`].
pub const CUDA_COMPAT_WORDS: [(&str, CudaCompat); 3] =
    [("auto", CudaCompat::Auto), ("never", CudaCompat::Never), ("always", CudaCompat::Always)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (text, expected) in [
            ("auto", Some(GpuMode::Auto)),
            ("none", Some(GpuMode::None)),
            ("nvidia", Some(GpuMode::Nvidia)),
            ("cdi:nvidia.com/gpu=all", Some(GpuMode::Cdi("nvidia.com/gpu=all".to_owned()))),
            ("cdi:vendor.example/class=0:1", Some(GpuMode::Cdi("vendor.example/class=0:1".to_owned()))),
            ("cdi:v.example/a.b=0", Some(GpuMode::Cdi("v.example/a.b=0".to_owned()))),
            ("cdi:", None),
            ("cdi:gpu", None),
            ("cdi:nvidia.com/gpu", None),
            ("cdi:nvidia.com=all", None),
            ("cdi:/gpu=all", None),
            ("cdi:nvidia.com/gpu=", None),
            ("cdi:nvidia.com/../x=all", None),
            ("Auto", None),
            ("", None),
        ] {
            assert_eq!(GpuMode::parse(text), expected, "{text}");
        }
    }
}
