//! Facts about placements where there is room for few.

mod support;

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use support::DeviceMemory;
use tensorhold_allocator::{Error, Fragment, HostMemory, Memory, Pool, Request};

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

#[test]
fn who_makes_room_under_pressure_is_asked_as_often_as_room_was_made() {
    let kept: Arc<Mutex<Vec<Fragment>>> = Arc::default();
    let asked: Arc<Mutex<Vec<u32>>> = Arc::default();
    let (theirs, numbers) = (Arc::clone(&kept), Arc::clone(&asked));
    let on_pressure = move |refusal: &Error, number: u32| {
        assert!(matches!(refusal, Error::LimitReached { limit: 1_048_576, .. }), "{refusal}");
        numbers.lock().unwrap().push(number);
        match theirs.lock().unwrap().pop() {
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        }
    };
    let memory: Arc<dyn Memory> = Arc::new(HostMemory::new());
    let pool =
        Pool::builder(memory).limit_bytes(1 << 20).region_bytes(1).on_pressure(on_pressure).build().unwrap();
    let place = |bytes| pool.place("t", Request::new(bytes, 256)).unwrap();
    let place_batch =
        |bytes| pool.place_planned(&pool.lay_out([Request::new(bytes, 256)]).unwrap(), &["batch".into()]);
    kept.lock().unwrap().extend((0..4).map(|_| place(256 << 10)));
    assert!(asked.lock().unwrap().is_empty());
    // Room for two: two are given up, one after the other, and two stay.
    let large = place(512 << 10);
    assert_eq!((&asked.lock().unwrap()[..], kept.lock().unwrap().len()), (&[1, 2][..], 2));
    // A batch asks too; when nothing is left to give up, the refusal is returned, and nothing is lost.
    assert!(matches!(place_batch(800 << 10), Err(Error::LimitReached { .. })));
    assert_eq!((&asked.lock().unwrap()[2..], pool.stats().fragments), (&[1, 2, 3][..], 1));
    drop(large);
    assert_eq!(place_batch(800 << 10).unwrap().fragments.len(), 1);
}

#[test]
fn under_pressure_a_retained_region_is_used_again_and_one_that_is_too_short_makes_room() {
    let memory = Arc::new(DeviceMemory::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>)
        .limit_bytes(2 << 20)
        .retain_bytes(2 << 20)
        .region_bytes(1 << 20)
        .build()
        .unwrap();
    let place = |bytes| {
        let fragment = pool.place("t", Request::new(bytes, 256)).unwrap();
        // Given out, so that its range waits for the device when it is dropped.
        assert!(!fragment.as_ptr().is_null());
        fragment
    };
    let kept = place(1 << 20);
    for _ in 0..100 {
        drop(place(1 << 20));
    }
    assert_eq!(memory.reservations.load(Ordering::Relaxed), 2);
    drop(kept);
    // Both regions go for this one.
    place(2 << 20);
    assert_eq!(memory.reservations.load(Ordering::Relaxed), 3);
}
