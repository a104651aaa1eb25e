//! The rate limit on requests from one address.
//!
//! A bucket of [`BURST`] requests per source, refilled at [`PER_SECOND`]. At most [`SOURCES_MAX`] sources are kept;
//! one with a full bucket can be dropped.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A scraper sends a few requests per minute, a person with a browser a few per second.
const PER_SECOND: u32 = 20;

/// Requests that one source may send at once: a dashboard that opens.
const BURST: u32 = 50;

/// About 64 KiB.
const SOURCES_MAX: usize = 1024;

/// The cost of one request.
const INTERVAL: Duration = Duration::from_millis(1000 / PER_SECOND as u64);

/// The content of a full bucket.
const BUCKET: Duration = Duration::from_millis(1000 / PER_SECOND as u64 * BURST as u64);

/// The buckets: by source, the time when each will be full again.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    full_at: HashMap<IpAddr, Instant>,
}

/// The verdict on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    /// Admitted; to keep its source, another one was dropped.
    AdmittedInsteadOf,
    /// Too many: one more is admitted after this time.
    TooMany(Duration),
}

impl Sources {
    /// Takes a request from a source's bucket.
    pub(crate) fn admit(&mut self, source: IpAddr, now: Instant) -> Admission {
        let source = network_of(source);
        let known = self.full_at.get(&source).copied();
        let full_at = known.unwrap_or(now).max(now) + INTERVAL;
        let excess = (full_at - now).saturating_sub(BUCKET);
        if !excess.is_zero() {
            return Admission::TooMany(excess);
        }
        let forgot = known.is_none() && self.make_room(now);
        self.full_at.insert(source, full_at);
        match forgot {
            true => Admission::AdmittedInsteadOf,
            false => Admission::Admitted,
        }
    }

    /// Drops every source with a full bucket, else the one that is closest to full; true if that source lost
    /// something.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.full_at.len() < SOURCES_MAX {
            return false;
        }
        self.full_at.retain(|_, full_at| *full_at > now);
        if self.full_at.len() < SOURCES_MAX {
            return false;
        }
        let nearest = self.full_at.iter().min_by_key(|(_, full_at)| **full_at);
        let nearest = nearest.map(|(source, _)| *source);
        nearest.is_some_and(|source| self.full_at.remove(&source).is_some())
    }
}

/// One machine can use any address of an IPv6 /64 network, and this machine any loopback address.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        own if own.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    fn admitted(sources: &mut Sources, source: IpAddr, now: Instant) -> usize {
        let admitted = |_: &u32| !matches!(sources.admit(source, now), Admission::TooMany(_));
        (0..2 * BURST).filter(admitted).count()
    }

    #[test]
    fn a_source_may_ask_a_burst_at_once_and_then_its_rate() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        assert_eq!(admitted(&mut sources, source(1), now), BURST as usize);
        assert_eq!(sources.admit(source(1), now), Admission::TooMany(INTERVAL));
        let later = now + Duration::from_secs(1);
        assert_eq!(
            admitted(&mut sources, source(1), later),
            PER_SECOND as usize
        );
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(
            admitted(&mut sources, source(1), much_later),
            BURST as usize
        );
    }

    #[test]
    fn one_source_takes_nothing_from_another() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        admitted(&mut sources, source(1), now);
        assert_eq!(sources.admit(source(2), now), Admission::Admitted);
    }

    #[test]
    fn any_number_of_sources_is_remembered_in_bounded_memory() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        for number in 0..SOURCES_MAX as u32 {
            assert_eq!(sources.admit(source(number), now), Admission::Admitted);
        }
        for number in 0..100 {
            let newcomer = source(u32::MAX - number);
            assert_eq!(sources.admit(newcomer, now), Admission::AdmittedInsteadOf);
            assert_eq!(sources.full_at.len(), SOURCES_MAX);
        }
        // By then all buckets are full.
        let later = now + INTERVAL;
        assert_eq!(sources.admit(source(7_000_000), later), Admission::Admitted);
        assert_eq!(sources.full_at.len(), 1);
    }

    #[test]
    fn an_ipv6_network_and_both_forms_of_an_ipv4_address_are_one_source() {
        let same =
            |a: &str, b: &str| network_of(a.parse().unwrap()) == network_of(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn all_addresses_of_the_loopback_are_one_source() {
        for address in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.9.9.9"] {
            let network = network_of(address.parse().unwrap());
            assert_eq!(network, Ipv4Addr::LOCALHOST, "{address}");
        }
    }
}
