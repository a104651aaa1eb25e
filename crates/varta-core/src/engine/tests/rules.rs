use super::*;
use crate::admission::{BeatLimit, Rate};
use crate::policy::Expectation;
use crate::tracker::Deadlines;

fn expecting(agents: u32, within_s: u64) -> Policy {
    Policy {
        rules: vec![AgentRule {
            expectation: Some(Expectation {
                agents,
                within: Duration::from_secs(within_s),
            }),
            ..rule("web")
        }],
        ..policy(&[run("/bin/first")])
    }
}

#[test]
fn the_first_rule_that_matches_names_the_agent_and_sets_its_deadlines_and_its_rate() {
    let mut world = World::new(Policy {
        rules: vec![
            rule("db"),
            AgentRule {
                label: Some("front".to_owned()),
                threshold: Some(Duration::from_secs(7)),
                late: Some(Duration::from_secs(3)),
                max_beat_rate: Some(5),
                ..rule("web")
            },
            rule("*"),
        ],
        ..policy(&[run("/bin/first")])
    });
    world.join(agent(0));
    let deadlines = Deadlines {
        threshold_ns: 7 * S,
        late_ns: 3 * S,
    };
    let limit = BeatLimit::Own(Rate {
        per_second: 5,
        burst: 50,
    });
    let updates = [
        AgentUpdate::Deadlines(agent(0), deadlines),
        AgentUpdate::BeatLimit(agent(0), limit),
    ];
    assert_eq!(world.updates, updates);
    let info = &world.directory[&0];
    assert_eq!(
        (info.name.as_str(), info.joined_as.as_str()),
        ("front", "web")
    );
    world.updates.clear();
    let session = EventKind::Session {
        agent: agent(0),
        nonce: 1,
        status: Status::Ok,
        payload: 0,
    };
    world.event(session, None);
    assert_eq!(world.updates, [], "told once");
}

#[test]
fn agents_that_do_not_come_in_time_are_missed_once_and_their_coming_is_reported() {
    let mut world = World::new(expecting(2, 10));
    world.join(agent(0));
    world.pass(9 * S);
    assert_eq!(world.engine.levels().agents_missing, 0);
    world.pass(2 * S);
    let missing = |world: &World| {
        let facts = world.facts.iter();
        facts
            .filter(|fact| matches!(fact, Fact::AgentsMissing { .. }))
            .count()
    };
    assert_eq!(
        (missing(&world), world.engine.levels().agents_missing),
        (1, 1)
    );
    world.pass(60 * S);
    assert_eq!(missing(&world), 1);
    world.join(agent(1));
    assert!(world.has_published(|fact| matches!(fact, Fact::AgentsComplete { .. })));
    assert_eq!(world.engine.levels().agents_missing, 0);
    world.exit(agent(1), ExitStatus::Code(0));
    assert_eq!(world.engine.levels().agents_missing, 0, "it was complete");
}

#[test]
fn an_expectation_that_stays_goes_on_and_a_new_one_counts_from_the_reload() {
    let mut world = World::new(expecting(2, 10));
    world.pass(8 * S);
    world.reload(expecting(2, 10));
    world.pass(3 * S);
    assert_eq!(world.engine.levels().agents_missing, 2);
    world.reload(expecting(3, 10));
    assert_eq!(world.engine.levels().agents_missing, 0);
    world.pass(9 * S);
    assert_eq!(world.engine.levels().agents_missing, 0);
    world.pass(2 * S);
    assert_eq!(world.engine.levels().agents_missing, 3);
}

#[test]
fn a_slot_that_changed_hands_counts_the_new_agent_only() {
    let mut world = World::new(expecting(2, 10));
    world.join(agent(0));
    let next = Agent {
        instance: 900,
        ..agent(0)
    };
    // The end of the one before was not reported.
    world.join(next);
    world.pass(11 * S);
    assert_eq!(world.engine.levels().agents_missing, 1);
}

#[test]
fn nothing_of_an_agent_whose_end_was_lost_carries_over_to_the_next_under_the_same_name() {
    let mut world = World::new(Policy {
        rules: vec![AgentRule {
            threshold: Some(Duration::from_secs(7)),
            ..rule("web")
        }],
        ..policy(&[run("/bin/first")])
    });
    world.join(agent(0));
    let time = Duration::from_secs(60);
    let reason = None;
    let agent = agent(0);
    world.command(
        1,
        Command::Pause {
            agent,
            time,
            reason,
        },
    );
    world.updates.clear();
    world.join(agent);
    let deadlines = Deadlines {
        threshold_ns: 7 * S,
        late_ns: 0,
    };
    assert_eq!(world.updates, [AgentUpdate::Deadlines(agent, deadlines)]);
}
