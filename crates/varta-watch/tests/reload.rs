//! SIGHUP: other rules, ladders and thresholds for present agents.

mod support;

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::Signal;
use support::LogLine;
use support::agents::{AgentProcess, me};
use support::ladders::{GAVE_UP, Marks, QUIET, SPAWNED, ladder};
use support::{Observer, frame};
use varta_api::v1::{AgentsPage, State};

const STALLS: &str = "varta_observer_stalls_total";
const MISSING: &str = "varta_agents_missing";

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// An observer during the first step of a ladder with this configuration; the step fails once the gate is open.
fn in_mid_ladder(marks: &Marks, text: &str) -> Observer {
    let observer = marks.observer(text, &[]);
    observer.send(&frame(1));
    marks.wait_for(1);
    observer
}

fn two_steps(marks: &Marks) -> String {
    ladder(
        200,
        &[marks.gated("one", "exit 1"), marks.mark("two", "")],
        "",
    )
}

/// After this reload during the ladder no further step is taken.
fn end_by(text: impl FnOnce(&Marks) -> String) {
    let marks = Marks::new();
    let observer = in_mid_ladder(&marks, &two_steps(&marks));
    let line = marks.reload(&observer, &text(&marks));
    assert!(line.msg.contains("are in force"), "{line:?}");
    marks.open_gate();
    observer.wait_for_outcome("reaped_nonzero");
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read(), ["one"]);
    observer
        .stop()
        .assert_counters(&[(SPAWNED, 1), (GAVE_UP, 0)]);
}

#[test]
fn a_ladder_that_is_taken_away_in_the_midst_of_it_ends() {
    end_by(|_| "threshold-ms = 200\n".to_owned());
}

#[test]
fn a_rule_that_is_taken_away_in_mid_ladder_ends_it() {
    let marks = Marks::new();
    let steps = two_steps(&marks);
    let rule = "[[agent]]\nname = \"*\"\nrecovery = \"it\"\n";
    let without = steps.replace("default-recovery = \"it\"", "");
    let observer = in_mid_ladder(&marks, &format!("{without}{rule}"));
    marks.reload(&observer, &without);
    marks.open_gate();
    observer.wait_for_outcome("reaped_nonzero");
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read(), ["one"]);
}

#[test]
fn a_rule_that_takes_an_agent_off_its_ladder_ends_it() {
    end_by(|marks| {
        let rule = "[[agent]]\nname = \"*\"\nrecovery = \"none\"\n";
        format!("{}{rule}", two_steps(marks))
    });
}

#[test]
fn who_only_observes_from_now_on_ends_what_was_begun() {
    end_by(|marks| format!("recovery-mode = \"observe\"\n{}", two_steps(marks)));
}

#[test]
fn a_ladder_that_stays_the_same_is_climbed_on() {
    let marks = Marks::new();
    let observer = in_mid_ladder(&marks, &two_steps(&marks));
    let text = format!("recovery-max-in-flight = 3\n{}", two_steps(&marks));
    marks.reload(&observer, &text);
    marks.open_gate();
    observer.wait_for_outcome("reaped_zero");
    assert_eq!(marks.read(), ["one", "two"]);
    observer.stop().assert_counters(&[(SPAWNED, 2)]);
}

#[test]
fn a_ladder_within_a_rule_is_climbed_on_when_another_rule_is_put_before_it() {
    let marks = Marks::new();
    let steps = [marks.gated("one", "exit 1"), marks.mark("two", "")].join(", ");
    let rule = format!("[[agent]]\nname = \"*\"\nrecovery = [{steps}]\n");
    let observer = in_mid_ladder(&marks, &format!("threshold-ms = 200\n{rule}"));
    let another = "[[agent]]\nname = \"nobody\"\nthreshold = \"3s\"\n";
    marks.reload(&observer, &format!("threshold-ms = 200\n{another}{rule}"));
    marks.open_gate();
    observer.wait_for_outcome("reaped_zero");
    assert_eq!(marks.read(), ["one", "two"]);
    observer.stop().assert_counters(&[(SPAWNED, 2)]);
}

