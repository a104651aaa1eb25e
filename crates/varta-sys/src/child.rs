//! Starts a program that inherits nothing from this process: a session of its own, the standard streams and
//! no other descriptor, every signal at its default.
//!
//! The standard library needs `fork` for that. A fork copies the page tables of this process, which takes more than
//! twice the time (`bench`, section `restraint`), and the next write of any thread to a page copies that page. So the
//! child shares the memory of the thread that starts it, which the kernel suspends until the program runs (`CLONE_VM |
//! CLONE_VFORK`), as `posix_spawn` does. The child may only do what is async-signal-safe: no lock, no allocation. The
//! parent prepares everything that needs memory.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// First descriptor that is no standard stream.
const FIRST_OTHER: c_int = 3;

/// The largest signal number on every supported architecture.
const SIGNAL_MAX: c_int = 64;

/// Stack of the child until its program runs, 64 KiB in the unit that keeps it aligned: it goes a few calls
/// deep, each of them with some hundred bytes.
const STACK_UNITS: usize = 64 * 1024 / size_of::<u128>();

/// A program to start.
#[derive(Debug)]
pub struct Program {
    /// Its path; not looked up.
    pub path: CString,
    /// Its arguments, without its own name.
    pub arguments: Vec<CString>,
    /// Its whole environment, `NAME=value`.
    pub environment: Vec<CString>,
    /// Its standard input.
    pub input: File,
    /// Its standard output and error.
    pub output: OwnedFd,
    /// The open `cgroup.procs` of its control group; it stays in that of this process if it cannot join.
    pub procs: Option<File>,
}

/// A started program. The caller has to wait for it.
#[derive(Debug)]
pub struct Child {
    /// Its process id, not reused before the wait.
    pub pid: u32,
    /// Its pidfd. Closed on `execve`.
    pub pidfd: OwnedFd,
}

/// The data that the child reads in the shared memory.
struct Orders {
    path: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    input: c_int,
    output: c_int,
    procs: Option<c_int>,
    /// Why the program does not run: an `errno`, 0 while there is none.
    error: AtomicI32,
}

impl Program {
    /// Starts it as the leader of a session of its own, without a controlling terminal. The thread is suspended
    /// until the program runs.
    ///
    /// Before Linux 5.11 descriptors without `FD_CLOEXEC` are inherited.
    ///
    /// # Errors
    ///
    /// The reason that the program does not run: `ENOENT`, `EACCES`, `E2BIG`, `EAGAIN` ... Nothing is left
    /// behind then.
    pub fn start(&self) -> io::Result<Child> {
        let arguments = [&self.path].into_iter().chain(&self.arguments);
        let arguments = pointers(arguments.map(CString::as_c_str));
        let environment = pointers(self.environment.iter().map(CString::as_c_str));
        let orders = Orders {
            path: self.path.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            input: self.input.as_raw_fd(),
            output: self.output.as_raw_fd(),
            procs: self.procs.as_ref().map(File::as_raw_fd),
            error: AtomicI32::new(0),
        };
        let streams = [orders.input, orders.output];
        if streams.iter().any(|fd| *fd < FIRST_OTHER) {
            // The one would be overwritten with the other. Programs of the standard library have all three.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let child = with_signals_blocked(|| clone(&orders))?;
        match orders.error.load(Ordering::Relaxed) {
            0 => Ok(child),
            error => {
                reap(child.pid);
                Err(io::Error::from_raw_os_error(error))
            }
        }
    }
}

/// A list for `execve`, with a null pointer at its end.
fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    strings.map(CStr::as_ptr).chain([ptr::null()]).collect()
}

