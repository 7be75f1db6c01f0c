//! What the image server needs.

use super::{Check, DoctorFacts};
use crate::host::features::Feature;

const LOAD_MODULE: &[&str] =
    &["as root: modprobe fuse", "as root: echo fuse > /etc/modules-load.d/fuse.conf"];

pub(super) fn dev_fuse(facts: &DoctorFacts) -> Check {
    let name = "/dev/fuse";
    let inside = facts.guards.container.is_some();
    match &facts.features.fuse {
        Feature::Usable => Check::ok(name, "can be opened"),
        Feature::Absent(why) if why.contains("/dev/fuse") && inside => {
            Check::no(name, why, &["start the container with --device /dev/fuse"])
        }
        Feature::Absent(why) if why.contains("is not") => {
            Check::no(name, why, &["as root: rm /dev/fuse && mknod -m 0666 /dev/fuse c 10 229"])
        }
        Feature::Absent(why) if why.contains("/dev/fuse") => Check::no(name, why, LOAD_MODULE),
        Feature::Absent(why) => Check::no(name, why, &["use a newer kernel"]),
        Feature::Denied(why) => {
            let mode = facts.dev_fuse_mode.map_or_else(String::new, |mode| format!(" (mode {mode:04o})"));
            Check::no(
                name,
                format!("{why}{mode}"),
                &[
                    "as root: chmod 0666 /dev/fuse",
                    "as root: echo 'KERNEL==\"fuse\", MODE=\"0666\"' > /etc/udev/rules.d/90-fuse.rules",
                ],
            )
        }
    }
}

/// A device node without its driver: the node stands ready in `/dev` before the module is loaded.
pub(super) fn module(facts: &DoctorFacts) -> Check {
    let name = "fuse module";
    match facts.fuse_registered {
        Some(true) => Check::ok(name, "loaded, or built in"),
        Some(false) if facts.features.fuse.is_usable() => Check::warn(
            name,
            "not loaded: the first launch has the kernel load it, which fails on nodes without modules of this kernel",
            LOAD_MODULE,
        ),
        Some(false) => Check::not_applicable(name, "not loaded"),
        None => Check::not_applicable(name, "cannot read /proc/filesystems"),
    }
}

pub(super) fn server_restart(facts: &DoctorFacts) -> Check {
    let name = "server restart";
    match facts.features.fuse_resend.why_not() {
        None => Check::ok(name, "a job does not notice that its image server was killed"),
        Some(why) => Check::not_applicable(
            name,
            format!("reads in flight fail when the image server is killed: {why}"),
        ),
    }
}
