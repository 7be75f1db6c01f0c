//! Memory and disk that launches and ranks share.

use super::{Check, DoctorFacts, mebibytes};

/// Room for the small files of conversions and programs.
const SCRATCH_WANTED: u64 = 64 << 20;

pub(super) fn shared_memory(facts: &DoctorFacts) -> Check {
    let name = "/dev/shm";
    let Some(shm) = &facts.shm else {
        return Check::warn(
            name,
            "missing: MPI ranks of a node talk through it",
            &["as root: mount -t tmpfs tmpfs /dev/shm"],
        );
    };
    let noexec = if shm.noexec { ", noexec, which is harmless to hpcrun" } else { "" };
    let detail = format!("{} free of {}{noexec}", mebibytes(shm.free_bytes), mebibytes(shm.size_bytes));
    if !shm.writable {
        return Check::warn(name, format!("{detail}; not writable"), &["as root: chmod 1777 /dev/shm"]);
    }
    let wanted = u64::try_from(facts.cpus).unwrap_or(1).saturating_mul(64 << 20);
    // What MPI libraries ask for by default, a rank on every processor.
    if shm.free_bytes < wanted.min(1 << 30) {
        return Check::warn(
            name,
            detail,
            &["as root: mount -o remount,size=50% /dev/shm; in a container: --shm-size=1g"],
        );
    }
    Check::ok(name, detail)
}

/// hpcrun unpacks no program anywhere, so `noexec` is worth a word only because other tools fail with it.
pub(super) fn scratch(facts: &DoctorFacts) -> Check {
    let name = "temporary files";
    let Some(place) = &facts.scratch else {
        return Check::warn(name, "no /tmp", &["as root: mkdir -m 1777 /tmp"]);
    };
    let path = place.path.display();
    let noexec = if place.noexec { ", noexec, which is harmless to hpcrun" } else { "" };
    let detail = format!("{path}, {} free{noexec}", mebibytes(place.free_bytes));
    if !place.writable {
        return Check::warn(
            name,
            format!("{path} is not writable"),
            &["set TMPDIR to a directory of yours; as root: chmod 1777 /tmp"],
        );
    }
    if place.free_bytes < SCRATCH_WANTED {
        return Check::warn(name, detail, &["remove files there, or set TMPDIR; hpcrun itself needs none"]);
    }
    Check::ok(name, detail)
}

/// The registry through which ranks find the namespaces of their step; it rests on locks.
pub(super) fn rank_sharing(facts: &DoctorFacts) -> Check {
    let name = "rank sharing";
    let Some(directory) = &facts.share_directory else {
        return Check::warn(
            name,
            "no directory for the registry: each rank gets namespaces of its own",
            &["as root: chmod 1777 /dev/shm /tmp"],
        );
    };
    let directory = directory.display();
    match &facts.share_lock {
        Some(Err(why)) => Check::warn(
            name,
            format!("files in {directory} cannot be locked, so each rank gets namespaces of its own: {why}"),
            &["as root: mount a tmpfs on /dev/shm"],
        ),
        _ => Check::ok(name, format!("registry in {directory}")),
    }
}
