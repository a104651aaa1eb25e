//! A kill between any two stores: the test records every store of a guard, and builds a successor from the
//! words after each of them.

use super::*;

const SESSIONS: usize = 8;

/// Threshold of all agents.
const T: u64 = 60_000_000_000;

/// More than are closed in a run, so that none may be dropped.
const CLOSED: usize = 1_024;

fn guard() -> ReplayGuard {
    ReplayGuard::on_heap(ReplayOptions {
        sessions: SESSIONS,
        closed: CLOSED,
        seed: 7,
    })
}

/// The next of a fixed sequence of numbers, below `limit`.
fn next(state: &mut u64, limit: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % limit
}

/// One of four agents, over one of the last few sessions of one of them or a new one.
fn arrival(random: &mut u64, round: u64) -> Arrival {
    let agent = next(random, 4);
    let speaker = if next(random, 3) == 0 {
        next(random, 4)
    } else {
        agent
    };
    let generation = round / 8 + next(random, 3);
    Arrival {
        session: SessionKey {
            key: 1,
            pid: 0,
            prefix: (agent << 32 | generation).to_le_bytes(),
        },
        counter: (round + next(random, 80)) as u32,
        source: speaker >> 1,
        pid: (speaker & 1) as u32,
        is_terminal: next(random, 5) == 0,
        continues: next(random, 3) == 0,
    }
}

/// What must hold of a successor, whenever its predecessor was killed.
struct Expected {
    /// Refused, be their sessions open or closed.
    heard: Vec<Arrival>,
    /// Regular datagrams that come next, over sessions the kill has nothing to do with.
    next: Vec<Arrival>,
}

impl Expected {
    /// After each of the stores in turn, which make `words` what they are after the last.
    fn assert_after_each(
        &self,
        stores: &[(usize, u64)],
        words: &mut [u64],
        now_ns: u64,
        round: u64,
    ) {
        for (count, (index, value)) in stores.iter().enumerate() {
            self.assert_of(words, now_ns, &format!("round {round}, store {count}"));
            words[*index] = *value;
        }
    }

    fn assert_of(&self, words: &[u64], now_ns: u64, context: &str) {
        let mut guard = guard();
        guard.restore(words, now_ns).unwrap();
        for heard in &self.heard {
            let refused = guard.admit(heard, T, now_ns);
            assert_eq!(refused, Err(ReplayRefusal::Seen), "{context}: {heard:?}");
        }
        for next in &self.next {
            let heard = guard.admit(next, T, now_ns);
            assert!(heard.is_ok(), "{context}: {next:?}: {heard:?}");
        }
    }
}

/// The next regular datagram over every current session other than that of `arrival` which is not closed.
fn bystanders(before: &[Record], after: &ReplayGuard, arrival: &Arrival) -> Vec<Arrival> {
    let is_bystander = |record: &&Record| {
        record.session != arrival.session
            && record.owner.role == Role::Current
            && after.open.get(&after.hash(&record.session)).is_some()
    };
    let next = |record: &Record| {
        let agent = record.owner.agent;
        Some(Arrival {
            session: record.session,
            counter: record.window.top.checked_add(1)?,
            source: agent.source,
            pid: agent.pid,
            is_terminal: false,
            continues: false,
        })
    };
    before
        .iter()
        .filter(is_bystander)
        .filter_map(next)
        .collect()
}

