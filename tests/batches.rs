//! Loads in batches give all tensors in order, within the memory that there is.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for, single, staged_host, write,
};
use tensorhold::allocator::offsets::Request;
use tensorhold::allocator::{Error as PoolError, Pool, RegionParts};
use tensorhold::{Batching, Cut, DType, Device, Error, Loader, Tensor, Weights};

/// Tensors of these sizes, `t0` and so on.
fn of_sizes(sizes: &[usize]) -> Vec<Spec> {
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn loader(device: &Device, path: &Path) -> Loader {
    Loader::new(device.clone()).files([path])
}

fn names(weights: &Weights) -> Vec<String> {
    weights.names().map(str::to_owned).collect()
}

#[test]
fn batches_hold_all_tensors_in_order_and_no_more_than_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [100_000, 200_000, 0, 300_000, 2_000_000, 5, 250_000];
    let tensors = of_sizes(&sizes);
    let (first, second) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    write(&first, &tensors[..4]);
    write(&second, &tensors[4..]);
    for device in devices() {
        for ahead in [0, 1, 5] {
            let pool = pool_for(&device);
            let loader = Loader::new(device.clone()).files([&first, &second]).pool(&pool);
            let mut batches = loader.batches(Batching::new().max_batch_bytes(350_000).ahead(ahead)).unwrap();
            let plan = batches.plan().clone();
            assert_eq!((plan.batches, plan.tensors), (4, 7));
            assert_eq!((plan.bytes, plan.kept_bytes), (sizes.iter().sum::<usize>() as u64, 0));
            let mut expected = [0..3, 3..4, 4..5, 5..7].into_iter();
            for batch in &mut batches {
                let (batch, range) = (batch.unwrap(), expected.next().unwrap());
                assert_holds(&batch, &tensors[range]);
                let file = batch.info(batch.names().next().unwrap()).unwrap().file.clone();
                assert!(batch.files().any(|loaded| *loaded == *file));
            }
            assert!(expected.next().is_none() && batches.next().is_none());
            drop(batches);
            assert_all_back(&pool);
        }
    }
}

#[test]
fn no_tensors_are_no_batches() {
    let (_folder, path) = single(&of_sizes(&[3]));
    let mut batches = loader(&Device::host(), &path).select(|_| false).batches(Batching::new()).unwrap();
    assert!(batches.next().is_none());
    assert_eq!((batches.plan().batches, batches.plan().peak_bytes), (0, 0));
}

#[test]
fn selections_conversions_and_cuts_come_as_in_a_whole_load() {
    let float = |n: usize| support::tensor(&format!("f{n}"), "F32", &[60, 70], 16_800);
    let tensors: Vec<Spec> = (0..6).map(float).chain([bytes_tensor("no", 50_000)]).collect();
    let (_folder, path) = single(&tensors);
    for device in [staged_host::device_with_transforms()].into_iter().chain(devices()) {
        let asked = || {
            loader(&device, &path)
                .select(|info| &*info.name != "no")
                .dtype_by(|info| (&*info.name == "f1").then_some(DType::BF16))
                .cut_by(|info| (&*info.name != "f3").then_some(Cut::shard(1, 1, 2)))
        };
        let whole = asked().load().unwrap();
        let from_checkpoint = asked().open().unwrap().loader();
        for loader in [asked(), from_checkpoint] {
            let mut seen = Vec::new();
            // By the bytes that tensors have when they are loaded.
            for batch in loader.batches(Batching::new().max_batch_bytes(8400 + 4200)).unwrap() {
                let batch = batch.unwrap();
                for tensor in batch.iter() {
                    let same = whole.view(tensor.name()).unwrap();
                    assert_eq!(
                        (tensor.info(), tensor.to_host().unwrap()),
                        (same.info(), same.to_host().unwrap())
                    );
                }
                seen.push(batch.len());
            }
            assert_eq!(seen, [2, 1, 1, 1, 1]);
        }
    }
}

