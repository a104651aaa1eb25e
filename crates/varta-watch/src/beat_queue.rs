//! The kernel's queue of beats: makes the beat socket with a deep queue, or reports why that is not possible.
//!
//! The kernel refuses a beat that finds the queue full. The depth is fixed when the socket is made (see
//! [`varta_sys::deep_socket`]). Where a deep socket is refused the observer continues with the depth of this network
//! namespace, and reports the cause and the fix.
//!
//! The reported depth is measured, not assumed: it was read back where the socket was made, or counted by filling the
//! queue of another socket that was made in the same namespace.

use std::fmt;
use std::fs::{self, read_to_string};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::io::Errno;
use varta_sys::deep_socket::{DeepSocketError, Step, deep_socket};

use crate::settings::QUEUE_DATAGRAMS_MAX;
use crate::socket_file::{Purpose, new_socket};

/// Below this depth a burst of ordinary size overflows the queue.
const DEPTH_LOW: usize = 64;

/// How long the helper that makes the socket may take: 5 s. It takes less than a millisecond, and longer only while
/// the host removes many network namespaces.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kernel's setting for the depth of queues in this network namespace; a queue holds one datagram more.
const SETTING: &str = "/proc/sys/net/unix/max_dgram_qlen";

/// The signal that a killing system call filter sends.
const SIGSYS: i32 = 31;

/// The depth of the beat socket's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Depth {
    /// Datagrams the kernel queues before it refuses one.
    pub(crate) datagrams: usize,
    /// Why that is less than it should be, with the fix; in one line.
    pub(crate) shallow: Option<String>,
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shallow {
            Some(shallow) => f.write_str(shallow),
            None => write!(
                f,
                "the kernel queues {} beats of all agents together",
                self.datagrams
            ),
        }
    }
}

/// Makes the beat socket, without a name. `wanted` is the least number of datagrams it must queue; `None`: the
/// kernel's default is enough.
pub(crate) fn make_socket(wanted: Option<u32>) -> io::Result<(OwnedFd, Depth)> {
    let socket = new_socket(Purpose::Beats)?;
    let datagrams = depth_here()?;
    let shallow = match wanted {
        Some(wanted) if datagrams < wanted as usize => match deep_socket(wanted, PATIENCE) {
            Ok(socket) => {
                let datagrams = wanted as usize;
                let depth = Depth {
                    datagrams,
                    shallow: None,
                };
                return Ok((socket, depth));
            }
            Err(error) => Some(refused(datagrams, wanted, &error)),
        },
        None if datagrams < DEPTH_LOW => Some(switched_off(datagrams)),
        _ => None,
    };
    Ok((socket, Depth { datagrams, shallow }))
}

fn switched_off(datagrams: usize) -> String {
    format!(
        "the kernel queues {datagrams} beats of all agents together and refuses more until they are read: agents \
         that beat at the same moment lose beats; take out --queue-datagrams off"
    )
}

fn refused(datagrams: usize, wanted: u32, error: &DeepSocketError) -> String {
    let (cause, remedy) = explain(error);
    let remedy = remedy.map_or(String::new(), |remedy| format!(", or {remedy}"));
    format!(
        "the kernel queues {datagrams} beats of all agents together instead of {wanted} and refuses more until they \
         are read: {error}{cause}; set net.unix.max_dgram_qlen to {wanted} for the network namespace of the observer \
         before it starts (sysctl){remedy}"
    )
}

/// The cause of the error, to be appended to it, with the fix.
fn explain(error: &DeepSocketError) -> (String, Option<&'static str>) {
    let because = |cause: &str, remedy| (format!(" ({cause})"), Some(remedy));
    let only = |cause: &str| (format!(" ({cause})"), None);
    let (step, errno) = match error {
        DeepSocketError::Refused(step, error) => (*step, Errno::from_io_error(error)),
        DeepSocketError::Killed(SIGSYS) => {
            return because(
                "a system call filter kills it",
                "let the filter allow unshare",
            );
        }
        _ => return (String::new(), None),
    };
    match (step, errno) {
        (Step::UserNamespace, Some(Errno::NOSPC)) => because(
            "the limit of user namespaces is reached",
            "raise user.max_user_namespaces",
        ),
        (Step::NetworkNamespace, Some(Errno::NOSPC)) => because(
            "the limit of network namespaces is reached",
            "raise user.max_net_namespaces",
        ),
        (Step::UserNamespace | Step::NetworkNamespace, Some(Errno::INVAL | Errno::NOSYS)) => {
            only("this kernel was built without")
        }
        (Step::UserNamespace, Some(Errno::PERM)) if is("kernel/unprivileged_userns_clone", "0") => {
            because("kernel.unprivileged_userns_clone is 0", "set that to 1")
        }
        (
            Step::UserNamespace | Step::NetworkNamespace | Step::OpenSetting | Step::WriteSetting,
            Some(Errno::PERM | Errno::ACCESS),
        ) if is("kernel/apparmor_restrict_unprivileged_userns", "1") => because(
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            "give varta-watch an AppArmor profile with 'userns,'",
        ),
        (Step::UserNamespace | Step::NetworkNamespace, Some(Errno::PERM)) if is_filtered() => {
            because(
                "a system call filter forbids it, of a container or of RestrictNamespaces= in the unit",
                "let the filter allow unshare",
            )
        }
        (Step::UserNamespace | Step::NetworkNamespace, Some(Errno::PERM | Errno::ACCESS)) => {
            only("a chroot or a security module forbids it")
        }
        (Step::OpenSetting, Some(Errno::NOENT)) if fs::exists(SETTING).unwrap_or(false) => {
            only("before Linux 5.17 root alone can set it")
        }
        (Step::OpenSetting, Some(Errno::NOENT | Errno::NOTDIR)) => {
            because("/proc is not mounted, or without sys", "mount it")
        }
        (Step::OpenSetting, Some(Errno::ROFS)) => because(
            "/proc/sys is mounted read-only, in a container or by ProtectKernelTunables= in the unit",
            "switch that off",
        ),
        (Step::OpenSetting | Step::WriteSetting, Some(Errno::PERM | Errno::ACCESS)) => {
            only("a security module forbids it")
        }
        (Step::Start, Some(Errno::AGAIN)) => because(
            "the limit of processes is reached",
            "raise RLIMIT_NPROC or the pids limit of the control group",
        ),
        _ => (String::new(), None),
    }
}

