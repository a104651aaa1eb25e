//! Any sequence of calls keeps the invariants.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::tests::*;
use super::*;
use crate::agent::BeatOrigin;
use crate::beat::Beat;
use crate::counters::Counter;

#[derive(Clone, Debug)]
enum Op {
    Beat {
        pid: u32,
        instance: Option<u64>,
        stream: u16,
        nonce: u64,
    },
    Terminal {
        pid: u32,
        timestamp: u64,
    },
    Remote {
        source: u64,
        pid: u32,
        nonce: u64,
    },
    Drain {
        budget: u32,
        take: bool,
    },
    Retire {
        pid: u32,
    },
    Amend {
        pid: u32,
        threshold: u64,
        late: u64,
    },
    Pause {
        pid: u32,
        for_ns: u64,
    },
    Resume {
        pid: u32,
    },
    Wait {
        ns: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let pid = 2..40_u32;
    prop_oneof![
        6 => (pid.clone(), prop::option::weighted(0.2, 1..3_u64), 0..3_u16, 0..50_u64)
            .prop_map(|(pid, instance, stream, nonce)| Op::Beat { pid, instance, stream, nonce }),
        1 => (pid.clone(), 0..9_u64).prop_map(|(pid, timestamp)| Op::Terminal { pid, timestamp }),
        2 => (0..3_u64, pid.clone(), 0..50_u64)
            .prop_map(|(source, pid, nonce)| Op::Remote { source, pid, nonce }),
        3 => (0..40_u32, prop::bool::weighted(0.9)).prop_map(|(budget, take)| Op::Drain { budget, take }),
        1 => pid.clone().prop_map(|pid| Op::Retire { pid }),
        1 => (pid.clone(), 1..5_u64, 0..5_u64)
            .prop_map(|(pid, threshold, late)| Op::Amend { pid, threshold: threshold * T, late: late * T / 2 }),
        1 => (pid.clone(), 0..30 * T).prop_map(|(pid, for_ns)| Op::Pause { pid, for_ns }),
        1 => pid.prop_map(|pid| Op::Resume { pid }),
        4 => (0..4 * T).prop_map(|ns| Op::Wait { ns }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_sequence_of_calls_keeps_the_invariants(
        balanced in any::<bool>(),
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let policy = if balanced { EvictionPolicy::Balanced } else { EvictionPolicy::Strict };
        let mut tracker = tracker(16, policy);
        let mut now_ns = 0;
        for op in ops {
            match op {
                Op::Beat { pid, instance, stream, nonce } => {
                    let key = AgentKey::Local { pid, instance, stream };
                    tracker.record(&Beat { key, ..beat(pid, nonce) }, now_ns, T);
                }
                Op::Terminal { pid, timestamp } => {
                    tracker.update(terminal(pid, timestamp), now_ns);
                }
                Op::Remote { source, pid, nonce } => {
                    let key = AgentKey::Remote { source, pid };
                    let remote = with_origin(beat(pid, nonce), BeatOrigin::NetworkUnverified);
                    tracker.record(&Beat { key, ..remote }, now_ns, 2 * T);
                }
                Op::Drain { budget, take } => tracker.drain_stalled_slots(now_ns, budget, |silence| {
                    assert!(silence.silence_ns >= silence.slot.late_ns.min(silence.slot.threshold_ns));
                    assert!(now_ns >= silence.slot.paused_until_ns, "told of during a pause");
                    if take { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }),
                Op::Retire { pid } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.retire(agent).is_some());
                    }
                }
                Op::Amend { pid, threshold, late } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.set_deadlines(agent, deadlines(threshold, late), now_ns));
                    }
                }
                Op::Pause { pid, for_ns } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.pause(agent, now_ns + for_ns, now_ns));
                    }
                }
                Op::Resume { pid } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.resume(agent, now_ns));
                    }
                }
                Op::Wait { ns } => now_ns += ns,
            }
            tracker.check_invariants();
        }
        prop_assert_eq!(tracker.counted(Counter::InvariantViolations), 0);
        prop_assert_eq!(tracker.counted(Counter::ProbeExhausted), 0);
    }
}
