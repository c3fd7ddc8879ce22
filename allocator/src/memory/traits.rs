//! [`Memory`] and [`PartedMemory`]: the sources of regions.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::MemoryError;

/// The identity of a [`Memory`], independent of its name, as [`Memory::id`] returns it (M4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemoryId(u64);

impl MemoryId {
    /// The id of this process's plain host memory, [`HostMemory`](crate::HostMemory).
    pub const HOST: Self = Self(0);

    /// A new id, which no other memory has.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // 2^64 are never made.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for MemoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A range of addresses that a [`Memory`] reserved.
///
/// The CPU may not be able to read it: see [`Memory::is_host_accessible`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRegion {
    /// First address.
    pub base: NonNull<u8>,
    /// Length in bytes.
    pub bytes: u64,
}

// SAFETY: a RawRegion is a description; whoever holds it may only compute addresses. Access is the business of the
// fragments, which have their own argument.
unsafe impl Send for RawRegion {}
// SAFETY: as above.
unsafe impl Sync for RawRegion {}

/// A source of large regions: host memory, pinned memory, a device's memory.
///
/// The methods may block and may be called from any thread. A [`Pool`](crate::Pool) calls them without holding a lock, and
/// never from a drop. So they may query the pool and drop fragments, but not wait for the pool, as
/// [`trim`](crate::Pool::trim) and refused placements do: the pool may be waiting for them.
///
/// # Safety
/// An implementation promises:
/// - **M1** What `reserve` returns is at least `bytes` long, starts at a multiple of `align`, overlaps no other
///   reserved region, and neither moves nor goes away before `release`.
/// - **M2** If `is_host_accessible`, the CPU may read and write each byte of a region, and each has a value (fresh
///   regions are zeroed, say, not uninitialised).
/// - **M3** When `synchronize` returns `Ok`, all device work submitted before the call that could touch a region has
///   ended. Nothing but the CPU touches the regions unless `is_used_by_devices`.
/// - **M4** `id`, `is_host_accessible`, `is_used_by_devices` and `parted` never change. Memories with one id are one kind of memory of one
///   device: the CPU can access all of them or none, and the same devices, contexts and streams can use their regions.
pub unsafe trait Memory: Send + Sync + 'static {
    /// Names the memory in errors and snapshots, such as `host` or `cuda:0`.
    fn name(&self) -> &str;

    /// Its identity (M4): two handles on one device's plain memory have one id; pinned memory, or memory shared with the CPU, has
    /// another. Make it once with [`MemoryId::new`] and keep it. A pool calls this once, when it is built.
    fn id(&self) -> MemoryId;

    /// Whether the CPU can read and write the regions. A pool calls this once, when it is built.
    fn is_host_accessible(&self) -> bool;

    /// Reserves `bytes` (never 0) aligned to `align` (a power of two).
    ///
    /// # Errors
    /// When there is no such range, with the system's or driver's reason.
    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError>;

    /// Releases a region.
    ///
    /// # Errors
    /// When the system or driver refuses; the region is then lost, and counts as such in the pool's statistics.
    ///
    /// # Safety
    /// `region` came from this memory's `reserve`, has not been released, and nothing touches it any more (I1).
    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError>;

    /// Waits until all device work submitted so far that could touch a region has ended. Nothing to do for memory
    /// that only the CPU uses.
    ///
    /// # Errors
    /// When that cannot be established; ranges that wait for it are then never reused.
    fn synchronize(&self) -> Result<(), MemoryError>;

    /// Whether devices use its regions. If none does, `synchronize` has nothing to wait for, and a range is free with its last drop
    /// even if its address was given out. A pool calls this once, when it is built. A memory that wraps another and is used by
    /// devices, as pinned memory is, returns `true` whatever the other returns.
    fn is_used_by_devices(&self) -> bool {
        true
    }

    /// The interface to back and release regions in parts.
    ///
    /// # Errors
    /// When the memory does not support it, which is the default, with the reason.
    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Err(format!("{} gives its regions back whole", self.name()).into())
    }
}

/// Memory whose regions are reserved as address ranges and committed part by part.
///
/// # Safety
/// An implementation promises:
/// - **V1** `unit` is a power of two, the same each time. What `reserve_range` returns is as M1 says, and each part of whole units can be
///   committed.
/// - **V2** From a `commit` that has returned `Ok` to the `decommit` of the same part, the part is as the memory of a region
///   from [`Memory::reserve`] (M1, M2). M3 holds for it. A `commit` that has returned an error, or panicked, leaves nothing behind the
///   part that anyone could reach; where it leaves anything at all, `release_range` refuses the range.
pub unsafe trait PartedMemory: Send + Sync {
    /// The allocation unit in bytes: parts begin and end at multiples of it.
    fn unit(&self) -> u64;

    /// Reserves a range of addresses for `bytes` bytes (never 0), rounded up to whole units, aligned to `align` (a power of two) and to
    /// a unit.
    ///
    /// # Errors
    /// When there is no such range.
    fn reserve_range(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError>;

    /// Releases a range.
    ///
    /// # Errors
    /// When the system or driver refuses.
    ///
    /// # Safety
    /// `range` came from this memory's `reserve_range`, has not been released, and none of its parts is committed. A part whose `decommit`
    /// was refused is.
    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError>;

    /// Commits memory to a part of a range.
    ///
    /// # Errors
    /// When there is no memory, with the system's or driver's reason. The part has no memory then.
    ///
    /// # Safety
    /// `part` lies in a range that came from this memory's `reserve_range` and is not released before this returns. It is one or more whole units
    /// of it, and no byte of it is committed, nor being committed or decommitted.
    ///
    /// Safe code cannot call it:
    ///
    /// ```compile_fail,E0133
    /// # use tensorhold_allocator::{HostMemory, PartedMemory, RawRegion};
    /// let memory = HostMemory::new();
    /// let range = memory.reserve_range(memory.unit(), 256).unwrap();
    /// memory.commit(RawRegion { bytes: u64::MAX, ..range });
    /// ```
    unsafe fn commit(&self, part: RawRegion) -> Result<(), MemoryError>;

    /// Decommits the memory of a part.
    ///
    /// # Errors
    /// When the system or driver refuses; the memory is then lost.
    ///
    /// # Safety
    /// Just this part was committed, no one has called this for it since, and nothing touches it any more (I1).
    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError>;
}
