//! The suite that every [`Memory`] has to pass. Call [`memory`] from a test of yours.
//!
//! A check that does not hold panics with what was expected, as test code does.
#![allow(clippy::panic, clippy::expect_used, reason = "test code that others call from their tests")]

use std::sync::Arc;

use crate::{Memory, Pool, Request};

/// Runs all checks against one memory. Needs room for about 80 MiB.
///
/// # Panics
/// When a check does not hold.
pub fn memory(memory: Arc<dyn Memory>) {
    regions_are_aligned_and_disjoint(&*memory);
    an_impossible_region_is_an_error(&*memory);
    if memory.is_host_accessible() {
        bytes_are_readable_and_keep_their_values(&memory);
    }
    everything_goes_back(memory);
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
