//! Device memory and page-locked host memory as [`Memory`].

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::thread;

use cudarc::driver::sys::{
    self, CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE, CUdeviceptr, CUresult,
};
use rustix::mm::{Advice, madvise};
use tensorhold_allocator::{Bytes, HostMemory, Memory, MemoryError, MemoryId, PartedMemory, RawRegion};

use super::context::Context;
use super::library::Library;
use super::parted::PartedDeviceMemory;
use super::status::check;
use crate::device::HandleTypes;
use crate::device::numa::Node;
use crate::error::{Error, Result};

/// What the driver aligns allocations to (CUDA C++ Programming Guide, "Device Memory Accesses").
const SURE_ALIGN: u64 = 256;

/// The pages that the driver makes allocations of: 2 MiB, on every device and driver that this was tried on.
const BLOCK_BYTES: u64 = 2 << 20;

/// Memory of a device.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: &'static Context,
    /// How its parts can be exported.
    handles: HandleTypes,
    /// Looked for when it is first asked for.
    parted: OnceLock<std::result::Result<PartedDeviceMemory, String>>,
}

impl DeviceMemory {
    pub(super) fn new(context: &'static Context) -> Self {
        Self { context, handles: HandleTypes::default(), parted: OnceLock::new() }
    }

    /// Memory whose parts can be exported by such handles.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn with_handles(context: &'static Context, handles: HandleTypes) -> Result<Self> {
        let parted = PartedDeviceMemory::new(context, handles)?;
        parted.try_handles()?;
        Ok(Self { context, handles, parted: Ok(parted).into() })
    }

    fn allocate(&self, bytes: u64) -> Result<CUdeviceptr> {
        let _current = self.context.enter()?;
        let mut address = 0;
        // SAFETY: C1, C3; `address` is valid for the write.
        let status = unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) };
        if status != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            check(&self.context.name, "allocate memory", status)?;
            return Ok(address);
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: C1, C3; both are valid for the writes.
        let told = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        let room = match told {
            CUresult::CUDA_SUCCESS => {
                format!(", free {} of {}", Bytes(free as u64).beside(&[bytes]), Bytes(total as u64))
            }
            _ => String::new(),
        };
        Err(Error::Device {
            device: self.context.name.clone(),
            operation: "allocate memory",
            detail: format!("out of memory: asked for {}{room}", Bytes(bytes).beside(&[free as u64])),
            remedy: "free memory on the device, or load less at once".into(),
        })
    }

    fn free(&self, address: CUdeviceptr) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the address came from `allocate`, and the caller gives it up.
        check(&self.context.name, "free memory", unsafe { sys::cuMemFree_v2(address) })
    }
}

// SAFETY: M1: the driver's allocations do not overlap, stay until freed, and their alignment is checked below. M2 is
// not claimed. M4: all of a context's, however its parts can be exported, is one memory. M3: cuCtxSynchronize waits for all work of the context, and peers and other contexts may not outlast
// what their streams were given: work on this memory from another device is the user's to wait for.
unsafe impl Memory for DeviceMemory {
    fn name(&self) -> &str {
        &self.context.name
    }

    fn id(&self) -> MemoryId {
        self.context.memory.device
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        check_request(&self.context.name, bytes, align)?;
        // cuMemAlloc aligns to 256 bytes by its documentation. What is shorter than a block of the driver's shares one with others, and is
        // aligned to no more in practice; whole blocks begin where blocks do.
        let blocks =
            if align <= SURE_ALIGN { Some(bytes) } else { bytes.checked_next_multiple_of(BLOCK_BYTES) };
        let bytes = blocks.unwrap_or(bytes);
        let address = self.allocate(bytes)?;
        match NonNull::new(ptr::without_provenance_mut(address as usize)) {
            Some(base) if address.is_multiple_of(align) => Ok(RawRegion { base, bytes }),
            _ => {
                self.free(address)?;
                Err(misaligned(&self.context.name, address, align).into())
            }
        }
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        Ok(self.free(region.base.as_ptr() as CUdeviceptr)?)
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        Ok(self.context.synchronize()?)
    }

    fn parted(&self) -> std::result::Result<&dyn PartedMemory, MemoryError> {
        let open = || PartedDeviceMemory::new(self.context, self.handles).map_err(|error| error.to_string());
        match self.parted.get_or_init(open) {
            Ok(parted) => Ok(parted),
            Err(reason) => Err(reason.as_str().into()),
        }
    }
}

/// Page-locked host memory: the system's own, in huge pages where it has them, registered with the driver. That pins
/// several times as fast as memory that the driver allocates (`docs/performance.md`).
#[derive(Debug)]
pub(super) struct PinnedMemory {
    name: String,
    id: MemoryId,
    context: &'static Context,
    pages: HostMemory,
    /// The node that the pages are to come from, if not just any.
    node: Option<&'static Node>,
    /// Copies may come from all devices, not from the context's alone.
    all_devices: Option<Library>,
}

impl PinnedMemory {
    /// Memory that one device copies from and to.
    pub(super) fn staging(context: &'static Context) -> Self {
        let name = format!("pinned for {}", context.name);
        let (id, node) = (context.memory.staging, context.node.as_ref());
        Self { name, id, context, pages: HostMemory::new(), node, all_devices: None }
    }

