//! What safe code may get wrong without a wrong byte: names that two memories share, descriptions that are made up, groups that change their
//! minds, and devices that fail to say whether a copy has ended.

mod support;

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use support::{Spec, bytes_tensor, single, staged_host, tensor};
use tensorhold::allocator::{HostMemory, Memory, MemoryError, MemoryId, RawRegion};
use tensorhold::group::{self, ProcessGroup, Relay, Shared, SingleGroup};
use tensorhold::{
    DType, Device, DeviceKind, Driver, Error, Loader, Pool, Result, Stream, Tensor, TensorInfo,
};

/// Host memory by any name, which may say that the CPU is not to touch it.
#[derive(Debug)]
struct Named {
    name: &'static str,
    is_host_accessible: bool,
    id: MemoryId,
    pages: HostMemory,
}

impl Named {
    fn new(name: &'static str, is_host_accessible: bool) -> Self {
        Self { name, is_host_accessible, id: MemoryId::new(), pages: HostMemory::new() }
    }
}

// SAFETY: as HostMemory, which does the work; M4: each has an id of its own, but for clones of it in the tests, which are one memory.
unsafe impl Memory for Named {
    fn name(&self) -> &str {
        self.name
    }

    fn id(&self) -> MemoryId {
        self.id
    }

    fn is_host_accessible(&self) -> bool {
        self.is_host_accessible
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        self.pages.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.pages.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        Ok(())
    }
}

fn pool(memory: impl Memory) -> Pool {
    Pool::builder(Arc::new(memory)).build().unwrap()
}

fn three() -> Vec<Spec> {
    vec![bytes_tensor("a", 5000), tensor("b", "F32", &[4, 6], 96), bytes_tensor("empty", 0)]
}

fn info(name: &str, shape: &[usize], nbytes: u64) -> TensorInfo {
    // The fields of an info are public, so any of them can be set to anything.
    let (_folder, path) = single(&[tensor(name, "F32", &[1], 4)]);
    let weights = Loader::new(Device::host()).files([path]).load().unwrap();
    let mut info = weights.info(name).unwrap().clone();
    info.shape = shape.into();
    info.nbytes = nbytes;
    info
}

#[test]
fn a_pool_over_other_memory_of_the_devices_name_is_refused() {
    let (_folder, path) = single(&three());
    for accessible in [false, true] {
        let other = pool(Named::new("host", accessible));
        let loaded = Loader::new(Device::host()).files([&path]).pool(&other).load();
        let error = loaded.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Option { option: "pool", .. }), "{error}");
        let message = error.to_string();
        let differs = if accessible { "another memory" } else { "cannot access" };
        assert!(message.contains(differs) && message.contains("host"), "{message}");
    }
}

#[test]
fn a_staging_pool_over_other_memory_of_the_same_name_is_refused() {
    let (_folder, path) = single(&three());
    let device = staged_host::device();
    let other = pool(Named::new("frugal", false));
    let loaded = Loader::new(device.clone()).files([&path]).staging(&other).load();
    let message = loaded.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("option staging") && message.contains("cannot access"), "{message}");
    let own = Pool::builder(device.staging_memory()).build().unwrap();
    Loader::new(device).files([&path]).staging(&own).load().unwrap();
}

#[test]
fn groups_place_tensors_in_the_devices_memory_alone() {
    let device = staged_host::device();
    let other = pool(Named::new("staged-host", true));
    let local = Vec::<Tensor>::new();
    let shared = Shared::new(Arc::new(SingleGroup), &device, &other, [], local);
    let message = shared.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("staged-host") && message.contains("the CPU can access"), "{message}");
    // Tensors of another device of the same name, too.
    let (_folder, path) = single(&three());
    let weights = Loader::new(staged_host::device()).files([path]).load().unwrap();
    let infos: Vec<_> = weights.iter().map(|view| (view.info().clone(), 0)).collect();
    let own = Pool::builder(device.memory()).build().unwrap();
    let shared = Shared::new(Arc::new(SingleGroup), &device, &own, infos, weights.into_tensors());
    let message = shared.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("another memory"), "{message}");
}

#[test]
fn handles_on_one_memory_are_one_memory() {
    let (_folder, path) = single(&three());
    // Host memory is the same whoever made the handle.
    for memory in [Device::host().memory(), Arc::new(HostMemory::new()) as Arc<dyn Memory>] {
        let pool = Pool::builder(memory).build().unwrap();
        Loader::new(Device::host()).files([&path]).pool(&pool).load().unwrap();
    }
    // So is that of one driver's devices.
    let first = staged_host::device();
    let second = Device::from_driver(Arc::clone(first.driver()));
    let pool = Pool::builder(first.memory()).build().unwrap();
    Loader::new(second).files([&path]).pool(&pool).load().unwrap();
}

