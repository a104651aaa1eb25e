use super::*;
use crate::fact::{OsError, StartFailure};
use crate::hold::HoldChange;
use crate::ladder::GaveUp;

fn spawn_failure() -> StartFailure {
    StartFailure::Spawn {
        program: "/bin/x".to_owned(),
        error: OsError {
            errno: Some(2),
            text: "not found".to_owned(),
        },
    }
}

#[test]
fn a_stall_runs_the_first_step_and_a_beat_ends_the_ladder() {
    let mut world = World::new(policy(&[run("/bin/first"), run("/bin/second")]));
    world.join(agent(0));
    world.stall(agent(0));
    assert_eq!(world.ordered(), [""; 0], "not before its turn");
    world.feed(Input::Timeout);
    assert!(world.engine.levels().in_flight == 0, "the wheel's tick");
    world.pass(SLACK_NS);
    assert_eq!(world.engine.levels().in_flight, 1);
    let order = world.orders[0].clone();
    assert_eq!(
        (order.subject.agent, order.subject.reason),
        (agent(0), "stall")
    );
    assert_eq!((order.uid, order.refuse_foreign), (500, true));
    world.end_program(0);
    assert_eq!(world.engine.levels().in_flight, 0);
    world.pass(5 * S);
    world.beat_again(agent(0));
    world.pass(60 * S);
    assert_eq!(world.ordered(), ["/bin/first"]);
    assert!(world.has_published(|fact| matches!(fact, Fact::Recovered { .. })));
    assert_eq!(
        world.directory[&0].recovery,
        Some(crate::Counter::RecoveryRecovered)
    );
}

#[test]
fn a_step_that_fails_leads_to_the_next_one_and_the_last_one_handled_to_giving_up() {
    let mut world = World::new(policy(&[run("/bin/first"), kill()]));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(SLACK_NS);
    world.end_program(1);
    world.pass(SLACK_NS);
    assert_eq!(world.ordered(), ["/bin/first", "KILL"]);
    assert!(!world.directory[&0].gave_up);
    world.pass(5 * S + SLACK_NS);
    let gave_up = |fact: &Fact| {
        matches!(
            fact,
            Fact::GaveUp {
                reason: GaveUp::StepsExhausted,
                rehearsed: false,
                ..
            }
        )
    };
    assert!(world.has_published(gave_up));
    assert!(world.directory[&0].gave_up);
    world.beat_again(agent(0));
    assert!(!world.directory[&0].gave_up);
}

#[test]
fn a_step_is_not_ordered_for_an_agent_that_is_back_in_the_table() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.stall(agent(0));
    // Its return is not reported yet.
    world.change(agent(0), |slot| slot.state = SlotState::Alive);
    world.pass(S);
    assert_eq!(world.ordered(), [""; 0]);
    let is_gone = |fact: &Fact| {
        matches!(
            fact,
            Fact::StepFailed {
                reason: StartFailure::TargetGone,
                ..
            }
        )
    };
    assert!(world.has_published(is_gone));
}

#[test]
fn what_the_observer_lacks_the_means_for_is_tried_again_a_second_later() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world
        .outcomes
        .push_back(Outcome::Postponed(spawn_failure()));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(S / 2);
    assert_eq!(world.engine.levels().in_flight, 0);
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/first", "/bin/first"]);
    assert_eq!(world.engine.levels().in_flight, 1);
}

#[test]
fn a_refused_step_ends_the_ladder_and_another_failure_leads_to_the_next_step() {
    let mut world = World::new(policy(&[run("/bin/first"), run("/bin/second")]));
    world
        .outcomes
        .push_back(Outcome::Failed(StartFailure::CrossNamespace));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(60 * S);
    assert_eq!(world.ordered(), ["/bin/first"]);
    world.outcomes.push_back(Outcome::Failed(spawn_failure()));
    world.join(agent(1));
    world.stall(agent(1));
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/first", "/bin/second"]);
}

#[test]
fn an_agent_that_may_be_anybody_is_not_acted_on() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join_as(agent(0), "web", BeatOrigin::SocketModeOnly);
    world.stall(agent(0));
    world.pass(60 * S);
    assert_eq!(world.ordered(), [""; 0]);
    assert!(world.has_published(|fact| matches!(fact, Fact::RecoveryRefused { .. })));
}

#[test]
fn observe_mode_decides_nothing() {
    let mut world = World::new(Policy {
        mode: Mode::Observe,
        ..policy(&[run("/bin/first")])
    });
    world.join(agent(0));
    world.published();
    world.stall(agent(0));
    world.pass(60 * S);
    let facts = world.published();
    assert!(matches!(facts[..], [Fact::Stalled { .. }]), "{facts:?}");
}

#[test]
fn a_rehearsal_climbs_to_the_end_and_counts_no_agent_as_given_up() {
    let mut world = World::new(Policy {
        mode: Mode::DryRun,
        ..policy(&[run("/bin/first"), kill()])
    });
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(60 * S);
    assert!(world.orders.iter().all(|order| order.is_rehearsal));
    assert_eq!(world.ordered(), ["/bin/first", "KILL"]);
    assert!(world.has_published(|fact| matches!(
        fact,
        Fact::GaveUp {
            rehearsed: true,
            ..
        }
    )));
    assert!(!world.directory[&0].gave_up);
    assert_eq!(world.engine.levels().in_flight, 0);
    world.beat_again(agent(0));
    assert!(!world.has_published(|fact| matches!(fact, Fact::Recovered { .. })));
}

#[test]
fn a_starving_host_holds_fire_and_what_is_due_comes_after() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.pressure.memory_percent = Some(50.0);
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(10 * S);
    assert_eq!(world.ordered(), [""; 0]);
    assert!(world.engine.levels().is_fire_held);
    world.pressure.memory_percent = Some(0.0);
    world.pass(10 * S);
    assert_eq!(world.ordered(), ["/bin/first"]);
    let holds = world.published().into_iter().filter_map(|fact| match fact {
        Fact::Hold { change, .. } => Some(change),
        _ => None,
    });
    let holds: Vec<HoldChange> = holds.collect();
    // Agents of this host, and remote ones.
    assert_eq!(holds.len(), 4, "{holds:?}");
    assert_eq!(holds[2..], [HoldChange::Resumed; 2]);
}

#[test]
fn a_service_that_is_restarted_into_the_next_stall_waits_before_it_is_acted_on_again() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(SLACK_NS);
    world.end_program(0);
    world.exit(agent(0), ExitStatus::Signal(9));
    assert!(world.directory.is_empty());
    let next = Agent {
        pid: 900,
        instance: 900,
        ..agent(0)
    };
    world.join(next);
    world.stall(next);
    assert_eq!(
        world.directory[&0].recovery,
        Some(crate::Counter::RecoveryDebounced)
    );
    world.pass(2 * S);
    assert_eq!(world.ordered(), ["/bin/first"; 2]);
}

#[test]
fn an_outcome_that_comes_after_the_agent_has_left_is_published_and_frees_its_permit() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(SLACK_NS);
    world.exit(agent(0), ExitStatus::Signal(9));
    assert_eq!(world.engine.levels().in_flight, 1);
    world.end_program(0);
    assert_eq!(world.engine.levels().in_flight, 0);
    assert!(world.has_published(
        |fact| matches!(fact, Fact::ProgramEnded { agent, .. } if agent.name == "web")
    ));
    assert!(world.directory.is_empty());
}
