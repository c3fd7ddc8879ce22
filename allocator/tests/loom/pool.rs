//! Drops, placements and closes of a pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Mutex;
use loom::thread;
use tensorhold_allocator::{Error, Request};

use crate::{cpu_pool_of, model, model_after, place, pool, sharded};

#[test]
fn what_several_threads_drop_at_once_all_goes_back() {
    model(2, || {
        let (memory, pool) = pool();
        let (one, two) = (place(&pool, 256), place(&pool, 256));
        let other = thread::spawn(move || drop(one));
        drop(two);
        other.join().unwrap();
        // Waits for the reaper: nothing that was pushed is missed, and no wake is lost.
        pool.trim();
        assert_eq!((pool.stats().fragments, pool.stats().reserved_bytes), (0, 0));
        assert_eq!(memory.regions.load(Ordering::Relaxed), 0);
        pool.close();
    });
}

#[test]
fn of_two_owners_one_is_the_last() {
    model(3, || {
        let (_memory, pool) = pool();
        let fragment = place(&pool, 256);
        fragment.view();
        let clone = fragment.clone();
        let other = thread::spawn(move || clone.release());
        let last = [fragment.release(), other.join().unwrap()];
        assert_eq!(last.iter().filter(|last| **last).count(), 1, "{last:?}");
        assert_eq!(pool.close().held.len(), 0);
    });
}

/// An address that one owner gave out is known to the reaper, though another owner was the last.
#[test]
fn what_any_owner_did_is_known_when_the_last_has_gone() {
    model(3, || {
        let (memory, pool) = pool();
        let fragment = place(&pool, 256);
        let clone = fragment.clone();
        let other = thread::spawn(move || {
            clone.view();
            drop(clone);
        });
        drop(fragment);
        other.join().unwrap();
        pool.trim();
        assert_eq!(memory.synchronized.load(Ordering::Relaxed), 1);
        pool.close();
    });
}

#[test]
fn a_drop_that_meets_a_close_is_held_or_given_back_and_the_reaper_ends() {
    model(2, || {
        let (memory, pool) = pool();
        let fragment = place(&pool, 256);
        let other = thread::spawn(move || drop(fragment));
        let handle = pool.clone();
        let closed = pool.close();
        assert!(closed.held.len() <= 1, "{closed:?}");
        // None where the drop and the reaper were quicker than the close.
        assert!([0, 4096].contains(&(closed.released_bytes + closed.pinned_bytes)), "{closed:?}");
        other.join().unwrap();
        // Loom sees to it that the reaper ends: a thread that waits for ever is a failure.
        handle.trim();
        assert_eq!(memory.regions.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_placement_that_meets_a_close_is_refused_or_held() {
    model(2, || {
        let (memory, pool) = pool();
        let handle = pool.clone();
        let other = thread::spawn(move || handle.place("late", Request::new(256, 256)));
        let closed = pool.close();
        match other.join().unwrap() {
            Ok(late) => drop(late),
            Err(error) => assert!(matches!(error, Error::Closed { .. }) && closed.held.is_empty(), "{error}"),
        }
        drop(memory);
    });
}

/// What a store of weights does: readers take an owner of what is installed, a writer installs another.
#[test]
fn a_version_that_is_read_while_it_is_replaced_stays_until_the_reader_is_done() {
    model(2, || {
        let (_memory, pool) = pool();
        let installed = Arc::new(Mutex::new(place(&pool, 256)));
        let reader = {
            let (installed, pool) = (Arc::clone(&installed), pool.clone());
            thread::spawn(move || {
                let version = installed.lock().unwrap().clone();
                // Whichever it is, it is in the books as long as it is read.
                assert!(pool.stats().live_bytes >= version.len());
            })
        };
        let next = place(&pool, 512);
        let old = std::mem::replace(&mut *installed.lock().unwrap(), next);
        drop(old);
        reader.join().unwrap();
        pool.trim();
        assert_eq!((pool.stats().live_bytes, pool.stats().pending_bytes), (512, 0));
        drop(installed);
        assert_eq!(pool.close().pinned_bytes, 0);
    });
}

/// R3: the pool may be gone as soon as the last of its fragments has been pushed, whoever takes it off the queue. What is touched
/// after that only a sanitizer sees (`-Zsanitizer=address`).
#[test]
fn a_last_drop_may_meet_the_end_of_its_pool() {
    for pool in [|| pool().1, || sharded().1] {
        model(2, move || {
            let pool = pool();
            let first = place(&pool, 256);
            let fragment = place(&pool, 256);
            let clone = fragment.clone();
            let other = thread::spawn(move || drop(clone));
            drop(first);
            // May take back what was dropped.
            drop(place(&pool, 256));
            drop(pool);
            drop(fragment);
            other.join().unwrap();
        });
    }
}

/// Two droppers, a placer and the reaper.
#[test]
fn what_two_threads_drop_a_placement_uses_after_them() {
    let set_up = || {
        let (memory, pool) = cpu_pool_of(512);
        let fragments = [1, 2].map(|owner| {
            let fragment = place(&pool, 256);
            memory.write(fragment.as_ptr(), 256, owner);
            (owner, fragment)
        });
        (memory, pool, fragments)
    };
    model_after(set_up, 1, |(memory, pool, fragments)| {
        let droppers = fragments.map(|(owner, fragment)| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.read(fragment.as_ptr(), 256, owner);
                drop(fragment);
            })
        });
        match pool.place("t", Request::new(512, 256)) {
            Ok(both) => memory.write(both.as_ptr(), 512, 3),
            // One of them has not been dropped.
            Err(error) => assert!(matches!(error, Error::LimitReached { .. }), "{error}"),
        }
        droppers.into_iter().for_each(|dropper| dropper.join().unwrap());
        loom::stop_exploring();
        let both = place(&pool, 512);
        memory.write(both.as_ptr(), 512, 4);
        drop(both);
        pool.trim();
        assert_eq!((pool.stats().fragments, memory.regions.load(Ordering::Relaxed)), (0, 0));
        pool.close();
    });
}

/// What any owner reads is not overwritten, whoever of them is the last.
#[test]
fn a_range_is_used_again_after_all_its_owners() {
    let set_up = || {
        let (memory, pool) = cpu_pool_of(256);
        let fragment = place(&pool, 256);
        memory.write(fragment.as_ptr(), 256, 1);
        (memory, pool, fragment)
    };
    model_after(set_up, 2, |(memory, pool, fragment)| {
        let reader = {
            let (memory, clone) = (Arc::clone(&memory), fragment.clone());
            thread::spawn(move || {
                memory.read(clone.as_ptr(), 256, 1);
                drop(clone);
            })
        };
        drop(fragment);
        if let Ok(next) = pool.place("t", Request::new(256, 256)) {
            memory.write(next.as_ptr(), 256, 2);
        }
        reader.join().unwrap();
        loom::stop_exploring();
        pool.close();
    });
}
