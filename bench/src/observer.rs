//! The observer under measurement: a real `varta-watch` process, followed through its JSON log.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use varta_api::{LogEvent, LogLine};
use varta_sys::secret_file;

use crate::procfs::now_ns;
use crate::receiver::{LIFETIME_SECONDS, Receiver};
use crate::{Bench, Result};

const PROGRAM: &str = "varta-watch";

/// Flags for a load above the default limit of one agent.
pub(crate) const WITHOUT_LIMIT: [&str; 2] = ["--max-beat-rate", "0"];

/// How long the observer may take to report its counters.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Finds the release build of the observer. Under cargo it is built first, since cargo builds only the program it
/// runs; otherwise it is expected in the directory of this program.
pub(crate) fn locate() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own.parent().ok_or("this program lies nowhere")?;
    let Some(cargo) = std::env::var_os("CARGO") else {
        let program = profile.join(PROGRAM);
        if program.is_file() && profile.ends_with("release") {
            return Ok(program);
        }
        return Err(format!(
            "no release build of {PROGRAM} next to this program; run `cargo run --release -p \
             varta-bench`, or say where one is with --observer PATH"
        )
        .into());
    };
    let target = profile.parent().ok_or("this program lies nowhere")?;
    let status = Command::new(cargo)
        .args(["build", "--release", "-p", PROGRAM, "--target-dir"])
        .arg(target)
        .status()?;
    if !status.success() {
        return Err(format!("`cargo build --release -p {PROGRAM}` failed").into());
    }
    Ok(target.join("release").join(PROGRAM))
}

/// A line of the observer's log.
pub(crate) struct Line {
    /// When it was read; [`now_ns`].
    pub(crate) read_ns: u64,
    pub(crate) log: LogLine,
}

/// A running observer.
pub(crate) struct Observer {
    receiver: Receiver,
    lines: mpsc::Receiver<Line>,
    /// The files of its keys.
    _keys: Option<TempDir>,
}

impl Observer {
    /// `flags` are added to those that every section needs.
    pub(crate) fn start(
        bench: &Bench,
        threshold: Duration,
        capacity: usize,
        flags: &[&str],
    ) -> Result<Self> {
        let mut receiver = Receiver::start(&bench.observer, |command, socket| {
            command.arg("--socket").arg(socket);
            command.args(["--log-format", "json", "--threshold-ms"]);
            command.arg(threshold.as_millis().to_string());
            command.arg("--tracker-capacity").arg(capacity.to_string());
            command.arg("--shutdown-after-secs");
            command.arg(LIFETIME_SECONDS.to_string());
            command.args(flags);
            command.stderr(Stdio::piped());
        })?;
        let log = receiver.take_stderr().ok_or("the log is no pipe")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || read_log(log, &sender));
        Ok(Self {
            receiver,
            lines,
            _keys: None,
        })
    }

    /// The same, listening on UDP as well: with these keys, or without encryption if there are none.
    pub(crate) fn start_udp(
        bench: &Bench,
        threshold: Duration,
        capacity: usize,
        flags: &[&str],
        keys: &[(&str, [u8; 32])],
    ) -> Result<Self> {
        let directory = TempDir::new()?;
        let mut all: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        all.push("--udp-port=0".to_owned());
        all.push("--udp-bind-addr=127.0.0.1".to_owned());
        if keys.is_empty() {
            all.push("--i-accept-plaintext-udp".to_owned());
        }
        for (flag, key) in keys {
            let path = directory.path().join(flag.trim_start_matches('-'));
            secret_file::create(&path, key)?;
            all.push(format!("{flag}={}", path.display()));
        }
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut observer = Self::start(bench, threshold, capacity, &all)?;
        observer._keys = Some(directory);
        Ok(observer)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.receiver.pid()
    }

    /// The address of its UDP listener. Call this once, before any other line is read.
    pub(crate) fn udp(&self) -> Result<SocketAddr> {
        while let Some(line) = self.next_line(ANSWER_WAIT) {
            if let LogEvent::Start(start) = line.log.event
                && let Some(address) = start.udp
            {
                return Ok(address.parse()?);
            }
        }
        Err("the observer does not say where it listens on UDP".into())
    }

    pub(crate) fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// The next line; `None` if there was none in time.
    pub(crate) fn next_line(&self, within: Duration) -> Option<Line> {
        self.lines.recv_timeout(within).ok()
    }

    /// The present value of a counter. Lines written before the answer are skipped.
    pub(crate) fn counter(&self, series: &str) -> Result<u64> {
        self.receiver.signal(Signal::USR1)?;
        while let Some(line) = self.next_line(ANSWER_WAIT) {
            if let Some(counters) = line.log.event.counters() {
                let count = counters.get(series).and_then(serde_json::Number::as_u64);
                return Ok(count.unwrap_or(0));
            }
        }
        Err("the observer does not tell its counters".into())
    }
}

/// Passes lines on until the observer ends or the receiver is dropped.
fn read_log(log: impl Read, lines: &mpsc::Sender<Line>) {
    for text in BufReader::new(log).lines().map_while(std::io::Result::ok) {
        let read_ns = now_ns();
        match serde_json::from_str(&text) {
            Ok(log) => {
                if lines.send(Line { read_ns, log }).is_err() {
                    return;
                }
            }
            Err(_) => eprintln!("{PROGRAM}: {text}"),
        }
    }
}
