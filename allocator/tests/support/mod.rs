//! A device that runs nothing by itself: tests say how far each of its streams has come.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, mpsc};

use tensorhold_allocator::{Fence, HostMemory, Memory, MemoryError, MemoryId, OrderedStream, RawRegion};

/// Memory that the CPU is told not to touch, and that counts how often it is synchronized.
#[derive(Default)]
pub struct DeviceMemory {
    host: HostMemory,
    pub synchronized: AtomicUsize,
    pub fail_synchronize: AtomicBool,
    pub reserved: AtomicUsize,
    /// How often a region was reserved, in all.
    pub reservations: AtomicUsize,
}

// SAFETY: HostMemory's. M3: no work on it is simulated but that of streams, which tests wait for.
unsafe impl Memory for DeviceMemory {
    fn name(&self) -> &str {
        "device"
    }

    fn id(&self) -> MemoryId {
        static ID: LazyLock<MemoryId> = LazyLock::new(MemoryId::new);
        *ID
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        self.reservations.fetch_add(1, Ordering::Relaxed);
        self.host.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        self.reserved.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.host.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        self.synchronized.fetch_add(1, Ordering::Relaxed);
        if self.fail_synchronize.load(Ordering::Relaxed) { Err("the device is lost".into()) } else { Ok(()) }
    }
}

/// How far other streams have come, at least, before something begins: by stream.
pub type Clock = BTreeMap<u64, u64>;

/// A stream: work is a number that counts up, done up to where the test has let it come.
#[derive(Default)]
pub struct Stream {
    id: u64,
    state: Mutex<State>,
    moved: Condvar,
    pub captured: AtomicBool,
    /// Told when someone waits for a fence of this stream.
    pub waited_for: Mutex<Option<mpsc::Sender<()>>>,
}

#[derive(Debug, Default)]
struct State {
    enqueued: u64,
    done: u64,
    /// What the work enqueued next comes after.
    after: Clock,
    failed: bool,
}

impl Stream {
    pub fn new() -> Arc<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { id: LAST.fetch_add(1, Ordering::Relaxed) + 1, ..Self::default() })
    }

    /// Enqueues work, and says which.
    pub fn enqueue(&self) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.enqueued += 1;
        state.enqueued
    }

    /// All that has been enqueued ends.
    pub fn finish(&self) {
        let mut state = self.state.lock().unwrap();
        state.done = state.enqueued;
        drop(state);
        self.moved.notify_all();
    }

    /// The streams whose work this one's comes after.
    pub fn waits_for(&self) -> Vec<u64> {
        self.state.lock().unwrap().after.keys().copied().collect()
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// The work so far has failed: its fences can no longer be asked.
    pub fn fail(&self) {
        self.state.lock().unwrap().failed = true;
        self.moved.notify_all();
    }

    pub fn is_done(&self, work: u64) -> bool {
        self.state.lock().unwrap().done >= work
    }

    /// Whether what is enqueued next comes after this work of a stream.
    pub fn comes_after(&self, stream: &Stream, work: u64) -> bool {
        let after = |clock: &Clock| clock.get(&stream.id).is_some_and(|&at| at >= work);
        self.id == stream.id || stream.is_done(work) || after(&self.state.lock().unwrap().after)
    }
}

/// A fence, for a test.
pub struct At {
    stream: Arc<Stream>,
    work: u64,
    after: Clock,
}

// SAFETY: O1: it has passed when the stream has done that work.
unsafe impl Fence for At {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        let state = self.stream.state.lock().unwrap();
        if state.failed { Err("the work failed".into()) } else { Ok(state.done >= self.work) }
    }

    fn wait(&self) -> Result<(), MemoryError> {
        if let Some(told) = self.stream.waited_for.lock().unwrap().as_ref() {
            let _ = told.send(());
        }
        let state = self.stream.state.lock().unwrap();
        let pending = |state: &mut State| !state.failed && state.done < self.work;
        let state = self.stream.moved.wait_while(state, pending).unwrap();
        if state.failed { Err("the work failed".into()) } else { Ok(()) }
    }
}

/// A handle of a stream, as a pool wants it.
pub struct Handle(pub Arc<Stream>);

// SAFETY: O2: ids count up; work is done in its order. O3: `comes_after` knows what was waited for.
unsafe impl OrderedStream for Handle {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn check(&self) -> Result<(), MemoryError> {
        if self.0.captured.load(Ordering::Relaxed) { Err("it is being captured".into()) } else { Ok(()) }
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        self.check()?;
        let state = self.0.state.lock().unwrap();
        let (work, after) = (state.enqueued, state.after.clone());
        drop(state);
        Ok(Arc::new(At { stream: Arc::clone(&self.0), work, after }))
    }

    fn wait_for(&self, fence: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        let fence: &dyn Any = &**fence;
        let at = fence.downcast_ref::<At>().ok_or("a fence of another kind")?;
        let mut state = self.0.state.lock().unwrap();
        for (&stream, &work) in at.after.iter().chain([(&at.stream.id, &at.work)]) {
            let known = state.after.entry(stream).or_default();
            *known = work.max(*known);
        }
        // The waiting is work itself: a fence behind it passes after what it waits for.
        state.enqueued += 1;
        Ok(())
    }
}
