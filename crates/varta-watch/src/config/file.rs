//! The configuration file: read whole or not at all, and taken apart with the place of everything in it.
//!
//! Only regular files of a sensible size are read, so that nothing here waits or fills memory. What the
//! keys mean is decided elsewhere.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeTable;

use super::problems::{Origin, Place, Problems};

/// A rule takes a few hundred bytes; thousands of them fit.
const BYTES_MAX: u64 = 1024 * 1024;

const WRITABLE_BY_OTHERS: u32 = 0o002;

/// A file's text.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) path: Arc<Path>,
    text: String,
}

impl Document {
    /// Reads a file; what keeps it from being read is the only problem then.
    pub(super) fn read(path: &Path, problems: &mut Problems) -> Option<Self> {
        let path: Arc<Path> = path.into();
        let place = |line, column| {
            Origin::File(Place {
                path: Arc::clone(&path),
                line,
                column,
            })
        };
        let bytes = match content(&path) {
            Ok(bytes) => bytes,
            Err(problem) => {
                problems.add(place(1, 1), "", problem);
                return None;
            }
        };
        match String::from_utf8(bytes) {
            Ok(text) => Some(Self { path, text }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let before = String::from_utf8_lossy(error.as_bytes().get(..valid)?);
                let (line, column) = position(&before, valid);
                problems.add(
                    place(line, column),
                    "",
                    "this is not UTF-8 text; write the file anew as TOML in UTF-8",
                );
                None
            }
        }
    }

    /// What is written in it, as far as it can be made out; what cannot is reported.
    pub(super) fn parse(&self, problems: &mut Problems) -> Spanned<DeTable<'_>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        for error in errors {
            let at = error.span().unwrap_or(0..0);
            let text = self.text.get(at.clone()).unwrap_or_default();
            problems.add_unreadable(self.origin(&at), syntax(error.message(), text));
        }
        table
    }

    /// The line, for a message about another place.
    pub(super) fn shown_place(&self, span: &Range<usize>) -> String {
        format!("line {}", position(&self.text, span.start).0)
    }

    /// The place where something begins.
    pub(super) fn origin(&self, span: &Range<usize>) -> Origin {
        let (line, column) = position(&self.text, span.start);
        Origin::File(Place {
            path: Arc::clone(&self.path),
            line,
            column,
        })
    }
}

/// The parser says what it stumbled over; what is asked for is a file it can read.
fn syntax(message: &str, at: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    match message.as_str() {
        "duplicate key" => format!("{at} is given twice; keep one"),
        message => format!("not TOML: {message}"),
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.matches('\n').count();
    (
        line,
        1 + before.get(line_start..).unwrap_or_default().chars().count(),
    )
}

/// The bytes of a file; else what is wrong and how to mend it.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error| format!("cannot read this file: {error}; give the path of a readable one");
    // Before it is opened: opening some devices does something.
    judge(&path.metadata().map_err(cannot)?)?;
    let file = OpenOptions::new()
        .read(true)
        // A FIFO put there meanwhile must not make the observer wait.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(cannot)?;
    judge(&file.metadata().map_err(cannot)?)?;
    let bytes = read_at_most(file, BYTES_MAX + 1).map_err(cannot)?;
    match bytes.len() as u64 > BYTES_MAX {
        true => Err(too_large()),
        false => Ok(bytes),
    }
}

fn read_at_most(file: File, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether something may be a configuration file.
fn judge(metadata: &Metadata) -> Result<(), String> {
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = match kind {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_fifo() => "a FIFO",
            kind if kind.is_socket() => "a socket",
            _ => "a device",
        };
        return Err(format!("this is {what}; give the path of a regular file"));
    }
    if metadata.len() > BYTES_MAX {
        return Err(too_large());
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(
            "everybody may write to this file, and it says which programs to run; mend it with chmod o-w"
                .to_owned(),
        );
    }
    Ok(())
}

fn too_large() -> String {
    format!("this file is larger than {BYTES_MAX} bytes; is it the right one?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_lines_and_characters() {
        let text = "a\nbä c\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 2), (2, 1));
        assert_eq!(position(text, 5), (2, 3));
        assert_eq!(position(text, 99), (3, 1));
    }
}
