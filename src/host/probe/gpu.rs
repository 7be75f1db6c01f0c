//! Looks for graphics processors and their drivers' files.
//!
//! A node without any costs three system calls. CDI specifications are read only where there is a device or one was
//! asked for by name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{path_fact, read_limited};
use crate::elf::library_cache;
use crate::elf::{Object, version};
use crate::host::cdi::{Mount, Registry, SpecFile};
use crate::host::gpu::{Cdi, GpuFacts, Mode, Nvidia, SharedObject, Wish, parse_mig_minors, parse_minor};
use crate::host::{Kind, PathFact};

/// The largest specification, bytes; one of eight devices in parts has some 100 KiB.
const SPEC_MAX_BYTES: u64 = 4 << 20;
/// Most specifications of a directory.
const SPECS_MAX: usize = 256;
/// The largest cache of libraries of the host, bytes.
const CACHE_MAX_BYTES: u64 = 16 << 20;
/// The largest text of `/proc` or `/sys`, bytes.
const TEXT_MAX_BYTES: u64 = 1 << 20;

/// Where `libcuda.so.1` is if the host's cache does not know: Red Hat, Debian, SUSE, NixOS, WSL, GKE.
const LIBRARY_DIRECTORIES: [&str; 10] = [
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
    "usr/lib64/nvidia",
    "usr/lib",
    "run/opengl-driver/lib",
    "usr/lib/wsl/lib",
    "usr/local/nvidia/lib64",
];

/// Directories of programs.
const PROGRAM_DIRECTORIES: [&str; 4] = ["usr/bin", "usr/sbin", "usr/local/bin", "usr/local/nvidia/bin"];

/// NVIDIA's programs, configuration and sockets, for [`crate::launch`] to choose from.
const NVIDIA_PROGRAMS: [&str; 8] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nv-fabricmanager",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
];
const NVIDIA_FILES: [&str; 17] = [
    "run/nvidia-persistenced/socket",
    "run/nvidia-fabricmanager/socket",
    "etc/OpenCL/vendors/nvidia.icd",
    "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "usr/share/egl/egl_external_platform.d/09_nvidia_wayland2.json",
    "usr/share/egl/egl_external_platform.d/20_nvidia_xcb.json",
    "usr/share/egl/egl_external_platform.d/20_nvidia_xlib.json",
    "usr/share/vulkan/icd.d/nvidia_icd.json",
    "usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
    "usr/share/vulkan/icd.d/nvidia_icd.aarch64.json",
    "etc/vulkan/icd.d/nvidia_icd.json",
    "usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
    "etc/vulkan/implicit_layer.d/nvidia_layers.json",
    "usr/share/nvidia/nvoptix.bin",
    "etc/cufile.json",
];

/// Looks for what `wish` names.
pub fn gpu(wish: &Wish) -> GpuFacts {
    let mut facts = GpuFacts::default();
    if wish.mode == Mode::None {
        return facts;
    }
    let root = wish.root.as_path();
    let may_be = |mode: Mode| wish.mode == Mode::Auto || wish.mode == mode;
    let wants_nvidia = may_be(Mode::Nvidia) || names_nvidia(&wish.mode);
    if wants_nvidia && root.join("dev/nvidiactl").exists() && root.join("proc/driver/nvidia").is_dir() {
        facts.nvidia = Some(Nvidia::default());
    }
    facts.amd = may_be(Mode::Amd) && root.join("dev/kfd").exists();
    let others = facts.nvidia.is_some() || facts.amd;
    facts.intel = may_be(Mode::Intel) && !(others && wish.mode == Mode::Auto) && has_intel(root);
    let names = match &wish.mode {
        Mode::Cdi(names) => names.clone(),
        _ if facts == GpuFacts::default() => return facts,
        _ => Vec::new(),
    };
    if wish.with_devices {
        facts.devices = devices(root);
    }
    let registry = Registry::new(specs(&wish.cdi_directories));
    facts.problems.clone_from(&registry.problems);
    let names = if names.is_empty() { of_vendor(&facts, &registry) } else { names };
    if !names.is_empty() {
        facts.cdi = Some(registry.edits(&names).map(|edits| found(names, edits)));
    }
    if !matches!(wish.mode, Mode::Cdi(_))
        && let Some(Ok(cdi)) = &facts.cdi
        && let Some(stale) = stale(cdi)
    {
        facts.problems.push(stale);
        facts.cdi = None;
    }
    if facts.nvidia.is_some() {
        facts.nvidia = Some(nvidia(root, facts.cdi.as_ref().is_none_or(Result::is_err)));
    }
    facts
}

/// Whether devices of NVIDIA's are asked for by their names.
fn names_nvidia(mode: &Mode) -> bool {
    matches!(mode, Mode::Cdi(names) if names.iter().any(|name| name.starts_with("nvidia.com/")))
}

