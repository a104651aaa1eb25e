//! The routes, the same for both listeners.
//!
//! A handler that reads every agent works on a thread of its own ([`work`](super::work)), so that neither the control
//! thread nor other requests wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use varta_api::v1::{Health, NoRoom, PREFIX};

use super::accept::{EVENT_STREAM, OPENMETRICS};
use super::agents::{AgentsQuestion, find, unknown};
use super::answers::{
    AgentId, Answers, JSON, Parameters, Shared, VARY_BY_FORM, no_such_agent, stops,
};
use super::connection::ConnectionState;
use super::events::{EventsQuestion, follow, page_text, resumed};
use super::metrics::{self, Format};
use super::pause;
use super::problem::Refusal;
use super::stage::Stage;
use crate::snapshot::receive_trouble;
use crate::snapshot::view::{View, seconds};

/// How long the beat path may take to turn after a probe. It takes microseconds.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// Interval of the check whether it has.
const PROBE_PAUSE: Duration = Duration::from_millis(1);

const FRONT_PAGE: &str = r#"varta-watch: notices silence

/healthz               does it watch? (200, else 503)
/readyz                has it started, and room for newcomers? (200, else 503)
/metrics               for Prometheus: text format 0.0.4, or OpenMetrics 1.0
/api/v1/info           the observer
/api/v1/agents         its agents: ?state=&name=&pid=&sort=&after=&limit=
/api/v1/agents/ID      one of them
/api/v1/events         what has happened: ?after=&limit=, or live with ?follow=true

POST, as application/json, over TCP with the token only:
/api/v1/agents/ID/pause    {"for":600.0,"reason":"deploy"}  do not judge it for so many seconds
/api/v1/agents/ID/resume   {}                               judge it again
"#;

/// Everything that is answered.
pub(crate) fn router(answers: Arc<Answers>) -> Router {
    let plain = Router::new()
        .route("/info", get(info))
        .route("/agents/{id}", get(agent))
        .merge(pause::routes())
        .route_layer(from_fn(no_parameters));
    let api = Router::new()
        .route("/agents", get(agents))
        .route("/events", get(events))
        .merge(plain);
    Router::new()
        .route("/", get(FRONT_PAGE))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .nest(PREFIX, api)
        .fallback(nothing_there)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(as_it_is_now))
        .with_state(answers)
}

/// Every answer describes this moment and has the media type that it declares.
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

