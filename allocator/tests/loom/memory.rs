//! Addresses that have cells in place of bytes.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use loom::cell::UnsafeCell;
use tensorhold_allocator::{Memory, MemoryError, MemoryId, PartedMemory, RawRegion};

use crate::device::Stream;

/// One cell for each.
pub(crate) const GRANULE: u64 = 256;

/// Of the largest region.
const CELLS: usize = 128;

/// How many regions can be reserved in a model.
const REGIONS: usize = 3;

/// Region `n` begins at `n` of these.
const APART: u64 = 1 << 40;

/// Addresses without memory, whose uses loom sees, and a count of the regions that are out.
pub(crate) struct Addresses {
    cells: Vec<Cell>,
    /// How often a region was reserved.
    reserved: AtomicUsize,
    pub(crate) regions: AtomicUsize,
    pub(crate) synchronized: AtomicUsize,
    /// Nothing but the CPU touches it.
    only_cpu: bool,
    /// The stream whose work `synchronize` waits for.
    pub(crate) works: Mutex<Option<Stream>>,
    pub(crate) parts: Parts,
}

/// Who owns a granule: whatever number was written last.
#[derive(Default)]
struct Cell(UnsafeCell<u32>);

// SAFETY: loom refuses accesses that are not ordered.
unsafe impl Sync for Cell {}

/// What is behind ranges that are backed in parts.
#[derive(Default)]
pub(crate) struct Parts {
    /// First addresses.
    ranges: Mutex<BTreeSet<u64>>,
    committed: Mutex<BTreeSet<(u64, u64)>>,
    /// Looked at while a part comes, so that others can be in between.
    coming: loom::sync::atomic::AtomicUsize,
    /// The first address of a part that is refused, or 0.
    pub(crate) refused: AtomicUsize,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            cells: (0..REGIONS * CELLS).map(|_| Cell::default()).collect(),
            reserved: AtomicUsize::new(0),
            regions: AtomicUsize::new(0),
            synchronized: AtomicUsize::new(0),
            only_cpu: false,
            works: Mutex::new(None),
            parts: Parts::default(),
        }
    }
}

impl Addresses {
    pub(crate) fn of_the_cpu() -> Self {
        Self { only_cpu: true, ..Self::default() }
    }

    fn cells(&self, address: u64, bytes: u64) -> &[Cell] {
        let (region, offset) = ((address / APART - 1) as usize, (address % APART / GRANULE) as usize);
        &self.cells[region * CELLS + offset..][..bytes.div_ceil(GRANULE) as usize]
    }

    /// Writes `owner` to a range.
    pub(crate) fn write(&self, address: *const u8, bytes: u64, owner: u32) {
        // SAFETY: loom refuses accesses that are not ordered.
        self.cells(address.addr() as u64, bytes)
            .iter()
            .for_each(|cell| cell.0.with_mut(|at| unsafe { *at = owner }));
    }

    /// Reads a range, in which `owner` was written last.
    pub(crate) fn read(&self, address: *const u8, bytes: u64, owner: u32) {
        // SAFETY: loom refuses accesses that are not ordered.
        let read = |cell: &Cell| cell.0.with(|at| unsafe { *at });
        let cells = self.cells(address.addr() as u64, bytes);
        assert!(cells.iter().all(|cell| read(cell) == owner), "another owns what {owner} owns");
    }

    fn make(&self, bytes: u64) -> Result<RawRegion, MemoryError> {
        assert!(bytes <= CELLS as u64 * GRANULE);
        let number = self.reserved.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number <= REGIONS, "a model has cells for {REGIONS} regions");
        self.regions.fetch_add(1, Ordering::Relaxed);
        let base =
            NonNull::new(std::ptr::without_provenance_mut(number * APART as usize)).ok_or("no address")?;
        Ok(RawRegion { base, bytes })
    }
}

// SAFETY: M1: each region is a range of its own of addresses. M2 is not claimed. M3: `synchronize` waits for the only stream that has work
// for addresses that were given out.
unsafe impl Memory for Addresses {
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

    fn reserve(&self, bytes: u64, _: u64) -> Result<RawRegion, MemoryError> {
        self.make(bytes)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        self.write(region.base.as_ptr(), region.bytes, 0);
        self.regions.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        self.synchronized.fetch_add(1, Ordering::Relaxed);
        let stream = self.works.lock().unwrap().clone();
        if let Some(stream) = stream {
            stream.synchronize();
        }
        Ok(())
    }

    fn is_used_by_devices(&self) -> bool {
        !self.only_cpu
    }

    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Ok(self)
    }
}

// SAFETY: V1, V2: as above, and what is committed is committed once.
unsafe impl PartedMemory for Addresses {
    fn unit(&self) -> u64 {
        GRANULE
    }

    fn reserve_range(&self, bytes: u64, _: u64) -> Result<RawRegion, MemoryError> {
        let range = self.make(bytes.next_multiple_of(GRANULE))?;
        self.parts.ranges.lock().unwrap().insert(range.base.addr().get() as u64);
        Ok(range)
    }

    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError> {
        let (start, end) = (range.base.addr().get() as u64, range.base.addr().get() as u64 + range.bytes);
        let committed = self.parts.committed.lock().unwrap();
        assert!(committed.range((start, 0)..(end, 0)).next().is_none(), "a part is released while committed");
        drop(committed);
        assert!(self.parts.ranges.lock().unwrap().remove(&start));
        self.regions.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    unsafe fn commit(&self, part: RawRegion) -> Result<(), MemoryError> {
        let start = part.base.addr().get() as u64;
        self.parts.coming.load(Ordering::Relaxed);
        if self.parts.refused.load(Ordering::Relaxed) as u64 == start {
            return Err("no memory is left".into());
        }
        let reserved = self.parts.ranges.lock().unwrap().contains(&(start / APART * APART));
        assert!(reserved, "a part is committed after its range was released");
        assert!(
            self.parts.committed.lock().unwrap().insert((start, part.bytes)),
            "a part is committed twice"
        );
        self.write(part.base.as_ptr(), part.bytes, 0);
        self.parts.coming.load(Ordering::Relaxed);
        Ok(())
    }

    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError> {
        let start = part.base.addr().get() as u64;
        self.write(part.base.as_ptr(), part.bytes, 0);
        assert!(
            self.parts.committed.lock().unwrap().remove(&(start, part.bytes)),
            "what is decommitted was not committed"
        );
        Ok(())
    }
}

impl Parts {
    /// Whether there is memory behind an address.
    pub(crate) fn are_behind(&self, address: *const u8) -> bool {
        let address = address.addr() as u64;
        self.committed.lock().unwrap().iter().any(|(start, bytes)| (*start..start + bytes).contains(&address))
    }

    pub(crate) fn committed_bytes(&self) -> u64 {
        self.committed.lock().unwrap().iter().map(|(_, bytes)| bytes).sum()
    }
}
