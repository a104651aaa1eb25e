//! The notation of values, the same for all sources: each parser takes the text and names the fix.

use std::time::Duration;

use super::Toggle;
use crate::settings::{QUEUE_DATAGRAMS_MAX, QUEUE_DATAGRAMS_MIN};

/// The word that switches a setting off.
pub(super) const OFF: &str = "off";

/// A month. Longer ones are mistakes, and everything is counted in nanoseconds of 64 bits.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// Shorter silences are below the accuracy of schedulers.
pub(super) const THRESHOLD_MIN: Duration = Duration::from_millis(10);

/// A day.
pub(super) const THRESHOLD_MAX: Duration = Duration::from_secs(24 * 3600);

/// Longer than any name or address.
const QUOTED_CHARACTERS_MAX: usize = 64;

const EXAMPLES: &str = "write \"1500ms\", \"2s\" or \"10m\"";

/// An invalid value, for a message about it: on one line, and cut to a length at which it is still recognisable.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARACTERS_MAX) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or(text)),
        None => format!("{text:?}"),
    }
}

/// A duration with its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(format!("{text} of what? {EXAMPLES}"));
    }
    if text.starts_with('-') {
        return Err(format!("a duration cannot be negative; {EXAMPLES}"));
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("{} is not a duration; {EXAMPLES}", quoted(text)))?;
    match duration <= DURATION_MAX {
        true => Ok(duration),
        false => Err(format!("{text} is too long; 31 days are the most")),
    }
}

/// A duration longer than nothing.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("it must be longer than 0; {EXAMPLES}")),
        duration => Ok(duration),
    }
}

/// A silence that makes a stall.
pub(super) fn threshold(text: &str) -> Result<Duration, String> {
    let threshold = duration(text)?;
    match (THRESHOLD_MIN..=THRESHOLD_MAX).contains(&threshold) {
        true => Ok(threshold),
        false => Err(format!("{text} is not within 10ms and 24h")),
    }
}

/// More than 0, at most 1; or off.
pub(super) fn share(text: &str) -> Result<Toggle<f64>, String> {
    part_or_off(text, 1.0).ok_or_else(|| {
        format!(
            "{} is no part of a whole; write a number above 0 and up to 1, or \"off\"",
            quoted(text)
        )
    })
}

/// More than 0, at most 100; or off.
pub(super) fn percent(text: &str) -> Result<Toggle<f64>, String> {
    part_or_off(text, 100.0).ok_or_else(|| {
        format!(
            "{} is no percentage; write a number above 0 and up to 100, or \"off\"",
            quoted(text)
        )
    })
}

/// Datagrams that the beat socket must queue; or off.
pub(super) fn queue_datagrams(text: &str) -> Result<Toggle<u32>, String> {
    if text == OFF {
        return Ok(Toggle::Off);
    }
    let number = text.parse().ok();
    let number =
        number.filter(|number| (QUEUE_DATAGRAMS_MIN..=QUEUE_DATAGRAMS_MAX).contains(number));
    number.map(Toggle::At).ok_or_else(|| {
        format!(
            "{} is no depth of a queue; write a number from {QUEUE_DATAGRAMS_MIN} to {QUEUE_DATAGRAMS_MAX}, or \"off\"",
            quoted(text)
        )
    })
}

/// Off means for as long as it lasts.
pub(super) fn duration_or_off(text: &str) -> Result<Toggle<Duration>, String> {
    match text {
        OFF => Ok(Toggle::Off),
        text => duration(text).map(Toggle::At),
    }
}

fn part_or_off(text: &str, whole: f64) -> Option<Toggle<f64>> {
    if text == OFF {
        return Some(Toggle::Off);
    }
    let number: f64 = text.parse().ok()?;
    (number > 0.0 && number <= whole).then_some(Toggle::At(number))
}

/// A duration in the notation of the settings.
pub(super) fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Permission bits.
pub(super) fn octal_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = u32::from_str_radix(digits, 8).ok();
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| {
        format!(
            "{} is not a mode; write octal digits from 000 to 777, such as 660",
            quoted(text)
        )
    })
}

/// A variable for children. A problem with it is reported without its text: it may be secret.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("no '='; write KEY=VALUE")?;
    if key.is_empty() {
        return Err("nothing before '='; write KEY=VALUE".to_owned());
    }
    if text.contains('\0') {
        return Err("it holds a NUL character, which no variable can; take it out".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_with_their_unit() {
        for (text, ms) in [
            ("1500ms", 1500),
            ("2s", 2000),
            ("10m", 600_000),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, words) in [
            ("10", "10 of what?"),
            ("1.5", "of what?"),
            ("-1s", "negative"),
            ("", "not a duration"),
            ("soon", "not a duration"),
            ("2s2", "not a duration"),
            ("99999999999999999999s", "not a duration"),
            ("32days", "too long"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(some_time("0s").unwrap_err().contains("longer than 0"));
        let long = duration(&"\u{1b}x".repeat(1000)).unwrap_err();
        assert!(
            long.len() < 700 && !long.contains(char::is_control),
            "{long}"
        );
    }

    #[test]
    fn thresholds_have_bounds() {
        assert_eq!(threshold("10ms"), Ok(THRESHOLD_MIN));
        assert_eq!(threshold("24h"), Ok(THRESHOLD_MAX));
        for text in ["9ms", "0s", "25h"] {
            assert!(
                threshold(text).unwrap_err().contains("not within"),
                "{text}"
            );
        }
    }

    #[test]
    fn parts_are_above_nothing_and_at_most_all_or_off() {
        assert_eq!(share("0.5"), Ok(Toggle::At(0.5)));
        assert_eq!(share("off"), Ok(Toggle::Off));
        assert_eq!(percent("20"), Ok(Toggle::At(20.0)));
        for text in ["0", "-1", "NaN", "inf", "1.1", "half", ""] {
            assert!(share(text).is_err(), "{text}");
        }
        for text in ["0", "101", "20%"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
