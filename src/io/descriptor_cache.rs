//! The descriptor cache: a bounded number of open files for any number of them.
//!
//! A checkpoint may have thousands of files, and a process may open few: 1,024 on most systems, 64 on some. So a [`CachedFile`] is opened when it is
//! needed. It stays open until another file needs the descriptor, and is then opened again by the same function, which checks that it is the same
//! file (I5). Whoever reads it holds a [`FileLease`]. Which idle file is closed first is decided by a clock: the one that was opened first, unless
//! it was used since the clock's hand last passed it.
//!
//! # Invariants
//! - **F1** No more than [`capacity`] descriptors of the cache are open. `reserved` counts those that are open or about to be; it grows under the lock
//!   of the clock, while it is below the capacity, and falls when a descriptor has been closed.
//! - **F2** A file with a lease stays open: only a file whose one owner is its slot is evicted, and leases are given under the slot's lock.
//! - **F3** The number of a descriptor is used again when it has been closed, so it identifies nothing. [`OpenFile::id`] is unique in its process.
//! - **F4** No deadlock: a thread that waits for room ([`WhenFull::Wait`]) holds no lease. Locks are taken in the order slot, clock; whoever has the clock's lock
//!   only tries slots.
//!
//! Each process has a cache of its own. A forked child makes another one, and closes what it can of its parent's files.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tensorhold_allocator::Process;

use crate::limits;

/// The most descriptors of the cache. With rings and what is open for a moment, the library has at most 128.
const MAX_OPEN: usize = 112;

/// The cache takes this share of the limit of the process, and no less than [`MIN_OPEN`].
const SHARE: u64 = 4;
const MIN_OPEN: usize = 4;

/// How many descriptors the cache may have now: the limit of the process may change.
fn capacity() -> usize {
    let share = limits::open_files().map_or(MAX_OPEN as u64, |soft| soft / SHARE);
    usize::try_from(share).unwrap_or(MAX_OPEN).clamp(MIN_OPEN, MAX_OPEN)
}

/// What to do while all descriptors of the cache are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Wait for one. The caller holds no lease (F4).
    Wait,
    /// Return the error that [`is_full`] recognises.
    Refuse,
}

/// All descriptors of the cache are in use.
#[derive(Debug, thiserror::Error)]
#[error("all file descriptors of the cache are in use")]
struct Full;

/// Whether an error says that all descriptors are in use, so that the caller has to return one first.
pub(crate) fn is_full(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Full>())
}

/// What goes with an open file, and is dropped before it is closed.
pub(crate) type Attachment = Box<dyn Any + Send + Sync>;

/// A file, just opened.
pub(crate) type Opened = (Arc<File>, Option<Attachment>);

/// Opens a file, the first time or again.
type Open = Box<dyn Fn() -> io::Result<Opened> + Send + Sync>;

/// An open descriptor.
pub(crate) struct OpenFile {
    // Dropped in this order: the descriptor counts until it is closed (F1).
    attachment: Option<Attachment>,
    file: Arc<File>,
    room: Room,
    id: u64,
}