#[test]
fn a_kill_between_any_two_stores_lets_nothing_be_heard_twice_and_silences_no_bystander() {
    let mut guard = guard();
    let mut random = 1;
    let mut now_ns = 0;
    let mut heard = Vec::new();
    let (mut moved, mut promoted, mut reopened, mut closed, mut departed) = (0, 0, 0, 0, 0);
    for round in 0..600 {
        now_ns += next(&mut random, LIVE_NS / 6_000_000_000) * 1_000_000_000;
        let arrival = arrival(&mut random, round);
        let mut words = guard.memory.copy();
        let before: Vec<Record> = Heritage::read(&words).unwrap().records().collect();
        let was_known = guard.look_up(&arrival.session, 0).source.is_some();
        guard.memory.stores.borrow_mut().clear();

        if next(&mut random, 4) == 0 {
            let agent = next(&mut random, 4);
            guard.depart(agent >> 1, (agent & 1) as u32);
        }
        let result = guard.admit(&arrival, T, now_ns);
        let stores = guard.memory.stores.take();
        let next = Arrival {
            counter: arrival.counter + 1_000,
            ..arrival
        };
        let mut expected = Expected {
            heard,
            next: bystanders(&before, &guard, &arrival),
        };
        let known = before.iter().find(|known| known.session == arrival.session);
        let is_promoted = known.is_some_and(|known| {
            let is_farewell = known.owner.role == Role::Farewell;
            is_farewell && !arrival.is_terminal && known.owner.agent == arrival.agent()
        });
        let is_owned = |record: &&Record| {
            record.owner.agent == arrival.agent() && record.owner.role == Role::Current
        };
        let has_place = before.iter().filter(is_owned).count() < SESSIONS_PER_AGENT;
        // A session that is cut short continues after the restart. Only one that needs the close of another
        // session may be refused, because after a restart none is quiet.
        let had_room = known.is_some() && !is_promoted || before.len() < SESSIONS && has_place;
        if result.is_ok() && had_room {
            expected.next.push(next);
        }
        expected.assert_after_each(&stores, &mut words, now_ns, round);
        assert_eq!(words, guard.memory.copy());

        heard = expected.heard;
        for record in &before {
            if guard.open.get(&guard.hash(&record.session)).is_none() {
                closed += 1;
                departed += usize::from(record.heard_ns.is_none());
            }
        }
        if result.is_ok() {
            heard.push(arrival);
            moved += usize::from(known.is_some_and(|known| arrival.counter > known.window.top));
            promoted += usize::from(is_promoted);
            reopened += usize::from(known.is_none() && was_known);
        }
    }
    assert!(guard.closings < CLOSED as u64, "none was forgotten");
    let exercised = [moved, promoted, reopened, closed, departed];
    assert!(exercised.iter().all(|times| *times > 10), "{exercised:?}");
}

#[test]
fn a_guard_killed_while_it_was_made_left_no_memory() {
    let fresh = guard();
    let mut words = vec![0; fresh.memory.copy().len()];
    let stores = fresh.memory.stores.take();
    for (index, value) in stores {
        let error = ReplayGuard::seed_of(&words);
        assert_eq!(error, Err(ReplayError::NotAReplayMemory));
        words[index] = value;
    }
    assert_eq!(ReplayGuard::seed_of(&words), Ok(7));
}

#[test]
fn random_words_behind_a_valid_header_are_survived() {
    let mut random = 3;
    for _ in 0..200 {
        let mut words = guard().memory.copy();
        for word in &mut words[3..] {
            *word = match next(&mut random, 4) {
                0 => next(&mut random, 4),
                1 => u64::MAX - next(&mut random, 4),
                _ => next(&mut random, u64::MAX) << 33 | next(&mut random, u64::MAX),
            };
        }
        let mut guard = guard();
        guard.restore(&words, 0).unwrap();
        for round in 0..50 {
            let _ = guard.admit(&arrival(&mut random, round), T, 0);
        }
    }
}

/// Foreign writes change the words of a running guard: its answers may be wrong, but it neither panics nor
/// stops.
#[test]
fn words_that_change_under_a_guard_are_survived() {
    let mut guard = guard();
    let mut random = 5;
    for round in 0..20_000 {
        let index = next(&mut random, 8 + 8 * SESSIONS as u64 + 3 * 64) as usize;
        let value = next(&mut random, u64::MAX) >> next(&mut random, 31);
        guard.memory.scribble(index, value);
        guard.depart(next(&mut random, 2), next(&mut random, 2) as u32);
        let _ = guard.admit(&arrival(&mut random, round), T, round * LIVE_NS / 8);
        assert!(guard.open() <= SESSIONS);
        assert_eq!(guard.open() + guard.free.len(), SESSIONS);
    }
}