/// A safe group of two that gives what it is told to.
#[derive(Debug, Default)]
struct Liar {
    /// What its sizes are, one call after the other; then 2.
    sizes: Mutex<VecDeque<usize>>,
    /// Put in the place of what is to be filled.
    instead: Mutex<Option<Tensor>>,
    calls: AtomicUsize,
}

impl Liar {
    fn receive(&self, into: &mut Tensor) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(other) = self.instead.lock().unwrap().take() {
            *into = other;
        }
        Ok(())
    }
}

impl ProcessGroup for Liar {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        self.sizes.lock().unwrap().pop_front().unwrap_or(2)
    }
    fn barrier(&self) -> Result<()> {
        Ok(())
    }
    fn broadcast(&self, _: &Tensor) -> Result<()> {
        Ok(())
    }
    fn recv_broadcast(&self, into: &mut Tensor, _: usize) -> Result<()> {
        self.receive(into)
    }
    fn scatter(&self, _: &[Tensor]) -> Result<()> {
        Ok(())
    }
    fn send(&self, _: &Tensor, _: usize) -> Result<()> {
        Ok(())
    }
    fn recv(&self, into: &mut Tensor, _: usize) -> Result<()> {
        self.receive(into)
    }
}

fn host_pool() -> Pool {
    Pool::builder(Device::host().memory()).build().unwrap()
}

#[test]
fn infos_whose_bytes_are_not_those_of_their_shape_are_refused_where_they_enter() {
    let forged = [info("t", &[1 << 30], 4), info("t", &[3], 13), info("t", &[1 << 40, 1 << 40], 0)];
    for forged in forged {
        let nbytes = forged.nbytes.to_string();
        let (device, pool) = (Device::host(), host_pool());
        let order = vec![(forged.clone(), 1)];
        let relay = Relay::new(Arc::<Liar>::default(), &device, &pool, order.clone(), std::iter::empty());
        let message = relay.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("\"t\"") && message.contains(&nbytes), "{message}");
        let shared = Shared::new(Arc::<Liar>::default(), &device, &pool, order, []);
        let message = shared.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("\"t\"") && message.contains(&nbytes), "{message}");
    }
    // Nothing is of any shape that has a 0.
    let empty = info("t", &[1 << 40, 0, 1 << 40], 0);
    let shared = Shared::new(Arc::<Liar>::default(), &Device::host(), &host_pool(), [(empty, 1)], []);
    assert_eq!(shared.unwrap().broadcast("t").unwrap().nbytes(), 0);
}

#[test]
fn what_a_group_puts_in_the_place_of_a_tensor_is_found_out() {
    let (_folder, path) = single(&[tensor("other", "U8", &[4], 4)]);
    let other = || {
        let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
        Mutex::new(weights.into_tensors().next())
    };
    let shared = || {
        let group = Arc::new(Liar { instead: other(), ..Liar::default() });
        let info = info("t", &[4, 2], 32);
        Shared::new(group, &Device::host(), &host_pool(), [(info, 1)], []).unwrap()
    };
    for given in [shared().broadcast("t"), shared().shard("t", 1), shared().push("t", 0).map(Option::unwrap)]
    {
        let message = given.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("other") && message.contains("the tensor that"), "{message}");
    }
    let group = Arc::new(Liar { instead: other(), ..Liar::default() });
    let order = vec![(info("t", &[4, 2], 32), 1)];
    let mut relay = Relay::new(group, &Device::host(), &host_pool(), order, std::iter::empty()).unwrap();
    let message = relay.next().unwrap().unwrap_err().to_string();
    assert!(message.contains("other"), "{message}");
}

#[test]
fn a_relay_gives_tensors_of_the_devices_memory_alone() {
    let (_folder, path) = single(&[tensor("t", "F32", &[4, 6], 96)]);
    let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
    let order = vec![(weights.info("t").unwrap().clone(), 0)];
    let (device, local) = (staged_host::device(), weights.into_tensors().map(Ok));
    let pool = Pool::builder(device.memory()).build().unwrap();
    let mut relay = Relay::new(Arc::<Liar>::default(), &device, &pool, order, local).unwrap();
    let message = relay.next().unwrap().map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("memory of host") && message.contains("staged-host"), "{message}");
}