impl OpenFile {
    fn new((file, attachment): Opened, room: Room) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { attachment, file, room, id: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    /// One that no cache closes.
    #[cfg(test)]
    pub(crate) fn alone(file: impl Into<File>) -> Arc<Self> {
        let room = DescriptorCache::of_process().reserve(WhenFull::Wait).unwrap();
        Self::new((Arc::new(file.into()), None), room)
    }

    /// A number that no other open file of this process has, before or after (F3).
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What was attached when the file was opened, if it is of this type.
    pub(crate) fn attachment<T: 'static>(&self) -> Option<&T> {
        self.attachment.as_ref()?.downcast_ref()
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFile").field("file", &self.file).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Keeps a file open (F2).
#[derive(Debug)]
pub(crate) struct FileLease {
    // Dropped in this order: those who wait for the file see that it is idle.
    file: Arc<OpenFile>,
    _released: Release,
}

impl FileLease {
    fn new(file: &Arc<OpenFile>) -> Self {
        Self { file: Arc::clone(file), _released: Release(file.room.cache) }
    }
}

impl Deref for FileLease {
    type Target = OpenFile;

    fn deref(&self) -> &OpenFile {
        &self.file
    }
}

/// Wakes those who wait for room.
#[derive(Debug)]
struct Release(&'static DescriptorCache);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// A descriptor that is open or about to be (F1).
#[derive(Debug)]
pub(crate) struct Room {
    cache: &'static DescriptorCache,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.cache.reserved.fetch_sub(1, Ordering::Relaxed);
        self.cache.wake();
    }
}

/// A file that is open while it is in use, and for as long after that as its descriptor is not needed. Clones are the same file.
#[derive(Clone)]
pub(crate) struct CachedFile {
    inner: Arc<Inner>,
}

struct Inner {
    cache: &'static DescriptorCache,
    slot: Arc<Slot>,
    open: Open,
}

/// Where the open file of a [`CachedFile`] is.
#[derive(Debug, Default)]
struct Slot {
    open: Mutex<Option<Arc<OpenFile>>>,
    /// It was used since the clock's hand last passed.
    used: AtomicBool,
}

impl CachedFile {
    /// A file that is opened when it is first leased.
    pub(crate) fn new(
        cache: &'static DescriptorCache,
        open: impl Fn() -> io::Result<Opened> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(Inner { cache, slot: Arc::default(), open: Box::new(open) }) }
    }

    /// A file that has been opened already, in this room.
    pub(crate) fn opened(
        room: Room,
        file: File,
        open: impl Fn() -> io::Result<Opened> + Send + Sync + 'static,
    ) -> Self {
        let new = Self::new(room.cache, open);
        let Inner { cache, slot, .. } = &*new.inner;
        *lock(&slot.open) = Some(OpenFile::new((Arc::new(file), None), room));
        cache.insert(slot);
        new
    }

    /// Keeps the file open; opens it if it is not. For an open file that takes a lock that is seldom contended, and no system call.
    ///
    /// # Errors
    /// When the system refuses to open it, or it is not the file any more; in a forked child; and as `when_full` says.
    pub(crate) fn lease(&self, when_full: WhenFull) -> io::Result<FileLease> {
        let Inner { cache, slot, open } = &*self.inner;
        if !cache.process.is_current() {
            return Err(io::Error::other("the file was opened by the process that this one was forked from"));
        }
        let mut held = match when_full {
            WhenFull::Wait => lock(&slot.open),
            // Whoever has the lock may be waiting for the caller's leases.
            WhenFull::Refuse => slot.open.try_lock().map_err(|_| io::Error::other(Full))?,
        };
        if let Some(file) = &*held {
            if !slot.used.load(Ordering::Relaxed) {
                slot.used.store(true, Ordering::Relaxed);
            }
            return Ok(FileLease::new(file));
        }
        let (opened, room) = cache.open(when_full, open)?;
        let lease = FileLease::new(held.insert(OpenFile::new(opened, room)));
        drop(held);
        cache.insert(slot);
        Ok(lease)
    }

    /// The cache that it is in.
    pub(crate) fn cache(&self) -> &'static DescriptorCache {
        self.inner.cache
    }

    /// Does something while no one else can lease the file or evict one.
    #[cfg(test)]
    pub(super) fn with_locks(&self, work: impl FnOnce()) {
        let _open = lock(&self.inner.slot.open);
        let _clock = lock(&self.inner.cache.clock);
        work();
    }

    /// A lease if the file is open and no one is opening it.
    pub(crate) fn lease_if_open(&self) -> Option<FileLease> {
        self.inner.slot.open.try_lock().ok()?.as_ref().map(FileLease::new)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let file = match self.cache.process.is_current() {
            true => lock(&self.slot.open).take(),
            // A thread of the parent may have had the lock.
            false => self.slot.open.try_lock().ok().and_then(|mut open| open.take()),
        };
        // Closed without the lock.
        drop(file);
    }
}

impl fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFile").field("slot", &self.inner.slot).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The open files of a process.
#[derive(Debug)]
pub(crate) struct DescriptorCache {
    process: Process,
    capacity: fn() -> usize,
    clock: Mutex<Clock>,
    /// Descriptors that are open or about to be (F1).
    reserved: AtomicUsize,
    /// Those of them that are about to be.
    opening: AtomicUsize,
    /// Threads that wait for room.
    waiting: AtomicUsize,
    released: Condvar,
}

