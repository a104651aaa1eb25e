//! `varta events` from outside: the events it shows, those it reports as missed, and how it continues.

#![forbid(unsafe_code)]

mod fake;

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use fake::{Answer, Fake, http, json, problem, told, varta};

fn event(id: u64, session_id: &str) -> String {
    let (ts_ns, msg) = (id * 1_000_000_000, format!("web ({id}): first beat"));
    json!({"id": id, "ts_ns": ts_ns, "session_id": session_id, "level": "info", "event": "join",
        "msg": msg, "pid": id, "status": "ok", "payload": 0, "nonce": 1})
    .to_string()
}

fn page(ids: &[u64], missed: u64) -> Answer {
    let events: Vec<String> = ids.iter().map(|id| event(*id, "a")).collect();
    json(&format!(
        r#"{{"events":[{}],"missed":{missed}}}"#,
        events.join(",")
    ))
}

/// A stream of these messages, which then ends.
fn stream(messages: &str) -> Answer {
    http("200 OK", "text/event-stream", messages)
}

fn message(id: u64, session_id: &str) -> String {
    format!("id: {session_id}-{id}\ndata: {}\n\n", event(id, session_id))
}

fn events(fake: &Fake, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut command = varta(&["events"]);
    command.arg("--socket").arg(fake.socket()).args(flags);
    told(command.output().unwrap())
}

/// An observer whose latest events are 6 and 7.
fn observer(live: impl Fn() -> Answer + Send + 'static) -> Fake {
    Fake::new(move |question| match question.header("accept") {
        Some("text/event-stream") => live(),
        _ => page(&[6, 7], 0),
    })
}

/// Paths of the requested live streams, with the event after which each starts.
fn live(fake: &Fake) -> Vec<(String, Option<String>)> {
    let questions = fake.questions.try_iter();
    let live = questions.filter(|question| question.header("accept") == Some("text/event-stream"));
    live.map(|question| {
        let after = question.header("last-event-id").map(str::to_owned);
        (question.path, after)
    })
    .collect()
}

fn paths(fake: &Fake) -> Vec<String> {
    let questions = fake.questions.try_iter();
    questions.map(|question| question.path).collect()
}

/// Follows until this many lines were shown, then ends the command: the lines, and its standard error.
fn follow(fake: &Fake, flags: &[&str], lines: usize) -> (Vec<String>, String) {
    let mut command = varta(&["events", "--follow"]);
    command.arg("--socket").arg(fake.socket()).args(flags);
    let mut child: Child = command.spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let shown = out.lines().take(lines).map(Result::unwrap).collect();
    child.kill().unwrap();
    (shown, told(child.wait_with_output().unwrap()).2)
}

