//! Device memory and page-locked host memory as [`Memory`].

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use cudarc::driver::sys::{self, CU_MEMHOSTALLOC_PORTABLE, CUdeviceptr, CUresult};
use tensorhold_allocator::{Bytes, Memory, MemoryError, RawRegion};

use super::context::Context;
use super::library::Library;
use super::status::check;
use crate::error::{Error, Result};

/// Memory of a device.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: &'static Context,
}

impl DeviceMemory {
    pub(super) fn new(context: &'static Context) -> Self {
        Self { context }
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
        let _ = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        Err(Error::Device {
            device: self.context.name.clone(),
            operation: "allocate memory",
            detail: format!(
                "out of memory: asked for {}, free {} of {}",
                Bytes(bytes),
                Bytes(free as u64),
                Bytes(total as u64)
            ),
            remedy: "free memory on the device, or load less at once",
        })
    }

    fn free(&self, address: CUdeviceptr) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the address came from `allocate`, and the caller gives it up.
        check(&self.context.name, "free memory", unsafe { sys::cuMemFree_v2(address) })
    }
}

// SAFETY: M1: the driver's allocations do not overlap, stay until freed, and their alignment is checked below. M2 is
// not claimed. M3: cuCtxSynchronize waits for all work of the context, and peers and other contexts may not outlast
// what their streams were given: work on this memory from another device is the user's to wait for.
unsafe impl Memory for DeviceMemory {
    fn name(&self) -> &str {
        &self.context.name
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        let address = self.allocate(bytes)?;
        // cuMemAlloc aligns to 256 bytes by its documentation, and to more in practice.
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
}

/// Page-locked host memory.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    name: String,
    context: &'static Context,
    /// Copies may come from all devices, not from the context's alone.
    all_devices: Option<Library>,
}

impl PinnedMemory {
    /// Memory that one device copies from and to.
    pub(super) fn staging(context: &'static Context) -> Self {
        Self { name: format!("pinned for {}", context.name), context, all_devices: None }
    }

    /// Memory that any device may copy from and to.
    pub(super) fn portable(library: Library, context: &'static Context) -> Self {
        Self { name: "pinned".into(), context, all_devices: Some(library) }
    }
}

// SAFETY: M1: as for device memory. M2: the driver maps it readable and writable into this process, and memory that a
// foreign function hands out has values, if unknown ones. M3: the contexts of all devices that may copy are waited for.
unsafe impl Memory for PinnedMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        let _current = self.context.enter()?;
        let mut address: *mut c_void = ptr::null_mut();
        // Not write-combined: the CPU reads from here too.
        // SAFETY: C1, C3; `address` is valid for the write.
        let status = unsafe { sys::cuMemHostAlloc(&mut address, bytes as usize, CU_MEMHOSTALLOC_PORTABLE) };
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let detail = format!("the system locked no {} of memory", Bytes(bytes));
            let remedy = "raise the limit on locked memory (ulimit -l), or pin less";
            return Err(
                Error::Device { device: self.name.clone(), operation: "pin memory", detail, remedy }.into()
            );
        }
        check(&self.name, "pin memory", status)?;
        match NonNull::new(address.cast::<u8>()) {
            Some(base) if (address as u64).is_multiple_of(align) => Ok(RawRegion { base, bytes }),
            _ => {
                // SAFETY: C1, C3; allocated above and not used.
                check(&self.name, "free pinned memory", unsafe { sys::cuMemFreeHost(address) })?;
                Err(misaligned(&self.name, address as u64, align).into())
            }
        }
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; the region came from `reserve`, and nothing touches it, by the caller's promise.
        check(&self.name, "free pinned memory", unsafe { sys::cuMemFreeHost(region.base.as_ptr().cast()) })?;
        Ok(())
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        let Some(library) = self.all_devices else { return Ok(self.context.synchronize()?) };
        for ordinal in (0..library.device_count()?).filter(|&ordinal| Context::is_active(library, ordinal)) {
            Context::of(ordinal)?.synchronize()?;
        }
        Ok(())
    }
}

fn misaligned(device: &str, address: u64, align: u64) -> Error {
    Error::Device {
        device: device.into(),
        operation: "allocate memory",
        detail: format!("the driver returned address {address:#x}, expected a multiple of {align}"),
        remedy: "ask for a smaller alignment",
    }
}
