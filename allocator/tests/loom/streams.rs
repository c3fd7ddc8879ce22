//! Guards that end on one thread while another drops or writes, and ranges that are placed on a stream before their uses have ended.

use std::sync::Arc;

use loom::thread;
use tensorhold_allocator::{Error, Fragment, Pool, Request};

use crate::device::Stream;
use crate::memory::Addresses;
use crate::{model_after, place, pool_of};

type Set = (Arc<Addresses>, Pool, Fragment);

/// A fragment, and no room for another.
fn one_fragment() -> Set {
    let (memory, pool) = pool_of(256);
    let fragment = place(&pool, 256);
    (memory, pool, fragment)
}

/// Uses all of a fragment on a stream, and returns what the device does there.
fn work_on(
    memory: &Arc<Addresses>,
    fragment: &Fragment,
    stream: &Stream,
    owner: u32,
) -> impl FnOnce() + 'static {
    let guard = fragment.use_on(stream).unwrap();
    stream.enqueue();
    let (memory, stream) = (Arc::clone(memory), stream.clone());
    let (address, bytes) = (guard.as_ptr().addr(), guard.len());
    guard.end().unwrap();
    move || stream.run(|| memory.write(std::ptr::without_provenance(address), bytes, owner))
}

/// A thread that uses an owner of a range on a stream, and drops it before the device does the work.
fn use_and_drop(memory: &Arc<Addresses>, owner: Fragment, stream: u64) -> thread::JoinHandle<()> {
    let memory = Arc::clone(memory);
    thread::spawn(move || {
        let work = work_on(&memory, &owner, &Stream::new(stream), 1);
        drop(owner);
        work();
    })
}

/// Places and uses a range on a stream: after its earlier use, whether the reaper saw that end or the stream waits for it.
fn place_on(pool: &Pool, memory: &Arc<Addresses>, stream: &Stream, bytes: u64) {
    match pool.place_on(stream, "t", Request::new(bytes, 256)) {
        Ok(next) => work_on(memory, &next, stream, 2)(),
        // The range has not been dropped yet.
        Err(error) => assert!(matches!(error, Error::LimitReached { .. }), "{error}"),
    }
}

fn assert_nothing_is_left(memory: &Addresses, pool: Pool) {
    loom::stop_exploring();
    pool.trim();
    let regions = memory.regions.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((pool.stats().fragments, pool.stats().reserved_bytes, regions), (0, 0, 0));
    pool.close();
}

