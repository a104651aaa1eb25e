//! The events, as pages or live: `GET /api/v1/events`.
//!
//! A follower costs one page of references, however slowly it reads: the events that it has not taken yet are in the
//! history that all followers share. Events that have left the history by then are missed, and the follower gets
//! their number. Each listener admits [`FOLLOWERS_MAX`] of them, and each yields after [`FOLLOWER_PAGE`] events,
//! because the control thread does all of this.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use varta_api::v1::PAGE_MAX;
use varta_core::{Counter, Counters};

use super::agents::{each_once, limit, number, unknown};
use super::problem::Refusal;
use super::stage::{Stage, closing};
use crate::report::history::{History, HistoryEntry, Page};

/// Followers of one listener. A person has a few windows, and a log collector is one; each costs the control thread
/// some microseconds per event.
pub(crate) const FOLLOWERS_MAX: usize = 8;

/// Default number of events in a page.
const PAGE: usize = 100;

/// Events that a follower takes before other tasks run.
const FOLLOWER_PAGE: usize = 64;

/// Longest time without any text to a follower, so that middleboxes keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The text that is sent then.
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// The parameters of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventsQuestion {
    pub(crate) after: Option<u64>,
    pub(crate) limit: Option<usize>,
    /// By default the accepted format decides.
    pub(crate) follow: Option<bool>,
}

impl EventsQuestion {
    /// Reads the parameters; the error names an unknown one.
    pub(crate) fn parse(parameters: &[(String, String)]) -> Result<Self, Refusal> {
        let mut question = Self::default();
        for (key, value) in parameters {
            match key.as_str() {
                "after" => question.after = Some(number(key, value)?),
                "limit" => question.limit = Some(limit(key, value, PAGE_MAX)?),
                "follow" => {
                    let follow = value.parse();
                    let follow =
                        follow.map_err(|_| Refusal::bad_request("follow: write true or false"))?;
                    question.follow = Some(follow);
                }
                _ => return Err(unknown(key, "after, limit and follow")),
            }
        }
        each_once(parameters, &[])?;
        Ok(question)
    }

    /// A page: the events after a number, or the last ones.
    pub(crate) fn answer(self, history: &History) -> Page {
        let limit = self.limit.unwrap_or(PAGE);
        match self.after {
            Some(after) => history.after(of_this_run(after, history.last_id()), limit),
            None => history.latest(limit),
        }
    }
}

/// A number that has not been assigned yet is of another run, of which the client has none of these events.
fn of_this_run(after: u64, last_id: u64) -> u64 {
    if after > last_id { 0 } else { after }
}

