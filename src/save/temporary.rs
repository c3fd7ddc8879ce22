//! [`Temporary`]: a file until it gets its name, and [`OpenFiles`]: those of them that are open.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use rustix::fs::OFlags;
use tempfile::TempPath;

use super::placed::Placed;
use super::target::{FileId, Target};
use crate::error::{Error, Result};

/// So many bytes of a file's name are in the name that it has until it is whole.
const LONGEST: usize = 200;

/// What its owner has to be allowed, so that the file can be opened again.
const OWNER: u32 = 0o600;

/// A file beside its target, under a name that ends in `.tmp`, which is removed on drop.
#[derive(Debug)]
pub(super) struct Temporary {
    path: TempPath,
    id: FileId,
    target: Target,
    /// The mode by the process's mask or the folder's list, where that does not allow its owner to read and write.
    mode: Option<u32>,
}

impl Temporary {
    /// Makes an empty file. Where the target exists, no one else may read it before it gets the target's permissions (A4).
    pub(super) fn create(target: Target) -> Result<(Self, File)> {
        let error = |source| Error::Io { operation: "create", path: target.file().into(), source };
        // What is added to a name must leave it one that the file system allows.
        let name = target.file().file_name().unwrap_or_default().as_bytes();
        let mut prefix = OsStr::from_bytes(name.get(..LONGEST).unwrap_or(name)).to_owned();
        prefix.push(".");
        let mode = if target.id().is_some() { OWNER } else { 0o666 };
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp").permissions(fs::Permissions::from_mode(mode));
        let made = builder.tempfile_in(target.folder()).map_err(|refusal| error(of_the_system(refusal)))?;
        let (file, path) = made.into_parts();
        let made = file.metadata().map_err(error)?;
        let mode = made.mode() & 0o7777;
        let is_closed = mode & OWNER != OWNER;
        if is_closed {
            file.set_permissions(fs::Permissions::from_mode(mode | OWNER)).map_err(error)?;
        }
        let mode = (is_closed && target.id().is_none()).then_some(mode);
        Ok((Self { path, id: (made.dev(), made.ino()), target, mode }, file))
    }

    /// Where the file is for now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file will be.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Opens the file for reading and writing.
    pub(super) fn open(&self) -> Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(flags.bits() as i32).open(&self.path);
        let file = file.map_err(|source| self.error("open", source))?;
        let found = file.metadata().map_err(|source| self.error("look at", source))?;
        if (found.dev(), found.ino()) == self.id {
            return Ok(file);
        }
        let problem = format!(
            "another file has taken the place of its temporary file {:?}, expected no change; save again where no one else writes",
            self.path
        );
        Err(Error::Target { path: self.target.path().into(), problem, source: None })
    }

    /// Looks at the target again, and gives the file the permissions of the one that it replaces.
    pub(super) fn prepare(&self) -> Result<File> {
        let again = self.target.look_again()?;
        let file = self.open()?;
        let given = match (again.permissions().or(self.target.permissions()), self.mode) {
            (Some(permissions), _) => permissions.give_to(&file),
            (None, Some(mode)) => file.set_permissions(fs::Permissions::from_mode(mode)),
            (None, None) => Ok(()),
        };
        given.map_err(|source| self.error("set the permissions of", source))?;
        Ok(file)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When the target leads elsewhere by now or to something other than a regular file, or the system refuses.
    pub(super) fn place(self) -> Result<Placed> {
        Placed::new(self.path, self.id, &self.target)
    }

    /// Leaves the file where it is.
    pub(super) fn leave(&mut self) {
        self.path.disable_cleanup(true);
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Io { operation, path: self.path.to_path_buf(), source }
    }
}

/// The system's own error where `tempfile` put a path around it: its number says what is wrong.
fn of_the_system(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|wrapped| wrapped.source()?.downcast_ref::<io::Error>());
    inner.and_then(io::Error::raw_os_error).map_or(error, io::Error::from_raw_os_error)
}

/// The most files of a draft that are open at a time.
const MAX_OPEN: usize = 16;

/// The files that are open: each has one slot, which it shares with others.
#[derive(Debug, Default)]
pub(super) struct OpenFiles([RwLock<Option<(usize, File)>>; MAX_OPEN]);

impl OpenFiles {
    /// Uses a file by its number; opens it if it is not open. Threads may use one file at once.
    pub(super) fn with<R>(
        &self,
        number: usize,
        open: impl FnOnce() -> Result<File>,
        work: impl FnOnce(&File) -> Result<R>,
    ) -> Result<R> {
        let slot = &self.0[number % MAX_OPEN];
        let read = slot.read().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((found, file)) if *found == number => return work(file),
            _ => drop(read),
        }
        let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
        let file = match slot.take() {
            Some((found, file)) if found == number => file,
            // The other file is closed first.
            other => {
                drop(other);
                open()?
            }
        };
        let (_, file) = slot.insert((number, file));
        work(file)
    }
}
