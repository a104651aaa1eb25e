//! The problems of a configuration: all of them, each with its position and the fix.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// No operator fixes more than that at once; a file of random bytes must not fill the screen. Problems beyond this
/// number are only counted.
const SHOWN_MAX: usize = 100;

/// A quotation from the file could be as long as the file. A smaller limit would cut off a long path and the problem
/// with it.
const TEXT_CHARACTERS_MAX: usize = 1000;

/// No valid name is longer, and measuring the distance between names takes time.
const NAME_BYTES_MAX: usize = 64;

/// With more names than this no name is suggested, for the same reason.
const NAMES_MAX: usize = 1000;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(super) path: Arc<Path>,
    /// From 1.
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
}

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Default,
    File(Place),
    Environment,
    Flag,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    origin: Origin,
    /// The setting; empty if it is about the file as a whole.
    key: String,
    text: String,
}

/// All mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// The first ones, at most [`SHOWN_MAX`].
    list: Vec<Problem>,
    /// The number of further problems.
    more: usize,
    /// The origin of the settings that do not have their default.
    origins: BTreeMap<String, Origin>,
    /// Settings with an invalid value: their combination with others is not checked.
    broken: BTreeSet<String>,
    /// Lines that are no TOML: any further problem in them would be a guess.
    unreadable: BTreeSet<usize>,
    /// Warnings: valid settings that may not be intended; the first ones, at most [`SHOWN_MAX`].
    warnings: Vec<Problem>,
}

impl Problems {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// From now on problems with this setting are reported with this origin.
    pub(super) fn set_origin(&mut self, key: &str, origin: Origin) {
        self.origins.insert(key.to_owned(), origin);
    }

    pub(super) fn origin_of(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    pub(super) fn add(&mut self, origin: Origin, key: &str, text: impl Into<String>) {
        self.add_with(origin, key, || text.into());
    }

    /// The same for a text that takes time to make: it is made only if it will be shown.
    pub(super) fn add_with(&mut self, origin: Origin, key: &str, text: impl FnOnce() -> String) {
        if self.is_unreadable(&origin) {
            return;
        }
        if self.is_full() {
            self.more += 1;
            return;
        }
        self.list.push(Problem {
            origin,
            key: shortened(key),
            text: shortened(&text()),
        });
    }

    /// Warns of a setting that works as written, and perhaps not as intended.
    pub(super) fn warn(&mut self, origin: Origin, key: &str, text: String) {
        if self.warnings.len() < SHOWN_MAX {
            self.warnings.push(Problem {
                origin,
                key: key.to_owned(),
                text,
            });
        }
    }

    /// The warnings as lines, in the order of the file.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.iter().map(ToString::to_string).collect()
    }

    /// A line of the file cannot be read. Only the first such problem on a line is reported.
    pub(super) fn add_unreadable(&mut self, origin: Origin, text: impl FnOnce() -> String) {
        let line = origin.line();
        self.add_with(origin, "", text);
        self.unreadable.extend(line);
    }

    /// Whether further problems are only counted. Checks that take time are skipped then.
    pub(super) fn is_full(&self) -> bool {
        self.list.len() == SHOWN_MAX
    }

    /// Whether there are lines that could not be read.
    pub(super) fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// Whether the value at that position is unreliable.
    pub(super) fn is_unreadable(&self, origin: &Origin) -> bool {
        let line = origin.line();
        line.is_some_and(|line| self.unreadable.contains(&line))
    }

    /// A setting was given, but its value is unknown.
    pub(super) fn set_broken(&mut self, key: &str) {
        self.broken.insert(key.to_owned());
    }

    /// The value of a setting is invalid.
    pub(super) fn add_value(&mut self, origin: Origin, key: &str, text: impl Into<String>) {
        self.set_broken(key);
        self.add(origin, key, text);
    }

    /// A setting conflicts with others. Not reported if one of them is invalid by itself.
    pub(super) fn about(&mut self, key: &str, others: &[&str], text: impl Into<String>) {
        let mut involved = others.iter().chain([&key]);
        if !involved.any(|key| self.broken.contains(*key)) {
            self.add(self.origin_of(key), key, text);
        }
    }

    /// The number of problems, including those that are not shown.
    pub(super) fn len(&self) -> usize {
        self.list.len() + self.more
    }

    /// The shown problems as lines, in the order of the file, and the number of further ones.
    pub(super) fn into_lines(mut self) -> Vec<String> {
        let is_full = self.is_full();
        self.list.sort();
        self.list.dedup();
        let mut lines: Vec<String> = self.list.iter().map(ToString::to_string).collect();
        match self.more {
            0 if !is_full => {}
            0 => lines.push("and there may be more".to_owned()),
            more => lines.push(format!("and at least {more} more")),
        }
        lines
    }
}

impl Origin {
    fn line(&self) -> Option<usize> {
        match self {
            Self::File(place) => Some(place.line),
            Self::Default | Self::Environment | Self::Flag => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File(place) => {
                write!(f, "{place}:{}: ", place.column)?;
                if !self.key.is_empty() {
                    write!(f, "{}: ", self.key)?;
                }
            }
            Origin::Environment => write!(f, "varta-watch: {}: ", variable(&self.key))?,
            Origin::Flag | Origin::Default => write!(f, "varta-watch: --{}: ", self.key)?,
        }
        f.write_str(&self.text)
    }
}

/// A text that fits on a screen.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}

/// The environment variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("VARTA_{}", key.replace('-', "_").to_uppercase())
}

/// The known name that is closest to `name`.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let is_short = |name: &str| name.len() <= NAME_BYTES_MAX;
    let known = known.into_iter().take(NAMES_MAX);
    let rated = known
        .filter(|known| is_short(name) && is_short(known))
        .map(|known| (strsim::jaro_winkler(name, known), known));
    let best = rated.max_by(|(a, _), (b, _)| a.total_cmp(b));
    // With the same similarity as the parser of the command line.
    best.filter(|(confidence, _)| *confidence > 0.8)
        .map(|(_, known)| known)
}

/// "; did you mean X?" or nothing.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(known) => format!("; did you mean {known}?"),
        None => String::new(),
    }
}
