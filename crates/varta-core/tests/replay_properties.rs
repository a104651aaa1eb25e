//! The replay guard against a naive model of its rules: lists of sessions, sets of counters.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use varta_core::replay::{Arrival, LIVE_NS, ReplayGuard, ReplayOptions, ReplayRefusal, SessionKey};

const WINDOW: u32 = 64;

/// Tables no larger than what one attempt to make room looks at, so that one to be closed is found.
const SESSIONS_MAX: usize = 12;

type Words = Arc<[AtomicU64]>;

#[derive(Clone, Debug)]
struct Session {
    key: SessionKey,
    heard: HashSet<u32>,
    top: u32,
    agent: (u64, u32),
    is_farewell: bool,
    has_departed: bool,
    heard_ns: u64,
}

impl Session {
    /// A farewell session is no more, once this has come over it.
    fn is_promoted_by(&self, arrival: &Arrival) -> bool {
        let is_own = self.agent == (arrival.source, arrival.pid);
        is_own && self.is_farewell && !arrival.is_terminal
    }
}

/// What the guard should know.
#[derive(Debug)]
struct Model {
    /// In the order of their opening.
    open: Vec<Session>,
    /// The latest last.
    closed: VecDeque<SessionKey>,
    closings: usize,
    options: ReplayOptions,
}

/// What the guard should do, and for whom it should make room: any one of these.
type Expected = Result<Vec<SessionKey>, ReplayRefusal>;

impl Model {
    fn find(&self, key: &SessionKey) -> Option<usize> {
        self.open.iter().position(|session| session.key == *key)
    }

    fn owned(&self, arrival: &Arrival) -> Option<usize> {
        let agent = (arrival.source, arrival.pid);
        self.open.iter().position(|session| {
            session.agent == agent && session.is_farewell == arrival.is_terminal
        })
    }

    fn expected(&self, arrival: &Arrival, now_ns: u64) -> Expected {
        if let Some(place) = self.find(&arrival.session) {
            let session = &self.open[place];
            let too_old = arrival.counter < session.top && session.top - arrival.counter >= WINDOW;
            if too_old || session.heard.contains(&arrival.counter) {
                return Err(ReplayRefusal::Seen);
            }
            let is_newest = self.owned(arrival).is_none_or(|current| current < place);
            if session.is_promoted_by(arrival) && !is_newest {
                return Err(ReplayRefusal::Closed);
            }
            return Ok(Vec::new());
        }
        if self.closed.contains(&arrival.session) {
            return Err(ReplayRefusal::Closed);
        }
        if self.owned(arrival).is_some() || self.open.len() < self.options.sessions {
            return Ok(Vec::new());
        }
        let departed = self.keys_of(|session| session.has_departed);
        if !departed.is_empty() {
            return Ok(departed);
        }
        let silent = self.keys_of(|session| now_ns.saturating_sub(session.heard_ns) > LIVE_NS);
        if silent.is_empty() {
            return Err(ReplayRefusal::Full);
        }
        Ok(silent)
    }

    fn keys_of(&self, is_meant: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
        let meant = self.open.iter().filter(|session| is_meant(session));
        meant.map(|session| session.key).collect()
    }

    /// The datagram was accepted, and `victim` had to make room for it.
    fn accept(&mut self, arrival: &Arrival, victim: Option<SessionKey>, now_ns: u64) {
        if let Some(place) = victim.and_then(|key| self.find(&key)) {
            self.close(place);
        }
        let known = self.find(&arrival.session);
        let replaces = known.is_none_or(|place| self.open[place].is_promoted_by(arrival));
        if let Some(older) = self.owned(arrival).filter(|_| replaces) {
            self.close(older);
        }
        let place = self.find(&arrival.session).unwrap_or_else(|| {
            self.open.push(Session {
                key: arrival.session,
                heard: HashSet::new(),
                top: arrival.counter,
                agent: (arrival.source, arrival.pid),
                is_farewell: arrival.is_terminal,
                has_departed: false,
                heard_ns: now_ns,
            });
            self.open.len() - 1
        });
        let session = &mut self.open[place];
        session.is_farewell &= !session.is_promoted_by(arrival);
        session.heard.insert(arrival.counter);
        session.top = session.top.max(arrival.counter);
        session.heard_ns = if session.has_departed {
            now_ns
        } else {
            session.heard_ns.max(now_ns)
        };
        session.has_departed = false;
    }

