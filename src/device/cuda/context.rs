//! Primary contexts, retained once for each device (C2), and current while they are needed (C3).

use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUevent_flags, CUresult};
use tensorhold_allocator::MemoryId;

use tensorhold_allocator::Process;

use super::events::Events;
use super::kernels::Functions;
use super::library::Library;
use super::status::check;
use crate::device::descriptors;
use crate::device::idle::IdleStreams;
use crate::device::numa::Node;
use crate::error::{Error, Remedy, Result};
use crate::fork;

/// The oldest architecture that serves: Turing.
const MIN_CAPABILITY: (i32, i32) = (7, 5);

/// The ids of the memories that belong to a context: one each, however often the device is opened.
#[derive(Debug)]
pub(super) struct MemoryIds {
    /// What the driver allocates on the device, and maps there.
    pub(super) device: MemoryId,
    /// Pinned for copies.
    pub(super) staging: MemoryId,
    /// Pinned, for kernels to use in the place of the device's own.
    pub(super) mapped: MemoryId,
    /// The system's, which the device reaches by the host's page tables.
    pub(super) shared: MemoryId,
}

impl MemoryIds {
    fn new() -> Self {
        let [device, staging, mapped, shared] = [(); 4].map(|()| MemoryId::new());
        Self { device, staging, mapped, shared }
    }
}

/// A device's primary context.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) name: String,
    pub(super) ordinal: usize,
    /// The NUMA node that the device hangs on, where several have memory.
    pub(super) node: Option<Node>,
    /// Streams for every [`Device`](crate::Device) of this ordinal to use again (C2).
    pub(super) idle: Arc<IdleStreams>,
    /// Events that fences leave (C2).
    pub(super) events: Events,
    /// Which memory is whose (M4).
    pub(super) memory: MemoryIds,
    /// Kernels that have been loaded (C2).
    pub(super) functions: Functions,
    device: CUdevice,
    raw: CUcontext,
    /// That retained it: in a forked child the driver can do nothing with it.
    process: Process,
}

// SAFETY: the handles are process-wide names; the driver API may be called with them from any thread. The other fields
// are Send and Sync.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

static CONTEXTS: Mutex<Vec<&'static Context>> = Mutex::new(Vec::new());

