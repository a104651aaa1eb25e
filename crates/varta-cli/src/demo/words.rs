//! The demo's texts: the observer's log, as short sentences that fit a terminal of 80 columns.

use std::time::Duration;

use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use varta_api::log_line::{Agent, Exit, How, Level, LogEvent, LogLine, Outcome, Recover};

use super::THRESHOLD;
use super::agent::Role;
use super::seen::{AgentRecord, Record, SIGABRT, State};

/// What a new user needs to know to understand the rest.
pub(super) fn title(length: Duration) -> Vec<Line<'static>> {
    let seconds = length.as_secs();
    let threshold = THRESHOLD.as_secs();
    vec![
        format!("varta demo: an observer and six agents, all real processes, for {seconds} s.")
            .bold()
            .into(),
        "Agents beat as long as they make progress. The observer notices who falls silent".into(),
        format!(
            "for {threshold} s and takes the steps of a ladder: first a command, then a signal, then it"
        )
        .into(),
        "gives up and says so. A crash it notices at once.".into(),
        Line::default(),
    ]
}

/// An event of the log as one line. `None` for events that the demo does not show.
pub(super) fn event(line: &LogLine, at: Duration) -> Option<Line<'static>> {
    let who = line.event.agent().map_or_else(String::new, name_of);
    let bad = Style::new().red().add_modifier(Modifier::BOLD);
    let good = Style::new().green();
    let act = Style::new().yellow();
    let quiet = Style::new().cyan();
    let first_line = || first_line(&line.msg);
    let (word, style, text) = match &line.event {
        LogEvent::Start(start) => (
            "start",
            quiet,
            format!("the observer listens (pid {})", start.pid),
        ),
        LogEvent::Join(join) => (
            "join",
            good,
            format!("{who}: first beat (pid {})", join.agent.pid),
        ),
        LogEvent::Stall(stall) => (
            "STALL",
            bad,
            format!(
                "{who}: silent for {} s, noticed {} after that",
                THRESHOLD.as_secs(),
                milliseconds(stall.lateness_ms)
            ),
        ),
        LogEvent::Return(returned) => (
            "return",
            good,
            format!(
                "{who}: beats again after {} of silence",
                seconds(returned.silence_ms)
            ),
        ),
        LogEvent::Exit(exit) if exit.how == How::Left => {
            ("left", quiet, format!("{who}: ended in order, no alarm"))
        }
        LogEvent::Exit(exit) => ("DIED", bad, format!("{who}: {}", death(exit))),
        LogEvent::Recover(recover) if recover.outcome == Outcome::Recovered => {
            ("recover", good, format!("{who}: recovered"))
        }
        LogEvent::Recover(recover) => {
            let text = step(&who, recover).unwrap_or_else(first_line);
            ("recover", act, text)
        }
        LogEvent::GaveUp(_) => (
            "GAVE UP",
            bad,
            format!("{who}: no step is left, a person must look at it"),
        ),
        LogEvent::Hold(_) => ("hold", bad, first_line()),
        LogEvent::Hook(_) => ("hook", act, first_line()),
        LogEvent::Missing(_) => ("missing", bad, first_line()),
        LogEvent::Stop(_) => ("stop", quiet, "the observer has stopped".to_owned()),
        LogEvent::Notice(_) if line.level == Level::Info => return None,
        LogEvent::Notice(_) | LogEvent::Unknown => ("notice", act, first_line()),
        LogEvent::Session(_) => ("session", act, first_line()),
        LogEvent::Critical(_) => ("CRIT", bad, format!("{who}: says that it is critical")),
        LogEvent::Pause(_) => ("pause", act, first_line()),
        LogEvent::Resume(_) => ("resume", act, first_line()),
        LogEvent::Late(_) => ("late", act, first_line()),
        LogEvent::Evict(_) => ("evict", act, first_line()),
        LogEvent::Refuse(_) => ("refuse", act, first_line()),
        LogEvent::Gap(_) => ("gap", act, first_line()),
    };
    Some(story_line(at, word, style, text))
}

/// A step of the demo's ladder; `None` for any other one.
fn step(who: &str, recover: &Recover) -> Option<String> {
    match (&recover.outcome, recover.child_pid) {
        (Outcome::Spawned, Some(child)) => Some(format!(
            "{who}: step 1, the command demo-heal (pid {child})"
        )),
        (Outcome::ReapedZero, _) => Some(format!(
            "{who}: demo-heal succeeded after {:.1} ms",
            recover.duration_ms.unwrap_or_default()
        )),
        (Outcome::Signalled, _) => Some(format!("{who}: still silent; step 2, the signal SIGCONT")),
        _ => None,
    }
}