/// A page as an [`EventsPage`](varta_api::v1::EventsPage), without rendering its events again.
pub(crate) fn page_text(page: &Page, session_id: &str) -> String {
    let events = page.events.iter();
    let events: Vec<_> = events
        .map(|event| String::from_utf8_lossy(&event.json))
        .collect();
    let (events, missed) = (events.join(","), page.missed);
    format!(r#"{{"events":[{events}],"missed":{missed},"session_id":"{session_id}"}}"#)
}

/// The number after which a returning reader continues. Numbers of another run have no meaning in this one, so the
/// reader starts from the first event.
pub(crate) fn resumed(last_event_id: &str, session_id: &str) -> Option<u64> {
    match last_event_id.rsplit_once('-') {
        Some((session, _)) if session != session_id => Some(0),
        Some((_, number)) => number.parse().ok(),
        None => last_event_id.parse().ok(),
    }
}

/// The events after a number, and new ones as they come, until the observer stops. `place` is one of
/// [`FOLLOWERS_MAX`].
pub(crate) fn follow(
    history: Arc<History>,
    after: u64,
    counters: Arc<Counters>,
    stage: watch::Receiver<Stage>,
    place: OwnedSemaphorePermit,
) -> Response {
    let following = Following {
        _place: Some(place),
        ..Following::new(history, after, counters, stage)
    };
    let content_type = HeaderValue::from_static("text/event-stream");
    ([(header::CONTENT_TYPE, content_type)], Body::new(following)).into_response()
}

/// A reader of live events.
struct Following {
    history: Arc<History>,
    counters: Arc<Counters>,
    /// The number of the last event that went out.
    after: u64,
    waiting: VecDeque<HistoryEntry>,
    /// Other tasks have run since it took a page.
    rested: bool,
    news: WatchStream<u64>,
    keep_alive: Pin<Box<Sleep>>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Following {
    fn new(
        history: Arc<History>,
        after: u64,
        counters: Arc<Counters>,
        stage: watch::Receiver<Stage>,
    ) -> Self {
        Self {
            after: of_this_run(after, history.last_id()),
            news: WatchStream::new(history.news()),
            history,
            counters,
            waiting: VecDeque::new(),
            rested: true,
            keep_alive: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
            stopped: Box::pin(closing(stage)),
            _place: None,
        }
    }

    /// Takes the next page of the history; returns a notice if events were missed. `None` if there is nothing new.
    fn next_page(&mut self) -> Option<Bytes> {
        let page = self.history.after(self.after, FOLLOWER_PAGE);
        self.waiting = page.events.into();
        if page.missed == 0 {
            return self.next_waiting();
        }
        self.counters.add(Counter::HttpEventsMissed, page.missed);
        let missed = page.missed;
        Some(format!("event: missed\ndata: {{\"missed\":{missed}}}\n\n").into())
    }

    fn next_waiting(&mut self) -> Option<Bytes> {
        let event = self.waiting.pop_front()?;
        self.after = event.id;
        Some(event.message)
    }

    /// The next message, from the history or when a new event comes.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if let Some(message) = self.next_waiting() {
            return Poll::Ready(Some(message));
        }
        if !std::mem::replace(&mut self.rested, false) {
            self.rested = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(message) = self.next_page() {
                return Poll::Ready(Some(message));
            }
            match Pin::new(&mut self.news).poll_next(context) {
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        self.rested = true;
        self.keep_alive
            .as_mut()
            .poll(context)
            .map(|()| Some(COMMENT))
    }
}

impl hyper::body::Body for Following {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let words = self.poll_message(context);
        if words.is_ready() {
            let next = Instant::now() + KEEP_ALIVE;
            self.keep_alive.as_mut().reset(next);
        }
        words.map(|words| words.map(|words| Ok(Frame::data(words))))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use hyper::body::Body as _;
    use tokio::runtime::{Builder, Runtime};
    use varta_api::v1::EventsPage;
    use varta_api::{LogEvent, LogLine};
    use varta_core::fact::Level;

    use super::*;

    /// Provides timers; no task runs in it.
    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().build().unwrap()
    }

    fn add(history: &History, count: usize) {
        for _ in 0..count {
            history.add(LogLine {
                ts_ns: 0,
                session_id: "run".to_owned(),
                level: Level::Info,
                msg: String::new(),
                event: LogEvent::Unknown,
            });
        }
    }

    fn following(history: &Arc<History>, after: u64) -> (Following, watch::Sender<Stage>) {
        let (sender, stage) = watch::channel(Stage::Running);
        let counters = Arc::default();
        let following = Following::new(Arc::clone(history), after, counters, stage);
        (following, sender)
    }

    /// Whether a message is ready at once.
    fn poll(following: &mut Following) -> bool {
        let context = &mut Context::from_waker(Waker::noop());
        let words = Pin::new(following).poll_frame(context);
        matches!(words, Poll::Ready(Some(_)))
    }

    /// Reads messages until none is ready, up to a number: how many there were, and the number of the last event.
    fn take(following: &mut Following, most: usize) -> (usize, u64) {
        let mut count = 0;
        // It yields once after each page.
        while count < most && (poll(following) || poll(following)) {
            count += 1;
        }
        (count, following.after)
    }

    #[test]
    fn a_reader_goes_from_the_past_to_the_present_without_a_gap() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let history = Arc::new(History::default());
        add(&history, 3 * FOLLOWER_PAGE + 7);
        let (mut following, _stage) = following(&history, 5);
        let past = 3 * FOLLOWER_PAGE + 7;
        assert_eq!(take(&mut following, 10_000), (past - 5, past as u64));
        add(&history, 3);
        assert_eq!(take(&mut following, 10_000), (3, past as u64 + 3));
        assert_eq!(following.counters.get(Counter::HttpEventsMissed), 0);
    }

    #[test]
    fn a_reader_that_is_behind_misses_only_what_nobody_remembers_and_is_told_how_many() {
        const LATER: usize = 10_000;
        let runtime = runtime();
        let _inside = runtime.enter();
        let history = Arc::new(History::default());
        let (mut following, _stage) = following(&history, 0);
        assert!(!poll(&mut following));
        add(&history, LATER);
        let remembered = history.after(0, usize::MAX).events.len();
        // The notice about missed events, and all other messages.
        assert_eq!(take(&mut following, LATER), (remembered + 1, LATER as u64));
        let missed = following.counters.get(Counter::HttpEventsMissed);
        assert_eq!(missed, (LATER - remembered) as u64);
    }

    #[test]
    fn a_reader_gives_way_after_each_page() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let history = Arc::new(History::default());
        add(&history, 2 * FOLLOWER_PAGE);
        let (mut following, _stage) = following(&history, 0);
        for _ in 0..2 {
            let at_once = (0..1000).take_while(|_| poll(&mut following)).count();
            assert_eq!(at_once, FOLLOWER_PAGE);
        }
    }

    #[test]
    fn a_page_is_what_a_reader_takes_apart() {
        let history = History::default();
        add(&history, 3);
        let question = EventsQuestion {
            after: Some(1),
            ..EventsQuestion::default()
        };
        let text = page_text(&question.answer(&history), "run");
        let page: EventsPage = serde_json::from_str(&text).unwrap();
        let ids: Vec<u64> = page.events.iter().map(|event| event.id).collect();
        assert_eq!((ids, page.missed), (vec![2, 3], 0));
        assert_eq!(page.session_id, "run");
    }

    #[test]
    fn a_page_after_a_number_from_the_future_begins_with_the_first_event() {
        let history = History::default();
        add(&history, 2);
        let ids = |after| {
            let question = EventsQuestion {
                after: Some(after),
                ..EventsQuestion::default()
            };
            let page = question.answer(&history);
            page.events.iter().map(|event| event.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(3), [1, 2]);
        assert_eq!(ids(2), [0; 0]);
    }

    #[test]
    fn a_number_from_the_future_is_of_another_run() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let history = Arc::new(History::default());
        add(&history, 2);
        assert_eq!(take(&mut following(&history, 3).0, 10), (2, 2));
    }

    #[test]
    fn the_end_of_the_observer_is_the_end_of_the_stream() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let history = Arc::new(History::default());
        let (mut following, stage) = following(&history, 0);
        stage.send(Stage::Closing).unwrap();
        let context = &mut Context::from_waker(Waker::noop());
        let ended = Pin::new(&mut following).poll_frame(context);
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
