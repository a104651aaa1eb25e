//! What can be said of the kernel's queue by reading it: since when what is read now was sent, and whether it
//! is a flood.

/// So many datagrams within so long, 20 000 per second and all of known agents, are a flood: those that
/// come after are taken in batches. It is over when a stranger comes, or when there is time to sleep.
const FLOOD_DATAGRAMS: usize = 200;
const FLOOD_WINDOW_NS: u64 = 10_000_000;

/// Whether there is time to look at each sender.
#[derive(Debug, Default)]
pub(super) struct Flood {
    pub(super) is_here: bool,
    from_ns: u64,
    /// Datagrams of this window.
    pub(super) read: usize,
    /// A stranger has come in this window.
    met_stranger: bool,
}

impl Flood {
    /// Another turn begins; `is_calm` after a sleep.
    pub(super) fn turn(&mut self, now_ns: u64, is_calm: bool) {
        let is_over = now_ns.saturating_sub(self.from_ns) >= FLOOD_WINDOW_NS;
        if is_over || is_calm {
            let is_flood = is_over && !is_calm && self.read >= FLOOD_DATAGRAMS;
            *self = Self {
                is_here: is_flood && !self.met_stranger,
                from_ns: now_ns,
                read: 0,
                met_stranger: false,
            };
        }
    }

    pub(super) fn meet_stranger(&mut self) {
        self.met_stranger = true;
        self.is_here = false;
    }
}

/// A time before which nothing that is read now was sent.
///
/// What is read after the queue was seen empty was sent after that; and so was what is read after a
/// queue's worth of other datagrams, since the kernel keeps them in order.
#[derive(Debug)]
pub(super) struct Horizon {
    queue_datagrams: usize,
    pub(super) proved_ns: u64,
    /// A later time, which will be proved when a queue's worth has been read after it.
    next_ns: u64,
    read_since: usize,
}

impl Horizon {
    pub(super) fn new(queue_datagrams: usize) -> Self {
        Self {
            queue_datagrams,
            proved_ns: 0,
            next_ns: 0,
            read_since: 0,
        }
    }

    /// The queue was empty at some time after `looked_ns`.
    pub(super) fn saw_empty_queue(&mut self, looked_ns: u64) {
        self.proved_ns = self.proved_ns.max(looked_ns);
        self.next_ns = self.proved_ns;
        self.read_since = 0;
    }

    /// `count` datagrams were read after `looked_ns`, and more were queued.
    pub(super) fn has_read(&mut self, count: usize, looked_ns: u64) {
        if self.read_since == 0 {
            self.next_ns = looked_ns;
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
    fn a_flood_is_here_after_a_busy_window_without_strangers_and_until_it_is_calm() {
        let mut flood = Flood::default();
        let mut now_ns = 0;
        let mut window = |flood: &mut Flood, read| {
            flood.read += read;
            now_ns += FLOOD_WINDOW_NS;
            flood.turn(now_ns, false);
            flood.is_here
        };
        assert!(!window(&mut flood, FLOOD_DATAGRAMS - 1));
        assert!(window(&mut flood, FLOOD_DATAGRAMS));
        assert!(window(&mut flood, FLOOD_DATAGRAMS), "it goes on");
        flood.meet_stranger();
        assert!(!flood.is_here, "at once");
        assert!(!window(&mut flood, FLOOD_DATAGRAMS));
        assert!(window(&mut flood, FLOOD_DATAGRAMS));
        flood.turn(now_ns + 1, true);
        assert!(!flood.is_here);
    }

    #[test]
    fn nothing_read_after_an_empty_queue_was_sent_before() {
        let mut horizon = Horizon::new(10);
        assert_eq!(horizon.proved_ns, 0);
        horizon.saw_empty_queue(5);
        assert_eq!(horizon.proved_ns, 5);
    }

    #[test]
    fn in_a_flood_the_horizon_moves_with_every_queue_that_was_read() {
        let mut horizon = Horizon::new(100);
        horizon.saw_empty_queue(5);
        horizon.has_read(64, 10);
        assert_eq!(horizon.proved_ns, 5, "some of these may be older");
        horizon.has_read(64, 20);
        assert_eq!(horizon.proved_ns, 10);
        horizon.has_read(64, 30);
        assert_eq!(horizon.proved_ns, 10);
        horizon.has_read(64, 40);
        assert_eq!(horizon.proved_ns, 30);
    }
}
