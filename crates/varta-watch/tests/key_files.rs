//! Key files: those that are accepted and those that keep the observer from starting, and the effect of a reload.
//! Also other reasons that keep it from listening.

mod support;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use support::LogLine;
use support::network::{
    Beating, JOINS, MASTER, MASTER_FILE, PATIENT, PID, REPLAYED, SEALS, SHARED, SHARED_FILE,
    STALLS, Seal, Series, UNDECRYPTABLE, flag, hex, socket, start_sealed, start_sealed_in,
    write_key,
};
use support::{BEATS, Observer, frame_of};
use tempfile::TempDir;

/// Every flag that names a key file.
const FLAGS: [&str; 3] = ["--key-file", "--accepted-key-file", "--master-key-file"];

/// Seconds after which a start that must be refused has hung.
const HANGS_AFTER: &str = "20";

/// The error of a start that must be refused.
struct Refused(TempDir);

impl Refused {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Exit code and text of a start with these flags. Fails if it hangs, or leaves a socket behind.
    fn start(&self, flags: &[&str]) -> (Option<i32>, String) {
        let socket = self.path().join("refused.sock");
        let output = Command::new("timeout")
            .args([HANGS_AFTER, env!("CARGO_BIN_EXE_varta-watch"), "--socket"])
            .arg(&socket)
            .args(flags)
            .output()
            .unwrap();
        assert!(!socket.exists(), "a socket was left behind");
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    }