/// What is wrong with a specification that was made for a driver which has been upgraded since: it names files that went away.
fn stale(cdi: &Cdi) -> Option<String> {
    let is_driver = |mount: &Mount| {
        let name = Path::new(&mount.host_path).file_name().unwrap_or_default();
        name.as_bytes().starts_with(b"libcuda.so")
    };
    let (mount, ..) =
        cdi.mounts.iter().find(|(mount, fact, _)| is_driver(mount) && fact.kind == Kind::Missing)?;
    let files: Vec<String> = cdi.edits.files.iter().map(|file| file.display().to_string()).collect();
    Some(format!(
        "{} is not used: {} is not there, it was made for another driver",
        files.join(", "),
        mount.host_path
    ))
}

/// The CDI devices of the vendors that are there.
fn of_vendor(facts: &GpuFacts, registry: &Registry) -> Vec<String> {
    let vendors = [
        (facts.nvidia.is_some(), "nvidia.com/gpu"),
        (facts.amd, "amd.com/gpu"),
        (facts.intel, "intel.com/gpu"),
    ];
    vendors.iter().filter(|(is_there, _)| *is_there).flat_map(|(_, kind)| registry.all_of(kind)).collect()
}

/// What the host has of what specifications name.
fn found(names: Vec<String>, edits: crate::host::cdi::Edits) -> Cdi {
    let mounts = edits.mounts.iter().map(|mount| {
        let fact = path_fact(Path::new(&mount.host_path));
        let name = Path::new(&mount.container_path).file_name().unwrap_or_default();
        let is_library = fact.kind == Kind::File && is_library_name(name.as_bytes());
        let library = is_library.then(|| shared_object(&fact.resolved, name)).flatten();
        (mount.clone(), fact, library)
    });
    let mounts = mounts.collect();
    let nodes = edits.device_nodes.iter().map(|node| {
        let path = node.host_path.as_ref().unwrap_or(&node.path);
        (node.clone(), path_fact(Path::new(path)))
    });
    let nodes = nodes.collect();
    Cdi { names, mounts, nodes, edits }
}

/// The specifications of all directories, the weakest first.
fn specs(directories: &[PathBuf]) -> Vec<SpecFile> {
    let mut files = Vec::new();
    for (priority, directory) in directories.iter().enumerate() {
        let is_spec = |name: &OsString| {
            let extension = Path::new(name).extension().and_then(OsStr::to_str);
            matches!(extension, Some("json" | "yaml"))
        };
        for name in names_in(directory).into_iter().filter(is_spec).take(SPECS_MAX) {
            let path = directory.join(name);
            let content = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
                Err(error) => Err(crate::sys::Error::from_io("open", &error).errno.desc().to_owned()),
                Ok(_) => read_limited(&path, SPEC_MAX_BYTES)
                    .ok_or_else(|| format!("it is no file of at most {SPEC_MAX_BYTES} bytes")),
            };
            files.push(SpecFile { path, priority, content });
        }
    }
    files
}

/// Names in a directory, sorted; none if it cannot be read.
fn names_in(directory: &Path) -> Vec<OsString> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<OsString> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

fn text(path: &Path) -> Option<String> {
    let bytes = read_limited(path, TEXT_MAX_BYTES)?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty())
}

/// Whether a render node is of Intel's.
fn has_intel(root: &Path) -> bool {
    let render =
        names_in(&root.join("dev/dri")).into_iter().filter(|name| name.as_bytes().starts_with(b"renderD"));
    let mut vendors =
        render.filter_map(|name| text(&root.join("sys/class/drm").join(name).join("device/vendor")));
    vendors.any(|vendor| vendor == "0x8086")
}

/// Nodes below `/dev` by the names that the drivers give them.
fn devices(root: &Path) -> Vec<(PathBuf, PathFact)> {
    let directory = root.join("dev");
    let is_gpu = |name: &OsString| {
        let name = name.as_bytes();
        name.starts_with(b"nvidia") || [&b"dri"[..], b"kfd", b"gdrdrv"].contains(&name)
    };
    let names = names_in(&directory).into_iter().filter(is_gpu);
    names.map(|name| (Path::new("/dev").join(&name), path_fact(&directory.join(name)))).collect()
}

