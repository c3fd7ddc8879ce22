//! A pool calls others' code without a lock: fences, streams, memories and callbacks may come back to the pool that asks them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tensorhold_allocator::{
    Bases, Error, Fence, Fragment, HostMemory, Memory, MemoryError, OrderedStream, PartedMemory, Pool,
    RawRegion, RegionParts, Request, Sharding,
};

/// Uses a pool as any thread may.
#[derive(Default)]
struct Caller {
    pool: Mutex<Option<Pool>>,
    /// Dropped in a call.
    spare: Mutex<Vec<Fragment>>,
    calls: AtomicUsize,
}

impl Caller {
    fn call(&self) {
        let Some(pool) = self.pool.lock().unwrap().clone() else { return };
        self.calls.fetch_add(1, Ordering::Relaxed);
        let spare = self.spare.lock().unwrap().pop();
        drop(spare);
        assert!(pool.stats().reserved_bytes > 0);
        assert_eq!(pool.snapshot().pool, "reentry");
        drop(pool.place("nested", Request::new(16, 16)));
        drop(pool.place("large", Request::new(1 << 20, 16)));
        pool.trim_to(u64::MAX);
    }
}

/// Host memory that says that it is a device's, and calls.
#[derive(Default)]
struct Device {
    host: HostMemory,
    caller: Arc<Caller>,
    refuse: AtomicBool,
    /// Panics once when it is asked to reserve a region.
    panic: AtomicBool,
}

// SAFETY: HostMemory's; nothing works on it.
unsafe impl Memory for Device {
    fn name(&self) -> &str {
        self.caller.call();
        "reentry"
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        assert!(!self.panic.swap(false, Ordering::Relaxed), "the test's memory panics");
        match self.refuse.load(Ordering::Relaxed) {
            true => Err("full".into()),
            false => self.host.reserve(bytes, align),
        }
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.host.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        self.caller.call();
        Ok(())
    }

    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Ok(self)
    }
}

/// What a memory says that calls when it is shown.
#[derive(Debug)]
struct Refusal(Mutex<Option<Bases>>);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bases = self.0.lock().unwrap().take();
        if let Some(bases) = bases {
            let _ = format!("{:?}", bases.wait_for(0, 0));
        }
        f.write_str("refused")
    }
}

impl std::error::Error for Refusal {}

static REFUSED: Mutex<Option<Bases>> = Mutex::new(None);

// SAFETY: HostMemory's.
unsafe impl PartedMemory for Device {
    fn unit(&self) -> u64 {
        self.host.unit()
    }

    fn reserve_range(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.host.reserve_range(bytes, align)
    }

    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.host.release_range(range) }
    }

    unsafe fn commit(&self, part: RawRegion) -> Result<(), MemoryError> {
        self.caller.call();
        let refused = REFUSED.lock().unwrap().take();
        if let Some(bases) = refused {
            return Err(Box::new(Refusal(Mutex::new(Some(bases)))));
        }
        // SAFETY: passed on.
        unsafe { self.host.commit(part) }
    }

    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError> {
        self.caller.call();
        // SAFETY: passed on.
        unsafe { self.host.decommit(part) }
    }
}

/// A stream whose work ends when it is told to, and a fence of it, which call whenever they are asked, and dropped.
struct Stream {
    caller: Arc<Caller>,
    done: Arc<AtomicBool>,
}

struct Calling {
    caller: Arc<Caller>,
    done: Arc<AtomicBool>,
}

// SAFETY: O1: nothing works on the memory.
unsafe impl Fence for Calling {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        self.caller.call();
        Ok(self.done.load(Ordering::Relaxed))
    }

    fn wait(&self) -> Result<(), MemoryError> {
        self.caller.call();
        Ok(())
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.caller.call();
    }
}

// SAFETY: O2, O3: nothing works on the memory; there is one stream.
unsafe impl OrderedStream for Stream {
    fn id(&self) -> u64 {
        self.caller.call();
        1
    }

