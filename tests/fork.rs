//! In a forked child drops do nothing, and what belongs to the parent is refused: no child waits for a thread that it does not have. A program of its own,
//! in which nothing but these tests forks.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs};

use support::fork::in_child;
use support::threads::ThreadGroup;
use support::{Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for, single};
use tensorhold::group::{ProcessGroup, Relay, Shared, SingleGroup};
use tensorhold::save::{Draft, Durability, Entry, PlanOptions, plan_shards};
use tensorhold::{Batching, DType, Device, Error, Loader, Tensor, TensorInfo, WeightStore};

fn tensors() -> Vec<Spec> {
    (0..8).map(|n| bytes_tensor(&format!("t{n}"), 700_000 + n)).collect()
}

/// A load whose thread waits, once the first bytes have landed, until the sender is dropped.
fn held(device: &Device, path: &Path) -> (Loader, Sender<()>, Receiver<()>) {
    let (go, wait) = mpsc::channel();
    let (tell, landed) = mpsc::channel();
    let loader = Loader::new(device.clone()).files([path]).threads(1).progress(move |progress| {
        if progress.done_bytes > 0 {
            let _ = tell.send(());
            let _ = wait.recv();
        }
        ControlFlow::Continue(())
    });
    (loader, go, landed)
}

#[track_caller]
fn assert_forked<T>(found: Result<T, Error>) {
    match found {
        Ok(_) => panic!("it was not refused"),
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("was forked from") && message.contains(';'), "{message}");
        }
    }
}

#[test]
fn a_child_drops_a_running_stream_and_is_refused_its_tensors() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        let (loader, go, landed) = held(&device, &path);
        let mut stream = loader.pool(&pool).stream().unwrap();
        landed.recv().unwrap();
        let first = stream.next().unwrap().unwrap();
        let mut stream = Some(stream);
        in_child(|| drop(stream.take()));
        in_child(|| {
            let mut stream = stream.take().unwrap();
            assert_forked(stream.next().unwrap());
            assert!(stream.next().is_none() && stream.next_within(Duration::ZERO).unwrap().is_none());
        });
        in_child(|| assert_forked(stream.take().unwrap().next_within(Duration::MAX).unwrap().unwrap()));
        in_child(|| assert_forked(stream.take().unwrap().in_file_order().last().unwrap()));
        in_child(|| assert_forked(stream.take().unwrap().finish()));
        drop(go);
        // The parent's goes on.
        let rest: Vec<Tensor> = stream.as_mut().unwrap().map(Result::unwrap).collect();
        assert_eq!(rest.len(), tensors.len() - 1);
        drop((first, rest));
        assert_holds(&stream.unwrap().finish().unwrap(), &tensors);
        assert_all_back(&pool);
    }
}

#[test]
fn a_child_drops_a_stream_that_has_ended() {
    let (_folder, path) = single(&tensors());
    for device in devices() {
        let mut stream = Some(Loader::new(device).files([path.clone()]).stream().unwrap());
        assert_eq!(stream.as_mut().unwrap().by_ref().count(), tensors().len());
        in_child(|| drop(stream.take()));
        in_child(|| assert_holds(&stream.take().unwrap().finish().unwrap(), &tensors()));
        assert_holds(&stream.unwrap().finish().unwrap(), &tensors());
    }
}

#[test]
fn a_child_drops_batches_that_are_read_and_is_refused_the_next() {
    let (_folder, path) = single(&tensors());
    for device in devices() {
        let (loader, go, landed) = held(&device, &path);
        let mut batches = Some(loader.batches(Batching::new().max_batch_bytes(800_000).ahead(2)).unwrap());
        landed.recv().unwrap();
        in_child(|| drop(batches.take()));
        in_child(|| {
            let mut batches = batches.take().unwrap();
            assert_eq!(batches.plan().batches, 8);
            assert_forked(batches.next().unwrap());
            assert!(batches.next().is_none() && batches.next_within(Duration::ZERO).unwrap().is_none());
        });
        in_child(|| assert_forked(batches.take().unwrap().next_within(Duration::MAX).unwrap().unwrap()));
        drop(go);
        assert_eq!(batches.unwrap().map(|batch| batch.unwrap().len()).sum::<usize>(), 8);
    }
}

