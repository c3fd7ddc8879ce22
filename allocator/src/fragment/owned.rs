//! [`Fragment`] (owned, counted) and the views that borrow it.
//!
//! ```text
//! Fragment      [ address | length | record ]   three words; Clone counts, Drop may retire
//! FragmentView  [ address | length ]            two words; borrows a Fragment
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::process;
use std::ptr::{self, NonNull};
use std::sync::PoisonError;

use crate::core::pool_core::Shared;
use crate::error::Result;
use crate::memory::MemoryId;
use crate::stream::uses::Uses;
use crate::sync::acquire;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// What the fragments of one range share. Made by the pool, freed by whoever gives the range back (R1).
#[derive(Debug)]
pub(crate) struct Record {
    /// How many fragments point here.
    references: AtomicUsize,
    /// The retire queue's link.
    pub(crate) next: AtomicPtr<Record>,
    /// The pool (R3). Not counted: threads that place and drop at once would share the count.
    pool: NonNull<Shared>,
    /// The shard whose books it is in, if not the pool's (H1).
    shard: Option<u8>,
    /// Its entry in those books.
    pub(crate) slot: usize,
    pub(crate) uses: Uses,
}

/// A counted owner of a range of a region.
///
/// Clones and [slices](Fragment::slice) share the range; the last one to go gives it back (I1). All of it is
/// `Send + Sync`: the last drop may happen on any thread and neither locks, waits, nor calls a driver.
pub struct Fragment {
    address: NonNull<u8>,
    bytes: u64,
    record: NonNull<Record>,
}

// SAFETY: the record is only used through atomics and shared references to Sync data, the pool among them, and the range is plain memory:
// shared access is read-only, and writing needs `&mut Fragment` of the only owner.
unsafe impl Send for Fragment {}
// SAFETY: as above.
unsafe impl Sync for Fragment {}

impl Fragment {
    /// The first fragment of a range. The pool entered it in its books under `slot`.
    pub(crate) fn new(address: NonNull<u8>, bytes: u64, pool: &Shared, slot: usize, uses: Uses) -> Self {
        Self::new_in(None, address, bytes, pool, slot, uses)
    }

    /// As [`new`](Self::new), entered in the books of a shard.
    #[inline]
    pub(crate) fn new_in(
        shard: Option<u8>,
        address: NonNull<u8>,
        bytes: u64,
        pool: &Shared,
        slot: usize,
        uses: Uses,
    ) -> Self {
        let (references, next) = (AtomicUsize::new(1), AtomicPtr::new(ptr::null_mut()));
        let record = Box::new(Record { references, next, pool: NonNull::from(pool), shard, slot, uses });
        Self { address, bytes, record: NonNull::from(Box::leak(record)) }
    }

    fn record(&self) -> &Record {
        // SAFETY: R1: the record lives at least as long as this fragment, which has not been retired.
        unsafe { self.record.as_ref() }
    }

    fn pool(&self) -> &Shared {
        // SAFETY: R3: the pool lives as long as the record, and that as long as this fragment.
        unsafe { self.record().pool.as_ref() }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether the CPU can read and write the range: what the pool's memory said when the pool was built.
    ///
    /// Whoever makes views that are read later asks here, not a device that the range is believed to be on.
    pub fn is_host_accessible(&self) -> bool {
        self.pool().is_host_accessible
    }

    /// Which memory it lies in (M4): what the pool's memory said when the pool was built.
    pub fn memory_id(&self) -> MemoryId {
        self.pool().memory_id
    }

    /// First address. An empty fragment's is aligned as asked but points to nothing.
    ///
    /// What is done with it is not tracked: keep the fragment until the CPU has stopped using the address. Where
    /// [devices use the memory](crate::Memory::is_used_by_devices), work that was submitted before the last drop is waited for
    /// (I1): all work on the memory, since which of it uses the address cannot be known. [`use_on`](Self::use_on) waits for less.
    pub fn as_ptr(&self) -> *const u8 {
        self.view().as_ptr()
    }

    /// Borrows the range. Its address counts as given out: see [`as_ptr`](Self::as_ptr).
    #[inline]
    pub fn view(&self) -> FragmentView<'_> {
        self.uses().expose();
        FragmentView { address: self.address, bytes: self.bytes, owner: PhantomData }
    }

