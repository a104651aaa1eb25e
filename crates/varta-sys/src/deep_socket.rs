//! A datagram socket with a queue of configurable depth.
//!
//! How many datagrams a Unix socket queues is `net.unix.max_dgram_qlen` of the network namespace in which it is made,
//! read when it is made. A socket that is bound to a path is found from every network namespace. So a helper process
//! moves to a new network namespace (and to a new user namespace, if it lacks the privilege for the former alone),
//! sets the depth there, makes the socket and passes it back over `SCM_RIGHTS`. The setting of this process's own
//! namespace is not touched. The new namespaces live as long as the socket.
//!
//! The helper is a fork of the calling process, which may have many threads: a lock that another thread holds stays
//! locked in the copy for ever. The helper therefore makes system calls only and allocates nothing. It does not
//! share this process's memory, because the caller must be able to abandon it: making a network namespace can wait
//! for the removal of other namespaces.
//!
//! Bounds: one helper per call, which has ended and was reaped when the call returns. One that has not reported in
//! time is killed.

use std::ffi::{CStr, CString, c_int, c_long};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use crate::child::with_signals_blocked;
use crate::socket_option;

/// The file with the depth of the network namespace of the process that opens it.
const SETTING: &CStr = c"/proc/sys/net/unix/max_dgram_qlen";

/// More digits than a depth has.
const DIGITS_MAX: usize = 32;

/// The step at which the kernel refused the helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Start the helper.
    Start,
    /// Move to a new user namespace, which a network namespace requires without privilege.
    UserNamespace,
    /// Move to a new network namespace.
    NetworkNamespace,
    /// Open the setting there. `ENOENT` before Linux 5.17 if a user namespace was needed.
    OpenSetting,
    /// Write the depth.
    WriteSetting,
    /// Read it back.
    ReadSetting,
    /// Make the socket.
    MakeSocket,
    /// Pass it back.
    HandBack,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Start,
        Self::UserNamespace,
        Self::NetworkNamespace,
        Self::OpenSetting,
        Self::WriteSetting,
        Self::ReadSetting,
        Self::MakeSocket,
        Self::HandBack,
    ];
}

/// Why there is no deep socket.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeepSocketError {
    /// The kernel refused a step.
    Refused(Step, io::Error),
    /// The helper ended before its report; the signal that ended it: `SIGSYS` if a system call filter kills instead of
    /// refusing; 0 for none.
    Killed(i32),
    /// The helper did not report in time and was killed.
    TimedOut,
}

impl fmt::Display for DeepSocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, error) = match self {
            Self::Refused(step, error) => (step, error),
            Self::Killed(0) => {
                return f.write_str("the helper process could not report (a system call filter?)");
            }
            Self::Killed(signal) => {
                return write!(f, "signal {signal} ended the helper process");
            }
            Self::TimedOut => return f.write_str("the helper process did not report in time"),
        };
        let setting = SETTING.to_string_lossy();
        match step {
            Step::Start => write!(f, "cannot start a helper process: {error}"),
            Step::UserNamespace => write!(f, "cannot make a user namespace: {error}"),
            Step::NetworkNamespace => write!(f, "cannot make a network namespace: {error}"),
            Step::OpenSetting => write!(
                f,
                "cannot open {setting} in a new network namespace: {error}"
            ),
            Step::WriteSetting => write!(
                f,
                "cannot write {setting} in a new network namespace: {error}"
            ),
            Step::ReadSetting => write!(f, "{setting} does not keep what is written to it"),
            Step::MakeSocket => write!(
                f,
                "cannot make a socket in a new network namespace: {error}"
            ),
            Step::HandBack => write!(f, "cannot hand over a socket: {error}"),
        }
    }
}

impl std::error::Error for DeepSocketError {}

/// Makes an unbound, non-blocking Unix datagram socket that queues `datagrams` (at least 1), and waits for it at most
/// for `patience`.
///
/// Credentials and pidfds of senders are in the namespace of the receiving process, regardless of the namespace in
/// which the socket was made. The socket cannot be reached by an abstract name, and tools that list the sockets of
/// this network namespace do not list it.
///
/// # Errors
///
/// One of [`DeepSocketError`]; nothing is left behind then.
pub fn deep_socket(datagrams: u32, patience: Duration) -> Result<OwnedFd, DeepSocketError> {
    // The kernel queues one more than the setting says.
    let depth = datagrams.saturating_sub(1).to_string();
    // Digits are no null byte.
    let depth = CString::new(depth).unwrap_or_default();
    ask_helper(patience, || make(&depth))
}

