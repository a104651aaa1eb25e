//! The metrics, as text in either of two formats, from one table of all families ([`table`]).
//!
//! Everything is read on request and written in one pass, in an order that does not change. Labels with fixed values
//! are all present from the start; series of agents appear and disappear with their agents, as many as
//! [`AgentSeries`] allows. A page of 100 000 agents takes about 60 MB until its last byte is read;
//! [`work`](super::work) bounds the total.

mod agents;
mod page;
mod process;
mod table;
#[cfg(test)]
mod tests;

use std::time::{SystemTime, UNIX_EPOCH};

use varta_core::{Counter, Gauge};

use self::agents::Agents;
use self::page::{Number, Page};
use self::process::Process;
use self::table::{Family, Samples};
use crate::settings::http::AgentSeries;
use crate::snapshot::view::{View, seconds};

pub(crate) use self::table::list;

/// The text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The classic text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// The content of one page.
struct Moment<'a> {
    view: &'a View,
    agents: Agents,
    process: Process,
}

/// The whole page. Takes some milliseconds per ten thousand agents, so it must not run on a thread with other tasks.
pub(crate) fn render(view: &View, format: Format, agents: AgentSeries) -> String {
    let moment = Moment {
        view,
        agents: agents::read(view, agents),
        process: Process::read(),
    };
    let mut page = Page::new(format);
    for family in table::families() {
        moment.write(&family, &mut page);
    }
    page.finish()
}

impl Moment<'_> {
    fn write(&self, family: &Family, page: &mut Page) {
        page.family(family.name, family.kind, family.help);
        let name = family.name;
        match &family.samples {
            Samples::Agents(figure) => {
                for row in &self.agents.rows {
                    page.sample(name, &row.labels, figure(row));
                }
            }
            Samples::Counters { counted, never } => {
                for counter in counted {
                    let labels = page::label(counter.info().label);
                    page.sample(name, &labels, self.total(*counter));
                }
                for label in *never {
                    page.sample(name, &page::label(Some(*label)), Number::Whole(0));
                }
            }
            Samples::Gauge(gauge) => page.sample(name, "", self.level(*gauge)),
            Samples::Timing(timing) => {
                let distribution = self.view.counters.distribution(*timing);
                page.histogram(name, &distribution);
            }
            Samples::Empty(distribution) => page.histogram(name, &distribution()),
            Samples::States(states) => {
                for (state, figure) in *states {
                    let labels = page::label(Some(("state", state)));
                    page.sample(name, &labels, Number::from(figure(&self.agents.counts)));
                }
            }
            Samples::Names(states) => {
                for (agent, counts) in &self.agents.names {
                    for (state, figure) in *states {
                        let labels = page::labels(&[("name", agent), ("state", state)]);
                        page.sample(name, &labels, Number::from(figure(counts)));
                    }
                }
            }
            Samples::Build => page.sample(name, &table::build_labels(), Number::Whole(1)),
            Samples::Observer(figure) => page.sample(name, "", figure(self)),
        }
    }

    fn total(&self, counter: Counter) -> Number {
        let total = self.view.counters.get(counter);
        match counter.is_time() {
            true => Number::Real(seconds(total)),
            false => Number::Whole(total),
        }
    }

    fn level(&self, gauge: Gauge) -> Number {
        let level = self.view.level(gauge);
        match gauge.is_time() {
            true if level == u64::MAX => Number::Real(f64::INFINITY),
            true => Number::Real(seconds(level)),
            false => Number::Whole(level),
        }
    }
}

/// The last time at which the beat path was on schedule, on the wall clock, whatever has been done to that clock
/// since the start. A beat path that sleeps because it is idle does not look stopped.
fn last_attended(moment: &Moment<'_>) -> Number {
    let view = moment.view;
    let since_ns = view
        .beat_path
        .raw()
        .now_ns()
        .saturating_sub(view.beat_path.attended_ns());
    Number::Real(unix_seconds(SystemTime::now()) - seconds(since_ns))
}

fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
