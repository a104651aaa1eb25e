//! The reasons why beats cannot be received now, as readable text.

use varta_api::{hanging_threads, os_error, transport_name};
use varta_core::fact::Transport;

use crate::beat_path_state::{BeatPathState, DISCARD_THREADS_MAX};

/// Empty while all is well. Fatal reasons first: while there is one, its transport receives no beats.
pub(crate) fn problems(beat_path: &BeatPathState) -> (Vec<String>, Vec<String>) {
    let errors = Transport::ALL.into_iter().filter_map(|transport| {
        let errno = beat_path.receive_errno(transport);
        let errno = i32::try_from(errno).unwrap_or_default();
        let transport = transport_name(transport);
        (errno != 0).then(|| format!("receiving over {transport} fails: {}", os_error(errno)))
    });
    let blocked = beat_path.is_blocked().then(|| {
        "a datagram with descriptors keeps local beats waiting: all threads that could take it hang".to_owned()
    });
    let hanging = beat_path.hanging_threads();
    let hanging = (hanging != 0).then(|| hanging_threads(hanging, DISCARD_THREADS_MAX as u64));
    (
        errors.chain(blocked).collect(),
        hanging.into_iter().collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::RawClock;

    #[test]
    fn each_problem_is_named_while_it_lasts() {
        let beat_path = BeatPathState::new(RawClock::start());
        assert_eq!(problems(&beat_path), (Vec::new(), Vec::new()));
        beat_path.set_receive_errno(Transport::Unix, 1);
        beat_path.set_blocked(true);
        beat_path.set_hanging_threads(3);
        let (fatal, others) = problems(&beat_path);
        assert!(
            fatal[0].contains("Unix socket") && fatal[0].contains("not permitted"),
            "{fatal:?}"
        );
        assert_eq!((fatal.len(), others.len()), (2, 1));
    }
}
