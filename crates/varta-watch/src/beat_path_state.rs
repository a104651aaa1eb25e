//! The state of the beat path for the other threads: its last turn, the latest time of its next one, the number of
//! its agents, and the reason why it cannot receive.
//!
//! Only the beat path writes, all other threads read; no thread waits, and nothing in this module wakes the beat
//! path. A page of metrics reads its values when the page is made, see [`BeatPathState::level`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use varta_core::Gauge;
use varta_core::fact::Transport;

use crate::clock::RawClock;

/// A beat path that is later than this is not merely busy: 200 ms. Twice the lateness that is always a gap.
const OVERDUE_NS: u64 = 200_000_000;

/// Threads that close descriptors which were attached to datagrams: this many may hang before the beat path waits for
/// them. Each takes 64 KiB of address space and 30 KiB of memory.
pub(crate) const DISCARD_THREADS_MAX: usize = 64;

/// The published state of the beat path. Times are nanoseconds of the raw clock.
#[derive(Debug)]
pub(crate) struct BeatPathState {
    raw: RawClock,
    next_turn_ns: AtomicU64,
    last_turn_ns: AtomicU64,
    attention_lag_ns: AtomicU64,
    local_agents: AtomicU64,
    /// By transport; 0 while receiving succeeds.
    receive_errnos: [AtomicU64; Transport::ALL.len()],
    is_blocked: AtomicBool,
    hanging_threads: AtomicU64,
}

impl BeatPathState {
    pub(crate) fn new(raw: RawClock) -> Self {
        Self {
            raw,
            next_turn_ns: AtomicU64::new(0),
            last_turn_ns: AtomicU64::new(0),
            attention_lag_ns: AtomicU64::new(0),
            local_agents: AtomicU64::new(0),
            receive_errnos: Default::default(),
            is_blocked: AtomicBool::new(false),
            hanging_threads: AtomicU64::new(0),
        }
    }

    /// The clock of all times in this state.
    pub(crate) fn raw(&self) -> RawClock {
        self.raw
    }

    /// The beat path announces its next turn for this time or earlier.
    pub(crate) fn set_next_turn(&self, ns: u64) {
        self.next_turn_ns.store(ns, Ordering::Release);
    }

    /// A turn that started then is over. A reader that sees this value sees all effects of the turn.
    pub(crate) fn set_last_turn(&self, ns: u64) {
        self.last_turn_ns.store(ns, Ordering::Release);
    }

    /// How far the attention clock is behind. Written before the announcement that follows a gap.
    pub(crate) fn set_attention_lag(&self, ns: u64) {
        self.attention_lag_ns.store(ns, Ordering::Release);
    }

    /// Slots in use by agents of this host.
    pub(crate) fn set_local_agents(&self, count: u64) {
        self.local_agents.store(count, Ordering::Release);
    }

    /// Receiving fails with this error number, or succeeds: 0. True if that has changed.
    pub(crate) fn set_receive_errno(&self, transport: Transport, errno: u64) -> bool {
        let is_news = self.receive_errno(transport) != errno;
        self.receive_errnos[transport as usize].store(errno, Ordering::Release);
        is_news
    }

    /// A datagram with descriptors delays all others. True if that has changed.
    pub(crate) fn set_blocked(&self, is_blocked: bool) -> bool {
        let is_news = self.is_blocked() != is_blocked;
        self.is_blocked.store(is_blocked, Ordering::Release);
        is_news
    }

    /// This many discarding threads hang. True if that has changed.
    pub(crate) fn set_hanging_threads(&self, count: u64) -> bool {
        let is_news = self.hanging_threads() != count;
        self.hanging_threads.store(count, Ordering::Release);
        is_news
    }

    /// Start of the last turn that is over.
    pub(crate) fn last_turn_ns(&self) -> u64 {
        self.last_turn_ns.load(Ordering::Acquire)
    }

    /// How far the attention clock is behind the raw one.
    pub(crate) fn attention_lag_ns(&self) -> u64 {
        self.attention_lag_ns.load(Ordering::Acquire)
    }

    /// Slots in use by agents of this host.
    pub(crate) fn local_agents(&self) -> u64 {
        self.local_agents.load(Ordering::Acquire)
    }

    /// The error number with which receiving fails; 0 while it succeeds.
    pub(crate) fn receive_errno(&self, transport: Transport) -> u64 {
        self.receive_errnos[transport as usize].load(Ordering::Acquire)
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Acquire)
    }

    pub(crate) fn hanging_threads(&self) -> u64 {
        self.hanging_threads.load(Ordering::Acquire)
    }

    /// The attention clock, computed without the beat path: it runs until the announced next turn, and stands still
    /// while that turn is overdue. No silence counts while nothing is received (law 2).
    pub(crate) fn attention_now_ns(&self) -> u64 {
        // In this order: a reader that sees a new announcement sees the gap before it.
        let attended_ns = self.attended_ns();
        attended_ns.saturating_sub(self.attention_lag_ns())
    }

    /// The last time at which the beat path was on schedule: now, unless its announced turn is overdue.
    pub(crate) fn attended_ns(&self) -> u64 {
        let due_ns = self.next_turn_ns.load(Ordering::Acquire);
        self.raw.now_ns().min(due_ns.saturating_add(OVERDUE_NS))
    }

    /// The value of a gauge of this state; `None` for any other gauge.
    pub(crate) fn level(&self, gauge: Gauge) -> Option<u64> {
        Some(match gauge {
            Gauge::NextTurn => self.next_turn_ns.load(Ordering::Acquire),
            Gauge::LastTurn => self.last_turn_ns(),
            Gauge::AttentionLag => self.attention_lag_ns(),
            Gauge::LocalAgents => self.local_agents(),
            Gauge::ReceiveErrnoUnix => self.receive_errno(Transport::Unix),
            Gauge::ReceiveErrnoUdp => self.receive_errno(Transport::Udp),
            Gauge::ReceiveBlocked => self.is_blocked().into(),
            Gauge::DescriptorThreads => self.hanging_threads(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    #[test]
    fn while_the_beat_path_hangs_nobody_grows_silent() {
        let state = BeatPathState::new(RawClock::started_before(HOUR_NS));
        assert_eq!(state.attention_now_ns(), OVERDUE_NS);
        state.set_attention_lag(OVERDUE_NS / 2);
        assert_eq!(state.attention_now_ns(), OVERDUE_NS / 2);
    }

    #[test]
    fn while_the_beat_path_sleeps_as_it_had_said_silence_grows() {
        let state = BeatPathState::new(RawClock::started_before(HOUR_NS));
        state.set_next_turn(HOUR_NS + 1);
        assert!(state.attention_now_ns() >= HOUR_NS);
    }

    #[test]
    fn a_change_of_receive_trouble_is_news_once() {
        let state = BeatPathState::new(RawClock::start());
        assert!(!state.set_receive_errno(Transport::Udp, 0));
        assert!(state.set_receive_errno(Transport::Udp, 1));
        assert!(!state.set_receive_errno(Transport::Udp, 1));
        assert_eq!(state.receive_errno(Transport::Unix), 0);
        assert_eq!(state.receive_errno(Transport::Udp), 1);
    }
}
