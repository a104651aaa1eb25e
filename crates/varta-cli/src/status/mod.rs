//! `varta status`: the state of the agents, as a table, as JSON and as an exit code.
//!
//! Shows the observer's answers over its control socket, the worst first; this command judges nothing. Exit code 0:
//! no agent is stalled, given up or missing, and no new agent was refused for want of space. 1: one is, or was. 2:
//! unknown, because there is no observer, it does not answer, it is not watching, or there is no such agent.

mod table;

use std::cmp::Ordering;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use varta_api::printable;
use varta_api::v1::{AgentView, Health, Info, NoRoom, State};

use crate::ask::{Observer, ObserverArguments, RequestError};
use crate::pattern::Pattern;
use crate::terminal::{self, Picture, cut, wrapped};
use crate::units::duration;
use crate::{Failure, signals};
use table::Layout;

/// The shortest time between two requests, in seconds, to limit the load on the observer.
const EVERY_MIN: f64 = 0.1;

/// The longest, in seconds: an hour.
const EVERY_MAX: f64 = 3600.0;

/// Show how everybody is: a table of the agents, and a health check
///
/// Asks the observer over its control socket. Exit code 0 if all is well, 1 if an agent is stalled,
/// recovery gave it up, one that a rule expects is missing, or a newcomer was refused within the
/// last minute for want of room, 2 if that cannot be told: no observer,
/// no answer within 3 s, an observer that is not watching, no agent that is meant.
#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Only agents with this pid, id or name; * stands for anything. The exit code is theirs,
    /// whoever else is missing
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    agent: Option<Pattern>,

    /// Look again every second, or every SECONDS, 0.1 to 3600, until Ctrl-C
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = every
    )]
    watch: Option<Duration>,

    /// Print one JSON object: {"info": ..., "health": ..., "agents": [...]}
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    observer: ObserverArguments,
}

fn every(text: &str) -> Result<Duration, &'static str> {
    match text.parse() {
        Ok(seconds) if (EVERY_MIN..=EVERY_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("say a number of seconds from 0.1 to 3600"),
    }
}

/// The answers of the observer.
#[derive(Debug, Serialize)]
struct Report {
    info: Info,
    health: Health,
    agents: Vec<AgentView>,
}

/// The result of a report.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// No selected agent is stalled, given up or missing.
    Well,
    /// A selected agent is.
    Trouble,
    /// Why it is unknown.
    Unknown(String),
}

impl Verdict {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Trouble => 1,
            Self::Unknown(_) => 2,
        }
    }
}

/// On any error the state is unknown.
pub(crate) fn run(arguments: &StatusArguments) -> ExitCode {
    let verdict = judge(arguments).unwrap_or_else(|failure| {
        let verdict = Verdict::Unknown(failure.to_string());
        explain(&verdict);
        verdict
    });
    ExitCode::from(verdict.exit_code())
}

fn explain(verdict: &Verdict) {
    if let Verdict::Unknown(why) = verdict {
        eprintln!("varta: {why}");
    }
}

fn judge(arguments: &StatusArguments) -> Result<Verdict, Failure> {
    let observer = Observer::find(&arguments.observer)?;
    match arguments.watch {
        None => print_once(&observer, arguments).map(|(verdict, _)| verdict),
        Some(every) => watch(&observer, arguments, every),
    }
}

/// Sends the requests once, and prints what is known and why the rest is not. `true` if the output is still read.
fn print_once(
    observer: &Observer,
    arguments: &StatusArguments,
) -> Result<(Verdict, bool), Failure> {
    let pattern = arguments.agent.as_ref();
    let mut is_read = true;
    let verdict = match Report::request(observer, pattern) {
        Ok(report) if arguments.json => {
            is_read = print(&report.json())?;
            report.verdict(pattern)
        }
        Ok(report) => {
            let layout = Layout {
                width: terminal::size().map(|(columns, _)| columns),
                colours: terminal::has_colours(),
            };
            is_read = print(&report.lines(pattern, layout).join("\n"))?;
            report.verdict(pattern)
        }
        Err(why) => Verdict::Unknown(why.to_string()),
    };
    explain(&verdict);
    Ok((verdict, is_read))
}