/// The demo's own message: why all agents leave now.
pub(super) fn end(signal: Option<&str>, at: Duration) -> Line<'static> {
    let why = signal.unwrap_or("time is up");
    let text = format!("{why}: all agents are told to leave");
    story_line(at, "end", Style::new().bold(), text)
}

fn story_line(at: Duration, word: &str, style: Style, text: String) -> Line<'static> {
    Line::from(vec![
        format!("{:>6.2} s  ", at.as_secs_f64()).dim(),
        Span::styled(format!("{word:<9}"), style),
        text.into(),
    ])
}

fn name_of(agent: &Agent) -> String {
    let name = agent.name.clone();
    name.unwrap_or_else(|| format!("pid {}", agent.pid))
}

fn death(exit: &Exit) -> String {
    match (exit.signal, exit.code) {
        (Some(signal), _) => format!("killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("ended with code {code}"),
        (None, None) => "is gone, the kernel does not tell how".to_owned(),
    }
}

fn signal_name(signal: u8) -> String {
    match signal {
        SIGABRT => "signal 6 (SIGABRT)".to_owned(),
        signal => format!("signal {signal}"),
    }
}

fn seconds(ms: f64) -> String {
    format!("{:.3} s", ms / 1e3)
}

/// Two decimals up to 100 ms, none above.
fn milliseconds(ms: f64) -> String {
    if ms < 100.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The state of an agent, in one word, with its style.
pub(super) fn state(agent: &AgentRecord) -> Span<'static> {
    match (agent.state, agent.status.as_str()) {
        (State::Starting, _) => "starting".dim(),
        (State::Alive, "degraded") => "degraded".yellow(),
        (State::Alive, "critical") => "critical".light_red(),
        (State::Alive, _) => "alive".green(),
        (State::Stalled, _) => "STALLED".red().bold(),
        (State::GivenUp, _) => "GAVE UP".red().bold(),
        (State::Left(0), _) => "left".cyan(),
        (State::Left(_) | State::Killed(_), _) => "DIED".red().bold(),
        (State::Gone, _) => "gone".yellow(),
    }
}

/// The latest event of an agent, in 25 columns.
pub(super) fn latest(agent: &AgentRecord) -> String {
    match (agent.state, agent.returned_after_ms.as_slice()) {
        (State::Stalled, _) => "silent, to be recovered".to_owned(),
        (State::GivenUp, _) => "needs a person".to_owned(),
        (State::Left(0), _) => "ended in order".to_owned(),
        (State::Left(code), _) => format!("ended with code {code}"),
        (State::Killed(SIGABRT), _) => "killed by SIGABRT".to_owned(),
        (State::Killed(signal), _) => format!("killed by signal {signal}"),
        (State::Gone, _) => "ended, nobody knows how".to_owned(),
        (_, [silence_ms]) => format!("back after {}", seconds(*silence_ms)),
        (_, [.., silence_ms]) => format!(
            "back after {} ({}x)",
            seconds(*silence_ms),
            agent.returned_after_ms.len()
        ),
        (_, []) => agent.role.plan().to_owned(),
    }
}

/// The result of the demo.
pub(super) fn summary(seen: &Record, cpu_time: Option<Duration>) -> Vec<Line<'static>> {
    let heading = format!(
        "  {:<11}  {:>7}  {:<8}  {:>5}  WHAT HAPPENED",
        "AGENT", "PID", "STATE", "BEATS"
    );
    let mut lines = vec![Line::default(), Line::from(heading).dim()];
    for agent in &seen.agents {
        let state = state(agent);
        let gap = " ".repeat(8_usize.saturating_sub(state.width()));
        lines.push(Line::from(vec![
            format!("  {:<11}  {:>7}  ", agent.role.name(), agent.pid).into(),
            state,
            format!("{gap}  {:>5}  {}", agent.beats, story(agent)).into(),
        ]));
    }
    lines.push(Line::default());
    let mut fact = |name: &str, text: String| {
        lines.push(Line::from(vec![format!("  {name:<11}").dim(), text.into()]));
    };
    fact("stalls", stalls(seen));
    fact("recovery", recovery(seen));
    if let Some(names) = given_up(seen) {
        fact("gave up", names);
    }
    fact("observer", observer(seen, cpu_time));
    if seen.missing().is_empty() {
        lines.push(Line::default());
        lines.push("Everything that was promised was seen.".green().into());
        lines
            .push("Next: 'varta-watch', and 'varta beat --every 500ms' as its first agent.".into());
    }
    lines
}

