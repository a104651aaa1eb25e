use super::*;
use crate::permits::UserBudget;

const S: u64 = 1_000_000_000;
/// The wheel rounds up to its tick.
const SLACK: u64 = 1 << crate::wheel::TICK_SHIFT;
/// Pauses are spread by up to a quarter.
const SPREAD: u64 = 4;

fn agent(slot: u32) -> Agent {
    Agent {
        slot,
        pid: 100 + slot,
        instance: 1,
        stream: 0,
    }
}

fn remote_agent(slot: u32) -> Agent {
    let address = "10.0.0.1:1".parse().unwrap();
    Agent {
        instance: crate::agent::remote_source(crate::agent::NO_KEY, &address, 0),
        ..agent(slot)
    }
}

fn service(service: u64) -> Lineage {
    Lineage {
        service,
        ..Lineage::default()
    }
}

fn act(patience_s: u64) -> StepTiming {
    StepTiming::Act {
        grace_ns: patience_s * S,
        needs_permit: true,
    }
}

/// One that takes no time.
fn signal(patience_s: u64) -> StepTiming {
    StepTiming::Act {
        grace_ns: patience_s * S,
        needs_permit: false,
    }
}

fn ladder(steps: &[StepTiming]) -> LadderTiming {
    LadderTiming {
        tag: 0,
        steps: steps.to_vec(),
        debounce_ns: 5 * S,
        budget: 10,
        window_ns: 600 * S,
        backoff_ns: S,
        backoff_max_ns: 60 * S,
        reset_after_ns: 300 * S,
    }
}

fn recovery_with(max_in_flight: usize, ladder: LadderTiming) -> Ladders {
    let limits = PermitLimits {
        max_in_flight,
        starts_per_second: 0,
        user_budget: UserBudget::default(),
    };
    Ladders::new(16, vec![ladder], limits, 7)
}

fn recovery(steps: &[StepTiming]) -> Ladders {
    recovery_with(8, ladder(steps))
}

fn acts(agent: Agent, step: u32) -> Option<Next> {
    Some(Next::Act(action(agent, step)))
}

fn action(agent: Agent, step: u32) -> Action {
    Action {
        agent,
        ladder: 0,
        step,
        needs_permit: true,
    }
}

#[test]
fn the_ladder_is_climbed_step_by_step_and_then_given_up() {
    let mut recovery = recovery(&[act(10), StepTiming::Wait { wait_ns: 3 * S }, act(20)]);
    assert_eq!(recovery.on_stall(agent(0), Some(0), S), Plan::Now);
    let mut now_ns = S + SLACK;
    assert_eq!(recovery.next(now_ns), acts(agent(0), 0));
    assert_eq!(recovery.next(now_ns), None, "single flight");
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, now_ns);
    assert_eq!(recovery.next(now_ns + 10 * S - SLACK), None, "its time");
    now_ns += 10 * S + SLACK;
    assert_eq!(recovery.next(now_ns), None, "waits");
    assert_eq!(recovery.next(now_ns + 3 * S - SLACK), None, "waits still");
    now_ns += 3 * S + SLACK;
    assert_eq!(recovery.next(now_ns), acts(agent(0), 2));
    recovery.on_end(action(agent(0), 2), ActionEnd::Handled, now_ns);
    now_ns += 20 * S + SLACK;
    let gave_up = Next::GaveUp(agent(0), GaveUp::StepsExhausted);
    assert_eq!(recovery.next(now_ns), Some(gave_up));
    assert_eq!(recovery.next(now_ns + 1000 * S), None, "said once");
    let silence_ended = recovery.on_silence_ended(agent(0), now_ns + 1000 * S);
    assert!(silence_ended.acted && silence_ended.gave_up);
}

