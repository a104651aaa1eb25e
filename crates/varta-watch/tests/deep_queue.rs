//! The depth of the kernel's queue for beats: its value, the users that may have it, and the message where it is
//! refused.

#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg};
use rustix::process::{Pid, Signal, getgid, getuid};
use serde_json::Value;
use support::agents::{Puppet, be_an_agent_if_told};
use support::{
    AS_NOBODY, BEATS, Observer, copy_program, frame_of, may_become_nobody, public_directory,
    wrapped,
};

const SETTING: &str = "/proc/sys/net/unix/max_dgram_qlen";

/// The default depth of the queue.
const DEEP: usize = 8192;

/// The user that `AS_NOBODY` gives a program.
const NOBODY: u32 = 64_000;

const JOINS: &str = "varta_observer_joins_total";

const WRONG_LENGTH: &str = "varta_truncated_datagrams_total";

/// Not a test: the program of the agents of the tests below.
#[test]
fn agent_process() {
    be_an_agent_if_told();
}

fn setting() -> String {
    fs::read_to_string(SETTING).unwrap()
}

/// The number of datagrams that a socket in this network namespace queues.
fn depth_here() -> usize {
    setting().trim().parse::<usize>().unwrap() + 1
}

fn observer_program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_varta-watch"))
}

/// The output of `--check-config` under this wrapper; empty if the wrapper does not work on this machine.
fn check(wrapper: &[&str], program: &Path) -> String {
    let mut command = Command::new(program);
    command.args(["--socket=/s", "--check-config"]);
    let output = wrapped(wrapper, &command).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Whether this machine lets an observer under this wrapper have a deep socket; prints it if not.
fn may_be_deep(wrapper: &[&str], program: &Path) -> bool {
    let said = check(wrapper, program);
    let may = said.contains(&format!("queues {DEEP} beats"));
    if !may {
        println!("skipped: no deep socket here: {said}");
    }
    may
}

/// Stops it until it is continued.
fn stop(observer: &Observer) {
    observer.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", observer.pid());
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
}

/// The number of datagrams that other processes can send to an observer that is stopped meanwhile. Each sender's own
/// buffer is bounded, so there are many.
fn fill(observer: &Observer) -> usize {
    stop(observer);
    let mut senders = Vec::new();
    let mut queued = 0;
    loop {
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        let sent = (0..).take_while(|_| sender.send_to(&[7; 31], &observer.socket).is_ok());
        let sent = sent.count();
        senders.push(sender);
        queued += sent;
        if sent == 0 {
            observer.signal(Signal::CONT);
            return queued;
        }
    }
}

/// The depth of its queue in each of its outputs.
fn queue_depth(observer: &Observer) -> (usize, Option<String>) {
    let info: Value = observer.ask("/api/v1/info").json();
    let depth = info["queue_datagrams"].as_u64().unwrap() as usize;
    let gauge = format!("varta_observer_queue_datagrams {depth}");
    let page = observer.ask("/metrics").text();
    assert!(page.lines().any(|line| line == gauge), "{page}");
    let shallow = info["queue_shallow"].as_str();
    (depth, shallow.map(str::to_owned))
}

#[test]
fn the_queue_is_as_deep_as_told_and_the_setting_of_the_host_is_left_alone() {
    if !may_be_deep(&[], observer_program()) {
        return;
    }
    let before = setting();
    for (flags, depth) in [(&[][..], DEEP), (&["--queue-datagrams=500"], 500)] {
        let observer = Observer::start(flags);
        assert_eq!(queue_depth(&observer), (depth, None));
        assert_eq!(fill(&observer), depth);
        let stopped = observer.stop_when(WRONG_LENGTH, depth as u64);
        assert_eq!(stopped.counter(WRONG_LENGTH), depth as u64);
    }
    assert_eq!(setting(), before);
}

#[test]
fn switched_off_the_queue_is_what_the_kernel_offers_and_the_remedy_is_told() {
    let observer = Observer::start(&["--queue-datagrams=off"]);
    let (depth, shallow) = queue_depth(&observer);
    assert_eq!(depth, depth_here());
    assert_eq!(fill(&observer), depth);
    let is_shallow = depth < 64;
    assert_eq!(shallow.is_some(), is_shallow);
    if is_shallow {
        let line = observer.wait_for("notice", |line| line.msg.contains("queues"));
        assert_eq!(Some(line.msg), shallow);
    }
}

#[test]
fn an_ordinary_users_observer_has_a_deep_queue_and_knows_its_agents() {
    if !may_become_nobody() {
        return;
    }
    let directory = public_directory();
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let program = directory.path().join("observer");
    copy_program(observer_program(), &program);
    if !may_be_deep(&AS_NOBODY, &program) {
        return;
    }
    let agent = directory.path().join("agent");
    copy_program(&std::env::current_exe().unwrap(), &agent);
    let observer = Observer::start_in(directory, &[], |command| {
        let mut copy = Command::new(&program);
        copy.args(command.get_args());
        wrapped(&AS_NOBODY, &copy)
    });
    assert_eq!(queue_depth(&observer), (DEEP, None));
    let mut agent = Puppet::start_under(&AS_NOBODY, &agent, &observer.socket);
    agent.tell("beat self 1");
    let join = observer.wait_for_pid("join", agent.pid);
    assert_eq!(join.number("uid"), Some(NOBODY));
    assert_eq!(fill(&observer), DEEP);
}

/// Idle processes, until the test ends.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn start(count: usize) -> Self {
        let start = |_| Command::new("sleep").arg("1000").spawn().unwrap();
        Self((0..count).map(start).collect())
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for sleeper in &mut self.0 {
            let _ = sleeper.kill();
            let _ = sleeper.wait();
        }
    }
}

