//! The changes: an agent is paused, or resumed.
//!
//! Over TCP a change takes the token, on loopback too; the control socket is the operator's own. A request has a body
//! of [`BODY_BYTES_MAX`] at most, within [`BODY_WAIT`], and declares it as JSON, which a web page cannot make a
//! browser do without permission. The control thread decides; its decision is answered once its effect is visible.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use varta_api::v1::{PAUSE_SECONDS_MAX, PauseRequest, REASON_CHARS_MAX, ResumeRequest};
use varta_core::engine::{AgentGone, Command};

use super::answers::{AgentId, Answers, Shared, no_such_agent, stops};
use super::guard::Onlooker;
use super::problem::Refusal;
use crate::handoff::command::CommandRequest;
use crate::snapshot::view::AgentSnapshot;

/// A request is a hundred bytes long; a reason takes 800 at most.
const BODY_BYTES_MAX: usize = 4096;

/// Longest time for a body: 5 s, since it directly follows its head.
const BODY_WAIT: Duration = Duration::from_secs(5);

/// How long the beat path may take to apply an update. It takes microseconds.
const DONE_WAIT: Duration = Duration::from_secs(1);

/// Interval of the check whether it has.
const DONE_PAUSE: Duration = Duration::from_millis(1);

pub(super) fn routes() -> Router<Arc<Answers>> {
    Router::new()
        .route("/agents/{id}/pause", post(pause))
        .route("/agents/{id}/resume", post(resume))
        .route_layer(from_fn(no_onlookers))
}

/// Any client that can reach the port may read. A client that changes something must present the token.
async fn no_onlookers(request: Request, next: Next) -> Response {
    let may_not = request.method() == axum::http::Method::POST
        && request.extensions().get::<Onlooker>().is_some();
    if !may_not {
        return next.run(request).await;
    }
    Refusal::new(
        StatusCode::FORBIDDEN,
        "nothing is changed over TCP without a token: give the observer one with --http-token-file, or ask \
         over its control socket, as 'varta pause' does",
    )
    .into_response()
}

async fn pause(
    State(answers): Shared,
    id: AgentId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let request: PauseRequest = read(&headers, body).await?;
    let time = time(request.seconds)?;
    let reason = reason(request.reason)?;
    let seen = Arc::clone(&answers).find(id).await?;
    let command = Command::Pause {
        agent: seen.agent,
        time,
        reason,
    };
    carry_out(&answers, &seen, command).await
}

async fn resume(
    State(answers): Shared,
    id: AgentId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let ResumeRequest {} = read(&headers, body).await?;
    let seen = Arc::clone(&answers).find(id).await?;
    let command = Command::Resume { agent: seen.agent };
    carry_out(&answers, &seen, command).await
}

/// Sends a command about an agent, and shows the agent once the beat path has applied it. Commands of other clients
/// at the same moment may be applied by then, too, and are not waited for.
async fn carry_out(
    answers: &Answers,
    seen: &AgentSnapshot,
    command: Command,
) -> Result<Response, Refusal> {
    let (reply, done) = oneshot::channel();
    let request = CommandRequest { command, reply };
    answers.commands.send(request).await.map_err(|_| stops())?;
    let done = done.await.map_err(|_| stops())?;
    let update = done.map_err(|AgentGone| no_such_agent())?;
    let started = Instant::now();
    while !answers.view.probe.has_done(update) {
        if started.elapsed() > DONE_WAIT {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the beat path has not done it within a second, and will when it turns again; see /healthz",
            ));
        }
        tokio::time::sleep(DONE_PAUSE).await;
    }
    let now = answers.view.again(seen.agent).ok_or_else(no_such_agent)?;
    Ok(Json(answers.view.show(&now)).into_response())
}

async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Refusal> {
    if !is_json(headers) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send a JSON object and say 'Content-Type: application/json'",
        ));
    }
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let body = timeout(BODY_WAIT, whole(body)).await.map_err(|_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not come within 5 s",
        )
    })?;
    object(&body?)
}