#[test]
fn a_child_drops_what_a_group_shares_and_a_relay_over_batches() {
    let (_folder, path) = single(&tensors());
    for device in devices() {
        let shared = Loader::new(device.clone()).files([&path]).load_shared(Arc::new(SingleGroup)).unwrap();
        let mut shared = Some(shared);
        in_child(|| drop(shared.take()));
        drop(shared);
        let pool = pool_for(&device);
        let (loader, go, landed) = held(&device, &path);
        let batches = loader.batches(Batching::new().max_batch_bytes(800_000).ahead(2)).unwrap();
        landed.recv().unwrap();
        let names = Loader::new(device.clone()).files([&path]).inspect().unwrap().tensors;
        let order: Vec<(TensorInfo, usize)> = names.into_iter().map(|info| (info, 0)).collect();
        let local = batches.flat_map(|batch| match batch {
            Ok(weights) => weights.into_tensors().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        });
        let relay = Relay::new(Arc::new(SingleGroup), &device, &pool, order, local).unwrap();
        let mut relay = Some(relay);
        in_child(|| drop(relay.take()));
        in_child(|| {
            let mut relay = relay.take().unwrap();
            assert_forked(relay.next().unwrap());
            assert!(relay.next().is_none());
        });
        drop(go);
        assert_eq!(relay.unwrap().map(Result::unwrap).count(), 8);
    }
}

#[test]
fn a_child_is_refused_memory_for_what_other_ranks_send() {
    let (_folder, path) = single(&tensors()[..1]);
    for device in devices() {
        let group: Arc<dyn ProcessGroup> = Arc::new(ThreadGroup::all(2).remove(0));
        let info = Loader::new(device.clone()).files([&path]).inspect().unwrap().tensors.remove(0);
        let of_other = || Vec::from([(info.clone(), 1)]);
        let pool = pool_for(&device);
        let shared = Shared::new(Arc::clone(&group), &device, &pool, of_other(), []).unwrap();
        let mut relay = Relay::new(group, &device, &pool, of_other(), std::iter::empty()).unwrap();
        in_child(|| assert_forked(shared.broadcast("t0")));
        in_child(|| assert_forked(relay.next().unwrap()));
    }
}

#[test]
fn a_child_of_a_process_that_loaded_loads_on_its_own() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let weights = Loader::new(device.clone()).files([&path]).load().unwrap();
        assert_holds(&weights, &tensors);
        let opened = Loader::new(device.clone()).files([&path]).open().unwrap();
        opened.load_tensor("t3").unwrap();
        in_child(|| {
            for device in [device.clone(), Device::host()] {
                let loader = || Loader::new(device.clone()).files([&path]);
                assert_holds(&loader().load().unwrap(), &tensors);
                assert_holds(&loader().threads(4).stream().unwrap().finish().unwrap(), &tensors);
                let batches = loader().batches(Batching::new().max_batch_bytes(1_500_000)).unwrap();
                assert_eq!(batches.map(|batch| batch.unwrap().len()).sum::<usize>(), tensors.len());
                let opened = loader().open().unwrap();
                assert_eq!(opened.load_tensor("t2").unwrap().to_host().unwrap(), tensors[2].bytes);
                // Its own pools are served by reapers of its own.
                let pool = pool_for(&device);
                drop(loader().pool(&pool).load().unwrap());
                assert_all_back(&pool);
            }
        });
    }
}

#[test]
fn a_child_reads_and_drops_what_its_parent_loaded() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        let mut weights = Some(Loader::new(device.clone()).files([&path]).pool(&pool).load().unwrap());
        let tensor = weights.as_ref().unwrap().tensor("t1").unwrap();
        in_child(|| {
            assert_holds(weights.as_ref().unwrap(), &tensors);
            drop(weights.take());
            assert_eq!(tensor.to_host().unwrap(), tensors[1].bytes);
        });
        in_child(|| assert_eq!(weights.take().unwrap().close().released_bytes, 0));
        assert_holds(weights.as_ref().unwrap(), &tensors);
        drop((weights, tensor));
        assert_all_back(&pool);
    }
}

