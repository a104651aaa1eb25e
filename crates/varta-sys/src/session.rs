//! Cutting a child loose before it becomes another program.
//!
//! Between `fork` and `execve` the child of a process with many threads may only do what is
//! async-signal-safe: no lock, no allocation. So what needs memory or a path is prepared by the parent,
//! and the child makes a handful of system calls. This forks instead of `vfork`ing, which copies the
//! page tables of the parent.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// First descriptor that is no standard stream.
const FIRST_OTHER: libc::c_uint = 3;

/// Signals are numbered from 1 to this on every architecture this runs on.
const SIGNAL_MAX: libc::c_int = 64;

/// Lets `command` start its program as the leader of a session of its own, without a controlling
/// terminal, with no descriptor but its standard streams, and with every signal at its default; the
/// standard library has emptied the signal mask by then. `procs` is the open `cgroup.procs` of the
/// control group it is to live in; it stays in its parent's if it cannot join.
///
/// Before Linux 5.11 descriptors that the parent was careless with are inherited.
///
/// # Errors
///
/// None here. Starting the command fails if no session can be made.
pub fn isolate(command: &mut Command, procs: Option<File>) {
    let prepare = move || {
        if let Some(procs) = &procs {
            join(procs);
        }
        new_session()?;
        reset_signals();
        close_others_on_exec();
        Ok(())
    };
    // SAFETY: the closure only makes the system calls below, each of which is async-signal-safe. It
    // allocates nothing, takes no lock, and owns all it uses.
    unsafe { command.pre_exec(prepare) };
}

/// Moves the calling process into a control group: `0` stands for whoever writes it.
fn join(procs: &File) {
    // SAFETY: the kernel reads one byte from a constant.
    let _ = unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
}

fn new_session() -> io::Result<()> {
    // SAFETY: takes no argument and touches no memory.
    match unsafe { libc::setsid() } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Handlers end with `execve`, but what the parent ignores would stay ignored. The signals that the C
/// library keeps to itself cannot be set and are of no use to anybody else.
fn reset_signals() {
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: SIG_DFL is no function to be called. Numbers that cannot be set are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The flag, not the descriptors: the parent waits on one of them for the outcome of `execve`.
fn close_others_on_exec() {
    // SAFETY: takes three integers and changes flags in the descriptor table of this process only.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_OTHER,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    /// Standard output of a shell script that was isolated.
    fn output_of(script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        isolate(&mut command, None);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn line<'a>(status: &'a str, name: &str) -> &'a str {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim()
    }

    #[test]
    fn an_isolated_child_leads_a_session_and_a_group_of_its_own() {
        let stat = output_of("echo $$; read stat < /proc/$$/stat; echo $stat");
        let (pid, stat) = stat.split_once('\n').unwrap();
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        assert_eq!((fields[2], fields[3]), (pid, pid));
        assert_eq!(fields[4], "0", "a controlling terminal");
    }

    #[test]
    fn an_isolated_child_inherits_no_descriptor_even_if_the_parent_lets_it() {
        let file = File::open("/dev/null").unwrap();
        // SAFETY: duplicates a descriptor that is open; the copy is inheritable and nobody else's.
        let careless = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 700) };
        assert!(careless >= 700);
        // SAFETY: the call has just made this descriptor for us.
        let careless = unsafe { OwnedFd::from_raw_fd(careless) };
        let seen = output_of("ls /proc/$$/fd");
        drop(careless);
        assert!(!seen.contains("700"), "{seen}");
    }

    #[test]
    fn an_isolated_child_ignores_and_blocks_no_signal() {
        /// Signals 32 and 33, which no C library lets anybody touch.
        const KEPT_BY_LIBC: u64 = 0b11 << 31;
        // SAFETY: SIG_IGN is no function to be called.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        let status = output_of("cat /proc/self/status");
        let ignored = u64::from_str_radix(line(&status, "SigIgn:"), 16).unwrap();
        assert_eq!(ignored & !KEPT_BY_LIBC, 0, "{ignored:x}");
        assert_eq!(line(&status, "SigBlk:"), "0000000000000000");
    }

    #[test]
    fn a_child_that_cannot_join_a_control_group_runs_where_it_is() {
        let mut command = Command::new("true");
        isolate(&mut command, Some(File::open("/dev/null").unwrap()));
        assert!(command.status().unwrap().success());
    }
}