/// An unknown parameter is an error: the client expects it to have an effect.
async fn no_parameters(
    Query(parameters): Parameters,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    match parameters.first() {
        Some((key, _)) => Err(unknown(key, "none")),
        None => Ok(next.run(request).await),
    }
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

/// Whether the beat path turns and can receive. This thread is another one, so it can detect that. While the observer
/// stops the answer is known without a probe.
async fn healthz(State(answers): Shared) -> Response {
    let probe = &answers.view.probe;
    let started = Instant::now();
    let probed_ns = probe.start();
    let (healthy, stopping) = loop {
        let stopping = *answers.stage.borrow() != Stage::Running;
        let healthy = !stopping && probe.has_turned_since(probed_ns);
        if healthy || stopping || started.elapsed() >= PROBE_WAIT {
            break (healthy, stopping);
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    };
    let beat_path = &answers.view.beat_path;
    let turn_ns = beat_path.last_turn_ns();
    let (fatal, others) = receive_trouble::problems(beat_path);
    let healthy = healthy && fatal.is_empty();
    let health = Health {
        healthy,
        problems: fatal.into_iter().chain(others).collect(),
        turned_after: started.elapsed().as_secs_f64(),
        last_turn_age: seconds(beat_path.raw().now_ns().saturating_sub(turn_ns)),
        stopping,
    };
    (status(healthy), Json(health)).into_response()
}

/// No request is answered before everything has started. The observer is not ready while it stops, and while its
/// table is full and new agents beat. A user that has used up its share makes the observer unready for no other user,
/// so that is only reported.
async fn readyz(State(answers): Shared) -> Response {
    match *answers.stage.borrow() {
        Stage::Running => {}
        Stage::Stopping | Stage::Closing => return stops().into_response(),
    }
    let is_full = answers.view.is_full();
    let no_room = answers.view.no_room();
    let is_ready = !(is_full && no_room.iter().any(NoRoom::is_table));
    let mut text = match (is_ready, is_full) {
        (true, false) => "ready\n".to_owned(),
        (true, true) => "ready\nthe table is full\n".to_owned(),
        (false, _) => "not ready\n".to_owned(),
    };
    for no_room in no_room {
        text.push_str(&format!("{no_room}\n"));
    }
    (status(is_ready), text).into_response()
}

fn status(well: bool) -> StatusCode {
    match well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(State(answers): Shared, headers: HeaderMap) -> Result<Response, Refusal> {
    let format = match OPENMETRICS.is_preferred(&headers) {
        true => Format::OpenMetrics,
        false => Format::Text,
    };
    let content_type = match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Text => "text/plain; version=0.0.4; charset=utf-8",
    };
    let agents = answers.agents;
    let render = move |view: &View| Ok(metrics::render(view, format, agents));
    answers
        .text(&headers, content_type, VARY_BY_FORM, render)
        .await
}

async fn info(State(answers): Shared, headers: HeaderMap) -> Result<Response, Refusal> {
    let info = |view: &View| Ok(view.info());
    answers.json(&headers, info).await
}

async fn agents(
    State(answers): Shared,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let question = AgentsQuestion::parse(&parameters)?;
    let page = move |view: &View| Ok(question.answer(view));
    answers.json(&headers, page).await
}

async fn agent(
    State(answers): Shared,
    headers: HeaderMap,
    id: AgentId,
) -> Result<Response, Refusal> {
    let Path(id) = id.map_err(|_| no_such_agent())?;
    let found = move |view: &View| {
        let seen = find(view, &id).ok_or_else(no_such_agent)?;
        Ok(view.show(&seen))
    };
    answers.json(&headers, found).await
}

async fn events(
    State(answers): Shared,
    connection: Option<Extension<ConnectionState>>,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Result<Response, Refusal> {
    let question = EventsQuestion::parse(&parameters)?;
    let view = &answers.view;
    let follows = question.follow;
    if !follows.unwrap_or_else(|| EVENT_STREAM.is_preferred(&headers)) {
        // Taken in this thread, since the other thread may be kept from continuing while it holds the lock.
        let page = question.answer(&answers.history);
        let write = move |view: &View| Ok(page_text(&page, &view.about.session_id));
        return answers.text(&headers, JSON, VARY_BY_FORM, write).await;
    }
    if question.limit.is_some() {
        return Err(Refusal::bad_request("limit: live events have no limit"));
    }
    let after = match headers.get("Last-Event-ID") {
        None => question.after.unwrap_or_else(|| answers.history.last_id()),
        Some(id) => {
            let id = id.to_str().ok();
            let after = id.and_then(|id| resumed(id, &view.about.session_id));
            after.ok_or_else(|| Refusal::bad_request("Last-Event-ID: give the id of an event"))?
        }
    };
    let place = Arc::clone(&answers.followers).try_acquire_owned();
    let place = place.map_err(|_| {
        Refusal::busy(
            &view.counters,
            "too many follow the events here; stop one of them, or ask for pages",
        )
    })?;
    if let Some(Extension(connection)) = connection {
        connection.follow();
    }
    let (history, counters) = (Arc::clone(&answers.history), Arc::clone(&view.counters));
    let stage = answers.stage.clone();
    let mut live = follow(history, after, counters, stage, place);
    let vary = HeaderValue::from_static(VARY_BY_FORM);
    live.headers_mut().insert(header::VARY, vary);
    Ok(live)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use axum::body::{Body, to_bytes};
    use axum::http::request::Builder;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use serde::de::DeserializeOwned;
    use tokio::sync::{mpsc, watch};
    use varta_api::v1::Info;
    use varta_core::{Counter, Counters, Refusal as Refused, SlotTable};

    use super::super::answers::VARY_BY_CODING;
    use super::super::events::FOLLOWERS_MAX;
    use super::*;
    use crate::beat_path_state::BeatPathState;
    use crate::beat_queue::Depth;
    use crate::clock::RawClock;
    use crate::handoff;
    use crate::report::history::History;
    use crate::settings::http::AgentSeries;
    use crate::snapshot::view::About;

    /// Answers of an observer without a beat path.
    fn answers() -> (Arc<Answers>, watch::Sender<Stage>) {
        let beat_path = Arc::new(BeatPathState::new(RawClock::start()));
        let (updates, _) = handoff::updates().unwrap();
        let view = View {
            about: About {
                session_id: "run".to_owned(),
                started: SystemTime::UNIX_EPOCH,
                capacity: 1,
                agents_per_user: 6,
                socket: String::new(),
                udp: None,
                queue: Depth {
                    datagrams: 8192,
                    shallow: None,
                },
            },
            table: Arc::new(SlotTable::on_heap(1)),
            directory: Arc::default(),
            no_room: Arc::default(),
            counters: Arc::new(Counters::default()),
            probe: updates.liveness_probe(Arc::clone(&beat_path)),
            beat_path,
            control: Arc::default(),
        };
        let (sender, stage) = watch::channel(Stage::Running);
        let (commands, _) = mpsc::channel(1);
        let history = Arc::new(History::default());
        let answers = Answers::new(Arc::new(view), history, commands, AgentSeries::All, stage);
        (answers, sender)
    }

    async fn ask(answers: &Arc<Answers>, path: &str) -> Response {
        send(answers, Request::builder().uri(path)).await
    }

    async fn send(answers: &Arc<Answers>, request: Builder) -> Response {
        let router = TowerToHyperService::new(router(Arc::clone(answers)));
        let request = request.body(Body::empty()).unwrap();
        router.call(request).await.unwrap()
    }

    async fn status_of(answers: &Arc<Answers>, path: &str) -> StatusCode {
        ask(answers, path).await.status()
    }

    async fn json_of<T: DeserializeOwned>(response: Response) -> T {
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn the_observer_says_how_many_expected_agents_are_missing() {
        let (answers, _stage) = answers();
        answers.view.control.set_agents_missing(2);
        let info: Info = json_of(ask(&answers, "/api/v1/info").await).await;
        assert_eq!(info.missing, 2);
    }

    #[tokio::test]
    async fn a_beat_path_that_does_not_turn_is_not_healthy() {
        let (answers, _stage) = answers();
        let status = status_of(&answers, "/healthz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        answers.view.beat_path.set_last_turn(u64::MAX);
        assert_eq!(status_of(&answers, "/healthz").await, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_observer_that_stops_is_not_ready() {
        let (answers, stage) = answers();
        assert_eq!(status_of(&answers, "/readyz").await, StatusCode::OK);
        stage.send(Stage::Stopping).unwrap();
        let status = status_of(&answers, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }

    async fn text_of(answers: &Arc<Answers>, path: &str) -> (StatusCode, String) {
        let response = ask(answers, path).await;
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn an_observer_whose_table_is_full_while_newcomers_beat_is_not_ready_and_says_why() {
        let (answers, _stage) = answers();
        let view = &answers.view;
        let sender = varta_core::Sender {
            pid: 7,
            source: None,
        };
        let refuse = |reason| view.no_room.note(sender, reason, std::time::Instant::now());
        refuse(Refused::UserShareExceeded { uid: 1000 });
        let share = "newcomers of uid 1000 found its share of 6 agents full within the last minute and \
                     are not watched (--max-agents-per-user)\n";
        let said = text_of(&answers, "/readyz").await;
        assert_eq!(said, (StatusCode::OK, format!("ready\n{share}")));
        let capacity = view.about.capacity;
        view.beat_path.set_local_agents(capacity as u64);
        let (status, text) = text_of(&answers, "/readyz").await;
        assert_eq!(status, StatusCode::OK, "nobody was refused for that");
        assert!(text.starts_with("ready\nthe table is full\n"), "{text}");
        refuse(Refused::CapacityExceeded);
        let (status, text) = text_of(&answers, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let full = format!("not ready\nnewcomers found the table of {capacity} agents full");
        assert!(text.starts_with(&full), "{text}");
        view.beat_path.set_local_agents(capacity as u64 - 1);
        assert_eq!(status_of(&answers, "/readyz").await, StatusCode::OK);
        let info: Info = json_of(ask(&answers, "/api/v1/info").await).await;
        assert_eq!((info.full, info.no_room.len()), (false, 2));
    }

    #[tokio::test]
    async fn an_observer_that_stops_says_so_at_once_instead_of_waiting_for_its_beat_path() {
        let (answers, stage) = answers();
        let stop = async { stage.send(Stage::Stopping).unwrap() };
        let (waited, ()) = tokio::join!(ask(&answers, "/healthz"), stop);
        let at_once = tokio::select! {
            biased;
            response = ask(&answers, "/healthz") => response,
            () = std::future::ready(()) => panic!("it waits"),
        };
        for response in [waited, at_once] {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let health: Health = json_of(response).await;
            assert_eq!((health.healthy, health.stopping), (false, true));
        }
    }

    #[tokio::test]
    async fn who_says_that_nothing_is_to_follow_gets_a_page_whatever_is_accepted() {
        let (answers, _stage) = answers();
        let content_type = async |query: &str| {
            let request = Request::builder()
                .uri(format!("/api/v1/events{query}"))
                .header(header::ACCEPT, "text/event-stream");
            let response = send(&answers, request).await;
            assert_eq!(response.headers()[header::VARY], VARY_BY_FORM, "{query}");
            response.headers()[header::CONTENT_TYPE].clone()
        };
        assert_eq!(content_type("").await, "text/event-stream");
        assert_eq!(content_type("?follow=true").await, "text/event-stream");
        assert_eq!(content_type("?follow=false").await, JSON);
    }

    #[tokio::test]
    async fn an_answer_says_which_headers_it_depends_on() {
        let (answers, _stage) = answers();
        for (path, vary) in [
            ("/metrics", VARY_BY_FORM),
            ("/api/v1/events", VARY_BY_FORM),
            ("/api/v1/agents", VARY_BY_CODING),
        ] {
            let response = ask(&answers, path).await;
            assert_eq!(response.headers()[header::VARY], vary, "{path}");
        }
    }

    #[tokio::test]
    async fn a_follower_too_many_is_refused_and_told_to_come_back() {
        let (answers, _stage) = answers();
        let mut followers = Vec::new();
        for _ in 0..FOLLOWERS_MAX {
            let follower = ask(&answers, "/api/v1/events?follow=true").await;
            assert_eq!(follower.status(), StatusCode::OK);
            followers.push(follower);
        }
        let refused = ask(&answers, "/api/v1/events?follow=true").await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(answers.view.counters.get(Counter::HttpBusy), 1);
        followers.pop();
        let again = status_of(&answers, "/api/v1/events?follow=true").await;
        assert_eq!(again, StatusCode::OK);
    }
}
