//! Agents on several hosts, with equal pids and changing addresses. Each host is a network namespace that is
//! connected to that of the observer; where that is not possible, an address of the loopback interface.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::LogLine;
use support::network::{
    Beating, JOINS, LEFT, PATIENT, PID, REPLAYED, RETURNS, SEALS, SESSIONS, STALLS, Seal, Series,
    key_flags, socket, socket_at, start_sealed,
};
use support::{BEATS, Observer, PATIENCE, wrapped};
use varta_vlp::PAYLOAD_GOODBYE;

/// The observer's address for all hosts.
const OBSERVER_ADDRESS: &str = "10.99.0.1";

/// A network of its own. It exists until this is dropped and no process is in it any more.
struct Network {
    keeper: Child,
}

impl Network {
    fn new() -> Option<Self> {
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready && cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let stdout = keeper.stdout.take()?;
        let network = Self { keeper };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).ok()?;
        (line == "ready\n").then_some(network)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// Starts the rest of the command in this network.
    fn entrance(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.path())]
    }

    /// Runs `ip` in this network; returns its output, unless it fails.
    fn ip(&self, words: &str) -> Option<String> {
        let output = Command::new("nsenter")
            .args(&self.entrance()[1..])
            .arg("ip")
            .args(words.split(' '))
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(said)
    }

    /// Connects host `number`, and returns its address.
    fn wire(&self, host: &Self, number: usize) -> Option<String> {
        let (near, far) = (format!("10.99.{number}.1"), format!("10.99.{number}.2"));
        let other = host.keeper.id();
        self.ip(&format!(
            "link add veth{number} type veth peer name eth0 netns {other}"
        ))?;
        self.ip(&format!("address add {near}/24 dev veth{number}"))?;
        self.ip(&format!("link set veth{number} up"))?;
        host.ip(&format!("address add {far}/24 dev eth0"))?;
        host.ip("link set eth0 up")?;
        host.ip(&format!("route add default via {near}"))?;
        let until = Instant::now() + PATIENCE;
        while !host.ip("link show dev eth0")?.contains("state UP") && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(far)
    }

    /// A socket in this network. A thread enters the network to make it.
    fn socket_at(&self, address: &str) -> Option<UdpSocket> {
        let namespace = File::open(self.path()).ok()?;
        let go = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).ok()?;
            Some(socket_at(address))
        };
        std::thread::scope(|scope| scope.spawn(go).join().unwrap())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// The network of the agents.
struct Host {
    address: String,
    socket: UdpSocket,
}

/// The observer and two hosts.
struct World {
    observer: Observer,
    hosts: [Host; 2],
    _networks: Vec<Network>,
}

impl World {
    /// The observer listens without encryption, or for sealed datagrams.
    fn new(is_sealed: bool, flags: &[&str]) -> Self {
        let wired = Self::wired(is_sealed, flags);
        wired.unwrap_or_else(|| Self::in_one_network(is_sealed, flags))
    }

    fn wired(is_sealed: bool, flags: &[&str]) -> Option<Self> {
        let networks: Option<Vec<Network>> = (0..3).map(|_| Network::new()).collect();
        let networks = networks?;
        let middle = &networks[0];
        middle.ip("link set lo up")?;
        middle.ip(&format!("address add {OBSERVER_ADDRESS}/32 dev lo"))?;
        let host = |number: usize| {
            let address = middle.wire(&networks[number], number)?;
            let socket = networks[number].socket_at(&address)?;
            Some(Host { address, socket })
        };
        let hosts = [host(1)?, host(2)?];
        let bind = format!("--udp-bind-addr={OBSERVER_ADDRESS}");
        let entrance = middle.entrance();
        let entrance = entrance.each_ref().map(String::as_str);
        let observer = start(is_sealed, &[&[bind.as_str()], flags].concat(), &entrance);
        Some(Self {
            observer,
            hosts,
            _networks: networks,
        })
    }

