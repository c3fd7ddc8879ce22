//! A file that must not change while it is loaded.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::FileSystem;
use super::descriptor_cache::{Attachment, CachedFile, DescriptorCache, FileLease, Opened, WhenFull};
use super::retries::Retries;
use crate::error::{Error, Result};
use crate::regular::{self, NotOpened};

/// A file and what it was when it was first opened. The [descriptor cache](super::descriptor_cache) closes it, and opens it again when it is read.
#[derive(Debug, Clone)]
pub(crate) struct FileSource {
    /// Open for plain reads.
    cached: CachedFile,
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
    /// Opens a regular file; links are followed. Waits for a descriptor: the caller holds no lease.
    ///
    /// # Errors
    /// When it is missing, may not be read, or is not a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_in(DescriptorCache::of_process(), path)
    }

    /// The same with another cache than that of the process.
    pub(super) fn open_in(cache: &'static DescriptorCache, path: &Path) -> Result<Self> {
        let open_error = |source| Error::Io { operation: "open", path: path.into(), source };
        let open = || match regular::open(path, OFlags::empty()) {
            Err(NotOpened::System(error)) => Err(error),
            opened => Ok(opened),
        };
        let (opened, room) = cache.open(WhenFull::Wait, open).map_err(open_error)?;
        let (file, metadata) = opened.map_err(|error| error.of(path))?;
        let file_system = FileSystem::of_file(&file);
        let path: Arc<Path> = path.into();
        let absolute = match path.is_absolute() {
            true => Arc::clone(&path),
            false => std::path::absolute(&path).map_err(open_error)?.into(),
        };
        let identity = Identity::of(&metadata);
        let reopen = reopen(Arc::clone(&absolute), identity, OFlags::empty(), None);
        let cached = CachedFile::opened(room, file, reopen);
        Ok(Self { cached, path, absolute, identity, file_system })
    }

    /// The file for plain reads.
    pub(crate) fn cached(&self) -> &CachedFile {
        &self.cached
    }

    /// The same file with a descriptor of its own: with other flags, and with what is to be attached to it whenever it is opened. It is opened when it is
    /// first leased.
    pub(crate) fn with_flags(&self, flags: OFlags, attach: Option<Attach>) -> CachedFile {
        let reopen = reopen(Arc::clone(&self.absolute), self.identity, flags, attach);
        CachedFile::new(self.cached.cache(), reopen)
    }

    /// Keeps the file open for plain reads. Waits for a descriptor: the caller holds no lease.
    pub(crate) fn lease(&self) -> io::Result<FileLease> {
        self.cached.lease(WhenFull::Wait)
    }

    /// The device that the file is on.
    pub(crate) fn device(&self) -> u64 {
        self.identity.device
    }

    /// Whether it is kept in memory, and nowhere else.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.file_system == FileSystem::TMPFS
    }

    /// What it is on.
    pub(crate) fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Reads into the whole buffer, or up to the end of the file, and returns how many bytes that were. Waits for a descriptor: the caller holds no lease.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.lease().map_err(|error| self.open_error(error))?;
        let (mut done, mut retries) = (0, Retries::default());
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.file().read_at(rest, offset + done as u64) {
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

    /// Whether the file, if it is open, and the one that its path names still are what was first opened (I5).
    ///
    /// # Errors
    /// When the size, the modification time or the inode is another, or the change time without a reason that leaves the bytes
    /// alone; or when they cannot be told.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let stat_error = |source| Error::Io { operation: "stat", path: self.path.to_path_buf(), source };
        let open = self.cached.lease_if_open().map(|file| file.file().metadata()).transpose();
        let open = open.map_err(stat_error)?.map(|metadata| Identity::of(&metadata));
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
        match open.iter().chain([&named]).find_map(|now| self.identity.difference(now)) {
            Some(change) => Err(self.changed(change)),
            None => Ok(()),
        }
    }

    /// The error for a file that could not be opened again.
    pub(crate) fn open_error(&self, source: io::Error) -> Error {
        self.failure(Error::Io { operation: "open", path: self.path.to_path_buf(), source })
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

/// Makes what is attached to a file.
pub(crate) type Attach = Box<dyn Fn(&Arc<File>) -> io::Result<Attachment> + Send + Sync>;

/// Opens a file that was opened before. The result fails where that is another file by now (I5).
fn reopen(
    absolute: Arc<Path>,
    identity: Identity,
    flags: OFlags,
    attach: Option<Attach>,
) -> impl Fn() -> io::Result<Opened> + Send + Sync + 'static {
    move || {
        let (file, metadata) = regular::open(&absolute, flags)?;
        if let Some(change) = identity.difference(&Identity::of(&metadata)) {
            return Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, change));
        }
        let file = Arc::new(file);
        let attachment = attach.as_ref().map(|attach| attach(&file)).transpose()?;
        Ok((file, attachment))
    }
}
