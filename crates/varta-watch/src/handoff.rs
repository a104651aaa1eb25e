//! The way from the beat path to everything slow: a bounded ring of events and a bell.
//!
//! The producer never waits. A full ring refuses: a stall is then offered again in the next turn,
//! anything else is dropped and counted. Beats and refusals, of which anybody can make many, may
//! only fill the ring to three quarters, so that they cannot crowd out what matters.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use varta_core::{Counter, Counters, Event, EventKind};

/// Events the ring holds: 576 KiB, enough for a burst of thousands while the reader is writing.
const RING_EVENTS: usize = 8192;

/// Room kept for events that are not beats or refusals.
const RESERVED_EVENTS: usize = RING_EVENTS / 4;

/// What goes through the ring.
pub(crate) struct Handed {
    pub(crate) event: Event,
    /// With an exit: the process that ended, for whoever wants to know how.
    pub(crate) process: Option<OwnedFd>,
}

/// The beat path's end.
pub(crate) struct EventSender {
    ring: rtrb::Producer<Handed>,
    bell: Arc<OwnedFd>,
    counters: Arc<Counters>,
    pushed: bool,
}

/// The control thread's end.
pub(crate) struct EventReceiver {
    ring: rtrb::Consumer<Handed>,
    bell: Arc<OwnedFd>,
}

pub(crate) fn channel(counters: Arc<Counters>) -> rustix::io::Result<(EventSender, EventReceiver)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (producer, consumer) = rtrb::RingBuffer::new(RING_EVENTS);
    let sender = EventSender {
        ring: producer,
        bell: Arc::clone(&bell),
        counters,
        pushed: false,
    };
    let receiver = EventReceiver {
        ring: consumer,
        bell,
    };
    Ok((sender, receiver))
}

impl EventSender {
    /// Whether the next event that matters will be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.ring.slots() > 0
    }

    /// Hands an event over, or counts it as dropped.
    pub(crate) fn send(&mut self, event: Event, process: Option<OwnedFd>) {
        if self.push(event, process).is_break() {
            self.counters.count(Counter::EventsDropped);
        }
    }

    /// Hands an event over; `Break` if there is no room for it.
    pub(crate) fn offer(&mut self, event: Event) -> ControlFlow<()> {
        self.push(event, None)
    }

    fn push(&mut self, event: Event, process: Option<OwnedFd>) -> ControlFlow<()> {
        let expendable = matches!(
            event.kind,
            EventKind::Beat { .. } | EventKind::Refused { .. }
        );
        if expendable && self.ring.slots() <= RESERVED_EVENTS {
            return ControlFlow::Break(());
        }
        if self.ring.push(Handed { event, process }).is_err() {
            return ControlFlow::Break(());
        }
        self.pushed = true;
        ControlFlow::Continue(())
    }

    /// Wakes the reader if anything was handed over since the last call.
    pub(crate) fn ring_bell(&mut self) {
        if std::mem::take(&mut self.pushed) {
            // Fails only when the bell has rung 2^64 times unheard.
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }
}

impl EventReceiver {
    /// The next event, if there is one.
    pub(crate) fn pop(&mut self) -> Option<Handed> {
        self.ring.pop().ok()
    }

    /// Quiets the bell. Call before emptying the ring, so that no ring in between is lost.
    pub(crate) fn quiet(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }

    /// Readable when there are events.
    pub(crate) fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell)
    }
}

/// Tells the beat path to stop.
#[derive(Clone)]
pub(crate) struct StopSignal(Arc<OwnedFd>);

impl StopSignal {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(eventfd(0, flags)?)))
    }

    pub(crate) fn stop(&self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_core::{Agent, Refusal};

    fn event(kind: EventKind) -> Event {
        Event {
            observer_ns: 0,
            kind,
        }
    }

    #[test]
    fn refusals_cannot_crowd_out_stalls_and_every_drop_is_counted() {
        let counters = Arc::new(Counters::default());
        let (mut sender, mut receiver) = channel(Arc::clone(&counters)).unwrap();
        let refused = event(EventKind::Refused {
            pid: 1,
            reason: Refusal::NoCredentials,
        });
        for _ in 0..RING_EVENTS {
            sender.send(refused, None);
        }
        assert_eq!(counters.get(Counter::EventsDropped), RESERVED_EVENTS as u64);
        let stall = event(EventKind::Stall {
            agent: Agent {
                slot: 0,
                pid: 2,
                instance: 3,
            },
            last_nonce: 4,
            silence_ns: 5,
            threshold_ns: 5,
        });
        for _ in 0..RESERVED_EVENTS {
            assert!(sender.offer(stall).is_continue());
        }
        assert!(sender.offer(stall).is_break(), "full");
        receiver.pop().unwrap();
        assert!(sender.offer(stall).is_continue());
    }
}
