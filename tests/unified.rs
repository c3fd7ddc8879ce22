//! A CUDA device that shares memory with the CPU, by a driver of the tests: files are read into its memory in place, and nothing is staged or
//! copied.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::{Spec, assert_all_back, bytes_tensor, on_disk, pool_for};
use tensorhold::allocator::{HostMemory, Memory, MemoryError, MemoryId, RawRegion};
use tensorhold::{Backend, BackendKind, Device, DeviceKind, Driver, Error, Loader, Result, Stream};

/// Memory of the host that a device uses too.
#[derive(Debug)]
struct Shared {
    id: MemoryId,
    pages: HostMemory,
    synchronized: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { id: MemoryId::new(), pages: HostMemory::new(), synchronized: AtomicU64::new(0) }
    }
}

// SAFETY: as HostMemory, which does the work; no device is there to wait for.
unsafe impl Memory for Shared {
    fn name(&self) -> &str {
        "cuda:0"
    }

    fn id(&self) -> MemoryId {
        self.id
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        self.pages.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.pages.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        self.synchronized.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A device with such memory. It makes no stream, so that nothing can be copied.
#[derive(Debug, Default)]
struct Unified {
    memory: Arc<Shared>,
}

// SAFETY: Q1 to Q3: it has no streams. Q4: no device is there to which the addresses could be wrong.
unsafe impl Driver for Unified {
    fn name(&self) -> &str {
        "cuda:0"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda(0)
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as Arc<dyn Memory>
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        self.memory()
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Err(Error::Device {
            device: self.name().into(),
            operation: "create a stream",
            detail: "nothing is to be copied".into(),
            remedy: "read in place".into(),
        })
    }
}

fn tensors() -> Vec<Spec> {
    let sizes = [5_000_000, 100, 0, 3_000_017, 77_777, 1, 4096];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

#[test]
fn files_are_read_in_place_with_no_second_copy() {
    let (tensors, shared) = (tensors(), Arc::<Shared>::default());
    let (_folder, path) = on_disk(&tensors);
    let device = Device::from_driver(Arc::new(Unified { memory: Arc::clone(&shared) }));
    let pool = pool_for(&device);
    let weights = Loader::new(device.clone()).files([&path]).pool(&pool).load().unwrap();
    for tensor in &tensors {
        assert!(weights.view(&tensor.name).unwrap().as_bytes().unwrap() == tensor.bytes, "{}", tensor.name);
    }
    let report = weights.report();
    let path_taken = report.choices.iter().find(|choice| choice.about == "path").unwrap();
    assert_eq!(path_taken.picked, "in place");
    assert!(path_taken.why.contains("share"), "{path_taken:?}");
    assert_eq!(report.staging_bytes, 0);
    // The device may use what was loaded until it is given back.
    let before = shared.synchronized.load(Ordering::Relaxed);
    weights.close();
    assert!(shared.synchronized.load(Ordering::Relaxed) > before);
    assert_all_back(&pool);
}

#[test]
fn cufile_is_an_error_where_there_is_nothing_to_fill_by_it() {
    let (_folder, path) = on_disk(&tensors());
    let device = Device::from_driver(Arc::new(Unified::default()));
    let loader = Loader::new(device).files([&path]).backend(Backend::Require(BackendKind::Gds));
    let message = loader.load().unwrap_err().to_string();
    assert!(message.contains("memory that the CPU does not share"), "{message}");
}
