//! One listener: accepts connections, and serves each within its limits.
//!
//! A connection costs a descriptor, a task and at most [`HEAD_BYTES_MAX`] of buffer each way. A client that is slow
//! to send or to read is disconnected; no client waits for another. A client that has sent its request may close its
//! half and gets the answer.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use varta_core::{Counter, Counters};

use super::guard::Peer;
use super::stage::{Stage, closing};

/// Most bytes of a request's head; a scraper's takes one KiB. Answers are written in pieces of this size.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Header lines of a request.
const HEADERS_MAX: usize = 64;

/// From the moment a connection is ready for a request until its head is complete: an idle client and a slow one are
/// treated alike.
const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// Longest time in which a reader may take none of the bytes written to it.
const READER_WAIT: Duration = Duration::from_secs(10);

/// Longest time from a request to the end of its answer; live events have no limit. Memory is held until then, so a
/// client that reads a little now and then must not hold it forever.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// Pause of accepting after the system could not provide a connection: it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a client beyond the limit, so that the observer does not look dead.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 96\r\n\r\n\
    {\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections; close some of them\"}";

/// How long a connection may wait for its other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) request: Duration,
    pub(crate) reader: Duration,
    pub(crate) answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: REQUEST_WAIT,
            reader: READER_WAIT,
            answer: ANSWER_WAIT,
        }
    }
}

/// The state of a connection: what its stream must know of the answer that it carries.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionState(Arc<Mutex<Phase>>);

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// One answer, with its start.
    Answer(Instant),
    /// Live events: no other answer follows, and a client that closes its half has left.
    Live,
}

impl ConnectionState {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Phase::Answer(Instant::now()))))
    }

    /// The current answer is live events.
    pub(crate) fn follow(&self) {
        *self.locked() = Phase::Live;
    }

    fn answer(&self) {
        *self.locked() = Phase::Answer(Instant::now());
    }

    /// No holder of the lock panics.
    fn locked(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source of connections.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The service of a listener, and its limits.
pub(crate) struct Listener {
    pub(crate) socket: Socket,
    pub(crate) router: Router,
    /// Connections at the same time.
    pub(crate) connections_max: usize,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stage: watch::Receiver<Stage>,
}

impl Listener {
    /// Serves until it is requested to close, and then until the connections have ended.
    pub(crate) async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = closing(self.stage.clone()) => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // The client has left already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            if connections.len() >= self.connections_max {
                self.counters.count(Counter::HttpConnectionsDrained);
                refuse(stream).await;
                continue;
            }
            let timeouts = Timeouts::default();
            let stream = TimeoutStream::new(stream, timeouts, Arc::clone(&self.counters));
            connections.spawn(converse(
                stream,
                peer,
                self.router.clone(),
                self.stage.clone(),
            ));
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Either kind of stream.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Socket {
    async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // An answer is written at once; waiting for more data to send with it only costs time.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Some(peer.ip())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), None))
            }
        }
    }
}

/// Sends the reason why a connection is closed. The buffer of a new one has space for it, so this takes next to no
/// time.
async fn refuse(mut stream: Stream) {
    let stream = &mut stream;
    let _ = tokio::time::timeout(ACCEPT_PAUSE, async {
        poll_fn(|context| Pin::new(&mut *stream).poll_write(context, FULL)).await?;
        poll_fn(|context| Pin::new(&mut *stream).poll_shutdown(context)).await
    })
    .await;
}

