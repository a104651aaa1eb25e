//! The replay guard against a naive model of its rules: lists of sessions, sets of counters.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use varta_core::replay::{
    Arrival, Heard, LIVE_NS, ReplayGuard, ReplayOptions, ReplayRefusal, SESSIONS_PER_AGENT,
    SessionKey,
};

const WINDOW: u32 = 64;

/// Threshold of all agents: sessions are quiet after half of it.
const T: u64 = 100_000_000_000;

/// No counter is higher, so that a datagram with this one opens any closed session.
const COUNTER_MAX: u32 = u32::MAX - 1;

/// Tables within one eviction search, so that it finds a closable session.
const SESSIONS_MAX: usize = 12;

type Words = Arc<[AtomicU64]>;

#[derive(Clone, Debug)]
struct Session {
    key: SessionKey,
    heard: HashSet<u32>,
    /// Of a session that was closed: the highest counter accepted before.
    floor: Option<u32>,
    top: u32,
    agent: (u64, u32),
    is_farewell: bool,
    /// `None` if it has departed.
    heard_ns: Option<u64>,
}

impl Session {
    /// A regular datagram makes a farewell session a current one.
    fn is_promoted_by(&self, arrival: &Arrival) -> bool {
        let is_own = self.agent == (arrival.source, arrival.pid);
        is_own && self.is_farewell && !arrival.is_terminal
    }

    fn is_quiet(&self, now_ns: u64) -> bool {
        let silence_ns = |heard_ns| now_ns.saturating_sub(heard_ns);
        self.heard_ns.is_none_or(|ns| silence_ns(ns) >= T / 2)
    }
}

#[derive(Clone, Copy, Debug)]
struct Closed {
    key: SessionKey,
    top: u32,
    source: u64,
}

/// The expected state of the guard.
#[derive(Debug)]
struct Model {
    open: Vec<Session>,
    /// The latest last.
    closed: VecDeque<Closed>,
    closings: usize,
    options: ReplayOptions,
}

/// The expected answer, and the sessions of which the guard should close one.
type Expected = Result<(Heard, Vec<SessionKey>), ReplayRefusal>;

impl Model {
    fn find(&self, key: &SessionKey) -> Option<&Session> {
        self.open.iter().find(|session| session.key == *key)
    }

    fn find_mut(&mut self, key: &SessionKey) -> Option<&mut Session> {
        self.open.iter_mut().find(|session| session.key == *key)
    }

    fn find_closed(&self, key: &SessionKey) -> Option<&Closed> {
        self.closed.iter().rev().find(|closed| closed.key == *key)
    }

    fn of(&self, agent: (u64, u32), is_farewell: bool) -> impl Iterator<Item = &Session> {
        self.open
            .iter()
            .filter(move |session| session.agent == agent && session.is_farewell == is_farewell)
    }

    /// The current sessions with the agent's last datagram; several after a restart.
    fn latest(&self, agent: (u64, u32)) -> Vec<SessionKey> {
        let latest = self.of(agent, false).map(|session| session.heard_ns).max();
        let sessions = self.of(agent, false);
        let latest = sessions.filter(|session| Some(session.heard_ns) == latest);
        latest.map(|session| session.key).collect()
    }

    /// The session that ends because another one continues it.
    fn continued(&self, arrival: &Arrival) -> Option<SessionKey> {
        let is_first =
            self.find(&arrival.session).is_none() && self.find_closed(&arrival.session).is_none();
        let latest = self.latest((arrival.source, arrival.pid));
        latest
            .first()
            .copied()
            .filter(|_| is_first && arrival.continues)
    }

    /// The closable sessions of an agent that are silent for longest.
    fn quietest(&self, arrival: &Arrival, is_farewell: bool, now_ns: u64) -> Vec<SessionKey> {
        let continued = self.continued(arrival);
        let agent = (arrival.source, arrival.pid);
        let quiet = self.of(agent, is_farewell).filter_map(|session| {
            let is_continued = continued == Some(session.key);
            let may_go = is_farewell || is_continued || session.is_quiet(now_ns);
            let heard_ns = session.heard_ns.filter(|_| !is_continued);
            may_go.then_some((heard_ns, session.key))
        });
        let quiet: Vec<_> = quiet.collect();
        let longest = quiet.iter().map(|(heard_ns, _)| *heard_ns).min();
        let quietest = quiet.iter().filter(|(ns, _)| Some(*ns) == longest);
        quietest.map(|(_, key)| *key).collect()
    }

    fn has_place(&self, arrival: &Arrival, is_farewell: bool) -> bool {
        let agent = (arrival.source, arrival.pid);
        let places = if is_farewell { 1 } else { SESSIONS_PER_AGENT };
        self.of(agent, is_farewell).count() < places
    }

