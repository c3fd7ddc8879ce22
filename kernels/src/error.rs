//! What can be wrong with a request. Nothing fails once it has been found right.

use crate::types::Type;

/// Why something cannot be done. Nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such conversion.
    #[error("convert {from} to {to}: there is no such conversion; pairs() lists those that there are")]
    Unsupported {
        /// The source's type.
        from: Type,
        /// The target's type.
        to: Type,
    },
    /// A slice or span has not the length that the operation needs.
    #[error("{operation}: the {what} has {got} bytes, expected {expected}")]
    Length {
        /// What was tried.
        operation: &'static str,
        /// `source` or `target`.
        what: &'static str,
        /// Bytes that there are.
        got: u64,
        /// Bytes that there should be, in words.
        expected: String,
    },
    /// A block that no tensor has, that overlaps itself, or that is cut along too many dimensions.
    #[error("{operation}: {detail}")]
    Block {
        /// What was tried.
        operation: &'static str,
        /// What is wrong, and what would be right.
        detail: String,
    },
    /// An address that a kernel cannot use.
    #[error("{operation}: the {what} at {address:#x} {detail}")]
    Address {
        /// What was tried.
        operation: &'static str,
        /// `source`, `target` or `counters`.
        what: &'static str,
        /// Where it is.
        address: u64,
        /// What is wrong with that.
        detail: String,
    },
    /// The archive of images does not give a kernel's.
    #[error("read the image of kernel {kernel}: {problem}")]
    Image {
        /// The kernel's name.
        kernel: String,
        /// What the archive's reader says.
        problem: String,
    },
}

/// A result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;
