//! Policies of operators: a random one, and a random change of one.

use std::time::Duration;

use varta_core::fact::{Signal, SignalTarget};
use varta_core::policy::{
    AgentRule, Expectation, Hooks, Ladder, LadderChoice, Mode, Policy, RecoveryLimits, RunStep,
    SignalStep, Step,
};
use varta_core::rules::{Namespace, Selector, Transport};

use crate::random::Random;
use crate::{MS, TICK_NS};

/// The name of a program defines its behaviour; see `crate::actions`.
const PROGRAMS: [&str; 6] = ["nudge", "nudge", "restart", "fail", "hang", "absent"];

fn time(random: &mut Random, from_ms: u64, end_ms: u64) -> Duration {
    Duration::from_millis(random.between(from_ms, end_ms))
}

fn act(random: &mut Random) -> Step {
    let wait = time(random, 0, 3_000);
    if random.one_in(3) {
        return Step::Signal(SignalStep {
            signal: random.one_of(&[Signal::Kill, Signal::Cont, Signal::Quit]),
            to: SignalTarget::Process,
            wait,
        });
    }
    let program = random.one_of(&PROGRAMS);
    let timeout = match program {
        "hang" => Some(time(random, 100, 3_000)),
        _ => None,
    };
    Step::Run(RunStep {
        program: program.into(),
        arguments: Vec::new(),
        private_file: None,
        timeout,
        wait,
    })
}

fn steps(random: &mut Random, most: u64) -> Vec<Step> {
    let any = |random: &mut Random| match random.below(4) {
        0 => Step::Wait(time(random, 1, 2_000)),
        _ => act(random),
    };
    (0..random.below(most + 1)).map(|_| any(random)).collect()
}

fn ladder(random: &mut Random) -> Ladder {
    let mut steps = steps(random, 3);
    steps.push(act(random));
    if random.one_in(4) {
        steps.push(Step::Wait(time(random, 1, 1_000)));
    }
    Ladder {
        name: format!("ladder {}", random.below(100)),
        steps,
        debounce: time(random, 0, 2_000),
        budget: random.between(1, 7) as u32,
        window: time(random, 5_000, 60_000),
        backoff: time(random, 200, 1_000),
        backoff_max: time(random, 500, 4_000),
        reset_after: time(random, 1_000, 20_000),
    }
}

fn hooks(random: &mut Random) -> Hooks {
    let mut some = || match random.one_in(2) {
        true => steps(random, 3),
        false => Vec::new(),
    };
    Hooks {
        on_late: some(),
        on_critical: some(),
        on_exit: some(),
        on_recovered: some(),
        on_gave_up: some(),
    }
}

fn selector(random: &mut Random) -> Selector {
    let mut selector = Selector::default();
    match random.below(7) {
        0 => selector.name = Some("web-*".to_owned()),
        1 => selector.name = Some(random.one_of(&["db", "job-*", "far-*"]).to_owned()),
        2 => selector.uid = Some(random.one_of(&[0, 500, 501, 502])),
        3 => selector.namespace = Some(random.one_of(&[Namespace::Own, Namespace::Other])),
        4 => selector.origin = Some(random.one_of(&[Transport::Udp, Transport::SecureUdp])),
        5 => selector.unit = Some("web.service".to_owned()),
        _ => {
            selector.origin = Some(Transport::Unix);
            selector.name = Some("*".to_owned());
        }
    }
    selector
}

/// On a tick of the timers, so that some silences have its very length.
fn threshold(random: &mut Random) -> Duration {
    let threshold_ns = random.between(400 * MS, 2_500 * MS);
    Duration::from_nanos(threshold_ns.next_multiple_of(TICK_NS))
}

fn rule(random: &mut Random, ladders: usize) -> AgentRule {
    let number = random.below(1_000);
    AgentRule {
        selector: selector(random),
        label: random.one_in(2).then(|| format!("label {number}")),
        threshold: random.one_in(2).then(|| threshold(random)),
        late: random.one_in(2).then(|| time(random, 200, 1_500)),
        network_grace: time(random, 0, 300),
        expectation: random.one_in(3).then(|| Expectation {
            agents: random.between(1, 8) as u32,
            within: time(random, 500, 30_000),
        }),
        max_beat_rate: match random.below(4) {
            0 => Some(0),
            1 => Some(random.between(20, 40) as u32),
            _ => None,
        },
        ladder: match random.below(5) {
            0 => LadderChoice::None,
            1 => LadderChoice::Default,
            _ => LadderChoice::Named(random.below(ladders as u64) as usize),
        },
        hooks: hooks(random),
    }
}

fn limits(random: &mut Random) -> RecoveryLimits {
    RecoveryLimits {
        max_in_flight: random.one_of(&[1, 2, 4, 8, 8]),
        starts_per_second: random.one_of(&[0, 3, 10, 100]),
        user_budget: random.one_of(&[0, 3, 10, 300]),
        user_window: time(random, 2_000, 20_000),
        mass_stall_share: random.one_of(&[None, Some(0.5), Some(0.5), Some(0.25)]),
        mass_stall_min: random.between(3, 6) as u32,
        mass_stall_hold: random.one_in(2).then(|| time(random, 1_000, 10_000)),
        memory_pressure: random.one_of(&[None, Some(20.0), Some(40.0)]),
        io_pressure: random.one_of(&[None, Some(60.0)]),
    }
}

fn mode(random: &mut Random) -> Mode {
    match random.below(8) {
        0 => Mode::Observe,
        1 => Mode::DryRun,
        _ => Mode::Enforce,
    }
}

pub(crate) fn random_policy(random: &mut Random) -> Policy {
    let ladders: Vec<Ladder> = (0..3).map(|_| ladder(random)).collect();
    Policy {
        threshold: threshold(random),
        late: random.one_in(2).then(|| time(random, 200, 1_000)),
        rules: (0..random.below(6)).map(|_| rule(random, 3)).collect(),
        ladders,
        default_ladder: (!random.one_in(5)).then(|| random.below(3) as usize),
        mode: mode(random),
        limits: limits(random),
        recover_foreign: random.one_in(3),
    }
}

/// The policy after an operator has changed one setting.
pub(crate) fn changed(before: &Policy, random: &mut Random) -> Policy {
    let mut policy = before.clone();
    let rules = policy.rules.len() as u64;
    match random.below(11) {
        0 => policy.threshold = threshold(random),
        1 => policy.late = random.one_in(2).then(|| time(random, 200, 1_000)),
        2 => policy.rules.insert(0, rule(random, 3)),
        3 if rules > 0 => drop(policy.rules.remove(random.below(rules) as usize)),
        4 if rules > 0 => policy.rules.rotate_left(1),
        5 => policy.ladders[random.below(3) as usize] = ladder(random),
        6 => policy.ladders[random.below(3) as usize].name.push('\''),
        7 if rules > 0 => {
            policy.rules[random.below(rules) as usize].threshold = Some(threshold(random));
        }
        8 => policy.limits = limits(random),
        9 => policy.default_ladder = (!random.one_in(3)).then(|| random.below(3) as usize),
        _ => policy.mode = mode(random),
    }
    policy
}
