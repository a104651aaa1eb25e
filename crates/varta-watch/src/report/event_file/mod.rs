//! The event file: one tab-separated row per event, written by a thread of its own.
//!
//! A row is in the file as a whole or not at all. When the disk is full, a partly written row is cut off again, and
//! whole rows wait in memory (to a bound) until there is space. Rows are handed to the kernel within a tenth of a
//! second and to the disk within a second.
//!
//! Rows name processes and users, and are usually written by root. Unless the operator allows any file, the file must
//! be one of this user's own ([`crate::own_file`]) that only its owner can write to and only its group can read.

use std::error::Error;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use varta_api::begins_a_row;

use crate::own_file::{self, OwnFileError};
use crate::report::log::Log;

/// Rows are collected this long before they are written, so that a busy observer writes tens of times per second and
/// not thousands.
const COLLECT: Duration = Duration::from_millis(100);

/// Longest time until written rows reach the disk.
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// A full disk is tried again after this long.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Rows kept in memory while the file cannot take them: 4 MiB, some 80 000 rows.
const PENDING_BYTES: usize = 4 << 20;

/// Batches of rows in the queue to the writing thread.
const QUEUE_BATCHES: usize = 256;

/// How long the program waits at its end for the last rows to be written.
const CLOSE_WAIT: Duration = Duration::from_millis(150);

/// The most permissions of the file: written by its owner, read by its group.
const FILE_MODE: u32 = 0o640;

enum Message {
    Rows(String),
    Reopen,
}

/// Why the event file cannot be written. The text names the flag, the file and the fix.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum EventFileError {
    Open(PathBuf, io::Error),
    NotOwn(PathBuf, OwnFileError),
    InUse(PathBuf),
    Thread(io::Error),
}

impl fmt::Display for EventFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(path, error) => {
                write!(f, "cannot open --export-file {}: {error}", path.display())
            }
            Self::NotOwn(path, error) => write!(
                f,
                "cannot use --export-file {}: {error}; name another file, or allow this one with \
                 --allow-any-export-file",
                path.display()
            ),
            Self::InUse(path) => write!(
                f,
                "another program writes to --export-file {}; choose another file",
                path.display()
            ),
            Self::Thread(error) => write!(f, "cannot start the event file's thread: {error}"),
        }
    }
}

impl Error for EventFileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Open(_, error) | Self::Thread(error) => Some(error),
            Self::NotOwn(_, error) => Some(error),
            Self::InUse(_) => None,
        }
    }
}

/// The control thread's handle to the event file.
pub(crate) struct EventFile {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    closed: Receiver<()>,
}

impl EventFile {
    /// Opens the file, any kind of file if `allow_any`, and starts the writing thread.
    pub(crate) fn open(path: &Path, allow_any: bool, log: Log) -> Result<Self, EventFileError> {
        let (file, narrowed) = open_file(path, allow_any)?;
        log_narrowed(&log, path, narrowed);
        let (queue, messages) = sync_channel(QUEUE_BATCHES);
        let (closing, closed) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Writer {
            path: path.to_owned(),
            allow_any,
            rows: PendingRows::new(file),
            log,
            dropped: Arc::clone(&dropped),
            trouble: false,
            unsynced: None,
        };
        std::thread::Builder::new()
            .name("varta-journal".to_owned())
            .spawn(move || {
                writer.run(&messages);
                let _ = closing.send(());
            })
            .map_err(EventFileError::Thread)?;
        Ok(Self {
            queue,
            dropped,
            closed,
        })
    }

