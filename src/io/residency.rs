//! What is in the page cache.
//!
//! Asked in two ways, the better one first:
//! - `cachestat(2)` counts the cached pages of a range. Linux 6.5 and newer; newer ones answer only who owns the file or
//!   may write it.
//! - A read of one byte that does not wait (`RWF_NOWAIT`), at each end of the range. Needs no permission, but it sees two pages
//!   alone, and the kernel may begin to fetch a page that is missing.
//!
//! `mincore(2)` is not asked: without permission it says that everything is cached.
//!
//! The answer is a guess: pages come and go. A read that relies on it says so (`cached_only`), and finds out.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::{Errno, ReadWriteFlags};

/// How much of a range is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residency {
    /// All of it.
    Cached,
    /// Some or none of it.
    Missing,
    /// There is no way to tell.
    Unknown,
}

/// Asks about one file, and remembers what works.
#[derive(Debug)]
pub(crate) struct Probe {
    way: AtomicU8,
    /// Counts the cached pages of a range; tests put their own in its place.
    count: Count,
}

/// How many pages of a file are cached, of those that hold some of `bytes` bytes from `offset` on.
pub(crate) type Count = fn(&File, u64, u64) -> io::Result<u64>;

impl Default for Probe {
    fn default() -> Self {
        Self { way: AtomicU8::new(CACHESTAT), count: cached_pages }
    }
}

const CACHESTAT: u8 = 0;
const NOWAIT: u8 = 1;
const NONE: u8 = 2;

/// How many samples are taken of a file, and how long each is.
const SAMPLES: u64 = 8;
const SAMPLE_BYTES: u64 = 1 << 20;

impl Probe {
    /// How much of `bytes` bytes (at least 1) from `offset` on is cached.
    pub(crate) fn ask(&self, file: &File, offset: u64, bytes: u64) -> Residency {
        if self.way.load(Ordering::Relaxed) == CACHESTAT {
            match (self.count)(file, offset, bytes) {
                Ok(cached) if cached >= pages(offset, bytes) => return Residency::Cached,
                Ok(_) => return Residency::Missing,
                Err(_) => self.way.store(NOWAIT, Ordering::Relaxed),
            }
        }
        if self.way.load(Ordering::Relaxed) == NOWAIT {
            let ends = [offset, (offset + bytes).saturating_sub(1)];
            match ends.into_iter().map(|at| is_cached(file, at)).collect::<io::Result<Vec<bool>>>() {
                Ok(ends) if ends.iter().all(|&cached| cached) => return Residency::Cached,
                Ok(_) => return Residency::Missing,
                Err(_) => self.way.store(NONE, Ordering::Relaxed),
            }
        }
        Residency::Unknown
    }

    /// Whether a file of so many bytes is cached, by a few samples: counting all pages of a large one takes milliseconds.
    pub(crate) fn samples(&self, file: &File, bytes: u64) -> bool {
        let sample = SAMPLE_BYTES.min(bytes).max(1);
        (0..SAMPLES).all(|n| {
            self.ask(file, (bytes - sample.min(bytes)) / (SAMPLES - 1) * n, sample) == Residency::Cached
        })
    }

    /// Whether its answers are the kernel's own count: a page that is said to be cached then is there, or on its way.
    pub(crate) fn counts(&self) -> bool {
        self.way.load(Ordering::Relaxed) == CACHESTAT
    }

    /// How it asks, for a report.
    pub(crate) fn way(&self) -> &'static str {
        match self.way.load(Ordering::Relaxed) {
            CACHESTAT => "cachestat",
            NOWAIT => "reads that do not wait",
            _ => "no way to ask",
        }
    }

    #[cfg(test)]
    pub(crate) fn without_cachestat() -> Self {
        Self { way: AtomicU8::new(NOWAIT), ..Self::default() }
    }

    /// One whose answers do not depend on what the system drops: this count is taken for the kernel's.
    #[cfg(test)]
    pub(crate) fn counting(count: Count) -> Self {
        Self { count, ..Self::default() }
    }
}

/// How many pages a range touches.
pub(crate) fn pages(offset: u64, bytes: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    (offset + bytes).div_ceil(page) - offset / page
}

/// The kernel's `struct cachestat_range` and `struct cachestat`, of `linux/mman.h`.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    bytes: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The number of the system call, the same on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

fn cached_pages(file: &File, offset: u64, bytes: u64) -> io::Result<u64> {
    let (range, mut answer) = (CachestatRange { offset, bytes }, Cachestat::default());
    // SAFETY: both structures are laid out as the kernel's and valid for the call, which keeps neither.
    let status =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut answer, 0) };
    if status == 0 { Ok(answer.cached) } else { Err(io::Error::last_os_error()) }
}

/// Whether the byte at `offset` can be read without waiting.
fn is_cached(file: &File, offset: u64) -> io::Result<bool> {
    let mut byte = [0];
    loop {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) {
            Ok(_) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of four mebibytes on a disk, written back, so that its pages can be dropped.
    fn file() -> File {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![7; 4 << 20]).unwrap();
        file.sync_all().unwrap();
        file
    }

    fn drop_pages(file: &File, offset: u64, bytes: u64) {
        let bytes = std::num::NonZeroU64::new(bytes);
        rustix::fs::fadvise(file, offset, bytes, rustix::fs::Advice::DontNeed).unwrap();
    }

    #[test]
    fn what_was_written_is_cached_and_what_was_dropped_is_not() {
        for probe in [Probe::default(), Probe::without_cachestat()] {
            let file = file();
            assert_eq!(probe.ask(&file, 0, 4 << 20), Residency::Cached, "{}", probe.way());
            assert_eq!(probe.ask(&file, 4095, 2), Residency::Cached, "{}", probe.way());
            drop_pages(&file, 1 << 20, 3 << 20);
            assert_eq!(probe.ask(&file, 3 << 20, 1 << 20), Residency::Missing, "{}", probe.way());
            assert_eq!(probe.ask(&file, 0, 4 << 20), Residency::Missing, "{}", probe.way());
            assert_eq!(probe.ask(&file, 0, 1 << 20), Residency::Cached, "{}", probe.way());
            assert!(probe.samples(&file, 1 << 20) && !probe.samples(&file, 4 << 20), "{}", probe.way());
        }
    }

    #[test]
    fn pages_are_counted_at_their_edges() {
        let page = rustix::param::page_size() as u64;
        assert_eq!([pages(0, 1), pages(page - 1, 2), pages(page, page), pages(0, page + 1)], [1, 2, 1, 2]);
    }

    #[test]
    fn a_file_that_cannot_be_asked_is_unknown() {
        let probe = Probe::without_cachestat();
        let folder = File::open("/").unwrap();
        assert_eq!(probe.ask(&folder, 0, 1), Residency::Unknown);
        assert_eq!(probe.way(), "no way to ask");
    }
}
