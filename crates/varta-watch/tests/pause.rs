//! Pausing an agent and resuming it, through both listeners of a running observer.

mod support;

use std::io::Write;
use std::net::Shutdown;

use support::http::{Reply, assert_problem, read_all};
use support::ladders::{Marks, ladder};
use support::network::{flag, write_key};
use support::{Observer, frame};
use varta_api::v1::{AgentView, AgentsPage, State};
use varta_client::{Frame, Status};

const ANY: &str = "--http=127.0.0.1:0";
const TOKEN: &str = "0123456789abcdef";
const JSON: &str = "Content-Type: application/json";

fn post(path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// Sends a change over the control socket.
fn wish(observer: &Observer, path: &str, headers: &[&str], body: &str) -> Reply {
    let mut stream = observer.connect_control();
    stream.write_all(&post(path, headers, body)).unwrap();
    Reply::parse(&read_all(&mut stream))
}

/// The path of a change to the only agent.
fn path(observer: &Observer, what: &str) -> String {
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents.len(), 1);
    format!("/api/v1/agents/{}/{what}", page.agents[0].id)
}

fn pause(observer: &Observer, body: &str) -> Reply {
    wish(observer, &path(observer, "pause"), &[JSON], body)
}

fn resume(observer: &Observer) -> Reply {
    wish(observer, &path(observer, "resume"), &[JSON], "{}")
}

/// An observer that has this process as its agent.
fn start(flags: &[&str]) -> Observer {
    let observer = Observer::start(flags);
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    observer
}

