//! Namespaces of processes and IPC, and the processes that a process namespace needs.
//!
//! ```text
//! hpcrun --fork--> process 1 --fork--> the job
//!   |                  |
//!   passes signals     passes signals on, reaps orphans,
//!   on, ends as the    says how the job ended
//!   job ended
//! ```
//!
//! Neither of the two has any right or descriptor of the caller's left, and each dies with the one before it.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::launch::enact::EnactError;
use crate::launch::request::{Init, Isolation};
use crate::sys::path::PathFd;
use crate::sys::process::{self, Ended, Fork, PipeEvent};
use crate::sys::signal::{self, Received, Taken};
use crate::sys::{self, namespace, notice, privilege};

/// Sent with a signal that is passed on: the terminal and the senders to a process group reach the job themselves.
const PASSED_ON: usize = 0x6870_6372;

/// Signals by which a terminal stops a process group.
const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Makes the namespaces. With one of processes, only the process that becomes the job returns. `process` is the
/// caller's directory in `/proc`; the job's is given.
pub(super) fn isolate(isolation: Isolation, process: PathFd) -> Result<PathFd, EnactError> {
    let failed = |source| EnactError::Isolate { source };
    if isolation.ipc {
        namespace::unshare_ipc().map_err(failed)?;
    }
    let Some(init) = isolation.processes else { return Ok(process) };
    namespace::unshare_processes().map_err(failed)?;
    become_job(init).map_err(failed)?;
    PathFd::open_directory(Path::new("/proc/self")).map_err(|source| EnactError::Inspect { source })
}

/// Forks; returns in the job, when process 1 has nothing left that the job could reach.
fn become_job(init: Init) -> Result<(), sys::Error> {
    let taken = Taken::all()?;
    let (told, tell) = process::pipe()?;
    if let Fork::Parent(child) = process::fork()? {
        drop(tell);
        supervise(child, told, &taken)
    }
    drop(told);
    process::die_with_parent(&tell)?;
    if init == Init::Own {
        let (gone, hold) = process::pipe()?;
        if let Fork::Parent(job) = process::fork()? {
            reap(job, tell, &taken)
        }
        drop(hold);
        // Process 1 is in the host's mount namespace still. It closes the pipe when it is undumpable and has no capability.
        process::look_at(&gone, PipeEvent::Closed)?;
    }
    taken.give_back();
    Ok(())
}

/// hpcrun's own process, which the caller knows: what is sent to it is meant for the job. Ends as `told` says, which only
/// process 1 of the job's namespace writes to, or else as `child` did.
pub(super) fn supervise(child: i32, mut told: PipeReader, taken: &Taken) -> ! {
    let_go_or_end(told.as_raw_fd());
    loop {
        let received = taken.wait();
        if received.number == libc::SIGCHLD {
            while let Some((pid, ended)) = process::ended_child() {
                if pid == child {
                    process::end_as(told_end(&mut told).unwrap_or(ended));
                }
            }
            continue;
        }
        if received.is_sent {
            signal::pass_on(child, received.number, PASSED_ON);
        }
        if STOPS.contains(&received.number) {
            signal::stop();
        }
    }
}

/// Process 1: adopts whoever loses its parent, and ends with the job; the kernel then kills what is left.
fn reap(job: i32, mut tell: PipeWriter, taken: &Taken) -> ! {
    let_go_or_end(tell.as_raw_fd());
    process::set_name("hpcrun-init");
    loop {
        let received = taken.wait();
        if received.number == libc::SIGCHLD {
            while let Some((pid, ended)) = process::ended_child() {
                if pid == job {
                    let _ = tell.write_all(&describe(ended));
                    process::exit_now(0);
                }
            }
        } else if is_for_job(received) {
            signal::send(job, received.number);
        }
    }
}

fn is_for_job(received: Received) -> bool {
    received.is_sent && received.value == PASSED_ON
}

/// Lets go, or ends, and the job with it: better no job than one beside a process with capabilities.
fn let_go_or_end(keep: i32) {
    if let Err(error) = let_go(keep) {
        notice::write_own(&format!("hpcrun: cannot isolate the job: {error}"));
        process::exit_now(125)
    }
}

/// Without capabilities, files or anything to be traced for. Files come last: by the end of a pipe the job knows the rest.
fn let_go(keep: i32) -> Result<(), sys::Error> {
    process::set_undumpable()?;
    privilege::drop_all()?;
    process::null_standard_streams()?;
    process::close_all_but(&[keep]);
    Ok(())
}

/// An end as eight bytes.
fn describe(ended: Ended) -> [u8; 8] {
    let (kind, number) = match ended {
        Ended::Exited(status) => (0_u32, status),
        Ended::Killed(signal) => (1, signal),
    };
    let mut bytes = [0; 8];
    let (first, second) = bytes.split_at_mut(4);
    first.copy_from_slice(&kind.to_le_bytes());
    second.copy_from_slice(&number.to_le_bytes());
    bytes
}

/// How the job ended, if process 1 could say it.
fn told_end(told: &mut PipeReader) -> Option<Ended> {
    let (mut kind, mut number) = ([0; 4], [0; 4]);
    told.read_exact(&mut kind).ok()?;
    told.read_exact(&mut number).ok()?;
    let number = i32::from_le_bytes(number);
    Some(if kind == [0; 4] { Ended::Exited(number) } else { Ended::Killed(number) })
}
