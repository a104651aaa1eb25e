//! The client of the observer: requests over its control socket, answers as the types of [`v1`].
//!
//! Each request has a connection of its own, so an observer that was restarted in between does no harm. A request is
//! repeated if the observer is at its limit. An answer may take [`ANSWER_WAIT`] and be [`ANSWER_BYTES_MAX`] long. An
//! error names the socket and the fix.

mod event_stream;
mod place;

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use varta_api::printable;
use varta_api::v1::{
    self, AgentView, AgentsPage, EventsPage, Health, Info, PauseRequest, Problem, ResumeRequest,
};

use crate::Failure;
pub(crate) use event_stream::Message;
use event_stream::Parser;
use place::Given;
pub(crate) use place::{ObserverArguments, beat_socket};

/// How long an answer may take. An observer answers within milliseconds; a caller that checks health needs the result
/// soon.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// How long a request to an observer at its limit is repeated: 2 s, which leaves time to read its last answer.
const RETRY_WAIT: Duration = Duration::from_secs(2);

/// Pause before a request to an observer at its limit is repeated. The observer has capacity again within
/// milliseconds; more frequent requests take some of it.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// The longest answer that is read. A page of agents has a megabyte at most; a longer answer is not an observer's,
/// and must not fill the memory.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Most pages of agents that are requested: four million agents. An observer that always has one more page must not
/// keep the command busy forever.
const PAGES_MAX: usize = 4096;

/// Why there is no answer, with the fix.
#[derive(Debug)]
pub(crate) struct RequestError(String);

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An observer to send requests to.
#[derive(Debug)]
pub(crate) struct Observer {
    control: PathBuf,
    /// The source of its address.
    given_by: &'static str,
    runtime: Runtime,
}

/// The position at which a follower continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// After the event with this number, of any run.
    After(u64),
    /// After this event of this run; with another run, from its first event.
    Event { session_id: String, id: u64 },
}

/// Events as they happen.
#[derive(Debug)]
pub(crate) struct LiveEvents<'a> {
    observer: &'a Observer,
    body: Incoming,
    parser: Parser,
}

