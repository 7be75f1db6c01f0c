//! The Container Device Interface: files of the node that say what a container needs for a device.
//!
//! Source: the CDI specification, versions 0.1.0 to 1.1.0, and what its reference implementation does with conflicts,
//! precedence and bad files. Pure: [`super::probe`] reads the files.

pub mod name;
mod raw;
mod version;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use raw::{ContainerEdits, DeviceNode, Hook, Mount};

use self::name::{DeviceName, is_device};
use self::raw::RawSpec;

/// A specification file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFile {
    /// Where.
    pub path: PathBuf,
    /// The higher, the stronger: the index of its directory.
    pub priority: usize,
    /// Its bytes, or why there are none.
    pub content: Result<Vec<u8>, String>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is no JSON or YAML, or has a field that no version knows.
    #[error("{0}")]
    Syntax(String),
    /// A version that is not known.
    #[error("cdiVersion {0:?} is none from 0.1.0 to 1.1.0")]
    Version(String),
    /// It uses what its version does not have.
    #[error("{field} needs cdiVersion {needed}, and it says {declared}")]
    TooOld {
        /// The field.
        field: &'static str,
        /// The least version.
        needed: &'static str,
        /// What the file says.
        declared: String,
    },
    /// `vendor/class`
    #[error("kind {0:?} is no VENDOR/CLASS")]
    Kind(String),
    /// A device's name.
    #[error("{0:?} is no name of a device")]
    Device(String),
    /// The same name again.
    #[error("device {0:?} is there twice")]
    Twice(String),
    /// A device without anything to do.
    #[error("device {0:?} changes nothing")]
    Empty(String),
    /// No devices at all.
    #[error("it has no devices")]
    NoDevices,
    /// A relative path, a variable without `=`.
    #[error("{what} {value:?} {why}")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// One good file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// `vendor/class`
    pub kind: String,
    /// For whichever of its devices.
    pub edits: ContainerEdits,
    /// Its devices.
    pub devices: Vec<(String, ContainerEdits)>,
}

impl Spec {
    /// Reads a file; JSON is YAML, too, and quicker.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Spec, SpecError> {
        let syntax = |error: &dyn std::fmt::Display| SpecError::Syntax(error.to_string());
        let raw: RawSpec = if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_slice(bytes).map_err(|error| syntax(&error))?
        } else {
            let value = yaml::parse(bytes).map_err(|error| syntax(&error))?;
            serde_json::from_value(value).map_err(|error| syntax(&error))?
        };
        raw.check()
    }
}

/// All files of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    specs: Vec<(PathBuf, Spec)>,
    /// For every device the files that have it with the highest priority: one, or the name cannot be resolved.
    devices: BTreeMap<DeviceName, Found>,
    /// Files that are not used, and why.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    priority: usize,
    /// Indexes of the specification and of its device.
    places: Vec<(usize, usize)>,
}

/// A name that leads to no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nobody knows it.
    #[error("no CDI specification of this node has the device {name}")]
    Unknown {
        /// As asked.
        name: String,
        /// Some that there are.
        known: Vec<String>,
    },
    /// Files of equal rank contradict each other.
    #[error("the device {name} is in {} files of the same directory: {}", files.len(), files.join(", "))]
    Conflict {
        /// As asked.
        name: String,
        /// Which.
        files: Vec<String>,
    },
}

impl Registry {
    /// Reads all files; what cannot be used is a problem and not an error.
    pub fn new(files: impl IntoIterator<Item = SpecFile>) -> Registry {
        let mut registry = Registry::default();
        for SpecFile { path, priority, content } in files {
            let parsed =
                content.and_then(|bytes| Spec::parse(&path, &bytes).map_err(|error| error.to_string()));
            match parsed {
                Ok(spec) => registry.add(path, priority, spec),
                Err(why) => registry.problems.push(format!("{} is not used: {why}", path.display())),
            }
        }
        let conflicts = registry.devices.iter().filter(|(_, found)| found.places.len() > 1);
        let conflicts: Vec<String> =
            conflicts.map(|(name, found)| registry.conflict(name.to_string(), found).to_string()).collect();
        registry.problems.extend(conflicts);
        registry
    }

    fn conflict(&self, name: String, found: &Found) -> ResolveError {
        let file = |(at, _): &(usize, usize)| Some(self.specs.get(*at)?.0.display().to_string());
        ResolveError::Conflict { name, files: found.places.iter().filter_map(file).collect() }
    }

    fn add(&mut self, path: PathBuf, priority: usize, spec: Spec) {
        let at = self.specs.len();
        for (index, (device, _)) in spec.devices.iter().enumerate() {
            let name = DeviceName { kind: spec.kind.clone(), device: device.clone() };
            let found = self.devices.entry(name).or_insert(Found { priority, places: Vec::new() });
            if found.priority < priority {
                *found = Found { priority, places: Vec::new() };
            }
            if found.priority == priority {
                found.places.push((at, index));
            }
        }
        self.specs.push((path, spec));
    }

