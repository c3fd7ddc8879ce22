//! Facts about pools, fragments and the reaper.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tensorhold_allocator::{
    Error, Fragment, HostMemory, Memory, MemoryError, MemoryId, Placed, Pool, RawRegion, Request,
};

/// Host memory that notes who calls it, and fails or waits on demand.
#[derive(Default)]
struct Watched {
    host: HostMemory,
    callers: Mutex<Vec<ThreadId>>,
    reserved: AtomicUsize,
    fail_reserve: AtomicBool,
    fail_synchronize: AtomicBool,
    fail_release: AtomicBool,
    /// When set, `synchronize` says that it has begun and waits to be let go.
    gate: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

// SAFETY: HostMemory's; regions that fail to be released stay mapped.
unsafe impl Memory for Watched {
    fn name(&self) -> &str {
        "watched"
    }

    fn id(&self) -> MemoryId {
        self.host.id()
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        if self.fail_reserve.load(Ordering::Relaxed) {
            return Err("no more regions".into());
        }
        self.reserved.fetch_add(1, Ordering::Relaxed);
        self.host.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        self.callers.lock().unwrap().push(thread::current().id());
        if self.fail_release.load(Ordering::Relaxed) {
            return Err("release refused".into());
        }
        self.reserved.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.host.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        self.callers.lock().unwrap().push(thread::current().id());
        if let Some((begun, go)) = self.gate.lock().unwrap().take() {
            begun.send(()).unwrap();
            go.recv().unwrap();
        }
        if self.fail_synchronize.load(Ordering::Relaxed) { Err("the device is lost".into()) } else { Ok(()) }
    }
}

fn watched() -> (Arc<Watched>, Pool) {
    let memory = Arc::new(Watched::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).build().unwrap();
    (memory, pool)
}

fn host() -> Pool {
    Pool::new(HostMemory::new()).unwrap()
}

fn place(pool: &Pool, label: &str, bytes: u64) -> Fragment {
    pool.place(label, Request::new(bytes, 256)).unwrap()
}

fn place_batch(pool: &Pool, sizes: &[u64]) -> Result<Placed, Error> {
    let requests: Vec<Request> = sizes.iter().map(|&size| Request::new(size, 256)).collect();
    let labels: Vec<Arc<str>> = (0..sizes.len()).map(|n| format!("t{n}").into()).collect();
    pool.place_planned(&pool.lay_out(&requests)?, &labels)
}

fn assert_empty(pool: &Pool) {
    pool.trim();
    let stats = pool.stats();
    let all = (stats.reserved_bytes, stats.live_bytes, stats.free_bytes, stats.fragments, stats.regions);
    assert_eq!(all, (0, 0, 0, 0, 0));
}

#[test]
fn a_planned_batch_is_one_region_of_just_its_size() {
    let pool = host();
    let sizes = [1000, 0, 256, 5000, 1];
    let placed = place_batch(&pool, &sizes).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.regions, stats.fragments, stats.live_bytes), (1, 5, 6257));
    assert_eq!(stats.reserved_bytes, 1024 + 256 + 5120 + 1);
    assert_eq!((stats.free_bytes, stats.largest_free_bytes), (0, 0));
    let offsets: Vec<_> =
        [0, 2, 3, 4].map(|n| placed.fragments[n].as_ptr() as u64 - placed.bases[0].as_ptr() as u64).into();
    assert_eq!(offsets, [0, 1024, 1280, 6400]);
    drop(placed);
    assert_empty(&pool);
    assert_eq!(pool.stats().high_water_bytes, 6257);
}

#[test]
fn what_a_batch_gives_back_piece_by_piece_is_used_again() {
    let pool = host();
    let mut placed = place_batch(&pool, &[4096; 8]).unwrap();
    let address = placed.fragments[3].as_ptr();
    drop(placed.fragments.drain(3..5));
    pool.trim();
    assert_eq!(pool.stats().largest_free_bytes, 8192);
    let again = place(&pool, "again", 8192);
    assert_eq!((again.as_ptr(), pool.stats().regions), (address, 1));
    let batch = place_batch(&pool, &[10, 10]).unwrap();
    assert_eq!(pool.stats().regions, 2);
    drop((placed, again, batch));
    assert_empty(&pool);
}

