//! Decides whether the beat path has time to peek at each sender.

/// This many datagrams within this time, 20 000 per second and all of known agents, are a flood: those that follow
/// are taken in batches. The flood is over when an unknown sender appears, or when there is time to sleep.
const FLOOD_DATAGRAMS: usize = 200;
const FLOOD_WINDOW_NS: u64 = 10_000_000;

/// Whether there is time to peek at each sender.
#[derive(Debug, Default)]
pub(super) struct FloodDetector {
    pub(super) is_here: bool,
    from_ns: u64,
    /// Datagrams of this window.
    pub(super) read: usize,
    /// An unknown sender has appeared in this window.
    met_unknown: bool,
}

impl FloodDetector {
    /// Another turn starts; `is_calm` after a sleep.
    pub(super) fn tick(&mut self, now_ns: u64, is_calm: bool) {
        let is_over = now_ns.saturating_sub(self.from_ns) >= FLOOD_WINDOW_NS;
        if is_over || is_calm {
            let is_flood = is_over && !is_calm && self.read >= FLOOD_DATAGRAMS;
            *self = Self {
                is_here: is_flood && !self.met_unknown,
                from_ns: now_ns,
                read: 0,
                met_unknown: false,
            };
        }
    }

    pub(super) fn note_unknown(&mut self) {
        self.met_unknown = true;
        self.is_here = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_here_after_a_busy_window_without_strangers_and_until_it_is_calm() {
        let mut flood = FloodDetector::default();
        let mut now_ns = 0;
        let mut window = |flood: &mut FloodDetector, read| {
            flood.read += read;
            now_ns += FLOOD_WINDOW_NS;
            flood.tick(now_ns, false);
            flood.is_here
        };
        assert!(!window(&mut flood, FLOOD_DATAGRAMS - 1));
        assert!(window(&mut flood, FLOOD_DATAGRAMS));
        assert!(window(&mut flood, FLOOD_DATAGRAMS), "it goes on");
        flood.note_unknown();
        assert!(!flood.is_here, "at once");
        assert!(!window(&mut flood, FLOOD_DATAGRAMS));
        assert!(window(&mut flood, FLOOD_DATAGRAMS));
        flood.tick(now_ns + 1, true);
        assert!(!flood.is_here);
    }
}