#[test]
fn what_the_observer_lacks_the_means_for_is_tried_again_and_spends_nothing() {
    let mut recovery = recovery_with(
        1,
        LadderTiming {
            budget: 2,
            ..ladder(&[act(10), act(10)])
        },
    );
    recovery.on_stall(agent(0), Some(0), S);
    let mut now_ns = S + SLACK;
    for _ in 0..100 {
        assert_eq!(recovery.next(now_ns), acts(agent(0), 0), "the same step");
        recovery.on_end(action(agent(0), 0), ActionEnd::Postponed, now_ns);
        assert_eq!((recovery.next(now_ns), recovery.in_flight()), (None, 0));
        now_ns += S + SLACK;
    }
    // The budget of two is whole.
    for step in 0..2 {
        assert_eq!(recovery.next(now_ns), acts(agent(0), step));
        recovery.on_end(action(agent(0), step), ActionEnd::Handled, now_ns);
        now_ns += 10 * S + SLACK;
    }
    assert!(recovery.on_silence_ended(agent(0), now_ns).acted);
}

#[test]
fn a_silence_in_which_everything_was_postponed_leaves_no_debts() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), S);
    recovery.next(S + SLACK);
    recovery.on_end(action(agent(0), 0), ActionEnd::Postponed, 2 * S);
    let silence_ended = recovery.on_silence_ended(agent(0), 3 * S);
    assert!(!silence_ended.acted);
    assert_eq!(recovery.on_stall(agent(0), Some(0), 4 * S), Plan::Now);
}

#[test]
fn a_process_that_leaves_and_beats_again_is_not_acted_on_while_the_last_action_runs() {
    let mut ladders = recovery(&[act(10)]);
    ladders.on_stall(agent(0), Some(0), S);
    let mut now_ns = S + SLACK;
    assert_eq!(ladders.next(now_ns), acts(agent(0), 0));
    ladders.on_gone(agent(0), service(1), now_ns);
    ladders.on_join(agent(0), service(1));
    now_ns += 60 * S;
    let plan = ladders.on_stall(agent(0), Some(0), now_ns);
    assert_eq!(plan, Plan::StillActing);
    assert_eq!(ladders.next(now_ns + S), None);
    ladders.on_end(action(agent(0), 0), ActionEnd::Failed, now_ns);
    assert_eq!(ladders.next(now_ns + 10 * S), acts(agent(0), 0));
}

#[test]
fn an_agent_that_comes_back_in_its_time_is_left_alone_and_starts_at_the_foot_again() {
    let mut recovery = recovery(&[act(10), act(10)]);
    recovery.on_stall(agent(0), Some(0), S);
    recovery.next(S + SLACK);
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, 2 * S);
    let silence_ended = recovery.on_silence_ended(agent(0), 3 * S);
    assert!(silence_ended.acted && !silence_ended.gave_up);
    assert_eq!(recovery.next(100 * S), None);
    assert_eq!(recovery.on_stall(agent(0), Some(0), 100 * S), Plan::Now);
    assert_eq!(recovery.next(100 * S + SLACK), acts(agent(0), 0));
}

#[test]
fn a_failed_step_leads_to_the_next_at_once_and_the_last_is_tried_again_with_growing_pauses() {
    let mut recovery = recovery_with(
        8,
        LadderTiming {
            debounce_ns: 0,
            ..ladder(&[act(10), act(10)])
        },
    );
    recovery.on_stall(agent(0), Some(0), S);
    let mut now_ns = S + SLACK;
    assert_eq!(recovery.next(now_ns), acts(agent(0), 0));
    recovery.on_end(action(agent(0), 0), ActionEnd::Failed, now_ns);
    now_ns += SLACK;
    for pause_s in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(recovery.next(now_ns), acts(agent(0), 1));
        recovery.on_end(action(agent(0), 1), ActionEnd::Failed, now_ns);
        assert_eq!(recovery.next(now_ns + pause_s * S - SLACK), None);
        now_ns += pause_s * S + pause_s * S / SPREAD + SLACK;
    }
    assert_eq!(recovery.next(now_ns), acts(agent(0), 1));
    recovery.on_end(action(agent(0), 1), ActionEnd::Failed, now_ns);
    let gave_up = Next::GaveUp(agent(0), GaveUp::BudgetSpent);
    assert_eq!(recovery.next(now_ns + 80 * S), Some(gave_up));
}

