//! Which version of the specification has which field.

use super::SpecError;
use super::raw::RawSpec;

/// All versions, oldest first.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// Whether a file says a version that has all that it uses.
pub(super) fn check(spec: &RawSpec) -> Result<(), SpecError> {
    let declared = spec.cdi_version.strip_prefix('v').unwrap_or(&spec.cdi_version);
    let rank = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let Some(declared_rank) = rank(declared) else {
        return Err(SpecError::Version(spec.cdi_version.clone()));
    };
    for (needed, field, is_used) in used(spec) {
        if is_used && rank(needed) > Some(declared_rank) {
            return Err(SpecError::TooOld { field, needed, declared: declared.to_owned() });
        }
    }
    Ok(())
}

/// Fields that came later, with the version that they came with.
fn used(spec: &RawSpec) -> [(&'static str, &'static str, bool); 9] {
    let edits = || {
        std::iter::once(&spec.container_edits)
            .chain(spec.devices.iter().map(|device| &device.container_edits))
    };
    let class = spec.kind.split_once('/').map_or("", |(_, class)| class);
    let is_digit = |c: char| c.is_ascii_digit();
    let rdt = || edits().filter_map(|edits| edits.intel_rdt.as_ref());
    [
        ("1.1.0", "netDevices", edits().any(|edits| !edits.net_devices.is_empty())),
        ("1.1.0", "intelRdt.schemata", rdt().any(|rdt| rdt.schemata.is_some())),
        ("1.1.0", "intelRdt.enableMonitoring", rdt().any(|rdt| rdt.enable_monitoring.is_some())),
        ("0.7.0", "intelRdt", rdt().next().is_some()),
        ("0.7.0", "additionalGids", edits().any(|edits| !edits.additional_gids.is_empty())),
        (
            "0.6.0",
            "annotations",
            !spec.annotations.is_empty() || spec.devices.iter().any(|device| !device.annotations.is_empty()),
        ),
        ("0.6.0", "a dot in the class", class.contains('.')),
        (
            "0.5.0",
            "hostPath of a device or a name that begins with a digit",
            edits().flat_map(|edits| &edits.device_nodes).any(|node| node.host_path.is_some())
                || spec.devices.iter().any(|device| device.name.starts_with(is_digit)),
        ),
        (
            "0.4.0",
            "type of a mount",
            edits().flat_map(|edits| &edits.mounts).any(|mount| mount.kind.is_some()),
        ),
    ]
}