    fn check(&self) -> Result<(), MemoryError> {
        self.caller.call();
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        self.caller.call();
        Ok(Arc::new(Calling { caller: Arc::clone(&self.caller), done: Arc::clone(&self.done) }))
    }

    fn wait_for(&self, _: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        self.caller.call();
        Ok(())
    }
}

struct Scene {
    pool: Pool,
    stream: Stream,
    memory: Arc<Device>,
}

/// Runs a scene on a thread of its own, which has to come back.
fn with(sharding: Sharding, run: impl FnOnce(&Scene) + Send + 'static) {
    let (ended, ends) = mpsc::channel();
    let helper = thread::spawn(move || {
        let caller = Arc::new(Caller::default());
        let memory = Arc::new(Device { caller: Arc::clone(&caller), ..Device::default() });
        let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>)
            .name("reentry")
            .sharding(sharding)
            .region_parts(RegionParts::Auto)
            .build()
            .unwrap();
        let _keep = pool.place("keep", Request::new(256, 256)).unwrap();
        let spare = (0..64).map(|_| pool.place("spare", Request::new(256, 256)).unwrap());
        *caller.spare.lock().unwrap() = spare.collect();
        *caller.pool.lock().unwrap() = Some(pool.clone());
        let stream = Stream { caller: Arc::clone(&caller), done: Arc::default() };
        let scene = Scene { pool, stream, memory };
        run(&scene);
        scene.pool.trim();
        assert!(caller.calls.load(Ordering::Relaxed) > 0);
        // Or the pool would hold itself.
        drop(caller.pool.lock().unwrap().take());
        drop(caller.spare.lock().unwrap().drain(..).collect::<Vec<_>>());
        let _ = ended.send(());
    });
    match ends.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a call back into the pool hangs"),
        // Or it has panicked.
        _ => helper.join().unwrap(),
    }
}

fn each(run: impl Fn(&Scene) + Clone + Send + 'static) {
    for sharding in [Sharding::Never, Sharding::Always] {
        with(sharding, run.clone());
    }
}

fn used(scene: &Scene) -> Fragment {
    let fragment = scene.pool.place("used", Request::new(4096, 256)).unwrap();
    fragment.use_on(&scene.stream).unwrap().end().unwrap();
    fragment
}

#[test]
fn fences_that_pass_come_back() {
    each(|scene| {
        drop(used(scene));
        scene.stream.done.store(true, Ordering::Relaxed);
        scene.pool.trim();
    });
}

#[test]
fn fences_that_are_waited_for_come_back() {
    each(|scene| {
        drop(used(scene));
        scene.pool.trim();
    });
}

#[test]
fn fences_that_no_one_needs_come_back_when_they_are_dropped() {
    each(|scene| {
        for _ in 0..100 {
            // The memory is synchronized instead.
            let fragment = used(scene);
            fragment.view();
            drop(fragment);
            // Taken back by a placement, if the reaper is not quicker.
            drop(scene.pool.place("next", Request::new(256, 256)).unwrap());
        }
        let mut fragment = used(scene);
        scene.stream.done.store(true, Ordering::Relaxed);
        assert!(fragment.get_mut().is_some());
    });
}

#[test]
fn streams_that_are_placed_on_come_back() {
    each(|scene| {
        let filled: Vec<_> =
            (0..64).filter_map(|_| scene.pool.place("fill", Request::new(1 << 20, 256)).ok()).collect();
        scene.memory.refuse.store(true, Ordering::Relaxed);
        drop(used(scene));
        for _ in 0..3 {
            let placed = scene.pool.place_on(&scene.stream, "again", Request::new(4096, 256)).unwrap();
            placed.use_on(&scene.stream).unwrap().end().unwrap();
        }
        drop(filled);
    });
}