    fn in_one_network(is_sealed: bool, flags: &[&str]) -> Self {
        let hosts = ["127.0.0.2", "127.0.0.3"].map(|address| Host {
            address: address.to_owned(),
            socket: socket_at(address),
        });
        Self {
            observer: start(is_sealed, flags, &[]),
            hosts,
            _networks: Vec::new(),
        }
    }

    /// Waits for a line about a host, or finds it among those that were read.
    fn told(&self, event: &str, host: usize) -> LogLine {
        let address = &self.hosts[host].address;
        let is_of_it = |line: &LogLine| line.text("source") == Some(address);
        self.observer.told(event, is_of_it)
    }
}

/// Starts an observer with these words before its command.
fn start(is_sealed: bool, flags: &[&str], wrapper: &[&str]) -> Observer {
    let directory = tempfile::tempdir().unwrap();
    let keys = match is_sealed {
        true => key_flags(directory.path()).to_vec(),
        false => vec!["--i-accept-plaintext-udp".to_owned()],
    };
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let all = [&["--udp-port=0"], &keys[..], flags].concat();
    Observer::start_in(directory, &all, |command| wrapped(wrapper, &command))
}

/// Two agents with the same pid on two hosts; one falls silent and comes back.
fn tell_hosts_apart(seal: Seal) {
    let is_sealed = !matches!(seal, Seal::Clear);
    let world = World::new(is_sealed, &["--threshold-ms=2000"]);
    let observer = &world.observer;
    let beat = |host: usize, series| Beating::start(observer, &world.hosts[host].socket, series);
    let first = beat(0, Series::new(seal, PID, "host 1"));
    let second = beat(1, Series::new(seal, PID, "host 2"));
    for host in [0, 1] {
        assert_eq!(world.told("join", host).pid(), Some(PID));
    }
    let first = first.stop();
    world.told("stall", 0);
    let first = beat(0, first);
    world.told("return", 0);
    let sent = first.stop().nonce + second.stop().nonce;
    observer.wait_for_count(BEATS, sent);
    let silent = |line: &LogLine| line.event == "stall";
    for stall in observer.lines_told(silent) {
        assert_ne!(stall.text("source"), Some(&*world.hosts[1].address));
    }
    world.observer.stop().assert_counters(&[
        (JOINS, 2),
        (RETURNS, 1),
        (SESSIONS, 0),
        (REPLAYED, 0),
    ]);
}

#[test]
fn equal_pids_on_two_hosts_are_two_agents_in_clear() {
    tell_hosts_apart(Seal::Clear);
}

#[test]
fn equal_pids_on_two_hosts_are_two_agents_under_a_shared_key() {
    tell_hosts_apart(SEALS[0]);
}

#[test]
fn equal_pids_on_two_hosts_are_two_agents_under_a_master_key() {
    tell_hosts_apart(SEALS[1]);
}

#[test]
fn a_goodbye_on_one_host_ends_nobody_on_another() {
    for seal in [Seal::Clear, SEALS[0], SEALS[1]] {
        let world = World::new(!matches!(seal, Seal::Clear), &[PATIENT]);
        let [one, two] = &world.hosts;
        let mut leaves = Series::new(seal, PID, "leaves");
        let mut stays = Series::new(seal, PID, "stays");
        world.observer.hear(&one.socket, &leaves.beat());
        world.observer.hear(&two.socket, &stays.beat());
        let goodbye = leaves.last(PAYLOAD_GOODBYE, 1);
        world.observer.hear(&one.socket, &goodbye);
        world.told("exit", 0);
        world.observer.hear(&two.socket, &stays.beat());
        let stopped = world.observer.stop();
        stopped.assert_counters(&[(JOINS, 2), (LEFT, 1), (BEATS, 4)]);
    }
}