#[test]
fn who_is_not_silent_by_a_raised_threshold_is_left_alone() {
    let marks = Marks::new();
    let observer = in_mid_ladder(&marks, &two_steps(&marks));
    let raised = two_steps(&marks).replace("threshold-ms = 200", "threshold-ms = 600000");
    marks.reload(&observer, &raised);
    let all_alive = |page: &AgentsPage| page.agents[0].state == State::Alive;
    observer.ask_until("/api/v1/agents", all_alive);
    marks.open_gate();
    observer.wait_for_outcome("reaped_nonzero");
    observer.count_within("recover", QUIET);
    assert_eq!(marks.read(), ["one"]);
    let stopped = observer.stop();
    let is_told = |line: &&&LogLine| line.msg.contains("not stalled any more");
    let told = stopped.lines_of("notice", me());
    assert_eq!(told.iter().filter(is_told).count(), 1);
}

#[test]
fn what_was_rehearsed_begins_at_the_foot_and_has_its_whole_budget_when_it_becomes_serious() {
    let marks = Marks::new();
    let steps = ["one", "two"].map(|word| marks.mark(word, ", wait = \"10ms\""));
    let serious = ladder(200, &steps, "budget = 2");
    let observer = marks.observer(&format!("recovery-mode = \"dry-run\"\n{serious}"), &[]);
    observer.send(&frame(1));
    observer.wait_for("recover", |line| line.msg.contains("would have given up"));
    assert!(marks.read().is_empty());
    marks.reload(&observer, &serious);
    observer.wait_for_pid("gave_up", me());
    assert_eq!(marks.read(), ["one", "two"]);
    let stopped = observer.stop();
    stopped.assert_counters(&[(STALLS, 1), (SPAWNED, 2), (GAVE_UP, 1)]);
}

#[test]
fn another_ladder_is_begun_for_who_is_silent_already() {
    let marks = Marks::new();
    let observer = marks.observer("threshold-ms = 200\n", &[]);
    observer.send(&frame(1));
    observer.wait_for_pid("stall", me());
    marks.reload(&observer, &ladder(200, &[marks.mark("first", "")], ""));
    assert_eq!(marks.wait_for(1), ["first"]);
    observer.wait_for_outcome("reaped_zero");
    marks.reload(&observer, &ladder(200, &[marks.mark("second", "")], ""));
    assert_eq!(marks.wait_for(2), ["first", "second"]);
    observer
        .stop()
        .assert_counters(&[(STALLS, 1), (SPAWNED, 2)]);
}

#[test]
fn who_was_given_up_begins_anew_with_another_ladder() {
    let marks = Marks::new();
    let first = marks.mark("first", ", wait = \"10ms\"");
    let observer = marks.observer(&ladder(200, &[first], ""), &[]);
    observer.send(&frame(1));
    observer.wait_for_pid("gave_up", me());
    marks.reload(&observer, &ladder(200, &[marks.mark("second", "")], ""));
    assert_eq!(marks.wait_for(2), ["first", "second"]);
}

#[test]
fn a_bad_file_changes_nothing_and_each_mistake_is_told_with_its_place() {
    let marks = Marks::new();
    let observer = marks.observer(&ladder(300, &[marks.mark("it", "")], ""), &[]);
    marks.configure("threshold-ms = 60000\nrecovery-mod = \"observe\"\nlate-ms = \"soon\"\n");
    observer.signal(Signal::HUP);
    let refused = |what: &str| {
        let line = observer.told("notice", |line| {
            line.msg.contains("nothing is changed") && line.msg.contains(what)
        });
        assert_eq!(line.level, "error");
        assert!(line.msg.contains("varta.toml:"), "{line:?}");
    };
    refused("recovery-mode");
    refused("late-ms");
    observer.send(&frame(1));
    let stall = observer.wait_for_pid("stall", me());
    assert_eq!(stall.ms("threshold_ms"), Some(300.0));
    assert_eq!(marks.wait_for(1), ["it"]);
}