#[test]
fn a_batch_that_fits_a_free_block_takes_no_new_region() {
    let pool = host();
    let anchor = place(&pool, "anchor", 256);
    let placed = place_batch(&pool, &[100_000, 7, 300]).unwrap();
    assert_eq!(pool.stats().regions, 1);
    drop((anchor, placed));
    assert_empty(&pool);
}

#[test]
fn regions_of_a_batch_are_no_larger_than_asked() {
    let limit = NonZeroU64::new(10_000).unwrap();
    let pool = Pool::builder(Arc::new(HostMemory::new())).max_region_bytes(limit).build().unwrap();
    let placed = place_batch(&pool, &[4000, 4000, 4000, 25_000, 1]).unwrap();
    let sizes: Vec<u64> = pool.snapshot().regions.iter().map(|region| region.bytes).collect();
    assert_eq!((sizes, placed.bases.len()), (vec![8096, 4000, 25_000, 1], 4));
}

#[test]
fn single_placements_share_a_region() {
    let pool = Pool::builder(Arc::new(HostMemory::new())).region_bytes(1 << 20).build().unwrap();
    let fragments: Vec<Fragment> = (0..100).map(|n| place(&pool, &format!("f{n}"), 10_000)).collect();
    assert_eq!(pool.stats().regions, 1);
    let large = place(&pool, "large", 5 << 20);
    assert_eq!((pool.stats().regions, pool.stats().reserved_bytes), (2, 6 << 20));
    drop((fragments, large));
    assert_empty(&pool);
}

#[test]
fn empty_fragments_are_counted_and_take_no_memory() {
    let pool = host();
    let (one, two) = (place(&pool, "one", 0), place(&pool, "two", 0));
    assert!(one.is_empty() && (one.as_ptr() as usize).is_multiple_of(256) && one.as_bytes() == Some(&[]));
    let snapshot = pool.snapshot();
    assert_eq!((snapshot.stats.fragments, snapshot.stats.reserved_bytes), (2, 0));
    assert_eq!(snapshot.empty.iter().map(|label| &**label).collect::<Vec<_>>(), ["one", "two"]);
    drop(one);
    pool.trim();
    assert_eq!(pool.stats().fragments, 1);
    let held = pool.close().held;
    assert_eq!((&*held[0].name, held[0].bytes), ("two", 0));
    drop(two);
}

#[test]
fn a_snapshot_lists_regions_and_fragments_by_offset() {
    let pool = host();
    let mut placed = place_batch(&pool, &[300, 40, 5]).unwrap();
    placed.fragments.remove(0);
    pool.trim();
    let snapshot = pool.snapshot();
    let region = &snapshot.regions[0];
    assert_eq!(
        (region.bytes, region.free_bytes, region.address),
        (773, 512, placed.bases[0].as_ptr() as u64)
    );
    let fragments: Vec<_> = region.fragments.iter().map(|f| (&*f.label, f.offset, f.bytes)).collect();
    assert_eq!(fragments, [("t1", 512, 40), ("t2", 768, 5)]);
}

#[test]
fn clones_and_slices_share_a_range_until_the_last_is_gone() {
    let pool = host();
    let mut whole = place(&pool, "w", 1000);
    whole.as_bytes_mut().unwrap()[500..510].fill(9);
    let part = whole.slice(500, 10).unwrap();
    let same = part.clone();
    assert_eq!(
        (whole.owners(), whole.slice(991, 10).is_none(), whole.slice(u64::MAX, 2).is_none()),
        (3, true, true)
    );
    assert!(whole.get_mut().is_none() && whole.as_bytes_mut().is_none());
    assert!(!whole.release() && !part.release());
    pool.trim();
    assert_eq!((pool.stats().live_bytes, same.as_bytes().unwrap()), (1000, [9; 10].as_slice()));
    assert!(same.release());
    assert_empty(&pool);
}

