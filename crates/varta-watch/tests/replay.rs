//! No encrypted datagram is accepted twice, wherever and whenever it comes again; a new one is accepted.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use support::network::{
    Beating, JOINS, LEFT, OUT_OF_ORDER, PATIENT, PID, REPLAYED, RETURNS, SEALS, SESSIONS, STALLS,
    Series, socket, socket_at, start_sealed,
};
use support::{BEATS, Observer, frame_of};
use varta_vlp::PAYLOAD_GOODBYE;

/// How far out of order datagrams of one session may arrive.
const WINDOW: u32 = 64;

/// No agent has a rate limit.
const ANY_RATE: &str = "--max-beat-rate=0";

/// One agent for each kind of key; the session of each has the name `name`.
fn agents(name: &str) -> Vec<Series> {
    let agents = SEALS.iter().map(|seal| Series::new(*seal, PID, name));
    agents.collect()
}

/// The same agent in a new session. Its nonces continue.
fn renewed(agent: &Series, name: &str) -> Series {
    let nonce = agent.nonce;
    let renewed = Series::new(agent.seal, agent.pid, name);
    Series { nonce, ..renewed }
}

/// Fails unless all of it is refused as a replay, wherever it comes from, without any other effect.
fn assert_refused(observer: &Observer, capture: &[Vec<u8>]) {
    let before = observer.counters();
    for from in [socket(), socket_at("127.0.0.2")] {
        observer.hear_all(&from, capture);
    }
    observer.assert_gained(&before, &[(REPLAYED, 2 * capture.len() as u64)]);
}

/// Fails unless each is credited as a beat of a known agent.
fn assert_heard(observer: &Observer, datagrams: &[Vec<u8>]) {
    let before = observer.counters();
    observer.hear_all(&socket(), datagrams);
    observer.assert_gained(&before, &[(BEATS, datagrams.len() as u64)]);
}

#[test]
fn a_datagram_that_comes_again_at_once_is_refused() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("once") {
        let socket = socket();
        let beat = agent.beat();
        observer.hear(&socket, &beat);
        let before = observer.counters();
        observer.hear(&socket, &beat);
        observer.assert_gained(&before, &[(REPLAYED, 1)]);
        assert_heard(&observer, &agent.beats(1));
    }
    observer.wait_for_refusal("replayed");
    observer.stop().assert_counters(&[(JOINS, 2), (BEATS, 4)]);
}

#[test]
fn a_datagram_that_comes_again_from_another_port_is_refused() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("port") {
        let beat = agent.beat();
        observer.hear(&socket(), &beat);
        let before = observer.counters();
        observer.hear(&socket(), &beat);
        observer.assert_gained(&before, &[(REPLAYED, 1)]);
    }
}

#[test]
fn a_datagram_that_comes_again_from_another_address_is_refused() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("address") {
        let beat = agent.beat();
        observer.hear(&socket(), &beat);
        let before = observer.counters();
        observer.hear(&socket_at("127.0.0.2"), &beat);
        observer.assert_gained(&before, &[(REPLAYED, 1)]);
    }
}

#[test]
fn what_was_heard_over_an_earlier_session_is_refused_and_what_was_not_is_heard_once() {
    let observer = start_sealed(&[PATIENT]);
    for mut older in agents("older") {
        let heard = older.beats(5);
        observer.hear_all(&socket(), &heard);
        let held_back = older.beats(5);
        assert_heard(&observer, &renewed(&older, "newer").beats(1));
        assert_refused(&observer, &heard);
        assert_heard(&observer, &held_back);
        assert_refused(&observer, &held_back);
    }
}

#[test]
fn a_session_of_long_ago_refuses_what_was_heard_and_goes_on() {
    let observer = start_sealed(&[PATIENT, ANY_RATE]);
    for mut first in agents("0") {
        let mut capture = first.beats(2);
        let mut agent = first.clone();
        for number in 1..=200 {
            agent = renewed(&agent, &number.to_string());
            capture.extend(agent.beats(2));
        }
        observer.hear_all(&socket(), &capture);
        assert_heard(&observer, &agent.beats(1));
        assert_refused(&observer, &capture);
        let next = first.beats(3);
        assert_heard(&observer, &next);
        assert_refused(&observer, &next);
        assert_refused(&observer, &capture);
    }
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (SESSIONS, 0)]);
}

