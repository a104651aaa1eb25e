//! The facts about a process besides its pid: the control thread reads them from `/proc` at the first beat of the
//! process and again when it starts a new session. Never on the beat path.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use varta_api::printable;
use varta_core::Claims;
use varta_core::fact::ProcessDescription;

use super::program::Program;
use super::rights::Owners;
use super::units::Units;
use super::{KernelFeatures, start_time};

/// Bytes read of a `/proc` file; the kernel's own files are far shorter.
const FILE_BYTES_MAX: usize = 16 * 1024;

/// The facts about a process. Any of them may be missing: the process may belong to another user, or have ended while
/// it was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Command name, at most 15 characters; empty if unknown. The process chooses it, so control characters are
    /// removed once, for all readers.
    pub(crate) name: String,
    /// The program file, by a path in the process's own mount namespace, which its user may choose.
    pub(crate) program: Option<PathBuf>,
    /// The same, except if a rule names the path and the observer finds another file there.
    pub(crate) exe: Option<PathBuf>,
    /// Path in the control group hierarchy.
    pub(crate) cgroup: Option<String>,
    /// The units of service managers, from the control group.
    pub(crate) units: Units,
    /// Clock ticks since boot.
    pub(crate) start_ticks: Option<u64>,
    /// The process's pid in each pid namespace from the observer's inwards; empty if unknown.
    pub(crate) pids: Vec<u32>,
    /// Its pid namespace, where this user may read it.
    pub(crate) pid_ns: Option<u64>,
}

impl Facts {
    /// Reads the facts of the process that has `pid`; `None` unless that was `instance` all the time.
    pub(crate) fn of(pid: u32, instance: u64, kernel: KernelFeatures) -> Option<Self> {
        if !kernel.proc {
            return None;
        }
        let status = read(pid, "status");
        let cgroup = CgroupPath::of(&read(pid, "cgroup"));
        let program = Program::of(pid).map(|program| readable(program.path));
        let facts = Self {
            name: name_of(&read(pid, "comm")),
            exe: program.clone(),
            program,
            units: cgroup.units(Owners::in_status(&status).map(|owners| owners.real)),
            cgroup: cgroup.shown,
            start_ticks: start_time(pid).ok(),
            pids: namespace_pids(&status),
            pid_ns: fs::metadata(format!("/proc/{pid}/ns/pid"))
                .ok()
                .map(|namespace| namespace.ino()),
        };
        // The process that has the pid now had it before the reading.
        let still_there = kernel.hold(pid).is_ok_and(|held| held.instance == instance);
        still_there.then_some(facts)
    }

    /// Whether the process runs in a pid namespace below the observer's. Unknown is not foreign.
    pub(crate) fn is_foreign(&self) -> bool {
        self.pids.len() > 1
    }

    /// The claims that the process may make, if they are known.
    pub(crate) fn claims(&self) -> Option<Claims> {
        (!self.pids.is_empty()).then(|| Claims::from_pids(&self.pids))
    }

    /// The pid of a container's process inside the container.
    pub(crate) fn inner_pid(&self) -> Option<u32> {
        self.pids.get(1..)?.last().copied()
    }
}

impl From<&Facts> for ProcessDescription {
    fn from(facts: &Facts) -> Self {
        Self {
            exe: facts.exe.clone(),
            cgroup: facts.cgroup.clone(),
            unit: facts.units.system.clone(),
            user_unit: facts.units.user.clone(),
            start_ticks: facts.start_ticks,
            pid_ns: facts.pid_ns,
            inner_pid: facts.inner_pid(),
        }
    }
}

/// Whether a process is the first one of its pid namespace, whose end is the end of all others in it.
pub(crate) fn is_init(pid: u32) -> bool {
    namespace_pids(&read(pid, "status")).last() == Some(&1)
}

fn name_of(comm: &str) -> String {
    printable(comm.strip_suffix('\n').unwrap_or(comm))
}

/// A path in a form that JSON can represent whatever its bytes are.
fn readable(path: PathBuf) -> PathBuf {
    match path.to_str() {
        Some(_) => path,
        None => path.to_string_lossy().into_owned().into(),
    }
}

