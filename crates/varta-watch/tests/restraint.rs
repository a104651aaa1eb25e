//! The limits on recovery when many agents fall silent: the host is the suspect, permits are few, and remote agents
//! take none that local ones need.

mod support;

use std::net::UdpSocket;
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use support::LogLine;
use support::agents::{agent_command, joined};
use support::ladders::{Marks, QUIET, REAPED_ZERO, SPAWNED, has_outcome, ladder};
use support::network::{JOINS, STALLS, socket};
use support::{Observer, critical_of, frame_of};

const WAITING: &str = "varta_recovery_outcomes_total{outcome=\"waiting\"}";
const HELD: &str = "varta_recovery_held";
const MASS_STALLS: &str = "varta_recovery_holds_total{reason=\"mass_stall\"}";

/// Agents that fall silent together.
const MANY: u32 = 1_000;

/// All agents are accepted without encryption, and recovery may act on them.
const REMOTE: [&str; 5] = [
    "--udp-port=0",
    "--udp-bind-addr=127.0.0.1",
    "--i-accept-plaintext-udp",
    "--allow-recovery-over-plain-udp",
    "--tracker-capacity=1024",
];

/// Default number of commands that run at the same time, and how many of them may be for remote agents.
const PLACES: usize = 8;
const PLACES_ELSEWHERE: usize = 4;

/// How many of them hooks may use.
const HOOKS_ELSEWHERE: usize = 2;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// A remote crowd: one socket, many pids.
struct Crowd {
    socket: UdpSocket,
    count: u32,
}

impl Crowd {
    fn new(count: u32) -> Self {
        Self {
            socket: socket(),
            count,
        }
    }

    /// All but the last `but` of them beat.
    fn beat(&self, observer: &Observer, nonce: u64, but: u32) {
        let frames = (0..self.count - but).map(|number| frame_of(2 + number, nonce).to_vec());
        let frames: Vec<_> = frames.collect();
        observer.hear_all(&self.socket, &frames);
    }

    /// All but the last `but` of them beat a few times per second until the result is dropped.
    fn keep_beating(&self, observer: &Observer, but: u32) -> Beating {
        let socket = self.socket.try_clone().unwrap();
        let (to, last) = (observer.udp(), self.last() - but);
        let (running, is_over) = mpsc::channel();
        let thread = thread::spawn(move || {
            for nonce in 2.. {
                for some in (2..=last).collect::<Vec<_>>().chunks(AT_ONCE) {
                    for pid in some {
                        // The observer may have ended.
                        let _ = socket.send_to(&frame_of(*pid, nonce), to);
                    }
                    if is_over.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                }
            }
        });
        Beating {
            running: Some(running),
            thread: Some(thread),
        }
    }

    fn last(&self) -> u32 {
        1 + self.count
    }
}

/// Datagrams sent at a time, and the pause between two times: the depth of any kernel's queue, a round of a thousand
/// in a quarter of a second.
const AT_ONCE: usize = 40;
const PAUSE: Duration = Duration::from_millis(10);

/// Agents that continue to beat.
struct Beating {
    running: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.running.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn who_waits_for_room_is_told_of() {
    let marks = Marks::new();
    let text = ladder(200, &[marks.gated("it", "exit 0")], "");
    let text = format!("recovery-max-in-flight = 1\n{text}");
    let observer = marks.observer(&text, &[]);
    let _agents = [(); 2].map(|()| joined(&observer));
    let waits = observer.wait_for_outcome("waiting");
    assert_eq!(marks.wait_for(1), ["it"]);
    assert!(waits.msg.contains("1 run at a time"), "{waits:?}");
    marks.open_gate();
    assert_eq!(marks.wait_for(2), ["it", "it"]);
    observer.stop().assert_counters(&[(WAITING, 1)]);
}

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&REMOTE, more].concat()
}

/// The largest number of commands that ran at the same time, from the log.
fn most_at_a_time(lines: &[LogLine]) -> usize {
    let mut most = 0;
    let mut now: usize = 0;
    for line in lines.iter().filter(|line| line.event == "recover") {
        match line.text("outcome") {
            Some("spawned") => now += 1,
            Some(outcome) if outcome.starts_with("reaped") || outcome == "killed" => now -= 1,
            _ => {}
        }
        most = most.max(now);
    }
    most
}

