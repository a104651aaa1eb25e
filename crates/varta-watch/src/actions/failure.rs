//! Why an action did not start, derived from the errors of the system.

use std::io;

use rustix::io::Errno;
use varta_core::fact::{OsError, StartFailure};

use crate::process_info;

/// An error of the system as facts carry it.
#[allow(clippy::needless_pass_by_value, reason = "it maps errors")]
pub(super) fn os_error(error: io::Error) -> OsError {
    OsError {
        errno: error.raw_os_error(),
        text: error.to_string(),
    }
}

pub(super) fn not_sent(error: io::Error) -> StartFailure {
    StartFailure::Signal(os_error(error))
}

/// The observer itself lacks a resource that an action takes: descriptors, memory or processes. Nothing was done, and
/// it may be possible later.
pub(crate) fn is_shortage(failure: &StartFailure) -> bool {
    let (StartFailure::Spawn { error, .. } | StartFailure::Signal(error)) = failure else {
        return false;
    };
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    let mut shortages = shortages.iter().map(|shortage| shortage.raw_os_error());
    shortages.any(|shortage| error.errno == Some(shortage))
}

/// The outcome of sending a signal: a process that has ended is no error of the system.
pub(super) fn sent<E: Into<io::Error>>(result: Result<(), E>) -> Result<(), StartFailure> {
    result.map_err(|error| {
        let error = error.into();
        if process_info::is_gone(&error) {
            StartFailure::TargetGone
        } else {
            not_sent(error)
        }
    })
}
