//! Shards that dissolve while threads place and drop in them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::thread;
use tensorhold_allocator::{Error, Fragment, Pool, Request, Sharding};

use crate::device::Stream;
use crate::memory::Addresses;
use crate::{SHARED, builder, model, model_after, place, sharded};

#[test]
fn what_is_dropped_in_a_shard_goes_back_whoever_drops_it() {
    model(2, || {
        let (memory, pool) = sharded();
        let first = place(&pool, 256);
        let (one, two) = (place(&pool, 256), place(&pool, 256));
        // It is the reaper's to give back.
        two.view();
        let other = thread::spawn(move || drop(one));
        drop(two);
        let three = place(&pool, 256);
        other.join().unwrap();
        drop((first, three));
        pool.trim();
        assert_eq!((pool.stats().fragments, pool.stats().reserved_bytes), (0, 0));
        assert_eq!(memory.regions.load(Ordering::Relaxed), 0);
        pool.close();
    });
}

/// What a thread has dropped serves a placement that no shard has room for, wherever the drop has come to.
#[test]
fn a_drop_in_a_shard_that_meets_a_large_placement_makes_room_for_it() {
    model(2, || {
        let (_memory, pool) = sharded();
        let first = place(&pool, 256);
        let dropped = place(&pool, 256);
        let handle = pool.clone();
        let other = thread::spawn(move || {
            drop(dropped);
            // Takes back what it dropped, and drops again.
            drop(handle.place("again", Request::new(256, 256)).unwrap());
        });
        // The first lies before its span and the second at the start of the next, at most: behind that there is just this room, once
        // no span is in the way.
        let large = place(&pool, SHARED - 256 - 1024 - 256);
        other.join().unwrap();
        drop((first, large));
        assert_eq!(pool.close().held.len(), 0);
    });
}

#[test]
fn a_placement_in_a_shard_that_meets_a_close_is_refused_or_held() {
    model(2, || {
        let (memory, pool) = sharded();
        let first = place(&pool, 256);
        let handle = pool.clone();
        let other = thread::spawn(move || handle.place("late", Request::new(256, 256)));
        let closed = pool.close();
        let late = other.join().unwrap();
        if let Err(error) = &late {
            assert!(matches!(error, Error::Closed { .. }) && closed.held.len() == 1, "{error}");
        }
        drop((first, late));
        // Loom sees to it that the reaper ends.
        drop(memory);
    });
}

/// Of two regions that are empty once their spans are no more, the large placement takes one.
#[test]
fn a_region_that_a_dissolved_shard_leaves_empty_goes_back_though_no_one_asks() {
    model(2, || {
        let (memory, builder) = builder();
        let pool =
            builder.sharding(Sharding::Always).region_bytes(SHARED).limit_bytes(2 * SHARED).build().unwrap();
        let first = place(&pool, 256);
        let mut small: Vec<Fragment> = (0..4).map(|_| place(&pool, 256)).collect();
        // The rest of the first region, so that there is a second, and a span in it.
        let rest = place(&pool, SHARED - 256 - 1024);
        let second = place(&pool, 256);
        small.push(place(&pool, 256));
        drop((first, rest, second));
        pool.trim();
        assert_eq!(memory.regions.load(Ordering::Relaxed), 2);
        // The first drop wakes the reaper, which may have looked before the others.
        drop(small);
        let large = place(&pool, SHARED);
        while memory.regions.load(Ordering::Relaxed) > 1 {
            thread::yield_now();
        }
        drop(large);
        pool.close();
    });
}

/// All of the region but its first granule.
fn place_the_rest(memory: &Addresses, pool: &Pool) -> Result<Fragment, Error> {
    let rest = pool.place("rest", Request::new(SHARED - 256, 256))?;
    memory.write(rest.as_ptr(), rest.len(), 9);
    Ok(rest)
}

/// As [`place_the_rest`], while `other` gives back what lies there.
fn dissolve_against(memory: &Addresses, pool: &Pool, other: thread::JoinHandle<()>) {
    let rest = place_the_rest(memory, pool);
    other.join().unwrap();
    if let Err(error) = rest {
        assert!(matches!(error, Error::LimitReached { .. }), "{error}");
        place_the_rest(memory, pool).unwrap();
    }
}