#[test]
fn a_second_stall_within_the_debounce_is_deferred_not_dropped() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), S);
    recovery.next(S + SLACK);
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, S + SLACK);
    recovery.on_silence_ended(agent(0), 2 * S);
    assert_eq!(recovery.on_stall(agent(0), Some(0), 3 * S), Plan::TooRecent);
    assert_eq!(recovery.next(5 * S), None);
    assert!(recovery.next_due_ns().unwrap() >= 6 * S);
    assert_eq!(recovery.next(6 * S + 3 * SLACK), acts(agent(0), 0));
}

#[test]
fn an_agent_that_falls_silent_again_and_again_is_acted_on_ever_more_seldom_until_it_is_well() {
    let mut recovery = recovery_with(
        8,
        LadderTiming {
            debounce_ns: 0,
            ..ladder(&[act(10)])
        },
    );
    let mut now_ns = S;
    let mut pauses = Vec::new();
    for _ in 0..5 {
        recovery.on_stall(agent(0), Some(0), now_ns);
        let stalled_ns = now_ns;
        while recovery.next(now_ns).is_none() {
            now_ns = recovery.next_due_ns().unwrap().max(now_ns) + SLACK;
        }
        pauses.push((now_ns - stalled_ns) / S);
        recovery.on_end(action(agent(0), 0), ActionEnd::Handled, now_ns);
        recovery.on_silence_ended(agent(0), now_ns);
    }
    assert!(
        pauses.is_sorted() && pauses[0] == 0 && pauses[4] >= 4,
        "{pauses:?}"
    );
    now_ns += 300 * S;
    assert_eq!(recovery.on_stall(agent(0), Some(0), now_ns), Plan::Now);
}

#[test]
fn a_stall_while_the_action_of_the_last_one_runs_is_acted_on_after_that() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), S);
    recovery.next(S + SLACK);
    recovery.on_silence_ended(agent(0), 2 * S);
    let plan = recovery.on_stall(agent(0), Some(0), 20 * S);
    assert_eq!(plan, Plan::StillActing);
    assert_eq!(recovery.next(20 * S + SLACK), None);
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, 30 * S);
    assert_eq!(recovery.next(30 * S + SLACK), acts(agent(0), 0));
}

#[test]
fn no_more_than_the_limit_are_in_flight_and_every_agent_gets_its_turn() {
    let mut recovery = recovery_with(3, ladder(&[act(1000)]));
    for slot in 0..10 {
        recovery.on_stall(agent(slot), Some(0), 0);
    }
    let mut acted = Vec::new();
    let mut running = Vec::new();
    let mut waited = Vec::new();
    for step in 1..20 {
        while let Some(next) = recovery.next(step * S) {
            match next {
                Next::Act(action) => running.push(action),
                Next::Waits(agent) => waited.push(agent.slot),
                Next::GaveUp(..) | Next::UserWaits(..) => panic!("{next:?}"),
            }
        }
        assert!(recovery.in_flight() <= 3);
        if recovery.in_flight() == 3 {
            let due_ns = recovery.next_due_ns();
            assert!(
                due_ns.is_none_or(|due_ns| due_ns >= 1000 * S),
                "waits for an end"
            );
        }
        if let Some(action) = running.pop() {
            recovery.on_end(action, ActionEnd::Handled, step * S);
            acted.push(action.agent.slot);
        }
    }
    acted.sort_unstable();
    assert_eq!(acted, (0..10).collect::<Vec<_>>());
    assert_eq!(waited, (3..10).collect::<Vec<_>>(), "told once");
}

