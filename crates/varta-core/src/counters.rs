//! Every figure that the observer keeps about itself, declared once: metric name, fixed label and help text.
//!
//! A counter only grows and saturates, a gauge holds the value last set, a timing is a distribution of
//! durations. Each has exactly one writing thread (the owner of its module), so writing is a plain load and
//! store; any thread may read at any time. Figures that the slot table contains (the number of live agents,
//! for example) are not kept twice.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{Distribution, Histogram};

/// The exported name of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesInfo {
    /// Metric family, Prometheus naming rules.
    pub name: &'static str,
    /// The one fixed label of this series, if the family has one.
    pub label: Option<(&'static str, &'static str)>,
    /// One sentence for the operator.
    pub help: &'static str,
}

macro_rules! series {
    ($(#[$about:meta])* $what:ident $($name:literal $help:literal {
        $($variant:ident $($key:literal = $value:literal)?),+ $(,)?
    })+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $what {
            $($(#[doc = $help] $variant,)+)+
        }

        impl $what {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$($(Self::$variant),+),+];

            /// Metric name, label and help text.
            pub const fn info(self) -> SeriesInfo {
                match self {
                    $($(Self::$variant => SeriesInfo {
                        name: $name,
                        label: series!(@label $($key, $value)?),
                        help: $help,
                    },)+)+
                }
            }
        }
    };
    (@label) => { None };
    (@label $key:literal, $value:literal) => { Some(($key, $value)) };
}

