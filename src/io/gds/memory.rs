//! Device memory that is registered with cuFile.

use std::fmt;
use std::sync::Arc;

use tensorhold_allocator::{Memory, MemoryError, MemoryId, RawRegion};

use super::library::CuFile;
use super::{Missing, Provider, System};
use crate::device::Device;
use crate::error::{Error, Remedy};

/// A device's memory whose regions are registered for as long as they are reserved (D3).
pub(crate) struct Registered {
    name: String,
    id: MemoryId,
    device: Device,
    memory: Arc<dyn Memory>,
    cufile: Arc<CuFile>,
}

/// Memory of a CUDA device that is registered with cuFile for as long as it is reserved, for a pool that
/// [`Loader::scratch`](crate::Loader::scratch) takes.
///
/// # Errors
/// When cuFile cannot be had, or the device is no CUDA device.
pub fn gds_memory(device: &Device) -> Result<Arc<dyn Memory>, Error> {
    if !System.serves(device) {
        return Err(Error::Device {
            device: device.name().into(),
            operation: "register memory with cuFile",
            detail: "it is not a CUDA device with memory of its own".into(),
            remedy: Remedy::CUDA_DEVICE,
        });
    }
    let cufile = System.open().map_err(Missing::into_error)?;
    Ok(Arc::new(Registered::new(device, &cufile)))
}

/// Devices pin memory in pages of so much.
const PAGE_BYTES: u64 = 64 << 10;

impl Registered {
    pub(crate) fn new(device: &Device, cufile: &Arc<CuFile>) -> Self {
        let memory = device.memory();
        Self {
            name: format!("{device} for cuFile"),
            id: cufile.id_of(memory.id()),
            device: device.clone(),
            memory,
            cufile: Arc::clone(cufile),
        }
    }

    fn register(&self, region: RawRegion) -> Result<(), Error> {
        let _current = self.device.make_current()?;
        // SAFETY: D1; the region was reserved just now, and stays until `release`, which deregisters it first.
        let status = unsafe {
            (self.cufile.table().buffer_register)(region.base.as_ptr().cast(), region.bytes as usize, 0)
        };
        match status.check("register device memory") {
            Ok(()) => self.cufile.add(region.base.as_ptr() as usize, region.bytes as usize),
            Err(error) => {
                tracing::debug!(%error, memory = %self.name, "read into through cuFile's own buffers");
                self.cufile.refuse(error.to_string());
            }
        }
        Ok(())
    }

    fn deregister(&self, region: RawRegion) -> Result<(), MemoryError> {
        if !self.cufile.remove(region.base.as_ptr() as usize) {
            return Ok(());
        }
        let _current = self.device.make_current()?;
        // SAFETY: D1, D3: `register` registered it, and nothing reads into it any more.
        let status = unsafe { (self.cufile.table().buffer_deregister)(region.base.as_ptr().cast()) };
        Ok(status.check("deregister device memory")?)
    }
}

// SAFETY: M1 to M3 as the device's memory, which does the work; a region keeps it until its registration is gone (D3), and where
// a read may be under way (D4) `synchronize` fails, so that no range is used again and no region released. M4: one id for each memory and library.
unsafe impl Memory for Registered {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> MemoryId {
        self.id
    }

    fn is_host_accessible(&self) -> bool {
        self.memory.is_host_accessible()
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        let region =
            self.memory.reserve(bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(bytes), align)?;
        if let Err(error) = self.register(region) {
            // SAFETY: reserved above, and neither registered nor used.
            unsafe { self.memory.release(region) }?;
            return Err(error.into());
        }
        Ok(region)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        self.deregister(region)?;
        // SAFETY: the region came from `reserve`, which had it from there, and nothing touches it, by the caller's promise.
        unsafe { self.memory.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        if self.cufile.is_lost() {
            return Err("cuFile did not say whether a read has ended".into());
        }
        self.memory.synchronize()
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("name", &self.name).finish_non_exhaustive()
    }
}
