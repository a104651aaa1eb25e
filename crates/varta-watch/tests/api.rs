//! The answers of a running observer about itself, its agents and its events.

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::Event;
use support::http::{Follower, assert_healthy, assert_problem};
use support::network::{socket, start_in_clear};
use support::{Observer, frame, frame_of};
use varta_api::v1::{AgentView, AgentsPage, EventsPage, Info};

/// The keys of a JSON object.
fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn set<'a>(keys: &[&'a str]) -> BTreeSet<&'a str> {
    keys.iter().copied().collect()
}

#[test]
fn openmetrics_is_given_to_who_names_it_and_the_classic_text_to_everybody_else() {
    let observer = Observer::start(&[]);
    let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = "text/plain; version=0.0.4; charset=utf-8";
    for (accept, content_type) in [
        ("X: x", text),
        ("Accept: */*", text),
        ("Accept: text/plain", text),
        ("Accept: application/openmetrics-text;q=0, text/plain", text),
        ("Accept: application/openmetrics-text", openmetrics),
        (
            "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            openmetrics,
        ),
    ] {
        let reply = observer.ask_with("/metrics", &[accept]);
        assert_eq!(reply.header("content-type"), Some(content_type), "{accept}");
    }
}

#[test]
fn answers_are_compressed_for_who_asks() {
    let observer = Observer::start(&[]);
    let reply = observer.ask_with("/api/v1/info", &["Accept-Encoding: gzip"]);
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    // Behind the size of the first chunk: the mark of gzip.
    assert!(reply.body.windows(3).any(|three| three == [0x1f, 0x8b, 8]));
    assert_eq!(
        observer.ask("/api/v1/info").header("content-encoding"),
        None
    );
}

#[test]
fn the_shapes_of_the_answers_are_fixed() {
    let observer = Observer::start(&[]);
    observer.send(&frame(7));
    observer.wait_for_pid("join", std::process::id());
    let info: Value = observer.ask("/api/v1/info").json();
    let expected = [
        "version",
        "session_id",
        "pid",
        "started",
        "uptime",
        "threshold",
        "capacity",
        "socket",
        "queue_datagrams",
        "agents",
        "missing",
        "attention_lag",
    ];
    assert_eq!(keys(&info), set(&expected));
    assert_eq!(
        keys(&info["agents"]),
        set(&["alive", "late", "stalled", "paused"])
    );
    let page: Value = observer.ask("/api/v1/agents").json();
    assert_eq!(keys(&page), set(&["agents", "total"]));
    let agent = &page["agents"][0];
    let expected = [
        "id",
        "state",
        "pid",
        "name",
        "uid",
        "transport",
        "status",
        "payload",
        "nonce",
        "silence",
        "threshold",
        "beats",
        "beats_per_second",
        "stalls",
        "tracked",
    ];
    // The user that runs this test may be in a unit of a service manager.
    let mut found = keys(agent);
    found.remove("unit");
    found.remove("user_unit");
    assert_eq!(found, set(&expected));
    let one: Value = observer
        .ask(&format!("/api/v1/agents/{}", agent["id"].as_str().unwrap()))
        .json();
    assert_eq!(keys(&one), keys(agent));
    let events: Value = observer.ask("/api/v1/events").json();
    assert_eq!(keys(&events), set(&["events", "missed", "session_id"]));
    for key in ["id", "ts_ns", "session_id", "level", "event", "msg"] {
        assert!(!events["events"][0][key].is_null(), "{key}");
    }
    let health: Value = observer.ask("/healthz").json();
    assert_eq!(
        keys(&health),
        set(&["healthy", "turned_after", "last_turn_age"])
    );
    let problem: Value = observer.ask("/nowhere").json();
    assert_eq!(keys(&problem), set(&["title", "status", "detail"]));
}

