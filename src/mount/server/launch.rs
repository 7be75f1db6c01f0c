//! The launch as the server sees it: mounted or not, over or not, and on which CPU.
//!
//! All of it is in the state of one pipe whose other end the launcher holds, and nothing is taken out of it: so that a
//! server born later sees what its predecessors saw.

use std::io::PipeReader;
use std::sync::Arc;
use std::time::Duration;

use crate::sys::process::{self, PipeEvent};
use crate::sys::{affinity, lock};

/// The launcher's pipe.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pipe: Arc<PipeReader>,
    /// Where the launcher stays until the launch is over.
    cpu: Option<usize>,
}

impl Launch {
    pub(super) fn new(pipe: PipeReader, cpu: Option<usize>) -> Launch {
        Launch { pipe: Arc::new(pipe), cpu }
    }

    /// From now on it is no matter where the launcher is.
    pub(super) fn forget_cpu(&mut self) {
        self.cpu = None;
    }

    /// Waits for `mount(2)`; false if the launcher has gone before.
    pub(super) fn is_mounted(&self) -> bool {
        process::look_at(&self.pipe, PipeEvent::Bytes).is_ok_and(|seen| seen.has_bytes)
    }

    /// Begins a turn of storing pages in the kernel's cache: waits until the launcher reads none, nor anybody else. False if
    /// the launch is over.
    pub(super) fn begin_turn(&self) -> bool {
        // A launcher that has gone, or is the job, refuses nothing any more.
        lock::take_turn(&self.pipe).is_ok() && !process::is_closed(&self.pipe)
    }

    /// Ends it. What cannot be ended ends with the process.
    pub(super) fn end_turn(&self) {
        let _ = lock::end_turn(&self.pipe);
    }

    /// Waits until the launcher has become the job, or has ended.
    pub(super) fn wait_for_end(&self) {
        // A pipe that cannot be waited for keeps nobody waiting.
        let _ = process::look_at(&self.pipe, PipeEvent::Closed);
    }

    /// The same, but waits no longer than `time`.
    pub(super) fn wait_a_while(&self, time: Duration) {
        process::is_closed_within(&self.pipe, time);
    }

    /// Puts the calling thread on the launcher's CPU. A launch is a chain of short requests, of which each waits for
    /// the one before: on one CPU a request is two switches, between two CPUs it is two times waking one up.
    pub(super) fn join_cpu(&self) {
        if let Some(cpu) = self.cpu {
            // Elsewhere it is slower, not wrong.
            let _ = affinity::pin(cpu);
        }
    }

    /// Keeps the calling thread off the launcher's CPU, and those that it starts. The scheduler puts a new thread where it is
    /// quiet at that moment, which is where the launcher waits for this server; balancing CPUs takes it longer than a launch.
    pub(super) fn leave_cpu(&self) {
        if let Some(cpu) = self.cpu {
            // With one CPU only there is no choice.
            let _ = affinity::avoid(cpu);
        }
    }
}