#[test]
fn an_action_done_at_once_needs_no_permit() {
    let commands = ladder(&[act(1000)]);
    let signals = ladder(&[signal(10), act(1000)]);
    let limits = PermitLimits {
        max_in_flight: 1,
        starts_per_second: 0,
        user_budget: UserBudget::default(),
    };
    let mut recovery = Ladders::new(16, vec![commands, signals], limits, 7);
    for slot in 0..2 {
        recovery.on_stall(agent(slot), Some(0), 0);
    }
    assert_eq!(recovery.next(SLACK), acts(agent(0), 0));
    recovery.on_stall(agent(2), Some(1), S);
    let sent = Action {
        agent: agent(2),
        ladder: 1,
        step: 0,
        needs_permit: false,
    };
    assert_eq!(recovery.next(S + SLACK), Some(Next::Act(sent)));
    assert_eq!(recovery.in_flight(), 1, "only the command");
    recovery.on_end(sent, ActionEnd::Handled, 2 * S);
    assert_eq!(recovery.in_flight(), 1);
    assert_eq!(recovery.next(2 * S), Some(Next::Waits(agent(1))));
    assert_eq!(recovery.next(20 * S), Some(Next::Waits(agent(2))));
    assert_eq!(recovery.next(20 * S), None);
}

#[test]
fn what_is_done_at_once_counts_against_the_rate() {
    let limits = PermitLimits {
        max_in_flight: 1,
        starts_per_second: 2,
        user_budget: UserBudget::default(),
    };
    let mut recovery = Ladders::new(16, vec![ladder(&[signal(10)])], limits, 7);
    for slot in 0..3 {
        recovery.on_stall(agent(slot), Some(0), 10 * S);
    }
    let now_ns = 10 * S + SLACK;
    let mut acted = 0;
    while let Some(Next::Act(action)) = recovery.next(now_ns) {
        recovery.on_end(action, ActionEnd::Handled, now_ns);
        acted += 1;
    }
    assert_eq!(acted, 2);
    assert_eq!(recovery.next_due_ns(), Some(now_ns + S / 2));
}

#[test]
fn a_rehearsal_costs_nothing_and_leaves_the_silent_at_the_foot_of_their_ladders() {
    let mut recovery = recovery_with(
        8,
        LadderTiming {
            budget: 2,
            ..ladder(&[act(10), act(10)])
        },
    );
    // One real action, and then a silence that is acted on in rehearsal only.
    recovery.on_stall(agent(0), Some(0), S);
    recovery.next(S + SLACK);
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, S + SLACK);
    recovery.on_silence_ended(agent(0), 2 * S);
    let since_ns = 50 * S;
    recovery.on_stall(agent(0), Some(0), since_ns);
    assert_eq!(recovery.next(since_ns + SLACK), acts(agent(0), 0));
    let end_ns = since_ns + SLACK;
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, end_ns);
    let spent = Next::GaveUp(agent(0), GaveUp::BudgetSpent);
    assert_eq!(recovery.next(end_ns + 11 * S), Some(spent));
    recovery.forget_rehearsal(since_ns);
    assert!(!recovery.is_silent(agent(0)));
    assert_eq!(recovery.next(100 * S), None);
    assert_eq!(recovery.on_stall(agent(0), Some(0), 100 * S), Plan::Now);
    assert_eq!(recovery.next(100 * S + SLACK), acts(agent(0), 0));
    recovery.on_end(action(agent(0), 0), ActionEnd::Failed, 101 * S);
    let spent = recovery.next(101 * S + SLACK);
    let expected = Next::GaveUp(agent(0), GaveUp::BudgetSpent);
    assert_eq!(spent, Some(expected), "the real one of before counts");
}