#[test]
fn a_limit_counts_what_was_dropped_as_free() {
    let pool = Pool::builder(Arc::new(HostMemory::new())).limit_bytes(10_000).name("small").build().unwrap();
    let first = place(&pool, "first", 8000);
    let error = pool.place("second", Request::new(3000, 256)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "place \"second\" on pool \"small\": requested 2.9 KiB, largest free block 1.8 KiB, reserved 9.8 KiB of a limit \
         of 9.8 KiB; raise the limit, or drop what the pool holds"
    );
    drop(first);
    // The drop need not have been dealt with yet: the placement waits for it.
    let second = place(&pool, "second", 9000);
    drop(second);
    assert_empty(&pool);
}

#[test]
fn a_refused_region_is_an_error_that_keeps_its_reason_and_leaves_nothing() {
    let (memory, pool) = watched();
    memory.fail_reserve.store(true, Ordering::Relaxed);
    let error = pool.place("t", Request::new(100, 256)).unwrap_err();
    assert!(
        error.to_string().contains("reserve a region of 64.0 MiB for \"t\" on pool \"watched\""),
        "{error}"
    );
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no more regions");
    assert!(place_batch(&pool, &[1, 2]).is_err());
    assert_empty(&pool);
}

#[test]
fn a_batch_that_fails_midway_gives_its_first_regions_back() {
    let limit = NonZeroU64::new(4096).unwrap();
    let builder = Pool::builder(Arc::new(HostMemory::new())).max_region_bytes(limit).limit_bytes(10_000);
    let pool = builder.build().unwrap();
    assert!(matches!(place_batch(&pool, &[4096; 3]), Err(Error::LimitReached { .. })));
    assert_empty(&pool);
    drop(place_batch(&pool, &[4096; 2]).unwrap());
    assert_empty(&pool);
}

#[test]
fn batches_and_layouts_that_do_not_belong_together_are_errors() {
    let pool = host();
    let layout = pool.lay_out([Request::new(100, 256), Request::new(100, 256)]).unwrap();
    let batch = |sizes: &[u64], labels: usize| {
        let mut layout = layout.clone();
        for (placement, &bytes) in layout.placements.iter_mut().zip(sizes) {
            placement.bytes = bytes;
        }
        pool.place_planned(&layout, &vec!["t".into(); labels]).map(|placed| placed.fragments.len())
    };
    for sizes in [[300, 100], [100, 101], [0, 100], [0, 0], [u64::MAX, 1]] {
        assert!(matches!(batch(&sizes, 2), Err(Error::Batch { .. })), "{sizes:?}");
    }
    for labels in [0, 1, 3] {
        assert!(matches!(batch(&[100, 100], labels), Err(Error::Batch { .. })), "{labels} labels");
    }
    assert_eq!(batch(&[256, 1], 2).unwrap(), 2);
    assert!(pool.lay_out([Request::new(1, 3)]).unwrap_err().to_string().contains("not a power of two"));
    assert!(matches!(pool.place("t", Request::new(1, 0)), Err(Error::Alignment { align: 0, .. })));
    assert_empty(&pool);
}

#[test]
fn memory_is_called_by_the_reaper_and_never_by_a_drop() {
    let (memory, pool) = watched();
    let fragments: Vec<Fragment> = (0..16).map(|n| place(&pool, &format!("f{n}"), 5 << 20)).collect();
    let droppers: Vec<ThreadId> = thread::scope(|scope| {
        let threads: Vec<_> =
            fragments.into_iter().map(|fragment| scope.spawn(move || drop(fragment))).collect();
        threads.iter().map(|thread| thread.thread().id()).collect()
    });
    assert_empty(&pool);
    let callers = memory.callers.lock().unwrap().clone();
    assert!(!callers.is_empty() && !callers.contains(&thread::current().id()));
    assert!(droppers.iter().all(|dropper| !callers.contains(dropper)));
    assert!(callers.iter().all(|caller| *caller == callers[0]), "more than one thread gives memory back");
}

