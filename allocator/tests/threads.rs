//! Facts about threads that place at once, each in a shard of its own.

#[path = "support/limited.rs"]
mod limited;
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use limited::Limited;
use proptest::prelude::*;
use support::{DeviceMemory, Handle, Stream};
use tensorhold_allocator::events::{self, Event, Log};
use tensorhold_allocator::{
    Error, Fragment, HostMemory, Memory, Pool, PoolBuilder, Request, Sharding, Snapshot,
};

/// Spans of 32 KiB, in which fragments of up to 8 KiB lie.
const REGION: u64 = 1 << 20;

fn builder() -> PoolBuilder {
    Pool::builder(Arc::new(HostMemory::new())).region_bytes(REGION).sharding(Sharding::Always)
}

/// A pool that has shards from the first placement on.
fn sharded(memory: &Arc<DeviceMemory>) -> Pool {
    let builder = Pool::builder(Arc::clone(memory) as Arc<dyn Memory>).region_bytes(REGION);
    builder.sharding(Sharding::Always).build().unwrap()
}

fn place(pool: &Pool, bytes: u64) -> Fragment {
    pool.place("t", Request::new(bytes, 256)).unwrap()
}

fn assert_empty(pool: &Pool) {
    pool.trim();
    let stats = pool.stats();
    let all = (stats.reserved_bytes, stats.live_bytes, stats.free_bytes, stats.fragments, stats.regions);
    assert_eq!(all, (0, 0, 0, 0, 0));
}

/// Where a fragment lies. Nothing waits for it.
fn start(fragment: &Fragment) -> u64 {
    let start = fragment.as_ptr() as u64;
    // SAFETY: an address is a number here.
    unsafe { fragment.assume_unused() };
    start
}

/// That the numbers and the lists of a snapshot say the same, of a pool in which nothing waits.
fn assert_agrees(snapshot: &Snapshot) {
    let stats = snapshot.stats;
    let fragments = || snapshot.regions.iter().flat_map(|region| &region.fragments);
    assert_eq!(fragments().count() + snapshot.empty.len(), stats.fragments);
    assert_eq!(fragments().map(|fragment| fragment.bytes).sum::<u64>(), stats.live_bytes);
    assert!(stats.high_water_bytes >= stats.live_bytes);
    assert_eq!(snapshot.regions.iter().map(|region| region.free_bytes).sum::<u64>(), stats.free_bytes);
    for region in &snapshot.regions {
        let taken = region.fragments.iter().map(|fragment| fragment.bytes.next_multiple_of(256)).sum::<u64>();
        assert_eq!(taken + region.free_bytes, region.bytes);
        let apart = region.fragments.windows(2).all(|pair| pair[0].offset + pair[0].bytes <= pair[1].offset);
        assert!(apart, "fragments overlap");
    }
}

#[test]
fn threads_place_apart_and_one_thread_side_by_side() {
    let pool = builder().build().unwrap();
    // The first makes the region; it lies in no span.
    let first = place(&pool, 1024);
    let mine = [place(&pool, 1024), place(&pool, 1024)];
    let theirs = thread::scope(|scope| scope.spawn(|| place(&pool, 1024)).join().unwrap());
    assert_eq!(start(&mine[1]) - start(&mine[0]), 1024);
    assert!(start(&theirs).abs_diff(start(&mine[0])) >= REGION / 32);
    assert_eq!(pool.stats().regions, 1, "they share the region");
    assert_agrees(&pool.snapshot());
    drop((first, mine, theirs));
    assert_empty(&pool);
}

/// A pool that one thread uses places as one that has no shards.
#[test]
fn one_thread_places_as_if_there_were_no_shards() {
    let places = |sharding| {
        let pool = builder().sharding(sharding).build().unwrap();
        let base = place(&pool, 256);
        let mut live: Vec<Fragment> = Vec::new();
        let mut places = Vec::new();
        for step in 0..2000_u64 {
            if step % 5 == 4 {
                drop(live.swap_remove(step as usize * 7 % live.len()));
            } else {
                live.push(place(&pool, 1 + step * 7919 % 5000));
            }
            // So that it does not matter when the reaper comes.
            pool.trim();
            let snapshot = pool.snapshot();
            places.push(snapshot.regions.iter().map(|region| region.fragments.clone()).collect::<Vec<_>>());
        }
        drop((base, live));
        assert_empty(&pool);
        places
    };
    assert!(places(Sharding::Auto) == places(Sharding::Never));
}

