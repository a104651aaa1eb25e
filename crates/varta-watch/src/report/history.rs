//! The recent history: the last log lines, numbered, for requests and for followers.
//!
//! Lines about stalls and about recovery have a reserved share, so agents that come and go cannot displace them. In
//! that case some numbers in between are missing.
//!
//! Each line is rendered once, in both forms in which it is served; readers share the bytes. A follower that does not
//! keep up loses lines and gets their number; nothing waits for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use tokio::sync::watch;

use varta_api::v1::EventView;
use varta_api::{LogEvent, LogLine};

/// Most events that are kept: about 2 MiB with paths of ordinary length, about 10 MiB with the longest ones that are
/// kept.
const REMEMBERED_MAX: usize = 4096;

/// The reserved share of stalls and the events that belong to them, if there have been as many.
const KEPT_MIN: usize = 1024;

/// Of the latest events that a request gets, one part in this many is for stalls and the events that belong to them,
/// if there have been as many.
const LATEST_KEPT_PARTS: usize = 4;

/// Bytes of a path that are kept; the log has all of them. Agents choose the length of their paths.
const PATH_BYTES_MAX: usize = 512;

/// An event in the forms in which it is served.
#[derive(Clone, Debug)]
pub(crate) struct HistoryEntry {
    pub(crate) id: u64,
    /// An [`EventView`] as JSON.
    pub(crate) json: Bytes,
    /// The same as a server-sent event.
    pub(crate) message: Bytes,
}

/// Some events, oldest first.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) events: Vec<HistoryEntry>,
    /// How many events before the last of them are no longer kept.
    pub(crate) missed: u64,
}

/// The kept events, each part oldest first.
#[derive(Debug, Default)]
struct Recent {
    /// Stalls, and the recovery steps for them.
    kept: VecDeque<HistoryEntry>,
    others: VecDeque<HistoryEntry>,
}

/// The last events.
#[derive(Debug)]
pub(crate) struct History {
    recent: Mutex<Recent>,
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

impl HistoryEntry {
    fn new(id: u64, mut line: LogLine) -> Self {
        if let LogEvent::Join(join) = &mut line.event {
            let exe = join.exe.take();
            join.exe = exe.map(|path| cut(path.to_string_lossy().into_owned()).into());
            join.cgroup = join.cgroup.take().map(cut);
            join.unit = join.unit.take().map(cut);
            join.user_unit = join.user_unit.take().map(cut);
        }
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
    /// Adds a line.
    pub(crate) fn add(&self, line: LogLine) {
        let mut recent = self.locked();
        let id = self.last_id() + 1;
        recent.make_room();
        let part = match is_kept(&line.event) {
            true => &mut recent.kept,
            false => &mut recent.others,
        };
        part.push_back(HistoryEntry::new(id, line));
        // Within the lock, to send them in the order of their numbers.
        self.last_id.send_replace(id);
    }

    /// Up to `limit` events with a higher number than `after`, oldest first, and how many events up to the last of
    /// them are no longer kept.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Page {
        let events = self.locked().after(after, limit);
        // Every number below the next one was an event.
        let numbers = events.last().map_or(0, |last| last.id - after);
        Page {
            missed: numbers - events.len() as u64,
            events,
        }
    }

    /// The latest `limit` events, oldest first. A quarter of them is for stalls and the events that belong to them,
    /// so events of other kinds between them may be left out. None counts as missed.
    pub(crate) fn latest(&self, limit: usize) -> Page {
        Page {
            events: self.locked().latest(limit),
            missed: 0,
        }
    }

    /// Notifies of each new event.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.last_id.subscribe()
    }

    /// The number of the last event; 0 before the first.
    pub(crate) fn last_id(&self) -> u64 {
        *self.last_id.borrow()
    }

