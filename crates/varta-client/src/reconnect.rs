//! When a handle replaces its connection by a new one.
//!
//! Only decides: no socket, no clock, no randomness. Times are the timestamps of the handle, in nanoseconds.
//! A new connection can help when no observer is at the other end; it cannot help a full queue, which never
//! causes a reconnect.

use crate::{BeatOutcome, DropReason};

/// Delay after the first attempt. Short, because an observer usually restarts faster.
const FIRST_DELAY_NS: u64 = 50_000_000;

/// Longest delay between attempts, and so the longest time until beats arrive after the observer is back.
const LONGEST_DELAY_NS: u64 = 2_000_000_000;

/// The reconnect rule of a handle, and its state.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reconnect {
    /// Never reconnects by itself.
    Off,
    /// Reconnects on each drop after `run` drops in a row (client spec 4.2).
    AfterDrops { threshold: u32, run: u32 },
    /// Reconnects on the first drop at once, then after growing delays until a beat is sent.
    BackOff { delay_ns: u64, not_before_ns: u64 },
}

impl Reconnect {
    /// The rule of a new handle.
    pub(crate) const BACK_OFF: Self = Self::BackOff {
        delay_ns: 0,
        not_before_ns: 0,
    };

    /// The rule for `set_reconnect_after(threshold)`: 0 is off.
    pub(crate) fn after_drops(threshold: u32) -> Self {
        match threshold {
            0 => Self::Off,
            _ => Self::AfterDrops { threshold, run: 0 },
        }
    }

    /// Records a drop at `now_ns` and returns whether to reconnect now.
    pub(crate) fn is_due(&mut self, reason: DropReason, now_ns: u64) -> bool {
        if !matches!(reason, DropReason::NoObserver | DropReason::PeerGone) {
            return false;
        }
        match self {
            Self::Off => false,
            Self::AfterDrops { threshold, run } => {
                *run = run.saturating_add(1);
                *run >= *threshold
            }
            Self::BackOff { not_before_ns, .. } if now_ns < *not_before_ns => false,
            Self::BackOff {
                delay_ns,
                not_before_ns,
            } => {
                *delay_ns = (*delay_ns * 2).clamp(FIRST_DELAY_NS, LONGEST_DELAY_NS);
                *not_before_ns = now_ns.saturating_add(shortened(*delay_ns, now_ns));
                true
            }
        }
    }

    /// Records the outcome of a beat. A failure ends a run of drops, but is no sign of an observer and so
    /// does not end a back-off.
    pub(crate) fn settle(&mut self, outcome: BeatOutcome) {
        match (self, outcome) {
            (Self::Off, _)
            | (_, BeatOutcome::Dropped(_))
            | (Self::BackOff { .. }, BeatOutcome::Failed(_)) => {}
            (Self::AfterDrops { run, .. }, _) => *run = 0,
            (back_off, BeatOutcome::Sent) => *back_off = Self::BACK_OFF,
        }
    }

    /// Resets the state but keeps the rule, for a process that was just forked.
    pub(crate) fn restart(&mut self) {
        *self = match self {
            Self::Off => Self::Off,
            Self::AfterDrops { threshold, .. } => Self::after_drops(*threshold),
            Self::BackOff { .. } => Self::BACK_OFF,
        };
    }
}

/// `delay_ns` less up to a quarter, so that agents that lost their observer at the same time do not all
/// reconnect at the same time. The low digits of each agent's own time are random enough for that.
fn shortened(delay_ns: u64, now_ns: u64) -> u64 {
    let fraction_32_bits = now_ns.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    delay_ns - ((delay_ns / 4 * fraction_32_bits) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BeatError;

    const MS: u64 = 1_000_000;
    const FAILED: BeatOutcome = BeatOutcome::Failed(BeatError {
        errno: 13,
        kind: std::io::ErrorKind::PermissionDenied,
    });

    /// The times of the attempts, in ms, of a handle that beats every ms and never succeeds.
    fn attempts_ms(rule: &mut Reconnect, until_ms: u64) -> Vec<u64> {
        (0..until_ms)
            .filter(|ms| rule.is_due(DropReason::NoObserver, ms * MS))
            .collect()
    }

    #[test]
    fn the_first_drop_is_answered_at_once() {
        let mut rule = Reconnect::BACK_OFF;
        assert!(rule.is_due(DropReason::PeerGone, 17));
    }

    #[test]
    fn delays_double_from_50_ms_to_2_s_less_a_quarter_at_most() {
        let mut rule = Reconnect::BACK_OFF;
        let attempts = attempts_ms(&mut rule, 20_000);
        let gaps: Vec<u64> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (position, gap) in gaps.iter().enumerate() {
            let full = (50 << position.min(10)).min(2000);
            // Beats come once per ms, so an attempt is up to 1 ms late.
            assert!((full * 3 / 4..=full + 1).contains(gap), "{gaps:?}");
        }
        assert!(gaps.len() > 10, "{gaps:?}");
    }

    #[test]
    fn agents_that_started_apart_retry_apart() {
        let wait = |now_ns| shortened(LONGEST_DELAY_NS, now_ns);
        let waits: std::collections::BTreeSet<u64> = (0..100).map(wait).collect();
        assert!(waits.len() > 90);
    }

    #[test]
    fn a_full_queue_or_disk_never_reconnects() {
        for mut rule in [Reconnect::BACK_OFF, Reconnect::after_drops(1)] {
            assert!(!rule.is_due(DropReason::KernelQueueFull, 0));
            assert!(!rule.is_due(DropReason::StorageFull, 0));
        }
    }

    #[test]
    fn a_beat_that_goes_out_ends_the_back_off() {
        let mut rule = Reconnect::BACK_OFF;
        attempts_ms(&mut rule, 1000);
        rule.settle(BeatOutcome::Sent);
        assert!(rule.is_due(DropReason::NoObserver, 1000 * MS));
    }

    #[test]
    fn a_failure_does_not_end_the_back_off() {
        let mut rule = Reconnect::BACK_OFF;
        attempts_ms(&mut rule, 1000);
        rule.settle(FAILED);
        assert!(!rule.is_due(DropReason::NoObserver, 1000 * MS));
    }

    #[test]
    fn zero_turns_it_off() {
        assert!(attempts_ms(&mut Reconnect::after_drops(0), 5000).is_empty());
    }

    #[test]
    fn the_counted_rule_starts_at_its_threshold_and_goes_on_with_every_drop() {
        assert_eq!(attempts_ms(&mut Reconnect::after_drops(3), 6), [2, 3, 4, 5]);
    }

    #[test]
    fn sent_and_failed_end_a_run_of_drops_but_a_full_queue_does_not() {
        let due_after = |outcome| {
            let mut rule = Reconnect::after_drops(2);
            assert!(!rule.is_due(DropReason::NoObserver, 0));
            rule.settle(outcome);
            rule.is_due(DropReason::NoObserver, 0)
        };
        assert!(!due_after(BeatOutcome::Sent));
        assert!(!due_after(FAILED));
        assert!(due_after(BeatOutcome::Dropped(DropReason::KernelQueueFull)));
    }

    #[test]
    fn a_restart_keeps_the_rule_and_forgets_the_past() {
        let mut counted = Reconnect::after_drops(2);
        let mut timed = Reconnect::BACK_OFF;
        attempts_ms(&mut counted, 10);
        attempts_ms(&mut timed, 10);

        counted.restart();
        timed.restart();

        assert_eq!(counted, Reconnect::after_drops(2));
        assert_eq!(timed, Reconnect::BACK_OFF);
    }
}
