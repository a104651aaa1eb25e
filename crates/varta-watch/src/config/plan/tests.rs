use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;
use varta_core::fact::{Signal, SignalTarget};
use varta_core::policy::{AgentRule, Expectation, Hooks, LadderChoice, Mode, SignalStep};
use varta_core::rules::{Namespace, Selector, Transport};

use super::*;
use crate::config::tests::parse;
use crate::config::{Config, EarlyExit};
use crate::settings::Settings;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn parse_file(text: &str, flags: &[&str]) -> Result<Config, EarlyExit> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    parse(&[&["--socket=/s", "--config", path], flags].concat())
}

fn settings(text: &str, flags: &[&str]) -> Settings {
    match parse_file(text, flags) {
        Ok(config) => config.settings,
        Err(exit) => panic!("{}", exit.text),
    }
}

fn policy(text: &str, flags: &[&str]) -> Policy {
    settings(text, flags).policy
}

/// The problems, without the file's name.
fn problems(text: &str, flags: &[&str]) -> Vec<String> {
    let exit = parse_file(text, flags).unwrap_err();
    let lines = exit.text.lines();
    lines
        .map(|line| line.rsplit_once(".tmp").map_or(line, |(_, line)| line))
        .map(|line| line.split_once(':').unwrap().1.to_owned())
        .collect()
}

fn run(program: &str, arguments: &[&str], timeout: Option<u64>, wait: u64) -> Step {
    Step::Run(RunStep {
        program: program.into(),
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        private_file: None,
        timeout: timeout.map(Duration::from_secs),
        wait: Duration::from_secs(wait),
    })
}

const WEB: &str = r#"
    [recovery.restart]
    steps = [
        { signal = "TERM", to = "group", wait = "5s" },
        { wait = "30s" },
        { run = ["/bin/sh", "-c", "{pid}"], timeout = "7s", wait = "3s" },
        { run = ["/bin/sh"] },
    ]
    budget = 3
    window = "1h"
    backoff-max = "2m"

    [[agent]]
    name = "web-*"
    exe = "/usr/*"
    cgroup = "*/web"
    unit = "web@*.service"
    user-unit = "dev.scope"
    uid = 0
    namespace = "other"
    origin = "secure-udp"
    source = "192.0.2.*"
    as = "web"
    threshold = "500ms"
    late = "200ms"
    first-beat-within = "1m"
    expect = 3
    network-grace = "1s"
    max-beat-rate = 7
    recovery = "restart"
    on-late = [{ run = ["/bin/sh"] }]
    on-critical = [{ signal = "HUP" }]
"#;

#[test]
fn ladders_say_what_to_do_and_take_the_rest_from_the_settings() {
    let policy = policy(WEB, &["--recovery-timeout-ms=9000", "--recovery-wait=8s"]);
    let expected = Ladder {
        name: "restart".to_owned(),
        steps: vec![
            Step::Signal(SignalStep {
                signal: Signal::Term,
                to: SignalTarget::Group,
                wait: Duration::from_secs(5),
            }),
            Step::Wait(Duration::from_secs(30)),
            run("/bin/sh", &["-c", "{pid}"], Some(7), 3),
            run("/bin/sh", &[], Some(9), 8),
        ],
        debounce: Duration::from_secs(1),
        budget: 3,
        window: Duration::from_secs(3600),
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(120),
        reset_after: Duration::from_secs(60),
    };
    assert_eq!(policy.ladders, [expected]);
    assert_eq!(policy.default_ladder, None);
}

#[test]
fn rules_say_who_is_meant_and_what_holds() {
    let policy = policy(WEB, &[]);
    let text = |text: &str| Some(text.to_owned());
    let expected = AgentRule {
        selector: Selector {
            name: text("web-*"),
            exe: text("/usr/*"),
            cgroup: text("*/web"),
            unit: text("web@*.service"),
            user_unit: text("dev.scope"),
            uid: Some(0),
            namespace: Some(Namespace::Other),
            origin: Some(Transport::SecureUdp),
            source: text("192.0.2.*"),
        },
        label: text("web"),
        threshold: Some(Duration::from_millis(500)),
        late: Some(Duration::from_millis(200)),
        network_grace: Duration::from_secs(1),
        expectation: Some(Expectation {
            agents: 3,
            within: Duration::from_secs(60),
        }),
        max_beat_rate: Some(7),
        ladder: LadderChoice::Named(0),
        hooks: Hooks {
            on_late: vec![run("/bin/sh", &[], None, 10)],
            on_critical: vec![Step::Signal(SignalStep {
                signal: Signal::Hup,
                to: SignalTarget::Process,
                wait: Duration::from_secs(10),
            })],
            ..Hooks::default()
        },
    };
    assert_eq!(policy.rules, [expected]);
}

