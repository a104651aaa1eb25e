//! What is where: the routes, the same behind both doors.
//!
//! Whatever looks at every agent works on a thread of its own, two at a time, so that neither the control
//! thread nor the other questions wait for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Semaphore, mpsc, watch};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

use super::agents::{AgentsQuestion, find};
use super::events::{EventsQuestion, follow, resumed};
use super::metrics::{self, AgentSeries, Format};
use super::pause;
use super::problem::Refusal;
use super::view::{Seen, View};
use crate::api::v1::{Health, PREFIX};
use crate::control::wishes::Wish;

/// Questions about every agent that are worked on at the same time; the others wait.
const AT_WORK_MAX: usize = 2;

/// How long the beat path may take to turn when it is asked to. It takes microseconds.
const PULSE_WAIT: Duration = Duration::from_secs(1);

/// How often is looked whether it has.
const PULSE_PAUSE: Duration = Duration::from_millis(1);

/// What of an answer is worked on without a turn for anything else: compressing it takes half a millisecond.
const PIECE_BYTES: usize = 64 * 1024;

const OPENMETRICS: &str = "application/openmetrics-text";

const FRONT_PAGE: &str = r#"varta-watch: notices silence

/healthz               does it watch? (200, else 503)
/readyz                has it started? (200, else 503)
/metrics               for Prometheus: text format 0.0.4, or OpenMetrics 1.0
/api/v1/info           the observer
/api/v1/agents         its agents: ?state=&name=&pid=&sort=&after=&limit=
/api/v1/agents/ID      one of them
/api/v1/events         what has happened: ?after=&limit=, or live with ?follow=true

POST, as application/json, over TCP with the token only:
/api/v1/agents/ID/pause    {"for":600.0,"reason":"deploy"}  do not judge it for so many seconds
/api/v1/agents/ID/resume   {}                               judge it again
"#;

/// What answers are made from.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(super) view: View,
    /// To whoever can change something.
    pub(super) wishes: mpsc::Sender<Wish>,
    agents: AgentSeries,
    at_work: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

/// Query parameters in the order given.
type Parameters = Query<Vec<(String, String)>>;

pub(super) type Shared = State<Arc<Answers>>;

/// The agent that a path names.
pub(super) type AgentId = Result<Path<String>, PathRejection>;

impl Answers {
    pub(crate) fn new(
        view: View,
        wishes: mpsc::Sender<Wish>,
        agents: AgentSeries,
        stop: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            view,
            wishes,
            agents,
            at_work: Arc::new(Semaphore::new(AT_WORK_MAX)),
            stop,
        })
    }

    /// Does some work on a thread of its own. It counts as work until it is done, whether or not anybody waits
    /// for it still.
    async fn work<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let failed = || {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer could not be made",
            )
        };
        let permit = Arc::clone(&self.at_work).acquire_owned().await;
        let permit = permit.map_err(|_| failed())?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&self);
            drop(permit);
            done
        });
        done.await.map_err(|_| failed())
    }
}

impl Answers {
    /// The agent with this id.
    pub(super) async fn find(self: Arc<Self>, id: AgentId) -> Result<Seen, Refusal> {
        let Path(id) = id.map_err(|_| nobody())?;
        let found = self.work(move |answers| find(&answers.view, &id)).await?;
        found.ok_or_else(nobody)
    }
}

/// There is no agent with the id that was given.
pub(super) fn nobody() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no agent with this id is there (any more)",
    )
}

/// Everything that is answered.
pub(crate) fn router(answers: Arc<Answers>) -> Router {
    let api = Router::new()
        .route("/info", get(info))
        .route("/agents", get(agents))
        .route("/agents/{id}", get(agent))
        .route("/events", get(events))
        .merge(pause::routes());
    Router::new()
        .route("/", get(FRONT_PAGE))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .nest(PREFIX, api)
        .fallback(nothing_there)
        .method_not_allowed_fallback(wrong_method)
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
        .layer(from_fn(as_it_is_now))
        .with_state(answers)
}

