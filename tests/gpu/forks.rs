//! Forked children of a process that uses the device: CUDA cannot be used there, so drops leave its handles alone, and what would call the driver is an error.

use libtest_mimic::Failed;
use tensorhold::{Batching, Device, Error, Loader, Result};

use crate::support::fork::in_child;
use crate::support::{assert_all_back, assert_holds, bytes_tensor, on_disk, pool_for};
use crate::{tensors, used_device};

#[track_caller]
fn assert_refused<T>(found: Result<T>) {
    let error = found.err().expect("it was not refused in the child");
    assert!(matches!(error, Error::Forked { .. }), "{error}");
}

pub(crate) fn a_child_leaves_the_device_to_its_parent() -> std::result::Result<(), Failed> {
    let device = used_device();
    let tensors: Vec<_> = (0..32).map(|n| bytes_tensor(&format!("t{n}"), 4_000_000 + n)).collect();
    let (_folder, path) = on_disk(&tensors);
    let pool = pool_for(&device);
    let load = || Loader::new(device.clone()).files([&path]).pool(&pool);

    let mut weights = Some(load().load()?);
    in_child(|| drop(weights.take()));
    in_child(|| assert_refused(weights.as_ref().unwrap().tensor("t3").unwrap().to_host()));
    in_child(|| assert_eq!(weights.take().unwrap().close().released_bytes, 0));
    in_child(|| assert_refused(load().load()));
    in_child(|| assert_refused(device.make_current()));
    assert_holds(weights.as_ref().unwrap(), &tensors);
    drop(weights);

    let mut stream = Some(load().stream()?);
    let first = stream.as_mut().unwrap().next().unwrap()?;
    in_child(|| drop(stream.take()));
    in_child(|| assert_refused(stream.take().unwrap().in_file_order().last().unwrap()));
    drop(first);
    assert_holds(&stream.unwrap().finish()?, &tensors);

    let mut batches = Some(load().batches(Batching::new().max_batch_bytes(20_000_000))?);
    drop(batches.as_mut().unwrap().next().unwrap()?);
    in_child(|| drop(batches.take()));
    drop(batches);

    let mut opened = Some(load().open()?);
    drop(opened.as_ref().unwrap().load_tensor("t1")?);
    in_child(|| drop(opened.take()));
    in_child(|| assert_refused(opened.as_ref().unwrap().load_tensor("t2")));
    drop(opened);

    // What the child could not drop, the parent does.
    assert_all_back(&pool);
    assert_holds(&load().load()?, &tensors);
    // The child loads onto the CPU.
    in_child(|| assert_holds(&Loader::new(Device::host()).files([&path]).load().unwrap(), &tensors));
    let mut device = Some(device);
    in_child(|| drop(device.take()));
    Ok(())
}

pub(crate) fn a_child_reads_and_drops_pinned_memory() -> std::result::Result<(), Failed> {
    let device = Device::pinned()?;
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let pool = pool_for(&device);
    let mut weights = Some(Loader::new(device).files([&path]).pool(&pool).load()?);
    in_child(|| assert_holds(weights.as_ref().unwrap(), &tensors));
    in_child(|| drop(weights.take()));
    assert_holds(weights.as_ref().unwrap(), &tensors);
    drop(weights);
    assert_all_back(&pool);
    Ok(())
}
