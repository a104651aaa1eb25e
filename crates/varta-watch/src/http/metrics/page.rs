//! Writes the exposition formats: the classic text and OpenMetrics, which differ in three places only.
//!
//! OpenMetrics names a family of counters without `_total` and ends with `# EOF`; both formats spell the bounds of
//! buckets as OpenMetrics requires, so that a series is the same whichever format it was read in.

use std::fmt::{self, Display, Write};

use varta_core::histogram::Distribution;

use super::Format;
use crate::snapshot::view::seconds;

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    /// Written in full, however large.
    Whole(u64),
    Real(f64),
}

impl From<usize> for Number {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => write!(f, "{number}"),
            Self::Real(number) if number.is_infinite() => f.write_str("+Inf"),
            Self::Real(number) => write!(f, "{number}"),
        }
    }
}

/// A page that is being written.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    format: Format,
}

impl Page {
    pub(super) fn new(format: Format) -> Self {
        Self {
            text: String::new(),
            format,
        }
    }

    /// Starts a family; its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let name = match self.format {
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            Format::Text => name,
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {}", kind.name()));
    }

    /// One sample; `labels` as [`label`] and [`labels`] write them.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: Number) {
        if labels.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{labels}}} {value}"));
        }
    }

    /// All samples of a histogram without labels of its own.
    pub(super) fn histogram(&mut self, name: &str, distribution: &Distribution) {
        let bounds = distribution.bounds_ns.iter().map(|ns| bound(*ns));
        let bounds = bounds.chain(["+Inf".to_owned()]);
        let mut below = 0;
        for (bound, count) in bounds.zip(distribution.counts()) {
            below += count;
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {below}"));
        }
        let sum = Number::Real(seconds(distribution.sum_ns));
        self.line(format_args!("{name}_sum {sum}"));
        self.line(format_args!("{name}_count {below}"));
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.line(format_args!("# EOF"));
        }
        self.text
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// A bound in seconds, always with a decimal point.
fn bound(ns: u64) -> String {
    let text = seconds(ns).to_string();
    match text.contains('.') {
        true => text,
        false => text + ".0",
    }
}

/// Names and values of labels in the form between the braces.
pub(super) fn labels(labels: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(64);
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(value, &mut text);
        text.push('"');
    }
    text
}

/// The same for one label or none.
pub(super) fn label(label: Option<(&str, &str)>) -> String {
    labels(label.as_slice())
}

/// Agents choose their names, so no character of a value may end it.
fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}
