//! Rules for agents and named ladders: the parts of the configuration file that have no flag.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;
use varta_core::policy::{AgentRule, Expectation, Hooks, Ladder, LadderChoice, Step};
use varta_core::rules::{Namespace, Selector, Transport};

use super::file::{Document, Parsed};
use super::problems::{Problems, did_you_mean};
use super::recovery_flags;
use super::section::{Section, glob, kind, label, text, user};
use super::steps::{self, StepDefaults};
use super::units::{self, quoted};
use super::unvouched;

/// The word for no ladder.
pub(super) const NONE: &str = "none";

/// The name of the ladder of `--recovery-exec`.
pub(super) const RECOVERY_EXEC: &str = "recovery-exec";

const NAME_BYTES_MAX: usize = 64;

const NAMESPACES: &[(&str, Namespace)] = &[("own", Namespace::Own), ("other", Namespace::Other)];

const TRANSPORTS: &[(&str, Transport)] = &[
    ("unix", Transport::Unix),
    ("udp", Transport::Udp),
    ("secure-udp", Transport::SecureUdp),
];

/// Keys of an `[[agent]]` block, with their descriptions.
pub(super) const AGENT_KEYS: &[(&str, &str)] = &[
    ("name", "glob over the agent's name"),
    (
        "exe",
        "glob over the path of its program file, if that file is at that path for the observer, too",
    ),
    (
        "cgroup",
        "glob over its path in the control group hierarchy",
    ),
    ("unit", "glob over its unit of the system's service manager"),
    (
        "user-unit",
        "glob over its unit of its own user's service manager",
    ),
    ("uid", "its user, by name or number"),
    (
        "namespace",
        "where its process lives: \"own\" or \"other\" (containers)",
    ),
    (
        "origin",
        "how it speaks: \"unix\", \"udp\" or \"secure-udp\"",
    ),
    ("source", "glob over the address of a remote agent"),
    ("as", "what it is called instead of its own name"),
    (
        "threshold",
        "silence that makes it stalled, such as \"2s\"; 10ms to 24h",
    ),
    (
        "late",
        "silence that makes it late, shorter than the threshold",
    ),
    (
        "first-beat-within",
        "time from the start within which it must have been heard",
    ),
    (
        "expect",
        "how many such agents must have been heard by then; 1 unless given",
    ),
    (
        "network-grace",
        "what a remote agent gets on top of the threshold",
    ),
    (
        "max-beat-rate",
        "beats per second taken from it; 0 for no limit",
    ),
    (
        "recovery",
        "its ladder: a name, \"none\", or an array of steps",
    ),
    ("on-late", "steps for when it is late"),
    ("on-critical", "steps for when it says that it is critical"),
    (
        "on-exit",
        "steps for when its process died; not if it left in order. A signal has no target then",
    ),
    (
        "on-recovered",
        "steps for when it is heard again after a stall",
    ),
    (
        "on-gave-up",
        "steps for when its ladder is at its end and it is still silent",
    ),
];

/// Keys of a `[recovery.NAME]` table, with their descriptions.
pub(super) const LADDER_KEYS: &[(&str, &str)] = &[
    (
        "steps",
        "what to do, one after the other; at least one run or signal",
    ),
    (
        "debounce",
        "least time from an action to the first one of the next silence, and between two tries of the last \
         step; else recovery-debounce-ms",
    ),
    (
        "budget",
        "most actions within the window, 1 to 32; else recovery-budget",
    ),
    (
        "window",
        "the time that the budget is for; else recovery-window",
    ),
    (
        "backoff",
        "first pause after a failed action; else recovery-backoff",
    ),
    (
        "backoff-max",
        "longest pause after a failed action; else recovery-backoff-max",
    ),
    (
        "reset-after",
        "well for this long means a clean slate; else recovery-reset-after",
    ),
];

/// The defaults of rules and ladders.
pub(super) struct Defaults {
    /// Without name and steps.
    pub(super) ladder: Ladder,
    pub(super) steps: StepDefaults,
    pub(super) threshold: Duration,
    pub(super) late: Option<Duration>,
    /// Processes of more than one user may be agents.
    pub(super) several_may_join: bool,
}

/// The rules and ladders of the file.
#[derive(Default)]
pub(super) struct Written {
    pub(super) ladders: Vec<Ladder>,
    pub(super) rules: Vec<AgentRule>,
    /// The ladder of each name; `None` if there are mistakes in it.
    pub(super) names: BTreeMap<String, Option<usize>>,
}

