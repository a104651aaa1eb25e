//! A lower bound on the send time of the datagrams being read, proved by the order of the kernel's queue.

/// A time before which nothing that is read now was sent.
///
/// A datagram read after the queue was seen empty was sent after that; so was one read after a whole queue of
/// other datagrams, because the kernel keeps their order.
#[derive(Debug)]
pub struct SendTimeBound {
    queue_datagrams: usize,
    proved_ns: u64,
    /// A later time, which is proved once a whole queue has been read after it.
    next_ns: u64,
    read_since: usize,
}

impl SendTimeBound {
    /// For a queue of this many datagrams.
    pub fn new(queue_datagrams: usize) -> Self {
        Self {
            queue_datagrams,
            proved_ns: 0,
            next_ns: 0,
            read_since: 0,
        }
    }

    /// The bound.
    pub fn proved_ns(&self) -> u64 {
        self.proved_ns
    }

    /// The queue was empty at some time after `before_ns`.
    pub fn saw_empty(&mut self, before_ns: u64) {
        self.proved_ns = self.proved_ns.max(before_ns);
        self.next_ns = self.proved_ns;
        self.read_since = 0;
    }

    /// `count` datagrams were read after `before_ns`, and more were queued.
    pub fn has_read(&mut self, count: usize, before_ns: u64) {
        if self.read_since == 0 {
            self.next_ns = before_ns;
        }
        self.read_since += count;
        if self.read_since >= self.queue_datagrams {
            self.proved_ns = self.proved_ns.max(self.next_ns);
            self.read_since = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_read_after_an_empty_queue_was_sent_before() {
        let mut bound = SendTimeBound::new(10);
        assert_eq!(bound.proved_ns(), 0);
        bound.saw_empty(5);
        assert_eq!(bound.proved_ns(), 5);
    }

    #[test]
    fn in_a_flood_the_bound_moves_with_every_queue_that_was_read() {
        let mut bound = SendTimeBound::new(100);
        bound.saw_empty(5);
        bound.has_read(64, 10);
        assert_eq!(bound.proved_ns(), 5, "some of these may be older");
        bound.has_read(64, 20);
        assert_eq!(bound.proved_ns(), 10);
        bound.has_read(64, 30);
        assert_eq!(bound.proved_ns(), 10);
        bound.has_read(64, 40);
        assert_eq!(bound.proved_ns(), 30);
    }
}
