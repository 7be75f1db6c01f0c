//! NVIDIA: the driver's own libraries where no CDI specification names them, and what is to be said in either case.

use std::path::Path;

use super::capability::Capabilities;
use super::requirement::{Properties, cuda_of_driver, unmet};
use super::{Draft, reason};
use crate::host::gpu::Nvidia;
use crate::launch::inject::{FoundLibrary, HostMount, LIBRARY_DIRECTORY, Library, Link};
use crate::launch::plan::HostCommand;
use crate::mount::plan::Access;
use crate::policy::rules::gpu::CudaCompat;

/// Other names of libraries that the driver's installer makes links for.
const ALIASES: [(&str, &str); 3] = [
    ("libcuda.so", "libcuda.so.1"),
    ("libnvidia-opticalflow.so", "libnvidia-opticalflow.so.1"),
    ("libGLX_indirect.so.0", "libGLX_nvidia.so.0"),
];

impl Draft<'_> {
    /// `with_files`: whether nobody else says what of the driver is shown.
    pub(super) fn nvidia(&mut self, nvidia: &Nvidia, with_files: bool) {
        let version = nvidia.version.clone().or_else(|| nvidia.library_version.clone()).unwrap_or_default();
        let mut is_usable = true;
        if with_files {
            is_usable = self.matches(nvidia);
            if is_usable {
                self.driver(nvidia, &version);
            }
        }
        if is_usable {
            let cuda = self.compat(&version);
            self.aliases();
            let cuda =
                cuda.or_else(|| cuda_of_driver(&version)).map(|(major, minor)| format!("{major}.{minor}"));
            let properties = Properties { cuda, driver: Some(version).filter(|version| !version.is_empty()) };
            for requirement in unmet(&self.image.config, &properties) {
                let Properties { cuda, driver } = &properties;
                let (cuda, driver) = (cuda.as_deref().unwrap_or("?"), driver.as_deref().unwrap_or("?"));
                self.plan.warnings.push(format!(
                    "the image needs {requirement}, and this node's NVIDIA driver {driver} has CUDA {cuda}"
                ));
            }
        }
    }

    /// Whether libraries and kernel are of one version; says what is wrong.
    fn matches(&mut self, nvidia: &Nvidia) -> bool {
        match (&nvidia.version, &nvidia.library_version) {
            (Some(kernel), Some(libraries)) if kernel != libraries => {
                self.plan.warnings.push(format!(
                    "the NVIDIA driver in the kernel is {kernel} and its libraries are {libraries}: the driver was \
                     upgraded and the node not restarted; no GPU program runs until it is"
                ));
                false
            }
            (_, None) => {
                self.tell(
                    "this node has NVIDIA devices and no libcuda.so: the driver's libraries are missing"
                        .to_owned(),
                );
                false
            }
            _ => true,
        }
    }

    fn driver(&mut self, nvidia: &Nvidia, version: &str) {
        let of_image = self.image.config.env.iter().rev();
        let of_image = of_image.filter_map(|entry| entry.strip_prefix("NVIDIA_DRIVER_CAPABILITIES=")).next();
        let list = self.request.gpu.capabilities.as_deref().or(of_image);
        let (capabilities, unknown) = Capabilities::parse(list);
        for word in unknown {
            self.plan.notes.push(format!("{word:?} is no capability of NVIDIA's driver"));
        }
        let why = reason(&format!("NVIDIA driver {version}"));
        let wanted =
            nvidia.libraries.iter().filter(|library| capabilities.have(&library.soname.to_string_lossy()));
        for library in wanted {
            self.plan.injection.libraries.push(Library {
                name: library.soname.clone(),
                source: library.path.clone(),
                reason: why.clone(),
            });
        }
        for (path, fact) in &nvidia.files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == "socket" || capabilities.have(&name) {
                let is_socket = name == "socket";
                self.plan.injection.mounts.push(HostMount {
                    source: fact.resolved.clone(),
                    destination: path.clone(),
                    access: if is_socket { Access::ReadWrite } else { Access::ReadOnly },
                    is_directory: false,
                    reason: why.clone(),
                });
            }
        }
    }

    /// Names that programs are linked or open libraries by, beside the SONAME: they lead where that leads.
    fn aliases(&mut self) {
        let injection = &mut self.plan.injection;
        for (name, soname) in ALIASES {
            let found = injection.found.iter().find(|found| found.name == soname);
            let own = injection.libraries.iter().find(|library| library.name == soname);
            let (path, reason) = match (found, own) {
                (Some(found), _) => (found.path.clone(), found.reason.clone()),
                (None, Some(library)) => {
                    let (path, reason) = (Path::new(LIBRARY_DIRECTORY).join(name), library.reason.clone());
                    let link = Link { path: path.clone(), target: soname.into(), reason: reason.clone() };
                    injection.links.push(link);
                    (path, reason)
                }
                (None, None) => continue,
            };
            injection.found.push(FoundLibrary { name: name.into(), path, reason });
        }
    }

    /// Puts the image's own libraries for older drivers first, where they are to be used. Gives their CUDA.
    fn compat(&mut self, driver: &str) -> Option<(u32, u32)> {
        let by_site = self.policy.rules().gpu.cuda_compat.as_ref().map(|choice| choice.value);
        let choice: CudaCompat = self.request.gpu.cuda_compat.or(by_site).unwrap_or_default();
        let compat = self.image.libraries.compat.as_ref().filter(|compat| compat.is_used(driver, choice))?;
        let what = format!(
            "CUDA compatibility {} for driver {driver}; --cuda-compat=never leaves it out",
            compat.version
        );
        let why = crate::mount::plan::Reason::Host(what);
        for (name, path) in &compat.libraries {
            self.plan.injection.libraries.retain(|library| library.name != *name);
            self.plan.injection.found.retain(|found| found.name != *name);
            self.plan
                .injection
                .found
                .insert(0, FoundLibrary { name: name.clone(), path: path.clone(), reason: why.clone() });
        }
        compat.cuda()
    }

    /// Device nodes that are missing. Only the driver's setuid helper can make them, and only outside.
    pub(super) fn nodes(&mut self, nvidia: &Nvidia) {
        if let Some(makes) = &nvidia.lacks_uvm {
            let may = self.policy.rules().gpu.modprobe.as_ref().is_none_or(|modprobe| modprobe.value);
            match &nvidia.modprobe {
                Some(program) if may => {
                    self.plan.before = Some(HostCommand {
                        program: program.clone(),
                        arguments: ["-u", "-c=0"].map(str::to_owned).to_vec(),
                        makes: makes.clone(),
                        reason: reason("/dev/nvidia-uvm is missing"),
                    });
                }
                _ => self.tell(
                    "/dev/nvidia-uvm is missing, without which CUDA says 'unknown error': an admin runs \
                     'nvidia-modprobe -u -c=0'"
                        .to_owned(),
                ),
            }
        }
        let lacking: Vec<&str> =
            nvidia.parts.iter().filter(|(_, has_node)| !has_node).map(|(name, _)| name.as_str()).collect();
        if !lacking.is_empty() {
            let list = lacking.join(", ");
            self.tell(format!("parts of divided GPUs (MIG) without their nodes in /dev/nvidia-caps: {list}"));
        }
    }
}
