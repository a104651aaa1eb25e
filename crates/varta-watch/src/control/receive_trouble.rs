//! Publishes that beats cannot be received: the start, the cause and the end of it. The state of the beat path holds
//! the current value; each change is published once.

use varta_core::Fact;
use varta_core::fact::Transport;

use crate::beat_path_state::{BeatPathState, DISCARD_THREADS_MAX};

/// The last published values.
#[derive(Debug, Default)]
pub(super) struct ReceiveTrouble {
    errors: [Known; 2],
    blocked: Known,
    hanging: u64,
}

/// A level that is 0 while all is well, with the time since when it is not.
#[derive(Debug, Default)]
struct Known {
    level: u64,
    since_ns: Option<u64>,
}

/// The change of a level.
enum Change {
    Began,
    Ended { after_ns: u64 },
}

impl Known {
    fn change_to(&mut self, level: u64, now_ns: u64) -> Option<Change> {
        if std::mem::replace(&mut self.level, level) == level {
            return None;
        }
        match level {
            0 => self.since_ns.take().map(|since_ns| Change::Ended {
                after_ns: now_ns.saturating_sub(since_ns),
            }),
            _ => {
                self.since_ns.get_or_insert(now_ns);
                Some(Change::Began)
            }
        }
    }
}

impl ReceiveTrouble {
    /// Changes since the last call.
    pub(super) fn changes(&mut self, beat_path: &BeatPathState, now_ns: u64) -> Vec<Fact> {
        let mut changes = Vec::new();
        for (known, transport) in self.errors.iter_mut().zip(Transport::ALL) {
            let errno = beat_path.receive_errno(transport);
            match known.change_to(errno, now_ns) {
                Some(Change::Began) => changes.push(Fact::ReceiveFailed {
                    transport,
                    errno: i32::try_from(errno).unwrap_or_default(),
                }),
                Some(Change::Ended { after_ns }) => {
                    changes.push(restored(transport, after_ns));
                }
                None => {}
            }
        }
        let is_blocked = beat_path.is_blocked().into();
        match self.blocked.change_to(is_blocked, now_ns) {
            Some(Change::Began) => changes.push(Fact::ReceiveBlocked),
            Some(Change::Ended { after_ns }) => changes.push(restored(Transport::Unix, after_ns)),
            None => {}
        }
        let threads = beat_path.hanging_threads();
        if std::mem::replace(&mut self.hanging, threads) != threads {
            changes.push(Fact::DescriptorsHang {
                threads,
                threads_max: DISCARD_THREADS_MAX as u64,
            });
        }
        changes
    }
}

fn restored(transport: Transport, after_ns: u64) -> Fact {
    Fact::ReceiveRestored {
        transport,
        after_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_when_it_changes_and_its_end_with_the_whole_time() {
        let mut known = Known::default();
        assert!(known.change_to(0, 5).is_none());
        assert!(matches!(known.change_to(1, 5), Some(Change::Began)));
        assert!(known.change_to(1, 5).is_none());
        assert!(matches!(known.change_to(2, 6), Some(Change::Began)));
        let ended = known.change_to(0, 8);
        assert!(matches!(ended, Some(Change::Ended { after_ns: 3 })));
    }
}