/// Whether a setting of the kernel has this value.
fn is(setting: &str, value: &str) -> bool {
    read_to_string(format!("/proc/sys/{setting}")).is_ok_and(|text| text.trim() == value)
}

/// Whether a system call filter is in force for this process.
fn is_filtered() -> bool {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    line.is_some_and(|mode| mode.trim() == "2")
}

/// The number of datagrams that a socket made in this network namespace queues.
fn depth_here() -> io::Result<usize> {
    let text = read_to_string(SETTING).unwrap_or_default();
    match text.trim().parse::<i32>() {
        // The kernel queues one more than the setting, and takes a negative number for a large one.
        Ok(setting) => Ok(setting.cast_unsigned() as usize + 1),
        // The file is not mounted, or hidden.
        Err(_) => counted_depth(),
    }
}

/// The same, measured by filling the queue of such a socket. Counts up to [`QUEUE_DATAGRAMS_MAX`].
fn counted_depth() -> io::Result<usize> {
    let name = format!("varta-{:x}", RandomState::new().hash_one(0));
    let address = SocketAddr::from_abstract_name(name)?;
    let _twin = UnixDatagram::bind_addr(&address)?;
    let mut senders = Vec::new();
    let mut queued = 0;
    // A sender's own buffer is bounded too. The queue is full when a new sender is refused.
    while queued < QUEUE_DATAGRAMS_MAX as usize {
        let Ok(sender) = UnixDatagram::unbound() else {
            break;
        };
        sender.set_nonblocking(true)?;
        let before = queued;
        while queued < QUEUE_DATAGRAMS_MAX as usize && sender.send_to_addr(&[], &address).is_ok() {
            queued += 1;
        }
        if queued == before {
            break;
        }
        senders.push(sender);
    }
    Ok(queued)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(step: Step, errno: Errno) -> DeepSocketError {
        DeepSocketError::Refused(step, errno.into())
    }

    #[test]
    fn counting_the_queue_finds_what_the_kernel_says() {
        if let Ok(setting) = read_to_string(SETTING) {
            let said = setting.trim().parse::<usize>().unwrap() + 1;
            assert_eq!(
                counted_depth().unwrap(),
                said.min(QUEUE_DATAGRAMS_MAX as usize)
            );
        }
    }

    #[test]
    fn what_the_kernel_offers_needs_no_helper_and_no_word_if_it_is_deep_enough() {
        let here = depth_here().unwrap();
        let (_socket, depth) = make_socket(Some(here as u32)).unwrap();
        let expected = Depth {
            datagrams: here,
            shallow: None,
        };
        assert_eq!(depth, expected);
    }

    #[test]
    fn who_switches_it_off_has_what_the_kernel_offers_and_is_told_if_that_is_little() {
        let here = depth_here().unwrap();
        let (_socket, depth) = make_socket(None).unwrap();
        assert_eq!(depth.datagrams, here);
        assert_eq!(depth.shallow.is_some(), here < DEPTH_LOW);
    }

    #[test]
    fn each_refusal_names_the_depth_there_is_and_two_remedies() {
        let text = refused(11, 8192, &error(Step::OpenSetting, Errno::ROFS));
        assert!(text.contains("queues 11 beats"), "{text}");
        assert!(text.contains("mounted read-only"), "{text}");
        assert!(text.contains("net.unix.max_dgram_qlen to 8192"), "{text}");
        assert!(text.ends_with(", or switch that off"), "{text}");
    }

    #[test]
    fn refusals_are_told_apart_by_their_cause() {
        let causes = [
            error(Step::UserNamespace, Errno::NOSPC),
            error(Step::NetworkNamespace, Errno::NOSPC),
            error(Step::NetworkNamespace, Errno::INVAL),
            error(Step::UserNamespace, Errno::PERM),
            error(Step::OpenSetting, Errno::NOENT),
            error(Step::OpenSetting, Errno::ROFS),
            error(Step::WriteSetting, Errno::ACCESS),
            error(Step::Start, Errno::AGAIN),
            DeepSocketError::Killed(SIGSYS),
            DeepSocketError::TimedOut,
        ];
        let texts: Vec<String> = causes
            .iter()
            .map(|error| refused(11, 8192, error))
            .collect();
        for (index, text) in texts.iter().enumerate() {
            assert!(!text.contains('\n'), "{text}");
            assert!(!texts[..index].contains(text), "{text}");
        }
    }
}
