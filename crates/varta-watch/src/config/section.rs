//! Tables of the configuration file, read key by key: a missing, misspelt or mistyped value is reported with its
//! position.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::file::Document;
use super::problems::{Origin, Problems, did_you_mean};

/// A table, with its name in messages.
pub(super) struct Section<'a> {
    pub(super) name: String,
    pub(super) table: &'a DeTable<'a>,
    pub(super) document: &'a Document,
    /// Position of the table.
    pub(super) span: Range<usize>,
}

impl<'a> Section<'a> {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether a key has a value that could not be read.
    pub(super) fn means_nothing(&self, key: &str, read: Option<Duration>) -> bool {
        self.has(key) && read.is_none()
    }

    /// The name of the table together with a key.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// Reports a problem with the value of a key, or with its absence.
    pub(super) fn wrong(&self, key: &str, text: impl Into<String>, problems: &mut Problems) {
        problems.add(self.origin(key), &self.path(key), text);
    }

    fn origin(&self, key: &str) -> Origin {
        let span = self.get(key).map(Spanned::span);
        self.document.origin(span.as_ref().unwrap_or(&self.span))
    }

    /// Reports unknown keys.
    pub(super) fn allow_only(&self, known: &[&str], problems: &mut Problems) {
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let origin = self.document.origin(&key.span());
                problems.add_with(origin, &self.path(name), || unknown_key(name, known));
            }
        }
    }

    /// The value of a key, if there is a valid one.
    pub(super) fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a DeValue<'a>) -> Result<T, String>,
        problems: &mut Problems,
    ) -> Option<T> {
        match read(self.get(key)?.get_ref()) {
            Ok(value) => Some(value),
            Err(text) => {
                self.wrong(key, text, problems);
                None
            }
        }
    }

    pub(super) fn duration(
        &self,
        key: &str,
        parse: fn(&str) -> Result<Duration, String>,
        problems: &mut Problems,
    ) -> Option<Duration> {
        let read = |value: &DeValue<'_>| match value {
            DeValue::String(text) => parse(text),
            DeValue::Integer(number) => parse(number.as_str()),
            DeValue::Float(number) => parse(number.as_str()),
            other => Err(format!(
                "a duration such as \"2s\" is wanted here, not {}",
                kind(other)
            )),
        };
        self.read(key, read, problems)
    }

    pub(super) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<i64>,
        problems: &mut Problems,
    ) -> Option<u32> {
        let read = |value: &DeValue<'_>| {
            let DeValue::Integer(number) = value else {
                return Err(format!(
                    "a whole number is wanted here, not {}",
                    kind(value)
                ));
            };
            let number = integer_text(number);
            let fitting = number.parse().ok().filter(|number| range.contains(number));
            let fitting = fitting.and_then(|number| u32::try_from(number).ok());
            fitting.ok_or_else(|| {
                format!(
                    "{number} is not within {} and {}",
                    range.start(),
                    range.end()
                )
            })
        };
        self.read(key, read, problems)
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
        problems: &mut Problems,
    ) -> Option<T> {
        let read = |value: &DeValue<'_>| {
            let word = text(value)?;
            let names = || choices.iter().map(|(name, _)| *name);
            let chosen = choices.iter().find(|(name, _)| *name == word);
            chosen.map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<&str> = names().collect();
                format!("{word:?} is none of {}", names.join(", "))
            })
        };
        self.read(key, read, problems)
    }
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    match did_you_mean(name, known.iter().copied()) {
        hint if hint.is_empty() => format!("unknown key; there are {}", known.join(", ")),
        hint => format!("unknown key{hint}"),
    }
}

/// The text of a value that must be a text.
pub(super) fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!(
            "a text in quotes is wanted here, not {}",
            kind(other)
        )),
    }
}

/// A glob that can match something.
pub(super) fn glob(value: &DeValue<'_>) -> Result<String, String> {
    let pattern = text(value)?;
    if pattern.is_empty() {
        return Err("an empty glob matches nobody; leave it out for everybody".to_owned());
    }
    if let Some(other) = pattern.chars().find(|char| "?[]{}".contains(*char)) {
        return Err(format!(
            "{other:?} has no meaning in a glob here; only * stands for something, any number of characters"
        ));
    }
    if pattern.contains(char::is_control) {
        return Err("there is a control character in it; take it out".to_owned());
    }
    Ok(pattern.to_owned())
}

/// A whole number in decimal, in any notation.
pub(super) fn integer_text(number: &DeInteger<'_>) -> String {
    match i128::from_str_radix(number.as_str(), number.radix()) {
        Ok(value) => value.to_string(),
        // Beyond every range; the caller reports it.
        Err(_) => number.as_str().to_owned(),
    }
}

/// The type of a value, with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A label that is valid in a log line.
pub(super) fn label(value: &DeValue<'_>) -> Result<String, String> {
    let label = text(value)?;
    match label {
        "" => Err("it is empty; write a name, or leave it out".to_owned()),
        label if label.len() > LABEL_BYTES_MAX => Err(format!(
            "it is longer than {LABEL_BYTES_MAX} bytes; write a shorter one"
        )),
        label if label.contains(char::is_control) => {
            Err("there is a control character in it; take it out".to_owned())
        }
        label => Ok(label.to_owned()),
    }
}

/// It is part of every log line about the agent.
const LABEL_BYTES_MAX: usize = 64;

/// A user, by name or number; keeps those with names.
pub(super) fn user(value: &DeValue<'_>, known: &mut BTreeMap<String, u32>) -> Result<u32, String> {
    if let DeValue::Integer(number) = value {
        return integer_text(number)
            .parse()
            .map_err(|_| "a user id is a number from 0 to 4294967295".to_owned());
    }
    let name = text(value)?;
    if let Some(uid) = known.get(name) {
        return Ok(*uid);
    }
    let uid = super::users::user_id(name)?;
    known.insert(name.to_owned(), uid);
    Ok(uid)
}