/// Every answer is about this moment and is what it says it is.
async fn as_it_is_now(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let set: [(HeaderName, &str); 2] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in set {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn nothing_there() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "nothing is there; / says what is where",
    )
}

async fn wrong_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "only GET and HEAD are answered here, and POST where / says so",
    )
}

/// Whether the beat path turns. This thread is another one, so it can tell.
async fn healthz(State(answers): Shared) -> Response {
    let pulse = &answers.view.pulse;
    let asked = Instant::now();
    let asked_ns = pulse.ask();
    let mut healthy = pulse.has_turned_since(asked_ns);
    while !healthy && asked.elapsed() < PULSE_WAIT {
        tokio::time::sleep(PULSE_PAUSE).await;
        healthy = pulse.has_turned_since(asked_ns);
    }
    let health = Health {
        healthy,
        turned_after: asked.elapsed().as_secs_f64(),
    };
    (status(healthy), Json(health)).into_response()
}

/// Nothing is answered before everything has started, so this tells of the end only.
async fn readyz(State(answers): Shared) -> Response {
    match *answers.stop.borrow() {
        true => Refusal::new(status(false), "the observer stops").into_response(),
        false => "ready\n".into_response(),
    }
}

fn status(well: bool) -> StatusCode {
    match well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(State(answers): Shared, headers: HeaderMap) -> Result<Response, Refusal> {
    let format = match accepts(&headers, OPENMETRICS) {
        true => Format::OpenMetrics,
        false => Format::Text,
    };
    let content_type = match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Text => "text/plain; version=0.0.4; charset=utf-8",
    };
    let render = move |answers: &Answers| metrics::render(&answers.view, format, answers.agents);
    let text = answers.work(render).await?;
    let body = Body::new(Pieces::new(text));
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

async fn info(State(answers): Shared) -> Result<Response, Refusal> {
    let info = answers.work(|answers| answers.view.info()).await?;
    Ok(Json(info).into_response())
}

async fn agents(
    State(answers): Shared,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let question = AgentsQuestion::parse(&parameters)?;
    let page = answers
        .work(move |answers| serde_json::to_string(&question.answer(&answers.view)))
        .await?;
    Ok(json(page.unwrap_or_default()))
}

async fn agent(State(answers): Shared, id: AgentId) -> Result<Response, Refusal> {
    let seen = Arc::clone(&answers).find(id).await?;
    Ok(Json(answers.view.show(&seen)).into_response())
}

async fn events(
    State(answers): Shared,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let question = EventsQuestion::parse(&parameters)?;
    let view = &answers.view;
    if !question.follow && !accepts(&headers, "text/event-stream") {
        return Ok(Json(question.answer(&view.history)).into_response());
    }
    if question.limit.is_some() {
        return Err(Refusal::bad_request("limit: live events have no limit"));
    }
    let after = match headers.get("Last-Event-ID") {
        None => question.after.unwrap_or_else(|| view.history.last_id()),
        Some(id) => {
            let id = id.to_str().ok();
            let after = id.and_then(|id| resumed(id, &view.about.session_id));
            after.ok_or_else(|| Refusal::bad_request("Last-Event-ID: give the id of an event"))?
        }
    };
    let (history, counters) = (Arc::clone(&view.history), Arc::clone(&view.counters));
    Ok(follow(history, after, counters, answers.stop.clone()))
}

fn json(text: String) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    let body = Body::new(Pieces::new(text));
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Whether an answer of this media type is welcome by name.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(media_type));
        let unwanted = |part: &str| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.parse() == Ok(0.0))
        };
        named && !parts.any(unwanted)
    })
}

/// A long text, given out with turns for everything else in between.
struct Pieces {
    rest: Bytes,
    rested: bool,
}