#[test]
fn what_is_free_in_shards_is_one_with_what_is_free_around_them() {
    let pool = builder().limit_bytes(REGION).build().unwrap();
    let first = place(&pool, 256);
    // Each keeps one fragment of several, in a span of its own.
    let mut kept: Vec<Fragment> = thread::scope(|scope| {
        let place_some = || {
            let mut some: Vec<Fragment> = (0..8).map(|_| place(&pool, 1024)).collect();
            some.swap_remove(4)
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(place_some)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    kept.push(first);
    // The gaps between them, across the ends of the spans, are all there is; each is granted in whole.
    let mut gaps = Vec::new();
    while let Some(gap) = largest_gap(&pool) {
        gaps.push(place(&pool, gap));
        assert_agrees(&pool.snapshot());
    }
    assert_eq!(pool.stats().free_bytes, 0);
    assert!(gaps.len() <= kept.len() + 1, "{} gaps", gaps.len());
    assert!(matches!(pool.place("more", Request::new(1, 1)), Err(Error::LimitReached { .. })));
    drop((kept, gaps));
    assert_empty(&pool);
}

/// The largest range of the only region in which nothing lies.
fn largest_gap(pool: &Pool) -> Option<u64> {
    // What has been dropped is seen.
    pool.trim();
    let snapshot = pool.snapshot();
    let region = &snapshot.regions[0];
    let mut end = 0;
    let mut gaps = Vec::new();
    for fragment in &region.fragments {
        gaps.push(fragment.offset - end);
        end = (fragment.offset + fragment.bytes).next_multiple_of(256);
    }
    gaps.push(region.bytes - end);
    gaps.into_iter().max().filter(|gap| *gap > 0)
}

/// All of the limit is in use at times, and no placement is refused: whatever is free serves whoever asks.
#[test]
fn no_placement_is_refused_while_there_is_room_in_some_shard() {
    const THREADS: u64 = 8;
    const EACH: u64 = 16;
    const BYTES: u64 = 8192;
    let pool = builder().limit_bytes(THREADS * EACH * BYTES).build().unwrap();
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (pool, start) = (&pool, &start);
            scope.spawn(move || {
                start.wait();
                let mut live = Vec::new();
                for step in 0..600_u64 {
                    if live.len() < EACH as usize {
                        live.push(place(pool, BYTES));
                    }
                    if live.len() == EACH as usize {
                        live.drain(..(seed + step) as usize % (EACH as usize + 1));
                    }
                }
            });
        }
    });
    pool.trim();
    let all = place(&pool, THREADS * EACH * BYTES);
    drop(all);
    assert_empty(&pool);
}

#[test]
fn numbers_and_lists_agree_while_threads_place_and_drop() {
    let pool = builder().build().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|seed| {
                scope.spawn({
                    let pool = &pool;
                    move || {
                        let mut live = Vec::new();
                        for step in 0..3000_u64 {
                            live.push(place(pool, 1 + (seed + step) * 7919 % 9000));
                            if live.len() > 30 {
                                live.swap_remove((step % 30) as usize);
                            }
                        }
                    }
                })
            })
            .collect();
        let looks = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_agrees(&pool.snapshot());
            }
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Relaxed);
        looks.join().unwrap();
    });
    assert_empty(&pool);
}

#[test]
fn closing_names_what_is_held_in_every_shard_and_takes_back_the_rest() {
    let pool = builder().build().unwrap();
    let place = |label: &str| pool.place(label, Request::new(1000, 256)).unwrap();
    let first = place("first");
    let (mut held, dropped): (Vec<Fragment>, Vec<Fragment>) = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|n| scope.spawn(move || (place(&format!("held {n}")), place("dropped")))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).unzip()
    });
    drop(dropped);
    let pool = pool.clone().try_close().unwrap_err().open;
    let other = pool.clone();
    let closed = pool.close();
    let mut names: Vec<&str> = closed.held.iter().map(|held| &*held.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["first", "held 0", "held 1", "held 2", "held 3"]);
    assert_eq!((closed.pinned_bytes, closed.pending_bytes), (REGION, 0));
    assert!(matches!(other.place("late", Request::new(10, 256)), Err(Error::Closed { .. })));
    held.push(first);
    let dropper = thread::spawn(move || drop(held));
    let closed = other.close_within(Duration::from_secs(600));
    dropper.join().unwrap();
    assert_eq!((closed.held.len(), closed.pinned_bytes), (0, 0));
}

