//! The options of `exec`, `run` and `shell` as typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use crate::cli::convert_args::parse_size;

/// Options shared by `exec`, `run` and `shell`. Most may be given by a variable, too: docs/environment.md.
#[derive(Debug, Default, Args)]
pub(crate) struct LaunchOptions {
    /// Make host paths visible: SRC[:DST[:ro|rw|image]][,...]; may be repeated
    ///
    /// With 'image', SRC is an image file whose tree is seen at DST. '\\:' and '\\,' stand for a colon and a comma.
    #[arg(short, short_alias = 'B', long = "bind", value_name = "SPEC")]
    pub(crate) binds: Vec<OsString>,
    /// The same as Docker writes it: type=bind,src=SRC,dst=DST[,ro], type=image or type=tmpfs
    #[arg(long = "mount", value_name = "FIELDS")]
    pub(crate) mounts: Vec<OsString>,
    /// Set a variable, or pass the host's: NAME[=VALUE]; may be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Set the variables of a file, one NAME=VALUE a line, taken literally; may be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_files: Vec<PathBuf>,
    /// Pass no variable of the host but those that launchers need
    #[arg(long)]
    pub(crate) cleanenv: bool,
    /// Start in this directory of the image
    #[arg(long, alias = "pwd", value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Use another home directory: SRC[:DST]
    #[arg(short = 'H', long, value_name = "SPEC", conflicts_with = "no_home")]
    pub(crate) home: Option<OsString>,
    /// Leave the home directory out
    #[arg(long)]
    pub(crate) no_home: bool,
    /// Leave out what is there by default: home, tmp, cwd, dev, proc, sys, bind-paths (the site's optional binds) or a path
    #[arg(long, value_name = "LIST")]
    pub(crate) no_mount: Vec<OsString>,
    /// Give the job an empty /tmp, /var/tmp and home, and a /dev without devices of the node
    #[arg(short, long)]
    pub(crate) contain: bool,
    /// The same as --contain --cleanenv --pid --ipc
    #[arg(short = 'C', long)]
    pub(crate) containall: bool,
    /// Make an empty directory that the job can write to; may be repeated
    #[arg(short = 'S', long = "scratch", value_name = "DIR")]
    pub(crate) scratch: Vec<OsString>,
    /// Keep the directories of --contain and --scratch in this host directory rather than in memory
    ///
    /// The directory to start in is --cwd.
    #[arg(short = 'W', long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// Let the job write to its root; what it writes is kept in memory and gone with the job
    #[arg(
        long,
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = parse_size,
        action = ArgAction::Set
    )]
    pub(crate) writable_tmpfs: Option<Option<u64>>,
    /// Let the job write to its root; what it writes is kept in DIR. With ':ro', show what was kept there; may be repeated
    #[arg(short, long = "overlay", value_name = "DIR[:ro]")]
    pub(crate) overlays: Vec<OsString>,
    /// Be user 0 inside, with the rights that you have outside
    #[arg(short, long)]
    pub(crate) fakeroot: bool,
    /// Give the job a process namespace of its own
    #[arg(short, long)]
    pub(crate) pid: bool,
    /// With --pid, make the job itself process 1
    #[arg(long)]
    pub(crate) no_init: bool,
    /// Give the job a namespace of its own for System V IPC and message queues
    #[arg(short, long)]
    pub(crate) ipc: bool,
    /// Umask of the job, octal [default: yours]
    #[arg(long, value_name = "MODE", value_parser = parse_umask, conflicts_with = "no_umask")]
    pub(crate) umask: Option<u32>,
    /// The same as --umask 0022
    #[arg(long)]
    pub(crate) no_umask: bool,
    /// Ranks of a job step on one node: share one set of namespaces, or each its own
    #[arg(long, value_enum, value_name = "SCOPE")]
    pub(crate) share: Option<Share>,
    /// What to do where the image's MPI does not fit the launcher, or use this machine's MPI [default: check]
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) mpi: Option<Mpi>,
    /// Take modules of the site: binds, variables and libraries that belong together; may be repeated
    #[arg(long = "module", value_name = "NAME[,...]")]
    pub(crate) modules: Vec<OsString>,
    /// Whose GPU driver of this node to show: auto, none, nvidia, amd, intel or cdi:NAME[,NAME] [default: auto]
    #[arg(long, value_name = "MODE")]
    pub(crate) gpu: Option<OsString>,
    /// The same as --gpu=nvidia
    #[arg(long, conflicts_with_all = ["gpu", "rocm"])]
    pub(crate) nv: bool,
    /// The same as --gpu=amd
    #[arg(long, conflicts_with = "gpu")]
    pub(crate) rocm: bool,
    /// What of NVIDIA's driver to show: compute, utility, video, graphics, display, ngx or all [default: as the image says]
    #[arg(long, value_name = "LIST")]
    pub(crate) gpu_caps: Option<String>,
    /// Use the image's own CUDA libraries for older drivers [default: where the node's driver is too old]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub(crate) cuda_compat: Option<CudaCompat>,
    /// Look for NVIDIA's driver, /dev, /proc and /sys in this tree
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) driver_root: Option<PathBuf>,
    /// Start-up profile to read ahead by [default: the image file's, else IMAGE.profile]
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,
    /// Read nothing ahead by a start-up profile
    #[arg(long, conflicts_with = "profile")]
    pub(crate) no_prefetch: bool,
    /// Hold all that is read of the image file against its chunk hashes [default: once it has changed]
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print the plan with the reason of every step, and do nothing
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Who shares namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Share {
    /// The ranks of one job step
    Step,
    /// All steps of one job
    Job,
    /// Nobody
    None,
}

/// When the image's CUDA compatibility libraries are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CudaCompat {
    /// Where the node's driver is too old for the image
    Auto,
    /// Never
    Never,
    /// Wherever the image has them
    Always,
}

/// What becomes of MPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mpi {
    /// Warn if the ranks will not find each other
    Check,
    /// Do not start then
    Strict,
    /// Look at nothing
    Off,
    /// Use this machine's MPI in place of the image's, as the site has set it up
    Host,
}

/// Permission bits as umask(1) takes them.
pub(crate) fn parse_umask(text: &str) -> Result<u32, String> {
    let is_octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let umask = u32::from_str_radix(text, 8).ok().filter(|umask| is_octal && *umask <= 0o777);
    umask.ok_or_else(|| "must be an octal number from 0 to 0777".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn umasks() {
        for (text, umask) in [("0022", Some(0o22)), ("77", Some(0o77)), ("0", Some(0)), ("0777", Some(0o777))]
        {
            assert_eq!(parse_umask(text).ok(), umask, "{text}");
        }
        for text in ["", "8", "+7", "-1", "1777", "0x12", "u=rwx"] {
            assert!(parse_umask(text).is_err(), "{text}");
        }
    }
}
