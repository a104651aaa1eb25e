//! Law 4, the core's part: after construction no call allocates.

use std::ops::ControlFlow;

use varta_core::admission::{
    AttestedFrame, FoundProcess, LocalSenders, ProcessInfo, Room, SenderReply, Verdict,
};
use varta_core::index::PID_LIMIT;
use varta_core::ladder::{ActionEnd, LadderTiming, Ladders, Lineage, Next, StepTiming};
use varta_core::permits::{PermitLimits, UserBudget};
use varta_core::replay::{
    Arrival, Heard, LIVE_NS, ReplayGuard, ReplayOptions, ReplayRefusal, SessionKey,
};
use varta_core::rules::{Known, Selector, first_match};
use varta_core::{
    AgentKey, AllowedUsers, AttentionClock, Beat, BeatOrigin, Credentials, Deadlines,
    EvictionPolicy, LimitOptions, Limits, LocalGate, Locality, Tracker, TrackerOptions,
};
use varta_sys::counting_alloc::{CountingAllocator, allocations_on_this_thread};
use varta_vlp::{Frame, NONCE_TERMINAL, Status};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const THRESHOLD_NS: u64 = 2_000_000_000;

/// The next of a fixed sequence of numbers.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn beat(random: &mut u64) -> Beat {
    let pid = 2 + (next(random) % 400) as u32;
    let nonce = if next(random).is_multiple_of(50) {
        NONCE_TERMINAL
    } else {
        next(random) % 1_000
    };
    let network = next(random).is_multiple_of(4);
    Beat {
        key: if network {
            AgentKey::Remote {
                source: next(random) % 3,
                pid,
            }
        } else {
            AgentKey::Local {
                pid,
                instance: next(random).is_multiple_of(10).then(|| next(random) % 3),
                stream: (next(random) % 3) as u16,
            }
        },
        frame: Frame::new(Status::Critical, pid, next(random), nonce, 0),
        origin: if network {
            BeatOrigin::NetworkUnverified
        } else {
            BeatOrigin::KernelAttested
        },
        ns_inode: next(random).is_multiple_of(30).then_some(1),
        uid: pid % 3,
        session: (network && next(random).is_multiple_of(2))
            .then(|| [Heard::First, Heard::Newest, Heard::Overtaken][next(random) as usize % 3]),
    }
}

#[test]
fn the_allocation_counter_counts() {
    let before = allocations_on_this_thread();
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert_eq!(allocations_on_this_thread() - before, 1);
}

#[test]
fn judging_local_senders_allocates_nothing() {
    let gate = LocalGate {
        users: AllowedUsers::Everyone,
        nobody: None,
        pid_max: PID_LIMIT,
    };
    let mut senders = LocalSenders::new(gate, false);
    let mut limits = Limits::new(16, LimitOptions::default(), 0);
    let room = Room {
        in_table: true,
        for_events: true,
    };
    let mut random = 7;
    let (mut asked, mut joined) = (0, 0);
    let before = allocations_on_this_thread();
    for now_ns in 0..100_000 {
        let pid = 2 + (next(&mut random) % 400) as u32;
        let claimed = pid + (next(&mut random) % 2) as u32;
        let nonce = next(&mut random) % 1_000;
        let beat = AttestedFrame {
            frame: Frame::new(Status::Ok, claimed, 0, nonce, 0),
            sender: Credentials {
                pid,
                uid: 7,
                gid: 7,
            },
        };
        let found = match next(&mut random) % 3 {
            0 => FoundProcess::Gone,
            1 => FoundProcess::Opened(None),
            _ => FoundProcess::Attached(Some(next(&mut random) % 2)),
        };
        let limits = &mut limits;
        match senders.judge_unknown(&beat, room, 0, limits, now_ns, || found) {
            Verdict::Ask(query) => {
                asked += 1;
                let reply = SenderReply {
                    instance: 1,
                    proved: next(&mut random).is_multiple_of(2),
                    info: ProcessInfo::default(),
                };
                while let Some(beat) = senders.next_pending(query.ticket) {
                    senders.judge_reply(&beat, &reply, None, limits, now_ns, || false);
                }
            }
            Verdict::Join { instance } => {
                joined += 1;
                senders.note_end(pid, instance, now_ns);
                senders.note_goodbye(pid, now_ns);
            }
            _ => {}
        }
    }
    assert_eq!(allocations_on_this_thread() - before, 0);
    assert!(asked > 1_000 && joined > 100, "{asked} {joined}");
}

#[test]
fn finding_the_rule_of_an_agent_allocates_nothing() {
    let selector = |name: &str| Selector {
        name: Some(name.to_owned()),
        source: Some("2001:db8:*:1".to_owned()),
        ..Selector::default()
    };
    let selectors = [selector("db"), selector("*e*b*")];
    let known = Known {
        name: "web",
        exe: None,
        cgroup: None,
        unit: None,
        user_unit: None,
        uid: None,
        namespace: None,
        origin: BeatOrigin::NetworkUnverified,
        sealed: true,
        source: Some("2001:db8::7:1".parse().unwrap()),
    };
    let before = allocations_on_this_thread();
    assert_eq!(first_match(&selectors, &known), Some(1));
    assert_eq!(allocations_on_this_thread() - before, 0);
}

