//! `varta events`: what has happened, and with `--follow` what happens.
//!
//! Events are those of the observer's log, in its form for people or as JSON. The observer remembers the last
//! few thousand; what is forgotten, or was lost because nobody read it, is counted on standard error. Whoever
//! follows goes on with the next observer when this one ends, for ever.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use varta_watch::api::human_line;
use varta_watch::api::v1::EventView;

use crate::Failure;
use crate::ask::{LiveEvents, Message, Observer, ObserverArguments, Unanswered};

/// More than an observer remembers.
const LIMIT_MAX: u64 = 10_000;

/// How often an observer that has gone is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Kind of the message that says how many events were missed.
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

    /// Show so many of those that have happened at most, 0 to 10000
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u64).range(0..=LIMIT_MAX)
    )]
    limit: u64,

    /// Begin after the event with this id, as --json tells it, instead of with the latest ones
    #[arg(long, value_name = "ID")]
    after: Option<u64>,

    /// Print one JSON object per event and line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    observer: ObserverArguments,
}

/// Why there are no more events.
enum End {
    /// Nobody reads them.
    Unread(io::Error),
    /// The observer does not tell them.
    Unanswered(Unanswered),
}

impl From<Unanswered> for End {
    fn from(why: Unanswered) -> Self {
        Self::Unanswered(why)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Unread(error)
    }
}

/// The event that was shown last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bookmark {
    session_id: String,
    id: u64,
}

pub(crate) fn run(arguments: &EventsArguments) -> Result<(), Failure> {
    let observer = Observer::find(&arguments.observer)?;
    let mut show = Show {
        json: arguments.json,
        last: None,
    };
    let end = match begin(&observer, arguments, &mut show) {
        Ok(Some(events)) => follow(&observer, events, &mut show),
        Ok(None) => return Ok(()),
        Err(end) => end,
    };
    match end {
        End::Unanswered(why) => Err(Failure::Run(why.to_string())),
        // 'varta events | head' is no failure.
        End::Unread(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        End::Unread(error) => Err(Failure::Run(format!("standard output: {error}"))),
    }
}

/// Shows what is remembered.
fn begin<'a>(
    observer: &'a Observer,
    arguments: &EventsArguments,
    show: &mut Show,
) -> Result<Option<LiveEvents<'a>>, End> {
    if arguments.limit > 0 {
        let limit = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
        let page = observer.events(arguments.after, limit)?;
        // Who asks for the latest ones does not miss those before.
        if arguments.after.is_some() {
            tell_missed(page.missed);
        }
        for event in &page.events {
            show.event(event)?;
        }
    }
    if !arguments.follow {
        return Ok(None);
    }
    let last_id = show.last.as_ref().map(|last| last.id).or(arguments.after);
    Ok(Some(observer.follow(last_id)?))
}

/// Shows what happens, with this observer and those that come after it, until nobody reads it any more.
fn follow<'a>(observer: &'a Observer, mut events: LiveEvents<'a>, show: &mut Show) -> End {
    loop {
        let why = loop {
            match events.next() {
                Ok(messages) => {
                    for message in messages {
                        if let Err(error) = show.message(&message) {
                            return End::Unread(error);
                        }
                    }
                }
                Err(why) => break why,
            }
        };
        eprintln!("varta: {why}; looking for the observer every second");
        events = loop {
            std::thread::sleep(LOOK_AGAIN);
            if let Ok(events) = resume(observer, show) {
                break events;
            }
        };
    }
}

/// Goes on where the same observer left off; with another one from its beginning.
fn resume<'a>(observer: &'a Observer, show: &mut Show) -> Result<LiveEvents<'a>, Unanswered> {
    let session_id = observer.info()?.session_id;
    let last = show.last.as_ref();
    let last_id = last.filter(|last| last.session_id == session_id);
    let last_id = last_id.map_or(0, |last| last.id);
    let events = observer.follow(Some(last_id))?;
    match last {
        Some(last) if last_id == 0 => eprintln!(
            "varta: another observer answers, from its first event; what the one before told after \
             event {} is in its log",
            last.id
        ),
        _ => eprintln!("varta: the observer answers again"),
    }
    Ok(events)
}

/// Puts events on standard output.
struct Show {
    json: bool,
    last: Option<Bookmark>,
}

impl Show {
    /// A message that is no event this program knows is told of and passed over.
    fn message(&mut self, message: &Message) -> io::Result<()> {
        if message.kind == MISSED {
            tell_missed(message.data.trim().parse().unwrap_or(1));
            return Ok(());
        }
        match serde_json::from_str(&message.data) {
            Ok(event) => self.event(&event),
            Err(error) => {
                eprintln!(
                    "varta: an event is not understood ({error}); is the observer of another version \
                     than this varta, {}?",
                    env!("CARGO_PKG_VERSION")
                );
                Ok(())
            }
        }
    }

    fn event(&mut self, event: &EventView) -> io::Result<()> {
        let text = if self.json {
            serde_json::to_string(event)? + "\n"
        } else {
            human_line(&event.line)
        };
        self.last = Some(Bookmark {
            session_id: event.line.session_id.clone(),
            id: event.id,
        });
        // At once, so that a reader sees each event when it happens.
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

fn tell_missed(count: u64) {
    match count {
        0 => {}
        1 => eprintln!("varta: 1 event was missed; it is in the observer's log"),
        _ => eprintln!("varta: {count} events were missed; they are in the observer's log"),
    }
}