#[test]
fn a_datagram_that_comes_again_after_a_thousand_newer_ones_is_refused() {
    let observer = start_sealed(&[PATIENT, ANY_RATE]);
    for mut agent in agents("thousand") {
        let early = agent.beats(10);
        observer.hear_all(&socket(), &early);
        let later = agent.beats(1 << 10);
        assert_heard(&observer, &later);
        assert_refused(&observer, &early);
        assert_refused(&observer, &later);
    }
}

#[test]
fn a_datagram_that_comes_again_after_a_stall_does_not_end_it() {
    let observer = start_sealed(&["--threshold-ms=1500"]);
    for mut agent in agents("stall") {
        let capture = agent.beats(3);
        observer.hear_all(&socket(), &capture);
        observer.wait_for("stall", |_| true);
        assert_refused(&observer, &capture);
        let before = observer.counters();
        observer.hear(&socket(), &agent.beat());
        observer.assert_gained(&before, &[(BEATS, 1), (RETURNS, 1)]);
        observer.hear(&socket(), &agent.last(PAYLOAD_GOODBYE, 1));
    }
}

#[test]
fn a_datagram_that_comes_again_after_a_goodbye_brings_nobody_back() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("goodbye") {
        let mut capture = agent.beats(3);
        capture.push(agent.last(PAYLOAD_GOODBYE, 1));
        observer.hear_all(&socket(), &capture);
        assert_refused(&observer, &capture);
    }
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 2)]);
}

#[test]
fn a_datagram_that_comes_again_after_its_agent_was_evicted_brings_nobody_back() {
    let observer = start_sealed(&["--threshold-ms=100", "--tracker-capacity=2"]);
    let mut capture = Vec::new();
    for mut agent in agents("evicted") {
        let beats = agent.beats(3);
        observer.hear_all(&socket(), &beats);
        capture.extend(beats);
    }
    let mut newcomers = Vec::new();
    while observer.seen("evict") < 2 {
        let number = newcomers.len() as u32 + 1;
        assert!(number < 200, "nobody gives way");
        let mut newcomer = Series::new(SEALS[0], PID + number, &number.to_string());
        observer.hear(&socket(), &newcomer.beat());
        newcomers.push(newcomer);
        observer.count_within("evict", Duration::from_millis(50));
    }
    // There is capacity again.
    let goodbyes = newcomers
        .iter_mut()
        .map(|newcomer| newcomer.last(PAYLOAD_GOODBYE, 1));
    observer.hear_all(&socket(), &goodbyes.collect::<Vec<_>>());
    assert_refused(&observer, &capture);
}

/// Every datagram that an observer accepted before its end is sent again when the next one listens.
fn play_back_after_a_restart_by(signal: Signal) {
    let flags = [PATIENT, ANY_RATE];
    let observer = start_sealed(&flags);
    let mut capture = Vec::new();
    let mut live = Vec::new();
    for mut agent in agents("before") {
        capture.extend(agent.beats(100));
        agent = renewed(&agent, "after");
        capture.extend(agent.beats(100));
        capture.push(Series::new(agent.seal, PID, "crash").last(0, 1));
        live.push(agent);
    }
    let mut gone = Series::new(SEALS[0], PID + 1, "gone");
    capture.push(gone.beat());
    capture.push(gone.last(PAYLOAD_GOODBYE, 1));
    observer.hear_all(&socket(), &capture);
    observer.until(|counters| counters[BEATS] == capture.len() as u64);

    let observer = observer.replaced(signal, &flags);
    assert_refused(&observer, &capture);
    // An agent that is alive is accepted at once, and may start a new session.
    for agent in &mut live {
        let before = observer.counters();
        observer.hear(&socket(), &agent.beat());
        observer.assert_gained(&before, &[(BEATS, 1), (JOINS, 1)]);
        assert_heard(&observer, &agent.beats(1));
        assert_heard(&observer, &renewed(agent, "fresh").beats(2));
    }
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (SESSIONS, 0)]);
}