#[test]
fn a_drop_does_not_wait_for_the_memory() {
    let (memory, pool) = watched();
    let (begun, has_begun) = mpsc::channel();
    let (go, let_go) = mpsc::channel();
    *memory.gate.lock().unwrap() = Some((begun, let_go));
    let fragments = [place(&pool, "a", 100), place(&pool, "b", 100)];
    let [first, second] = fragments;
    // Its address is given out, so the whole memory is waited for.
    first.view();
    drop(first);
    has_begun.recv().unwrap();
    // The reaper is inside `synchronize`: drops and placements go on meanwhile.
    drop(second);
    drop(place(&pool, "c", 100));
    go.send(()).unwrap();
    assert_empty(&pool);
}

#[test]
fn ranges_whose_memory_fails_to_synchronize_are_never_used_again() {
    let (memory, pool) = watched();
    let fragment = place(&pool, "t", 1000);
    let address = fragment.as_ptr();
    memory.fail_synchronize.store(true, Ordering::Relaxed);
    drop(fragment);
    pool.trim();
    memory.fail_synchronize.store(false, Ordering::Relaxed);
    assert_eq!((pool.stats().lost_bytes, pool.stats().live_bytes, pool.stats().regions), (1000, 0, 1));
    let next = place(&pool, "u", 1000);
    assert_ne!(next.as_ptr(), address);
    drop(next);
    pool.trim();
    assert_eq!((memory.reserved.load(Ordering::Relaxed), pool.stats().regions), (1, 1), "the region stays");
}

#[test]
fn a_region_that_cannot_be_released_is_counted_as_lost() {
    let (memory, pool) = watched();
    memory.fail_release.store(true, Ordering::Relaxed);
    drop(place(&pool, "t", 1000));
    pool.trim();
    assert_eq!((pool.stats().lost_bytes, pool.stats().reserved_bytes), (64 << 20, 0));
}

#[test]
fn closing_releases_what_is_free_names_what_is_held_and_refuses_the_rest() {
    let (memory, pool) = watched();
    let other = pool.clone();
    let kept = place(&pool, "kept", 70 << 20);
    drop(place(&pool, "gone", 80 << 20));
    let closed = pool.close();
    assert_eq!((closed.held.len(), &*closed.held[0].name, closed.held[0].bytes), (1, "kept", 70 << 20));
    assert_eq!(closed.pinned_bytes, 70 << 20);
    assert!(closed.released_bytes <= 80 << 20);
    for size in [0, 10] {
        assert!(matches!(other.place("late", Request::new(size, 256)), Err(Error::Closed { .. })));
    }
    assert!(matches!(place_batch(&other, &[1, 2]), Err(Error::Closed { .. })));
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 1);
    drop(kept);
    other.trim();
    assert_eq!((memory.reserved.load(Ordering::Relaxed), other.stats().fragments), (0, 0));
    // Nothing is left, so the reaper has ended; waiting for it still returns.
    other.trim();
    assert_eq!(other.close(), tensorhold_allocator::Closed::default());
}

#[test]
fn a_pool_in_use_is_given_back_open_and_closes_when_it_is_not() {
    let (memory, pool) = watched();
    let kept = place(&pool, "kept", 70 << 20);
    let empty = place(&pool, "empty", 0);
    drop(place(&pool, "gone", 80 << 20));
    let refused = pool.try_close().unwrap_err();
    assert!(refused.to_string().contains("2 of 70.0 MiB are still held, \"kept\" for one"), "{refused}");
    assert_eq!((refused.held.len(), refused.pinned_bytes), (2, 70 << 20));
    let pool = refused.open;
    // What was free is back, and more can be placed.
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 1);
    drop(place(&pool, "more", 100));
    drop(kept);
    let pool = pool.try_close().unwrap_err().open;
    drop(empty);
    let other = pool.clone();
    let closed = pool.try_close().unwrap();
    assert_eq!((closed.held.len(), closed.pinned_bytes), (0, 0));
    assert!(matches!(other.place("late", Request::new(1, 256)), Err(Error::Closed { .. })));
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 0);
}

