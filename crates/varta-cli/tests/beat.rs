//! `varta beat` from outside: what arrives at a socket, and its output when nothing can arrive.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use varta_vlp::{FRAME_BYTES, Frame, Status};

/// Timeout for a short operation.
const PATIENCE: Duration = Duration::from_secs(20);

/// A fake observer.
struct Receiver {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Receiver {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("varta.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, socket }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("varta.sock")
    }

    fn frame(&self) -> Frame {
        let mut datagram = [0; FRAME_BYTES + 1];
        let len = self.socket.recv(&mut datagram).unwrap();
        let wire: &[u8; FRAME_BYTES] = datagram[..len].try_into().unwrap();
        Frame::decode(wire).unwrap()
    }
}

fn beat(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varta"));
    command
        .args(["beat", "--socket"])
        .arg(socket)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn code_and_error(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(error.lines().count() <= 3, "{error}");
    (output.status.code(), error)
}

/// Ends it by a signal; it must exit cleanly.
fn end(child: Child, signal: Signal) -> String {
    kill_process(Pid::from_child(&child), signal).unwrap();
    let (code, error) = code_and_error(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{error}");
    error
}

#[test]
fn one_beat_arrives_as_it_was_asked_for() {
    let receiver = Receiver::new();
    let flags = ["--status", "degraded", "--payload=4294967295"];
    let child = beat(&receiver.path(), &flags).spawn().unwrap();
    let pid = child.id();
    let frame = receiver.frame();
    assert_eq!(frame.status, Status::Degraded);
    assert_eq!(frame.payload, u32::MAX);
    assert_eq!((frame.pid, frame.nonce), (pid, 1));
    let output = child.wait_with_output().unwrap();
    assert_eq!(code_and_error(&output), (Some(0), String::new()));
}

#[test]
fn without_a_flag_it_says_ok_to_the_default_socket() {
    let receiver = Receiver::new();
    let output = Command::new(env!("CARGO_BIN_EXE_varta"))
        .arg("beat")
        .env("RUNTIME_DIRECTORY", receiver.directory.path())
        .env_remove("VARTA_SOCKET")
        .output()
        .unwrap();
    assert_eq!(code_and_error(&output), (Some(0), String::new()));
    let frame = receiver.frame();
    assert_eq!((frame.status, frame.payload), (Status::Ok, 0));
}

#[test]
fn without_an_observer_one_line_says_so_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent.sock");
    let left_over = directory.path().join("left-over.sock");
    drop(UnixDatagram::bind(&left_over).unwrap());
    for socket in [absent, left_over] {
        let (code, error) = code_and_error(&beat(&socket, &[]).output().unwrap());
        assert_eq!(code, Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(socket.to_str().unwrap()), "{error}");
        assert!(error.contains("no observer listens"), "{error}");
        assert!(error.contains("varta-watch"), "{error}");
    }
}

#[test]
fn an_observer_that_does_not_read_makes_it_fail_and_not_wait() {
    let receiver = Receiver::new();
    let (_filler, until) = (fill(&receiver.path()), Instant::now() + PATIENCE);
    let (code, error) = code_and_error(&beat(&receiver.path(), &[]).output().unwrap());
    assert!(Instant::now() < until);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("queue is full"), "{error}");
}

/// Sends until the queue is full.
fn fill(path: &Path) -> UnixDatagram {
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"x", path).is_ok() {}
    filler
}

#[test]
fn a_series_has_a_pace_and_an_end() {
    let receiver = Receiver::new();
    let start = Instant::now();
    let flags = ["--every=100ms", "--count=3", "--status=critical"];
    let output = beat(&receiver.path(), &flags).output().unwrap();
    let took = start.elapsed();
    let (code, error) = code_and_error(&output);
    assert_eq!(code, Some(0), "{error}");
    assert!(took >= Duration::from_millis(200), "{took:?}");
    for nonce in 1..=3 {
        let frame = receiver.frame();
        assert_eq!((frame.nonce, frame.status), (nonce, Status::Critical));
    }
    receiver.socket.set_nonblocking(true).unwrap();
    assert!(
        receiver.socket.recv(&mut [0; 64]).is_err(),
        "three, not more"
    );
}

#[test]
fn a_series_goes_on_without_an_observer_and_says_when_that_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("varta.sock");
    let mut child = beat(&path, &["--every=20ms"]).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.contains("no observer listens"), "{first}");
    let late = UnixDatagram::bind(&path).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut datagram = [0; FRAME_BYTES];
    for _ in 0..3 {
        assert_eq!(late.recv(&mut datagram).unwrap(), FRAME_BYTES);
    }
    let frame = Frame::decode(&datagram).unwrap();
    assert!(frame.nonce > 3, "lost beats use up nonces");
    end(child, Signal::TERM);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 1, "{rest}");
    assert!(rest.contains("again") && rest.contains("lost"), "{rest}");
}

#[test]
fn a_series_catches_up_with_nothing_after_a_pause() {
    let receiver = Receiver::new();
    let child = beat(&receiver.path(), &["--every=100ms"]).spawn().unwrap();
    receiver.frame();
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    receiver.socket.set_nonblocking(true).unwrap();
    while receiver.socket.recv(&mut [0; 64]).is_ok() {}
    receiver.socket.set_nonblocking(false).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    let times: Vec<u64> = (0..4).map(|_| receiver.frame().timestamp).collect();
    // The first one was due; the next three keep the pace, and the ten missed ones are skipped.
    let took_ns = times[3] - times[0];
    assert!(took_ns > 150_000_000, "{times:?}");
    end(child, Signal::INT);
}

#[test]
fn the_last_of_a_series_that_goes_nowhere_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("absent.sock");
    let output = beat(&socket, &["--every=1ms", "--count=2"])
        .output()
        .unwrap();
    let (code, error) = code_and_error(&output);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("2 beats"), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let receiver = Receiver::new();
    for (flags, named) in [
        (&["--status=stall"][..], "verdict"),
        (&["--status=STALL"], "--status"),
        (&["--payload=4294967296"], "--payload"),
        (&["--every=0s"], "--every"),
        (&["--count=3"], "--every"),
    ] {
        let (code, error) = code_and_error(&beat(&receiver.path(), flags).output().unwrap());
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(named), "{error}");
    }
    receiver.socket.set_nonblocking(true).unwrap();
    assert!(receiver.socket.recv(&mut [0; 64]).is_err());
}

#[test]
fn nowhere_to_look_is_a_question_for_a_flag() {
    if rustix::process::getuid().is_root() {
        return; // Root always has a default place.
    }
    let output = Command::new(env!("CARGO_BIN_EXE_varta"))
        .arg("beat")
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("VARTA_SOCKET")
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    let (code, error) = code_and_error(&output);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--socket"), "{error}");
}
