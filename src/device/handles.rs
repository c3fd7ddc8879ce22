//! [`HandleTypes`]: how memory can be named outside its process.

/// The kinds of handles that a device's memory can be exported by, for [`Device::memory_with`](crate::Device::memory_with).
/// Default: none.
///
/// They are of the physical memory behind a part of a region, so they are for pools whose regions are backed [part by
/// part](crate::allocator::RegionParts). An application gets the handle behind an address by `cuMemRetainAllocationHandle`, and exports it by
/// `cuMemExportToShareableHandle`; as long as it keeps one, the memory does not go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct HandleTypes {
    /// A file descriptor, for other processes of the machine.
    pub posix_fd: bool,
    /// A fabric handle, for other machines of one NVLink domain. The driver wants an IMEX channel for that.
    pub fabric: bool,
    /// Network cards and other devices may read and write the memory: GPUDirect RDMA.
    pub rdma: bool,
}

impl HandleTypes {
    /// The same with file descriptors.
    pub fn with_posix_fd(self) -> Self {
        Self { posix_fd: true, ..self }
    }

    /// The same with fabric handles.
    pub fn with_fabric(self) -> Self {
        Self { fabric: true, ..self }
    }

    /// The same with RDMA.
    pub fn with_rdma(self) -> Self {
        Self { rdma: true, ..self }
    }

    /// Whether there is any.
    pub(super) fn is_any(self) -> bool {
        self != Self::default()
    }
}