impl Observer {
    pub(crate) fn find(arguments: &ObserverArguments) -> Result<Self, Failure> {
        let control = Given::control_socket(arguments)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::Run(format!("cannot wait for answers: {error}")))?;
        Ok(Self {
            control: control.path,
            given_by: control.by,
            runtime,
        })
    }

    pub(crate) fn info(&self) -> Result<Info, RequestError> {
        self.get(&format!("{}/info", v1::PREFIX))
    }

    /// An observer that is not healthy reports that with an error status.
    pub(crate) fn health(&self) -> Result<Health, RequestError> {
        let path = "/healthz";
        match self.answer(path)? {
            (StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE, body) => self.read(path, &body),
            (status, body) => Err(self.refused(path, status, &body)),
        }
    }

    /// Every agent, by pid: in that order no agent moves from one page to another, whatever happens meanwhile.
    pub(crate) fn agents(&self) -> Result<Vec<AgentView>, RequestError> {
        let first = format!("{}/agents?sort=pid&limit={}", v1::PREFIX, v1::PAGE_MAX);
        let mut path = first.clone();
        let mut agents = Vec::new();
        for _ in 0..PAGES_MAX {
            let page: AgentsPage = self.get(&path)?;
            agents.extend(page.agents);
            match page.next {
                Some(next) => path = format!("{first}&after={}", percent_encoded(&next)),
                None => return Ok(agents),
            }
        }
        let given_by = self.given_by;
        Err(self.unanswered(&format!("the list of agents has no end; check {given_by}")))
    }

    /// The latest events, or the first ones after `after`; oldest first, each unchanged.
    pub(crate) fn events(
        &self,
        after: Option<u64>,
        limit: u64,
    ) -> Result<EventsPage<Box<RawValue>>, RequestError> {
        let after = after.map_or(String::new(), |id| format!("&after={id}"));
        self.get(&format!("{}/events?limit={limit}{after}", v1::PREFIX))
    }

    /// The events after a position, from the kept ones to future ones. The request is not repeated: a follower
    /// retries anyway.
    pub(crate) fn follow(&self, position: &Position) -> Result<LiveEvents<'_>, RequestError> {
        let path = format!("{}/events", v1::PREFIX);
        let request = match position {
            Position::After(id) => Request::get(format!("{path}?after={id}")),
            Position::Event { session_id, id } => {
                Request::get(&path).header("last-event-id", format!("{session_id}-{id}"))
            }
        };
        let request = request.header(ACCEPT, event_stream::CONTENT_TYPE);
        self.in_time(async {
            let request = self.complete(request, Bytes::new())?;
            let response = self.send_once(request).await?;
            let response = response.ok_or_else(|| self.hung_up())?;
            match response.status() {
                StatusCode::OK => Ok(LiveEvents {
                    observer: self,
                    body: response.into_body(),
                    parser: Parser::default(),
                }),
                status => {
                    let body = self.body(response).await?;
                    Err(self.refused(&path, status, &body))
                }
            }
        })
    }

    /// The agent as it is from now on; `None` if it has left.
    pub(crate) fn pause(
        &self,
        id: &str,
        request: &PauseRequest,
    ) -> Result<Option<AgentView>, RequestError> {
        self.change(id, "pause", request)
    }

    /// The same.
    pub(crate) fn resume(&self, id: &str) -> Result<Option<AgentView>, RequestError> {
        self.change(id, "resume", &ResumeRequest {})
    }

    fn change(
        &self,
        id: &str,
        what: &str,
        request: &impl Serialize,
    ) -> Result<Option<AgentView>, RequestError> {
        let path = format!("{}/agents/{}/{what}", v1::PREFIX, percent_encoded(id));
        // Numbers and texts: serialization cannot fail.
        let body = serde_json::to_vec(request).unwrap_or_default();
        let request = Request::post(&path)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json");
        let (status, body) = self.in_time(async {
            let response = self.send(request, body.into()).await?;
            Ok((response.status(), self.body(response).await?))
        })?;
        match status {
            StatusCode::OK => self.read(&path, &body).map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(self.refused(&path, status, &body)),
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        match self.answer(path)? {
            (StatusCode::OK, body) => self.read(path, &body),
            (status, body) => Err(self.refused(path, status, &body)),
        }
    }

    fn answer(&self, path: &str) -> Result<(StatusCode, Bytes), RequestError> {
        self.in_time(async {
            let request = Request::get(path).header(ACCEPT, "application/json");
            let response = self.send(request, Bytes::new()).await?;
            Ok((response.status(), self.body(response).await?))
        })
    }

    fn in_time<T>(
        &self,
        question: impl Future<Output = Result<T, RequestError>>,
    ) -> Result<T, RequestError> {
        let answer = self
            .runtime
            .block_on(async { timeout(ANSWER_WAIT, question).await });
        answer.unwrap_or_else(|_| {
            let wait = ANSWER_WAIT.as_secs();
            Err(self.unanswered(&format!(
                "no answer within {wait} s; the observer hangs or is stopped: see its log, restart it"
            )))
        })
    }

    /// Repeats a request until the observer takes it, for [`RETRY_WAIT`] at most. Returns the last answer.
    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, RequestError> {
        let request = self.complete(request, body)?;
        let retry_until = Instant::now() + RETRY_WAIT;
        let mut answer = self.send_once(request.clone()).await?;
        while answer.as_ref().is_none_or(is_busy) {
            let retry = async {
                sleep(BUSY_PAUSE).await;
                self.send_once(request.clone()).await
            };
            // An answer that arrives too late does not replace the one before.
            let Ok(retried) = timeout_at(retry_until, retry).await else {
                break;
            };
            answer = retried?;
        }
        answer.ok_or_else(|| self.hung_up())
    }

    fn complete(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, RequestError> {
        let request = request.header(HOST, "localhost").body(Full::new(body));
        request.map_err(|error| self.no_observer(&error))
    }

    /// `None` if the observer closed the connection, as one with too many connections does: its answer is lost if the
    /// request is still being sent.
    async fn send_once(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Option<Response<Incoming>>, RequestError> {
        let stream = UnixStream::connect(&self.control)
            .await
            .map_err(|error| self.not_connected(&error))?;
        self.check_peer(&stream)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.no_observer(&error))?;
        // It ends with the connection. The answer reports its errors.
        tokio::spawn(connection);
        match sender.send_request(request).await {
            Ok(response) => Ok(Some(response)),
            Err(error) if error.is_parse() => Err(self.no_observer(&error)),
            Err(_) => Ok(None),
        }
    }

    fn hung_up(&self) -> RequestError {
        let given_by = self.given_by;
        self.unanswered(&format!(
            "it hangs up without an answer; too many may be asking it, or it is no observer: check {given_by}"
        ))
    }

    fn no_observer(&self, error: &dyn fmt::Display) -> RequestError {
        let given_by = self.given_by;
        self.unanswered(&format!(
            "what answers is no observer ({error}); check {given_by}"
        ))
    }

    /// A user that may create files in the socket's directory could answer in the observer's name.
    fn check_peer(&self, stream: &UnixStream) -> Result<(), RequestError> {
        let uids = || {
            let owner = std::fs::metadata(&self.control)?.uid();
            io::Result::Ok((stream.peer_cred()?.uid(), owner))
        };
        let (peer, owner) = uids().map_err(|error| self.not_connected(&error))?;
        match may_answer(peer, geteuid().as_raw(), owner) {
            true => Ok(()),
            false => Err(self.unanswered(&format!(
                "uid {peer} listens there, neither you nor root, so what it says is not believed; name the \
                 observer's socket with --socket or --control-socket"
            ))),
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, RequestError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await;
        body.map(http_body_util::Collected::to_bytes)
            .map_err(|error| {
                let given_by = self.given_by;
                self.unanswered(&format!(
                    "the answer is not whole ({error}); try again, or check {given_by}"
                ))
            })
    }

    fn read<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, RequestError> {
        serde_json::from_slice(body).map_err(|error| {
            self.unanswered(&format!(
                "the answer to {path} is not understood ({error}); is the observer of another version \
                 than this varta, {}?",
                env!("CARGO_PKG_VERSION")
            ))
        })
    }

    /// An observer reports the reason itself.
    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> RequestError {
        let why = match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => problem.detail,
            Err(_) => "is this the control socket of an observer as new as this varta?".to_owned(),
        };
        self.unanswered(&format!("{path} is answered with {status}: {why}"))
    }

    fn not_connected(&self, error: &io::Error) -> RequestError {
        let control = self.control.display();
        let fix = match Errno::from_io_error(error) {
            Some(Errno::NOENT | Errno::CONNREFUSED) => {
                return RequestError(format!(
                    "no observer answers on {control}; start varta-watch, or name its socket with \
                     --socket or --control-socket"
                ));
            }
            Some(Errno::ACCESS) => "ask as root or as the observer's user",
            Some(Errno::PROTOTYPE) => "that is a beat socket: name it with --socket",
            Some(Errno::AGAIN) => "the observer does not take questions: see its log, restart it",
            _ => &format!("check {}", self.given_by),
        };
        RequestError(format!("{control}: {error}; {fix}"))
    }

    /// Part of the text may be untrusted.
    fn unanswered(&self, why: &str) -> RequestError {
        RequestError(printable(&format!("{}: {why}", self.control.display())))
    }
}

impl LiveEvents<'_> {
    /// The next messages, one or several. Waits without limit; the end of the stream is an error.
    pub(crate) fn next(&mut self) -> Result<Vec<Message>, RequestError> {
        let frame = self.observer.runtime.block_on(self.body.frame());
        let lost = |why: &dyn fmt::Display| {
            self.observer
                .unanswered(&format!("events do not come any more ({why})"))
        };
        // The cause adds nothing for a reader.
        let frame = frame
            .ok_or_else(|| lost(&"the observer has stopped"))?
            .map_err(|_| lost(&"the observer has ended or the connection broke"))?;
        let bytes = frame.into_data().unwrap_or_default();
        self.parser.push(&bytes).map_err(|error| lost(&error))
    }
}

