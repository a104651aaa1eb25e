//! Every decision about a remote sender.

use std::sync::atomic::AtomicU64;

use varta_vlp::{NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

use super::*;
use crate::admission::{LimitOptions, Rate};
use crate::agent::NO_KEY;
use crate::refusal::Limit;
use crate::replay::ReplayOptions;
use crate::tracker::{Tracker, TrackerOptions};

const PID: u32 = 42;
const KEY: u64 = 5;
const THRESHOLD_NS: u64 = 1_000_000_000;

const ROOM: Room = Room {
    in_table: true,
    for_events: true,
};

type Words = Box<[AtomicU64]>;

/// Senders, with their table and limits.
struct Host {
    senders: RemoteSenders<Words>,
    tracker: Tracker,
    limits: Limits,
    now_ns: u64,
}

fn host(guard: Option<ReplayGuard<Words>>, options: LimitOptions) -> Host {
    let origin = BeatOrigin::NetworkUnverified;
    Host {
        senders: match guard {
            Some(guard) => RemoteSenders::sealed(origin, guard, 4),
            None => RemoteSenders::in_clear(origin, 7, 4),
        },
        tracker: Tracker::with_capacity(4, TrackerOptions::default()),
        limits: Limits::new(4, options, 0),
        now_ns: 0,
    }
}

fn in_clear() -> Host {
    host(None, LimitOptions::default())
}

fn sealed() -> Host {
    let options = ReplayOptions {
        sessions: 16,
        closed: 16,
        seed: 7,
    };
    let words = (0..4096).map(|_| AtomicU64::new(0)).collect();
    host(
        Some(ReplayGuard::new(words, options).unwrap()),
        LimitOptions::default(),
    )
}

fn frame(nonce: u64) -> Frame {
    Frame::new(Status::Ok, PID, nonce, nonce, 0)
}

fn goodbye(timestamp: u64) -> Frame {
    let status = Status::Critical;
    Frame::new(status, PID, timestamp, NONCE_TERMINAL, PAYLOAD_GOODBYE)
}

fn plain(frame: Frame) -> RemoteFrame {
    RemoteFrame {
        frame,
        key: NO_KEY,
        session: None,
    }
}

/// Datagram `counter` of the session with this prefix.
fn envelope(frame: Frame, prefix: u8, counter: u32) -> RemoteFrame {
    let session = SessionKey {
        key: KEY,
        pid: 0,
        prefix: [prefix; 8],
    };
    RemoteFrame {
        frame,
        key: KEY,
        session: Some((session, counter)),
    }
}

impl Host {
    fn moment(&self) -> Moment {
        Moment {
            attention_ns: self.now_ns,
            raw_ns: self.now_ns,
        }
    }

    fn known(&self, heard: &RemoteBeat) -> Option<KnownRemote> {
        let slot = self.tracker.slot_of(&heard.beat.key)?;
        let facts = self.tracker.facts_in(slot)?;
        Some(KnownRemote { slot, facts })
    }

    /// The outcome of a datagram, and the number of its agent's sessions if that is reported.
    fn hear_from(
        &mut self,
        address: &str,
        read: &RemoteFrame,
        room: Room,
    ) -> Result<(Admitted, Option<usize>), Refusal> {
        let now = self.moment();
        let mut heard = self.senders.attribute(read, address.parse().unwrap());
        let known = self.known(&heard);
        let limits = &mut self.limits;
        let admitted =
            self.senders
                .judge(&mut heard, known.as_ref(), room, THRESHOLD_NS, limits, now)?;
        let recorded = self
            .tracker
            .record(&heard.beat, now.attention_ns, THRESHOLD_NS);
        let agent = recorded.agent.expect("the tracker takes it");
        if admitted == Admitted::First {
            self.limits.note_join(agent.slot, now.raw_ns);
            self.senders.note_join(agent);
        }
        let facts = || self.tracker.facts_in(agent.slot);
        let mut sessions = self.senders.note_beat(agent, &heard, facts, now);
        if heard.beat.frame.is_goodbye() {
            let facts = self.tracker.facts_in(agent.slot).unwrap();
            if self.senders.ends_agent(&heard, &facts, now) {
                self.tracker.retire(agent);
                let timestamp_ns = heard.beat.frame.timestamp;
                self.senders.note_goodbye(agent, timestamp_ns, now.raw_ns);
            } else {
                sessions = self.senders.changed_sessions(agent, &facts, now);
            }
        }
        Ok((admitted, sessions))
    }

    fn hear(&mut self, read: &RemoteFrame) -> Result<Admitted, Refusal> {
        let heard = self.hear_from("10.0.0.1:1", read, ROOM);
        heard.map(|(admitted, _)| admitted)
    }
}

#[test]
fn in_clear_a_source_and_a_pid_are_an_agent_whatever_the_port() {
    let mut host = in_clear();
    let mut from = |address, nonce| {
        let heard = host.hear_from(address, &plain(frame(nonce)), ROOM);
        heard.map(|(admitted, _)| admitted)
    };
    assert_eq!(from("10.0.0.1:1", 1), Ok(Admitted::First));
    assert_eq!(from("10.0.0.1:2", 2), Ok(Admitted::Known));
    assert_eq!(from("10.0.0.2:1", 1), Ok(Admitted::First));
}

#[test]
fn a_new_agent_that_a_full_table_refuses_leaves_nothing_behind() {
    for (room, reason) in [
        (
            Room {
                in_table: false,
                ..ROOM
            },
            Refusal::CapacityExceeded,
        ),
        (
            Room {
                for_events: false,
                ..ROOM
            },
            Refusal::Crowded,
        ),
    ] {
        let mut host = sealed();
        let first = envelope(frame(1), 1, 0);
        let refused = host.hear_from("10.0.0.1:1", &first, room);
        assert_eq!(refused.map(|_| ()), Err(reason));
        assert_eq!(host.hear(&first), Ok(Admitted::First), "it was not used up");
    }
}

#[test]
fn a_datagram_is_heard_once_and_a_copy_from_another_address_is_none() {
    let mut host = sealed();
    assert_eq!(host.hear(&envelope(frame(1), 1, 0)), Ok(Admitted::First));
    assert_eq!(host.hear(&envelope(frame(2), 1, 1)), Ok(Admitted::Known));
    let copy = host.hear_from("10.9.9.9:1", &envelope(frame(2), 1, 1), ROOM);
    assert_eq!(copy.map(|_| ()), Err(Refusal::Replayed));
    let moved = host.hear_from("10.9.9.9:1", &envelope(frame(3), 1, 2), ROOM);
    assert_eq!(
        moved,
        Ok((Admitted::Known, None)),
        "a session keeps its address"
    );
}

#[test]
fn a_beat_overtaken_by_a_goodbye_does_not_bring_the_agent_back_and_a_new_series_does() {
    let mut host = in_clear();
    for read in [frame(1), frame(9), goodbye(9)] {
        host.hear(&plain(read)).unwrap();
    }
    assert_eq!(host.tracker.len(), 0);
    assert_eq!(host.hear(&plain(frame(8))), Err(Refusal::OutOfOrder));
    assert_eq!(host.hear(&plain(frame(1))), Ok(Admitted::First));

    let mut host = sealed();
    host.hear(&envelope(frame(1), 1, 0)).unwrap();
    host.hear(&envelope(goodbye(9), 1, 2)).unwrap();
    assert_eq!(
        host.hear(&envelope(frame(2), 1, 1)),
        Err(Refusal::OutOfOrder)
    );
    assert_eq!(host.hear(&envelope(frame(1), 2, 0)), Ok(Admitted::First));
}

#[test]
fn a_goodbye_ends_its_session_and_the_agent_with_the_last_one() {
    let mut host = sealed();
    let mut hear = |read: &RemoteFrame| host.hear_from("10.0.0.1:1", read, ROOM).unwrap().1;
    assert_eq!(hear(&envelope(frame(1), 1, 0)), None);
    assert_eq!(hear(&envelope(frame(1), 2, 0)), None);
    assert_eq!(
        hear(&envelope(frame(2), 1, 1)),
        Some(2),
        "an earlier one goes on"
    );
    host.now_ns += SESSIONS_PAUSE_NS / 2;
    let mut hear = |read: &RemoteFrame| host.hear_from("10.0.0.1:1", read, ROOM).unwrap().1;
    hear(&envelope(frame(2), 2, 1));
    assert_eq!(hear(&envelope(goodbye(9), 1, 2)), None, "not so soon");
    assert_eq!(host.tracker.len(), 1);
    host.hear(&envelope(goodbye(9), 2, 2)).unwrap();
    assert_eq!(host.tracker.len(), 0);
}

#[test]
fn what_a_limit_refuses_of_an_agent_is_counted_until_its_next_beat() {
    let rate = Rate {
        per_second: 1,
        burst: 2,
    };
    let mut host = Host {
        limits: Limits::new(
            4,
            LimitOptions {
                agent: Some(rate),
                global: None,
            },
            0,
        ),
        ..sealed()
    };
    for counter in 0..2 {
        host.hear(&envelope(frame(1 + u64::from(counter)), 1, counter))
            .unwrap();
    }
    let heard = host
        .senders
        .attribute(&envelope(frame(9), 1, 9), "10.0.0.1:1".parse().unwrap());
    let slot = host.known(&heard).unwrap().slot;
    let agent = host.tracker.agent_in(slot).unwrap();
    for counter in 2..5 {
        let refused = host.hear(&envelope(frame(1 + u64::from(counter)), 1, counter));
        assert_eq!(refused, Err(Refusal::RateLimited(Limit::Agent)));
    }
    assert_eq!(host.senders.refused(agent), 3);
    let copy = host.hear(&envelope(frame(3), 1, 2));
    assert_eq!(copy, Err(Refusal::Replayed));
    assert_eq!(host.senders.refused(agent), 3, "a copy is nobody's");
    host.now_ns += 2_000_000_000;
    assert_eq!(host.hear(&envelope(frame(9), 1, 5)), Ok(Admitted::Known));
    assert_eq!(host.senders.refused(agent), 0);
}

#[test]
fn a_terminal_frame_that_is_not_newer_begins_no_session() {
    let mut host = sealed();
    host.hear(&envelope(frame(1), 1, 0)).unwrap();
    let last = |timestamp| Frame::new(Status::Critical, PID, timestamp, NONCE_TERMINAL, 1);
    assert_eq!(host.hear(&envelope(last(9), 2, 0)), Ok(Admitted::Known));
    let older = host.hear(&envelope(last(8), 3, 0));
    assert_eq!(older, Err(Refusal::SessionNotNewer));
}
