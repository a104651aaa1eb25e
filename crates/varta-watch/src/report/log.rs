//! The observer's log: one line per thing that happened, for a person or for a program.
//!
//! Lines go to standard error through a thread of their own, so a reader that does not read cannot
//! stop the observer. The queue is bounded; lines that find it full are lost: they are counted, and the next
//! line that gets through says how many.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use varta_api::{Fields, Level, LogEvent, LogLine, human_line};

use super::history::History;
use crate::settings::LogFormat;

/// Lines waiting to be written; about 1 MiB at most.
const QUEUE_LINES: usize = 4096;

/// How long the end of the program waits for the last lines to be written: 2 s, within which any machine runs the
/// thread that writes them. The last line says why the observer ends. A reader that does not read delays the end by
/// this much.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A handle to the log; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    format: LogFormat,
    session_id: Arc<str>,
    queue: SyncSender<String>,
    /// Since the last line that got through.
    lost: Arc<AtomicU64>,
    /// Since they were taken for the counter.
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
                    // Nowhere is left to report that standard error cannot be written.
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

    /// What was told lately.
    pub(crate) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// Tells this run from any other; 16 hex digits.
    pub(crate) fn session_id(&self) -> &str {
        &self.session_id
    }

    pub(crate) fn info(&self, event: LogEvent, msg: String, fields: Fields) {
        self.line(Level::Info, event, msg, fields);
    }

    pub(crate) fn warn(&self, event: LogEvent, msg: String, fields: Fields) {
        self.line(Level::Warn, event, msg, fields);
    }

    pub(crate) fn error(&self, event: LogEvent, msg: String, fields: Fields) {
        self.line(Level::Error, event, msg, fields);
    }

    /// Lines that were lost since the last call.
    pub(crate) fn take_suppressed(&self) -> u64 {
        self.suppressed.swap(0, Ordering::Relaxed)
    }

    fn line(&self, level: Level, event: LogEvent, msg: String, fields: Fields) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let msg = format!("{lost} log lines were lost because nobody read them");
            if !self.put(Level::Warn, LogEvent::Notice, msg, Fields::default()) {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if !self.put(level, event, msg, fields) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the line has got through.
    fn put(&self, level: Level, event: LogEvent, msg: String, fields: Fields) -> bool {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let line = LogLine {
            ts_ns: since_epoch.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
            session_id: self.session_id.to_string(),
            level,
            event,
            msg,
            fields,
        };
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
    /// Waits a moment for the last lines. Every [`Log`] must be dropped before.
    pub(crate) fn close(self) {
        let _ = self.closed.recv_timeout(CLOSE_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_reads_back_and_leaves_out_what_does_not_apply() {
        let fields = Fields {
            pid: Some(42),
            ..Fields::default()
        };
        let text = json(&LogLine {
            ts_ns: 5,
            session_id: "0000000000000007".to_owned(),
            level: Level::Info,
            event: LogEvent::Join,
            msg: "hello".to_owned(),
            fields,
        });
        assert_eq!(
            text,
            "{\"ts_ns\":5,\"session_id\":\"0000000000000007\",\"level\":\"info\",\
             \"event\":\"join\",\"msg\":\"hello\",\"pid\":42}\n"
        );
        let line: LogLine = serde_json::from_str(&text).unwrap();
        assert_eq!(line.fields.pid, Some(42));
    }

    #[test]
    fn lines_that_nobody_reads_are_counted_and_told_of() {
        let (queue, lines) = sync_channel(2);
        let log = Log {
            format: LogFormat::Human,
            session_id: "run".into(),
            queue,
            lost: Arc::default(),
            suppressed: Arc::default(),
            history: Arc::default(),
        };
        let tell = || log.info(LogEvent::Notice, "hello".to_owned(), Fields::default());
        (0..5).for_each(|_| tell());
        assert_eq!((log.take_suppressed(), log.take_suppressed()), (3, 0));
        assert_eq!(lines.try_iter().count(), 2);
        tell();
        let told: Vec<String> = lines.try_iter().collect();
        assert!(told[0].contains("3 log lines were lost"), "{told:?}");
        assert_eq!((told.len(), log.take_suppressed()), (2, 0));
    }

    #[test]
    fn what_is_told_is_remembered() {
        let (log, _writer) = Log::start(LogFormat::Json, 7).unwrap();
        log.info(LogEvent::Notice, "hello".to_owned(), Fields::default());
        let page = log.history().after(0, 10);
        let told: varta_api::v1::EventView = serde_json::from_slice(&page.events[0].json).unwrap();
        assert_eq!(told.line.msg, "hello");
        assert_eq!(told.line.session_id, log.session_id());
    }
}
