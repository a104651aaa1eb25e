//! The output of the demo: a live table on a terminal, lines of text otherwise, JSON for programs.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use ratatui::text::Line;
use varta_api::log_line::LogLine;

use super::screen::Screen;
use super::seen::Record;
use super::words;
use crate::Failure;

/// The form of the output.
pub(super) enum Show {
    /// The observer's own log lines, and a summary object.
    Json,
    /// Lines of text.
    Plain,
    /// Lines of text that scroll by above a live table.
    Live(Screen),
}

impl Show {
    pub(super) fn open(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        let on_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
        let screen = on_terminal.then(Screen::open).flatten();
        screen.map_or(Self::Plain, Self::Live)
    }

    /// Shows lines of readable text.
    pub(super) fn print(&mut self, lines: Vec<Line<'static>>) -> Result<(), Failure> {
        match self {
            Self::Json => Ok(()),
            Self::Plain => lines.iter().try_for_each(write_line),
            Self::Live(screen) => screen.print(lines),
        }
        .map_err(|error| cannot_write(&error))
    }

    /// Shows a line of the observer's log.
    pub(super) fn log_line(
        &mut self,
        raw: &str,
        line: &LogLine,
        at: Duration,
    ) -> Result<(), Failure> {
        if let Self::Json = self {
            return write_line(raw).map_err(|error| cannot_write(&error));
        }
        match words::event(line, at) {
            Some(told) => self.print(vec![told]),
            None => Ok(()),
        }
    }

    /// Updates the table, if there is one.
    pub(super) fn refresh(
        &mut self,
        seen: &Record,
        left: Duration,
        cpu_time: Option<Duration>,
    ) -> Result<(), Failure> {
        match self {
            Self::Json | Self::Plain => Ok(()),
            Self::Live(screen) => screen.draw(seen, left, cpu_time),
        }
        .map_err(|error| cannot_write(&error))
    }

    /// Shows the result.
    pub(super) fn end(
        &mut self,
        seen: &Record,
        took: Duration,
        cpu_time: Option<Duration>,
    ) -> Result<(), Failure> {
        if let Self::Json = self {
            let summary = seen.summary(took, cpu_time);
            return write_line(summary).map_err(|error| cannot_write(&error));
        }
        self.print(words::summary(seen, cpu_time))
    }
}

fn write_line(line: impl std::fmt::Display) -> io::Result<()> {
    // A line at a time, so that a reader sees each event when it happens.
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn cannot_write(error: &io::Error) -> Failure {
    Failure::Run(format!("cannot write to standard output: {error}"))
}
