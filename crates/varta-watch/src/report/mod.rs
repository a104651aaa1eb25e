//! What is reported and kept of each fact: log and live events, rows of the event file, counters.
//!
//! A fact is published once, in [`Report::publish`], and everything else follows from it there. This module decides
//! nothing about agents and waits for no reader; every queue is bounded, and what does not fit is counted.

pub(crate) mod event_file;
pub(crate) mod history;
mod line_limit;
pub(crate) mod log;
mod log_throttle;

use std::sync::Arc;

use varta_api::append_row;
use varta_core::{Counter, Counters, Fact};

use crate::clock::RawClock;
use event_file::EventFile;
use line_limit::LineLimit;
use log::Log;
use log_throttle::LogThrottle;

/// Rows that wait while the event file takes none, because its disk is slow: 4 MiB. More are dropped and counted.
const WAITING_ROWS_BYTES: usize = 4 << 20;

/// Time until rows that found the queue of the event file full are handed over again: 10 ms.
const ROWS_RETRY_NS: u64 = 10_000_000;

/// The destinations of facts.
pub(crate) struct Report {
    log: Log,
    event_file: Option<EventFile>,
    /// Rows that are not handed to the event file yet.
    rows: String,
    /// When rows that found the queue full are handed over again.
    rows_due_ns: Option<u64>,
    counters: Arc<Counters>,
    throttle: LogThrottle,
    line_limit: LineLimit,
    raw: RawClock,
}

impl Report {
    pub(crate) fn new(
        log: Log,
        event_file: Option<EventFile>,
        counters: Arc<Counters>,
        raw: RawClock,
    ) -> Self {
        Self {
            log,
            event_file,
            rows: String::new(),
            rows_due_ns: None,
            counters,
            throttle: LogThrottle::default(),
            line_limit: LineLimit::default(),
            raw,
        }
    }

    /// Reports a fact of the time `observer_ns` on the observer's clock. The line of a fact that may repeat is
    /// written by [`Self::tick`], the row by [`Self::write_rows`].
    pub(crate) fn publish(&mut self, fact: &Fact, observer_ns: u64) {
        if self.event_file.is_some() {
            append_row(&mut self.rows, fact, observer_ns);
        }
        if matches!(fact, Fact::Beat { .. }) {
            // It has a row and nothing else, and there are many.
            return;
        }
        fact.count(&self.counters);
        let now_ns = self.raw.now_ns();
        if self.throttle.takes(fact, now_ns) {
            return;
        }
        match self.line_limit.admits(fact, now_ns) {
            true => self.log.write(fact),
            false => self.counters.count(Counter::LogLinesOverRate),
        }
    }

    /// Hands the rows of published facts to the event file. They wait while its queue is full.
    pub(crate) fn write_rows(&mut self) {
        let Some(event_file) = &self.event_file else {
            return;
        };
        self.rows_due_ns = None;
        if !self.rows.is_empty()
            && let Err(rows) = event_file.write(std::mem::take(&mut self.rows))
        {
            if rows.len() > WAITING_ROWS_BYTES {
                event_file.drop_rows(&rows);
            } else {
                self.rows = rows;
                self.rows_due_ns = Some(self.raw.now_ns() + ROWS_RETRY_NS);
            }
        }
        let dropped = event_file.take_dropped();
        self.counters.add(Counter::RowsDropped, dropped);
    }

    /// Writes the lines that are due.
    pub(crate) fn tick(&mut self) {
        let now_ns = self.raw.now_ns();
        let waiting = self.throttle.take_due(now_ns);
        self.write_lines(&waiting);
        let left_out = self.line_limit.take_due(now_ns);
        self.write_lines(&left_out);
        self.count_lost_lines();
    }

    /// Writes every pending row and line.
    pub(crate) fn finish(&mut self) {
        self.write_rows();
        let waiting = self.throttle.take_all();
        self.write_lines(&waiting);
        let left_out = self.line_limit.take_all(self.raw.now_ns());
        self.write_lines(&left_out);
        self.count_lost_lines();
    }

