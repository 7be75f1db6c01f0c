//! The kernel, its namespaces and its system calls.

use super::{Check, DoctorFacts};
use crate::host::features::Feature;

/// Steps on a node, each with a user namespace of its own, that one user should be able to have.
const NAMESPACES_WANTED: u64 = 64;

const MORE_NAMESPACES: &[&str] = &[
    "as root: echo user.max_user_namespaces=15000 > /etc/sysctl.d/90-hpcrun.conf",
    "as root: sysctl --system",
];

pub(super) fn kernel(facts: &DoctorFacts) -> Check {
    let detail = facts.kernel.to_string();
    if facts.kernel.version >= (4, 18) {
        return Check::ok("kernel", detail);
    }
    Check::no(
        "kernel",
        format!("{detail}: user namespaces cannot mount FUSE before 4.18"),
        &["upgrade to RHEL 8, SLES 15 SP1, Debian 10, Ubuntu 20.04 or newer"],
    )
}

pub(super) fn user_namespaces(facts: &DoctorFacts) -> Check {
    let name = "user namespaces";
    let max = facts.switches.max_user_namespaces;
    match &facts.features.userns {
        Feature::Usable => match max {
            Some(max) if max < NAMESPACES_WANTED => Check::warn(
                name,
                format!("allowed, but at most {max} for a user: further launches fail with ENOSPC"),
                MORE_NAMESPACES,
            ),
            Some(max) => Check::ok(name, format!("allowed (at most {max})")),
            None => Check::ok(name, "allowed"),
        },
        Feature::Absent(why) => Check::no(name, why, &["use a kernel built with CONFIG_USER_NS=y"]),
        Feature::Denied(why) if max == Some(0) => Check::no(name, why, MORE_NAMESPACES),
        Feature::Denied(why) => Check::no(
            name,
            why,
            &[
                "as root: echo kernel.unprivileged_userns_clone=1 > /etc/sysctl.d/90-hpcrun.conf",
                "as root: sysctl --system",
            ],
        ),
    }
}

pub(super) fn mount_namespaces(facts: &DoctorFacts) -> Check {
    let name = "mount namespaces";
    match facts.switches.max_mount_namespaces {
        Some(0) => Check::no(
            name,
            "the sysctl user.max_mnt_namespaces is 0",
            &[
                "as root: echo user.max_mnt_namespaces=15000 > /etc/sysctl.d/90-hpcrun.conf",
                "as root: sysctl --system",
            ],
        ),
        Some(max) => Check::ok(name, format!("allowed (at most {max})")),
        None => Check::not_applicable(name, "no sysctl user.max_mnt_namespaces"),
    }
}

/// Inside of another user namespace: which ids it has, and whether another level can be made.
pub(super) fn nesting(facts: &DoctorFacts) -> Check {
    let name = "nested namespaces";
    let map = &facts.guards.uid_map;
    if map.is_empty() {
        return Check::not_applicable(name, "no /proc/self/uid_map");
    }
    if map.as_slice() == [[0, 0, u64::from(u32::MAX)]] {
        return Check::not_applicable(name, "not inside a user namespace");
    }
    let uid = u64::from(facts.user.uid);
    let is_mapped = map.iter().any(|[inside, _, count]| uid >= *inside && uid - inside < *count);
    let mapped: u64 = map.iter().map(|[_, _, count]| count).fold(0, |sum, count| sum.saturating_add(*count));
    if !is_mapped {
        return Check::no(
            name,
            format!(
                "uid {uid} has no mapping in the surrounding user namespace, so a launch cannot map it either"
            ),
            &["start the surrounding container with your own user id (podman: --userns=keep-id)"],
        );
    }
    Check::ok(
        name,
        format!("inside a user namespace of {mapped} uids; the kernel allows 32 levels, hpcrun adds one"),
    )
}

/// Calls with a fallback: their lack costs time, not function.
pub(super) fn system_calls(facts: &DoctorFacts) -> Check {
    let name = "system calls";
    let missing: Vec<&str> = facts.calls.iter().filter(|(_, known)| !known).map(|(call, _)| *call).collect();
    if facts.calls.is_empty() {
        return Check::not_applicable(name, "not tried");
    }
    if missing.is_empty() {
        let all: Vec<&str> = facts.calls.iter().map(|(call, _)| *call).collect();
        return Check::ok(name, all.join(", "));
    }
    Check::ok(
        name,
        format!("without {}: older ways are used, as docs/kernel-features.md tells", missing.join(", ")),
    )
}
