//! One door: taking connections, and serving each within its limits.
//!
//! A connection costs a descriptor, a task and at most [`HEAD_BYTES_MAX`] of buffer each way. Whoever is slow
//! to ask or to read is closed; nobody waits for anybody else.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
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

/// What the head of a request may take; a scraper's takes one. Answers are written in pieces of it.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Header lines of a request.
const HEADERS_MAX: usize = 64;

/// From the moment a connection is free for a request until its head is there: who idles for so long and who
/// needs so long to say what he wants are the same to us.
const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// How long a reader may take nothing of what is written to it.
const READER_WAIT: Duration = Duration::from_secs(10);

/// How long no connection is taken when the system could not give one: it is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who finds no room gets this, so that it does not look like a dead observer.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 96\r\n\r\n\
    {\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections; close some of them\"}";

/// How long a connection may wait for its other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) request: Duration,
    pub(crate) reader: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            request: REQUEST_WAIT,
            reader: READER_WAIT,
        }
    }
}

/// Where connections come from.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What a door serves, and how much of it.
pub(crate) struct Door {
    pub(crate) listener: Listener,
    pub(crate) router: Router,
    /// Connections at the same time.
    pub(crate) connections_max: usize,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Door {
    /// Serves until told to stop, and then until the connections have ended.
    pub(crate) async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = told(self.stop.clone()) => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // Whoever knocked has left already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            if connections.len() >= self.connections_max {
                self.counters.count(Counter::HttpConnectionsDrained);
                turn_away(stream).await;
                continue;
            }
            let patience = Patience::default();
            let stream = Patient::new(stream, patience.reader, Arc::clone(&self.counters));
            connections.spawn(converse(
                stream,
                peer,
                self.router.clone(),
                patience,
                self.stop.clone(),
            ));
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Ends when the doors are told to stop.
pub(crate) async fn told(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Either kind of stream.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // An answer is written at once; waiting for more to send with it only costs time.
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

/// Says why a connection is closed. A new one has room for it, so this takes no time to speak of.
async fn turn_away(mut stream: Stream) {
    let stream = &mut stream;
    let _ = tokio::time::timeout(ACCEPT_PAUSE, async {
        poll_fn(|context| Pin::new(&mut *stream).poll_write(context, FULL)).await?;
        poll_fn(|context| Pin::new(&mut *stream).poll_shutdown(context)).await
    })
    .await;
}

/// Answers requests one after the other until the other end has had enough, or is too slow.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Option<IpAddr>,
    router: Router,
    patience: Patience,
    stop: watch::Receiver<bool>,
) {
    let router = TowerToHyperService::new(router);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        if let Some(address) = peer {
            request.extensions_mut().insert(Peer(address));
        }
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(patience.request)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    // How it ended is the other end's business.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = told(stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// A stream that fails when its reader has taken nothing for too long.
struct Patient<T> {
    inner: T,
    wait: Duration,
    /// Since something was refused; until when that may go on.
    refused: Option<Pin<Box<Sleep>>>,
    counters: Arc<Counters>,
}

impl<T> Patient<T> {
    fn new(inner: T, wait: Duration, counters: Arc<Counters>) -> Self {
        Self {
            inner,
            wait,
            refused: None,
            counters,
        }
    }

    /// What a write came to, unless it has come to nothing for too long.
    fn judge(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.refused = None;
            return written;
        }
        let until = Instant::now() + self.wait;
        let refused = self
            .refused
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(refused.as_mut().poll(context));
        self.counters.count(Counter::HttpSlowReaders);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
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
    use tokio::net::UnixStream;

    use super::*;

    const SHORT: Patience = Patience {
        request: Duration::from_millis(20),
        reader: Duration::from_millis(20),
    };

    /// Serves one connection whose other end is the caller's.
    fn serve(router: Router) -> (UnixStream, tokio::task::JoinHandle<()>, Arc<Counters>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let counters = Arc::new(Counters::default());
        let stream = Patient::new(ours, SHORT.reader, Arc::clone(&counters));
        let (sender, stop) = watch::channel(false);
        let served = tokio::spawn(async move {
            converse(stream, None, router, SHORT, stop).await;
            drop(sender);
        });
        (theirs, served, counters)
    }

    #[tokio::test]
    async fn who_does_not_finish_a_question_is_closed() {
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\nHost: localh"] {
            let (other_end, served, counters) = serve(Router::new());
            assert_eq!(other_end.try_write(bytes).unwrap(), bytes.len());
            served.await.unwrap();
            assert_eq!(counters.get(Counter::HttpSlowReaders), 0);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_is_closed_and_counted() {
        let answer = "x".repeat(64 * 1024 * 1024);
        let router = Router::new().route("/", get(|| async { Body::from(answer) }));
        let (other_end, served, counters) = serve(router);
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(other_end.try_write(request).unwrap(), request.len());
        served.await.unwrap();
        assert_eq!(counters.get(Counter::HttpSlowReaders), 1);
    }

    #[test]
    fn the_word_for_who_finds_no_room_is_a_whole_answer() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        let problem: crate::api::v1::Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.status, 503);
    }
}
