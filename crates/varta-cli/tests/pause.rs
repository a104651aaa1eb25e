//! `varta pause` and `varta resume` from outside: the agents they select, their requests, and their output.

#![forbid(unsafe_code)]

mod fake;

use serde_json::{Value, json};

use fake::{Answer, Fake, json, problem, told, varta};

const AGENTS: &str = "/api/v1/agents?sort=pid&limit=1000";

fn agent(pid: u32, name: &str, state: &str) -> Value {
    json!({"id": format!("{pid}-a1"), "state": state, "pid": pid, "name": name, "uid": 1000,
        "transport": "unix", "status": "ok", "payload": 7, "silence": 0.4, "threshold": 2.0,
        "beats": 10, "beats_per_second": 2.0, "stalls": 0, "tracked": 5.0})
}

fn paused(pid: u32, name: &str) -> Value {
    let mut paused = agent(pid, name, "paused");
    paused["paused_for"] = 600.0.into();
    paused["pause_reason"] = "deploy".into();
    paused
}

fn page(agents: &[Value]) -> Answer {
    json(&json!({"agents": agents, "total": agents.len()}).to_string())
}

/// Two agents that can be paused; a third one leaves before the request.
fn observer() -> Fake {
    Fake::new(|question| match question.path.as_str() {
        AGENTS => page(&[
            agent(7, "web-1", "stalled"),
            paused(8, "web-2"),
            agent(9, "gone", "alive"),
        ]),
        "/api/v1/agents/7-a1/pause" => json(&paused(7, "web-1").to_string()),
        "/api/v1/agents/8-a1/pause" => json(&paused(8, "web-2").to_string()),
        "/api/v1/agents/8-a1/resume" => json(&agent(8, "web-2", "alive").to_string()),
        _ => problem("404 Not Found", "no agent with this id is there (any more)"),
    })
}

fn ask(fake: &Fake, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = varta(arguments);
    told(command.arg("--socket").arg(fake.socket()).output().unwrap())
}

/// The requests to the observer, after the list of agents.
fn paths(fake: &Fake) -> Vec<String> {
    let questions = fake.questions.try_iter().skip(1);
    questions.map(|question| question.path).collect()
}

#[test]
fn all_who_are_meant_are_paused_and_named() {
    let fake = observer();
    let (code, text, error) = ask(&fake, &["pause", "web-*", "--for=10m", "--reason=deploy"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(
        text,
        "paused web-1 (7) for 10m 00s\npaused web-2 (8) for 10m 00s\n"
    );
    let asked = ["/api/v1/agents/7-a1/pause", "/api/v1/agents/8-a1/pause"];
    assert_eq!(paths(&fake), asked);
}

#[test]
fn a_request_says_that_it_is_json() {
    let fake = observer();
    ask(&fake, &["pause", "7", "--for=10m"]);
    let question = fake.questions.try_iter().nth(1).unwrap();
    assert_eq!(question.header("content-type"), Some("application/json"));
    let body: Value = serde_json::from_str(&question.body).unwrap();
    assert_eq!(body, json!({"for": 600.0}));
}

#[test]
fn only_who_is_paused_is_resumed() {
    let fake = observer();
    let (code, text, error) = ask(&fake, &["resume", "web-*"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(text, "web-1 (7) is not paused\nresumed web-2 (8)\n");
    assert_eq!(paths(&fake), ["/api/v1/agents/8-a1/resume"]);
}

#[test]
fn json_is_one_object_with_the_agents_as_they_are_now() {
    let (code, text, _) = ask(&observer(), &["pause", "8", "--for=10m", "--json"]);
    assert_eq!(code, Some(0));
    assert_eq!(text.lines().count(), 1, "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told, json!({"agents": [paused(8, "web-2")]}));
}

#[test]
fn nobody_who_is_meant_is_exit_code_1_whether_it_never_was_there_or_has_left() {
    for command in [
        &["pause", "db*", "--for=1s"][..],
        &["pause", "gone", "--for=1s"],
        &["resume", "db*"],
    ] {
        let (code, text, error) = ask(&observer(), command);
        assert_eq!((code, text.as_str()), (Some(1), ""), "{command:?}");
        assert!(error.contains("varta status"), "{error}");
    }
}

#[test]
fn what_cannot_be_done_is_exit_code_2_with_the_reason_after_what_was_done() {
    let fake = Fake::new(|question| match question.path.as_str() {
        AGENTS => page(&[agent(7, "web-1", "alive"), agent(8, "web-2", "alive")]),
        "/api/v1/agents/7-a1/pause" => json(&paused(7, "web-1").to_string()),
        _ => problem("503 Service Unavailable", "the observer stops"),
    });
    let (code, text, error) = ask(&fake, &["pause", "*", "--for=10m"]);
    assert_eq!(code, Some(2), "{error}");
    assert_eq!(text, "paused web-1 (7) for 10m 00s\n");
    assert!(error.contains("the observer stops"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("absent");
    let output = varta(&["resume", "*", "--socket"]).arg(&socket).output();
    let (code, _, error) = told(output.unwrap());
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("start varta-watch"), "{error}");
}

#[test]
fn names_command_no_terminal() {
    let fake = Fake::new(|question| match question.path.as_str() {
        AGENTS => page(&[paused(7, "e\u{1b}[2Jvil")]),
        _ => json(&paused(7, "e\u{1b}[2Jvil").to_string()),
    });
    for command in [&["pause", "7", "--for=10m"][..], &["resume", "7"]] {
        let (_, text, _) = ask(&fake, command);
        assert!(text.contains("e?[2Jvil (7)"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
