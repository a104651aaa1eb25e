//! The demo's observer: a real one, in a process of its own, whose log and event file the demo reads.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::process::{Signal, kill_process, set_parent_process_death_signal};

use super::workplace::{Workplace, wait_or_kill};
use super::{Input, io_failure};
use crate::Failure;

/// The observer's process ends by itself this long after the demo should have ended it.
const LIFE_BEYOND_SECONDS: u64 = 60;

/// How long it may take to stop before it is killed. Its own bound is 200 ms.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// Runs the observer: the entry point of the demo's child process.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    // A demo that was killed ends its observer cleanly.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let program = std::iter::once("varta-watch".into());
    varta_watch::run(program.chain(arguments))
}

/// The demo's handle to the observer's process. Dropping it stops the process.
pub(super) struct Observer {
    child: Child,
}

impl Observer {
    /// Starts the observer; its log arrives as [`Input`].
    pub(super) fn start(
        place: &Workplace,
        seconds: u64,
        log: Sender<Input>,
    ) -> Result<Self, Failure> {
        let config = place.config()?;
        let mut command = place.command("demo-observer")?;
        // Settings of another observer must not apply to this one.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"VARTA_") {
                command.env_remove(name);
            }
        }
        command
            .arg("__observer")
            .arg("--config")
            .arg(config)
            .arg("--socket")
            .arg(place.socket())
            .arg("--export-file")
            .arg(place.event_file())
            // Another observer may have the port.
            .args(["--http", "off"])
            .args(["--log-format", "json"])
            .arg("--shutdown-after-secs")
            .arg((seconds + LIFE_BEYOND_SECONDS).to_string())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(io_failure("start the observer"))?;
        let stderr = child.stderr.take();
        let observer = Self { child };
        std::thread::Builder::new()
            .name("varta-log".to_owned())
            .spawn(move || {
                let lines = stderr
                    .into_iter()
                    .flat_map(|pipe| BufReader::new(pipe).split(b'\n'));
                for line in lines.map_while(Result::ok) {
                    let _ = log.send(Input::Log(String::from_utf8_lossy(&line).into_owned()));
                }
                let _ = log.send(Input::LogEnded);
            })
            .map_err(io_failure("start a thread"))?;
        Ok(observer)
    }

    /// Requests it to stop, as a service manager would. Its log ends when it has.
    pub(super) fn stop(&self) {
        // Not reaped before the drop, so the pid still belongs to it.
        let _ = kill_process(rustix::process::Pid::from_child(&self.child), Signal::TERM);
    }

    /// Processor time of all its threads so far. `None` where the kernel does not report it.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let mut total_ns: u64 = 0;
        for task in tasks {
            let schedstat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            total_ns += schedstat.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(total_ns))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop();
        wait_or_kill(&mut self.child, STOP_WAIT);
    }
}

/// The kind of a row of the event file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    Beat,
    Exit,
    Other,
}

/// One row of the observer's event file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    /// The observer's own clock.
    pub(super) observer_ns: u64,
    pub(super) kind: RowKind,
    pub(super) pid: u32,
    pub(super) status: &'a str,
}

impl<'a> Row<'a> {
    /// `None` for a row without a process.
    fn parse(text: &'a str) -> Option<Self> {
        let mut columns = text.split('\t');
        let observer_ns = columns.next()?.parse().ok()?;
        let kind = match columns.next()? {
            "beat" => RowKind::Beat,
            "exit" => RowKind::Exit,
            _ => RowKind::Other,
        };
        let pid = columns.next()?.parse().ok()?;
        let _nonce = columns.next()?;
        Some(Self {
            observer_ns,
            kind,
            pid,
            status: columns.next()?,
        })
    }
}

/// Follows the event file as it grows.
pub(super) struct EventFile {
    path: PathBuf,
    file: Option<File>,
    /// The first part of an incomplete row.
    unfinished: String,
}

impl EventFile {
    pub(super) fn at(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            unfinished: String::new(),
        }
    }

    /// Returns every row that is new since the last call.
    pub(super) fn read_new(&mut self, mut each: impl FnMut(&Row<'_>)) {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            // Rows that cannot be read this time are read the next time.
            let _ = file.read_to_string(&mut self.unfinished);
        }
        let whole = self.unfinished.rfind('\n').map_or(0, |end| end + 1);
        let rows = self.unfinished[..whole].lines();
        rows.filter_map(Row::parse).for_each(|row| each(&row));
        self.unfinished.drain(..whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn rows_are_handed_over_once_and_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut events = EventFile::at(file.path().to_owned());
        let read = |events: &mut EventFile| {
            let mut rows = Vec::new();
            events.read_new(|row| rows.push((row.observer_ns, row.kind, row.pid)));
            rows
        };
        assert_eq!(read(&mut events), []);
        file.write_all(b"5\tbeat\t42\t7\tok\t8\n6\tgap\t-\t-\t-\t1\n7\tst")
            .unwrap();
        assert_eq!(read(&mut events), [(5, RowKind::Beat, 42)]);
        file.write_all(b"all\t42\t7\tstall\t-\n").unwrap();
        assert_eq!(read(&mut events), [(7, RowKind::Other, 42)]);
        assert_eq!(read(&mut events), []);
    }
}
