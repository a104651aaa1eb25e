//! A fake observer: gives prepared answers on a control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use tempfile::TempDir;

/// A request: the path with the query, the headers by lower-case name, and the body.
pub(crate) struct Question {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    #[allow(dead_code, reason = "not every test program asks for a change")]
    pub(crate) body: String,
}

impl Question {
    fn read(stream: &UnixStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut lines = reader.by_ref().lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let headers = lines.take_while(|line| !line.is_empty());
        let headers = headers.filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        });
        let headers = headers.collect();
        let mut question = Self {
            path,
            headers,
            body: String::new(),
        };
        let length = question.header("content-length");
        let length = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        question.body = String::from_utf8(body).ok()?;
        Some(question)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The answer, byte by byte. Empty: none, and the connection stays open.
pub(crate) type Answer = Vec<u8>;

/// Listens as long as it exists.
pub(crate) struct Fake {
    directory: TempDir,
    /// The requests, in order.
    pub(crate) questions: Receiver<Question>,
}

impl Fake {
    pub(crate) fn new(answer: impl Fn(&Question) -> Answer + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("varta.sock.control")).unwrap();
        let (asked, questions) = channel();
        thread::spawn(move || {
            let mut unanswered = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                let Some(question) = Question::read(&stream) else {
                    continue;
                };
                let answer = answer(&question);
                let _ = asked.send(question);
                if answer.is_empty() {
                    unanswered.push(stream);
                } else {
                    // The client has closed the connection before the end of the answer.
                    let _ = (&stream).write_all(&answer);
                }
            }
        });
        Self {
            directory,
            questions,
        }
    }

    /// The beat socket, which is not bound; the control socket is next to it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("varta.sock")
    }
}

pub(crate) fn http(status: &str, kind: &str, body: &str) -> Answer {
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len}\r\n\
         connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

pub(crate) fn json(body: &str) -> Answer {
    http("200 OK", "application/json", body)
}

pub(crate) fn problem(status: &str, detail: &str) -> Answer {
    let code = &status[..3];
    let body = format!(r#"{{"title":"t","status":{code},"detail":"{detail}"}}"#);
    http(status, "application/problem+json", &body)
}

/// `varta` with these arguments, an empty input, and no environment that could have an effect.
pub(crate) fn varta(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varta"));
    command
        .args(arguments)
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("VARTA_SOCKET")
        .env_remove("VARTA_CONTROL_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error.
pub(crate) fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}
