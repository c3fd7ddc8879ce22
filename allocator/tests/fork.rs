//! A forked child has no reaper, and locks that other threads held at the fork stay locked: there, what a pool made takes no lock, calls
//! no driver and waits for no one. In a program of its own, since a fork copies every lock as it is.

#[path = "support/parted.rs"]
mod memory;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;

use memory::Parted;
use tensorhold_allocator::events::{self, EventLog};
use tensorhold_allocator::{
    Bases, Closed, Error, Fence, Fragment, HostMemory, Memory, MemoryError, OrderedStream, Pool, RawRegion,
    RegionParts, Request, Reserved, Stats,
};

/// Ends this process with a signal if it is still there after so many seconds: a child that hangs.
const PATIENCE: u32 = 30;

/// Runs `run` in a forked child, and says how that ended.
fn in_child(what: &str, run: impl FnOnce() -> bool) {
    // SAFETY: the child calls what is under test, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no handler is installed: the signal ends the child.
        unsafe { libc::alarm(PATIENCE) };
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let code = held.map_or(2, |held| i32::from(!held));
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: `status` is valid for the write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(!libc::WIFSIGNALED(status), "{what}: signal {} ended the child", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "{what}: 1 if it did what it must not, 2 if it panicked");
}

/// One test forks at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn drops_in_a_forked_child_do_nothing_and_wait_for_no_one() {
    let _alone = alone();
    let pool = Pool::new(HostMemory::new()).unwrap();
    let mut fragment = pool.place("t", Request::new(1000, 256)).unwrap();
    fragment.as_bytes_mut().unwrap().fill(7);
    let address = fragment.as_ptr();
    let mut taken = Some((fragment, pool));
    in_child("drop", || {
        let (fragment, pool) = taken.take().unwrap();
        drop(fragment);
        pool.trim();
        drop(pool);
        // SAFETY: M1: nothing was given back, or this ends the child with a signal.
        unsafe { address.read() == 7 }
    });
    let (fragment, pool) = taken.take().unwrap();
    drop(fragment);
    pool.trim();
    assert_eq!(pool.stats().reserved_bytes, 0);
}

/// Calls of the driver in this process.
static CALLS: AtomicUsize = AtomicUsize::new(0);

struct Done;

// SAFETY: O1: nothing works on the memory.
unsafe impl Fence for Done {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    fn wait(&self) -> Result<(), MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

struct Stream;

// SAFETY: O2, O3: nothing works on the memory; there is one stream.
unsafe impl OrderedStream for Stream {
    fn id(&self) -> u64 {
        1
    }

