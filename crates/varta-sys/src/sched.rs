//! How long the calling thread wants to run at a time.

use std::io;
use std::time::Duration;

/// Says that the calling thread needs the core for no longer than `slice` whenever it is woken: from 100 us to
/// 100 ms, beyond which the kernel rounds. In return the scheduler of Linux 6.12 lets it run at once instead of
/// after whoever has a longer slice. Older kernels ignore it, and so does a thread whose policy is not the
/// usual one. Its priority stays as it is.
///
/// # Errors
///
/// Whatever the kernel says, as `EPERM` under a filter of system calls.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_flags = 0;
    attributes.sched_runtime = slice.as_nanos() as u64;
    // SAFETY: 0 is the calling thread, the struct has the size it says, and the kernel only reads it.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, NO_FLAGS) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const NO_FLAGS: libc::c_uint = 0;

fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    // SAFETY: `sched_attr` is plain data for which all zeroes is a valid value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread, and the kernel writes no more than the size it is told, which is that of
    // the struct.
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

    #[test]
    fn a_slice_is_kept_by_kernels_that_know_slices_and_changes_nothing_else() {
        let in_a_thread_of_its_own = || {
            let before = attributes().unwrap();
            set_slice(Duration::from_micros(300)).unwrap();
            let after = attributes().unwrap();
            assert_eq!(after.sched_policy, before.sched_policy);
            assert_eq!(after.sched_nice, before.sched_nice);
            // Since Linux 6.12 the kernel tells the slice, before it tells none.
            let expected = match before.sched_runtime {
                0 => 0,
                _ => 300_000,
            };
            assert_eq!(after.sched_runtime, expected);
        };
        std::thread::spawn(in_a_thread_of_its_own).join().unwrap();
    }

    #[test]
    fn a_thread_under_another_policy_is_left_alone() {
        let in_a_thread_of_its_own = || {
            let parameters = libc::sched_param { sched_priority: 0 };
            // SAFETY: 0 is the calling thread, and the kernel only reads the struct.
            let result =
                unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
            assert_eq!(result, 0);
            let before = attributes().unwrap();
            set_slice(Duration::from_micros(300)).unwrap();
            let after = attributes().unwrap();
            assert_eq!(after.sched_policy, libc::SCHED_BATCH as u32);
            assert_eq!(after.sched_runtime, before.sched_runtime);
        };
        std::thread::spawn(in_a_thread_of_its_own).join().unwrap();
    }
}
