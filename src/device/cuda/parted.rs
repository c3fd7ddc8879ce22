//! Device memory that is put behind ranges of addresses part by part: CUDA's virtual memory management.

use std::mem;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{
    self, CUdevice_attribute, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc,
    CUmemAllocationGranularity_flags, CUmemAllocationHandleType, CUmemAllocationProp, CUmemAllocationType,
    CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType,
};
use tensorhold_allocator::{MemoryError, PartedMemory, RawRegion};

use super::context::Context;
use super::memory::check_request;
use super::status::check;
use crate::device::HandleTypes;
use crate::error::{Error, Result};

/// Ranges of a device's addresses, with memory of the device behind their parts.
#[derive(Debug)]
pub(super) struct PartedDeviceMemory {
    context: &'static Context,
    handles: HandleTypes,
    unit: u64,
    /// First addresses of parts that could neither be made ready nor unmapped: their ranges are not released (V2).
    stuck: Mutex<Vec<CUdeviceptr>>,
}

impl PartedDeviceMemory {
    /// # Errors
    /// When the device has no virtual memory management, or none that other devices reach where they are to.
    pub(super) fn new(context: &'static Context, handles: HandleTypes) -> Result<Self> {
        let _current = context.enter()?;
        let supported = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED)?;
        if supported == 0 {
            return Err(Error::Device {
                device: context.name.clone(),
                operation: "reserve addresses",
                detail: "the device has no virtual memory management".into(),
                remedy: "use regions that are backed as a whole".into(),
            });
        }
        let rdma = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED;
        if handles.rdma && context.attribute(rdma)? == 0 {
            return Err(Error::Device {
                device: context.name.clone(),
                operation: EXPORTABLE,
                detail: "other devices do not reach memory behind addresses that are reserved".into(),
                remedy: "do not ask for rdma, or use a device and a driver that have it".into(),
            });
        }
        let (prop, mut unit) = (allocation(context, handles), 0);
        let option = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: C1, C3; `unit` is valid for the write, `prop` for the read.
        let status = unsafe { sys::cuMemGetAllocationGranularity(&mut unit, &prop, option) };
        check(&context.name, "ask for the granularity of memory", status)?;
        Ok(Self { context, handles, unit: (unit as u64).max(1).next_power_of_two(), stuck: Mutex::default() })
    }

    fn stuck(&self) -> MutexGuard<'_, Vec<CUdeviceptr>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a unit of memory, and gives it back.
    ///
    /// # Errors
    /// When the driver makes none that can be exported as asked.
    pub(super) fn try_handles(&self) -> Result<()> {
        let _current = self.context.enter()?;
        let handle = self.create(self.unit as usize).map_err(|error| Error::Device {
            device: self.context.name.clone(),
            operation: EXPORTABLE,
            detail: format!("{:?} was refused: {error}", self.handles),
            remedy: "ask for fewer kinds; fabric handles want an IMEX channel and a driver from r545 on"
                .into(),
        })?;
        self.release(handle)
    }

    /// Makes memory, which no address has yet.
    fn create(&self, bytes: usize) -> Result<CUmemGenericAllocationHandle> {
        let (prop, mut handle) = (allocation(self.context, self.handles), 0);
        // SAFETY: C1, C3 by the caller's guard; `handle` is valid for the write, `prop` for the read.
        let status = unsafe { sys::cuMemCreate(&mut handle, bytes, &prop, 0) };
        check(&self.context.name, "create memory", status)?;
        Ok(handle)
    }

    /// Gives up a handle, once. A mapping keeps the memory.
    fn release(&self, handle: CUmemGenericAllocationHandle) -> Result<()> {
        // SAFETY: C1, C3 by the caller's guard; the handle came from `create`.
        check(&self.context.name, "release a handle of memory", unsafe { sys::cuMemRelease(handle) })
    }

    /// Makes memory and maps it behind a part.
    ///
    /// # Safety
    /// As `commit`.
    unsafe fn map(&self, part: RawRegion) -> Result<()> {
        let (context, address, bytes) =
            (self.context, part.base.as_ptr() as CUdeviceptr, part.bytes as usize);
        let _current = context.enter()?;
        let handle = self.create(bytes)?;
        // SAFETY: C1, C3; by the caller's promise the part is of whole units, within a range from `reserve_range`, and nothing is behind it.
        let mapped = unsafe { sys::cuMemMap(address, bytes, 0, handle, 0) };
        let released = self.release(handle);
        check(&context.name, "map memory", mapped)?;
        let desc = CUmemAccessDesc {
            location: location(context),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: C1, C3; mapped just now, and `desc` is one description.
        let allowed = unsafe { sys::cuMemSetAccess(address, bytes, &desc, 1) };
        let ready = released.and_then(|()| check(&context.name, "allow access to memory", allowed));
        if ready.is_err() {
            // SAFETY: C1, C3; mapped above, and no one knows it.
            let unmapped = check(&context.name, "unmap memory", unsafe { sys::cuMemUnmap(address, bytes) });
            if let Err(error) = unmapped {
                tracing::error!(%error, bytes, "memory stays behind addresses: they are never given back");
                self.stuck().push(address);
            }
        }
        ready
    }
}

