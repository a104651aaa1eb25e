//! Access over TCP: a rate limit, the token if there is one, and no web page on behalf of a user.
//!
//! The control socket has no guard: its permissions are its protection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use varta_core::{Counter, Counters};

use super::problem::Refusal;
use super::rate::{Admission, Sources};
use crate::token::TokenFile;

/// The source of a request; added to every request over TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Added to every request over TCP that proved nothing, since there is no token: it may read, and change nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Onlooker;

/// The requirements of the TCP listener.
#[derive(Debug)]
pub(crate) struct Guard {
    token: Option<Arc<TokenFile>>,
    sources: Mutex<Buckets>,
    counters: Arc<Counters>,
}

/// Requests with a valid token and those without are limited separately: processes behind one address must not use up
/// the budget of the one among them that has the token.
#[derive(Debug, Default)]
struct Buckets {
    passed: Sources,
    refused: Sources,
}

impl Guard {
    pub(crate) fn new(token: Option<Arc<TokenFile>>, counters: Arc<Counters>) -> Self {
        Self {
            token,
            sources: Mutex::default(),
            counters,
        }
    }

    /// Lets a request pass or answers why not.
    pub(crate) async fn check(
        State(guard): State<Arc<Self>>,
        mut request: Request,
        next: Next,
    ) -> Response {
        match guard.judge(&request) {
            Ok(()) => {
                if guard.token.is_none() {
                    request.extensions_mut().insert(Onlooker);
                }
                next.run(request).await
            }
            Err(refusal) => refusal.into_response(),
        }
    }

    fn judge(&self, request: &Request) -> Result<(), Refusal> {
        let judged = match &self.token {
            Some(token) => authorize(token, request.headers()),
            None => check_host(request),
        };
        if let Some(Peer(address)) = request.extensions().get()
            && let Some(wait) = self.excess_of(*address, judged.is_ok())
        {
            return Err(too_many(wait));
        }
        if judged.is_err() && self.token.is_some() {
            self.counters.count(Counter::HttpAuthFailures);
        }
        judged
    }

    /// How long a source with too many requests must wait.
    fn excess_of(&self, address: IpAddr, passes: bool) -> Option<Duration> {
        let mut buckets = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let sources = match passes {
            true => &mut buckets.passed,
            false => &mut buckets.refused,
        };
        match sources.admit(address, Instant::now()) {
            Admission::Admitted => None,
            Admission::AdmittedInsteadOf => {
                self.counters.count(Counter::HttpSourceForgotten);
                None
            }
            Admission::TooMany(wait) => {
                self.counters.count(Counter::HttpRateLimited);
                Some(wait)
            }
        }
    }
}

fn authorize(token: &TokenFile, headers: &HeaderMap) -> Result<(), Refusal> {
    if bearer(headers).is_some_and(|guess| token.is(guess)) {
        return Ok(());
    }
    let scheme = HeaderValue::from_static(r#"Bearer realm="varta""#);
    Err(Refusal::new(
        StatusCode::UNAUTHORIZED,
        "say 'Authorization: Bearer TOKEN' with the token of --http-token-file",
    )
    .with(header::WWW_AUTHENTICATE, scheme))
}

fn too_many(wait: Duration) -> Refusal {
    let seconds = wait.as_secs() + 1;
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        "this address has asked too often; ask again later, or over the control socket, where no rate is limited",
    )
    .with(header::RETRY_AFTER, seconds.into())
}

/// The token of a request: from exactly one `Authorization` header, after the scheme in any case.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return None;
    };
    let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

/// Without a token, the author of any page in a browser of this host could have the page send requests to the
/// observer under a name that resolves to this address by now (DNS rebinding). Such a page cannot make the browser
/// use the address itself. With a token there is no such risk: no page has it, and scrapers may use a name.
fn check_host(request: &Request) -> Result<(), Refusal> {
    let refused = |status, detail: &str| Err(Refusal::new(status, detail));
    match host(request) {
        Ok(None) => Ok(()),
        Ok(Some(host)) if is_own(host.as_str()) => Ok(()),
        Ok(Some(_)) => refused(
            StatusCode::MISDIRECTED_REQUEST,
            "without --http-token-file this is answered under an IP address or as localhost only",
        ),
        Err(()) => refused(StatusCode::BAD_REQUEST, "give exactly one Host"),
    }
}