    /// Memory that the device's kernels use at the CPU's addresses, as its own: so it has the device's name.
    pub(super) fn mapped(context: &'static Context) -> Self {
        Self { name: context.name.clone(), id: context.memory.mapped, ..Self::staging(context) }
    }

    /// Memory that any device may copy from and to.
    pub(super) fn portable(library: Library, context: &'static Context) -> Self {
        static ID: LazyLock<MemoryId> = LazyLock::new(MemoryId::new);
        Self {
            name: "pinned".into(),
            id: *ID,
            context,
            pages: HostMemory::new(),
            node: None,
            all_devices: Some(library),
        }
    }

    /// Has a region that nothing has touched yet placed on the device's node.
    fn place(&self, region: RawRegion) {
        let Some(node) = self.node else { return };
        // Up to the end of the last huge page, which a policy that ended within it would split.
        let unit = if region.bytes >= HUGE_PAGE { HUGE_PAGE } else { 1 };
        node.prefer(region.base, region.bytes.next_multiple_of(unit));
    }

    fn pin(&self, region: RawRegion) -> Result<()> {
        let _current = self.context.enter()?;
        let address = region.base.as_ptr().cast::<c_void>();
        // Kernels read it, too: where devices have an address space of their own, it has a place there.
        let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: C1, C3; the region was reserved just now and nothing else knows it.
        let status = unsafe { sys::cuMemHostRegister_v2(address, region.bytes as usize, flags) };
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::Device {
                device: self.name.clone(),
                operation: "pin memory",
                detail: format!("the system locked no {} of memory", Bytes(region.bytes)),
                remedy: "raise the limit on locked memory (ulimit -l), or pin less".into(),
            });
        }
        check(&self.name, "pin memory", status)
    }

    fn unpin(&self, region: RawRegion) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the region was registered by `pin`.
        let status = unsafe { sys::cuMemHostUnregister(region.base.as_ptr().cast()) };
        check(&self.name, "unpin memory", status)
    }
}

// SAFETY: M1, M2: as HostMemory's. M3: the contexts of all devices that may copy are waited for. M4: each kind has an id of its own, and one for each
// context where it belongs to one.
unsafe impl Memory for PinnedMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> MemoryId {
        self.id
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        let region = self.pages.reserve(bytes, align)?;
        self.place(region);
        populate(region);
        if let Err(error) = self.pin(region) {
            // SAFETY: reserved above and not used.
            unsafe { self.pages.release(region) }?;
            return Err(error.into());
        }
        Ok(region)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        self.unpin(region)?;
        // SAFETY: the region came from `reserve`, and nothing touches it, by the caller's promise.
        unsafe { self.pages.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        let Some(library) = self.all_devices else { return Ok(self.context.synchronize()?) };
        self.context.check_process()?;
        let devices = library.device_count()?;
        for ordinal in (0..devices).filter(|&ordinal| Context::is_active(library, ordinal)) {
            Context::of(ordinal)?.synchronize()?;
        }
        Ok(())
    }
}

/// Has the system back a region; a large one with several threads at once, where registering it would do so with one.
fn populate(region: RawRegion) {
    let runs = region.bytes.div_ceil(POPULATE_BYTES);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let run = next.fetch_add(1, Ordering::Relaxed);
            if run >= runs {
                return;
            }
            populate_run(&region, run * POPULATE_BYTES);
        }
    };
    let worthwhile = (region.bytes / POPULATE_THREAD_BYTES) as usize;
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from).min(worthwhile) {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

/// A huge page at a time, by writing to it: the system makes it ready for that alone, and threads can be started meanwhile.
/// Where there are no huge pages, the system is asked for the run, and they wait.
const POPULATE_BYTES: u64 = HUGE_PAGE;

const HUGE_PAGE: u64 = HostMemory::HUGE_PAGE_BYTES;

/// What is worth a thread: clearing a huge page takes several times as long as starting one.
const POPULATE_THREAD_BYTES: u64 = HUGE_PAGE;

fn populate_run(region: &RawRegion, offset: u64) {
    let start = region.base.as_ptr().wrapping_add(offset as usize);
    let bytes = POPULATE_BYTES.min(region.bytes - offset);
    // SAFETY: the run lies within the region, which was reserved just now and holds nothing yet. A refusal leaves the
    // pages to the registration.
    unsafe {
        start.write_volatile(0);
        let _ = madvise(start.cast(), bytes as usize, Advice::LinuxPopulateWrite);
    }
}

/// Refuses what is no region: anyone can ask a memory for anything.
pub(super) fn check_request(device: &str, bytes: u64, align: u64) -> Result<()> {
    if bytes > 0 && align.is_power_of_two() {
        return Ok(());
    }
    Err(Error::Device {
        device: device.into(),
        operation: "reserve memory",
        detail: format!(
            "expected a size of at least 1 byte and a power of two as the alignment, got {bytes} and {align}"
        ),
        remedy: "ask for another size or alignment".into(),
    })
}

fn misaligned(device: &str, address: u64, align: u64) -> Error {
    Error::Device {
        device: device.into(),
        operation: "allocate memory",
        detail: format!("the driver returned address {address:#x}, expected a multiple of {align}"),
        remedy: "ask for a smaller alignment".into(),
    }
}