#[test]
fn a_rehearsal_leaves_no_debts_to_successors() {
    let mut recovery = recovery_with(
        8,
        LadderTiming {
            budget: 1,
            ..ladder(&[act(10)])
        },
    );
    recovery.on_join(agent(0), service(7));
    recovery.on_stall(agent(0), Some(0), S);
    recovery.next(S + SLACK);
    recovery.on_gone(agent(0), service(7), 2 * S);
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, 2 * S);
    recovery.forget_rehearsal(S);
    let successor = Agent {
        instance: 2,
        ..agent(0)
    };
    recovery.on_join(successor, service(7));
    assert_eq!(recovery.on_stall(successor, Some(0), 3 * S), Plan::Now);
    assert_eq!(recovery.next(3 * S + SLACK), acts(successor, 0));
}

#[test]
fn nothing_is_started_or_given_up_while_fire_is_held_and_all_of_it_after() {
    let mut recovery = recovery(&[act(10)]);
    for slot in 0..3 {
        recovery.on_stall(agent(slot), Some(0), 0);
    }
    recovery.hold(Locality::Local, true);
    assert_eq!(recovery.next(1000 * S), None);
    assert_eq!(recovery.next_due_ns(), None);
    recovery.hold(Locality::Local, false);
    let started = || recovery.next(1000 * S);
    assert_eq!(std::iter::from_fn(started).count(), 3);
}

#[test]
fn fire_held_for_remote_agents_is_free_for_local_ones() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), 0);
    recovery.on_stall(remote_agent(1), Some(0), 0);
    recovery.hold(Locality::Remote, true);
    assert_eq!(recovery.next(S), acts(agent(0), 0));
    assert_eq!(recovery.next(S), None);
    recovery.hold(Locality::Remote, false);
    assert_eq!(recovery.next(S), acts(remote_agent(1), 0));
}

#[test]
fn an_agent_that_came_back_is_not_acted_on() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), 0);
    recovery.on_silence_ended(agent(0), 0);
    assert_eq!(recovery.next(S), None);
    assert_eq!(recovery.next_due_ns(), None);
}

#[test]
fn a_new_owner_of_a_slot_inherits_neither_debounce_nor_action() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), 0);
    recovery.next(SLACK);
    let successor = Agent {
        instance: 2,
        ..agent(0)
    };
    assert_eq!(recovery.on_stall(successor, Some(0), S), Plan::Now);
    recovery.on_end(action(agent(0), 0), ActionEnd::Failed, S);
    assert_eq!(recovery.next(S + SLACK), acts(successor, 0));
    recovery.on_end(action(successor, 0), ActionEnd::Handled, 2 * S);
    assert_eq!(recovery.in_flight(), 0);
}

#[test]
fn a_service_that_hangs_after_every_restart_spends_one_budget() {
    let budget = 3;
    let ladder = LadderTiming {
        budget,
        debounce_ns: 0,
        ..ladder(&[act(10)])
    };
    let mut recovery = recovery_with(8, ladder);
    let mut now_ns = S;
    let mut acted = 0;
    for instance in 1..10 {
        let agent = Agent {
            instance,
            ..agent((instance % 4) as u32)
        };
        recovery.on_join(agent, service(99));
        recovery.on_stall(agent, Some(0), now_ns);
        now_ns += 20 * S;
        match recovery.next(now_ns) {
            Some(Next::Act(action)) => {
                acted += 1;
                recovery.on_end(action, ActionEnd::Handled, now_ns);
            }
            next => assert_eq!(next, Some(Next::GaveUp(agent, GaveUp::BudgetSpent))),
        }
        recovery.on_gone(agent, service(99), now_ns);
    }
    assert_eq!(acted, budget);
}

#[test]
fn a_target_that_is_gone_is_not_tried_again() {
    let mut recovery = recovery(&[act(10), act(10)]);
    recovery.on_stall(agent(0), Some(0), 0);
    recovery.next(SLACK);
    recovery.on_end(action(agent(0), 0), ActionEnd::TargetGone, SLACK);
    assert_eq!(recovery.next_due_ns(), None);
}