/// Repeats the requests until a signal comes; the verdict is the last one.
fn watch(
    observer: &Observer,
    arguments: &StatusArguments,
    every: Duration,
) -> Result<Verdict, Failure> {
    let (stop, stopped) = channel();
    let ends = [signals::INTERRUPT, signals::TERMINATE, signals::HANGUP];
    signals::on(&ends, move |name| {
        let _ = stop.send(name);
    })
    .map_err(|error| Failure::Run(format!("cannot wait for signals: {error}")))?;
    if arguments.json || !terminal::can_be_drawn_on() {
        return watch_in_lines(observer, arguments, every, &stopped);
    }
    let verdict = watch_in_picture(observer, arguments, every, &stopped)
        .map_err(|error| Failure::Run(format!("cannot draw on the terminal: {error}")))?;
    // The picture was removed, and this line with it.
    explain(&verdict);
    Ok(verdict)
}

fn watch_in_lines(
    observer: &Observer,
    arguments: &StatusArguments,
    every: Duration,
    stopped: &Receiver<&'static str>,
) -> Result<Verdict, Failure> {
    loop {
        let (verdict, is_read) = print_once(observer, arguments)?;
        if !is_read || is_stopped(stopped, every) {
            return Ok(verdict);
        }
        if !arguments.json && !print("")? {
            return Ok(verdict);
        }
    }
}

fn watch_in_picture(
    observer: &Observer,
    arguments: &StatusArguments,
    every: Duration,
    stopped: &Receiver<&'static str>,
) -> io::Result<Verdict> {
    let pattern = arguments.agent.as_ref();
    let mut picture = Picture::open()?;
    loop {
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        let width = columns - 1;
        let layout = Layout {
            width: Some(width),
            colours: terminal::has_colours(),
        };
        let (verdict, report) = match Report::request(observer, pattern) {
            Ok(report) => (report.verdict(pattern), report.lines(pattern, layout)),
            Err(why) => (Verdict::Unknown(why.to_string()), Vec::new()),
        };
        let mut lines = match &verdict {
            Verdict::Unknown(why) => wrapped(&format!("varta: {why}"), width),
            Verdict::Well | Verdict::Trouble => Vec::new(),
        };
        lines.extend(report);
        picture.draw(&shortened(lines, rows, width))?;
        if is_stopped(stopped, every) {
            return Ok(verdict);
        }
    }
}

/// As many lines as there are rows; the last one shows the number of omitted lines.
fn shortened(mut lines: Vec<String>, rows: usize, columns: usize) -> Vec<String> {
    if lines.len() > rows {
        let more = lines.len() - rows + 1;
        lines.truncate(rows - 1);
        lines.push(cut(&format!("... and {more} more"), columns));
    }
    lines
}

/// Waits for the next round. `true` if there is none.
fn is_stopped(stopped: &Receiver<&'static str>, every: Duration) -> bool {
    !matches!(stopped.recv_timeout(every), Err(RecvTimeoutError::Timeout))
}

impl Report {
    /// Requests everything, and keeps the selected agents, the worst first.
    fn request(observer: &Observer, pattern: Option<&Pattern>) -> Result<Self, RequestError> {
        let info = observer.info()?;
        let health = observer.health()?;
        let mut agents = observer.agents()?;
        agents.retain(|agent| pattern.is_none_or(|pattern| pattern.matches(agent)));
        agents.sort_by(worst_first);
        Ok(Self {
            info,
            health,
            agents,
        })
    }

    fn verdict(&self, pattern: Option<&Pattern>) -> Verdict {
        if self.health.stopping {
            return Verdict::Unknown(format!("the observer (pid {}) is stopping", self.info.pid));
        }
        if !self.health.healthy && !self.health.problems.is_empty() {
            return Verdict::Unknown(format!(
                "the observer (pid {}) does not hear all beats, so what it says of agents is old: {}; see its log",
                self.info.pid,
                self.health.problems.join("; ")
            ));
        }
        if !self.health.healthy {
            return Verdict::Unknown(format!(
                "the observer (pid {}) has not taken beats for {}, so what it says of agents is old; is it \
                 starved? see its log, restart it",
                self.info.pid,
                duration(self.health.last_turn_age.max(self.health.turned_after))
            ));
        }
        if let Some(pattern) = pattern
            && self.agents.is_empty()
        {
            return Verdict::Unknown(format!(
                "no agent has the pid, id or name '{}'; 'varta status' shows those there are",
                printable(pattern.as_str())
            ));
        }
        let in_trouble = |agent: &AgentView| agent.state == State::Stalled || agent.gave_up;
        let is_unwatched = pattern.is_none() && !self.info.no_room.is_empty();
        match is_unwatched || self.missing(pattern) > 0 || self.agents.iter().any(in_trouble) {
            true => Verdict::Trouble,
            false => Verdict::Well,
        }
    }

