//! The recovery of a silent agent: ladders and modes of a running observer.

mod support;

use varta_api::log_line::Outcome;
use varta_api::v1::{AgentView, AgentsPage};

use support::LogLine;
use support::agents::{Puppet, joined, me};
use support::http::Follower;
use support::ladders::{
    GAVE_UP, Marks, QUIET, REAPED_ZERO, RECOVERED, SPAWNED, all_hooks, has_outcome, ladder,
};
use support::{Observer, critical_of, frame};

const GAVE_UP_STEPS: &str = "varta_recovery_gave_up_total{reason=\"steps_exhausted\"}";
const GAVE_UP_BUDGET: &str = "varta_recovery_gave_up_total{reason=\"budget_spent\"}";

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

#[test]
fn a_command_that_runs_when_the_observer_is_killed_goes_on() {
    let marks = Marks::new();
    let step = marks.gated("begun", "echo done >> marks");
    let mut observer = marks.observer(&ladder(100, &[step], ""), &[]);
    observer.send(&frame(1));
    marks.wait_for(1);
    observer.kill();
    marks.open_gate();
    assert_eq!(marks.wait_for(2), ["begun", "done"]);
}

fn only_agent(observer: &Observer) -> AgentView {
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents.len(), 1);
    page.agents[0].clone()
}

fn of_pid(pid: u32, outcome: &'static str) -> impl Fn(&LogLine) -> bool {
    move |line| line.pid() == Some(pid) && has_outcome(outcome)(line)
}

#[test]
fn steps_are_taken_in_order_until_the_agent_is_back() {
    let marks = Marks::new();
    let steps = [
        marks.mark("one", ", wait = \"100ms\""),
        "{ signal = \"CONT\", wait = \"100ms\" }".to_owned(),
        "{ wait = \"50ms\" }".to_owned(),
        marks.mark("two", ""),
        marks.mark("never", ""),
    ];
    let observer = marks.observer(&ladder(200, &steps, ""), &[]);
    let mut agent = joined(&observer);
    for _ in 0..2 {
        observer.wait_for_outcome("reaped_zero");
    }
    agent.tell("beat self 2");
    observer.wait_for_outcome("recovered");
    // It may have fallen silent again by now.
    let marks = marks.read();
    assert_eq!(marks[..2], ["one", "two"]);
    assert!(!marks.contains(&"never".to_owned()), "{marks:?}");
    let stopped = observer.stop();
    let outcomes = stopped.outcomes(agent.pid);
    let expected = [
        "spawned",
        "reaped_zero",
        "signalled",
        "spawned",
        "reaped_zero",
        "recovered",
    ];
    assert_eq!(outcomes[..expected.len()], expected);
    stopped.assert_counters(&[(RECOVERED, 1), (GAVE_UP, 0)]);
}

#[test]
fn a_step_that_fails_leads_to_the_next_one_without_waiting() {
    let marks = Marks::new();
    let steps = [
        marks.shell("echo failing >> marks; exit 3", ", wait = \"1h\""),
        marks.mark("next", ""),
    ];
    let observer = marks.observer(&ladder(200, &steps, ""), &[]);
    observer.send(&frame(1));
    let failed = observer.wait_for_outcome("reaped_nonzero");
    assert_eq!(failed.number("code"), Some(3));
    observer.wait_for_outcome("reaped_zero");
    assert_eq!(marks.read(), ["failing", "next"]);
    assert_eq!(observer.count_within("gave_up", QUIET), 0);
}

#[test]
fn a_last_step_that_keeps_failing_is_tried_again_until_the_budget_is_spent() {
    let marks = Marks::new();
    let steps = [
        marks.mark("first", ", wait = \"10ms\""),
        marks.shell("echo last >> marks; exit 3", ""),
    ];
    let observer = marks.observer(&ladder(200, &steps, "budget = 4"), &[]);
    let mut events = Follower::start(&observer, "/api/v1/events?follow=true", &[]);
    observer.send(&frame(1));
    let line = observer.wait_for_pid("gave_up", me());
    assert_eq!(line.text("reason"), Some("budget_spent"));
    assert_eq!(marks.read(), ["first", "last", "last", "last"]);
    while events.next_line().event != "gave_up" {}
    let agent = only_agent(&observer);
    assert!(agent.gave_up);
    assert_eq!(agent.recovery, Some(Outcome::GaveUp));
    assert_eq!(observer.count_within("gave_up", QUIET), 1);
    let stopped = observer.stop();
    stopped.assert_counters(&[
        (SPAWNED, 4),
        (GAVE_UP, 1),
        (GAVE_UP_BUDGET, 1),
        (GAVE_UP_STEPS, 0),
    ]);
}

