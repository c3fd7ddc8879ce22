//! Memory that a device and the CPU share, so that files are read into it in place.
//!
//! What `cuMemAlloc` gives is not that, even where both use the same chips: on a DGX Spark the CPU cannot touch it coherently (NVIDIA's porting guide
//! for that machine). So such devices get the system's own memory, which they reach in one of two ways:
//!
//! | the driver says | so | memory |
//! |---|---|---|
//! | it is integrated, and uses the host's page tables | DGX Spark | the system's, anywhere |
//! | it uses the host's page tables, and its memory is a NUMA node | Grace Hopper | the system's, on that node |
//! | it is integrated, and no more | Jetson | the system's, page-locked and mapped |
//! | anything else | cards | the device's own, filled by copies |
//!
//! That a device which uses the host's page tables may touch all of the system's memory is what section 4.1 of the CUDA Programming Guide
//! calls a hardware-coherent system. Where such a device has memory of its own that is no node, the system's memory would be on the wrong side of the
//! link, so there it is filled by copies.
//!
//! No such machine was there to test on. On any other device page-locked and mapped memory can stand in (`Device::cuda_unified`).

use cudarc::driver::sys::CUdevice_attribute;
use tensorhold_allocator::{HostMemory, Memory, MemoryError, MemoryId, PartedMemory, RawRegion};

use super::context::Context;
use crate::device::numa::Node;
use crate::error::{Error, Remedy, Result};

/// How a device and the CPU share memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// The device has memory of its own.
    Not,
    /// The device uses the host's page tables; its own memory is this node's, if it has any.
    PageTables(Option<u32>),
    /// The device reaches what is page-locked and mapped.
    Mapped,
}

/// What the driver says of a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    integrated: bool,
    host_page_tables: bool,
    /// The number of the node that the device's memory is, where it is one.
    node: Option<u32>,
}

impl Said {
    pub(super) fn of(context: &Context) -> Result<Self> {
        let says = |attribute| context.attribute(attribute).map(|value| value != 0);
        let pageable = says(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)?;
        let tables = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES;
        Ok(Self {
            integrated: says(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)?,
            host_page_tables: pageable && says(tables)?,
            node: context.memory_node(),
        })
    }

    pub(super) fn sharing(self) -> Sharing {
        match self {
            Self { integrated: true, host_page_tables: true, .. } => Sharing::PageTables(None),
            Self { host_page_tables: true, node: Some(node), .. } => Sharing::PageTables(Some(node)),
            Self { integrated: true, .. } => Sharing::Mapped,
            _ => Sharing::Not,
        }
    }
}

/// Fails where the addresses of page-locked memory are others on the device than on the CPU.
pub(super) fn check_addresses(context: &Context) -> Result<()> {
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM;
    if context.attribute(attribute)? != 0 {
        return Ok(());
    }
    Err(Error::Device {
        device: context.name.clone(),
        operation: "share memory with the CPU",
        detail: "the device has other addresses for page-locked memory than the CPU".into(),
        remedy: Remedy::PINNED_COPY,
    })
}

/// The system's memory, as a device that uses the host's page tables does.
#[derive(Debug)]
pub(super) struct SharedMemory {
    context: &'static Context,
    pages: HostMemory,
    /// Where the pages are to come from.
    node: Option<Node>,
}

impl SharedMemory {
    pub(super) fn new(context: &'static Context, node: Option<u32>) -> Self {
        Self { context, pages: HostMemory::new(), node: node.map(Node::numbered) }
    }
}

// SAFETY: M1, M2: as HostMemory's. M3: the device's context is waited for. M4: one id for each context.
unsafe impl Memory for SharedMemory {
    fn name(&self) -> &str {
        &self.context.name
    }

    fn id(&self) -> MemoryId {
        self.context.memory.shared
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        let region = self.pages.reserve(bytes, align)?;
        if let Some(node) = &self.node {
            node.prefer(region.base, region.bytes);
        }
        Ok(region)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.pages.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        Ok(self.context.synchronize()?)
    }

    fn parted(&self) -> std::result::Result<&dyn PartedMemory, MemoryError> {
        // Without a node to prefer, parts are as the system gives them.
        match self.node {
            Some(_) => Err(format!("{} gives regions on its node back whole", self.name()).into()),
            None => self.pages.parted(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharing_is_told_from_what_the_driver_says() {
        let sharing =
            |integrated, host_page_tables, node| Said { integrated, host_page_tables, node }.sharing();
        assert_eq!(sharing(true, true, None), Sharing::PageTables(None), "DGX Spark");
        assert_eq!(sharing(false, true, Some(1)), Sharing::PageTables(Some(1)), "Grace Hopper");
        assert_eq!(sharing(false, true, None), Sharing::Not, "its memory would be that of the CPU");
        assert_eq!(sharing(true, false, None), Sharing::Mapped, "Jetson");
        assert_eq!(sharing(false, false, None), Sharing::Not, "H100");
    }
}
