//! The health an agent claims, or an observer concludes (wire spec 3.1).

use core::fmt;

use crate::DecodeError;

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
    /// The status a wire byte stands for. `Stall` has a byte too, so that a decoder can name it
    /// when it refuses it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::BadStatus`] with the byte when it is above 3.
    pub const fn try_from_u8(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::Ok),
            1 => Ok(Self::Degraded),
            2 => Ok(Self::Critical),
            3 => Ok(Self::Stall),
            _ => Err(DecodeError::BadStatus(byte)),
        }
    }

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