    /// Says that no use of an address that was given out is under way or will come, so that what is recorded is all that is waited
    /// for.
    ///
    /// # Safety
    /// It is so, and stays so until the address is given out again.
    pub unsafe fn assume_unused(&self) {
        self.uses().settle();
    }

    pub(crate) fn address(&self) -> *const u8 {
        self.address.as_ptr()
    }

    pub(crate) fn uses(&self) -> &Uses {
        &self.record().uses
    }

    pub(crate) fn pool_name(&self) -> &str {
        &self.pool().name
    }

    /// Leaves an owner of the range with the pool, where it stays.
    pub(crate) fn keep_for_good(&self) {
        let mut kept = self.pool().kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(self.clone());
    }

    pub(crate) fn is_only_owner(&self) -> bool {
        // Acquire pairs with the Release of the drop that left this fragment alone: its reads are over. No one can
        // make a second owner meanwhile, for that takes a reference to this one, which the callers borrow mutably.
        self.record().references.load(Ordering::Acquire) == 1
    }

    /// Another owner of `bytes` bytes of this range from `offset` on; `None` when they do not lie within it.
    pub fn slice(&self, offset: u64, bytes: u64) -> Option<Fragment> {
        let whole = FragmentView { address: self.address, bytes: self.bytes, owner: PhantomData };
        let FragmentView { address, bytes, .. } = whole.slice(offset, bytes)?;
        let mut part = self.clone();
        (part.address, part.bytes) = (address, bytes);
        Some(part)
    }

    /// How many fragments share the range, this one included. Other threads may change it at any time.
    pub fn owners(&self) -> usize {
        self.record().references.load(Ordering::Relaxed)
    }

    /// Borrows the range for writing, if this fragment is its only owner and every recorded use has ended.
    pub fn get_mut(&mut self) -> Option<FragmentViewMut<'_>> {
        if !self.is_only_owner() || !self.uses().have_ended(|| self.can_ask()) {
            return None;
        }
        self.uses().expose();
        Some(FragmentViewMut { address: self.address, bytes: self.bytes, owner: PhantomData })
    }

    /// Whether a use through [`use_mut_on`](Self::use_mut_on) has not ended on its stream, or is not known to have. While the fragment is
    /// borrowed, no other such use can begin.
    pub fn has_pending_writes(&self) -> bool {
        !self.uses().writes_have_ended(|| self.can_ask())
    }

    /// Whether fences can be asked: a driver does not work in a forked child.
    fn can_ask(&self) -> bool {
        !self.pool().is_forked_child()
    }

    pub(crate) fn check_process(&self, operation: &'static str) -> Result<()> {
        self.pool().check_process(operation)
    }

    /// The bytes, where the CPU can read them and no recorded use is writing to them.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if !self.is_host_accessible() || self.has_pending_writes() {
            return None;
        }
        // SAFETY: M2: the CPU may read the region and its bytes have values. I1: the borrow keeps the range alive. No recorded use writes to
        // it: by O1 those before have ended, and another would need the only owner, mutably.
        Some(unsafe { self.view().as_bytes() })
    }

    /// The bytes for writing, where the CPU can write them and this fragment is their only owner.
    pub fn as_bytes_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_host_accessible() {
            return None;
        }
        let view = self.get_mut()?;
        // SAFETY: M2, I1 as in `as_bytes`; `get_mut` found this to be the only owner, and it is borrowed mutably.
        Some(unsafe { std::slice::from_raw_parts_mut(view.address.as_ptr(), view.bytes as usize) })
    }

    /// Drops this owner and says whether it was the last one, so that the range is on its way back.
    pub fn release(self) -> bool {
        ManuallyDrop::new(self).let_go()
    }

    /// Counts this owner out. Called once, by `Drop` or in its place.
    fn let_go(&mut self) -> bool {
        let record = self.record();
        // Release: what this owner did with the range happens before whoever acquires the count after it.
        if record.references.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        acquire(&record.references);
        // SAFETY: R1: the count is 0, so this was the last fragment, and it gives the record up. R3: until then the pool lives.
        unsafe { Shared::retire(record.pool, record.shard, self.record) };
        true
    }
}

