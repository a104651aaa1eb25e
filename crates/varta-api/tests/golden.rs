//! The text of every kind of fact: byte for byte what users and their programs have read so far.
//!
//! `golden/log_lines.txt` has one block per sample: its name, the line as JSON, the line as readable text. A new fact
//! needs a sample here, and its lines there.

mod samples;

use std::collections::BTreeSet;
use std::fmt::Write;

use varta_api::human_line;
use varta_api::log_line::{LogEvent, LogLine};
use varta_core::Fact;

const TS_NS: u64 = 1_700_000_000_123_456_789;
const SESSION_ID: &str = "00000000000000a7";

fn line(fact: &Fact) -> Option<LogLine> {
    LogLine::of(fact, TS_NS, SESSION_ID)
}

#[test]
fn every_fact_is_shown_as_before() {
    let mut text = String::new();
    for (name, fact) in samples::all() {
        let Some(line) = line(&fact) else {
            continue;
        };
        let json = serde_json::to_string(&line).unwrap();
        let human = human_line(&line);
        write!(text, "== {name}\n{json}\n{human}").unwrap();
    }
    let golden = include_str!("golden/log_lines.txt");
    for (number, (shown, golden)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(shown, golden, "line {}", number + 1);
    }
    assert_eq!(text.len(), golden.len());
}

#[test]
fn a_line_that_is_written_reads_back_as_it_was() {
    for (name, fact) in samples::all() {
        let Some(line) = line(&fact) else {
            continue;
        };
        let json = serde_json::to_string(&line).unwrap();
        let read: LogLine = serde_json::from_str(&json).unwrap();
        assert_eq!(read, line, "{name}");
        assert_ne!(read.event, LogEvent::Unknown, "{name}");
    }
}

#[test]
fn an_outcome_is_shown_under_the_label_that_it_is_counted_under() {
    for (name, fact) in samples::all() {
        let Some(counter) = fact.outcome() else {
            continue;
        };
        let outcome = match line(&fact).map(|line| line.event) {
            Some(LogEvent::Recover(recover)) => recover.outcome,
            Some(LogEvent::GaveUp(gave_up)) => gave_up.outcome,
            other => panic!("{name}: {other:?}"),
        };
        let label = counter.info().label.map(|(_, label)| label);
        let shown = serde_json::to_value(outcome).unwrap();
        assert_eq!(shown.as_str(), label, "{name}");
    }
}

#[test]
fn every_kind_of_fact_has_a_sample() {
    let sampled: BTreeSet<&str> = samples::all()
        .iter()
        .map(|(_, fact)| samples::kind(fact))
        .collect();
    let missing: Vec<_> = samples::KINDS
        .iter()
        .filter(|kind| !sampled.contains(**kind))
        .collect();
    assert!(missing.is_empty(), "no sample of {missing:?}");
}

#[test]
fn only_a_single_beat_and_a_dropped_hook_have_no_line() {
    let without: BTreeSet<&str> = samples::all()
        .iter()
        .filter(|(_, fact)| line(fact).is_none())
        .map(|(_, fact)| samples::kind(fact))
        .collect();
    assert_eq!(without, BTreeSet::from(["Beat", "HookDropped"]));
}