    /// Fails unless a start with these flags is refused in one line with these words.
    fn expect(&self, flags: &[&str], words: &[&str]) {
        let (code, text) = self.start(flags);
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    /// Fails unless every flag rejects this file; the error names both, these words, and no key.
    fn expect_of_file(&self, flags: &[&str], path: &Path, words: &[&str]) {
        for name in flags {
            let all = [words, &[name, path.to_str().unwrap()]].concat();
            self.expect(&["--udp-port=0", &flag(name, path)], &all);
            let (_, text) = self.start(&["--udp-port=0", &flag(name, path)]);
            assert!(!text.contains(&hex(SHARED)[..8]), "{text}");
        }
    }
}

#[test]
fn a_key_file_that_others_may_open_is_refused() {
    for mode in [0o640, 0o604, 0o644, 0o620, 0o601] {
        let refused = Refused::new();
        let path = write_key(refused.path(), "key", hex(SHARED));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let bits = format!("{mode:04o}");
        refused.expect_of_file(&FLAGS, &path, &[&bits, "chmod 600"]);
    }
}

#[test]
fn a_key_file_of_another_user_is_refused() {
    let refused = Refused::new();
    let path = write_key(refused.path(), "key", hex(SHARED));
    // Neither root nor this user.
    let other = rustix::process::geteuid().as_raw() + 1;
    if chown(&path, Some(other), None).is_err() {
        println!("skipped: this user cannot give a file away");
        return;
    }
    let words = format!("belongs to uid {other}");
    refused.expect_of_file(&FLAGS, &path, &[&words, "chown"]);
}

#[test]
fn a_key_of_another_length_is_refused() {
    let refused = Refused::new();
    for length in [1, 31, 62, 63, 65, 128] {
        let text = "5".repeat(length);
        let path = write_key(refused.path(), "key", format!("# a key\n{text}\n"));
        let words = format!("line 2: {length} characters");
        refused.expect_of_file(&FLAGS, &path, &[&words]);
    }
}

#[test]
fn a_text_that_is_no_key_is_refused() {
    let refused = Refused::new();
    let text = format!("{}xyz", &hex(SHARED)[..61]);
    let path = write_key(refused.path(), "key", text);
    let words = ["line 1: character 62 is not a hexadecimal digit"];
    refused.expect_of_file(&FLAGS, &path, &words);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let refused = Refused::new();
    for length in [31, 33, 64] {
        let path = write_key(refused.path(), "key", vec![0xff; length]);
        refused.expect_of_file(&FLAGS, &path, &["line 1"]);
    }
}

#[test]
fn a_file_without_a_key_is_refused() {
    for content in ["", "\n\n", "# none yet\n"] {
        let refused = Refused::new();
        let path = write_key(refused.path(), "key", content);
        refused.expect_of_file(&FLAGS, &path, &["holds no key"]);
    }
}

#[test]
fn two_keys_where_one_is_wanted_are_refused() {
    let refused = Refused::new();
    let path = write_key(refused.path(), "key", [hex(SHARED), hex(2)].join("\n"));
    let flags = ["--key-file", "--master-key-file"];
    refused.expect_of_file(&flags, &path, &["holds 2 keys"]);
}

#[test]
fn more_keys_than_can_be_tried_are_refused() {
    let refused = Refused::new();
    let many: Vec<String> = (1..=17).map(hex).collect();
    let path = write_key(refused.path(), "keys", many.join("\n"));
    let words = ["17 shared keys", "16 is the most"];
    refused.expect_of_file(&["--accepted-key-file"], &path, &words);
}

#[test]
fn a_file_that_is_too_long_for_keys_is_refused() {
    let refused = Refused::new();
    let path = write_key(refused.path(), "key", "#\n".repeat(100_000));
    refused.expect_of_file(&FLAGS, &path, &["longer than"]);
}

#[test]
fn a_fifo_is_refused_at_once() {
    let refused = Refused::new();
    let path = refused.path().join("fifo");
    let made = Command::new("mkfifo")
        .args(["-m", "600"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    refused.expect_of_file(&FLAGS, &path, &["a FIFO"]);
}

#[test]
fn a_device_is_refused() {
    Refused::new().expect_of_file(&FLAGS, Path::new("/dev/zero"), &["a character device"]);
}

#[test]
fn a_directory_is_refused() {
    let refused = Refused::new();
    let path = refused.path().join("directory");
    fs::create_dir(&path).unwrap();
    refused.expect_of_file(&FLAGS, &path, &["a directory"]);
}

#[test]
fn a_missing_file_is_refused() {
    let refused = Refused::new();
    let path = refused.path().join("missing");
    refused.expect_of_file(&FLAGS, &path, &["No such file"]);
}

#[test]
fn a_link_that_leads_nowhere_is_refused() {
    let refused = Refused::new();
    let path = refused.path().join("key");
    symlink("missing", &path).unwrap();
    refused.expect_of_file(&FLAGS, &path, &["missing", "No such file"]);
}

#[test]
fn a_link_that_leads_to_itself_is_refused() {
    let refused = Refused::new();
    let path = refused.path().join("key");
    symlink("key", &path).unwrap();
    refused.expect_of_file(&FLAGS, &path, &["symbolic links"]);
}

#[test]
fn a_link_through_a_directory_that_everybody_may_change_is_refused() {
    let refused = Refused::new();
    let open = refused.path().join("open");
    fs::create_dir(&open).unwrap();
    write_key(refused.path(), "key", hex(SHARED));
    let path = open.join("link");
    symlink("../key", &path).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    refused.expect_of_file(&FLAGS, &path, &["writable by others", "0777"]);
}

/// Fails unless every flag accepts the file at that path for the key of [`SHARED`].
fn assert_believed(path: &Path) {
    for name in FLAGS {
        let flags = [PATIENT, "--udp-port=0", &flag(name, path)];
        let observer = Observer::start(&flags);
        let seal = match name {
            "--master-key-file" => Seal::Master(SHARED),
            _ => Seal::Shared(SHARED),
        };
        observer.hear(&socket(), &Series::new(seal, PID, "a").beat());
        observer.stop().assert_counters(&[(JOINS, 1)]);
    }
}

#[test]
fn blank_lines_comments_spaces_and_capitals_do_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    let capitals = hex(SHARED).to_uppercase();
    let content = format!("# the key of agents\n\n \t{capitals} \r\n\n# end\n\n\n");
    let path = write_key(directory.path(), "key", content);
    assert_believed(&path);
}

#[test]
fn a_key_may_be_32_bytes_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = write_key(directory.path(), "key", [SHARED; 32]);
    assert_believed(&path);
}

/// A directory as Kubernetes mounts secrets in: the file is a link through a link that is swapped.
fn mounted_secret(directory: &Path, version: &str, byte: u8) -> PathBuf {
    let data = directory.join(version);
    fs::create_dir(&data).unwrap();
    write_key(&data, "key", hex(byte));
    let new = directory.join("..data_tmp");
    symlink(version, &new).unwrap();
    fs::rename(&new, directory.join("..data")).unwrap();
    let path = directory.join("key");
    if !path.is_symlink() {
        symlink("..data/key", &path).unwrap();
    }
    path
}

#[test]
fn a_secret_may_be_mounted_through_a_chain_of_links() {
    let directory = tempfile::tempdir().unwrap();
    let path = mounted_secret(directory.path(), "..2026_01", SHARED);
    assert_believed(&path);
}

#[test]
fn a_key_file_without_a_port_is_a_mistake_in_the_command_line() {
    let refused = Refused::new();
    let path = write_key(refused.path(), "key", hex(SHARED));
    for name in FLAGS {
        let (code, text) = refused.start(&[&flag(name, &path)]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(name) && text.contains("--udp-port"), "{text}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let refused = Refused::new();
    let key = write_key(refused.path(), "key", hex(SHARED));
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = format!("--udp-port={}", address.port());
    let words = [&address.to_string(), "--udp-port", "in use"];
    refused.expect(&[&port, &flag("--key-file", &key)], &words);
    let bind = "--udp-bind-addr=127.0.0.1";
    refused.expect(&[&port, bind, "--i-accept-plaintext-udp"], &words);
}

#[test]
fn two_observers_do_not_share_a_memory_of_what_was_heard() {
    let first = start_sealed(&[PATIENT]);
    let mut agent = Series::new(SEALS[0], PID, "a");
    let beat = agent.beat();
    first.hear(&socket(), &beat);
    let refused = Refused::new();
    let key = write_key(refused.path(), "key", hex(SHARED));
    let replay = first.directory.path().join("varta.sock.replay");
    assert!(replay.exists());
    let flags = [
        "--udp-port=0",
        &flag("--key-file", &key),
        &flag("--replay-file", &replay),
    ];
    let words = [
        "another observer",
        "--replay-file",
        replay.to_str().unwrap(),
    ];
    refused.expect(&flags, &words);
    // The first one still has it.
    first.hear(&socket(), &beat);
    first.hear(&socket(), &agent.beat());
    let observer = first.replaced(Signal::KILL, &[PATIENT]);
    observer.hear(&socket(), &beat);
    observer
        .stop()
        .assert_counters(&[(REPLAYED, 1), (JOINS, 0)]);
}

#[test]
fn a_file_that_is_no_memory_of_what_was_heard_is_left_as_it_is() {
    let refused = Refused::new();
    let key = write_key(refused.path(), "key", hex(SHARED));
    let replay = write_key(refused.path(), "letter", "precious");
    let flags = [
        "--udp-port=0",
        &flag("--key-file", &key),
        &flag("--replay-file", &replay),
    ];
    refused.expect(&flags, &[replay.to_str().unwrap()]);
    assert_eq!(fs::read(&replay).unwrap(), b"precious");
}

/// Makes the observer read its key files again; returns its log line about them.
fn reload(observer: &Observer) -> LogLine {
    observer.signal(Signal::HUP);
    observer.wait_for("notice", |line| line.msg.starts_with("SIGHUP"))
}

/// Rewrites the observer's files, has it read them, and waits until the new shared key opens.
fn change_keys(observer: &Observer, shared: u8, master: u8) {
    let directory = observer.directory.path();
    write_key(directory, SHARED_FILE, hex(shared));
    write_key(directory, MASTER_FILE, hex(master));
    let notice = reload(observer);
    assert_eq!(notice.level, "info");
    assert!(
        notice.msg.contains("1 shared key and a master key"),
        "{}",
        notice.msg
    );
    // The thread that opens envelopes may still be at an earlier one.
    let heard = |observer: &Observer| observer.counters().get(BEATS).copied().unwrap_or(0);
    let before = heard(observer);
    let mut probe = Series::new(Seal::Shared(shared), 9, &format!("probe {shared}"));
    while heard(observer) == before {
        observer.hear(&socket(), &probe.beat());
        assert!(probe.nonce < 200, "the new key opens nothing");
    }
}

#[test]
fn a_reload_puts_the_new_keys_in_force_and_the_old_ones_out_of_it() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        observer.hear(&socket(), &Series::new(seal, PID, "old").beat());
    }
    change_keys(&observer, 1, 2);
    let before = observer.counters();
    for seal in SEALS {
        observer.hear(&socket(), &Series::new(seal, PID, "late").beat());
    }
    observer.assert_gained(&before, &[(UNDECRYPTABLE, 2)]);
    for seal in [Seal::Shared(1), Seal::Master(2)] {
        observer.hear(&socket(), &Series::new(seal, PID, "new").beat());
    }
    observer.assert_gained(&before, &[(UNDECRYPTABLE, 2), (BEATS, 2), (JOINS, 2)]);
}

#[test]
fn a_key_that_comes_back_finds_its_sessions_as_they_were() {
    let observer = start_sealed(&[PATIENT]);
    let mut agents = SEALS.map(|seal| Series::new(seal, PID, "a"));
    let mut captures = Vec::new();
    for agent in &mut agents {
        captures.extend(agent.beats(3));
    }
    observer.hear_all(&socket(), &captures);
    change_keys(&observer, 1, 2);
    change_keys(&observer, SHARED, MASTER);
    let before = observer.counters();
    observer.hear_all(&socket(), &captures);
    for agent in &mut agents {
        observer.hear(&socket(), &agent.beat());
    }
    observer.assert_gained(&before, &[(REPLAYED, 6), (BEATS, 2)]);
}

#[test]
fn no_beat_under_a_kept_key_is_lost_while_keys_are_reloaded() {
    let directory = tempfile::tempdir().unwrap();
    let accepted = write_key(directory.path(), "accepted.key", hex(1));
    let flags = [
        PATIENT,
        "--max-beat-rate=0",
        &flag("--accepted-key-file", &accepted),
    ];
    let observer = start_sealed_in(directory, &flags);
    let mut agents = SEALS.map(|seal| Series::new(seal, PID, "kept"));
    let in_force = |line: &LogLine| line.msg.contains("SIGHUP: read ");
    for round in 1..=20 {
        // The kept key is in one file, then in the other.
        let keys = [SHARED, 100 + round];
        let place = usize::from(round % 2);
        let directory = observer.directory.path();
        write_key(directory, SHARED_FILE, hex(keys[place]));
        write_key(directory, "accepted.key", hex(keys[1 - place]));
        observer.signal(Signal::HUP);
        for agent in &mut agents {
            observer.hear_all(&socket(), &agent.beats(100));
        }
        observer.until(|_| observer.lines_told(in_force).len() == usize::from(round));
    }
    observer.stop().assert_counters(&[
        (BEATS, 4_000),
        (JOINS, 2),
        (UNDECRYPTABLE, 0),
        (REPLAYED, 0),
    ]);
}

#[test]
fn an_agent_that_beats_does_not_notice_reloads() {
    let observer = start_sealed(&["--threshold-ms=5000"]);
    let agents = SEALS.map(|seal| Series::new(seal, PID, "live"));
    let agents = agents.map(|agent| Beating::start(&observer, &socket(), agent));
    for round in 1..=10 {
        reload(&observer);
        observer.wait_for_count(BEATS, 4 * round);
    }
    let sent: u64 = agents.map(|agent| agent.stop().nonce).iter().sum();
    observer.wait_for_count(BEATS, sent);
    observer
        .stop()
        .assert_counters(&[(BEATS, sent), (JOINS, 2), (STALLS, 0)]);
}

#[test]
fn a_secret_that_is_swapped_under_its_link_is_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = mounted_secret(directory.path(), "..2026_01", 1);
    let observer = Observer::start(&[PATIENT, "--udp-port=0", &flag("--key-file", &path)]);
    mounted_secret(directory.path(), "..2026_02", 2);
    assert!(reload(&observer).msg.contains("read 1 shared key"));
    let mut agent = Series::new(Seal::Shared(2), PID, "new");
    // The thread that opens envelopes may still be at an earlier one.
    observer.until(|counters| {
        agent.counter += 1;
        let bytes = agent.at(agent.counter, &frame_of(PID, 1));
        socket().send_to(&bytes, observer.udp()).unwrap();
        counters.contains_key(BEATS)
    });
}

