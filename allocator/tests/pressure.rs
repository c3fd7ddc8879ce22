//! Facts about placements that many threads make at once where there is room for few.

use std::sync::{Arc, Barrier};
use std::thread;

use tensorhold_allocator::{Error, HostMemory, Pool, Request};

/// Twice as much room as all hold at any time, in one region: no placement may be refused, whoever takes what is freed first.
#[test]
fn a_placement_is_refused_only_when_there_is_no_room() {
    const THREADS: usize = 8;
    const BYTES: u64 = 64 << 10;
    for region_bytes in [2 * THREADS as u64 * BYTES, 4096] {
        let pool = Pool::builder(Arc::new(HostMemory::new()))
            .limit_bytes(2 * THREADS as u64 * BYTES)
            .region_bytes(region_bytes)
            .build()
            .unwrap();
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..400 {
                        drop(pool.place("t", Request::new(BYTES, 256)).unwrap());
                    }
                });
            }
        });
        pool.trim();
        assert_eq!((pool.stats().fragments, pool.stats().reserved_bytes), (0, 0));
        let all = pool.place("all", Request::new(2 * THREADS as u64 * BYTES, 256)).unwrap();
        assert!(matches!(pool.place("more", Request::new(1, 1)), Err(Error::LimitReached { .. })));
        drop(all);
    }
}
