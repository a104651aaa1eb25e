//! What has happened, as pages or live: `GET /api/v1/events`.
//!
//! A follower costs one page of memory, however slowly it reads: what it has not taken yet is in the history
//! that all share, and what has left that by then it has missed and is told so.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::BroadcastStream;
use varta_core::{Counter, Counters};

use super::agents::{limit, number, unknown};
use super::connection::told;
use super::problem::Refusal;
use crate::api::v1::{EventView, PAGE_MAX};
use crate::control::history::History;

/// Events in a page unless told otherwise.
const PAGE: usize = 100;

/// Events a follower is given at once.
const FOLLOWER_PAGE: usize = 64;

/// How often a follower hears something, so that whatever lies between keeps the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventsQuestion {
    pub(crate) after: Option<u64>,
    pub(crate) limit: Option<usize>,
    pub(crate) follow: bool,
}

impl EventsQuestion {
    /// Reads the parameters; what is not understood is named.
    pub(crate) fn parse(parameters: &[(String, String)]) -> Result<Self, Refusal> {
        let mut question = Self::default();
        for (key, value) in parameters {
            match key.as_str() {
                "after" => question.after = Some(number(key, value)?),
                "limit" => question.limit = Some(limit(key, value, PAGE_MAX)?),
                "follow" => {
                    question.follow = value
                        .parse()
                        .map_err(|_| Refusal::bad_request("follow: write true or false"))?;
                }
                _ => return Err(unknown(key, "after, limit and follow")),
            }
        }
        Ok(question)
    }

    /// A page: what comes after, or the last ones.
    pub(crate) fn answer(self, history: &History) -> crate::api::v1::EventsPage {
        let limit = self.limit.unwrap_or(PAGE);
        let last = || history.last_id().saturating_sub(limit as u64);
        history.after(self.after.unwrap_or_else(last), limit)
    }
}

/// The id of an event for whoever wants to go on after it: the run and the number.
fn id_of(event: &EventView) -> String {
    format!("{}-{}", event.line.session_id, event.id)
}

/// The number behind which a returning reader wants to go on. What it has heard of another run says nothing
/// about this one, of which it has heard nothing.
pub(crate) fn resumed(last_event_id: &str, session_id: &str) -> Option<u64> {
    match last_event_id.rsplit_once('-') {
        Some((session, _)) if session != session_id => Some(0),
        Some((_, number)) => number.parse().ok(),
        None => last_event_id.parse().ok(),
    }
}

/// The events after a number, and those that come, until the observer stops.
pub(crate) fn follow(
    history: Arc<History>,
    after: u64,
    counters: Arc<Counters>,
    stop: watch::Receiver<bool>,
) -> Response {
    let following = Following::new(history, after, counters, stop);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(following).keep_alive(keep_alive).into_response()
}

/// A reader of live events.
struct Following {
    history: Arc<History>,
    counters: Arc<Counters>,
    /// The number of the last event that went out.
    after: u64,
    waiting: VecDeque<EventView>,
    /// Nothing while it is behind.
    live: Option<BroadcastStream<EventView>>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Following {
    fn new(
        history: Arc<History>,
        after: u64,
        counters: Arc<Counters>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            // A number that was not given out yet is of another run.
            after: if after > history.last_id() { 0 } else { after },
            history,
            counters,
            waiting: VecDeque::new(),
            live: None,
            stopped: Box::pin(told(stop)),
        }
    }

    /// Takes the next page of what is remembered, and listens once that is all; a word about what is missed.
    fn catch_up(&mut self) -> Option<Event> {
        let mut page = self.history.after(self.after, FOLLOWER_PAGE);
        if page.events.is_empty() && page.missed == 0 {
            let (newer, live) = self.history.follow(self.after);
            self.live = Some(BroadcastStream::new(live));
            page = newer;
        }
        self.waiting = page.events.into();
        (page.missed > 0).then(|| {
            self.after += page.missed;
            self.counters.add(Counter::HttpEventsMissed, page.missed);
            let data = serde_json::json!({ "missed": page.missed });
            Event::default().event("missed").data(data.to_string())
        })
    }

