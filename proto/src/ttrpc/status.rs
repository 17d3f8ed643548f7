//! How a call failed, in google.rpc's codes.

use std::fmt;

use thiserror::Error;

/// The kind of a failure (google/rpc/code.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// Not a failure.
    Ok = 0,
    /// The caller gave up.
    Cancelled = 1,
    /// A failure that tells no more.
    Unknown = 2,
    /// The request is wrong, whatever the state.
    InvalidArgument = 3,
    /// Time ran out before an answer.
    DeadlineExceeded = 4,
    /// What the request names does not exist.
    NotFound = 5,
    /// What the request would make exists.
    AlreadyExists = 6,
    /// The caller, or the file to be run, lacks a permission.
    PermissionDenied = 7,
    /// Something is used up: memory, a quota, a message's length.
    ResourceExhausted = 8,
    /// The state does not allow the request.
    FailedPrecondition = 9,
    /// A conflict with another request.
    Aborted = 10,
    /// Beyond the valid range.
    OutOfRange = 11,
    /// No such service or method; a method that exists never answers this.
    Unimplemented = 12,
    /// A broken invariant.
    Internal = 13,
    /// The other side cannot be reached now.
    Unavailable = 14,
    /// Unrecoverable loss.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Code {
    /// What the code is called in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

impl From<Code> for i32 {
    fn from(code: Code) -> Self {
        code as Self
    }
}

impl From<i32> for Code {
    /// A number that is no code becomes [`Code::Unknown`].
    fn from(number: i32) -> Self {
        match number {
            0 => Self::Ok,
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call's failure: its kind for programs, its message for people.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{code}: {message}")]
pub struct Status {
    code: Code,
    message: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Self {
                Self::new(Code::$code, message)
            }
        )*
    };
}

impl Status {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The failure's kind.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// What happened, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    constructors! {
        /// [`Code::Cancelled`].
        cancelled => Cancelled;
        /// [`Code::Unknown`].
        unknown => Unknown;
        /// [`Code::InvalidArgument`].
        invalid_argument => InvalidArgument;
        /// [`Code::DeadlineExceeded`].
        deadline_exceeded => DeadlineExceeded;
        /// [`Code::NotFound`].
        not_found => NotFound;
        /// [`Code::AlreadyExists`].
        already_exists => AlreadyExists;
        /// [`Code::PermissionDenied`].
        permission_denied => PermissionDenied;
        /// [`Code::ResourceExhausted`].
        resource_exhausted => ResourceExhausted;
        /// [`Code::FailedPrecondition`].
        failed_precondition => FailedPrecondition;
        /// [`Code::Aborted`].
        aborted => Aborted;
        /// [`Code::OutOfRange`].
        out_of_range => OutOfRange;
        /// [`Code::Unimplemented`].
        unimplemented => Unimplemented;
        /// [`Code::Internal`].
        internal => Internal;
        /// [`Code::Unavailable`].
        unavailable => Unavailable;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for number in 0..=16 {
            assert_eq!(i32::from(Code::from(number)), number);
        }
    }

    #[test]
    fn numbers_beyond_the_codes_are_unknown() {
        assert_eq!(Code::from(-1), Code::Unknown);
        assert_eq!(Code::from(17), Code::Unknown);
    }
}