/// Whether an observer is at its limit and wants the request to be repeated.
fn is_busy<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::SERVICE_UNAVAILABLE
        && response.headers().contains_key(RETRY_AFTER)
}

/// Whether `own` trusts the answers of `peer` on a socket of `owner`. Root sends requests to the observers of other
/// users, each on its own socket.
fn may_answer(peer: u32, own: u32, owner: u32) -> bool {
    const ROOT: u32 = 0;
    let is_known = peer == own || peer == ROOT || (own == ROOT && peer == owner);
    is_known && varta_sys::users::unmapped_uid() != Some(peer)
}

/// A value for a query, with any content.
fn percent_encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encoded = value.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    encoded.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_a_query_cannot_say_more_than_a_value() {
        assert_eq!(percent_encoded("42-a1"), "42-a1");
        assert_eq!(percent_encoded("a&b=ü %"), "a%26b%3D%C3%BC%20%25");
    }

    #[test]
    fn only_oneself_and_root_are_believed_and_by_root_the_owner_of_the_socket() {
        assert!(may_answer(1000, 1000, 1000));
        assert!(may_answer(0, 1000, 0));
        assert!(may_answer(1000, 0, 1000));
        assert!(!may_answer(1001, 1000, 1001));
        assert!(!may_answer(1001, 0, 1000));
    }

    #[test]
    fn each_way_not_to_be_connected_names_the_socket_and_the_fix() {
        let observer = Observer::find(&ObserverArguments {
            socket: Some("/s/varta.sock".into()),
            control_socket: None,
        })
        .unwrap();
        for (errno, fix) in [
            (Errno::NOENT, "start varta-watch"),
            (Errno::CONNREFUSED, "start varta-watch"),
            (Errno::ACCESS, "as root"),
            (Errno::PROTOTYPE, "name it with --socket"),
            (Errno::AGAIN, "restart it"),
            (Errno::NOTDIR, "check --socket"),
        ] {
            let why = observer.not_connected(&errno.into()).to_string();
            assert!(why.contains("/s/varta.sock.control"), "{why}");
            assert!(why.contains(fix), "{why}");
        }
    }
}
