//! Whether a process may claim the pid that it claims.
//!
//! A frame carries the pid that its sender sees for itself. Inside a container that is not the pid in the
//! observer's namespace, so a claim is valid if it is any pid of that process in any namespace (`NSpid` in
//! `/proc/PID/status`), and refused otherwise.

/// Pids kept per process beside its own: more levels of namespaces than agents run in. The kernel allows 32;
/// the innermost are kept.
pub const CLAIMS_MAX: usize = 4;

/// The pids of a process in the namespaces below the observer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claims([u32; CLAIMS_MAX]);

impl Claims {
    /// From the pids of a process, outermost namespace first, the first one being the observer's.
    pub fn from_pids(pids: &[u32]) -> Self {
        let mut claims = [0; CLAIMS_MAX];
        let inner = pids.iter().skip(1).rev();
        for (claim, pid) in claims.iter_mut().zip(inner) {
            *claim = *pid;
        }
        Self(claims)
    }

    /// Whether this is a pid of the process in a namespace below the observer's.
    pub fn contain(&self, pid: u32) -> bool {
        pid != 0 && self.0.contains(&pid)
    }

    /// All of them, innermost first.
    pub fn pids(self) -> impl Iterator<Item = u32> {
        self.0.into_iter().filter(|pid| *pid != 0)
    }
}

/// The facts of a process that judging its beats requires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The pids it may claim; `None` while they are unknown.
    pub claims: Option<Claims>,
    /// Its pid namespace, where known.
    pub pid_ns: Option<u64>,
    /// Whether it runs in a pid namespace below the observer's.
    pub is_foreign: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_our_own_namespace_has_no_other_name() {
        let claims = Claims::from_pids(&[4242]);
        assert!(!claims.contain(4242), "its own pid needs no facts");
        assert!(!claims.contain(0));
        assert_eq!(claims.pids().count(), 0);
    }

    #[test]
    fn a_process_in_nested_containers_may_use_each_of_its_names() {
        let claims = Claims::from_pids(&[4242, 17, 1]);
        assert!(claims.contain(17));
        assert!(claims.contain(1));
        assert!(!claims.contain(2));
        assert_eq!(claims.pids().collect::<Vec<_>>(), [1, 17]);
    }

    #[test]
    fn of_too_many_names_the_innermost_are_kept() {
        let claims = Claims::from_pids(&[9, 8, 7, 6, 5, 4]);
        assert!([7, 6, 5, 4].iter().all(|pid| claims.contain(*pid)));
        assert!(!claims.contain(8));
    }
}
