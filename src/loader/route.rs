//! Which way each job is read: through the page cache or past it.
//!
//! Under [`Backend::Auto`] each job goes the quicker way. A reader takes a job, asks what of it is cached, and either
//! reads it from the page cache or leaves it to the readers that go past the cache, which begin when there is something to
//! do. So both kinds of bytes come at once. A read from the cache does not wait for the disk: when the answer was
//! wrong, it finds that out, and it is asked again. Where a file cannot be read past the cache, all of it is read
//! through it.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::engines::Engines;
use super::headers::Opened;
use super::plan::Job;
use crate::error::{Error, Result};
use crate::io::descriptor_cache::is_full;
use crate::io::residency::{Probe, Residency};
use crate::io::{Access, Backend, BackendKind, Engine, FileSource, WhenFull};
use crate::limits;

/// How a job is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache, waiting for the disk if need be.
    Buffered,
    /// Through the page cache, only what is there.
    Cached,
    /// Past the page cache.
    Past,
}

/// The ways to the files of a load.
pub(super) struct Routes<'a> {
    backend: Backend,
    engines: &'a Engines,
    files: Vec<FileRoutes<'a>>,
    /// Jobs whose bytes were said to be cached, and were not.
    contradicted: AtomicU64,
}

/// What became known of the files of a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    /// Jobs that were said to be cached, and were not.
    pub(super) contradicted: u64,
    /// How files were asked what is cached.
    pub(super) asked: &'static str,
    /// Some file could not be read past the page cache.
    pub(super) refused: bool,
}

struct FileRoutes<'a> {
    source: &'a FileSource,
    /// Its pages need not be asked for: they are all that there is.
    in_memory: bool,
    probe: Probe,
    buffered: OnceLock<io::Result<Access>>,
    past: OnceLock<io::Result<Access>>,
    /// Reads past the cache were refused, at open or later.
    past_refused: AtomicBool,
    /// The file system knows no reads that do not wait.
    must_wait: AtomicBool,
}