/// All events of an agent, in 39 columns.
fn story(agent: &AgentRecord) -> String {
    let noticed = agent.end_noticed_after_ms;
    let noticed = noticed.map(|ms| format!(", noticed in {}", milliseconds(ms)));
    let noticed = noticed.unwrap_or_default();
    match agent.state {
        State::Starting => "was not heard of".to_owned(),
        State::Killed(_) | State::Left(1..) => format!("{}{noticed}", latest(agent)),
        _ if agent.given_up > 0 => "given up, no step had helped".to_owned(),
        _ if agent.role == Role::Leave => "ended in order, no alarm".to_owned(),
        _ => match (agent.lateness_ms.len(), agent.returned_after_ms.len()) {
            (0, _) => format!("never silent for {} s", THRESHOLD.as_secs()),
            (stalls, returns) if stalls > returns => {
                format!("stalled {}, came back {}", times(stalls), times(returns))
            }
            (stalls, _) => format!("stalled and came back {}", times(stalls)),
        },
    }
}

fn times(n: usize) -> String {
    match n {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        n => format!("{n} times"),
    }
}

fn stalls(seen: &Record) -> String {
    let lateness_ms: Vec<f64> = seen
        .agents
        .iter()
        .flat_map(|agent| agent.lateness_ms.iter().copied())
        .collect();
    if lateness_ms.is_empty() {
        return "none".to_owned();
    }
    format!(
        "{}, noticed {} after the deadline",
        lateness_ms.len(),
        list(&lateness_ms, milliseconds)
    )
}

fn recovery(seen: &Record) -> String {
    let succeeded = &seen.handled_ms();
    let mut text = match succeeded.len() {
        0 => "no command succeeded".to_owned(),
        1 => format!("1 command succeeded, in {}", list(succeeded, milliseconds)),
        n => format!(
            "{n} commands succeeded, in {}",
            list(succeeded, milliseconds)
        ),
    };
    if seen.commands_failed() > 0 {
        text.push_str(&format!("; {} failed", seen.commands_failed()));
    }
    text
}

fn given_up(seen: &Record) -> Option<String> {
    let given_up = seen.agents.iter().filter(|agent| agent.given_up > 0);
    let names: Vec<&str> = given_up.map(|agent| agent.role.name()).collect();
    (!names.is_empty()).then(|| format!("on {}", names.join(" and ")))
}

fn observer(seen: &Record, cpu_time: Option<Duration>) -> String {
    let mut text = format!("{} beats, each written to a file", seen.beats());
    if let Some(cpu_time) = cpu_time {
        text.push_str(&format!(", for {} ms of CPU time", cpu_time.as_millis()));
    }
    text
}

/// The first few values, as text.
fn list(values: &[f64], show: impl Fn(f64) -> String) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = values
        .iter()
        .take(SHOWN)
        .map(|value| show(*value))
        .collect();
    match shown.as_slice() {
        [all @ .., last] if !all.is_empty() && values.len() <= SHOWN => {
            format!("{} and {last}", all.join(", "))
        }
        _ if values.len() > SHOWN => format!("{}, ...", shown.join(", ")),
        _ => shown.join(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_listed_as_a_person_would() {
        let show = |value: f64| format!("{value:.0}");
        assert_eq!(list(&[], show), "");
        assert_eq!(list(&[1.0], show), "1");
        assert_eq!(list(&[1.0, 2.0], show), "1 and 2");
        assert_eq!(list(&[1.0, 2.0, 3.0], show), "1, 2 and 3");
        assert_eq!(list(&[1.0, 2.0, 3.0, 4.0], show), "1, 2, 3, ...");
    }

    #[test]
    fn what_happens_to_a_silent_agent_fits_80_columns() {
        let keys = r#""pid": 4194304, "name": "demo-stuck", "child_pid": 4194304, "nonce": 1, "payload": 1,
            "status": "ok", "silence_ms": 99999.9, "threshold_ms": 1000, "lateness_ms": 99.99,
            "duration_ms": 99.99, "reason": "steps_exhausted""#;
        for (kind, outcome) in [
            ("recover", "spawned"),
            ("recover", "reaped_zero"),
            ("recover", "signalled"),
            ("recover", "recovered"),
            ("stall", ""),
            ("return", ""),
            ("gave_up", "gave_up"),
        ] {
            let json = format!(
                r#"{{"ts_ns": 0, "session_id": "", "level": "warn", "msg": "", "event": "{kind}",
                "outcome": "{outcome}", {keys}}}"#
            );
            let line: LogLine = serde_json::from_str(&json).unwrap();
            assert_ne!(line.event, LogEvent::Unknown, "{json}");
            assert_eq!(
                line.event.agent().unwrap().name.as_deref(),
                Some(Role::Stuck.name())
            );
            let told = event(&line, Duration::from_secs(3600)).unwrap();
            assert!(told.width() <= 80, "{told}");
        }
    }

    #[test]
    fn the_title_fits_80_columns() {
        for line in title(Duration::from_secs(3600)) {
            assert!(line.width() <= 80, "{line}");
        }
    }
}