#[test]
fn a_paused_agent_is_not_stalled_and_when_the_pause_is_over_it_may_stall_again() {
    let me = std::process::id();
    let observer = start(&["--threshold-ms=200"]);
    observer.wait_for_pid("stall", me);
    let paused: AgentView = pause(&observer, r#"{"for":2,"reason":"deploy"}"#).json();
    assert_eq!((paused.state, paused.stalls), (State::Paused, 1));
    assert!(paused.paused_for.is_some_and(|seconds| seconds <= 2.0));
    assert_eq!(paused.pause_reason.as_deref(), Some("deploy"));
    let line = observer.wait_for_pid("pause", me);
    assert_eq!(line.text("reason"), Some("deploy"));
    assert!(line.number::<u64>("until_ns").unwrap() > line.ts_ns);
    let line = observer.wait_for_pid("resume", me);
    assert!(line.msg.contains("the pause is over"), "{}", line.msg);
    assert_eq!(observer.seen_of("stall", me), 1, "during the pause");
    let stall = observer.wait_for_pid("stall", me);
    assert!(stall.ms("silence_ms").unwrap() >= 200.0);
    let agent: AgentView = observer
        .ask(path(&observer, "").trim_end_matches('/'))
        .json();
    assert_eq!((agent.state, agent.stalls), (State::Stalled, 2));
    assert_eq!((agent.paused_for, agent.pause_reason), (None, None));
    assert_eq!(observer.stop().count("return"), 0);
}

#[test]
fn a_resumed_agent_is_judged_again_and_has_its_full_threshold() {
    let me = std::process::id();
    let observer = start(&["--threshold-ms=1500"]);
    let paused: AgentView = pause(&observer, r#"{"for":2592000}"#).json();
    assert_eq!(paused.state, State::Paused);
    assert!(
        paused
            .paused_for
            .is_some_and(|seconds| seconds > 2_591_900.0)
    );
    let resumed: AgentView = resume(&observer).json();
    assert_eq!((resumed.state, resumed.paused_for), (State::Alive, None));
    let line = observer.wait_for_pid("resume", me);
    assert!(line.msg.contains("resumed"), "{}", line.msg);
    observer.wait_for_pid("stall", me);
    let again: AgentView = resume(&observer).json();
    assert_eq!(again.state, State::Stalled, "it was not paused");
    let stopped = observer.stop();
    assert_eq!(stopped.count("resume"), 1);
}

#[test]
fn requests_at_the_same_moment_wait_each_for_its_own_effect() {
    let observer = start(&["--threshold-ms=60000"]);
    let (paths, bodies) = (
        ["pause", "resume", "pause"].map(|what| path(&observer, what)),
        [r#"{"for":60}"#, "{}", r#"{"for":60}"#],
    );
    for round in 0..50 {
        // All three are sent before any answer is read.
        let mut streams = [0, 1, 2].map(|i| {
            let mut stream = observer.connect_control();
            stream
                .write_all(&post(&paths[i], &[JSON], bodies[i]))
                .unwrap();
            stream
        });
        let replies = streams
            .each_mut()
            .map(|stream| Reply::parse(&read_all(stream)));
        let statuses = replies.each_ref().map(|reply| reply.status);
        assert_eq!(statuses, [200; 3], "round {round}: {replies:?}");
    }
}

#[test]
fn the_last_pause_counts() {
    let me = std::process::id();
    let observer = start(&["--threshold-ms=200"]);
    pause(&observer, r#"{"for":3600,"reason":"one"}"#);
    let paused: AgentView = pause(&observer, r#"{"for":0.3,"reason":"two"}"#).json();
    assert_eq!(paused.pause_reason.as_deref(), Some("two"));
    observer.wait_for_pid("resume", me);
    observer.wait_for_pid("stall", me);
}

#[test]
fn who_falls_silent_after_a_pause_that_was_cut_short_is_recovered() {
    let me = std::process::id();
    let marks = Marks::new();
    let observer = marks.observer(&ladder(100, &[marks.mark("it", "")], ""), &[]);
    observer.send(&frame(1));
    observer.wait_for_pid("stall", me);
    observer.wait_for_outcome("reaped_zero");
    assert_eq!(pause(&observer, r#"{"for":3600}"#).status, 200);
    assert_eq!(pause(&observer, r#"{"for":0.001}"#).status, 200);
    observer.wait_for_pid("stall", me);
    observer.wait_for_outcome("reaped_zero");
    assert_eq!(marks.read(), ["it", "it"]);
}

#[test]
fn a_request_that_is_not_understood_changes_nothing_and_says_why() {
    let observer = start(&["--threshold-ms=60000"]);
    let long = format!(r#"{{"for":1,"reason":"{}"}}"#, "x".repeat(201));
    for (body, word) in [
        ("", "body"),
        ("[]", "send a JSON object"),
        (r#"[5,"deploy"]"#, "send a JSON object"),
        ("{}", "for"),
        (r#"{"for":"10m"}"#, "body"),
        (r#"{"for":0}"#, "for"),
        (r#"{"for":-1}"#, "for"),
        (r#"{"for":1e300}"#, "for"),
        (r#"{"for":2592001}"#, "30 days"),
        (r#"{"for":1,"fro":1}"#, "fro"),
        (r#"{"for":1,"reason":"a\nb"}"#, "reason"),
        (r#"{"for":1,"reason":"\u001b[2J"}"#, "reason"),
        (&long, "reason"),
        ("{\"for\":1,\"reason\":\"\u{0}\"}", "body"),
    ] {
        assert_problem(&pause(&observer, body), 400, word);
    }
    let (pausing, resuming) = (path(&observer, "pause"), path(&observer, "resume"));
    let good = r#"{"for":1}"#;
    for headers in [&[][..], &["Content-Type: text/plain"]] {
        let reply = wish(&observer, &pausing, headers, good);
        assert_problem(&reply, 415, "application/json");
    }
    let padded = format!("{}{good}", " ".repeat(4096));
    assert_problem(&pause(&observer, &padded), 413, "4096");
    let resumed = wish(&observer, &resuming, &[JSON], r#"{"all":true}"#);
    assert_problem(&resumed, 400, "all");
    let get = observer.ask(&pausing);
    assert_problem(&get, 405, "POST");
    assert_eq!(get.header("allow"), Some("POST"));
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents[0].state, State::Alive);
    let stopped = observer.stop();
    assert_eq!(stopped.count("pause"), 0);
}

#[test]
fn a_body_in_pieces_without_an_announced_length_is_read_to_its_bound() {
    let observer = start(&["--threshold-ms=60000"]);
    let chunked = |chunks: &[String]| {
        let mut text = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n",
            path(&observer, "pause")
        );
        for chunk in chunks {
            text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
        }
        text.push_str("0\r\n\r\n");
        let mut stream = observer.connect_control();
        // A refused client may be disconnected before all of it is written.
        let _ = stream.write_all(text.as_bytes());
        Reply::parse(&read_all(&mut stream))
    };
    let good = [r#"{"fo"#.to_owned(), r#"r":9}"#.to_owned()];
    assert_eq!(chunked(&good).status, 200);
    assert_problem(&chunked(&vec![" ".repeat(1000); 5]), 413, "4096");
}

#[test]
fn a_request_that_is_not_whole_changes_nothing_and_is_said_to() {
    let observer = start(&["--threshold-ms=60000"]);
    let path = path(&observer, "pause");
    for (length, body) in [
        ("Content-Length: 99", "{\"for\":9}"),
        ("Transfer-Encoding: chunked", "9\r\n{\"for\":9}\r\n"),
        (
            "Transfer-Encoding: chunked",
            "x\r\n{\"for\":9}\r\n0\r\n\r\n",
        ),
    ] {
        let mut stream = observer.connect_control();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{JSON}\r\n{length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let reply = Reply::parse(&read_all(&mut stream));
        assert_problem(&reply, 400, "the body is not whole");
    }
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents[0].state, State::Alive);
}

#[test]
fn nobody_is_paused_in_place_of_another() {
    let observer = start(&["--threshold-ms=60000"]);
    for id in ["1-0", "x", "4294967296-1", "%00"] {
        for (what, body) in [("pause", r#"{"for":1}"#), ("resume", "{}")] {
            let path = format!("/api/v1/agents/{id}/{what}");
            assert_problem(&wish(&observer, &path, &[JSON], body), 404, "no agent");
        }
    }
}

#[test]
fn over_tcp_nothing_is_changed_without_a_token() {
    let observer = start(&[ANY, "--threshold-ms=60000"]);
    for (what, body) in [("pause", r#"{"for":1}"#), ("resume", "{}")] {
        let reply = observer.exchange(&post(&path(&observer, what), &[JSON], body));
        assert_problem(&reply, 403, "--http-token-file");
    }
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents[0].state, State::Alive);
}

#[test]
fn over_tcp_whoever_has_the_token_may_pause() {
    let directory = tempfile::tempdir().unwrap();
    let token = flag(
        "--http-token-file",
        &write_key(directory.path(), "token", TOKEN),
    );
    let flags = [ANY, &token, "--threshold-ms=60000"];
    let observer = Observer::start_in(directory, &flags, |command| command);
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    let request = |headers: &[&str]| post(&path(&observer, "pause"), headers, r#"{"for":60}"#);
    let reply = observer.exchange(&request(&[JSON]));
    assert_problem(&reply, 401, "Bearer");
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let paused = observer.exchange(&request(&[JSON, &authorization]));
    assert_eq!(paused.json::<AgentView>().state, State::Paused);
}

fn critical(nonce: u64, status: Status) -> [u8; 32] {
    let mut bytes = [0; 32];
    Frame::new(status, std::process::id(), nonce, nonce, 9).encode(&mut bytes);
    bytes
}

#[test]
fn an_agent_that_says_it_is_critical_is_told_of_and_one_that_flickers_once_a_second() {
    let me = std::process::id();
    let observer = start(&["--threshold-ms=60000"]);
    let sender = observer.connect();
    for nonce in 2..200 {
        let status = match nonce % 2 {
            0 => Status::Critical,
            _ => Status::Ok,
        };
        sender.send(&critical(nonce, status)).unwrap();
    }
    let line = observer.wait_for_pid("critical", me);
    assert_eq!(line.text("status"), Some("critical"));
    assert_eq!(line.number("payload"), Some(9));
    assert!(line.msg.contains("says it is critical"), "{}", line.msg);
    let stopped = observer.stop_when(support::BEATS, 199);
    assert!(stopped.count("critical") < 20);
}

#[test]
fn a_first_word_can_be_that_somebody_is_critical() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    observer.send(&critical(1, Status::Critical));
    observer.wait_for_pid("critical", std::process::id());
}
