//! The two listeners of a running observer: access control, and that no input of a client can hurt the observer.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::http::{Follower, Reply, assert_healthy, assert_problem, read_all, request};
use support::network::{flag, hex, write_key};
use support::{Observer, frame, refused_start};
use varta_api::HTTP_ADDRESS;
use varta_api::v1::{AgentsPage, Health};

const ANY: &str = "--http=127.0.0.1:0";
const TOKEN: &str = "0123456789abcdef";
const OTHER_TOKEN: &str = "fedcba9876543210";

const AUTH_FAILURES: &str = "varta_prom_auth_failures_total";
const RATE_LIMITED: &str = "varta_prom_connections_dropped_total{reason=\"rate_limit\"}";
const DRAINED: &str = "varta_prom_connections_dropped_total{reason=\"drain\"}";

const BUSY: &str = "varta_prom_connections_dropped_total{reason=\"busy\"}";

/// Followers of events per listener.
const FOLLOWERS_MAX: usize = 8;

/// Requests that one address may send at once.
const BURST: usize = 50;

/// Connections per listener.
const CONNECTIONS_MAX: usize = 256;

fn authorization(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// An observer on TCP that requires the token, and its token file.
fn start_with_token(flags: &[&str]) -> (Observer, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = write_key(directory.path(), "token", TOKEN);
    let token = flag("--http-token-file", &path);
    let all: Vec<&str> = [ANY, &token]
        .into_iter()
        .chain(flags.iter().copied())
        .collect();
    (Observer::start_in(directory, &all, |command| command), path)
}

#[test]
fn both_doors_answer_the_same() {
    let observer = Observer::start(&[ANY]);
    for path in [
        "/",
        "/readyz",
        "/api/v1/agents",
        // The latest ones may change in between.
        "/api/v1/events?after=0&limit=1",
        "/nowhere",
    ] {
        let (tcp, control) = (observer.get(path, &[]), observer.ask(path));
        assert_eq!(
            (tcp.status, &tcp.body),
            (control.status, &control.body),
            "{path}"
        );
        assert_eq!(tcp.header("cache-control"), Some("no-store"));
        assert_eq!(tcp.header("access-control-allow-origin"), None);
    }
    assert_healthy(&observer);
}

#[test]
fn both_doors_give_the_same_metrics() {
    let observer = Observer::start(&[ANY]);
    // Their values change while they are read.
    let series = |body: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(body);
        let names = text.lines().filter_map(|line| line.rsplit_once(' '));
        names.map(|(name, _)| name.to_owned()).collect()
    };
    let tcp = observer.get("/metrics", &[]);
    assert_eq!(tcp.status, 200);
    let control = observer.ask("/metrics");
    assert_eq!(series(&tcp.body), series(&control.body));
}

#[test]
fn a_free_port_is_told_alone_on_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stdout");
    let stdout = File::create(&path).unwrap();
    let observer = Observer::start_in(directory, &[ANY], |mut command| {
        command.stdout(stdout);
        command
    });
    let told = fs::read_to_string(path).unwrap();
    assert_eq!(told, format!("{}\n", observer.http_address()));
}

/// Occupies the default address, unless another process does. The same test may run in another place on this host.
fn take_default_address() -> Option<TcpListener> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        match TcpListener::bind(HTTP_ADDRESS) {
            Ok(listener) => return Some(listener),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    None
}

#[test]
fn a_taken_default_address_costs_a_warning_and_a_taken_one_that_was_asked_for_the_start() {
    let _taken = take_default_address();
    let directory = tempfile::tempdir().unwrap();
    // With a token, since the flags of these tests switch TCP off if they contain nothing about it.
    let token = flag(
        "--http-token-file",
        &write_key(directory.path(), "token", TOKEN),
    );
    let observer = Observer::start_in(directory, &[&token], |command| command);
    let address = HTTP_ADDRESS.to_string();
    let notice = observer.wait_for("notice", |line| line.msg.contains(&address));
    assert_eq!(notice.level, "warn");
    assert_eq!(observer.start_line().text("http"), None);
    assert_healthy(&observer);
    let directory = tempfile::tempdir().unwrap();
    let place = flag("--socket", &directory.path().join("varta.sock"));
    let (status, text) = refused_start(&[&place, "--http", &address]);
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("--http") && text.contains(&address), "{text}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn an_unusable_token_file_keeps_the_observer_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let place = flag("--socket", &directory.path().join("varta.sock"));
    let token = flag(
        "--http-token-file",
        &write_key(directory.path(), "token", "short"),
    );
    let (status, text) = refused_start(&[&place, ANY, &token]);
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("--http-token-file") && text.contains("5 bytes"),
        "{text}"
    );
}