#[test]
fn a_group_whose_size_changes_makes_errors_and_no_panic() {
    let (_folder, path) = single(&[tensor("t", "F32", &[4, 6], 96)]);
    // Whatever a call is told: sizes of 0, 1 and many, one after the other.
    for sizes in
        [vec![2, 0], vec![2, 2, 0], vec![2, 2, 1], vec![2, 2, 0, 0, 0], vec![2, 5, 1, 0], vec![2, 0, 7]]
    {
        let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
        let infos: Vec<_> = weights.iter().map(|view| (view.info().clone(), 0)).collect();
        let group = Arc::new(Liar { sizes: Mutex::new(sizes.into()), ..Liar::default() });
        let made = Shared::new(group, &Device::host(), &host_pool(), infos, weights.into_tensors());
        if let Ok(shared) = made {
            for dim in [0, 1, 2] {
                let _ = shared.shard("t", dim);
                let _ = shared.columns(["t", "t"], dim);
            }
            let _ = shared.push("t", 1);
            let _ = shared.broadcast("t");
        }
    }
    for sizes in [vec![0], vec![2, 0], vec![2, 3, 0, 1]] {
        let liar = Liar { sizes: Mutex::new(sizes.into()), ..Liar::default() };
        let _ = group::agree(&liar, &Device::host(), &host_pool(), Ok(()));
        let _ = group::check(&liar, &Device::host());
    }
}

#[test]
fn parts_of_tensors_without_elements_do_not_overflow() {
    let (_folder, path) = single(&[
        tensor("t", "F32", &[0, 1 << 40, 1 << 40], 0),
        tensor("row", "F32", &[1, 1 << 62, 0, 1 << 62], 0),
    ]);
    let weights = Loader::new(Device::host()).files([path]).load().unwrap();
    let part = weights.tensor("t").unwrap().narrow(0, 0, 0).unwrap();
    assert_eq!((part.shape(), part.nbytes()), (&[0, 1 << 40, 1 << 40][..], 0));
    let part = weights.tensor("row").unwrap().narrow(1, 5, 1 << 50).unwrap();
    assert_eq!((part.shape(), part.nbytes()), (&[1, 1 << 50, 0, 1 << 62][..], 0));
    for (name, dim) in [("t", 1), ("row", 3)] {
        // What has more than one index before it is no single run, elements or not.
        let _ = weights.tensor(name).unwrap().narrow(dim, 0, 1);
    }
    for name in ["t", "row"] {
        let _ = weights.tensor(name).unwrap().reinterpret(DType::U8);
    }
}

#[cfg(feature = "dlpack")]
mod handed_over {
    use tensorhold::allocator::{Fence, OrderedStream};

    use super::*;

    /// A stream of no device, whose fences pass when they are told to.
    #[derive(Debug)]
    struct Still;

    struct Never;

    // SAFETY: O1: it never says that it has passed.
    unsafe impl Fence for Never {
        fn has_passed(&self) -> std::result::Result<bool, MemoryError> {
            Ok(false)
        }
        fn wait(&self) -> std::result::Result<(), MemoryError> {
            Err("it does not pass".into())
        }
    }

    // SAFETY: O2: there is one of it, and no work on it. O3: it refuses to wait.
    unsafe impl OrderedStream for Still {
        fn id(&self) -> u64 {
            u64::MAX
        }
        fn check(&self) -> std::result::Result<(), MemoryError> {
            Ok(())
        }
        fn record(&self) -> std::result::Result<Arc<dyn Fence>, MemoryError> {
            Ok(Arc::new(Never))
        }
        fn wait_for(&self, fence: &Arc<dyn Fence>) -> std::result::Result<(), MemoryError> {
            fence.wait()
        }
    }

    #[test]
    fn a_tensor_in_use_on_a_stream_is_handed_over_for_reading_alone() {
        use tensorhold::dlpark::DlpackFlags;
        let (_folder, path) = single(&three());
        let sole = || {
            let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
            weights.into_tensors().next().unwrap()
        };
        assert!(sole().into_dlpack().unwrap().flags().is_empty());
        let recorded = sole();
        recorded.use_on(&Still).unwrap().end().unwrap();
        assert!(recorded.into_dlpack().unwrap().flags().contains(DlpackFlags::READ_ONLY));
        let forgotten = sole();
        mem::forget(forgotten.use_on(&Still).unwrap());
        assert!(forgotten.into_dlpack().unwrap().flags().contains(DlpackFlags::READ_ONLY));
    }
}

/// A staged device whose copies back to the host are made when the test says so, and which says of none whether it has ended.
#[derive(Debug)]
struct Unsure {
    driver: Arc<dyn Driver>,
    /// Copies panic when they have been enqueued.
    panics: bool,
    enqueued: Arc<Mutex<Vec<Enqueued>>>,
}

