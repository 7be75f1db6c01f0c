//! Security modules, filters and containers around the caller.

use super::{Check, DoctorFacts, program};

pub(super) fn apparmor(facts: &DoctorFacts) -> Check {
    let name = "AppArmor";
    let profile = facts.guards.apparmor_profile.as_deref();
    let unconfined = profile.is_none_or(|profile| profile.starts_with("unconfined"));
    let program = program(facts);
    match facts.switches.apparmor_restricts_userns {
        Some(restricts) if restricts != 0 && unconfined && facts.user.uid != 0 => Check::no(
            name,
            "kernel.apparmor_restrict_unprivileged_userns is 1: mounting in a user namespace needs a profile",
            &[
                "as root, in /etc/apparmor.d/hpcrun (the package brings it for /usr/bin/hpcrun):",
                "    abi <abi/4.0>,",
                &format!("    profile hpcrun {} flags=(unconfined) {{ userns, }}", program.display()),
                "as root: apparmor_parser -r /etc/apparmor.d/hpcrun",
                "or, for all programs, as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            ],
        ),
        Some(_) => Check::ok(name, profile.unwrap_or("does not restrict user namespaces")),
        None => Check::not_applicable(name, "does not restrict user namespaces"),
    }
}

pub(super) fn selinux(facts: &DoctorFacts) -> Check {
    let name = "SELinux";
    let guards = &facts.guards;
    let context = guards.selinux_context.as_deref().map(|text| format!(" as {text}")).unwrap_or_default();
    match guards.selinux_enforcing {
        // Whether its policy lets this user's domain make user namespaces, only the launch shows.
        Some(true) if guards.selinux_judges_userns => Check::ok(
            name,
            format!(
                "enforcing{context}; its policy may forbid user namespaces: 'ausearch -m avc -ts recent' names a refusal"
            ),
        ),
        Some(true) => Check::ok(
            name,
            format!("enforcing{context}; a refusal would stand in 'ausearch -m avc -ts recent'"),
        ),
        Some(false) => Check::ok(name, "permissive"),
        None => Check::not_applicable(name, "not on this node"),
    }
}

pub(super) fn seccomp(facts: &DoctorFacts) -> Check {
    let name = "seccomp";
    match facts.guards.seccomp {
        None => Check::not_applicable(name, "unknown"),
        Some(0) => Check::ok(name, "no filter"),
        Some(_) if facts.guards.container.is_some() && facts.user.uid != 0 => Check::warn(
            name,
            "a filter of the container runtime, which may refuse unshare and mount",
            &[
                "Docker: --security-opt seccomp=unconfined; Kubernetes: seccompProfile: Unconfined; podman's default allows them",
            ],
        ),
        Some(_) => {
            Check::ok(name, "a filter, of this session or service; only the launch shows what it refuses")
        }
    }
}

pub(super) fn container(facts: &DoctorFacts) -> Check {
    let name = "container";
    match &facts.guards.container {
        Some(runtime) => Check::ok(name, format!("inside {runtime}")),
        None if facts.guards.proc_masked => {
            Check::ok(name, "parts of /proc are covered: inside some container; harmless to hpcrun")
        }
        None => Check::not_applicable(name, "not inside one"),
    }
}

/// Harmless between ranks that share namespaces; without sharing, other ranks' processes look as if they were gone.
pub(super) fn hidepid(facts: &DoctorFacts) -> Check {
    let name = "hidepid";
    match facts.guards.hidepid.as_deref() {
        None | Some("" | "0" | "off") => Check::not_applicable(name, "/proc shows everybody's processes"),
        Some(value) => Check::ok(
            name,
            format!("hidepid={value}: ranks of a node see each other, since they share namespaces"),
        ),
    }
}

pub(super) fn subordinate_ids(_: &DoctorFacts) -> Check {
    Check::not_applicable(
        "subordinate ids",
        "/etc/subuid is not needed: only your own uid and gid are mapped",
    )
}

pub(super) fn cross_memory_attach(facts: &DoctorFacts) -> Check {
    let name = "cross-memory attach";
    match facts.switches.yama_scope {
        None | Some(0) => Check::ok(name, "allowed between a user's processes"),
        Some(1) => Check::ok(name, "Yama ptrace_scope 1: MPI libraries ask for it themselves"),
        Some(scope) => Check::warn(
            name,
            format!("Yama ptrace_scope is {scope}: MPI copies large messages twice, as it does outside"),
            &["as root: sysctl kernel.yama.ptrace_scope=0"],
        ),
    }
}
