//! Agents as a table: a line each, as wide as the terminal at most.
//!
//! Where there is not enough room the longest heading gives way first, then names, then pauses, then what became of a
//! recovery, then addresses; what does not fit even so is cut off at the right. Columns for which nobody has a
//! value are not shown where they are seldom needed.

use ratatui::crossterm::style::{ContentStyle, Stylize};
use varta_watch::api::printable;
use varta_watch::api::v1::{AgentView, State};

use crate::terminal::{columns, cut};
use crate::units::{duration, rate};

/// Columns of the terminal between two cells.
const GAP: usize = 2;

/// A cell that gives way keeps so many columns: enough to tell names apart.
const CUT_COLUMNS_MIN: usize = 8;

/// What a table looks like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Columns of the terminal; `None` without a limit.
    pub(super) width: Option<usize>,
    pub(super) colours: bool,
}

struct Cell {
    text: String,
    style: ContentStyle,
}

/// A column of the table.
struct Column {
    heading: &'static str,
    side: Side,
    cell: fn(&AgentView) -> Cell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    /// For numbers: they are compared by their last digits.
    Right,
}

const NAME: &str = "NAME";
const SILENCE: &str = "SILENCE / THRESHOLD";
const RECOVERY: &str = "RECOVERY";
const SOURCE: &str = "SOURCE";
const PAUSED: &str = "PAUSED";

/// Who gives way, the first one first.
const GIVES_WAY: [&str; 5] = [SILENCE, NAME, PAUSED, RECOVERY, SOURCE];

const COLUMNS: [Column; 11] = [
    column("STATE", Side::Left, |agent| state(agent.state)),
    column(NAME, Side::Left, |agent| known(agent.name.as_deref())),
    column("PID", Side::Right, |agent| plain(agent.pid.to_string())),
    column("UID", Side::Right, |agent| {
        known(agent.uid.map(|uid| uid.to_string()).as_deref())
    }),
    column(SILENCE, Side::Right, |agent| {
        plain(format!(
            "{} / {}",
            duration(agent.silence),
            duration(agent.threshold)
        ))
    }),
    column("STATUS", Side::Left, status),
    column("PAYLOAD", Side::Right, |agent| {
        plain(agent.payload.to_string())
    }),
    column("BEATS/S", Side::Right, |agent| {
        plain(rate(agent.beats_per_second))
    }),
    column(RECOVERY, Side::Left, recovery),
    column(PAUSED, Side::Left, pause),
    column(SOURCE, Side::Left, |agent| known(agent.source.as_deref())),
];

const fn column(heading: &'static str, side: Side, cell: fn(&AgentView) -> Cell) -> Column {
    Column {
        heading,
        side,
        cell,
    }
}

/// The heading and a line for each agent.
pub(super) fn lines(agents: &[AgentView], look: Look) -> Vec<String> {
    let somebody_elsewhere = agents.iter().any(|agent| agent.source.is_some());
    let somebody_paused = agents.iter().any(|agent| agent.paused_for.is_some());
    let shown = |column: &&Column| match column.heading {
        SOURCE => somebody_elsewhere,
        PAUSED => somebody_paused,
        _ => true,
    };
    let shown: Vec<&Column> = COLUMNS.iter().filter(shown).collect();
    let heading = |column: &&Column| Cell {
        text: column.heading.to_owned(),
        style: ContentStyle::new().dim(),
    };
    let mut rows = vec![shown.iter().map(heading).collect::<Vec<Cell>>()];
    rows.extend(agents.iter().map(|agent| {
        let cells = shown.iter().map(|column| (column.cell)(agent));
        cells.collect()
    }));
    let widths = widths(&shown, &rows, look.width);
    rows.iter()
        .map(|row| line(row, &shown, &widths, look))
        .collect()
}

