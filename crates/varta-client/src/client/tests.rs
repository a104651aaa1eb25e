//! Tests with access to the internals of a handle: forks, clocks and the end of the nonces, all without
//! waiting.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::DropReason;

const NO_OBSERVER: io::ErrorKind = io::ErrorKind::ConnectionRefused;
const QUEUE_FULL: io::ErrorKind = io::ErrorKind::WouldBlock;

/// Answers from a script, then with success, and records its calls.
#[derive(Default)]
struct Scripted {
    send_errors: VecDeque<Option<io::ErrorKind>>,
    reconnect_errors: VecDeque<io::ErrorKind>,
    frames: Vec<[u8; FRAME_BYTES]>,
    reconnects: usize,
}

impl BeatTransport for Scripted {
    fn send(&mut self, frame: &[u8; FRAME_BYTES]) -> io::Result<usize> {
        self.frames.push(*frame);
        match self.send_errors.pop_front().flatten() {
            Some(kind) => Err(kind.into()),
            None => Ok(FRAME_BYTES),
        }
    }

    fn reconnect(&mut self) -> io::Result<()> {
        self.reconnects += 1;
        self.reconnect_errors
            .pop_front()
            .map_or(Ok(()), |kind| Err(kind.into()))
    }
}

fn agent(send_errors: impl IntoIterator<Item = Option<io::ErrorKind>>) -> Varta<Scripted> {
    let send_errors = send_errors.into_iter().collect();
    Varta::from_transport(Scripted {
        send_errors,
        ..Scripted::default()
    })
}

impl Varta<Scripted> {
    fn beat_ok(&mut self) -> BeatOutcome {
        self.beat(Status::Ok, 0)
    }

    fn nonces(&self) -> Vec<u64> {
        self.decoded().map(|frame| frame.nonce).collect()
    }

    fn decoded(&self) -> impl Iterator<Item = Frame> {
        self.transport
            .frames
            .iter()
            .map(|frame| Frame::decode(frame).expect("legal"))
    }
}

#[test]
fn a_beat_carries_what_it_was_given_and_who_sent_it() {
    let mut agent = agent([]);
    assert_eq!(agent.beat(Status::Degraded, 0xdead_beef), BeatOutcome::Sent);

    let frame = agent.decoded().next().expect("one frame");
    assert_eq!(frame.status, Status::Degraded);
    assert_eq!(frame.payload, 0xdead_beef);
    assert_eq!(frame.pid, std::process::id());
    assert_eq!(frame.nonce, 1);
}

#[test]
fn stall_is_refused_before_anything_happens() {
    let mut agent = agent([]);
    let expected = BeatError {
        errno: UNKNOWN_ERRNO,
        kind: io::ErrorKind::InvalidInput,
    };

    assert_eq!(agent.beat(Status::Stall, 0), BeatOutcome::Failed(expected));
    assert!(agent.transport.frames.is_empty());

    assert_eq!(agent.beat_ok(), BeatOutcome::Sent);
    assert_eq!(agent.nonces(), [1]);
}

#[test]
fn stall_ends_a_run_of_drops() {
    let mut agent = agent([Some(NO_OBSERVER); 2]);
    agent.set_reconnect_after(2);
    let _ = agent.beat_ok();
    let _ = agent.beat(Status::Stall, 0);
    let _ = agent.beat_ok();
    assert_eq!(agent.transport.reconnects, 0);
}

#[test]
fn dropped_and_failed_beats_use_up_their_nonce() {
    let failures = [
        None,
        Some(QUEUE_FULL),
        Some(io::ErrorKind::PermissionDenied),
        None,
    ];
    let mut agent = agent(failures);
    for _ in failures {
        let _ = agent.beat_ok();
    }
    assert_eq!(agent.nonces(), [1, 2, 3, 4]);
}

#[test]
fn nonces_go_round_without_the_terminal_one() {
    let mut agent = agent([]);
    agent.nonce = u64::MAX - 2;
    for _ in 0..3 {
        let _ = agent.beat_ok();
    }
    assert_eq!(agent.nonces(), [u64::MAX - 1, 0, 1]);
}

#[test]
fn a_clock_that_steps_back_is_hidden_from_the_wire_and_counted() {
    let mut agent = agent([]);
    let later = Instant::now() + Duration::from_secs(60);
    let _ = agent.beat_at(agent.generation, later, Status::Ok, 0);
    let _ = agent.beat_ok();

    let stamps: Vec<u64> = agent.decoded().map(|frame| frame.timestamp).collect();
    assert_eq!(stamps[0], stamps[1]);
    assert_eq!(agent.clock_regressions(), 1);
}

