//! How many files may be open, and how they are shared out: each agent takes a descriptor, and a reserve remains.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for other uses than agents: an eighth of the limit within these bounds.
const RESERVE_MIN: usize = 8;
const RESERVE_MAX: usize = 2048;

/// Descriptors that the runtime opens: a poller, an eventfd, a pair of sockets for signals and a copy of one of them;
/// twice that, so that enough remain to log an error.
pub(super) const RUNTIME_DESCRIPTORS: usize = 10;

/// Each watched agent costs a descriptor. Not fatal: what cannot be watched is counted.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Descriptors that agents may take: the rest of the limit, less a reserve for recovery commands, for requests, for
/// lookups in `/proc`, for processes in transit between the threads, and for descriptors that are attached to
/// datagrams.
pub(super) fn for_agents() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    limit().saturating_sub(open + reserve())
}

/// Descriptors that agents leave to short-lived uses.
pub(super) fn reserve() -> usize {
    (limit() / 8).clamp(RESERVE_MIN, RESERVE_MAX)
}

fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}
