//! A device on the host whose memory claims not to be host-accessible, so that loads onto it are staged, and whose
//! copies can be made to fail.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tensorhold::allocator::{HostMemory, Memory, MemoryError, MemoryId, PartedMemory, RawRegion};
use tensorhold::kernels::{Launch, Span};
use tensorhold::{Device, DeviceKind, Driver, Error, Result, Stream, Transform};

/// Host memory that says it is a device's.
#[derive(Debug)]
struct Opaque(HostMemory, MemoryId);

// SAFETY: M1 as HostMemory's; M2 is not claimed; M3: the streams below copy at once, so nothing is ever in flight.
// M4: each device has an id of its own.
unsafe impl Memory for Opaque {
    fn name(&self) -> &str {
        "staged-host"
    }

    fn id(&self) -> MemoryId {
        self.1
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        self.0.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.0.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        Ok(())
    }

    fn parted(&self) -> std::result::Result<&dyn PartedMemory, MemoryError> {
        self.0.parted()
    }
}

/// Host memory that gives no regions larger than this, and no more of them.
#[derive(Debug)]
struct Frugal {
    id: MemoryId,
    memory: HostMemory,
    largest: u64,
    left: AtomicI64,
}

// SAFETY: as HostMemory, which does the work.
unsafe impl Memory for Frugal {
    fn name(&self) -> &str {
        "frugal"
    }

    fn id(&self) -> MemoryId {
        self.id
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        match bytes <= self.largest && self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            true => self.memory.reserve(bytes, align),
            false => Err(std::io::Error::from(std::io::ErrorKind::OutOfMemory).into()),
        }
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.memory.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        Ok(())
    }
}

#[derive(Debug)]
struct StagedHost {
    memory: Arc<Opaque>,
    staging: Arc<Frugal>,
    /// Copies and transforms that still succeed.
    copies: Arc<AtomicI64>,
    /// Copies back to the host that still succeed.
    reads: Arc<AtomicI64>,
    transforms: Transforms,
}

/// Whether such a device transforms what lies in staging memory. It does so on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transforms {
    None,
    Some,
}

/// The node that such a device says its staging memory is on.
pub const NODE: u32 = 3;

/// A device onto which every copy succeeds.
pub fn device() -> Device {
    device_failing_after(i64::MAX)
}

/// A device onto which so many copies succeed, and the others fail.
pub fn device_failing_after(copies: i64) -> Device {
    staged(copies, (u64::MAX, i64::MAX))
}

/// A device whose streams transform.
pub fn device_with_transforms() -> Device {
    transforming(i64::MAX)
}

/// A device whose streams transform, and onto which so many copies and transforms succeed.
pub fn transforming(copies: i64) -> Device {
    with(copies, (u64::MAX, i64::MAX), Transforms::Some)
}

/// A device whose staging memory comes in pieces of at most so many bytes.
pub fn device_with_staging_of(largest: u64) -> Device {
    staged(i64::MAX, (largest, i64::MAX))
}

/// A device with one piece of staging memory, onto which so many copies succeed.
pub fn device_with_one_slot(copies: i64) -> Device {
    staged(copies, (u64::MAX, 1))
}

/// A device from which so many copies back to the host succeed, and the others fail.
pub fn device_read_back_at_most(reads: i64) -> Device {
    let driver = driver(i64::MAX, (u64::MAX, i64::MAX), Transforms::None);
    Device::from_driver(Arc::new(StagedHost { reads: Arc::new(AtomicI64::new(reads)), ..driver }))
}

fn staged(copies: i64, pieces: (u64, i64)) -> Device {
    with(copies, pieces, Transforms::None)
}

fn with(copies: i64, pieces: (u64, i64), transforms: Transforms) -> Device {
    Device::from_driver(Arc::new(driver(copies, pieces, transforms)))
}

