//! tensorhold's whole pool: books with labels, counted fragments, frees by way of the reaper.
//!
//! Its memory is addresses that no one can touch, in one region of just the capacity, which is kept while it is empty.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use tensorhold_allocator::{Fragment, Memory, MemoryError, MemoryId, RawRegion, Request};

use super::{GRANULE, Shared};
use crate::cases::median_of_times;
use crate::traces::Batch;

pub(crate) struct Pool<const DEVICE: bool>(tensorhold_allocator::Pool);

thread_local! {
    /// Each thread has a label of its own: fragments that share one would share its count.
    static LABEL: Arc<str> = "t".into();
}

impl<const DEVICE: bool> Shared for Pool<DEVICE> {
    type Live = Fragment;

    fn name() -> String {
        if DEVICE { "tensorhold Pool, of a device" } else { "tensorhold Pool" }.into()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        let builder = tensorhold_allocator::Pool::builder(Arc::new(Addresses::<DEVICE>));
        let builder = builder.limit_bytes(capacity).region_bytes(capacity).retain_bytes(u64::MAX);
        builder.build().map(Self).map_err(|error| error.to_string())
    }

    #[inline]
    fn allocate(&self, size: u64) -> Option<(u64, Fragment)> {
        let fragment = self.0.place(LABEL.with(Arc::clone), Request::new(size, GRANULE)).ok()?;
        Some((fragment.as_ptr() as u64, fragment))
    }

    #[inline]
    fn free(&self, live: Fragment) {
        drop(live);
    }

    fn drain(&self) {
        // The region stays.
        self.0.trim_to(u64::MAX);
    }

    fn is_empty(&self) -> bool {
        let stats = self.0.stats();
        (stats.fragments, stats.live_bytes, stats.lost_bytes) == (0, 0, 0)
            && stats.largest_free_bytes == stats.reserved_bytes
    }
}

/// How a planned placement in a pool goes: its name, and nanoseconds for the whole batch, layout not included.
pub(crate) fn planned(batch: &Batch) -> Result<Vec<(String, f64)>, String> {
    let space = Pool::<false>::new(batch.bytes)?;
    let requests = batch.sizes.iter().map(|&size| Request::new(size, GRANULE));
    let layout = space.0.lay_out(requests).map_err(|error| error.to_string())?;
    let labels: Vec<Arc<str>> =
        (0..batch.sizes.len()).map(|index| format!("model.layers.{index}.weight").into()).collect();
    let placed = median_of_times(|| {
        let started = Instant::now();
        let placed = space.0.place_planned(&layout, &labels);
        let time = started.elapsed();
        let placed = placed.map_err(|error| error.to_string())?;
        let starts = placed.fragments.iter().map(|fragment| fragment.as_ptr() as u64);
        batch.check_apart(&starts.collect::<Vec<_>>())?;
        drop(placed);
        space.drain();
        if space.is_empty() { Ok(time) } else { Err("not empty at the end".into()) }
    })?;
    Ok(vec![("tensorhold Pool, planned".into(), placed)])
}

/// Address space without memory, which a device might use: what is dropped after its address was given out goes by way of the reaper
/// then, which synchronizes for it.
struct Addresses<const DEVICE: bool>;

// SAFETY: M1: a fresh mapping overlaps nothing, begins at a page, which is aligned enough or refused, and stays until it is
// unmapped. M2: the CPU is told that it cannot touch it. M3: no device works on it.
unsafe impl<const DEVICE: bool> Memory for Addresses<DEVICE> {
    fn name(&self) -> &str {
        "addresses"
    }

    fn id(&self) -> MemoryId {
        static ID: LazyLock<MemoryId> = LazyLock::new(MemoryId::new);
        *ID
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn is_used_by_devices(&self) -> bool {
        DEVICE
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a null hint lets the kernel choose: no existing mapping is replaced.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), bytes as usize, ProtFlags::empty(), flags) };
        let base = NonNull::new(mapped.map_err(io::Error::from)?.cast::<u8>()).ok_or("no mapping at 0")?;
        if (base.as_ptr() as u64).is_multiple_of(align) {
            return Ok(RawRegion { base, bytes });
        }
        Err("more aligned than a page".into())
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: by the caller's promise the region is what `reserve` mapped, and nothing touches it.
        unsafe { munmap(region.base.as_ptr().cast(), region.bytes as usize) }.map_err(io::Error::from)?;
        Ok(())
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Ok(())
    }
}
