//! Warns of rules that processes of any user could have applied to themselves. The rules are in force as they are
//! written: the operator may know the users.
//! A process chooses its own name. The program file does not prove which code its user has put into the process, and
//! a unit does not prove which user's processes run below it. Only `uid` identifies the user of the process.

use std::time::Duration;

use varta_core::policy::{AgentRule, Hooks, LadderChoice};
use varta_core::rules::{Selector, Transport};

use super::units;

/// The warnings about a rule while several users may join: the selectors, what any of these users could get, and the
/// fix. `threshold` is that of agents without a rule.
pub(super) fn warning(rule: &AgentRule, threshold: Duration) -> Option<String> {
    let selects_by = selects_by(&rule.selector);
    let gives = gives(rule, threshold);
    if selects_by.is_empty() || gives.is_empty() {
        return None;
    }
    Some(format!(
        "several users may join, and a process of any of them can match this rule: it selects by {} and by no uid. \
         Such a process could {}. Add uid = \"USER\" to the rule, or let one user join only (allow-uid)",
        selects_by.join(", "),
        gives.join(", or "),
    ))
}

/// The selectors that let processes of any user match; none if the rule names the user, or matches remote agents
/// only.
fn selects_by(selector: &Selector) -> Vec<&'static str> {
    let is_remote = !matches!(selector.origin, None | Some(Transport::Unix));
    if selector.uid.is_some() || is_remote || selector.source.is_some() {
        return Vec::new();
    }
    let given = [
        ("name", &selector.name),
        ("exe", &selector.exe),
        ("unit", &selector.unit),
        ("user-unit", &selector.user_unit),
    ];
    // Every process has a name, so a rule for any name trusts no name.
    let tells_apart =
        |key: &str, pattern: &String| key != "name" || pattern.chars().any(|char| char != '*');
    let given = given.into_iter().filter(|(key, pattern)| {
        let pattern = pattern.as_ref();
        pattern.is_some_and(|pattern| tells_apart(key, pattern))
    });
    given.map(|(key, _)| key).collect()
}

/// What a process gets from a rule that it would not have without it.
fn gives(rule: &AgentRule, threshold: Duration) -> Vec<String> {
    let Hooks {
        on_late,
        on_critical,
        on_exit,
        on_recovered,
        on_gave_up,
    } = &rule.hooks;
    let hooks = [on_late, on_critical, on_exit, on_recovered, on_gave_up];
    let shorter = rule.threshold.filter(|own| *own < threshold);
    let mut gives = Vec::new();
    if matches!(rule.ladder, LadderChoice::Named(_)) {
        gives.push("have its recovery run".to_owned());
    }
    if hooks.iter().any(|steps| !steps.is_empty()) {
        gives.push("have its hooks run".to_owned());
    }
    if rule.expectation.is_some() {
        gives.push("stand in for an agent that is expected and missing".to_owned());
    }
    if let Some(own) = shorter {
        gives.push(format!("be watched as closely as {}", units::shown(own)));
    }
    gives
}

#[cfg(test)]
mod tests {
    use crate::config::tests::parse;

    const SEVERAL: &[&str] = &["--allow-uid=0", "--allow-uid=1000"];

    fn warnings(rule: &str, who: &[&str]) -> Vec<String> {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let ladder = "recovery.kill.steps = [{ signal = \"KILL\" }]";
        write!(file, "{ladder}\n[[agent]]\n{rule}\n").unwrap();
        let path = file.path().to_str().unwrap();
        let flags = ["--socket=/s", "--threshold-ms=2000", "--config", path];
        parse(&[&flags, who].concat()).unwrap().warnings
    }

    fn is_warned_of(rule: &str) -> bool {
        let found = warnings(rule, SEVERAL);
        assert!(found.len() < 2, "{found:?}");
        !found.is_empty()
    }

    #[test]
    fn a_rule_that_gives_something_to_who_only_says_its_name_is_warned_of() {
        for selector in [
            "name = \"a\"",
            "exe = \"/bin/a\"",
            "unit = \"a.service\"",
            "user-unit = \"a.service\"",
            "name = \"a\"\norigin = \"unix\"\ncgroup = \"/system.slice/*\"\nnamespace = \"own\"",
        ] {
            for given in [
                "recovery = \"kill\"",
                "recovery = [{ signal = \"TERM\" }]",
                "threshold = \"1999ms\"",
                "first-beat-within = \"1m\"",
                "first-beat-within = \"1m\"\nexpect = 2",
                "on-late = [{ signal = \"TERM\" }]\nlate = \"1s\"",
                "on-critical = [{ signal = \"TERM\" }]",
                "on-exit = [{ run = [\"/bin/sh\"] }]",
                "on-recovered = [{ signal = \"TERM\" }]",
                "on-gave-up = [{ signal = \"TERM\" }]",
            ] {
                assert!(
                    is_warned_of(&format!("{selector}\n{given}")),
                    "{selector} {given}"
                );
                assert!(
                    !is_warned_of(&format!("{selector}\nuid = 1000\n{given}")),
                    "{selector} {given}"
                );
            }
            for given in [
                "",
                "recovery = \"none\"",
                "threshold = \"2s\"",
                "as = \"b\"",
                "late = \"1s\"",
            ] {
                assert!(
                    !is_warned_of(&format!("{selector}\n{given}")),
                    "{selector} {given}"
                );
            }
        }
    }

    #[test]
    fn a_rule_for_everybody_or_for_other_hosts_is_not() {
        for selector in [
            "",
            "cgroup = \"/system.slice/*\"",
            "name = \"*\"",
            "name = \"a\"\norigin = \"udp\"",
            "name = \"a\"\nsource = \"192.0.2.*\"",
        ] {
            assert!(
                !is_warned_of(&format!("{selector}\nrecovery = \"kill\"")),
                "{selector}"
            );
        }
    }

    #[test]
    fn where_one_user_may_join_there_is_nothing_to_warn_of() {
        let rule = "name = \"a\"\nrecovery = \"kill\"";
        for who in [
            &["--allow-uid=0"][..],
            &["--allow-uid=33", "--allow-uid=33"],
        ] {
            assert_eq!(warnings(rule, who), [""; 0]);
        }
        for who in [&["--allow-gid=0"][..], &["--allow-uid=0", "--allow-gid=33"]] {
            assert_eq!(warnings(rule, who).len(), 1, "{who:?}");
        }
    }

    #[test]
    fn a_warning_says_where_what_for_whom_and_how_to_mend_it() {
        let rule = "name = \"a\"\nexe = \"/b\"\nrecovery = \"kill\"\nthreshold = \"500ms\"";
        let [warning] = &warnings(rule, SEVERAL)[..] else {
            panic!("one rule");
        };
        assert!(
            warning.contains(":2:1: agent: several users may join"),
            "{warning}"
        );
        for words in [
            "it selects by name, exe and by no uid",
            "have its recovery run, or be watched as closely as 500ms",
            "Add uid = \"USER\"",
        ] {
            assert!(warning.contains(words), "{warning}");
        }
    }
}
