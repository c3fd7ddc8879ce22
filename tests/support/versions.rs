//! Checkpoints in several versions, and stores that go from one to the other.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tempfile::TempDir;
use tensorhold::{Device, Loader, WeightStore, Weights};

use super::{Spec, assert_all_back, assert_holds, bytes_tensor, pool_for, write};

const NAMES: [&str; 3] = ["a", "b", "empty"];
const SIZES: [usize; 3] = [70_000, 5000, 0];

/// Tensors of the same names and sizes, whose bytes all are those of a version.
pub fn version(number: u8) -> Vec<Spec> {
    let spec = |(name, size): (&str, usize)| Spec { bytes: vec![number; size], ..bytes_tensor(name, size) };
    NAMES.into_iter().zip(SIZES).map(spec).collect()
}

/// A folder with a file for each of some versions.
pub fn versions(numbers: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for &number in numbers {
        write(&folder.path().join(number.to_string()), &version(number));
    }
    folder
}

/// Loads the file of a version.
pub fn loader(device: &Device, folder: &TempDir, number: u8) -> Loader {
    Loader::new(device.clone()).files([folder.path().join(number.to_string())])
}

/// Which version all bytes are of.
pub fn number_of(weights: &Weights) -> u8 {
    let first = weights.view("b").unwrap().to_host().unwrap()[0];
    assert_holds(weights, &version(first));
    first
}

/// Two hundred swaps under readers tear nothing and leak nothing.
pub fn swaps_under_readers(device: &Device) {
    let folder = versions(&[1, 2]);
    let pool = pool_for(device);
    let store = WeightStore::load(loader(device, &folder, 1).pool(&pool)).unwrap();
    let (ended, begun) = (AtomicBool::new(false), Barrier::new(5));
    thread::scope(|scope| {
        let read = || {
            begun.wait();
            let mut seen = [0; 3];
            // Once more after the end: each reader has read something.
            loop {
                let last = ended.load(Ordering::Acquire);
                seen[usize::from(number_of(&store.snapshot()))] += 1;
                if last {
                    return seen;
                }
            }
        };
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(read)).collect();
        begun.wait();
        for swap in 0..200 {
            // Some swap in what they had, some load anew, some replace a part after another.
            let number = 2 - swap % 2;
            match swap % 3 {
                0 => drop(store.swap(loader(device, &folder, number).pool(&pool).load().unwrap())),
                1 => drop(store.reload(loader(device, &folder, number)).unwrap()),
                _ => drop(store.update(loader(device, &folder, number)).unwrap()),
            }
        }
        ended.store(true, Ordering::Release);
        for reader in readers {
            let seen = reader.join().unwrap();
            assert!(seen[0] == 0 && seen[1] + seen[2] > 0);
        }
    });
    assert_eq!((store.generation(), store.old_versions()), (200, vec![]));
    pool.trim();
    assert_eq!(pool.stats().fragments, 3);
    drop(store);
    assert_all_back(&pool);
}