/// Answers requests one after the other until the client closes, or is too slow.
async fn converse(
    stream: TimeoutStream<impl AsyncRead + AsyncWrite + Unpin>,
    peer: Option<IpAddr>,
    router: Router,
    stage: watch::Receiver<Stage>,
) {
    let router = TowerToHyperService::new(router);
    let (state, request_wait) = (stream.state.clone(), stream.timeouts.request);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        if let Some(address) = peer {
            request.extensions_mut().insert(Peer(address));
        }
        state.answer();
        request.extensions_mut().insert(state.clone());
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(request_wait)
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    // The way in which it ended concerns only the client.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = closing(stage) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// A stream that fails when its reader has taken no byte for too long, or needs too long for an answer, or has left
/// during live events.
struct TimeoutStream<T> {
    inner: T,
    timeouts: Timeouts,
    state: ConnectionState,
    /// Set while writes make no progress: the time until which that may continue.
    refused: Option<Pin<Box<Sleep>>>,
    counters: Arc<Counters>,
}

impl<T> TimeoutStream<T> {
    fn new(inner: T, timeouts: Timeouts, counters: Arc<Counters>) -> Self {
        Self {
            inner,
            timeouts,
            state: ConnectionState::new(),
            refused: None,
            counters,
        }
    }

    /// The result of a write, or an error if writes have made no progress, or no end, for too long.
    fn judge(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let phase = *self.state.locked();
        let overdue = match phase {
            Phase::Answer(since) => since.elapsed() > self.timeouts.answer,
            Phase::Live => false,
        };
        if written.is_ready() && !overdue {
            self.refused = None;
            return written;
        }
        if !overdue {
            let until = Instant::now() + self.timeouts.reader;
            let refused = self
                .refused
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            ready!(refused.as_mut().poll(context));
        }
        self.counters.count(Counter::HttpSlowReaders);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> TimeoutStream<T> {
    /// Whether the reader of live events has left. It has no more requests, so any input means that.
    fn has_left(&mut self, context: &mut Context<'_>) -> bool {
        let is_live = matches!(*self.state.locked(), Phase::Live);
        let mut byte = [0];
        is_live
            && Pin::new(&mut self.inner)
                .poll_read(context, &mut ReadBuf::new(&mut byte))
                .is_ready()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TimeoutStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimeoutStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_left(context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    const SHORT: Timeouts = Timeouts {
        request: Duration::from_millis(20),
        reader: Duration::from_millis(20),
        answer: ANSWER_WAIT,
    };

    /// Serves one connection; the caller has the other end.
    fn serve(
        router: Router,
        timeouts: Timeouts,
    ) -> (UnixStream, tokio::task::JoinHandle<()>, Arc<Counters>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let counters = Arc::new(Counters::default());
        let stream = TimeoutStream::new(ours, timeouts, Arc::clone(&counters));
        let (sender, stage) = watch::channel(Stage::Running);
        let served = tokio::spawn(async move {
            converse(stream, None, router, stage).await;
            drop(sender);
        });
        (theirs, served, counters)
    }

    #[tokio::test]
    async fn who_does_not_finish_a_question_is_closed() {
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\nHost: localh"] {
            let (other_end, served, counters) = serve(Router::new(), SHORT);
            assert_eq!(other_end.try_write(bytes).unwrap(), bytes.len());
            served.await.unwrap();
            assert_eq!(counters.get(Counter::HttpSlowReaders), 0);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_is_closed_and_counted() {
        let answer = "x".repeat(64 * 1024 * 1024);
        let router = Router::new().route("/", get(|| async { Body::from(answer) }));
        let (other_end, served, counters) = serve(router, SHORT);
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(other_end.try_write(request).unwrap(), request.len());
        served.await.unwrap();
        assert_eq!(counters.get(Counter::HttpSlowReaders), 1);
    }

    #[tokio::test]
    async fn who_reads_without_coming_to_an_end_is_closed_and_counted() {
        let answer = "x".repeat(64 * 1024 * 1024);
        let router = Router::new().route("/", get(|| async { Body::from(answer) }));
        let hasty = Timeouts {
            answer: Duration::ZERO,
            ..Timeouts::default()
        };
        let (mut other_end, served, counters) = serve(router, hasty);
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        other_end.write_all(request).await.unwrap();
        let mut read = Vec::new();
        let _ = other_end.read_to_end(&mut read).await;
        assert!(read.len() < 64 * 1024 * 1024);
        served.await.unwrap();
        assert_eq!(counters.get(Counter::HttpSlowReaders), 1);
    }

    #[tokio::test]
    async fn who_closes_its_half_after_asking_gets_the_answer() {
        let answer = || async {
            // Long enough for the end to arrive before the answer is made.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            "well"
        };
        let router = Router::new().route("/", get(answer));
        let (mut other_end, served, _) = serve(router, Timeouts::default());
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        other_end.write_all(request).await.unwrap();
        other_end.shutdown().await.unwrap();
        let mut read = String::new();
        other_end.read_to_string(&mut read).await.unwrap();
        assert!(read.ends_with("\r\n\r\nwell"), "{read}");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_follower_that_leaves_is_noticed_although_nothing_happens() {
        let silent = |axum::Extension(state): axum::Extension<ConnectionState>| async move {
            state.follow();
            Body::new(Silence)
        };
        let router = Router::new().route("/", get(silent));
        let (mut other_end, served, _) = serve(router, Timeouts::default());
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        other_end.write_all(request).await.unwrap();
        let mut first = [0];
        other_end.read_exact(&mut first).await.unwrap();
        drop(other_end);
        served.await.unwrap();
    }

    /// A body that never yields a frame.
    struct Silence;

    impl hyper::body::Body for Silence {
        type Data = axum::body::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
            Poll::Pending
        }
    }

    #[test]
    fn the_word_for_who_finds_no_room_is_a_whole_answer() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        let problem: varta_api::v1::Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.status, 503);
    }
}