#[test]
fn remote_agents_cannot_block_the_recovery_of_a_local_one() {
    let mut recovery = recovery_with(2, ladder(&[act(10)]));
    for slot in 0..15 {
        recovery.on_stall(remote_agent(slot), Some(0), 0);
    }
    assert!(matches!(recovery.next(S), Some(Next::Act(_))));
    assert!(!matches!(recovery.next(S), Some(Next::Act(_))));
    recovery.on_stall(agent(15), Some(0), S);
    assert_eq!(recovery.next(2 * S), acts(agent(15), 0));
}

#[test]
fn a_reload_continues_an_unchanged_ladder_and_restarts_a_changed_one() {
    let mut recovery = recovery(&[act(10), act(10)]);
    let limits = PermitLimits {
        max_in_flight: 8,
        starts_per_second: 0,
        user_budget: UserBudget::default(),
    };
    recovery.on_stall(agent(0), Some(0), 0);
    recovery.next(SLACK);
    recovery.on_end(action(agent(0), 0), ActionEnd::Failed, S);
    let same = vec![ladder(&[act(10), act(10)])];
    recovery.reload(same, limits, |_| Some(0), S);
    assert_eq!(recovery.next(S + SLACK), acts(agent(0), 1));
    recovery.on_end(action(agent(0), 1), ActionEnd::Handled, S);
    let other = vec![LadderTiming {
        tag: 1,
        ..ladder(&[act(10), act(10)])
    }];
    recovery.reload(other, limits, |_| Some(0), 2 * S);
    assert_eq!(recovery.next(7 * S), acts(agent(0), 0));
}

#[test]
fn a_reload_that_takes_the_ladder_of_an_agent_away_ends_what_is_done_about_it() {
    let mut recovery = recovery(&[act(10), act(10)]);
    let limits = PermitLimits {
        max_in_flight: 8,
        starts_per_second: 0,
        user_budget: UserBudget::default(),
    };
    for slot in 0..2 {
        recovery.on_stall(agent(slot), Some(0), 0);
        recovery.next(SLACK);
    }
    recovery.on_end(action(agent(0), 0), ActionEnd::Handled, S);
    recovery.reload(Vec::new(), limits, |_| None, 2 * S);
    recovery.on_end(action(agent(1), 0), ActionEnd::Failed, 3 * S);
    assert_eq!(recovery.next_due_ns(), None);
    assert_eq!(recovery.next(1000 * S), None);
    assert_eq!(recovery.in_flight(), 0);
    let back = vec![ladder(&[act(10)])];
    recovery.reload(back, limits, |_| Some(0), 1000 * S);
    assert_eq!(recovery.next(1001 * S), acts(agent(0), 0), "silent still");
}

#[test]
fn a_second_stall_is_acted_on_even_if_the_end_of_the_first_was_not_reported() {
    let mut recovery = recovery(&[act(10)]);
    recovery.on_stall(agent(0), Some(0), S);
    assert_eq!(recovery.next(S + SLACK), acts(agent(0), 0));
    recovery.on_end(action(agent(0), 0), ActionEnd::TargetGone, S + SLACK);
    assert_eq!(recovery.on_stall(agent(0), Some(0), 50 * S), Plan::Now);
    assert_eq!(recovery.next(50 * S + SLACK), acts(agent(0), 0));
}

#[test]
fn what_never_began_was_not_done() {
    for end in [ActionEnd::TargetGone, ActionEnd::Refused] {
        let mut recovery = recovery(&[act(10)]);
        recovery.on_stall(agent(0), Some(0), S);
        assert_eq!(recovery.next(S + SLACK), acts(agent(0), 0));
        recovery.on_end(action(agent(0), 0), end, S + SLACK);
        assert!(!recovery.on_silence_ended(agent(0), 2 * S).acted);
    }
}
