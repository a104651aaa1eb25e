//! Every counter of the observer, declared once: its metric name, fixed label and help text.
//!
//! A counter only grows and saturates. Each has exactly one writing thread (the one that owns the
//! room it belongs to), so counting is a plain load and store; any thread may read at any time.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a counter is called where it is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterInfo {
    /// Metric family, Prometheus naming rules.
    pub name: &'static str,
    /// The one fixed label of this series, if the family has one.
    pub label: Option<(&'static str, &'static str)>,
    /// One sentence for the operator.
    pub help: &'static str,
}

macro_rules! counters {
    ($($name:literal $help:literal {
        $($variant:ident $($key:literal = $value:literal)?),+ $(,)?
    })+) => {
        /// Names a counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[doc = $help] $variant,)+)+
        }

        impl Counter {
            /// All counters, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$($(Self::$variant),+),+];

            /// Metric name, label and help text.
            pub const fn info(self) -> CounterInfo {
                match self {
                    $($(Self::$variant => CounterInfo {
                        name: $name,
                        label: counters!(@label $($key, $value)?),
                        help: $help,
                    },)+)+
                }
            }
        }
    };
    (@label) => { None };
    (@label $key:literal, $value:literal) => { Some(($key, $value)) };
}

counters! {
    "varta_observer_beats_total" "Beats credited to an agent." { BeatsAccepted }
    "varta_observer_joins_total" "Agents heard for the first time." { Joins }
    "varta_observer_stalls_total" "Silences that reached their threshold." { Stalls }
    "varta_observer_returns_total" "Stalled agents that spoke again." { Returns }
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
    "varta_ctrl_truncated_total" "Datagrams refused because their control data was cut short." { ControlTruncated }
    "varta_frame_identity_refused_total" "Datagrams refused because the kernel vouched for nobody, or for somebody who may not speak." {
        NoCredentials "reason" = "no_credentials",
        UnseenSender "reason" = "unseen_sender",
        ForeignUser "reason" = "foreign_uid",
        UnverifiedClaim "reason" = "unverified_claim",
        UnprovedSender "reason" = "unproved_sender",
        Crowded "reason" = "crowded",
    }
    "varta_frame_namespace_mismatch_total" "Frames refused because their sender lives in another pid namespace and --strict-namespace-check is on." { ForeignNamespace }
    "varta_frame_rejected_pid_above_max_total" "Frames of this host that name a pid beyond its pid_max." { PidAboveMax }
    "varta_rate_limited_total" "Frames refused because too many came: from one agent, from all together, from processes heard for the first time, or from those that said goodbye and came back; shed are those of a flood that the kernel was told to drop, estimated from a sample." {
        RateLimitedAgent "reason" = "per_pid",
        RateLimitedGlobal "reason" = "global",
        RateLimitedNewcomers "reason" = "newcomers",
        RateLimitedComebacks "reason" = "comebacks",
        Shed "reason" = "shed",
    }
    "varta_frame_auth_failures_total" "Frames that name another pid than the kernel does." { PidMismatch }
    "varta_frame_decrypt_failures_total" "Datagrams of the length of an envelope that no loaded key opens." { DecryptFailures }
    "varta_secure_replay_refused_total" "Envelopes refused because they were heard before, belong to a session that is over, or begin one with old words." { ReplayRefused }
    "varta_sender_state_full_total" "Envelopes of new sessions refused because no more sessions can be remembered." { SenderStateFull }
    "varta_udp_receive_drops_total" "Datagrams that the kernel dropped because the UDP socket's queue was full." { UdpDrops }
    "varta_descriptors_closed_total" "Descriptors that came attached to datagrams and were closed." { DescriptorsClosed }
    "varta_io_errors_total" "Receive calls that failed." { ReceiveErrors }
    "varta_observer_clock_regression_total" "Clock readings that went backwards." { ClockRegressions }
    "varta_observer_clock_jump_forward_total" "Gaps of more than 5 s in the observer's attention." { ClockJumps }
    "varta_observer_gaps_total" "Times the observer came later than it had promised; counted against nobody." { Gaps }
    "varta_observer_gap_nanoseconds_total" "Time that counts against nobody because the observer was not watching." { GapNanoseconds }
    "varta_observer_doubt_nanoseconds_total" "Time that counts a sixteenth because more was read than the kernel queues, so beats may have been refused unheard." { DoubtNanoseconds }
    "varta_events_dropped_total" "Events that found the ring to the control thread full; stalls and watched exits are never among them." { EventsDropped }
    "varta_export_rows_dropped_total" "Rows the event file could not take." { RowsDropped }
    "varta_recovery_outcomes_total" "Recovery decisions and how they ended." {
        RecoverySpawned "outcome" = "spawned",
        RecoveryDebounced "outcome" = "debounced",
        RecoverySpawnFailed "outcome" = "spawn_failed",
        RecoveryReapedZero "outcome" = "reaped_zero",
        RecoveryReapedNonzero "outcome" = "reaped_nonzero",
        RecoveryKilled "outcome" = "killed",
        RecoveryTargetGone "outcome" = "target_gone",
        RecoveryCrossNamespace "outcome" = "refused_cross_namespace",
        RecoveryUnauthenticated "outcome" = "refused_unauthenticated_transport",
        RecoverySocketModeOnly "outcome" = "refused_socket_mode_only",
    }
    "varta_recovery_refused_total" "Stalls that recovery may not act on, by reason." {
        RefusedCrossNamespace "reason" = "cross_namespace_agent",
        RefusedUnauthenticated "reason" = "unauthenticated_transport",
        RefusedSocketModeOnly "reason" = "socket_mode_only",
    }
}

/// The values of all counters.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counters {
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

    #[test]
    fn no_two_counters_are_the_same_series() {
        for (i, a) in Counter::ALL.iter().enumerate() {
            for b in &Counter::ALL[i + 1..] {
                let (a, b) = (a.info(), b.info());
                assert!((a.name, a.label) != (b.name, b.label), "{a:?}");
                if a.name == b.name {
                    assert!(a.label.is_some() && b.label.is_some(), "{a:?}");
                }
            }
        }
    }

    #[test]
    fn names_follow_the_rules_of_the_exposition_format() {
        for counter in Counter::ALL {
            let info = counter.info();
            assert!(
                info.name.starts_with("varta_") && info.name.ends_with("_total"),
                "{info:?}"
            );
            assert!(info.help.ends_with('.'), "{info:?}");
        }
    }
}