    fn tell(&mut self, event: &EventView) -> Event {
        self.after = event.id;
        let data = serde_json::to_string(event).unwrap_or_default();
        Event::default().id(id_of(event)).data(data)
    }
}

impl Stream for Following {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(self.tell(&event))));
            }
            let Some(live) = &mut self.live else {
                if let Some(missed) = self.catch_up() {
                    return Poll::Ready(Some(Ok(missed)));
                }
                continue;
            };
            match ready!(Pin::new(live).poll_next(context)) {
                Some(Ok(event)) => return Poll::Ready(Some(Ok(self.tell(&event)))),
                // It is behind. More is remembered than waits for one listener.
                Some(Err(_)) => self.live = None,
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::api::{Fields, Level, LogEvent, LogLine};

    fn add(history: &History, count: usize) {
        for _ in 0..count {
            history.add(LogLine {
                ts_ns: 0,
                session_id: "run".to_owned(),
                level: Level::Info,
                event: LogEvent::Notice,
                msg: String::new(),
                fields: Fields::default(),
            });
        }
    }

    fn following(history: &Arc<History>, after: u64) -> (Following, watch::Sender<bool>) {
        let (sender, stop) = watch::channel(false);
        let counters = Arc::default();
        let following = Following::new(Arc::clone(history), after, counters, stop);
        (following, sender)
    }

    /// What comes at once, up to a number: how many events, and the number of the last one.
    fn take(following: &mut Following, most: usize) -> (usize, u64) {
        let context = &mut Context::from_waker(Waker::noop());
        let ready = |_: &usize| Pin::new(&mut *following).poll_next(context).is_ready();
        let count = (0..most).take_while(ready).count();
        (count, following.after)
    }

    #[test]
    fn a_reader_goes_from_the_past_to_the_present_without_a_gap() {
        let history = Arc::new(History::default());
        add(&history, 3 * FOLLOWER_PAGE + 7);
        let (mut following, _stop) = following(&history, 5);
        let past = 3 * FOLLOWER_PAGE + 7;
        assert_eq!(take(&mut following, 10_000), (past - 5, past as u64));
        add(&history, 3);
        assert_eq!(take(&mut following, 10_000), (3, past as u64 + 3));
        assert_eq!(following.counters.get(Counter::HttpEventsMissed), 0);
    }

    #[test]
    fn a_reader_that_is_behind_misses_only_what_nobody_remembers_and_is_told_how_many() {
        const LATER: usize = 10_000;
        let history = Arc::new(History::default());
        let (mut following, _stop) = following(&history, 0);
        assert_eq!(take(&mut following, 1), (0, 0));
        add(&history, LATER);
        let remembered = history.after(0, usize::MAX).events.len();
        // The word about what is missed, and all the rest.
        assert_eq!(take(&mut following, LATER), (remembered + 1, LATER as u64));
        let missed = following.counters.get(Counter::HttpEventsMissed);
        assert_eq!(missed, (LATER - remembered) as u64);
    }

    #[test]
    fn a_number_from_the_future_is_of_another_run() {
        let history = Arc::new(History::default());
        add(&history, 2);
        assert_eq!(take(&mut following(&history, 3).0, 10), (2, 2));
    }

    #[test]
    fn the_end_of_the_observer_is_the_end_of_the_stream() {
        let history = Arc::new(History::default());
        let (mut following, stop) = following(&history, 0);
        stop.send(true).unwrap();
        let context = &mut Context::from_waker(Waker::noop());
        let ended = Pin::new(&mut following).poll_next(context);
        assert!(matches!(ended, Poll::Ready(None)));
    }

    #[test]
    fn an_id_tells_where_to_go_on() {
        assert_eq!(resumed("run-7", "run"), Some(7));
        assert_eq!(resumed("7", "run"), Some(7));
        assert_eq!(resumed("other-7", "run"), Some(0));
        for id in ["run-", "run-x", "", "x"] {
            assert_eq!(resumed(id, "run"), None, "{id}");
        }
    }
}