fn read(pid: u32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let end = bytes.len().min(FILE_BYTES_MAX);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The line `NSpid` of `/proc/PID/status`.
fn namespace_pids(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids = line.unwrap_or_default().split_ascii_whitespace();
    pids.map_while(|pid| pid.parse().ok()).collect()
}

/// The position of a process in the control group hierarchies, from `/proc/PID/cgroup`. A root is no information.
struct CgroupPath {
    /// In the unified hierarchy, else in that of systemd, else in the first one.
    shown: Option<String>,
    /// Whether the hierarchy is one that a service manager keeps.
    is_managed: bool,
}

impl CgroupPath {
    fn of(cgroup: &str) -> Self {
        let paths = cgroup.lines().filter_map(|line| {
            let (hierarchy, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let rank = match (hierarchy, controllers) {
                _ if path == "/" => return None,
                ("0", "") => 0,
                (_, "name=systemd") => 1,
                _ => 2,
            };
            Some((rank, path))
        });
        let best = paths.min_by_key(|(rank, _)| *rank);
        Self {
            shown: best.map(|(_, path)| path.to_owned()),
            is_managed: best.is_some_and(|(rank, _)| rank < 2),
        }
    }

    fn units(&self, uid: Option<u32>) -> Units {
        let path = self.shown.as_deref().filter(|_| self.is_managed);
        path.map(|path| Units::on(path, uid)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> KernelFeatures {
        KernelFeatures::find(std::os::unix::net::UnixDatagram::unbound().unwrap())
    }

    #[test]
    fn this_process_is_known_by_name_program_and_number() {
        let pid = std::process::id();
        let instance = kernel().hold(pid).unwrap().instance;
        let facts = Facts::of(pid, instance, kernel()).unwrap();
        assert!(!facts.name.is_empty());
        assert_eq!(facts.exe, std::env::current_exe().ok());
        assert_eq!(facts.pids.first(), Some(&pid));
        assert!(facts.start_ticks.is_some());
        assert!(facts.pid_ns.is_some());
        assert!(facts.claims().is_some());
    }

    #[test]
    fn a_name_stays_on_its_line_and_turns_nothing() {
        assert_eq!(name_of("worker\n"), "worker");
        assert_eq!(name_of("a\n\u{202e}STALL\n"), "a??STALL");
    }

    #[test]
    fn a_path_that_is_no_text_can_be_told() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let path = PathBuf::from(OsString::from_vec(b"/tmp/\xff".to_vec()));
        assert_eq!(readable(path), PathBuf::from("/tmp/\u{fffd}"));
    }

    #[test]
    fn the_facts_of_another_process_are_not_taken_for_this_ones() {
        let pid = std::process::id();
        let other = kernel().hold(pid).unwrap().instance + 1;
        assert_eq!(Facts::of(pid, other, kernel()), None);
        let no_proc = KernelFeatures {
            proc: false,
            ..kernel()
        };
        let instance = kernel().hold(pid).unwrap().instance;
        assert_eq!(Facts::of(pid, instance, no_proc), None);
    }

    #[test]
    fn pids_are_read_from_the_outermost_namespace_inwards() {
        let status = "Name:\tx\nNSpid:\t4242\t17\t1\nNSpgid:\t1\n";
        let facts = Facts {
            pids: namespace_pids(status),
            ..Facts::default()
        };
        assert_eq!(facts.pids, [4242, 17, 1]);
        assert_eq!(facts.inner_pid(), Some(1));
        assert!(facts.is_foreign());
        let unknown = Facts {
            pids: namespace_pids("Name:\tx\n"),
            ..Facts::default()
        };
        assert_eq!((unknown.claims(), unknown.inner_pid()), (None, None));
        assert!(!unknown.is_foreign());
    }

    #[test]
    fn units_come_from_whichever_hierarchy_a_manager_keeps() {
        let unit = |cgroup: &str| CgroupPath::of(cgroup).units(None).system;
        let unified = "9:name=systemd:/b.service\n0::/system.slice/web.service/worker\n";
        assert_eq!(unit(unified).as_deref(), Some("web.service"));
        let legacy = "9:name=systemd:/user.slice/session-3.scope\n4:memory:/a\n0::/\n";
        assert_eq!(unit(legacy).as_deref(), Some("session-3.scope"));
        let own = "9:name=systemd:/\n4:memory:/system.slice/sshd.service\n0::/\n";
        assert_eq!(unit(own), None);
        let path = CgroupPath::of(own).shown;
        assert_eq!(path.as_deref(), Some("/system.slice/sshd.service"));
        assert_eq!(CgroupPath::of("0::/\n").shown, None);
        assert_eq!(CgroupPath::of("garbage").shown, None);
    }
}