    fn depart(&mut self, agent: (u64, u32)) {
        let of_agent = self
            .open
            .iter_mut()
            .filter(|session| session.agent == agent);
        of_agent.for_each(|session| session.has_departed = true);
    }

    fn close(&mut self, place: usize) {
        self.closed.push_back(self.open.remove(place).key);
        self.closings += 1;
        self.forget();
    }

    fn forget(&mut self) {
        while self.closed.len() > self.options.closed {
            self.closed.pop_front();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Counter {
    /// Above the highest one heard.
    Ahead(u32),
    /// Below it, or equal.
    Behind(u32),
    At(u32),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Arrive {
        /// Counter within this.
        arrival: Arrival,
        counter: Counter,
    },
    Depart {
        source: u64,
        pid: u32,
    },
    /// Seconds; negative for a clock that goes back.
    Pass(i64),
    /// Into a table with so many records to spare, and so many remembered.
    Restart {
        spare: usize,
        closed: usize,
    },
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let session = (0..2_u64, 0..2_u32, 0..10_u64).prop_map(|(key, pid, prefix)| SessionKey {
        key,
        pid,
        prefix: prefix.to_be_bytes(),
    });
    (session, 0..2_u64, 0..4_u32, prop::bool::weighted(0.2)).prop_map(
        |(session, source, pid, is_terminal)| Arrival {
            session,
            counter: 0,
            source,
            pid,
            is_terminal,
        },
    )
}

fn counter() -> impl Strategy<Value = Counter> {
    prop_oneof![
        4 => (1..4_u32).prop_map(Counter::Ahead),
        2 => (1..200_u32).prop_map(Counter::Ahead),
        4 => (0..80_u32).prop_map(Counter::Behind),
        1 => prop::sample::select(vec![0, 1, u32::MAX - 1, u32::MAX]).prop_map(Counter::At),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => (arrival(), counter()).prop_map(|(arrival, counter)| Step::Arrive { arrival, counter }),
        2 => (0..2_u64, 0..4_u32).prop_map(|(source, pid)| Step::Depart { source, pid }),
        4 => (0..700_i64).prop_map(Step::Pass),
        1 => (-1_400..0_i64).prop_map(Step::Pass),
        1 => (0..3_usize, 1..12_usize).prop_map(|(spare, closed)| Step::Restart { spare, closed }),
    ];
    prop::collection::vec(step, 0..400)
}

fn guard(options: ReplayOptions) -> (ReplayGuard<Words>, Words) {
    let count = ReplayGuard::words_needed(options);
    let words: Words = (0..count).map(|_| AtomicU64::new(0)).collect();
    (
        ReplayGuard::new(Arc::clone(&words), options).unwrap(),
        words,
    )
}

fn copy(words: &Words) -> Vec<u64> {
    words
        .iter()
        .map(|word| word.load(Ordering::Relaxed))
        .collect()
}

/// Which of the sessions is closed, asked of a successor so that the guard itself is left in peace.
fn closed_one(
    sessions: &[SessionKey],
    words: &[u64],
    options: ReplayOptions,
) -> Option<SessionKey> {
    let (mut successor, _) = guard(options);
    successor.restore(words, 0).unwrap();
    let is_closed = |session: &&SessionKey| {
        let probe = Arrival {
            session: **session,
            counter: u32::MAX,
            source: 99,
            pid: 99,
            is_terminal: true,
        };
        successor.admit(&probe, 0) == Err(ReplayRefusal::Closed)
    };
    sessions.iter().find(is_closed).copied()
}

proptest! {
    #[test]
    fn the_guard_keeps_its_rules(
        sessions in 1..SESSIONS_MAX,
        closed in 1..12_usize,
        seed: u64,
        steps in steps(),
    ) {
        let mut options = ReplayOptions { sessions, closed, seed };
        let (mut guarded, mut words) = guard(options);
        let mut model = Model { open: Vec::new(), closed: VecDeque::new(), closings: 0, options };
        let mut heard = HashMap::new();
        let mut fewest_remembered = closed;
        let mut now_ns = 10 * LIVE_NS;
        for step in steps {
            match step {
                Step::Pass(seconds) => now_ns = now_ns.saturating_add_signed(seconds * 1_000_000_000),
                Step::Depart { source, pid } => {
                    guarded.depart(source, pid);
                    model.depart((source, pid));
                }
                Step::Restart { spare, closed } => {
                    options.sessions = (model.open.len() + spare).max(1);
                    options.closed = closed;
                    let (mut successor, new_words) = guard(options);
                    prop_assert_eq!(successor.restore(&copy(&words), now_ns), Ok(0));
                    (guarded, words) = (successor, new_words);
                    model.options = options;
                    model.forget();
                    for session in &mut model.open {
                        session.heard_ns = now_ns;
                    }
                    fewest_remembered = fewest_remembered.min(closed);
                }
                Step::Arrive { mut arrival, counter } => {
                    let known = model.find(&arrival.session);
                    let top = known.map_or(0, |place| model.open[place].top);
                    arrival.counter = match counter {
                        Counter::Ahead(distance) => top.saturating_add(distance),
                        Counter::Behind(distance) => top.saturating_sub(distance),
                        Counter::At(counter) => counter,
                    };
                    let before = copy(&words);
                    let expected = model.expected(&arrival, now_ns);
                    let result = guarded.admit(&arrival, now_ns);
                    prop_assert_eq!(result, expected.clone().map(|_| ()), "{:?}", arrival);
                    let after = copy(&words);
                    let Ok(victims) = expected else {
                        prop_assert_eq!(before, after, "a refusal changes nothing");
                        continue;
                    };
                    let victim = closed_one(&victims, &after, options);
                    prop_assert_eq!(victim.is_some(), !victims.is_empty());
                    model.accept(&arrival, victim, now_ns);
                    let datagram = (arrival.session, arrival.counter);
                    if let Some(closings) = heard.insert(datagram, model.closings) {
                        prop_assert!(model.closings - closings >= fewest_remembered, "heard twice");
                    }
                }
            }
            prop_assert_eq!(guarded.open(), model.open.len());
            for session in &model.open {
                prop_assert_eq!(guarded.source_of(&session.key), Some(session.agent.0));
            }
            let remembered: HashSet<_> = model.closed.iter().collect();
            prop_assert!(guarded.closed() == remembered.len());
        }
    }

    /// Whatever an agent does with its counters: each is accepted once, and the newest always.
    #[test]
    fn a_session_accepts_each_counter_once_and_the_newest_always(
        counters in prop::collection::vec(
            prop_oneof![0..300_u32, (u32::MAX - 100)..=u32::MAX, any::<u32>()], 1..300),
    ) {
        let options = ReplayOptions { sessions: 1, closed: 1, seed: 1 };
        let mut guard = ReplayGuard::on_heap(options);
        let mut heard = HashSet::new();
        let mut top = None;
        for counter in counters {
            let arrival = Arrival {
                session: SessionKey { key: 0, pid: 0, prefix: [0; 8] },
                counter,
                source: 0,
                pid: 0,
                is_terminal: false,
            };
            let is_accepted = guard.admit(&arrival, 0).is_ok();
            prop_assert!(!is_accepted || heard.insert(counter), "{} twice", counter);
            prop_assert!(is_accepted || top.is_some_and(|top| counter <= top));
            top = top.max(Some(counter));
        }
    }

    #[test]
    fn words_of_unknown_origin_are_an_error_or_a_memory_and_never_a_panic(
        mut words in prop::collection::vec(prop_oneof![any::<u64>(), 0..4_u64], 0..300),
        sizes in prop_oneof![any::<u64>(), Just(4 << 32 | 16)],
        is_marked: bool,
        arrivals in prop::collection::vec(arrival(), 0..50),
    ) {
        let options = ReplayOptions { sessions: 8, closed: 8, seed: 1 };
        let (mut guarded, fresh) = guard(options);
        if is_marked && words.len() >= 8 {
            words[0] = copy(&fresh)[0];
            words[1] = sizes;
            words[2] = options.seed;
        }
        let result = guarded.restore(&words, 0);
        prop_assert!(is_marked || result.is_err());
        if result.is_err() {
            prop_assert_eq!((guarded.open(), guarded.closed()), (0, 0));
        }
        for arrival in arrivals {
            let _ = guarded.admit(&arrival, 0);
        }
    }
}
