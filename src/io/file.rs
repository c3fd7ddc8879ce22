//! An open file that must not change while it is loaded.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::FileSystem;
use super::retries::Retries;
use crate::error::{Error, Result};
use crate::regular;

/// An open file and what it was when it was opened.
#[derive(Debug, Clone)]
pub(crate) struct FileSource {
    file: Arc<File>,
    /// As it was given.
    path: Arc<Path>,
    /// The same from whichever directory the process works in.
    absolute: Arc<Path>,
    identity: Identity,
    file_system: FileSystem,
}

/// What must not change while a file is loaded (I5).
#[derive(Debug, Clone, Copy)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    attributes: Attributes,
}

/// What may change: the bytes stay the same. The system then notes a new change time, as for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    links: u64,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            attributes: Attributes {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                links: metadata.nlink(),
            },
        }
    }

    fn difference(&self, now: &Self) -> Option<String> {
        if (self.device, self.inode) != (now.device, now.inode) {
            Some("another file has taken its place".into())
        } else if self.bytes != now.bytes {
            Some(format!("its size went from {} to {} bytes", self.bytes, now.bytes))
        } else if self.modified != now.modified {
            Some("it was written to".into())
        } else if self.changed != now.changed && self.attributes == now.attributes {
            // A write whose modification time was put back leaves nothing else.
            let problem = "its change time is another, though its mode, owner and link count are the same: \
                           it was written to, or its times were set";
            Some(problem.into())
        } else {
            None
        }
    }
}

impl FileSource {
    /// Opens a regular file; links are followed.
    ///
    /// # Errors
    /// When it is missing, may not be read, or is not a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let open_error = |source| Error::Io { operation: "open", path: path.into(), source };
        let (file, metadata) = regular::open(path, OFlags::empty()).map_err(|error| error.of(path))?;
        let file_system = FileSystem::of_file(&file);
        let path: Arc<Path> = path.into();
        let absolute = match path.is_absolute() {
            true => Arc::clone(&path),
            false => std::path::absolute(&path).map_err(open_error)?.into(),
        };
        Ok(Self { file: Arc::new(file), path, absolute, identity: Identity::of(&metadata), file_system })
    }

    /// The file, open for plain reads.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it is kept in memory, and nowhere else.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.file_system == FileSystem::TMPFS
    }

    /// What it is on.
    pub(crate) fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// The same file opened once more, with other flags.
    pub(crate) fn reopen(&self, flags: OFlags) -> io::Result<File> {
        let (file, metadata) = regular::open(&self.absolute, flags)?;
        match self.identity.difference(&Identity::of(&metadata)) {
            None => Ok(file),
            Some(change) => Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, change)),
        }
    }

    /// Reads into the whole buffer, or up to the end of the file, and returns how many bytes that were.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let (mut done, mut retries) = (0, Retries::default());
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => (done, retries) = (done + bytes, Retries::default()),
                Err(error) if retries.allow(&error) => {}
                Err(error) => {
                    return Err(self.read_error(offset, buffer.len() as u64, retries.explain(error)));
                }
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
    /// When the size, the modification time or the inode is another, or the change time without a reason that leaves the bytes
    /// alone; or when they cannot be told.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let stat_error = |source| Error::Io { operation: "stat", path: self.path.to_path_buf(), source };
        let open = Identity::of(&self.file.metadata().map_err(stat_error)?);
        let named = match fs::metadata(&self.absolute) {
            Ok(metadata) => Identity::of(&metadata),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(self.changed("it was removed".into()));
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
                return Err(self.changed("a link that leads to no file has taken its place".into()));
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
        self.failure(Error::Read { path: self.path.to_path_buf(), offset, bytes, source })
    }

    /// The error for something that failed: that the file changed, if it did, since that is the reason then.
    pub(crate) fn failure(&self, error: Error) -> Error {
        match self.check_unchanged() {
            Err(changed @ Error::FileChanged { .. }) => changed,
            _ => error,
        }
    }

    /// The error for a file that changed.
    pub(crate) fn changed(&self, change: String) -> Error {
        Error::FileChanged { path: self.path.to_path_buf(), change }
    }
}