#[test]
fn drops_in_every_shard_may_meet_a_close() {
    for _ in 0..50 {
        let memory = Arc::new(Limited { limit: u64::MAX, ..Limited::default() });
        let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>)
            .region_bytes(REGION)
            .sharding(Sharding::Always)
            .build()
            .unwrap();
        let placed = Barrier::new(5);
        thread::scope(|scope| {
            for _ in 0..4 {
                let (pool, placed) = (pool.clone(), &placed);
                scope.spawn(move || {
                    let live: Vec<Fragment> = (0..20).map(|n| place(&pool, n * 100)).collect();
                    placed.wait();
                    drop(live);
                    match pool.place("late", Request::new(100, 256)) {
                        Ok(late) => drop(late),
                        Err(error) => assert!(matches!(error, Error::Closed { .. }), "{error}"),
                    }
                });
            }
            placed.wait();
            let closed = pool.close();
            assert!(closed.held.iter().all(|held| held.bytes <= 1900), "{closed:?}");
        });
        // The reaper lets go of the memory when it ends.
        while Arc::strong_count(&memory) > 1 {
            thread::yield_now();
        }
        assert_eq!(memory.reserved.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_range_of_a_shard_whose_address_was_given_out_waits_for_the_memory() {
    let memory = Arc::new(DeviceMemory::default());
    let pool = sharded(&memory);
    let (first, second) = (place(&pool, 1024), place(&pool, 1024));
    let address = second.as_ptr();
    drop(second);
    pool.trim();
    assert_eq!((memory.synchronized.load(Ordering::Relaxed), pool.stats().fragments), (1, 1));
    let third = place(&pool, 1024);
    assert_eq!(third.as_ptr(), address);
    memory.fail_synchronize.store(true, Ordering::Relaxed);
    drop(third);
    pool.trim();
    assert_eq!((pool.stats().lost_bytes, pool.stats().live_bytes), (1024, 1024));
    drop(first);
    pool.trim();
    assert_eq!(pool.stats().regions, 1, "it stays");
}

#[test]
fn a_shard_may_dissolve_while_the_memory_is_synchronized_for_a_range_of_it() {
    let (begun, has_begun) = mpsc::channel();
    let (go, let_go) = mpsc::channel();
    let gate = Mutex::new(Some((begun, let_go)));
    let memory = Arc::new(Limited { limit: REGION, gate, ..Limited::default() });
    let pool = Pool::builder(memory)
        .region_bytes(REGION)
        .limit_bytes(REGION)
        .sharding(Sharding::Always)
        .build()
        .unwrap();
    let (first, second) = (place(&pool, 256), place(&pool, 8192));
    second.view();
    drop(second);
    has_begun.recv().unwrap();
    let before = pool.stats().largest_free_bytes;
    thread::scope(|scope| {
        let large = scope.spawn(|| place(&pool, REGION - 256));
        // The span is no more, and the range that waits is a block of the region.
        while pool.stats().largest_free_bytes == before {
            thread::yield_now();
        }
        assert_eq!(
            (pool.stats().pending_bytes, pool.stats().largest_free_bytes),
            (8192, REGION - 256 - 8192)
        );
        go.send(()).unwrap();
        drop(large.join().unwrap());
    });
    drop(first);
    assert_empty(&pool);
}

#[test]
fn a_range_of_a_shard_that_waits_for_a_stream_is_used_again_in_its_order() {
    let memory = Arc::new(DeviceMemory::default());
    let pool = sharded(&memory);
    let stream = Handle(Stream::new());
    let _first = place(&pool, 256);
    let (used, keep) = (place(&pool, 8192), place(&pool, 256));
    let use_ = used.use_on(&stream).unwrap();
    stream.0.enqueue();
    let address = use_.as_ptr();
    use_.end().unwrap();
    drop(used);
    // All else is taken.
    let mut fill = Vec::new();
    while pool.stats().largest_free_bytes > 0 {
        fill.push(
            pool.place_on(&stream, "fill", Request::new(pool.stats().largest_free_bytes, 256)).unwrap(),
        );
    }
    assert_eq!(pool.stats().regions, 1);
    let again = pool.place_on(&stream, "again", Request::new(8000, 256)).unwrap();
    assert_eq!(again.use_on(&stream).unwrap().as_ptr(), address);
    assert_eq!(memory.reserved.load(Ordering::Relaxed), 1);
    stream.0.finish();
    drop((again, keep, fill));
    pool.trim();
    assert_eq!((pool.stats().pending_bytes, pool.stats().live_bytes), (0, 256));
}

#[test]
fn events_of_threads_are_in_one_order() {
    let (recorder, log) = events::recorder(100_000);
    let pool = builder().events(recorder).build().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut live = Vec::new();
                for step in 0..500 {
                    live.push(place(&pool, step * 10));
                    if step % 3 == 0 {
                        live.swap_remove(step as usize % live.len());
                    }
                }
            });
        }
    });
    assert_empty(&pool);
    pool.close();
    // Reading checks that no two ranges overlap.
    let log = Log::read(&log.write_to(Vec::new()).unwrap()[..]).unwrap();
    let placed = log.events.iter().filter(|(_, event)| matches!(event, Event::Alloc { .. })).count();
    assert_eq!(placed, 4 * 500);
}

