//! Descriptors: those that senders attach to their datagrams, on a kernel that refuses them and on one that does not,
//! and an observer that has run out of them.
//!
//! An older kernel is one without `SO_PASSRIGHTS`: a filter of system calls simulates it.

mod support;

use std::fs;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use support::LogLine;
use support::agents::AgentProcess;
use support::{BEATS, DESCRIPTORS_MAX, Observer, PATIENCE, frame, with_descriptor_limit};
use varta_api::v1::Health;
use varta_sys::denial::{Call, deny};

const REFUSED: &str = "varta_ctrl_truncated_total";
const JOINS: &str = "varta_observer_joins_total";
const RECEIVE_ERRORS: &str = "varta_io_errors_total";

/// More than the threads that may hang at the same time.
const LINGERING: usize = 70;

/// Datagrams that every kernel queues, with space for another one.
const FIT_THE_QUEUE: usize = 10;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// Flags of an observer without a penalty for a process that sends datagrams that are no beats.
const UNLIMITED: [&str; 2] = ["--threshold-ms=60000", "--max-beat-rate=0"];

/// The command on a kernel that cannot refuse descriptors.
fn on_older_kernel(mut command: Command) -> Command {
    deny(
        &mut command,
        Call::REFUSE_DESCRIPTORS,
        Errno::NOPROTOOPT.raw_os_error(),
    );
    command
}

fn start_on_older_kernel(flags: &[&str]) -> Observer {
    Observer::start_in(tempfile::tempdir().unwrap(), flags, on_older_kernel)
}

fn try_send_with(
    sender: &UnixDatagram,
    bytes: &[u8],
    attached: &[BorrowedFd<'_>],
) -> rustix::io::Result<usize> {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 2048];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(attached)));
    sendmsg(
        sender,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )
}

fn send_with(sender: &UnixDatagram, bytes: &[u8], attached: &[BorrowedFd<'_>]) {
    try_send_with(sender, bytes, attached).unwrap();
}

/// A socket whose closing takes an hour, and the one that it waits for.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_socket_recv_buffer_size(&listener, 1024).unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65_536]).is_ok() {}
    set_socket_linger(&socket, Some(Duration::from_secs(3600))).unwrap();
    (socket.into(), peer)
}

/// A socket in whose queue that one is.
fn hidden(inner: OwnedFd) -> OwnedFd {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    send_with(&sender, b"x", &[inner.as_fd()]);
    // Only the datagram holds it.
    drop(inner);
    receiver.into()
}

/// Stops an observer, and waits until each of its threads is stopped.
fn stop(observer: &Observer) {
    observer.signal(Signal::STOP);
    let threads = format!("/proc/{}/task", observer.pid());
    let stands_still = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat"));
        stat.is_ok_and(|stat| stat.contains(") T "))
    };
    let until = Instant::now() + PATIENCE;
    while !fs::read_dir(&threads).unwrap().flatten().all(stands_still) {
        assert!(Instant::now() < until, "it goes on");
        std::thread::yield_now();
    }
}

fn health(observer: &Observer) -> Health {
    observer.ask("/healthz").json()
}

#[test]
fn where_the_kernel_refuses_descriptors_their_sender_is_told_and_nothing_arrives() {
    let observer = Observer::start(&UNLIMITED);
    let sender = observer.connect();
    let file = fs::File::open("/dev/null").unwrap();
    match try_send_with(&sender, &frame(1), &[file.as_fd()]) {
        Err(errno) => assert_eq!(errno, Errno::PERM),
        Ok(_) => {
            println!("skipped: this kernel cannot refuse descriptors (Linux 6.16 can)");
            return;
        }
    }
    sender.send(&frame(1)).unwrap();
    observer.wait_for_count(BEATS, 1);
    let stopped = observer.stop();
    stopped.assert_counters(&[(REFUSED, 0), (JOINS, 1), (BEATS, 1)]);
}

#[test]
fn on_an_older_kernel_what_brings_descriptors_is_refused_whole_and_none_is_installed() {
    let observer = start_on_older_kernel(&UNLIMITED);
    let sender = observer.connect();
    sender.send(&frame(1)).unwrap();
    observer.wait_for_count(BEATS, 1);
    let before = observer.open_descriptors();
    let file = fs::File::open("/dev/null").unwrap();
    let counts = [1, 4, 64, DESCRIPTORS_MAX];
    for (nonce, count) in (2..).zip(counts) {
        send_with(&sender, &frame(nonce), &vec![file.as_fd(); count]);
    }
    // The datagrams behind them are received.
    sender.send(&frame(9)).unwrap();
    let refusal = observer.wait_for_refusal("control_truncated");
    assert!(
        refusal.msg.contains("descriptors are attached"),
        "{refusal:?}"
    );
    assert_eq!(refusal.pid(), Some(std::process::id()));
    observer.wait_for_count(BEATS, 2);
    assert_eq!(observer.open_descriptors(), before);
    let refused = counts.len() as u64;
    let stopped = observer.stop_when(REFUSED, refused);
    stopped.assert_counters(&[(REFUSED, refused), (BEATS, 2)]);
}

