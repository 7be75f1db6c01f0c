//! Which driver of the host a job gets for its graphics processors, and whether the image can do with it. Pure.
//!
//! `/dev` is the host's, and which devices may be opened is for the batch system's device cgroup: so nothing here depends on the
//! rank, and `CUDA_VISIBLE_DEVICES` and its kin are never touched.

pub mod capability;
mod cdi;
pub mod compat;
mod hooks;
mod nvidia;
pub mod requirement;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use compat::Compat;

use super::inject::Injection;
use super::plan::{HostCommand, ImageFacts, PlanError};
use super::premounted;
use super::request::Request;
use crate::elf::version::GlibcVersion;
use crate::host::Host;
use crate::host::gpu::{GpuFacts, Mode, SharedObject, Wish};
use crate::mount::plan::{Reason, RootSource};
use crate::policy::rules::gpu::{CDI_DIRECTORIES, CudaCompat, GpuMode, GpuRequire};
use crate::policy::{Policy, Refusal};

/// What the driver's helper makes when it is asked for the node of unified memory.
const UVM_NODES: [&str; 2] = ["nvidia-uvm", "nvidia-uvm-tools"];

/// What the user asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuRequest {
    /// `--gpu`, and the option as typed.
    pub mode: Option<(Mode, String)>,
    /// `--gpu-caps`: what of NVIDIA's driver; none means as the image says.
    pub capabilities: Option<String>,
    /// `--cuda-compat`
    pub cuda_compat: Option<CudaCompat>,
    /// `--driver-root`: where the driver's tree begins.
    pub driver_root: Option<PathBuf>,
}

/// What a launch does for graphics processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuPlan {
    /// What is shown of the host.
    pub injection: Injection,
    /// A program of the host to be run by whoever makes the namespaces, before.
    pub before: Option<HostCommand>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What `--explain` says, too.
    pub notes: Vec<String>,
}

/// What is needed of the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageLibraries {
    /// Its C library's version, if that is glibc.
    pub glibc: Option<GlibcVersion>,
    /// CUDA's libraries for older drivers, if it has them.
    pub compat: Option<Compat>,
}

