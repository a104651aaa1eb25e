use super::*;
use crate::fact::{HookOutcome, Occasion, WithdrawReason};

fn with_hooks(hooks: HookSteps) -> Policy {
    Policy {
        rules: vec![AgentRule {
            hooks,
            ladder: LadderChoice::None,
            ..rule("web")
        }],
        ..policy(&[run("/bin/ladder")])
    }
}

fn ended(world: &World, occasion: Occasion) -> Option<HookOutcome> {
    world.facts.iter().find_map(|fact| match fact {
        Fact::HookEnded {
            occasion: of,
            outcome,
            ..
        } if *of == occasion => Some(outcome.clone()),
        _ => None,
    })
}

#[test]
fn a_hook_takes_its_steps_in_order_until_one_fails() {
    let mut world = World::new(with_hooks(HookSteps {
        on_critical: vec![run("/bin/a"), run("/bin/b"), run("/bin/c")],
        ..HookSteps::default()
    }));
    world.join(agent(0));
    let critical = EventKind::Critical {
        agent: agent(0),
        nonce: 2,
        payload: 0,
    };
    world.event(critical, None);
    world.pass(S);
    world.end_program(0);
    world.pass(S);
    world.end_program(3);
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/a", "/bin/b"]);
    let outcome = ended(&world, Occasion::Critical);
    assert!(
        matches!(&outcome, Some(HookOutcome::ProgramFailed { program, .. }) if program == "/bin/b"),
        "{outcome:?}"
    );
    assert_eq!(world.engine.levels().in_flight, 0);
}

#[test]
fn a_hook_that_waits_is_looked_at_again_before_its_next_step() {
    let mut world = World::new(with_hooks(HookSteps {
        on_late: vec![Step::Wait(Duration::from_secs(5)), run("/bin/a")],
        ..HookSteps::default()
    }));
    world.join(agent(0));
    world.late(agent(0));
    world.pass(S);
    world.change(agent(0), |slot| slot.state = SlotState::Alive);
    world.pass(10 * S);
    assert_eq!(world.ordered(), [""; 0]);
    let is_withdrawn = |fact: &Fact| {
        matches!(
            fact,
            Fact::HookWithdrawn {
                reason: WithdrawReason::Returned,
                ..
            }
        )
    };
    assert!(world.has_published(is_withdrawn));
}

#[test]
fn one_hook_per_agent_and_occasion_is_under_way() {
    let mut world = World::new(with_hooks(HookSteps {
        on_late: vec![run("/bin/a")],
        ..HookSteps::default()
    }));
    world.join(agent(0));
    world.late(agent(0));
    world.pass(S);
    world.late(agent(0));
    assert!(world.has_published(|fact| matches!(fact, Fact::HookDropped { .. })));
    world.end_program(0);
    world.late(agent(0));
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/a"; 2]);
}

#[test]
fn an_exit_hook_outlives_its_agent_and_a_clean_exit_is_no_occasion() {
    let mut world = World::new(with_hooks(HookSteps {
        on_exit: vec![run("/bin/a"), run("/bin/b")],
        ..HookSteps::default()
    }));
    world.join(agent(0));
    world.join(agent(1));
    world.exit(agent(0), ExitStatus::Code(1));
    world.exit(agent(1), ExitStatus::Code(0));
    world.pass(S);
    assert!(!world.orders[0].subject.is_target);
    assert_eq!(world.orders[0].subject.name, "web");
    world.end_program(0);
    world.pass(S);
    world.end_program(0);
    assert_eq!(world.ordered(), ["/bin/a", "/bin/b"]);
    assert_eq!(
        ended(&world, Occasion::Exit),
        Some(HookOutcome::Done { steps: 2 })
    );
}

#[test]
fn ladders_come_before_hooks_and_no_hook_is_ordered_while_fire_is_held() {
    let mut world = World::new(Policy {
        rules: vec![AgentRule {
            hooks: HookSteps {
                on_late: vec![run("/bin/hook")],
                ..HookSteps::default()
            },
            ..rule("web")
        }],
        ..policy(&[run("/bin/ladder")])
    });
    world.pressure.io_percent = Some(90.0);
    world.join(agent(0));
    world.join(agent(1));
    world.late(agent(0));
    world.stall(agent(1));
    world.pass(S);
    assert_eq!(world.ordered(), [""; 0]);
    world.pressure.io_percent = Some(0.0);
    world.pass(10 * S);
    assert_eq!(world.ordered(), ["/bin/ladder", "/bin/hook"]);
}

#[test]
fn a_hook_signals_no_process_in_a_container_but_runs_a_program_about_it() {
    let mut world = World::new(with_hooks(HookSteps {
        on_late: vec![run("/bin/a"), kill()],
        ..HookSteps::default()
    }));
    world.join(agent(0));
    world.late(agent(0));
    world.pass(S);
    world.end_program(0);
    world.pass(S);
    let refuse: Vec<bool> = world
        .orders
        .iter()
        .map(|order| order.refuse_foreign)
        .collect();
    assert_eq!(refuse, [false, true]);
}

#[test]
fn a_change_of_the_mode_withdraws_a_hook_before_its_next_step() {
    let policy = with_hooks(HookSteps {
        on_late: vec![Step::Wait(Duration::from_secs(5)), run("/bin/a")],
        ..HookSteps::default()
    });
    let mut world = World::new(policy.clone());
    world.join(agent(0));
    world.late(agent(0));
    world.pass(S);
    world.reload(Policy {
        mode: Mode::Observe,
        ..policy
    });
    world.pass(10 * S);
    assert_eq!(world.ordered(), [""; 0]);
    let is_withdrawn = |fact: &Fact| {
        matches!(
            fact,
            Fact::HookWithdrawn {
                reason: WithdrawReason::ModeChanged,
                ..
            }
        )
    };
    assert!(world.has_published(is_withdrawn));
}
