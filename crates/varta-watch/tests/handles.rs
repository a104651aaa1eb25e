//! Several senders with one key, address and pid: handles of one process, or processes that cannot be distinguished.
//! They are one agent, and none of them shuts out another one or ends the agent.

mod support;

use support::LogLine;
use support::network::{
    Beating, JOINS, LEFT, PATIENT, PID, REPLAYED, SEALS, SENDERS_FULL, SESSIONS, STALLS, Seal,
    Series, socket, start_sealed,
};
use support::{BEATS, Observer};
use varta_api::v1::AgentsPage;
use varta_vlp::PAYLOAD_GOODBYE;

/// A handle that has beaten for a while, and one that was opened since.
fn two_handles(seal: Seal) -> [Series; 2] {
    let mut old = Series::new(seal, PID, "old");
    old.nonce = 999;
    [old, Series::new(seal, PID, "young")]
}

/// Fails unless each is credited as a beat of a known agent.
fn assert_heard(observer: &Observer, datagrams: &[Vec<u8>]) {
    let before = observer.counters();
    observer.hear_all(&socket(), datagrams);
    observer.assert_gained(&before, &[(BEATS, datagrams.len() as u64)]);
}

/// A line with the number of sessions over which the agent beats.
fn says_sessions(count: impl Fn(u64) -> bool) -> impl Fn(&LogLine) -> bool {
    move |line: &LogLine| {
        let is_it = line.text("reason") == Some("several_sessions");
        is_it && line.number("count").is_some_and(&count)
    }
}

#[test]
fn two_handles_of_one_process_are_heard_by_turns() {
    for seal in SEALS {
        let observer = start_sealed(&[PATIENT]);
        let [mut old, mut young] = two_handles(seal);
        let mut capture = vec![old.beat(), young.beat()];
        observer.hear_all(&socket(), &capture);
        for _ in 0..20 {
            let next = [old.beat(), young.beat()];
            assert_heard(&observer, &next);
            capture.extend(next);
        }
        let before = observer.counters();
        observer.hear_all(&socket(), &capture);
        observer.assert_gained(&before, &[(REPLAYED, capture.len() as u64)]);
        observer.told("session", says_sessions(|count| count == 2));
        let page: AgentsPage = observer.ask("/api/v1/agents").json();
        assert_eq!(page.agents[0].sessions, Some(2), "{seal:?}");
        let stopped = observer.stop();
        stopped.assert_counters(&[(JOINS, 1), (BEATS, 42), (SESSIONS, 1)]);
        let told = stopped
            .lines
            .iter()
            .filter(|line| says_sessions(|_| true)(line));
        assert_eq!(told.count(), 1, "once");
    }
}

#[test]
fn a_process_with_one_handle_is_not_said_to_have_several() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let mut first = Series::new(seal, PID, "first");
        first.nonce = 99;
        observer.hear_all(&socket(), &first.beats(3));
        // It was restarted, and then it reconnects.
        let mut second = Series::new(seal, PID, "second");
        observer.hear_all(&socket(), &second.beats(3));
        let mut third = Series::new(seal, PID, "third");
        third.nonce = second.nonce;
        observer.hear_all(&socket(), &third.beats(3));
    }
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert!(page.agents.iter().all(|agent| agent.sessions.is_none()));
    let stopped = observer.stop();
    assert!(
        !stopped
            .lines
            .iter()
            .any(|line| says_sessions(|_| true)(line))
    );
}

#[test]
fn a_helper_that_comes_and_goes_while_the_main_handle_is_busy_does_not_shut_it_out() {
    for seal in SEALS {
        let observer = start_sealed(&["--threshold-ms=3000"]);
        let [main, mut helper] = two_handles(seal);
        let main = Beating::start(&observer, &socket(), main);
        observer.wait_for_count(BEATS, 3);
        let main = main.stop();
        assert_heard_somehow(&observer, &helper.beats(4));
        let heard = observer.counters()[BEATS];
        let main = Beating::start(&observer, &socket(), main);
        // Longer than a threshold.
        observer.wait_for_count(BEATS, heard + 70);
        main.stop();
        observer
            .stop()
            .assert_counters(&[(JOINS, 1), (STALLS, 0), (REPLAYED, 0)]);
    }
}

/// Fails unless they are credited, possibly as those of another session.
fn assert_heard_somehow(observer: &Observer, datagrams: &[Vec<u8>]) {
    let before = observer.counters()[BEATS];
    observer.hear_all(&socket(), datagrams);
    assert_eq!(observer.counters()[BEATS], before + datagrams.len() as u64);
}