/// NVIDIA's driver; its files only if they are wanted.
fn nvidia(root: &Path, with_files: bool) -> Nvidia {
    let proc = root.join("proc/driver/nvidia");
    let capabilities = root.join("proc/driver/nvidia-caps/mig-minors");
    let parts = text(&capabilities).map(|text| parse_mig_minors(&text)).unwrap_or_default();
    let has_node = |minor: u32| root.join(format!("dev/nvidia-caps/nvidia-cap{minor}")).exists();
    // The kernel numbers what could be; what is has a file.
    let exists = |name: &str| {
        name.split_once('/')
            .is_some_and(|(gpu, rest)| proc.join("capabilities").join(gpu).join("mig").join(rest).exists())
    };
    let parts = parts.into_iter().filter(|(name, _)| exists(name));
    let gpus = names_in(&proc.join("gpus")).into_iter();
    let minors = gpus.filter_map(|bus| parse_minor(&text(&proc.join("gpus").join(bus).join("information"))?));
    let mut facts = Nvidia {
        version: text(&root.join("sys/module/nvidia/version"))
            .or_else(|| version_in(&text(&proc.join("version"))?)),
        lacks_uvm: Some(root.join("dev/nvidia-uvm")).filter(|path| !path.exists()),
        modprobe: Some(root.join("usr/bin/nvidia-modprobe")).filter(|path| path.is_file()),
        parts: parts.map(|(name, minor)| (name, has_node(minor))).collect(),
        minors: minors.collect(),
        ..Nvidia::default()
    };
    if with_files {
        nvidia_libraries(root, &mut facts);
        facts.files = nvidia_files(root);
    }
    facts
}

/// The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat ...`.
fn version_in(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.split_whitespace().find(is_version).map(str::to_owned)
}

fn nvidia_libraries(root: &Path, facts: &mut Nvidia) {
    let Some((directory, version)) = libcuda(root) else { return };
    let suffix = format!(".so.{version}");
    for directory in [directory.join("vdpau"), directory] {
        for name in names_in(&directory) {
            let bytes = name.as_bytes();
            let is_platform = bytes.starts_with(b"libnvidia-egl-") && is_library_name(bytes);
            if !(bytes.starts_with(b"lib") && bytes.ends_with(suffix.as_bytes()) || is_platform) {
                continue;
            }
            let fact = path_fact(&directory.join(&name));
            if fact.kind == Kind::File {
                facts.libraries.extend(shared_object(&fact.resolved, &name));
            }
        }
    }
    // A library and a link to it are one.
    facts.libraries.sort_by(|a, b| (&a.soname, &a.path).cmp(&(&b.soname, &b.path)));
    facts.libraries.dedup_by(|later, earlier| later.soname == earlier.soname);
    facts.library_version = Some(version);
}

/// The directory of the driver's libraries, and their version.
fn libcuda(root: &Path) -> Option<(PathBuf, String)> {
    let cache = read_limited(&root.join("etc/ld.so.cache"), CACHE_MAX_BYTES);
    let known = cache.as_deref().and_then(|cache| library_cache::path_of(cache, b"libcuda.so.1"));
    let known = known.map(|path| root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path))));
    let others = LIBRARY_DIRECTORIES.iter().map(|directory| root.join(directory).join("libcuda.so.1"));
    known.into_iter().chain(others).find_map(|path| {
        let fact = path_fact(&path);
        let name = fact.resolved.file_name()?.to_str()?;
        let version = name.strip_prefix("libcuda.so.").filter(|version| version.contains('.'))?;
        (fact.kind == Kind::File).then(|| Some((fact.resolved.parent()?.to_owned(), version.to_owned())))?
    })
}

fn nvidia_files(root: &Path) -> Vec<(PathBuf, PathFact)> {
    let program = |name: &&str| {
        PROGRAM_DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| root.join(path).is_file())
    };
    let programs = NVIDIA_PROGRAMS.iter().filter_map(program);
    let files = NVIDIA_FILES.iter().map(PathBuf::from);
    let facts = programs.chain(files).map(|path| (Path::new("/").join(&path), path_fact(&root.join(path))));
    facts.filter(|(_, fact)| fact.kind == Kind::File).collect()
}

/// `libx.so`, `libx.so.1`, `libx.so.1.2.3`
fn is_library_name(name: &[u8]) -> bool {
    name.starts_with(b"lib") && (name.ends_with(b".so") || name.windows(4).any(|part| part == b".so."))
}

/// What a library says of itself; none if it cannot be read or is none.
fn shared_object(path: &Path, name: &OsStr) -> Option<SharedObject> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let object = Object::read(&|offset, length| {
        let mut bytes = vec![0; length];
        let got = file.read_at(&mut bytes, offset).ok()?;
        bytes.truncate(got);
        Some(bytes)
    })?;
    let glibc = version::glibc(object.requires.iter().map(|required| required.version.as_slice()));
    let is_name = |soname: &Vec<u8>| !soname.is_empty() && !soname.contains(&b'/');
    let soname = object.soname.filter(is_name);
    let soname = soname.map_or_else(|| name.to_owned(), |soname| OsStr::from_bytes(&soname).to_owned());
    let needed = object.needed.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    Some(SharedObject { path: path.to_owned(), file_name: name.to_owned(), soname, glibc, needed })
}
