use std::ffi::OsString;

use clap::builder::ArgAction;

use super::*;
use crate::settings::ExportEvents;

pub(crate) fn parse(arguments: &[&str]) -> Result<Config, EarlyExit> {
    parse_in(&[], arguments)
}

/// The same with variables in the environment.
pub(super) fn parse_in(
    environment: &[(&str, &str)],
    arguments: &[&str],
) -> Result<Config, EarlyExit> {
    let program = std::iter::once("varta-watch");
    let arguments = program.chain(arguments.iter().copied());
    let pair = |(name, value): &(&str, &str)| (name.into(), value.into());
    let sources = Sources {
        arguments: arguments.map(OsString::from).collect(),
        environment: environment.iter().map(pair).collect(),
    };
    Config::read(sources, || "the metrics".to_owned())
}

pub(crate) fn error_of(arguments: &[&str]) -> String {
    let exit = parse(arguments).unwrap_err();
    assert_eq!(exit.exit_code, EXIT_USAGE);
    assert!(exit.text.lines().count() <= 3, "{}", exit.text);
    exit.text
}

#[test]
fn both_forms_of_a_flag_mean_the_same() {
    for arguments in [
        &["--socket", "/s", "--threshold-ms", "500"][..],
        &["--socket=/s", "--threshold-ms=500"],
    ] {
        let config = parse(arguments).unwrap();
        assert_eq!(config.settings.socket, std::path::PathBuf::from("/s"));
        assert_eq!(config.settings.threshold, Duration::from_millis(500));
    }
}

#[test]
fn defaults_need_no_flag_but_a_place() {
    let config = parse(&["--socket=/s"]).unwrap();
    assert_eq!(config.settings.threshold, Duration::from_millis(2000));
    assert_eq!(config.settings.capacity, 256);
    let own_uid = rustix::process::geteuid().as_raw();
    let mode = if own_uid == 0 { 0o666 } else { 0o600 };
    assert_eq!(
        config.settings.socket_access,
        SocketAccess { mode, gid: None }
    );
    let agent = Rate {
        per_second: 100,
        burst: 1000,
    };
    assert_eq!(config.settings.limits.agent, Some(agent));
    assert_eq!(config.settings.limits.global, None);
    assert!(!config.settings.refuse_foreign && !config.settings.policy.recover_foreign);
    assert_eq!(config.settings.export_events, ExportEvents::All);
}

#[test]
fn socket_modes_are_octal_in_any_of_three_forms() {
    for text in ["660", "0660", "0o660"] {
        let config = parse(&["--socket=/s", "--socket-mode", text]).unwrap();
        assert_eq!(config.settings.socket_access.mode, 0o660);
    }
    for text in ["777777", "9", "rw", ""] {
        assert!(error_of(&["--socket-mode", text]).contains("--socket-mode"));
    }
}

#[test]
fn a_limit_of_zero_is_no_limit() {
    let config = parse(&["--socket=/s", "--max-beat-rate=0"]).unwrap();
    assert_eq!(config.settings.limits.agent, None);
    let config = parse(&["--socket=/s", "--global-beat-rate=7"]).unwrap();
    assert_eq!(
        config.settings.limits.global.map(|rate| rate.burst),
        Some(10_000)
    );
    let flags = [
        "--socket=/s",
        "--global-beat-rate=7",
        "--global-beat-burst=0",
    ];
    assert_eq!(parse(&flags).unwrap().settings.limits.global, None);
}

#[test]
fn containers_are_refused_only_by_who_asks_for_that_alone() {
    let both = ["--strict-namespace-check", "--allow-cross-namespace-agents"];
    let strict = parse(&["--socket=/s", both[0]]).unwrap();
    assert!(strict.settings.refuse_foreign && !strict.settings.policy.recover_foreign);
    let allowed = parse(&["--socket=/s", both[0], both[1]]).unwrap();
    assert!(!allowed.settings.refuse_foreign && allowed.settings.policy.recover_foreign);
}

