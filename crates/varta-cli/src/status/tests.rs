use varta_api::v1::{SHARE_FULL, StateCounts, TABLE_FULL};

use super::*;
use crate::fixtures::agent;

fn report(agents: Vec<AgentView>) -> Report {
    Report {
        info: Info {
            version: "0.3.0".to_owned(),
            session_id: "0000000000000007".to_owned(),
            pid: 42,
            started: 1.0,
            uptime: 130.0,
            threshold: 2.0,
            capacity: 64,
            socket: "/s".to_owned(),
            udp: None,
            queue_datagrams: 0,
            queue_shallow: None,
            agents: StateCounts::default(),
            full: false,
            no_room: Vec::new(),
            missing: 0,
            attention_lag: 0.0,
        },
        health: Health {
            healthy: true,
            problems: Vec::new(),
            turned_after: 0.001,
            last_turn_age: 0.001,
            stopping: false,
        },
        agents,
    }
}

fn in_state(state: State) -> AgentView {
    AgentView {
        state,
        ..agent("web", 7)
    }
}

#[test]
fn an_agent_that_recovery_gave_up_on_is_trouble_in_any_state() {
    for state in [State::Alive, State::Paused, State::Late, State::Stalled] {
        let lost = AgentView {
            gave_up: true,
            ..in_state(state)
        };
        let report = report(vec![agent("a", 8), lost]);
        assert_eq!(report.verdict(None).exit_code(), 1, "{state:?}");
    }
}

#[test]
fn only_a_stall_is_trouble() {
    assert_eq!(report(vec![]).verdict(None).exit_code(), 0);
    for (state, code) in [
        (State::Alive, 0),
        (State::Paused, 0),
        (State::Late, 0),
        (State::Stalled, 1),
    ] {
        let report = report(vec![agent("a", 8), in_state(state)]);
        assert_eq!(report.verdict(None).exit_code(), code, "{state:?}");
    }
}

#[test]
fn an_observer_that_is_not_watching_cannot_tell_even_of_a_stall() {
    let mut report = report(vec![in_state(State::Stalled)]);
    report.health.healthy = false;
    let verdict = report.verdict(None);
    assert_eq!(verdict.exit_code(), 2);
    assert!(
        matches!(&verdict, Verdict::Unknown(why) if why.contains("pid 42")),
        "{verdict:?}"
    );
}

#[test]
fn an_observer_that_stops_cannot_tell_and_is_not_to_be_restarted() {
    let mut report = report(vec![agent("web", 7)]);
    report.health.healthy = false;
    report.health.stopping = true;
    let why = "the observer (pid 42) is stopping".to_owned();
    assert_eq!(report.verdict(None), Verdict::Unknown(why));
}

#[test]
fn an_expected_agent_that_is_missing_is_trouble_unless_others_are_meant() {
    let web = Pattern::parse("web").unwrap();
    let mut report = report(vec![agent("web", 7)]);
    report.info.missing = 1;
    assert_eq!(report.verdict(None), Verdict::Trouble);
    assert_eq!(report.verdict(Some(&web)), Verdict::Well);
    report.agents.clear();
    assert_eq!(report.verdict(None), Verdict::Trouble);
}

#[test]
fn a_newcomer_that_found_no_room_is_trouble_and_is_told_of_unless_others_are_meant() {
    let web = Pattern::parse("web").unwrap();
    let mut report = report(vec![agent("web", 7)]);
    let summary = |report: &Report, pattern| report.lines(pattern, Layout::default()).remove(0);
    report.info.full = true;
    assert_eq!(report.verdict(None), Verdict::Well, "nobody was refused");
    assert!(summary(&report, None).ends_with("1 alive; the table is full"));
    let no_room = |reason: &str, uid, limit| NoRoom {
        reason: reason.to_owned(),
        uid,
        limit,
        elsewhere: false,
    };
    report.info.no_room = vec![
        no_room(TABLE_FULL, None, 256),
        no_room(SHARE_FULL, Some(1000), 192),
    ];
    assert_eq!(report.verdict(None), Verdict::Trouble);
    let expected = "; newcomers found the table of 256 agents full within the last minute and are not \
                    watched (--tracker-capacity); newcomers of uid 1000 found its share of 192 agents full \
                    within the last minute and are not watched (--max-agents-per-user)";
    let told = summary(&report, None);
    assert!(told.ends_with(&format!("1 alive{expected}")), "{told}");
    assert_eq!(report.verdict(Some(&web)), Verdict::Well);
    assert!(summary(&report, Some(&web)).ends_with("1 alive"));
    report.agents.clear();
    let told = summary(&report, None);
    assert!(told.ends_with(&format!("no agents{expected}")), "{told}");
}