#[test]
fn the_observer_says_what_it_is() {
    let observer = start_in_clear(&["--threshold-ms=1500", "--tracker-capacity=7"]);
    let info: Info = observer.ask("/api/v1/info").json();
    assert_eq!(info.pid, observer.pid());
    assert_eq!((info.threshold, info.capacity), (1.5, 7));
    assert_eq!(info.socket, observer.socket.display().to_string());
    assert_eq!(info.udp.as_deref(), observer.start_line().text("udp"));
    assert_eq!(info.session_id, observer.start_line().session_id);
}

/// An observer with agents of these pids, all over UDP.
fn observer_of(pids: std::ops::Range<u32>, flags: &[&str]) -> Observer {
    let observer = start_in_clear(flags);
    let from = socket();
    for pid in pids.clone() {
        from.send_to(&frame_of(pid, 1), observer.udp()).unwrap();
    }
    observer.ask_until::<AgentsPage>("/api/v1/agents", |page| page.total == pids.len());
    observer
}

fn pids(page: &AgentsPage) -> Vec<u32> {
    page.agents.iter().map(|agent| agent.pid).collect()
}

#[test]
fn pages_of_agents_follow_one_another_without_a_gap() {
    let observer = observer_of(100..120, &["--threshold-ms=60000"]);
    for sort in ["state", "silence", "pid", "name"] {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/v1/agents?sort={sort}&limit=7{after}");
            let page: AgentsPage = observer.ask(&path).json();
            assert_eq!(page.total, 20);
            all.extend(pids(&page));
            let Some(next) = page.next else { break };
            after = format!("&after={next}");
        }
        // They came in this order, so the first has the longest silence.
        assert_eq!(all, Vec::from_iter(100..120), "{sort}");
    }
}

#[test]
fn agents_can_be_picked_by_state_name_and_pid() {
    let observer = observer_of(100..105, &["--threshold-ms=60000"]);
    observer.send(&frame(1));
    let join = observer.wait_for_pid("join", std::process::id());
    let name = join.text("name").unwrap();
    let found =
        |query: &str| -> AgentsPage { observer.ask(&format!("/api/v1/agents?{query}")).json() };
    assert_eq!(found("state=alive,stalled").total, 6);
    assert_eq!(found("state=stalled").total, 0);
    assert_eq!(pids(&found("pid=103")), [103]);
    assert_eq!(
        pids(&found(&format!("name={name}&state=alive"))),
        [std::process::id()]
    );
    assert_eq!(found("name=nobody").total, 0);
    assert_eq!(found("limit=1").agents.len(), 1);
}

#[test]
fn the_worst_comes_first() {
    let observer = observer_of(100..102, &["--threshold-ms=300"]);
    observer.ask_until::<AgentsPage>("/api/v1/agents?state=stalled", |page| page.total == 2);
    socket().send_to(&frame_of(100, 2), observer.udp()).unwrap();
    // Until it stalls again, too.
    observer.ask_until::<AgentsPage>("/api/v1/agents", |page| pids(page) == [101, 100]);
}

#[test]
fn an_agent_is_found_under_its_id_and_under_no_other() {
    let observer = observer_of(100..101, &["--threshold-ms=60000"]);
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    let id = &page.agents[0].id;
    let agent: AgentView = observer.ask(&format!("/api/v1/agents/{id}")).json();
    assert_eq!((agent.pid, agent.transport.as_str()), (100, "udp"));
    for id in [
        "100",
        "100-",
        "100-ffffffffffffffff",
        "-1",
        "99999999999-1",
        "x",
    ] {
        assert_problem(
            &observer.ask(&format!("/api/v1/agents/{id}")),
            404,
            "no agent",
        );
    }
}

