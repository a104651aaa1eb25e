use super::*;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::receive::{DatagramBatch, pass_pidfd};

const PATIENCE: Duration = Duration::from_secs(60);

/// `None` where namespaces may not be made.
fn deep(datagrams: u32) -> Option<OwnedFd> {
    match deep_socket(datagrams, PATIENCE) {
        Ok(socket) => Some(socket),
        Err(error) => {
            println!("skipped: no deep socket here: {error}");
            None
        }
    }
}

fn bound_to(socket: OwnedFd, path: &Path) -> UnixDatagram {
    let address = rustix::net::SocketAddrUnix::new(path).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    socket.into()
}

/// How many datagrams fit while none is read. Each sender's own buffer is bounded, so there are many senders.
fn depth_of(path: &Path) -> usize {
    let mut senders = Vec::new();
    let mut queued = 0;
    loop {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        let sent = (0..)
            .take_while(|_| sender.send_to(&[7; 32], path).is_ok())
            .count();
        senders.push(sender);
        queued += sent;
        if sent == 0 {
            return queued;
        }
    }
}

fn setting() -> String {
    std::fs::read_to_string(SETTING.to_str().unwrap()).unwrap()
}

#[test]
fn a_deep_socket_queues_what_was_asked_for_and_the_setting_of_the_host_stays() {
    let before = setting();
    for datagrams in [1, 100, 8192] {
        let Some(socket) = deep(datagrams) else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _socket = bound_to(socket, &path);
        assert_eq!(depth_of(&path), datagrams as usize);
    }
    assert_eq!(setting(), before);
}

#[test]
fn senders_are_named_as_this_process_knows_them() {
    let Some(socket) = deep(100) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
    let has_pidfds = pass_pidfd(socket.as_fd(), true).is_ok();
    let socket = bound_to(socket, &path);
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"x", &path)
        .unwrap();
    let mut batch = DatagramBatch::new(1, 40);
    assert_eq!(batch.receive(socket.as_fd(), 1).unwrap(), 1);
    let sender = batch.datagram(0).unwrap().credentials.unwrap();
    let own = (
        std::process::id(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    assert_eq!((sender.pid, sender.uid, sender.gid), own);
    let Some(pidfd) = batch.take_pidfd(0) else {
        assert!(!has_pidfds);
        return;
    };
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap();
    assert!(info.contains(&format!("Pid:\t{}\n", own.0)), "{info}");
}

#[test]
fn a_deep_socket_is_not_inherited_and_does_not_block() {
    let Some(socket) = deep(100) else {
        return;
    };
    let flags = rustix::io::fcntl_getfd(&socket).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
}

/// In a helper: makes the kernel answer `unshare` like this from now on.
fn filter_unshare(answer: u32) {
    let statement = |code: u32, k, jt, jf| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut program = [
        // The number of the system call comes first.
        statement(load, 0, 0, 0),
        statement(is_equal, libc::SYS_unshare as u32, 0, 1),
        statement(libc::BPF_RET, answer, 0, 0),
        statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel reads the program, which has the length stated.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
}

fn make_under_filter(answer: u32) -> Result<OwnedFd, DeepSocketError> {
    ask_helper(PATIENCE, || {
        filter_unshare(answer);
        make(c"99")
    })
}

#[test]
fn a_system_call_filter_that_refuses_is_told_from_one_that_kills() {
    let refused = make_under_filter(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let Err(DeepSocketError::Refused(Step::UserNamespace, error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let killed = make_under_filter(libc::SECCOMP_RET_KILL_PROCESS);
    assert!(
        matches!(killed, Err(DeepSocketError::Killed(libc::SIGSYS))),
        "{killed:?}"
    );
}

fn children() -> String {
    std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default()
}

#[test]
fn no_helper_is_left_behind() {
    drop(deep(100));
    assert_eq!(children(), "");
}

#[test]
fn a_helper_that_hangs_is_killed() {
    let hang = || loop {
        // SAFETY: no argument; waits for a signal.
        unsafe { libc::pause() };
    };
    let asked = ask_helper(Duration::from_millis(50), hang);
    assert!(matches!(asked, Err(DeepSocketError::TimedOut)), "{asked:?}");
    assert_eq!(children(), "");
}

#[test]
fn a_helper_that_is_killed_is_told_from_one_that_was_refused() {
    let die = || {
        let own = std::process::id().cast_signed();
        // SAFETY: two integers; the copy kills itself.
        unsafe { libc::kill(own, libc::SIGKILL) };
        Ok(0)
    };
    let asked = ask_helper(PATIENCE, die);
    assert!(
        matches!(asked, Err(DeepSocketError::Killed(libc::SIGKILL))),
        "{asked:?}"
    );
    assert_eq!(children(), "");
}

#[test]
fn the_step_that_was_refused_is_reported_with_its_reason() {
    for step in Step::ALL {
        let asked = ask_helper(PATIENCE, || Err((step, libc::EROFS)));
        let Err(DeepSocketError::Refused(refused, error)) = asked else {
            panic!("{asked:?}");
        };
        assert_eq!((refused, error.raw_os_error()), (step, Some(libc::EROFS)));
    }
}

#[test]
fn a_descriptor_that_is_none_cannot_be_handed_back() {
    let asked = ask_helper(PATIENCE, || Ok(-1));
    let Err(DeepSocketError::Refused(Step::HandBack, error)) = asked else {
        panic!("{asked:?}");
    };
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}
