//! The observer's log: one line per event, for a person or for a program.
//!
//! Lines go to standard error through a thread of their own, so a slow reader cannot stop the observer. The queue is
//! bounded; lines that find it full are lost and counted, and the next line that is written reports the number.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use varta_api::{LogLine, human_line};
use varta_core::Fact;
use varta_core::fact::Level;

use super::history::History;
use crate::settings::LogFormat;

/// Lines waiting to be written; about 1 MiB at most.
const QUEUE_LINES: usize = 4096;

/// How long the program waits at its end for the last lines to be written: 2 s, within which any machine runs the
/// thread that writes them. The last line reports why the observer ends. A reader that does not read delays the end
/// by this much.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A handle to the log; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    format: LogFormat,
    session_id: Arc<str>,
    queue: SyncSender<String>,
    /// Lines lost since the last written line.
    lost: Arc<AtomicU64>,
    /// Lines lost since the counter was last updated.
    suppressed: Arc<AtomicU64>,
    history: Arc<History>,
}

/// Ends the log when the program ends.
pub(crate) struct LogWriter {
    closed: Receiver<()>,
    _thread: JoinHandle<()>,
}

impl Log {
    /// Starts the writing thread.
    pub(crate) fn start(format: LogFormat, session_id: u64) -> std::io::Result<(Self, LogWriter)> {
        let (queue, lines) = sync_channel::<String>(QUEUE_LINES);
        let (closing, closed) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("varta-log".to_owned())
            .spawn(move || {
                for line in lines {
                    // There is no other place to report that standard error cannot be written.
                    let _ = std::io::stderr().lock().write_all(line.as_bytes());
                }
                let _ = closing.send(());
            })?;
        let log = Self {
            format,
            session_id: format!("{session_id:016x}").into(),
            queue,
            lost: Arc::default(),
            suppressed: Arc::default(),
            history: Arc::default(),
        };
        let writer = LogWriter {
            closed,
            _thread: thread,
        };
        Ok((log, writer))
    }

    /// The last lines.
    pub(crate) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// Identifies this run; 16 hex digits.
    pub(crate) fn session_id(&self) -> &str {
        &self.session_id
    }

    /// Writes the line of a fact, if it has one.
    pub(crate) fn write(&self, fact: &Fact) {
        let Some(line) = self.line(fact) else {
            return;
        };
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let unread = self.line(&Fact::LinesUnread { count: lost });
            if !unread.is_some_and(|unread| self.put(unread)) {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if !self.put(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reports a useful fact about the observer, its host or its settings.
    pub(crate) fn info(&self, text: impl Into<String>) {
        self.notice(Level::Info, text.into());
    }

    /// Reports a fact that needs attention.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.notice(Level::Warn, text.into());
    }

    /// Reports that something the operator requested does not work.
    pub(crate) fn error(&self, text: impl Into<String>) {
        self.notice(Level::Error, text.into());
    }

    fn notice(&self, level: Level, text: String) {
        self.write(&Fact::Notice { level, text });
    }

    /// Lines that were lost since the last call.
    pub(crate) fn take_suppressed(&self) -> u64 {
        self.suppressed.swap(0, Ordering::Relaxed)
    }

    fn line(&self, fact: &Fact) -> Option<LogLine> {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let ts_ns = since_epoch.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        LogLine::of(fact, ts_ns, &self.session_id)
    }

    /// Whether the line was queued.
    fn put(&self, line: LogLine) -> bool {
        let text = match self.format {
            LogFormat::Human => human_line(&line),
            LogFormat::Json => json(&line),
        };
        let got_through = self.queue.try_send(text).is_ok();
        self.history.add(line);
        got_through
    }
}

fn json(line: &LogLine) -> String {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}

impl LogWriter {
    /// Waits for the last lines, up to a bound. Every [`Log`] must be dropped before.
    pub(crate) fn close(self) {
        let _ = self.closed.recv_timeout(CLOSE_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_nobody_reads_are_counted_and_reported() {
        let (queue, lines) = sync_channel(2);
        let log = Log {
            format: LogFormat::Human,
            session_id: "run".into(),
            queue,
            lost: Arc::default(),
            suppressed: Arc::default(),
            history: Arc::default(),
        };
        let write = || log.info("hello");
        (0..5).for_each(|_| write());
        assert_eq!((log.take_suppressed(), log.take_suppressed()), (3, 0));
        assert_eq!(lines.try_iter().count(), 2);
        write();
        let written: Vec<String> = lines.try_iter().collect();
        assert!(written[0].contains("3 log lines were lost"), "{written:?}");
        assert_eq!((written.len(), log.take_suppressed()), (2, 0));
    }

    #[test]
    fn a_line_is_remembered() {
        let (log, _writer) = Log::start(LogFormat::Json, 7).unwrap();
        log.info("hello");
        let page = log.history().after(0, 10);
        let event: varta_api::v1::EventView = serde_json::from_slice(&page.events[0].json).unwrap();
        assert_eq!(event.line.msg, "hello");
        assert_eq!(event.line.session_id, log.session_id());
    }
}