// SAFETY: V1: the unit is kept; the driver's ranges do not overlap, and parts of whole units can be mapped. V2: mapped memory is the
// device's as cuMemAlloc's is, and cuCtxSynchronize waits for work on it (M3). What `commit` could not make ready it unmaps, or else it keeps the
// range from being released.
unsafe impl PartedMemory for PartedDeviceMemory {
    fn unit(&self) -> u64 {
        self.unit
    }

    fn reserve_range(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        let name = &self.context.name;
        check_request(name, bytes, align)?;
        let too_long = || Error::Device {
            device: name.clone(),
            operation: "reserve addresses",
            detail: format!("there is no range of {bytes} bytes"),
            remedy: "load less at once".into(),
        };
        let bytes = bytes.checked_next_multiple_of(self.unit).ok_or_else(too_long)?;
        let _current = self.context.enter()?;
        let mut address = 0;
        // SAFETY: C1, C3; `address` is valid for the write, and 0 lets the driver choose.
        let status = unsafe {
            sys::cuMemAddressReserve(&mut address, bytes as usize, align.max(self.unit) as usize, 0, 0)
        };
        check(name, "reserve addresses", status)?;
        let base = NonNull::new(ptr::without_provenance_mut(address as usize)).ok_or_else(too_long)?;
        Ok(RawRegion { base, bytes })
    }

    unsafe fn release_range(&self, range: RawRegion) -> std::result::Result<(), MemoryError> {
        let address = range.base.as_ptr() as CUdeviceptr;
        let end = address.saturating_add(range.bytes);
        if self.stuck().iter().any(|part| (address..end).contains(part)) {
            return Err("memory stays behind a part of the range: the driver would not unmap it".into());
        }
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; by the caller's promise the range came from `reserve_range` and nothing is mapped there.
        let status = unsafe { sys::cuMemAddressFree(address, range.bytes as usize) };
        Ok(check(&self.context.name, "release addresses", status)?)
    }

    unsafe fn commit(&self, part: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        Ok(unsafe { self.map(part) }?)
    }

    unsafe fn decommit(&self, part: RawRegion) -> std::result::Result<(), MemoryError> {
        let _current = self.context.enter()?;
        // SAFETY: C1, C3; by the caller's promise `commit` mapped just this part, and nothing touches it any more. It was the last
        // that kept the memory.
        let status = unsafe { sys::cuMemUnmap(part.base.as_ptr() as CUdeviceptr, part.bytes as usize) };
        Ok(check(&self.context.name, "unmap memory", status)?)
    }
}

/// What is asked for where memory is to have handles.
const EXPORTABLE: &str = "make memory that can be exported";

/// Memory of the device, as cuMemAlloc gives it but for how it can be exported.
fn allocation(context: &Context, handles: HandleTypes) -> CUmemAllocationProp {
    // SAFETY: numbers, a null pointer and enums that have a 0.
    let mut prop: CUmemAllocationProp = unsafe { mem::zeroed() };
    prop.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    if handles.posix_fd {
        prop.requestedHandleTypes |= CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    }
    if handles.fabric {
        // Its name came with CUDA 12.3; its number is all that an older header lacks.
        prop.requestedHandleTypes |= CUmemAllocationHandleType(8);
    }
    prop.allocFlags.gpuDirectRDMACapable = handles.rdma.into();
    prop.location = location(context);
    prop
}

/// The device, as a place of memory.
fn location(context: &Context) -> CUmemLocation {
    // SAFETY: numbers, and an enum that has a 0.
    let mut location: CUmemLocation = unsafe { mem::zeroed() };
    location.type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let address: *mut CUmemLocation = &raw mut location;
    // The number is a field in some versions of the header and one of a union in others; in all it comes second, as an int.
    const { assert!(size_of::<CUmemLocation>() == 2 * size_of::<i32>()) };
    // SAFETY: within the structure, aligned as its fields are.
    unsafe { address.cast::<i32>().add(1).write(context.device_number()) };
    location
}