/// Fails unless a reload of files changed like this changes nothing and is answered by these words.
fn assert_reload_fails(spoil: impl Fn(&Path), flag_name: &str, words: &[&str]) {
    let observer = start_sealed(&[PATIENT]);
    let directory = observer.directory.path().to_owned();
    let mut agents = SEALS.map(|seal| Series::new(seal, PID, "live"));
    for agent in &mut agents {
        observer.hear(&socket(), &agent.beat());
    }
    // The valid one has no effect, either.
    for name in [SHARED_FILE, MASTER_FILE] {
        write_key(&directory, name, hex(7));
    }
    spoil(&directory);
    let error = reload(&observer);
    assert_eq!(error.level, "error");
    for word in [words, &[flag_name, directory.to_str().unwrap()]].concat() {
        assert!(error.msg.contains(word), "{word} in {}", error.msg);
    }
    let before = observer.counters();
    for agent in &mut agents {
        observer.hear(&socket(), &agent.beat());
    }
    observer.hear(&socket(), &Series::new(Seal::Shared(7), PID, "new").beat());
    observer.assert_gained(&before, &[(BEATS, 2), (UNDECRYPTABLE, 1)]);
}

#[test]
fn a_reload_of_a_bad_text_changes_nothing_and_says_why() {
    let spoil = |directory: &Path| {
        write_key(directory, SHARED_FILE, "not a key");
    };
    assert_reload_fails(spoil, "--key-file", &[SHARED_FILE, "line 1"]);
}

#[test]
fn a_reload_of_a_file_that_others_may_read_changes_nothing_and_says_why() {
    let spoil = |directory: &Path| {
        let path = directory.join(MASTER_FILE);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    };
    assert_reload_fails(spoil, "--master-key-file", &[MASTER_FILE, "0644"]);
}

#[test]
fn a_reload_of_a_missing_file_changes_nothing_and_says_why() {
    let spoil = |directory: &Path| fs::remove_file(directory.join(MASTER_FILE)).unwrap();
    assert_reload_fails(spoil, "--master-key-file", &[MASTER_FILE, "No such file"]);
}
