//! Lines about facts that may repeat: the first of its kind is written at once, then one line per kind and second
//! that covers all facts since. Times are those of the observer's clock.
//!
//! Bounds: there are as many kinds as reasons for a refusal, and five more.

use varta_core::Fact;

/// Time between two lines of a kind: 1 s.
const QUIET_NS: u64 = 1_000_000_000;

/// The facts since the last line, by kind.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    kinds: Vec<Repeated>,
}

/// Facts of one kind.
#[derive(Debug)]
struct Repeated {
    kind: &'static str,
    /// The pending facts, merged into one.
    waiting: Option<Fact>,
    /// No line of this kind is written before then.
    quiet_until_ns: u64,
}

/// The kind of a fact that may repeat. A refusal has its reason's label, which differs from all other kinds.
fn kind_of(fact: &Fact) -> Option<&'static str> {
    match fact {
        Fact::Refused { reason, .. } => Some(reason.label()),
        Fact::Gap { .. } => Some("gap"),
        Fact::StallPutOff { .. } => Some("stall_put_off"),
        Fact::NetworkDrops { .. } => Some("network_drops"),
        Fact::SessionBegan { .. } => Some("session_began"),
        Fact::StepPostponed { .. } => Some("step_postponed"),
        _ => None,
    }
}

/// Merges an earlier fact into a later one of its kind.
fn with_earlier(mut later: Fact, earlier: &Fact) -> Fact {
    match (&mut later, earlier) {
        (Fact::Refused { count, .. }, Fact::Refused { count: more, .. })
        | (Fact::StallPutOff { count, .. }, Fact::StallPutOff { count: more, .. })
        | (Fact::NetworkDrops { count }, Fact::NetworkDrops { count: more })
        | (Fact::SessionBegan { count, .. }, Fact::SessionBegan { count: more, .. })
        | (Fact::StepPostponed { count, .. }, Fact::StepPostponed { count: more, .. }) => {
            *count += more;
        }
        (
            Fact::Gap { late_ns, count },
            Fact::Gap {
                late_ns: late_before_ns,
                count: more,
            },
        ) => {
            *late_ns = late_ns.saturating_add(*late_before_ns);
            *count += more;
        }
        _ => {}
    }
    later
}

impl LogThrottle {
    /// Takes a fact that may repeat; false for any other one.
    pub(super) fn takes(&mut self, fact: &Fact, now_ns: u64) -> bool {
        let Some(kind) = kind_of(fact) else {
            return false;
        };
        let known = self.kinds.iter().position(|known| known.kind == kind);
        let position = known.unwrap_or_else(|| {
            self.kinds.push(Repeated {
                kind,
                waiting: None,
                quiet_until_ns: now_ns,
            });
            self.kinds.len() - 1
        });
        let waiting = &mut self.kinds[position].waiting;
        *waiting = Some(match waiting {
            Some(earlier) => with_earlier(fact.clone(), earlier),
            None => fact.clone(),
        });
        true
    }

    /// The facts that are due.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Vec<Fact> {
        let kinds = self.kinds.iter_mut();
        let due = kinds.filter(|kind| kind.quiet_until_ns <= now_ns);
        let taken = due.filter_map(|kind| {
            let fact = kind.waiting.take()?;
            kind.quiet_until_ns = now_ns.saturating_add(QUIET_NS);
            Some(fact)
        });
        taken.collect()
    }

    /// All pending facts, due or not.
    pub(super) fn take_all(&mut self) -> Vec<Fact> {
        let kinds = self.kinds.iter_mut();
        kinds.filter_map(|kind| kind.waiting.take()).collect()
    }

    /// When [`Self::take_due`] has something to take.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        let kinds = self.kinds.iter();
        let waiting = kinds.filter(|kind| kind.waiting.is_some());
        waiting.map(|kind| kind.quiet_until_ns).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_core::{Refusal, Sender};

    fn refused(reason: Refusal, count: u64) -> Fact {
        let sender = Sender {
            pid: 7,
            source: None,
        };
        Fact::Refused {
            sender,
            reason,
            count,
        }
    }

    #[test]
    fn the_first_line_comes_at_once_and_the_others_once_a_second() {
        let mut throttle = LogThrottle::default();
        let gap = |late_ns, count| Fact::Gap { late_ns, count };
        assert_eq!(throttle.take_due(5), []);
        assert!(throttle.takes(&gap(3, 1), 5));
        assert_eq!(throttle.next_due_ns(), Some(5));
        assert_eq!(throttle.take_due(5), [gap(3, 1)]);
        for late_ns in 1..=5 {
            throttle.takes(&gap(late_ns, 1), 6);
        }
        assert_eq!(throttle.take_due(5 + QUIET_NS / 2), []);
        assert_eq!(throttle.next_due_ns(), Some(5 + QUIET_NS));
        assert_eq!(throttle.take_due(5 + QUIET_NS), [gap(15, 5)]);
        assert_eq!(throttle.next_due_ns(), None);
    }

    #[test]
    fn each_reason_waits_for_itself() {
        let mut throttle = LogThrottle::default();
        for reason in [
            Refusal::OutOfOrder,
            Refusal::WrongLength,
            Refusal::OutOfOrder,
        ] {
            throttle.takes(&refused(reason, 1), 5);
        }
        let due = throttle.take_due(5);
        let expected = [
            refused(Refusal::OutOfOrder, 2),
            refused(Refusal::WrongLength, 1),
        ];
        assert_eq!(due, expected);
    }

    #[test]
    fn what_cannot_repeat_is_not_held_back() {
        let mut throttle = LogThrottle::default();
        assert!(!throttle.takes(&Fact::ReceiveBlocked, 5));
        assert_eq!(throttle.next_due_ns(), None);
    }
}
