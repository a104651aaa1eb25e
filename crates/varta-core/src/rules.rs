//! Which rule applies to an agent: selectors over its facts; the first match wins.
//!
//! Texts are matched by globs: `*` stands for any number of characters, everything else for itself.

use std::fmt::Write;
use std::net::IpAddr;

use crate::agent::BeatOrigin;

/// The facts of an agent. An unknown fact matches no selector for it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its name; empty if unknown.
    pub name: &'a str,
    /// Its program file.
    pub exe: Option<&'a str>,
    /// Its path in the control group hierarchy.
    pub cgroup: Option<&'a str>,
    /// Its unit of the system's service manager.
    pub unit: Option<&'a str>,
    /// Its unit of its own user's service manager.
    pub user_unit: Option<&'a str>,
    /// Its user id.
    pub uid: Option<u32>,
    /// Its pid namespace.
    pub namespace: Option<Namespace>,
    /// Its origin.
    pub origin: BeatOrigin,
    /// Whether a key authenticates it.
    pub sealed: bool,
    /// Its address, if it is a remote agent.
    pub source: Option<IpAddr>,
}

/// A pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// The observer's own.
    Own,
    /// Another one below it: a container.
    Other,
}

/// The transport of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over the Unix socket of this host.
    Unix,
    /// Over UDP, in clear.
    Udp,
    /// Over encrypted UDP.
    SecureUdp,
}

/// A selector: every given field must match; one without fields matches every agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Glob over the name.
    pub name: Option<String>,
    /// Glob over the path of the program file.
    pub exe: Option<String>,
    /// Glob over the control group path.
    pub cgroup: Option<String>,
    /// Glob over the unit of the system's service manager.
    pub unit: Option<String>,
    /// Glob over the unit of its user's service manager.
    pub user_unit: Option<String>,
    /// User id.
    pub uid: Option<u32>,
    /// Pid namespace.
    pub namespace: Option<Namespace>,
    /// Transport.
    pub origin: Option<Transport>,
    /// Glob over the textual address.
    pub source: Option<String>,
}

impl Selector {
    /// Whether an agent matches.
    pub fn matches(&self, known: &Known<'_>) -> bool {
        let name = Some(known.name).filter(|name| !name.is_empty());
        fits(self.name.as_deref(), name)
            && fits(self.exe.as_deref(), known.exe)
            && fits(self.cgroup.as_deref(), known.cgroup)
            && fits(self.unit.as_deref(), known.unit)
            && fits(self.user_unit.as_deref(), known.user_unit)
            && is(self.uid, known.uid)
            && is(self.namespace, known.namespace)
            && is(self.origin, Some(known.transport()))
            && self.source_matches(known.source)
    }

    fn source_matches(&self, source: Option<IpAddr>) -> bool {
        let Some(pattern) = self.source.as_deref() else {
            return true;
        };
        source.is_some_and(|address| {
            let mut text = AddressText {
                bytes: [0; ADDRESS_BYTES_MAX],
                len: 0,
            };
            // An address always fits.
            let _ = write!(text, "{}", address.to_canonical());
            glob(pattern, text.as_str())
        })
    }

    /// Whether every agent matches.
    pub fn matches_every_agent(&self) -> bool {
        *self == Self::default()
    }
}

/// The index of the first selector that matches.
pub fn first_match<'a>(
    selectors: impl IntoIterator<Item = &'a Selector>,
    known: &Known<'_>,
) -> Option<usize> {
    let mut selectors = selectors.into_iter();
    selectors.position(|selector| selector.matches(known))
}

impl Known<'_> {
    /// The transport of the agent.
    pub fn transport(&self) -> Transport {
        match self.origin {
            BeatOrigin::KernelAttested | BeatOrigin::SocketModeOnly => Transport::Unix,
            BeatOrigin::OperatorAttestedTransport | BeatOrigin::NetworkUnverified => {
                match self.sealed {
                    true => Transport::SecureUdp,
                    false => Transport::Udp,
                }
            }
        }
    }
}

fn fits(pattern: Option<&str>, text: Option<&str>) -> bool {
    pattern.is_none_or(|pattern| text.is_some_and(|text| glob(pattern, text)))
}

fn is<T: Copy + PartialEq>(wanted: Option<T>, known: Option<T>) -> bool {
    wanted.is_none() || wanted == known
}

/// The longest text of an address: IPv6 with an embedded IPv4 address.
const ADDRESS_BYTES_MAX: usize = 45;

/// A buffer in which an address is written without allocating.
struct AddressText {
    bytes: [u8; ADDRESS_BYTES_MAX],
    len: usize,
}

impl AddressText {
    fn as_str(&self) -> &str {
        let written = self.bytes.get(..self.len).unwrap_or_default();
        std::str::from_utf8(written).unwrap_or_default()
    }
}

