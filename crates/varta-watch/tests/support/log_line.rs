//! A line of the log in the way any program reads it: JSON keys and values, no type of the observer.

use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct LogLine {
    pub(crate) ts_ns: u64,
    pub(crate) session_id: String,
    pub(crate) level: String,
    pub(crate) event: String,
    pub(crate) msg: String,
    /// The keys that only some lines have.
    #[serde(flatten)]
    pub(crate) keys: Map<String, Value>,
}

/// A line with its number, as `/api/v1/events` has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Event {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) line: LogLine,
}

impl LogLine {
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A text; `None` if the line has no such key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        let value = self.keys.get(key)?;
        Some(
            value
                .as_str()
                .unwrap_or_else(|| panic!("{key} is no text: {self:?}")),
        )
    }

    /// A whole number; `None` if the line has no such key.
    pub(crate) fn number<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        let value = self.keys.get(key)?;
        let number = value.as_u64().and_then(|number| T::try_from(number).ok());
        Some(number.unwrap_or_else(|| panic!("{key} is no such number: {self:?}")))
    }

    /// Milliseconds; `None` if the line has no such key.
    pub(crate) fn ms(&self, key: &str) -> Option<f64> {
        let value = self.keys.get(key)?;
        Some(
            value
                .as_f64()
                .unwrap_or_else(|| panic!("{key} is no number: {self:?}")),
        )
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.number("pid")
    }
}