#[test]
fn no_child_is_started_while_a_thousand_are_silent_together_and_who_stays_silent_comes_after() {
    let marks = Marks::new();
    // Long enough for all first beats before the first agent is silent for half of it.
    let text = ladder(4_000, &[marks.mark("$VARTA_PID", "")], "");
    let observer = marks.observer(&text, &flags(&[]));
    let crowd = Crowd::new(MANY);
    crowd.beat(&observer, 1, 0);
    // On a busy machine perhaps before the first beat of the last one.
    let held = observer.told("hold", |_| true);
    assert_eq!(held.text("reason"), Some("mass_stall"));
    observer.wait_for_count(STALLS, u64::from(MANY));
    assert_eq!(observer.metric(HELD), Some(1.0));
    assert_eq!(observer.metric(MASS_STALLS), Some(1.0));
    assert_eq!(observer.count_within("hold", QUIET), 1);
    let counters = observer.counters();
    assert_eq!(counters.get(SPAWNED), None, "{counters:#?}");
    assert_eq!(marks.read(), [""; 0]);
    // One of them is silent for a reason of its own.
    let others = crowd.keep_beating(&observer, 1);
    observer.wait_for("hold", |line| line.text("reason") == Some("resumed"));
    let spawned = observer.wait_for_outcome("spawned");
    assert_eq!(spawned.pid(), Some(crowd.last()));
    drop(others);
}

#[test]
fn with_hold_fire_off_a_thousand_silent_agents_are_recovered_few_at_a_time_and_none_is_left_out() {
    let marks = Marks::new();
    let step = "{ run = [\"/bin/sleep\", \"0.01\"], wait = \"1h\" }".to_owned();
    let text = ladder(500, &[step], "");
    let flags = flags(&["--mass-stall-share=off", "--recovery-starts-per-second=0"]);
    let observer = marks.observer(&text, &flags);
    Crowd::new(MANY).beat(&observer, 1, 0);
    observer.wait_for_count(JOINS, u64::from(MANY));
    observer.wait_for_count(REAPED_ZERO, u64::from(MANY));
    let stopped = observer.stop();
    stopped.assert_counters(&[
        (STALLS, u64::from(MANY)),
        (SPAWNED, u64::from(MANY)),
        (REAPED_ZERO, u64::from(MANY)),
        (MASS_STALLS, 0),
    ]);
    let most = most_at_a_time(&stopped.lines);
    assert!((1..=PLACES_ELSEWHERE).contains(&most), "{most} at a time");
    for pid in 2..2 + MANY {
        let mut outcomes = stopped.outcomes(pid);
        outcomes.retain(|outcome| *outcome != "waiting");
        assert_eq!(outcomes, ["spawned", "reaped_zero"], "{pid}");
    }
}

/// Processes that beat once and are silent after that.
struct Silent(Vec<Child>);

