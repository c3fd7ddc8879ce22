//! The suite that every [`Memory`] has to pass. Call [`memory`] from a test.
//!
//! A check that fails panics, as test code does, with what was expected.
#![allow(clippy::panic, clippy::expect_used, reason = "test code that others call from their tests")]

use std::sync::Arc;

use crate::{Memory, Pool, RawRegion, RegionParts, Request};

/// Runs all checks against one memory. Needs room for about 80 MiB.
///
/// # Panics
/// When a check fails.
pub fn memory(memory: Arc<dyn Memory>) {
    what_it_is_does_not_change(&*memory);
    regions_are_aligned_and_disjoint(&*memory);
    an_impossible_region_is_an_error(&*memory);
    if memory.is_host_accessible() {
        bytes_are_readable_and_keep_their_values(&memory);
    }
    everything_goes_back(Arc::clone(&memory));
    if memory.parted().is_ok() {
        parts_come_and_go_by_themselves(&memory);
        a_batch_in_parts_goes_back_piece_by_piece(memory);
    }
}

fn what_it_is_does_not_change(memory: &dyn Memory) {
    let what = || (memory.id(), memory.is_host_accessible(), memory.is_used_by_devices());
    assert_eq!(what(), what(), "M4");
}

fn parts_come_and_go_by_themselves(memory: &Arc<dyn Memory>) {
    let parted = memory.parted().expect("the memory has parts");
    let unit = parted.unit();
    assert!(unit.is_power_of_two(), "a unit of {unit} bytes");
    assert!(parted.reserve_range(u64::MAX, 256).is_err(), "2^64-1 bytes were granted");
    let range = parted.reserve_range(unit * 3 + 1, 256).expect("a small range is reserved");
    assert!(range.bytes >= unit * 4 && (range.base.as_ptr() as u64).is_multiple_of(unit), "{range:?}");
    let part = |first: u64, units: u64| {
        // SAFETY: within the range.
        RawRegion { base: unsafe { range.base.add((first * unit) as usize) }, bytes: units * unit }
    };
    for round in 0..2_u8 {
        for part in [part(0, 1), part(1, 2), part(3, 1)] {
            // SAFETY: V1: whole units of the range, none of which is committed in this round.
            unsafe { parted.commit(part) }.expect("a small part is committed");
            if memory.is_host_accessible() {
                // SAFETY: V2: committed, and no one else knows it.
                unsafe { part.base.as_ptr().add(unit as usize - 1).write(round + 1) };
            }
        }
        // Its neighbours keep their bytes.
        // SAFETY: V2, as committed, and not touched any more.
        unsafe { parted.decommit(part(1, 2)) }.expect("a part is decommitted");
        if memory.is_host_accessible() {
            for part in [part(0, 1), part(3, 1)] {
                // SAFETY: as above.
                let byte = unsafe { part.base.as_ptr().add(unit as usize - 1).read() };
                assert_eq!(byte, round + 1, "a neighbour changed");
            }
        }
        for part in [part(0, 1), part(3, 1)] {
            // SAFETY: as above.
            unsafe { parted.decommit(part) }.expect("a part is decommitted");
        }
    }
    // SAFETY: reserved above, and nothing is committed.
    unsafe { parted.release_range(range) }.expect("a range is released");
}

fn a_batch_in_parts_goes_back_piece_by_piece(memory: Arc<dyn Memory>) {
    let pool = Pool::builder(memory).region_parts(RegionParts::Require).build().expect("a pool starts");
    let layout = pool.lay_out([Request::new(9 << 20, 256); 3]).expect("it is laid out");
    let labels = ["a", "b", "c"].map(Into::into);
    let mut fragments = pool.place_planned(&layout, &labels).expect("it is placed").fragments;
    let all = pool.stats().reserved_bytes;
    drop(fragments.remove(1));
    pool.trim();
    let left = pool.stats();
    assert!(all - left.reserved_bytes > 4 << 20, "{left:?} after a third of {all} bytes was dropped");
    for fragment in &mut fragments {
        if let Some(bytes) = fragment.as_bytes_mut() {
            bytes.fill(7);
        }
    }
    drop(fragments);
    pool.trim();
    let stats = pool.stats();
    assert_eq!((stats.reserved_bytes, stats.live_bytes, stats.regions, stats.lost_bytes), (0, 0, 0, 0));
}

fn regions_are_aligned_and_disjoint(memory: &dyn Memory) {
    let wanted = [(1, 1), (4096, 256), (5 << 20, 4096), (64 << 20, 2 << 20)];
    let mut regions: Vec<_> = wanted
        .iter()
        .map(|&(bytes, align)| {
            let region = memory.reserve(bytes, align).expect("a small region is reserved");
            assert!(region.bytes >= bytes, "asked for {bytes} bytes, got {}", region.bytes);
            assert!(
                (region.base.as_ptr() as u64).is_multiple_of(align),
                "{:?} is not aligned to {align}",
                region.base
            );
            region
        })
        .collect();
    regions.sort_by_key(|region| region.base);
    for pair in regions.windows(2) {
        let [low, high] = pair else { continue };
        assert!(
            low.base.as_ptr() as u64 + low.bytes <= high.base.as_ptr() as u64,
            "{low:?} and {high:?} overlap"
        );
    }
    memory.synchronize().expect("idle memory synchronizes");
    for region in regions {
        // SAFETY: reserved above, released once, never touched.
        unsafe { memory.release(region) }.expect("a region is released");
    }
}

fn an_impossible_region_is_an_error(memory: &dyn Memory) {
    assert!(memory.reserve(1 << 60, 256).is_err(), "2^60 bytes were granted");
    assert!(memory.reserve(u64::MAX, 256).is_err(), "2^64-1 bytes were granted");
}

fn bytes_are_readable_and_keep_their_values(memory: &Arc<dyn Memory>) {
    let pool = Pool::builder(Arc::clone(memory)).build().expect("a pool starts");
    let mut fragments: Vec<_> = (1..=64u8)
        .map(|n| {
            pool.place(format!("f{n}"), Request::new(u64::from(n) * 1000, 256)).expect("a fragment is placed")
        })
        .collect();
    for (n, fragment) in (1u8..).zip(&mut fragments) {
        fragment.as_bytes_mut().expect("the only owner writes").fill(n);
    }
    for (n, fragment) in (1u8..).zip(&fragments) {
        let bytes = fragment.as_bytes().expect("the memory is host-accessible");
        assert!(
            bytes.len() == usize::from(n) * 1000 && bytes.iter().all(|&byte| byte == n),
            "fragment {n} changed"
        );
    }
}

fn everything_goes_back(memory: Arc<dyn Memory>) {
    let pool = Pool::builder(memory).build().expect("a pool starts");
    let fragments: Vec<_> = (0..32)
        .map(|n| pool.place(format!("f{n}"), Request::new(1 << 20, 256)).expect("a fragment is placed"))
        .collect();
    std::thread::scope(|scope| {
        for fragment in fragments {
            scope.spawn(move || drop(fragment));
        }
    });
    pool.trim();
    let stats = pool.stats();
    assert_eq!((stats.reserved_bytes, stats.live_bytes, stats.fragments, stats.lost_bytes), (0, 0, 0, 0));
}
