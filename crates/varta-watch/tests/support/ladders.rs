//! Observers with a configuration file, and steps that leave marks by which they can be identified afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::LogLine;
use super::{Observer, PATIENCE, Stopped};

pub(crate) const SPAWNED: &str = "varta_recovery_outcomes_total{outcome=\"spawned\"}";
pub(crate) const REAPED_ZERO: &str = "varta_recovery_outcomes_total{outcome=\"reaped_zero\"}";
pub(crate) const GAVE_UP: &str = "varta_recovery_outcomes_total{outcome=\"gave_up\"}";
pub(crate) const HOOKS_DONE: &str = "varta_recovery_hooks_total{outcome=\"done\"}";
pub(crate) const HOOKS_FAILED: &str = "varta_recovery_hooks_total{outcome=\"failed\"}";
pub(crate) const HOOKS_DROPPED: &str = "varta_recovery_hooks_total{outcome=\"dropped\"}";
pub(crate) const HOOKS_WITHDRAWN: &str = "varta_recovery_hooks_total{outcome=\"withdrawn\"}";
pub(crate) const RECOVERED: &str = "varta_recovery_outcomes_total{outcome=\"recovered\"}";

/// No budget delays a step.
const QUICK: &str = "
recovery-debounce-ms = 10
recovery-backoff = \"10ms\"
recovery-backoff-max = \"20ms\"
";

/// How long a test waits for an event that must not happen.
pub(crate) const QUIET: Duration = Duration::from_millis(400);

/// The directory of the steps' marks, and of the gates that they wait at.
pub(crate) struct Marks {
    directory: TempDir,
}

impl Marks {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("marks")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("varta.toml")
    }

    /// A step that runs this in a shell, in the directory of the marks.
    pub(crate) fn shell(&self, script: &str, more: &str) -> String {
        let directory = self.directory.path().display();
        format!("{{ run = [\"/bin/sh\", \"-c\", \"cd {directory}; {script}\"]{more} }}")
    }

    /// A step that leaves a mark, succeeds, and waits very long for the agent unless `more` sets another time.
    pub(crate) fn mark(&self, word: &str, more: &str) -> String {
        let more = if more.is_empty() {
            ", wait = \"1h\""
        } else {
            more
        };
        self.shell(&format!("echo {word} >> marks"), more)
    }

    /// A step that leaves a mark and then waits until the gate is open.
    pub(crate) fn gated(&self, word: &str, then: &str) -> String {
        // Whatever happens to the test, no step waits when its directory is removed.
        let wait = "while test -e marks && ! test -e gate; do sleep 0.02; done";
        let script = format!("echo {word} >> marks; {wait}; {then}");
        self.shell(&script, ", wait = \"1h\"")
    }

    pub(crate) fn open_gate(&self) {
        fs::write(self.directory.path().join("gate"), "").unwrap();
    }

    /// All marks so far.
    pub(crate) fn read(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for this many marks.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let marks = self.read();
            if marks.len() >= count {
                return marks;
            }
            assert!(Instant::now() < until, "no {count} marks: {marks:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn configure(&self, text: &str) {
        // Complete at once: the observer must not read half a file.
        let fresh = self.directory.path().join("fresh.toml");
        fs::write(&fresh, format!("{QUICK}{text}")).unwrap();
        fs::rename(fresh, self.config()).unwrap();
    }

    /// An observer with this configuration.
    pub(crate) fn observer(&self, text: &str, flags: &[&str]) -> Observer {
        self.configure(text);
        let config = format!("--config={}", self.config().display());
        Observer::start(&[&[config.as_str()], flags].concat())
    }

    /// Gives a running observer another configuration; returns its log line about that.
    pub(crate) fn reload(&self, observer: &Observer, text: &str) -> LogLine {
        self.configure(text);
        observer.signal(Signal::HUP);
        observer.wait_for("notice", |line| line.msg.starts_with("SIGHUP"))
    }
}

/// A configuration with one ladder for every agent.
pub(crate) fn ladder(threshold_ms: u32, steps: &[String], more: &str) -> String {
    format!(
        "threshold-ms = {threshold_ms}\ndefault-recovery = \"it\"\n\
         [recovery.it]\n{more}\nsteps = [{}]\n",
        steps.join(", ")
    )
}

/// A rule with all hooks, each of which leaves its reason, and a ladder that does not help. The occasions come a
/// second apart, so that on a busy machine each has left its reason before the next one.
pub(crate) fn all_hooks(marks: &Marks) -> String {
    let hook = marks.shell("echo $VARTA_REASON >> marks", "");
    let hooks = ["late", "critical", "exit", "recovered", "gave-up"];
    let hooks = hooks.map(|occasion| format!("on-{occasion} = [{hook}]\n"));
    let step = marks.shell("echo $VARTA_REASON >> marks", ", wait = \"50ms\"");
    format!(
        "{}[[agent]]\nname = \"*\"\nlate = \"1s\"\n{}",
        ladder(2_000, &[step], ""),
        hooks.concat()
    )
}

pub(crate) fn has_outcome(wanted: &'static str) -> impl Fn(&LogLine) -> bool {
    move |line| line.text("outcome") == Some(wanted)
}

impl Observer {
    pub(crate) fn wait_for_outcome(&self, outcome: &'static str) -> LogLine {
        self.wait_for("recover", has_outcome(outcome))
    }

    /// The value of a series without labels, or with these, on the page of metrics.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let page = self.ask("/metrics").text();
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }
}

impl Stopped {
    /// The outcomes of the recoveries of one agent, in order.
    pub(crate) fn outcomes(&self, pid: u32) -> Vec<&str> {
        let lines = self.lines_of("recover", pid);
        let outcomes = lines.into_iter().filter_map(|line| line.text("outcome"));
        outcomes.collect()
    }
}

/// Whether a process exists, possibly as a zombie.
pub(crate) fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