/// The whole body, if it ends within the bound.
async fn whole(body: Body) -> Result<Vec<u8>, Refusal> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Refusal::bad_request("the body is not whole"))?;
        if bytes.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn too_large() -> Refusal {
    let detail = format!("a body has {BODY_BYTES_MAX} bytes at most");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

/// Members are identified by their names: an array, whose members could be read in order, is refused.
fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::bad_request(
            "the body is something else: send a JSON object; / shows an example",
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        Refusal::bad_request(format!(
            "the body is not what is read here ({error}); / shows an example"
        ))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return false;
    };
    let media_type = value.to_str().unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

fn time(seconds: f64) -> Result<Duration, Refusal> {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    match time.is_zero() || seconds > PAUSE_SECONDS_MAX {
        true => Err(Refusal::bad_request(format!(
            "for: give a number of seconds above 0, {PAUSE_SECONDS_MAX} at most (30 days)"
        ))),
        false => Ok(time),
    }
}

/// An empty reason is no reason.
fn reason(text: Option<String>) -> Result<Option<String>, Refusal> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match text.chars().count() > REASON_CHARS_MAX || text.chars().any(char::is_control) {
        true => Err(Refusal::bad_request(format!(
            "reason: give up to {REASON_CHARS_MAX} characters in one line, without control characters"
        ))),
        false => Ok(Some(text)),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn json_is_what_is_called_so_once() {
        let headers = |values: &[&'static str]| {
            let values = values.iter().copied().map(HeaderValue::from_static);
            values
                .map(|value| (header::CONTENT_TYPE, value))
                .collect::<HeaderMap>()
        };
        for value in ["application/json", "Application/JSON ; charset=utf-8"] {
            assert!(is_json(&headers(&[value])), "{value}");
        }
        for values in [
            &[][..],
            &["text/plain"],
            &["application/jsonp"],
            &["application/x-www-form-urlencoded"],
            &["text/plain; application/json"],
            &["application/json", "text/plain"],
        ] {
            assert!(!is_json(&headers(values)), "{values:?}");
        }
    }

    fn detail<T: std::fmt::Debug>(refused: Result<T, Refusal>) -> String {
        format!("{:?}", refused.unwrap_err())
    }

    #[test]
    fn only_an_object_is_read() {
        assert!(object::<ResumeRequest>(b" {} ").is_ok());
        for text in ["", "[]", "[5,\"arr\"]", "null", "5", "\"{}\""] {
            let told = detail(object::<PauseRequest>(text.as_bytes()));
            assert!(told.contains("send a JSON object"), "{text}: {told}");
            assert!(object::<ResumeRequest>(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_object_is_told_in_the_words_of_json() {
        for (text, words) in [
            (r#"{"for":"5"}"#, "expected a JSON number"),
            (r#"{"for":null}"#, "expected a JSON number"),
            (r#"{"for":[5]}"#, "expected a JSON number"),
            (r#"{"for":5,"reason":7}"#, "expected a string"),
            (r#"{"for":5,"for":6}"#, "duplicate field"),
        ] {
            let told = detail(object::<PauseRequest>(text.as_bytes()));
            assert!(told.contains(words), "{text}: {told}");
            for name in ["f64", "struct", "Request"] {
                assert!(!told.contains(name), "{text}: {told}");
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_not_taken_for_one_that_is_too_long() {
        let chunks = |last: Result<String, &'static str>| {
            let first = Ok("x".repeat(BODY_BYTES_MAX));
            Body::from_stream(tokio_stream::iter([first, last]))
        };
        let whole = async |last| super::whole(chunks(last)).await;
        assert_eq!(
            whole(Ok(String::new())).await.unwrap().len(),
            BODY_BYTES_MAX
        );
        let too_long = detail(whole(Ok("x".to_owned())).await);
        assert!(too_long.contains("413"), "{too_long}");
        let broken = detail(whole(Err("no end")).await);
        assert!(
            broken.contains("400") && broken.contains("not whole"),
            "{broken}"
        );
    }

    #[test]
    fn a_pause_is_longer_than_nothing_and_not_longer_than_30_days() {
        for seconds in [1e-9, 0.5, 600.0, PAUSE_SECONDS_MAX] {
            assert_eq!(time(seconds).unwrap(), Duration::from_secs_f64(seconds));
        }
        for seconds in [
            0.0,
            -1.0,
            1e-12,
            PAUSE_SECONDS_MAX + 1.0,
            f64::NAN,
            f64::INFINITY,
        ] {
            assert!(time(seconds).is_err(), "{seconds}");
        }
    }

    #[test]
    fn a_reason_is_a_short_line() {
        assert_eq!(reason(None).unwrap(), None);
        assert_eq!(reason(Some(String::new())).unwrap(), None);
        let long = "ü".repeat(REASON_CHARS_MAX);
        assert_eq!(reason(Some(long.clone())).unwrap(), Some(long.clone()));
        for text in [long + "x", "a\nb".to_owned(), "\u{1b}[2J".to_owned()] {
            assert!(reason(Some(text)).is_err());
        }
    }
}
