//! Facts about regions that are backed and given back in parts.

#[path = "support/parted.rs"]
mod memory;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;

use memory::{Parted, UNIT};

use proptest::prelude::*;
use tensorhold_allocator::events::{self, Event, Log};
use tensorhold_allocator::replay::{self, Policy, Room};
use tensorhold_allocator::{
    Error, HostMemory, Memory, MemoryError, Placed, Pool, RawRegion, RegionParts, Request,
};

fn parted() -> (Arc<Parted>, Pool) {
    let memory = Arc::new(Parted::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).region_parts(RegionParts::Require);
    (memory, pool.build().unwrap())
}

fn place(pool: &Pool, sizes: &[u64]) -> Result<Placed, Error> {
    let labels: Vec<Arc<str>> = (0..sizes.len()).map(|n| format!("t{n}").into()).collect();
    pool.place_planned(&pool.lay_out(sizes.iter().map(|&size| Request::new(size, 256)))?, &labels)
}

#[test]
fn a_dropped_fragment_gives_its_memory_back_though_its_neighbours_live() {
    let (memory, pool) = parted();
    let sizes = [10 * UNIT, 0, 1000, 20 * UNIT, 5, 3 * UNIT];
    let mut placed = place(&pool, &sizes).unwrap();
    // No byte is padded but the end of the last unit.
    let all = (33 * UNIT + 1024 + 256).next_multiple_of(UNIT);
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes), (all, all));
    placed.fragments[5].as_bytes_mut().unwrap().fill(9);
    drop(placed.fragments.drain(0..4));
    pool.trim();
    // 30 units; in the next one lie two that live.
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes), (all - 30 * UNIT, all - 30 * UNIT));
    assert!(placed.fragments[1].as_bytes().unwrap().iter().all(|&byte| byte == 9));
    let snapshot = pool.snapshot();
    assert_eq!((snapshot.regions[0].reserved_bytes, snapshot.whole_because), (all - 30 * UNIT, None));
    // What was given back is not there to be placed in.
    assert_eq!((pool.stats().free_bytes, pool.stats().largest_free_bytes), (0, 0));
    let other = pool.place("other", Request::new(UNIT, 256)).unwrap();
    assert_eq!(pool.stats().regions, 2);
    drop((placed, other));
    pool.trim();
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes, pool.stats().regions), (0, 0, 0));
    assert!(memory.ranges() == 0);
}

#[test]
fn the_event_log_tells_which_parts_have_gone() {
    let (recorder, log) = events::recorder(1000);
    let pool = Pool::builder(Arc::new(Parted::default())).region_parts(RegionParts::Require).events(recorder);
    let pool = pool.build().unwrap();
    let mut placed = place(&pool, &[4 * UNIT, 4 * UNIT]).unwrap();
    placed.fragments.remove(0);
    pool.trim();
    drop(place(&pool, &[2 * UNIT]).unwrap());
    drop(placed);
    pool.close();
    let log = Log::read(&log.write_to(Vec::new()).unwrap()[..]).unwrap();
    let gone: Vec<(u64, u64)> = log
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Part { region, bytes } => Some((*region, *bytes)),
            _ => None,
        })
        .collect();
    assert_eq!(gone[0], (0, 4 * UNIT));
    assert_eq!(gone.iter().map(|(_, bytes)| bytes).sum::<u64>(), 10 * UNIT);
    let replayed = replay::replay(&log, Policy::BestFit, Room::Growing);
    // Nothing is placed where parts have gone.
    assert_eq!((replayed.regions, replayed.digest), (2, replay::recorded(&log).digest));
}

#[test]
fn a_limit_counts_what_was_given_back_as_free() {
    let memory = Arc::new(Parted::default());
    let pool = Pool::builder(memory as Arc<dyn Memory>).region_parts(RegionParts::Auto).limit_bytes(8 * UNIT);
    let pool = pool.build().unwrap();
    let mut placed = place(&pool, &[4 * UNIT, 4 * UNIT]).unwrap();
    assert!(matches!(place(&pool, &[UNIT]), Err(Error::LimitReached { .. })));
    placed.fragments.remove(0);
    drop(place(&pool, &[4 * UNIT]).unwrap());
}

