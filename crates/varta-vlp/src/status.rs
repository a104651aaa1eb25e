//! The health that an agent claims, or an observer concludes (wire spec 3.1).

use core::fmt;

/// Health of an agent; the discriminant is the byte on the wire (wire spec 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Healthy.
    Ok = 0,
    /// Working, but in trouble: retries, throttling, backlog.
    Degraded = 1,
    /// Failing or about to exit.
    Critical = 2,
    /// The observer's verdict on a silent agent. Never sent: [`Frame::decode`](crate::Frame::decode)
    /// refuses it.
    Stall = 3,
}

impl Status {
    /// The lower-case name: `ok`, `degraded`, `critical` or `stall`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Critical => "critical",
            Self::Stall => "stall",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
