//! `varta key` from outside: the file it writes, its output, and what it never reveals.

#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The bytes 0 to 31.
const MASTER: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The key of pid 42 under [`MASTER`] (wire spec 7).
const DERIVED_42: &str = "61f5951b2bf1905d5053df0abb027002cba62da1f16d93c6552ff61cb65f2599";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

fn varta_key(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_varta"))
        .arg("key")
        .args(arguments)
        .output()
        .unwrap()
}

/// The output of a run that must succeed.
#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let output = varta_key(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.is_empty(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a run that must fail with this code.
#[track_caller]
fn error(code: i32, arguments: &[&str]) -> String {
    let output = varta_key(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(output.stdout.is_empty());
    assert!(error.lines().count() <= 3, "{error}");
    error
}

fn is_key_line(text: &str) -> bool {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 65 && text.ends_with('\n') && text[..64].bytes().all(lower_hex)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_new_key_is_one_line_of_a_new_file_and_only_its_fingerprint_is_told() {
    let files = Files::new();
    let path = files.name("key");
    let told = printed(&["new", &path]);
    let key = fs::read_to_string(&path).unwrap();
    assert!(is_key_line(&key));
    assert!(!told.contains(key.trim_end()));
    assert_eq!(told.lines().count(), 1);
    assert!(told.ends_with(&format!("  {path}\n")), "{told}");
    assert_eq!(told, printed(&["fingerprint", &path]));
}

#[test]
fn a_printed_key_is_all_that_is_printed() {
    let (first, second) = (printed(&["new", "--print"]), printed(&["new", "--print"]));
    assert!(is_key_line(&first) && is_key_line(&second));
    assert_ne!(first, second);
}

#[test]
fn a_key_file_is_for_its_owner_alone_whatever_the_umask() {
    let files = Files::new();
    let master = files.write("master", MASTER);
    for umask in ["000", "077", "777"] {
        for (name, command) in [
            ("new", "new \"$2\"".to_owned()),
            (
                "derived",
                format!("derive --master-key-file {master} --pid 42 \"$2\""),
            ),
        ] {
            let path = files.path(&format!("{name}-{umask}"));
            let status = Command::new("sh")
                .args([
                    "-c",
                    &format!("umask {umask} && exec \"$1\" key {command}"),
                    "sh",
                ])
                .arg(env!("CARGO_BIN_EXE_varta"))
                .arg(&path)
                .output()
                .unwrap()
                .status;
            assert!(status.success());
            assert_eq!(mode(&path), 0o600, "umask {umask}");
        }
    }
}

#[test]
fn nothing_is_ever_overwritten() {
    let files = Files::new();
    let master = files.write("master", MASTER);
    let (dangling, taken) = (files.name("dangling"), files.write("taken", "precious"));
    std::os::unix::fs::symlink(files.path("nowhere"), &dangling).unwrap();
    for path in [&taken, &dangling] {
        let derive = ["derive", "--master-key-file", &master, "--pid", "42", path];
        for arguments in [&["new", path][..], &derive] {
            let error = error(1, arguments);
            assert!(error.contains(path), "{error}");
            assert!(error.contains("overwritten"), "{error}");
        }
    }
    assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");
    assert!(!files.path("nowhere").exists());
}

#[test]
fn a_file_that_cannot_be_made_is_named_with_a_fix() {
    let files = Files::new();
    let path = files.name("absent/key");
    let error = error(1, &["new", &path]);
    assert!(
        error.contains(&path) && error.contains("directory"),
        "{error}"
    );
}

#[test]
fn the_key_of_an_agent_is_the_specified_one() {
    let files = Files::new();
    let master = files.write("master", format!("# for tests\n{MASTER}\n"));
    let derive = ["derive", "--master-key-file", &master, "--pid", "42"];
    let with = |last| [&derive[..], &[last]].concat();
    assert_eq!(printed(&with("--print")), format!("{DERIVED_42}\n"));

    let path = files.name("agent");
    let told = printed(&with(&path));
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{DERIVED_42}\n")
    );
    assert!(!told.contains(DERIVED_42) && !told.contains(MASTER));
    assert_eq!(told, printed(&["fingerprint", &path]));
}

#[test]
fn one_key_has_one_fingerprint_however_it_is_written() {
    let files = Files::new();
    let raw: [u8; 32] = std::array::from_fn(|i| i as u8);
    let names = [
        files.write("lower", MASTER),
        files.write("upper", MASTER.to_uppercase()),
        files.write("raw", raw),
    ];
    let told = printed(&["fingerprint", &names[0], &names[1], &names[2]]);
    let lines: Vec<(&str, &str)> = told
        .lines()
        .filter_map(|line| line.split_once("  "))
        .collect();
    let [(fingerprint, _), ..] = lines[..] else {
        panic!("{told}");
    };
    assert_eq!(fingerprint.len(), 16);
    let expected: Vec<(&str, &str)> = names
        .iter()
        .map(|name| (fingerprint, name.as_str()))
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn the_keys_of_a_file_are_told_in_their_order() {
    let files = Files::new();
    let both = files.write("both", format!("{DERIVED_42}\n# older\n{MASTER}\n"));
    let (new, old) = (files.write("new", DERIVED_42), files.write("old", MASTER));
    let fingerprints = |paths: &[&str]| -> Vec<String> {
        let told = printed(&[&["fingerprint"], paths].concat());
        told.lines().map(|line| line[..16].to_owned()).collect()
    };
    assert_eq!(fingerprints(&[&both]), fingerprints(&[&new, &old]));
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let files = Files::new();
    let path = files.write("key", MASTER);
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        for arguments in [
            &["fingerprint", &path][..],
            &["derive", "--master-key-file", &path, "--pid=42", "--print"],
        ] {
            let error = error(1, arguments);
            assert!(
                error.contains(&path) && error.contains("chmod 600"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_file_without_a_key_is_refused_without_telling_what_is_in_it() {
    let files = Files::new();
    let almost = files.write("almost", &MASTER[..63]);
    let empty = files.write("empty", "# nothing yet\n");
    for (path, why) in [(&almost, "line 1: 63 characters"), (&empty, "holds no key")] {
        let derive = ["derive", "--master-key-file", path, "--pid=42", "--print"];
        for arguments in [&["fingerprint", path][..], &derive] {
            let error = error(1, arguments);
            assert!(error.contains(path) && error.contains(why), "{error}");
            assert!(!error.contains(&MASTER[..8]), "{error}");
        }
    }
}

#[test]
fn a_master_key_stands_alone_in_its_file() {
    let files = Files::new();
    let two = files.write("two", format!("{MASTER}\n{DERIVED_42}\n"));
    let error = error(
        1,
        &["derive", "--master-key-file", &two, "--pid=42", "--print"],
    );
    assert!(
        error.contains("--master-key-file") && error.contains("2 keys"),
        "{error}"
    );
}

#[test]
fn an_unusable_command_line_writes_nothing() {
    let files = Files::new();
    let path = files.name("key");
    let master = files.write("master", MASTER);
    for arguments in [
        &["new"][..],
        &["new", "--print", &path],
        &["derive", "--pid=42", &path],
        &["derive", "--master-key-file", &master, &path],
        &["derive", "--master-key-file", &master, "--pid=1", &path],
        &["fingerprint"],
        &["print", &path],
    ] {
        error(2, arguments);
    }
    assert!(!files.path("key").exists());
}
