use super::*;
use crate::fact::ResumeCause;

fn pause(agent: Agent, seconds: u64) -> Command {
    Command::Pause {
        agent,
        time: Duration::from_secs(seconds),
        reason: Some("deploy".to_owned()),
    }
}

fn resumed(world: &World) -> Vec<ResumeCause> {
    let causes = world.facts.iter().filter_map(|fact| match fact {
        Fact::Resumed { cause, .. } => Some(*cause),
        _ => None,
    });
    causes.collect()
}

#[test]
fn a_pause_is_answered_after_its_update_and_ends_by_itself() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.command(1, pause(agent(0), 10));
    let time = Duration::from_secs(10);
    assert_eq!(world.updates, [AgentUpdate::Pause(agent(0), time)]);
    assert_eq!(world.answers, [(1, Ok(()))]);
    assert_eq!(world.directory[&0].pause_reason.as_deref(), Some("deploy"));
    world.pass(9 * S);
    assert_eq!(resumed(&world), []);
    world.pass(2 * S);
    assert_eq!(resumed(&world), [ResumeCause::Expired]);
    assert_eq!(world.directory[&0].pause_reason, None);
}

#[test]
fn a_paused_agent_is_not_acted_on_and_its_ladder_ends() {
    let mut world = World::new(policy(&[run("/bin/first"), run("/bin/second")]));
    world.join(agent(0));
    world.stall(agent(0));
    world.pass(SLACK_NS);
    world.command(1, pause(agent(0), 100));
    world.end_program(0);
    world.pass(90 * S);
    assert_eq!(world.ordered(), ["/bin/first"]);
}

#[test]
fn a_stall_that_was_reported_while_the_pause_still_counted_is_acted_on_when_it_is_over() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.command(1, pause(agent(0), 10));
    world.stall(agent(0));
    world.pass(9 * S);
    assert_eq!(world.ordered(), [""; 0]);
    world.pass(2 * S);
    assert_eq!(world.ordered(), ["/bin/first"]);
}

#[test]
fn a_pause_lasts_as_long_as_the_beat_path_counts_no_silence() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.command(1, pause(agent(0), 10));
    let until_ns = world.now_ns + 15 * S;
    world.change(agent(0), |slot| slot.paused_until_ns = until_ns);
    world.pass(14 * S);
    assert_eq!(resumed(&world), []);
    world.pass(2 * S);
    assert_eq!(resumed(&world), [ResumeCause::Expired]);
}

#[test]
fn the_last_word_about_an_agent_counts_and_a_resume_ends_a_pause_early() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.command(1, pause(agent(0), 100));
    world.command(2, pause(agent(0), 5));
    world.pass(6 * S);
    assert_eq!(resumed(&world), [ResumeCause::Expired]);
    world.command(3, pause(agent(0), 100));
    world.command(4, Command::Resume { agent: agent(0) });
    assert_eq!(resumed(&world)[1..], [ResumeCause::Operator]);
    assert_eq!(world.updates.last(), Some(&AgentUpdate::Resume(agent(0))));
    world.command(5, Command::Resume { agent: agent(0) });
    assert_eq!(resumed(&world).len(), 2, "it was not paused");
    assert_eq!(world.engine.next_timeout(), None);
}

#[test]
fn the_next_agent_in_a_slot_has_nothing_to_do_with_the_pause_of_the_one_before() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.command(1, pause(agent(0), 100));
    world.exit(agent(0), ExitStatus::Code(0));
    let next = Agent {
        instance: 900,
        ..agent(0)
    };
    world.join(next);
    world.command(2, Command::Resume { agent: agent(0) });
    assert_eq!(world.answers.last(), Some(&(2, Err(AgentGone))));
    world.stall(next);
    world.pass(S);
    assert_eq!(world.ordered(), ["/bin/first"]);
    assert_eq!(resumed(&world), []);
}

#[test]
fn a_pause_that_takes_the_place_of_a_longer_one_is_over_in_its_own_time() {
    let mut world = World::new(policy(&[run("/bin/first")]));
    world.join(agent(0));
    world.command(1, pause(agent(0), 3600));
    let until_ns = world.now_ns + 3600 * S;
    world.change(agent(0), |slot| slot.paused_until_ns = until_ns);
    world.command(2, pause(agent(0), 1));
    world.pass(2 * S);
    assert_eq!(resumed(&world), [], "the beat path has not heard of it");
    world.change(agent(0), |slot| slot.paused_until_ns = 0);
    world.pass(S / 5);
    assert_eq!(resumed(&world), [ResumeCause::Expired]);
}
