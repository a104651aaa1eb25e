//! Closing the descriptors that come with datagrams, off the beat path: a sender can arrange that
//! closing one takes long (a socket that lingers, a file of a hung file system).
//!
//! The queue to the closing thread is bounded. Only when it is full, because thousands of closes hang,
//! does the beat path close by itself rather than keep what could exhaust the table.

use std::io;
use std::os::fd::OwnedFd;
use std::thread::{Builder, Thread, park};

/// Descriptors waiting to be closed: 64 full datagrams.
const QUEUE_DESCRIPTORS: usize = 64 * 253;

pub(super) struct Closer {
    queue: rtrb::Producer<OwnedFd>,
    thread: Thread,
}

impl Closer {
    /// Starts the closing thread, which ends with the process.
    pub(super) fn start() -> io::Result<Self> {
        let (queue, mut waiting) = rtrb::RingBuffer::<OwnedFd>::new(QUEUE_DESCRIPTORS);
        let handle = Builder::new()
            .name("varta-closer".to_owned())
            .spawn(move || {
                loop {
                    while let Ok(descriptor) = waiting.pop() {
                        drop(descriptor);
                    }
                    park();
                }
            })?;
        Ok(Self {
            queue,
            thread: handle.thread().clone(),
        })
    }

    pub(super) fn close(&mut self, descriptor: OwnedFd) {
        let full = self.queue.push(descriptor);
        self.thread.unpark();
        drop(full);
    }
}
