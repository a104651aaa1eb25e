//! Hooks of a running observer: when they run, and when they stop.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::agents::{AgentProcess, Puppet, joined, me};
use support::ladders::{
    HOOKS_DONE, HOOKS_DROPPED, HOOKS_FAILED, HOOKS_WITHDRAWN, Marks, QUIET, REAPED_ZERO, RECOVERED,
    all_hooks, ladder,
};
use support::network::{PID, last_frame, socket_at};
use support::{BEATS, Observer, critical_of, frame, frame_of};
use varta_api::v1::AgentsPage;
use varta_vlp::PAYLOAD_GOODBYE;

/// Remote agents are accepted without encryption.
const IN_CLEAR: [&str; 3] = [
    "--udp-port=0",
    "--udp-bind-addr=127.0.0.1",
    "--i-accept-plaintext-udp",
];

/// And recovery may act on them.
const ACTED_ON: &str = "--allow-recovery-over-plain-udp";

/// Hooks of remote agents that run at the same time.
const PLACES: usize = 2;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// No agent stalls, and every local one has these steps when it reports that it is critical.
fn on_critical(steps: &[String]) -> String {
    let steps = steps.join(", ");
    format!("threshold-ms = 60000\n[[agent]]\nname = \"*\"\non-critical = [{steps}]\n")
}