impl Clone for Fragment {
    fn clone(&self) -> Self {
        let before = self.record().references.fetch_add(1, Ordering::Relaxed);
        if before > isize::MAX as usize {
            // The count would wrap after 2^63 forgotten clones; as in `Arc`, there is no safe way on.
            process::abort();
        }
        Self { address: self.address, bytes: self.bytes, record: self.record }
    }
}

impl Drop for Fragment {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl fmt::Debug for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fragment")
            .field("address", &self.address)
            .field("bytes", &self.bytes)
            .field("owners", &self.owners())
            .finish()
    }
}

/// A borrow of a [`Fragment`]: an address and a length, free to copy.
///
/// ```compile_fail
/// # use tensorhold_allocator::{HostMemory, Pool, Request};
/// # let pool = Pool::new(HostMemory::new()).unwrap();
/// let fragment = pool.place("t", Request::new(16, 16)).unwrap();
/// let view = fragment.view();
/// drop(fragment); // cannot move out of `fragment` because it is borrowed
/// view.len();
/// ```
#[derive(Debug, Clone, Copy)]
pub struct FragmentView<'a> {
    address: NonNull<u8>,
    bytes: u64,
    owner: PhantomData<&'a [u8]>,
}

// SAFETY: like the `&[u8]` it stands for.
unsafe impl Send for FragmentView<'_> {}
// SAFETY: like the `&[u8]` it stands for.
unsafe impl Sync for FragmentView<'_> {}

impl<'a> FragmentView<'a> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// First address; see [`Fragment::as_ptr`].
    pub fn as_ptr(&self) -> *const u8 {
        self.address.as_ptr()
    }

    /// The view of `bytes` bytes from `offset` on; `None` when they do not lie within this one.
    pub fn slice(self, offset: u64, bytes: u64) -> Option<FragmentView<'a>> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: offset <= self.bytes was checked, and the range is one allocation (M1).
        let address = unsafe { self.address.add(offset as usize) };
        Some(FragmentView { address, bytes, owner: PhantomData })
    }

    /// The bytes.
    ///
    /// # Safety
    /// The view is of a fragment that [is host-accessible](Fragment::is_host_accessible) and [has no pending
    /// writes](Fragment::has_pending_writes).
    pub unsafe fn as_bytes(self) -> &'a [u8] {
        // SAFETY: the caller says that M2 holds; I1: the owner is borrowed for 'a. Writers hold `&mut Fragment` of
        // the only owner, so there is none, and by the caller's promise no earlier one is at work still.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes as usize) }
    }
}

/// A borrow of the only owner of a range, for writing.
#[derive(Debug)]
pub struct FragmentViewMut<'a> {
    address: NonNull<u8>,
    bytes: u64,
    owner: PhantomData<&'a mut [u8]>,
}

// SAFETY: like the `&mut [u8]` it stands for.
unsafe impl Send for FragmentViewMut<'_> {}
// SAFETY: like the `&mut [u8]` it stands for.
unsafe impl Sync for FragmentViewMut<'_> {}

impl FragmentViewMut<'_> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Borrows the range for reading.
    pub fn as_view(&self) -> FragmentView<'_> {
        FragmentView { address: self.address, bytes: self.bytes, owner: PhantomData }
    }

    /// First address; see [`Fragment::as_ptr`].
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.address.as_ptr()
    }
}