impl DescriptorCache {
    /// The cache of this process.
    pub(crate) fn of_process() -> &'static Self {
        // No lock, which another thread could hold at a fork.
        static CURRENT: AtomicPtr<DescriptorCache> = AtomicPtr::new(ptr::null_mut());
        let at = CURRENT.load(Ordering::Acquire);
        // SAFETY: only caches that are never freed are stored here, below.
        if let Some(cache) = unsafe { at.as_ref() }
            && cache.process.is_current()
        {
            return cache;
        }
        let new = Self::new(capacity);
        let stored = ptr::from_ref(new).cast_mut();
        match CURRENT.compare_exchange(at, stored, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            // SAFETY: as above. Where threads meet here, a cache is left over, once in a process.
            Err(first) => unsafe { first.as_ref() }.unwrap_or(new),
        }
    }

    /// A cache that is never freed, with this capacity.
    pub(super) fn new(capacity: fn() -> usize) -> &'static Self {
        Box::leak(Box::new(Self {
            process: Process::current(),
            capacity,
            clock: Mutex::default(),
            reserved: AtomicUsize::new(0),
            opening: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            released: Condvar::new(),
        }))
    }

    /// Opens a file, closing idle ones where that is needed: to stay within the capacity, and where the process or the system has no descriptor left.
    ///
    /// # Errors
    /// Those of `open`, and as `when_full` says.
    pub(crate) fn open<T>(
        &'static self,
        when_full: WhenFull,
        open: impl Fn() -> io::Result<T>,
    ) -> io::Result<(T, Room)> {
        let room = self.reserve(when_full)?;
        let _opening = Counted::new(&self.opening);
        loop {
            match open() {
                Err(error) if limits::is_of_descriptors(&error) => self.free(when_full, error)?,
                opened => return opened.map(|opened| (opened, room)),
            }
        }
    }

    /// Makes something that takes a descriptor and is not a file; where none is left, idle files are closed for it.
    pub(crate) fn make<T>(&self, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
        self.retry(make, limits::is_of_descriptors)
    }

    /// Does something that takes descriptors; where it failed for want of one, as `is_refused` says, idle files are closed and it is done again.
    pub(crate) fn retry<T, E>(
        &self,
        work: impl Fn() -> Result<T, E>,
        is_refused: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        match work() {
            Err(error) if is_refused(&error) => {
                let idle = lock(&self.clock).evict_all();
                if idle.is_empty() {
                    return Err(error);
                }
                drop(idle);
                work()
            }
            done => done,
        }
    }

    /// Room for one more descriptor (F1).
    fn reserve(&'static self, when_full: WhenFull) -> io::Result<Room> {
        let capacity = (self.capacity)();
        let (mut clock, mut waiting) = (lock(&self.clock), None);
        loop {
            if self.reserved.load(Ordering::Relaxed) < capacity {
                self.reserved.fetch_add(1, Ordering::Relaxed);
                return Ok(Room { cache: self });
            }
            if let Some(idle) = clock.evict() {
                // Closed without the lock.
                drop(clock);
                drop(idle);
                clock = lock(&self.clock);
                continue;
            }
            clock = match (when_full, &waiting) {
                (WhenFull::Refuse, _) => return Err(io::Error::other(Full)),
                // Looked at once more: what was returned before this was not told of.
                (WhenFull::Wait, None) => {
                    waiting = Some(Counted::new(&self.waiting));
                    clock
                }
                (WhenFull::Wait, Some(_)) => {
                    self.released.wait(clock).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Closes idle files, or waits for a lease to be returned, since the system refuses a descriptor with this error.
    ///
    /// # Errors
    /// That one, where no other file of the cache is open; and as `when_full` says.
    fn free(&self, when_full: WhenFull, error: io::Error) -> io::Result<()> {
        let (mut clock, mut waiting) = (lock(&self.clock), None);
        loop {
            let idle = clock.evict_all();
            if !idle.is_empty() {
                drop(clock);
                drop(idle);
                return Ok(());
            }
            let others = self.reserved.load(Ordering::Relaxed) > self.opening.load(Ordering::Relaxed);
            match (when_full, &waiting) {
                _ if !others => return Err(error),
                (WhenFull::Refuse, _) => return Err(io::Error::other(Full)),
                (WhenFull::Wait, None) => waiting = Some(Counted::new(&self.waiting)),
                (WhenFull::Wait, Some(_)) => {
                    drop(self.released.wait(clock));
                    return Ok(());
                }
            }
        }
    }

    /// Notes that a slot has an open file.
    fn insert(&self, slot: &Arc<Slot>) {
        let mut clock = lock(&self.clock);
        clock.slots.push_back(Arc::clone(slot));
        if clock.slots.len() > 4 * MAX_OPEN {
            // Files that their owners have dropped.
            clock.slots.retain(|slot| slot.open.try_lock().map_or(true, |open| open.is_some()));
        }
    }

    /// Wakes those who wait for room, if there are any.
    fn wake(&self) {
        // With the one in `Counted::new`: either this sees who waits, or they see what was returned before.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 && self.process.is_current() {
            // Taken, so that no one is between a look and the wait.
            drop(lock(&self.clock));
            self.released.notify_all();
        }
    }
}

/// One more of something, for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The slots of open files, in the order in which the hand comes to them.
#[derive(Debug, Default)]
struct Clock {
    slots: VecDeque<Arc<Slot>>,
}

impl Clock {
    /// Takes an idle file out of its slot, one that was not used for a round if there is one.
    fn evict(&mut self) -> Option<Arc<OpenFile>> {
        for _ in 0..2 * self.slots.len() {
            let slot = self.slots.pop_front()?;
            let idle = match slot.open.try_lock() {
                Ok(open) if open.is_none() => continue,
                Ok(mut open) if !slot.used.swap(false, Ordering::Relaxed) => {
                    open.take_if(|file| Arc::strong_count(file) == 1)
                }
                _ => None,
            };
            match idle {
                Some(_) => return idle,
                None => self.slots.push_back(slot),
            }
        }
        None
    }

    /// Takes all idle files out of their slots.
    fn evict_all(&mut self) -> Vec<Arc<OpenFile>> {
        std::iter::from_fn(|| self.evict()).collect()
    }
}
