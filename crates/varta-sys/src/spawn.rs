//! Starts a program under a chosen pid, for tests that need a reused pid.

use std::ffi::{CStr, c_char};
use std::{io, ptr};

/// `struct clone_args` in its second version (Linux 5.5), the first one with `set_tid`.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 80);

/// Starts `program` (a path, not looked up) as a child of this process with the pid `pid`, counted
/// in the pid namespace of this process, and returns its pid.
///
/// The child gets its own name and then `arguments`, exactly this `environment`, and inherits through
/// `execve`: standard streams, directory, signal mask, ignored signals. If the program cannot be run it exits
/// with status 127. The caller has to wait for it.
///
/// # Errors
///
/// - `EEXIST`: the pid is taken, by a process, a thread, a group or a session.
/// - `EPERM`: neither `CAP_CHECKPOINT_RESTORE` (Linux 5.9) nor `CAP_SYS_ADMIN` over the namespace.
/// - `EINVAL`: there is no such pid; 0 and pids beyond `pid_max` are invalid.
pub fn spawn_as(
    pid: u32,
    program: &CStr,
    arguments: &[&CStr],
    environment: &[&CStr],
) -> io::Result<u32> {
    // All allocations happen before the child exists.
    let pointers = |first: Option<&CStr>, others: &[&CStr]| -> Vec<*const c_char> {
        let others = others.iter().copied();
        let strings = first.into_iter().chain(others).map(CStr::as_ptr);
        strings.chain([ptr::null()]).collect()
    };
    let arguments = pointers(Some(program), arguments);
    let environment = pointers(None, environment);
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let clone_args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: (&raw const pid) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };

    // SAFETY: the kernel reads `clone_args`, whose size is stated, and the one pid it points to; both outlive
    // the call. The call returns twice. Without `CLONE_VM` the child has a copy of the memory, so its actions
    // do not affect the parent. Other threads are missing from the copy and may have left locks taken, but
    // the child takes none: see below.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const clone_args,
            size_of::<CloneArgs>(),
        )
    };
    if child == 0 {
        // SAFETY: a path and two null-terminated arrays of C strings, all of them still alive in the
        // child's copy. `execve` is async-signal-safe: it takes no lock and allocates nothing.
        unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        // SAFETY: async-signal-safe as well. It does not return, so no destructor and no exit handler
        // of the parent runs in the child.
        unsafe { libc::_exit(127) }
    }
    u32::try_from(child).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, WaitOptions, waitpid};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const SHELL: &CStr = c"/bin/sh";

    /// A pid one test has freed must not be taken by another.
    fn take_turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where pids cannot be chosen.
    fn spawn_free(program: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> Option<u32> {
        let pid_max = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
        let pid_max: u32 = pid_max.trim().parse().unwrap();
        for pid in (300..pid_max).rev() {
            match spawn_as(pid, program, arguments, environment) {
                Ok(child) => {
                    assert_eq!(child, pid);
                    return Some(child);
                }
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => {
                    println!("skipped: pids cannot be chosen here: {error}");
                    return None;
                }
            }
        }
        panic!("every pid is taken");
    }

    fn exit_status(pid: u32) -> Option<i32> {
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        let (waited, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(waited, pid);
        status.exit_status()
    }

    #[test]
    fn the_child_has_the_pid_and_runs_the_program() {
        let _turn = take_turn();
        if let Some(child) = spawn_free(SHELL, &[c"-c", c"exit 7"], &[]) {
            assert_eq!(exit_status(child), Some(7));
        }
    }

    #[test]
    fn the_child_gets_its_arguments_and_its_environment() {
        let _turn = take_turn();
        let script = c"test \"$A$1\" = xy";
        if let Some(child) = spawn_free(SHELL, &[c"-c", script, c"name", c"y"], &[c"A=x"]) {
            assert_eq!(exit_status(child), Some(0));
        }
    }

    #[test]
    fn a_pid_that_ended_can_be_used_again() {
        let _turn = take_turn();
        // Another program of this machine may take the pid in between.
        loop {
            let Some(first) = spawn_free(SHELL, &[c"-c", c"exit 1"], &[]) else {
                return;
            };
            assert_eq!(exit_status(first), Some(1));
            match spawn_as(first, SHELL, &[c"-c", c"exit 2"], &[]) {
                Ok(second) => {
                    assert_eq!((second, exit_status(second)), (first, Some(2)));
                    return;
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{error}"),
            }
        }
    }

    #[test]
    fn a_pid_that_is_taken_or_cannot_be_is_an_error() {
        let _turn = take_turn();
        for pid in [0, std::process::id(), u32::MAX] {
            assert!(spawn_as(pid, SHELL, &[], &[]).is_err(), "{pid}");
        }
    }

    #[test]
    fn a_program_that_cannot_be_run_exits_with_127() {
        let _turn = take_turn();
        if let Some(child) = spawn_free(c"/nonexistent", &[], &[]) {
            assert_eq!(exit_status(child), Some(127));
        }
    }
}
