//! Engine, tracker, attention clock and admission together in a simulated host, in virtual time, each run from one
//! seed.
//!
//! Agents beat, hang, crash, leave and come back; programs succeed, fail and hang; operators pause, resume and reload;
//! the host is under pressure; observer and control are stopped for a while; the ring between them is small. An oracle
//! written from the laws and `docs/recovery.md` checks every input and every effect (see [`oracle`]). First there are
//! faults, then there are none, and every silence and action must end.
//!
//! A failure prints the seed; the environment variable `VARTA_WORLD_SEED` runs that world alone.

mod beat_path;
mod control;
mod oracle;
mod policies;
mod processes;
mod random;
mod senders;
mod world;

use world::World;

pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const S: u64 = 1_000_000_000;

/// What timers round up to.
pub(crate) const TICK_NS: u64 = 1 << 14;

/// Beats, turns of the beat path and inputs of the engine in all worlds together.
const STEPS: u64 = 2_000_000;

fn chosen_seed() -> Option<u64> {
    let seed = std::env::var("VARTA_WORLD_SEED").ok()?;
    Some(seed.parse().expect("VARTA_WORLD_SEED is a number"))
}

fn live(seed: u64) -> World {
    let mut world = World::new(seed);
    world.live();
    world
}

#[test]
fn millions_of_steps_in_worlds_full_of_faults_keep_every_promise() {
    if let Some(seed) = chosen_seed() {
        live(seed);
        return;
    }
    let (mut steps, mut facts, mut orders, mut seed) = (0, 0, 0, 0);
    while steps < STEPS {
        seed += 1;
        let world = live(seed);
        steps += world.steps;
        facts += world.oracle.facts;
        orders += world.oracle.orders;
    }
    println!("{seed} worlds, {steps} steps, {facts} facts, {orders} orders");
    assert!(
        facts > 500 * seed && orders > 20 * seed,
        "the oracle has seen nothing"
    );
}

#[test]
fn the_same_seed_gives_the_same_facts_to_the_byte() {
    for seed in chosen_seed().map_or(1..=3, |seed| seed..=seed) {
        let digests = [(); 2].map(|()| live(seed).oracle.digest());
        assert_eq!(digests[0], digests[1], "seed {seed}");
    }
}
