//! What is told of beats that cannot be received: that it began, why, and that it is over. Gauges of the beat path say
//! what is so now; each change is told once.

use std::io;
use std::time::Duration;

use tokio::time::Instant;
use varta_core::{Counters, Gauge};

use super::log::Log;
use super::story;

/// A way on which beats come, by its error number.
const TRANSPORTS: [(Gauge, &str); 2] = [
    (Gauge::ReceiveErrnoUnix, "the Unix socket"),
    (Gauge::ReceiveErrnoUdp, "UDP"),
];

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct ReceiveTrouble {
    errors: [Told; 2],
    blocked: Told,
    hanging: u64,
}

/// A level that is 0 while all is well, and since when it is not.
#[derive(Debug, Default)]
struct Told {
    level: u64,
    since: Option<Instant>,
}

/// What has become of a level.
enum Change {
    Began,
    Ended(Duration),
}

impl Told {
    fn change_to(&mut self, level: u64, now: Instant) -> Option<Change> {
        if std::mem::replace(&mut self.level, level) == level {
            return None;
        }
        match level {
            0 => self.since.take().map(|since| Change::Ended(now - since)),
            _ => {
                self.since.get_or_insert(now);
                Some(Change::Began)
            }
        }
    }
}

impl ReceiveTrouble {
    pub(super) fn tell(&mut self, log: &Log, counters: &Counters, now: Instant) {
        for (told, (gauge, transport)) in self.errors.iter_mut().zip(TRANSPORTS) {
            let errno = counters.level(gauge);
            match told.change_to(errno, now) {
                Some(Change::Began) => story::receiving_fails(log, transport, &error_of(errno)),
                Some(Change::Ended(after)) => story::receives_again(log, transport, after),
                None => {}
            }
        }
        match self
            .blocked
            .change_to(counters.level(Gauge::ReceiveBlocked), now)
        {
            Some(Change::Began) => story::receiving_is_blocked(log),
            Some(Change::Ended(after)) => story::receives_again(log, TRANSPORTS[0].1, after),
            None => {}
        }
        let hanging = counters.level(Gauge::DescriptorThreads);
        if std::mem::replace(&mut self.hanging, hanging) != hanging {
            story::descriptors_hang(log, hanging);
        }
    }
}

/// What keeps beats from being received now, for a person; nothing while all is well. `fatal` ones first: while there is
/// one, nobody is heard on that way.
pub(crate) fn problems(counters: &Counters) -> (Vec<String>, Vec<String>) {
    let errors = TRANSPORTS.into_iter().filter_map(|(gauge, transport)| {
        let errno = counters.level(gauge);
        (errno != 0).then(|| format!("receiving over {transport} fails: {}", error_of(errno)))
    });
    let blocked = counters.level(Gauge::ReceiveBlocked) != 0;
    let blocked = blocked.then(|| {
        "a datagram with descriptors keeps local beats waiting: all threads that could take it hang".to_owned()
    });
    let hanging = counters.level(Gauge::DescriptorThreads);
    let hanging = (hanging != 0).then(|| story::hanging(hanging));
    (
        errors.chain(blocked).collect(),
        hanging.into_iter().collect(),
    )
}

fn error_of(errno: u64) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_when_it_changes_and_its_end_with_the_whole_time() {
        let mut told = Told::default();
        let start = Instant::now();
        assert!(told.change_to(0, start).is_none());
        assert!(matches!(told.change_to(1, start), Some(Change::Began)));
        assert!(told.change_to(1, start).is_none());
        let later = start + Duration::from_secs(1);
        assert!(matches!(told.change_to(2, later), Some(Change::Began)));
        let end = start + Duration::from_secs(3);
        let ended = told.change_to(0, end);
        assert!(matches!(ended, Some(Change::Ended(after)) if after == Duration::from_secs(3)));
    }

    #[test]
    fn each_problem_is_named_while_it_lasts() {
        let counters = Counters::default();
        assert_eq!(problems(&counters), (Vec::new(), Vec::new()));
        counters.set(Gauge::ReceiveErrnoUnix, 1);
        counters.set(Gauge::ReceiveBlocked, 1);
        counters.set(Gauge::DescriptorThreads, 3);
        let (fatal, others) = problems(&counters);
        assert!(
            fatal[0].contains("Unix socket") && fatal[0].contains("not permitted"),
            "{fatal:?}"
        );
        assert_eq!((fatal.len(), others.len()), (2, 1));
    }
}