impl<'a> Routes<'a> {
    pub(super) fn new(backend: Backend, engines: &'a Engines, files: &'a [Opened]) -> Self {
        let routes = |file: &'a Opened| FileRoutes {
            source: &file.source,
            in_memory: file.source.is_in_memory(),
            probe: (engines.probe)(),
            buffered: OnceLock::new(),
            past: OnceLock::new(),
            past_refused: AtomicBool::new(false),
            must_wait: AtomicBool::new(false),
        };
        Self { backend, engines, files: files.iter().map(routes).collect(), contradicted: AtomicU64::new(0) }
    }

    /// How to read a job; may wait for a descriptor, so the caller holds no lease. Where that is found out by reading, no more is asked about than its first byte.
    pub(super) fn way(&self, job: &Job) -> Way {
        self.way_of(job, if job.is_tried { 1 } else { job.file_bytes })
    }

    /// How to read a job, by so many of its bytes.
    fn way_of(&self, job: &Job, bytes: u64) -> Way {
        match self.backend {
            Backend::Require(BackendKind::Buffered) => return Way::Buffered,
            Backend::Require(_) => return Way::Past,
            Backend::Auto => {}
        }
        let file = &self.files[job.file];
        if file.in_memory || file.past_refused.load(Ordering::Relaxed) {
            return Way::Buffered;
        }
        let waits = file.must_wait.load(Ordering::Relaxed);
        // Where it cannot be opened, whoever reads it finds out why.
        let asked = file.source.lease().map(|open| file.probe.ask(open.file(), job.file_offset, bytes));
        match asked.unwrap_or(Residency::Unknown) {
            Residency::Cached | Residency::Unknown if waits => Way::Buffered,
            Residency::Cached => Way::Cached,
            Residency::Missing | Residency::Unknown if self.past(job.file, WhenFull::Wait).is_err() => {
                Way::Buffered
            }
            Residency::Missing => Way::Past,
            Residency::Unknown => Way::Cached,
        }
    }

    /// A file, opened for reads through the page cache.
    pub(super) fn buffered(&self, file: usize) -> Result<&Access> {
        let routes = &self.files[file];
        let opened =
            routes.buffered.get_or_init(|| self.engines.buffered.open(routes.source, WhenFull::Wait));
        opened.as_ref().map_err(|error| refusal(BackendKind::Buffered, routes.source, error))
    }

    /// Why an `io_uring` must not read some file of the load, if it must not.
    pub(super) fn distrust(&self) -> Option<String> {
        self.files.iter().find_map(|file| {
            let error = self.engines.uring.check_trust(file.source).err()?;
            Some(format!("io_uring is not used for {:?}: {error}", file.source.path()))
        })
    }

    /// A file, opened for reads past the page cache; `None` where all descriptors are in use and `when_full` does not wait.
    ///
    /// # Errors
    /// When its file system does not have them, or it cannot be opened.
    pub(super) fn past(&self, file: usize, when_full: WhenFull) -> Result<Option<&Access>> {
        let routes = &self.files[file];
        let engine: &dyn Engine = match self.past_kind() {
            BackendKind::IoUring => &*self.engines.uring,
            _ => &*self.engines.direct,
        };
        let opened = match routes.past.get() {
            Some(opened) => opened,
            None => match engine.open(routes.source, when_full) {
                Err(error) if is_full(&error) => return Ok(None),
                // That says nothing of the file.
                Err(error) if limits::is_of_descriptors(&error) => return Err(self.refused(file, &error)),
                opened => routes.past.get_or_init(|| {
                    opened.inspect_err(|error| {
                        tracing::debug!(path = ?routes.source.path(), %error, "not read past the page cache");
                        routes.past_refused.store(true, Ordering::Relaxed);
                    })
                }),
            },
        };
        opened.as_ref().map(Some).map_err(|error| self.refused(file, error))
    }

    /// What opens files for reads past the page cache: the two that can do it alike.
    fn past_kind(&self) -> BackendKind {
        match self.backend {
            Backend::Require(kind) => kind,
            Backend::Auto => BackendKind::Direct,
        }
    }

    /// Notes that reads of a file past the page cache do not work, and says whether there is another way.
    pub(super) fn refuse_past(&self, file: usize) -> bool {
        self.files[file].past_refused.store(true, Ordering::Relaxed);
        self.backend == Backend::Auto
    }

    /// Notes that a file system knows no reads that do not wait.
    pub(super) fn refuse_cached(&self, file: usize) {
        self.files[file].must_wait.store(true, Ordering::Relaxed);
    }

    /// How to read a job that was said to be cached and, by a read that does not wait, is not.
    ///
    /// Where the kernel counts its pages and still says so, someone is bringing them just now: that is waited for.
    /// Else the answer was wrong, or the pages are gone.
    pub(super) fn way_again(&self, job: &Job) -> Way {
        if !job.is_tried {
            self.contradicted.fetch_add(1, Ordering::Relaxed);
        }
        match self.way_of(job, job.file_bytes) {
            Way::Cached if self.files[job.file].probe.counts() => Way::Buffered,
            Way::Cached => Way::Past,
            way => way,
        }
    }

    /// What became known of the files, for the report.
    pub(super) fn said(&self) -> Said {
        Said {
            contradicted: self.contradicted.load(Ordering::Relaxed),
            asked: self.files.first().map_or("no one", |file| match file.in_memory {
                true => "tmpfs, which is nothing else",
                false => file.probe.way(),
            }),
            refused: self.files.iter().any(|file| file.past_refused.load(Ordering::Relaxed)),
        }
    }

    /// The error for a file that cannot be read past the page cache.
    pub(super) fn refused(&self, file: usize, error: &io::Error) -> Error {
        refusal(self.past_kind(), self.files[file].source, error)
    }
}

/// The error for a file that a backend does not read: the backend is the reason only where the file is still there, unchanged, and the system says that it
/// does not read like this. What else the system says, of limits, permissions or storage, is an error of the file.
pub(super) fn refusal(kind: BackendKind, source: &FileSource, error: &io::Error) -> Error {
    let path = source.path().to_path_buf();
    let blames_backend = match error.raw_os_error() {
        Some(errno) => matches!(errno, libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS),
        None => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied),
    };
    source.failure(match blames_backend {
        true => Error::Backend { backend: kind.name(), path, detail: error.to_string() },
        false => {
            let copied = || io::Error::new(error.kind(), error.to_string());
            let source = error.raw_os_error().map_or_else(copied, io::Error::from_raw_os_error);
            Error::Io { operation: "open", path, source }
        }
    })
}
