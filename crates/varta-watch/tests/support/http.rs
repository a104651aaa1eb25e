//! Raw HTTP: requests as bytes, answers as their parts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use varta_api::v1::{Health, Problem};

use super::{Event, LogLine};
use super::{Observer, PATIENCE};

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Parses an answer that was read to its end.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(bytes)));
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self {
            status: status.parse().unwrap(),
            headers: lines.map(header).collect(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// All bytes until the other end closes.
pub(crate) fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A client that is disconnected in the middle of a request may get a reset instead of an end.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// A request as bytes, after which the connection closes.
pub(crate) fn request(path: &str, headers: &[&str]) -> Vec<u8> {
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

impl Observer {
    /// Its TCP address.
    pub(crate) fn http_address(&self) -> SocketAddr {
        self.start_line().text("http").unwrap().parse().unwrap()
    }

    /// Its control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.start_line().text("control").unwrap().into()
    }

    pub(crate) fn connect_tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.http_address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn connect_control(&self) -> UnixStream {
        let stream = UnixStream::connect(self.control_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes over TCP and reads to the end.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect_tcp();
        stream.write_all(bytes).unwrap();
        Reply::parse(&read_all(&mut stream))
    }

    /// Sends a request over TCP.
    pub(crate) fn get(&self, path: &str, headers: &[&str]) -> Reply {
        self.exchange(&request(path, headers))
    }

    /// Sends a request over the control socket, which has no rate limit.
    pub(crate) fn ask(&self, path: &str) -> Reply {
        self.ask_with(path, &[])
    }

    pub(crate) fn ask_with(&self, path: &str, headers: &[&str]) -> Reply {
        let mut stream = self.connect_control();
        stream.write_all(&request(path, headers)).unwrap();
        Reply::parse(&read_all(&mut stream))
    }

    /// Sends a change over the control socket, with a body of JSON.
    pub(crate) fn wish(&self, path: &str, body: &str) -> Reply {
        let mut stream = self.connect_control();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        Reply::parse(&read_all(&mut stream))
    }

    /// Repeats a request over the control socket until it is refused.
    pub(crate) fn ask_until_refused(&self, path: &str) -> Reply {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let reply = self.ask(path);
            if reply.status >= 400 {
                return reply;
            }
            assert!(std::time::Instant::now() < until, "{reply:?}");
        }
    }

    /// Repeats a request over the control socket until the answer matches.
    pub(crate) fn ask_until<T: DeserializeOwned + std::fmt::Debug>(
        &self,
        path: &str,
        fits: impl Fn(&T) -> bool,
    ) -> T {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let answer: T = self.ask(path).json();
            if fits(&answer) {
                return answer;
            }
            assert!(std::time::Instant::now() < until, "{answer:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Fails unless it is a problem of this status whose text has these words.
pub(crate) fn assert_problem(reply: &Reply, status: u16, words: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    let content_type = reply.header("content-type");
    assert_eq!(content_type, Some("application/problem+json"));
    let problem: Problem = reply.json();
    assert_eq!(problem.status, status);
    assert!(problem.detail.contains(words), "{problem:?}");
}

pub(crate) fn assert_healthy(observer: &Observer) {
    let reply = observer.ask("/healthz");
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.json::<Health>().healthy);
}

/// A reader of live events.
pub(crate) struct Follower(pub(crate) BufReader<UnixStream>);

impl Follower {
    pub(crate) fn start(observer: &Observer, path: &str, headers: &[&str]) -> Self {
        let mut stream = observer.connect_control();
        stream.write_all(&request(path, headers)).unwrap();
        let mut follower = Self(BufReader::new(stream));
        assert!(follower.line().starts_with("HTTP/1.1 200"));
        let mut lines = Vec::new();
        loop {
            let line = follower.line();
            if line.is_empty() {
                break;
            }
            lines.push(line.to_ascii_lowercase());
        }
        assert!(
            lines.contains(&"content-type: text/event-stream".to_owned()),
            "{lines:?}"
        );
        follower
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(
            self.0.read_line(&mut line).unwrap(),
            0,
            "the stream has ended"
        );
        line.trim_end().to_owned()
    }

    /// The next event and its id.
    pub(crate) fn next(&mut self) -> (String, Event) {
        let mut id = None;
        loop {
            let line = self.line();
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (id.unwrap(), serde_json::from_str(data).unwrap());
            }
        }
    }

    pub(crate) fn next_line(&mut self) -> LogLine {
        self.next().1.line
    }
}
