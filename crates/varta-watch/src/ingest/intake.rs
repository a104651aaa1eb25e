//! Decides whether a socket is read: a socket that cannot be read is tried again after a pause that grows; a socket
//! whose next datagram another thread takes is read again after that.

use std::io;

use varta_core::fact::Transport;

use crate::beat_path_state::BeatPathState;

/// This many failed calls in a row are no accident.
const FAILURES_MAX: u32 = 3;

/// The first pause after that, 10 ms, and the longest, 1 s; pauses double in between. An operator has read the log by
/// then.
const PAUSE_MIN_NS: u64 = 10_000_000;
const PAUSE_MAX_NS: u64 = 1_000_000_000;

/// Interval of the check whether a datagram that brings descriptors has left the queue, if no notification comes:
/// first 1 ms, then an eighth of the time that has passed, up to 100 ms.
const HANDOVER_PAUSE_MIN_NS: u64 = 1_000_000;
const HANDOVER_PAUSE_MAX_NS: u64 = 100_000_000;

/// A datagram that takes longer than this to leave the queue delays all agents, and so does a socket that cannot be
/// read for that long: 100 ms, a lateness that no agent tolerates.
pub(super) const UNREAD_MAX_NS: u64 = 100_000_000;

/// Whether a socket is read.
#[derive(Debug)]
pub(super) struct Intake {
    transport: Transport,
    /// Calls in a row that have failed.
    failures: u32,
    error: u64,
    /// It is not read until then.
    rests_until_ns: u64,
    /// Since when another thread has been taking the next datagram.
    handed_over_ns: Option<u64>,
    /// Since when it has not been read although it should be.
    closed_ns: Option<u64>,
    /// Input on it wakes the beat path.
    wakes: bool,
}

impl Intake {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            failures: 0,
            error: 0,
            rests_until_ns: 0,
            handed_over_ns: None,
            closed_ns: None,
            wakes: true,
        }
    }

    /// Everything that is queued can be read.
    pub(super) fn is_open(&self) -> bool {
        self.closed_ns.is_none()
    }

    /// It may be read now.
    pub(super) fn may_be_read(&self, now_ns: u64) -> bool {
        self.handed_over_ns.is_none() && self.rests_until_ns <= now_ns
    }

    pub(super) fn has_failed(&mut self, error: &io::Error, now_ns: u64) {
        self.closed_ns.get_or_insert(now_ns);
        self.failures = self.failures.saturating_add(1);
        if let Some(times) = self.failures.checked_sub(FAILURES_MAX) {
            self.error = error
                .raw_os_error()
                .unwrap_or_default()
                .unsigned_abs()
                .into();
            let pause_ns = PAUSE_MIN_NS << times.min(10);
            self.rests_until_ns = now_ns + pause_ns.min(PAUSE_MAX_NS);
        }
    }

    /// It was read. Returns for how many nanoseconds it was not.
    pub(super) fn has_succeeded(&mut self, now_ns: u64) -> u64 {
        let Some(closed_ns) = self.closed_ns.take() else {
            return 0;
        };
        (self.failures, self.error, self.rests_until_ns) = (0, 0, 0);
        now_ns.saturating_sub(closed_ns)
    }

    pub(super) fn hand_over(&mut self, now_ns: u64) {
        self.closed_ns.get_or_insert(now_ns);
        self.handed_over_ns = Some(now_ns);
    }

    /// When it is tried again, if nothing else happens.
    pub(super) fn next_try_ns(&self, now_ns: u64) -> Option<u64> {
        let handover_ns = self.handed_over_ns.map(|since_ns| {
            let pause_ns = now_ns.saturating_sub(since_ns) / 8;
            now_ns + pause_ns.clamp(HANDOVER_PAUSE_MIN_NS, HANDOVER_PAUSE_MAX_NS)
        });
        let rests_until_ns = Some(self.rests_until_ns).filter(|until_ns| *until_ns > now_ns);
        handover_ns.or(rests_until_ns)
    }

    /// Whether its input must wake the beat path from now on, if that has changed.
    pub(super) fn change_wakes(&mut self, now_ns: u64) -> Option<bool> {
        let wakes = self.may_be_read(now_ns);
        let has_changed = std::mem::replace(&mut self.wakes, wakes) != wakes;
        has_changed.then_some(wakes)
    }

    /// Another thread takes the next datagram.
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over_ns.is_some()
    }

    /// For how long another thread has been taking the next datagram.
    pub(super) fn handed_over_for_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.handed_over_ns.unwrap_or(now_ns))
    }

    /// The other thread has finished.
    pub(super) fn take_back(&mut self) {
        self.handed_over_ns = None;
    }

    /// Publishes the error number of its failures. True if that has changed.
    pub(super) fn publish(&self, state: &BeatPathState) -> bool {
        state.set_receive_errno(self.transport, self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn failed(intake: &mut Intake, now_ns: u64) {
        intake.has_failed(&io::Error::from_raw_os_error(1), now_ns);
    }

    #[test]
    fn a_socket_that_fails_once_is_tried_again_at_once_and_one_that_goes_on_failing_rests() {
        let mut intake = Intake::new(Transport::Unix);
        for _ in 1..FAILURES_MAX {
            failed(&mut intake, 5);
            assert!(!intake.is_open() && intake.may_be_read(5));
            assert_eq!((intake.error, intake.next_try_ns(5)), (0, None));
        }
        let mut now_ns = 5;
        for pause_ms in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            failed(&mut intake, now_ns);
            let until_ns = now_ns + pause_ms * MS;
            assert_eq!(intake.next_try_ns(now_ns), Some(until_ns));
            assert!(!intake.may_be_read(until_ns - 1) && intake.may_be_read(until_ns));
            assert_eq!(intake.error, 1);
            now_ns = until_ns;
        }
        assert_eq!(intake.has_succeeded(now_ns), now_ns - 5);
        assert!(intake.is_open() && intake.may_be_read(now_ns));
        assert_eq!((intake.error, intake.next_try_ns(now_ns)), (0, None));
        assert_eq!(intake.has_succeeded(now_ns + 1), 0);
    }

    #[test]
    fn input_does_not_wake_while_it_may_not_be_read() {
        let mut intake = Intake::new(Transport::Unix);
        assert_eq!(intake.change_wakes(5), None);
        intake.hand_over(5);
        assert_eq!(
            (intake.change_wakes(5), intake.change_wakes(6)),
            (Some(false), None)
        );
        assert_eq!(intake.next_try_ns(5), Some(5 + HANDOVER_PAUSE_MIN_NS));
        intake.take_back();
        assert_eq!(
            (intake.change_wakes(7), intake.change_wakes(8)),
            (Some(true), None)
        );
    }
}