#[test]
fn tracking_judging_evicting_and_recovering_allocate_nothing() {
    for policy in [EvictionPolicy::Strict, EvictionPolicy::Balanced] {
        let options = TrackerOptions {
            user_capacity: 100,
            policy,
            ..TrackerOptions::default()
        };
        let mut tracker = Tracker::with_capacity(256, options);
        let mut clock = AttentionClock::new(0);
        let ladder = LadderTiming {
            tag: 0,
            steps: vec![
                StepTiming::Act {
                    grace_ns: 1_000_000,
                    needs_permit: true,
                };
                2
            ],
            debounce_ns: 1_000_000_000,
            budget: 3,
            window_ns: 60_000_000_000,
            backoff_ns: 1_000_000_000,
            backoff_max_ns: 10_000_000_000,
            reset_after_ns: 10_000_000_000,
        };
        let limits = PermitLimits {
            max_in_flight: 8,
            starts_per_second: 100,
            user_budget: UserBudget {
                starts: 100,
                window_ns: 1_000_000_000,
                exempt: 7,
            },
        };
        let mut recovery = Ladders::new(256, vec![ladder], limits, 7);
        let mut random = 7;
        let mut raw_ns = 0;
        let (mut stalls, mut evictions) = (0, 0);

        let before = allocations_on_this_thread();
        for _ in 0..100_000 {
            raw_ns += next(&mut random) % 100_000_000;
            let gap = clock.advance_to(raw_ns);
            clock.promise(raw_ns + 50_000_000);
            let now_ns = clock.now_ns();
            if let Some(gap) = gap {
                tracker.excuse(now_ns, gap.gap_ns);
            }
            if next(&mut random).is_multiple_of(100) {
                tracker.restart_silence(Locality::Local, now_ns, 4);
            }
            let recorded = tracker.record(&beat(&mut random), now_ns, THRESHOLD_NS);
            let evicted = recorded.displaced.filter(|displaced| displaced.evicted);
            evictions += u64::from(evicted.is_some());
            if let (Some(agent), Some(_)) = (recorded.agent, recorded.returned_after_ns) {
                recovery.on_silence_ended(agent, now_ns);
            }
            tracker.drain_stalled_slots(now_ns, 64, |silence| {
                stalls += 1;
                recovery.on_stall(silence.agent, Some(0), now_ns);
                ControlFlow::Continue(())
            });
            while let Some(next) = recovery.next(now_ns) {
                if let Next::Act(action) = next {
                    recovery.on_end(action, ActionEnd::Failed, now_ns);
                }
            }
            if next(&mut random).is_multiple_of(100)
                && let Some(agent) = tracker.local_agent(2 + (next(&mut random) % 400) as u32)
            {
                let deadlines = Deadlines {
                    threshold_ns: THRESHOLD_NS / 2,
                    late_ns: THRESHOLD_NS / 4,
                };
                tracker.set_deadlines(agent, deadlines, now_ns);
                tracker.pause(agent, now_ns + THRESHOLD_NS, now_ns);
                tracker.resume(agent, now_ns);
                let lineage = Lineage {
                    service: 1,
                    kin: 1,
                    user: Some(5),
                };
                recovery.on_gone(agent, lineage, now_ns);
                tracker.retire(agent);
            }
        }
        assert_eq!(allocations_on_this_thread() - before, 0, "{policy:?}");
        assert!(
            stalls > 1_000,
            "{policy:?}: only {stalls} stalls were exercised"
        );
        assert!(
            evictions > 100,
            "{policy:?}: only {evictions} evictions were exercised"
        );
    }
}

#[test]
fn hearing_datagrams_once_allocates_nothing() {
    let mut guard = ReplayGuard::on_heap(ReplayOptions {
        sessions: 256,
        closed: 1_024,
        seed: 7,
    });
    let mut random = 7;
    let mut now_ns = 0;
    let (mut accepted, mut seen, mut too_many, mut full, mut found) = (0, 0, 0, 0, 0);

    let before = allocations_on_this_thread();
    for round in 0..200_000 {
        now_ns += next(&mut random) % (LIVE_NS / 500);
        // A few of them open most sessions.
        let agent = next(&mut random) % 300 / (1 + next(&mut random) % 20);
        let session = SessionKey {
            key: 1,
            pid: 0,
            prefix: (agent << 32 | (round / 2_000 + next(&mut random) % 6)).to_le_bytes(),
        };
        let arrival = Arrival {
            session,
            counter: (next(&mut random) % 1_000) as u32,
            source: next(&mut random) % 50 / 49,
            pid: agent as u32,
            is_terminal: next(&mut random).is_multiple_of(50),
            continues: next(&mut random).is_multiple_of(50),
        };
        if next(&mut random).is_multiple_of(500) {
            guard.depart(arrival.source, arrival.pid);
        }
        found += u32::from(guard.look_up(&session, 0).source.is_some());
        let live = guard.live_sessions(arrival.source, arrival.pid, now_ns);
        found += u32::from(live > 1);
        match guard.admit(&arrival, LIVE_NS, now_ns) {
            Ok(_) => accepted += 1,
            Err(ReplayRefusal::Seen) => seen += 1,
            Err(ReplayRefusal::TooMany) => too_many += 1,
            Err(ReplayRefusal::Full) => full += 1,
        }
    }
    assert_eq!(allocations_on_this_thread() - before, 0);
    let exercised = [accepted, seen, too_many, full, found];
    assert!(exercised.iter().all(|times| *times > 50), "{exercised:?}");
}