#[test]
fn a_range_whose_fences_the_reaper_asks_is_placed_on_another_stream_after_its_uses() {
    model_after(one_fragment, 2, |(memory, pool, first)| {
        let (one, two) = (Stream::new(1), Stream::new(2));
        let device = thread::spawn(work_on(&memory, &first, &one, 1));
        drop(first);
        place_on(&pool, &memory, &two, 256);
        device.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

/// Of a range whose fences the reaper asks a part is placed; the other part goes on waiting.
#[test]
fn the_rest_of_a_range_that_is_placed_on_a_stream_is_used_again_after_its_uses() {
    let set_up = || {
        let (memory, pool) = pool_of(512);
        let first = place(&pool, 512);
        (memory, pool, first)
    };
    model_after(set_up, 2, |(memory, pool, first)| {
        let (one, two) = (Stream::new(1), Stream::new(2));
        let device = thread::spawn(work_on(&memory, &first, &one, 1));
        drop(first);
        let next = pool.place_on(&two, "t", Request::new(256, 256)).unwrap();
        let rest = place(&pool, 256);
        memory.write(rest.as_ptr(), 256, 3);
        work_on(&memory, &next, &two, 2)();
        device.join().unwrap();
        drop((next, rest));
        assert_nothing_is_left(&memory, pool);
    });
}

/// The reaper asks the fence of a range, which meanwhile is placed and dropped with a use that has not ended.
#[test]
fn what_is_placed_while_the_reaper_asks_waits_for_its_own_uses() {
    model_after(one_fragment, 2, |(memory, pool, first)| {
        let (one, two) = (Stream::new(1), Stream::new(2));
        work_on(&memory, &first, &one, 1)();
        drop(first);
        let second = pool.place_on(&two, "t", Request::new(256, 256)).unwrap();
        let device = thread::spawn(work_on(&memory, &second, &two, 2));
        drop(second);
        let third = place(&pool, 256);
        memory.write(third.as_ptr(), 256, 3);
        drop(third);
        device.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

#[test]
fn a_range_whose_fences_cannot_be_asked_is_placed_on_a_stream_or_waits_for_the_memory() {
    model_after(one_fragment, 2, |(memory, pool, first)| {
        let one = Stream::new(1);
        *memory.works.lock().unwrap() = Some(one.clone());
        one.break_fences();
        let device = thread::spawn(work_on(&memory, &first, &one, 1));
        drop(first);
        // On the stream where it was used, which keeps the order.
        let second = pool.place_on(&one, "t", Request::new(256, 256)).unwrap();
        device.join().unwrap();
        work_on(&memory, &second, &one, 2)();
        drop(second);
        assert_nothing_is_left(&memory, pool);
    });
}

/// A placer, a dropper and the reaper.
#[test]
fn a_range_that_is_dropped_while_another_thread_places_is_used_again_after_its_uses() {
    model_after(one_fragment, 2, |(memory, pool, first)| {
        let (one, two) = (Stream::new(1), Stream::new(2));
        let work = work_on(&memory, &first, &one, 1);
        let dropper = thread::spawn(move || {
            drop(first);
            work();
        });
        place_on(&pool, &memory, &two, 256);
        dropper.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

/// The device is at it after the guard has ended and both owners have gone.
#[test]
fn a_guard_that_ends_on_one_thread_is_waited_for_whoever_drops_last() {
    model_after(one_fragment, 2, |(memory, pool, fragment)| {
        let other = use_and_drop(&memory, fragment.clone(), 1);
        drop(fragment);
        // Releases the region, if it is free.
        pool.trim();
        other.join().unwrap();
        assert_nothing_is_left(&memory, pool);
    });
}

#[test]
fn guards_of_two_owners_that_end_at_once_are_both_waited_for() {
    let set_up = || {
        let (memory, pool) = pool_of(512);
        let fragment = place(&pool, 512);
        let halves = [0, 256].map(|offset| fragment.slice(offset, 256).unwrap());
        (memory, pool, halves)
    };
    model_after(set_up, 1, |(memory, pool, [first, second])| {
        let users = [use_and_drop(&memory, first, 1), use_and_drop(&memory, second, 2)];
        // The reaper releases the region as soon as it is free.
        users.into_iter().for_each(|user| user.join().unwrap());
        assert_nothing_is_left(&memory, pool);
    });
}

#[test]
fn a_writer_comes_after_a_guard_that_ends_on_another_thread_and_after_its_work() {
    model_after(one_fragment, 3, |(memory, pool, mut fragment)| {
        let other = use_and_drop(&memory, fragment.clone(), 1);
        if let Some(mut view) = fragment.get_mut() {
            memory.write(view.as_mut_ptr(), 256, 2);
        }
        other.join().unwrap();
        let mut view = fragment.get_mut().unwrap();
        memory.write(view.as_mut_ptr(), 256, 3);
        drop(fragment);
        assert_nothing_is_left(&memory, pool);
    });
}

/// What the other owner did with the range by itself, it did before it went.
#[test]
fn a_guard_for_writing_comes_after_all_that_another_owner_did() {
    model_after(one_fragment, 3, |(memory, pool, mut fragment)| {
        memory.write(fragment.as_ptr(), 256, 1);
        let other = {
            let (memory, clone) = (Arc::clone(&memory), fragment.clone());
            thread::spawn(move || {
                memory.read(clone.as_ptr(), 256, 1);
                drop(clone);
            })
        };
        let two = Stream::new(2);
        if let Some(mut guard) = fragment.use_mut_on(&two).unwrap() {
            memory.write(guard.as_mut_ptr(), 256, 2);
            guard.end().unwrap();
        }
        other.join().unwrap();
        assert!(fragment.use_mut_on(&two).unwrap().is_some());
        drop(fragment);
        assert_nothing_is_left(&memory, pool);
    });
}