#[test]
fn the_latest_events_are_shown_as_in_the_log() {
    let fake = Fake::new(|_| page(&[6, 7], 0));
    let (code, text, error) = events(&fake, &[]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(
        text,
        "1970-01-01T00:00:06.000Z join    web (6): first beat\n\
         1970-01-01T00:00:07.000Z join    web (7): first beat\n"
    );
    assert_eq!(paths(&fake), ["/api/v1/events?limit=50"]);
}

#[test]
fn json_is_a_line_for_each_event() {
    let fake = Fake::new(|_| page(&[6, 7], 0));
    let (code, text, _) = events(&fake, &["--json", "--after=5", "--limit=2"]);
    assert_eq!(code, Some(0));
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let ids: Vec<Value> = lines.map(|line: Value| line["id"].clone()).collect();
    assert_eq!(ids, [6, 7]);
    assert_eq!(paths(&fake), ["/api/v1/events?limit=2&after=5"]);
}

#[test]
fn what_is_forgotten_is_counted() {
    let fake = Fake::new(|_| page(&[7], 3));
    let (code, text, error) = events(&fake, &["--after=3"]);
    assert_eq!((code, text.lines().count()), (Some(0), 1));
    assert!(error.contains("3 events were missed"), "{error}");
}

#[test]
fn without_an_observer_it_fails_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    for flags in [&["events"][..], &["events", "--follow", "--limit=0"]] {
        let mut command = varta(flags);
        command.arg("--socket").arg(directory.path().join("absent"));
        let (code, text, error) = told(command.output().unwrap());
        assert_eq!((code, text.as_str()), (Some(1), ""));
        assert!(error.contains("absent.control"), "{error}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let fake = Fake::new(|_| page(&(1..1001).collect::<Vec<_>>(), 0));
    let mut command = varta(&["events", "--limit=1000"]);
    let mut child = command.arg("--socket").arg(fake.socket()).spawn().unwrap();
    drop(child.stdout.take());
    let (code, _, error) = told(child.wait_with_output().unwrap());
    assert_eq!((code, error.as_str()), (Some(0), ""));
}

#[test]
fn following_goes_on_after_what_was_shown() {
    let fake = observer(|| {
        stream(&format!(
            ": hello\n\n{}event: missed\ndata: {{\"missed\":12}}\n\n{}",
            message(8, "a"),
            message(21, "a")
        ))
    });
    let (shown, error) = follow(&fake, &[], 4);
    assert!(shown[2].ends_with("web (8): first beat"), "{shown:?}");
    assert!(shown[3].ends_with("web (21): first beat"), "{shown:?}");
    assert!(error.contains("12 events were missed"), "{error}");
    let after = ("/api/v1/events".to_owned(), Some("a-7".to_owned()));
    assert_eq!(live(&fake)[0], after);
}

#[test]
fn a_stream_that_is_cut_is_told_of_in_words() {
    let streams = AtomicUsize::new(0);
    let fake = observer(move || {
        let mut answer = stream(&(message(8, "a") + &message(9, "a")));
        if streams.fetch_add(1, Ordering::Relaxed) == 0 {
            answer.truncate(answer.len() - 1);
        }
        answer
    });
    // The second one is of the second stream.
    let (_, error) = follow(&fake, &["--limit=0"], 2);
    let words = "the observer has ended or the connection broke";
    assert!(error.contains(words), "{error}");
}

#[test]
fn without_the_past_nothing_is_shown_that_has_happened() {
    let fake = observer(|| stream(&message(8, "a")));
    let (shown, _) = follow(&fake, &["--limit=0", "--json"], 1);
    let shown: Value = serde_json::from_str(&shown[0]).unwrap();
    let expected: Value = serde_json::from_str(&event(8, "a")).unwrap();
    assert_eq!(shown, expected);
    assert_eq!(live(&fake)[0].1.as_deref(), Some("a-7"));
}

#[test]
fn following_can_begin_after_any_event() {
    let fake = observer(|| stream(&message(8, "a")));
    let (shown, _) = follow(&fake, &["--limit=0", "--after=5"], 1);
    assert!(shown[0].ends_with("web (8): first beat"), "{shown:?}");
    assert_eq!(live(&fake)[0], ("/api/v1/events?after=5".to_owned(), None));
}

#[test]
fn an_event_of_a_newer_observer_is_shown_by_its_message_and_as_json_with_all_its_keys() {
    let newer = event(8, "a").replace("join", "dance");
    let newer = newer.replace("\"pid\"", "\"partner\":\"db\",\"pid\"");
    let messages = format!("data: {newer}\n\n");
    let fake = observer(move || stream(&messages));
    let (shown, _) = follow(&fake, &["--limit=0"], 1);
    assert!(
        shown[0].ends_with("notice  web (8): first beat"),
        "{shown:?}"
    );
    let (shown, _) = follow(&fake, &["--limit=0", "--json"], 1);
    let shown: Value = serde_json::from_str(&shown[0]).unwrap();
    assert_eq!(
        (&shown["event"], &shown["partner"]),
        (&json!("dance"), &json!("db"))
    );
}

#[test]
fn an_event_that_is_not_understood_does_not_end_it() {
    let garbled = event(8, "a").replace("info", "da\\u001b[2Jnce");
    let messages = format!("data: {garbled}\n\n{}", message(9, "a"));
    let fake = observer(move || stream(&messages));
    let (shown, error) = follow(&fake, &["--limit=0"], 1);
    assert!(shown[0].ends_with("web (9): first beat"), "{shown:?}");
    assert!(error.contains("`da?[2Jnce`"), "{error}");
}

#[test]
fn a_lost_stream_is_resumed_and_another_observer_told_of() {
    let streams = AtomicUsize::new(0);
    let fake = observer(move || match streams.fetch_add(1, Ordering::Relaxed) {
        0 => stream(&message(8, "a")),
        1 => problem("503 Service Unavailable", "not yet"),
        2 => stream(&message(9, "a")),
        _ => stream(&message(1, "b")),
    });
    let (shown, error) = follow(&fake, &["--limit=0"], 3);
    assert!(shown[2].ends_with("web (1): first beat"), "{shown:?}");
    assert!(error.contains("answers again"), "{error}");
    assert!(error.contains("another observer, session b"), "{error}");
    assert!(error.contains("after event 9"), "{error}");
    let after = live(&fake).into_iter().filter_map(|(_, after)| after);
    let after: Vec<String> = after.take(4).collect();
    assert_eq!(after, ["a-7", "a-8", "a-8", "a-9"]);
}
