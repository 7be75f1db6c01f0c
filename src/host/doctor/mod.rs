//! What `hpcrun doctor` says: each prerequisite and each known trap as a check with its remedy. Pure.
//!
//! The switches explain; they do not prove. The last word is a real launch, which the command line does and appends
//! as one more [`Check`]: where it works, no switch stands in the way ([`settle`]).

mod facts;
mod fuse;
mod gpu;
pub mod image;
mod job;
mod kernel;
mod limits;
mod network;
mod report;
mod security;
pub mod site;
mod storage;
mod user;

use std::path::PathBuf;

pub use facts::{
    CgroupFacts, DoctorFacts, GpuFacts, Guards, JobFacts, Keep, Place, Switches, UserFacts, Wanted,
};
pub use report::{SCHEMA, Subject, render_json, render_text};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something to mend that does not keep images from running.
    Warn,
    /// Something that keeps images from running.
    No,
    /// Says nothing on this node.
    NotApplicable,
}

impl Status {
    /// The word, of four letters at most.
    pub fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::No => "no",
            Status::NotApplicable => "n/a",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a few words; these do not change from version to version.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do, one step a line; empty when all is well.
    pub remedy: Vec<String>,
}

impl Check {
    fn new(name: &'static str, status: Status, detail: impl Into<String>, remedy: &[&str]) -> Check {
        let remedy = remedy.iter().map(|line| (*line).to_owned()).collect();
        Check { name, status, detail: detail.into(), remedy }
    }

    /// All is well.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check::new(name, Status::Ok, detail, &[])
    }

    /// Something to mend that does not keep images from running, and how.
    pub fn warn(name: &'static str, detail: impl Into<String>, remedy: &[&str]) -> Check {
        Check::new(name, Status::Warn, detail, remedy)
    }

    /// Something that keeps images from running, and how to mend it.
    pub fn no(name: &'static str, detail: impl Into<String>, remedy: &[&str]) -> Check {
        Check::new(name, Status::No, detail, remedy)
    }

    /// Nothing to check here.
    pub fn not_applicable(name: &'static str, detail: impl Into<String>) -> Check {
        Check::new(name, Status::NotApplicable, detail, &[])
    }
}

/// Everything that the facts tell, in the order of a launch.
pub fn checks(facts: &DoctorFacts) -> Vec<Check> {
    vec![
        kernel::kernel(facts),
        kernel::user_namespaces(facts),
        kernel::mount_namespaces(facts),
        kernel::nesting(facts),
        kernel::system_calls(facts),
        security::apparmor(facts),
        security::selinux(facts),
        security::seccomp(facts),
        security::container(facts),
        security::hidepid(facts),
        security::subordinate_ids(facts),
        fuse::dev_fuse(facts),
        fuse::module(facts),
        fuse::server_restart(facts),
        user::user(facts),
        user::home(facts),
        user::home_file_system(facts),
        limits::open_files(facts),
        limits::processes(facts),
        limits::locked_memory(facts),
        limits::address_space(facts),
        limits::file_size(facts),
        limits::cgroup(facts),
        limits::core_dumps(facts),
        storage::shared_memory(facts),
        storage::scratch(facts),
        storage::rank_sharing(facts),
        security::cross_memory_attach(facts),
        job::launcher(facts),
        job::fabric(facts),
        gpu::nvidia(facts),
        gpu::amd(facts),
        gpu::render_nodes(facts),
        network::mtu(facts),
        network::certificates(facts),
        network::clock(facts),
    ]
}

/// The checks in the light of a launch that worked: what a switch forbids on paper was no obstacle then.
pub fn settle(checks: &mut [Check]) {
    for check in checks.iter_mut().filter(|check| check.status == Status::No) {
        check.status = Status::Warn;
        check.detail.push_str("; the launch below worked all the same");
    }
}

/// Names for a message, with a comma between.
fn listed(names: &[String]) -> String {
    names.join(", ")
}

fn mebibytes(bytes: u64) -> String {
    match bytes >> 20 {
        many if many >= 10 << 10 => format!("{} GiB", many >> 10),
        few => format!("{few} MiB"),
    }
}

/// The names of devices that the caller may not use.
fn refused(devices: &[(String, bool)]) -> Vec<String> {
    devices.iter().filter(|(_, usable)| !usable).map(|(name, _)| name.clone()).collect()
}

/// The path for a remedy that names the installed program.
fn program(facts: &DoctorFacts) -> PathBuf {
    facts.guards.executable.clone().unwrap_or_else(|| PathBuf::from("/usr/bin/hpcrun"))
}

#[cfg(test)]
mod tests;
