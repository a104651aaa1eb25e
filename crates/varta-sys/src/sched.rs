//! The scheduling of the calling thread: real time, or short slices.

use std::io;
use std::time::Duration;

/// The lowest real-time priority: before all ordinary threads, after every other one in real time.
const LOWEST_PRIORITY: libc::c_int = 1;

const NO_FLAGS: libc::c_uint = 0;

/// Declares that the calling thread needs the core for at most `slice` after each wake-up: from 100 us to 100
/// ms, beyond which the kernel rounds. In return the scheduler of Linux 6.12 runs it before threads with longer
/// slices. Older kernels ignore it, and so do threads under another policy than the usual one. Its priority is
/// unchanged.
///
/// # Errors
///
/// The error of the kernel, for example `EPERM` under a filter of system calls.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_flags &= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    attributes.sched_runtime = slice.as_nanos() as u64;
    // SAFETY: 0 is the calling thread, the struct has the size it says, and the kernel only reads it.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, NO_FLAGS) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the calling thread run before every ordinary one from the moment it is woken; threads and processes
/// that it starts do not inherit that. False, and nothing changed, if the thread already has another policy
/// than the usual one.
///
/// # Errors
///
/// `EPERM` if this user may not, as without `CAP_SYS_NICE`, or if the control group has no share of real time.
pub fn real_time() -> io::Result<bool> {
    if attributes()?.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(false);
    }
    set_policy(libc::SCHED_RR, LOWEST_PRIORITY)?;
    Ok(true)
}

/// Makes the calling thread an ordinary one again, with the priority it had and this slice ([`set_slice`]).
///
/// # Errors
///
/// The error of the kernel.
pub fn ordinary(slice: Duration) -> io::Result<()> {
    set_policy(libc::SCHED_OTHER, 0)?;
    set_slice(slice)
}

/// Whether the calling thread runs in real time.
///
/// # Errors
///
/// The error of the kernel.
pub fn is_real_time() -> io::Result<bool> {
    let policy = attributes()?.sched_policy as libc::c_int;
    Ok(matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR))
}

fn set_policy(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // SAFETY: 0 is the calling thread, and the kernel only reads its `sched_param`, which is this number. Not every
    // C library has that struct, or more than a stub for this call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy | libc::SCHED_RESET_ON_FORK,
            &raw const priority,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: `sched_attr` is plain data for which all zeroes is a valid value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread, and the kernel writes no more than the given size, which is that of the
    // struct.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            &raw mut attributes,
            size,
            NO_FLAGS,
        )
    };
    match result {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_micros(300);

    /// Runs each test in a thread of its own, because the settings belong to the thread.
    fn in_a_thread_of_its_own(test: fn()) {
        std::thread::spawn(test).join().unwrap();
    }

    /// The slice that the kernel reports: none before Linux 6.12.
    fn reported_slice_ns(before: &libc::sched_attr) -> u64 {
        match before.sched_runtime {
            0 => 0,
            _ => SLICE.as_nanos() as u64,
        }
    }

    #[test]
    fn a_slice_is_kept_by_kernels_that_know_slices_and_changes_nothing_else() {
        in_a_thread_of_its_own(|| {
            let before = attributes().unwrap();
            set_slice(SLICE).unwrap();
            let after = attributes().unwrap();
            assert_eq!(after.sched_policy, before.sched_policy);
            assert_eq!(after.sched_nice, before.sched_nice);
            assert_eq!(after.sched_runtime, reported_slice_ns(&before));
        });
    }

    #[test]
    fn a_thread_under_another_policy_is_left_alone() {
        in_a_thread_of_its_own(|| {
            set_policy(libc::SCHED_BATCH, 0).unwrap();
            let before = attributes().unwrap();
            set_slice(SLICE).unwrap();
            assert!(!real_time().unwrap());
            let after = attributes().unwrap();
            assert_eq!(after.sched_policy, libc::SCHED_BATCH as u32);
            assert_eq!(after.sched_runtime, before.sched_runtime);
        });
    }

    #[test]
    fn a_thread_in_real_time_becomes_as_ordinary_as_it_was() {
        in_a_thread_of_its_own(|| {
            let before = attributes().unwrap();
            match real_time() {
                Ok(is_set) => assert!(is_set && is_real_time().unwrap()),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
            }
            ordinary(SLICE).unwrap();
            let after = attributes().unwrap();
            assert!(!is_real_time().unwrap());
            assert_eq!(after.sched_nice, before.sched_nice);
            assert_eq!(after.sched_runtime, reported_slice_ns(&before));
        });
    }

    #[test]
    fn what_a_thread_in_real_time_starts_is_ordinary() {
        in_a_thread_of_its_own(|| {
            let _ = real_time();
            let inherits = std::thread::spawn(|| is_real_time().unwrap()).join();
            assert!(!inherits.unwrap());
        });
    }
}
