//! Whole loads with faulty engines: support for the tests in this folder.

mod cufile;
mod distrust;
mod faults;
mod transform_faults;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Loader;
use crate::error::Error;
use crate::io::faulty::{Fault, Faults, Faulty};
use crate::io::residency::Probe;
use crate::io::{Backend, Buffered, Engine, Engines};
use crate::report::Report;
use crate::test_support::{self, Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for};

fn tensors() -> Vec<Spec> {
    let sizes = [5_000_000, 100, 0, 3_000_017, 77_777, 1, 4096, 2_000_000];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn reads(faults: impl IntoIterator<Item = (u64, Fault)>) -> Faults {
    Faults { reads: faults.into_iter().collect(), ..Faults::default() }
}

/// `count` reads that stop short, are interrupted, or would have to wait. The latter two are fewer than the
/// trials of one read, since one may meet them all.
fn halting(count: u64, short: usize) -> Faults {
    let step = |most: u64| (count / most).max(2);
    let (interrupted, waits) = (step(200), step(12));
    reads((0..count).map(|read| match read {
        _ if read % waits == waits - 1 => (read, Fault::Errno(libc::EAGAIN)),
        _ if read % interrupted == 1 => (read, Fault::Errno(libc::EINTR)),
        _ => (read, Fault::Short(short)),
    }))
}

fn every(fault: Fault) -> Faults {
    Faults { every_read: Some(fault), ..Faults::default() }
}

fn errno(errno: i32) -> Faults {
    every(Fault::Errno(errno))
}

/// Engines whose direct reads are faulty.
fn faulty_direct<E: Engine + 'static>(engine: impl Fn() -> E, faults: &Faults) -> (Engines, Arc<Faulty<E>>) {
    let faulty = Arc::new(Faulty::new(engine(), faults.clone()));
    let engines =
        Engines { direct: Arc::clone(&faulty) as _, uring: Arc::clone(&faulty) as _, ..Engines::default() };
    (engines, faulty)
}

/// Engines whose buffered reads are faulty.
fn faulty_buffered(faults: &Faults) -> (Engines, Arc<Faulty<Buffered>>) {
    let faulty = Arc::new(Faulty::new(Buffered, faults.clone()));
    (Engines { buffered: Arc::clone(&faulty) as _, ..Engines::default() }, faulty)
}

/// Loads with these engines onto each device, and checks the outcome. The pool is empty afterwards, whatever
/// the outcome.
fn with<E: Engine>(
    path: &Path,
    backend: Backend,
    (engines, faulty): &(Engines, Arc<Faulty<E>>),
    check: impl Fn(Result<Report, Error>),
    tensors: &[Spec],
) {
    for device in devices() {
        for threads in [1, 4] {
            let pool = pool_for(&device);
            let _cached = test_support::Kept::new(path, std::fs::metadata(path).unwrap().len() as usize);
            let loader =
                Loader::new(device.clone()).files([path]).backend(backend).pool(&pool).threads(threads);
            let loaded = loader.engines(engines.clone()).load();
            check(loaded.map(|weights| {
                assert_holds(&weights, tensors);
                weights.report().clone()
            }));
            assert_all_back(&pool);
            assert_eq!(faulty.in_flight.load(Ordering::Relaxed), 0);
        }
    }
    assert!(faulty.reads() > 0, "the faulty engine was not used");
}

/// Nothing is cached.
fn uncached() -> Engines {
    Engines { probe: || Probe::counting(|_, _, _| Ok(0)), ..Engines::default() }
}