/// A pool whose first granule is taken, and a fragment in a span.
fn one_in_a_span() -> (Arc<Addresses>, Pool, [Fragment; 2]) {
    let (memory, pool) = sharded();
    let fragments = [(); 2].map(|()| place(&pool, 256));
    (memory, pool, fragments)
}

fn assert_nothing_is_left(memory: &Addresses, pool: Pool) {
    loom::stop_exploring();
    pool.trim();
    assert_eq!((pool.stats().fragments, memory.regions.load(Ordering::Relaxed)), (0, 0));
    pool.close();
}

/// A placer, a dropper and the reaper.
#[test]
fn what_waits_for_the_memory_in_a_span_that_dissolves_is_free_after_its_work() {
    model_after(one_in_a_span, 2, |(memory, pool, [first, dropped])| {
        let one = Stream::new(1);
        *memory.works.lock().unwrap() = Some(one.clone());
        let address = dropped.as_ptr().addr();
        one.enqueue();
        let other = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                drop(dropped);
                one.run(|| memory.write(std::ptr::without_provenance(address), 256, 1));
            })
        };
        dissolve_against(&memory, &pool, other);
        drop(first);
        assert_nothing_is_left(&memory, pool);
    });
}

/// A placer, a dropper and the reaper.
#[test]
fn what_waits_for_fences_in_a_span_that_dissolves_is_free_after_its_work() {
    model_after(one_in_a_span, 2, |(memory, pool, [first, dropped])| {
        let one = Stream::new(1);
        let guard = dropped.use_on(&one).unwrap();
        let address = guard.as_ptr().addr();
        one.enqueue();
        guard.end().unwrap();
        let other = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                drop(dropped);
                one.run(|| memory.write(std::ptr::without_provenance(address), 256, 1));
            })
        };
        dissolve_against(&memory, &pool, other);
        drop(first);
        assert_nothing_is_left(&memory, pool);
    });
}

/// Two droppers, a placer and the reaper.
#[test]
fn what_two_threads_drop_in_a_shard_that_dissolves_goes_back_once() {
    let set_up = || {
        let (memory, pool) = sharded();
        let first = place(&pool, 256);
        let dropped = [1, 2].map(|owner| {
            let dropped = place(&pool, 256);
            memory.write(dropped.as_ptr(), 256, owner);
            (owner, dropped)
        });
        (memory, pool, first, dropped)
    };
    model_after(set_up, 1, |(memory, pool, first, dropped)| {
        let [one, two] = dropped.map(|(owner, dropped)| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.read(dropped.as_ptr(), 256, owner);
                drop(dropped);
            })
        });
        let rest = place_the_rest(&memory, &pool);
        one.join().unwrap();
        drop(rest);
        dissolve_against(&memory, &pool, two);
        drop(first);
        assert_nothing_is_left(&memory, pool);
    });
}

/// A dropper, a placer and the reaper, which synchronizes the memory for a range while another is dropped whose work it has not waited for.
#[test]
fn what_is_dropped_in_a_shard_while_the_memory_is_synchronized_waits_for_the_next_time() {
    let set_up = || {
        let (memory, pool, [first, one]) = one_in_a_span();
        let two = place(&pool, 256);
        (memory, pool, first, one, two)
    };
    model_after(set_up, 2, |(memory, pool, first, one, two)| {
        let stream = Stream::new(1);
        *memory.works.lock().unwrap() = Some(stream.clone());
        // The reaper waits for this work.
        stream.enqueue();
        one.view();
        drop(one);
        while memory.synchronized.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let address = two.as_ptr().addr();
        stream.enqueue();
        drop(two);
        // Takes back what was dropped.
        let mut next = vec![place(&pool, 256)];
        stream.run(|| {});
        thread::yield_now();
        next.extend((0..3).map(|_| place(&pool, 256)));
        let device = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || stream.run(|| memory.write(std::ptr::without_provenance(address), 256, 1)))
        };
        next.iter().for_each(|next| memory.write(next.as_ptr(), 256, 2));
        device.join().unwrap();
        drop((first, next));
        assert_nothing_is_left(&memory, pool);
    });
}