#[test]
fn values_out_of_range_name_their_flag() {
    for (flag, value) in [
        ("--threshold-ms", "9"),
        ("--threshold-ms", "-1"),
        ("--threshold-ms", "2s"),
        ("--tracker-capacity", "0"),
        ("--tracker-capacity", "1048577"),
        ("--eviction-scan-window", "0"),
        ("--recovery-timeout-ms", "0"),
        ("--allow-uid", "no-such-user-here"),
        ("--allow-gid", "no-such-group-here"),
        ("--max-beat-burst", "0"),
        ("--max-beat-rate", "-1"),
        ("--recovery-env", "NOVALUE"),
        ("--recovery-env", "=x"),
        ("--export-events", "some"),
        ("--log-format", "xml"),
    ] {
        let error = error_of(&[&format!("{flag}={value}")]);
        assert!(error.contains(flag), "{error}");
    }
}

#[test]
fn a_misspelt_flag_is_answered_with_the_right_one() {
    let error = error_of(&["--treshold-ms", "500"]);
    assert!(error.contains("--treshold-ms"), "{error}");
    assert!(error.contains("did you mean --threshold-ms?"), "{error}");
}

#[test]
fn a_tip_is_a_flag_that_exists_and_does_something() {
    for (flag, meant) in [
        ("--recovery-command", Some("recovery-exec")),
        ("--recovery-cmd-fil", Some("recovery-exec-file")),
        ("--key-envs", Some("key-file")),
        ("--prom-adr", Some("http")),
        ("--check-confg", Some("check-config")),
        ("--read-timeout-m", None),
        ("--zzz", None),
        ("status", None),
    ] {
        let error = error_of(&[flag, "x"]);
        let tip = meant.map(|meant| format!("\n  tip: did you mean --{meant}?\n"));
        let tip = tip.unwrap_or_default();
        assert!(error.contains(&tip), "{error}");
        assert_eq!(error.contains("tip:"), meant.is_some(), "{error}");
    }
    let command = table::command();
    for (_, _, successor) in old_flags::REMOVED {
        assert!(table::settings(&command).any(|(key, _)| key == *successor));
    }
}

#[test]
fn an_old_name_of_a_variable_is_answered_with_the_new_one() {
    for (name, words) in [
        ("VARTA_PROM_ADDR", "it is called VARTA_HTTP here"),
        (
            "VARTA_PROM_TOKEN_FILE",
            "it is called VARTA_HTTP_TOKEN_FILE here",
        ),
        (
            "VARTA_SECURE_UDP_I_ACCEPT_RECOVERY_ON_UNAUTHENTICATED_TRANSPORT",
            "it is called VARTA_ALLOW_RECOVERY_OVER_SECURE_UDP here",
        ),
        ("VARTA_PROM_ADR", "did you mean VARTA_HTTP?"),
        ("VARTA_READ_TIMEOUT_MS", "has no effect"),
        ("VARTA_TRESHOLD_MS", "did you mean VARTA_THRESHOLD_MS?"),
        ("VARTA_threshold_ms", "did you mean VARTA_THRESHOLD_MS?"),
    ] {
        let notices = parse_in(&[(name, "x")], &["--socket=/s"]).unwrap().notices;
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].contains(words), "{notices:?}");
    }
    let removed = parse_in(&[("VARTA_KEY_ENV", "x")], &["--socket=/s"]).unwrap_err();
    assert!(removed.text.contains("use --key-file"), "{}", removed.text);
}

