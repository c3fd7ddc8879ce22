//! Races, in every order that matters (up to a bound on preemptions): run by `scripts/test` with `--cfg loom`.
#![cfg(loom)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use loom::sync::Mutex;
use loom::thread;
use tensorhold_allocator::{
    Error, Fragment, Memory, MemoryError, MemoryId, Pool, RawRegion, Request, Sharding,
};

/// Addresses without memory, and a count of the regions that are out.
#[derive(Default)]
struct Addresses {
    regions: AtomicUsize,
    synchronized: AtomicUsize,
}

// SAFETY: M1: each region is a range of its own of addresses that no one touches. M2 is not claimed, and there is no work for M3.
unsafe impl Memory for Addresses {
    fn name(&self) -> &str {
        "addresses"
    }

    fn id(&self) -> MemoryId {
        static ID: LazyLock<MemoryId> = LazyLock::new(MemoryId::new);
        *ID
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, _: u64) -> Result<RawRegion, MemoryError> {
        let number = self.regions.fetch_add(1, Ordering::Relaxed) + 1;
        let base = NonNull::new(std::ptr::without_provenance_mut(number << 40)).ok_or("no address")?;
        Ok(RawRegion { base, bytes })
    }

    unsafe fn release(&self, _: RawRegion) -> Result<(), MemoryError> {
        self.regions.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        self.synchronized.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(check);
}

fn pool() -> (Arc<Addresses>, Pool) {
    let memory = Arc::new(Addresses::default());
    let pool = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).region_bytes(4096).build().unwrap();
    (memory, pool)
}

fn place(pool: &Pool, bytes: u64) -> Fragment {
    pool.place("t", Request::new(bytes, 256)).unwrap()
}

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

/// Its region has spans of 1 KiB, in which fragments of 256 bytes lie; it cannot grow.
fn sharded() -> (Arc<Addresses>, Pool) {
    let memory = Arc::new(Addresses::default());
    let builder = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).sharding(Sharding::Always);
    (memory, builder.region_bytes(SHARED).limit_bytes(SHARED).build().unwrap())
}

const SHARED: u64 = 32 << 10;

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
        let memory = Arc::new(Addresses::default());
        let builder = Pool::builder(Arc::clone(&memory) as Arc<dyn Memory>).sharding(Sharding::Always);
        let pool = builder.region_bytes(SHARED).limit_bytes(2 * SHARED).build().unwrap();
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
