//! Lines and columns in a text. Any position is found by counting through a few hundred bytes, however long the text
//! and its lines are, so that a file full of mistakes costs no more than its size.

/// Bytes between two positions that are stored. A text of 1 MiB has 2048 of them, 32 KiB in memory.
const STRIDE_BYTES: usize = 512;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// From 1.
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
}

impl Position {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    /// The position after some bytes that start at this one.
    pub(super) fn after(self, bytes: &[u8]) -> Self {
        let newlines = bytes.iter().filter(|byte| **byte == b'\n').count();
        match bytes.rsplit(|byte| *byte == b'\n').next() {
            Some(last_line) if newlines > 0 => Self {
                line: self.line + newlines,
                column: 1 + characters(last_line),
            },
            _ => Self {
                column: self.column + characters(bytes),
                ..self
            },
        }
    }
}

/// The number of UTF-8 characters that start in these bytes.
fn characters(bytes: &[u8]) -> usize {
    let goes_on = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    bytes.iter().filter(|byte| !goes_on(**byte)).count()
}

/// The stored positions of a text.
#[derive(Debug)]
pub(super) struct Positions {
    /// The place of every 512th byte.
    known: Vec<Position>,
}

impl Positions {
    pub(super) fn of(text: &str) -> Self {
        let strides = text.as_bytes().chunks(STRIDE_BYTES);
        let known = strides.scan(Position::START, |next, stride| {
            let begins = *next;
            *next = begins.after(stride);
            Some(begins)
        });
        Self {
            known: known.collect(),
        }
    }

    /// The place of a byte of the text they are of; its end if it has fewer.
    pub(super) fn find(&self, text: &str, at: usize) -> Position {
        let at = at.min(text.len());
        // At the end of a text of whole strides no further one starts.
        let stride = (at / STRIDE_BYTES).min(self.known.len().saturating_sub(1));
        let begins = self.known.get(stride).unwrap_or(&Position::START);
        let before = text.as_bytes().get(stride * STRIDE_BYTES..at);
        begins.after(before.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, at: usize) -> (usize, usize) {
        let Position { line, column } = Positions::of(text).find(text, at);
        (line, column)
    }

    #[test]
    fn places_are_counted_in_lines_and_characters() {
        let text = "a\nbä c\n";
        assert_eq!(find(text, 0), (1, 1));
        assert_eq!(find(text, 1), (1, 2));
        assert_eq!(find(text, 2), (2, 1));
        assert_eq!(find(text, 5), (2, 3));
        assert_eq!(find(text, 99), (3, 1));
        assert_eq!(find("", 0), (1, 1));
    }

    #[test]
    fn places_far_inside_are_those_that_counting_from_the_beginning_finds() {
        let lines = "é = \"x\"\n\n".repeat(STRIDE_BYTES);
        let one_line = "é€x".repeat(STRIDE_BYTES);
        let whole_strides = "x".repeat(2 * STRIDE_BYTES);
        for text in [lines, one_line, whole_strides] {
            let positions = Positions::of(&text);
            for (at, _) in text.char_indices().chain([(text.len(), ' ')]) {
                let before = &text[..at];
                let line = 1 + before.matches('\n').count();
                let last_line = before.rsplit('\n').next().unwrap();
                let column = 1 + last_line.chars().count();
                assert_eq!(positions.find(&text, at), Position { line, column });
            }
        }
    }
}