/// What each column needs, or less where that is too much altogether.
fn widths(shown: &[&Column], rows: &[Vec<Cell>], width_max: Option<usize>) -> Vec<usize> {
    let widest = |rows: &[Vec<Cell>], at: usize| {
        let widths = rows.iter().map(|row| columns(&row[at].text));
        widths.max().unwrap_or_default()
    };
    let mut widths: Vec<usize> = (0..shown.len()).map(|at| widest(rows, at)).collect();
    let Some(width_max) = width_max else {
        return widths;
    };
    for heading in GIVES_WAY {
        let Some(at) = shown.iter().position(|column| column.heading == heading) else {
            continue;
        };
        let least = match heading {
            // A number that is cut is another number.
            SILENCE => widest(&rows[1..], at),
            _ => widths[at].min(CUT_COLUMNS_MIN),
        };
        let total = widths.iter().sum::<usize>() + GAP * (shown.len() - 1);
        let less = widths[at].saturating_sub(total.saturating_sub(width_max));
        widths[at] = less.max(least);
    }
    widths
}

fn line(row: &[Cell], shown: &[&Column], widths: &[usize], look: Look) -> String {
    let mut line = String::new();
    let mut left = look.width.unwrap_or(usize::MAX);
    for (at, ((cell, column), width)) in row.iter().zip(shown).zip(widths).enumerate() {
        let gap = if at == 0 { 0 } else { GAP };
        if left <= gap {
            break;
        }
        let width = (*width).min(left - gap);
        let text = cut(&cell.text, width);
        let padding = " ".repeat(width - columns(&text));
        let painted = match look.colours {
            true => cell.style.apply(text).to_string(),
            false => text,
        };
        line.push_str(&" ".repeat(gap));
        match column.side {
            Side::Left => line.extend([painted, padding]),
            Side::Right => line.extend([padding, painted]),
        }
        left -= gap + width;
    }
    line.truncate(line.trim_end().len());
    line
}

fn plain(text: String) -> Cell {
    Cell {
        text,
        style: ContentStyle::new(),
    }
}

fn known(text: Option<&str>) -> Cell {
    plain(printable(text.unwrap_or("-")))
}

fn state(state: State) -> Cell {
    let style = ContentStyle::new();
    let (text, style) = match state {
        State::Stalled => ("STALLED", style.dark_red().bold()),
        State::Late => ("late", style.dark_yellow()),
        State::Paused => ("paused", style.dark_cyan()),
        State::Alive => ("alive", style.dark_green()),
    };
    Cell {
        text: text.to_owned(),
        style,
    }
}

fn status(agent: &AgentView) -> Cell {
    let style = ContentStyle::new();
    let style = match agent.status.as_str() {
        "ok" => style,
        "degraded" => style.dark_yellow(),
        _ => style.dark_red(),
    };
    Cell {
        text: printable(&agent.status),
        style,
    }
}

/// How much longer, and why.
fn pause(agent: &AgentView) -> Cell {
    let Some(left) = agent.paused_for else {
        return plain("-".to_owned());
    };
    let why = agent.pause_reason.as_deref();
    let why = why.map_or(String::new(), |why| format!(": {}", printable(why)));
    plain(format!("{}{why}", duration(left)))
}