/// Runs `act` in a fork of this process, and returns the socket that it made there. `act` must be
/// async-signal-safe.
fn ask_helper(
    patience: Duration,
    act: impl FnOnce() -> Result<c_int, (Step, c_int)>,
) -> Result<OwnedFd, DeepSocketError> {
    let start = |error| DeepSocketError::Refused(Step::Start, error);
    let (ours, theirs) = channel(patience).map_err(start)?;
    // A handler of this process must not run in the copy, and must not interrupt the wait.
    with_signals_blocked(|| {
        let pid = fork();
        if pid == 0 {
            report(theirs.as_raw_fd(), act());
            // SAFETY: ends the copy without running code of the process it was copied from.
            unsafe { libc::_exit(0) }
        }
        if pid < 0 {
            return Err(start(io::Error::last_os_error()));
        }
        // Closed so that the end of the helper ends the wait.
        drop(theirs);
        let received = receive(&ours);
        if received.is_err() {
            // SAFETY: two integers; the helper was not reaped, so the number is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let signal = wait_for(pid);
        match received {
            Ok(Some(result)) => result,
            Ok(None) => Err(DeepSocketError::Killed(signal)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(DeepSocketError::TimedOut)
            }
            Err(error) => Err(DeepSocketError::Refused(Step::HandBack, error)),
        }
    })
}

/// Two connected sockets; a receive on the first one waits at most for `patience`.
fn channel(patience: Duration) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two integers of ours.
    checked(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: the call has just made these descriptors for us.
    let [ours, theirs] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let limit = libc::timeval {
        tv_sec: patience.as_secs() as _,
        tv_usec: patience.subsec_micros() as _,
    };
    socket_option::set(ours.as_fd(), libc::SO_RCVTIMEO, &limit)?;
    Ok((ours, theirs))
}

/// `fork` without the handlers that libraries have registered. The copy has this process's descriptors. Its end
/// sends no signal, and a wait for any child does not find it.
fn fork() -> libc::pid_t {
    const NO_FLAGS: c_long = 0;
    const UNUSED: c_long = 0;
    // SAFETY: without flags the copy shares no memory with this process, so nothing it does reaches this one. Both
    // architectures expect flags first and accept 0 for all unused arguments. The caller, `ask_helper`, is
    // responsible for what the copy does.
    let pid = unsafe { libc::syscall(libc::SYS_clone, NO_FLAGS, UNUSED, UNUSED, UNUSED, UNUSED) };
    pid as libc::pid_t
}

/// Waits for the helper. Returns the signal that ended it, 0 if none did.
fn wait_for(pid: libc::pid_t) -> c_int {
    let mut status = 0;
    loop {
        // SAFETY: waits for a child of this process and writes an integer of ours.
        let result = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if result != -1 {
            return match libc::WIFSIGNALED(status) {
                true => libc::WTERMSIG(status),
                false => 0,
            };
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return 0;
        }
    }
}

/// In the helper: a socket with this depth.
fn make(depth: &CStr) -> Result<c_int, (Step, c_int)> {
    // A system call filter may end the helper with a core dump, which would be one of this process's memory.
    // SAFETY: integers only; changes the copy, not the process it was copied from.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    enter_namespaces()?;
    set_depth(depth)?;
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers only.
    step(Step::MakeSocket, unsafe {
        libc::socket(libc::AF_UNIX, kind, 0)
    })
}

fn enter_namespaces() -> Result<(), (Step, c_int)> {
    // SAFETY: an integer; concerns the copy alone.
    let unshare = |flag| unsafe { libc::unshare(flag) };
    if unshare(libc::CLONE_NEWNET) == 0 {
        return Ok(());
    }
    if errno() == libc::EPERM {
        step(Step::UserNamespace, unshare(libc::CLONE_NEWUSER))?;
        step(Step::NetworkNamespace, unshare(libc::CLONE_NEWNET))?;
        return Ok(());
    }
    Err((Step::NetworkNamespace, errno()))
}

/// `/proc/sys/net` belongs to the network namespace of the process that opens it.
fn set_depth(depth: &CStr) -> Result<(), (Step, c_int)> {
    let depth = depth.to_bytes();
    // SAFETY: a string with its end.
    let setting = unsafe { libc::open(SETTING.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let setting = step(Step::OpenSetting, setting)?;
    // SAFETY: the kernel reads as many bytes as there are.
    let written = unsafe { libc::pwrite(setting, depth.as_ptr().cast(), depth.len(), 0) };
    step(Step::WriteSetting, written as c_int)?;
    let mut kept = [0_u8; DIGITS_MAX];
    // SAFETY: the kernel writes no more bytes than there are.
    let length = unsafe { libc::pread(setting, kept.as_mut_ptr().cast(), kept.len(), 0) };
    let length = step(Step::ReadSetting, length as c_int)?;
    let kept = &kept[..length as usize];
    match kept.strip_suffix(b"\n").unwrap_or(kept) == depth {
        true => Ok(()),
        false => Err((Step::ReadSetting, libc::EINVAL)),
    }
}

/// In the helper: reports the outcome, and sends the socket along. If that fails, the observer notices the
/// helper's end.
fn report(channel: c_int, result: Result<c_int, (Step, c_int)>) {
    let (word, socket) = match result {
        Ok(socket) => ([0, 0], Some(socket)),
        Err((step, errno)) => ([step as c_int, errno], None),
    };
    if let Err(error) = send(channel, word, socket)
        && socket.is_some()
    {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        let _ = send(channel, [Step::HandBack as c_int, errno], None);
    }
}

/// A control message with one descriptor, as the kernel lays it out.
#[repr(C)]
struct DescriptorMessage {
    header: libc::cmsghdr,
    descriptor: c_int,
}

impl DescriptorMessage {
    /// Bytes of header and descriptor, without what aligns the next message.
    const BYTES: usize = size_of::<libc::cmsghdr>() + size_of::<c_int>();

    fn empty() -> Self {
        // SAFETY: integers, for which all zeroes is a valid value; it is not built field by field because musl has
        // private padding in the header.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    fn with(descriptor: c_int) -> Self {
        let mut message = Self::empty();
        message.header.cmsg_len = Self::BYTES as _;
        message.header.cmsg_level = libc::SOL_SOCKET;
        message.header.cmsg_type = libc::SCM_RIGHTS;
        message.descriptor = descriptor;
        message
    }

    /// The descriptor, if one came.
    fn descriptor(&self) -> Option<c_int> {
        let is_descriptor = self.header.cmsg_level == libc::SOL_SOCKET
            && self.header.cmsg_type == libc::SCM_RIGHTS
            && self.header.cmsg_len == Self::BYTES as _;
        is_descriptor.then_some(self.descriptor)
    }
}

/// Sends two numbers, and a socket if there is one.
fn send(channel: c_int, mut word: [c_int; 2], socket: Option<c_int>) -> io::Result<()> {
    let mut control = socket.map(DescriptorMessage::with);
    let mut data = libc::iovec {
        iov_base: word.as_mut_ptr().cast(),
        iov_len: size_of_val(&word),
    };
    let message = message(&mut data, control.as_mut());
    // SAFETY: the message points to one buffer of data and to no or one control message, of the lengths stated.
    let sent = unsafe { libc::sendmsg(channel, &raw const message, libc::MSG_NOSIGNAL) };
    checked(sent as c_int).map(|_| ())
}

/// What the helper reports: `None` if it has ended without a report.
fn receive(channel: &OwnedFd) -> io::Result<Option<Result<OwnedFd, DeepSocketError>>> {
    let mut word: [c_int; 2] = [0; 2];
    let mut control = DescriptorMessage::empty();
    let mut data = libc::iovec {
        iov_base: word.as_mut_ptr().cast(),
        iov_len: size_of_val(&word),
    };
    let mut message = message(&mut data, Some(&mut control));
    let length = loop {
        // SAFETY: the message points to one buffer of data and to room for one control message, both ours, of the
        // lengths stated.
        let length = unsafe {
            libc::recvmsg(
                channel.as_raw_fd(),
                &raw mut message,
                libc::MSG_CMSG_CLOEXEC,
            )
        };
        match checked(length as c_int) {
            // It was stopped and continues.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let [step, errno] = word;
    if errno != 0 {
        let step = Step::ALL.into_iter().find(|one| *one as c_int == step);
        let step = step.unwrap_or(Step::HandBack);
        let error = io::Error::from_raw_os_error(errno);
        return Ok(Some(Err(DeepSocketError::Refused(step, error))));
    }
    let Some(socket) = control.descriptor() else {
        // This process's table of descriptors is full.
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    };
    // SAFETY: the message brings one descriptor, which the kernel has just made for us.
    Ok(Some(Ok(unsafe { OwnedFd::from_raw_fd(socket) })))
}

/// A message with this data and this control message.
fn message(data: &mut libc::iovec, control: Option<&mut DescriptorMessage>) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes is a valid value; it is not built field by field because
    // musl has private padding in it.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = ptr::from_mut(data);
    message.msg_iovlen = 1;
    if let Some(control) = control {
        message.msg_control = ptr::from_mut(control).cast();
        message.msg_controllen = size_of::<DescriptorMessage>() as _;
    }
    message
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn step(step: Step, result: c_int) -> Result<c_int, (Step, c_int)> {
    checked(result).map_err(|_| (step, errno()))
}

fn checked(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests;