/// Sends the first beat of another process, as root may.
fn send_as(pid: u32, socket: &Path) -> Result<(), Errno> {
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(socket).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let credentials = UCred {
        pid: Pid::from_raw(pid.cast_signed()).unwrap(),
        uid: getuid(),
        gid: getgid(),
    };
    assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
    let frame = frame_of(pid, 1);
    let data = [IoSlice::new(&frame)];
    sendmsg(&sender, &data, &mut control, SendFlags::empty()).map(|_| ())
}

/// Their first beats are younger than the observer's last look at the queue: only the pidfds that come with them can
/// prove their senders.
#[test]
fn a_crowd_of_newcomers_that_found_the_observer_away_is_let_in_as_a_whole() {
    const NEWCOMERS: usize = 1_500;
    if !may_be_deep(&[], observer_program()) {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000", "--tracker-capacity=2000"]);
    stop(&observer);
    let sleepers = Sleepers::start(NEWCOMERS);
    for sleeper in &sleepers.0 {
        match send_as(sleeper.id(), &observer.socket) {
            Ok(()) => {}
            Err(Errno::PERM) => return println!("skipped: this user cannot send for others"),
            Err(errno) => panic!("{errno}"),
        }
    }
    observer.signal(Signal::CONT);
    let stopped = observer.stop_when(JOINS, NEWCOMERS as u64);
    assert_eq!(stopped.counter(BEATS), NEWCOMERS as u64);
}

/// Root of a user and mount namespace of its own.
const AS_ROOT_INSIDE: [&str; 3] = ["unshare", "--map-root-user", "--mount"];

/// The observer continues with the default queue, and reports in one line the cause and the fix.
fn assert_told(script: &str, words: [&str; 2]) {
    assert_told_to(&AS_ROOT_INSIDE, observer_program(), script, words);
}

/// The same as another user.
fn assert_told_to(who: &[&str], program: &Path, script: &str, words: [&str; 2]) {
    let script = format!("{script} && exec \"$0\" \"$@\"");
    let wrapper = [who, &["sh", "-c", &script]].concat();
    let said = check(&wrapper, program);
    if said.is_empty() {
        println!("skipped: this machine does not allow '{script}'");
        return;
    }
    let line = said.lines().next().unwrap();
    assert!(
        line.contains("beats of all agents together instead of 8192"),
        "{said}"
    );
    assert!(
        line.contains("set net.unix.max_dgram_qlen to 8192"),
        "{said}"
    );
    for word in words {
        assert!(line.contains(word), "{word}: {said}");
    }
}

#[test]
fn a_read_only_proc_is_told() {
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";
    assert_told(script, ["mounted read-only", "ProtectKernelTunables="]);
}

#[test]
fn a_missing_proc_is_told() {
    let script = "mount -t tmpfs none /proc";
    assert_told(script, ["/proc is not mounted", "or mount it"]);
}

#[test]
fn a_limit_of_user_namespaces_is_told() {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set=-all \"$0\" \"$@\"";
    assert_told(
        script,
        ["limit of user namespaces", "raise user.max_user_namespaces"],
    );
}

#[test]
fn a_limit_of_network_namespaces_is_told() {
    let script = "echo 0 > /proc/sys/user/max_net_namespaces";
    assert_told(
        script,
        [
            "limit of network namespaces",
            "raise user.max_net_namespaces",
        ],
    );
}

#[test]
fn a_limit_of_processes_is_told() {
    if !may_become_nobody() {
        return;
    }
    let directory = public_directory();
    let program = directory.path().join("observer");
    copy_program(observer_program(), &program);
    let words = ["limit of processes", "raise RLIMIT_NPROC"];
    let script = "prlimit --pid $$ --nproc=0";
    assert_told_to(&AS_NOBODY, &program, script, words);
}
