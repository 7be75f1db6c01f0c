//! How many processors this process may use.

use std::num::NonZeroUsize;

/// Processors that the CPU affinity of the process and the CPU quota of its cgroup leave to it, at least 1: a job step
/// owns a part of the node, not the node.
pub fn usable() -> NonZeroUsize {
    // The standard library reads sched_getaffinity(2) and the quotas of cgroup v1 and v2.
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