#[test]
fn a_rule_can_have_a_ladder_of_its_own_or_none() {
    let policy = policy(
        "[[agent]]\nname = \"a\"\nrecovery = [{ signal = \"KILL\" }]\n\
         [[agent]]\nname = \"b\"\nrecovery = \"none\"\n[[agent]]\n",
        &["--recovery-exec=true {pid}"],
    );
    let names: Vec<&str> = policy
        .ladders
        .iter()
        .map(|ladder| ladder.name.as_str())
        .collect();
    assert_eq!(names, ["agent#1", RECOVERY_EXEC]);
    assert_eq!(policy.default_ladder, Some(1));
    let choices: Vec<LadderChoice> = policy.rules.iter().map(|rule| rule.ladder).collect();
    let expected = [
        LadderChoice::Named(0),
        LadderChoice::None,
        LadderChoice::Default,
    ];
    assert_eq!(choices, expected);
}

#[test]
fn the_old_flags_make_a_ladder_of_one_step_split_at_white_space() {
    let flags = [
        "--recovery-exec= sh  'a b' {pid} {} {PID} ",
        "--recovery-timeout-ms=5000",
        "--recovery-debounce-ms=0",
    ];
    let policy = policy("", &flags);
    let ladder = &policy.ladders[policy.default_ladder.unwrap()];
    let Step::Run(step) = &ladder.steps[0] else {
        panic!("{ladder:?}");
    };
    assert!(step.program.ends_with("sh") && step.program.is_absolute());
    assert_eq!(step.arguments, ["'a", "b'", "{pid}", "{}", "{PID}"]);
    assert_eq!(step.timeout, Some(Duration::from_secs(5)));
    assert_eq!((ladder.steps.len(), ladder.debounce), (1, Duration::ZERO));
}

#[test]
fn a_mistyped_placeholder_in_the_old_flags_is_refused_with_the_nearest_one() {
    for (command, words) in [
        (
            "sh {pidd}",
            "--recovery-exec: {pidd} stands for nothing; did you mean {pid}?",
        ),
        (
            "sh -{process}",
            "{process} stands for nothing; there are {pid} ",
        ),
        ("/bin/{pid}", "not replaced in the program"),
    ] {
        let text = parse(&["--socket=/s", "--recovery-exec", command])
            .unwrap_err()
            .text;
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(words), "{text}");
    }
    let mut file = file("/no/such {pidd}\n{nmae}");
    file.flush().unwrap();
    let path = file.path().to_str().unwrap();
    let text = parse(&["--socket=/s", "--recovery-exec-file", path])
        .unwrap_err()
        .text;
    assert_eq!(text.lines().count(), 3, "{text}");
    for word in ["/no/such", "pidd", "nmae"] {
        assert!(
            !text.contains(word),
            "{word} is for the owner of the file only: {text}"
        );
    }
}

#[test]
fn a_command_with_its_path_is_judged_whatever_the_variables_are() {
    let text = "recovery-env = [\"NOEQ\"]\nrecovery-exec = \"/no/such\"\n";
    assert_eq!(problems(text, &[]).len(), 2);
    let text = "recovery-env = [\"NOEQ\"]\nrecovery-exec = \"no-such\"\n";
    assert_eq!(problems(text, &[]).len(), 1);
}

#[test]
fn the_default_ladder_has_one_name() {
    let text = "default-recovery = \"stop\"\n[recovery.stop]\nsteps = [{ signal = \"TERM\" }]\n";
    assert_eq!(policy(text, &[]).default_ladder, Some(0));
    assert_eq!(
        policy(text, &["--default-recovery=none"]).default_ladder,
        None
    );
    let both = problems(text, &["--recovery-exec=true"]);
    assert!(both[0].contains("leave one out"), "{both:?}");
    let unknown = problems(text, &["--default-recovery=stpo"]);
    assert!(unknown[0].contains("did you mean stop?"), "{unknown:?}");
}

