//! What the library answers, and what that means.

use std::ffi::c_int;
use std::{fmt, io};

/// What most functions return: an error of the library and, if that came from CUDA, CUDA's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Status {
    pub(super) error: c_int,
    pub(super) cuda: c_int,
}

/// The library's errors begin behind this; what is below is an errno.
const BASE: c_int = 5000;

/// An error that came from CUDA.
const CUDA_ERROR: c_int = 5011;

/// The driver was opened before; by whom does not matter.
const ALREADY_OPEN: c_int = 5026;

/// A file that the library did not register, as one on a disk that udev's database does not have.
const INVALID_FILE: c_int = 5027;

/// An error of the library's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CuFileError {
    operation: &'static str,
    status: Status,
}

impl Status {
    /// # Errors
    /// When it is one.
    pub(super) fn check(self, operation: &'static str) -> Result<(), CuFileError> {
        if self.error == 0 { Ok(()) } else { Err(CuFileError { operation, status: self }) }
    }
}

impl CuFileError {
    /// One of a read, of which no more is said.
    pub(super) fn of_a_read() -> Self {
        Self { operation: "read", status: Status { error: BASE, cuda: 0 } }
    }

    /// One of reads that it was given and has not told of, though it says that there is nothing more to tell.
    pub(super) fn of_lost_reads() -> Self {
        Self { operation: "say how all reads of a batch ended", status: Status { error: BASE, cuda: 0 } }
    }

    /// Whether it says that the driver has been opened before.
    pub(super) fn is_already_open(&self) -> bool {
        self.status.error == ALREADY_OPEN
    }

    /// Whether the library does not know what the file is on.
    pub(super) fn is_no_file(&self) -> bool {
        self.status.error == INVALID_FILE
    }
}

impl fmt::Display for CuFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { error, cuda } = self.status;
        write!(f, "cuFile does not {}: error {error}, {}", self.operation, meaning(error))?;
        if error == CUDA_ERROR { write!(f, ", CUDA's error {cuda}") } else { Ok(()) }
    }
}

impl std::error::Error for CuFileError {}

/// Whether an error is the library's own: of what it does not do, rather than of the disk.
pub(crate) fn is_from_library(error: &io::Error) -> bool {
    let source = error.get_ref();
    source.is_some_and(|source| source.is::<CuFileError>())
}

impl From<CuFileError> for io::Error {
    fn from(error: CuFileError) -> Self {
        io::Error::other(error)
    }
}

/// What a read returned: bytes, an errno, or an error of the library's as a negative number. `errno` is what the system said when the
/// number is -1.
pub(super) fn read_result(returned: isize, errno: impl FnOnce() -> io::Error) -> io::Result<usize> {
    match returned {
        0.. => Ok(returned as usize),
        -1 => Err(errno()),
        code => {
            let code = c_int::try_from(code.unsigned_abs()).unwrap_or(c_int::MAX);
            if code < BASE {
                return Err(io::Error::from_raw_os_error(code));
            }
            Err(CuFileError { operation: "read", status: Status { error: code, cuda: 0 } }.into())
        }
    }
}

/// The meaning of the errors that are met in practice.
fn meaning(error: c_int) -> &'static str {
    match error {
        5001 => "nvidia-fs is not loaded, and compatibility mode is not allowed",
        5004 | 5005 => "nvidia-fs is of a version that does not fit",
        5007 => "the platform is not supported",
        5008 => "the file is not supported",
        5009 => "the device is not supported",
        5010 | 5048 => "nvidia-fs reports an error",
        CUDA_ERROR => "CUDA reports an error",
        5012..=5014 => "the memory is not a device's, or not all of it",
        5015 | 5047 => "the context of CUDA is not the memory's",
        5016 | 5017 => "the memory is larger than can be pinned",
        5018..=5020 => "the file is not opened as it has to be",
        5022 => "a value is not valid",
        5023 => "the memory is registered already",
        5024 => "the memory is not registered",
        5025 => "permission is denied",
        ALREADY_OPEN => "the driver is open already",
        INVALID_FILE => "it does not know what the file is on",
        5029 => "it does not find the device",
        5033 => "it failed to start, as where it finds no CUDA driver",
        5034 => "a configuration file disables it there",
        5036 => "the device has no room for pinned memory, as where its BAR1 is small",
        5037 => "the batch is full",
        5043 => "it has no memory left",
        _ => "its log may say more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_returns_bytes_or_an_errno_or_an_error_of_the_library() {
        let read = |returned| read_result(returned, || io::Error::from_raw_os_error(libc::EIO));
        assert_eq!((read(0).unwrap(), read(7).unwrap()), (0, 7));
        assert_eq!(read(-1).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(read(-(libc::EINTR as isize)).unwrap_err().kind(), io::ErrorKind::Interrupted);
        let message = read(-5024).unwrap_err().to_string();
        assert!(message.contains("error 5024") && message.contains("not registered"), "{message}");
    }
}
