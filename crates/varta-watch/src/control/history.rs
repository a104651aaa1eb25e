//! What has happened lately: the last log lines, numbered, for whoever asks and for whoever listens.
//!
//! A listener that does not keep up loses lines and is told how many; nobody waits for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::api::LogLine;
use crate::api::v1::{EventView, EventsPage};

/// Events that are remembered: about 2 MiB.
const REMEMBERED_MAX: usize = 4096;

/// Events that wait for one listener at most.
const WAITING_MAX: usize = 1024;

/// The last events.
#[derive(Debug)]
pub(crate) struct History {
    recent: Mutex<Recent>,
    listeners: broadcast::Sender<EventView>,
}

#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<EventView>,
    last_id: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            listeners: broadcast::Sender::new(WAITING_MAX),
        }
    }
}

impl History {
    /// Takes note of a line.
    pub(crate) fn add(&self, line: LogLine) {
        let mut recent = self.locked();
        recent.last_id += 1;
        let event = EventView {
            id: recent.last_id,
            line,
        };
        if recent.events.len() == REMEMBERED_MAX {
            recent.events.pop_front();
        }
        recent.events.push_back(event.clone());
        // In the order of their numbers, so within the lock. Nobody may be listening.
        let _ = self.listeners.send(event);
    }

    /// Up to `limit` events with a higher number than `after`, oldest first, and how many of those between
    /// are forgotten.
    pub(crate) fn after(&self, after: u64, limit: usize) -> EventsPage {
        Self::page(&self.locked(), after, limit)
    }

    /// What is remembered after `after`, and everything from then on.
    pub(crate) fn follow(&self, after: u64) -> (EventsPage, broadcast::Receiver<EventView>) {
        let recent = self.locked();
        let page = Self::page(&recent, after, usize::MAX);
        (page, self.listeners.subscribe())
    }

    /// The number of the last event; 0 before the first.
    pub(crate) fn last_id(&self) -> u64 {
        self.locked().last_id
    }

    fn page(recent: &Recent, after: u64, limit: usize) -> EventsPage {
        let first_id = recent
            .events
            .front()
            .map_or(recent.last_id + 1, |event| event.id);
        let newer = recent.events.iter().filter(|event| event.id > after);
        EventsPage {
            events: newer.take(limit).cloned().collect(),
            missed: first_id.saturating_sub(after.saturating_add(1)),
        }
    }

    /// Nobody panics while holding it.
    fn locked(&self) -> MutexGuard<'_, Recent> {
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
            session_id: String::new(),
            level: Level::Info,
            event: LogEvent::Notice,
            msg: String::new(),
            fields: Fields::default(),
        }
    }

    fn ids(page: &EventsPage) -> Vec<u64> {
        page.events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn events_are_numbered_from_one_and_come_in_order() {
        let history = History::default();
        assert_eq!(history.after(0, 10).missed, 0);
        (0..3).for_each(|_| history.add(line()));
        assert_eq!(ids(&history.after(0, 10)), [1, 2, 3]);
        assert_eq!(ids(&history.after(1, 1)), [2]);
        assert_eq!(ids(&history.after(3, 10)), [0; 0]);
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
    fn a_follower_gets_what_was_and_what_comes_without_a_gap() {
        let history = History::default();
        history.add(line());
        let (page, mut receiver) = history.follow(0);
        history.add(line());
        assert_eq!(ids(&page), [1]);
        assert_eq!(receiver.try_recv().unwrap().id, 2);
        assert!(receiver.try_recv().is_err());
    }
}