#[test]
fn no_more_batches_are_read_than_were_asked_for() {
    const SIZE: u64 = 300_000;
    let (_folder, path) = single(&of_sizes(&[SIZE as usize; 8]));
    for device in devices() {
        for ahead in [0, 1, 3] {
            let read = Arc::new(AtomicU64::new(0));
            let (sender, told) = mpsc::channel();
            let counted = Arc::clone(&read);
            let loader = loader(&device, &path).progress(move |progress| {
                assert_eq!((progress.total_bytes, progress.tensors), (8 * SIZE, 8));
                assert!(counted.swap(progress.done_bytes, Ordering::Relaxed) <= progress.done_bytes);
                let _ = sender.send(progress.done_bytes);
                ControlFlow::Continue(())
            });
            let batches = loader.batches(Batching::new().max_batch_bytes(SIZE).ahead(ahead)).unwrap();
            // Without being asked for, this much is read.
            if ahead > 0 {
                assert!(told.iter().any(|done| done == ahead as u64 * SIZE));
            }
            for (given, batch) in (0..).zip(batches) {
                batch.unwrap();
                assert!(read.load(Ordering::Relaxed) <= (given + 1 + ahead as u64) * SIZE);
            }
            assert_eq!(read.load(Ordering::Relaxed), 8 * SIZE);
        }
    }
}

#[test]
fn a_batch_that_is_not_there_in_time_is_given_later_and_once() {
    let tensors = of_sizes(&[100_000; 3]);
    let (_folder, path) = single(&tensors);
    let (go, wait) = mpsc::channel::<()>();
    let loader = loader(&Device::host(), &path).progress(move |progress| {
        if progress.done_bytes == 0 {
            let _ = wait.recv();
        }
        ControlFlow::Continue(())
    });
    let mut batches = loader.batches(Batching::new().max_batch_bytes(100_000).ahead(0)).unwrap();
    let (short, long) = (Duration::from_millis(1), Duration::from_secs(60));
    assert!(batches.next_within(short).is_none() && batches.next_within(Duration::ZERO).is_none());
    drop(go);
    for tensor in &tensors {
        assert_holds(&batches.next_within(long).unwrap().unwrap().unwrap(), std::slice::from_ref(tensor));
    }
    assert!(batches.next_within(long).unwrap().is_none());
    assert!(batches.next_within(short).unwrap().is_none() && batches.next().is_none());
}

#[test]
fn a_load_in_batches_runs_within_just_the_memory_that_was_planned() {
    let sizes = [700_000, 100_000, 350_001, 2_000_000, 1, 900_000, 40_000, 800_000];
    let tensors = of_sizes(&sizes);
    let (_folder, path) = single(&tensors);
    for device in devices() {
        for ahead in [0, 1, 2] {
            let batching = || Batching::new().max_batch_bytes(800_000).ahead(ahead);
            let peak = loader(&device, &path).batches(batching()).unwrap().plan().peak_bytes;
            // The pool has the budget for a limit, and refuses a byte more.
            let batches = loader(&device, &path).memory_budget(peak).batches(batching()).unwrap();
            assert_eq!((batches.plan().peak_bytes, batches.plan().ahead), (peak, ahead));
            assert_eq!(batches.pool().limit_bytes(), Some(peak));
            let mut given = 0;
            for batch in batches {
                given += batch.unwrap().len();
            }
            assert_eq!(given, tensors.len());
        }
    }
}

