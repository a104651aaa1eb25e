//! A real observer and real agent processes for black-box tests: started, given orders, watched through the
//! observer's log, and ended with the test.

#![allow(dead_code, reason = "each test program needs a part of it")]

pub(crate) mod agents;
pub(crate) mod http;
pub(crate) mod ladders;
mod log_line;
pub(crate) mod namespaces;
pub(crate) mod network;
pub(crate) mod users;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Number;
use tempfile::TempDir;
use varta_client::{Frame, Status};

pub(crate) use log_line::{Event, LogLine};

/// Timeout on a busy machine before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Beats that were credited to an agent.
pub(crate) const BEATS: &str = "varta_observer_beats_total";

/// How long the datagrams of an unknown sender with a false claim or no frame are not examined, with a margin.
pub(crate) const DISTRUST: Duration = Duration::from_millis(1_100);

/// Most descriptors that the kernel lets a sender attach to a datagram.
pub(crate) const DESCRIPTORS_MAX: usize = 253;

/// A running observer with a socket of its own.
pub(crate) struct Observer {
    child: Child,
    lines: Receiver<LogLine>,
    /// Lines read so far, for [`Observer::seen`].
    seen: RefCell<Vec<LogLine>>,
    pub(crate) directory: TempDir,
    pub(crate) socket: PathBuf,
}

impl Observer {
    /// Starts with `--socket`, `--log-format json` and the given flags, and without an address for HTTP unless the
    /// flags give one, since there is only one default; returns when it listens. A machine that is busy otherwise
    /// causes no hold-fire.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_in(directory, flags, |command| command)
    }

    /// The same with a directory made before, and the command changed by the caller.
    pub(crate) fn start_in(
        directory: TempDir,
        flags: &[&str],
        change: impl FnOnce(Command) -> Command,
    ) -> Self {
        let socket = directory.path().join("varta.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_varta-watch"));
        command
            .args(["--log-format=json", "--socket"])
            .arg(&socket)
            .args(["--memory-pressure=off", "--io-pressure=off"])
            .args(flags);
        if !flags.iter().any(|flag| flag.starts_with("--http")) {
            command.arg("--http=off");
        }
        let mut child = change(command).stderr(Stdio::piped()).spawn().unwrap();
        let lines = read_lines(child.stderr.take().unwrap());
        let observer = Self {
            child,
            lines,
            seen: RefCell::default(),
            directory,
            socket,
        };
        observer.wait_for("start", |_| true);
        observer
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line that matches.
    pub(crate) fn wait_for(&self, event: &str, fits: impl Fn(&LogLine) -> bool) -> LogLine {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.borrow_mut().push(line.clone());
                    if line.event == event && fits(&line) {
                        return line;
                    }
                }
                Err(error) => panic!(
                    "no {event:?} line ({error}); seen: {:#?}",
                    self.seen.borrow()
                ),
            }
        }
    }

    /// Its lines at the start.
    pub(crate) fn start_line(&self) -> LogLine {
        let seen = self.seen.borrow();
        let start = seen.iter().find(|line| line.event == "start");
        start.unwrap().clone()
    }

    /// Waits for the next line about this process.
    pub(crate) fn wait_for_pid(&self, event: &str, pid: u32) -> LogLine {
        self.wait_for(event, |line| line.pid() == Some(pid))
    }

    /// How many lines of a kind there have been, after waiting `time` for more.
    pub(crate) fn count_within(&self, event: &str, time: Duration) -> usize {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.borrow_mut().push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.seen(event)
    }

    /// How many lines of a kind have been read.
    pub(crate) fn seen(&self, event: &str) -> usize {
        self.seen
            .borrow()
            .iter()
            .filter(|line| line.event == event)
            .count()
    }

    /// Waits for a line with the reason of a refusal, or finds it among those that were read.
    pub(crate) fn wait_for_refusal(&self, reason: &str) -> LogLine {
        self.told("refuse", |line| line.text("reason") == Some(reason))
    }

    /// All lines of a kind about one process that have been read.
    pub(crate) fn seen_of(&self, event: &str, pid: u32) -> usize {
        let seen = self.seen.borrow();
        let of_it = |line: &&LogLine| line.event == event && line.pid() == Some(pid);
        seen.iter().filter(of_it).count()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.child.id(), signal);
    }

    /// The counters now, except those of times.
    pub(crate) fn counters(&self) -> BTreeMap<String, u64> {
        self.signal(Signal::USR1);
        let line = self.wait_for("notice", |line| line.has("counters"));
        whole(counters_of(&line))
    }

    /// Waits until a counter is that high, for as long as it continues to rise.
    pub(crate) fn wait_for_count(&self, series: &str, at_least: u64) {
        let of = |counters: &BTreeMap<String, u64>| counters.get(series).copied().unwrap_or(0);
        self.wait_while_rising(of, at_least);
    }

    /// Waits until a value computed from the counters is that high, for as long as it continues to rise.
    fn wait_while_rising(&self, of: impl Fn(&BTreeMap<String, u64>) -> u64, at_least: u64) {
        let mut until = Instant::now() + PATIENCE;
        let mut highest = 0;
        loop {
            let counters = self.counters();
            let count = of(&counters);
            if count >= at_least {
                return;
            }
            if count > highest {
                highest = count;
                until = Instant::now() + PATIENCE;
            }
            assert!(
                Instant::now() < until,
                "{count} is not {at_least}: {counters:#?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a counter is that high, and stops the observer.
    pub(crate) fn stop_when(self, series: &str, at_least: u64) -> Stopped {
        self.wait_for_count(series, at_least);
        self.stop()
    }

    /// Sends SIGTERM, checks that the stop was clean, and returns all lines.
    pub(crate) fn stop(mut self) -> Stopped {
        self.signal(Signal::TERM);
        let stop = self.wait_for("stop", |_| true);
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(!self.socket.exists(), "the socket file was left behind");
        let counters = counters_of(&stop);
        Stopped {
            lines: self.seen.borrow().clone(),
            seconds: counters
                .iter()
                .filter(|(_, value)| value.is_f64())
                .filter_map(|(series, value)| Some((series.clone(), value.as_f64()?)))
                .collect(),
            counters: whole(counters),
        }
    }

    /// Exit code of an observer that was requested to stop.
    pub(crate) fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Descriptors the observer has open.
    pub(crate) fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Sends raw bytes as this process.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(bytes, &self.socket).unwrap();
    }

    /// A socket of this process that is connected to the observer.
    pub(crate) fn connect(&self) -> UnixDatagram {
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&self.socket).unwrap();
        sender
    }

    /// The permission bits of the socket's file.
    pub(crate) fn socket_mode(&self) -> u32 {
        let metadata = fs::metadata(&self.socket).unwrap();
        metadata.permissions().mode() & 0o7777
    }
}