impl Pieces {
    fn new(text: String) -> Self {
        Self {
            rest: text.into(),
            rested: true,
        }
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.rested, false) {
            self.rested = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use varta_core::{Counters, Gauge, SlotTable};

    use super::*;
    use crate::clock::RawClock;
    use crate::control::history::History;
    use crate::handoff;
    use crate::http::view::About;

    /// Answers about an observer without a beat path.
    fn answers() -> (Arc<Answers>, watch::Sender<bool>) {
        let (counters, raw) = (Arc::new(Counters::default()), RawClock::start());
        let (orders, _) = handoff::orders().unwrap();
        let view = View {
            about: About {
                session_id: "run".to_owned(),
                started: SystemTime::UNIX_EPOCH,
                threshold_ns: 1,
                capacity: 1,
                socket: String::new(),
                udp: None,
            },
            table: Arc::new(SlotTable::on_heap(1)),
            roster: Arc::default(),
            counters: Arc::clone(&counters),
            history: Arc::new(History::default()),
            pulse: orders.pulse(counters, raw),
            raw,
        };
        let (sender, stop) = watch::channel(false);
        let (wishes, _) = mpsc::channel(1);
        (Answers::new(view, wishes, AgentSeries::All, stop), sender)
    }

    async fn status_of(answers: &Arc<Answers>, path: &str) -> StatusCode {
        let router = TowerToHyperService::new(router(Arc::clone(answers)));
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        router.call(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_beat_path_that_does_not_turn_is_not_healthy() {
        let (answers, _stop) = answers();
        let status = status_of(&answers, "/healthz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        answers.view.counters.set(Gauge::LastTurn, u64::MAX);
        assert_eq!(status_of(&answers, "/healthz").await, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_observer_that_stops_is_not_ready() {
        let (answers, stop) = answers();
        assert_eq!(status_of(&answers, "/readyz").await, StatusCode::OK);
        stop.send(true).unwrap();
        let status = status_of(&answers, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_still_counts_as_work() {
        let (answers, _stop) = answers();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begun, mut begins) = tokio::sync::mpsc::channel(1);
        let work = Arc::clone(&answers).work(move |_| {
            let _ = begun.blocking_send(());
            let _ = held.recv();
        });
        let asked = tokio::spawn(work);
        begins.recv().await.unwrap();
        asked.abort();
        let _ = asked.await;
        assert_eq!(answers.at_work.available_permits(), AT_WORK_MAX - 1);
        drop(release);
        let all = answers.at_work.acquire_many(AT_WORK_MAX as u32).await;
        assert!(all.is_ok());
    }

    #[test]
    fn a_long_text_comes_in_pieces_with_turns_in_between() {
        use hyper::body::Body as _;
        let mut pieces = Pieces::new("x".repeat(2 * PIECE_BYTES + 1));
        let context = &mut Context::from_waker(std::task::Waker::noop());
        let mut lengths = Vec::new();
        loop {
            match Pin::new(&mut pieces).poll_frame(context) {
                Poll::Ready(None) => break,
                Poll::Ready(Some(frame)) => {
                    lengths.push(frame.unwrap().into_data().unwrap().len());
                }
                Poll::Pending => lengths.push(0),
            }
        }
        assert_eq!(lengths, [PIECE_BYTES, 0, PIECE_BYTES, 0, 1]);
    }

    #[test]
    fn a_media_type_is_welcome_if_it_is_named_and_not_ruled_out() {
        let accepted = |accept: &'static str| {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            accepts(&headers, OPENMETRICS)
        };
        assert!(accepted("Application/OpenMetrics-Text"));
        assert!(accepted(
            "text/plain, application/openmetrics-text; version=1.0.0; q=0.1"
        ));
        for accept in [
            "*/*",
            "",
            "application/*",
            "application/openmetrics-text;q=0.0",
        ] {
            assert!(!accepted(accept), "{accept}");
        }
    }
}
