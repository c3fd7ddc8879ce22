//! Code from outside the crate that panics during a load: callbacks, rules, streams and memories. No copy goes on, no one waits for ever, and the process can
//! load again.

mod support;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use support::{Spec, assert_all_back, assert_holds, bytes_tensor, on_disk, pool_for, single};
use tensorhold::allocator::{
    HostMemory, Memory, MemoryError, MemoryId, PartedMemory, RawRegion, RegionParts,
};
use tensorhold::{
    Backend, BackendKind, Batching, Cut, Device, DeviceKind, Driver, Error, Loader, Pool, Result, Stream,
};

/// A copy that was enqueued and has not run.
struct Copy {
    stream: usize,
    to: usize,
    from: usize,
    bytes: usize,
}

/// A device whose copies run when someone waits for them, and parts of which panic when they are called for so many times.
#[derive(Default)]
struct Late {
    copies: Mutex<Vec<Copy>>,
    streams: AtomicI64,
    panics: Panics,
}

/// Calls until the one that panics, and all after it do; none where it is 0 to begin with.
#[derive(Default)]
struct Panics {
    copy: AtomicI64,
    record: AtomicI64,
    wait: AtomicI64,
    stage: AtomicI64,
    commit: AtomicI64,
}

impl Panics {
    fn count(calls: &AtomicI64, what: &str) {
        if calls.load(Ordering::Relaxed) != 0 && calls.fetch_sub(1, Ordering::Relaxed) <= 1 {
            calls.store(1, Ordering::Relaxed);
            panic!("the test's {what} panics");
        }
    }

    fn end(&self) {
        let Self { copy, record, wait, stage, commit } = self;
        [copy, record, wait, stage, commit].iter().for_each(|calls| calls.store(0, Ordering::Relaxed));
    }
}

impl Late {
    /// Runs the copies of one stream, or of all.
    fn run(&self, stream: Option<usize>) {
        let mut copies = self.copies.lock().unwrap();
        let (now, later): (Vec<_>, Vec<_>) =
            copies.drain(..).partition(|copy| stream.is_none_or(|stream| stream == copy.stream));
        *copies = later;
        for Copy { to, from, bytes, .. } in now {
            // SAFETY: as the one who enqueued it promised: both are valid until this has run.
            unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        }
    }

    fn in_flight(&self) -> usize {
        self.copies.lock().unwrap().len()
    }
}

impl std::fmt::Debug for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Late")
    }
}

#[derive(Debug)]
struct LateMemory {
    memory: HostMemory,
    device: Arc<Late>,
    is_staging: bool,
}

// SAFETY: M1, and M2 where it is claimed, as HostMemory's; M3: `synchronize` runs all copies. M4: constants.
unsafe impl Memory for LateMemory {
    fn name(&self) -> &str {
        if self.is_staging { "late staging" } else { "late" }
    }

    fn id(&self) -> MemoryId {
        static IDS: LazyLock<[MemoryId; 2]> = LazyLock::new(|| [MemoryId::new(), MemoryId::new()]);
        IDS[usize::from(self.is_staging)]
    }

    fn is_host_accessible(&self) -> bool {
        self.is_staging
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        if self.is_staging {
            Panics::count(&self.device.panics.stage, "staging memory");
        }
        self.memory.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.memory.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        self.device.run(None);
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct LateDriver(Arc<Late>);

// SAFETY: Q1, Q2: both memories are the host's, and so are the streams' copies. Q3: `synchronize` of either runs all copies. Q4: of no kind
// that says more.
unsafe impl Driver for LateDriver {
    fn name(&self) -> &str {
        "late"
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(LateMemory { memory: HostMemory::new(), device: Arc::clone(&self.0), is_staging: false })
    }

    fn staging_memory(&self) -> Arc<dyn Memory> {
        Arc::new(LateMemory { memory: HostMemory::new(), device: Arc::clone(&self.0), is_staging: true })
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        let number = self.0.streams.fetch_add(1, Ordering::Relaxed) as usize;
        Ok(Box::new(LateStream { device: Arc::clone(&self.0), number }))
    }
}

struct LateStream {
    device: Arc<Late>,
    number: usize,
}

// SAFETY: T1: copies touch what they are given. T2, T3: `synchronize` and `wait` run all copies of the stream, and `has_passed` says whether
// any are left.
unsafe impl Stream for LateStream {
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        let copy = Copy { stream: self.number, to: to as usize, from: from as usize, bytes: bytes as usize };
        self.device.copies.lock().unwrap().push(copy);
        Panics::count(&self.device.panics.copy, "copy");
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.copy_to_device(to, from, bytes) }
    }

