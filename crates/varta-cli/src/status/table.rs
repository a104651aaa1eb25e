//! Agents as a table: a line each, as wide as the terminal at most.
//!
//! If the terminal is too narrow, the longest heading is cut first, then names and reasons; then whole columns are
//! dropped, the least important first ([`GIVES_WAY`]). The rest is cut off at the right. Columns that are seldom
//! needed are not shown if they are empty.

use ratatui::crossterm::style::{ContentStyle, Stylize};
use varta_api::log_line::{BeatStatus, Outcome};
use varta_api::printable;
use varta_api::v1::{AgentView, State};

use crate::terminal::{columns, cut};
use crate::units::{duration, rate};

/// Columns of the terminal between two cells.
const GAP: usize = 2;

/// Least width of a cell that is cut: enough to distinguish names.
const CUT_COLUMNS_MIN: usize = 8;

/// The layout of a table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    /// Width in columns of the terminal; `None` without a limit.
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
const PID: &str = "PID";
const UID: &str = "UID";
const SILENCE: &str = "SILENCE / THRESHOLD";
const STATUS: &str = "STATUS";
const PAYLOAD: &str = "PAYLOAD";
const BEATS: &str = "BEATS/S";
const RECOVERY: &str = "RECOVERY";
const PAUSED: &str = "PAUSED";
const SOURCE: &str = "SOURCE";

/// How a column is shortened.
#[derive(PartialEq, Eq)]
enum Way {
    /// It is cut, as far as necessary and possible.
    Cut(&'static str),
    /// It is dropped.
    Go(&'static str),
}

/// The measures against too little width, in this order. The agent's identity, its silence, and that recovery gave up
/// are kept to the last.
const GIVES_WAY: [Way; 11] = [
    Way::Cut(SILENCE),
    Way::Cut(NAME),
    Way::Cut(PAUSED),
    Way::Go(PAYLOAD),
    Way::Go(UID),
    Way::Go(BEATS),
    Way::Cut(RECOVERY),
    Way::Go(STATUS),
    Way::Go(PID),
    Way::Go(SOURCE),
    Way::Go(PAUSED),
];

const COLUMNS: [Column; 11] = [
    column("STATE", Side::Left, |agent| state(agent.state)),
    column(NAME, Side::Left, |agent| known(agent.name.as_deref())),
    column(PID, Side::Right, |agent| plain(agent.pid.to_string())),
    column(UID, Side::Right, |agent| {
        known(agent.uid.map(|uid| uid.to_string()).as_deref())
    }),
    column(SILENCE, Side::Right, |agent| {
        plain(format!(
            "{} / {}",
            duration(agent.silence),
            duration(agent.threshold)
        ))
    }),
    column(STATUS, Side::Left, status),
    column(PAYLOAD, Side::Right, |agent| {
        plain(agent.payload.to_string())
    }),
    column(BEATS, Side::Right, |agent| {
        plain(rate(agent.beats_per_second))
    }),
    column(RECOVERY, Side::Left, recovery),
    column(PAUSED, Side::Left, pause),
    column(SOURCE, Side::Left, source),
];

const fn column(heading: &'static str, side: Side, cell: fn(&AgentView) -> Cell) -> Column {
    Column {
        heading,
        side,
        cell,
    }
}

/// The heading and a line for each agent.
pub(super) fn lines(agents: &[AgentView], layout: Layout) -> Vec<String> {
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
    let fitted = fitted(&shown, &rows, layout.width);
    rows.iter().map(|row| line(row, &fitted, layout)).collect()
}

/// A column that is shown.
struct Fitted<'a> {
    column: &'a Column,
    /// Its index in a row.
    at: usize,
    width: usize,
    /// Least width to which it can be cut.
    least: usize,
}

/// The width of each column, or less and fewer of them if that is too much in total.
fn fitted<'a>(
    shown: &[&'a Column],
    rows: &[Vec<Cell>],
    width_max: Option<usize>,
) -> Vec<Fitted<'a>> {
    let width_max = width_max.unwrap_or(usize::MAX);
    let widest = |rows: &[Vec<Cell>], at: usize| {
        let widths = rows.iter().map(|row| columns(&row[at].text));
        widths.max().unwrap_or_default()
    };
    let needs: Vec<(usize, usize)> = (0..shown.len())
        .map(|at| {
            let width = widest(rows, at);
            let least = match shown[at].heading {
                // A number that is cut is another number.
                SILENCE => widest(&rows[1..], at),
                _ => width.min(CUT_COLUMNS_MIN),
            };
            (width, least)
        })
        .collect();
    let mut fitted = Vec::new();
    for ways in 0..=GIVES_WAY.len() {
        let ways = &GIVES_WAY[..ways];
        let columns = shown.iter().zip(&needs).enumerate();
        let columns = columns.map(|(at, (column, &(width, least)))| Fitted {
            column,
            at,
            width,
            least,
        });
        // First, so that the others are cut no further than necessary.
        let stays = |fitted: &Fitted<'_>| !ways.contains(&Way::Go(fitted.column.heading));
        fitted = columns.filter(stays).collect();
        for way in ways {
            if let Way::Cut(heading) = way {
                shorten(&mut fitted, heading, width_max);
            }
        }
        if total(&fitted) <= width_max {
            break;
        }
    }
    fitted
}

