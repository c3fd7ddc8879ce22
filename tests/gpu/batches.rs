//! Loads in batches, in parts, and back to files.

use std::fs;

use libtest_mimic::Failed;
use tensorhold::save::{Item, Saver};
use tensorhold::{Batching, Cut, DType, Device, Loader, Tensor};

use crate::support::{Spec, assert_all_back, assert_holds, bytes_tensor, on_disk, pool_for, tensor};
use crate::{free_bytes, used_device};

const MIB: u64 = 1 << 20;

fn tensors() -> Vec<Spec> {
    (0..24).map(|n| bytes_tensor(&format!("t{n}"), 8 << 20)).collect()
}

pub(crate) fn batches_stay_within_their_budget_as_the_driver_counts() -> Result<(), Failed> {
    let (device, tensors) = (used_device(), tensors());
    let (_folder, path) = on_disk(&tensors);
    let before = free_bytes(&device);
    for ahead in [0, 1, 3] {
        for even in [false, true] {
            let batching = Batching::new().max_batch_bytes(16 * MIB).ahead(ahead);
            let batching = if even { batching.even_regions() } else { batching };
            let loader = Loader::new(device.clone()).files([&path]).memory_budget(40 * MIB);
            let batches = loader.batches(batching)?;
            let pool = batches.pool().clone();
            let mut given = 0;
            for batch in batches {
                let batch = batch?;
                let taken = before.saturating_sub(free_bytes(&device));
                // The driver gives memory in units of 2 MiB.
                assert!(taken <= 44 * MIB, "{taken} bytes taken, with {ahead} ahead");
                assert_holds(&batch, &tensors[given..given + batch.len()]);
                given += batch.len();
            }
            assert_eq!(given, tensors.len());
            assert_all_back(&pool);
            drop(pool);
        }
    }
    assert_eq!(free_bytes(&device), before);
    Ok(())
}

pub(crate) fn what_is_kept_of_batches_is_all_that_stays_on_the_device() -> Result<(), Failed> {
    let (device, tensors) = (used_device(), tensors());
    let (_folder, path) = on_disk(&tensors);
    let before = free_bytes(&device);
    let batching = Batching::new().max_batch_bytes(24 * MIB).keep(|info| info.name.ends_with('7'));
    let loader = Loader::new(device.clone()).files([&path]).memory_budget(64 * MIB);
    let mut batches = loader.batches(batching)?;
    let pool = batches.pool().clone();
    let mut kept: Vec<Tensor> = Vec::new();
    for batch in &mut batches {
        let batch = batch?;
        let names = batch.names().filter(|name| name.ends_with('7'));
        kept.extend(names.map(|name| batch.tensor(name)).collect::<Result<Vec<_>, _>>()?);
    }
    drop(batches);
    pool.trim();
    assert_eq!(before - free_bytes(&device), 16 * MIB);
    assert!(kept[0].to_host()? == tensors[7].bytes && kept[1].to_host()? == tensors[17].bytes);
    drop(kept);
    assert_all_back(&pool);
    assert_eq!(free_bytes(&device), before);
    Ok(())
}

pub(crate) fn an_open_checkpoint_gives_single_tensors_and_parts() -> Result<(), Failed> {
    let device = used_device();
    let matrix = tensor("matrix", "F32", &[3000, 1000], 12_000_000);
    let tensors = [bytes_tensor("small", 100), matrix, bytes_tensor("long", 30_000_001)];
    let (_folder, path) = on_disk(&tensors);
    let pool = pool_for(&device);
    let checkpoint = Loader::new(device.clone()).files([&path]).pool(&pool).open()?;
    for _ in 0..20 {
        for tensor in &tensors {
            assert!(checkpoint.load_tensor(&tensor.name)?.to_host()? == tensor.bytes);
        }
        let part = checkpoint.load_part("matrix", &[Cut::narrow(0, 10, 500), Cut::narrow(1, 700, 30)])?;
        let rows = tensors[1].bytes.chunks(4000).skip(10).take(500);
        let expected: Vec<u8> = rows.flat_map(|row| &row[2800..2920]).copied().collect();
        assert!(part.to_host()? == expected);
    }
    let narrow = checkpoint.loader().dtype(DType::BF16).load()?;
    assert_eq!(narrow.view("matrix")?.nbytes(), 6_000_000);
    drop(narrow);
    assert_all_back(&pool);
    Ok(())
}

pub(crate) fn what_a_device_holds_is_saved_as_it_was() -> Result<(), Failed> {
    let device = used_device();
    let tensors = [bytes_tensor("long", 30_000_001), tensor("half", "F16", &[3, 5], 30)];
    let (folder, path) = on_disk(&tensors);
    let weights = Loader::new(device.clone()).files([&path]).load()?;
    let saved = Saver::new().shards(2).save(folder.path().join("copy"), weights.iter().map(Item::tensor))?;
    weights.close();
    assert_holds(&Loader::new(Device::host()).files(&saved.files).load()?, &tensors);
    assert_eq!(fs::read_dir(folder.path())?.count(), 3);
    Ok(())
}