/// Waits until this many beats were either credited or refused for one reason.
pub(crate) fn wait_until_judged(observer: &Observer, refused: &str, beats: u64) {
    let judged = |counters: &BTreeMap<String, u64>| {
        let of = |series: &str| counters.get(series).copied().unwrap_or(0);
        of(BEATS) + of(refused)
    };
    observer.wait_while_rising(judged, beats);
}

/// Starts the rest of the command as a user and a group without any rights. Not as the kernel's overflow user, which
/// is never admitted.
pub(crate) const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=64000",
    "--regid=64000",
    "--clear-groups",
];

/// Prints that a test has to be skipped.
pub(crate) fn may_become_nobody() -> bool {
    let changed = wrapped(&AS_NOBODY, &Command::new("true"))
        .stderr(Stdio::null())
        .status();
    let may = changed.is_ok_and(|status| status.success());
    if !may {
        println!("skipped: this user cannot run programs as another one");
    }
    may
}

/// Copies a program that will be run at once. Another process does it, because a descriptor that is open for writing
/// could be inherited for a moment by a process that another test starts, and then the copy is "busy".
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// A directory that every user may read.
pub(crate) fn public_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Starts a command with a limit on open files that it cannot raise again.
pub(crate) fn with_descriptor_limit(limit: usize) -> impl FnOnce(Command) -> Command {
    move |command| {
        let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        wrapped(&["sh", "-c", &script], &command)
    }
}