/// Reads them, and reports every problem.
pub(super) fn read(file: &Parsed<'_>, defaults: &Defaults, problems: &mut Problems) -> Written {
    let root = file.root.get_ref();
    let mut reader = Reader {
        document: file.document,
        defaults,
        problems,
        written: Written::default(),
        matches_all: None,
        users: BTreeMap::new(),
    };
    for (key, value) in root {
        if key.get_ref() == "recovery" {
            reader.ladders(value);
        }
    }
    for (key, value) in root {
        if key.get_ref() == "agent" {
            reader.rules(value);
        }
    }
    reader.written
}

struct Reader<'a> {
    document: &'a Document,
    defaults: &'a Defaults,
    problems: &'a mut Problems,
    written: Written,
    /// The line of the first rule that every agent matches.
    matches_all: Option<String>,
    /// The users that were looked up so far. A lookup takes time, on some hosts that of a server.
    users: BTreeMap<String, u32>,
}

fn names(keys: &[(&'static str, &str)]) -> Vec<&'static str> {
    keys.iter().map(|(name, _)| *name).collect()
}

impl<'a> Reader<'a> {
    fn wrong(&mut self, at: &Spanned<DeValue<'_>>, key: &str, text: String) {
        self.problems
            .add(self.document.origin(&at.span()), key, text);
    }

    fn section<'v>(&self, name: &str, value: &'v Spanned<DeValue<'v>>) -> Option<Section<'v>>
    where
        'a: 'v,
    {
        let DeValue::Table(table) = value.get_ref() else {
            return None;
        };
        Some(Section {
            name: name.to_owned(),
            table,
            document: self.document,
            span: value.span(),
        })
    }

    fn ladders(&mut self, value: &Spanned<DeValue<'_>>) {
        let DeValue::Table(tables) = value.get_ref() else {
            self.wrong(
                value,
                "recovery",
                "write a table [recovery.NAME] for each ladder".to_owned(),
            );
            return;
        };
        for (name, value) in tables {
            let name = name.get_ref().as_ref();
            let path = match name.len() <= NAME_BYTES_MAX {
                true => format!("recovery.{name}"),
                // It precedes all problems of its content.
                false => "recovery".to_owned(),
            };
            let Some(section) = self.section(&path, value) else {
                let text = format!("a table is wanted here, not {}", kind(value.get_ref()));
                let known = names(LADDER_KEYS);
                let hint = match known.contains(&name) {
                    true => "; ladders have names, write [recovery.NAME]",
                    false => "",
                };
                self.wrong(value, &path, format!("{text}{hint}"));
                continue;
            };
            if let Err(text) = ladder_name(name) {
                self.wrong(value, &path, text);
            }
            section.allow_only(&names(LADDER_KEYS), self.problems);
            let ladder = self.ladder(name, &section);
            let index = ladder.is_some().then_some(self.written.ladders.len());
            self.written.ladders.extend(ladder);
            self.written.names.insert(name.to_owned(), index);
        }
    }

    fn ladder(&mut self, name: &str, section: &Section<'_>) -> Option<Ladder> {
        let problems = &mut *self.problems;
        let before = problems.len();
        let template = &self.defaults.ladder;
        let steps = steps::read(section, "steps", &self.defaults.steps, problems);
        if !section.has("steps") {
            let text =
                "a ladder without steps does nothing; write steps = [{ run = [\"program\"] }]";
            section.wrong("steps", text, problems);
        } else if problems.len() == before && !has_action(&steps) {
            let text = "nothing in it acts; write a step with run or signal";
            section.wrong("steps", text, problems);
        }
        let mut duration = |key, parse| section.duration(key, parse, problems);
        let debounce = duration("debounce", units::duration);
        let window = duration("window", units::some_time);
        let backoff = duration("backoff", units::some_time);
        let backoff_max = duration("backoff-max", units::some_time);
        let reset_after = duration("reset-after", units::some_time);
        let budget = section.integer("budget", 1..=recovery_flags::BUDGET_MAX, problems);
        self.check_backoff(section, backoff, backoff_max);
        let ladder = Ladder {
            name: name.to_owned(),
            steps,
            debounce: debounce.unwrap_or(template.debounce),
            budget: budget.unwrap_or(template.budget),
            window: window.unwrap_or(template.window),
            backoff: backoff.unwrap_or(template.backoff),
            backoff_max: backoff_max.unwrap_or(template.backoff_max),
            reset_after: reset_after.unwrap_or(template.reset_after),
        };
        (self.problems.len() == before).then_some(ladder)
    }

    /// The first pause must not be longer than the longest, whichever of the two comes from the settings.
    fn check_backoff(
        &mut self,
        section: &Section<'_>,
        backoff: Option<Duration>,
        backoff_max: Option<Duration>,
    ) {
        if section.means_nothing("backoff", backoff)
            || section.means_nothing("backoff-max", backoff_max)
        {
            return;
        }
        let template = &self.defaults.ladder;
        let first = backoff.unwrap_or(template.backoff);
        let longest = backoff_max.unwrap_or(template.backoff_max);
        // With both from the settings it was reported there.
        let key = ["backoff", "backoff-max"]
            .into_iter()
            .find(|key| section.has(key));
        if let Some(key) = key.filter(|_| first > longest) {
            let text = format!(
                "the first pause ({}) is longer than the longest ({}); write a shorter backoff",
                units::shown(first),
                units::shown(longest)
            );
            section.wrong(key, text, self.problems);
        }
    }

    fn rules(&mut self, value: &Spanned<DeValue<'_>>) {
        let DeValue::Array(blocks) = value.get_ref() else {
            let text = "write each rule as a block of its own that begins with [[agent]]";
            self.wrong(value, "agent", text.to_owned());
            return;
        };
        for (index, block) in blocks.iter().enumerate() {
            let Some(section) = self.section("agent", block) else {
                let text = format!(
                    "a block [[agent]] is wanted here, not {}",
                    kind(block.get_ref())
                );
                self.wrong(block, "agent", text);
                continue;
            };
            let before = self.problems.len();
            section.allow_only(&names(AGENT_KEYS), self.problems);
            let rule = self.rule(index, &section);
            // The selection of a rule with mistakes is unknown, as it is with lines that cannot be read or users that
            // were not looked up.
            let is_known = self.problems.len() == before
                && !self.problems.has_unreadable()
                && !self.problems.is_full();
            if let Some(place) = &self.matches_all {
                let text = format!(
                    "this rule is never reached: every agent matches the one at {place}; put that one last"
                );
                self.wrong(block, "agent", text);
            } else if is_known && rule.selector.matches_every_agent() {
                self.matches_all = Some(self.document.shown_place(&block.span()));
            }
            if is_known
                && self.defaults.several_may_join
                && let Some(text) = unvouched::warning(&rule, self.defaults.threshold)
            {
                let origin = self.document.origin(&block.span());
                self.problems.warn(origin, "agent", text);
            }
            self.written.rules.push(rule);
        }
    }

    fn rule(&mut self, index: usize, section: &Section<'_>) -> AgentRule {
        let problems = &mut *self.problems;
        let selector = selector(section, &mut self.users, problems);
        let threshold = section.duration("threshold", units::threshold, problems);
        let late = section.duration("late", units::some_time, problems);
        self.check_late(section, threshold, late);
        self.check_exit(section);
        let expectation = self.expectation(section);
        let problems = &mut *self.problems;
        let mut steps = |key| steps::read(section, key, &self.defaults.steps, problems);
        let hooks = Hooks {
            on_late: steps("on-late"),
            on_critical: steps("on-critical"),
            on_exit: steps("on-exit"),
            on_recovered: steps("on-recovered"),
            on_gave_up: steps("on-gave-up"),
        };
        AgentRule {
            selector,
            label: section.read("as", label, problems),
            threshold,
            late,
            network_grace: section
                .duration("network-grace", units::duration, problems)
                .unwrap_or_default(),
            expectation,
            max_beat_rate: section.integer("max-beat-rate", 0..=u32::MAX.into(), problems),
            ladder: self.choice(index, section),
            hooks,
        }
    }

    /// The late tier must come before the stall, whichever of the two comes from the settings.
    fn check_late(
        &mut self,
        section: &Section<'_>,
        threshold: Option<Duration>,
        late: Option<Duration>,
    ) {
        if section.means_nothing("threshold", threshold) || section.means_nothing("late", late) {
            return;
        }
        let (Some(late_here), threshold_here) = (
            late.or(self.defaults.late),
            threshold.unwrap_or(self.defaults.threshold),
        ) else {
            return;
        };
        if late_here < threshold_here {
            return;
        }
        let (late_shown, threshold_shown) = (units::shown(late_here), units::shown(threshold_here));
        match (section.has("late"), section.has("threshold")) {
            (true, _) => section.wrong(
                "late",
                format!("{late_shown} is not shorter than the threshold of {threshold_shown}"),
                self.problems,
            ),
            (false, true) => section.wrong(
                "threshold",
                format!(
                    "{threshold_shown} is not longer than the {late_shown} after which agents are late \
                     (late-ms); give late here too"
                ),
                self.problems,
            ),
            // It was reported for the settings.
            (false, false) => {}
        }
    }

    /// A process that has ended cannot be signalled.
    fn check_exit(&mut self, section: &Section<'_>) {
        let Some(DeValue::Array(steps)) = section.get("on-exit").map(Spanned::get_ref) else {
            return;
        };
        let tables = steps.iter().filter_map(|step| step.get_ref().as_table());
        for signal in tables.filter_map(|table| table.get("signal")) {
            let text =
                "the process has gone by then, so a signal reaches nobody; write a step with run";
            self.wrong(signal, "agent.on-exit.signal", text.to_owned());
        }
    }

    fn expectation(&mut self, section: &Section<'_>) -> Option<Expectation> {
        let agents = section.integer("expect", 1..=u32::MAX.into(), self.problems);
        let within = section.duration("first-beat-within", units::some_time, self.problems);
        if section.has("expect") && !section.has("first-beat-within") {
            let text = "it needs to be said until when: first-beat-within = \"1m\"";
            section.wrong("expect", text, self.problems);
        }
        Some(Expectation {
            agents: agents.unwrap_or(1),
            within: within?,
        })
    }

    fn choice(&mut self, index: usize, section: &Section<'_>) -> LadderChoice {
        let Some(value) = section.get("recovery") else {
            return LadderChoice::Default;
        };
        if let DeValue::Array(_) = value.get_ref() {
            return self.unnamed(index, section);
        }
        let name = match text(value.get_ref()) {
            Ok(NONE) => return LadderChoice::None,
            Ok(name) => name,
            Err(_) => {
                let text = format!(
                    "a ladder's name, \"none\" or an array of steps is wanted here, not {}",
                    kind(value.get_ref())
                );
                section.wrong("recovery", text, self.problems);
                return LadderChoice::None;
            }
        };
        match self.written.names.get(name) {
            Some(ladder) => ladder.map_or(LadderChoice::None, LadderChoice::Named),
            None => {
                let names = &self.written.names;
                let origin = self.document.origin(&value.span());
                let key = section.path("recovery");
                self.problems.add_with(origin, &key, || {
                    let form = "recovery = [{ run = [\"program\", \"argument\"] }]";
                    unknown_ladder(name, names, form)
                });
                LadderChoice::None
            }
        }
    }

    fn unnamed(&mut self, index: usize, section: &Section<'_>) -> LadderChoice {
        let before = self.problems.len();
        let steps = steps::read(section, "recovery", &self.defaults.steps, self.problems);
        let is_empty = matches!(section.get("recovery").map(Spanned::get_ref),
            Some(DeValue::Array(items)) if items.is_empty());
        if is_empty {
            let text = "there is no step in it; write \"none\" if nothing is to be done";
            section.wrong("recovery", text, self.problems);
        } else if self.problems.len() == before && !steps.is_empty() && !has_action(&steps) {
            let text = "nothing in it acts; write a step with run or signal";
            section.wrong("recovery", text, self.problems);
        }
        if steps.is_empty() || self.problems.len() > before {
            return LadderChoice::None;
        }
        self.written.ladders.push(Ladder {
            // No named ladder can have that name.
            name: format!("agent#{}", index + 1),
            steps,
            ..self.defaults.ladder.clone()
        });
        LadderChoice::Named(self.written.ladders.len() - 1)
    }
}

fn selector(
    section: &Section<'_>,
    users: &mut BTreeMap<String, u32>,
    problems: &mut Problems,
) -> Selector {
    Selector {
        name: section.read("name", glob, problems),
        exe: section.read("exe", glob, problems),
        cgroup: section.read("cgroup", glob, problems),
        unit: section.read("unit", glob, problems),
        user_unit: section.read("user-unit", glob, problems),
        uid: match problems.is_full() {
            true => None,
            false => section.read("uid", |value| user(value, users), problems),
        },
        namespace: section.choice("namespace", NAMESPACES, problems),
        origin: section.choice("origin", TRANSPORTS, problems),
        source: section.read("source", glob, problems),
    }
}

fn has_action(steps: &[Step]) -> bool {
    steps.iter().any(|step| !matches!(step, Step::Wait(_)))
}

/// Names appear in metrics and log lines.
fn ladder_name(name: &str) -> Result<(), String> {
    if [NONE, RECOVERY_EXEC].contains(&name) {
        return Err(format!(
            "{name} means something else already; choose another name"
        ));
    }
    let fits = |char: char| char.is_ascii_alphanumeric() || "-_".contains(char);
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(fits) {
        true => Ok(()),
        false => Err(format!(
            "a ladder's name is made of 1 to {NAME_BYTES_MAX} letters, digits, - and _"
        )),
    }
}

/// The problem of a name that no ladder has; `command` is the notation of a command at that position.
pub(super) fn unknown_ladder(
    name: &str,
    known: &BTreeMap<String, Option<usize>>,
    command: &str,
) -> String {
    let hint = did_you_mean(name, known.keys().map(String::as_str));
    let hint = match ladder_name(name) {
        _ if !hint.is_empty() => hint,
        Ok(()) => format!("; write a table [recovery.{name}], or \"none\""),
        Err(text) => format!("; {text}, and a command is written {command}"),
    };
    format!("there is no ladder {}{hint}", quoted(name))
}
