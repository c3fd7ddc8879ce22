//! What a pool believes of the traits that others implement, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorhold_allocator::{HostMemory, Memory, MemoryError, Pool, RawRegion, Request};

/// Host memory that says at first that the CPU cannot access it, and later that it can.
#[derive(Default)]
struct Fickle {
    host: HostMemory,
    is_host_accessible: AtomicBool,
}

// SAFETY: HostMemory's. M2 holds whatever it says of itself.
unsafe impl Memory for Fickle {
    fn name(&self) -> &str {
        "fickle"
    }

    fn is_host_accessible(&self) -> bool {
        self.is_host_accessible.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.host.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.host.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Ok(())
    }
}

#[test]
fn whether_the_cpu_can_access_a_pools_memory_is_asked_once() {
    let memory = Arc::new(Fickle::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).build().unwrap();
    let mut fragment = pool.place("t", Request::new(256, 256)).unwrap();
    memory.is_host_accessible.store(true, Ordering::Relaxed);
    assert!(!fragment.is_host_accessible());
    assert!(fragment.as_bytes().is_none() && fragment.as_bytes_mut().is_none());
}