#[test]
fn a_missing_file_changes_nothing() {
    let marks = Marks::new();
    let observer = marks.observer("threshold-ms = 300\n", &[]);
    fs::remove_file(marks.config()).unwrap();
    observer.signal(Signal::HUP);
    observer.wait_for("notice", |line| {
        line.level == "error" && line.msg.contains("nothing is changed")
    });
    observer.send(&frame(1));
    observer.wait_for_pid("stall", me());
}

/// A reload that finds this in place of the file is refused at once, and the settings in force stay in force.
fn refused(put: impl FnOnce(&Path), why: &str) {
    let marks = Marks::new();
    let observer = marks.observer(&ladder(300, &[marks.mark("it", "")], ""), &[]);
    fs::remove_file(marks.config()).unwrap();
    put(&marks.config());
    observer.signal(Signal::HUP);
    observer.wait_for("notice", |line| {
        line.level == "error" && line.msg.contains("nothing is changed") && line.msg.contains(why)
    });
    observer.send(&frame(1));
    let stall = observer.wait_for_pid("stall", me());
    assert_eq!(stall.ms("threshold_ms"), Some(300.0));
    assert_eq!(marks.wait_for(1), ["it"]);
}

#[test]
fn a_reload_of_a_directory_changes_nothing() {
    refused(|path| fs::create_dir(path).unwrap(), "a directory");
}

#[test]
fn a_reload_of_a_fifo_changes_nothing_and_waits_for_nobody() {
    let make = |path: &Path| {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    };
    refused(make, "a FIFO");
}

#[test]
fn a_reload_of_100_mb_changes_nothing() {
    let make = |path: &Path| {
        let file = fs::File::create_new(path).unwrap();
        file.set_len(100 * 1024 * 1024).unwrap();
    };
    refused(make, "larger than");
}

#[test]
fn a_reload_of_random_bytes_changes_nothing() {
    // An odd multiplier visits every byte: nothing is as far from UTF-8.
    let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i * 167 + 0x80) as u8).collect();
    refused(|path| fs::write(path, bytes).unwrap(), "not UTF-8");
}

#[test]
fn another_threshold_makes_nobody_stall_who_beats_and_holds_for_who_does_not() {
    let marks = Marks::new();
    let observer = marks.observer("threshold-ms = 60000\n", &[]);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    let rule = "threshold-ms = 60000\n[[agent]]\nname = \"*\"\nthreshold = \"2s\"\n";
    for text in [rule, "threshold-ms = 3000\n", rule] {
        marks.reload(&observer, text);
    }
    // If a reload makes an agent stall, it does so before the agent has sent its next beats.
    let beats = observer.counters()[support::BEATS];
    observer.wait_for_count(support::BEATS, beats + 20);
    assert_eq!(observer.seen("stall"), 0);
    agent.signal(Signal::STOP);
    let stall = observer.wait_for_pid("stall", agent.pid());
    assert_eq!(stall.ms("threshold_ms"), Some(2_000.0));
    assert!(stall.ms("silence_ms").unwrap() >= 2_000.0);
}