#[test]
fn without_room_for_what_was_asked_for_batches_are_shorter() {
    const MIB: usize = 1 << 20;
    let tensors = of_sizes(&[MIB; 12]);
    let (_folder, path) = single(&tensors);
    let device = Device::host();
    let batching = || Batching::new().max_batch_bytes(8 * MIB as u64).ahead(4);
    let with = |mib: usize| {
        let batches = loader(&device, &path).memory_budget((mib * MIB) as u64).batches(batching()).unwrap();
        let plan = batches.plan().clone();
        assert!(plan.peak_bytes <= (mib * MIB) as u64);
        let choice = plan.choices[0].clone();
        assert_eq!(choice.about, "batches");
        let in_report = |batch: &Weights| batch.report().choices.contains(&choice);
        assert_eq!(batches.map(Result::unwrap).filter(in_report).map(|batch| batch.len()).sum::<usize>(), 12);
        (plan.max_batch_bytes / MIB as u64, plan.ahead)
    };
    assert_eq!(with(12), (8, 2));
    assert_eq!(with(11), (8, 0));
    assert_eq!(with(7), (4, 0));
    assert_eq!(with(1), (1, 0));
    let refused = loader(&device, &path).memory_budget(MIB as u64 - 1).progress(|_| unreachable!());
    let error = refused.batches(batching()).unwrap_err();
    assert!(matches!(error, Error::InfeasibleBudget { needed, budget, .. }
        if (needed, budget) == (MIB as u64, MIB as u64 - 1)));
    let message = error.to_string();
    for part in ["memory_budget", "\"t0\"", "already fully serial", "1.0 MiB", "raise the limit"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
}

#[test]
fn what_is_kept_counts_and_keeps_nothing_else_reserved() {
    let sizes = [300_000, 20_000, 300_000, 300_000, 50_000, 300_000];
    let tensors = of_sizes(&sizes);
    let (_folder, path) = single(&tensors);
    let is_kept = |name: &str| ["t1", "t4"].contains(&name);
    for device in devices() {
        let batching =
            || Batching::new().max_batch_bytes(320_000).ahead(0).keep(move |info| is_kept(&info.name));
        // The last tensor comes when both are kept.
        let loader = loader(&device, &path).memory_budget(370_000);
        let mut batches = loader.batches(batching()).unwrap();
        assert_eq!((batches.plan().kept_bytes, batches.plan().peak_bytes), (70_000, 370_000));
        let pool = batches.pool().clone();
        let mut kept: Vec<Tensor> = Vec::new();
        for batch in &mut batches {
            let batch = batch.unwrap();
            let of_batch = batch.names().filter(|name| is_kept(name)).map(|name| batch.tensor(name).unwrap());
            kept.extend(of_batch);
        }
        drop(batches);
        pool.trim();
        assert_eq!(pool.stats().reserved_bytes, 70_000);
        assert!(
            kept[0].to_host().unwrap() == tensors[1].bytes && kept[1].to_host().unwrap() == tensors[4].bytes
        );
        let too_little = self::loader(&device, &path).memory_budget(369_999).batches(batching());
        let Err(Error::InfeasibleBudget { tensor, kept, .. }) = too_little else { panic!("{too_little:?}") };
        assert_eq!((tensor.as_str(), kept), ("t5", 70_000));
    }
}

#[test]
fn who_keeps_all_needs_as_much_as_all_tensors_take_and_no_more() {
    let tensors = of_sizes(&[512_000; 6]);
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let batching = || Batching::new().max_batch_bytes(1_024_000).ahead(2).keep_all();
        let batches = loader(&device, &path).memory_budget(6 * 512_000).batches(batching()).unwrap();
        assert_eq!(batches.plan().ahead, 2);
        let all: Vec<Weights> = batches.map(Result::unwrap).collect();
        assert_eq!(all.iter().flat_map(names).collect::<Vec<_>>(), ["t0", "t1", "t2", "t3", "t4", "t5"]);
        let refused = loader(&device, &path).memory_budget(6 * 512_000 - 1).batches(batching());
        assert!(matches!(refused, Err(Error::InfeasibleBudget { .. })));
    }
}

#[test]
fn a_consumer_that_keeps_more_than_it_said_is_told_when_the_budget_is_spent() {
    let (_folder, path) = single(&of_sizes(&[512_000; 6]));
    for device in devices() {
        let batching = Batching::new().max_batch_bytes(512_000).ahead(0);
        let mut batches = loader(&device, &path).memory_budget(1_100_000).batches(batching).unwrap();
        let kept: Vec<_> = batches.by_ref().collect();
        assert_eq!(kept.len(), 3);
        assert!(matches!(kept[2], Err(Error::Memory(PoolError::LimitReached { limit: 1_100_000, .. }))));
        assert!(batches.next().is_none());
    }
}

#[test]
fn what_others_have_in_a_shared_pool_is_not_there_for_batches() {
    let (_folder, path) = single(&of_sizes(&[400_000; 4]));
    for device in devices() {
        let pool = Pool::builder(device.memory()).limit_bytes(1_400_000).region_bytes(1).build().unwrap();
        let other = pool.place("other", Request::new(400_000, 256)).unwrap();
        let batching = || Batching::new().max_batch_bytes(400_000).ahead(3);
        let batches = loader(&device, &path).pool(&pool).batches(batching()).unwrap();
        assert_eq!(batches.plan().ahead, 1);
        assert_eq!(batches.map(|batch| batch.unwrap().len()).sum::<usize>(), 4);
        // The budget is the load's own.
        let batches = loader(&device, &path).pool(&pool).memory_budget(799_999).batches(batching()).unwrap();
        assert_eq!(batches.plan().ahead, 0);
        drop(batches);
        let more = pool.place("more", Request::new(700_000, 256)).unwrap();
        let refused = loader(&device, &path).pool(&pool).batches(batching()).unwrap_err().to_string();
        assert!(
            refused.contains("what the pool's limit leaves") && refused.contains("293.0 KiB"),
            "{refused}"
        );
        drop((other, more));
        let batches = loader(&device, &path).pool(&pool).batches(batching()).unwrap();
        assert_eq!(batches.plan().ahead, 2);
    }
}