#[test]
fn a_child_is_refused_loads_from_an_open_checkpoint_and_into_a_pool_of_its_parent() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        let opened = Loader::new(device.clone()).files([&path]).open().unwrap();
        opened.load_tensor("t0").unwrap();
        let mut made = Some(Loader::new(device.clone()).files([&path]).pool(&pool));
        let mut opened = Some(opened);
        in_child(|| drop((made.take(), opened.take())));
        in_child(|| {
            let opened = opened.as_ref().unwrap();
            assert_eq!(opened.names().count(), tensors.len());
            opened.check_unchanged().unwrap();
            assert_forked(opened.load_tensor("t0"));
            assert_forked(opened.load_tensors(["t0", "t1"]));
            assert_forked(opened.loader().load());
            assert_forked(opened.loader().stream());
            assert_forked(opened.loader().batches(Batching::new()));
            assert_forked(opened.loader().open());
        });
        in_child(|| assert_forked(made.take().unwrap().load()));
        in_child(|| assert_forked(made.take().unwrap().stream()));
        in_child(|| assert_forked(made.take().unwrap().batches(Batching::new())));
        let staging = tensorhold::Pool::builder(device.staging_memory()).build().unwrap();
        let mut made = Some(Loader::new(device.clone()).files([&path]).staging(&staging));
        in_child(|| assert_forked(made.take().unwrap().load()));
        let opened = opened.unwrap();
        assert_eq!(opened.load_tensor("t0").unwrap().to_host().unwrap(), tensors[0].bytes);
    }
}

#[test]
fn a_child_leaves_the_drafts_of_its_parent_alone() {
    let folder = tempfile::tempdir().unwrap();
    let entry = || Entry::new("t", DType::U8, &[3]).unwrap();
    let plans = plan_shards(&[entry()], &[folder.path().join("a.safetensors")], &PlanOptions::new()).unwrap();
    let mut draft = Some(Draft::create(plans, 0).unwrap());
    let paths: Vec<PathBuf> = draft.as_ref().unwrap().temporary_paths().map(Into::into).collect();
    in_child(|| drop(draft.take()));
    assert!(paths.iter().all(|path| path.exists()));
    in_child(|| assert_forked(draft.take().unwrap().commit(Durability::Cached)));
    assert!(paths.iter().all(|path| path.exists()));
    // What a child writes is in the file.
    let start = draft.as_ref().unwrap().plans()[0].ranges().next().unwrap().start;
    in_child(|| draft.as_ref().unwrap().write_at(0, start, &[1, 2, 3]).unwrap());
    let written = draft.take().unwrap().commit(Durability::Cached).unwrap();
    assert!(fs::read(&written[0]).unwrap().ends_with(&[1, 2, 3]));
}

#[test]
fn a_child_reads_a_store_and_is_refused_new_versions() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let store = WeightStore::load(Loader::new(device.clone()).files([&path])).unwrap();
        let old = store.reload(Loader::new(device.clone()).files([&path])).unwrap();
        let mut store = Some(store);
        in_child(|| {
            let store = store.take().unwrap();
            assert_holds(&store.snapshot(), &tensors);
            assert_eq!((store.generation(), store.old_versions().len()), (1, 1));
            assert_forked(store.reload(Loader::new(device.clone()).files([&path])));
            assert_forked(store.update(Loader::new(device.clone()).files([&path])));
            let own = Loader::new(Device::host()).files([&path]).load().unwrap();
            drop(store.swap(own));
            drop(store);
        });
        drop(old);
        assert_eq!(store.unwrap().generation(), 1);
    }
}

#[test]
fn a_child_may_be_forked_while_other_threads_load() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    let opened = Loader::new(Device::host()).files([&path]).open().unwrap();
    let stop = Arc::new(Mutex::new(false));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !*stop.lock().unwrap() {
                    opened.load_tensors(["t0", "t1"]).unwrap();
                    Loader::new(Device::host()).files([&path]).stream().unwrap().finish().unwrap();
                }
            });
        }
        for _ in 0..8 {
            let mut stream = Some(Loader::new(Device::host()).files([&path]).stream().unwrap());
            let batching = Batching::new().max_batch_bytes(800_000);
            let mut batches = Some(Loader::new(Device::host()).files([&path]).batches(batching).unwrap());
            in_child(|| {
                drop((stream.take(), batches.take()));
                assert_forked(opened.load_tensor("t0"));
                assert_holds(&Loader::new(Device::host()).files([&path]).load().unwrap(), &tensors);
            });
        }
        *stop.lock().unwrap() = true;
    });
}

#[test]
fn the_size_of_threads_stacks_makes_no_difference() {
    // Stacks that the system library keeps for the next thread, and ones that it does not: a child has either.
    for bytes in [256 << 10, 256 << 20] {
        let mut again = Command::new(env::current_exe().unwrap());
        let done =
            again.args(["--skip", "the_size_of_threads"]).env("RUST_MIN_STACK", bytes.to_string()).output();
        let done = done.unwrap();
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "with stacks of {bytes} bytes: {out}{err}");
    }
}
