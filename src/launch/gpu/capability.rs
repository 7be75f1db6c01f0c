//! Which part of NVIDIA's driver a library or program belongs to, as `NVIDIA_DRIVER_CAPABILITIES` names them.
//!
//! Source: libnvidia-container's lists. What is not among them is newer than they are, and is taken.

/// What a job gets that says nothing.
const DEFAULT: &str = "utility,compute";

/// Names before `.so`, or of programs and files, by what they are for.
const PARTS: [(&str, &[&str]); 7] = [
    (
        "utility",
        &[
            "libnvidia-ml",
            "libnvidia-cfg",
            "libnvidia-nscq",
            "nvidia-smi",
            "nvidia-debugdump",
            "nvidia-persistenced",
            "nv-fabricmanager",
        ],
    ),
    (
        "compute",
        &[
            "libcuda",
            "libcudadebugger",
            "libnvidia-opencl",
            "libnvidia-gpucomp",
            "libnvidia-ptxjitcompiler",
            "libnvidia-fatbinaryloader",
            "libnvidia-allocator",
            "libnvidia-compiler",
            "libnvidia-pkcs11",
            "libnvidia-pkcs11-openssl3",
            "libnvidia-nvvm",
            "libnvidia-nvvm70",
            "libnvidia-tileiras",
            "nvidia-cuda-mps-control",
            "nvidia-cuda-mps-server",
            "nvidia-imex",
            "nvidia-imex-ctl",
            "nvidia.icd",
            "cufile.json",
        ],
    ),
    ("video", &["libvdpau_nvidia", "libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"]),
    ("ngx", &["libnvidia-ngx"]),
    (
        "graphics",
        &[
            "libnvidia-eglcore",
            "libnvidia-glcore",
            "libnvidia-tls",
            "libnvidia-glsi",
            "libnvidia-fbc",
            "libnvidia-ifr",
            "libnvidia-rtcore",
            "libnvidia-glvkspirv",
            "libnvidia-cbl",
            "libnvoptix",
            "libGLX_nvidia",
            "libEGL_nvidia",
            "libGLESv2_nvidia",
            "libGLESv1_CM_nvidia",
            "libnvidia-egl-gbm",
            "libnvidia-egl-wayland",
            "libnvidia-egl-wayland2",
            "libnvidia-egl-xcb",
            "libnvidia-egl-xlib",
            "libnvidia-vulkan-producer",
            "10_nvidia.json",
            "15_nvidia_gbm.json",
            "10_nvidia_wayland.json",
            "09_nvidia_wayland2.json",
            "20_nvidia_xcb.json",
            "20_nvidia_xlib.json",
            "nvidia_icd.json",
            "nvidia_icd.x86_64.json",
            "nvidia_icd.aarch64.json",
            "nvidia_layers.json",
            "nvoptix.bin",
        ],
    ),
    ("display", &["libnvidia-glcore", "libGLX_nvidia", "libnvidia-tls", "libnvidia-glsi"]),
    ("compat32", &[]),
];

/// A set of parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities(Vec<String>);

impl Capabilities {
    /// Parses `compute,utility` or `all`; words that are no part's are given back.
    pub fn parse(list: Option<&str>) -> (Capabilities, Vec<String>) {
        let list = list.map(str::trim).filter(|list| !list.is_empty()).unwrap_or(DEFAULT);
        let words = list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned);
        let is_known = |word: &String| word == "all" || PARTS.iter().any(|(part, _)| part == word);
        let (known, unknown) = words.partition(is_known);
        (Capabilities(known), unknown)
    }

    /// Whether a file of this name belongs to them.
    pub fn have(&self, file_name: &str) -> bool {
        let stem = file_name.split(".so").next().unwrap_or_default();
        let mut parts = PARTS.iter().filter(|(_, names)| names.contains(&stem) || names.contains(&file_name));
        let mut is_listed = false;
        let wanted = parts.any(|(part, _)| {
            is_listed = true;
            self.0.iter().any(|word| word == part || word == "all")
        });
        wanted || !is_listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_files() {
        for (list, file, expected) in [
            (None, "libcuda.so.1", true),
            (None, "libnvidia-ml.so.1", true),
            (None, "nvidia-smi", true),
            (None, "libnvidia-eglcore.so.550.54", false),
            (None, "libnvidia-encode.so.1", false),
            (None, "libnvidia-new.so.1", true),
            (Some(""), "libcuda.so.1", true),
            (Some("utility"), "libcuda.so.1", false),
            (Some("video, compute"), "libnvcuvid.so.1", true),
            (Some("display"), "libGLX_nvidia.so.0", true),
            (Some("all"), "libnvidia-eglcore.so.550.54", true),
        ] {
            assert_eq!(Capabilities::parse(list).0.have(file), expected, "{list:?} {file}");
        }
        assert_eq!(Capabilities::parse(Some("compute,gaming")).1, ["gaming"]);
    }
}
