//! Several users on one host: the agents of one user do no harm to those of another.

mod support;

use std::time::Duration;

use support::agents::{Puppet, joined, me};
use support::ladders::{Marks, QUIET, ladder};
use support::users::{Place, USER};
use support::{frame, frame_of};

const SHARE_EXCEEDED: &str = "varta_tracker_user_share_exceeded_total";
const FULL: &str = "varta_tracker_capacity_exceeded_total";

/// Longer than any test.
const NEVER_MS: u32 = 3_600_000;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

#[test]
fn one_user_cannot_take_every_slot_and_a_full_table_makes_the_observer_unready() {
    let text = format!("threshold-ms = {NEVER_MS}\ntracker-capacity = 4\n");
    let Some(place) = Place::with(Marks::new(), &text, &[]) else {
        return;
    };
    let observer = &place.observer;
    let mut puppets: Vec<Puppet> = (0..4).map(|_| place.puppet()).collect();
    for puppet in &mut puppets[..3] {
        puppet.tell("beat self 1");
        observer.wait_for_pid("join", puppet.pid);
    }
    puppets[3].tell("beat self 1");
    let refused = observer.wait_for_refusal("user_share_exceeded");
    assert_eq!(refused.pid(), Some(puppets[3].pid));
    let share = format!("newcomers of uid {USER} found its share of 3 agents full");
    let ready = observer.ask("/readyz");
    assert_eq!(ready.status, 200, "others have room");
    assert!(ready.text().contains(&share), "{}", ready.text());

    observer.send(&frame(1));
    observer.wait_for_pid("join", me());
    let mut of_root = Puppet::start(&observer.socket);
    of_root.tell("beat self 1");
    observer.wait_for_refusal("capacity_exceeded");
    let ready = observer.ask("/readyz");
    assert_eq!(ready.status, 503);
    assert!(
        ready
            .text()
            .starts_with("not ready\nnewcomers found the table of 4 agents full")
    );

    // A free slot can be used by any user whose share is not used up.
    assert!(puppets.remove(0).leave(0).success());
    observer.wait_for("exit", |_| true);
    puppets[2].tell("beat self 2");
    observer.wait_for_pid("join", puppets[2].pid);
    assert_eq!(observer.ask("/readyz").status, 503, "full again");
    let info = observer.ask("/api/v1/info").text();
    assert!(info.contains(r#""full":true"#), "{info}");
    place
        .observer
        .stop()
        .assert_counters(&[(SHARE_EXCEEDED, 1), (FULL, 1)]);
}

#[test]
fn a_mass_stall_of_one_users_agents_holds_nobody_elses_fire() {
    let marks = Marks::new();
    let steps = [marks.mark("$VARTA_PID", "")];
    let (never, soon) = (ladder(NEVER_MS, &steps, ""), ladder(300, &steps, ""));
    let Some(place) = Place::with(marks, &never, &[]) else {
        return;
    };
    let observer = &place.observer;
    let mut crowd: Vec<Puppet> = (0..6).map(|_| place.puppet()).collect();
    for puppet in &mut crowd {
        puppet.tell("beat self 1");
        observer.wait_for_pid("join", puppet.pid);
    }
    let victim = joined(observer);
    // Agents that have been silent for a new threshold already get all of it from the reload on: they stall together.
    std::thread::sleep(Duration::from_millis(300));
    place.marks.reload(observer, &soon);
    let hold = observer.told("hold", |_| true);
    assert_eq!(hold.number("uid"), Some(USER), "{hold:?}");
    assert_eq!(hold.text("reason"), Some("mass_stall"));
    assert_eq!(place.marks.wait_for(1), [victim.pid.to_string()]);
    for puppet in &crowd {
        if observer.seen_of("stall", puppet.pid) == 0 {
            observer.wait_for_pid("stall", puppet.pid);
        }
    }
    observer.count_within("recover", QUIET);
    assert_eq!(place.marks.read(), [victim.pid.to_string()]);
    // All but one leave, and recovery acts on that one after all.
    for mut puppet in crowd.drain(1..) {
        assert!(puppet.leave(0).success());
    }
    let expected = [victim.pid, crowd[0].pid].map(|pid| pid.to_string());
    assert_eq!(place.marks.wait_for(2), expected);
}

#[test]
fn processes_without_end_do_not_renew_the_budget_of_their_user() {
    let marks = Marks::new();
    let steps = [marks.mark("$VARTA_PID", "")];
    let text = ladder(200, &steps, "budget = 1");
    let Some(place) = Place::with(marks, &text, &["--recovery-user-budget=2"]) else {
        return;
    };
    let observer = &place.observer;
    // Alive together, so that none of them inherits the budget of another one.
    let mut puppets: Vec<Puppet> = (0..3).map(|_| place.puppet()).collect();
    for (count, puppet) in (1..).zip(&mut puppets[..2]) {
        puppet.tell("beat self 1");
        place.marks.wait_for(count);
    }
    puppets[2].tell("beat self 1");
    let waits = observer.wait_for_outcome("user_budget_spent");
    assert_eq!(waits.pid(), Some(puppets[2].pid));
    assert!(waits.msg.contains("for agents of uid 65533"), "{waits:?}");
    observer.send(&frame_of(me(), 1));
    let acted = [puppets[0].pid, puppets[1].pid, me()].map(|pid| pid.to_string());
    assert_eq!(place.marks.wait_for(3), acted, "root has no bound");
}

#[test]
fn a_user_whose_service_comes_back_under_another_name_goes_on_with_its_budget() {
    let marks = Marks::new();
    let steps = ["{ signal = \"KILL\", wait = \"1h\" }".to_owned()];
    let text = ladder(200, &steps, "budget = 2");
    let Some(place) = Place::with(marks, &text, &[]) else {
        return;
    };
    let observer = &place.observer;
    let mut last = 0;
    for name in ["one", "two", "three"] {
        let program = place.agent.with_file_name(name);
        support::copy_program(&place.agent, &program);
        let mut puppet = Puppet::start_under(&support::users::AS_USER, &program, &observer.socket);
        puppet.tell("beat self 1");
        last = puppet.pid;
        match name {
            "three" => observer.wait_for_pid("gave_up", last),
            _ => observer.wait_for_pid("exit", last),
        };
    }
    let line = place.observer.stop();
    let line = line.lines_of("gave_up", last)[0];
    assert_eq!(line.text("reason"), Some("budget_spent"));
}