series! {
    /// Names a counter.
    Counter
    "varta_observer_beats_total" "Beats credited to an agent." { BeatsAccepted }
    "varta_observer_joins_total" "Agents heard for the first time." { Joins }
    "varta_observer_stalls_total" "Silences that reached their threshold." { Stalls }
    "varta_observer_returns_total" "Stalled agents that beat again." { Returns }
    "varta_observer_exits_total" "Agents whose process ended, by how it ended." {
        ExitsLeft "how" = "left",
        ExitsDied "how" = "died",
        ExitsUnknown "how" = "unknown",
    }
    "varta_observer_exit_watch_failed_total" "Agents whose exit is looked for now and then instead of being watched, because no process descriptor was to be had." { ExitWatchFailed }
    "varta_session_restarts_total" "Agents that began a new series of nonces and timestamps under the same process." { SessionRestarts }
    "varta_nonce_wrap_total" "Nonce series that passed the end of the 64-bit range." { NonceWraps }
    "varta_frame_out_of_order_total" "Frames refused because their nonce was old." { OutOfOrder }
    "varta_origin_conflict_total" "Frames refused because a known agent was heard over another kind of transport." { OriginConflicts }
    "varta_tracker_namespace_conflict_total" "Frames refused because a known agent was heard from another pid namespace." { NamespaceConflicts }
    "varta_tracker_capacity_exceeded_total" "Frames of new agents refused because the table was full." { CapacityExceeded }
    "varta_tracker_user_share_exceeded_total" "Frames of new agents refused because their user has as many agents as one user may have (--max-agents-per-user)." { UserShareExceeded }
    "varta_tracker_evicted_total" "Silent agents that gave their slot to a newcomer." { Evictions }
    "varta_tracker_eviction_scan_truncated_total" "Newcomers refused because no slot could be reclaimed." { EvictionScanTruncated }
    "varta_tracker_invariant_violations_total" "Self-checks of the tracker that failed; always 0 in a healthy observer." { InvariantViolations }
    "varta_tracker_pid_index_probe_exhausted_total" "Index insertions that found no place; always 0 in a healthy observer." { ProbeExhausted }
    "varta_decode_errors_total" "Datagrams of the right length that are not a valid frame." {
        DecodeBadMagic "kind" = "bad_magic",
        DecodeBadVersion "kind" = "bad_version",
        DecodeBadCrc "kind" = "bad_crc",
        DecodeBadStatus "kind" = "bad_status",
        DecodeStallOnWire "kind" = "stall_on_wire",
        DecodeBadPid "kind" = "bad_pid",
        DecodeBadTimestamp "kind" = "bad_timestamp",
        DecodeBadNonce "kind" = "bad_nonce",
    }
    "varta_truncated_datagrams_total" "Datagrams of a length that no frame has." { WrongLength }
    "varta_ctrl_truncated_total" "Datagrams refused because descriptors were attached to them (since Linux 6.16 the sender gets EPERM instead, and nothing arrives)." { ControlTruncated }
    "varta_frame_identity_refused_total" "Datagrams refused because the kernel identified no sender, or one that may not join." {
        NoCredentials "reason" = "no_credentials",
        UnseenSender "reason" = "unseen_sender",
        ForeignUser "reason" = "foreign_uid",
        UnverifiedClaim "reason" = "unverified_claim",
        UnprovedSender "reason" = "unproved_sender",
        SenderEnded "reason" = "sender_ended",
        Crowded "reason" = "crowded",
    }
    "varta_frame_namespace_mismatch_total" "Frames refused because their sender lives in another pid namespace and --strict-namespace-check is on." { ForeignNamespace }
    "varta_frame_rejected_pid_above_max_total" "Frames of this host that name a pid beyond its pid_max." { PidAboveMax }
    "varta_rate_limited_total" "Frames refused because too many came: from one agent, from all together, from processes heard for the first time, from those that said goodbye and came back, or over more new sessions than one agent may begin; shed are those of a flood that the kernel was told to drop, estimated from a sample." {
        RateLimitedAgent "reason" = "per_pid",
        RateLimitedGlobal "reason" = "global",
        RateLimitedNewcomers "reason" = "newcomers",
        RateLimitedComebacks "reason" = "comebacks",
        RateLimitedSessions "reason" = "sessions",
        Shed "reason" = "shed",
    }
    "varta_frame_auth_failures_total" "Frames that name another pid than the kernel does." { PidMismatch }
    "varta_frame_decrypt_failures_total" "Datagrams of the length of an envelope that no loaded key opens." { DecryptFailures }
    "varta_secure_replay_refused_total" "Envelopes refused because they were heard before, or because they begin a session with a last frame older than their agent's last one." { ReplayRefused }
    "varta_sender_state_full_total" "Envelopes refused because they open a session and their agent has too many in use, or no more can be remembered." { SenderStateFull }
    "varta_udp_receive_drops_total" "Datagrams that the kernel dropped because the UDP socket's queue was full." { UdpDrops }
    "varta_io_errors_total" "Receive calls that failed." { ReceiveErrors }
    "varta_observer_clock_regression_total" "Clock readings that went backwards." { ClockRegressions }
    "varta_observer_clock_jump_forward_total" "Gaps of more than 5 s in the observer's attention." { ClockJumps }
    "varta_observer_gaps_total" "Times the observer looked later than announced, by more than the smallest tolerance of an agent." { Gaps }
    "varta_observer_gap_seconds_total" "By how much it came later: time that does not count as silence, except within an agent's tolerance." { GapNanoseconds }
    "varta_observer_queue_full_total" "Turns of the beat path that read as many datagrams as the socket's queue holds, so that beats may have been refused." { QueueFull }
    "varta_observer_stalls_put_off_total" "Times a stall was put off because a full queue may have refused the agent's beats." { StallsPutOff }
    "varta_events_dropped_total" "Events that found the ring to the control thread full; stalls and watched exits are never among them." { EventsDropped }
    "varta_export_rows_dropped_total" "Rows the event file could not take." { RowsDropped }
    "varta_prom_auth_failures_total" "Requests over TCP refused because they did not bring the token." { HttpAuthFailures }
    "varta_prom_connections_dropped_total" "Requests and connections that were not served: too many connections (drain), too many requests from one address (rate_limit), a reader that did not read (slow_reader), too many questions, unread answers or followers (busy); ip_table_full counts addresses that were forgotten for others." {
        HttpConnectionsDrained "reason" = "drain",
        HttpRateLimited "reason" = "rate_limit",
        HttpSourceForgotten "reason" = "ip_table_full",
        HttpSlowReaders "reason" = "slow_reader",
        HttpBusy "reason" = "busy",
    }
    "varta_http_events_missed_total" "Events that readers of the live events missed because they read too slowly." { HttpEventsMissed }
    "varta_log_suppressed_total" "Log lines that were left out: the lines before them were not read (queue_full), or the agents of one user caused too many (user_rate), whose number the log reports once a second." {
        LogLinesSuppressed "kind" = "queue_full",
        LogLinesOverRate "kind" = "user_rate",
    }
    "varta_recovery_outcomes_total" "Recovery decisions and how they ended." {
        RecoverySpawned "outcome" = "spawned",
        RecoveryDebounced "outcome" = "debounced",
        RecoveryWaiting "outcome" = "waiting",
        RecoveryUserBudget "outcome" = "user_budget_spent",
        RecoverySpawnFailed "outcome" = "spawn_failed",
        RecoveryPostponed "outcome" = "postponed",
        RecoveryReapedZero "outcome" = "reaped_zero",
        RecoveryReapedNonzero "outcome" = "reaped_nonzero",
        RecoveryKilled "outcome" = "killed",
        RecoveryTargetGone "outcome" = "target_gone",
        RecoveryCrossNamespace "outcome" = "refused_cross_namespace",
        RecoveryUnauthenticated "outcome" = "refused_unauthenticated_transport",
        RecoverySocketModeOnly "outcome" = "refused_socket_mode_only",
        RecoverySignalled "outcome" = "signalled",
        RecoverySignalFailed "outcome" = "signal_failed",
        RecoveryDryRun "outcome" = "dry_run",
        RecoveryRecovered "outcome" = "recovered",
        RecoveryGaveUp "outcome" = "gave_up",
    }
    "varta_recovery_refused_total" "Stalls that recovery may not act on, by reason." {
        RefusedCrossNamespace "reason" = "cross_namespace_agent",
        RefusedUnauthenticated "reason" = "unauthenticated_transport",
        RefusedSocketModeOnly "reason" = "socket_mode_only",
    }
    "varta_recovery_gave_up_total" "Silences about which nothing more is done, by reason: the last step did not help, or the budget is spent." {
        GaveUpSteps "reason" = "steps_exhausted",
        GaveUpBudget "reason" = "budget_spent",
    }
    "varta_recovery_holds_total" "Times fire was held because the host was the suspect, by reason." {
        HoldsMassStall "reason" = "mass_stall",
        HoldsMemory "reason" = "memory_pressure",
        HoldsIo "reason" = "io_pressure",
    }
    "varta_recovery_hooks_total" "Hooks (late, critical, exit, recovered, gave-up) and how they ended." {
        HooksDone "outcome" = "done",
        HooksFailed "outcome" = "failed",
        HooksDropped "outcome" = "dropped",
        HooksWithdrawn "outcome" = "withdrawn",
    }
    "varta_recovery_output_dropped_bytes_total" "Bytes of the output of recovery commands that were not kept." { OutputDropped }
}

