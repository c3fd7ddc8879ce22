//! Parts of regions that come while others use them, and while they and their region go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::AtomicBool;
use loom::thread;
use tensorhold_allocator::offsets::Layout;
use tensorhold_allocator::{Placed, Pool, RegionParts, Request, Reserved};

use crate::memory::Addresses;
use crate::{builder, builder_over, model_after, place};

/// Two fragments of two granules, each with a part of its own, reserved and not cut.
fn reserved() -> (Arc<Addresses>, Pool, Layout, Reserved) {
    let (memory, builder) = builder();
    let pool = builder.region_parts(RegionParts::Require).build().unwrap();
    let layout = pool.lay_out([Request::new(512, 256), Request::new(512, 256)]).unwrap();
    let reserved = pool.reserve_planned(&layout, "batch").unwrap();
    (memory, pool, layout, reserved)
}

/// As [`reserved`], and cut.
fn placed() -> (Arc<Addresses>, Pool, Placed) {
    let (memory, pool, layout, mut reserved) = reserved();
    let placed = reserved.place(&layout, vec!["one".into(), "two".into()]).unwrap();
    (memory, pool, placed)
}

fn assert_nothing_is_left(memory: &Addresses, pool: Pool) {
    loom::stop_exploring();
    pool.trim();
    let reserved = pool.stats().reserved_bytes;
    assert_eq!((reserved, memory.regions.load(Ordering::Relaxed), memory.parts.committed_bytes()), (0, 0, 0));
    pool.close();
}

/// One that comes, one that goes, and the reaper.
#[test]
fn a_region_that_is_dropped_while_its_parts_come_is_released_without_them() {
    model_after(reserved, 3, |(memory, pool, _, reserved)| {
        let bases = reserved.bases();
        let comes = thread::spawn(move || bases.bring_up(|| false));
        drop(reserved);
        pool.trim();
        // What comes, comes before its part is given back, or not at all.
        assert_eq!((memory.regions.load(Ordering::Relaxed), memory.parts.committed_bytes()), (0, 0));
        comes.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

/// One that brings up, one that writes, one that drops, and the reaper.
#[test]
fn a_part_comes_for_who_waits_for_it_though_its_neighbour_goes() {
    model_after(placed, 2, |(memory, pool, placed)| {
        let bases = placed.bases.clone();
        let comes = thread::spawn(move || bases.bring_up(|| false));
        let [first, second] = placed.fragments.try_into().unwrap();
        drop(first);
        placed.bases.wait_for(0, 1024).unwrap();
        assert!(memory.parts.are_behind(second.as_ptr()));
        memory.write(second.as_ptr(), 512, 2);
        memory.read(second.as_ptr(), 512, 2);
        drop(second);
        comes.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

#[test]
fn there_is_memory_behind_what_was_waited_for_whoever_brings_it_up() {
    model_after(placed, 3, |(memory, pool, placed)| {
        let bases = placed.bases.clone();
        let comes = thread::spawn(move || bases.bring_up(|| false));
        placed.bases.bring_up(|| false);
        placed.bases.wait_for(0, 1024).unwrap();
        for fragment in &placed.fragments {
            assert!(memory.parts.are_behind(fragment.as_ptr()), "a part is said to be there");
            memory.write(fragment.as_ptr(), 512, 1);
        }
        comes.join().unwrap();
        drop(placed);
        assert_nothing_is_left(&memory, pool);
    });
}

/// The first part is refused to one thread while another brings up the second.
#[test]
fn a_part_that_is_refused_is_not_said_to_be_there() {
    model_after(placed, 3, |(memory, pool, placed)| {
        memory.parts.refused.store(placed.bases[0].addr().get(), Ordering::Relaxed);
        let bases = placed.bases.clone();
        let comes = thread::spawn(move || bases.bring_up(|| false));
        placed.bases.bring_up(|| false);
        placed.bases.wait_for(0, 512).unwrap_err();
        comes.join().unwrap();
        placed.bases.wait_for(0, 512).unwrap_err();
        drop(placed);
        assert_nothing_is_left(&memory, pool);
    });
}

/// One that is stopped, one that waits, and one that drops.
#[test]
fn who_waits_for_a_part_that_is_stopped_is_told_and_the_region_goes() {
    model_after(placed, 2, |(memory, pool, placed)| {
        let stopped = Arc::new(AtomicBool::new(false));
        let bases = placed.bases.clone();
        let comes = {
            let stopped = Arc::clone(&stopped);
            thread::spawn(move || bases.bring_up(|| stopped.load(Ordering::Relaxed)))
        };
        stopped.store(true, Ordering::Relaxed);
        if placed.bases.wait_for(0, 1024).is_ok() {
            assert_eq!(memory.parts.committed_bytes(), 1024);
        }
        drop(placed);
        pool.trim();
        assert_eq!((memory.regions.load(Ordering::Relaxed), memory.parts.committed_bytes()), (0, 0));
        comes.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

/// A placer, which takes back what was dropped, and the reaper.
#[test]
fn a_region_whose_parts_leave_while_another_places_is_released_after_them() {
    let set_up = || {
        let (memory, builder) = builder_over(Addresses::of_the_cpu());
        let pool = builder.region_parts(RegionParts::Require).region_bytes(4096).build().unwrap();
        let layout = pool.lay_out([Request::new(512, 256)]).unwrap();
        let placed = pool.place_planned(&layout, &["batch".into()]).unwrap();
        (memory, pool, placed)
    };
    model_after(set_up, 2, |(memory, pool, placed)| {
        drop(placed);
        drop(place(&pool, 256));
        assert_nothing_is_left(&memory, pool);
    });
}
