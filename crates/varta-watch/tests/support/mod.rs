//! A real observer and real agent processes for black-box tests: started, told what to do, watched
//! through the observer's log, and ended with the test.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use varta_client::{Frame, Status, Varta};
use varta_watch::api::{LogEvent, LogLine};

/// How long anything may take on a busy machine before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Tells a copy of the test program to be an agent; holds the socket's path.
const AGENT_SOCKET: &str = "VARTA_TEST_AGENT_SOCKET";

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
    /// Starts with `--socket`, `--log-format json` and the given flags; returns when it listens.
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
            .args(flags);
        let mut child = change(command).stderr(Stdio::piped()).spawn().unwrap();
        let lines = read_lines(child.stderr.take().unwrap());
        let observer = Self {
            child,
            lines,
            seen: RefCell::default(),
            directory,
            socket,
        };
        observer.wait_for(LogEvent::Start, |_| true);
        observer
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line that fits.
    pub(crate) fn wait_for(&self, event: LogEvent, fits: impl Fn(&LogLine) -> bool) -> LogLine {
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

    /// Waits for the next line about this process.
    pub(crate) fn wait_for_pid(&self, event: LogEvent, pid: u32) -> LogLine {
        self.wait_for(event, |line| line.fields.pid == Some(pid))
    }

    /// How many lines of a kind there have been, after waiting `time` for more.
    pub(crate) fn count_within(&self, event: LogEvent, time: Duration) -> usize {
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
    pub(crate) fn seen(&self, event: LogEvent) -> usize {
        self.seen
            .borrow()
            .iter()
            .filter(|line| line.event == event)
            .count()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.child.id(), signal);
    }

    /// Sends SIGTERM, checks that the stop was clean, and returns all lines.
    pub(crate) fn stop(mut self) -> Stopped {
        self.signal(Signal::TERM);
        let stop = self.wait_for(LogEvent::Stop, |_| true);
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(!self.socket.exists(), "the socket file was left behind");
        Stopped {
            lines: self.seen.borrow().clone(),
            counters: stop.fields.counters.unwrap_or_default(),
        }
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
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a stopped observer left.
pub(crate) struct Stopped {
    pub(crate) lines: Vec<LogLine>,
    counters: std::collections::BTreeMap<String, u64>,
}

impl Stopped {
    pub(crate) fn counter(&self, series: &str) -> u64 {
        self.counters.get(series).copied().unwrap_or(0)
    }

    pub(crate) fn count(&self, event: LogEvent) -> usize {
        self.lines.iter().filter(|line| line.event == event).count()
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

/// Recomputes the checksum of an altered frame.
pub(crate) fn resealed(mut bytes: [u8; 32]) -> [u8; 32] {
    // A frame that decodes carries the checksum of its own bytes, so let the encoder do it where
    // possible; altered fields it refuses to hold are summed up here.
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

/// A process that beats every 50 ms until it is told to end.
pub(crate) struct AgentProcess {
    child: Child,
}

impl AgentProcess {
    pub(crate) fn start(socket: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "agent_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(AGENT_SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Lets the process end by itself with this exit code.
    pub(crate) fn leave(&mut self, code: u8) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{code}").unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it and collects it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's side: does nothing in the test program itself. Ends with the exit code it reads from
/// its standard input, or when the test has gone.
pub(crate) fn be_an_agent_if_told() {
    let Some(socket) = std::env::var_os(AGENT_SOCKET) else {
        return;
    };
    std::thread::spawn(|| {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        std::process::exit(line.trim().parse().unwrap_or(9));
    });
    let mut varta = Varta::open(PathBuf::from(socket));
    loop {
        let _ = varta.beat(Status::Ok, 7);
        std::thread::sleep(Duration::from_millis(50));
    }
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
