//! Numbers as readable text.

/// Seconds of a day; the unit above hours.
const DAY: u64 = 86_400;

/// A length of time, given in seconds, in one or two units: `40 ms`, `0.4 s`, `2m 10s`, `3h 04m`, `2d 03h`.
pub(crate) fn duration(seconds: f64) -> String {
    // A negative number is shown as zero, and one that is too long as the longest.
    let whole = seconds as u64;
    match whole {
        0 if seconds < 0.0995 => format!("{:.0} ms", seconds.max(0.0) * 1e3),
        0..60 if seconds < 59.95 => format!("{seconds:.1} s"),
        0..3600 => {
            let whole = whole.max(60);
            format!("{}m {:02}s", whole / 60, whole % 60)
        }
        3600..DAY => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
        DAY.. => format!("{}d {:02}h", whole / DAY, whole % DAY / 3600),
    }
}

/// A number per second: with a decimal where that is significant.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        ..99.95 => format!("{per_second:.1}"),
        _ => format!("{per_second:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_fits() {
        for (seconds, text) in [
            (-1.0, "0 ms"),
            (0.0, "0 ms"),
            (0.04, "40 ms"),
            (0.0999, "0.1 s"),
            (0.4, "0.4 s"),
            (2.0, "2.0 s"),
            (59.94, "59.9 s"),
            (59.96, "1m 00s"),
            (60.0, "1m 00s"),
            (130.9, "2m 10s"),
            (3599.9, "59m 59s"),
            (11_045.0, "3h 04m"),
            (183_600.0, "2d 03h"),
            (f64::MAX, "213503982334601d 07h"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn rates_have_a_decimal_where_it_matters() {
        assert_eq!(rate(0.04), "0.0");
        assert_eq!(rate(2.0), "2.0");
        assert_eq!(rate(99.96), "100");
        assert_eq!(rate(1234.5), "1234");
    }
}
