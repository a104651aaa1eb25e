//! Settings from flags, environment and file, from an operator's point of view.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::{AS_NOBODY, Observer, copy_program, may_become_nobody, public_directory, wrapped};
use tempfile::TempDir;

/// The output of an observer that exits instead of watching.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    /// Its output without the line about the queue, which depends on the machine.
    fn but_queue(&self) -> String {
        let lines = self.stdout.split_inclusive('\n');
        lines
            .filter(|line| !line.starts_with("note: the kernel queues "))
            .collect()
    }
}

fn ask(environment: &[(&str, &str)], arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_varta-watch"))
        .env_clear()
        // For the default path of the socket.
        .env("XDG_RUNTIME_DIR", "/tmp")
        .envs(environment.iter().copied())
        .args(arguments)
        .output()
        .unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory with configuration files in it.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn program(&self, name: &str) {
        let path = self.write(name, "#!/bin/sh\n");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn check(file: &str) -> Said {
    ask(&[], &["--config", file, "--check-config"])
}

/// A file that is no configuration is answered with one line that contains the reason.
fn assert_refused(file: &str, why: &str) {
    let said = check(file);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    assert!(said.stderr.starts_with(file), "{said:?}");
    assert!(said.stderr.contains(why), "{said:?}");
}

#[test]
fn a_flag_overrides_a_variable_and_a_variable_the_file() {
    let files = Files::new();
    let file = files.write("varta.toml", "threshold-ms = 301\nallow-uid = [\"0\"]\n");
    let environment = [("VARTA_THRESHOLD_MS", "302"), ("VARTA_ALLOW_UID", "1, 2")];
    let flags = ["--threshold-ms=303", "--allow-uid=3"];
    let base = ["--config", &file, "--print-config"];
    let all = [&base[..], &flags].concat();
    for (environment, arguments, threshold, users) in [
        (&[][..], &base[..], "301  # ", "[\"0\"]  # "),
        (
            &environment,
            &base,
            "302  # environment",
            "[\"1\", \"2\"]  # environment",
        ),
        (&environment, &all, "303  # flag", "[\"3\"]  # flag"),
        (&[], &all, "303  # flag", "[\"3\"]  # flag"),
    ] {
        let said = ask(environment, arguments);
        assert!(
            said.stdout
                .contains(&format!("\nthreshold-ms = {threshold}")),
            "{said:?}"
        );
        assert!(
            said.stdout.contains(&format!("\nallow-uid = {users}")),
            "{said:?}"
        );
    }
    let said = ask(&[], &base);
    assert!(
        said.stdout.contains(&format!("301  # {file}:1\n")),
        "{said:?}"
    );
}

#[test]
fn a_flag_switches_off_what_the_file_switches_on() {
    let files = Files::new();
    let file = files.write("varta.toml", "recovery-inherit-env = true\n");
    for (flags, value) in [
        (&[][..], "true"),
        (&["--recovery-inherit-env=false"], "false"),
        (&["--recovery-inherit-env"], "true"),
    ] {
        let base = ["--config", &file, "--print-config"];
        let said = ask(&[], &[&base[..], flags].concat());
        assert!(
            said.stdout
                .contains(&format!("\nrecovery-inherit-env = {value}  # ")),
            "{said:?}"
        );
    }
}

#[test]
fn the_file_can_be_named_in_the_environment() {
    let files = Files::new();
    let file = files.write("varta.toml", "threshold-ms = 301\n");
    let other = files.write("other.toml", "threshold-ms = 302\n");
    let environment = [("VARTA_CONFIG", file.as_str())];
    let said = ask(&environment, &["--check-config"]);
    assert_eq!(said.but_queue(), format!("{file}: ok\n"), "{said:?}");
    let said = ask(&environment, &["--check-config", "--config", &other]);
    assert_eq!(said.but_queue(), format!("{other}: ok\n"), "{said:?}");
}

#[test]
fn an_empty_variable_is_none() {
    let said = ask(
        &[("VARTA_LATE_MS", ""), ("VARTA_CONFIG", "")],
        &["--print-config"],
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("# late-ms is not set"), "{said:?}");
}

#[test]
fn a_variable_that_means_nothing_is_an_error_under_its_name() {
    let said = ask(
        &[("VARTA_THRESHOLD_MS", "soon"), ("VARTA_KEY_ENV", "X")],
        &["--check-config"],
    );
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr.contains("VARTA_THRESHOLD_MS: \"soon\""),
        "{said:?}"
    );
    assert!(
        said.stderr.contains("VARTA_KEY_ENV: ") && said.stderr.contains("--key-file"),
        "{said:?}"
    );
}

#[test]
fn twenty_mistakes_are_twenty_messages_each_with_its_place_and_how_to_mend_it() {
    let files = Files::new();
    let file = files.write("varta.toml", include_str!("data/twenty_mistakes.toml"));
    let said = check(&file);
    assert_eq!(said.code, Some(2), "{said:?}");
    let lines: Vec<&str> = said.stderr.lines().collect();
    for (line, (place, words)) in lines.iter().zip([
        (
            "1:1: ",
            "treshold-ms: unknown key; did you mean threshold-ms?",
        ),
        ("2:16: ", "threshold-ms: 5 is not within 10 to 86400000"),
        ("3:20: ", "tracker-capacity: a whole number is wanted here"),
        (
            "4:13: ",
            "allow-uid: an array is wanted here, not a text; write",
        ),
        ("5:14: ", "log-format: \"xml\" is none of human, json"),
        (
            "6:20: ",
            "recovery-backoff: \"soon\" is not a duration; write",
        ),
        ("7:19: ", "recovery-window: 10 of what? write"),
        ("8:17: ", "recovery-env: no '='; write KEY=VALUE"),
        ("9:1: ", "threshold-ms is given twice; keep one"),
        (
            "10:1: ",
            "http: 192.0.2.1:80 can be reached from elsewhere and needs a token: give",
        ),
        ("11:1: ", "key-file: it is about UDP; say which port"),
        ("12:15: ", "not TOML: "),
        (
            "13:1: ",
            "default-recovery: there is no ladder \"restrat\"; did you mean restart?",
        ),
        (
            "16:19: ",
            "recovery.restart.steps.run: cannot use /no/such/program",
        ),
        (
            "17:34: ",
            "recovery.restart.steps.signal: \"SEGV\" is no signal that can be sent; there are",
        ),
        (
            "18:27: ",
            "recovery.restart.steps.run: {nmae} stands for nothing; did you mean {name}?",
        ),
        ("22:8: ", "agent.name: '?' has no meaning in a glob"),
        (
            "23:7: ",
            "agent.uid: no user is called \"no-such-user-here\"; give",
        ),
        (
            "24:8: ",
            "agent.late: 2s is not shorter than the threshold of 1s",
        ),
        (
            "26:12: ",
            "agent.recovery: there is no ladder \"restrt\"; did you mean restart?",
        ),
    ]) {
        let begins = format!("{file}:{place}");
        assert!(
            line.starts_with(&begins) && line.contains(words),
            "{words} in {line}"
        );
    }
    assert_eq!(lines.len(), 20, "{}", said.stderr);
}

#[test]
fn a_start_with_mistakes_says_the_same_as_a_check() {
    let files = Files::new();
    let file = files.write("varta.toml", include_str!("data/twenty_mistakes.toml"));
    let start = ask(&[], &["--config", &file]);
    assert_eq!(start.code, Some(2), "{start:?}");
    assert_eq!(start.stderr, check(&file).stderr);
}

#[test]
fn the_check_reads_keys_and_token_too() {
    let files = Files::new();
    let toml = "udp-port = 0\nkey-file = \"/no/such/key\"\nhttp-token-file = \"/no/such/token\"\n";
    let file = files.write("varta.toml", toml);
    let said = check(&file);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr.contains(&format!("{file}:2:1: key-file: ")),
        "{said:?}"
    );
    assert!(
        said.stderr
            .contains(&format!("{file}:3:1: http-token-file: ")),
        "{said:?}"
    );
}

