//! The terminal: which text may be written to it, its width, and pictures that are redrawn on it.

use std::io::{self, IsTerminal, Stdout, Write, stdin, stdout};

use ratatui::crossterm::cursor::{Hide, MoveTo, Show};
use ratatui::crossterm::style::Print;
use ratatui::crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::crossterm::{execute, queue};
use rustix::process::getpgrp;
use rustix::termios::{
    LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::Failure;

/// Whether standard output still has a reader, after a write to it. A reader that closes early, as in 'varta status |
/// head -1', is no failure.
pub(crate) fn is_read(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Run(format!("standard output: {error}"))),
    }
}

/// The number of columns that a text takes.
pub(crate) fn columns(text: &str) -> usize {
    text.width()
}

/// The text in at most this many columns; an ellipsis replaces the rest.
pub(crate) fn cut(text: &str, columns_max: usize) -> String {
    if columns(text) <= columns_max {
        return text.to_owned();
    }
    let mut left = columns_max.saturating_sub(1);
    let fits = |c: &char| {
        let columns = c.width().unwrap_or_default();
        let fits = columns <= left;
        left = left.saturating_sub(columns);
        fits
    };
    let mut short: String = text.chars().take_while(fits).collect();
    if columns_max > 0 {
        short.push('…');
    }
    short
}

/// The text in lines of at most this many columns, broken between words.
pub(crate) fn wrapped(text: &str, columns_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if columns(line) + 1 + columns(word) <= columns_max => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(cut(word, columns_max)),
        }
    }
    lines
}

/// Columns and rows of the terminal that is standard output; `None` if it is none.
pub(crate) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(stdout()).ok()?;
    let known = size.ws_col > 0 && size.ws_row > 0;
    known.then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// Whether standard output shows colours, and the user has not disabled them.
pub(crate) fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stdout().is_terminal() && is_clever() && !unwanted
}

/// Whether this program may draw on the terminal: the terminal can move its cursor, and the program is in its
/// foreground.
pub(crate) fn can_be_drawn_on() -> bool {
    let foreground = tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
    stdout().is_terminal() && is_clever() && foreground
}

fn is_clever() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// A picture that is redrawn. It takes the whole terminal; dropping it restores the terminal.
#[derive(Debug)]
pub(crate) struct Picture {
    out: Stdout,
    _silence: SilentKeyboard,
}

impl Picture {
    pub(crate) fn open() -> io::Result<Self> {
        let silence = SilentKeyboard::new()?;
        let mut out = stdout();
        execute!(out, EnterAlternateScreen, Hide)?;
        Ok(Self {
            out,
            _silence: silence,
        })
    }

    /// The lines must fit the terminal and leave its last column free: the area to the right of a full line cannot be
    /// cleared without it.
    pub(crate) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        queue!(self.out, MoveTo(0, 0))?;
        for (row, line) in lines.iter().enumerate() {
            let line_start = MoveTo(0, u16::try_from(row).unwrap_or(u16::MAX));
            queue!(
                self.out,
                line_start,
                Print(line),
                Clear(ClearType::UntilNewLine)
            )?;
        }
        queue!(self.out, Clear(ClearType::FromCursorDown))?;
        self.out.flush()
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // A closed terminal needs no cleanup.
        let _ = execute!(self.out, LeaveAlternateScreen, Show);
    }
}

/// Switches echo off. Keys that send signals still do.
#[derive(Debug)]
pub(crate) struct SilentKeyboard {
    before: Termios,
}

impl SilentKeyboard {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin(), OptionalActions::Now, &silent)?;
        Ok(Self { before })
    }
}

impl Drop for SilentKeyboard {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_broken_between_words() {
        assert_eq!(wrapped("a bb ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrapped("a bb ccc", 8), ["a bb ccc"]);
        assert_eq!(wrapped("too-long a", 4), ["too…", "a"]);
        assert_eq!(wrapped("", 4), [""; 0]);
    }

    #[test]
    fn a_long_text_is_cut_to_its_columns() {
        assert_eq!(cut("server", 6), "server");
        assert_eq!(cut("server", 5), "serv…");
        assert_eq!(cut("水水水", 4), "水…");
        assert_eq!(cut("水水水", 5), "水水…");
        assert_eq!(cut("server", 1), "…");
        assert_eq!(cut("server", 0), "");
    }
}