impl Write for AddressText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let room = self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Whether a text matches a pattern.
///
/// The part before the first `*` must begin the text, the one after the last must end it, and those between
/// are searched from left to right: the first match of each suffices.
pub fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.split_once(part) {
            Some((_, after)) => text = after,
            None => return false,
        }
    }
    text.ends_with(end)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    const UNKNOWN_AGENT: Known<'static> = Known {
        name: "",
        exe: None,
        cgroup: None,
        unit: None,
        user_unit: None,
        uid: None,
        namespace: None,
        origin: BeatOrigin::KernelAttested,
        sealed: false,
        source: None,
    };

    const WEB: Known<'static> = Known {
        name: "web-7",
        exe: Some("/usr/bin/web"),
        cgroup: Some("/system.slice/web.service"),
        unit: Some("web.service"),
        user_unit: Some("web-dev.service"),
        uid: Some(33),
        namespace: Some(Namespace::Own),
        origin: BeatOrigin::KernelAttested,
        sealed: false,
        source: None,
    };

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    /// One selector for each fact of `WEB`.
    fn selectors() -> Vec<Selector> {
        let all = Selector::default;
        vec![
            Selector {
                name: text("web-*"),
                ..all()
            },
            Selector {
                exe: text("/usr/bin/*"),
                ..all()
            },
            Selector {
                cgroup: text("*/web.service"),
                ..all()
            },
            Selector {
                unit: text("web.service"),
                ..all()
            },
            Selector {
                user_unit: text("web-*.service"),
                ..all()
            },
            Selector {
                uid: Some(33),
                ..all()
            },
            Selector {
                namespace: Some(Namespace::Own),
                ..all()
            },
        ]
    }

    #[test]
    fn each_fact_can_be_asked_for() {
        for selector in selectors() {
            assert!(selector.matches(&WEB), "{selector:?}");
        }
    }

    #[test]
    fn what_is_unknown_matches_no_selector_that_asks_for_it() {
        for selector in selectors() {
            assert!(!selector.matches(&UNKNOWN_AGENT), "{selector:?}");
        }
        let any_name = Selector {
            name: text("*"),
            ..Selector::default()
        };
        assert!(!any_name.matches(&UNKNOWN_AGENT));
        let any_source = Selector {
            source: text("*"),
            ..Selector::default()
        };
        assert!(!any_source.matches(&WEB));
    }

    #[test]
    fn everything_that_is_given_must_match() {
        let both = |uid| Selector {
            name: text("web-*"),
            uid: Some(uid),
            ..Selector::default()
        };
        assert!(both(33).matches(&WEB));
        assert!(!both(34).matches(&WEB));
    }

    #[test]
    fn an_empty_selector_matches_every_agent() {
        let every_agent = Selector::default();
        assert!(every_agent.matches_every_agent());
        assert!(every_agent.matches(&UNKNOWN_AGENT) && every_agent.matches(&WEB));
    }

    #[test]
    fn the_first_match_wins() {
        let named = |name| Selector {
            name: text(name),
            ..Selector::default()
        };
        let selectors = [named("db"), named("web-*"), named("*")];
        assert_eq!(first_match(&selectors, &WEB), Some(1));
        assert_eq!(first_match(&selectors, &UNKNOWN_AGENT), None);
    }

    #[test]
    fn a_transport_is_told_by_origin_and_key() {
        use BeatOrigin::{
            KernelAttested, NetworkUnverified, OperatorAttestedTransport, SocketModeOnly,
        };
        for (origin, sealed, transport) in [
            (KernelAttested, false, Transport::Unix),
            (SocketModeOnly, false, Transport::Unix),
            (NetworkUnverified, false, Transport::Udp),
            (OperatorAttestedTransport, false, Transport::Udp),
            (NetworkUnverified, true, Transport::SecureUdp),
            (OperatorAttestedTransport, true, Transport::SecureUdp),
        ] {
            let known = Known {
                origin,
                sealed,
                ..UNKNOWN_AGENT
            };
            assert_eq!(known.transport(), transport);
            let selector = Selector {
                origin: Some(transport),
                ..Selector::default()
            };
            assert!(selector.matches(&known));
        }
    }

    #[test]
    fn an_address_is_matched_as_it_is_written_with_mapped_ones_in_their_short_form() {
        for (address, pattern, matches) in [
            ("192.0.2.7", "192.0.2.*", true),
            ("::ffff:192.0.2.7", "192.0.2.*", true),
            ("2001:db8::1", "2001:db8:*", true),
            ("192.0.2.7", "10.*", false),
        ] {
            let source = Some(address.parse().unwrap());
            let selector = Selector {
                source: text(pattern),
                ..Selector::default()
            };
            let known = Known {
                source,
                ..UNKNOWN_AGENT
            };
            assert_eq!(selector.matches(&known), matches, "{address} {pattern}");
        }
    }

    #[test]
    fn the_longest_address_has_room() {
        let longest = IpAddr::V6(Ipv6Addr::from([0xabcd; 8]));
        let known = Known {
            source: Some(longest),
            ..UNKNOWN_AGENT
        };
        let whole = Selector {
            source: Some(longest.to_string()),
            ..Selector::default()
        };
        assert!(whole.matches(&known));
    }

    #[test]
    fn a_star_stands_for_anything_and_nothing() {
        for (pattern, text) in [
            ("*", ""),
            ("a*", "a"),
            ("*a", "a"),
            ("a*c", "abc"),
            ("a*b*c", "axbxbxc"),
            ("**a**", "xax"),
            ("*ab*ab", "abab"),
            ("ä*ü", "äöü"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a*a", "a"),
            ("*ab*ab", "ab"),
            ("a*b*c", "acb"),
            ("a*", "ba"),
            ("*a", "ab"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    /// The meaning of a glob, without regard to run time.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => (0..=text.len()).any(|from| naive(rest, &text[from..])),
            [first, rest @ ..] => text.first() == Some(first) && naive(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_glob_means_what_the_naive_matcher_says(
            pattern in "[ab*]{0,8}",
            text in "[ab]{0,10}",
        ) {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(glob(&pattern, &text), naive(&chars(&pattern), &chars(&text)));
        }
    }
}
