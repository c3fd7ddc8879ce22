//! A memory that asserts its limit, and can hold a `synchronize` back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use tensorhold_allocator::{HostMemory, Memory, MemoryError, MemoryId, RawRegion};

/// Host memory that asserts a limit on what is reserved.
#[derive(Default)]
pub(crate) struct Limited {
    pub(crate) host: HostMemory,
    pub(crate) reserved: AtomicU64,
    pub(crate) limit: u64,
    /// If set, `synchronize` sends that it has begun, and waits for a message to go on.
    pub(crate) gate: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

// SAFETY: HostMemory's.
unsafe impl Memory for Limited {
    fn name(&self) -> &str {
        "limited"
    }

    fn id(&self) -> MemoryId {
        self.host.id()
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        let before = self.reserved.fetch_add(bytes, Ordering::SeqCst);
        assert!(before + bytes <= self.limit, "{before} and {bytes} are more than {}", self.limit);
        self.host.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        self.reserved.fetch_sub(region.bytes, Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { self.host.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        if let Some((begun, go)) = &*self.gate.lock().unwrap() {
            begun.send(()).unwrap();
            go.recv().unwrap();
        }
        Ok(())
    }

    fn is_used_by_devices(&self) -> bool {
        self.gate.lock().unwrap().is_some()
    }
}
