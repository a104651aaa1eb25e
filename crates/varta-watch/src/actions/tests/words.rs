use super::*;
use crate::actions::environment::for_child;
use std::collections::BTreeMap;
use std::ffi::OsString;

fn filled(argument: &str, subject: &Subject) -> String {
    command::fill(subject, argument)
}

fn somebody() -> Subject {
    Subject {
        agent: Agent {
            pid: 7,
            ..remote_agent()
        },
        unit: Some("web.service".to_owned()),
        user_unit: Some("dev.scope".to_owned()),
        source: Some("10.0.0.7".parse().unwrap()),
        ..subject(remote_agent())
    }
}

#[test]
fn every_placeholder_is_filled_in_every_argument() {
    let all =
        "{pid} {name} {status} {silence-ms} {unit} {user-unit} {reason} {source} x{pid}y{pid}";
    assert_eq!(
        filled(all, &somebody()),
        "7 web degraded 1500 web.service dev.scope stall 10.0.0.7 x7y7"
    );
}

#[test]
fn what_is_not_known_is_empty() {
    assert_eq!(
        filled("[{unit}][{user-unit}][{source}]", &subject(remote_agent())),
        "[][][]"
    );
}

#[test]
fn what_is_no_placeholder_stays_as_it_is() {
    for text in [
        "{", "}", "{}", "{PID}", "{{x}", "{pid", "a{b}c", "{name }", "ä{ö",
    ] {
        assert_eq!(filled(text, &somebody()), text);
    }
    assert_eq!(filled("{{pid}}", &somebody()), "{7}");
}

#[test]
fn a_name_that_looks_like_a_placeholder_is_not_filled_in_again() {
    let subject = Subject {
        name: "{unit}{name}".to_owned(),
        ..somebody()
    };
    assert_eq!(filled("{name}", &subject), "{unit}{name}");
}

#[test]
fn control_characters_in_what_an_agent_says_are_replaced() {
    let subject = Subject {
        name: "a\0b\nc\u{1b}[31m".to_owned(),
        unit: Some("\u{85}.service".to_owned()),
        ..somebody()
    };
    assert_eq!(filled("{name}|{unit}", &subject), "a?b?c?[31m|?.service");
    let values = command::variables(&subject).collect::<BTreeMap<_, _>>();
    assert_eq!(values["VARTA_NAME"], "a?b?c?[31m");
}

#[test]
fn a_program_is_never_filled_in() {
    let run = Action::Run(step("/bin/{pid}", &["{pid}"]));
    let shown = command::shown(&run, Some(&somebody()));
    assert_eq!(shown, "/bin/{pid} 7");
}

#[test]
fn the_words_of_a_private_file_are_not_shown() {
    let step = RunStep {
        private_file: Some("/etc/varta/command".into()),
        ..step("/bin/secret", &["secret", "{pid}"])
    };
    for subject in [None, Some(&somebody())] {
        let shown = command::shown(&Action::Run(step.clone()), subject);
        assert_eq!(shown, "the command in /etc/varta/command");
    }
}

/// The part of this environment of the observer that a child would get.
fn seen(children: &Children, own: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = own
        .iter()
        .map(|&(key, value)| (OsString::from(key), OsString::from(value)));
    for_child(children, &subject(remote_agent()), own)
        .into_iter()
        .map(|(key, value)| (key.into_string().unwrap(), value.into_string().unwrap()))
        .filter(|(key, _)| !key.starts_with("VARTA_") || key == "VARTA_PID")
        .collect()
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    entries.iter().map(owned).collect()
}

const PATH: (&str, &str) = ("PATH", "/usr/bin:/bin");
const PID: (&str, &str) = ("VARTA_PID", "4242");

#[test]
fn the_observers_environment_is_not_inherited() {
    let own = [("HOME", "/root"), ("PATH", "/sbin"), ("TOKEN", "secret")];
    assert_eq!(seen(&children(), &own), map(&[PATH, PID]));
}

#[test]
fn what_the_operator_gives_outranks_what_is_inherited() {
    let children = Children {
        inherit_environment: true,
        environment: vec![("HOME".into(), "/a".into()), ("HOME".into(), "/b".into())],
        ..children()
    };
    let own = [("HOME", "/root"), ("PATH", "/sbin"), ("LANG", "C")];
    let expected = map(&[("HOME", "/b"), ("PATH", "/sbin"), ("LANG", "C"), PID]);
    assert_eq!(seen(&children, &own), expected);
}

#[test]
fn the_service_managers_variables_are_not_inherited() {
    let children = Children {
        inherit_environment: true,
        ..children()
    };
    let own = [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "MAINPID",
        "FDSTORE",
        "MANAGERPID",
        "SYSTEMD_EXEC_PID",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "CREDENTIALS_DIRECTORY",
        "RUNTIME_DIRECTORY",
        "STATE_DIRECTORY",
    ];
    assert_eq!(
        seen(&children, &own.map(|key| (key, "1"))),
        map(&[PATH, PID])
    );
}

#[test]
fn a_service_managers_variable_that_the_operator_gives_goes_through() {
    let children = Children {
        environment: vec![("NOTIFY_SOCKET".into(), "/run/mine".into())],
        ..children()
    };
    let expected = map(&[PATH, PID, ("NOTIFY_SOCKET", "/run/mine")]);
    assert_eq!(
        seen(&children, &[("NOTIFY_SOCKET", "/run/systemd/notify")]),
        expected
    );
}

#[test]
fn the_facts_about_the_agent_cannot_be_overruled() {
    let children = Children {
        inherit_environment: true,
        environment: vec![("VARTA_PID".into(), "1".into())],
        ..children()
    };
    assert_eq!(seen(&children, &[("VARTA_PID", "2")])["VARTA_PID"], "4242");
}
