//! Real forks. Each test starts this program again as an agent that beats, or panics, before and after it
//! becomes a daemon, which is the fork that safe code can make.

#![cfg(all(target_os = "linux", feature = "secure-udp"))]

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use varta_client::{AgentKey, BeatOutcome, SecureUdpTransport, Status, Varta};

#[path = "common/network.rs"]
mod network;
#[path = "common/sealed.rs"]
mod sealed;
use network::Receiver;
use sealed::{Opened, key, open_by_master, open_shared};

/// The role of the agent, for [`agent`], and its target.
const ROLE: &str = "VARTA_TEST_ROLE";
const TARGET: &str = "VARTA_TEST_TARGET";

/// Not a test of its own, but the agent of those below.
#[test]
fn agent() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let target = std::env::var(TARGET).expect("a target");
    let target: SocketAddr = target.parse().expect("an address");
    match role.as_str() {
        "shared" => beat_fork_beat(target, Varta::connect_secure_udp(target, key())),
        "master" => beat_fork_beat(target, Varta::connect_secure_udp_with_master(target, key())),
        "agent-key" => beat_fork_beat(
            target,
            Varta::connect_secure_udp_with_agent_key(target, own_key()),
        ),
        #[cfg(feature = "panic-handler")]
        role => panics::panic_fork_panic(target, role),
        #[cfg(not(feature = "panic-handler"))]
        role => unreachable!("{role}"),
    }
    std::process::exit(0);
}

fn own_key() -> AgentKey {
    AgentKey::derive(&key(), std::process::id())
}

/// Continues as a child while the parent ends.
fn fork() {
    nix::unistd::daemon(true, true).expect("a child");
}

/// Two beats before the fork, two after it, and then in clear the outcome of the last one.
fn beat_fork_beat(target: SocketAddr, agent: std::io::Result<Varta<SecureUdpTransport>>) {
    let mut agent = agent.expect("a session");
    let mut beat_twice = || [(); 2].map(|()| agent.beat(Status::Ok, 0));
    assert_eq!(beat_twice(), [BeatOutcome::Sent; 2]);
    fork();
    let [_, last] = beat_twice();
    say(target, &last.to_string());
}

fn say(target: SocketAddr, text: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.send_to(text.as_bytes(), target).expect("sent");
}

/// Lets an agent play its role; its pid before the fork.
fn play(role: &str, target: SocketAddr) -> u32 {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "agent", "--test-threads=1"])
        .env(ROLE, role)
        .env(TARGET, target.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program again");
    assert!(child.wait().expect("a child").success());
    child.id()
}

/// The next four beats.
fn four(receiver: &Receiver, open: fn(&[u8]) -> Opened) -> [Opened; 4] {
    [(); 4].map(|()| open(&receiver.datagram()))
}

fn assert_the_child_speaks_for_itself(parent: u32, beats: &[Opened; 4]) {
    let [first, second, third, fourth] = beats;
    assert_eq!([first.frame.pid, second.frame.pid], [parent; 2]);
    assert_ne!(third.frame.pid, parent);
    assert_eq!(third.frame.pid, fourth.frame.pid);

    assert_eq!(first.prefix, second.prefix);
    assert_eq!(third.prefix, fourth.prefix);
    assert_ne!(first.prefix, third.prefix);
    for (beat, expected) in beats.iter().zip([1, 2, 1, 2]) {
        assert_eq!(beat.counter, expected);
        assert_eq!(beat.frame.nonce, u64::from(expected));
    }
}

#[test]
fn a_child_begins_a_session_and_a_series_of_its_own() {
    let receiver = Receiver::start();
    let parent = play("shared", receiver.addr());
    assert_the_child_speaks_for_itself(parent, &four(&receiver, open_shared));
    assert_eq!(&*receiver.datagram(), b"sent");
}

#[test]
fn a_child_with_the_master_key_derives_a_key_of_its_own() {
    let receiver = Receiver::start();
    let parent = play("master", receiver.addr());
    // Each is opened under the key of its own pid.
    assert_the_child_speaks_for_itself(parent, &four(&receiver, open_by_master));
    assert_eq!(&*receiver.datagram(), b"sent");
}

#[test]
fn a_child_with_the_key_of_its_parent_sends_nothing() {
    let receiver = Receiver::start();
    let parent = play("agent-key", receiver.addr());
    for _ in 0..2 {
        assert_eq!(open_by_master(&receiver.datagram()).frame.pid, parent);
    }
    assert_eq!(&*receiver.datagram(), b"failed: send failed: InvalidInput");
}

#[cfg(feature = "panic-handler")]
mod panics {
    use std::collections::HashSet;
    use std::panic::{catch_unwind, set_hook};

    use varta_client::{
        install_panic_handler_secure_udp, install_panic_handler_secure_udp_with_agent_key,
        install_panic_handler_secure_udp_with_master,
    };

    use super::*;

    /// A panic before the fork, two after it, and then one datagram in clear.
    pub(super) fn panic_fork_panic(target: SocketAddr, role: &str) {
        set_hook(Box::new(|_| ()));
        match role {
            "panic-shared" => install_panic_handler_secure_udp(target, key()),
            "panic-master" => install_panic_handler_secure_udp_with_master(target, key()),
            "panic-agent-key" => install_panic_handler_secure_udp_with_agent_key(target, own_key()),
            _ => unreachable!("{role}"),
        }
        .expect("a hook");
        panic_and_catch();
        fork();
        panic_and_catch();
        panic_and_catch();
        say(target, "done");
    }

    fn panic_and_catch() {
        assert!(catch_unwind(|| panic!("on purpose")).is_err());
    }

    #[test]
    fn a_child_that_panics_says_so_for_itself_under_nonces_of_its_own() {
        for (role, open) in [
            ("panic-shared", open_shared as fn(&[u8]) -> Opened),
            ("panic-master", open_by_master),
        ] {
            let receiver = Receiver::start();
            let parent = play(role, receiver.addr());
            let terminals = [(); 3].map(|()| open(&receiver.datagram()));
            assert!(terminals.iter().all(|opened| opened.frame.is_terminal()));
            let [before, first, second] = terminals.each_ref().map(|opened| opened.frame.pid);
            assert_eq!(before, parent);
            assert_ne!(first, parent);
            assert_eq!(first, second);
            let nonces = terminals.map(|opened| (opened.prefix, opened.counter));
            assert_eq!(HashSet::from(nonces).len(), 3, "{role}");
            assert_eq!(&*receiver.datagram(), b"done");
        }
    }

    #[test]
    fn a_child_that_panics_with_the_key_of_its_parent_sends_nothing() {
        let receiver = Receiver::start();
        let parent = play("panic-agent-key", receiver.addr());
        assert_eq!(open_by_master(&receiver.datagram()).frame.pid, parent);
        assert_eq!(&*receiver.datagram(), b"done");
    }
}