    /// Queues whole rows; never waits. Gives them back while the queue is full.
    pub(crate) fn write(&self, rows: String) -> Result<(), String> {
        match self.queue.try_send(Message::Rows(rows)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Message::Rows(rows))) => Err(rows),
            Err(TrySendError::Disconnected(Message::Rows(rows))) => {
                self.drop_rows(&rows);
                Ok(())
            }
            Err(
                TrySendError::Full(Message::Reopen) | TrySendError::Disconnected(Message::Reopen),
            ) => Ok(()),
        }
    }

    /// Counts rows that are lost.
    pub(crate) fn drop_rows(&self, rows: &str) {
        let count = count_rows(rows.as_bytes());
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Reopens the file under its name, after a rotation.
    pub(crate) fn reopen(&self) {
        // If the queue is full, its rows still go to the old file; the sender of the signal can send it again.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Rows lost since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    /// Writes what is queued and waits for that, up to a bound.
    pub(crate) fn close(self) {
        let Self { queue, closed, .. } = self;
        drop(queue);
        let _ = closed.recv_timeout(CLOSE_WAIT);
    }
}

#[cfg(test)]
impl EventFile {
    /// An event file whose queue holds so many batches and is read by the test, a batch a call.
    pub(super) fn read_by_test(batches: usize) -> (Self, impl FnMut() -> Option<String>) {
        let (queue, messages) = sync_channel(batches);
        let (_, closed) = sync_channel(1);
        let event_file = Self {
            queue,
            dropped: Arc::default(),
            closed,
        };
        let read = move || match messages.try_recv() {
            Ok(Message::Rows(rows)) => Some(rows),
            Ok(Message::Reopen) | Err(_) => None,
        };
        (event_file, read)
    }
}

fn count_rows(rows: &[u8]) -> u64 {
    rows.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Opens for appending. A row that a crash left unfinished at the end is cut off, so that the next one does not
/// continue it. Also returns the permissions of the file if there were too many.
fn open_file(path: &Path, allow_any: bool) -> Result<(OpenFile, Option<u32>), EventFileError> {
    let fail = |error: io::Error| EventFileError::Open(path.to_owned(), error);
    let file = match allow_any {
        true => open_any(path).map_err(fail)?,
        false => own_file::open(path, APPEND, FILE_MODE).map_err(|error| match error {
            OwnFileError::Io(error) => fail(error),
            error => EventFileError::NotOwn(path.to_owned(), error),
        })?,
    };
    // File systems without locks are used without a lock.
    if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Err(EventFileError::InUse(path.to_owned()));
    }
    let narrowed = match allow_any {
        true => None,
        false => own_file::narrow(&file, FILE_MODE).map_err(fail)?,
    };
    let mut file = OpenFile { file };
    if file.file.metadata().map_err(fail)?.is_file() {
        cut_unfinished_row(&mut file).map_err(fail)?;
    }
    Ok((file, narrowed))
}

const APPEND: OFlags = OFlags::RDWR.union(OFlags::APPEND).union(OFlags::CREATE);

fn open_any(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(FILE_MODE);
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let both = options.clone().read(true).open(path);
    // A pipe or a terminal may be write-only.
    both.or_else(|_| options.open(path))
}

fn log_narrowed(log: &Log, path: &Path, narrowed: Option<u32>) {
    let Some(had) = narrowed else {
        return;
    };
    let msg = format!(
        "--export-file {} had mode {had:04o} and has {:04o} now: it names processes and users",
        path.display(),
        had & FILE_MODE
    );
    log.info(msg);
}

fn cut_unfinished_row(file: &mut OpenFile) -> io::Result<()> {
    /// No row is longer; a longer text without a line end is not a row of the observer.
    const TAIL_BYTES: u64 = 4096;
    let start = file.len().saturating_sub(TAIL_BYTES);
    let mut tail = Vec::new();
    file.file.seek(SeekFrom::Start(start))?;
    (&file.file).take(TAIL_BYTES).read_to_end(&mut tail)?;
    if tail.last().is_none_or(|byte| *byte == b'\n') {
        return Ok(());
    }
    let fragment = tail
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map(|end| end + 1);
    match fragment.or((start == 0).then_some(0)) {
        Some(at) if begins_a_row(&tail[at..]) => file.cut(start + at as u64),
        // Text of another program: it stays, and the rows start on a new line.
        _ => file.file.write_all(b"\n"),
    }
}

/// The destination of rows; a trait so that tests can fill the disk.
trait Sink {
    /// Appends some of the bytes.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Bytes in the file.
    fn len(&self) -> u64;
    /// Shortens the file.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

struct OpenFile {
    file: File,
}

impl OpenFile {
    /// Whether this is the file under a path, or behind it if links are followed.
    fn is_at(&self, path: &Path, follow: bool) -> bool {
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let named = match follow {
            true => std::fs::metadata(path),
            false => std::fs::symlink_metadata(path),
        };
        match (self.file.metadata(), named) {
            (Ok(open), Ok(named)) => id(open) == id(named),
            _ => false,
        }
    }
}

impl Sink for OpenFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Queried each time: another program may have shortened the file.
    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// Whole rows in transit to a sink.
struct PendingRows<S> {
    sink: S,
    bytes: Vec<u8>,
}

impl<S: Sink> PendingRows<S> {
    fn new(sink: S) -> Self {
        Self {
            sink,
            bytes: Vec::new(),
        }
    }

    /// Takes whole rows; returns how many did not fit.
    fn add(&mut self, rows: &[u8]) -> u64 {
        let room = PENDING_BYTES.saturating_sub(self.bytes.len());
        let fit = match rows.get(..room) {
            None => rows.len(),
            Some(head) => head
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |end| end + 1),
        };
        self.bytes.extend_from_slice(&rows[..fit]);
        count_rows(&rows[fit..])
    }

    /// Writes everything, or whole rows only: if an error interrupts a row, its written part is cut off again.
    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            if written == self.bytes.len() {
                break Ok(());
            }
            match self.sink.append(&self.bytes[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let whole = self.bytes[..written]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let torn = (written - whole) as u64;
        if torn > 0 && self.sink.cut(self.sink.len().saturating_sub(torn)).is_err() {
            // The file cannot be shortened (a pipe): the reader has the first part of the row, so the rest of it must
            // follow.
            self.bytes.drain(..written);
            return result;
        }
        self.bytes.drain(..whole);
        result
    }
}

struct Writer {
    path: PathBuf,
    /// The operator allows any file.
    allow_any: bool,
    rows: PendingRows<OpenFile>,
    log: Log,
    dropped: Arc<AtomicU64>,
    /// The last attempt to write failed, and the log has reported it.
    trouble: bool,
    /// Since when rows wait to reach the disk.
    unsynced: Option<Instant>,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        loop {
            let wait = if self.trouble {
                RETRY_EVERY
            } else if let Some(since) = self.unsynced {
                SYNC_EVERY.saturating_sub(since.elapsed())
            } else {
                Duration::MAX
            };
            let closed = match messages.recv_timeout(wait) {
                Ok(message) => {
                    self.take(&message);
                    self.collect(messages)
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            self.write();
            self.sync(closed);
            if closed {
                return;
            }
        }
    }

    /// Collects what arrives within a moment; true if nothing can arrive any more.
    fn collect(&mut self, messages: &Receiver<Message>) -> bool {
        let until = Instant::now() + COLLECT;
        loop {
            match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => self.take(&message),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn take(&mut self, message: &Message) {
        match message {
            Message::Rows(rows) => {
                let dropped = self.rows.add(rows.as_bytes());
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
            Message::Reopen => self.reopen(),
        }
    }

    /// Switches to the file that has the name now, unless that is still the open one.
    fn reopen(&mut self) {
        if self.rows.sink.is_at(&self.path, self.allow_any) {
            return;
        }
        self.write();
        self.sync(true);
        match open_file(&self.path, self.allow_any) {
            Ok((file, narrowed)) => {
                log_narrowed(&self.log, &self.path, narrowed);
                self.rows.sink = file;
            }
            Err(error) => self.say(error.to_string()),
        }
    }

    fn write(&mut self) {
        if self.rows.bytes.is_empty() {
            return;
        }
        match self.rows.flush() {
            Ok(()) => {
                self.unsynced.get_or_insert_with(Instant::now);
                if std::mem::take(&mut self.trouble) {
                    let path = self.path.display();
                    self.log
                        .info(format!("--export-file {path} is written again"));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.trouble, true) {
                    self.say(format!(
                        "cannot write --export-file {}: {error}; rows wait in memory, up to {} MiB",
                        self.path.display(),
                        PENDING_BYTES >> 20
                    ));
                }
            }
        }
    }

    fn sync(&mut self, now: bool) {
        if self
            .unsynced
            .is_some_and(|since| now || since.elapsed() >= SYNC_EVERY)
        {
            self.unsynced = None;
            // Pipes and terminals cannot be synced, and need not be.
            let _ = self.rows.sink.file.sync_data();
        }
    }

    fn say(&self, problem: String) {
        self.log.error(problem);
    }
}

#[cfg(test)]
mod tests;