#[test]
fn who_does_not_come_back_is_given_up_once_and_begins_anew_after_it_was_back() {
    let marks = Marks::new();
    let steps = ["one", "two"].map(|word| marks.mark(word, ", wait = \"50ms\""));
    // Long enough for a request before recovery gives up on it again.
    let observer = marks.observer(&ladder(1_000, &steps, ""), &[]);
    observer.send(&frame(1));
    let line = observer.wait_for_pid("gave_up", me());
    assert_eq!(line.text("reason"), Some("steps_exhausted"));
    assert_eq!(observer.count_within("gave_up", QUIET), 1);
    assert_eq!(marks.read(), ["one", "two"]);
    assert!(only_agent(&observer).gave_up);
    observer.send(&frame(2));
    observer.wait_for_outcome("recovered");
    assert!(!only_agent(&observer).gave_up);
    observer.wait_for_pid("gave_up", me());
    assert_eq!(marks.read(), ["one", "two", "one", "two"]);
    observer.stop().assert_counters(&[
        (SPAWNED, 4),
        (REAPED_ZERO, 4),
        (GAVE_UP, 2),
        (GAVE_UP_STEPS, 2),
        (RECOVERED, 1),
    ]);
}

#[test]
fn who_is_back_before_its_turn_comes_is_not_acted_on() {
    let marks = Marks::new();
    let steps = [marks.gated("$VARTA_PID", "exit 0")];
    let text = ladder(300, &steps, "");
    let observer = marks.observer(&text, &["--recovery-max-in-flight=1"]);
    let first = joined(&observer);
    observer.wait_for("recover", of_pid(first.pid, "spawned"));
    let mut second = joined(&observer);
    observer.wait_for("recover", of_pid(second.pid, "waiting"));
    // The only permit is taken: the step is decided, but not started.
    second.tell("beat self 2");
    observer.wait_for_pid("return", second.pid);
    assert_eq!(marks.wait_for(1), [first.pid.to_string()]);
    // It has departed, so that it does not stall again.
    second.tell("leave");
    observer.wait_for_pid("exit", second.pid);
    marks.open_gate();
    observer.wait_for("recover", of_pid(first.pid, "reaped_zero"));
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read(), [first.pid.to_string()]);
    let stopped = observer.stop();
    assert_eq!(stopped.outcomes(second.pid), ["waiting"]);
    stopped.assert_counters(&[(SPAWNED, 1), (RECOVERED, 0)]);
}

/// An agent ends in its own way while the first step runs, which then fails: there is no second one.
fn end_in_mid_ladder(end: impl FnOnce(&mut Puppet)) {
    let marks = Marks::new();
    let steps = [marks.gated("one", "exit 1"), marks.mark("two", "")];
    let observer = marks.observer(&ladder(200, &steps, ""), &[]);
    let mut agent = joined(&observer);
    marks.wait_for(1);
    end(&mut agent);
    observer.wait_for_pid("exit", agent.pid);
    marks.open_gate();
    observer.wait_for_outcome("reaped_nonzero");
    assert_eq!(observer.count_within("gave_up", QUIET), 0);
    assert_eq!(marks.read(), ["one"]);
    observer
        .stop()
        .assert_counters(&[(SPAWNED, 1), (GAVE_UP, 0)]);
}

#[test]
fn nothing_more_is_done_about_an_agent_that_exits_in_mid_ladder() {
    end_in_mid_ladder(|agent| assert!(agent.leave(0).success()));
}

#[test]
fn nothing_more_is_done_about_an_agent_that_says_goodbye_in_mid_ladder() {
    end_in_mid_ladder(|agent| agent.tell("leave"));
}

#[test]
fn nothing_more_is_done_about_an_agent_that_dies_in_mid_ladder() {
    end_in_mid_ladder(|agent| agent.signal(rustix::process::Signal::KILL));
}

