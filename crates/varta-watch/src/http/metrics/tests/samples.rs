//! A page of metrics, parsed by the rules of the format.

use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: String,
}

/// Parses a page by the rules of the format.
pub(super) fn samples(page: &str) -> Vec<Sample> {
    let lines = page.split('\n').filter(|line| !line.is_empty());
    lines
        .filter(|line| !line.starts_with('#'))
        .map(sample)
        .collect()
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    while let Some(pair) = rest.strip_prefix(['{', ',']) {
        let (key, value) = pair.split_once("=\"").unwrap();
        let (value, after) = quoted(value);
        assert!(labels.insert(key.to_owned(), value).is_none(), "{line}");
        rest = after;
    }
    let value = rest.trim_start_matches('}').strip_prefix(' ').unwrap();
    assert!(value == "+Inf" || value.parse::<f64>().is_ok(), "{line}");
    Sample {
        name: name.to_owned(),
        labels,
        value: value.to_owned(),
    }
}

/// A value up to its closing quote, and the rest of the line.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().unwrap().1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => panic!("no such escape: {c}"),
            },
            c => value.push(c),
        }
    }
    panic!("no closing quote: {text}")
}

pub(super) fn of<'a>(page: &'a [Sample], name: &str) -> Vec<&'a Sample> {
    page.iter().filter(|sample| sample.name == name).collect()
}

pub(super) fn value(page: &[Sample], name: &str, label: &str) -> String {
    let mut of_label = of(page, name)
        .into_iter()
        .filter(|sample| label.is_empty() || sample.labels.values().any(|value| value == label));
    let value = of_label.next().unwrap().value.clone();
    assert_eq!(of_label.next(), None);
    value
}
