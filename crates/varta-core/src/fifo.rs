//! A first-in, first-out queue of slot numbers with removal from the middle in O(1): the queue of reclaimable
//! slots. Each slot is in it at most once. Nothing is allocated after construction.

/// End of the list.
const NONE: u32 = u32::MAX;

/// Not in the list at all; differs from `NONE`, which the ends of the list carry.
const ABSENT: u32 = u32::MAX - 1;

#[derive(Debug)]
pub(crate) struct Fifo {
    /// `(previous, next)` of each slot.
    links: Box<[(u32, u32)]>,
    head: u32,
    tail: u32,
}

impl Fifo {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            links: vec![(ABSENT, ABSENT); capacity].into_boxed_slice(),
            head: NONE,
            tail: NONE,
        }
    }

    /// The oldest slot in the queue.
    pub(crate) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// Appends `slot`; nothing changes if it is queued already.
    pub(crate) fn push(&mut self, slot: u32) {
        if self.links[slot as usize].1 != ABSENT {
            return;
        }
        self.links[slot as usize] = (self.tail, NONE);
        match self.tail {
            NONE => self.head = slot,
            tail => self.links[tail as usize].1 = slot,
        }
        self.tail = slot;
    }

    /// Removes `slot`; false if it was not queued.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        let (previous, next) = self.links[slot as usize];
        if next == ABSENT {
            return false;
        }
        match previous {
            NONE => self.head = next,
            previous => self.links[previous as usize].1 = next,
        }
        match next {
            NONE => self.tail = previous,
            next => self.links[next as usize].0 = previous,
        }
        self.links[slot as usize] = (ABSENT, ABSENT);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_and_the_middle_can_leave() {
        let mut fifo = Fifo::new(4);
        for slot in [2, 0, 3, 2] {
            fifo.push(slot);
        }
        assert!(fifo.remove(0));
        assert!(!fifo.remove(0), "twice");
        assert_eq!(fifo.front(), Some(2));
        assert!(fifo.remove(2));
        assert_eq!(fifo.front(), Some(3));
        assert!(fifo.remove(3));
        assert_eq!(fifo.front(), None);
        fifo.push(1);
        assert_eq!(fifo.front(), Some(1));
    }
}
