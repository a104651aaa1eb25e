//! `varta pause` and `varta resume`: an agent is not judged for a while, and judged again.
//!
//! Agents are selected as by `varta status --agent`, and each request names an agent by its id, so an agent that
//! joins meanwhile is not paused by mistake. The observer ends a pause by itself. Exit code 0: done; 1: no agent
//! matches; 2: unknown, or not all of it was done.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use varta_api::printable;
use varta_api::v1::{AgentView, PAUSE_SECONDS_MAX, PauseRequest, REASON_CHARS_MAX, State};

use crate::ask::{Observer, ObserverArguments, RequestError};
use crate::pattern::Pattern;
use crate::terminal::is_read;
use crate::units::duration;

const NOBODY: u8 = 1;
const NOT_DONE: u8 = 2;

/// Leave an agent in peace for a while: no stall, no recovery
///
/// Its silence is not counted until the pause is over; after that it has its full threshold. Exit code 0 if
/// it is done, 1 if no agent is meant, 2 if it cannot be done: no observer, no answer within 3 s.
#[derive(Debug, Args)]
pub(crate) struct PauseArguments {
    /// Agents with this pid, id or name; * stands for anything
    #[arg(value_name = "AGENT", value_parser = Pattern::parse)]
    agent: Pattern,

    /// How long, 30days at most; the pause ends by itself
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Duration,

    /// Why: shown in the log and by 'varta status'
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,

    /// Print one JSON object: {"agents": [...]}
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    observer: ObserverArguments,
}

/// Watch a paused agent again
///
/// It has its full threshold from now on. Exit code 0 if it is done, 1 if no agent is meant, 2 if it cannot
/// be done: no observer, no answer within 3 s.
#[derive(Debug, Args)]
pub(crate) struct ResumeArguments {
    /// Agents with this pid, id or name; * stands for anything
    #[arg(value_name = "AGENT", value_parser = Pattern::parse)]
    agent: Pattern,

    /// Print one JSON object: {"agents": [...]}
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    observer: ObserverArguments,
}

fn time(text: &str) -> Result<Duration, &'static str> {
    match humantime::parse_duration(text) {
        Err(_) => Err("not a time; write a number and a unit, such as 30s, 10m or 2h"),
        Ok(time) if time.is_zero() => Err("no time at all; 'varta resume' ends a pause"),
        Ok(time) if time.as_secs_f64() > PAUSE_SECONDS_MAX => Err("too long; 30days is the most"),
        Ok(time) => Ok(time),
    }
}

fn reason(text: &str) -> Result<String, String> {
    match text.chars().count() > REASON_CHARS_MAX || text.chars().any(char::is_control) {
        true => Err(format!(
            "write up to {REASON_CHARS_MAX} characters in one line"
        )),
        false => Ok(text.to_owned()),
    }
}

/// The results.
#[derive(Debug, Default, Serialize)]
struct Done {
    /// The agents in their new state.
    agents: Vec<AgentView>,
    #[serde(skip)]
    lines: Vec<String>,
}

pub(crate) fn pause(arguments: &PauseArguments) -> ExitCode {
    let request = PauseRequest {
        seconds: arguments.time.as_secs_f64(),
        reason: arguments.reason.clone(),
    };
    let pause = |observer: &Observer, agent: &AgentView| {
        let paused = observer.pause(&agent.id, &request)?;
        Ok(paused.map(|paused| {
            let time = duration(request.seconds);
            (format!("paused {} for {time}", who(&paused)), paused)
        }))
    };
    change(&arguments.observer, &arguments.agent, arguments.json, pause)
}

pub(crate) fn resume(arguments: &ResumeArguments) -> ExitCode {
    let resume = |observer: &Observer, agent: &AgentView| {
        if agent.state != State::Paused {
            let line = format!("{} is not paused", who(agent));
            return Ok(Some((line, agent.clone())));
        }
        let resumed = observer.resume(&agent.id)?;
        Ok(resumed.map(|resumed| (format!("resumed {}", who(&resumed)), resumed)))
    };
    change(
        &arguments.observer,
        &arguments.agent,
        arguments.json,
        resume,
    )
}

/// Changes every matching agent, and reports the results, also if it fails part of the way.
fn change(
    observer: &ObserverArguments,
    pattern: &Pattern,
    json: bool,
    one: impl Fn(&Observer, &AgentView) -> Result<Option<(String, AgentView)>, RequestError>,
) -> ExitCode {
    let observer = match Observer::find(observer) {
        Ok(observer) => observer,
        Err(failure) => return refused(&failure, NOT_DONE),
    };
    let mut meant = match observer.agents() {
        Ok(agents) => agents,
        Err(why) => return refused(&why, NOT_DONE),
    };
    meant.retain(|agent| pattern.matches(agent));
    let mut done = Done::default();
    let mut failure = None;
    for agent in &meant {
        match one(&observer, agent) {
            Ok(Some((line, agent))) => {
                done.lines.push(line);
                done.agents.push(agent);
            }
            // It has left by itself.
            Ok(None) => {}
            Err(why) => {
                failure = Some(why);
                break;
            }
        }
    }
    if let Err(failure) = is_read(done.print(json)) {
        return refused(&failure, NOT_DONE);
    }
    match failure {
        Some(why) => refused(&why, NOT_DONE),
        None if done.agents.is_empty() => {
            let pattern = printable(pattern.as_str());
            let why = format!(
                "no agent has the pid, id or name '{pattern}'; 'varta status' shows those there are"
            );
            refused(&why, NOBODY)
        }
        None => ExitCode::SUCCESS,
    }
}

fn refused(why: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("varta: {why}");
    ExitCode::from(code)
}

impl Done {
    fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            // No map in it has keys that are not text.
            return writeln!(out, "{}", serde_json::to_string(self).unwrap_or_default());
        }
        self.lines
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    }
}

fn who(agent: &AgentView) -> String {
    match (&agent.name, &agent.source) {
        (_, Some(source)) => printable(&format!("pid {} of {source}", agent.pid)),
        (Some(name), None) => printable(&format!("{name} ({})", agent.pid)),
        (None, None) => format!("pid {}", agent.pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_time_with_a_unit_up_to_30_days() {
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(time("30days"), Ok(Duration::from_secs(30 * 86_400)));
        for text in ["", "10", "0s", "-1s", "30days 1s", "for ever"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(
            reason("deploy of Monday"),
            Ok("deploy of Monday".to_owned())
        );
        assert!(reason("a\nb").is_err());
        assert!(reason(&"x".repeat(REASON_CHARS_MAX + 1)).is_err());
    }
}