#[test]
fn closing_waits_for_what_is_dropped_in_time_and_names_what_is_not() {
    for late in [false, true] {
        let (memory, pool) = watched();
        let (first, second) = (place(&pool, "first", 70 << 20), place(&pool, "second", 80 << 20));
        // Nothing is dropped before it waits: the pool closes first.
        let other = pool.clone();
        let dropper = thread::spawn(move || {
            while other.place("probe", Request::new(0, 256)).is_ok() {
                thread::yield_now();
            }
            drop(first);
            late.then_some(second)
        });
        let closed = pool.close_within(Duration::from_secs(if late { 0 } else { 600 }));
        let kept = dropper.join().unwrap();
        if late {
            assert!(closed.held.iter().any(|held| &*held.name == "second"), "{closed:?}");
            drop(kept);
        } else {
            assert_eq!((closed.held.len(), closed.pinned_bytes), (0, 0));
            assert_eq!(memory.reserved.load(Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn the_last_handle_closes_the_pool_and_the_last_fragment_empties_it() {
    let (memory, pool) = watched();
    let fragment = place(&pool, "t", 100);
    drop(pool);
    assert_eq!(fragment.as_bytes().unwrap().len(), 100);
    drop(fragment);
    // The reaper lets go of the memory when it ends.
    while Arc::strong_count(&memory) > 1 {
        thread::yield_now();
    }
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 0);
}

#[test]
fn retained_regions_serve_again_and_go_with_a_trim() {
    let memory = Arc::new(Watched::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).retain_bytes(1 << 30).build().unwrap();
    let first = place(&pool, "first", 1000);
    let address = first.as_ptr();
    drop(first);
    // Its address was given out: it waits for the memory when it has left the books.
    while (pool.stats().fragments as u64, pool.stats().pending_bytes) != (0, 0) {
        thread::yield_now();
    }
    let second = place(&pool, "second", 1000);
    assert_eq!(second.as_ptr(), address);
    drop(second);
    assert_empty(&pool);
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 0);
}

#[test]
fn threads_placing_and_dropping_at_once_leave_nothing() {
    let pool = Pool::builder(Arc::new(HostMemory::new())).region_bytes(1 << 20).build().unwrap();
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for seed in 0..4_u64 {
            let (pool, barrier) = (&pool, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let mut state = seed;
                let mut kept: Vec<(u8, Fragment)> = Vec::new();
                for round in 0..2000_u64 {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let mut fragment = place(pool, "t", (state >> 40) % 5000);
                    let mark = (seed * 64 + round % 64) as u8;
                    fragment.as_bytes_mut().unwrap().fill(mark);
                    kept.push((mark, fragment));
                    if kept.len() > 20 {
                        let (mark, fragment) = kept.swap_remove((state >> 33) as usize % 20);
                        assert!(
                            fragment.as_bytes().unwrap().iter().all(|&byte| byte == mark),
                            "a range was shared"
                        );
                    }
                }
            });
        }
    });
    assert_empty(&pool);
}

#[test]
fn handles_can_be_sent_and_shared() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Pool>();
    shared::<Fragment>();
    shared::<Placed>();
    shared::<Error>();
}

#[test]
fn a_batch_that_is_reserved_apart_leaves_free_room_to_others_and_none_of_its_own() {
    let pool = Pool::builder(Arc::new(HostMemory::new())).region_bytes(1 << 20).build().unwrap();
    let first = pool.place("first", Request::new(1000, 256)).unwrap();
    let layout = pool.lay_out([Request::new(300, 256), Request::new(5000, 256)]).unwrap();
    let labels = vec!["a".into(), "b".into()];
    let placed = pool.reserve_planned(&layout, "batch").unwrap().place(&layout, labels.clone()).unwrap();
    assert_eq!(pool.stats().regions, 1);
    let apart = pool.reserve_planned_apart(&layout, "batch").unwrap().place(&layout, labels).unwrap();
    let snapshot = pool.snapshot();
    let own = snapshot.regions.iter().find(|region| region.address == apart.fragments[0].as_ptr() as u64);
    let own = own.unwrap();
    assert_eq!((snapshot.regions.len(), own.bytes, own.free_bytes), (2, 512 + 5000, 0));
    drop((placed, apart));
    pool.trim();
    assert_eq!((pool.stats().regions, pool.stats().reserved_bytes), (1, 1 << 20));
    drop(first);
}
