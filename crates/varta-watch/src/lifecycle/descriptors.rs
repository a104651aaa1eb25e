//! How many files may be open, and for whom: agents are held by a descriptor each, and leave a reserve.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors not given to agents: an eighth of the limit within these bounds.
const RESERVE_MIN: usize = 8;
const RESERVE_MAX: usize = 2048;

/// Descriptors that the runtime opens: a poller, a bell, a pair of sockets for signals and a copy of one of them; twice
/// that, so that there is something left to say so with.
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

/// Descriptors that agents may be held by: what is left of the limit, less a reserve for recovery
/// commands, for requests, for looking into `/proc`, for processes on the way between the threads, and for descriptors
/// that come attached to datagrams.
pub(super) fn for_agents() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    limit().saturating_sub(open + reserve())
}

/// What agents leave to everything that comes and goes.
pub(super) fn reserve() -> usize {
    (limit() / 8).clamp(RESERVE_MIN, RESERVE_MAX)
}

fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}