#[test]
fn the_control_socket_is_its_owners_and_goes_with_the_observer() {
    let mut observer = Observer::start(&[]);
    let path = observer.control_socket();
    let beside = format!("{}.control", observer.socket.display());
    assert_eq!(path, PathBuf::from(beside));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // The leftovers of a killed observer do no harm.
    observer.kill();
    let directory = std::mem::replace(&mut observer.directory, tempfile::tempdir().unwrap());
    let successor = Observer::start_in(directory, &[], |command| command);
    assert_healthy(&successor);
    successor.stop();
    assert!(!path.exists());
}

#[test]
fn a_control_socket_that_cannot_be_had_is_an_error_only_if_it_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let occupied = directory.path().join("varta.sock.control");
    fs::write(&occupied, "precious").unwrap();
    let place = flag("--socket", &directory.path().join("varta.sock"));
    let control = flag("--control-socket", &occupied);
    let (status, text) = refused_start(&[&place, "--http=off", &control]);
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("--control-socket"), "{text}");
    let observer = Observer::start_in(directory, &[], |command| command);
    observer.wait_for("notice", |line| line.msg.contains("--control-socket"));
    assert_eq!(observer.start_line().text("control"), None);
    observer.stop();
    assert_eq!(fs::read(occupied).unwrap_or_default(), b"");
}

#[test]
fn only_get_and_head_are_answered() {
    let observer = Observer::start(&[ANY]);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let text = format!(
            "{method} /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let reply = observer.exchange(text.as_bytes());
        assert_problem(&reply, 405, "GET");
        assert_eq!(reply.header("allow"), Some("GET,HEAD"), "{method}");
    }
    let head = b"HEAD /api/v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let reply = observer.exchange(head);
    assert_eq!((reply.status, reply.body.len()), (200, 0));
}

#[test]
fn a_page_under_another_name_gets_nothing() {
    let observer = Observer::start(&[ANY]);
    let as_host = |host: &str| {
        let text = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        observer.exchange(text.as_bytes())
    };
    assert_problem(&as_host("rebound.example:8278"), 421, "--http-token-file");
    assert_problem(&as_host("a b"), 400, "Host");
    for host in ["localhost:8278", "127.0.0.1", "[::1]:8278"] {
        assert_eq!(as_host(host).status, 200, "{host}");
    }
    let no_host = b"GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_problem(&observer.exchange(no_host), 400, "Host");
    let old = b"GET /readyz HTTP/1.0\r\n\r\n";
    assert_eq!(observer.exchange(old).status, 200);
}

#[test]
fn with_a_token_file_nothing_is_answered_over_tcp_without_the_token() {
    let (observer, _) = start_with_token(&[]);
    let wrong = authorization(OTHER_TOKEN);
    for path in ["/", "/metrics", "/healthz", "/api/v1/info", "/nowhere"] {
        for headers in [
            &[][..],
            &[wrong.as_str()],
            &["Authorization: Basic MDEyMw=="],
        ] {
            let reply = observer.get(path, headers);
            assert_problem(&reply, 401, "Bearer");
            let scheme = reply.header("www-authenticate");
            assert_eq!(scheme, Some("Bearer realm=\"varta\""));
        }
    }
    assert_eq!(
        observer.get("/metrics", &[&authorization(TOKEN)]).status,
        200
    );
    // Scrapers use a name, and a page has no token.
    let by_name = format!(
        "GET /readyz HTTP/1.1\r\nHost: web1.example\r\nConnection: close\r\n{}\r\n\r\n",
        authorization(TOKEN)
    );
    assert_eq!(observer.exchange(by_name.as_bytes()).status, 200);
    assert_healthy(&observer);
    observer.stop().assert_counters(&[(AUTH_FAILURES, 15)]);
}

/// Repeats a request until the rate limit refuses it; the number of answers before, and the refusal.
fn asked_too_often(observer: &Observer, path: &str, headers: &[&str]) -> (Vec<Reply>, Reply) {
    let mut before = Vec::new();
    loop {
        let reply = observer.get(path, headers);
        if reply.status == 429 {
            return (before, reply);
        }
        before.push(reply);
        assert!(before.len() < 100 * BURST, "no limit");
    }
}