#[test]
fn regions_in_parts_count_by_their_units() {
    const UNIT: u64 = 64 << 10;
    let tensors = of_sizes(&[3 * UNIT as usize + 1; 5]);
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = Pool::builder(device.memory()).region_parts(RegionParts::Require).limit_bytes(8 * UNIT);
        let pool = pool.build().unwrap();
        let with = |budget: u64, ahead| {
            let loader = loader(&device, &path).pool(&pool).memory_budget(budget);
            loader.batches(Batching::new().max_batch_bytes(1).ahead(ahead))
        };
        let batches = with(8 * UNIT, 1).unwrap();
        assert_eq!((batches.plan().ahead, batches.plan().peak_bytes), (1, 8 * UNIT));
        assert_eq!(batches.map(|batch| batch.unwrap().len()).sum::<usize>(), 5);
        assert_eq!(with(8 * UNIT - 1, 1).unwrap().plan().ahead, 0);
        assert!(matches!(with(4 * UNIT - 1, 0), Err(Error::InfeasibleBudget { .. })));
        let first = |budget| {
            loader(&device, &path).pool(&pool).memory_budget(budget).select(|info| &*info.name == "t0").load()
        };
        assert_eq!(first(4 * UNIT).unwrap().len(), 1);
        assert!(matches!(first(4 * UNIT - 1), Err(Error::OverBudget { .. })));
    }
}

#[test]
fn even_regions_are_reserved_once_and_used_again() {
    let (_folder, path) = single(&of_sizes(&[300_000, 100_000, 200_000, 250_000, 300_000, 50_000]));
    for device in devices() {
        let batching = Batching::new().max_batch_bytes(300_000).ahead(1).even_regions();
        // The second and the third tensor, and padding.
        let batches = loader(&device, &path).memory_budget(600_192).batches(batching).unwrap();
        let pool = batches.pool().clone();
        let mut addresses = std::collections::BTreeSet::new();
        for batch in batches {
            let batch = batch.unwrap();
            addresses.insert(batch.iter().next().unwrap().as_ptr());
            let snapshot = pool.snapshot();
            assert!(snapshot.regions.iter().all(|region| region.bytes == 300_096), "{snapshot:?}");
        }
        assert!(addresses.len() <= 2, "{addresses:?}");
        let both = Batching::new().even_regions().keep_all();
        assert!(matches!(
            loader(&device, &path).batches(both),
            Err(Error::Option { option: "even_regions", .. })
        ));
    }
}

#[test]
fn dropping_the_iterator_stops_the_reads_and_gives_everything_back() {
    let (_folder, path) = single(&of_sizes(&[3_000_000; 6]));
    for device in devices() {
        for taken in [0, 1, 2] {
            let pool = pool_for(&device);
            let (sender, told) = mpsc::channel();
            let loader = loader(&device, &path).pool(&pool).progress(move |progress| {
                let _ = sender.send(progress.done_bytes);
                ControlFlow::Continue(())
            });
            let mut batches = loader.batches(Batching::new().max_batch_bytes(3_000_000).ahead(2)).unwrap();
            let given: Vec<Weights> = batches.by_ref().take(taken).map(Result::unwrap).collect();
            // In the middle of the next, or later.
            assert!(told.iter().any(|done| done > taken as u64 * 3_000_000));
            drop(batches);
            assert_eq!(pool.stats().live_bytes, taken as u64 * 3_000_000);
            assert!(told.iter().last().unwrap_or_default() <= (taken as u64 + 2) * 3_000_000);
            drop(given);
            assert_all_back(&pool);
        }
    }
}

#[test]
fn a_file_that_changes_between_batches_is_the_last_that_is_told() {
    let tensors = of_sizes(&[100_000; 4]);
    for device in devices() {
        for ahead in [0, 1] {
            let (_folder, path) = single(&tensors);
            let pool = pool_for(&device);
            let batching = Batching::new().max_batch_bytes(100_000).ahead(ahead);
            let mut batches = loader(&device, &path).pool(&pool).batches(batching).unwrap();
            assert_holds(&batches.next().unwrap().unwrap(), &tensors[..1]);
            fs::remove_file(&path).unwrap();
            let ended: Vec<_> = batches.by_ref().collect();
            let (last, before) = ended.split_last().unwrap();
            assert!(matches!(last, Err(Error::FileChanged { .. })), "{last:?}");
            // That was read before.
            assert!(before.len() <= ahead && before.iter().all(Result::is_ok));
            drop((ended, batches));
            assert_all_back(&pool);
        }
    }
}

