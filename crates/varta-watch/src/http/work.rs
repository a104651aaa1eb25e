//! Answers that take work: made on threads of their own, with bounds on their number.
//!
//! Each listener has its own bounds, so that clients of one listener do not keep those of the other from being
//! answered. The bounds are on running requests, on waiting requests, and on the bytes of answers that are not read
//! yet; a request beyond them is refused at once with a time to retry.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::http::StatusCode;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use varta_core::Counters;

use super::problem::Refusal;

/// Requests of one listener that run at the same time; the others wait.
const AT_WORK_MAX: usize = 2;

/// Requests of one listener that wait. A page of 100 000 agents takes 0.15 s, so the last of them waits for a second
/// or two; `varta` gives up after three.
const WAITING_MAX: usize = 16;

/// KiB of long answers of one listener that are not read yet: 64 MiB. A longer answer is admitted if it is the only
/// one.
const UNREAD_KIB_MAX: u32 = 64 * 1024;

/// Bytes of an answer that are written before other tasks run: a tenth of a millisecond. Answers of up to this length
/// are always admitted: there cannot be more of them than connections.
const PIECE_BYTES: usize = 64 * 1024;

/// The work of one listener.
#[derive(Debug)]
pub(crate) struct Work {
    /// Permits for running and waiting requests.
    places: Arc<Semaphore>,
    at_work: Arc<Semaphore>,
    unread_kib: Arc<Semaphore>,
    counters: Arc<Counters>,
}

impl Work {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_WORK_MAX + WAITING_MAX)),
            at_work: Arc::new(Semaphore::new(AT_WORK_MAX)),
            unread_kib: Arc::new(Semaphore::new(UNREAD_KIB_MAX as usize)),
            counters,
        }
    }

    /// Makes a text on a thread of its own, compressed if requested. It counts as work until it is done, whether or
    /// not a client still waits for it.
    pub(crate) async fn text(
        &self,
        gzip: bool,
        write: impl FnOnce() -> Result<String, Refusal> + Send + 'static,
    ) -> Result<Pieces, Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| self.busy("too many questions wait; ask again later"))?;
        let permit = Arc::clone(&self.at_work).acquire_owned().await;
        let permit = permit.map_err(|_| failed())?;
        let done = tokio::task::spawn_blocking(move || {
            let bytes = write().and_then(|text| match gzip {
                true => compressed(&text).map_err(|_| failed()),
                false => Ok(text.into()),
            });
            drop((permit, place));
            bytes
        });
        let bytes = done.await.map_err(|_| failed())??;
        let room = self.room(bytes.len())?;
        Ok(Pieces::new(bytes, room))
    }

    /// A permit for an answer of this many bytes until it is read.
    fn room(&self, len: usize) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        if len <= PIECE_BYTES {
            return Ok(None);
        }
        let kib = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.unread_kib).try_acquire_many_owned(kib.min(UNREAD_KIB_MAX));
        let room =
            room.map_err(|_| self.busy("too many answers are not read yet; ask again later"));
        room.map(Some)
    }

    fn busy(&self, detail: &str) -> Refusal {
        Refusal::busy(&self.counters, detail)
    }
}

fn failed() -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the answer could not be made",
    )
}

fn compressed(text: &str) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish().map(Bytes::from)
}

/// A long text, sent in pieces so that other tasks run in between.
#[derive(Debug)]
pub(crate) struct Pieces {
    rest: Bytes,
    rested: bool,
    /// Released when the text has been read or its reader has left.
    _room: Option<OwnedSemaphorePermit>,
}

impl Pieces {
    fn new(text: Bytes, room: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            rest: text,
            rested: true,
            _room: room,
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
    use axum::response::IntoResponse;
    use hyper::body::Body as _;
    use varta_core::Counter;

    use super::*;

    fn work() -> Arc<Work> {
        Arc::new(Work::new(Arc::default()))
    }

    /// The status of a refusal.
    fn refused(answer: Result<Pieces, Refusal>) -> StatusCode {
        answer.unwrap_err().into_response().status()
    }

    /// Requests a text that takes until the caller drops the other end, and waits until the request runs.
    async fn begin(work: &Arc<Work>) -> (tokio::task::JoinHandle<()>, std::sync::mpsc::Sender<()>) {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begun, mut begins) = tokio::sync::mpsc::channel(1);
        let work = Arc::clone(work);
        let asked = tokio::spawn(async move {
            let write = move || {
                let _ = begun.blocking_send(());
                let _ = held.recv();
                Ok(String::new())
            };
            let _ = work.text(false, write).await;
        });
        begins.recv().await.unwrap();
        (asked, release)
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_still_counts_as_work() {
        let work = work();
        let (asked, release) = begin(&work).await;
        asked.abort();
        let _ = asked.await;
        assert_eq!(work.at_work.available_permits(), AT_WORK_MAX - 1);
        drop(release);
        let all = work.at_work.acquire_many(AT_WORK_MAX as u32).await;
        assert!(all.is_ok());
    }

    #[tokio::test]
    async fn a_question_too_many_is_refused_at_once_and_counted() {
        let work = work();
        let _busy = (begin(&work).await, begin(&work).await);
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..WAITING_MAX {
            let work = Arc::clone(&work);
            waiting.spawn(async move { work.text(false, || Ok(String::new())).await.is_ok() });
        }
        while work.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let too_many = work.text(false, || Ok(String::new())).await;
        assert_eq!(refused(too_many), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(work.counters.get(Counter::HttpBusy), 1);
        drop(_busy);
        assert_eq!(waiting.join_all().await, [true; WAITING_MAX]);
    }

    #[tokio::test]
    async fn long_answers_that_nobody_reads_leave_no_room_for_more_of_them() {
        let work = work();
        let half = || Ok("x".repeat(UNREAD_KIB_MAX as usize * 1024 / 2));
        let first = work.text(false, half).await.unwrap();
        let second = work.text(false, half).await.unwrap();
        let third = work.text(false, half).await;
        assert_eq!(refused(third), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(work.counters.get(Counter::HttpBusy), 1);
        assert!(work.text(false, || Ok("short".to_owned())).await.is_ok());
        drop(first);
        assert!(work.text(false, half).await.is_ok());
        drop(second);
    }

    #[tokio::test]
    async fn an_answer_beyond_all_bounds_is_given_out_alone() {
        let work = work();
        let vast = || Ok("x".repeat(UNREAD_KIB_MAX as usize * 1024 + 1));
        let first = work.text(false, vast).await.unwrap();
        assert_eq!(
            refused(work.text(false, vast).await),
            StatusCode::SERVICE_UNAVAILABLE
        );
        drop(first);
        assert!(work.text(false, vast).await.is_ok());
    }

    #[test]
    fn a_long_text_comes_in_pieces_with_turns_in_between() {
        let mut pieces = Pieces::new("x".repeat(2 * PIECE_BYTES + 1).into(), None);
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
}