#[test]
fn wrong_tokens_in_a_loop_are_counted_and_slowed_down() {
    let (observer, _) = start_with_token(&[]);
    let wrong = authorization(OTHER_TOKEN);
    let (before, _) = asked_too_often(&observer, "/metrics", &[&wrong]);
    assert!(before.len() >= BURST);
    assert!(before.iter().all(|reply| reply.status == 401));
    assert_healthy(&observer);
    let tried = before.len() as u64;
    observer
        .stop()
        .assert_counters(&[(AUTH_FAILURES, tried), (RATE_LIMITED, 1)]);
}

#[test]
fn a_scrape_storm_is_limited_and_told_when_to_come_back() {
    let observer = Observer::start(&[ANY]);
    let (before, limited) = asked_too_often(&observer, "/metrics", &[]);
    assert!(before.len() >= BURST);
    assert!(before.iter().all(|reply| reply.status == 200));
    assert_problem(&limited, 429, "control socket");
    assert_eq!(limited.header("retry-after"), Some("1"));
    // The control socket has no limit.
    for _ in 0..2 * BURST {
        assert_eq!(observer.ask("/metrics").status, 200);
    }
}

#[test]
fn a_replaced_token_counts_from_sighup_on_and_an_unusable_one_changes_nothing() {
    let (observer, path) = start_with_token(&[]);
    let status = |token: &str| observer.get("/readyz", &[&authorization(token)]).status;
    fs::write(&path, OTHER_TOKEN).unwrap();
    assert_eq!((status(TOKEN), status(OTHER_TOKEN)), (200, 401));
    let reload = || {
        observer.signal(Signal::HUP);
        observer.wait_for("notice", |line| line.msg.starts_with("SIGHUP"))
    };
    assert!(reload().msg.contains("read the token"));
    assert_eq!((status(TOKEN), status(OTHER_TOKEN)), (401, 200));
    fs::write(&path, "short").unwrap();
    let line = reload();
    assert!(
        line.msg.contains("nothing is changed") && line.msg.contains("5 bytes"),
        "{line:?}"
    );
    assert_eq!((status(TOKEN), status(OTHER_TOKEN)), (401, 200));
}

#[test]
fn keys_and_token_are_replaced_together_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let key_path = write_key(directory.path(), "key", hex(7));
    let token_path = write_key(directory.path(), "token", TOKEN);
    let key_flag = flag("--key-file", &key_path);
    let token_flag = flag("--http-token-file", &token_path);
    let flags = [ANY, "--udp-port=0", &key_flag, &token_flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    fs::write(&key_path, "no key").unwrap();
    fs::write(&token_path, OTHER_TOKEN).unwrap();
    observer.signal(Signal::HUP);
    observer.wait_for("notice", |line| line.msg.contains("nothing is changed"));
    let reply = observer.get("/readyz", &[&authorization(TOKEN)]);
    assert_eq!(reply.status, 200);
}

#[test]
fn a_malformed_request_gets_an_error_and_harms_nobody() {
    let observer = Observer::start(&[ANY]);
    for bytes in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        let reply = observer.exchange(bytes);
        assert_eq!(reply.status, 400, "{}", String::from_utf8_lossy(bytes));
    }
    assert_healthy(&observer);
}

#[test]
fn a_request_beyond_the_limits_is_refused_and_not_kept() {
    let observer = Observer::start(&[ANY]);
    let long = format!("X-Long: {}", "x".repeat(20 * 1024));
    assert_eq!(observer.get("/", &[&long]).status, 431);
    let many = vec!["X-Many: x"; 100];
    assert_eq!(observer.get("/", &many).status, 431);
    let path = format!("/{}", "x".repeat(20 * 1024));
    let status = observer.get(&path, &[]).status;
    assert!([414, 431].contains(&status), "{status}");
    // Large fields may be large.
    let large = format!("X-Long: {}", "x".repeat(12 * 1024));
    assert_eq!(observer.get("/", &[&large]).status, 200);
}

#[test]
fn a_body_is_not_read() {
    let observer = Observer::start(&[ANY]);
    let mut stream = observer.connect_tcp();
    let head = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n";
    stream.write_all(head).unwrap();
    // The answer comes and the connection ends; the body is not read.
    let reply = Reply::parse(&read_all(&mut stream));
    assert_eq!(reply.status, 200);
}