#[test]
fn what_means_nothing_is_named_unless_it_may_be_secret() {
    for (variable, value, words) in [
        ("VARTA_ALLOW_UID", "1, no-such-user", "\"no-such-user\""),
        ("VARTA_ALLOW_GID", "no-such-group", "\"no-such-group\""),
        ("VARTA_HTTP", "localhost", "\"localhost\" is not an address"),
        (
            "VARTA_METRICS_AGENTS",
            "so\u{1b}me",
            "\"so\\u{1b}me\" means nothing",
        ),
        ("VARTA_UDP_BIND_ADDR", "here", "\"here\" is not an address"),
        ("VARTA_SOCKET_MODE", "rw", "\"rw\" is not a mode"),
        (
            "VARTA_LOG_FORMAT",
            "x\nml",
            "\"x\\nml\" is none of human, json",
        ),
        (
            "VARTA_REAL_TIME",
            "perhaps",
            "\"perhaps\" is none of true, false",
        ),
        ("VARTA_LATE_MS", "soon", "\"soon\": invalid digit"),
        ("VARTA_RECOVERY_WAIT", "soon", "\"soon\" is not a duration"),
        ("VARTA_MASS_STALL_SHARE", "half", "\"half\" is no part"),
        (
            "VARTA_RECOVERY_ENV",
            "A=b\nsecret\n=secret",
            "value 2: no '='",
        ),
    ] {
        let text = parse_in(&[(variable, value)], &["--socket=/s"])
            .unwrap_err()
            .text;
        assert!(text.contains(&format!("{variable}: ")), "{text}");
        assert!(text.contains(words), "{words}: {text}");
        assert!(
            !text.contains("secret") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
}

#[test]
fn every_flag_with_a_value_that_means_nothing_is_told_and_the_file_as_well() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, b"late-ms = 0\n").unwrap();
    let path = file.path().to_str().unwrap();
    let flags = [
        "--socket=/s",
        "--check-config",
        "--config",
        path,
        "--threshold-ms=1",
        "--recovery-mode=foo",
        "--recovery-cmd",
        "--udp-port=70000",
    ];
    let text = parse(&flags).unwrap_err().text;
    assert_eq!(text.lines().count(), 5, "{text}");
    for words in [
        ":1:11: late-ms: 0 is not within",
        "varta-watch: --threshold-ms: 1 is not within 10 to 86400000",
        "--recovery-mode: \"foo\" is none of observe, dry-run, enforce",
        "--recovery-cmd: it does not exist any more",
        "--udp-port: 70000 is not within 0 to 65535",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_flag_given_twice_is_an_error() {
    for flag in [
        "--threshold-ms=500",
        "--recovery-inherit-env",
        "--config=/c",
    ] {
        let error = error_of(&[flag, flag]);
        assert!(error.contains("multiple times"), "{error}");
    }
}

#[test]
fn a_wrong_choice_is_answered_with_the_right_ones() {
    let error = error_of(&["--log-format=xml"]);
    assert!(error.contains("human, json"), "{error}");
}

#[test]
fn a_flag_without_its_value_does_not_take_the_next_flag_for_it() {
    let command = table::command();
    for arg in command.get_arguments() {
        let takes_value = arg
            .get_num_args()
            .is_none_or(|count| count.min_values() > 0)
            && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        if !takes_value {
            continue;
        }
        let flag = format!("--{}", table::key(arg).unwrap());
        let error = error_of(&[&flag, "--print-config"]);
        let words = format!("a value is required for '{flag} ");
        assert!(error.contains(&words), "{error}");
    }
    assert!(error_of(&["--read-timeout-ms"]).contains("a value is required"));
}

#[test]
fn help_and_version_are_not_errors() {
    let help = parse(&["--help"]).unwrap_err();
    assert_eq!(help.exit_code, 0);
    assert!(help.text.contains("--recovery-exec"));
    let version = parse(&["--version"]).unwrap_err();
    assert_eq!(version.exit_code, 0);
    assert!(version.text.starts_with("varta-watch "));
}

#[test]
fn the_list_of_metrics_is_printed_instead_of_watching() {
    let list = parse(&["--list-metrics"]).unwrap_err();
    assert_eq!(list.exit_code, 0);
    assert_eq!(list.text, "the metrics");
}

#[test]
fn an_argument_that_is_not_text_is_an_error_and_not_a_crash() {
    use std::os::unix::ffi::OsStringExt;
    let arguments = ["varta-watch".into(), OsString::from_vec(vec![b'-', 0xff])];
    let sources = Sources {
        arguments: arguments.to_vec(),
        environment: Vec::new(),
    };
    assert_eq!(
        Config::read(sources, String::new).unwrap_err().exit_code,
        EXIT_USAGE
    );
}

#[test]
fn variables_are_split_at_the_first_equals_sign() {
    let config = parse(&["--socket=/s", "--recovery-env", "A=b=c"]).unwrap();
    assert_eq!(
        config.settings.children.environment,
        [("A".to_owned(), "b=c".to_owned())]
    );
}
