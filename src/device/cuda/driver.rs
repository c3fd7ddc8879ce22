//! The CUDA devices and page-locked host memory as [`Driver`]s.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use tensorhold_allocator::{Memory, OrderedStream};

use super::context::Context;
use super::library::Library;
use super::memory::{DeviceMemory, PinnedMemory};
use super::ordered::AppStream;
use super::stream::CudaStream;
use super::unified::{self, SharedMemory, Sharing};
use crate::device::host::HostStream;
use crate::device::idle::IdleStreams;
use crate::device::{DeviceKind, Driver, HandleTypes, Stream, not_peers};
use crate::error::{Error, Result};

/// How many devices there are; 0 without a driver.
pub(crate) fn device_count() -> usize {
    Library::open("cuda").and_then(Library::device_count).unwrap_or(0)
}

/// A CUDA device.
pub(crate) struct CudaDriver {
    context: &'static Context,
    memory: Arc<dyn Memory>,
    staging: Arc<PinnedMemory>,
}

impl CudaDriver {
    pub(crate) fn open(ordinal: usize) -> Result<Self> {
        let context = Context::of(ordinal)?;
        let sharing = match unified::Said::of(context)?.sharing() {
            // Without the CPU's addresses there, it is filled as any other.
            Sharing::Mapped if unified::check_addresses(context).is_err() => Sharing::Not,
            sharing => sharing,
        };
        Self::with(context, sharing)
    }

    /// The device as if it shared memory with the CPU, where it does not: with memory of the host's, mapped.
    pub(crate) fn open_unified(ordinal: usize) -> Result<Self> {
        let context = Context::of(ordinal)?;
        match unified::Said::of(context)?.sharing() {
            Sharing::Not => Self::with(context, Sharing::Mapped),
            sharing => Self::with(context, sharing),
        }
    }

    fn with(context: &'static Context, sharing: Sharing) -> Result<Self> {
        let memory: Arc<dyn Memory> = match sharing {
            Sharing::Not => Arc::new(DeviceMemory::new(context)),
            Sharing::PageTables(node) => Arc::new(SharedMemory::new(context, node)),
            Sharing::Mapped => {
                unified::check_addresses(context)?;
                Arc::new(PinnedMemory::mapped(context))
            }
        };
        tracing::debug!(device = %context.name, ?sharing, "opened");
        Ok(Self { context, memory, staging: Arc::new(PinnedMemory::staging(context)) })
    }

    /// Streams of the context that are kept for reuse.
    pub(crate) fn idle_streams(&self) -> Arc<IdleStreams> {
        Arc::clone(&self.context.idle)
    }
}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDriver").field("context", &self.context).finish_non_exhaustive()
    }
}

// SAFETY: Q1: device addresses are the driver's in one context; memory that the CPU shares is copied by plain copies. `memory_with` makes
// `DeviceMemory` of the same context, which has the same id. Q2: staging memory is pinned. Q3: both memories wait for the context, which the
// streams are of. Q4: the context is the primary one of that ordinal, and shared memory has one address for both.
unsafe impl Driver for CudaDriver {
    fn name(&self) -> &str {
        &self.context.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda(self.context.ordinal)
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory)
    }

    fn memory_with(&self, handles: HandleTypes) -> Result<Arc<dyn Memory>> {
        if handles == HandleTypes::default() {
            return Ok(self.memory());
        }
        if self.memory.is_host_accessible() {
            return Err(Error::Device {
                device: self.context.name.clone(),
                operation: "make memory that can be exported",
                detail: format!("its memory is shared with the CPU, asked for {handles:?}"),
                remedy: "ask for none, and share the memory as the system's".into(),
            });
        }
        Ok(Arc::new(DeviceMemory::with_handles(self.context, handles)?))
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.staging) as Arc<dyn Memory>
    }

    fn staging_node(&self) -> Option<u32> {
        self.context.node.as_ref()?.number()
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        // The CPU copies what it shares.
        match self.memory.is_host_accessible() {
            true => Ok(Box::new(HostStream)),
            false => Ok(Box::new(CudaStream::new(self.context)?)),
        }
    }

    fn has_transforms(&self) -> bool {
        // The CPU transforms what it shares, in place.
        !self.memory.is_host_accessible()
    }

    unsafe fn stream_from_raw(&self, raw: *mut c_void) -> Result<Box<dyn OrderedStream>> {
        // SAFETY: passed on.
        Ok(Box::new(unsafe { AppStream::new(self.context, raw) }?))
    }

    fn push_context(&self) -> Result<()> {
        self.context.push()
    }

    fn pop_context(&self) {
        self.context.pop();
    }

    fn enable_peer_access(&self, peer: &dyn Driver) -> Result<()> {
        match peer.kind() {
            DeviceKind::Cuda(ordinal) if ordinal == self.context.ordinal => {
                Err(not_peers(self.name(), peer.name(), "it is the same device"))
            }
            DeviceKind::Cuda(ordinal) => self.context.enable_peer(Context::of(ordinal)?),
            _ => Err(not_peers(self.name(), peer.name(), "it is not a CUDA device")),
        }
    }
}

/// Page-locked host memory that every CUDA device copies from and to.
#[derive(Debug)]
pub(crate) struct PinnedDriver {
    context: &'static Context,
    memory: Arc<PinnedMemory>,
}

impl PinnedDriver {
    pub(crate) fn open() -> Result<Self> {
        let library = Library::open("pinned")?;
        let context = Context::of(0)?;
        Ok(Self { context, memory: Arc::new(PinnedMemory::portable(library, context)) })
    }
}

// SAFETY: Q1, Q2: all of it is pinned host memory, and plain copies take its addresses. Q3: copies end before they return. Q4: it is
// host-accessible.
unsafe impl Driver for PinnedDriver {
    fn name(&self) -> &str {
        self.memory.name()
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Pinned
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as Arc<dyn Memory>
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        self.memory()
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(HostStream))
    }

    fn push_context(&self) -> Result<()> {
        self.context.push()
    }

    fn pop_context(&self) {
        self.context.pop();
    }
}