#[test]
fn a_first_beat_that_brings_descriptors_makes_nobody_join() {
    let observer = start_on_older_kernel(&UNLIMITED);
    let sender = observer.connect();
    send_with(&sender, &frame(1), &[sender.as_fd()]);
    observer.wait_for_count(REFUSED, 1);
    sender.send(&frame(2)).unwrap();
    let join = observer.wait_for_pid("join", std::process::id());
    assert_eq!(join.number("nonce"), Some(2));
    observer.stop().assert_counters(&[(REFUSED, 1), (JOINS, 1)]);
}

#[test]
fn sockets_that_linger_keep_nobody_waiting_however_many_and_however_hidden() {
    let observer = start_on_older_kernel(&UNLIMITED);
    let agent = observer.connect();
    agent.send(&frame(1)).unwrap();
    observer.wait_for_count(BEATS, 1);
    let mut peers = Vec::new();
    for first in (0..LINGERING).step_by(FIT_THE_QUEUE) {
        // The datagram must have the only reference when it is taken, else this process waits.
        stop(&observer);
        for i in first..first + FIT_THE_QUEUE {
            let (socket, peer) = lingering();
            peers.push(peer);
            let attached = match i % 3 {
                0 => socket,
                1 => hidden(socket),
                _ => hidden(hidden(socket)),
            };
            send_with(&agent, b"x", &[attached.as_fd()]);
        }
        agent.send(&frame(first as u64 + 2)).unwrap();
        observer.signal(Signal::CONT);
        // The datagrams that come behind them are received.
        observer.wait_for_count(BEATS, 2 + (first / FIT_THE_QUEUE) as u64);
    }
    assert!(health(&observer).healthy);
    let stopped = observer.stop();
    stopped.assert_counters(&[(REFUSED, LINGERING as u64), (JOINS, 1)]);
    drop(peers);
}

#[test]
fn a_flood_of_descriptors_is_shed_or_refused_and_its_neighbours_are_heard() {
    let observer = start_on_older_kernel(&["--threshold-ms=60000"]);
    let neighbour = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", neighbour.pid());
    let sender = observer.connect();
    let before = observer.open_descriptors();
    let attached = [sender.as_fd(); DESCRIPTORS_MAX];
    for nonce in 1..3_000 {
        send_with(&sender, &frame(nonce), &attached);
    }
    let beats = observer.counters()[BEATS];
    observer.wait_for_count(BEATS, beats + 2);
    assert_eq!(observer.open_descriptors(), before);
    let stopped = observer.stop();
    assert!(stopped.counter(REFUSED) > 0);
    assert_eq!(stopped.count("join"), 1);
}

/// The output of a command that was run for an agent, one line for each descriptor that it had.
fn left_by(directory: &Path, agent: &AgentProcess) -> Option<String> {
    fs::read_to_string(directory.join(format!("open.{}", agent.pid()))).ok()
}

#[test]
fn commands_are_run_while_descriptors_are_attached_and_get_none_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let open = directory.path().join("open.$1");
    let script = directory.path().join("recover");
    let lines = format!(
        "ls /proc/self/fd > {}.new\nmv {0}.new {0}\n",
        open.display()
    );
    fs::write(&script, lines).unwrap();
    let exec = format!("sh {} {{pid}}", script.display());
    let flags = [
        "--threshold-ms=300",
        "--max-beat-rate=0",
        "--mass-stall-share=off",
        "--recovery-exec",
        &exec,
    ];
    // Far fewer than one datagram can bring.
    let limited = |command| on_older_kernel(with_descriptor_limit(100)(command));
    let observer = Observer::start_in(tempfile::tempdir().unwrap(), &flags, limited);
    let agents: Vec<_> = (0..8)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    for _ in &agents {
        observer.wait_for("join", |_| true);
    }
    for agent in &agents {
        agent.signal(Signal::STOP);
    }
    let sender = observer.connect();
    let attached = [sender.as_fd(); DESCRIPTORS_MAX];
    let until = Instant::now() + PATIENCE;
    let is_waited_for = |agent: &AgentProcess| left_by(directory.path(), agent).is_none();
    while agents.iter().any(is_waited_for) {
        assert!(Instant::now() < until, "not all were recovered");
        send_with(&sender, b"x", &attached);
    }
    let stopped = observer.stop_when("varta_recovery_outcomes_total{outcome=\"reaped_zero\"}", 8);
    let outcome = |outcome| format!("varta_recovery_outcomes_total{{outcome=\"{outcome}\"}}");
    stopped.assert_counters(&[(&outcome("postponed"), 0), (&outcome("spawn_failed"), 0)]);
    for agent in &agents {
        // Its streams and the directory that it reads.
        let left = left_by(directory.path(), agent).unwrap();
        assert_eq!(left, "0\n1\n2\n3\n");
    }
}