#[test]
fn parts_that_are_brought_up_refused_and_given_back_come_back() {
    each(|scene| {
        let layout = scene.pool.lay_out([Request::new(1 << 20, 256); 3]).unwrap();
        let labels = ["a", "b", "c"].map(Into::into);
        drop(scene.pool.place_planned(&layout, &labels).unwrap());
        scene.pool.trim();
        let reserved = scene.pool.reserve_planned(&layout, "refused").unwrap();
        *REFUSED.lock().unwrap() = Some(reserved.bases());
        reserved.bases().bring_up(|| scene.pool.stats().reserved_bytes == 0);
        assert!(matches!(reserved.bases().wait_for(0, 1), Err(Error::OutOfMemory { .. })));
    });
}

#[test]
fn whoever_makes_room_under_pressure_comes_back() {
    let (ended, ends) = mpsc::channel();
    thread::spawn(move || {
        let held: Arc<Mutex<(Option<Pool>, Vec<Fragment>)>> = Arc::default();
        let theirs = Arc::clone(&held);
        let pool = Pool::builder(Arc::new(HostMemory::new()))
            .limit_bytes(1 << 20)
            .on_pressure(move |refusal, _| {
                let (pool, fragment) = {
                    let mut held = theirs.lock().unwrap();
                    (held.0.clone(), held.1.pop())
                };
                assert!(matches!(refusal, Error::LimitReached { .. }));
                let stats = pool.map(|pool| (pool.stats(), pool.trim()));
                assert!(stats.is_some());
                if fragment.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .build()
            .unwrap();
        let all = pool.place("all", Request::new(1 << 20, 256)).unwrap();
        *held.lock().unwrap() = (Some(pool.clone()), vec![all]);
        drop(pool.place("more", Request::new(1 << 20, 256)).unwrap());
        held.lock().unwrap().0 = None;
        let _ = ended.send(());
    });
    assert_eq!(ends.recv_timeout(Duration::from_secs(60)), Ok(()));
}

#[test]
fn a_memory_that_panics_leaves_the_pool_as_it_was() {
    with(Sharding::Never, |scene| {
        scene.memory.panic.store(true, Ordering::Relaxed);
        let large = || scene.pool.place("large", Request::new(100 << 20, 256));
        let before = scene.pool.stats().reserved_bytes;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(large));
        assert!(panicked.is_err());
        assert_eq!(scene.pool.stats().reserved_bytes, before);
        // No one waits for the region that does not come.
        scene.memory.refuse.store(true, Ordering::Relaxed);
        assert!(matches!(large(), Err(Error::OutOfMemory { .. })));
        scene.memory.refuse.store(false, Ordering::Relaxed);
        assert!(large().is_ok());
        drop(used(scene));
    });
}

/// Panics when it is asked.
struct Panicking;

// SAFETY: O1: it never says that it has passed.
unsafe impl Fence for Panicking {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        panic!("the test's fence panics")
    }

    fn wait(&self) -> Result<(), MemoryError> {
        panic!("the test's fence panics")
    }
}

struct PanickingStream;

// SAFETY: O2, O3: nothing works on the memory.
unsafe impl OrderedStream for PanickingStream {
    fn id(&self) -> u64 {
        2
    }

    fn check(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        Ok(Arc::new(Panicking))
    }

    fn wait_for(&self, _: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        Ok(())
    }
}

#[test]
fn after_a_fence_has_panicked_no_one_waits_for_the_reaper() {
    with(Sharding::Never, |scene| {
        let fragment = scene.pool.place("used", Request::new(4096, 256)).unwrap();
        let address = fragment.as_ptr();
        // SAFETY: nothing uses it.
        unsafe { fragment.assume_unused() };
        fragment.use_on(&PanickingStream).unwrap().end().unwrap();
        drop(fragment);
        scene.pool.trim();
        // Whether its use has ended is not known: it is not used again (I1).
        let other = scene.pool.place("other", Request::new(4096, 256)).unwrap();
        assert_ne!(other.as_ptr(), address);
        drop(used(scene));
    });
}
