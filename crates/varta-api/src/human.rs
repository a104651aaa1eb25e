//! A log line as readable text, in the log and in every other display of events.

use std::time::{Duration, SystemTime};

use crate::log_line::{How, Level, LogEvent, LogLine};

/// A line of readable text, with its line end: time, a word, a sentence. Longer text follows on indented lines. The
/// line contains no terminal control sequence.
pub fn human_line(line: &LogLine) -> String {
    let mut msg = line.msg.clone();
    for (series, value) in line.event.counters().into_iter().flatten() {
        msg.push_str(&format!("\n{series} {value}"));
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(line.ts_ns);
    let time = humantime::format_rfc3339_millis(time);
    let word = word(line);
    // A name may contain any character; the line stays one line without control sequences.
    let lines: Vec<String> = msg.split('\n').map(printable).collect();
    format!(
        "{time} {word:<8}{}\n",
        lines.join("\n                                 ")
    )
}

fn word(line: &LogLine) -> &'static str {
    match (&line.event, line.level) {
        (LogEvent::Notice(_) | LogEvent::Unknown, Level::Error) => "error",
        (LogEvent::Notice(_) | LogEvent::Unknown, Level::Warn) => "warning",
        (LogEvent::Notice(_) | LogEvent::Unknown, Level::Info) => "notice",
        (LogEvent::Start(_), _) => "start",
        (LogEvent::Join(_), _) => "join",
        (LogEvent::Session(_), _) => "session",
        (LogEvent::Critical(_), _) => "CRIT",
        (LogEvent::Late(_), _) => "late",
        (LogEvent::Stall(_), _) => "STALL",
        (LogEvent::Return(_), _) => "return",
        (LogEvent::Exit(exit), _) if exit.how == How::Unknown => "gone",
        (LogEvent::Exit(_), Level::Info) => "left",
        (LogEvent::Exit(_), _) => "DIED",
        (LogEvent::Evict(_), _) => "evict",
        (LogEvent::Refuse(_), _) => "refuse",
        (LogEvent::Gap(_), _) => "gap",
        (LogEvent::Pause(_), _) => "pause",
        (LogEvent::Resume(_), _) => "resume",
        (LogEvent::Recover(_), _) => "recover",
        (LogEvent::GaveUp(_), _) => "GAVE UP",
        (LogEvent::Hold(_), Level::Info) => "go on",
        (LogEvent::Hold(_), _) => "HOLD",
        (LogEvent::Hook(_), _) => "hook",
        (LogEvent::Missing(_), Level::Info) => "there",
        (LogEvent::Missing(_), _) => "MISSING",
        (LogEvent::Stop(_), _) => "stop",
    }
}

/// Untrusted text without any character that controls a terminal, ends a line, or changes how the rest is displayed:
/// control characters, and invisible ones that set direction or hide text.
pub fn printable(text: &str) -> String {
    let unseen = |c| matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    text.chars()
        .map(|c| if c.is_control() || unseen(c) { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            msg: "evil\u{1b}[2J\u{202e} (7) silent".to_owned(),
            event: LogEvent::Unknown,
        });
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000Z warning evil?[2J? (7) silent\n"
        );
    }
}