impl Silent {
    fn start(observer: &Observer, count: usize) -> Self {
        let joined = observer.counters().get(JOINS).copied().unwrap_or(0);
        let start = |_| agent_command(&observer.socket, "beat self 1;stay").spawn();
        let silent = Self((0..count).map(start).collect::<Result<_, _>>().unwrap());
        observer.wait_for_count(JOINS, joined + count as u64);
        silent
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn no_more_than_eight_commands_run_at_a_time_and_everybody_has_a_turn() {
    let marks = Marks::new();
    let text = ladder(300, &[marks.gated("$VARTA_PID", "exit 0")], "");
    let observer = marks.observer(&text, &["--mass-stall-share=off"]);
    let count = 3 * PLACES;
    let silent = Silent::start(&observer, count);
    observer.wait_for_count(STALLS, count as u64);
    marks.wait_for(PLACES);
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read().len(), PLACES);
    assert_eq!(observer.metric("varta_recovery_in_flight"), Some(8.0));
    marks.open_gate();
    observer.wait_for_count(REAPED_ZERO, count as u64);
    let mut had_a_turn = marks.read();
    had_a_turn.sort_unstable();
    let mut pids: Vec<_> = silent
        .0
        .iter()
        .map(|child| child.id().to_string())
        .collect();
    pids.sort_unstable();
    assert_eq!(had_a_turn, pids);
    let stopped = observer.stop();
    assert_eq!(most_at_a_time(&stopped.lines), PLACES);
}

#[test]
fn no_more_commands_are_started_in_a_second_than_were_allowed() {
    let marks = Marks::new();
    let step = "{ run = [\"/bin/true\"], wait = \"1h\" }".to_owned();
    let text = ladder(200, &[step], "");
    let flags = flags(&["--mass-stall-share=off", "--recovery-starts-per-second=4"]);
    let observer = marks.observer(&text, &flags);
    Crowd::new(10).beat(&observer, 1, 0);
    observer.wait_for_count(REAPED_ZERO, 10);
    let stopped = observer.stop();
    let spawned = stopped
        .lines
        .iter()
        .filter(|line| has_outcome("spawned")(line));
    let times: Vec<u64> = spawned.map(|line| line.ts_ns).collect();
    // Four at once, then one every quarter of a second: 1.5 s. A line may be written a little after its command was
    // started, so the last may appear earlier than it was.
    let took_ms = (times[9] - times[0]) / 1_000_000;
    assert!(took_ms >= 750, "ten commands within {took_ms} ms");
}

#[test]
fn agents_elsewhere_leave_half_of_the_places_to_local_ones() {
    let marks = Marks::new();
    let text = ladder(400, &[marks.gated("$VARTA_PID", "exit 0")], "");
    let observer = marks.observer(&text, &flags(&["--mass-stall-share=off"]));
    let crowd = Crowd::new(3 * PLACES as u32);
    crowd.beat(&observer, 1, 0);
    observer.wait_for_count(STALLS, u64::from(crowd.count));
    marks.wait_for(PLACES_ELSEWHERE);
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read().len(), PLACES_ELSEWHERE);
    let local = Silent::start(&observer, 1);
    let marks_now = marks.wait_for(PLACES_ELSEWHERE + 1);
    assert_eq!(marks_now[PLACES_ELSEWHERE], local.0[0].id().to_string());
}

#[test]
fn hooks_of_agents_elsewhere_leave_half_of_the_places_to_local_ones() {
    let marks = Marks::new();
    let hook = marks.gated("$VARTA_PID", "exit 0");
    let text = format!("threshold-ms = 60000\n[[agent]]\nname = \"*\"\non-critical = [{hook}]\n");
    let text = format!("{text}[[agent]]\norigin = \"udp\"\non-critical = [{hook}]\n");
    let observer = marks.observer(&text, &flags(&[]));
    let frames = (2..26).map(|pid| critical_of(pid, 1).to_vec());
    observer.hear_all(&socket(), &frames.collect::<Vec<_>>());
    marks.wait_for(HOOKS_ELSEWHERE);
    observer.count_within("hook", QUIET);
    assert_eq!(marks.read().len(), HOOKS_ELSEWHERE);
    observer.send(&critical_of(std::process::id(), 1));
    let marks_now = marks.wait_for(HOOKS_ELSEWHERE + 1);
    assert_eq!(marks_now[HOOKS_ELSEWHERE], std::process::id().to_string());
    marks.open_gate();
    marks.wait_for(25);
}

#[test]
fn a_mass_stall_that_does_not_end_holds_fire_for_a_bounded_time() {
    let marks = Marks::new();
    let text = ladder(300, &[marks.mark("$VARTA_PID", "")], "");
    let text = format!("mass-stall-hold = \"2s\"\n{text}");
    let observer = marks.observer(&text, &flags(&[]));
    let crowd = Crowd::new(6);
    crowd.beat(&observer, 1, 0);
    let held = observer.told("hold", |_| true);
    assert_eq!(held.text("reason"), Some("mass_stall"));
    let expired = observer.wait_for("hold", |_| true);
    assert_eq!(expired.text("reason"), Some("expired"));
    observer.wait_for_count(REAPED_ZERO, u64::from(crowd.count));
    assert_eq!(observer.metric(HELD), Some(0.0));
    let stopped = observer.stop();
    assert_eq!(stopped.count("hold"), 2);
    let told = stopped.lines.iter().map(|line| line.event.as_str());
    let mut told = told.filter(|event| ["hold", "recover"].contains(event));
    assert_eq!(
        told.by_ref().take(2).collect::<Vec<_>>(),
        ["hold"; 2],
        "nothing is done before"
    );
    stopped.assert_counters(&[(MASS_STALLS, 1)]);
}
