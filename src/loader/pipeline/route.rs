//! [`Routes`]: whether each job is read through the page cache or past it.
//!
//! Under [`Backend::Auto`] each job takes the faster route. A buffered reader takes a job and probes whether
//! its bytes are cached. It either reads them from the page cache or defers the job to direct readers, which
//! start when there is something to do. So cached and uncached bytes are read at the same time. A read from
//! the cache does not wait for the disk: if the probe was wrong, the read fails and the job is probed again.
//! A file that cannot be read past the page cache is read through it.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::io::descriptor_cache::is_full;
use crate::io::residency::{Probe, Residency};
use crate::io::{Access, Backend, BackendKind, Engine, Engines, FileSource, WhenFull};
use crate::limits;
use crate::loader::metadata::OpenedFile;
use crate::loader::plan::Job;

/// How a job is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadRoute {
    /// Through the page cache, waiting for the disk if necessary.
    Buffered,
    /// Through the page cache, without waiting for the disk.
    Cached,
    /// Past the page cache.
    Direct,
}

/// The routes to the files of a load.
pub(crate) struct Routes<'a> {
    backend: Backend,
    engines: &'a Engines,
    files: Vec<FileRoutes<'a>>,
    /// Jobs that a probe reported as cached, and that were not.
    contradicted: AtomicU64,
}

/// Findings about the files of a load, for the report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteSummary {
    /// Jobs that a probe reported as cached, and that were not.
    pub(crate) contradicted: u64,
    /// How files were probed.
    pub(crate) probed_by: &'static str,
    /// A file could not be read past the page cache.
    pub(crate) direct_refused: bool,
}

struct FileRoutes<'a> {
    source: &'a FileSource,
    /// On a file system in memory: the page cache is its storage.
    in_memory: bool,
    probe: Probe,
    buffered: OnceLock<io::Result<Access>>,
    direct: OnceLock<io::Result<Access>>,
    /// Direct reads were refused, at open or later.
    direct_refused: AtomicBool,
    /// The file system does not support reads that do not wait.
    must_wait: AtomicBool,
}