/// What a thread does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Place(u64),
    /// Drops one of its own.
    Drop(usize),
    /// Gives one of its own to the next thread, which drops it.
    Pass(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..9000_u64).prop_map(Step::Place),
        1 => (9000..200_000_u64).prop_map(Step::Place),
        3 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    /// Ranges of threads that place, drop and pass on are apart, the limit is held, and all comes back.
    #[test]
    fn live_ranges_are_apart_within_the_limit_and_all_come_back(
        threads in prop::collection::vec(steps(), 2..5), regions in 1..4_u64, retained in any::<bool>()
    ) {
        let limit = regions * REGION;
        let memory = Arc::new(Limited { limit, ..Limited::default() });
        let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>)
            .region_bytes(REGION)
            .limit_bytes(limit)
            .retain_bytes(if retained { limit } else { 0 })
            .sharding(Sharding::Always)
            .build()
            .unwrap();
        let ranges = Mutex::new(BTreeMap::new());
        let enter = |fragment: &Fragment| {
            let (start, end) = (start(fragment), start(fragment) + fragment.len());
            if end > start {
                let mut ranges = ranges.lock().unwrap();
                let below = ranges.range(..end).next_back().is_some_and(|(_, other): (&u64, &u64)| *other > start);
                assert!(!below, "a range overlaps another");
                ranges.insert(start, end);
            }
        };
        // It is no one's before it is dropped.
        let let_go = |fragment: Fragment| {
            ranges.lock().unwrap().remove(&start(&fragment));
            drop(fragment);
        };
        let (senders, receivers): (Vec<_>, Vec<_>) = threads.iter().map(|_| mpsc::channel::<Fragment>()).unzip();
        let mut late = Vec::new();
        thread::scope(|scope| {
            let mut ended = Vec::new();
            for (at, (steps, given)) in threads.iter().zip(receivers).enumerate() {
                let (pool, next) = (&pool, senders[(at + 1) % senders.len()].clone());
                ended.push(scope.spawn(move || {
                    let mut live: Vec<Fragment> = Vec::new();
                    for step in steps {
                        match *step {
                            Step::Place(bytes) => match pool.place("t", Request::new(bytes, 256)) {
                                Ok(fragment) => {
                                    enter(&fragment);
                                    live.push(fragment);
                                }
                                Err(error) => assert!(matches!(error, Error::LimitReached { .. }), "{error}"),
                            },
                            Step::Drop(at) if !live.is_empty() => let_go(live.swap_remove(at % live.len())),
                            Step::Pass(at) if !live.is_empty() => {
                                let _ = next.send(live.swap_remove(at % live.len()));
                            }
                            Step::Drop(_) | Step::Pass(_) => {}
                        }
                        given.try_iter().for_each(let_go);
                    }
                    live.into_iter().for_each(let_go);
                    // What is passed on to it later is dropped when all have ended.
                    given
                }));
            }
            for thread in ended {
                let given = thread.join().unwrap();
                late.push(given);
            }
        });
        late.iter().flat_map(|given| given.try_iter()).for_each(let_go);
        assert_empty(&pool);
        prop_assert_eq!(memory.reserved.load(Ordering::SeqCst), 0);
        drop(pool);
    }
}
