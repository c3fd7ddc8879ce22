//! [`Error`]: the allocator's error type.

use std::io;

use crate::bytes::Bytes;
use crate::quoted::Quoted;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a [`Memory`](crate::Memory), a fence or a stream failed: the system's or driver's reason.
pub type MemoryError = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation of a pool failed. An error leaves the pool unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pool's limit does not allow a new region.
    #[error(
        "place {label} on pool {pool}: requested {}, largest free block {}, reserved {} of a limit of {}; \
         raise the limit, or drop what the pool holds",
        Bytes(*requested).beside(&[*largest_free, *limit]), Bytes(*largest_free).beside(&[*requested]),
        Bytes(*reserved).beside(&[*limit]), Bytes(*limit).beside(&[*requested, *reserved, requested.saturating_add(*reserved)]),
        label = Quoted(label), pool = Quoted(pool)
    )]
    LimitReached {
        /// The pool's name.
        pool: String,
        /// The fragment, or for a planned batch its first fragment.
        label: String,
        /// Bytes that the new region would have needed.
        requested: u64,
        /// The largest free block in the pool, in bytes.
        largest_free: u64,
        /// Bytes reserved when it was asked.
        reserved: u64,
        /// The pool's limit, in bytes.
        limit: u64,
    },
    /// The memory refused a region.
    #[error(
        "reserve a region of {} for {label} on pool {pool}: the memory refused; \
         reserved so far {}; drop what the pool holds, load less at once, or use a memory with more room",
        Bytes(*requested), Bytes(*reserved),
        label = Quoted(label), pool = Quoted(pool)
    )]
    OutOfMemory {
        /// The pool's name.
        pool: String,
        /// The fragment, or for a planned batch its first fragment.
        label: String,
        /// Bytes that the new region would have needed.
        requested: u64,
        /// Bytes that the pool had reserved.
        reserved: u64,
        /// The memory's reason.
        source: MemoryError,
    },
    /// The pool has been closed.
    #[error("place {label} on pool {pool}: the pool is closed; place on a pool that is open", label = Quoted(label), pool = Quoted(pool))]
    Closed {
        /// The pool's name.
        pool: String,
        /// The fragment that was asked for.
        label: String,
    },
    /// An alignment that is not a power of two.
    #[error(
        "place {label} on pool {pool}: alignment {align} is not a power of two; ask for 1, 2, 4, ...",
        label = Quoted(label), pool = Quoted(pool)
    )]
    Alignment {
        /// The pool's name.
        pool: String,
        /// The fragment that was asked for.
        label: String,
        /// The alignment that was asked for.
        align: u64,
    },
    /// A planned batch whose layout and fragments do not belong together, or whose sizes overflow.
    #[error("place a batch of {fragments} fragments on pool {pool}: {problem}; lay the batch out again", pool = Quoted(pool))]
    Batch {
        /// The pool's name.
        pool: String,
        /// How many fragments were asked for.
        fragments: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A use on a stream that cannot be recorded.
    #[error(
        "use a fragment of {} of pool {pool} on a stream: the use cannot be recorded; use a stream that is not being \
         captured and whose work has not failed",
        Bytes(*bytes),
        pool = Quoted(pool)
    )]
    Stream {
        /// The pool's name.
        pool: String,
        /// The fragment's size in bytes.
        bytes: u64,
        /// The stream's reason.
        source: MemoryError,
    },
    /// A forked child used what its parent's pool made. The parent's threads are not there, and its locks may stay locked.
    #[error(
        "{operation} on pool {pool:?}: this process was forked from the one that made the pool, and has none of its threads; \
         make a pool in this process"
    )]
    Forked {
        /// The pool's name.
        pool: String,
        /// What was asked for.
        operation: &'static str,
    },
    /// Regions in parts were required of a memory that has none.
    #[error(
        "back the regions of pool {pool} in parts: the memory cannot; use RegionParts::Auto, or another memory",
        pool = Quoted(pool)
    )]
    NoParts {
        /// The pool's name.
        pool: String,
        /// The memory's reason.
        source: MemoryError,
    },
    /// The reaper thread could not be started.
    #[error(
        "start the reaper thread of pool {pool}: the system refused a thread; {}",
        thread_remedy(source), pool = Quoted(pool)
    )]
    Reaper {
        /// The pool's name.
        pool: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// The system gives "try again" for a limit on threads, and another number for all else, such as memory for the thread's stack.
fn thread_remedy(refusal: &io::Error) -> &'static str {
    match refusal.kind() {
        io::ErrorKind::WouldBlock => {
            "raise the limit on threads: RLIMIT_NPROC of this user (`ulimit -u`), or pids.max of the cgroup"
        }
        _ => "free memory, or raise the memory limit of the process or its cgroup",
    }
}