    fn record(&self, _: usize) -> Result<()> {
        Panics::count(&self.device.panics.record, "event");
        Ok(())
    }

    fn wait(&self, _: usize) -> Result<()> {
        Panics::count(&self.device.panics.wait, "wait");
        self.device.run(Some(self.number));
        Ok(())
    }

    fn has_passed(&self, _: usize) -> Result<bool> {
        Ok(self.device.copies.lock().unwrap().iter().all(|copy| copy.stream != self.number))
    }

    fn synchronize(&self) -> Result<()> {
        self.device.run(Some(self.number));
        Ok(())
    }
}

fn late() -> (Arc<Late>, Device) {
    let late = Arc::new(Late::default());
    (Arc::clone(&late), Device::from_driver(Arc::new(LateDriver(late))))
}

fn tensors() -> Vec<Spec> {
    (0..16).map(|n| bytes_tensor(&format!("t{n}"), 500_000 + n)).collect()
}

/// A loader with many small slots, so that copies are in flight most of the time.
fn loader(device: &Device, path: &Path) -> Loader {
    Loader::new(device.clone()).files([path]).threads(3).staging_bytes(2 << 20)
}

fn panicked<T>(work: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn after_a_callback_that_panics_no_copy_is_in_flight_and_the_process_loads_again() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    let (late, device) = late();
    for at in [0, 1, 2_000_000, 4_000_000, 8_000_120] {
        let pool = pool_for(&device);
        let fails = || {
            loader(&device, &path).pool(&pool).progress(move |progress| {
                assert!(progress.done_bytes < at.max(1) && at > 0, "the test's callback panics");
                ControlFlow::Continue(())
            })
        };
        assert!(panicked(|| fails().load()));
        assert_eq!(late.in_flight(), 0, "at {at} of a load");
        assert_all_back(&pool);
        assert!(panicked(|| fails().stream().unwrap().for_each(drop)));
        assert_eq!(late.in_flight(), 0, "at {at} of a stream");
        assert_all_back(&pool);
        assert!(panicked(|| fails().stream().unwrap().finish()));
        let batching = Batching::new().max_batch_bytes(3_000_000);
        assert!(panicked(|| fails().batches(batching).unwrap().for_each(drop)));
        assert_eq!(late.in_flight(), 0, "at {at} of batches");
        assert_all_back(&pool);
        assert_holds(&loader(&device, &path).pool(&pool).load().unwrap(), &tensors);
    }
}

#[test]
fn a_stream_or_memory_that_panics_in_a_reader_is_an_error_and_the_others_stop() {
    let tensors = tensors();
    for backend in [BackendKind::Buffered, BackendKind::Direct, BackendKind::IoUring] {
        let (_folder, path) = on_disk(&tensors);
        let (late, device) = late();
        let staging = || Pool::builder(device.staging_memory()).region_bytes(1).build().unwrap();
        let Panics { copy, record, wait, stage, .. } = &late.panics;
        for (what, calls) in [("copy", copy), ("event", record), ("wait", wait), ("staging memory", stage)] {
            for call in [1, 2, 4] {
                let pool = pool_for(&device);
                let load = || loader(&device, &path).pool(&pool).backend(Backend::Require(backend));
                let own = staging();
                calls.store(call, Ordering::Relaxed);
                let loaded = load().staging(&own).load();
                let did_panic = calls.load(Ordering::Relaxed) == 1;
                late.panics.end();
                match loaded {
                    Ok(weights) => assert!(
                        !did_panic || what == "wait" || what == "staging memory",
                        "{:?}",
                        weights.report()
                    ),
                    Err(Error::Panicked { message, .. }) => assert!(message.contains(what), "{message}"),
                    // Where io_uring is refused.
                    Err(Error::Option { .. }) if backend != BackendKind::Buffered => {}
                    Err(other) => panic!("{backend} {what} {call}: {other}"),
                }
                assert_eq!(late.in_flight(), 0, "{backend} {what} {call}");
                assert_all_back(&pool);
                assert_holds(&load().staging(&staging()).load().unwrap(), &tensors);
                assert_all_back(&pool);
            }
        }
    }
}