#[derive(Debug)]
struct Enqueued {
    to: *mut u8,
    from: *const u8,
    bytes: u64,
}

// SAFETY: whoever enqueued the copy promises both ranges until it has ended, on whatever thread.
unsafe impl Send for Enqueued {}

// SAFETY: Q1, Q2: as the driver that it wraps. Q3: the test makes what is enqueued while its source and target live. Q4: its kind promises nothing.
unsafe impl Driver for Unsure {
    fn name(&self) -> &str {
        "unsure"
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }
    fn memory(&self) -> Arc<dyn Memory> {
        self.driver.memory()
    }
    fn staging_memory(&self) -> Arc<dyn Memory> {
        self.driver.staging_memory()
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        let (stream, enqueued) = (self.driver.stream()?, Arc::clone(&self.enqueued));
        Ok(Box::new(UnsureStream { stream, panics: self.panics, enqueued }))
    }
}

struct UnsureStream {
    stream: Box<dyn Stream>,
    panics: bool,
    enqueued: Arc<Mutex<Vec<Enqueued>>>,
}

// SAFETY: T1 to T3: as the stream that it wraps; `synchronize` fails while a copy is not made.
unsafe impl Stream for UnsureStream {
    unsafe fn copy_to_device(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.stream.copy_to_device(to, from, bytes) }
    }
    unsafe fn copy_to_host(&self, to: *mut u8, from: *const u8, bytes: u64) -> Result<()> {
        self.enqueued.lock().unwrap().push(Enqueued { to, from, bytes });
        assert!(!self.panics, "a stream panics");
        Ok(())
    }
    fn record(&self, event: usize) -> Result<()> {
        self.stream.record(event)
    }
    fn wait(&self, event: usize) -> Result<()> {
        self.stream.wait(event)
    }
    fn has_passed(&self, event: usize) -> Result<bool> {
        self.stream.has_passed(event)
    }
    fn synchronize(&self) -> Result<()> {
        if self.enqueued.lock().unwrap().is_empty() {
            return self.stream.synchronize();
        }
        Err(Error::Device {
            device: "unsure".into(),
            operation: "synchronize",
            detail: "it does not say whether copies have ended".into(),
            remedy: "try again".into(),
        })
    }
}

#[test]
fn a_buffer_whose_copy_may_still_run_is_not_freed() {
    // So long that a buffer which is freed is unmapped, and a late copy to it is a fault.
    let tensors = [bytes_tensor("t", 64 << 20)];
    let (_folder, path) = single(&tensors);
    for panics in [false, true] {
        let enqueued = Arc::<Mutex<Vec<Enqueued>>>::default();
        let driver = Arc::clone(staged_host::device().driver());
        let driver = Arc::new(Unsure { driver, panics, enqueued: Arc::clone(&enqueued) });
        let weights = Loader::new(Device::from_driver(driver)).files([&path]).load().unwrap();
        let read = || weights.view("t").unwrap().to_host();
        match catch_unwind(AssertUnwindSafe(read)) {
            Ok(read) => assert!(read.unwrap_err().to_string().contains("whether copies have ended")),
            Err(_) => assert!(panics),
        }
        for Enqueued { to, from, bytes } in mem::take(&mut *enqueued.lock().unwrap()) {
            // SAFETY: what enqueued it keeps both ranges until it has ended, which is now.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes as usize) };
        }
    }
}

/// Host memory that panics when it has been asked for its id too often.
#[derive(Debug, Default)]
struct Weary {
    pages: HostMemory,
    asked: AtomicUsize,
}

// SAFETY: as HostMemory, whose ids it has.
unsafe impl Memory for Weary {
    fn name(&self) -> &str {
        self.pages.name()
    }

    fn id(&self) -> MemoryId {
        assert!(self.asked.fetch_add(1, Ordering::Relaxed) < 100, "the test's memory has said who it is");
        self.pages.id()
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn is_used_by_devices(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> std::result::Result<RawRegion, MemoryError> {
        self.pages.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> std::result::Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.pages.release(region) }
    }

    fn synchronize(&self) -> std::result::Result<(), MemoryError> {
        Ok(())
    }
}

/// While tensors are made, readers write to their memory: no code of others runs between the two.
#[test]
fn a_memory_is_not_asked_who_it_is_for_each_tensor() {
    let tensors: Vec<_> = (0..5000).map(|n| bytes_tensor(&format!("t{n}"), 20_000)).collect();
    let (_folder, path) = single(&tensors);
    let pool = pool(Weary::default());
    let weights = Loader::new(Device::host()).files([&path]).pool(&pool).load().unwrap();
    support::assert_holds(&weights, &tensors);
}
