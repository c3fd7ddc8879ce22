//! Reading files.
//!
//! An [`Engine`] is one way to do it: it opens files and makes [`Queue`]s, and a reader keeps reads in flight in a
//! queue. Each engine is one file here, and all of them pass the suite in `conformance.rs`.
//!
//! | engine | reads | in flight |
//! |---|---|---|
//! | [`Buffered`] | through the page cache, scattered to where the bytes belong | one |
//! | [`Direct`] | past the page cache, whole blocks | one |
//! | [`Uring`] | past the page cache, whole blocks, by `io_uring` | many |
//! | [`Gds`](gds::Gds) | whole blocks into memory of a CUDA device, by cuFile | one, or many |
//!
//! Open files are few, whatever the number of files: [`descriptor_cache`]. [`residency`] tells what is in the page cache, so that each part of a file can be read the quicker way.

mod buffered;
#[cfg(test)]
mod conformance;
pub(crate) mod descriptor_cache;
#[cfg(test)]
mod descriptor_cache_tests;
mod direct;
mod engines;
#[cfg(test)]
pub(crate) mod faulty;
mod file;
mod file_system;
pub(crate) mod gds;
pub(crate) mod residency;
pub(crate) mod retries;
mod uring;

use std::fmt;
use std::io::{self, IoSliceMut};
use std::{mem, ptr};

use serde::Serialize;

pub(crate) use buffered::Buffered;
pub(crate) use descriptor_cache::{CachedFile, DescriptorCache, FileLease, OpenFile, WhenFull};
pub(crate) use direct::Direct;
pub(crate) use engines::Engines;
pub(crate) use file::FileSource;
pub(crate) use file_system::{FileSystem, is_in_memory};
pub(crate) use uring::Uring;

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Backend {
    /// Each part of a file the quicker way: what is in the page cache is read from there, the rest past it, at once.
    /// What cannot be had is replaced by what can, and the report says so.
    #[default]
    Auto,
    /// Everything by this one, or an error (I6).
    Require(BackendKind),
}

/// The ways to read files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendKind {
    /// Through the page cache.
    Buffered,
    /// Past the page cache (`O_DIRECT`), one read at a time in each of several threads.
    Direct,
    /// Past the page cache by `io_uring`, many reads at a time in each of few threads.
    IoUring,
    /// Into the memory of a CUDA device by cuFile: GPUDirect Storage where the machine has it (`docs/gds.md`).
    Gds,
}

impl BackendKind {
    /// Every way there is.
    pub const ALL: [Self; 4] = [Self::Buffered, Self::Direct, Self::IoUring, Self::Gds];

    /// Its name, as settings and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Direct => "direct",
            Self::IoUring => "io-uring",
            Self::Gds => "gds",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A way to read files.
pub(crate) trait Engine: Send + Sync + fmt::Debug {
    /// Opens a file for this engine's queues.
    ///
    /// # Errors
    /// When the file, or its file system, cannot be read this way; and as `when_full` says.
    fn open(&self, file: &FileSource, when_full: WhenFull) -> io::Result<Access>;

    /// Whether the lengths that its queues report can be believed for a file, whichever engine opened it.
    ///
    /// # Errors
    /// Why they cannot: the file must not be read by these queues.
    fn check_trust(&self, _file: &FileSource) -> io::Result<()> {
        Ok(())
    }

    /// A queue of up to `depth` reads (1 at least; the queue says how many it takes).
    ///
    /// # Errors
    /// When the system refuses.
    fn queue(&self, depth: usize) -> io::Result<Box<dyn Queue>>;
}

/// A file as an engine opened it.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) file: CachedFile,
    /// Offsets, lengths and addresses of reads are multiples of this, a power of two; 1 if anything goes.
    pub(crate) alignment: u64,
}

/// Slots are so much longer than what is read into them: two blocks of the largest alignment that is served.
pub(crate) const SLACK_BYTES: u64 = 2 * MAX_ALIGNMENT;

/// No disk or file system asks for larger blocks as a rule; one that does is read through the page cache.
pub(crate) const MAX_ALIGNMENT: u64 = 4096;

/// How many buffers one read takes: Linux's `UIO_MAXIOV`.
pub(crate) const MAX_BUFFERS: usize = 1024;

/// A buffer by its address, which may be one of a device's memory.
///
/// # Safety
/// The result is only used for reads of a queue that takes such memory, and not as a slice. The memory is there for as long as it is
/// used.
pub(crate) unsafe fn buffer_at<'a>(start: *mut u8, bytes: usize) -> IoSliceMut<'a> {
    const { assert!(size_of::<IoSliceMut<'_>>() == size_of::<libc::iovec>()) };
    // SAFETY: the standard library guarantees that the two are laid out alike on Unix. No reference to the memory is made.
    unsafe { mem::transmute(libc::iovec { iov_base: start.cast(), iov_len: bytes }) }
}

/// Where a buffer is, and how long, without a look at its memory.
pub(crate) fn address(buffer: &IoSliceMut<'_>) -> (*mut u8, usize) {
    // SAFETY: as above; the reference is valid for the read.
    let vector = unsafe { ptr::from_ref(buffer).cast::<libc::iovec>().read() };
    (vector.iov_base.cast(), vector.iov_len)
}

/// The error for a read that is said to have brought more bytes than there was room for: no one knows what it has written.
pub(crate) fn too_many(got: usize, asked: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a read of {asked} bytes is said to have brought {got}"),
    )
}

/// A read for a queue.
#[derive(Debug)]
pub(crate) struct Read<'a, 'b> {
    /// Comes back with the completion; below the queue's depth, and of no other read in flight.
    pub(crate) ticket: usize,
    pub(crate) file: &'a OpenFile,
    pub(crate) offset: u64,
    /// Filled in turn; at most [`MAX_BUFFERS`], and exactly one for a queue of more than one read.
    pub(crate) buffers: &'a mut [IoSliceMut<'b>],
    /// Only what is in the page cache; the result is `WouldBlock` when nothing is.
    pub(crate) cached_only: bool,
}

/// A read that has ended.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) ticket: usize,
    /// Bytes read: fewer than asked for is normal, 0 is the end of the file.
    pub(crate) result: io::Result<usize>,
}

/// Reads in flight, of one thread. Dropping it waits for them.
pub(crate) trait Queue: Send {
    /// The most reads that may be in flight.
    fn depth(&self) -> usize;

    /// Says that reads with this ticket go to this buffer, which a system may prepare for. Only a hint.
    ///
    /// # Safety
    /// The buffer stays where it is until the queue is dropped.
    unsafe fn prepare(&mut self, _ticket: usize, _start: *mut u8, _bytes: usize) {}

    /// Starts a read; fewer than [`depth`](Self::depth) are in flight.
    ///
    /// # Errors
    /// When it could not be started; it is then not in flight.
    ///
    /// # Safety
    /// Until its completion has been taken or the queue has been dropped, the buffers are valid for writes, have
    /// values, and are touched by no one else. The file stays open for as long.
    unsafe fn submit(&mut self, read: Read<'_, '_>) -> io::Result<()>;

    /// Waits for a read to end, in any order; at least one is in flight.
    ///
    /// # Errors
    /// When the system fails to say. What is in flight is then unknown, and the drop waits for it.
    fn complete(&mut self) -> io::Result<Completion>;
}
