//! [`Placed`]: a file that has its name, with the file that it replaced until the whole set is in place (A2).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::TempPath;

use super::target::{FileId, Target};
use crate::error::{Error, Result};

/// How often a file is placed anew because its target came or went between the look and the call.
const TRIALS: usize = 16;

/// A file that has its name. Dropped, it stays, and what it replaced is removed.
#[derive(Debug)]
pub(super) struct Placed {
    file: PathBuf,
    id: FileId,
    before: Before,
}

/// What had the name before.
#[derive(Debug)]
enum Before {
    Nothing,
    /// A file, which is kept here for now.
    Kept(TempPath),
    /// A file, which is gone: the file system can replace files, but not exchange them.
    Gone,
}

impl Placed {
    /// Gives a temporary file the name of its target.
    ///
    /// A file that is there changes places with it, and a name that is free is taken only if it still is: so nothing that takes the name
    /// at the last moment is lost (A3), unless the file system can do neither.
    pub(super) fn new(temporary: TempPath, id: FileId, target: &Target) -> Result<Self> {
        let file = target.file().to_owned();
        let mut refusal = Errno::AGAIN;
        for _ in 0..TRIALS {
            let exists = target.look_again()?.id().is_some();
            let flags = if exists { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
            match renameat_with(CWD, &*temporary, CWD, &file, flags) {
                Ok(()) if exists => {
                    let placed = Self { file, id, before: Before::Kept(temporary) };
                    return placed.checked(target);
                }
                Ok(()) => {
                    let mut temporary = temporary;
                    temporary.disable_cleanup(true);
                    return Ok(Self { file, id, before: Before::Nothing });
                }
                // The target came or went since the look.
                Err(error @ (Errno::EXIST | Errno::NOENT)) => refusal = error,
                // Where a filter of system calls does not know the call, it forbids it.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    temporary.persist(&file).map_err(|error| rename_error(&file, error.error))?;
                    let before = if exists { Before::Gone } else { Before::Nothing };
                    return Ok(Self { file, id, before });
                }
                Err(error) => return Err(rename_error(&file, error.into())),
            }
        }
        Err(rename_error(&file, refusal.into()))
    }

    /// Checks that what was replaced is a regular file; puts it back if it is not (A3).
    fn checked(self, target: &Target) -> Result<Self> {
        let Before::Kept(before) = &self.before else { return Ok(self) };
        match fs::symlink_metadata(before) {
            Ok(found) if found.is_file() => Ok(self),
            Ok(_) => {
                self.undo();
                target.look_again()?;
                Err(rename_error(target.file(), Errno::EXIST.into()))
            }
            Err(error) => Err(rename_error(target.file(), error)),
        }
    }

    /// Puts back what had the name before, and removes this file. Neither, where another file has the name by now, or what was replaced is
    /// gone.
    pub(super) fn undo(self) {
        let Self { file, id, before } = self;
        if !fs::symlink_metadata(&file).is_ok_and(|found| (found.dev(), found.ino()) == id) {
            return;
        }
        match before {
            Before::Nothing => {
                if let Err(error) = fs::remove_file(&file) {
                    tracing::warn!(?file, %error, "a file of a set that failed could not be removed");
                }
            }
            Before::Kept(mut before) => {
                if let Err(error) = renameat_with(CWD, &*before, CWD, &file, RenameFlags::EXCHANGE) {
                    before.disable_cleanup(true);
                    let kept = before.to_path_buf();
                    tracing::error!(?file, ?kept, %error, "a replaced file could not be put back: it is kept under another name");
                }
            }
            Before::Gone => {
                tracing::warn!(?file, "a file of a set that failed stays: the file that it replaced is gone");
            }
        }
    }
}

fn rename_error(file: &Path, source: std::io::Error) -> Error {
    Error::Io { operation: "rename to", path: file.into(), source }
}
