//! Rules: the agents they match, and the names they give.

mod support;

use varta_api::v1::AgentsPage;

use support::LogLine;
use support::http::Reply;
use support::ladders::Marks;
use support::network::socket;
use support::{Observer, frame, frame_of};

/// Every kind of agent is accepted.
const FLAGS: [&str; 3] = [
    "--udp-port=0",
    "--udp-bind-addr=127.0.0.1",
    "--i-accept-plaintext-udp",
];

/// The pid of a remote agent.
const PID: u32 = 4242;

fn start(marks: &Marks, rules: &str) -> Observer {
    marks.observer(&format!("threshold-ms = 60000\n{rules}"), &FLAGS)
}

fn local(observer: &Observer) -> LogLine {
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id())
}

fn remote_line(observer: &Observer) -> LogLine {
    observer.hear(&socket(), &frame_of(PID, 1));
    observer.told("join", |line| line.pid() == Some(PID))
}

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

fn own_exe() -> String {
    std::env::current_exe().unwrap().display().to_string()
}

/// The name of this process under a rule with these selectors, if the rule matches it.
fn called(selectors: &str) -> Option<String> {
    let marks = Marks::new();
    let rule = format!("[[agent]]\n{selectors}\nas = \"it\"\n");
    let observer = start(&marks, &rule);
    local(&observer).text("name").map(str::to_owned)
}

fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    Some(name.trim_end().to_owned())
}

#[test]
fn an_agent_is_found_by_its_name() {
    let name = own_name().unwrap();
    assert_eq!(called(&format!("name = \"{name}\"")).as_deref(), Some("it"));
    assert_eq!(called("name = \"ru*\"").as_deref(), Some("it"));
    assert_eq!(called("name = \"r\""), own_name());
}

#[test]
fn an_agent_is_found_by_its_program() {
    let exe = own_exe();
    assert_eq!(called(&format!("exe = \"{exe}\"")).as_deref(), Some("it"));
    assert_eq!(called("exe = \"*/rules-*\"").as_deref(), Some("it"));
    assert_eq!(called("exe = \"/rules-*\""), own_name());
}

#[test]
fn an_agent_is_found_by_its_user() {
    let uid = own_uid();
    assert_eq!(called(&format!("uid = {uid}")).as_deref(), Some("it"));
    assert_eq!(called(&format!("uid = {}", uid + 1)), own_name());
}

#[test]
fn an_agent_is_found_by_where_its_process_lives() {
    assert_eq!(called("namespace = \"own\"").as_deref(), Some("it"));
    assert_eq!(called("namespace = \"other\""), own_name());
}

#[test]
fn everything_that_is_given_must_match() {
    let uid = own_uid();
    let both = called(&format!("uid = {uid}\nname = \"nobody\""));
    assert_eq!(both, own_name());
    let both = called(&format!("uid = {uid}\norigin = \"unix\""));
    assert_eq!(both.as_deref(), Some("it"));
}

#[test]
fn agents_are_found_by_how_they_speak_and_where_from() {
    for (selectors, finds_local, finds_remote) in [
        ("origin = \"unix\"", true, false),
        ("origin = \"udp\"", false, true),
        ("origin = \"secure-udp\"", false, false),
        ("source = \"127.*\"", false, true),
        ("source = \"10.*\"", false, false),
    ] {
        let marks = Marks::new();
        let rule = format!("[[agent]]\n{selectors}\nas = \"it\"\n");
        let observer = start(&marks, &rule);
        let is_it = |line: LogLine| line.text("name") == Some("it");
        assert_eq!(is_it(local(&observer)), finds_local, "{selectors}");
        assert_eq!(is_it(remote_line(&observer)), finds_remote, "{selectors}");
    }
}

#[test]
fn the_first_rule_that_an_agent_matches_holds_for_it() {
    let marks = Marks::new();
    let rules = "[[agent]]\nname = \"nobody\"\nas = \"a\"\n\
                 [[agent]]\norigin = \"unix\"\nas = \"b\"\n\
                 [[agent]]\nname = \"*\"\nas = \"c\"\nthreshold = \"10ms\"\n";
    let observer = start(&marks, rules);
    assert_eq!(local(&observer).text("name"), Some("b"));
}

fn names(observer: &Observer) -> Vec<Option<String>> {
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    page.agents.into_iter().map(|agent| agent.name).collect()
}

fn has_series_of(observer: &Observer, name: &str) -> bool {
    let page: Reply = observer.ask("/metrics");
    page.text().contains(&format!("name=\"{name}\""))
}

#[test]
fn a_label_stands_for_the_name_everywhere() {
    let marks = Marks::new();
    let observer = start(&marks, "[[agent]]\norigin = \"unix\"\nas = \"worker\"\n");
    let line = local(&observer);
    assert!(line.msg.starts_with("worker ("), "{}", line.msg);
    assert_eq!(names(&observer), [Some("worker".to_owned())]);
    assert!(has_series_of(&observer, "worker"));
    assert!(!has_series_of(&observer, &own_name().unwrap()));
    marks.reload(&observer, "[[agent]]\nname = \"*\"\nas = \"other\"\n");
    assert_eq!(names(&observer), [Some("other".to_owned())]);
    assert!(has_series_of(&observer, "other") && !has_series_of(&observer, "worker"));
    marks.reload(&observer, "");
    assert_eq!(names(&observer), [own_name()]);
    assert!(has_series_of(&observer, &own_name().unwrap()));
}

#[test]
fn an_agent_elsewhere_can_have_a_label_too() {
    let marks = Marks::new();
    let observer = start(&marks, "[[agent]]\norigin = \"udp\"\nas = \"edge\"\n");
    let line = remote_line(&observer);
    assert!(line.msg.contains("edge"), "{}", line.msg);
    assert!(line.msg.contains("127.0.0.1"), "{}", line.msg);
    assert_eq!(names(&observer), [Some("edge".to_owned())]);
    assert!(has_series_of(&observer, "edge"));
}

#[test]
fn a_rule_has_a_threshold_and_agents_elsewhere_a_grace_on_top() {
    let marks = Marks::new();
    let rule = "[[agent]]\nsource = \"*\"\nthreshold = \"200ms\"\nnetwork-grace = \"150ms\"\n\
                [[agent]]\nname = \"*\"\nthreshold = \"250ms\"\nnetwork-grace = \"1h\"\n";
    let observer = start(&marks, rule);
    local(&observer);
    remote_line(&observer);
    for (pid, threshold_ms) in [(PID, 350.0), (std::process::id(), 250.0)] {
        let stall = observer.told("stall", |line| line.pid() == Some(pid));
        assert_eq!(stall.ms("threshold_ms"), Some(threshold_ms));
    }
}