#[test]
fn a_request_that_comes_in_single_bytes_is_answered() {
    let observer = Observer::start(&[ANY]);
    let mut stream = observer.connect_tcp();
    stream.set_nodelay(true).unwrap();
    for byte in request("/readyz", &[]) {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(Reply::parse(&read_all(&mut stream)).status, 200);
}

#[test]
fn pipelined_requests_are_answered_one_after_the_other() {
    let observer = Observer::start(&[ANY]);
    let mut stream = observer.connect_tcp();
    let first = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let second = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let all = [&first[..], second, &request("/healthz", &[])].concat();
    stream.write_all(&all).unwrap();
    let text = String::from_utf8(read_all(&mut stream)).unwrap();
    let statuses = text.match_indices("HTTP/1.1 ");
    let statuses: Vec<&str> = statuses.map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[test]
fn half_open_connections_and_half_requests_harm_nobody() {
    let observer = Observer::start(&[ANY]);
    let mut kept = Vec::new();
    for bytes in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: local"] {
        for half in [Shutdown::Write, Shutdown::Read] {
            let mut stream = observer.connect_tcp();
            stream.write_all(bytes).unwrap();
            stream.shutdown(half).unwrap();
            kept.push(stream);
        }
    }
    assert_eq!(observer.get("/readyz", &[]).status, 200);
    observer.stop();
}

#[test]
fn a_path_full_of_escapes_leads_nowhere() {
    let observer = Observer::start(&[]);
    for path in [
        "/api/v1/agents/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/api/v1/agents/..%00",
        "/api/v1/agents/%ff%fe",
        "/api/v1/agents/%",
        "/api/v1/agents/%zz",
        "/../../etc/passwd",
        "/api/v1/../../metrics",
        "//metrics",
        "/metrics/",
        "/%6detrics",
    ] {
        assert_problem(&observer.ask(path), 404, "there");
    }
    let name = "/api/v1/agents?name=%00%ff%25%2B+%E2%80%AE";
    assert_eq!(observer.ask(name).json::<AgentsPage>().total, 0);
}

/// This process may have this many descriptors.
fn allow_descriptors(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.current.map(|current| current.max(count)),
        ..limit
    };
    setrlimit(Resource::Nofile, wanted).unwrap();
}

#[test]
fn a_thousand_idle_connections_cost_a_bounded_number_of_descriptors_and_no_beat() {
    allow_descriptors(4096);
    let observer = Observer::start(&[ANY]);
    let before = observer.open_descriptors();
    let idle: Vec<_> = (0..1000).map(|_| observer.connect_tcp()).collect();
    observer.wait_for_count(DRAINED, (1000 - CONNECTIONS_MAX) as u64);
    assert!(observer.open_descriptors() <= before + CONNECTIONS_MAX + 8);
    let reply = Reply::parse(&read_all(&mut &idle[999]));
    assert_problem(&reply, 503, "too many connections");
    // Beats are received and the other listener answers.
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    assert_healthy(&observer);
    drop(idle);
    observer.ask_until::<Health>("/healthz", |_| observer.open_descriptors() <= before + 8);
    assert_eq!(observer.get("/readyz", &[]).status, 200);
}

#[test]
fn who_fills_one_door_with_followers_keeps_nobody_from_the_other() {
    let observer = Observer::start(&[ANY]);
    let path = "/api/v1/events?follow=true";
    let follow = || {
        let mut stream = observer.connect_tcp();
        stream.write_all(&request(path, &[])).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        stream
    };
    let followers: Vec<_> = (0..FOLLOWERS_MAX).map(|_| follow()).collect();
    let refused = observer.get(path, &[]);
    assert_problem(&refused, 503, "too many follow");
    assert_eq!(refused.header("retry-after"), Some("1"));
    Follower::start(&observer, path, &[]);
    drop(followers);
    observer.stop().assert_counters(&[(BUSY, 1)]);
}

#[test]
fn a_stop_ends_followers_and_idle_connections_cleanly() {
    let observer = Observer::start(&[ANY]);
    let mut follower = Follower::start(&observer, "/api/v1/events?follow=true", &[]);
    let mut idle = observer.connect_tcp();
    idle.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut first = [0];
    idle.read_exact(&mut first).unwrap();
    let control = observer.control_socket();
    observer.stop();
    assert!(!control.exists());
    let _ = read_all(&mut idle);
    let _ = read_all(&mut follower.0);
}
