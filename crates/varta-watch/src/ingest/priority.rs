//! The scheduling priority of the beat path.
//!
//! The beat path has little work and a deadline for it, so it runs in real time where this user may (root,
//! `CAP_SYS_NICE`): it then wakes on time whatever load there is, in any session or control group. No sender of beats
//! may turn that privilege against the host: once the thread has worked for more than its allowance it is an ordinary
//! thread for a second, though one of high priority and with short time slices.

use std::time::Duration;

use varta_sys::sched;

/// As a nice value: 0 is the default.
const HIGH_PRIORITY: i32 = -10;

/// More than nearly every turn takes, and the shortest slice the kernel accepts: 100 us.
const TURN_SLICE: Duration = Duration::from_micros(100);

/// The beat path may use one part in this many of one core at real-time priority.
const ALLOWANCE_PARTS: u64 = 4;

/// Most work in a row at real-time priority, however long the thread was idle: 20 ms.
const ALLOWANCE_NS: u64 = 20_000_000;

/// How long it is an ordinary thread after it has used up its allowance: 1 s.
const BACK_OFF_NS: u64 = 1_000_000_000;

/// The scheduling priority of the calling thread.
#[derive(Debug)]
pub(super) struct SchedPriority {
    /// `None` if it may not run in real time, or is configured not to.
    allowance: Option<Allowance>,
}

impl SchedPriority {
    /// Gives the calling thread, the beat path, the highest priority it may have.
    pub(super) fn take(wants_real_time: bool, now_ns: u64) -> Self {
        // Without any of these a busy machine delays the detection of stalls.
        let _ = rustix::process::setpriority_process(None, HIGH_PRIORITY);
        let _ = sched::set_slice(TURN_SLICE);
        let is_real_time = wants_real_time && sched::real_time().unwrap_or(false);
        Self {
            allowance: is_real_time.then(|| Allowance::new(now_ns)),
        }
    }

    /// It runs in real time now.
    pub(super) fn is_real_time(&self) -> bool {
        let is_left = |allowance: &Allowance| allowance.used_up_until_ns.is_none();
        self.allowance.as_ref().is_some_and(is_left)
    }

    /// It has worked from `woken_ns` to `now_ns` without sleeping.
    pub(super) fn has_worked(&mut self, woken_ns: u64, now_ns: u64) {
        let Some(allowance) = &mut self.allowance else {
            return;
        };
        let changed = match allowance.has_worked(woken_ns, now_ns) {
            None => return,
            Some(Change::UsedUp) => sched::ordinary(TURN_SLICE).is_ok(),
            Some(Change::Renewed) => sched::real_time().unwrap_or(false),
        };
        if !changed {
            // The operator has changed the priority meanwhile.
            self.allowance = None;
        }
    }
}

/// The allowance of real-time work: a bucket that work fills and time empties.
#[derive(Debug)]
struct Allowance {
    used_ns: u64,
    counted_ns: u64,
    /// There is none until then.
    used_up_until_ns: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    UsedUp,
    Renewed,
}

impl Allowance {
    fn new(now_ns: u64) -> Self {
        Self {
            used_ns: 0,
            counted_ns: now_ns,
            used_up_until_ns: None,
        }
    }

    fn has_worked(&mut self, woken_ns: u64, now_ns: u64) -> Option<Change> {
        if let Some(until_ns) = self.used_up_until_ns {
            if now_ns < until_ns {
                return None;
            }
            *self = Self::new(now_ns);
            return Some(Change::Renewed);
        }
        let earned_ns = now_ns.saturating_sub(self.counted_ns) / ALLOWANCE_PARTS;
        self.counted_ns = now_ns;
        let used_ns = self.used_ns.saturating_sub(earned_ns);
        self.used_ns = used_ns + now_ns.saturating_sub(woken_ns);
        if self.used_ns <= ALLOWANCE_NS {
            return None;
        }
        self.used_up_until_ns = Some(now_ns + BACK_OFF_NS);
        Some(Change::UsedUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn who_works_a_quarter_of_the_time_keeps_its_allowance_for_ever() {
        let mut allowance = Allowance::new(0);
        for second in 0..100_000 {
            let woken_ns = second * 4 * MS;
            assert_eq!(allowance.has_worked(woken_ns, woken_ns + MS), None);
        }
    }

    #[test]
    fn who_works_on_and_on_uses_it_up_and_has_none_for_a_second() {
        let mut allowance = Allowance::new(0);
        let mut changes = Vec::new();
        for ms in 0..3_000 {
            let change = allowance.has_worked(ms * MS, (ms + 1) * MS);
            changes.extend(change.map(|change| (ms + 1, change)));
        }
        let expected = [
            (27, Change::UsedUp),
            (1_027, Change::Renewed),
            (1_054, Change::UsedUp),
            (2_054, Change::Renewed),
            (2_081, Change::UsedUp),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn rest_is_not_saved_up() {
        let mut allowance = Allowance::new(0);
        assert_eq!(allowance.has_worked(3_600_000 * MS, 3_600_020 * MS), None);
        let again = allowance.has_worked(3_600_020 * MS, 3_600_040 * MS);
        assert_eq!(again, Some(Change::UsedUp));
    }

    #[test]
    fn the_thread_is_in_real_time_only_as_long_as_its_allowance_lasts() {
        let in_a_thread_of_its_own = || {
            let mut priority = SchedPriority::take(true, 0);
            let may = priority.is_real_time();
            assert_eq!(sched::is_real_time().unwrap(), may);
            priority.has_worked(0, 100 * MS);
            assert!(!priority.is_real_time() && !sched::is_real_time().unwrap());
            priority.has_worked(1_200 * MS, 1_200 * MS);
            assert_eq!(priority.is_real_time(), may);
            assert_eq!(sched::is_real_time().unwrap(), may);
        };
        std::thread::spawn(in_a_thread_of_its_own).join().unwrap();
    }

    #[test]
    fn who_does_not_want_it_is_never_in_real_time() {
        let in_a_thread_of_its_own = || {
            let priority = SchedPriority::take(false, 0);
            assert!(!priority.is_real_time() && !sched::is_real_time().unwrap());
        };
        std::thread::spawn(in_a_thread_of_its_own).join().unwrap();
    }
}
