//! Limits on the caller: of the process, of its control group, of its core files.

use super::{Check, DoctorFacts, listed, mebibytes};
use crate::sys::caller::Limit;

/// What an image server and its keeper need of address space, with room for a job.
const ADDRESS_SPACE_WANTED: u64 = 4 << 30;
/// What MPI libraries on an interconnect lock at least.
const LOCKED_WANTED: u64 = 64 << 20;
/// What a conversion needs of memory at most.
const MEMORY_WANTED: u64 = 512 << 20;
const PROCESSES_WANTED: u64 = 256;

pub(super) fn open_files(facts: &DoctorFacts) -> Check {
    let name = "open files";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    let limit = shown(limits.open_files);
    if limits.open_files.soft < 1024 {
        return Check::warn(name, limit, &["ulimit -n 4096, or LimitNOFILE= of the job's service"]);
    }
    Check::ok(name, limit)
}

pub(super) fn processes(facts: &DoctorFacts) -> Check {
    let name = "processes";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    let limit = shown(limits.processes);
    let remedy = &["ulimit -u 4096: an image server has a few threads, and a job its own"];
    if limits.processes.soft < PROCESSES_WANTED && facts.user.uid != 0 {
        return Check::warn(name, limit, remedy);
    }
    match facts.cgroup.pids_max {
        Some(max) if max < PROCESSES_WANTED => Check::warn(
            name,
            format!("{limit}, and {max} in the control group"),
            &["raise TasksMax= of the job's service or slice"],
        ),
        _ => Check::ok(name, limit),
    }
}

pub(super) fn locked_memory(facts: &DoctorFacts) -> Check {
    let name = "locked memory";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    let limit = limits.locked_bytes;
    let detail = if limit.soft == u64::MAX { "unlimited".to_owned() } else { mebibytes(limit.soft) };
    if facts.fabric_devices.is_empty() {
        return Check::not_applicable(name, format!("{detail}; no interconnect device here"));
    }
    if limit.soft < LOCKED_WANTED {
        let devices: Vec<String> = facts.fabric_devices.iter().map(|(device, _)| device.clone()).collect();
        return Check::warn(
            name,
            format!("{detail}, and {} needs more", listed(&devices)),
            &[
                "ulimit -l unlimited",
                "for Slurm: LimitMEMLOCK=infinity in slurmd.service, PropagateResourceLimitsExcept=MEMLOCK",
            ],
        );
    }
    Check::ok(name, detail)
}

pub(super) fn address_space(facts: &DoctorFacts) -> Check {
    let name = "address space";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    match limits.address_bytes.soft {
        u64::MAX => Check::ok(name, "unlimited"),
        soft if soft < ADDRESS_SPACE_WANTED => Check::warn(
            name,
            format!("{}: threads of the image server may not start", mebibytes(soft)),
            &["ulimit -v unlimited; limit memory by control group instead (Slurm: ConstrainRAMSpace=yes)"],
        ),
        soft => Check::ok(name, mebibytes(soft)),
    }
}

pub(super) fn file_size(facts: &DoctorFacts) -> Check {
    let name = "file size";
    match facts.limits.map(|limits| limits.file_bytes.soft) {
        None => Check::not_applicable(name, "unknown"),
        Some(u64::MAX) => Check::ok(name, "unlimited"),
        Some(soft) => Check::warn(
            name,
            format!("{}: converting a larger image fails with EFBIG", mebibytes(soft)),
            &["ulimit -f unlimited"],
        ),
    }
}

pub(super) fn cgroup(facts: &DoctorFacts) -> Check {
    let name = "control group";
    let cgroup = &facts.cgroup;
    if cgroup.version.is_empty() {
        return Check::not_applicable(name, "none");
    }
    match cgroup.memory_max {
        Some(max) if max < MEMORY_WANTED => Check::warn(
            name,
            format!("{}, memory at most {}: a conversion may be killed", cgroup.version, mebibytes(max)),
            &["ask for more memory (Slurm: --mem=1G) where images are converted"],
        ),
        Some(max) => Check::ok(name, format!("{}, memory at most {}", cgroup.version, mebibytes(max))),
        None => Check::ok(name, format!("{}, no memory limit", cgroup.version)),
    }
}

/// Where core files of jobs in images go.
pub(super) fn core_dumps(facts: &DoctorFacts) -> Check {
    let name = "core dumps";
    let Some(pattern) = facts.switches.core_pattern.as_deref() else {
        return Check::not_applicable(name, "unknown");
    };
    match pattern.strip_prefix('|') {
        Some(handler) => {
            let program = handler.split_whitespace().next().unwrap_or_default();
            Check::ok(name, format!("{program} takes them, on the host"))
        }
        None if pattern.starts_with('/') => {
            let directory = pattern.rsplit_once('/').map_or("/", |(directory, _)| directory);
            let bind = format!("bind it in the site policy, [binds] optional = [\"{directory}\"]");
            Check::warn(
                name,
                format!("{pattern}: the kernel looks for the directory inside of the image"),
                &[&bind, "or as root: sysctl kernel.core_pattern=core.%h.%p"],
            )
        }
        None => Check::ok(name, format!("{pattern}, in the job's working directory")),
    }
}

fn shown(limit: Limit) -> String {
    let number = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    format!("{} (at most {})", number(limit.soft), number(limit.hard))
}
