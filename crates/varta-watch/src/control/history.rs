//! What has happened lately: the last log lines, numbered, for whoever asks and for whoever listens.
//!
//! Each is written down once, in the forms it is told in; readers share the bytes. A listener that does not
//! keep up loses lines and is told how many; nobody waits for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use tokio::sync::watch;

use crate::api::LogLine;
use crate::api::v1::EventView;

/// Events that are remembered. With paths of ordinary length about 2 MiB, with the longest ones that are kept
/// about 10 MiB.
const REMEMBERED_MAX: usize = 4096;

/// Bytes of a path that are remembered; the log has all of them. Strangers choose how long their paths are.
const PATH_BYTES_MAX: usize = 512;

/// An event in the forms it is told in.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) id: u64,
    /// An [`EventView`] as JSON.
    pub(crate) json: Bytes,
    /// The same as a server-sent event.
    pub(crate) message: Bytes,
}

/// Some events, oldest first.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) events: Vec<Told>,
    /// How many before them are forgotten.
    pub(crate) missed: u64,
}

/// The last events.
#[derive(Debug)]
pub(crate) struct History {
    recent: Mutex<VecDeque<Told>>,
    /// The number of the last event; 0 before the first.
    last_id: watch::Sender<u64>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            last_id: watch::Sender::new(0),
        }
    }
}

impl Told {
    fn new(id: u64, mut line: LogLine) -> Self {
        let fields = &mut line.fields;
        let exe = fields.exe.take();
        fields.exe = exe.map(|path| cut(path.to_string_lossy().into_owned()).into());
        fields.cgroup = fields.cgroup.take().map(cut);
        fields.unit = fields.unit.take().map(cut);
        fields.user_unit = fields.user_unit.take().map(cut);
        let head = format!("id: {}-{id}\ndata: ", line.session_id);
        let json = serde_json::to_string(&EventView { id, line }).unwrap_or_default();
        let message = Bytes::from(format!("{head}{json}\n\n"));
        Self {
            id,
            json: message.slice(head.len()..head.len() + json.len()),
            message,
        }
    }
}

/// The first part of a long path.
fn cut(mut path: String) -> String {
    if path.len() > PATH_BYTES_MAX {
        let boundary = (0..=PATH_BYTES_MAX).rfind(|at| path.is_char_boundary(*at));
        path.truncate(boundary.unwrap_or_default());
        path.push('…');
    }
    path
}

impl History {
    /// Takes note of a line.
    pub(crate) fn add(&self, line: LogLine) {
        let mut recent = self.locked();
        let id = self.last_id() + 1;
        if recent.len() == REMEMBERED_MAX {
            recent.pop_front();
        }
        recent.push_back(Told::new(id, line));
        // In the order of their numbers, so within the lock.
        self.last_id.send_replace(id);
    }

    /// Up to `limit` events with a higher number than `after`, oldest first, and how many of those between
    /// are forgotten.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Page {
        let recent = self.locked();
        let next_id = after.saturating_add(1);
        let first_id = recent.front().map_or(next_id, |event| event.id);
        // Their numbers have no gaps.
        let known = usize::try_from(next_id.saturating_sub(first_id)).unwrap_or(usize::MAX);
        Page {
            events: recent.iter().skip(known).take(limit).cloned().collect(),
            missed: first_id.saturating_sub(next_id),
        }
    }

    /// Tells whenever there is a new event.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.last_id.subscribe()
    }

    /// The number of the last event; 0 before the first.
    pub(crate) fn last_id(&self) -> u64 {
        *self.last_id.borrow()
    }

    /// Nobody panics while holding it.
    fn locked(&self) -> MutexGuard<'_, VecDeque<Told>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Fields, Level, LogEvent};

    fn line() -> LogLine {
        LogLine {
            ts_ns: 0,
            session_id: "run".to_owned(),
            level: Level::Info,
            event: LogEvent::Notice,
            msg: String::new(),
            fields: Fields::default(),
        }
    }

    fn ids(page: &Page) -> Vec<u64> {
        page.events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn events_are_numbered_from_one_and_come_in_order() {
        let history = History::default();
        assert_eq!(history.after(0, 10).missed, 0);
        (0..3).for_each(|_| history.add(line()));
        assert_eq!(ids(&history.after(0, 10)), [1, 2, 3]);
        assert_eq!(ids(&history.after(1, 1)), [2]);
        for after in [3, 4, u64::MAX] {
            assert_eq!(ids(&history.after(after, 10)), [0; 0]);
        }
        assert_eq!(history.last_id(), 3);
    }

    #[test]
    fn who_asks_too_late_is_told_how_many_are_forgotten() {
        let history = History::default();
        (0..REMEMBERED_MAX + 10).for_each(|_| history.add(line()));
        let page = history.after(4, usize::MAX);
        assert_eq!((page.missed, page.events.len()), (6, REMEMBERED_MAX));
        assert_eq!(history.after(10, 1).missed, 0);
    }

    #[test]
    fn who_listens_hears_of_each_new_event() {
        let history = History::default();
        history.add(line());
        let mut news = history.news();
        assert!(!news.has_changed().unwrap());
        history.add(line());
        assert_eq!(*news.borrow_and_update(), 2);
    }

    #[test]
    fn an_event_is_told_in_both_forms_from_the_same_bytes() {
        let history = History::default();
        history.add(line());
        let told = history.after(0, 1).events.remove(0);
        let event: EventView = serde_json::from_slice(&told.json).unwrap();
        assert_eq!(event.line, line());
        let text = std::str::from_utf8(&told.message).unwrap();
        let json = std::str::from_utf8(&told.json).unwrap();
        assert_eq!(text, format!("id: run-1\ndata: {json}\n\n"));
    }

    #[test]
    fn only_the_first_part_of_a_long_path_is_remembered() {
        let history = History::default();
        let mut long = line();
        long.fields.exe = Some("ü".repeat(4000).into());
        long.fields.cgroup = Some("x".repeat(16_000));
        history.add(long);
        let told = history.after(0, 1).events.remove(0);
        assert!(told.message.len() < 3 * PATH_BYTES_MAX);
        let event: EventView = serde_json::from_slice(&told.json).unwrap();
        let exe = event.line.fields.exe.unwrap();
        assert_eq!(exe, std::path::PathBuf::from("ü".repeat(256) + "…"));
    }
}