/// What to look for on the node.
///
/// # Errors
///
/// The user asks for what the site does not leave to him.
pub fn wish(request: &Request, policy: &Policy) -> Result<Wish, Refusal> {
    let rules = &policy.rules().gpu;
    let site = rules.mode.as_ref().map_or(Mode::Auto, |mode| of_policy(&mode.value));
    let mode = match (&request.gpu.mode, &rules.allow_user) {
        (Some((mode, typed)), Some(allow)) if !allow.value && *mode != site => {
            let rule = policy.rule(allow.at, "[gpu] allow_user");
            let allowed = "leave the option out".to_owned();
            return Err(Refusal { what: typed.clone(), rule, allowed });
        }
        (Some((mode, _)), _) => mode.clone(),
        (None, _) => site,
    };
    let cdi_directories = match &rules.cdi_dirs {
        Some(listed) => listed.rules.iter().map(|directory| directory.value.clone()).collect(),
        None => CDI_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    let root = request.gpu.driver_root.clone().unwrap_or_else(|| PathBuf::from("/"));
    Ok(Wish { mode, cdi_directories, root, with_devices: request.contain.is_some() })
}

/// The same in the words of facts.
fn of_policy(mode: &GpuMode) -> Mode {
    match mode {
        GpuMode::Auto => Mode::Auto,
        GpuMode::None => Mode::None,
        GpuMode::Nvidia => Mode::Nvidia,
        GpuMode::Amd => Mode::Amd,
        GpuMode::Intel => Mode::Intel,
        GpuMode::Cdi(name) => Mode::Cdi(vec![name.clone()]),
    }
}

/// Decides. Nothing comes of it where nothing was found and nothing was asked for.
pub fn plan(
    request: &Request,
    image: &ImageFacts,
    policy: &Policy,
    host: &Host,
) -> Result<GpuPlan, PlanError> {
    let mut plan = GpuPlan::default();
    let facts = &host.gpu;
    let asked = request.gpu.mode.as_ref().map(|(_, typed)| typed.as_str());
    if facts.is_nothing() {
        plan.warnings.extend(missing(request));
        return plan.judged(request, policy);
    }
    let mut draft = Draft { request, image, policy, host, facts, is_asked: asked.is_some(), plan };
    if let Some(nvidia) = &facts.nvidia {
        draft.nodes(nvidia);
    }
    match &facts.cdi {
        Some(Ok(cdi)) => draft.cdi(cdi),
        Some(Err(error)) if matches!(request.gpu.mode, Some((Mode::Cdi(_), _))) => {
            return Err(PlanError::GpuDevice(error.clone()));
        }
        Some(Err(error)) => draft.plan.warnings.push(error.to_string()),
        None => {}
    }
    draft.plan.notes.extend(facts.problems.iter().cloned());
    if let Some(nvidia) = &facts.nvidia {
        draft.nvidia(nvidia, !matches!(facts.cdi, Some(Ok(_))));
    } else if !matches!(facts.cdi, Some(Ok(_))) {
        draft.other();
    }
    if request.contain.is_some() {
        draft.devices();
    }
    draft.libraries();
    draft.premounted();
    draft.plan.judged(request, policy)
}

/// What was asked for by name and is not there.
fn missing(request: &Request) -> Option<String> {
    let (mode, typed) = request.gpu.mode.as_ref()?;
    let what = match mode {
        Mode::Nvidia => "NVIDIA driver (/dev/nvidiactl and /proc/driver/nvidia)",
        Mode::Amd => "AMD GPU (/dev/kfd)",
        Mode::Intel => "Intel GPU (a render node of vendor 0x8086)",
        Mode::Auto | Mode::None | Mode::Cdi(_) => return None,
    };
    Some(format!("this node has no {what}, which {typed} asks for"))
}

impl GpuPlan {
    /// Warnings, or an error, or nothing: as the site wants it.
    fn judged(mut self, request: &Request, policy: &Policy) -> Result<GpuPlan, PlanError> {
        let require = policy.rules().gpu.require.as_ref().map_or(GpuRequire::Warn, |require| require.value);
        match (require, self.warnings.first()) {
            (GpuRequire::Fail, Some(first)) => Err(PlanError::Gpu { why: first.clone() }),
            (GpuRequire::Off, _) if request.gpu.mode.is_none() => {
                self.notes.append(&mut self.warnings);
                Ok(self)
            }
            _ => Ok(self),
        }
    }
}

/// A plan in the making, with what it is made from.
struct Draft<'a> {
    request: &'a Request,
    image: &'a ImageFacts,
    policy: &'a Policy,
    host: &'a Host,
    facts: &'a GpuFacts,
    is_asked: bool,
    plan: GpuPlan,
}

