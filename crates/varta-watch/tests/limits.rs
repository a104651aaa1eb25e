//! Rate limits, and that no other agent pays for a sender that exceeds them.

mod support;

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use support::agents::Puppet;
use support::{BEATS, DISTRUST, Observer, frame, frame_of, wait_until_judged};

const PER_PID: &str = "varta_rate_limited_total{reason=\"per_pid\"}";
const GLOBAL: &str = "varta_rate_limited_total{reason=\"global\"}";
const JOINS: &str = "varta_observer_joins_total";
const ABOVE_MAX: &str = "varta_frame_rejected_pid_above_max_total";

/// The rate and the burst in these tests.
const RATE: u64 = 10;
const BURST: u64 = 10;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// The most that a limit lets through in that time.
fn most_in(time: Duration) -> u64 {
    BURST + (RATE as f64 * time.as_secs_f64()).ceil() as u64 + 1
}

/// Sends beats of this process, spread over about two seconds.
fn send_evenly(sender: &UnixDatagram, count: u32) {
    for nonce in 1..=count {
        sender.send(&frame(nonce.into())).unwrap();
        std::thread::sleep(Duration::from_secs(2) / count);
    }
}

#[test]
fn who_sends_too_much_is_cut_to_its_rate_and_nobody_else_pays() {
    let observer = Observer::start(&[
        "--threshold-ms=60000",
        "--max-beat-rate=10",
        "--max-beat-burst=10",
    ]);
    let mut modest = Puppet::start(&observer.socket);
    let sender = observer.connect();
    let sent = 2_000;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| send_evenly(&sender, sent));
        for nonce in 1..=BURST {
            modest.tell(&format!("beat self {nonce}"));
            std::thread::sleep(Duration::from_millis(150));
        }
    });
    let sent = u64::from(sent);
    wait_until_judged(&observer, PER_PID, sent + BURST);
    let most = most_in(begin.elapsed());
    let stopped = observer.stop();
    let passed = sent - stopped.counter(PER_PID);
    assert!((BURST..=most).contains(&passed), "{passed} of {most}");
    // None of the refused beats was the other agent's.
    stopped.assert_counters(&[(BEATS, passed + BURST), (JOINS, 2), (GLOBAL, 0)]);
}

#[test]
fn all_agents_together_are_cut_to_the_common_rate() {
    let observer = Observer::start(&[
        "--threshold-ms=60000",
        "--max-beat-rate=0",
        "--global-beat-rate=10",
        "--global-beat-burst=10",
    ]);
    let begin = Instant::now();
    let mut agents: Vec<_> = (0..4).map(|_| Puppet::start(&observer.socket)).collect();
    for agent in &mut agents {
        agent.tell("beat self 1");
        observer.wait_for_pid("join", agent.pid);
        agent.tell("beat self 2 500");
    }
    wait_until_judged(&observer, GLOBAL, 2_000);
    // First beats have a limit of their own.
    let most = 4 + most_in(begin.elapsed());
    let stopped = observer.stop();
    let passed = stopped.counter(BEATS);
    assert!((4 + BURST..=most).contains(&passed), "{passed} of {most}");
    stopped.assert_counters(&[(JOINS, 4), (PER_PID, 0)]);
}

#[test]
fn a_newcomer_joins_although_the_common_limit_is_used_up() {
    let observer = Observer::start(&[
        "--threshold-ms=60000",
        "--max-beat-rate=0",
        "--global-beat-rate=1",
        "--global-beat-burst=1",
    ]);
    let mut flood = Puppet::start(&observer.socket);
    flood.tell("beat self 1 500");
    for _ in 0..4 {
        let mut newcomer = Puppet::start(&observer.socket);
        newcomer.tell("beat self 1");
        observer.wait_for_pid("join", newcomer.pid);
    }
    observer.stop().assert_counters(&[(JOINS, 5)]);
}

#[test]
fn a_last_frame_passes_although_its_agents_limit_is_used_up() {
    let observer = Observer::start(&[
        "--threshold-ms=60000",
        "--max-beat-rate=1",
        "--max-beat-burst=1",
    ]);
    let mut agent = Puppet::start(&observer.socket);
    agent.tell("beat self 1 50");
    agent.tell("leave");
    let exit = observer.wait_for_pid("exit", agent.pid);
    assert!(exit.msg.contains("goodbye"), "{}", exit.msg);
    assert!(observer.stop().counter(PER_PID) > 0);
}

#[test]
fn a_rate_of_zero_is_no_limit() {
    let observer = Observer::start(&["--threshold-ms=60000", "--max-beat-rate=0"]);
    let mut agent = Puppet::start(&observer.socket);
    agent.tell("beat self 1 5000");
    let stopped = observer.stop_when(BEATS, 5_000);
    stopped.assert_counters(&[(BEATS, 5_000), (PER_PID, 0), (GLOBAL, 0)]);
}

#[test]
fn a_claim_of_a_pid_that_nobody_can_have_is_counted_as_such() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    // As an unknown process, and as an agent.
    for nonce in [1, 2] {
        observer.send(&frame_of(4_194_305, nonce));
        observer.wait_for_count(ABOVE_MAX, nonce);
        std::thread::sleep(DISTRUST);
        observer.send(&frame(nonce));
        observer.wait_for_count(BEATS, nonce);
    }
    observer
        .stop()
        .assert_counters(&[(ABOVE_MAX, 2), (JOINS, 1), (BEATS, 2)]);
}