#[test]
fn nobody_at_all_is_well_and_nobody_who_is_meant_is_not() {
    let pattern = Pattern::parse("web").unwrap();
    assert_eq!(report(vec![]).verdict(None), Verdict::Well);
    assert_eq!(report(vec![]).verdict(Some(&pattern)).exit_code(), 2);
}

#[test]
fn the_worst_comes_first_and_who_is_well_stays_in_its_place() {
    let stalled = |pid, silence, threshold| AgentView {
        state: State::Stalled,
        silence,
        threshold,
        ..agent("web", pid)
    };
    let alive = |name, pid, silence| AgentView {
        silence,
        ..agent(name, pid)
    };
    let expected = [
        stalled(1, 10.0, 2.0),
        stalled(2, 61.0, 60.0),
        in_state(State::Late),
        in_state(State::Paused),
        alive("db", 9, 0.1),
        alive("web", 3, 0.1),
        alive("web", 4, 1.9),
    ];
    let mut agents = expected.clone();
    agents.reverse();
    agents.sort_by(worst_first);
    assert_eq!(agents, expected);
}

#[test]
fn the_summary_counts_by_state() {
    let pattern = Pattern::parse("w*").unwrap();
    let summary = |report: &Report, pattern| {
        let lines = report.lines(pattern, Layout::default());
        lines.into_iter().next().unwrap_or_default()
    };
    let states = [State::Alive, State::Stalled, State::Alive];
    let some = report(states.map(in_state).to_vec());
    assert_eq!(
        summary(&some, None),
        "varta-watch 0.3.0, up 2m 10s: 3 agents, 1 stalled, 2 alive"
    );
    assert_eq!(
        summary(&report(vec![agent("web", 7)]), Some(&pattern)),
        "varta-watch 0.3.0, up 2m 10s: 1 agent of 'w*', 1 alive"
    );
    let mut missed = report(vec![AgentView {
        gave_up: true,
        ..in_state(State::Stalled)
    }]);
    missed.info.missing = 2;
    assert_eq!(
        summary(&missed, None),
        "varta-watch 0.3.0, up 2m 10s: 1 agent, 1 stalled, 1 given up; 2 expected agents missing"
    );
    missed.agents.clear();
    missed.info.missing = 1;
    assert_eq!(
        summary(&missed, None),
        "varta-watch 0.3.0, up 2m 10s: no agents; 1 expected agent missing"
    );
    assert_eq!(
        summary(&report(vec![]), None),
        "varta-watch 0.3.0, up 2m 10s: no agents; 'varta beat' sends beats"
    );
}

#[test]
fn the_depth_of_the_queue_is_told_and_what_helps_if_it_is_shallow() {
    let mut report = report(vec![]);
    report.info.queue_datagrams = 11;
    report.info.queue_shallow = Some("cause; remedy".to_owned());
    let lines = report.lines(None, Layout::default());
    assert!(lines[0].starts_with("varta-watch 0.3.0, up 2m 10s, queue 11: no agents"));
    assert_eq!(lines[1..], ["cause; remedy"]);
}

#[test]
fn a_picture_has_as_many_lines_as_there_are_rows() {
    let lines = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(shortened(lines(3), 3, 80), ["0", "1", "2"]);
    assert_eq!(shortened(lines(4), 3, 80), ["0", "1", "... and 2 more"]);
    assert_eq!(shortened(lines(4), 1, 80), ["... and 4 more"]);
}

#[test]
fn seconds_between_looks_have_limits() {
    assert_eq!(every("0.5"), Ok(Duration::from_millis(500)));
    for text in ["", "0", "0.09", "3601", "-1", "NaN", "inf", "1s"] {
        assert!(every(text).is_err(), "{text}");
    }
}
