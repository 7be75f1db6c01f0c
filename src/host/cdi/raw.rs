//! The fields of a specification file, all of them and no others.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::SpecError;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawSpec {
    pub(super) cdi_version: String,
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) devices: Vec<RawDevice>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: ContainerEdits,
}

/// A device of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawDevice {
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: ContainerEdits,
}

/// What is done to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContainerEdits {
    /// `NAME=value`
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(default, deserialize_with = "or_default")]
    pub device_nodes: Vec<DeviceNode>,
    /// Network devices, which only root can move.
    #[serde(default, deserialize_with = "or_default")]
    pub net_devices: Vec<NetDevice>,
    /// Programs to be run.
    #[serde(default, deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    /// Files and directories.
    #[serde(default, deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    /// Shares of caches, which only root can give.
    #[serde(default)]
    pub intel_rdt: Option<IntelRdt>,
    /// Groups.
    #[serde(default, deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the host, where it has another.
    #[serde(default)]
    pub host_path: Option<String>,
    /// What it is, for those who make nodes.
    #[serde(default)]
    pub permissions: Option<String>,
    /// As of `permissions`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// As of `permissions`.
    #[serde(default)]
    pub major: Option<i64>,
    /// As of `permissions`.
    #[serde(default)]
    pub minor: Option<i64>,
    /// As of `permissions`.
    #[serde(default)]
    pub file_mode: Option<u32>,
    /// As of `permissions`.
    #[serde(default)]
    pub uid: Option<u32>,
    /// As of `permissions`.
    #[serde(default)]
    pub gid: Option<u32>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetDevice {
    /// On the host.
    pub host_interface_name: String,
    /// In the container.
    pub name: String,
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// When: `createContainer`.
    pub hook_name: String,
    /// Which.
    pub path: String,
    /// Its arguments, its name among them.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Seconds that it may take.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// A file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    /// On the host.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// `ro`, `nosuid`, ...
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    /// A kind of file system.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
}

/// Shares of caches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntelRdt {
    #[serde(default, rename = "closID")]
    clos_id: Option<String>,
    #[serde(default, rename = "l3CacheSchema")]
    l3_cache_schema: Option<String>,
    #[serde(default, rename = "memBwSchema")]
    mem_bw_schema: Option<String>,
    #[serde(default, rename = "enableCMT")]
    enable_cmt: Option<bool>,
    #[serde(default, rename = "enableMBM")]
    enable_mbm: Option<bool>,
    /// Since 1.1.0.
    #[serde(default)]
    pub(super) schemata: Option<Vec<String>>,
    /// Since 1.1.0.
    #[serde(default, rename = "enableMonitoring")]
    pub(super) enable_monitoring: Option<bool>,
}

/// `null` is as good as nothing.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(source: D) -> Result<T, D::Error> {
    Option::deserialize(source).map(Option::unwrap_or_default)
}

impl ContainerEdits {
    /// What no type says.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        let wrong = |what, value: &str, why| Err(SpecError::Value { what, value: value.to_owned(), why });
        for variable in &self.env {
            if variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) || variable.contains('\0') {
                return wrong("variable", variable, "is no NAME=VALUE");
            }
        }
        let nodes = self.device_nodes.iter();
        let nodes = nodes.flat_map(|node| [Some(&node.path), node.host_path.as_ref()]).flatten();
        let mounts = self.mounts.iter().flat_map(|mount| [&mount.host_path, &mount.container_path]);
        for path in nodes.chain(mounts).chain(self.hooks.iter().map(|hook| &hook.path)) {
            if !path.starts_with('/') || path.contains('\0') {
                return wrong("path", path, "is not absolute");
            }
        }
        for hook in &self.hooks {
            let known =
                ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
            if !known.contains(&hook.hook_name.as_str()) {
                return wrong("hookName", &hook.hook_name, "is no hook of OCI");
            }
        }
        Ok(())
    }
}