#[test]
fn nothing_is_heard_again_after_the_observer_was_told_to_stop() {
    play_back_after_a_restart_by(Signal::TERM);
}

#[test]
fn nothing_is_heard_again_after_the_observer_was_killed() {
    play_back_after_a_restart_by(Signal::KILL);
}

#[test]
fn an_agent_may_begin_a_session_while_no_observer_listens() {
    let flags = [PATIENT];
    let observer = start_sealed(&flags);
    let before = agents("before");
    let captures: Vec<_> = before.iter().map(|agent| agent.clone().beats(5)).collect();
    for capture in &captures {
        observer.hear_all(&socket(), capture);
    }
    let observer = observer.replaced(Signal::KILL, &flags);
    for (agent, capture) in before.iter().zip(&captures) {
        // As a process that was restarted.
        let mut fresh = Series::new(agent.seal, PID, "fresh");
        observer.hear(&socket(), &fresh.beat());
        assert_refused(&observer, capture);
        assert_heard(&observer, &fresh.beats(1));
    }
    observer.stop().assert_counters(&[(JOINS, 2)]);
}

#[test]
fn what_was_overtaken_within_the_window_is_heard_once() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("window") {
        let mut datagrams = agent.beats(WINDOW as usize + 6);
        let newest = datagrams.pop().unwrap();
        observer.hear(&socket(), &newest);
        // The newest counts as one of the window.
        let beyond = datagrams.len() - (WINDOW as usize - 1);
        let within = datagrams.split_off(beyond);
        let backwards: Vec<_> = within.iter().rev().cloned().collect();
        assert_heard(&observer, &backwards);
        assert_refused(&observer, &within);
        assert_refused(&observer, &[newest]);
        assert_heard(&observer, &agent.beats(1));
    }
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (SESSIONS, 0), (OUT_OF_ORDER, 0)]);
}

#[test]
fn what_was_overtaken_by_a_whole_window_is_refused() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("beyond") {
        let late = agent.beats(3);
        let on_time = agent.beats(WINDOW as usize);
        observer.hear(&socket(), &on_time[WINDOW as usize - 1]);
        assert_refused(&observer, &late);
        assert_heard(&observer, &on_time[..1]);
    }
}

#[test]
fn a_session_may_begin_with_any_counter() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        for (pid, first) in (100..).zip([0, 1, 2, 1 << 31, u32::MAX]) {
            let agent = Series::new(seal, pid, &pid.to_string());
            let before = observer.counters();
            let datagram = agent.at(first, &frame_of(pid, 1));
            observer.hear(&socket(), &datagram);
            observer.assert_gained(&before, &[(BEATS, 1), (JOINS, 1)]);
            assert_refused(&observer, &[datagram]);
            if let Some(second) = first.checked_add(1) {
                assert_heard(&observer, &[agent.at(second, &frame_of(pid, 2))]);
            }
        }
    }
}

#[test]
fn a_session_that_has_used_up_its_counters_is_followed_by_another_unnoticed() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("last") {
        agent.counter = u32::MAX - 3;
        observer.hear(&socket(), &agent.beat());
        let last = agent.beats(2);
        assert_heard(&observer, &last);
        assert_eq!(agent.counter, u32::MAX);
        assert_heard(&observer, &renewed(&agent, "next").beats(3));
        assert_refused(&observer, &last);
    }
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (SESSIONS, 0), (REPLAYED, 8)]);
}