#[test]
fn limits_and_children_come_from_their_settings() {
    let settings = settings(
        "mass-stall-share = 0.25\nmemory-pressure = \"off\"\nrecovery-grace = \"0s\"\n",
        &[
            "--io-pressure=33",
            "--recovery-mode=dry-run",
            "--recovery-env=A=b",
        ],
    );
    let policy = settings.policy;
    let limits = policy.limits;
    assert_eq!(limits.mass_stall_share, Some(0.25));
    assert_eq!(limits.mass_stall_min, 5);
    assert_eq!(limits.mass_stall_hold, Some(Duration::from_secs(600)));
    assert_eq!(
        (limits.memory_pressure, limits.io_pressure),
        (None, Some(33.0))
    );
    assert_eq!((limits.max_in_flight, limits.starts_per_second), (8, 100));
    assert_eq!(policy.mode, Mode::DryRun);
    let expected = Children {
        inherit_environment: false,
        environment: vec![("A".to_owned(), "b".to_owned())],
        capture_bytes: 4096,
        grace: Duration::ZERO,
    };
    assert_eq!(settings.children, expected);
}

/// A file, the flags, and the expected problems.
const SENSELESS_RULES: &[(&str, &[&str], &str)] = &[
    (
        "[[agent]]\nexpect = 3",
        &[],
        "2:10: agent.expect: it needs to be said until when",
    ),
    (
        "[[agent]]\nexpect = 0\nfirst-beat-within = \"1s\"",
        &[],
        "2:10: agent.expect: 0 is not within 1",
    ),
    (
        "[[agent]]\nfirst-beat-within = \"0s\"",
        &[],
        "longer than 0",
    ),
    (
        "[[agent]]\n[[agent]]\nname = \"a\"",
        &[],
        "2:1: agent: this rule is never reached",
    ),
    (
        "[[agent]]\nnam = \"a\"\n[[agent]]\nname = \"b\"",
        &[],
        "2:1: agent.nam: unknown key; did you mean name?",
    ),
    ("[[agent]]\nname =\n[[agent]]\n[[agent]]", &[], "not TOML"),
    (
        "[[agent]]\non-exit = [{ signal = \"HUP\" }]",
        &[],
        "2:23: agent.on-exit.signal: the process has gone",
    ),
    ("agent = 3", &[], "begins with [[agent]]"),
    ("agent = [3]", &[], "a block [[agent]] is wanted here"),
    ("[agent]\nname = \"a\"", &[], "begins with [[agent]]"),
    ("recovery = \"true\"", &[], "a table [recovery.NAME]"),
    ("[recovery]\nsteps = []", &[], "ladders have names"),
    ("[recovery.a]\nbudget = 3", &[], "a ladder without steps"),
    (
        "[recovery.\"a b\"]\nsteps = [{ signal = \"TERM\" }]",
        &[],
        "a ladder's name is made of",
    ),
    (
        "[recovery.a]\nsteps = [{ run = [\"true\"], signal = \"TERM\" }]",
        &[],
        "not both",
    ),
    (
        "[recovery.a]\nsteps = [{ run = [\"true\"], to = \"group\" }]",
        &[],
        "unknown key",
    ),
    (
        "[recovery.a]\nsteps = [{ run = [\"{pid}\"] }]",
        &[],
        "not replaced in the program",
    ),
    ("[recovery.a]\nsteps = [{ run = [] }]", &[], "it is empty"),
    (
        "[recovery.a]\nsteps = [{ signal = \"TERM\" }]\nbackoff = \"2m\"",
        &[],
        "3:11: recovery.a.backoff: the first",
    ),
    (
        "[[agent]]\nthreshold = \"1s\"",
        &["--late-ms=1500"],
        "2:13: agent.threshold: 1s is not longer",
    ),
    (
        "[[agent]]\nlate = \"2s\"",
        &[],
        "agent.late: 2s is not shorter than the threshold of 2s",
    ),
    ("[[agent]]\nas = \"a\\nb\"", &[], "control character"),
    ("[[agent]]\nuid = -1", &[], "a user id is a number"),
];

#[test]
fn rules_that_make_no_sense_say_where_and_why() {
    for (text, flags, words) in SENSELESS_RULES {
        let problems = problems(text, flags);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].contains(words), "{text}: {problems:?}");
    }
}

