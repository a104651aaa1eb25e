//! The scope of held fire, for agents of several users; the last test against an oracle.

use super::*;

const S: u64 = 1_000_000_000;
const CALM: Pressure = Pressure {
    memory_percent: None,
    io_percent: None,
};

fn options() -> HoldOptions {
    HoldOptions {
        share: Some(0.5),
        min: 5,
        mass_max_ns: Some(600 * S),
        memory_percent: None,
        io_percent: None,
    }
}

/// Users with the number of their agents, and how many of these just fell silent.
fn crowds(users: &[(u32, u32, u32)]) -> SilenceByGroup {
    let mut groups = SilenceByGroup::default();
    for (user, watched, fresh) in users {
        let counts = SilenceCounts {
            watched: *watched,
            silent: *fresh,
            fresh: *fresh,
            latched: 0,
            threshold_ns: 0,
        };
        groups.local.watched += watched;
        groups.local.silent += fresh;
        groups.local.fresh += fresh;
        groups.users.insert(*user, counts);
    }
    groups
}

/// The scopes held when these agents are judged for the first time.
fn held(users: &[(u32, u32, u32)]) -> Vec<Scope> {
    let mut holds = Holds::new(options());
    let changes = holds.judge(&crowds(users), CALM, S);
    changes.into_iter().map(|(scope, _)| scope).collect()
}

const ALL: Scope = Scope::All(Locality::Local);

#[test]
fn a_mass_stall_of_one_user_holds_fire_for_that_user_only() {
    assert_eq!(held(&[(0, 3, 0), (7, 100, 100)]), [Scope::User(7)]);
    assert_eq!(held(&[(0, 100, 100), (7, 3, 0)]), [Scope::User(0)]);
    // One agent of another user hangs at that time.
    assert_eq!(held(&[(0, 1, 1), (7, 100, 100)]), [Scope::User(7)]);
    assert_eq!(held(&[(0, 3, 1), (7, 100, 100)]), [Scope::User(7)]);
    // Less than half of all agents, and all of one user's.
    assert_eq!(held(&[(0, 100, 0), (7, 10, 10)]), [Scope::User(7)]);
}

#[test]
fn two_users_together_hold_no_fire_but_their_own() {
    let users = [(0, 10, 0), (7, 100, 100), (8, 100, 100)];
    assert_eq!(held(&users), [Scope::User(7), Scope::User(8)]);
}

#[test]
fn a_mass_stall_across_users_is_the_hosts() {
    assert_eq!(held(&[(0, 4, 4), (7, 3, 3)]), [ALL], "few of each");
    assert_eq!(
        held(&[(0, 3, 3), (7, 100, 100)]),
        [ALL, Scope::User(7)],
        "few of the one"
    );
    let all = [ALL, Scope::User(0), Scope::User(7)];
    assert_eq!(held(&[(0, 9, 9), (7, 100, 100)]), all);
}

#[test]
fn few_agents_are_no_mass_stall_of_any_user() {
    assert_eq!(held(&[(0, 2, 2), (7, 2, 2)]), []);
    assert_eq!(held(&[(0, 90, 0), (7, 4, 4)]), []);
}

#[test]
fn fire_is_free_again_when_the_users_agents_are_back_or_gone() {
    for after in [&[(0, 3, 0), (7, 100, 0)][..], &[(0, 3, 0)]] {
        let mut holds = Holds::new(options());
        holds.judge(&crowds(&[(0, 3, 0), (7, 100, 100)]), CALM, S);
        assert!(holds.is_held_for(7) && !holds.is_held_for(0) && !holds.is_held(Locality::Local));
        let changes = holds.judge(&crowds(after), CALM, 2 * S);
        assert_eq!(changes, [(Scope::User(7), HoldChange::Resumed)]);
        assert!(!holds.is_any_held());
    }
}