/// No more events of the only agent come.
fn pause(observer: &Observer) {
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents.len(), 1);
    let path = format!("/api/v1/agents/{}/pause", page.agents[0].id);
    assert_eq!(observer.wish(&path, r#"{"for":3600}"#).status, 200);
}

/// The hook ends without its last step, for this reason.
fn withdrawn(observer: &Observer, why: &str) -> LogLine {
    let line = observer.told("hook", |line| line.msg.contains("no more of on-"));
    assert!(line.msg.contains(why), "{line:?}");
    line
}

#[test]
fn each_occasion_has_its_hook_once_with_its_reason() {
    let marks = Marks::new();
    let observer = marks.observer(&all_hooks(&marks), &[]);
    observer.send(&critical_of(me(), 1));
    // Critical, late, the step, gave-up.
    assert_eq!(
        marks.wait_for(4),
        ["critical", "late", "stall", "gave-up"],
        "of one agent"
    );
    observer.send(&frame(2));
    assert_eq!(marks.wait_for(5)[4], "recovered");
    pause(&observer);
    let mut other = joined(&observer);
    other.leave(3);
    observer.wait_for("hook", |line| {
        line.pid() == Some(other.pid) && line.text("reason") == Some("exit")
    });
    let count = |reason: &str| marks.read().iter().filter(|mark| *mark == reason).count();
    for reason in ["critical", "gave-up", "recovered", "exit"] {
        assert_eq!(count(reason), 1, "{reason} in {:?}", marks.read());
    }
}

#[test]
fn a_clean_exit_is_no_occasion() {
    let marks = Marks::new();
    let observer = marks.observer(&all_hooks(&marks), &["--threshold-ms=60000"]);
    let text = all_hooks(&marks).replace("1s", "50s");
    marks.reload(&observer, &text);
    let mut agent = joined(&observer);
    agent.leave(0);
    observer.wait_for_pid("exit", agent.pid);
    assert_eq!(observer.count_within("hook", QUIET), 0);
    assert_eq!(marks.read(), [""; 0]);
}

#[test]
fn a_goodbye_is_no_critical_occasion_here_or_elsewhere_also_as_a_first_word() {
    let marks = Marks::new();
    let flags = [&IN_CLEAR[..], &[ACTED_ON]].concat();
    let observer = marks.observer(&on_critical(&[marks.mark("critical", "")]), &flags);
    let mut known = joined(&observer);
    known.tell("leave");
    observer.wait_for_pid("exit", known.pid);
    let mut stranger = Puppet::start(&observer.socket);
    stranger.tell("leave");
    observer.wait_for_pid("exit", stranger.pid);
    let remote = socket_at("127.0.0.1");
    for pid in [PID, PID + 1] {
        if pid == PID {
            observer.hear(&remote, &frame_of(pid, 1));
        }
        observer.hear(&remote, &last_frame(pid, PAYLOAD_GOODBYE, 1));
        observer.told("exit", |line| line.pid() == Some(pid));
    }
    // A terminal frame without a goodbye is an alarm, and comes after all the others.
    known.tell("beat self 2");
    known.tell("crash");
    observer.wait_for_pid("critical", known.pid);
    marks.wait_for(1);
    let stopped = observer.stop();
    assert_eq!(stopped.count("critical"), 1, "{:#?}", stopped.lines);
    let mut joins = stopped.lines.iter().filter(|line| line.event == "join");
    assert!(joins.all(|join| join.text("status") == Some("ok")));
    assert_eq!(marks.read(), ["critical"]);
}

#[test]
fn a_hook_ends_with_the_first_step_that_fails() {
    let marks = Marks::new();
    let steps = [
        marks.mark("one", ", timeout = \"1m\""),
        "{ wait = \"10ms\" }".to_owned(),
        marks.shell("echo two >> marks; exit 4", ""),
        marks.mark("three", ""),
    ];
    let text = format!(
        "threshold-ms = 60000\n[[agent]]\nname = \"*\"\non-critical = [{}]\n",
        steps.join(", ")
    );
    let observer = marks.observer(&text, &[]);
    observer.send(&critical_of(me(), 1));
    let line = observer.wait_for_pid("hook", me());
    let error = line.text("error").unwrap();
    assert!(error.contains("exit status: 4"), "{error}");
    assert_eq!(marks.read(), ["one", "two"]);
    let stopped = observer.stop();
    stopped.assert_counters(&[(HOOKS_FAILED, 1)]);
}

#[test]
fn who_is_back_when_a_wait_is_over_is_not_called_late() {
    let marks = Marks::new();
    let steps = ["{ wait = \"2s\" }".to_owned(), marks.mark("late", "")];
    let text = format!(
        "threshold-ms = 60000\n[[agent]]\nname = \"*\"\nlate = \"2s\"\non-late = [{}]\n",
        steps.join(", ")
    );
    let observer = marks.observer(&text, &[]);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    agent.signal(Signal::STOP);
    observer.wait_for_pid("late", agent.pid());
    agent.signal(Signal::CONT);
    let line = withdrawn(&observer, "the agent is back");
    assert_eq!(line.text("reason"), Some("late"));
    assert_eq!(line.pid(), Some(agent.pid()));
    assert_eq!(marks.read(), [""; 0]);
    let stopped = observer.stop();
    stopped.assert_counters(&[(HOOKS_WITHDRAWN, 1), (HOOKS_DONE, 0)]);
}

#[test]
fn who_is_back_when_a_program_has_ended_is_not_called_late_any_more() {
    let marks = Marks::new();
    let steps = [marks.gated("one", "exit 0"), marks.mark("two", "")];
    let text = format!(
        "threshold-ms = 60000\n[[agent]]\nname = \"*\"\nlate = \"2s\"\non-late = [{}]\n",
        steps.join(", ")
    );
    let observer = marks.observer(&text, &[]);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    agent.signal(Signal::STOP);
    marks.wait_for(1);
    let beats = observer.counters()[BEATS];
    agent.signal(Signal::CONT);
    observer.wait_for_count(BEATS, beats + 1);
    marks.open_gate();
    withdrawn(&observer, "the agent is back");
    assert_eq!(marks.read(), ["one"]);
}

/// An event while the first step runs ends the hook before the second one.
fn ended_by(happens: impl FnOnce(&Observer, &Marks), why: &str) {
    let marks = Marks::new();
    let steps = [marks.gated("one", "exit 0"), marks.mark("two", "")];
    let observer = marks.observer(&on_critical(&steps), &[]);
    observer.send(&critical_of(me(), 1));
    marks.wait_for(1);
    happens(&observer, &marks);
    marks.open_gate();
    let line = withdrawn(&observer, why);
    assert_eq!(line.text("reason"), Some("critical"));
    assert_eq!(marks.read(), ["one"]);
    let stopped = observer.stop();
    stopped.assert_counters(&[(HOOKS_WITHDRAWN, 1), (HOOKS_DONE, 0)]);
}

#[test]
fn a_pause_ends_a_hook_before_its_next_step() {
    ended_by(|observer, _| pause(observer), "the agent is paused");
}

#[test]
fn who_only_observes_from_now_on_ends_hooks_before_their_next_step() {
    let observe = |observer: &Observer, marks: &Marks| {
        let text = on_critical(&[marks.mark("other", "")]);
        marks.reload(observer, &format!("recovery-mode = \"observe\"\n{text}"));
    };
    ended_by(observe, "--recovery-mode is another one by now");
}

#[test]
fn a_paused_agent_has_no_hooks() {
    let marks = Marks::new();
    let observer = marks.observer(&on_critical(&[marks.mark("critical", "")]), &[]);
    observer.send(&frame(1));
    observer.wait_for_pid("join", me());
    pause(&observer);
    observer.send(&critical_of(me(), 2));
    observer.wait_for_pid("critical", me());
    assert_eq!(observer.count_within("hook", QUIET), 0);
    assert_eq!(marks.read(), [""; 0]);
}

#[test]
fn a_hook_that_waits_does_not_delay_a_stop() {
    let marks = Marks::new();
    let steps = [
        marks.mark("one", ", timeout = \"1m\""),
        "{ wait = \"1h\" }".to_owned(),
        marks.mark("two", ""),
    ];
    let observer = marks.observer(&on_critical(&steps), &[]);
    observer.send(&critical_of(me(), 1));
    marks.wait_for(1);
    let stopped = observer.stop();
    assert_eq!(marks.read(), ["one"]);
    stopped.assert_counters(&[(HOOKS_DONE, 0), (HOOKS_FAILED, 0)]);
}

#[test]
fn no_hook_is_started_while_the_observer_stops() {
    let marks = Marks::new();
    // Delays the stop of the observer up to its bound, which is longer than the hook waits.
    let stubborn = marks.shell("trap '' TERM; echo stubborn >> marks; sleep 60", "");
    let hook = ["{ wait = \"2s\" }".to_owned(), marks.mark("hook", "")].join(", ");
    let text = format!(
        "recovery-grace = \"3s\"\n{}[[agent]]\nname = \"*\"\non-critical = [{hook}]\n",
        ladder(200, &[stubborn], "")
    );
    let observer = marks.observer(&text, &[]);
    observer.send(&frame(1));
    marks.wait_for(1);
    observer.send(&critical_of(me(), 2));
    observer.wait_for_pid("critical", me());
    observer.stop();
    assert_eq!(marks.read(), ["stubborn"]);
}

/// A remote agent reports that it is critical; recovery may act on it only as far as the flags allow.
fn critical_elsewhere(marks: &Marks, more: &[&str]) -> Observer {
    let hook = marks.mark("$VARTA_PID", "");
    let text =
        format!("threshold-ms = 60000\n[[agent]]\norigin = \"udp\"\non-critical = [{hook}]\n");
    let observer = marks.observer(&text, &[&IN_CLEAR, more].concat());
    observer.hear(&socket_at("127.0.0.1"), &critical_of(PID, 1));
    observer
}

#[test]
fn no_hook_is_run_for_who_may_be_anybody() {
    let marks = Marks::new();
    let observer = critical_elsewhere(&marks, &[]);
    let line = withdrawn(
        &observer,
        "recovery may not act on agents that are heard this way",
    );
    assert_eq!(line.pid(), Some(PID));
    observer.count_within("hook", QUIET);
    assert_eq!(marks.read(), [""; 0]);
    let stopped = observer.stop();
    stopped.assert_counters(&[(HOOKS_WITHDRAWN, 1), (HOOKS_DONE, 0)]);
}

#[test]
fn hooks_are_run_for_agents_elsewhere_if_recovery_may_act_on_them() {
    let marks = Marks::new();
    let observer = critical_elsewhere(&marks, &[ACTED_ON]);
    assert_eq!(marks.wait_for(1), [PID.to_string()]);
    observer.wait_for_count(HOOKS_DONE, 1);
}

#[test]
fn who_is_back_is_told_of_also_if_nothing_was_done_about_it() {
    let marks = Marks::new();
    let text = format!(
        "threshold-ms = 200\n[[agent]]\nname = \"*\"\nrecovery = \"none\"\non-recovered = [{}]\n",
        marks.mark("$VARTA_REASON", "")
    );
    let observer = marks.observer(&text, &[]);
    for nonce in 1..=2 {
        observer.send(&frame(nonce));
        observer.wait_for_pid("stall", me());
    }
    assert_eq!(marks.wait_for(1), ["recovered"]);
    observer.wait_for_count(HOOKS_DONE, 1);
    let stopped = observer.stop();
    assert_eq!(stopped.outcomes(me()), [""; 0]);
    stopped.assert_counters(&[(HOOKS_DONE, 1), (RECOVERED, 0)]);
}

#[test]
fn an_agent_has_one_hook_at_a_time_for_an_occasion() {
    let marks = Marks::new();
    let observer = marks.observer(&on_critical(&[marks.gated("it", "exit 0")]), &[]);
    observer.send(&critical_of(me(), 1));
    marks.wait_for(1);
    // A critical status is reported once per second at most.
    let mut nonce = 2;
    observer.until(|counters| {
        observer.send(&frame(nonce));
        observer.send(&critical_of(me(), nonce + 1));
        nonce += 2;
        counters.contains_key(HOOKS_DROPPED)
    });
    assert_eq!(marks.read(), ["it"]);
    marks.open_gate();
    observer.wait_for_count(HOOKS_DONE, 1);
    // The next one is an occasion again.
    while marks.read().len() < 2 {
        observer.send(&frame(nonce));
        observer.send(&critical_of(me(), nonce + 1));
        nonce += 2;
        assert!(nonce < 10_000, "no second hook");
        std::thread::sleep(Duration::from_millis(100));
    }
    observer.wait_for_count(HOOKS_DONE, 2);
}

#[test]
fn ladders_have_their_turn_while_hooks_hang() {
    let marks = Marks::new();
    let hook = marks.gated("hook", "exit 0");
    let text = format!(
        "threshold-ms = 60000\n\
         [[agent]]\nsource = \"127.0.0.1\"\non-critical = [{hook}]\n\
         [[agent]]\nsource = \"127.0.0.2\"\nthreshold = \"200ms\"\nrecovery = [{}]\n",
        marks.mark("ladder", "")
    );
    let flags = [&IN_CLEAR[..], &[ACTED_ON]].concat();
    let observer = marks.observer(&text, &flags);
    let agents = 2..2 + 3 * PLACES as u32;
    let count = agents.len();
    let frames = agents.map(|pid| critical_of(pid, 1).to_vec());
    observer.hear_all(&socket_at("127.0.0.1"), &frames.collect::<Vec<_>>());
    marks.wait_for(PLACES);
    observer.count_within("hook", QUIET);
    assert_eq!(marks.read(), ["hook"; PLACES]);
    observer.hear(&socket_at("127.0.0.2"), &frame_of(PID, 1));
    observer.wait_for_count(REAPED_ZERO, 1);
    assert_eq!(marks.read(), ["hook", "hook", "ladder"]);
    marks.open_gate();
    observer.wait_for_count(HOOKS_DONE, count as u64);
}

#[test]
fn no_hook_is_started_while_fire_is_held_and_it_comes_after() {
    let marks = Marks::new();
    let step = "{ run = [\"/bin/true\"], wait = \"1h\" }".to_owned();
    let text = format!(
        "{}[[agent]]\norigin = \"udp\"\non-critical = [{}]\n",
        ladder(1_500, &[step], ""),
        marks.mark("$VARTA_PID", "")
    );
    let observer = marks.observer(&text, &[&IN_CLEAR[..], &[ACTED_ON]].concat());
    let socket = socket_at("127.0.0.1");
    let agents = 2..10;
    let frames = agents.map(|pid| frame_of(pid, 1).to_vec());
    observer.hear_all(&socket, &frames.collect::<Vec<_>>());
    observer.told("hold", |_| true);
    observer.hear(&socket, &critical_of(2, 2));
    observer.told("critical", |line| line.pid() == Some(2));
    observer.count_within("hook", QUIET);
    assert_eq!(marks.read(), [""; 0]);
    marks.reload(&observer, &format!("mass-stall-share = \"off\"\n{text}"));
    assert_eq!(marks.wait_for(1), ["2"]);
    observer.wait_for_count(HOOKS_DONE, 1);
    let stopped = observer.stop();
    let reasons = stopped.lines.iter().filter(|line| line.event == "hold");
    let reasons: Vec<_> = reasons.filter_map(|line| line.text("reason")).collect();
    assert_eq!(reasons, ["mass_stall", "resumed"]);
}

#[test]
fn the_host_is_looked_at_before_a_hook_that_has_waited_goes_on() {
    let marks = Marks::new();
    let steps = ["{ wait = \"1900ms\" }".to_owned(), marks.mark("on", "")];
    let text = format!(
        "threshold-ms = 2000\n[[agent]]\norigin = \"udp\"\non-critical = [{}]\n",
        steps.join(", ")
    );
    let observer = marks.observer(&text, &[&IN_CLEAR[..], &[ACTED_ON]].concat());
    let socket = socket_at("127.0.0.1");
    let frames = (2..8).map(|pid| critical_of(pid, 1).to_vec());
    // They are silent together by the time the wait is over.
    observer.hear_all(&socket, &frames.collect::<Vec<_>>());
    observer.told("hold", |_| true);
    assert_eq!(observer.count_within("hook", QUIET), 0);
    assert_eq!(marks.read(), [""; 0]);
}