#[test]
fn what_is_suggested_is_something_that_would_be_taken() {
    for (text, words) in [
        (
            "[[agent]]\nrecovery = \"/bin/true {pid}\"",
            "letters, digits, - and _, and a command is written recovery = [{ run = [",
        ),
        (
            "[[agent]]\nrecovery = \"restart\"",
            "write a table [recovery.restart]",
        ),
        (
            "default-recovery = \"kill {pid}\"",
            "is written recovery-exec = \"",
        ),
        (
            "http = 5",
            "\"5\" is not an address with a port; write 127.0.0.1:8278",
        ),
        (
            "[[agent]]\nname = \"\"",
            "matches nobody; leave it out for everybody",
        ),
        ("socket-mode = 660", "write socket-mode = \"660\""),
        ("threshold-ms = \"5\"", "5 is not within 10 to"),
        ("threshold-ms = \"50\"", "write threshold-ms = 50"),
    ] {
        let problems = problems(text, &[]);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].contains(words), "{text}: {problems:?}");
    }
}

#[test]
fn every_mistake_in_a_ladder_is_told_at_once() {
    for (text, count) in [
        ("[recovery.a]\nsteps = []\nbudget = 99", 2),
        ("[[agent]]\nrecovery = [{ wait = \"1s\" }]", 1),
        // The other step cannot be checked.
        (
            "[[agent]]\nrecovery = [{ wait = \"1s\" }, { signal = \"SEGV\" }]",
            1,
        ),
        ("[recovery.a]\nbudget = 99\nbackoff = \"2m\"", 3),
        (
            "[recovery.a]\nsteps = [{ wait = \"1s\" }]\nbackoff = \"2m\"\nwindow = \"soon\"",
            3,
        ),
        (
            "[recovery.a]\nsteps = [{ run = [\"/no/such\"] }]\nbackoff = \"2m\"\nbackoff-max = \"soon\"",
            2,
        ),
    ] {
        let problems = problems(text, &[]);
        assert_eq!(problems.len(), count, "{text}: {problems:?}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_named() {
    for (flags, words) in [
        (&["--late-ms=2000"][..], "--late-ms: 2000 is not shorter"),
        (
            &["--recovery-backoff=2m"],
            "--recovery-backoff: the first pause",
        ),
    ] {
        let exit = parse(&[&["--socket=/s"], flags].concat()).unwrap_err();
        assert!(exit.text.contains(words), "{}", exit.text);
    }
}

#[test]
fn a_reload_brings_what_the_file_says_by_then_and_names_what_needs_a_restart() {
    let file = file("threshold-ms = 500\ntracker-capacity = 10\n");
    let path = file.path();
    let flags = [
        "--socket=/s",
        "--config",
        path.to_str().unwrap(),
        "--late-ms=50",
    ];
    let old = parse(&flags).unwrap();
    std::fs::write(path, "threshold-ms = 600\ntracker-capacity = 11\n").unwrap();
    let new = old.again().unwrap();
    assert_eq!(new.settings.threshold, Duration::from_millis(600));
    assert_eq!(new.settings.policy.late, Some(Duration::from_millis(50)));
    assert_eq!(old.needing_restart(&new), ["tracker-capacity"]);
    assert_eq!(
        old.needing_restart(&old.again().unwrap()),
        ["tracker-capacity"]
    );
    std::fs::write(path, "threshold-ms = 1\nlate = 2\n").unwrap();
    assert_eq!(old.again().unwrap_err().len(), 2);
}

#[test]
fn a_file_with_random_damage_is_a_configuration_or_an_error_and_never_a_crash() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/full.toml");
    let sample = std::fs::read(sample).unwrap();
    let file = file("");
    let path = file.path().to_str().unwrap();
    let mut state = 1_usize;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for _ in 0..200 {
        let mut text = sample.clone();
        for _ in 0..1 + random(4) {
            let at = random(text.len());
            match random(3) {
                0 => text[at] = b"\"'[]{}=.#\n, \0\xff0"[random(15)],
                1 => drop(text.drain(at..(at + random(40)).min(text.len()))),
                _ => text.truncate(at.max(1)),
            }
        }
        std::fs::write(file.path(), &text).unwrap();
        match parse(&["--config", path]) {
            Ok(_) => {}
            Err(exit) => assert!(!exit.text.is_empty()),
        }
    }
}
