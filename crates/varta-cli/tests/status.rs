//! `varta status` from outside: its output for each answer of an observer, and for none.

#![forbid(unsafe_code)]

mod fake;

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use varta_api::control_socket_beside;

use fake::{Answer, Fake, Question, http, json, problem, told, varta};

const INFO: &str = r#"{"version":"0.3.0","session_id":"0000000000000007","pid":42,"started":1.0,
    "uptime":130.0,"threshold":2.0,"capacity":64,"socket":"/s","attention_lag":0.0,
    "agents":{"alive":1,"late":0,"stalled":0,"paused":0},"unheard_of":1}"#;

const HEALTHY: &str = r#"{"healthy":true,"turned_after":0.001}"#;

fn agent(pid: u32, name: &str, state: &str) -> Value {
    json!({"id": format!("{pid}-0"), "state": state, "pid": pid, "name": name, "uid": 1000,
        "transport": "unix", "status": "ok", "payload": 7, "silence": 0.4, "threshold": 2.0,
        "beats": 10, "beats_per_second": 2.0, "stalls": 0, "tracked": 5.0})
}

fn page(agents: &[Value], next: Option<&str>) -> Answer {
    let mut page = json!({"agents": agents, "total": agents.len()});
    if let Some(next) = next {
        page["next"] = next.into();
    }
    json(&page.to_string())
}

/// One that is well, with these agents.
fn observer(agents: Vec<Value>) -> Fake {
    Fake::new(move |question| match question.path.as_str() {
        "/api/v1/info" => json(INFO),
        "/healthz" => json(HEALTHY),
        "/api/v1/agents?sort=pid&limit=1000" => page(&agents, None),
        _ => problem("404 Not Found", "no such path"),
    })
}

/// One that is well except for its answer to one request.
fn observer_but(path: &'static str, answer: Answer) -> Fake {
    Fake::new(move |question: &Question| match question.path.as_str() {
        asked if asked.starts_with(path) => answer.clone(),
        "/api/v1/info" => json(INFO),
        "/healthz" => json(HEALTHY),
        _ => page(&[agent(7, "web", "alive")], None),
    })
}

fn status(fake: &Fake, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut command = varta(&["status"]);
    command.arg("--socket").arg(fake.socket()).args(flags);
    told(command.output().unwrap())
}