#[test]
fn a_missing_file_is_named() {
    assert_refused("/no/such/varta.toml", "No such file");
}

#[test]
fn a_directory_is_no_configuration() {
    assert_refused(&Files::new().path(""), "this is a directory");
}

#[test]
fn a_fifo_is_no_configuration_and_nobody_waits_for_it() {
    let files = Files::new();
    let path = files.path("fifo");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_refused(&path, "this is a FIFO");
}

#[test]
fn a_file_of_100_mb_is_not_read() {
    let files = Files::new();
    let path = files.write("varta.toml", "");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(100 * 1024 * 1024).unwrap();
    assert_refused(&path, "larger than 1048576 bytes");
}

#[test]
fn random_bytes_are_no_configuration() {
    let files = Files::new();
    let bytes: Vec<u8> = random_bytes().take(10_000).collect();
    assert_refused(&files.write("varta.toml", bytes), "not UTF-8");
}

#[test]
fn random_text_is_answered_with_a_bounded_number_of_problems() {
    let files = Files::new();
    let text: Vec<u8> = random_bytes()
        .map(|byte| match byte % 16 {
            0 => b'\n',
            _ => b' ' + byte % 95,
        })
        .take(100_000)
        .collect();
    let said = check(&files.write("varta.toml", text));
    assert_eq!(said.code, Some(2));
    assert_eq!(said.stderr.lines().count(), 101, "{said:?}");
}