#[test]
fn who_survives_a_panic_goes_on_in_its_session() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("beats") {
        observer.hear_all(&socket(), &agent.beats(2));
        // The terminal frame of a process has a session of its own, and each panic another one.
        let mut panics = Vec::new();
        for (timestamp, name) in (1..).zip(["panic 1", "panic 2", "panic 3"]) {
            panics.push(Series::new(agent.seal, PID, name).last(0, timestamp));
            assert_heard(&observer, &panics[panics.len() - 1..]);
            assert_heard(&observer, &agent.beats(2));
        }
        assert_refused(&observer, &panics);
        assert_heard(&observer, &agent.beats(1));
    }
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (SESSIONS, 0), (STALLS, 0)]);
}

#[test]
fn a_goodbye_that_was_held_back_does_not_end_a_newer_session() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("older") {
        observer.hear_all(&socket(), &agent.beats(2));
        let held_back = agent.last(PAYLOAD_GOODBYE, 9);
        let mut newer = renewed(&agent, "newer");
        assert_heard(&observer, &newer.beats(1));
        assert_heard(&observer, std::slice::from_ref(&held_back));
        assert_refused(&observer, &[held_back]);
        assert_heard(&observer, &newer.beats(1));
    }
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 0)]);
}

#[test]
fn a_beat_that_its_goodbye_has_overtaken_brings_nobody_back() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("leaves") {
        observer.hear_all(&socket(), &agent.beats(2));
        let late = agent.beat();
        let goodbye = agent.last(PAYLOAD_GOODBYE, 1_000);
        observer.hear(&socket(), &goodbye);
        observer.told("exit", |_| true);
        let before = observer.counters();
        observer.hear(&socket(), &late);
        observer.assert_gained(&before, &[(OUT_OF_ORDER, 1)]);
    }
}

#[test]
fn sessions_that_were_recorded_unheard_cannot_silence_an_agent_that_beats() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let mut agent = Series::new(seal, PID, "present");
        agent.nonce = 99;
        let capture = agent.beats(1);
        observer.hear_all(&socket(), &capture);
        // More than an agent may have, and they depart.
        for name in ["1", "2", "3", "4", "5"] {
            let mut recorded = Series::new(seal, PID, name);
            let mut datagrams = recorded.beats(3);
            datagrams.push(recorded.last(PAYLOAD_GOODBYE, 1));
            observer.hear_all(&socket(), &datagrams);
            assert_heard(&observer, &agent.beats(3));
            assert_refused(&observer, &datagrams);
        }
        assert_refused(&observer, &capture);
    }
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 0)]);
}

#[test]
fn a_last_frame_that_was_recorded_unheard_cannot_come_after_a_newer_one() {
    let observer = start_sealed(&[PATIENT]);
    for mut agent in agents("beats") {
        let recorded = Series::new(agent.seal, PID, "recorded").last(0, 5);
        observer.hear(&socket(), &agent.beat());
        assert_heard(
            &observer,
            &[Series::new(agent.seal, PID, "newer").last(0, 6)],
        );
        let before = observer.counters();
        observer.hear(&socket(), &recorded);
        observer.assert_gained(&before, &[(REPLAYED, 1)]);
    }
}

#[test]
fn a_process_that_was_started_anew_is_heard_before_anybody_calls_it_stalled() {
    for seal in SEALS {
        let observer = start_sealed(&["--threshold-ms=3000"]);
        let socket = socket();
        let mut first = Series::new(seal, PID, "first");
        first.nonce = 999;
        let first = Beating::start(&observer, &socket, first);
        observer.wait_for_count(BEATS, 3);
        first.stop();
        let second = Beating::start(&observer, &socket, Series::new(seal, PID, "second"));
        let session = observer.wait_for("session", |_| true);
        assert_eq!(session.pid(), Some(PID));
        assert_eq!(session.text("source"), Some("127.0.0.1"));
        let heard = observer.counters()[BEATS];
        observer.wait_for_count(BEATS, heard + 3);
        second.stop();
        let stopped = observer.stop();
        stopped.assert_counters(&[(JOINS, 1), (SESSIONS, 1), (STALLS, 0), (REPLAYED, 0)]);
    }
}
