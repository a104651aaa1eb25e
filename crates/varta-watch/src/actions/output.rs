//! The output of a child: read for as long as the pipe has a writer, kept to a bound.
//!
//! Both streams end in one pipe, so that their order is kept. A pipe that outlives its child belongs to a process
//! that the child started, such as the service it restarted. A closed pipe must not end that process, so the observer
//! goes on reading, for a bounded number of pipes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

/// Bytes per read: the capacity of a pipe unless a process changed it. A child's output before its end is no more
/// than that.
const PIPE_BYTES: usize = 64 * 1024;

/// Bytes per read where nothing is kept.
const IDLE_READ_BYTES: usize = 4096;

/// Pipes that are read on after their child has ended. Each costs a descriptor; when there is one more, the oldest is
/// closed.
pub(super) const LEFT_OPEN_MAX: usize = 64;

/// The part of a child's output that is kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// The beginning.
    pub(crate) head: Vec<u8>,
    /// The end; it follows the head directly if nothing was dropped.
    pub(crate) tail: VecDeque<u8>,
    /// Bytes in between that were dropped.
    pub(crate) dropped: u64,
    head_max: usize,
    tail_max: usize,
}

impl Output {
    /// Keeps `bytes`, half of them from the beginning.
    pub(super) fn new(bytes: usize) -> Self {
        let tail_max = bytes / 2;
        Self {
            head_max: bytes - tail_max,
            tail_max,
            ..Self::default()
        }
    }

    pub(super) fn push(&mut self, written: &[u8]) {
        let room = self.head_max - self.head.len();
        let (head, rest) = written.split_at(room.min(written.len()));
        self.head.extend_from_slice(head);
        let kept = &rest[rest.len().saturating_sub(self.tail_max)..];
        let excess = (self.tail.len() + kept.len()).saturating_sub(self.tail_max);
        self.tail.drain(..excess);
        self.tail.extend(kept);
        self.dropped += (excess + rest.len() - kept.len()) as u64;
    }

    /// Bytes written altogether.
    pub(crate) fn written(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.dropped
    }

    /// The kept output as readable text; bytes that are no text are replaced.
    pub(crate) fn text(&self) -> String {
        let mut bytes = self.head.clone();
        if self.dropped > 0 {
            bytes.extend_from_slice(format!("[... {} bytes ...]", self.dropped).as_bytes());
        }
        bytes.extend(&self.tail);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The observer's end of a child's pipe.
pub(super) struct Collector {
    /// `None` once the pipe has no writer any more.
    pipe: Option<pipe::Receiver>,
    output: Output,
    buffer: Box<[u8]>,
}

impl Collector {
    pub(super) fn new(reader: io::PipeReader, capture_bytes: usize) -> io::Result<Self> {
        Ok(Self {
            pipe: Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?),
            output: Output::new(capture_bytes),
            buffer: vec![0; PIPE_BYTES].into(),
        })
    }

    /// Reads for ever. May be dropped at any time; nothing that was read is lost.
    pub(super) async fn collect(&mut self) -> Infallible {
        while let Some(pipe) = &self.pipe {
            if pipe.readable().await.is_err() {
                self.pipe = None;
            }
            self.take();
            tokio::task::consume_budget().await;
        }
        future::pending().await
    }

    /// Takes what is in the pipe, no more than it holds.
    fn take(&mut self) {
        let read = self
            .pipe
            .as_ref()
            .map(|pipe| pipe.try_read(&mut self.buffer));
        match read {
            None => {}
            Some(Ok(0)) => self.pipe = None,
            Some(Ok(len)) => self.output.push(&self.buffer[..len]),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(_)) => self.pipe = None,
        }
    }

    /// The child's output until its end. If the pipe still has a writer, `left_open` goes on reading it.
    pub(super) fn finish(mut self, left_open: &LeftOpen) -> Output {
        // The reactor may not know yet of the last bytes, so the pipe is read without it.
        let pipe = self.pipe.take().map(pipe::Receiver::into_nonblocking_fd);
        if let Some(Ok(pipe)) = pipe {
            let read = rustix::io::read(&pipe, &mut self.buffer[..]).unwrap_or_default();
            self.output.push(&self.buffer[..read]);
            left_open.add(pipe);
        }
        self.output
    }
}

/// Pipes that have a writer although their child has ended.
#[derive(Clone, Default)]
pub(super) struct LeftOpen {
    readers: Arc<Mutex<VecDeque<AbortHandle>>>,
}

impl LeftOpen {
    pub(super) fn add(&self, pipe: OwnedFd) {
        let Ok(pipe) = pipe::Receiver::from_owned_fd(pipe) else {
            return;
        };
        let reader = tokio::spawn(async move {
            let mut buffer = [0; IDLE_READ_BYTES];
            while pipe.readable().await.is_ok() {
                match pipe.try_read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => tokio::task::consume_budget().await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| !reader.is_finished());
        readers.push_back(reader.abort_handle());
        if readers.len() > LEFT_OPEN_MAX
            && let Some(oldest) = readers.pop_front()
        {
            oldest.abort();
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| !reader.is_finished());
        readers.len()
    }
}