/// The same every time, and for every value.
fn random_bytes() -> impl Iterator<Item = u8> {
    std::iter::successors(Some(1_u64), |state| {
        Some(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1),
        )
    })
    .map(|state| (state >> 56) as u8)
}

#[test]
fn deep_nesting_is_an_error_and_no_crash() {
    let files = Files::new();
    let text = format!("recovery-env = {}", "[".repeat(200_000));
    let said = check(&files.write("varta.toml", text));
    assert_eq!(said.code, Some(2), "{:.300}", said.stderr);
}

#[test]
fn a_file_that_everybody_may_write_to_is_not_believed() {
    let files = Files::new();
    let path = files.write("varta.toml", "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert_refused(&path, "chmod o-w");
}

#[test]
fn a_user_believes_files_of_its_own_and_of_root() {
    if !may_become_nobody() {
        return;
    }
    let files = Files(public_directory());
    let program = files.path("observer");
    copy_program(
        Path::new(env!("CARGO_BIN_EXE_varta-watch")),
        Path::new(&program),
    );
    let file = files.write("varta.toml", "");
    let mut check = Command::new(&program);
    check.args(["--socket=/s", "--check-config", "--config", &file]);
    for (owner, group, mode, words) in [
        (64000, 64000, 0o660, ": ok"),
        (0, 64000, 0o664, ": ok"),
        (0, 0, 0o664, ": ok"),
        (0, 54321, 0o664, "chmod g-w"),
        (54321, 64000, 0o644, "nor to this user (uid 64000)"),
    ] {
        std::os::unix::fs::chown(&file, Some(owner), Some(group)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let output = wrapped(&AS_NOBODY, &check).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_link_to_a_file_is_as_good_as_the_file() {
    let files = Files::new();
    let file = files.write("..data", "threshold-ms = 301\n");
    let link = files.path("varta.toml");
    std::os::unix::fs::symlink(file, &link).unwrap();
    assert_eq!(check(&link).but_queue(), format!("{link}: ok\n"));
}

/// Copies, because the user that runs the tests may not own the sources.
fn samples(files: &Files) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let paths = fs::read_dir(directory).unwrap();
    let paths = paths.map(|entry| entry.unwrap().path());
    let samples = paths.filter_map(|path| {
        let name = path.file_name()?.to_str()?;
        let text = name.ends_with(".toml").then(|| fs::read(&path).unwrap())?;
        Some(files.write(name, text))
    });
    samples.collect()
}

/// Programs that samples run and that are not on every machine.
fn programs() -> Files {
    let programs = Files::new();
    programs.program("systemctl");
    programs.program("logger");
    programs
}

#[test]
fn every_sample_is_a_configuration() {
    let (files, programs) = (Files::new(), programs());
    let path = format!("--recovery-env=PATH={}", programs.path(""));
    let samples = samples(&files);
    assert!(samples.len() >= 3);
    for sample in samples {
        let said = ask(&[], &["--config", &sample, "--check-config", &path]);
        assert_eq!(said.but_queue(), format!("{sample}: ok\n"), "{said:?}");
    }
}

/// The examples of each page as one file, since they build on one another.
fn examples(files: &Files) -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = fs::read_dir(top.join("docs")).unwrap();
    let docs = docs.map(|page| page.unwrap().path());
    let pages = docs.chain([top.join("README.md")]);
    let examples = pages.filter_map(|page| {
        let text = fs::read_to_string(&page).ok()?;
        let blocks = text.split("```toml\n").skip(1);
        let toml: String = blocks.filter_map(|rest| rest.split("```").next()).collect();
        let name = page.file_name()?.to_str()?;
        (!toml.is_empty()).then(|| files.write(name, toml))
    });
    examples.collect()
}

#[test]
fn every_example_in_the_documentation_is_a_configuration() {
    let files = Files::new();
    let programs = programs();
    let path = format!("--recovery-env=PATH={}", programs.path(""));
    let examples = examples(&files);
    for page in ["README.md", "configuration.md", "recovery.md"] {
        assert!(examples.contains(&files.path(page)), "{examples:?}");
    }
    for example in examples {
        let said = ask(&[], &["--config", &example, "--check-config", &path]);
        assert_eq!(said.but_queue(), format!("{example}: ok\n"), "{said:?}");
    }
}

#[test]
fn every_series_that_the_documentation_names_is_there() {
    let series = ask(&[], &["--list-metrics"]).stdout;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    for page in ["recovery.md", "security.md", "evidence.md", "design.md"] {
        let text = fs::read_to_string(docs.join(page)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
        let named =
            words.filter(|word| word.starts_with("varta_") && word.matches('_').count() > 1);
        for name in named.filter(|name| !name.contains("::")) {
            assert!(series.contains(&format!("`{name}`")), "{page}: {name}");
        }
    }
}

#[test]
fn what_is_printed_is_a_configuration_with_the_same_settings() {
    let (files, programs) = (Files::new(), programs());
    let path = format!("--recovery-env=PATH={}", programs.path(""));
    for sample in samples(&files) {
        let flags = [
            "--print-config",
            "--config",
            &sample,
            &path,
            "--http=off",
            "--mass-stall-share=.25",
        ];
        let first = ask(&[], &flags);
        assert_eq!(first.code, Some(0), "{first:?}");
        let printed = files.write("printed.toml", &first.stdout);
        let second = ask(&[], &["--print-config", "--config", &printed]);
        assert_eq!(
            without_comments(&first.stdout),
            without_comments(&second.stdout)
        );
        assert!(
            second.stdout.contains("\nmass-stall-share = 0.25"),
            "{second:?}"
        );
    }
}

fn without_comments(page: &str) -> Vec<&str> {
    let lines = page.lines().map(|line| line.split("  # ").next().unwrap());
    lines.filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn removed_flags_are_answered_with_what_to_use_instead() {
    for (flags, instead) in [
        (&["--recovery-cmd", "kill {pid}"][..], "--recovery-exec"),
        (&["--recovery-cmd-file=/c"], "--recovery-exec-file"),
        (&["--i-accept-shell-risk"], "--recovery-exec"),
        (&["--key-env", "KEY"], "--key-file"),
        (&["--accepted-key-env", "KEY"], "--accepted-key-file"),
        (&["--master-key-env", "KEY"], "--master-key-file"),
    ] {
        let said = ask(&[], flags);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        assert!(said.stderr.contains(instead), "{said:?}");
    }
}

#[test]
fn flags_of_0_2_0_without_effect_are_taken_and_mentioned_once() {
    let observer = Observer::start(&[
        "--signal-handler-mode=libc",
        "--read-timeout-ms",
        "100",
        "--uds-rcvbuf-bytes=0",
        "--audit-sync-interval-ms",
        "-1",
        "--audit-fsync-budget-ms=x",
        "--audit-rotation-budget-ms=50",
        "--prom-rate-limit-per-sec=5",
        "--prom-rate-limit-burst=10",
        "--iteration-budget-ms=250",
        "--scrape-budget-ms=250",
        "--recovery-capture-stdio",
        "--i-accept-secure-udp-non-loopback",
    ]);
    let stopped = observer.stop();
    let notices = stopped.lines.iter().map(|line| &line.msg);
    let without_effect = notices.filter(|notice| notice.contains("has no effect"));
    assert_eq!(without_effect.count(), 12, "{:#?}", stopped.lines);
}

#[test]
fn a_variable_that_is_no_setting_is_mentioned_with_the_nearest_name() {
    let directory = tempfile::tempdir().unwrap();
    let observer = Observer::start_in(directory, &[], |mut command| {
        command.env("VARTA_TRESHOLD_MS", "1");
        command
    });
    let notice = observer.wait_for("notice", |line| line.msg.contains("VARTA_TRESHOLD_MS"));
    assert!(
        notice.msg.contains("did you mean VARTA_THRESHOLD_MS?"),
        "{}",
        notice.msg
    );
}

#[test]
fn the_recovery_command_can_stand_in_a_file_that_only_its_owner_reads() {
    let files = Files::new();
    let file = files.write("command", "true {pid}\n");
    let flag = format!("--recovery-exec-file={file}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let said = ask(&[], &["--check-config", &flag]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains(&file), "{said:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(ask(&[], &["--check-config", &flag]).code, Some(0));
    let both = ask(&[], &["--check-config", &flag, "--recovery-exec=true"]);
    assert!(both.stderr.contains("leave one out"), "{both:?}");
    files.write("command", " \n");
    let empty = ask(&[], &["--check-config", &flag]);
    assert!(
        empty.stderr.contains("--recovery-exec-file: it is empty"),
        "{empty:?}"
    );
}

#[test]
fn help_comes_short_and_long() {
    let (short, long) = (ask(&[], &["-h"]), ask(&[], &["--help"]));
    assert_eq!((short.code, long.code), (Some(0), Some(0)));
    assert!(short.stdout.lines().count() < 80, "{}", short.stdout);
    assert!(long.stdout.lines().count() > 200, "{}", long.stdout);
}