/// The host that a request names; before HTTP/1.1 it is optional.
fn host(request: &Request) -> Result<Option<Authority>, ()> {
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(authority.clone()));
    }
    let mut given = request.headers().get_all(header::HOST).iter();
    match (given.next(), given.next()) {
        (None, _) if request.version() == Version::HTTP_10 => Ok(None),
        (Some(host), None) => {
            let host = host.to_str().map_err(drop)?;
            Authority::from_str(host).map(Some).map_err(drop)
        }
        _ => Err(()),
    }
}

/// Whether a host, with or without a port, is an IP address or `localhost`. The whole text must be exactly that:
/// nothing may precede the host, or be between it and the port.
fn is_own(authority: &str) -> bool {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host,
        _ => authority,
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match bracketed {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.eq_ignore_ascii_case("localhost") || host.parse::<Ipv4Addr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn authorizations(values: &[&str]) -> HeaderMap {
        let values = values
            .iter()
            .map(|value| HeaderValue::from_str(value).unwrap());
        values.map(|value| (header::AUTHORIZATION, value)).collect()
    }

    fn hosts(uri: &str, version: Version, values: &[&str]) -> Option<StatusCode> {
        let mut request = Request::builder().uri(uri).version(version);
        for value in values {
            request = request.header(header::HOST, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let refused = check_host(&request).err()?;
        Some(refused.into_response().status())
    }

    #[test]
    fn those_that_are_refused_take_nothing_from_those_that_pass() {
        let guard = Guard::new(None, Arc::default());
        let status = |host: &str| {
            let request = Request::builder().header(header::HOST, host);
            let request = request.extension(Peer(IpAddr::from([192, 0, 2, 1])));
            let judged = guard.judge(&request.body(Body::empty()).unwrap());
            judged.err().map(|refusal| refusal.into_response().status())
        };
        let too_many = Some(StatusCode::TOO_MANY_REQUESTS);
        assert!((0..1000).any(|_| status("evil.example") == too_many));
        assert_eq!(status("127.0.0.1"), None);
        assert!((0..1000).any(|_| status("127.0.0.1") == too_many));
    }

    #[test]
    fn a_token_follows_the_word_bearer_in_any_case() {
        let token = |values: &[&str]| {
            let headers = authorizations(values);
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(token(&["Bearer abc"]), Some(b"abc".to_vec()));
        assert_eq!(token(&["bEARER  abc "]), Some(b"abc".to_vec()));
        for values in [
            &["Basic abc"][..],
            &["Bearer"],
            &["abc"],
            &[],
            &["Bearer abc", "Bearer abc"],
        ] {
            assert_eq!(token(values), None, "{values:?}");
        }
    }

    #[test]
    fn addresses_and_localhost_are_answered_and_names_are_not() {
        for host in [
            "127.0.0.1:8278",
            "10.0.0.7",
            "[::1]:8278",
            "[::1]",
            "LocalHost:1",
        ] {
            assert_eq!(hosts("/", Version::HTTP_11, &[host]), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:8278",
            "127.0.0.1.example",
            "127.0.0.1@evil.example",
            "evil@127.0.0.1",
            "evil:1@127.0.0.1:8278",
            "evil@localhost",
            "[::1].evil.example",
            "[::1].evil.example:8278",
            "[::1]evil",
            "[127.0.0.1]",
            "localhost.",
        ] {
            let refused = Some(StatusCode::MISDIRECTED_REQUEST);
            assert_eq!(hosts("/", Version::HTTP_11, &[host]), refused, "{host}");
        }
    }

    #[test]
    fn the_address_in_the_request_line_counts_before_the_header() {
        let refused = Some(StatusCode::MISDIRECTED_REQUEST);
        let uri = "http://evil.example/";
        assert_eq!(hosts(uri, Version::HTTP_11, &["127.0.0.1"]), refused);
    }

    #[test]
    fn a_missing_or_second_host_is_a_bad_request_except_before_http_1_1() {
        let refused = Some(StatusCode::BAD_REQUEST);
        assert_eq!(hosts("/", Version::HTTP_11, &[]), refused);
        assert_eq!(
            hosts("/", Version::HTTP_11, &["127.0.0.1", "127.0.0.1"]),
            refused
        );
        assert_eq!(hosts("/", Version::HTTP_11, &["a b"]), refused);
        assert_eq!(hosts("/", Version::HTTP_10, &[]), None);
    }
}