fn shorten(fitted: &mut [Fitted<'_>], heading: &str, width_max: usize) {
    let excess = total(fitted).saturating_sub(width_max);
    let mut columns = fitted.iter_mut();
    if let Some(column) = columns.find(|fitted| fitted.column.heading == heading) {
        column.width = column.width.saturating_sub(excess).max(column.least);
    }
}

/// Columns of the terminal that the whole table takes.
fn total(fitted: &[Fitted<'_>]) -> usize {
    let widths = fitted.iter().map(|fitted| fitted.width).sum::<usize>();
    widths + GAP * fitted.len().saturating_sub(1)
}

fn line(row: &[Cell], fitted: &[Fitted<'_>], layout: Layout) -> String {
    let mut line = String::new();
    let mut left = layout.width.unwrap_or(usize::MAX);
    for (place, fitted) in fitted.iter().enumerate() {
        let gap = if place == 0 { 0 } else { GAP };
        if left <= gap {
            break;
        }
        let cell = &row[fitted.at];
        let width = fitted.width.min(left - gap);
        let text = cut(&cell.text, width);
        let padding = " ".repeat(width - columns(&text));
        let painted = match layout.colours {
            true => cell.style.apply(text).to_string(),
            false => text,
        };
        line.push_str(&" ".repeat(gap));
        match fitted.column.side {
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

/// The address, and the number of sessions over which the agent beats if not one.
fn source(agent: &AgentView) -> Cell {
    let Some(sessions) = agent.sessions else {
        return known(agent.source.as_deref());
    };
    let address = printable(agent.source.as_deref().unwrap_or("-"));
    Cell {
        text: format!("{address}, {sessions} sessions"),
        style: ContentStyle::new().dark_yellow(),
    }
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
    let style = match agent.status {
        BeatStatus::Ok => style,
        BeatStatus::Degraded => style.dark_yellow(),
        BeatStatus::Critical | BeatStatus::Unknown(_) => style.dark_red(),
    };
    Cell {
        text: printable(&agent.status.to_string()),
        style,
    }
}

/// The rest of the pause, and its reason.
fn pause(agent: &AgentView) -> Cell {
    let Some(left) = agent.paused_for else {
        return plain("-".to_owned());
    };
    let why = agent.pause_reason.as_deref();
    let why = why.map_or(String::new(), |why| format!(": {}", printable(why)));
    plain(format!("{}{why}", duration(left)))
}

/// The same word as in the log and the metrics, so that a reader can search for it there.
fn recovery(agent: &AgentView) -> Cell {
    let style = ContentStyle::new();
    if agent.gave_up {
        return Cell {
            text: "gave up".to_owned(),
            style: style.dark_red().bold(),
        };
    }
    let style = match agent.recovery {
        None | Some(Outcome::ReapedZero) => style,
        Some(Outcome::Spawned | Outcome::Debounced | Outcome::Waiting) => style.dark_yellow(),
        Some(_) => style.dark_red(),
    };
    let recovery = agent.recovery.as_ref();
    let text = recovery.map_or_else(|| "-".to_owned(), Outcome::to_string);
    Cell {
        text: printable(&text),
        style,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::agent;

    fn agents() -> Vec<AgentView> {
        let mut stalled = agent("a-name-too-long", 7);
        stalled.state = State::Stalled;
        stalled.silence = 130.0;
        stalled.recovery = Some(Outcome::RefusedCrossNamespace);
        let mut alive = agent("ev\u{1b}[2Jil", 4_194_304);
        alive.status = BeatStatus::Degraded;
        alive.payload = u32::MAX;
        alive.uid = None;
        vec![stalled, alive]
    }

    fn shown(agents: &[AgentView], layout: Layout) -> String {
        lines(agents, layout).join("\n")
    }

    #[test]
    fn an_agent_that_beats_over_several_sessions_is_seen_beside_its_address() {
        let mut one = agent("one", 7);
        one.source = Some("10.0.0.1".to_owned());
        let mut shared = agent("shared", 8);
        shared.source = Some("10.0.0.2".to_owned());
        shared.sessions = Some(2);
        let table = shown(&[one, shared], Layout::default());
        let ends: Vec<&str> = table.lines().skip(1).collect();
        assert!(ends[0].ends_with("  10.0.0.1"), "{table}");
        assert!(ends[1].ends_with("  10.0.0.2, 2 sessions"), "{table}");
    }

    #[test]
    fn a_table_without_a_limit_shows_everything() {
        assert_eq!(
            shown(&agents(), Layout::default()),
            "\
STATE    NAME                 PID   UID  SILENCE / THRESHOLD  STATUS       PAYLOAD  BEATS/S  RECOVERY
STALLED  a-name-too-long        7  1000       2m 10s / 2.0 s  ok                 0      2.0  refused_cross_namespace
alive    ev?[2Jil         4194304     -        0.4 s / 2.0 s  degraded  4294967295      2.0  -"
        );
    }

    #[test]
    fn where_there_is_little_room_names_give_way_first_and_then_columns_go_whole() {
        let at = |width| {
            let layout = Layout {
                width: Some(width),
                colours: false,
            };
            shown(&agents(), layout)
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
STATE    NAME                PID   UID  SILENCE / THR…  STATUS    BEATS/S  RECOVERY
STALLED  a-name-too-lo…        7  1000  2m 10s / 2.0 s  ok            2.0  refused_cross_namespace
alive    ev?[2Jil        4194304     -   0.4 s / 2.0 s  degraded      2.0  -"
        );
        assert_eq!(
            at(80),
            "\
STATE    NAME             PID  SILENCE / THR…  STATUS    RECOVERY
STALLED  a-name-too…        7  2m 10s / 2.0 s  ok        refused_cross_namespace
alive    ev?[2Jil     4194304   0.4 s / 2.0 s  degraded  -"
        );
        assert_eq!(
            at(60),
            "\
STATE    NAME          PID  SILENCE / THR…  RECOVERY
STALLED  a-name-…        7  2m 10s / 2.0 s  refused_cross_n…
alive    ev?[2Jil  4194304   0.4 s / 2.0 s  -"
        );
        assert_eq!(
            at(50),
            "\
STATE    NAME      SILENCE / THR…  RECOVERY
STALLED  a-name-…  2m 10s / 2.0 s  refused_cross_…
alive    ev?[2Jil   0.4 s / 2.0 s  -"
        );
        assert_eq!(
            at(24),
            "\
STATE    NAME      SILE…
STALLED  a-name-…  2m 1…
alive    ev?[2Jil  0.4 …"
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
        let table = shown(&agents, Layout::default());
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
        let line = |agents: &[AgentView], at: usize| lines(agents, Layout::default())[at].clone();
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
        assert!(lines(&agents, Layout::default())[1].ends_with("  gave up"));
    }

    #[test]
    fn colours_take_no_room() {
        let layout = Layout {
            width: Some(108),
            colours: true,
        };
        let coloured = shown(&agents(), layout);
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
        assert_eq!(without, shown(&agents(), Layout { colours, ..layout }));
    }
}
