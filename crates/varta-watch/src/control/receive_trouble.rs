//! What is told of beats that cannot be received: that it began, why, and that it is over. The state of the beat path
//! says what is so now; each change is told once.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::beat_path_state::{BeatPathState, Transport};
use crate::report::log::Log;
use crate::report::messages;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct ReceiveTrouble {
    errors: [Told; 2],
    blocked: Told,
    hanging: u64,
}

/// A level that is 0 while all is well, and since when it is not.
#[derive(Debug, Default)]
struct Told {
    level: u64,
    since: Option<Instant>,
}

/// What has become of a level.
enum Change {
    Began,
    Ended(Duration),
}

impl Told {
    fn change_to(&mut self, level: u64, now: Instant) -> Option<Change> {
        if std::mem::replace(&mut self.level, level) == level {
            return None;
        }
        match level {
            0 => self.since.take().map(|since| Change::Ended(now - since)),
            _ => {
                self.since.get_or_insert(now);
                Some(Change::Began)
            }
        }
    }
}

impl ReceiveTrouble {
    pub(super) fn tell(&mut self, log: &Log, beat_path: &BeatPathState, now: Instant) {
        for (told, transport) in self.errors.iter_mut().zip(Transport::ALL) {
            let error = beat_path.receive_error(transport);
            let errno = error.as_ref().and_then(io::Error::raw_os_error);
            let level = errno.map_or(0, |errno| u64::from(errno.unsigned_abs()));
            match (told.change_to(level, now), error) {
                (Some(Change::Began), Some(error)) => {
                    messages::receiving_fails(log, transport, &error);
                }
                (Some(Change::Ended(after)), _) => messages::receives_again(log, transport, after),
                _ => {}
            }
        }
        match self.blocked.change_to(beat_path.is_blocked().into(), now) {
            Some(Change::Began) => messages::receiving_is_blocked(log),
            Some(Change::Ended(after)) => messages::receives_again(log, Transport::Unix, after),
            None => {}
        }
        let hanging = beat_path.hanging_threads();
        if std::mem::replace(&mut self.hanging, hanging) != hanging {
            messages::descriptors_hang(log, hanging);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_when_it_changes_and_its_end_with_the_whole_time() {
        let mut told = Told::default();
        let start = Instant::now();
        assert!(told.change_to(0, start).is_none());
        assert!(matches!(told.change_to(1, start), Some(Change::Began)));
        assert!(told.change_to(1, start).is_none());
        let later = start + Duration::from_secs(1);
        assert!(matches!(told.change_to(2, later), Some(Change::Began)));
        let end = start + Duration::from_secs(3);
        let ended = told.change_to(0, end);
        assert!(matches!(ended, Some(Change::Ended(after)) if after == Duration::from_secs(3)));
    }
}
