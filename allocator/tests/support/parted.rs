//! Memory in parts that checks what is done with it, and that cannot be touched where nothing is committed.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use tensorhold_allocator::{HostMemory, Memory, MemoryError, PartedMemory, RawRegion};

pub const UNIT: u64 = 64 << 10;

/// Host memory that knows which parts are committed, and refuses some on demand.
#[derive(Default)]
pub struct Parted {
    host: HostMemory,
    state: Mutex<State>,
    /// Bytes that may still be committed.
    pub room: Mutex<Option<u64>>,
    pub fail_decommit: AtomicBool,
    /// When set, `commit` says that it has begun and waits to be let go.
    pub gate: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

#[derive(Default)]
struct State {
    /// Lengths by first addresses, and what was mapped for each.
    ranges: BTreeMap<u64, (u64, Mapping)>,
    committed: BTreeMap<u64, u64>,
    /// Promises that the caller broke. Most calls are the reaper's, where a panic fails no test.
    violations: Vec<String>,
}

struct Mapping {
    start: usize,
    bytes: usize,
}

impl State {
    fn require(&mut self, holds: bool, promise: &str, at: RawRegion) -> bool {
        if !holds {
            self.violations.push(format!("{promise}: {at:x?}"));
        }
        holds
    }
}

impl Parted {
    pub fn committed_bytes(&self) -> u64 {
        self.committed().values().sum()
    }

    /// Lengths by first addresses.
    pub fn committed(&self) -> BTreeMap<u64, u64> {
        self.state.lock().unwrap().committed.clone()
    }

    pub fn ranges(&self) -> usize {
        self.state.lock().unwrap().ranges.len()
    }

    /// What was broken.
    pub fn violations(&self) -> Vec<String> {
        self.state.lock().unwrap().violations.clone()
    }
}

fn end(region: RawRegion) -> u64 {
    region.base.as_ptr() as u64 + region.bytes
}

/// Whether a range of the map, by first address and length, overlaps the region.
fn overlaps(ranges: &BTreeMap<u64, u64>, region: RawRegion) -> bool {
    let last = ranges.range(..end(region)).next_back();
    last.is_some_and(|(start, bytes)| start + bytes > region.base.as_ptr() as u64)
}

fn protect(part: RawRegion, protection: i32) -> Result<(), MemoryError> {
    // SAFETY: the part lies in a mapping of this memory.
    match unsafe { libc::mprotect(part.base.as_ptr().cast(), part.bytes as usize, protection) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

// SAFETY: HostMemory's.
unsafe impl Memory for Parted {
    fn name(&self) -> &str {
        "parted"
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.host.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.host.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Ok(self)
    }
}

// SAFETY: V1: fresh mappings overlap nothing. V2: a committed part can be read and written.
unsafe impl PartedMemory for Parted {
    fn unit(&self) -> u64 {
        UNIT
    }

    fn reserve_range(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        assert!(align.is_power_of_two(), "an alignment of {align}");
        let align = align.max(UNIT);
        let bytes = bytes.checked_next_multiple_of(UNIT).ok_or("too long")?;
        let mapped = usize::try_from(bytes.checked_add(align).ok_or("too long")?)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a null hint lets the kernel choose: no existing mapping is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let head = (start as u64).next_multiple_of(align) - start as u64;
        let base = NonNull::new(start.cast::<u8>().wrapping_add(head as usize)).ok_or("no address")?;
        let mapping = Mapping { start: start as usize, bytes: mapped };
        self.state.lock().unwrap().ranges.insert(base.as_ptr() as u64, (bytes, mapping));
        Ok(RawRegion { base, bytes })
    }

    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError> {
        let mut state = self.state.lock().unwrap();
        let committed = overlaps(&state.committed, range);
        state.require(!committed, "released with a part that is committed", range);
        let found = state.ranges.remove(&(range.base.as_ptr() as u64));
        let found = found.filter(|(bytes, _)| *bytes == range.bytes);
        state.require(found.is_some(), "released what is not reserved", range);
        if let Some((_, Mapping { start, bytes })) = found {
            // SAFETY: mapped by `reserve_range`, and no one's any more.
            assert_eq!(unsafe { libc::munmap(start as *mut libc::c_void, bytes) }, 0);
        }
        Ok(())
    }

    unsafe fn commit(&self, part: RawRegion) -> Result<(), MemoryError> {
        if let Some((begun, go)) = self.gate.lock().unwrap().take() {
            begun.send(()).unwrap();
            go.recv().unwrap();
        }
        if let Some(room) = self.room.lock().unwrap().as_mut() {
            *room = room.checked_sub(part.bytes).ok_or("the device is full")?;
        }
        let mut state = self.state.lock().unwrap();
        let start = part.base.as_ptr() as u64;
        let range = state.ranges.range(..=start).next_back();
        let in_range = range.is_some_and(|(first, (bytes, _))| end(part) <= first + bytes);
        let units = part.bytes > 0 && part.bytes.is_multiple_of(UNIT) && start.is_multiple_of(UNIT);
        let free = !overlaps(&state.committed, part);
        let mine = state.require(in_range, "committed what is not reserved", part);
        state.require(units, "committed a part that is not of whole units", part);
        state.require(free, "committed what is committed", part);
        if mine {
            protect(part, libc::PROT_READ | libc::PROT_WRITE)?;
            state.committed.insert(start, part.bytes);
        }
        Ok(())
    }

    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError> {
        let mut state = self.state.lock().unwrap();
        let start = part.base.as_ptr() as u64;
        let was = state.committed.get(&start) == Some(&part.bytes);
        if !state.require(was, "decommitted what was not committed as such", part) {
            return Ok(());
        }
        if self.fail_decommit.load(Ordering::Relaxed) {
            return Err("decommit refused".into());
        }
        state.committed.remove(&start);
        // SAFETY: the part is this memory's, and nothing touches it any more.
        let code =
            unsafe { libc::madvise(part.base.as_ptr().cast(), part.bytes as usize, libc::MADV_DONTNEED) };
        assert_eq!(code, 0);
        protect(part, libc::PROT_NONE)
    }
}