#[test]
fn a_sender_whose_port_is_translated_anew_is_the_same_agent() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let mut agent = Series::new(seal, PID, "session");
        for _ in 0..5 {
            // Each has a port of its own.
            observer.hear_all(&socket(), &agent.beats(2));
        }
    }
    let stopped = observer.stop();
    stopped.assert_counters(&[(JOINS, 2), (BEATS, 20), (REPLAYED, 0), (SESSIONS, 0)]);
}

#[test]
fn a_sender_whose_address_changes_is_the_same_agent() {
    for seal in SEALS {
        let world = World::new(true, &["--threshold-ms=2000"]);
        let [old, new] = &world.hosts;
        let mut agent = Series::new(seal, PID, "moves");
        let capture = agent.beats(5);
        world.observer.hear_all(&old.socket, &capture);
        world.observer.hear_all(&new.socket, &agent.beats(2));
        // A datagram accepted from one host is not accepted from the other, and the other way round.
        world.observer.hear_all(&new.socket, &capture);
        world.observer.hear_all(&old.socket, &capture);
        assert_eq!(world.told("stall", 0).pid(), Some(PID));
        let stopped = world.observer.stop();
        stopped.assert_counters(&[(JOINS, 1), (BEATS, 7), (REPLAYED, 10), (STALLS, 1)]);
    }
}

#[test]
fn a_copy_that_overtakes_its_original_credits_whose_session_it_is_and_costs_nobody() {
    for seal in SEALS {
        let world = World::new(true, &[PATIENT]);
        let [one, two] = &world.hosts;
        let mut first = Series::new(seal, PID, "first");
        let mut second = Series::new(seal, PID, "second");
        world.observer.hear(&two.socket, &second.beat());
        world.observer.hear(&one.socket, &first.beat());
        let beat = first.beat();
        world.observer.hear(&two.socket, &beat);
        world.observer.hear(&one.socket, &beat);
        world.observer.hear_all(&two.socket, &second.beats(3));
        world.observer.hear_all(&one.socket, &first.beats(3));
        let stopped = world.observer.stop();
        stopped.assert_counters(&[(JOINS, 2), (BEATS, 9), (REPLAYED, 1), (SESSIONS, 0)]);
    }
}

#[test]
fn a_session_that_comes_from_two_addresses_by_turns_is_one_agents() {
    for seal in SEALS {
        let world = World::new(true, &[PATIENT]);
        let mut agent = Series::new(seal, PID, "by turns");
        for turn in 0..6 {
            let host = &world.hosts[turn % 2];
            world.observer.hear_all(&host.socket, &agent.beats(2));
        }
        let stopped = world.observer.stop();
        stopped.assert_counters(&[(JOINS, 1), (BEATS, 12), (REPLAYED, 0), (STALLS, 0)]);
    }
}

#[test]
fn an_address_that_passes_to_another_host_takes_nobodys_beats_and_nobodys_life() {
    for seal in SEALS {
        let world = World::new(true, &["--threshold-ms=3000"]);
        let [old, new] = &world.hosts;
        let mut first = Series::new(seal, PID, "first");
        first.nonce = 99;
        world.observer.hear_all(&old.socket, &first.beats(3));
        world.observer.hear_all(&new.socket, &first.beats(3));
        // Another host with the same pid has the address now.
        let mut second = Series::new(seal, PID, "second");
        for _ in 0..20 {
            world.observer.hear(&old.socket, &second.beat());
            world.observer.hear(&new.socket, &first.beat());
        }
        let is_shared = |line: &LogLine| line.text("reason") == Some("several_sessions");
        world.observer.told("session", is_shared);
        world
            .observer
            .hear(&old.socket, &second.last(PAYLOAD_GOODBYE, 1 << 40));
        world.observer.hear_all(&new.socket, &first.beats(3));
        // It hangs, which is detected.
        world.told("stall", 0);
        let stopped = world.observer.stop();
        stopped.assert_counters(&[
            (JOINS, 1),
            (LEFT, 0),
            (STALLS, 1),
            (REPLAYED, 0),
            (BEATS, 50),
        ]);
    }
}
