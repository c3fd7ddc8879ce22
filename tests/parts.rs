//! Facts about weights whose regions are backed in parts.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::{assert_holds, bytes_tensor, devices, drop_cached, on_disk};
use tensorhold::allocator::{HostMemory, Memory, MemoryError, PartedMemory, RawRegion, RegionParts};
use tensorhold::{Backend, BackendKind, Device, Error, Loader, Pool, Tensor};

const UNIT: u64 = 64 << 10;

fn in_parts(memory: Arc<dyn Memory>) -> Pool {
    Pool::builder(memory).region_parts(RegionParts::Require).build().unwrap()
}

#[test]
fn weights_in_parts_are_the_same_and_what_is_dropped_goes_back() {
    let sizes = [3_000_000, 100, 0, 70_000, 1_500_000, 5_000_001, 1, 2_000_000];
    let tensors: Vec<_> =
        sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect();
    let (_folder, path) = on_disk(&tensors);
    let [buffered, direct, uring, _] = BackendKind::ALL.map(Backend::Require);
    for device in devices() {
        for backend in [Backend::Auto, buffered, direct, uring] {
            for cached in [true, false] {
                if !cached {
                    drop_cached(&path, 0, 0);
                }
                let pool = in_parts(device.memory());
                let loader = Loader::new(device.clone()).files([&path]).backend(backend).pool(&pool);
                let weights = loader.load().unwrap();
                assert_holds(&weights, &tensors);
                let choice = weights.report().choices.iter().find(|choice| choice.about == "regions");
                assert_eq!(choice.unwrap().picked, "in parts");
                let kept: Vec<Tensor> =
                    tensors.iter().step_by(2).map(|tensor| weights.tensor(&tensor.name).unwrap()).collect();
                weights.close();
                let (held, stats) = (kept.iter().map(Tensor::nbytes).sum::<u64>(), pool.stats());
                assert_eq!(stats.live_bytes, held);
                let most = held + 2 * UNIT * kept.len() as u64;
                assert!(stats.reserved_bytes <= most, "{} reserved for {held}", stats.reserved_bytes);
                for (tensor, spec) in kept.iter().zip(tensors.iter().step_by(2)) {
                    assert!(tensor.to_host().unwrap() == spec.bytes, "the bytes of {} differ", spec.name);
                }
                drop(kept);
                pool.trim();
                assert_eq!((pool.stats().reserved_bytes, pool.stats().regions), (0, 0));
            }
        }
    }
}

/// Host memory of which only so many bytes can be brought up.
struct Small(HostMemory, AtomicU64);

// SAFETY: HostMemory's.
unsafe impl Memory for Small {
    fn name(&self) -> &str {
        "host"
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.0.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.0.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Ok(self)
    }
}

// SAFETY: HostMemory's.
unsafe impl PartedMemory for Small {
    fn unit(&self) -> u64 {
        self.0.unit()
    }

    fn reserve_range(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.0.reserve_range(bytes, align)
    }

    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.0.release_range(range) }
    }

    unsafe fn commit(&self, part: RawRegion) -> Result<(), MemoryError> {
        let left =
            self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(part.bytes));
        left.map(|_| ()).map_err(|_| "no memory is left".into())
    }

    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError> {
        self.1.fetch_add(part.bytes, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.0.decommit(part) }
    }
}

#[test]
fn memory_that_ends_while_it_is_brought_up_is_an_error_that_leaves_nothing() {
    let tensors: Vec<_> = (0..6).map(|n| bytes_tensor(&format!("t{n}"), 2_000_000)).collect();
    let (_folder, path) = on_disk(&tensors);
    let room = 5_000_000;
    let memory = Arc::new(Small(HostMemory::new(), AtomicU64::new(room)));
    for threads in [1, 4] {
        let pool = in_parts(Arc::clone(&memory) as Arc<dyn Memory>);
        let loader = Loader::new(Device::host()).files([&path]).pool(&pool).threads(threads);
        let error = loader.load().unwrap_err();
        assert!(matches!(error, Error::Memory(_)), "{error:?}");
        pool.trim();
        assert_eq!((pool.stats().reserved_bytes, pool.stats().regions), (0, 0));
        assert_eq!(memory.1.load(Ordering::Relaxed), room);
        // What fits is loaded.
        let select = |info: &tensorhold::TensorInfo| &*info.name < "t2";
        let loader = Loader::new(Device::host()).files([&path]).pool(&pool).select(select);
        let weights = loader.load().unwrap();
        assert_holds(&weights, &tensors[..2]);
        // All of it is back when this returns.
        weights.close();
    }
}
