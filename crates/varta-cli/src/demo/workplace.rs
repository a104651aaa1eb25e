//! The environment of the demo: a private directory that is removed afterwards, the observer's settings, and the
//! processes.
//!
//! Every process is this program, started through a link whose name becomes the name of the process. Each leads a
//! process group of its own, so that Ctrl-C at the terminal ends the demo and the demo ends them.

use std::env;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::agent::Role;
use super::{THRESHOLD, io_failure};
use crate::Failure;

/// A longer directory name leaves too little of the 107 bytes of a socket path.
const BASE_MAX_BYTES: usize = 64;

/// How long an agent may take to leave before it is killed.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Interval of the check of a process that is ending.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The demo's directory.
pub(super) struct Workplace {
    directory: TempDir,
    program: PathBuf,
}

impl Workplace {
    pub(super) fn create() -> Result<Self, Failure> {
        let base = base(env::temp_dir());
        let directory = tempfile::Builder::new()
            .prefix("varta-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&base)
            .map_err(|error| {
                Failure::Run(format!(
                    "cannot create a directory in {}: {error}; set TMPDIR to one that is writable",
                    base.display()
                ))
            })?;
        Ok(Self {
            directory,
            program: env::current_exe().map_err(io_failure("find this program"))?,
        })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("varta.sock")
    }

    pub(super) fn event_file(&self) -> PathBuf {
        self.directory.path().join("events.tsv")
    }

    /// The observer's settings, except for its sockets and files.
    pub(super) fn config(&self) -> Result<PathBuf, Failure> {
        let path = self.directory.path().join("varta.toml");
        let text = config(&self.program("demo-heal")?);
        // Whatever the umask: the observer rejects a file that every user may write to.
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io_failure("write the observer's settings"))?;
        Ok(path)
    }

    /// This program under another name.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf, Failure> {
        let link = self.directory.path().join(name);
        symlink(&self.program, &link).map_err(io_failure("create a link"))?;
        Ok(link)
    }

    /// This program as a process of that name.
    pub(super) fn command(&self, name: &str) -> Result<Command, Failure> {
        let mut command = Command::new(self.program(name)?);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        Ok(command)
    }
}

/// The steps for a silent agent in the demo, with the time that each has to help.
///
/// An agent that hangs is back after the first step each time; one that is stuck gets both. The waits are long enough
/// for a busy machine and short enough for the shortest demo. The demo must show the same on a host that is short of
/// memory or disk, so neither holds fire here. Two silent agents of six are no mass stall.
fn config(heal: &Path) -> String {
    format!(
        r#"threshold-ms = {threshold_ms}
default-recovery = "demo"
memory-pressure = "off"
io-pressure = "off"

[recovery.demo]
steps = [
    {{ run = [{heal}, "__heal", "{{pid}}"], timeout = "30s", wait = "700ms" }},
    {{ signal = "CONT", wait = "700ms" }},
]
window = "10s"
reset-after = "1s"
"#,
        threshold_ms = THRESHOLD.as_millis(),
        // TOML uses the same escapes as JSON.
        heal = serde_json::Value::from(heal.to_string_lossy())
    )
}

/// Settings are text, so the directory must be too.
fn base(wanted: PathBuf) -> PathBuf {
    let suits = |path: &Path| {
        path.to_str()
            .is_some_and(|text| text.len() <= BASE_MAX_BYTES)
    };
    if suits(&wanted) {
        wanted
    } else {
        PathBuf::from("/tmp")
    }
}

/// The processes of the agents. Dropping it ends them.
#[derive(Default)]
pub(super) struct Agents {
    running: Vec<(Child, Option<ChildStdin>)>,
}

impl Agents {
    /// Starts an agent; returns its process id.
    pub(super) fn start(
        &mut self,
        place: &Workplace,
        role: Role,
        seconds: u64,
    ) -> Result<u32, Failure> {
        let mut child = place
            .command(role.name())?
            .arg("__agent")
            .arg(role.name())
            .arg(place.socket())
            .arg(seconds.to_string())
            .stdin(Stdio::piped())
            .spawn()
            .map_err(io_failure("start an agent"))?;
        let pid = child.id();
        let stdin = child.stdin.take();
        self.running.push((child, stdin));
        Ok(pid)
    }

    /// Requests all of them to leave, the stopped ones too. They stay unreaped, so that the observer can still query
    /// the kernel for their exit status.
    pub(super) fn dismiss(&mut self) {
        for (child, stdin) in &mut self.running {
            *stdin = None;
            let _ = kill_process(Pid::from_child(child), Signal::CONT);
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.dismiss();
        for (child, _) in &mut self.running {
            wait_or_kill(child, LEAVE_WAIT);
        }
    }
}

/// Waits for a process that was requested to end; kills it if it does not.
pub(super) fn wait_or_kill(child: &mut Child, timeout: Duration) {
    let until = Instant::now() + timeout;
    while let Ok(None) = child.try_wait() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_directory_that_a_socket_path_or_a_text_cannot_carry_is_not_used() {
        for suited in ["/var/tmp", "/home/me/my files"] {
            assert_eq!(base(suited.into()), PathBuf::from(suited));
        }
        let long = PathBuf::from("/x".repeat(40));
        let no_text = PathBuf::from(OsString::from_vec(b"/tmp/\xff".to_vec()));
        for unsuited in [long, no_text] {
            assert_eq!(base(unsuited), PathBuf::from("/tmp"));
        }
    }

    #[test]
    fn a_process_that_does_not_end_is_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        wait_or_kill(&mut child, Duration::ZERO);
        assert!(child.try_wait().unwrap().is_some());
    }
}