#[test]
fn what_a_question_means_is_never_guessed() {
    let observer = Observer::start(&[]);
    for (query, word) in [
        ("agents?colour=red", "colour"),
        ("agents?state=dead", "state"),
        ("agents?sort=age", "sort"),
        ("agents?pid=-1", "pid"),
        ("agents?limit=0", "limit"),
        ("agents?limit=1001", "limit"),
        ("agents?after=x", "after"),
        ("agents?limit=1&limit=2", "limit"),
        ("agents?pid=1&pid=2", "pid"),
        ("agents/1-0?colour=red", "colour"),
        ("info?colour=red", "colour"),
        ("events?since=1", "since"),
        ("events?after=-1", "after"),
        ("events?limit=x", "limit"),
        ("events?after=1&after=2", "after"),
        ("events?follow=yes", "follow"),
        ("events?follow=true&limit=1", "limit"),
    ] {
        assert_problem(&observer.ask(&format!("/api/v1/{query}")), 400, word);
    }
    let reply = observer.ask_with("/api/v1/events?follow=true", &["Last-Event-ID: x"]);
    assert_problem(&reply, 400, "Last-Event-ID");
    let pause = observer.wish("/api/v1/agents/1-0/pause?colour=red", r#"{"for":1}"#);
    assert_problem(&pause, 400, "colour");
    for path in ["/healthz?x=1", "/readyz?x=1", "/metrics?x=1"] {
        assert_eq!(observer.ask(path).status, 200, "{path}");
    }
}

#[test]
fn events_come_in_pages() {
    let observer = observer_of(100..110, &["--threshold-ms=60000"]);
    let latest: EventsPage<Event> = observer.ask("/api/v1/events?limit=2").json();
    let latest_id = latest.events[1].id as usize;
    // A busy machine may have added some.
    let all: EventsPage<Event> = observer.ask("/api/v1/events?after=0&limit=1000").json();
    let ids: Vec<u64> = all.events.iter().map(|event| event.id).collect();
    assert_eq!(ids, Vec::from_iter(1..=all.events.len() as u64));
    let page: EventsPage<Event> = observer.ask("/api/v1/events?after=3&limit=2").json();
    assert_eq!(page.events, all.events[3..5]);
    assert_eq!(latest.events, all.events[latest_id - 2..latest_id]);
    let joins = all.events.iter().filter(|event| event.line.event == "join");
    assert_eq!(joins.count(), 10);
}

#[test]
fn a_follower_hears_what_happens_from_now_on() {
    let observer = Observer::start(&[]);
    let mut follower = Follower::start(&observer, "/api/v1/events?follow=true", &[]);
    observer.send(&frame(1));
    let mut lines = std::iter::repeat_with(|| follower.next_line());
    // A busy machine may make a gap.
    let line = lines.find(|line| line.event != "gap").unwrap();
    assert_eq!(
        (line.event.as_str(), line.pid()),
        ("join", Some(std::process::id()))
    );
}

#[test]
fn a_follower_that_returns_goes_on_where_it_was() {
    let observer = observer_of(100..110, &["--threshold-ms=60000"]);
    let live = ["Accept: text/event-stream"];
    let mut follower = Follower::start(&observer, "/api/v1/events?after=0", &live);
    let (first_id, first) = follower.next();
    assert_eq!(first.line.event, "start");
    drop(follower);
    let resume = format!("Last-Event-ID: {first_id}");
    let mut follower = Follower::start(&observer, "/api/v1/events", &[live[0], &resume]);
    assert_eq!(follower.next().1.id, first.id + 1);
    // Numbers of another run have no meaning in this one.
    let other = "Last-Event-ID: 0000000000000000-7";
    let mut follower = Follower::start(&observer, "/api/v1/events", &[live[0], other]);
    assert_eq!(follower.next().1.id, 1);
}

#[test]
fn a_follower_that_does_not_read_delays_nobody_and_then_gets_everything_in_order() {
    const AGENTS: u32 = 400;
    let observer = start_in_clear(&["--threshold-ms=60000", "--tracker-capacity=1000"]);
    let mut follower = Follower::start(&observer, "/api/v1/events?follow=true&after=0", &[]);
    let from = socket();
    let frames: Vec<_> = (1000..1000 + AGENTS)
        .map(|pid| frame_of(pid, 1).to_vec())
        .collect();
    observer.hear_all(&from, &frames);
    assert_healthy(&observer);
    let (mut expected, mut joins) = (1, 0);
    while joins < AGENTS {
        let (_, event) = follower.next();
        assert_eq!(event.id, expected);
        expected += 1;
        joins += u32::from(event.line.event == "join");
    }
}
