//! [`Fragment`]: a counted owner of a range.

use std::fmt;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};

use super::view::{FragmentView, FragmentViewMut};
use crate::core::{PoolCore, Record};
use crate::error::Result;
use crate::memory::MemoryId;
use crate::stream::uses::Uses;

/// A counted owner of a range of a region.
///
/// Clones and [slices](Fragment::slice) share the range; the drop of the last one retires it (I1). Fragments are
/// `Send + Sync`: the last drop may happen on any thread and does not lock, wait or call a driver.
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
    /// The first fragment of a range, which the pool has entered in its books under `slot`.
    pub(crate) fn new(address: NonNull<u8>, bytes: u64, pool: &PoolCore, slot: usize, uses: Uses) -> Self {
        Self { address, bytes, record: Record::leak(pool, None, slot, uses) }
    }

    /// As [`new`](Self::new), entered in the books of a shard.
    #[inline]
    pub(crate) fn new_in_shard(
        shard: u8,
        address: NonNull<u8>,
        bytes: u64,
        pool: &PoolCore,
        slot: usize,
    ) -> Self {
        Self { address, bytes, record: Record::leak(pool, Some(shard), slot, Uses::default()) }
    }

    /// The address of an empty fragment: aligned, and pointing to nothing.
    pub(crate) fn dangling(align: u64) -> NonNull<u8> {
        // `NonNull::without_provenance` needs Rust 1.89.
        let address = NonZeroUsize::new(align as usize).unwrap_or(NonZeroUsize::MIN);
        NonNull::new(ptr::without_provenance_mut(address.get())).unwrap_or(NonNull::dangling())
    }

    fn record(&self) -> &Record {
        // SAFETY: R1: the record lives at least as long as this fragment, which has not been retired.
        unsafe { self.record.as_ref() }
    }

    fn pool(&self) -> &PoolCore {
        // SAFETY: R3: the pool lives as long as the record, and that as long as this fragment.
        unsafe { self.record().pool().as_ref() }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether the CPU can read and write the range, as the memory answered when the pool was built.
    ///
    /// Ask here before reading through a view, and not the device on which the range is believed to lie.
    pub fn is_host_accessible(&self) -> bool {
        self.pool().config().is_host_accessible
    }

    /// The memory that it lies in (M4), as the memory answered when the pool was built.
    pub fn memory_id(&self) -> MemoryId {
        self.pool().config().memory_id
    }

    /// First address. That of an empty fragment is aligned as requested but points to nothing.
    ///
    /// Its use is not tracked: keep the fragment until the CPU has stopped using the address. If
    /// [devices use the memory](crate::Memory::is_used_by_devices), the pool waits for all work on the memory that was submitted
    /// before the last drop (I1), since it cannot know which of it uses the address. [`use_on`](Self::use_on) waits for less.
    pub fn as_ptr(&self) -> *const u8 {
        self.view().as_ptr()
    }

    /// Borrows the range. Its address counts as given out: see [`as_ptr`](Self::as_ptr).
    #[inline]
    pub fn view(&self) -> FragmentView<'_> {
        self.uses().expose();
        self.view_unexposed()
    }

    /// A view whose address does not count as given out.
    #[inline]
    fn view_unexposed(&self) -> FragmentView<'_> {
        // SAFETY: I1: the fragment owns the range and is borrowed.
        unsafe { FragmentView::new(self.address, self.bytes) }
    }

    /// Declares that addresses given out so far are no longer used, so that the pool waits for recorded uses alone.
    ///
    /// # Safety
    /// No such use is under way or follows, until the address is given out again.
    pub unsafe fn assume_unused(&self) {
        self.uses().settle();
    }

    pub(crate) fn address(&self) -> *const u8 {
        self.address.as_ptr()
    }

    pub(crate) fn uses(&self) -> &Uses {
        self.record().uses()
    }

    pub(crate) fn pool_name(&self) -> &str {
        &self.pool().config().name
    }

    /// Leaves an owner of the range with the pool, so that the range is never given back.
    pub(crate) fn keep_forever(&self) {
        self.pool().keep_forever(Box::new(self.clone()));
    }

    pub(crate) fn is_only_owner(&self) -> bool {
        self.record().has_one_owner()
    }

    /// Another owner of the `bytes` bytes from `offset` in this range; `None` if they do not lie within it.
    pub fn slice(&self, offset: u64, bytes: u64) -> Option<Fragment> {
        let address = self.view_unexposed().slice(offset, bytes)?.address();
        let mut part = self.clone();
        (part.address, part.bytes) = (address, bytes);
        Some(part)
    }

    /// The number of fragments that share the range, this one included. Other threads may change it at any time.
    pub fn owners(&self) -> usize {
        self.record().owners()
    }

    /// Borrows the range for writing, if this fragment is its only owner and every recorded use has ended.
    pub fn get_mut(&mut self) -> Option<FragmentViewMut<'_>> {
        if !self.is_only_owner() || !self.uses().have_ended(|| self.can_ask()) {
            return None;
        }
        self.uses().expose();
        // SAFETY: I1: this is the only owner, every recorded use has ended, and it is borrowed mutably.
        Some(unsafe { FragmentViewMut::new(self.address, self.bytes) })
    }

    /// Whether a use through [`use_mut_on`](Self::use_mut_on) has not ended on its stream, or is not known to have ended. No other such
    /// use can begin while the fragment is borrowed.
    pub fn has_pending_writes(&self) -> bool {
        !self.uses().writes_have_ended(|| self.can_ask())
    }

    /// Whether fences can be queried: a driver does not work in a forked child.
    fn can_ask(&self) -> bool {
        !self.pool().is_forked_child()
    }

    pub(crate) fn check_process(&self, operation: &'static str) -> Result<()> {
        self.pool().check_process(operation)
    }

    /// The bytes, if the CPU can read them and no recorded use may be writing to them.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if !self.is_host_accessible() || self.has_pending_writes() {
            return None;
        }
        // SAFETY: M2: the CPU may read the region and its bytes have values. I1: the borrow keeps the range alive. No recorded use writes to
        // it: by O1 those before have ended, and another would need the only owner, mutably.
        Some(unsafe { self.view().as_bytes() })
    }

    /// The bytes for writing, if the CPU can write them, this fragment is their only owner, and every recorded use has ended.
    pub fn as_bytes_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_host_accessible() {
            return None;
        }
        let mut view = self.get_mut()?;
        // SAFETY: M2, I1 as in `as_bytes`; `get_mut` found this to be the only owner, and it is borrowed mutably.
        Some(unsafe { std::slice::from_raw_parts_mut(view.as_mut_ptr(), view.len() as usize) })
    }

    /// Drops this owner. Returns whether it was the last one, so that the range is retired.
    pub fn release(self) -> bool {
        ManuallyDrop::new(self).let_go()
    }

    /// Counts this owner out. Called once, by `Drop` or in its place.
    fn let_go(&mut self) -> bool {
        // SAFETY: this fragment is an owner, and is counted out once.
        if !unsafe { Record::remove_owner(self.record) } {
            return false;
        }
        let record = self.record();
        // SAFETY: R1: the count is 0, so this was the last fragment, and it gives the record up. R3: until then the pool lives.
        unsafe { PoolCore::retire(record.pool(), record.shard(), self.record) };
        true
    }
}

impl Clone for Fragment {
    fn clone(&self) -> Self {
        self.record().add_owner();
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