/// A handler that ran in the child would change memory of this process.
pub(crate) fn with_signals_blocked<T>(act: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: reads the set that was just filled, and writes the other one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let result = act();
    // SAFETY: `before` was written above; it can only fail for arguments that are not these.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

fn clone(orders: &Orders) -> io::Result<Child> {
    let mut stack = vec![MaybeUninit::<u128>::uninit(); STACK_UNITS];
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is aligned, writable and not used otherwise, and grows down from its end. `orders` and the
    // stack outlive the child's use of them: with CLONE_VFORK this call returns when the child has run `execve` or
    // ended. All signals but those of the C library itself are blocked, so no handler of ours runs in the child,
    // and what it runs is async-signal-safe. The kernel writes the pidfd to an integer of ours.
    let pid = unsafe {
        libc::clone(
            become_program,
            top.cast(),
            flags,
            ptr::from_ref(orders).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pidfd < 0 {
        // A kernel before 5.2 ignores the request for a pidfd. SAFETY: two integers; the child has not been
        // waited for, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        reap(pid.unsigned_abs());
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Child {
        pid: pid.unsigned_abs(),
        // SAFETY: the call has just made this descriptor for us.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

/// The child, in the memory of its parent thread.
extern "C" fn become_program(orders: *mut c_void) -> c_int {
    // SAFETY: `clone` was given a reference to orders that live until `execve`; only the atomic in them
    // changes.
    let orders: &Orders = unsafe { &*orders.cast_const().cast() };
    let Err(error) = prepare(orders).and_then(|()| run(orders));
    let error = error.raw_os_error().unwrap_or(libc::EINVAL);
    orders.error.store(error, Ordering::Relaxed);
    // SAFETY: ends this process without running code of the process that owns the memory.
    unsafe { libc::_exit(127) }
}

fn prepare(orders: &Orders) -> io::Result<()> {
    if let Some(procs) = orders.procs {
        join(procs);
    }
    // SAFETY: takes no argument and touches no memory.
    checked(unsafe { libc::setsid() })?;
    reset_signals();
    for (stream, fd) in [(0, orders.input), (1, orders.output), (2, orders.output)] {
        // SAFETY: two integers; changes the descriptor table of this process, which is a copy.
        checked(unsafe { libc::dup2(fd, stream) })?;
    }
    close_others_on_exec();
    unblock_signals();
    Ok(())
}

/// Returns only on error.
fn run(orders: &Orders) -> io::Result<std::convert::Infallible> {
    // SAFETY: strings and lists of them, with their ends, that live until this succeeds.
    unsafe { libc::execve(orders.path, orders.arguments, orders.environment) };
    Err(io::Error::last_os_error())
}

fn checked(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Moves the calling process into a control group: `0` stands for the writing process.
fn join(procs: c_int) {
    // SAFETY: the kernel reads one byte from a constant.
    let _ = unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) };
}

/// Resets every signal that this process handles or ignores to its default. The child has its own table of
/// handlers. The C library is bypassed, because it may take a lock that the parent shares.
fn reset_signals() {
    /// The kernel's `struct sigaction`: no handler, no flags, no restorer, an empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    /// Bytes of the kernel's set of signals.
    const SET_BYTES: usize = 8;
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: the kernel reads 32 bytes from a constant, and has no place to write to. Numbers that
        // cannot be set are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                ptr::null_mut::<c_void>(),
                SET_BYTES,
            )
        };
    }
}

/// Unblocks all signals: no handler is left that could run.
fn unblock_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: empties the set it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: reads the set that was just emptied.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// The flag, not the descriptors: there may be many.
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

/// Waits for a child that has ended or is about to.
fn reap(pid: u32) {
    loop {
        // SAFETY: waits for a child of this process; the null pointer discards its status.
        let result = unsafe { libc::waitpid(pid.cast_signed(), ptr::null_mut(), 0) };
        let is_interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if result != -1 || !is_interrupted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn string(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    fn program(path: &str, arguments: &[&str], output: OwnedFd) -> Program {
        Program {
            path: string(path),
            arguments: arguments.iter().map(|text| string(text)).collect(),
            environment: vec![string("PATH=/usr/bin:/bin"), string("COLOUR=blue")],
            input: File::open("/dev/null").unwrap(),
            output,
            procs: None,
        }
    }

    /// How a child ended, as `waitpid` reports it.
    fn wait(child: &Child) -> c_int {
        let mut status = 0;
        // SAFETY: a child of this process, and an integer of ours.
        let pid = unsafe { libc::waitpid(child.pid.cast_signed(), &raw mut status, 0) };
        assert_eq!(pid, child.pid.cast_signed());
        status
    }

    /// The output of a shell script on both streams, and its child.
    fn output_of(script: &str) -> (u32, String) {
        let (mut reader, writer) = io::pipe().unwrap();
        let program = program("/bin/sh", &["-c", script], writer.into());
        let child = program.start().unwrap();
        drop(program);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        assert_eq!(wait(&child), 0, "{output}");
        (child.pid, output)
    }

    fn line<'a>(status: &'a str, name: &str) -> &'a str {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim()
    }

    fn null() -> OwnedFd {
        File::options()
            .write(true)
            .open("/dev/null")
            .unwrap()
            .into()
    }

    #[test]
    fn a_program_gets_its_arguments_and_its_environment_and_nothing_else() {
        let (_, output) =
            output_of("env | grep -v '^PWD=\\|^SHLVL=\\|^_=' | sort; echo \"$0\" >&2; cat");
        assert_eq!(output, "COLOUR=blue\nPATH=/usr/bin:/bin\n/bin/sh\n");
    }

    #[test]
    fn a_program_leads_a_session_and_a_group_of_its_own() {
        let (pid, stat) = output_of("read stat < /proc/$$/stat; echo $stat");
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let pid = pid.to_string();
        assert_eq!((fields[2], fields[3]), (pid.as_str(), pid.as_str()));
        assert_eq!(fields[4], "0", "a controlling terminal");
    }

    #[test]
    fn a_program_inherits_no_descriptor_even_if_this_process_lets_it() {
        let file = File::open("/dev/null").unwrap();
        // SAFETY: duplicates a descriptor that is open; the copy is inheritable and owned by this test.
        let careless = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 700) };
        assert!(careless >= 700);
        // SAFETY: the call has just made this descriptor for us.
        let careless = unsafe { OwnedFd::from_raw_fd(careless) };
        let (_, seen) = output_of("ls /proc/$$/fd");
        drop(careless);
        assert!(!seen.contains("700"), "{seen}");
    }

    #[test]
    fn a_program_ignores_and_blocks_no_signal() {
        // SAFETY: SIG_IGN is no function to be called.
        unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
        let (_, status) = output_of("cat /proc/self/status");
        assert_eq!(line(&status, "SigIgn:"), "0000000000000000");
        assert_eq!(line(&status, "SigBlk:"), "0000000000000000");
    }

    #[test]
    fn this_process_handles_and_blocks_afterwards_what_it_did_before() {
        extern "C" fn handle(_: c_int) {}
        let handler = handle as *const () as libc::sighandler_t;
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGWINCH, handler) };
        let mask = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            line(&status, "SigBlk:").to_owned()
        };
        let before = mask();
        output_of("true");
        assert_eq!(mask(), before);
        // SAFETY: sets a default and returns the previous handler.
        let left = unsafe { libc::signal(libc::SIGWINCH, libc::SIG_DFL) };
        assert_eq!(left, handler);
    }

    #[test]
    fn a_program_that_cannot_run_is_an_error_and_leaves_no_process_behind() {
        let missing = program("/nowhere/at-all", &[], null()).start();
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        let directory = program("/", &[], null()).start();
        let kind = directory.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
        let children = std::fs::read_to_string("/proc/thread-self/children");
        assert_eq!(children.unwrap_or_default(), "");
    }

    #[test]
    fn the_pidfd_is_that_of_the_child() {
        let child = program("/bin/sh", &["-c", "exit 3"], null())
            .start()
            .unwrap();
        let info = format!("/proc/self/fdinfo/{}", child.pidfd.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        assert_eq!(line(&info, "Pid:"), child.pid.to_string());
        assert_eq!(wait(&child), 3 << 8);
    }

    #[test]
    fn a_program_that_cannot_join_a_control_group_runs_where_it_is() {
        let program = Program {
            procs: Some(File::open("/dev/null").unwrap()),
            ..program("/bin/true", &[], null())
        };
        assert_eq!(wait(&program.start().unwrap()), 0);
    }
}
