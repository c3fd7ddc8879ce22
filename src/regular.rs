//! Opening the files of a checkpoint: only regular files, and without waiting for anyone.

use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_setfl};

use crate::error::Error;

/// Why a file was not opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// The system refuses.
    System(io::Error),
    /// It is something else.
    NotRegular(&'static str),
}

impl NotOpened {
    /// The error for the file at `path`.
    pub(crate) fn of(self, path: &Path) -> Error {
        match self {
            Self::System(source) => Error::Io { operation: "open", path: path.into(), source },
            Self::NotRegular(what) => Error::NotAFile { path: path.into(), what },
        }
    }
}

impl From<io::Error> for NotOpened {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<NotOpened> for io::Error {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::System(error) => error,
            NotOpened::NotRegular(what) => Self::new(io::ErrorKind::InvalidInput, format!("it is {what}")),
        }
    }
}

/// Opens a regular file for reading, with these flags of the system besides; links are followed.
///
/// Neither a FIFO without a writer nor a device makes it wait: what is no regular file is not opened, and if it takes the
/// file's place at the last moment, it is closed again, unread.
///
/// # Errors
/// When the file is missing, may not be read, or is not regular.
pub(crate) fn open(path: &Path, flags: OFlags) -> Result<(File, Metadata), NotOpened> {
    // Opening a device can have an effect of its own, so its kind is asked first.
    check(fs::metadata(path)?.file_type())?;
    let now = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags((flags | now).bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    check(metadata.file_type())?;
    // From here on reads wait: io_uring fails reads of a file that is not to wait.
    fcntl_setfl(&file, flags).map_err(io::Error::from)?;
    Ok((file, metadata))
}

/// Checks that it is a regular file.
///
/// # Errors
/// When it is something else: [`NotOpened::NotRegular`], which says what.
pub(crate) fn check(kind: FileType) -> Result<(), NotOpened> {
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "not a regular file but a FIFO",
        _ if kind.is_socket() => "not a regular file but a socket",
        _ if kind.is_char_device() => "not a regular file but a character device",
        _ if kind.is_block_device() => "not a regular file but a block device",
        _ => "not a regular file",
    };
    Err(NotOpened::NotRegular(what))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn an_opened_file_has_the_flags_that_were_asked_for_and_waits() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for flags in [OFlags::empty(), OFlags::DIRECT] {
            let (opened, _) = open(file.path(), flags).unwrap();
            let actual = rustix::fs::fcntl_getfl(opened.as_fd()).unwrap();
            assert_eq!(actual & (OFlags::NONBLOCK | OFlags::DIRECT), flags);
        }
    }

    #[test]
    fn what_is_not_regular_is_said_to_be_that() {
        for (path, expected) in [("/dev/zero", "character device"), ("/", "a directory")] {
            let Err(NotOpened::NotRegular(what)) = open(Path::new(path), OFlags::empty()) else {
                panic!("{path} was opened");
            };
            assert!(what.contains(expected), "{what}");
        }
    }
}