series! {
    /// Names a gauge.
    Gauge
    "varta_observer_event_ring_high_water" "Most events that have waited for the control thread at once." { RingHighWater }
    "varta_observer_receive_high_water" "Most datagrams that were read in one turn." { ReceiveHighWater }
    "varta_observer_attention_lag_seconds" "Time since the start during which the observer was not watching." { AttentionLag }
    "varta_observer_real_time" "1 while the beat path runs in real time, 0 if it may not or has too much to do for that." { RealTime }
    "varta_tracker_local_agents" "Slots that agents of this host have." { LocalAgents }
    "varta_observer_receive_errno" "Error number with which receiving over the Unix socket fails, 0 while it succeeds." { ReceiveErrnoUnix }
    "varta_observer_udp_receive_errno" "Error number with which receiving over UDP fails, 0 while it succeeds." { ReceiveErrnoUdp }
    "varta_observer_receive_blocked" "1 while a datagram that brings descriptors keeps local beats waiting, because all threads that could take it hang; else 0." { ReceiveBlocked }
    "varta_observer_descriptor_threads" "Threads that hang letting go of descriptors that were attached to datagrams." { DescriptorThreads }
    "varta_recovery_in_flight" "Recovery commands and hooks that run now." { RecoveryInFlight }
    "varta_recovery_held" "1 while fire is held because the host is the suspect, else 0." { RecoveryHeld }
    "varta_stall_threshold_seconds" "Silence that makes a stall, unless a rule says otherwise." { Threshold }
    "varta_agents_missing" "Agents that were expected by now and are not there." { AgentsMissing }
    "varta_observer_last_turn_seconds" "When the beat path began the last turn that it has ended, since the start; long ago if there was nothing to do." { LastTurn }
    "varta_observer_next_turn_seconds" "By when the beat path has announced to turn again, since the start; +Inf while only input wakes it." { NextTurn }
}

