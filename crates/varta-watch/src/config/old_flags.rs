//! Flags of 0.2.0 that are no settings any more: some are accepted without effect, some are rejected with the name of
//! their replacement. None of them appears in any help.

use clap::Arg;
use clap::builder::ArgAction;

const ONE_THREAD: &str =
    "it described how 0.2.0 shared one thread, which this generation does not do";
const RATE: &str = "answers are limited in their number by themselves";

/// Flags of 0.2.0 that described its internals: accepted with any value, without effect; and the reason.
pub(super) const IGNORED: &[(&str, &str)] = &[
    (
        "i-accept-secure-udp-non-loopback",
        "what it accepted is no danger any more",
    ),
    (
        "signal-handler-mode",
        "signals need no choice of a handler any more",
    ),
    ("read-timeout-ms", "the observer wakes up when it has to"),
    (
        "uds-rcvbuf-bytes",
        "Linux counts datagrams, not bytes: --queue-datagrams",
    ),
    ("audit-sync-interval-ms", ONE_THREAD),
    ("audit-fsync-budget-ms", ONE_THREAD),
    ("audit-rotation-budget-ms", ONE_THREAD),
    ("prom-rate-limit-per-sec", RATE),
    ("prom-rate-limit-burst", RATE),
    ("iteration-budget-ms", ONE_THREAD),
    ("scrape-budget-ms", ONE_THREAD),
    (
        "recovery-capture-stdio",
        "the output of recovery commands is always captured",
    ),
];

const NO_SHELL: &str = "no shell runs recovery commands";
const FILES_ONLY: &str = "keys are read from files only";

/// Flags that 0.2.0 had removed already, with the reason and the replacement.
pub(super) const REMOVED: &[(&str, &str, &str)] = &[
    ("recovery-cmd", NO_SHELL, "recovery-exec"),
    ("recovery-cmd-file", NO_SHELL, "recovery-exec-file"),
    ("i-accept-shell-risk", NO_SHELL, "recovery-exec"),
    ("key-env", FILES_ONLY, "key-file"),
    ("accepted-key-env", FILES_ONLY, "accepted-key-file"),
    ("master-key-env", FILES_ONLY, "master-key-file"),
];

/// All of them, for the command line.
pub(super) fn all() -> impl Iterator<Item = Arg> {
    let old = |name: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("VALUE")
            .hide(true)
            .action(ArgAction::Append)
            // No value starts with dashes: a word that does is the next flag, which must not be lost.
            .allow_negative_numbers(true)
    };
    let ignored = IGNORED
        .iter()
        .map(move |(name, _)| match takes_no_value(name) {
            true => old(name)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            false => old(name),
        });
    let removed = REMOVED
        .iter()
        .map(move |(name, ..)| old(name).num_args(0..=1).default_missing_value(""));
    ignored.chain(removed)
}

fn takes_no_value(ignored: &str) -> bool {
    matches!(
        ignored,
        "i-accept-secure-udp-non-loopback" | "recovery-capture-stdio"
    )
}

/// The message about a removed flag.
pub(super) fn removed(name: &str) -> Option<String> {
    let (_, why, successor) = REMOVED.iter().find(|(key, ..)| *key == name)?;
    Some(format!(
        "it does not exist any more: {why}; use --{successor}"
    ))
}

/// Why a flag has no effect.
pub(super) fn ignored(name: &str) -> Option<&'static str> {
    let (_, why) = IGNORED.iter().find(|(key, _)| *key == name)?;
    Some(why)
}
