//! An open file that must not change while it is loaded.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{OFlags, fstatfs, statfs};

use crate::error::{Error, Result};

/// An open file and what it was when it was opened.
#[derive(Debug, Clone)]
pub(crate) struct FileSource {
    file: Arc<File>,
    /// As it was given.
    path: Arc<Path>,
    /// The same from whichever directory the process works in.
    absolute: Arc<Path>,
    identity: Identity,
}

/// What must not change while a file is loaded (I5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    fn difference(&self, now: &Self) -> Option<String> {
        if self.bytes != now.bytes {
            Some(format!("its size went from {} to {} bytes", self.bytes, now.bytes))
        } else if (self.device, self.inode) != (now.device, now.inode) {
            Some("another file has taken its place".into())
        } else if self.modified != now.modified {
            Some("it was written to".into())
        } else {
            None
        }
    }
}

/// Whether a file is kept in memory, in small pages that take readers longer than a disk's file that is cached.
pub(crate) fn is_in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|system| system.f_type == libc::TMPFS_MAGIC)
}

impl FileSource {
    /// Opens a regular file; links are followed.
    ///
    /// # Errors
    /// When it is missing, may not be read, or is not a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open_error = |source| Error::Io { operation: "open", path: path.into(), source };
        // Asked before opening, since opening a FIFO would wait for a writer.
        let kind = fs::metadata(path).map_err(open_error)?.file_type();
        if !kind.is_file() {
            let what = if kind.is_dir() { "a directory" } else { "not a regular file" };
            return Err(Error::NotAFile { path: path.into(), what });
        }
        let file = File::open(path).map_err(open_error)?;
        let identity = Identity::of(&file.metadata().map_err(open_error)?);
        let path: Arc<Path> = path.into();
        let absolute = match path.is_absolute() {
            true => Arc::clone(&path),
            false => std::path::absolute(&path).map_err(open_error)?.into(),
        };
        Ok(Self { file: Arc::new(file), path, absolute, identity })
    }

    /// The file, open for plain reads.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it is kept in memory, and nowhere else.
    pub(crate) fn is_in_memory(&self) -> bool {
        fstatfs(&*self.file).is_ok_and(|system| system.f_type == libc::TMPFS_MAGIC)
    }

    /// The same file opened once more, with other flags.
    pub(crate) fn reopen(&self, flags: OFlags) -> io::Result<File> {
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(&self.absolute)?;
        match Identity::of(&file.metadata()?) == self.identity {
            true => Ok(file),
            false => Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, "the file changed")),
        }
    }

    /// Reads into the whole buffer, or up to the end of the file, and returns how many bytes that were.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(offset, buffer.len() as u64, error)),
            }
        }
        Ok(done)
    }

    pub(crate) fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Length in bytes, when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.identity.bytes
    }

    /// Whether the open file, and the one that its path names, still are what was opened (I5).
    ///
    /// # Errors
    /// When the size, the modification time or the inode is another, or cannot be told.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let stat_error = |source| Error::Io { operation: "stat", path: self.path.to_path_buf(), source };
        let open = Identity::of(&self.file.metadata().map_err(stat_error)?);
        let named = match fs::metadata(&self.absolute) {
            Ok(metadata) => Identity::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.changed("it was removed".into()));
            }
            Err(error) => return Err(stat_error(error)),
        };
        match self.identity.difference(&open).or_else(|| self.identity.difference(&named)) {
            Some(change) => Err(self.changed(change)),
            None => Ok(()),
        }
    }

    /// The error for a read that failed.
    pub(crate) fn read_error(&self, offset: u64, bytes: u64, source: io::Error) -> Error {
        Error::Read { path: self.path.to_path_buf(), offset, bytes, source }
    }

    /// The error for a file that changed.
    pub(crate) fn changed(&self, change: String) -> Error {
        Error::FileChanged { path: self.path.to_path_buf(), change }
    }
}
