//! `varta events`: the past events, and with `--follow` the new ones.
//!
//! Events are those of the observer's log, as readable text or as JSON. The observer keeps the last few thousand;
//! events that are no longer kept, or were lost because they were not read in time, are counted on standard error. A
//! follower continues with the next observer when this one ends, without limit.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use varta_api::v1::{EventView, PAGE_MAX};
use varta_api::{human_line, printable};

use crate::Failure;
use crate::ask::{LiveEvents, Message, Observer, ObserverArguments, Position, RequestError};
use crate::terminal::is_read;

/// Events in one answer of the observer.
const LIMIT_MAX: u64 = PAGE_MAX as u64;

/// Pause between two attempts to reach an observer that has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Kind of the message with the number of missed events.
const MISSED: &str = "missed";

/// Show what has happened: the observer's latest events, and with --follow the next ones
///
/// Asks the observer over its control socket; shows what is in its log. Exit code 0 when it was shown, 1 if
/// there is no observer or it does not answer.
#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    /// Go on with what happens, until Ctrl-C; finds its way to an observer that was restarted
    #[arg(long)]
    follow: bool,

    /// Show so many of those that have happened at most, 0 to 1000
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u64).range(0..=LIMIT_MAX)
    )]
    limit: u64,

    /// Begin after the event with this id, as --json tells it, instead of with the latest ones
    #[arg(long, value_name = "ID", value_parser = event_id)]
    after: Option<u64>,

    /// Print one JSON object per event and line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    observer: ObserverArguments,
}

fn event_id(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "write a number, 0 or more")
}

/// Why there are no more events.
enum End {
    /// The output is closed.
    Unread(io::Error),
    /// The observer refuses them.
    RequestError(RequestError),
}

impl From<RequestError> for End {
    fn from(why: RequestError) -> Self {
        Self::RequestError(why)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Unread(error)
    }
}

/// The content of a message of the kind [`MISSED`].
#[derive(Deserialize)]
struct Missed {
    missed: u64,
}

pub(crate) fn run(arguments: &EventsArguments) -> Result<(), Failure> {
    let observer = Observer::find(&arguments.observer)?;
    let mut show = Show {
        json: arguments.json,
        position: Position::After(arguments.after.unwrap_or(0)),
    };
    let end = match begin(&observer, arguments, &mut show) {
        Ok(()) if arguments.follow => End::Unread(follow(&observer, &mut show)),
        Ok(()) => return Ok(()),
        Err(end) => end,
    };
    match end {
        End::RequestError(why) => Err(Failure::Run(why.to_string())),
        End::Unread(error) => is_read(Err(error)).map(drop),
    }
}

/// Shows the kept events, up to the requested number.
fn begin(observer: &Observer, arguments: &EventsArguments, show: &mut Show) -> Result<(), End> {
    // One at least: its number marks the present.
    let page = observer.events(arguments.after, arguments.limit.max(1))?;
    match (arguments.limit, arguments.after) {
        (0, None) => {
            let events = page.events.iter();
            let events = events.filter_map(|event| understood(event.get()));
            events.for_each(|event| show.go_to(&event));
        }
        // Those after it come live.
        (0, Some(_)) => {}
        (_, after) => {
            // A request for the latest events does not miss those before.
            tell_missed(after.map_or(0, |_| page.missed));
            for event in &page.events {
                show.event(event.get())?;
            }
        }
    }
    Ok(())
}

/// Shows new events, of this observer and of those that follow it, until the output is closed.
fn follow(observer: &Observer, show: &mut Show) -> io::Error {
    let mut lost = false;
    loop {
        let why = match observer.follow(&show.position) {
            Ok(events) => {
                if lost {
                    eprintln!("varta: the observer answers again");
                    lost = false;
                }
                match show.all(events) {
                    End::Unread(error) => return error,
                    End::RequestError(why) => why,
                }
            }
            Err(why) => why,
        };
        if !lost {
            eprintln!("varta: {why}; looking for the observer every second");
            lost = true;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Writes events to standard output.
struct Show {
    json: bool,
    position: Position,
}

impl Show {
    /// Until there are no more.
    fn all(&mut self, mut events: LiveEvents<'_>) -> End {
        loop {
            let messages = match events.next() {
                Ok(messages) => messages,
                Err(why) => return End::RequestError(why),
            };
            for message in messages {
                if let Err(error) = self.message(&message) {
                    return End::Unread(error);
                }
            }
        }
    }

    fn message(&mut self, message: &Message) -> io::Result<()> {
        match message.kind.as_str() {
            MISSED => {
                let missed = understood(&message.data);
                missed
                    .iter()
                    .for_each(|Missed { missed }| tell_missed(*missed));
                Ok(())
            }
            _ => self.event(&message.data),
        }
    }

    /// Shows an event that came as JSON. As JSON it is passed on unchanged, with its unknown keys.
    fn event(&mut self, json: &str) -> io::Result<()> {
        let Some(event) = understood::<EventView>(json) else {
            return Ok(());
        };
        let text = match self.json {
            true => format!("{json}\n"),
            false => human_line(&event.line),
        };
        self.go_to(&event);
        // At once, so that a reader sees each event when it happens.
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn go_to(&mut self, event: &EventView) {
        let next = &event.line.session_id;
        if let Position::Event { session_id, id } = &self.position
            && session_id != next
        {
            eprintln!(
                "varta: this is another observer, session {}; what the one before told after event {id} is \
                 in its log",
                printable(next)
            );
        }
        self.position = Position::Event {
            session_id: next.clone(),
            id: event.id,
        };
    }
}

/// The observer's message. One of another form is reported and skipped.
fn understood<T: DeserializeOwned>(json: &str) -> Option<T> {
    let read = serde_json::from_str(json);
    if let Err(error) = &read {
        eprintln!(
            "varta: an event is not understood ({}); is the observer of another version than this varta, {}?",
            printable(&error.to_string()),
            env!("CARGO_PKG_VERSION")
        );
    }
    read.ok()
}

fn tell_missed(count: u64) {
    match count {
        0 => {}
        1 => eprintln!("varta: 1 event was missed; it is in the observer's log"),
        _ => eprintln!("varta: {count} events were missed; they are in the observer's log"),
    }
}