    fn expected(&self, arrival: &Arrival, now_ns: u64) -> Expected {
        if let Some(session) = self.find(&arrival.session) {
            let too_old = arrival.counter < session.top && session.top - arrival.counter >= WINDOW;
            let below_floor = session.floor.is_some_and(|floor| arrival.counter <= floor);
            if too_old || below_floor || session.heard.contains(&arrival.counter) {
                return Err(ReplayRefusal::Seen);
            }
            let heard = match arrival.counter > session.top {
                true => Heard::Newest,
                false => Heard::Overtaken,
            };
            if !session.is_promoted_by(arrival) || self.has_place(arrival, false) {
                return Ok((heard, Vec::new()));
            }
            let quietest = self.quietest(arrival, false, now_ns);
            return match quietest.is_empty() {
                true => Err(ReplayRefusal::TooMany),
                false => Ok((heard, quietest)),
            };
        }
        let heard = match self.find_closed(&arrival.session) {
            Some(closed) if arrival.counter <= closed.top => return Err(ReplayRefusal::Seen),
            Some(_) => Heard::Newest,
            None => Heard::First,
        };
        let quietest = self.quietest(arrival, arrival.is_terminal, now_ns);
        if !self.has_place(arrival, arrival.is_terminal) {
            return match quietest.is_empty() {
                true => Err(ReplayRefusal::TooMany),
                false => Ok((heard, quietest)),
            };
        }
        if self.open.len() < self.options.sessions {
            return Ok((heard, Vec::new()));
        }
        let departed = self.keys_of(|session| session.heard_ns.is_none());
        let silent = self.keys_of(|session| {
            let silence_ns = |heard_ns| now_ns.saturating_sub(heard_ns);
            session.heard_ns.is_some_and(|ns| silence_ns(ns) > LIVE_NS)
        });
        let victims = [departed, silent, quietest];
        let victims = victims.into_iter().find(|victims| !victims.is_empty());
        Ok((heard, victims.ok_or(ReplayRefusal::Full)?))
    }

    fn keys_of(&self, is_meant: impl Fn(&Session) -> bool) -> Vec<SessionKey> {
        let meant = self.open.iter().filter(|session| is_meant(session));
        meant.map(|session| session.key).collect()
    }

    /// The datagram was accepted, and `victim` was closed for it.
    fn accept(&mut self, arrival: &Arrival, victim: Option<SessionKey>, now_ns: u64) {
        let floor = self.find_closed(&arrival.session).map(|closed| closed.top);
        if let Some(session) = self
            .continued(arrival)
            .and_then(|continued| self.find_mut(&continued))
        {
            session.heard_ns = None;
        }
        if let Some(victim) = victim {
            self.close(&victim);
        }
        if self.find(&arrival.session).is_none() {
            self.open.push(Session {
                key: arrival.session,
                heard: HashSet::new(),
                floor,
                top: arrival.counter,
                agent: (arrival.source, arrival.pid),
                is_farewell: arrival.is_terminal,
                heard_ns: Some(now_ns),
            });
        }
        let session = self.find_mut(&arrival.session).unwrap();
        session.is_farewell &= !session.is_promoted_by(arrival);
        session.heard.insert(arrival.counter);
        if arrival.counter > session.top {
            session.top = arrival.counter;
            session.heard_ns = session.heard_ns.max(Some(now_ns));
        }
    }

    fn depart(&mut self, agent: (u64, u32)) {
        let of_agent = self
            .open
            .iter_mut()
            .filter(|session| session.agent == agent);
        of_agent.for_each(|session| session.heard_ns = None);
    }

    fn live_sessions(&self, agent: (u64, u32), since_ns: u64) -> usize {
        let live = self.of(agent, false);
        live.filter(|session| session.heard_ns >= Some(since_ns))
            .count()
    }