    fn check(&self) -> Result<(), MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Done))
    }

    fn wait_for(&self, _: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Host memory whose calls count.
#[derive(Default)]
struct Device(HostMemory);

impl Drop for Device {
    fn drop(&mut self) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: HostMemory's; nothing else works on it.
unsafe impl Memory for Device {
    fn name(&self) -> &str {
        "device"
    }

    fn is_host_accessible(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        self.0.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.0.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// All that a pool makes.
struct Owners {
    pool: Pool,
    log: EventLog,
    used: Fragment,
    reserved: Reserved,
    bases: Bases,
}

fn owners(memory: Arc<dyn Memory>) -> Owners {
    let (recorder, log) = events::recorder(1 << 20);
    let builder = Pool::builder(memory).region_parts(RegionParts::Auto).events(recorder);
    let pool = builder.build().unwrap();
    let used = pool.place("used", Request::new(4096, 256)).unwrap();
    used.use_on(&Stream).unwrap().end().unwrap();
    let layout = pool.lay_out([Request::new(1 << 20, 256)]).unwrap();
    let reserved = pool.reserve_planned(&layout, "batch").unwrap();
    let bases = reserved.bases();
    Owners { pool, log, used, reserved, bases }
}

/// What a child may try.
type Deed = (&'static str, fn(Owners) -> bool);

fn is_forked<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Forked { .. }))
}

const DEEDS: &[Deed] = &[
    ("drop all", |_| true),
    ("close", |owners| owners.pool.close() == Closed::default()),
    ("close within", |owners| owners.pool.close_within(std::time::Duration::MAX) == Closed::default()),
    ("try close", |owners| owners.pool.try_close().is_ok_and(|closed| closed == Closed::default())),
    ("trim", |owners| {
        owners.pool.trim();
        owners.pool.trim_to(7);
        true
    }),
    ("stats", |owners| owners.pool.stats() == Stats::default()),
    ("snapshot", |owners| owners.pool.snapshot().regions.is_empty()),
    ("place", |owners| is_forked(owners.pool.place("t", Request::new(16, 16)))),
    ("place nothing", |owners| is_forked(owners.pool.place("t", Request::new(0, 16)))),
    ("place on", |owners| is_forked(owners.pool.place_on(&Stream, "t", Request::new(16, 16)))),
    ("place a batch", |owners| {
        let layout = owners.pool.lay_out([Request::new(1 << 20, 256)]).unwrap();
        is_forked(owners.pool.place_planned(&layout, &["t".into()]))
            && is_forked(owners.pool.reserve_planned(&layout, "t"))
            && is_forked(owners.pool.reserve_planned_apart(&layout, "t"))
    }),
    ("place what was reserved", |mut owners| {
        let layout = owners.pool.lay_out([Request::new(1 << 20, 256)]).unwrap();
        is_forked(owners.reserved.place(&layout, vec!["t".into()]))
    }),
    ("use", |mut owners| {
        is_forked(owners.used.use_on(&Stream)) && is_forked(owners.used.use_mut_on(&Stream))
    }),
    ("clone, slice and release", |owners| {
        let clone = owners.used.clone();
        let slice = clone.slice(0, 16).unwrap();
        drop(owners.used);
        !slice.release() && clone.release()
    }),
    // Whether the recorded use has ended is not known here.
    ("write", |mut owners| owners.used.get_mut().is_none()),
    ("read", |owners| {
        owners.used.as_bytes();
        true
    }),
    ("bring up", |owners| {
        owners.bases.bring_up(|| false);
        let waited = owners.bases.wait_for(0, 1);
        if owners.pool.is_parted() { is_forked(waited) } else { waited.is_ok() }
    }),
    ("read the log", |owners| {
        let nothing = owners.log.header().is_none() && owners.log.take().is_empty() && !owners.log.is_full();
        nothing && owners.log.write_to(Vec::new()).is_err()
    }),
    ("show", |owners| {
        let shown = format!("{:?} {:?} {:?}", owners.pool, owners.reserved, owners.bases);
        let other = format!("{:?} {:?}", owners.used, owners.log);
        !shown.is_empty() && !other.is_empty()
    }),
];

/// Keeps the books, and the log, locked nearly all the time: a fork finds them so.
struct Busy {
    ends: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Busy {
    fn with(pool: &Pool, log: &EventLog) -> Self {
        let (ends, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(3)));
        let held: Vec<Fragment> =
            (0..5000).map(|_| pool.place("held", Request::new(1, 1)).unwrap()).collect();
        let spawn = |run: Box<dyn Fn() + Send>| {
            let (ends, begun) = (Arc::clone(&ends), Arc::clone(&begun));
            thread::spawn(move || {
                begun.wait();
                while !ends.load(Ordering::Relaxed) {
                    run();
                }
            })
        };
        let (ours, log) = (pool.clone(), log.clone());
        let snapshots = spawn(Box::new(move || {
            assert!(ours.snapshot().stats.fragments >= held.len());
        }));
        let takes = spawn(Box::new(move || drop((log.take(), log.header()))));
        begun.wait();
        Self { ends, threads: vec![snapshots, takes] }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn nothing_that_a_pool_made_hangs_in_a_forked_child_or_calls_a_driver() {
    let _alone = alone();
    for memory in [Arc::new(Device::default()) as Arc<dyn Memory>, Arc::new(Parted::default())] {
        let parts = owners(Arc::clone(&memory));
        let busy = Busy::with(&parts.pool, &parts.log);
        let mut parts = Some(parts);
        for (what, deed) in DEEDS {
            for _ in 0..3 {
                in_child(what, || {
                    let before = CALLS.load(Ordering::Relaxed);
                    deed(parts.take().unwrap()) && CALLS.load(Ordering::Relaxed) == before
                });
            }
        }
        drop(busy);
        // The parent's are as they were.
        let Owners { pool, used, reserved, .. } = parts.take().unwrap();
        drop((used, reserved));
        pool.trim();
        assert_eq!((pool.stats().live_bytes, pool.stats().reserved_bytes), (0, 0));
    }
}

#[test]
fn a_guard_that_ends_in_a_forked_child_records_nothing() {
    let _alone = alone();
    let Owners { mut used, .. } = owners(Arc::new(Device::default()));
    let guard = Mutex::new(Some(used.use_on(&Stream).unwrap()));
    let silent = |run: &dyn Fn() -> bool| {
        let before = CALLS.load(Ordering::Relaxed);
        run() && CALLS.load(Ordering::Relaxed) == before
    };
    in_child("drop", || silent(&|| guard.lock().unwrap().take().map(drop).is_some()));
    in_child("end", || silent(&|| is_forked(guard.lock().unwrap().take().unwrap().end())));
    guard.into_inner().unwrap().unwrap().end().unwrap();
    let guard = Mutex::new(Some(used.use_mut_on(&Stream).unwrap().unwrap()));
    in_child("end of a write", || silent(&|| is_forked(guard.lock().unwrap().take().unwrap().end())));
}

#[test]
fn the_last_handle_of_a_pool_that_ended_before_the_fork_drops_no_memory_in_the_child() {
    let _alone = alone();
    let pool = Pool::builder(Arc::new(Device::default())).build().unwrap();
    assert!(pool.clone().close().held.is_empty());
    // The reaper ends soon, and with it its reference to the pool.
    let parted =
        Pool::builder(Arc::new(Parted::default())).region_parts(RegionParts::Require).build().unwrap();
    let layout = parted.lay_out([Request::new(1 << 20, 256)]).unwrap();
    let bases = parted.reserve_planned(&layout, "batch").unwrap().bases();
    parted.close();
    let mut taken = Some((pool, bases));
    for _ in 0..20 {
        in_child("drop", || {
            let before = CALLS.load(Ordering::Relaxed);
            drop(taken.take());
            CALLS.load(Ordering::Relaxed) == before
        });
        thread::yield_now();
    }
}

#[test]
fn a_child_makes_pools_of_its_own() {
    let _alone = alone();
    let builder = Mutex::new(Some(Pool::builder(Arc::new(HostMemory::new()))));
    in_child("a builder of the parent's", || {
        let pool = builder.lock().unwrap().take().unwrap().build().unwrap();
        let fragment = pool.place("t", Request::new(1000, 256)).unwrap();
        let placed = pool.stats().live_bytes == 1000;
        drop(fragment);
        let closed = pool.close();
        placed && closed.held.is_empty() && closed.released_bytes > 0
    });
}
