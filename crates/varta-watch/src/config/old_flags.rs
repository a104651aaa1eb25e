//! Flags of 0.2.0 that are not settings any more: some are taken and do nothing, some are answered with what
//! to use instead. None of them is in any help.

use clap::Arg;
use clap::builder::ArgAction;

const ONE_THREAD: &str =
    "it described how 0.2.0 shared one thread, which this generation does not do";
const RATE: &str = "answers are limited in their number by themselves";

/// Flags of 0.2.0 that described its insides: taken with any value, without effect; and why.
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
        "Linux bounds the queue by net.unix.max_dgram_qlen instead",
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

/// Flags that 0.2.0 had removed already, and what to use instead.
pub(super) const REMOVED: &[(&str, &str)] = &[
    (
        "recovery-cmd",
        "no shell runs recovery commands; use --recovery-exec",
    ),
    (
        "recovery-cmd-file",
        "no shell runs recovery commands; use --recovery-exec-file",
    ),
    (
        "i-accept-shell-risk",
        "no shell runs recovery commands; use --recovery-exec and leave this out",
    ),
    ("key-env", "keys are read from files only; use --key-file"),
    (
        "accepted-key-env",
        "keys are read from files only; use --accepted-key-file",
    ),
    (
        "master-key-env",
        "keys are read from files only; use --master-key-file",
    ),
];

/// All of them, for the command line.
pub(super) fn all() -> impl Iterator<Item = Arg> {
    let old = |name: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("VALUE")
            .hide(true)
            .action(ArgAction::Append)
            // No value begins with dashes: what does is the next flag, which must not be lost.
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
        .map(move |(name, _)| old(name).num_args(0..=1).default_missing_value(""));
    ignored.chain(removed)
}

fn takes_no_value(ignored: &str) -> bool {
    matches!(
        ignored,
        "i-accept-secure-udp-non-loopback" | "recovery-capture-stdio"
    )
}

/// The removed flag that fits, and what to use instead.
pub(super) fn removed(is: impl Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
    REMOVED.iter().find(|(key, _)| is(key)).copied()
}

/// The flag without effect that fits, and why.
pub(super) fn ignored(is: impl Fn(&str) -> bool) -> Option<(&'static str, &'static str)> {
    IGNORED.iter().find(|(key, _)| is(key)).copied()
}
