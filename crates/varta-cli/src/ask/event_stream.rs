//! Server-sent events, read from bytes that come in any chunks (`text/event-stream` of the HTML standard).
//!
//! Supports what a reader of the observer needs and no more: identifiers stay text, reconnection times and comments
//! are ignored. A message may be [`MESSAGE_BYTES_MAX`] long.

use std::fmt;

/// The media type.
pub(super) const CONTENT_TYPE: &str = "text/event-stream";

/// The longest message, and the longest line. An event of an observer has a few hundred bytes; a stream without an
/// end of line must not fill the memory.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// One message of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its kind; empty for the default one.
    pub(crate) kind: String,
    /// Its data; lines are separated by line feeds.
    pub(crate) data: String,
}

/// The stream contains no event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message is too long to be an event")
    }
}

/// Parses bytes into messages.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    message: Message,
    has_data: bool,
    after_carriage_return: bool,
}

impl Parser {
    /// Takes the next bytes and returns the messages that are complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, TooLong> {
        let mut complete = Vec::new();
        for &byte in bytes {
            let second_half = byte == b'\n' && self.after_carriage_return;
            self.after_carriage_return = byte == b'\r';
            match byte {
                _ if second_half => {}
                b'\r' | b'\n' => complete.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.message.data.len() > MESSAGE_BYTES_MAX {
                return Err(TooLong);
            }
        }
        Ok(complete)
    }

    /// An empty line ends a message; any other one adds to it.
    fn end_line(&mut self) -> Option<Message> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.message.kind = value.to_owned(),
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, data: &str) -> Message {
        Message {
            kind: kind.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn messages_are_the_same_however_their_bytes_are_cut() {
        let stream = "id: 7\ndata: {\"a\":1}\n\n: still here\n\nevent: missed\r\ndata: 12\r\n\r\n\
                      id: 8\rdata:ü\rdata: two\r\rretry: 5\n\ndata: half";
        let expected = [
            message("", "{\"a\":1}"),
            message("missed", "12"),
            message("", "ü\ntwo"),
        ];
        for size in 1..=stream.len() {
            let mut parser = Parser::default();
            let chunks = stream.as_bytes().chunks(size);
            let messages: Vec<Message> = chunks
                .flat_map(|chunk| parser.push(chunk).unwrap())
                .collect();
            assert_eq!(messages, expected, "chunks of {size}");
        }
    }

    #[test]
    fn what_is_no_message_is_passed_over() {
        let mut parser = Parser::default();
        for nothing in ["\n\n\n", "event: x\n\n", ":\n\n", "nonsense\n\n", "id\n\n"] {
            assert_eq!(parser.push(nothing.as_bytes()), Ok(vec![]), "{nothing:?}");
        }
        assert_eq!(parser.push(b"data\n\n"), Ok(vec![message("", "")]));
        let not_text = parser.push(b"data: \xff\n\n");
        assert_eq!(not_text, Ok(vec![message("", "\u{fffd}")]));
    }

    #[test]
    fn a_message_without_an_end_is_given_up() {
        let half = vec![b'x'; MESSAGE_BYTES_MAX / 2];
        let mut parser = Parser::default();
        assert_eq!(parser.push(&half), Ok(vec![]));
        assert_eq!(parser.push(&half), Ok(vec![]));
        assert_eq!(parser.push(b"x"), Err(TooLong));

        let mut parser = Parser::default();
        let lines = b"data: xxxxxxxx\n".repeat(MESSAGE_BYTES_MAX / 8);
        assert_eq!(parser.push(&lines), Err(TooLong));
    }
}