impl<'a> Routes<'a> {
    pub(crate) fn new(backend: Backend, engines: &'a Engines, files: &'a [OpenedFile]) -> Self {
        let routes = |file: &'a OpenedFile| FileRoutes {
            source: &file.source,
            in_memory: file.source.is_in_memory(),
            probe: (engines.probe)(),
            buffered: OnceLock::new(),
            direct: OnceLock::new(),
            direct_refused: AtomicBool::new(false),
            must_wait: AtomicBool::new(false),
        };
        Self { backend, engines, files: files.iter().map(routes).collect(), contradicted: AtomicU64::new(0) }
    }

    /// The route of a job. May wait for a descriptor: the caller holds no lease. Probes only the first byte
    /// of a job that is probed by reading.
    pub(super) fn route(&self, job: &Job) -> ReadRoute {
        self.route_of(job, if job.probes_by_reading { 1 } else { job.file_bytes })
    }

    /// The route of a job, from a probe of its first `bytes` bytes.
    fn route_of(&self, job: &Job, bytes: u64) -> ReadRoute {
        match self.backend {
            Backend::Require(BackendKind::Buffered) => return ReadRoute::Buffered,
            Backend::Require(_) => return ReadRoute::Direct,
            Backend::Auto => {}
        }
        let file = &self.files[job.file];
        if file.in_memory || file.direct_refused.load(Ordering::Relaxed) {
            return ReadRoute::Buffered;
        }
        let waits = file.must_wait.load(Ordering::Relaxed);
        // If the file cannot be opened, the read reports why.
        let asked = file.source.lease().map(|open| file.probe.ask(open.file(), job.file_offset, bytes));
        match asked.unwrap_or(Residency::Unknown) {
            Residency::Cached | Residency::Unknown if waits => ReadRoute::Buffered,
            Residency::Cached => ReadRoute::Cached,
            Residency::Missing | Residency::Unknown if self.direct(job.file, WhenFull::Wait).is_err() => {
                ReadRoute::Buffered
            }
            Residency::Missing => ReadRoute::Direct,
            Residency::Unknown => ReadRoute::Cached,
        }
    }

    /// A file, opened for reads through the page cache.
    pub(super) fn buffered(&self, file: usize) -> Result<&Access> {
        let routes = &self.files[file];
        let opened =
            routes.buffered.get_or_init(|| self.engines.buffered.open(routes.source, WhenFull::Wait));
        opened.as_ref().map_err(|error| refusal(BackendKind::Buffered, routes.source, error))
    }

    /// Why an `io_uring` must not read one of the files; `None` if it may read all.
    pub(super) fn distrust(&self) -> Option<String> {
        self.files.iter().find_map(|file| {
            let error = self.engines.uring.check_trust(file.source).err()?;
            Some(format!("io_uring is not used for {:?}: {error}", file.source.path()))
        })
    }

    /// A file, opened for direct reads; `None` if all descriptors are in use and `when_full` does not wait.
    ///
    /// # Errors
    /// When the file system does not support direct reads, or the file cannot be opened.
    pub(super) fn direct(&self, file: usize, when_full: WhenFull) -> Result<Option<&Access>> {
        let routes = &self.files[file];
        let engine: &dyn Engine = match self.direct_kind() {
            BackendKind::IoUring => &*self.engines.uring,
            _ => &*self.engines.direct,
        };
        let opened = match routes.direct.get() {
            Some(opened) => opened,
            None => match engine.open(routes.source, when_full) {
                Err(error) if is_full(&error) => return Ok(None),
                // A limit of the process, not of the file.
                Err(error) if limits::is_of_descriptors(&error) => return Err(self.refused(file, &error)),
                opened => routes.direct.get_or_init(|| {
                    opened.inspect_err(|error| {
                        tracing::debug!(path = ?routes.source.path(), %error, "not read past the page cache");
                        routes.direct_refused.store(true, Ordering::Relaxed);
                    })
                }),
            },
        };
        opened.as_ref().map(Some).map_err(|error| self.refused(file, error))
    }

    /// The backend that opens files for direct reads.
    fn direct_kind(&self) -> BackendKind {
        match self.backend {
            Backend::Require(kind) => kind,
            Backend::Auto => BackendKind::Direct,
        }
    }

    /// Records that direct reads of a file fail. Returns whether another route is allowed.
    pub(super) fn refuse_direct(&self, file: usize) -> bool {
        self.files[file].direct_refused.store(true, Ordering::Relaxed);
        self.backend == Backend::Auto
    }

    /// Records that a file system does not support reads that do not wait.
    pub(super) fn refuse_cached(&self, file: usize) {
        self.files[file].must_wait.store(true, Ordering::Relaxed);
    }

    /// The route of a job that a probe reported as cached, and that a read without waiting found not cached.
    ///
    /// If the kernel counts pages and still reports them, another reader is bringing them in: the read waits
    /// for it. Otherwise the probe was wrong, or the pages were evicted.
    pub(super) fn reroute(&self, job: &Job) -> ReadRoute {
        if !job.probes_by_reading {
            self.contradicted.fetch_add(1, Ordering::Relaxed);
        }
        match self.route_of(job, job.file_bytes) {
            ReadRoute::Cached if self.files[job.file].probe.counts() => ReadRoute::Buffered,
            ReadRoute::Cached => ReadRoute::Direct,
            route => route,
        }
    }

    /// The findings, for the report.
    pub(crate) fn summary(&self) -> RouteSummary {
        RouteSummary {
            contradicted: self.contradicted.load(Ordering::Relaxed),
            probed_by: self.files.first().map_or("no one", |file| match file.in_memory {
                true => "tmpfs, which is nothing else",
                false => file.probe.way(),
            }),
            direct_refused: self.files.iter().any(|file| file.direct_refused.load(Ordering::Relaxed)),
        }
    }

    /// The error for a file that direct reads do not support.
    pub(super) fn refused(&self, file: usize, error: &io::Error) -> Error {
        refusal(self.direct_kind(), self.files[file].source, error)
    }
}

/// The error for a file that a backend does not read. Blames the backend only if the file is still unchanged
/// and the system reports that it does not support such reads. Other failures, of limits, permissions or
/// storage, are errors of the file.
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