    /// The number of expected agents that are missing. Only the rules know which ones, so a pattern selects none of
    /// them.
    fn missing(&self, pattern: Option<&Pattern>) -> usize {
        match pattern {
            None => self.info.missing,
            Some(_) => 0,
        }
    }

    fn json(&self) -> String {
        // No map in it has keys that are not text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Readable text: a summary, and the table if there is any agent to show.
    fn lines(&self, pattern: Option<&Pattern>, layout: Layout) -> Vec<String> {
        let queue = match self.info.queue_datagrams {
            0 => String::new(),
            datagrams => format!(", queue {datagrams}"),
        };
        let summary = format!(
            "varta-watch {}, up {}{queue}: {}",
            printable(&self.info.version),
            duration(self.info.uptime),
            self.state_counts(pattern)
        );
        let width = layout.width.unwrap_or(usize::MAX);
        let mut lines = wrapped(&summary, width);
        if let Some(shallow) = &self.info.queue_shallow {
            lines.extend(wrapped(&printable(shallow), width));
        }
        if !self.agents.is_empty() {
            lines.push(String::new());
            lines.extend(table::lines(&self.agents, layout));
        }
        lines
    }

    /// Whether a new agent would fit, as text. Which ones were refused is unknown, so a pattern selects none of them.
    fn room(&self, pattern: Option<&Pattern>) -> String {
        if pattern.is_some() {
            return String::new();
        }
        let no_room = &self.info.no_room;
        let full = match self.info.full && !no_room.iter().any(NoRoom::is_table) {
            true => "; the table is full".to_owned(),
            false => String::new(),
        };
        let no_room = no_room.iter().map(|no_room| format!("; {no_room}"));
        std::iter::once(full).chain(no_room).collect()
    }

    /// The number of agents, as text.
    fn state_counts(&self, pattern: Option<&Pattern>) -> String {
        let total = self.agents.len();
        let missing = match self.missing(pattern) {
            0 => String::new(),
            1 => "; 1 expected agent missing".to_owned(),
            missing => format!("; {missing} expected agents missing"),
        };
        let room = self.room(pattern);
        let who = match (total, pattern) {
            (0, None) if missing.is_empty() && room.is_empty() => {
                return "no agents; 'varta beat' sends beats".to_owned();
            }
            (0, None) => "no agents".to_owned(),
            (0, Some(_)) => return "no such agent".to_owned(),
            (1, _) => "1 agent".to_owned(),
            (_, _) => format!("{total} agents"),
        };
        let which = pattern.map_or(String::new(), |pattern| {
            format!(" of '{}'", printable(pattern.as_str()))
        });
        let count = |what: &str, is_so: &dyn Fn(&AgentView) -> bool| {
            let count = self.agents.iter().filter(|agent| is_so(agent)).count();
            match count {
                0 => String::new(),
                _ => format!(", {count} {what}"),
            }
        };
        let in_state = |state| count(word(state), &|agent| agent.state == state);
        let gave_up = count("given up", &|agent| agent.gave_up);
        let stalled = in_state(State::Stalled);
        let rest = [State::Late, State::Paused, State::Alive].map(in_state);
        format!(
            "{who}{which}{stalled}{gave_up}{}{missing}{room}",
            rest.concat()
        )
    }
}

/// A state within a sentence.
fn word(state: State) -> &'static str {
    match state {
        State::Stalled => "stalled",
        State::Late => "late",
        State::Paused => "paused",
        State::Alive => "alive",
    }
}

/// By state, then by the silence relative to the threshold. Agents that are well keep their order, so that a reader
/// can find one again.
fn worst_first(one: &AgentView, other: &AgentView) -> Ordering {
    let nearness = |agent: &AgentView| match agent.state {
        State::Stalled | State::Late => agent.silence / agent.threshold,
        State::Paused | State::Alive => 0.0,
    };
    let place = |agent: &AgentView| (agent.name.clone(), agent.pid);
    one.state
        .cmp(&other.state)
        .then_with(|| nearness(other).total_cmp(&nearness(one)))
        .then_with(|| place(one).cmp(&place(other)))
}

/// `true` if the output is still read.
fn print(text: &str) -> Result<bool, Failure> {
    terminal::is_read(writeln!(io::stdout(), "{text}"))
}

#[cfg(test)]
mod tests;