impl Counter {
    /// The value is kept in nanoseconds and exported in seconds.
    pub const fn is_time(self) -> bool {
        matches!(self, Self::GapNanoseconds)
    }
}

impl Gauge {
    /// The value is kept in nanoseconds and exported in seconds.
    pub const fn is_time(self) -> bool {
        matches!(
            self,
            Self::AttentionLag | Self::LastTurn | Self::NextTurn | Self::Threshold
        )
    }
}

series! {
    /// Names a distribution of durations.
    Timing
    "varta_beat_interval_seconds" "Time between two accepted beats of an agent." { BeatInterval }
    "varta_stall_detection_lateness_seconds" "Time from the deadline of an agent to the moment its stall was noticed." { Lateness }
    "varta_observer_work_seconds" "Time of a turn of the beat path without its waiting." { Work }
    "varta_recovery_duration_seconds" "Time from the start of a recovery command to its end." { RecoveryDuration }
}

/// 1 us in nanoseconds, and so on.
const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;

/// From a beat per millisecond to one in ten minutes.
static INTERVAL_BOUNDS_NS: [u64; 14] = [
    MS,
    5 * MS,
    10 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    2 * S,
    5 * S,
    10 * S,
    30 * S,
    60 * S,
    600 * S,
];

/// From the resolution of the timer to clearly late.
static LATENESS_BOUNDS_NS: [u64; 10] = [
    50 * US,
    100 * US,
    250 * US,
    500 * US,
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    100 * MS,
    S,
];

/// From one beat to a full budget, and far beyond.
static WORK_BOUNDS_NS: [u64; 10] = [
    5 * US,
    10 * US,
    25 * US,
    50 * US,
    100 * US,
    500 * US,
    MS,
    5 * MS,
    20 * MS,
    100 * MS,
];

/// From a signal to a slow restart.
static RECOVERY_BOUNDS_NS: [u64; 9] = [
    MS,
    5 * MS,
    10 * MS,
    50 * MS,
    100 * MS,
    500 * MS,
    S,
    10 * S,
    60 * S,
];

impl Timing {
    /// Upper bounds of the buckets, nanoseconds, inclusive, ascending.
    pub const fn bounds_ns(self) -> &'static [u64] {
        match self {
            Self::BeatInterval => &INTERVAL_BOUNDS_NS,
            Self::Lateness => &LATENESS_BOUNDS_NS,
            Self::Work => &WORK_BOUNDS_NS,
            Self::RecoveryDuration => &RECOVERY_BOUNDS_NS,
        }
    }
}

/// The values of all counters, gauges and timings.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    timings: [Histogram; Timing::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: std::array::from_fn(|_| AtomicU64::new(0)),
            gauges: std::array::from_fn(|_| AtomicU64::new(0)),
            timings: std::array::from_fn(|i| Histogram::new(Timing::ALL[i].bounds_ns())),
        }
    }
}