#[test]
fn memory_is_brought_up_while_others_wait_for_what_they_need() {
    let (memory, pool) = parted();
    let sizes = [3 * UNIT, 2 * UNIT];
    let layout = pool.lay_out(sizes.map(|size| Request::new(size, 256))).unwrap();
    let mut reserved = pool.reserve_planned(&layout, "batch").unwrap();
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes), (0, 5 * UNIT));
    let bases = reserved.bases();
    assert!(bases.are_parted());
    let (begun, has_begun) = mpsc::channel();
    let (go, let_go) = mpsc::channel();
    let (bases, memory) = (&bases, &memory);
    thread::scope(|scope| {
        scope.spawn(move || {
            bases.bring_up(|| {
                // The first part is there.
                if memory.committed_bytes() == 3 * UNIT {
                    begun.send(()).unwrap();
                    let_go.recv().unwrap();
                }
                false
            });
        });
        bases.wait_for(0, 1).unwrap();
        bases.wait_for(0, 3 * UNIT).unwrap();
        has_begun.recv().unwrap();
        let second = scope.spawn(|| bases.wait_for(0, 3 * UNIT + 1));
        assert_eq!(memory.committed_bytes(), 3 * UNIT);
        go.send(()).unwrap();
        second.join().unwrap().unwrap();
    });
    let placed = reserved.place(&layout, vec!["a".into(), "b".into()]).unwrap();
    drop((reserved, placed));
    pool.trim();
    assert_eq!(memory.committed_bytes(), 0);
}

#[test]
fn memory_that_is_refused_part_way_is_an_error_that_leaves_nothing() {
    let (memory, pool) = parted();
    *memory.room.lock().unwrap() = Some(6 * UNIT);
    let error = place(&pool, &[4 * UNIT, 4 * UNIT]).unwrap_err();
    match &error {
        Error::OutOfMemory { requested, reserved, source, .. } => {
            assert_eq!((*requested, *reserved), (8 * UNIT, 4 * UNIT));
            assert_eq!(source.to_string(), "the device is full");
        }
        other => panic!("{other:?}"),
    }
    pool.trim();
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes, pool.stats().regions), (0, 0, 0));
}

#[test]
fn what_is_dropped_while_memory_is_brought_up_gives_all_of_it_back() {
    let (memory, pool) = parted();
    let layout = pool.lay_out([Request::new(4 * UNIT, 256); 3]).unwrap();
    let reserved = pool.reserve_planned(&layout, "batch").unwrap();
    let bases = reserved.bases();
    let (begun, has_begun) = mpsc::channel();
    let (go, let_go) = mpsc::channel();
    *memory.gate.lock().unwrap() = Some((begun, let_go));
    thread::scope(|scope| {
        scope.spawn(|| bases.bring_up(|| false));
        has_begun.recv().unwrap();
        // The first part is on its way; the reaper waits for that one, and the others do not come.
        drop(reserved);
        go.send(()).unwrap();
        pool.trim();
    });
    assert_eq!((memory.committed_bytes(), pool.stats().reserved_bytes), (0, 0));
}

#[test]
fn a_region_too_large_for_whole_parts_is_an_error() {
    let (_memory, pool) = parted();
    let layout = pool.lay_out([Request::new(u64::MAX - 1, 256)]).unwrap();
    assert!(matches!(pool.reserve_planned(&layout, "batch"), Err(Error::Batch { .. })));
    assert_eq!((pool.stats().reserved_bytes, pool.stats().regions), (0, 0));
}