/// Limits the open descriptors of a process from now on. Returns the former limit.
fn limit_descriptors(observer: &Observer, most: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(observer.pid().cast_signed());
    let before = prlimit(
        pid,
        Resource::Nofile,
        rustix::process::getrlimit(Resource::Nofile),
    );
    let limits = before.unwrap();
    let new = Rlimit {
        current: most,
        maximum: limits.maximum,
    };
    prlimit(pid, Resource::Nofile, new).unwrap();
    limits.current
}

#[test]
fn a_step_that_the_observer_has_no_descriptor_for_is_done_later_and_spends_no_budget() {
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let exec = format!("touch {}", ran.display());
    let flags = [
        "--threshold-ms=300",
        "--recovery-budget=1",
        "--recovery-exec",
        &exec,
    ];
    let observer = Observer::start(&flags);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    let before = limit_descriptors(&observer, Some(observer.open_descriptors() as u64));
    agent.signal(Signal::STOP);
    observer.wait_for_pid("stall", agent.pid());
    // More often than the budget allows.
    for _ in 0..3 {
        let postponed = |line: &LogLine| line.text("outcome") == Some("postponed");
        let line = observer.wait_for("recover", postponed);
        let error = line.text("error").unwrap();
        assert!(error.contains("Too many open files"), "{error}");
    }
    assert!(!ran.exists());
    limit_descriptors(&observer, before);
    observer.wait_for("recover", |line| {
        line.text("outcome") == Some("reaped_zero")
    });
    assert!(ran.exists());
    assert_eq!(observer.seen("gave_up"), 0);
    observer.stop();
}

/// An observer whose calls of this kind are refused.
fn start_denied(call: Call, flags: &[&str]) -> Observer {
    let denied = |mut command: Command| {
        deny(&mut command, call, Errno::PERM.raw_os_error());
        command
    };
    Observer::start_in(tempfile::tempdir().unwrap(), flags, denied)
}

#[test]
fn receiving_that_fails_is_named_and_unhealthy_and_costs_nothing() {
    for call in [Call::RECVMMSG, Call::RECVMSG] {
        let began = Instant::now();
        let observer = start_denied(call, &["--threshold-ms=100"]);
        observer.send(&frame(1));
        let failed = observer.wait_for("notice", |line| {
            line.text("reason") == Some("receive_failed")
        });
        assert!(failed.msg.contains("Operation not permitted"), "{failed:?}");
        let reply = observer.ask("/healthz");
        let health: Health = reply.json();
        assert_eq!((reply.status, health.healthy), (503, false));
        assert!(
            health.problems[0].contains("Operation not permitted"),
            "{health:?}"
        );
        // However long that took: three tries at once, eight with pauses that grow, then one per second.
        observer.wait_for_count(RECEIVE_ERRORS, 8);
        let errors = observer.counters()[RECEIVE_ERRORS];
        assert!(errors <= 11 + began.elapsed().as_secs(), "{errors}");
        let told = |line: &&LogLine| line.text("reason") == Some("receive_failed");
        let stopped = observer.stop();
        assert_eq!(stopped.lines.iter().filter(told).count(), 1);
        let misleading = stopped
            .lines
            .iter()
            .any(|line| line.msg.contains("been full"));
        assert!(!misleading, "{:#?}", stopped.lines);
    }
}

/// The output of a program that was started with these rights, and its exit status. It stops by itself.
fn start_and_stop(change: impl FnOnce(Command) -> Command) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_varta-watch"));
    command
        .args(["--http=off", "--shutdown-after-secs=1", "--socket"])
        .arg(directory.path().join("varta.sock"));
    let output = change(command).stdin(Stdio::null()).output();
    output.unwrap()
}

/// It started, or reported in one line why not.
fn assert_clear(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {}
        Some(1) => assert!(
            !said.contains("panicked") && said.lines().count() > 0,
            "{what}: {said}"
        ),
        other => panic!("{what}: {other:?}: {said}"),
    }
}

#[test]
fn an_observer_that_has_too_few_descriptors_to_start_says_so() {
    let threads: Vec<_> = (4..30)
        .map(|limit| {
            std::thread::spawn(move || {
                let output = start_and_stop(with_descriptor_limit(limit));
                assert_clear(&output, &format!("{limit} descriptors"));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn an_observer_that_may_not_wait_for_events_says_so() {
    for call in [Call::EPOLL_PWAIT, Call::EPOLL_WAIT, Call::SOCKETPAIR] {
        let output = start_and_stop(|mut command| {
            deny(&mut command, call, Errno::PERM.raw_os_error());
            command
        });
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_clear(&output, &format!("{call:?}"));
    }
}