#[test]
fn a_callback_that_breaks_or_panics_ends_the_batches() {
    let (_folder, path) = single(&of_sizes(&[100_000; 4]));
    for device in devices() {
        let pool = pool_for(&device);
        let until = |bytes: u64, last: fn() -> ControlFlow<()>| {
            let loader =
                loader(&device, &path).pool(&pool).progress(move |progress| match progress.done_bytes {
                    done if done >= bytes => last(),
                    _ => ControlFlow::Continue(()),
                });
            loader.batches(Batching::new().max_batch_bytes(100_000).ahead(0)).unwrap()
        };
        let mut batches = until(200_000, || ControlFlow::Break(()));
        batches.next().unwrap().unwrap();
        let error = batches.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::Cancelled { done_bytes: 200_000, total_bytes: 400_000 }), "{error:?}");
        assert!(batches.next().is_none());
        let mut batches = until(200_000, || panic!("the callback's"));
        batches.next().unwrap().unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| batches.next())).is_err());
        assert!(batches.next().is_none());
        drop(batches);
        assert_all_back(&pool);
    }
}

#[test]
fn staging_memory_is_made_once_for_all_batches() {
    let tensors = of_sizes(&[2_000_000; 6]);
    let (_folder, path) = single(&tensors);
    // This device gives one piece of staging memory, and no other.
    let device = staged_host::device_with_one_slot(i64::MAX);
    let loader =
        loader(&device, &path).backend(tensorhold::Backend::Require(tensorhold::BackendKind::Buffered));
    let batches = loader.batches(Batching::new().max_batch_bytes(2_000_000)).unwrap();
    for (batch, tensor) in batches.zip(&tensors) {
        assert_holds(&batch.unwrap(), std::slice::from_ref(tensor));
    }
}

#[test]
fn a_budget_that_a_whole_load_exceeds_is_an_error_before_anything_is_read() {
    let tensors = of_sizes(&[1000, 100, 5000, 300, 2000]);
    let (_folder, path) = single(&tensors);
    // 1000, 100 and 300 are followed by padding.
    let needed = 1024 + 256 + 5120 + 512 + 2000;
    for device in devices() {
        let with = |budget| loader(&device, &path).memory_budget(budget);
        assert_holds(&with(needed).load().unwrap(), &tensors);
        assert_holds(&with(needed).stream().unwrap().finish().unwrap(), &tensors);
        let untouched = || with(needed - 1).progress(|_| unreachable!("nothing is read"));
        for error in [untouched().load().unwrap_err(), untouched().stream().unwrap_err()] {
            assert!(matches!(&error, Error::OverBudget { needed: least, budget, tensors: 5, largest }
                if (*least, *budget) == (needed, needed - 1) && largest[0] == ("t2".into(), 5000)));
            let message = error.to_string();
            for part in ["memory_budget", "5 tensors", "\"t2\" (4.9 KiB), \"t4\"", "load in batches"] {
                assert!(message.contains(part), "{part} is not in {message}");
            }
        }
        let checkpoint = with(5000).open().unwrap();
        assert_eq!(checkpoint.load_tensor("t2").unwrap().nbytes(), 5000);
        assert!(matches!(checkpoint.loader().load(), Err(Error::OverBudget { .. })));
        let part = with(4999).open().unwrap();
        assert!(part.load_tensor("t2").is_err());
        assert_eq!(part.load_part("t2", &[Cut::narrow(0, 1, 4999)]).unwrap().nbytes(), 4999);
    }
}

#[test]
fn files_of_more_bytes_than_there_are_numbers_are_an_error() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let paths: Vec<_> = (0..17).map(|n| folder.path().join(format!("{n}.safetensors"))).collect();
    for (n, path) in paths.iter().enumerate() {
        let bytes = 1_u64 << 60;
        let header = format!(r#"{{"t{n}":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
        let head = support::file_bytes(&header, &[]);
        fs::write(path, &head).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_len(head.len() as u64 + bytes).unwrap();
    }
    for device in devices() {
        let loader = || Loader::new(device.clone()).files(&paths);
        assert!(loader().load().is_err());
        assert!(loader().memory_budget(1 << 30).load().is_err());
        let checkpoint = loader().open().unwrap();
        assert!(checkpoint.load_tensor("t0").is_err());
        assert!(checkpoint.load_tensors((0..17).map(|n| format!("t{n}"))).is_err());
        let batches = checkpoint
            .loader()
            .batches(Batching::new())
            .and_then(|batches| batches.collect::<Result<Vec<_>, _>>());
        assert!(batches.is_err());
        assert!(checkpoint.loader().stream().is_err());
    }
}