impl Draft<'_> {
    /// What concerns those who use a GPU, and not everybody who happens to be on such a node.
    fn tell(&mut self, what: String) {
        if self.is_asked { self.plan.warnings.push(what) } else { self.plan.notes.push(what) }
    }

    /// AMD's and Intel's libraries are the image's own.
    fn other(&mut self) {
        let vendor = if self.facts.amd { "AMD GPU: ROCm" } else { "Intel GPU: Level Zero" };
        self.plan.notes.push(format!("{vendor} is the image's, the devices are in /dev"));
    }

    /// The devices of a job that has a `/dev` of its own.
    fn devices(&mut self) {
        use super::inject::HostMount;
        use crate::host::Kind;
        use crate::mount::plan::Access;
        let found = self.facts.devices.iter();
        let found = found.filter(|(_, fact)| matches!(fact.kind, Kind::File | Kind::Directory));
        let mut devices: Vec<(PathBuf, PathBuf, bool)> = found
            .map(|(path, fact)| (path.clone(), fact.resolved.clone(), fact.kind == Kind::Directory))
            .collect();
        devices.extend(self.made().into_iter().map(|(path, source)| (path, source, false)));
        // The plan of a rank that came after they were made must be the same.
        devices.sort();
        devices.dedup_by(|later, earlier| later.0 == earlier.0);
        self.plan.injection.mounts.extend(devices.into_iter().map(|(destination, source, is_directory)| {
            let (access, reason) = (Access::ReadWrite, reason("device of a GPU"));
            HostMount { source, destination, access, is_directory, reason }
        }));
    }

    /// Nodes that will have been made when the job begins: their places in the job and on the host.
    fn made(&self) -> Vec<(PathBuf, PathBuf)> {
        let makes = self.plan.before.as_ref().and_then(|before| before.makes.parent());
        let nodes = makes.into_iter().flat_map(|directory| {
            UVM_NODES.iter().map(|name| (Path::new("/dev").join(name), directory.join(name)))
        });
        nodes.collect()
    }

    /// Takes back what the image's C library cannot load, and what needs that.
    fn libraries(&mut self) {
        let facts = self.facts;
        let native = facts.nvidia.iter().flat_map(|nvidia| &nvidia.libraries);
        let cdi = facts.cdi.iter().flatten().flat_map(|cdi| &cdi.mounts);
        let injection = &self.plan.injection;
        let given = native.chain(cdi.filter_map(|(_, _, library)| library.as_ref())).filter(|library| {
            injection.libraries.iter().any(|given| given.source == library.path)
                || injection.mounts.iter().any(|given| given.source == library.path)
        });
        let given: Vec<&SharedObject> = given.collect();
        if self.image.loaders.musl.is_some() && self.image.libraries.glibc.is_none() {
            if let Some(library) = given.iter().find(|library| library.glibc.is_some()) {
                let name = library.soname.display();
                self.tell(format!(
                    "the image's C library is musl: {name} of the host needs glibc and may not load"
                ));
            }
            return;
        }
        let Some(have) = self.image.libraries.glibc else { return };
        let (mut out, mut rest): (Vec<&SharedObject>, Vec<_>) =
            given.into_iter().partition(|library| library.glibc > Some(have));
        let newest = out.iter().max_by_key(|library| library.glibc);
        let Some((newest, need)) = newest.and_then(|newest| Some((*newest, newest.glibc?))) else { return };
        loop {
            let is_out = |name: &OsString| out.iter().any(|library| library.soname == *name);
            let (needing, others): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|library| library.needed.iter().any(is_out));
            rest = others;
            if needing.is_empty() {
                break;
            }
            out.extend(needing);
        }
        let sources: Vec<&Path> = out.iter().map(|library| library.path.as_path()).collect();
        self.plan.injection.leave_out(&sources);
        let names: Vec<String> = out.iter().map(|library| library.soname.display().to_string()).collect();
        let what = format!(
            "{} of the host needs glibc {}.{} and the image has {}.{}; left out: {}",
            newest.soname.display(),
            need.0,
            need.1,
            have.0,
            have.1,
            names.join(", ")
        );
        // Without that one no program uses a GPU.
        if out.iter().any(|library| library.soname == "libcuda.so.1") {
            self.plan.warnings.push(what);
        } else {
            self.tell(what);
        }
    }

    /// Gives everything back where the image is a tree that the site has mounted, to which nothing can be added.
    fn premounted(&mut self) {
        let Some(why) = self.host.features.fuse.why_not() else { return };
        let (root, _) = premounted::root(self.image, self.policy, self.host, &mut Vec::new());
        if !self.plan.injection.is_empty() && matches!(root, RootSource::Premounted { .. }) {
            self.plan.warnings.push(format!("the host's GPU libraries are left out: {why}"));
            self.plan.injection = Injection::default();
        }
    }
}

/// Why something is there, and how to be without it.
fn reason(what: &str) -> Reason {
    Reason::Host(format!("{what}; --gpu=none leaves it out"))
}

#[cfg(test)]
mod tests;
