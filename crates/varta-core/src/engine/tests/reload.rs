use super::*;

#[test]
fn a_stall_that_is_none_by_a_raised_threshold_is_excused() {
    let mut world = World::new(policy(&[run("/bin/first"), run("/bin/second")]));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(SLACK_NS);
    world.updates.clear();
    world.reload(Policy {
        threshold: Duration::from_secs(60),
        ..policy(&[run("/bin/first"), run("/bin/second")])
    });
    let excused = AgentUpdate::Pause(agent(0), Duration::ZERO);
    assert_eq!(world.updates.len(), 2);
    assert_eq!(world.updates[1], excused);
    assert!(world.has_published(|fact| matches!(fact, Fact::StallExcused { .. })));
    world.end_program(0);
    world.pass(60 * S);
    assert_eq!(world.ordered(), ["/bin/first"]);
}

#[test]
fn a_stall_that_was_excused_stays_so_while_the_beat_path_does_not_know() {
    let patient = || Policy {
        threshold: Duration::from_secs(60),
        ..policy(&[run("/bin/first")])
    };
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.stall(agent(0));
    world.reload(patient());
    // The slot still holds a stall.
    world.reload(patient());
    world.pass(10 * S);
    assert_eq!(world.ordered(), [""; 0]);
}

#[test]
fn a_stall_by_the_threshold_before_is_excused_when_it_comes() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.reload(Policy {
        threshold: Duration::from_secs(60),
        ..policy(&[run("/bin/first")])
    });
    world.updates.clear();
    // The beat path made this event before it applied the reload.
    world.stall(agent(0));
    assert_eq!(
        world.updates,
        [AgentUpdate::Pause(agent(0), Duration::ZERO)]
    );
    assert!(world.has_published(|fact| matches!(fact, Fact::StallExcused { .. })));
    world.pass(10 * S);
    assert_eq!(world.ordered(), [""; 0]);
}

#[test]
fn agents_that_wait_for_the_budget_of_their_user_go_on_when_there_is_none_any_more() {
    let with_budget = |user_budget| {
        let mut policy = policy(&[kill()]);
        policy.limits.user_budget = user_budget;
        policy.limits.user_window = Duration::from_secs(3600);
        policy
    };
    let mut world = World::new(with_budget(1));
    world.join(agent(0));
    world.join(agent(1));
    world.stall(agent(0));
    world.stall(agent(1));
    world.pass(60 * S);
    assert_eq!(world.ordered(), ["KILL"]);
    world.reload(with_budget(0));
    world.pass(S);
    assert_eq!(world.ordered(), ["KILL"]);
}

#[test]
fn an_unchanged_ladder_continues_and_a_changed_one_restarts() {
    let mut world = World::new(policy(&[run("/bin/first"), run("/bin/second")]));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(SLACK_NS);
    world.end_program(0);
    world.reload(policy(&[run("/bin/first"), run("/bin/second")]));
    world.pass(10 * S + SLACK_NS);
    world.end_program(0);
    assert_eq!(world.ordered(), ["/bin/first", "/bin/second"]);
    world.reload(policy(&[run("/bin/other")]));
    world.pass(10 * S);
    assert_eq!(world.ordered(), ["/bin/other"]);
}

#[test]
fn a_stall_that_was_only_observed_is_acted_on_once_the_mode_allows_it() {
    let mut world = World::new(Policy {
        mode: Mode::Observe,
        ..policy(&[run("/bin/first")])
    });
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(10 * S);
    assert_eq!(world.ordered(), [""; 0]);
    world.reload(policy(&[run("/bin/first")]));
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/first"]);
}

#[test]
fn what_was_rehearsed_begins_at_the_foot_when_it_becomes_serious() {
    let steps = [run("/bin/first"), run("/bin/second")];
    let mut world = World::new(Policy {
        mode: Mode::DryRun,
        ..policy(&steps)
    });
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(60 * S);
    assert_eq!(world.ordered(), ["/bin/first", "/bin/second"]);
    world.reload(policy(&steps));
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/first"]);
}

#[test]
fn the_program_that_a_new_rule_asks_for_is_the_one_that_was_compared() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    let by_program = Policy {
        rules: vec![AgentRule {
            label: Some("shell".to_owned()),
            selector: Selector {
                exe: Some("/bin/sh".to_owned()),
                ..Selector::default()
            },
            ..AgentRule::default()
        }],
        ..policy(&[run("/bin/first")])
    };
    world.feed(Input::Policy {
        policy: Arc::new(by_program.clone()),
        programs: vec![(agent(0), Some("/bin/sh".into()))],
    });
    assert_eq!(world.directory[&0].name, "shell");
    world.feed(Input::Policy {
        policy: Arc::new(by_program),
        programs: vec![(agent(0), None)],
    });
    assert_eq!(world.directory[&0].name, "web");
}