#[test]
fn a_goodbye_of_one_handle_ends_its_session_and_that_of_the_last_one_ends_the_agent() {
    for seal in SEALS {
        let observer = start_sealed(&[PATIENT]);
        let [mut old, mut young] = two_handles(seal);
        observer.hear_all(&socket(), &[old.beat(), young.beat(), old.beat()]);
        observer.told("session", says_sessions(|count| count == 2));
        observer.hear(&socket(), &young.last(PAYLOAD_GOODBYE, 5));
        assert_heard(&observer, &old.beats(2));
        assert_eq!(observer.counters().get(LEFT), None);
        observer.hear(&socket(), &old.last(PAYLOAD_GOODBYE, 2_000));
        observer.told("exit", |line| line.text("how") == Some("left"));
        // A handle may continue after its goodbye.
        let before = observer.counters();
        observer.hear(&socket(), &young.beat());
        observer.assert_gained(&before, &[(BEATS, 1), (JOINS, 1)]);
    }
}

#[test]
fn a_handle_that_ends_without_a_goodbye_is_missed_in_the_log_and_keeps_nobody_from_leaving() {
    for seal in SEALS {
        let observer = start_sealed(&["--threshold-ms=500"]);
        let [main, mut helper] = two_handles(seal);
        let main = Beating::start(&observer, &socket(), main);
        observer.wait_for_count(BEATS, 2);
        observer.hear(&socket(), &helper.beat());
        observer.told("session", says_sessions(|count| count == 2));
        observer.told("session", says_sessions(|count| count < 2));
        let mut main = main.stop();
        observer.hear(&socket(), &main.last(PAYLOAD_GOODBYE, 1 << 40));
        observer.told("exit", |line| line.text("how") == Some("left"));
    }
}

#[test]
fn a_handle_too_many_is_refused_with_a_word_until_another_one_has_left() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let names = ["1", "2", "3", "4"];
        let mut handles = names.map(|name| Series::new(seal, PID, name));
        for handle in &mut handles {
            handle.nonce = 999;
            observer.hear(&socket(), &handle.beat());
        }
        let mut fifth = Series::new(seal, PID, "5");
        // However often it tries, that costs the agent nothing.
        let before = observer.counters();
        observer.hear_all(&socket(), &fifth.beats(150));
        observer.assert_gained(&before, &[(SENDERS_FULL, 150)]);
        let [first, others @ ..] = &mut handles;
        observer.hear(&socket(), &first.last(PAYLOAD_GOODBYE, 1));
        assert_heard_somehow(&observer, &fifth.beats(2));
        for handle in others {
            assert_heard(&observer, &handle.beats(2));
        }
    }
    let refusal = observer.told("refuse", |line| {
        line.text("reason") == Some("too_many_sessions")
    });
    assert_eq!(refusal.pid(), Some(PID));
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 0)]);
}

#[test]
fn an_agent_that_reconnects_may_leave_at_once() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let mut agent = Series::new(seal, PID, "before");
        observer.hear_all(&socket(), &agent.beats(3));
        let mut renewed = Series::new(seal, PID, "after");
        renewed.nonce = agent.nonce;
        observer.hear(&socket(), &renewed.beat());
        observer.hear(&socket(), &renewed.last(PAYLOAD_GOODBYE, 1_000));
    }
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 2)]);
}

#[test]
fn a_goodbye_over_a_session_that_never_beat_ends_the_agent() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let [mut old, mut young] = two_handles(seal);
        observer.hear_all(&socket(), &old.beats(3));
        observer.hear(&socket(), &young.last(PAYLOAD_GOODBYE, 1));
    }
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 2)]);
}

#[test]
fn an_agent_whose_beats_were_refused_is_not_called_stalled_without_that_word() {
    let limit = ["--max-beat-rate=1", "--max-beat-burst=1"];
    let observer = start_sealed(&[&["--threshold-ms=500"], &limit[..]].concat());
    for (pid, seal) in (PID..).zip(SEALS) {
        let mut agent = Series::new(seal, pid, "limited");
        observer.hear_all(&socket(), &agent.beats(10));
        let stall = observer.told("stall", |line| line.pid() == Some(pid));
        assert_eq!(stall.text("reason"), Some("beats_refused"));
        assert!(
            stall
                .number::<u64>("count")
                .is_some_and(|refused| refused > 0)
        );
        // From then on it is silent.
        let before = observer.counters()[BEATS];
        while observer.counters()[BEATS] == before {
            observer.hear(&socket(), &agent.beat());
        }
        let is_another = |line: &LogLine| line.pid() == Some(pid) && line.text("reason").is_none();
        observer.told("stall", is_another);
    }
}