fn driver(copies: i64, (largest, pieces): (u64, i64), transforms: Transforms) -> StagedHost {
    StagedHost {
        memory: Arc::new(Opaque(HostMemory::new(), MemoryId::new())),
        staging: Arc::new(Frugal {
            id: MemoryId::new(),
            memory: HostMemory::new(),
            largest,
            left: AtomicI64::new(pieces),
        }),
        copies: Arc::new(AtomicI64::new(copies)),
        reads: Arc::new(AtomicI64::new(i64::MAX)),
        transforms,
    }
}

// SAFETY: Q1, Q2: all of it is host memory, and its streams copy plainly. Q3: copies end before they return. Q4: its kind promises nothing.
unsafe impl Driver for StagedHost {
    fn name(&self) -> &str {
        "staged-host"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as Arc<dyn Memory>
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.staging) as Arc<dyn Memory>
    }

    fn staging_node(&self) -> Option<u32> {
        Some(NODE)
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        let copies = Copies { left: Arc::clone(&self.copies), reads: Arc::clone(&self.reads) };
        Ok(match self.transforms {
            Transforms::None => Box::new(copies),
            Transforms::Some => Box::new(Transforming(copies)),
        })
    }

    fn has_transforms(&self) -> bool {
        self.transforms == Transforms::Some
    }
}

/// Copies at once.
struct Copies {
    left: Arc<AtomicI64>,
    reads: Arc<AtomicI64>,
}

impl Copies {
    fn take(&self) -> Result<()> {
        Self::take_of(&self.left, "copy to the device")
    }

    fn take_of(left: &AtomicI64, operation: &'static str) -> Result<()> {
        if left.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Ok(());
        }
        Err(Error::Device {
            device: "staged-host".into(),
            operation,
            detail: "no more copies".into(),
            remedy: "allow more".into(),
        })
    }
}

/// Transforms, too.
struct Transforming(Copies);

// SAFETY: T1 to T3: as `Copies`; transforms are checked against their ranges, and made at once.
unsafe impl Stream for Transforming {
    unsafe fn transform(&self, transform: &Transform) -> Result<()> {
        self.0.take()?;
        // What a kernel's launch checks, too.
        let span = |address: *const u8, bytes| Span { address: address as u64, bytes };
        let source = span(transform.source, transform.source_bytes);
        let target = span(transform.target, transform.target_bytes);
        let counters = transform.counters.map(|counters| counters as u64);
        match &transform.conversion {
            Some(conversion) => Launch::convert(conversion, &transform.block, source, target, counters),
            None => Launch::gather(1, &transform.block, source, target),
        }
        .unwrap();
        // SAFETY: as the caller promises; the device's memory is host memory in truth, and has values.
        unsafe { transform.on_cpu() }
    }

    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.0.copy_to_device(to, from, bytes) }
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.0.copy_to_host(to, from, bytes) }
    }

    unsafe fn copy_on_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.0.copy_on_device(to, from, bytes) }
    }

    fn record(&self, event: usize) -> Result<()> {
        self.0.record(event)
    }

    fn wait(&self, event: usize) -> Result<()> {
        self.0.wait(event)
    }

    fn has_passed(&self, event: usize) -> Result<bool> {
        self.0.has_passed(event)
    }

    fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
}

// SAFETY: T1: plain copies of the ranges that are given. T2, T3: they end before they return.
unsafe impl Stream for Copies {
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        self.take()?;
        // SAFETY: as the caller promises.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes as usize) };
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        Self::take_of(&self.reads, "copy to the host")?;
        // SAFETY: as the caller promises.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes as usize) };
        Ok(())
    }

    unsafe fn copy_on_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.copy_to_device(to, from, bytes) }
    }

    fn record(&self, _event: usize) -> Result<()> {
        Ok(())
    }

    fn wait(&self, _event: usize) -> Result<()> {
        Ok(())
    }

    fn has_passed(&self, _event: usize) -> Result<bool> {
        Ok(true)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