    fn close(&mut self, key: &SessionKey) {
        let place = self.open.iter().position(|session| session.key == *key);
        let session = self.open.remove(place.unwrap());
        self.closed.push_back(Closed {
            key: *key,
            top: session.top,
            source: session.agent.0,
        });
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
    /// Above the highest accepted one.
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
    DepartSession(SessionKey),
    /// Seconds; negative for a clock that goes back.
    Pass(i64),
    /// Into a table with this many spare records, and this many closed ones kept.
    Restart {
        spare: usize,
        closed: usize,
    },
}

fn session() -> impl Strategy<Value = SessionKey> {
    (0..2_u64, 0..2_u32, 0..10_u64).prop_map(|(key, pid, prefix)| SessionKey {
        key,
        pid,
        prefix: prefix.to_be_bytes(),
    })
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let agent = (0..2_u64, 0..3_u32);
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (session(), agent, flags).prop_map(|(session, (source, pid), (is_terminal, continues))| {
        Arrival {
            session,
            counter: 0,
            source,
            pid,
            is_terminal,
            continues,
        }
    })
}

fn counter() -> impl Strategy<Value = Counter> {
    prop_oneof![
        4 => (1..4_u32).prop_map(Counter::Ahead),
        2 => (1..200_u32).prop_map(Counter::Ahead),
        4 => (0..80_u32).prop_map(Counter::Behind),
        1 => prop::sample::select(vec![0, 1, COUNTER_MAX - 1, COUNTER_MAX]).prop_map(Counter::At),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => (arrival(), counter()).prop_map(|(arrival, counter)| Step::Arrive { arrival, counter }),
        2 => (0..2_u64, 0..3_u32).prop_map(|(source, pid)| Step::Depart { source, pid }),
        2 => session().prop_map(Step::DepartSession),
        4 => (0..60_i64).prop_map(Step::Pass),
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
                Step::DepartSession(session) => {
                    guarded.depart_session(&session);
                    if let Some(session) = model.find_mut(&session) {
                        session.heard_ns = None;
                    }
                }
                Step::Restart { spare, closed } => {
                    options.sessions = (model.open.len() + spare).max(1);
                    options.closed = closed;
                    let (mut successor, new_words) = guard(options);
                    prop_assert_eq!(successor.restore(&copy(&words), now_ns), Ok(()));
                    (guarded, words) = (successor, new_words);
                    model.options = options;
                    model.forget();
                    for session in &mut model.open {
                        session.heard_ns = session.heard_ns.map(|_| now_ns);
                    }
                    fewest_remembered = fewest_remembered.min(closed);
                }
                Step::Arrive { mut arrival, counter } => {
                    // No two datagrams arrive at the same time.
                    now_ns += 1;
                    // The model does not determine which of several has ended.
                    arrival.continues &= model.latest((arrival.source, arrival.pid)).len() < 2;
                    let closed = model.find_closed(&arrival.session).map(|closed| closed.top);
                    let open = model.find(&arrival.session).map(|session| session.top);
                    let top = open.or(closed).unwrap_or(0);
                    arrival.counter = match counter {
                        Counter::Ahead(distance) => top.saturating_add(distance).min(COUNTER_MAX),
                        Counter::Behind(distance) => top.saturating_sub(distance),
                        Counter::At(counter) => counter,
                    };
                    let before = copy(&words);
                    let expected = model.expected(&arrival, now_ns);
                    let result = guarded.admit(&arrival, T, now_ns);
                    let heard_as = expected.clone().map(|(heard, _)| heard);
                    prop_assert_eq!(result, heard_as, "{:?}", arrival);
                    let Ok((_, victims)) = expected else {
                        prop_assert_eq!(before, copy(&words), "a refusal changes nothing");
                        continue;
                    };
                    let is_closed = |key: &&SessionKey| guarded.look_up(key, u32::MAX).opens;
                    let victim = victims.iter().find(is_closed).copied();
                    prop_assert_eq!(victim.is_some(), !victims.is_empty());
                    model.accept(&arrival, victim, now_ns);
                    let datagram = (arrival.session, arrival.counter);
                    if let Some(closings) = heard.insert(datagram, model.closings) {
                        prop_assert!(model.closings - closings >= fewest_remembered, "heard twice");
                    }
                }
            }
            prop_assert_eq!(guarded.open(), model.open.len());
            for Closed { key, .. } in &model.closed {
                let source = match model.find(key) {
                    Some(session) => session.agent.0,
                    None => model.find_closed(key).unwrap().source,
                };
                prop_assert_eq!(guarded.look_up(key, 0).source, Some(source));
            }
            for session in &model.open {
                let known = guarded.look_up(&session.key, u32::MAX);
                prop_assert_eq!((known.source, known.opens), (Some(session.agent.0), false));
                let since_ns = now_ns.saturating_sub(T);
                let (source, pid) = session.agent;
                prop_assert_eq!(
                    guarded.live_sessions(source, pid, since_ns),
                    model.live_sessions(session.agent, since_ns)
                );
            }
            let remembered: HashSet<_> = model.closed.iter().map(|closed| closed.key).collect();
            prop_assert_eq!(guarded.closed(), remembered.len());
        }
    }

    /// For any order of counters: each is accepted once, and the newest always.
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
                continues: false,
            };
            let is_accepted = guard.admit(&arrival, T, 0).is_ok();
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
            let _ = guarded.admit(&arrival, T, 0);
        }
    }
}
