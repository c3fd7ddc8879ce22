//! Facts about the count of owners and what comes of it, over memory of the standard allocator: so that Miri can follow each byte
//! (`scripts/sanitize miri`). Threads meet by chance here; Miri tries several orders, and `tests/loom` all that matter.

use std::alloc::{self, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;

use tensorhold_allocator::{
    Fence, Fragment, Memory, MemoryError, MemoryId, OrderedStream, PartedMemory, Pool, PoolBuilder,
    RawRegion, RegionParts, Request, Sharding,
};

/// Regions from the standard allocator, zeroed, and how many are out.
#[derive(Default)]
struct Heap {
    regions: AtomicUsize,
    used_by_devices: bool,
}

const REGION: u64 = 4096;

const ALIGN: usize = 4096;

impl Heap {
    fn layout(bytes: u64) -> Result<Layout, MemoryError> {
        Ok(Layout::from_size_align(bytes as usize, ALIGN)?)
    }
}

// SAFETY: M1: the allocator's promise, for alignments up to ALIGN. M2: zeroed. M3: no device works on it. M4: a constant.
unsafe impl Memory for Heap {
    fn name(&self) -> &str {
        "heap"
    }

    fn id(&self) -> MemoryId {
        static ID: LazyLock<MemoryId> = LazyLock::new(MemoryId::new);
        *ID
    }

    fn is_host_accessible(&self) -> bool {
        !self.used_by_devices
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        assert!(bytes > 0 && align <= ALIGN as u64);
        // SAFETY: not of size 0.
        let base = unsafe { alloc::alloc_zeroed(Self::layout(bytes)?) };
        let base = NonNull::new(base).ok_or("no memory is left")?;
        self.regions.fetch_add(1, Ordering::Relaxed);
        Ok(RawRegion { base, bytes })
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        self.regions.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: by the caller's promise it came from `reserve`, with this layout, and nothing touches it any more.
        unsafe { alloc::dealloc(region.base.as_ptr(), Self::layout(region.bytes)?) };
        Ok(())
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn is_used_by_devices(&self) -> bool {
        self.used_by_devices
    }

    fn parted(&self) -> Result<&dyn PartedMemory, MemoryError> {
        Ok(self)
    }
}

// SAFETY: V1, V2: the memory of the range is there all the time, and its bytes have values.
unsafe impl PartedMemory for Heap {
    fn unit(&self) -> u64 {
        512
    }

    fn reserve_range(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.reserve(bytes.next_multiple_of(512), align)
    }

    unsafe fn release_range(&self, range: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.release(range) }
    }

    unsafe fn commit(&self, _: RawRegion) -> Result<(), MemoryError> {
        Ok(())
    }

    unsafe fn decommit(&self, part: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: nothing touches it any more, by the caller's promise: a byte of it that is read or written all the same is a race.
        unsafe { part.base.as_ptr().write_bytes(0, part.bytes as usize) };
        Ok(())
    }
}

fn builder(heap: &Arc<Heap>) -> PoolBuilder {
    Pool::builder(Arc::clone(heap) as Arc<dyn Memory>).region_bytes(REGION).limit_bytes(REGION)
}

fn pool() -> (Arc<Heap>, Pool) {
    let heap = Arc::new(Heap::default());
    let pool = builder(&heap).build().unwrap();
    (heap, pool)
}

fn place(pool: &Pool, bytes: u64, value: u8) -> Fragment {
    let mut fragment = pool.place("t", Request::new(bytes, 256)).unwrap();
    fragment.as_bytes_mut().unwrap().fill(value);
    fragment
}

fn assert_full_of(fragment: &Fragment, value: u8) {
    assert!(fragment.as_bytes().unwrap().iter().all(|byte| *byte == value));
}

fn assert_empty(heap: &Heap, pool: Pool) {
    pool.trim();
    assert_eq!((pool.stats().fragments, pool.stats().reserved_bytes), (0, 0));
    assert_eq!(heap.regions.load(Ordering::Relaxed), 0);
    pool.close();
}

#[test]
fn owners_and_slices_on_several_threads_read_what_the_only_owner_wrote() {
    let (heap, pool) = pool();
    let fragment = place(&pool, 1000, 7);
    let readers = [(0, 1000), (256, 100), (999, 1)].map(|(offset, bytes)| {
        let part = fragment.slice(offset, bytes).unwrap();
        thread::spawn(move || {
            assert_full_of(&part, 7);
            assert_eq!(part.clone().len(), bytes);
            // SAFETY: host memory.
            assert!(unsafe { part.view().as_bytes() }.iter().all(|byte| *byte == 7));
        })
    });
    drop(fragment);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_empty(&heap, pool);
}

#[test]
fn a_writer_waits_until_all_others_have_gone() {
    let (heap, pool) = pool();
    let mut fragment = place(&pool, 64, 1);
    let readers = [(); 2].map(|()| {
        let clone = fragment.clone();
        thread::spawn(move || assert_full_of(&clone, 1))
    });
    while fragment.as_bytes_mut().map(|bytes| bytes.fill(2)).is_none() {
        thread::yield_now();
    }
    assert_full_of(&fragment, 2);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    drop(fragment);
    assert_empty(&heap, pool);
}

/// There is room for one at a time.
#[test]
fn a_range_is_written_anew_after_its_last_owner_has_gone_on_whatever_thread() {
    for sharding in [Sharding::Never, Sharding::Always] {
        let heap = Arc::new(Heap::default());
        let pool = builder(&heap).sharding(sharding).build().unwrap();
        let threads = [1, 2, 3].map(|value| {
            let pool = pool.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    // Another has it, or has just dropped it.
                    let Ok(mut all) = pool.place("all", Request::new(REGION, 256)) else { continue };
                    all.as_bytes_mut().unwrap()[..16].fill(value);
                    let clone = all.clone();
                    let other =
                        thread::spawn(move || assert_eq!(clone.as_bytes().unwrap()[..16], [value; 16]));
                    drop(all);
                    other.join().unwrap();
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_empty(&heap, pool);
    }
}

#[test]
fn small_fragments_of_threads_that_place_at_once_stay_apart() {
    let heap = Arc::new(Heap::default());
    let builder = Pool::builder(Arc::clone(&heap) as Arc<dyn Memory>).region_bytes(64 << 10);
    let pool = builder.sharding(Sharding::Always).build().unwrap();
    let first = place(&pool, 256, 9);
    let threads = [1, 2].map(|value| {
        let pool = pool.clone();
        thread::spawn(move || {
            let held: Vec<Fragment> = (0..6).map(|_| place(&pool, 300, value)).collect();
            drop(place(&pool, 100, value));
            held
        })
    });
    let held = threads.map(|thread| thread.join().unwrap());
    for (fragments, value) in held.iter().zip([1, 2]) {
        fragments.iter().for_each(|fragment| assert_full_of(fragment, value));
    }
    // The spans dissolve for it.
    let large = place(&pool, 60 << 10, 3);
    held.iter().flatten().for_each(drop_and_look);
    drop((first, held, large));
    assert_empty(&heap, pool);
}

fn drop_and_look(fragment: &Fragment) {
    let clone = fragment.clone();
    assert!(!clone.release() && fragment.owners() == 1);
}

#[test]
fn what_outlives_its_pool_is_whole_and_takes_the_region_with_it() {
    let (heap, pool) = pool();
    let (one, two) = (place(&pool, 100, 1), place(&pool, 100, 2));
    let closed = pool.close();
    assert_eq!(closed.held.len(), 2);
    let other = thread::spawn(move || assert_full_of(&one, 1));
    assert_full_of(&two, 2);
    drop(two);
    other.join().unwrap();
    while heap.regions.load(Ordering::Relaxed) > 0 {
        thread::yield_now();
    }
}

#[test]
fn batches_are_whole_in_regions_and_in_parts() {
    for parts in [RegionParts::Whole, RegionParts::Require] {
        let heap = Arc::new(Heap::default());
        let pool = builder(&heap).region_parts(parts).build().unwrap();
        let layout = pool.lay_out([700, 0, 1500, 10].map(|bytes| Request::new(bytes, 256))).unwrap();
        let mut placed = pool.place_planned(&layout, &["a", "b", "c", "d"].map(Arc::from)).unwrap();
        for (fragment, value) in placed.fragments.iter_mut().zip(1..) {
            fragment.as_bytes_mut().unwrap().fill(value);
        }
        let third = placed.fragments.swap_remove(2);
        drop(placed);
        pool.trim();
        assert_full_of(&third, 3);
        assert_eq!(pool.stats().fragments, 1);
        drop(third);
        assert_empty(&heap, pool);
    }
}

/// A stream whose work a thread has done, or not.
#[derive(Default)]
struct Stream {
    done: Mutex<bool>,
    ends: Condvar,
    asked: AtomicBool,
}

struct End(Arc<Stream>);

// SAFETY: O1: it has passed when the work is done, of which there is one piece.
unsafe impl Fence for End {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        self.0.asked.store(true, Ordering::Relaxed);
        Ok(*self.0.done.lock().unwrap())
    }

    fn wait(&self) -> Result<(), MemoryError> {
        self.0.asked.store(true, Ordering::Relaxed);
        drop(self.0.ends.wait_while(self.0.done.lock().unwrap(), |done| !*done).unwrap());
        Ok(())
    }
}

struct Handle(Arc<Stream>);

// SAFETY: O2: there is one stream in each test. O3: nothing is enqueued after `wait_for`.
unsafe impl OrderedStream for Handle {
    fn id(&self) -> u64 {
        1
    }

    fn check(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        Ok(Arc::new(End(Arc::clone(&self.0))))
    }

    fn wait_for(&self, _: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        Err("there is one stream".into())
    }
}

#[test]
fn a_range_that_work_uses_is_released_after_the_work() {
    let heap = Arc::new(Heap { used_by_devices: true, ..Heap::default() });
    let pool = builder(&heap).build().unwrap();
    let fragment = pool.place("t", Request::new(REGION, 256)).unwrap();
    let stream = Handle(Arc::default());
    let guard = fragment.use_on(&stream).unwrap();
    let at = RawRegion { base: NonNull::new(guard.as_ptr().cast_mut()).unwrap(), bytes: guard.len() };
    guard.end().unwrap();
    let device = {
        let stream = Arc::clone(&stream.0);
        thread::spawn(move || {
            while !stream.asked.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // All of it, which is Send; its parts are not.
            let at = at;
            // SAFETY: I1: the use has been recorded and has not ended.
            unsafe { at.base.as_ptr().write_bytes(1, at.bytes as usize) };
            *stream.done.lock().unwrap() = true;
            stream.ends.notify_all();
        })
    };
    drop(fragment);
    assert_empty(&heap, pool);
    device.join().unwrap();
}