/// The state is unknown; the command gives the reason in one line, and names the socket.
fn cannot_tell(fake: &Fake, flags: &[&str]) -> String {
    let (code, _, error) = status(fake, flags);
    assert_eq!(code, Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn all_well_is_a_table_and_exit_code_0() {
    let fake = observer(vec![agent(7, "web", "alive"), agent(8, "db", "late")]);
    let (code, table, error) = status(&fake, &[]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(
        table,
        "\
varta-watch 0.3.0, up 2m 10s: 2 agents, 1 late, 1 alive

STATE  NAME  PID   UID  SILENCE / THRESHOLD  STATUS  PAYLOAD  BEATS/S  RECOVERY
late   db      8  1000        0.4 s / 2.0 s  ok            7      2.0  -
alive  web     7  1000        0.4 s / 2.0 s  ok            7      2.0  -
"
    );
}

#[test]
fn a_stall_is_exit_code_1_unless_somebody_else_is_meant() {
    let fake = observer(vec![
        agent(7, "web-1", "alive"),
        agent(8, "web-2", "stalled"),
        agent(9, "db", "alive"),
    ]);
    let (code, table, error) = status(&fake, &[]);
    assert_eq!((code, error.as_str()), (Some(1), ""));
    let worst = table.lines().nth(3).unwrap_or_default();
    assert!(worst.starts_with("STALLED  web-2"), "{table}");
    for (pattern, code) in [("8", 1), ("8-0", 1), ("web*", 1), ("db", 0), ("7", 0)] {
        let (told, table, _) = status(&fake, &["--agent", pattern]);
        assert_eq!(told, Some(code), "{pattern}");
        assert!(
            table.contains("web-2") == (code == 1),
            "{pattern}:\n{table}"
        );
    }
}

#[test]
fn an_agent_that_is_not_there_cannot_be_told_of() {
    let fake = observer(vec![agent(7, "web", "alive")]);
    let error = cannot_tell(&fake, &["--agent", "db*"]);
    assert!(error.contains("'db*'"), "{error}");
}

#[test]
fn no_agent_at_all_is_said_and_is_well() {
    let (code, text, error) = status(&observer(vec![]), &[]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(text.contains("no agents"), "{text}");
}

#[test]
fn json_is_one_object_with_everything() {
    let fake = observer(vec![
        agent(7, "web", "alive"),
        agent(8, "e\u{1b}[2Jvil", "stalled"),
    ]);
    let (code, text, error) = status(&fake, &["--json"]);
    assert_eq!((code, error.as_str()), (Some(1), ""));
    assert_eq!(text.lines().count(), 1, "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["info"]["pid"], 42);
    assert_eq!(told["health"]["healthy"], true);
    assert_eq!(told["agents"][0], agent(8, "e\u{1b}[2Jvil", "stalled"));
    assert_eq!(told["agents"][1]["name"], "web");
}

#[test]
fn names_command_no_terminal() {
    let fake = observer(vec![agent(7, "e\u{1b}[2Jvil", "alive")]);
    let (_, table, _) = status(&fake, &[]);
    assert!(table.contains("e?[2Jvil"), "{table}");
    assert!(!table.contains('\u{1b}'), "{table}");
}

#[test]
fn all_pages_are_asked_for() {
    let fake = Fake::new(|question| match question.path.as_str() {
        "/api/v1/info" => json(INFO),
        "/healthz" => json(HEALTHY),
        "/api/v1/agents?sort=pid&limit=1000" => page(
            &[agent(7, "web", "alive"), agent(8, "db", "alive")],
            Some("a b&limit=1"),
        ),
        "/api/v1/agents?sort=pid&limit=1000&after=a%20b%26limit%3D1" => {
            page(&[agent(9, "cron", "stalled")], None)
        }
        _ => problem("404 Not Found", "no such path"),
    });
    let (code, table, error) = status(&fake, &[]);
    assert_eq!(code, Some(1), "{error}");
    assert!(table.contains("3 agents"), "{table}");
    assert!(table.contains("db") && table.contains("cron"), "{table}");
}

#[test]
fn a_list_of_agents_without_an_end_is_given_up() {
    let fake = observer_but(
        "/api/v1/agents",
        page(&[agent(7, "web", "alive")], Some("7")),
    );
    assert!(cannot_tell(&fake, &[]).contains("no end"));
}

#[test]
fn no_observer_is_said_with_the_socket_and_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let left_over = directory.path().join("left-over.control");
    drop(UnixListener::bind(&left_over).unwrap());
    for name in ["absent", "left-over"] {
        let socket = directory.path().join(name);
        let output = varta(&["status", "--socket"]).arg(&socket).output();
        let (code, text, error) = told(output.unwrap());
        assert_eq!((code, text.as_str()), (Some(2), ""));
        assert_eq!(error.lines().count(), 1, "{error}");
        let control = format!("{}.control", socket.display());
        assert!(error.contains(&control), "{error}");
        assert!(error.contains("start varta-watch"), "{error}");
    }
}

#[test]
fn the_beat_socket_is_not_taken_for_the_control_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("varta.sock");
    let _beats = UnixDatagram::bind(&socket).unwrap();
    let output = varta(&["status", "--control-socket"]).arg(&socket).output();
    let (code, _, error) = told(output.unwrap());
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--socket"), "{error}");
}

#[test]
fn the_observer_is_found_where_agents_find_it() {
    let fake = observer(vec![]);
    let directory = fake.socket();
    let default = varta(&["status"])
        .env("RUNTIME_DIRECTORY", directory.parent().unwrap())
        .output();
    assert_eq!(told(default.unwrap()).0, Some(0));
    let named = varta(&["status", "--control-socket"])
        .arg(control_socket_beside(&fake.socket()))
        .output();
    assert_eq!(told(named.unwrap()).0, Some(0));
    let by_environment = varta(&["status"])
        .env("VARTA_SOCKET", fake.socket())
        .output();
    assert_eq!(told(by_environment.unwrap()).0, Some(0));
}

#[test]
fn an_observer_that_does_not_answer_is_not_waited_for_long() {
    let fake = observer_but("/healthz", Vec::new());
    let error = cannot_tell(&fake, &[]);
    assert!(error.contains("no answer within 3 s"), "{error}");
}

#[test]
fn an_observer_that_is_not_watching_is_shown_and_not_believed() {
    let body = r#"{"healthy":false,"turned_after":1.0,"last_turn_age":90.0}"#;
    let fake = observer_but(
        "/healthz",
        http("503 Service Unavailable", "application/json", body),
    );
    let error = cannot_tell(&fake, &[]);
    assert!(
        error.contains("pid 42") && error.contains("for 1m 30s"),
        "{error}"
    );
    let (_, table, _) = status(&fake, &[]);
    assert!(table.contains("web"), "{table}");
    let (_, text, _) = status(&fake, &["--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["health"]["healthy"], false);
}

#[test]
fn what_an_observer_refuses_it_explains_itself() {
    let refusal = problem("429 Too Many Requests", "ask\\u001b[2J less often");
    let error = cannot_tell(&observer_but("/api/v1/info", refusal), &[]);
    assert!(error.contains("429"), "{error}");
    assert!(error.contains("ask?[2J less often"), "{error}");
}

/// The observer is at its limit.
fn busy() -> Answer {
    let head = "application/problem+json\r\nretry-after: 1";
    let body = r#"{"title":"t","status":503,"detail":"too many questions wait"}"#;
    http("503 Service Unavailable", head, body)
}

#[test]
fn an_observer_that_is_asked_by_many_is_asked_again() {
    let refused = AtomicUsize::new(0);
    let fake = Fake::new(move |question| match question.path.as_str() {
        "/api/v1/info" => json(INFO),
        "/healthz" if refused.fetch_add(1, Ordering::Relaxed) < 3 => busy(),
        "/healthz" => json(HEALTHY),
        _ => page(&[agent(7, "web", "alive")], None),
    });
    let (code, table, error) = status(&fake, &[]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(table.contains("1 agent, 1 alive"), "{table}");
}

#[test]
fn an_observer_that_never_has_room_is_told_of_in_its_own_words() {
    let fake = observer_but("/api/v1/agents", busy());
    let error = cannot_tell(&fake, &[]);
    assert!(error.contains("503"), "{error}");
    assert!(error.contains("too many questions wait"), "{error}");
    assert!(fake.questions.try_iter().count() > 3, "it was asked again");
}

/// The truncated answer of an observer that closes the connection.
const HUNG_UP: &[u8] = b"HTTP/1.1";

#[test]
fn an_observer_that_hangs_up_because_many_ask_it_is_asked_again() {
    let hung_up = AtomicUsize::new(0);
    let fake = Fake::new(move |question| match question.path.as_str() {
        "/api/v1/info" => json(INFO),
        "/healthz" if hung_up.fetch_add(1, Ordering::Relaxed) < 2 => HUNG_UP.to_vec(),
        "/healthz" => json(HEALTHY),
        _ => page(&[agent(7, "web", "alive")], None),
    });
    let (code, _, error) = status(&fake, &[]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
}

#[test]
fn who_only_hangs_up_is_told_of() {
    let error = cannot_tell(&observer_but("/api/v1/info", HUNG_UP.to_vec()), &[]);
    assert!(error.contains("hangs up without an answer"), "{error}");
}

#[test]
fn an_answer_that_is_none_is_never_taken_for_good_news() {
    let long_line = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1_000_000));
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"heal".to_vec();
    for garbage in [
        b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(),
        b"\0\xff\0\xff\r\n\r\n".to_vec(),
        long_line.into_bytes(),
        half,
        json(""),
        json("[1, 2"),
        json("{}"),
        json("\u{1b}[2J"),
        http("404 Not Found", "text/html", "<h1>Not here</h1>"),
        http("500 Internal Server Error", "text/plain", ""),
    ] {
        for path in ["/api/v1/info", "/healthz", "/api/v1/agents"] {
            let fake = observer_but(path, garbage.clone());
            let error = cannot_tell(&fake, &[]);
            let control = control_socket_beside(&fake.socket());
            assert!(error.contains(control.to_str().unwrap()), "{error}");
            assert!(!error.contains('\u{1b}'), "{error}");
        }
    }
}

#[test]
fn an_answer_that_never_ends_does_not_fill_the_memory() {
    let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    answer.resize(20 * 1024 * 1024, b' ');
    let error = cannot_tell(&observer_but("/api/v1/agents", answer), &[]);
    assert!(error.contains("not whole"), "{error}");
}

#[test]
fn each_question_names_a_host_and_asks_for_json() {
    let fake = observer(vec![]);
    status(&fake, &[]);
    for question in fake.questions.try_iter() {
        assert_eq!(question.header("host"), Some("localhost"));
        assert_eq!(question.header("accept"), Some("application/json"));
    }
}

#[test]
fn a_reader_that_has_seen_enough_gets_the_verdict_and_no_complaint() {
    for flags in [&[][..], &["--json"], &["--watch=0.1"]] {
        let fake = observer(vec![agent(7, "web", "stalled")]);
        let mut command = varta(&["status", "--socket"]);
        let mut child = command.arg(fake.socket()).args(flags).spawn().unwrap();
        drop(child.stdout.take());
        let (code, _, error) = told(child.wait_with_output().unwrap());
        assert_eq!((code, error.as_str()), (Some(1), ""), "{flags:?}");
    }
}

/// An observer with a stalled agent that refuses the second request.
fn observer_with_a_hiccup() -> Fake {
    let looks = AtomicUsize::new(0);
    Fake::new(move |question| match question.path.as_str() {
        "/api/v1/info" => match looks.fetch_add(1, Ordering::Relaxed) {
            1 => problem("503 Service Unavailable", "not now"),
            _ => json(INFO),
        },
        "/healthz" => json(HEALTHY),
        _ => page(&[agent(7, "web", "stalled")], None),
    })
}

#[test]
fn watching_goes_on_whatever_happens_until_it_is_told_to_stop() {
    for flags in [&["--watch=0.1"][..], &["--watch=0.1", "--json"]] {
        let fake = observer_with_a_hiccup();
        let mut command = varta(&["status", "--socket"]);
        let mut child = command.arg(fake.socket()).args(flags).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut lines = out.lines().map(Result::unwrap);
        let agents = lines.by_ref().filter(|line| line.contains("web"));
        assert_eq!(agents.take(3).count(), 3, "{flags:?}");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        lines.for_each(drop);
        let (code, _, error) = told(child.wait_with_output().unwrap());
        assert_eq!(code, Some(1), "{error}");
        assert!(error.ends_with("not now\n"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