#[test]
fn a_stream_of_tensors_gives_the_panic_of_a_reader_as_its_last_item() {
    let (_folder, path) = single(&tensors());
    let (late, device) = late();
    let pool = pool_for(&device);
    late.panics.copy.store(3, Ordering::Relaxed);
    let last = loader(&device, &path).pool(&pool).stream().unwrap().last().unwrap();
    assert!(matches!(last, Err(Error::Panicked { operation: "read", .. })), "{last:?}");
    late.panics.end();
    assert_eq!(late.in_flight(), 0);
    assert_all_back(&pool);
}

#[test]
fn an_open_checkpoint_loads_again_after_a_panic() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    let (late, device) = late();
    let asked = Arc::new(AtomicI64::new(0));
    let rule = |asked: &Arc<AtomicI64>| {
        let asked = Arc::clone(asked);
        move |_: &tensorhold::TensorInfo| -> Option<Cut> {
            Panics::count(&asked, "rule");
            None
        }
    };
    let opened = loader(&device, &path).cut_by(rule(&asked)).open().unwrap();
    for _ in 0..2 {
        asked.store(3, Ordering::Relaxed);
        assert!(panicked(|| opened.load_tensors(["t0", "t1", "t2", "t3"])));
        asked.store(0, Ordering::Relaxed);
        let fails = || opened.loader().progress(|_| panic!("the test's callback panics"));
        assert!(panicked(|| fails().load()));
        late.panics.copy.store(2, Ordering::Relaxed);
        assert!(matches!(opened.loader().load(), Err(Error::Panicked { .. })));
        late.panics.end();
        assert_eq!(late.in_flight(), 0);
        assert_holds(&opened.loader().load().unwrap(), &tensors);
        assert_eq!(opened.load_tensor("t5").unwrap().to_host().unwrap(), tensors[5].bytes);
    }
}

#[test]
fn memory_in_parts_that_panics_is_an_error_for_who_waits_for_the_part() {
    #[derive(Debug)]
    struct Parted(HostMemory, AtomicI64);
    // SAFETY: as HostMemory, which does the work.
    unsafe impl Memory for Parted {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn id(&self) -> MemoryId {
            self.0.id()
        }
        fn is_host_accessible(&self) -> bool {
            true
        }
        fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
            self.0.reserve(bytes, align)
        }
        unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
            // SAFETY: passed on.
            unsafe { self.0.release(region) }
        }
        fn synchronize(&self) -> std::result::Result<(), MemoryError> {
            Ok(())
        }
        fn parted(&self) -> std::result::Result<&dyn PartedMemory, MemoryError> {
            Ok(self)
        }
    }
    // SAFETY: V1, V2 as HostMemory's.
    unsafe impl PartedMemory for Parted {
        fn unit(&self) -> u64 {
            self.0.parted().unwrap().unit()
        }
        fn reserve_range(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
            self.0.parted().unwrap().reserve_range(bytes, align)
        }
        unsafe fn commit(&self, part: RawRegion) -> std::result::Result<(), MemoryError> {
            Panics::count(&self.1, "memory");
            // SAFETY: passed on.
            unsafe { self.0.parted().unwrap().commit(part) }
        }
        unsafe fn decommit(&self, part: RawRegion) -> std::result::Result<(), MemoryError> {
            // SAFETY: passed on.
            unsafe { self.0.parted().unwrap().decommit(part) }
        }
        unsafe fn release_range(&self, range: RawRegion) -> std::result::Result<(), MemoryError> {
            // SAFETY: passed on.
            unsafe { self.0.parted().unwrap().release_range(range) }
        }
    }
    let (_folder, path) = single(&tensors());
    let memory = Parted(HostMemory::new(), AtomicI64::new(2));
    let pool = Pool::builder(Arc::new(memory)).region_parts(RegionParts::Require).build().unwrap();
    let loaded = Loader::new(Device::host()).files([&path]).pool(&pool).load();
    let Err(Error::Memory(tensorhold::allocator::Error::OutOfMemory { source, .. })) = loaded else {
        panic!("{loaded:?}")
    };
    assert!(source.to_string().contains("the memory panicked"), "{source}");
    assert_all_back(&pool);
}