impl Context {
    /// The context of the device with this ordinal, retained on first use.
    pub(super) fn of(ordinal: usize) -> Result<&'static Context> {
        let name = format!("cuda:{ordinal}");
        let library = Library::open(&name)?;
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.iter().find(|context| context.ordinal == ordinal) {
            return Ok(context);
        }
        let context = Box::leak(Box::new(Self::retain(library, ordinal, name)?));
        contexts.push(context);
        Ok(context)
    }

    fn retain(library: Library, ordinal: usize, name: String) -> Result<Self> {
        let refused =
            |detail, remedy| Err(Error::Device { device: name.clone(), operation: "open", detail, remedy });
        let count = library.device_count()?;
        if ordinal >= count {
            let remedy = "name one of those, and check CUDA_VISIBLE_DEVICES".into();
            return refused(format!("there is no such device, expected an ordinal below {count}"), remedy);
        }
        let mut device = 0;
        // SAFETY: C1; `device` is valid for the write, and the ordinal is below the count, so it fits.
        check(&name, "open", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: C1; `value` is valid for the write, and the device was got above.
            check(&name, "look at", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })
                .map(|()| value)
        };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major, minor) < MIN_CAPABILITY {
            let detail = format!("its compute capability is {major}.{minor}, expected at least 7.5");
            return refused(detail, Remedy::NEWER_DEVICE);
        }
        // A device that does not say where it is has no node, which is no reason not to open it.
        let node = pci_address(attribute).ok().and_then(|address| Node::of_device(&address));
        descriptors::make_room();
        let mut raw = ptr::null_mut();
        // SAFETY: C1; `raw` is valid for the write. C2: never released.
        check(&name, "open the context", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        Ok(Self {
            name,
            ordinal,
            node,
            idle: Arc::default(),
            events: Events::default(),
            memory: MemoryIds::new(),
            functions: Functions::default(),
            device,
            raw,
            process: Process::current(),
        })
    }

    /// Whether anyone in this process uses the device through its primary context.
    pub(super) fn is_active(library: Library, ordinal: usize) -> bool {
        let _ = library;
        let (mut device, mut flags, mut active) = (0, 0, 0);
        // SAFETY: C1 by `library`; the outputs are valid for the writes, and a wrong ordinal is an error.
        let status = unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) };
        // SAFETY: as above; asked only of a device that was found.
        let found = status == CUresult::CUDA_SUCCESS
            && unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) }
                == CUresult::CUDA_SUCCESS;
        found && active != 0
    }

    /// Makes the context current on this thread until the guard goes; where it is already, that costs a look.
    ///
    /// # Errors
    /// When the driver refuses, and in a forked child, which calls no driver.
    pub(super) fn enter(&'static self) -> Result<Current> {
        self.check_process()?;
        let mut current = ptr::null_mut();
        // SAFETY: C1: a context exists only with the library; `current` is valid for the write.
        check(&self.name, "ask for the current context", unsafe { sys::cuCtxGetCurrent(&mut current) })?;
        let pushed = current != self.raw;
        if pushed {
            self.push()?;
        }
        Ok(Current { pushed: pushed.then_some(self), thread_bound: PhantomData })
    }

    /// Makes the context current on this thread, on top of what was.
    pub(super) fn push(&self) -> Result<()> {
        self.check_process()?;
        // SAFETY: C1: a context exists only with the library. C2: it is still retained.
        check(&self.name, "make the context current", unsafe { sys::cuCtxPushCurrent_v2(self.raw) })
    }

    /// Takes the thread's current context off again, which [`push`](Self::push) put there; not in a forked child.
    pub(super) fn pop(&self) {
        if !self.is_of_this_process() {
            return;
        }
        let mut popped = ptr::null_mut();
        // SAFETY: C1: only called after a push. A failure, as at the end of the process, leaves nothing to undo.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }

    /// # Errors
    /// In a forked child.
    pub(super) fn check_process(&self) -> Result<()> {
        fork::check(self.process, "use a CUDA device")
    }

    /// Whether this is the process that retained the context.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.process.is_current()
    }

    /// What the driver says of the device.
    ///
    /// # Errors
    /// When the driver refuses, and in a forked child.
    pub(super) fn attribute(&self, attribute: CUdevice_attribute) -> Result<i32> {
        self.check_process()?;
        let mut value = 0;
        // SAFETY: C1: a context exists only with the library; `value` is valid for the write.
        let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) };
        check(&self.name, "look at", status).map(|()| value)
    }

    /// The number of the NUMA node that the device's memory is, where it is one. Asked by the number of the attribute
    /// (`CU_DEVICE_ATTRIBUTE_NUMA_ID`), which is newer than the oldest driver that serves.
    #[cfg(feature = "cuda")]
    pub(super) fn memory_node(&self) -> Option<u32> {
        const NUMA_ID: i32 = 131;
        type Ask = unsafe extern "C" fn(*mut i32, i32, CUdevice) -> CUresult;
        let mut node = -1;
        // SAFETY: C1: the driver has the symbol, whose second argument is an int; `node` is valid for the write, and a driver that
        // does not know the attribute says so.
        let status = unsafe {
            let ask = sys::culib().get::<Ask>(b"cuDeviceGetAttribute").ok()?;
            ask(&mut node, NUMA_ID, self.device)
        };
        let node = u32::try_from(node).ok().filter(|_| status == CUresult::CUDA_SUCCESS)?;
        Node::exists(node).then_some(node)
    }

    /// The application chose how the driver is linked: only what cudarc declares can be asked.
    #[cfg(not(feature = "cuda"))]
    pub(super) fn memory_node(&self) -> Option<u32> {
        None
    }

    /// The driver's number of the device.
    pub(super) fn device_number(&self) -> i32 {
        self.device
    }

    /// A new event, for waiting without spinning.
    pub(super) fn create_event(&self, _: &Current) -> Result<CUevent> {
        let flags =
            CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 | CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut event = ptr::null_mut();
        // SAFETY: C1, C3; `event` is valid for the write.
        check(&self.name, "create an event", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(event)
    }

    /// Whether it is this context.
    pub(super) fn is(&self, context: CUcontext) -> bool {
        self.raw == context
    }

    /// Waits until all work in the context has ended.
    pub(super) fn synchronize(&'static self) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: C1, C3.
        check(&self.name, "synchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// Lets this context address the memory of another device's.
    pub(super) fn enable_peer(&'static self, peer: &'static Context) -> Result<()> {
        let _current = self.enter()?;
        let mut possible = 0;
        // SAFETY: C1; `possible` is valid for the write, and both devices were got from the driver.
        let status = unsafe { sys::cuDeviceCanAccessPeer(&mut possible, self.device, peer.device) };
        check(&self.name, "ask for peer access", status)?;
        if possible == 0 {
            return Err(crate::device::not_peers(
                &self.name,
                &peer.name,
                "the driver sees no path between them",
            ));
        }
        // SAFETY: C1, C3; C2: the peer's context is retained.
        let status = unsafe { sys::cuCtxEnablePeerAccess(peer.raw, 0) };
        if status == CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED {
            return Ok(());
        }
        check(&self.name, "enable peer access", status)
    }
}

/// The device's address on the PCI bus, as the kernel writes it, from its attributes. A GPU is function 0.
fn pci_address(attribute: impl Fn(CUdevice_attribute) -> Result<i32>) -> Result<String> {
    let domain = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
    let bus = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?;
    let slot = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
    Ok(format!("{domain:04x}:{bus:02x}:{slot:02x}.0"))
}

/// Keeps a context current on this thread (C3).
#[derive(Debug)]
pub(super) struct Current {
    pushed: Option<&'static Context>,
    thread_bound: PhantomData<*const ()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(context) = self.pushed {
            context.pop();
        }
    }
}
