//! The result: rows of measure, value, reference and ratio, as a table or as JSON.

use std::fmt;

use serde::Serialize;

use crate::stats;

/// All results of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    measure: String,
    unit: &'static str,
    value: Figure,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
}

#[derive(Serialize)]
struct Against {
    what: String,
    #[serde(flatten)]
    value: Figure,
}

/// A figure of a row: one number, perhaps with its range, or several of a kind, like percentiles.
#[derive(Clone, Serialize)]
pub(crate) struct Figure {
    values: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
}

impl Figure {
    /// Median and range of repeated measurements.
    pub(crate) fn repeated(samples: &[f64]) -> Self {
        let [median, min, max] = stats::median_min_max(samples).unwrap_or([f64::NAN; 3]);
        Self {
            values: vec![median],
            range: (samples.len() > 1).then_some([min, max]),
        }
    }

    /// Half, 99 % and all of the samples are at most this.
    pub(crate) fn percentiles(samples: &[f64]) -> Self {
        Self {
            values: stats::p50_p99_max(samples).map_or_else(Vec::new, Vec::from),
            range: None,
        }
    }
}

impl Figure {
    /// The sum of two figures of one number each, without their ranges.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let pairs = self.values.iter().zip(&other.values);
        Self {
            values: pairs.map(|(one, other)| one + other).collect(),
            range: None,
        }
    }
}

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Self {
            values: vec![value],
            range: None,
        }
    }
}

impl Report {
    pub(crate) fn new(machine: String) -> Self {
        Self {
            machine,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row without comparison.
    pub(crate) fn row(&mut self, measure: &str, unit: &'static str, value: impl Into<Figure>) {
        self.rows.push(Row {
            measure: measure.to_owned(),
            unit,
            value: value.into(),
            against: None,
        });
    }

    /// Adds a row with a reference value in the same unit.
    pub(crate) fn compare(
        &mut self,
        measure: &str,
        unit: &'static str,
        value: impl Into<Figure>,
        what: &str,
        against: impl Into<Figure>,
    ) {
        self.row(measure, unit, value);
        if let Some(row) = self.rows.last_mut() {
            row.against = Some(Against {
                what: what.to_owned(),
                value: against.into(),
            });
        }
    }

    /// Adds a line under the table: a method of measurement, or a problem.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["measure", "value", "against", "ratio"].map(str::to_owned);
        let mut lines = vec![heads];
        for row in &self.rows {
            let against = row.against.as_ref();
            lines.push([
                row.measure.clone(),
                format!("{} {}", row.value, row.unit),
                against.map_or_else(String::new, |a| format!("{} {}", a.what, a.value)),
                against.map_or_else(String::new, |a| ratio(&row.value, &a.value)),
            ]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
        let widths = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
        writeln!(f, "{}\n", self.machine)?;
        for (number, line) in lines.iter().enumerate() {
            let cells: Vec<String> = line
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            writeln!(f, "{}", cells.join(" | ").trim_end())?;
            if number == 0 {
                let rules = widths.map(|width| "-".repeat(width));
                writeln!(f, "{}", rules.join("-|-"))?;
            }
        }
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.values.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&joined(self.values.iter().copied()))?;
        if let Some([min, max]) = self.range {
            write!(f, " ({}..{})", short(min), short(max))?;
        }
        Ok(())
    }
}

fn ratio(value: &Figure, against: &Figure) -> String {
    let pairs = value.values.iter().zip(&against.values);
    joined(pairs.map(|(value, against)| value / against))
}

fn joined(values: impl Iterator<Item = f64>) -> String {
    let texts: Vec<String> = values.map(short).collect();
    texts.join(" / ")
}

/// Whole numbers unchanged, others with three digits, which is more than a shared machine reproduces.
fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".to_owned(),
        size if size.fract() == 0.0 => format!("{value:.0}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_a_ratio_per_value() {
        let mut report = Report::new("machine".to_owned());
        report.compare("a", "us", Figure::repeated(&[1.5, 2.5, 16.25]), "bare", 4.0);
        report.row("longer", "KiB", 1234.0);
        report.note("a note");
        assert_eq!(
            report.to_string(),
            "machine\n\n\
             measure | value                | against | ratio\n\
             --------|----------------------|---------|------\n\
             a       | 2.50 (1.50..16.2) us | bare 4  | 0.62\n\
             longer  | 1234 KiB             |         |\n\n\
             - a note\n"
        );
    }

    #[test]
    fn a_ratio_to_nothing_is_not_a_number() {
        assert_eq!(ratio(&Figure::from(1.0), &Figure::from(0.0)), "-");
        assert_eq!(Figure::percentiles(&[]).to_string(), "nothing");
    }
}