impl Counters {
    /// All counters that are not zero, with their values.
    pub fn nonzero(&self) -> Vec<(Counter, u64)> {
        let counters = Counter::ALL.iter();
        let values = counters.map(|counter| (*counter, self.get(*counter)));
        values.filter(|(_, value)| *value > 0).collect()
    }

    /// Adds `amount`; only the counter's one writing thread may call this.
    pub fn add(&self, counter: Counter, amount: u64) {
        if amount == 0 {
            return;
        }
        let value = &self.values[counter as usize];
        value.store(
            value.load(Ordering::Relaxed).saturating_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Adds one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// The total so far.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// Sets a gauge; only its one writing thread may call this. A thread that reads this value reads from other
    /// gauges the values set before it, or later ones.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Ordering::Release);
    }

    /// Raises a high-water mark.
    pub fn raise(&self, gauge: Gauge, value: u64) {
        if value > self.level(gauge) {
            self.set(gauge, value);
        }
    }

    /// The value of a gauge; nanoseconds where it is a time.
    pub fn level(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Ordering::Acquire)
    }

    /// Records a duration; only the timing's one writing thread may call this.
    pub fn observe(&self, timing: Timing, duration_ns: u64) {
        self.timings[timing as usize].observe(duration_ns);
    }

    /// A distribution as of one moment.
    pub fn distribution(&self, timing: Timing) -> Distribution {
        self.timings[timing as usize].read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_saturate_instead_of_wrapping() {
        let counters = Counters::default();
        counters.add(Counter::Stalls, u64::MAX);
        counters.count(Counter::Stalls);
        assert_eq!(counters.get(Counter::Stalls), u64::MAX);
    }

    fn all() -> Vec<SeriesInfo> {
        let counters = Counter::ALL.iter().map(|counter| counter.info());
        let gauges = Gauge::ALL.iter().map(|gauge| gauge.info());
        let timings = Timing::ALL.iter().map(|timing| timing.info());
        counters.chain(gauges).chain(timings).collect()
    }

    #[test]
    fn no_two_are_the_same_series() {
        let all = all();
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert!((a.name, a.label) != (b.name, b.label), "{a:?}");
                if a.name == b.name {
                    assert!(a.label.is_some() && b.label.is_some(), "{a:?}");
                }
            }
        }
    }

    #[test]
    fn names_follow_the_rules_of_the_exposition_format() {
        for info in all() {
            assert!(info.name.starts_with("varta_"), "{info:?}");
            assert!(info.help.ends_with('.'), "{info:?}");
        }
        let is_total = |info: SeriesInfo| info.name.ends_with("_total");
        assert!(Counter::ALL.iter().all(|counter| is_total(counter.info())));
        assert!(!Gauge::ALL.iter().any(|gauge| is_total(gauge.info())));
        let is_time = |info: SeriesInfo| info.name.ends_with("_seconds");
        assert!(Timing::ALL.iter().all(|timing| is_time(timing.info())));
        for gauge in Gauge::ALL {
            assert_eq!(gauge.is_time(), is_time(gauge.info()), "{gauge:?}");
        }
        for counter in Counter::ALL {
            let is_time = counter.info().name.ends_with("_seconds_total");
            assert_eq!(counter.is_time(), is_time, "{counter:?}");
        }
    }

    #[test]
    fn a_high_water_mark_only_rises() {
        let counters = Counters::default();
        for value in [3, 7, 5] {
            counters.raise(Gauge::RingHighWater, value);
        }
        assert_eq!(counters.level(Gauge::RingHighWater), 7);
    }

    #[test]
    fn bounds_ascend_and_fit() {
        for timing in Timing::ALL {
            let bounds_ns = timing.bounds_ns();
            assert!(bounds_ns.is_sorted() && bounds_ns.len() <= crate::histogram::BOUNDS_MAX);
        }
    }
}
