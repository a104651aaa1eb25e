//! Which rule applies to an agent: selectors over what is known of it; the first match wins.
//!
//! Texts are matched by globs: `*` stands for any number of characters, everything else for itself.

use std::net::IpAddr;

use crate::slot::BeatOrigin;

/// What is known of an agent. What is unknown matches no selector that asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its name; empty if unknown.
    pub name: &'a str,
    /// Its program file.
    pub exe: Option<&'a str>,
    /// Its path in the control group hierarchy.
    pub cgroup: Option<&'a str>,
    /// Its service manager's unit.
    pub unit: Option<&'a str>,
    /// Its user id.
    pub uid: Option<u32>,
    /// Where its process lives.
    pub namespace: Option<Namespace>,
    /// How it was heard.
    pub origin: BeatOrigin,
    /// Whether a key vouches for it.
    pub sealed: bool,
    /// Its address, if it lives elsewhere.
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

/// How an agent speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over the Unix socket of this host.
    Unix,
    /// Over UDP, in clear.
    Udp,
    /// Over encrypted UDP.
    SecureUdp,
}

/// Who is meant: everything that is given must match; nothing given means everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Glob over the name.
    pub name: Option<String>,
    /// Glob over the path of the program file.
    pub exe: Option<String>,
    /// Glob over the control group path.
    pub cgroup: Option<String>,
    /// Glob over the unit.
    pub unit: Option<String>,
    /// User id.
    pub uid: Option<u32>,
    /// Pid namespace.
    pub namespace: Option<Namespace>,
    /// How it speaks.
    pub origin: Option<Transport>,
    /// Glob over the textual address.
    pub source: Option<String>,
}