    fn write_lines(&self, facts: &[Fact]) {
        facts.iter().for_each(|fact| self.log.write(fact));
    }

    fn count_lost_lines(&self) {
        let lost = self.log.take_suppressed();
        self.counters.add(Counter::LogLinesSuppressed, lost);
    }

    /// When [`Self::tick`] or [`Self::write_rows`] has something to write, on the observer's clock.
    pub(crate) fn next_due_ns(&self) -> Option<u64> {
        let lines = [self.throttle.next_due_ns(), self.line_limit.next_due_ns()];
        let due = lines.into_iter().chain([self.rows_due_ns]);
        due.flatten().min()
    }

    /// Reopens the event file under its name; false if there is none.
    pub(crate) fn reopen_event_file(&self) -> bool {
        self.event_file.as_ref().map(EventFile::reopen).is_some()
    }

    /// Writes everything that is pending.
    pub(crate) fn close(&mut self) {
        self.finish();
        if let Some(event_file) = self.event_file.take() {
            event_file.drop_rows(&self.rows);
            let dropped = event_file.take_dropped();
            self.counters.add(Counter::RowsDropped, dropped);
            event_file.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use varta_core::{Agent, AgentRef, ExitStatus};

    use super::*;
    use crate::settings::LogFormat;

    #[test]
    fn rows_wait_while_the_event_file_takes_none_and_are_dropped_beyond_a_bound_only() {
        let (log, _writer) = Log::start(LogFormat::Json, 7).unwrap();
        let counters = Arc::new(Counters::default());
        let (event_file, mut read) = EventFile::read_by_test(1);
        let raw = RawClock::start();
        let mut report = Report::new(log, Some(event_file), Arc::clone(&counters), raw);
        let gap = Fact::Gap {
            late_ns: 1,
            count: 1,
        };
        for observer_ns in 1..=3 {
            report.publish(&gap, observer_ns);
            report.write_rows();
        }
        assert!(report.rows_due_ns.is_some());
        assert_eq!(read().unwrap(), "1\tgap\t-\t-\t-\t1\n");
        report.write_rows();
        assert_eq!(read().unwrap(), "2\tgap\t-\t-\t-\t1\n3\tgap\t-\t-\t-\t1\n");
        assert_eq!(report.rows_due_ns, None);
        assert_eq!(counters.get(Counter::RowsDropped), 0);
        report.rows = "row\n".to_owned();
        report.write_rows();
        report.rows = "row\n".repeat(WAITING_ROWS_BYTES);
        report.write_rows();
        let dropped = counters.get(Counter::RowsDropped);
        assert_eq!(dropped, WAITING_ROWS_BYTES as u64);
        assert!(report.rows.is_empty());
    }

    #[test]
    fn line_row_counter_and_event_follow_from_one_fact() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows");
        let (log, _writer) = Log::start(LogFormat::Json, 7).unwrap();
        let history = log.history();
        let counters = Arc::new(Counters::default());
        let event_file = EventFile::open(&path, false, log.clone()).unwrap();
        let raw = RawClock::start();
        let mut report = Report::new(log, Some(event_file), Arc::clone(&counters), raw);
        let agent = Agent {
            slot: 0,
            pid: 7,
            instance: 1,
            stream: 0,
        };
        let exited = Fact::Exited {
            agent: AgentRef {
                agent,
                name: "web".to_owned(),
                address: None,
                uid: None,
            },
            last_nonce: 3,
            status: ExitStatus::Code(0),
        };
        report.publish(&exited, 5);
        report.close();
        assert_eq!(counters.get(Counter::ExitsLeft), 1);
        let page = history.after(0, 10);
        let event = std::str::from_utf8(&page.events[0].json).unwrap();
        assert!(event.contains("web (7): exited cleanly"), "{event}");
        let rows = std::fs::read_to_string(path).unwrap();
        assert_eq!(rows, "5\texit\t7\t3\tleft\tcode=0\n");
    }
}