#[test]
fn a_pause_ends_the_ladder_and_after_it_the_next_silence_begins_at_its_foot() {
    let marks = Marks::new();
    let steps = [marks.gated("one", "exit 1"), marks.mark("two", "")];
    let observer = marks.observer(&ladder(300, &steps, ""), &[]);
    observer.send(&frame(1));
    marks.wait_for(1);
    let path = format!("/api/v1/agents/{}", only_agent(&observer).id);
    let pause = r#"{"for":3600,"reason":"work"}"#;
    assert_eq!(observer.wish(&format!("{path}/pause"), pause).status, 200);
    observer.wait_for_pid("pause", me());
    marks.open_gate();
    observer.wait_for_outcome("reaped_nonzero");
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read(), ["one"]);
    assert_eq!(observer.wish(&format!("{path}/resume"), "{}").status, 200);
    let stall = observer.wait_for_pid("stall", me());
    assert!(stall.ms("silence_ms").unwrap() >= 300.0, "{stall:?}");
    assert_eq!(marks.wait_for(3), ["one", "one", "two"]);
}

#[test]
fn a_budget_is_spent_across_silences() {
    let marks = Marks::new();
    let steps = [marks.mark("it", "")];
    let more = "budget = 2\nwindow = \"1h\"";
    let observer = marks.observer(&ladder(200, &steps, more), &[]);
    for nonce in 1..=2 {
        observer.send(&frame(nonce));
        observer.wait_for_outcome("reaped_zero");
    }
    observer.send(&frame(3));
    let line = observer.wait_for_pid("gave_up", me());
    assert_eq!(line.text("reason"), Some("budget_spent"));
    assert_eq!(marks.read().len(), 2);
}

#[test]
fn a_budget_is_there_again_when_its_window_has_passed() {
    let marks = Marks::new();
    let steps = [marks.mark("it", "")];
    let more = "budget = 1\nwindow = \"100ms\"";
    let observer = marks.observer(&ladder(150, &steps, more), &[]);
    for nonce in 1..=4 {
        observer.send(&frame(nonce));
        observer.wait_for_outcome("reaped_zero");
    }
    observer
        .stop()
        .assert_counters(&[(SPAWNED, 4), (GAVE_UP, 0)]);
}

#[test]
fn a_service_that_is_restarted_into_the_next_stall_spends_one_budget() {
    let marks = Marks::new();
    let steps = ["{ signal = \"KILL\", wait = \"1h\" }".to_owned()];
    let observer = marks.observer(&ladder(200, &steps, "budget = 2"), &[]);
    for _ in 0..2 {
        let service = joined(&observer);
        observer.wait_for_pid("exit", service.pid);
    }
    let third = joined(&observer);
    let line = observer.wait_for_pid("gave_up", third.pid);
    assert_eq!(line.text("reason"), Some("budget_spent"));
    assert_eq!(observer.stop().outcomes(third.pid), [""; 0]);
}

#[test]
fn who_only_observes_decides_nothing() {
    let marks = Marks::new();
    let observer = marks.observer(&all_hooks(&marks), &["--recovery-mode=observe"]);
    observer.send(&critical_of(me(), 1));
    observer.wait_for_pid("stall", me());
    assert_eq!(observer.count_within("recover", QUIET), 0);
    observer.send(&frame(2));
    observer.wait_for_pid("return", me());
    let stopped = observer.stop();
    for event in ["recover", "hook", "gave_up"] {
        assert_eq!(stopped.count(event), 0, "{event:?}");
    }
    assert_eq!(marks.read(), [""; 0]);
}

#[test]
fn a_dry_run_says_what_it_would_do_and_touches_nothing() {
    let marks = Marks::new();
    let text = all_hooks(&marks).replace(
        "steps = [",
        "steps = [{ signal = \"KILL\", wait = \"50ms\" }, ",
    );
    let observer = marks.observer(&text, &["--recovery-mode=dry-run"]);
    let mut agent = joined(&observer);
    observer.wait_for_outcome("dry_run");
    observer.wait_for_outcome("dry_run");
    observer.wait_for("recover", |line| line.msg.contains("would have given up"));
    observer.count_within("hook", QUIET);
    assert!(!only_agent(&observer).gave_up);
    agent.tell("beat self 2");
    observer.wait_for_pid("return", agent.pid);
    let stopped = observer.stop();
    assert!(stopped.count("hook") >= 2, "late and gave-up");
    assert_eq!(marks.read(), [""; 0]);
    stopped.assert_counters(&[
        (SPAWNED, 0),
        ("varta_recovery_outcomes_total{outcome=\"signalled\"}", 0),
        ("varta_recovery_hooks_total{outcome=\"done\"}", 0),
        (GAVE_UP, 0),
        (RECOVERED, 0),
    ]);
}
