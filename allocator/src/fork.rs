//! [`Process`]: tells a process from its forked children.
//!
//! A child has its parent's memory but not its threads: no reaper serves a drop, and a lock that another thread held at the
//! fork stays locked. So whatever owns a thread, a lock or a driver's handle remembers its process, and compares it with one
//! load before it touches them.
//!
//! # How a fork is detected
//! One word of memory is 0 in each new child. The kernel clears it (`MADV_WIPEONFORK`, Linux 4.14) for `fork`, `_Fork` and
//! `clone`. If the kernel cannot, a handler of `pthread_atfork` does, for `fork`. If there is no memory for a handler,
//! processes are told apart by their ids, which costs a system call for each comparison.
//! A process that finds 0 takes the number after that of its parent.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The process in which a value was made. A forked child is another process, and so is each child of it.
///
/// ```
/// use tensorhold_allocator::Process;
///
/// struct Worker {
///     process: Process,
/// }
///
/// impl Drop for Worker {
///     fn drop(&mut self) {
///         if self.process.is_current() {
///             // Only the process that started the thread can join it.
///         }
///     }
/// }
/// drop(Worker { process: Process::current() });
/// ```
///
/// Neither function takes a lock, so a forked child may call both, whatever other threads of its parent were doing. A
/// child of `vfork` shares its parent's memory and counts as its parent.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    word: Word,
    number: u64,
}

/// Where the number of this process is stored.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// In this word, which is 0 in a new child.
    Cleared(&'static AtomicU64),
    /// Nowhere: the process id is the number.
    Id,
}

/// The number of the latest process in this line of ancestors. A fork adds 1, so it does not overflow.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Process {
    /// This process.
    pub fn current() -> Self {
        // No lock, nor a `OnceLock`: a fork while another thread is in here would leave it locked in the child.
        static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
        static IDS: AtomicU64 = AtomicU64::new(0);
        let mut at: *const AtomicU64 = WORD.load(Ordering::Acquire);
        if at.is_null() {
            // Miri supports neither the advice nor the handler.
            let cleared = if cfg!(miri) { None } else { wiped_word().or_else(handled_word) };
            let new: *const AtomicU64 = cleared.unwrap_or(&IDS);
            let won =
                WORD.compare_exchange(ptr::null_mut(), new.cast_mut(), Ordering::AcqRel, Ordering::Acquire);
            // If threads race here, the first one's word serves all, and the pages of the others stay unused.
            at = won.map_or_else(|first| first.cast_const(), |_| new);
        }
        // SAFETY: only words of `wiped_word`, `handled_word` and `IDS` are stored, all of which stay.
        let at = unsafe { &*at };
        Self::of(if ptr::eq(at, &IDS) { Word::Id } else { Word::Cleared(at) })
    }

    fn of(word: Word) -> Self {
        let Word::Cleared(at) = word else { return Self { word, number: word.id() } };
        let number = match at.load(Ordering::Relaxed) {
            0 => {
                let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                // If threads race here, all take the number of the first.
                match at.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => new,
                    Err(first) => first,
                }
            }
            number => number,
        };
        Self { word, number }
    }

    /// Whether this process is the one in which `self` was made, and not a child forked from it.
    #[inline]
    pub fn is_current(self) -> bool {
        self.number == self.word.id()
    }
}

impl Word {
    /// The number of this process; 0 in a child that has none yet.
    #[inline]
    fn id(self) -> u64 {
        match self {
            Self::Cleared(at) => at.load(Ordering::Relaxed),
            Self::Id => u64::from(std::process::id()),
        }
    }
}

/// A word that the kernel clears in each child.
fn wiped_word() -> Option<&'static AtomicU64> {
    let page = rustix::param::page_size();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a null hint lets the kernel choose: no existing mapping is replaced.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), page, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    // Emulators (QEMU 5, for one) accept any advice and ignore it: one that accepts no such advice as -1 knows what it says.
    // SAFETY: the page is ours; this advice does not exist.
    let believes_all = unsafe { libc::madvise(mapped, page, -1) } == 0;
    // SAFETY: the page is ours and nothing is in it.
    if believes_all || unsafe { libc::madvise(mapped, page, libc::MADV_WIPEONFORK) } != 0 {
        // SAFETY: mapped above, and no one has the address.
        unsafe { libc::munmap(mapped, page) };
        return None;
    }
    let word = NonNull::new(mapped.cast::<AtomicU64>())?;
    // SAFETY: a page is aligned for a word and reads as 0, a valid one; it is never unmapped.
    Some(unsafe { word.as_ref() })
}

/// A word that a handler clears in each child.
fn handled_word() -> Option<&'static AtomicU64> {
    static WORD: AtomicU64 = AtomicU64::new(0);
    extern "C" fn clear() {
        WORD.store(0, Ordering::Relaxed);
    }
    // SAFETY: the handler only stores to an atomic, which is safe after a fork, and lives as long as the program.
    let code = unsafe { libc::pthread_atfork(None, None, Some(clear)) };
    if code != 0 {
        tracing::warn!(
            code,
            "forks can be seen neither by the kernel nor by a handler: each drop asks for the process id"
        );
    }
    (code == 0).then_some(&WORD)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Whether it exits with 0.
    fn child(run: impl FnOnce() -> bool) -> bool {
        // SAFETY: the children run atomics, `fork` and `_exit` only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(!run());
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) };
        }
        let mut status = -1;
        // SAFETY: `status` is valid for the write.
        let waited = unsafe { libc::waitpid(child, &mut status, 0) };
        child > 0 && waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }

    #[test]
    fn a_child_is_another_process_and_so_is_its_child_however_forks_are_seen() {
        let ways = [wiped_word().map(Word::Cleared), handled_word().map(Word::Cleared), Some(Word::Id)];
        for word in ways.map(|way| way.expect("Linux knows all ways")) {
            let parent = Process::of(word);
            assert!(parent.is_current() && Process::of(word).number == parent.number);
            assert!(
                child(|| {
                    let known = !parent.is_current();
                    let own = Process::of(word);
                    let others = [parent, own];
                    known
                        && own.is_current()
                        && !parent.is_current()
                        && child(|| others.iter().all(|other| !other.is_current()))
                }),
                "{word:?}"
            );
            assert!(parent.is_current());
        }
    }

    #[test]
    fn a_fork_that_runs_no_handlers_is_seen() {
        let parent = Process::current();
        // SAFETY: as `fork`; the child runs atomics and `_exit` only.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            let code = i32::from(parent.is_current());
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = -1;
        // SAFETY: `status` is valid for the write.
        assert_eq!(i64::from(unsafe { libc::waitpid(child as i32, &mut status, 0) }), child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "the fork went unseen");
    }
}
