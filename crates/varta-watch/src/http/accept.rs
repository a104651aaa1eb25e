//! Which of two forms of an answer somebody wants: what `Accept` and `Accept-Encoding` say (RFC 9110, 12.5).
//!
//! One form is the usual one and is given to everybody who does not prefer the other one by its name. Nobody is
//! refused for wanting neither.

use axum::http::{HeaderMap, HeaderName, header};

/// Another form than the usual one, of which the header decides.
#[derive(Debug)]
pub(super) struct Other {
    header: HeaderName,
    name: &'static str,
    /// Names of the usual one, the most exact first.
    usual: &'static [&'static str],
}

/// Instead of the classic text format.
pub(super) static OPENMETRICS: Other = Other {
    header: header::ACCEPT,
    name: "application/openmetrics-text",
    usual: &["text/plain", "text/*", "*/*"],
};

/// Live events instead of a page of them.
pub(super) static EVENT_STREAM: Other = Other {
    header: header::ACCEPT,
    name: "text/event-stream",
    usual: &["application/json", "application/*", "*/*"],
};

/// Instead of the bytes as they are. Those are welcome to everybody, so `*` speaks of neither.
pub(super) static GZIP: Other = Other {
    header: header::ACCEPT_ENCODING,
    name: "gzip",
    usual: &["identity"],
};

impl Other {
    /// Whether it is named, not ruled out, and no less welcome than the usual one.
    pub(super) fn is_preferred(&self, headers: &HeaderMap) -> bool {
        let weight = |name| weight(headers, &self.header, name);
        let usual = self.usual.iter().find_map(|name| weight(name));
        let usual = usual.unwrap_or_default();
        weight(self.name).is_some_and(|weight| weight > 0.0 && weight >= usual)
    }
}

/// How welcome what has this name is, from 0 to 1: the most that is said of it. `None` if it is not named.
fn weight(headers: &HeaderMap, header: &HeaderName, wanted: &str) -> Option<f32> {
    let lines = headers.get_all(header).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let ranges = lines.flat_map(|line| line.split(','));
    let weights = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_named = parts.next()?.eq_ignore_ascii_case(wanted);
        is_named.then(|| parts.find_map(quality).unwrap_or(1.0))
    });
    weights.reduce(f32::max)
}

/// The weight that a parameter is, if it is one.
fn quality(parameter: &str) -> Option<f32> {
    let (name, value) = parameter.split_once('=')?;
    let weight = value.parse().ok()?;
    (name.eq_ignore_ascii_case("q") && (0.0..=1.0).contains(&weight)).then_some(weight)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn prefers(other: &Other, lines: &[&'static str]) -> bool {
        let lines = lines.iter().copied().map(HeaderValue::from_static);
        let headers: HeaderMap = lines.map(|line| (other.header.clone(), line)).collect();
        other.is_preferred(&headers)
    }

    #[test]
    fn openmetrics_is_for_who_names_it_and_likes_it_no_less_than_plain_text() {
        for accept in [
            "Application/OpenMetrics-Text",
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.2,\
             text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            "application/openmetrics-text, text/plain, */*",
            "application/openmetrics-text; Q=0.2, text/plain; q=0.1, */*",
            "application/openmetrics-text;q=0.2, text/*;q=0.1, */*",
            "application/openmetrics-text;q=0.001",
            "application/openmetrics-text;q=7",
        ] {
            assert!(prefers(&OPENMETRICS, &[accept]), "{accept}");
        }
        for accept in [
            "*/*",
            "",
            "application/*",
            "application/openmetrics-text;q=0.0",
            "text/plain, application/openmetrics-text; version=1.0.0; q=0.1",
            "application/openmetrics-text;q=0.9, text/*",
            "application/openmetrics-text;q=0.9, */*",
            "application/openmetrics-text;q=0.5, text/plain;q=0.1, text/plain;q=0.6",
        ] {
            assert!(!prefers(&OPENMETRICS, &[accept]), "{accept}");
        }
    }

    #[test]
    fn live_events_are_for_who_likes_them_no_less_than_a_page() {
        assert!(prefers(&EVENT_STREAM, &["text/event-stream"]));
        assert!(prefers(
            &EVENT_STREAM,
            &["application/json", "text/event-stream"]
        ));
        assert!(!prefers(
            &EVENT_STREAM,
            &["application/json", "text/event-stream;q=0.9"]
        ));
        assert!(!prefers(
            &EVENT_STREAM,
            &["application/*, text/event-stream;q=0.9"]
        ));
        assert!(!prefers(&EVENT_STREAM, &["text/*"]));
    }

    #[test]
    fn gzip_is_for_who_names_it_and_likes_it_no_less_than_the_bytes_themselves() {
        for accept in [
            "gzip",
            "deflate, GZIP;q=0.1, *;q=0.5",
            "identity;q=0.5, gzip",
        ] {
            assert!(prefers(&GZIP, &[accept]), "{accept}");
        }
        for accept in ["*", "gzip;q=0", "identity, gzip;q=0.5", "x-gzip"] {
            assert!(!prefers(&GZIP, &[accept]), "{accept}");
        }
    }
}
