//! [`HostMemory`]: anonymous host memory, the reference implementation of [`Memory`].

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::traits::{Memory, MemoryId, PartedMemory, RawRegion};
use crate::bytes::Bytes;
use crate::error::MemoryError;
use crate::machine::memory_bytes;

const HUGE_PAGE: u64 = 2 << 20;

/// Shorter regions are not compared with the machine's memory: reading that takes up to a millisecond, as does filling this much.
const ASKED_ABOUT: u64 = 16 << 20;

/// Zeroed, anonymous memory of this process, mapped on first touch. A region of 16 MiB or more is refused if it exceeds
/// [`limit_bytes`](Self::limit_bytes).
///
/// Regions of 2 MiB and more are rounded up to huge pages of 2 MiB, and the kernel is advised to use them: filling fresh memory
/// is bound by page faults, and one fault in 2 MiB is cheaper than 512.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct HostMemory {}

impl HostMemory {
    /// Regions of at least this size are mapped as a multiple of it: the size of a transparent huge page on x86-64, and on AArch64
    /// with 4 KiB pages. On other systems it is only an alignment.
    pub const HUGE_PAGE_BYTES: u64 = HUGE_PAGE;

    /// Host memory of this process.
    pub const fn new() -> Self {
        Self {}
    }

    /// Bytes of memory that all processes can use together: RAM and swap space, or the limit of a control group of this process if that
    /// is lower. It can change while a process runs; `u64::MAX` if the system does not report it.
    pub fn limit_bytes() -> u64 {
        memory_bytes()
    }
}

// SAFETY: M1: a fresh anonymous mapping overlaps nothing, is trimmed below to an aligned range, and stays until
// `munmap`. M2: anonymous pages are readable, writable and read as zero. M3: no device works on this memory. M4: all instances are the
// process's own memory.
unsafe impl Memory for HostMemory {
    fn name(&self) -> &str {
        "host"
    }

    fn id(&self) -> MemoryId {
        MemoryId::HOST
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        // Callers may pass anything.
        if bytes == 0 || !align.is_power_of_two() {
            let reason = format!(
                "expected a size of at least 1 byte and a power of two as the alignment, got {bytes} and {align}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason).into());
        }
        if bytes >= ASKED_ABOUT {
            refuse_more_than(memory_bytes(), bytes)?;
        }
        let page = rustix::param::page_size() as u64;
        let align = align.max(unit(bytes));
        let length = bytes.checked_next_multiple_of(unit(bytes)).ok_or_else(out_of_memory)?;
        // Map enough to hold an aligned range of `length`, then give the ends back:
        //
        //   mapped ........[head][========= length =========][tail]
        //                        ^ first multiple of `align`
        let slack = align - page;
        let mapped_length = length.checked_add(slack).ok_or_else(out_of_memory)?;
        // SAFETY: a null hint lets the kernel choose: no existing mapping is replaced.
        let mapped = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                mapped_length as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(io::Error::from)?;
        let head = (mapped as u64).next_multiple_of(align) - mapped as u64;
        let base = mapped.cast::<u8>().wrapping_add(head as usize);
        let tail = base.wrapping_add(length as usize);
        unmap(mapped.cast(), head);
        unmap(tail, slack - head);
        if bytes >= HUGE_PAGE {
            // SAFETY: the range was mapped above and is all ours. Refused advice changes nothing.
            let _ = unsafe { madvise(base.cast::<c_void>(), length as usize, Advice::LinuxHugepage) };
        }
        let base = NonNull::new(base).ok_or_else(out_of_memory)?;
        Ok(RawRegion { base, bytes })
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        let length = region.bytes.next_multiple_of(unit(region.bytes)) as usize;
        // SAFETY: by the caller's promise the region is a range that `reserve` mapped and nothing touches any more.
        unsafe { munmap(region.base.as_ptr().cast(), length) }.map_err(io::Error::from)?;
        Ok(())
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn is_used_by_devices(&self) -> bool {
        false
    }

    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Ok(self)
    }
}

/// Small enough to waste little, and a multiple of every page size.
const PART_UNIT: u64 = 64 << 10;

// SAFETY: V1, V2: as `reserve`, whose memory the system puts behind a range when it is touched, and again after it was taken away.
unsafe impl PartedMemory for HostMemory {
    fn unit(&self) -> u64 {
        PART_UNIT
    }

    fn reserve_range(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        let length = bytes.checked_next_multiple_of(PART_UNIT).ok_or_else(out_of_memory)?;
        self.reserve(length, if align.is_power_of_two() { align.max(PART_UNIT) } else { align })
    }

    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.release(range) }
    }

    unsafe fn commit(&self, _: RawRegion) -> Result<(), MemoryError> {
        Ok(())
    }

    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError> {
        let (start, bytes) = (part.base.as_ptr().cast::<c_void>(), part.bytes as usize);
        // SAFETY: the part is ours, and nothing touches it any more, by the caller's promise.
        Ok(unsafe { madvise(start, bytes, Advice::LinuxDontNeed) }.map_err(io::Error::from)?)
    }
}

/// The system may map any number of bytes, and kill the process when it touches them.
fn refuse_more_than(most: u64, bytes: u64) -> Result<(), MemoryError> {
    if bytes > most {
        let reason = format!(
            "out of memory: asked for {}, and the machine or the control group has {} in all",
            Bytes(bytes).beside(&[most]),
            Bytes(most).beside(&[bytes])
        );
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, reason).into());
    }
    Ok(())
}

/// The unit to which a region of this size is rounded up.
fn unit(bytes: u64) -> u64 {
    if bytes >= HUGE_PAGE { HUGE_PAGE } else { rustix::param::page_size() as u64 }
}

/// Unmaps an end of a mapping that `reserve` has just made and that nothing has used yet.
fn unmap(start: *mut u8, length: u64) {
    if length > 0 {
        // SAFETY: both ends lie within the fresh mapping, outside the range that is returned. A failure would leave
        // untouched address space mapped, which costs no memory.
        let _ = unsafe { munmap(start.cast(), length as usize) };
    }
}

fn out_of_memory() -> MemoryError {
    io::Error::from(io::ErrorKind::OutOfMemory).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_region_is_refused() {
        for ask in [HostMemory::reserve, HostMemory::reserve_range] {
            for (bytes, align) in
                [(0, 4096), (0, 1 << 20), (1, 0), (1, 3), (1, 5000), (3 << 20, 3 << 20), (1, u64::MAX)]
            {
                assert!(ask(&HostMemory::new(), bytes, align).is_err(), "{bytes} bytes aligned to {align}");
            }
            assert!(ask(&HostMemory::new(), u64::MAX, 1 << 63).is_err());
            assert!(ask(&HostMemory::new(), 1, 1 << 63).is_err());
        }
    }

    #[test]
    fn more_than_the_machine_has_is_refused_before_the_system_is_asked() {
        for ask in [HostMemory::reserve, HostMemory::reserve_range] {
            let reason = ask(&HostMemory::new(), memory_bytes() + 1, 1).unwrap_err().to_string();
            assert!(
                reason.starts_with("out of memory: asked for ") && reason.ends_with(" in all"),
                "{reason}"
            );
        }
    }
}