/// A command as the last arguments of another one. Only program and arguments are kept.
pub(crate) fn wrapped(wrapper: &[&str], command: &Command) -> Command {
    let mut words = wrapper.iter().map(std::ffi::OsStr::new);
    let inner = std::iter::once(command.get_program()).chain(command.get_args());
    let Some(first) = words.next() else {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    };
    let mut outer = Command::new(first);
    outer.args(words).args(inner);
    outer
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a stopped observer.
pub(crate) struct Stopped {
    pub(crate) lines: Vec<LogLine>,
    /// Those that are not zero.
    pub(crate) counters: BTreeMap<String, u64>,
    /// The counters of times.
    seconds: BTreeMap<String, f64>,
}

fn counters_of(line: &LogLine) -> BTreeMap<String, Number> {
    let counters = line.keys["counters"].as_object().unwrap();
    let counters = counters.iter();
    counters
        .map(|(series, value)| (series.clone(), value.as_number().unwrap().clone()))
        .collect()
}

fn whole(counters: BTreeMap<String, Number>) -> BTreeMap<String, u64> {
    let counters = counters.into_iter();
    counters
        .filter_map(|(series, value)| Some((series, value.as_u64()?)))
        .collect()
}

impl Stopped {
    pub(crate) fn counter(&self, series: &str) -> u64 {
        self.counters.get(series).copied().unwrap_or(0)
    }

    pub(crate) fn seconds(&self, series: &str) -> f64 {
        self.seconds.get(series).copied().unwrap_or(0.0)
    }

    pub(crate) fn count(&self, event: &str) -> usize {
        self.lines.iter().filter(|line| line.event == event).count()
    }

    /// The lines of a kind about one process.
    pub(crate) fn lines_of(&self, event: &str, pid: u32) -> Vec<&LogLine> {
        let of_it = |line: &&LogLine| line.event == event && line.pid() == Some(pid);
        self.lines.iter().filter(of_it).collect()
    }

    /// Fails unless these counters have these values.
    pub(crate) fn assert_counters(&self, expected: &[(&str, u64)]) {
        for (series, count) in expected {
            assert_eq!(
                self.counter(series),
                *count,
                "{series} in {:#?}",
                self.counters
            );
        }
    }
}

fn read_lines(stderr: ChildStderr) -> Receiver<LogLine> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines() {
            let line = line.unwrap();
            let parsed = serde_json::from_str(&line)
                .unwrap_or_else(|error| panic!("not a log line ({error}): {line}"));
            if sender.send(parsed).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Runs the observer with flags that must keep it from starting.
pub(crate) fn refused_start(flags: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_varta-watch"))
        .args(flags)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status, text)
}

pub(crate) fn signal_pid(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A frame of this process.
pub(crate) fn frame(nonce: u64) -> [u8; 32] {
    frame_of(std::process::id(), nonce)
}

pub(crate) fn frame_of(pid: u32, nonce: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    Frame::new(Status::Ok, pid, nonce, nonce, 7).encode(&mut bytes);
    bytes
}

/// A frame of a process that reports that it is critical.
pub(crate) fn critical_of(pid: u32, nonce: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    Frame::new(Status::Critical, pid, nonce, nonce, 9).encode(&mut bytes);
    bytes
}

/// Recomputes the checksum of an altered frame.
pub(crate) fn resealed(mut bytes: [u8; 32]) -> [u8; 32] {
    // A frame that decodes carries the checksum of its own bytes, so the encoder computes it where possible; altered
    // fields that it refuses are summed up here.
    let mut crc = u32::MAX;
    for byte in &bytes[..28] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82F6_3B78
            } else {
                crc >> 1
            };
        }
    }
    bytes[28..].copy_from_slice(&(!crc).to_le_bytes());
    bytes
}

/// Rows of an event file, once `enough` says so.
pub(crate) fn rows_when(path: &Path, enough: impl Fn(&[Vec<String>]) -> bool) -> Vec<Vec<String>> {
    let until = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "a torn row: {text:?}"
        );
        let rows: Vec<Vec<String>> = text
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect();
        if enough(&rows) {
            return rows;
        }
        assert!(Instant::now() < until, "rows: {rows:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