    /// No holder of the lock panics.
    fn locked(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a line is about a stall or about the recovery from one.
const fn is_kept(event: &LogEvent) -> bool {
    matches!(
        event,
        LogEvent::Stall(_)
            | LogEvent::Return(_)
            | LogEvent::Recover(_)
            | LogEvent::GaveUp(_)
            | LogEvent::Hold(_)
            | LogEvent::Missing(_)
    )
}

impl Recent {
    /// Removes the oldest event if the history is full: one of the reserved share only if there are more of these
    /// than reserved.
    fn make_room(&mut self) {
        if self.kept.len() + self.others.len() < REMEMBERED_MAX {
            return;
        }
        let oldest =
            |part: &VecDeque<HistoryEntry>| part.front().map_or(u64::MAX, |entry| entry.id);
        let is_kept_older = oldest(&self.kept) < oldest(&self.others);
        match is_kept_older && self.kept.len() > KEPT_MIN {
            true => self.kept.pop_front(),
            false => self.others.pop_front(),
        };
    }

    fn latest(&self, limit: usize) -> Vec<HistoryEntry> {
        let reserved = self.kept.len().min(limit / LATEST_KEPT_PARTS);
        let kept = self.kept.iter().rev().take(limit);
        let others = self.others.iter().rev().take(limit - reserved);
        let mut events: Vec<&HistoryEntry> = kept.chain(others).collect();
        events.sort_unstable_by_key(|entry| entry.id);
        let surplus = events.len().saturating_sub(limit);
        events.into_iter().skip(surplus).cloned().collect()
    }

    fn after(&self, after: u64, limit: usize) -> Vec<HistoryEntry> {
        let [mut kept, mut others] = [&self.kept, &self.others].map(|part| {
            let first = part.partition_point(|entry| entry.id <= after);
            part.range(first..).peekable()
        });
        let mut events = Vec::new();
        while events.len() < limit {
            let next = match (kept.peek(), others.peek()) {
                (Some(one), Some(other)) if one.id < other.id => kept.next(),
                (Some(_), None) => kept.next(),
                _ => others.next(),
            };
            let Some(entry) = next else {
                break;
            };
            events.push(entry.clone());
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use varta_core::fact::{Level, ProcessDescription};
    use varta_core::hold::{HoldChange, Scope};
    use varta_core::{Agent, AgentRef, Fact, JoinedFrom, Locality};
    use varta_vlp::Status;

    use super::*;

    fn line_of(fact: &Fact) -> LogLine {
        LogLine::of(fact, 0, "run").unwrap()
    }

    fn line() -> LogLine {
        line_of(&Fact::Notice {
            level: Level::Info,
            text: String::new(),
        })
    }

    /// A line of the kind that has a reserved share.
    fn kept() -> LogLine {
        line_of(&Fact::Hold {
            scope: Scope::All(Locality::Local),
            change: HoldChange::Resumed,
        })
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
    fn the_latest_events_have_a_stall_among_them_however_many_others_came_after_it() {
        let history = History::default();
        assert_eq!(ids(&history.latest(8)), [0; 0]);
        history.add(line());
        history.add(kept());
        history.add(kept());
        (0..100).for_each(|_| history.add(line()));
        let page = history.latest(8);
        assert_eq!(ids(&page), [2, 3, 98, 99, 100, 101, 102, 103]);
        assert_eq!(page.missed, 0);
        assert_eq!(ids(&history.latest(4)), [3, 101, 102, 103]);
        assert_eq!(ids(&history.latest(1)), [103]);
        assert_eq!(history.latest(usize::MAX).events.len(), 103);
        (0..100).for_each(|_| history.add(kept()));
        assert_eq!(ids(&history.latest(4)), [200, 201, 202, 203]);
    }

    #[test]
    fn a_reader_that_asks_too_late_learns_how_many_are_forgotten() {
        let history = History::default();
        (0..REMEMBERED_MAX + 10).for_each(|_| history.add(line()));
        let page = history.after(4, usize::MAX);
        assert_eq!((page.missed, page.events.len()), (6, REMEMBERED_MAX));
        assert_eq!(history.after(10, 1).missed, 0);
    }

    #[test]
    fn stalls_outlast_a_flood_and_their_order_and_the_number_of_what_is_missing_are_right() {
        let history = History::default();
        history.add(line());
        history.add(kept());
        history.add(line());
        history.add(kept());
        (0..3 * REMEMBERED_MAX).for_each(|_| history.add(line()));
        let last_id = history.last_id();
        let first_id = last_id - (REMEMBERED_MAX as u64 - 2) + 1;
        let page = history.after(0, 3);
        assert_eq!(
            (ids(&page), page.missed),
            (vec![2, 4, first_id], first_id - 3)
        );
        // A reader that continues after each event in turn gets all of them once, and the number of missing ones.
        let (mut after, mut got, mut missed) = (0, 0, 0);
        loop {
            let page = history.after(after, 7);
            let Some(last) = page.events.last() else {
                break;
            };
            assert!(ids(&page).is_sorted());
            after = last.id;
            got += page.events.len() as u64;
            missed += page.missed;
        }
        assert_eq!((got, got + missed), (REMEMBERED_MAX as u64, last_id));
    }

    #[test]
    fn stalls_without_end_take_all_there_is_and_give_back_all_but_their_share() {
        let history = History::default();
        let parts = || {
            let recent = history.locked();
            (recent.kept.len(), recent.others.len())
        };
        (0..2 * REMEMBERED_MAX).for_each(|_| history.add(kept()));
        assert_eq!(parts(), (REMEMBERED_MAX, 0));
        (0..2 * REMEMBERED_MAX).for_each(|_| history.add(line()));
        assert_eq!(parts(), (KEPT_MIN, REMEMBERED_MAX - KEPT_MIN));
        history.add(kept());
        assert_eq!(parts(), (KEPT_MIN + 1, REMEMBERED_MAX - KEPT_MIN - 1));
        history.add(line());
        assert_eq!(parts(), (KEPT_MIN, REMEMBERED_MAX - KEPT_MIN));
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
    fn both_forms_of_an_event_are_the_same_bytes() {
        let history = History::default();
        history.add(line());
        let entry = history.after(0, 1).events.remove(0);
        let event: EventView = serde_json::from_slice(&entry.json).unwrap();
        assert_eq!(event.line, line());
        let text = std::str::from_utf8(&entry.message).unwrap();
        let json = std::str::from_utf8(&entry.json).unwrap();
        assert_eq!(text, format!("id: run-1\ndata: {json}\n\n"));
    }

    #[test]
    fn only_the_first_part_of_a_long_path_is_remembered() {
        let history = History::default();
        let process = ProcessDescription {
            exe: Some("ü".repeat(4000).into()),
            cgroup: Some("x".repeat(16_000)),
            ..ProcessDescription::default()
        };
        let agent = Agent {
            slot: 0,
            pid: 7,
            instance: 1,
            stream: 0,
        };
        let long = line_of(&Fact::Joined {
            agent: AgentRef {
                agent,
                name: String::new(),
                address: None,
                uid: None,
            },
            from: JoinedFrom::Local {
                uid: 0,
                exit_watched: true,
            },
            process: Some(process),
            status: Status::Ok,
            payload: 0,
            nonce: 1,
        });
        history.add(long);
        let entry = history.after(0, 1).events.remove(0);
        assert!(entry.message.len() < 3 * PATH_BYTES_MAX);
        let event: EventView = serde_json::from_slice(&entry.json).unwrap();
        let LogEvent::Join(join) = event.line.event else {
            panic!("{event:?}");
        };
        let exe = std::path::PathBuf::from("ü".repeat(256) + "…");
        assert_eq!(join.exe, Some(exe));
    }
}