#[test]
fn one_users_mass_stall_that_does_not_end_holds_fire_for_a_bounded_time() {
    let mut holds = Holds::new(options());
    let mut crowds = crowds(&[(0, 3, 0), (7, 100, 100)]);
    holds.judge(&crowds, CALM, S);
    crowds.users.get_mut(&7).unwrap().fresh = 0;
    crowds.local.fresh = 0;
    assert_eq!(holds.judge(&crowds, CALM, 600 * S), []);
    let changes = holds.judge(&crowds, CALM, 601 * S);
    assert_eq!(changes, [(Scope::User(7), HoldChange::Expired)]);
    assert_eq!(holds.judge(&crowds, CALM, 602 * S), []);
}

#[test]
fn a_starving_host_holds_fire_for_all_agents() {
    let mut holds = Holds::new(HoldOptions {
        memory_percent: Some(20.0),
        ..options()
    });
    let starving = Pressure {
        memory_percent: Some(50.0),
        ..CALM
    };
    holds.judge(&crowds(&[(0, 3, 0), (7, 3, 0)]), starving, S);
    assert!(holds.is_held(Locality::Local) && holds.is_held(Locality::Remote));
    assert_eq!(holds.users().count(), 0);
}

/// A number below `bound` that is the same in every run.
fn drawn(state: &mut u64, bound: u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as u32 % bound
}

#[test]
fn where_all_agents_are_one_users_fire_is_held_as_if_there_were_no_users() {
    let mut state = 1;
    let (mut holds, mut plain) = (Holds::new(options()), HoldFire::new(options()));
    for step in 1..200_000 {
        let watched = drawn(&mut state, 12);
        let silent = drawn(&mut state, watched + 1);
        let mut crowds = crowds(&[(7, watched, silent)]);
        let fresh = drawn(&mut state, silent + 1);
        crowds.local.fresh = fresh;
        crowds.users.get_mut(&7).unwrap().fresh = fresh;
        let now_ns = step * 7 * S;
        let expected = plain.judge(&crowds.local, true, CALM, now_ns);
        let expected: Vec<_> = expected.map(|change| (ALL, change)).into_iter().collect();
        assert_eq!(holds.judge(&crowds, CALM, now_ns), expected, "{crowds:?}");
    }
}

#[test]
fn a_user_with_healthy_agents_is_never_held_and_a_silent_host_always() {
    let mut state = 2;
    for _ in 0..300_000 {
        let users: Vec<(u32, u32, u32)> = (0..1 + drawn(&mut state, 4))
            .map(|user| {
                let watched = 1 + drawn(&mut state, 30);
                let silent = match drawn(&mut state, 4) {
                    0 => watched,
                    1 => 0,
                    _ => drawn(&mut state, watched + 1),
                };
                (user, watched, silent)
            })
            .collect();
        let held = held(&users);
        let is_silent = |(_, watched, silent): &&(u32, u32, u32)| 2 * silent > *watched;
        let sum = |users: &[&(u32, u32, u32)]| {
            let watched: u32 = users.iter().map(|(_, watched, _)| watched).sum();
            let silent: u32 = users.iter().map(|(_, _, silent)| silent).sum();
            (watched, silent)
        };
        let (watched, silent) = sum(&users.iter().collect::<Vec<_>>());
        let is_mass = silent >= 5 && 2 * silent > watched;
        let in_mass = |user: &&(u32, u32, u32)| user.2 >= 5 && is_silent(user);
        let (massive, others): (Vec<_>, Vec<_>) = users.iter().partition(in_mass);
        let (others_watched, others_silent) = sum(&others);
        let others_are_silent =
            others.is_empty() || others_silent >= 2 && 2 * others_silent > others_watched;
        let is_host = is_mass && (massive.is_empty() || others_are_silent);
        assert_eq!(held.contains(&ALL), is_host, "{users:?}");
        for user in &users {
            let is_held = held.contains(&Scope::User(user.0));
            assert_eq!(is_held, users.len() > 1 && in_mass(&user), "{users:?}");
        }
    }
}