#[test]
fn a_longer_threshold_gives_who_is_late_its_time() {
    let marks = Marks::new();
    let observer = marks.observer("threshold-ms = 3000\nlate-ms = 200\n", &[]);
    observer.send(&frame(1));
    observer.wait_for_pid("late", me());
    marks.reload(&observer, "threshold-ms = 60000\n");
    observer.send(&frame(2));
    observer.wait_for_count(support::BEATS, 2);
    assert_eq!(observer.count_within("stall", QUIET), 0);
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_in_force() {
    let marks = Marks::new();
    let observer = marks.observer("threshold-ms = 60000\n", &[]);
    let line = marks.reload(
        &observer,
        "threshold-ms = 200\ntracker-capacity = 77\nexport-events = \"changes\"\n",
    );
    let (_, restart) = line.msg.split_once("only after a restart: ").unwrap();
    assert!(
        restart.contains("tracker-capacity") && restart.contains("export-events"),
        "{line:?}"
    );
    assert!(!restart.contains("threshold-ms"), "{line:?}");
    observer.send(&frame(1));
    observer.wait_for_pid("stall", me());
}

fn about_missing(reason: &'static str) -> impl Fn(&LogLine) -> bool {
    move |line| line.text("reason") == Some(reason)
}

/// The number of missing agents. The observer reports its counters after all earlier lines.
fn missing(observer: &Observer) -> Option<f64> {
    observer.counters();
    observer.metric(MISSING)
}

const EXPECTED: &str = "threshold-ms = 60000
[[agent]]
name = \"*\"
as = \"worker\"
expect = 2
first-beat-within = \"300ms\"
";

#[test]
fn expected_agents_that_do_not_show_up_are_told_of_once_and_again_when_they_do() {
    let marks = Marks::new();
    let observer = marks.observer(EXPECTED, &[]);
    let line = observer.wait_for("missing", about_missing("missing"));
    assert_eq!(line.level, "error");
    assert_eq!(line.text("name"), Some("worker"));
    assert_eq!(line.number("count"), Some(2));
    assert_eq!(missing(&observer), Some(2.0));
    assert_eq!(observer.count_within("missing", QUIET), 1);
    observer.send(&frame(1));
    observer.wait_for_pid("join", me());
    assert_eq!(missing(&observer), Some(1.0));
    let _second = AgentProcess::start(&observer.socket);
    observer.wait_for("missing", about_missing("complete"));
    assert_eq!(missing(&observer), Some(0.0));
    assert_eq!(observer.count_within("missing", QUIET), 2);
}

#[test]
fn expected_agents_that_show_up_in_time_are_not_told_of() {
    let marks = Marks::new();
    let text = EXPECTED.replace("300ms", "5s").replace("= 2", "= 1");
    let observer = marks.observer(&text, &[]);
    observer.send(&frame(1));
    observer.wait_for_pid("join", me());
    marks.reload(&observer, &text.replace("5s", "100ms"));
    assert_eq!(observer.count_within("missing", QUIET), 0);
    assert_eq!(missing(&observer), Some(0.0));
}

#[test]
fn the_gauge_of_missing_agents_follows_those_that_come_and_leave_and_the_rules() {
    let marks = Marks::new();
    let text = EXPECTED.replace("= 2", "= 3");
    let observer = marks.observer(&text, &[]);
    observer.wait_for("missing", about_missing("missing"));
    assert_eq!(missing(&observer), Some(3.0));
    let mut agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    assert_eq!(missing(&observer), Some(2.0));
    agent.leave(0);
    observer.wait_for_pid("exit", agent.pid());
    assert_eq!(missing(&observer), Some(3.0));
    marks.reload(&observer, "threshold-ms = 60000\n");
    assert_eq!(missing(&observer), Some(0.0));
}

#[test]
fn a_reload_that_leaves_an_expectation_as_it_is_does_not_tell_of_it_again() {
    let marks = Marks::new();
    let observer = marks.observer(EXPECTED, &[]);
    observer.wait_for("missing", about_missing("missing"));
    let other_rule = "[[agent]]\nname = \"nobody\"\n";
    let text = EXPECTED.replace("[[agent]]", &format!("{other_rule}[[agent]]"));
    marks.reload(&observer, &text);
    assert_eq!(missing(&observer), Some(2.0));
    assert_eq!(observer.count_within("missing", 2 * QUIET), 1);
    observer.send(&frame(1));
    let _second = AgentProcess::start(&observer.socket);
    observer.wait_for("missing", about_missing("complete"));
}