#[test]
fn a_lost_observer_is_answered_by_one_reconnect_and_the_same_bytes_again() {
    let mut agent = agent([Some(NO_OBSERVER)]);
    assert_eq!(agent.beat(Status::Ok, 7), BeatOutcome::Sent);

    assert_eq!(agent.transport.reconnects, 1);
    assert_eq!(agent.transport.frames.len(), 2);
    assert_eq!(agent.transport.frames[0], agent.transport.frames[1]);
}

#[test]
fn a_resend_that_is_dropped_is_not_sent_a_third_time() {
    let mut agent = agent([Some(NO_OBSERVER), Some(QUEUE_FULL)]);
    assert_eq!(
        agent.beat_ok(),
        BeatOutcome::Dropped(DropReason::KernelQueueFull)
    );
    assert_eq!(agent.transport.frames.len(), 2);
}

#[test]
fn a_failed_reconnect_leaves_the_first_answer() {
    let mut agent = agent([Some(io::ErrorKind::NotConnected)]);
    agent
        .transport
        .reconnect_errors
        .push_back(io::ErrorKind::PermissionDenied);
    assert_eq!(agent.beat_ok(), BeatOutcome::Dropped(DropReason::PeerGone));
    assert_eq!(agent.transport.frames.len(), 1);
}

#[test]
fn attempts_to_reconnect_are_spread_over_the_time_of_the_beats() {
    let mut agent = agent(vec![Some(NO_OBSERVER); 10_000]);
    agent.transport.reconnect_errors = vec![io::ErrorKind::NotFound; 10_000].into();
    let start = Instant::now();
    for ms in 0..1000 {
        let _ = agent.beat_at(
            agent.generation,
            start + Duration::from_millis(ms),
            Status::Ok,
            0,
        );
    }
    // At 0, then after at most 50, 100, 200, 400 ms and at least three quarters of that.
    assert!(
        (5..=6).contains(&agent.transport.reconnects),
        "{}",
        agent.transport.reconnects
    );
}

#[test]
fn a_full_queue_is_left_alone() {
    let mut agent = agent(vec![Some(QUEUE_FULL); 100]);
    for _ in 0..100 {
        assert_eq!(
            agent.beat_ok(),
            BeatOutcome::Dropped(DropReason::KernelQueueFull)
        );
    }
    agent.set_reconnect_after(1);
    agent.transport.send_errors = vec![Some(QUEUE_FULL); 100].into();
    for _ in 0..100 {
        assert_eq!(
            agent.beat_ok(),
            BeatOutcome::Dropped(DropReason::KernelQueueFull)
        );
    }
    assert_eq!(agent.transport.reconnects, 0);
}

#[test]
fn with_zero_the_handle_never_reconnects_by_itself() {
    let mut agent = agent([Some(NO_OBSERVER); 50]);
    agent.set_reconnect_after(0);
    for _ in 0..50 {
        assert_eq!(
            agent.beat_ok(),
            BeatOutcome::Dropped(DropReason::NoObserver)
        );
    }
    assert_eq!(agent.transport.reconnects, 0);
}

#[test]
fn with_a_count_the_handle_reconnects_at_that_drop() {
    let mut agent = agent([Some(NO_OBSERVER); 3]);
    agent.set_reconnect_after(3);
    let outcomes = [agent.beat_ok(), agent.beat_ok(), agent.beat_ok()];

    let dropped = BeatOutcome::Dropped(DropReason::NoObserver);
    assert_eq!(outcomes, [dropped, dropped, BeatOutcome::Sent]);
    assert_eq!(agent.transport.reconnects, 1);
}

/// A beat as it would be in a child: the same handle, another generation.
fn beat_in_child(agent: &mut Varta<Scripted>) -> BeatOutcome {
    agent.beat_at(agent.generation + 1, Instant::now(), Status::Ok, 0)
}

#[test]
fn a_forked_child_starts_its_own_series() {
    let mut agent = agent([]);
    for _ in 0..5 {
        let _ = agent.beat_ok();
    }
    agent.pid = 17;
    assert_eq!(beat_in_child(&mut agent), BeatOutcome::Sent);

    let frame = agent.decoded().last().expect("a frame");
    assert_eq!((frame.nonce, frame.timestamp), (1, 0));
    assert_eq!(frame.pid, std::process::id());
    assert_eq!(agent.fork_recoveries(), 1);
    assert_eq!(agent.transport.reconnects, 1);
}

