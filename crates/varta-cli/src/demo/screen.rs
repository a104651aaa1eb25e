//! The demo on a terminal: a live table of agents, with the events scrolling by above it. It takes a few lines of the
//! terminal, not all of it, and nothing is lost when it ends.
//!
//! The terminal library leaves out colours when `NO_COLOR` is set.

use std::io::{self, Stdout, stdout};
use std::time::{Duration, Instant};

use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget, Wrap};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};

use super::THRESHOLD;
use super::agent::Role;
use super::seen::{AgentRecord, Record};
use super::words;
use crate::terminal::{self, SilentKeyboard};

/// An empty line, the heading, the agents, an empty line, the observer.
const TABLE_ROWS: u16 = Role::ALL.len() as u16 + 4;

/// A terminal must have space for the table and as many event lines, and for the widest line.
const ROWS_MIN: usize = 2 * TABLE_ROWS as usize;
const COLUMNS_MIN: usize = 80;

/// Cells of the bar that grows from a beat to the threshold.
const BAR_CELLS: u32 = 8;

/// Most rows of an event line on a terminal that became narrow.
const WRAPPED_ROWS_MAX: u16 = 8;

/// The live table. Dropping it removes it from the terminal.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _silence: SilentKeyboard,
}

impl Screen {
    /// `None` if this terminal cannot show a live table, or the program is not in its foreground.
    pub(super) fn open() -> Option<Self> {
        let (columns, rows) = terminal::size()?;
        if !terminal::can_be_drawn_on() || rows < ROWS_MIN || columns < COLUMNS_MIN {
            return None;
        }
        let silence = SilentKeyboard::new().ok()?;
        let options = TerminalOptions {
            viewport: Viewport::Inline(TABLE_ROWS),
        };
        let backend = CrosstermBackend::new(stdout());
        let terminal = Terminal::with_options(backend, options).ok()?;
        Some(Self {
            terminal,
            _silence: silence,
        })
    }

    /// Scrolls lines by above the table.
    pub(super) fn print(&mut self, lines: Vec<Line<'static>>) -> io::Result<()> {
        self.terminal.autoresize()?;
        let width = self.terminal.size()?.width;
        for line in lines {
            let mut area = Rect::new(0, 0, width, WRAPPED_ROWS_MAX);
            let mut rendered = Buffer::empty(area);
            let paragraph = Paragraph::new(line).wrap(Wrap { trim: false });
            (&paragraph).render(area, &mut rendered);
            area.height = rows_used(&rendered).max(1);
            rendered.resize(area);
            self.terminal
                .insert_before(area.height, |rows| rows.merge(&rendered))?;
        }
        Ok(())
    }

    /// Shows the present state of all agents.
    pub(super) fn draw(
        &mut self,
        seen: &Record,
        left: Duration,
        cpu_time: Option<Duration>,
    ) -> io::Result<()> {
        let now = Instant::now();
        self.terminal
            .draw(|frame| draw(frame, seen, now, left, cpu_time))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A closed terminal needs no cleanup.
        let place_of_table = self.terminal.get_frame().area().as_position();
        let _ = self.terminal.clear();
        let _ = self.terminal.set_cursor_position(place_of_table);
    }
}

fn rows_used(buffer: &Buffer) -> u16 {
    let width = usize::from(buffer.area.width).max(1);
    let last = buffer.content.iter().rposition(|cell| cell.symbol() != " ");
    last.map_or(0, |last| (last / width + 1) as u16)
}

fn draw(
    frame: &mut Frame<'_>,
    seen: &Record,
    now: Instant,
    left: Duration,
    cpu_time: Option<Duration>,
) {
    let [_, table, _, observer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(Role::ALL.len() as u16 + 1),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let right = |text: &'static str| Cell::from(Text::from(text).right_aligned());
    let heading = Row::new([
        Cell::from("AGENT"),
        right("PID"),
        Cell::from("STATE"),
        Cell::from("LAST BEAT"),
        right("BEATS"),
        Cell::from("WHAT HAPPENS"),
    ]);
    let widths = [
        Constraint::Length(11),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(BAR_CELLS as u16 + 6),
        Constraint::Length(5),
        Constraint::Min(10),
    ];
    let rows = seen.agents.iter().map(|agent| row(seen, agent, now));
    let agents = Table::new(rows, widths)
        .header(heading.dim())
        .column_spacing(2);
    frame.render_widget(agents, indented(table));

    let cpu_time = cpu_time.map(|time| format!(", {} ms of CPU time", time.as_millis()));
    let text = format!(
        "observer {}: {} beats{}; {} s to go, Ctrl-C ends it",
        seen.observer_pid,
        seen.beats(),
        cpu_time.unwrap_or_default(),
        left.as_secs_f64().ceil()
    );
    frame.render_widget(Line::from(text).dim(), indented(observer));
}

fn indented(area: Rect) -> Rect {
    Rect {
        x: area.x + 2,
        width: area.width.saturating_sub(2),
        ..area
    }
}

fn row(seen: &Record, agent: &AgentRecord, now: Instant) -> Row<'static> {
    let number = |number: u64| Text::from(number.to_string()).right_aligned();
    Row::new([
        Cell::from(agent.role.name()),
        Cell::from(number(agent.pid.into())),
        Cell::from(words::state(agent)),
        Cell::from(last_beat(seen.silence(agent, now))),
        Cell::from(number(agent.beats)),
        Cell::from(words::latest(agent)),
    ])
}

/// A bar that is full when the silence has reached the threshold, and the silence in seconds.
fn last_beat(silence: Option<Duration>) -> Line<'static> {
    let Some(silence) = silence else {
        return Line::from("-").dim();
    };
    let share = silence.as_secs_f64() / THRESHOLD.as_secs_f64();
    let filled = (share.min(1.0) * f64::from(BAR_CELLS)).round() as usize;
    let color = match share {
        ..0.5 => Color::Green,
        0.5..1.0 => Color::Yellow,
        _ => Color::Red,
    };
    Line::from(vec![
        Span::styled("━".repeat(filled), Style::new().fg(color)),
        "─".repeat(BAR_CELLS as usize - filled).dim(),
        format!(" {:.1} s", silence.as_secs_f64()).into(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::observer;
    use ratatui::backend::TestBackend;

    #[test]
    fn the_table_fits_80_columns_and_shows_how_near_an_agent_is_to_its_threshold() {
        let mut seen = Record::default();
        for role in Role::ALL {
            seen.expect(role, 4_194_304);
        }
        let now = Instant::now();
        let beat = observer::Row {
            observer_ns: 1_000_000,
            kind: observer::RowKind::Beat,
            pid: 4_194_304,
            status: "ok",
        };
        seen.take_row(&beat, now);
        let half_way = now + THRESHOLD / 2;
        let mut terminal = Terminal::new(TestBackend::new(80, TABLE_ROWS)).unwrap();
        terminal
            .draw(|frame| draw(frame, &seen, half_way, Duration::from_millis(4001), None))
            .unwrap();
        let shown = terminal.backend().to_string();
        let web = shown.lines().find(|line| line.contains("demo-web"));
        let web = web.unwrap_or_default();
        assert!(web.contains("4194304  starting  ━━━━──── 0.5 s"), "{shown}");
        assert!(web.contains("beats every 100 ms"), "{shown}");
        assert!(shown.contains("observer 0: 1 beats; 5 s to go"), "{shown}");
    }
}
