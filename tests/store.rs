//! Weights that are replaced while they serve.

mod support;

use std::sync::Arc;

use support::versions::{loader, number_of, swaps_under_readers, version, versions};
use support::{Spec, assert_all_back, assert_holds, bytes_tensor, devices, header, pool_for, tensor, write};
use tensorhold::{Device, Error, Loader, Pool, WeightStore, Weights};

#[test]
fn a_snapshot_stays_what_it_is_and_goes_with_its_last_reader() {
    let folder = versions(&[1, 2, 3]);
    for device in devices() {
        let pool = pool_for(&device);
        let store = WeightStore::load(loader(&device, &folder, 1).pool(&pool)).unwrap();
        let first = store.snapshot();
        let kept = first.tensor("a").unwrap();
        assert_eq!(number_of(&store.reload(loader(&device, &folder, 2)).unwrap()), 1);
        assert_eq!((number_of(&first), number_of(&store.snapshot()), store.generation()), (1, 2, 1));
        drop(store.reload(loader(&device, &folder, 3)).unwrap());
        let old = store.old_versions();
        assert_eq!((old.len(), old[0].generation, old[0].bytes), (1, 0, 75_000));
        drop(first);
        assert_eq!((store.old_versions(), store.generation()), (vec![], 2));
        pool.trim();
        // One version and one tensor of another.
        assert_eq!((pool.stats().fragments, number_of(&store.snapshot())), (4, 3));
        assert_eq!(kept.to_host().unwrap(), version(1)[0].bytes);
        drop((store, kept));
        assert_all_back(&pool);
    }
}

#[test]
fn an_update_replaces_some_tensors_and_shares_the_others() {
    let folder = versions(&[1]);
    let patch = folder.path().join("patch");
    write(&patch, &version(2)[1..]);
    for device in devices() {
        let store = WeightStore::load(loader(&device, &folder, 1)).unwrap();
        let replaced = store.update(Loader::new(device.clone()).files([&patch])).unwrap();
        let now = store.snapshot();
        assert_holds(&now, &[&version(1)[..1], &version(2)[1..]].concat());
        let address = |weights: &Weights, name| weights.view(name).unwrap().as_ptr();
        assert_eq!(address(&now, "a"), address(&replaced, "a"));
        assert_ne!(address(&now, "b"), address(&replaced, "b"));
        assert_eq!(now.names().collect::<Vec<_>>(), replaced.names().collect::<Vec<_>>());
        assert_eq!(number_of(&replaced), 1);
        drop(replaced);
        store.pool().trim();
        assert_eq!(store.pool().stats().fragments, 3);
    }
}

#[test]
fn a_load_or_an_update_that_fails_leaves_what_serves() {
    let folder = versions(&[1, 2]);
    let write_header = |name: &str, specs: &[Spec]| write(&folder.path().join(name), specs);
    write_header("unknown", &[bytes_tensor("c", 5)]);
    write_header("shape", &[tensor("b", "U8", &[50, 100], 5000)]);
    write_header("dtype", &[version(2).remove(2), tensor("b", "I8", &[5000], 5000)]);
    std::fs::write(folder.path().join("damaged"), header(&version(2))).unwrap();
    for device in devices() {
        let pool = Pool::builder(device.memory()).limit_bytes(100_000).build().unwrap();
        let store = WeightStore::load(loader(&device, &folder, 1).pool(&pool)).unwrap();
        let named = |name: &str| Loader::new(device.clone()).files([folder.path().join(name)]);
        let no_room = store.reload(named("2")).unwrap_err().to_string();
        assert!(no_room.contains("limit"), "{no_room}");
        let message = |name| store.update(named(name)).unwrap_err().to_string();
        assert!(message("unknown").contains("\"c\""), "{}", message("unknown"));
        for (name, got) in [("shape", "U8[50, 100]"), ("dtype", "I8[5000]")] {
            let message = message(name);
            assert!(message.contains(got) && message.contains("U8[5000]"), "{message}");
        }
        assert!(matches!(store.reload(named("damaged")), Err(Error::Header { .. })));
        assert!(matches!(store.update(named("absent")), Err(Error::Io { .. })));
        assert_eq!((number_of(&store.snapshot()), store.generation()), (1, 0));
        pool.trim();
        assert_eq!(pool.stats().fragments, 3);
        // With the old version gone there is room.
        let old = store.into_current();
        assert_eq!(Arc::try_unwrap(old).unwrap().close().released_bytes, 75_000);
        assert_eq!(number_of(&named("2").pool(&pool).load().unwrap()), 2);
    }
}

#[test]
fn closing_a_version_leaves_the_pool_of_a_store_open() {
    let folder = versions(&[1, 2]);
    let store = WeightStore::load(loader(&Device::host(), &folder, 1)).unwrap();
    let old = store.reload(loader(&Device::host(), &folder, 2)).unwrap();
    let closed = Arc::try_unwrap(old).unwrap().close();
    assert_eq!((closed.released_bytes, closed.held.len(), closed.pinned_bytes), (75_000, 0, 0));
    store.reload(loader(&Device::host(), &folder, 1)).unwrap();
    assert_eq!(number_of(&store.snapshot()), 1);
}

#[test]
fn two_hundred_swaps_under_readers_tear_nothing_and_leak_nothing() {
    for device in devices() {
        swaps_under_readers(&device);
    }
}
