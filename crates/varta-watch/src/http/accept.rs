//! The client's choice between two forms of an answer: `Accept` and `Accept-Encoding` (RFC 9110, 12.5).
//!
//! One form is the default: every client gets it that does not prefer the other one by its name. A client that
//! accepts neither is not refused.

use axum::http::{HeaderMap, HeaderName, header};

/// An alternative to the default form; the header decides between them.
#[derive(Debug)]
pub(super) struct Other {
    header: HeaderName,
    name: &'static str,
    /// Names of the default form, the most exact first.
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

/// Instead of the uncompressed bytes. Every client accepts those, so `*` refers to neither.
pub(super) static GZIP: Other = Other {
    header: header::ACCEPT_ENCODING,
    name: "gzip",
    usual: &["identity"],
};

impl Other {
    /// Whether it is named, not excluded, and its weight is no less than that of the default.
    pub(super) fn is_preferred(&self, headers: &HeaderMap) -> bool {
        let weight = |name| weight(headers, &self.header, name);
        let usual = self.usual.iter().find_map(|name| weight(name));
        let usual = usual.unwrap_or_default();
        weight(self.name).is_some_and(|weight| weight > 0.0 && weight >= usual)
    }
}

/// The weight of a name, from 0 to 1: the largest one given. `None` if it is not named.
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

/// The weight in a parameter, if it is one.
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