    /// The devices of a kind that stand for all that the node has: `all`, else each of them.
    pub fn all_of(&self, kind: &str) -> Vec<String> {
        let resolvable = self.devices.iter().filter(|(_, found)| found.places.len() == 1);
        let of_kind: Vec<&DeviceName> =
            resolvable.map(|(name, _)| name).filter(|name| name.kind == kind).collect();
        match of_kind.iter().find(|name| name.device == "all") {
            Some(all) => vec![all.to_string()],
            None => of_kind.iter().map(ToString::to_string).collect(),
        }
    }

    /// What the named devices need, together: what is a specification's comes once, before its first device.
    pub fn edits(&self, names: &[String]) -> Result<Edits, ResolveError> {
        let mut edits = Edits::default();
        let mut seen = Vec::new();
        for name in names {
            let (at, index) = self.resolve(name)?;
            let Some((path, spec)) = self.specs.get(at) else { continue };
            if !seen.contains(&at) {
                seen.push(at);
                edits.files.push(path.clone());
                edits.append(&spec.edits);
            }
            if let Some((_, device)) = spec.devices.get(index) {
                edits.append(device);
            }
        }
        edits.finish();
        Ok(edits)
    }

    fn resolve(&self, name: &str) -> Result<(usize, usize), ResolveError> {
        let found = name::parse(name).and_then(|parsed| self.devices.get(&parsed));
        match found.map(|found| (found, found.places.as_slice())) {
            Some((_, [place])) => Ok(*place),
            Some((found, _)) => Err(self.conflict(name.to_owned(), found)),
            None => {
                let known = self.devices.keys().take(8).map(ToString::to_string).collect();
                Err(ResolveError::Unknown { name: name.to_owned(), known })
            }
        }
    }
}

/// What several devices need together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Variables, no name twice.
    pub env: Vec<(String, String)>,
    /// Device nodes, no path twice.
    pub device_nodes: Vec<DeviceNode>,
    /// Mounts, parents first, no place twice.
    pub mounts: Vec<Mount>,
    /// Hooks in their order.
    pub hooks: Vec<Hook>,
    /// Groups, without 0.
    pub groups: Vec<u32>,
    /// Fields that ask for what only root can do.
    pub unsupported: Vec<&'static str>,
    /// The files that say so.
    pub files: Vec<PathBuf>,
}

impl Edits {
    fn append(&mut self, more: &ContainerEdits) {
        for variable in &more.env {
            let Some((name, value)) = variable.split_once('=') else { continue };
            self.env.retain(|(known, _)| known != name);
            self.env.push((name.to_owned(), value.to_owned()));
        }
        for node in &more.device_nodes {
            self.device_nodes.retain(|known| known.path != node.path);
            self.device_nodes.push(node.clone());
        }
        for mount in &more.mounts {
            self.mounts.retain(|known| known.container_path != mount.container_path);
            self.mounts.push(mount.clone());
        }
        self.hooks.extend(more.hooks.iter().cloned());
        self.groups.extend(more.additional_gids.iter().filter(|group| **group != 0));
        if !more.net_devices.is_empty() {
            self.unsupported.push("netDevices");
        }
        if more.intel_rdt.is_some() {
            self.unsupported.push("intelRdt");
        }
    }

    fn finish(&mut self) {
        self.mounts.sort_by_key(|mount| Path::new(&mount.container_path).components().count());
        self.groups.sort_unstable();
        self.groups.dedup();
        self.unsupported.sort_unstable();
        self.unsupported.dedup();
    }
}

impl RawSpec {
    /// What the reference implementation checks, too.
    fn check(self) -> Result<Spec, SpecError> {
        version::check(&self)?;
        if !name::is_kind(&self.kind) {
            return Err(SpecError::Kind(self.kind));
        }
        self.container_edits.check()?;
        if self.devices.is_empty() {
            return Err(SpecError::NoDevices);
        }
        let mut devices: Vec<(String, ContainerEdits)> = Vec::new();
        for device in self.devices {
            if !is_device(&device.name) {
                return Err(SpecError::Device(device.name));
            }
            if devices.iter().any(|(known, _)| *known == device.name) {
                return Err(SpecError::Twice(device.name));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(SpecError::Empty(device.name));
            }
            device.container_edits.check()?;
            devices.push((device.name, device.container_edits));
        }
        Ok(Spec { kind: self.kind, edits: self.container_edits, devices })
    }
}

#[cfg(test)]
mod tests;