#[test]
fn a_forked_child_that_cannot_connect_sends_nothing_and_tries_again() {
    let mut agent = agent([]);
    let _ = agent.beat_ok();
    agent
        .transport
        .reconnect_errors
        .push_back(io::ErrorKind::PermissionDenied);

    let expected = BeatError {
        errno: UNKNOWN_ERRNO,
        kind: io::ErrorKind::PermissionDenied,
    };
    assert_eq!(beat_in_child(&mut agent), BeatOutcome::Failed(expected));
    assert_eq!((agent.nonces(), agent.fork_recoveries()), (vec![1], 0));

    assert_eq!(beat_in_child(&mut agent), BeatOutcome::Sent);
    assert_eq!((agent.nonces(), agent.fork_recoveries()), (vec![1, 1], 1));
}

#[test]
fn a_forked_child_does_not_inherit_the_back_off() {
    let mut agent = agent([Some(NO_OBSERVER), Some(NO_OBSERVER)]);
    let _ = agent.beat_ok();
    agent.transport.send_errors = [Some(NO_OBSERVER)].into();
    assert_eq!(beat_in_child(&mut agent), BeatOutcome::Sent);
}

#[test]
fn reconnecting_by_hand_keeps_the_series_and_adopts_the_process() {
    let mut agent = agent([]);
    let _ = agent.beat_ok();
    agent.generation += 1;
    agent.reconnect().expect("scripted success");

    assert_eq!(agent.beat_ok(), BeatOutcome::Sent);
    assert_eq!(agent.nonces(), [1, 2]);
    assert_eq!(agent.fork_recoveries(), 0);
}

#[test]
fn a_goodbye_is_a_terminal_frame_of_this_process_and_uses_up_no_nonce() {
    let mut agent = agent([]);
    let _ = agent.beat_ok();
    assert_eq!(agent.leave(), BeatOutcome::Sent);
    let _ = agent.beat_ok();

    let goodbye = agent.decoded().nth(1).expect("three frames");
    assert!(goodbye.is_goodbye());
    assert_eq!(goodbye.pid, std::process::id());
    assert_eq!(agent.nonces(), [1, NONCE_TERMINAL, 2]);
}

#[test]
fn goodbyes_carry_the_time_of_the_handle_and_strictly_increase_across_handles() {
    let (mut first, mut second) = (agent([]), agent([]));
    // Far beyond the times of other tests of this process.
    let later = Instant::now() + Duration::from_secs(1 << 30);
    let _ = first.leave_at(first.generation, later);
    let _ = second.leave();
    let _ = first.leave_at(first.generation, later);

    let stamp = |agent: &Varta<Scripted>, i| agent.decoded().nth(i).expect("sent").timestamp;
    assert!(stamp(&first, 0) >= Duration::from_secs(1 << 30).as_nanos() as u64);
    assert!(stamp(&first, 0) < stamp(&second, 0));
    assert!(stamp(&second, 0) < stamp(&first, 1));
}

#[test]
fn a_goodbye_does_not_push_the_time_of_later_beats_forward() {
    let mut agent = agent([]);
    let now = Instant::now();
    let _ = agent.leave_at(agent.generation, now);
    let _ = agent.beat_at(agent.generation, now, Status::Ok, 0);

    let beat = agent.decoded().last().expect("two frames");
    assert_eq!(beat.timestamp, agent.timeline.timestamp_ns(now));
    assert_eq!(agent.clock_regressions(), 0);
}

#[test]
fn a_goodbye_to_a_lost_observer_reconnects_once_by_the_rule_of_the_beats() {
    let mut agent = agent([Some(NO_OBSERVER)]);
    assert_eq!(agent.leave(), BeatOutcome::Sent);
    assert_eq!(agent.transport.reconnects, 1);
    assert_eq!(agent.transport.frames[0], agent.transport.frames[1]);

    agent.set_reconnect_after(0);
    agent.transport.send_errors = [Some(NO_OBSERVER)].into();
    let dropped = BeatOutcome::Dropped(DropReason::NoObserver);
    assert_eq!(agent.leave(), dropped);
    assert_eq!(agent.transport.reconnects, 1);
}

#[test]
fn a_forked_child_says_goodbye_for_itself() {
    let mut agent = agent([]);
    let _ = agent.beat_ok();
    agent.pid = 17;
    let child = agent.generation + 1;
    assert_eq!(agent.leave_at(child, Instant::now()), BeatOutcome::Sent);

    let goodbye = agent.decoded().last().expect("two frames");
    assert_eq!(goodbye.pid, std::process::id());
    assert_eq!(agent.fork_recoveries(), 1);
    assert_eq!(agent.transport.reconnects, 1);
}

#[cfg(feature = "udp")]
#[test]
fn a_handle_over_udp_reconnects_only_when_asked_to() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    let mut agent = Varta::connect_udp(nobody).expect("a socket");
    assert_eq!(agent.reconnect, Reconnect::Off);
    agent.set_reconnect_after(3);
    assert_eq!(agent.reconnect, Reconnect::after_drops(3));
}