/// The word is that of the log and of the metrics, so that it can be looked for there.
fn recovery(agent: &AgentView) -> Cell {
    let style = ContentStyle::new();
    if agent.gave_up {
        return Cell {
            text: "gave up".to_owned(),
            style: style.dark_red().bold(),
        };
    }
    let style = match agent.recovery.as_deref() {
        None | Some("reaped_zero") => style,
        Some("spawned" | "debounced" | "waiting") => style.dark_yellow(),
        Some(_) => style.dark_red(),
    };
    Cell {
        text: printable(agent.recovery.as_deref().unwrap_or("-")),
        style,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::agent;

    fn agents() -> Vec<AgentView> {
        let mut stalled = agent("a-name-too-long", 7);
        stalled.state = State::Stalled;
        stalled.silence = 130.0;
        stalled.recovery = Some("refused_cross_namespace".to_owned());
        let mut alive = agent("ev\u{1b}[2Jil", 4_194_304);
        alive.status = "degraded".to_owned();
        alive.payload = u32::MAX;
        alive.uid = None;
        vec![stalled, alive]
    }

    fn shown(agents: &[AgentView], look: Look) -> String {
        lines(agents, look).join("\n")
    }

    #[test]
    fn a_table_without_a_limit_shows_everything() {
        assert_eq!(
            shown(&agents(), Look::default()),
            "\
STATE    NAME                 PID   UID  SILENCE / THRESHOLD  STATUS       PAYLOAD  BEATS/S  RECOVERY
STALLED  a-name-too-long        7  1000       2m 10s / 2.0 s  ok                 0      2.0  refused_cross_namespace
alive    ev?[2Jil         4194304     -        0.4 s / 2.0 s  degraded  4294967295      2.0  -"
        );
    }

    #[test]
    fn where_there_is_little_room_names_give_way_first() {
        let at = |width| {
            let look = Look {
                width: Some(width),
                colours: false,
            };
            shown(&agents(), look)
        };
        assert_eq!(
            at(111),
            "\
STATE    NAME                 PID   UID  SILENCE / THR…  STATUS       PAYLOAD  BEATS/S  RECOVERY
STALLED  a-name-too-long        7  1000  2m 10s / 2.0 s  ok                 0      2.0  refused_cross_namespace
alive    ev?[2Jil         4194304     -   0.4 s / 2.0 s  degraded  4294967295      2.0  -"
        );
        assert_eq!(
            at(98),
            "\
STATE    NAME          PID   UID  SILENCE / THR…  STATUS       PAYLOAD  BEATS/S  RECOVERY
STALLED  a-name-…        7  1000  2m 10s / 2.0 s  ok                 0      2.0  refused_cross_na…
alive    ev?[2Jil  4194304     -   0.4 s / 2.0 s  degraded  4294967295      2.0  -"
        );
        assert_eq!(
            at(64),
            "\
STATE    NAME          PID   UID  SILENCE / THR…  STATUS    PAY…
STALLED  a-name-…        7  1000  2m 10s / 2.0 s  ok           0
alive    ev?[2Jil  4194304     -   0.4 s / 2.0 s  degraded  429…"
        );
        for width in 0..130 {
            let too_wide = at(width).lines().any(|line| columns(line) > width);
            assert!(!too_wide, "{width}:\n{}", at(width));
        }
    }

    #[test]
    fn addresses_are_shown_if_somebody_is_elsewhere() {
        let mut agents = agents();
        agents[1].source = Some("192.0.2.7".to_owned());
        let table = shown(&agents, Look::default());
        let line = |at| table.lines().nth(at).unwrap_or_default();
        assert!(
            line(0).ends_with("RECOVERY                 SOURCE"),
            "{table}"
        );
        assert!(line(1).ends_with("refused_cross_namespace  -"), "{table}");
        assert!(line(2).ends_with("192.0.2.7"), "{table}");
    }

    #[test]
    fn who_is_paused_is_shown_with_the_time_left_and_the_reason() {
        let mut agents = agents();
        agents[1].state = State::Paused;
        agents[1].paused_for = Some(130.0);
        let line = |agents: &[AgentView], at: usize| lines(agents, Look::default())[at].clone();
        assert!(line(&agents, 0).ends_with("RECOVERY                 PAUSED"));
        assert!(line(&agents, 1).ends_with("refused_cross_namespace  -"));
        assert!(
            line(&agents, 2).ends_with("  2m 10s"),
            "{}",
            line(&agents, 2)
        );
        agents[1].pause_reason = Some("de\u{1b}ploy".to_owned());
        assert!(line(&agents, 2).ends_with("  2m 10s: de?ploy"));
    }

    #[test]
    fn who_was_given_up_is_shown_so() {
        let mut agents = agents();
        agents[0].gave_up = true;
        assert!(lines(&agents, Look::default())[1].ends_with("  gave up"));
    }

    #[test]
    fn colours_take_no_room() {
        let look = Look {
            width: Some(108),
            colours: true,
        };
        let coloured = shown(&agents(), look);
        assert!(coloured.contains("\u{1b}["), "{coloured}");
        let without: String = coloured
            .split('\u{1b}')
            .enumerate()
            .map(|(at, part)| match at {
                0 => part,
                _ => part.split_once('m').map_or(part, |(_, text)| text),
            })
            .collect();
        let colours = false;
        assert_eq!(without, shown(&agents(), Look { colours, ..look }));
    }
}
