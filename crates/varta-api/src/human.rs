//! A log line as a person reads it, in the log and wherever else events are shown.

use std::time::{Duration, SystemTime};

use crate::log_line::{Level, LogEvent, LogLine};

/// A line for a person, with its line end: time, a word, a sentence. What does not fit in it follows on
/// indented lines of its own. Nothing in it commands a terminal.
pub fn human_line(line: &LogLine) -> String {
    let LogLine {
        level,
        event,
        fields,
        ..
    } = line;
    let mut msg = line.msg.clone();
    for (series, value) in fields.counters.iter().flatten() {
        msg.push_str(&format!("\n{series} {value}"));
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(line.ts_ns);
    let time = humantime::format_rfc3339_millis(time);
    let word = match (event, level) {
        (LogEvent::Notice, Level::Error) => "error",
        (LogEvent::Notice, Level::Warn) => "warning",
        (LogEvent::Notice, Level::Info) => "notice",
        (LogEvent::Start, _) => "start",
        (LogEvent::Join, _) => "join",
        (LogEvent::Session, _) => "session",
        (LogEvent::Critical, _) => "CRIT",
        (LogEvent::Late, _) => "late",
        (LogEvent::Stall, _) => "STALL",
        (LogEvent::Return, _) => "return",
        (LogEvent::Exit, _) if fields.how.as_deref() == Some("unknown") => "gone",
        (LogEvent::Exit, Level::Info) => "left",
        (LogEvent::Exit, _) => "DIED",
        (LogEvent::Evict, _) => "evict",
        (LogEvent::Refuse, _) => "refuse",
        (LogEvent::Gap, _) => "gap",
        (LogEvent::Pause, _) => "pause",
        (LogEvent::Resume, _) => "resume",
        (LogEvent::Recover, _) => "recover",
        (LogEvent::GaveUp, _) => "GAVE UP",
        (LogEvent::Hold, Level::Info) => "go on",
        (LogEvent::Hold, _) => "HOLD",
        (LogEvent::Hook, _) => "hook",
        (LogEvent::Missing, Level::Info) => "there",
        (LogEvent::Missing, _) => "MISSING",
        (LogEvent::Stop, _) => "stop",
    };
    // A name may hold anything; a line stays one line and sends nothing to a terminal.
    let lines: Vec<String> = msg.split('\n').map(printable).collect();
    format!(
        "{time} {word:<8}{}\n",
        lines.join("\n                                 ")
    )
}

/// Somebody else's text with nothing in it that a terminal obeys, that ends a line, or that changes how the rest
/// is read: control characters, and those that are not seen but set direction or hide.
pub fn printable(text: &str) -> String {
    let unseen = |c| matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    text.chars()
        .map(|c| if c.is_control() || unseen(c) { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_line::Fields;

    #[test]
    fn nothing_that_a_terminal_obeys_or_that_turns_a_text_is_printable() {
        assert_eq!(printable("a\u{1b}[2J\n\u{202e}b\u{9b}"), "a?[2J??b?");
        assert_eq!(printable("\u{2066}\u{200f}\u{2028}\u{feff}"), "????");
        assert_eq!(printable("größer 水"), "größer 水");
    }

    #[test]
    fn a_human_line_has_time_word_and_sentence_and_nothing_a_terminal_obeys() {
        let text = human_line(&LogLine {
            ts_ns: 0,
            session_id: "0000000000000007".to_owned(),
            level: Level::Warn,
            event: LogEvent::Stall,
            msg: "evil\u{1b}[2J\u{202e} (7) silent".to_owned(),
            fields: Fields::default(),
        });
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000Z STALL   evil?[2J? (7) silent\n"
        );
    }
}