#[test]
fn bringing_up_can_be_stopped_and_who_waits_is_told() {
    let (memory, pool) = parted();
    let layout = pool.lay_out([Request::new(4 * UNIT, 256); 3]).unwrap();
    let reserved = pool.reserve_planned(&layout, "batch").unwrap();
    let bases = reserved.bases();
    bases.bring_up(|| true);
    let message = bases.wait_for(0, 1).unwrap_err();
    assert!(matches!(&message, Error::OutOfMemory { source, .. } if source.to_string().contains("stopped")));
    assert_eq!(memory.committed_bytes(), 0);
}

#[test]
fn a_part_that_cannot_be_given_back_is_counted_as_lost() {
    let (memory, pool) = parted();
    let mut placed = place(&pool, &[4 * UNIT, 4 * UNIT]).unwrap();
    memory.fail_decommit.store(true, Ordering::Relaxed);
    placed.fragments.remove(0);
    pool.trim();
    assert_eq!((pool.stats().lost_bytes, pool.stats().reserved_bytes), (4 * UNIT, 4 * UNIT));
}

#[test]
fn parts_are_automatic_or_required() {
    struct Whole(HostMemory);
    // SAFETY: HostMemory's.
    unsafe impl Memory for Whole {
        fn name(&self) -> &str {
            "whole"
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
    }
    let builder = || Pool::builder(Arc::new(Whole(HostMemory::new())));
    let refused = builder().region_parts(RegionParts::Require).build().unwrap_err();
    assert!(matches!(refused, Error::NoParts { .. }));
    let pool = builder().region_parts(RegionParts::Auto).build().unwrap();
    drop(place(&pool, &[1000, 1000]).unwrap());
    assert_eq!(pool.snapshot().whole_because.as_deref(), Some("whole gives its regions back whole"));
    assert_eq!(builder().build().unwrap().snapshot().whole_because, None);
}

#[test]
fn trimming_keeps_as_many_bytes_of_empty_regions_as_it_is_told_to() {
    let pool = Pool::builder(Arc::new(HostMemory::new())).retain_bytes(u64::MAX).build().unwrap();
    let held: Vec<_> = (0..4).map(|_| pool.place("t", Request::new(64 << 20, 256)).unwrap()).collect();
    drop(held);
    pool.trim_to(130 << 20);
    assert_eq!(pool.stats().reserved_bytes, 128 << 20);
    pool.trim_to(u64::MAX);
    assert_eq!(pool.stats().reserved_bytes, 128 << 20);
    pool.trim();
    assert_eq!(pool.stats().reserved_bytes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// The oracle: a unit is committed as long as a live fragment has a byte there that is in no part but those of the dropped.
    #[test]
    fn what_is_committed_is_what_live_fragments_touch(
        sizes in prop::collection::vec(prop_oneof![0..3000_u64, 0..(6 * UNIT)], 1..30),
        order in prop::collection::vec(any::<usize>(), 30),
    ) {
        let (memory, pool) = parted();
        let mut live = place(&pool, &sizes).unwrap().fragments;
        for fragment in &mut live {
            let bytes = fragment.as_bytes_mut().unwrap();
            if let Some(last) = bytes.last_mut() { *last = 1; }
            if let Some(first) = bytes.first_mut() { *first = 1; }
        }
        for n in order {
            if live.is_empty() { break; }
            drop(live.swap_remove(n % live.len()));
            pool.trim();
            let committed = memory.committed();
            let mut pinned = 0;
            for (&start, &bytes) in &committed {
                let touches = live.iter().any(|fragment| {
                    let first = fragment.as_ptr() as u64;
                    !fragment.is_empty() && first < start + bytes && start < first + fragment.len()
                });
                prop_assert!(touches, "a part of {bytes} bytes is committed for no one");
                pinned += bytes;
            }
            prop_assert_eq!(pinned, pool.stats().reserved_bytes);
            for fragment in &live {
                let bytes = fragment.as_bytes().unwrap();
                prop_assert!([bytes.first(), bytes.last()].into_iter().flatten().all(|&byte| byte == 1));
            }
        }
        drop(live);
        pool.trim();
        prop_assert_eq!(memory.committed_bytes(), 0);
        prop_assert_eq!(memory.violations(), Vec::<String>::new());
    }
}
