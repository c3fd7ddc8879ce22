//! What needs a CUDA device. Without one every test is ignored, and counted as such; with `TENSORHOLD_REQUIRE_GPU=1` it
//! fails instead, so that a GPU machine whose driver is broken does not pass. What needs cuFile is ignored where that cannot be used, and fails with
//! `TENSORHOLD_REQUIRE_CUFILE=1`.

#[path = "gpu/batches.rs"]
mod batches;
#[path = "gpu/changes.rs"]
mod changes;
#[path = "gpu/driver.rs"]
mod driver;
#[path = "gpu/forks.rs"]
mod forks;
#[path = "gpu/gds.rs"]
mod gds;
#[path = "gpu/handles.rs"]
mod handles;
#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "gpu/lend.rs"]
mod lend;
#[path = "gpu/parts.rs"]
mod parts;
#[path = "gpu/streams.rs"]
mod streams;
mod support;
#[path = "gpu/unified.rs"]
mod unified;

use std::ptr;
use std::sync::Barrier;
use std::thread;

use cudarc::driver::sys;
use libtest_mimic::{Arguments, Failed, Trial};
use support::versions::swaps_under_readers;
use support::{Spec, assert_all_back, assert_holds, bytes_tensor, drop_cached, on_disk, pool_for, single};
use tensorhold::{Backend, BackendKind, Device, Loader, Tensor, Weights};

type Test = fn() -> Result<(), Failed>;

fn main() {
    let tests: &[(&str, Test)] = &[
        ("the_device_conforms", the_device_conforms),
        ("pinned_memory_conforms", pinned_memory_conforms),
        ("an_ordinal_that_is_not_there_is_an_error", an_ordinal_that_is_not_there_is_an_error),
        ("the_current_context_is_left_as_it_was", the_current_context_is_left_as_it_was),
        ("every_byte_arrives_on_the_device", every_byte_arrives_on_the_device),
        ("every_byte_arrives_in_pinned_memory", every_byte_arrives_in_pinned_memory),
        ("every_backend_brings_the_same_bytes", every_backend_brings_the_same_bytes),
        ("a_stream_gives_tensors_that_have_arrived", a_stream_gives_tensors_that_have_arrived),
        ("views_are_of_device_memory", views_are_of_device_memory),
        ("close_gives_the_memory_back_to_the_device", close_gives_the_memory_back_to_the_device),
        ("every_drop_order_gives_the_memory_back", every_drop_order_gives_the_memory_back),
        ("out_of_memory_is_an_error_and_loses_nothing", out_of_memory_is_an_error_and_loses_nothing),
        ("two_loads_at_once", two_loads_at_once),
        ("a_load_from_a_thread_without_a_context", a_load_from_a_thread_without_a_context),
        ("tensors_are_read_back_at_once_by_many_threads", tensors_are_read_back_at_once_by_many_threads),
        ("versions_are_swapped_under_readers", versions_are_swapped_under_readers),
        (
            "work_that_reads_a_dropped_range_never_sees_it_reused",
            streams::work_that_reads_a_dropped_range_never_sees_it_reused,
        ),
        (
            "a_range_in_use_is_pending_and_not_placed_for_all",
            streams::a_range_in_use_is_pending_and_not_placed_for_all,
        ),
        ("cudarc_reads_and_writes_what_is_lent", lend::cudarc_reads_and_writes_what_is_lent),
        ("half_of_a_model_goes_back_to_the_device", parts::half_of_a_model_goes_back_to_the_device),
        ("weights_in_parts_arrive_and_go_back", parts::weights_in_parts_arrive_and_go_back),
        (
            "weights_are_read_by_the_handles_of_their_memory",
            handles::weights_are_read_by_the_handles_of_their_memory,
        ),
        (
            "handles_that_are_refused_are_an_error_that_names_them",
            handles::handles_that_are_refused_are_an_error_that_names_them,
        ),
        ("a_stream_that_is_captured_is_an_error", streams::a_stream_that_is_captured_is_an_error),
        ("a_child_leaves_the_device_to_its_parent", forks::a_child_leaves_the_device_to_its_parent),
        ("a_child_reads_and_drops_pinned_memory", forks::a_child_reads_and_drops_pinned_memory),
        (
            "the_cpu_reads_pinned_memory_after_what_writes_to_it",
            streams::the_cpu_reads_pinned_memory_after_what_writes_to_it,
        ),
        ("every_image_loads", kernels::every_image_loads),
        (
            "conversions_on_the_device_are_those_of_the_cpu",
            kernels::conversions_on_the_device_are_those_of_the_cpu,
        ),
        (
            "conversions_of_any_length_from_any_alignment_stay_in_their_target",
            kernels::conversions_of_any_length_from_any_alignment_stay_in_their_target,
        ),
        (
            "converted_blocks_on_the_device_are_those_of_the_cpu",
            kernels::converted_blocks_on_the_device_are_those_of_the_cpu,
        ),
        ("repack_copies_from_any_offset_to_any_other", kernels::repack_copies_from_any_offset_to_any_other),
        (
            "gather_on_the_device_copies_what_the_indices_say",
            kernels::gather_on_the_device_copies_what_the_indices_say,
        ),
        ("more_than_4_gib_move_and_convert", kernels::more_than_4_gib_move_and_convert),
        ("the_unified_device_conforms", unified::the_unified_device_conforms),
        (
            "unified_memory_is_filled_in_place_and_read_by_the_device",
            unified::unified_memory_is_filled_in_place_and_read_by_the_device,
        ),
        (
            "the_devices_own_memory_and_what_it_shares_are_two",
            unified::the_devices_own_memory_and_what_it_shares_are_two,
        ),
        ("every_pair_of_types_arrives_converted", changes::every_pair_of_types_arrives_converted),
        (
            "every_backend_brings_the_same_changed_tensors",
            changes::every_backend_brings_the_same_changed_tensors,
        ),
        (
            "long_tensors_are_converted_from_any_alignment",
            changes::long_tensors_are_converted_from_any_alignment,
        ),
        ("shards_of_matrices_arrive_every_way", changes::shards_of_matrices_arrive_every_way),
        (
            "a_stream_gives_changed_tensors_that_have_arrived",
            changes::a_stream_gives_changed_tensors_that_have_arrived,
        ),
        (
            "what_conversions_lose_is_counted_on_the_device",
            changes::what_conversions_lose_is_counted_on_the_device,
        ),
        ("changed_loads_give_all_memory_back", changes::changed_loads_give_all_memory_back),
        (
            "batches_stay_within_their_budget_as_the_driver_counts",
            batches::batches_stay_within_their_budget_as_the_driver_counts,
        ),
        (
            "what_is_kept_of_batches_is_all_that_stays_on_the_device",
            batches::what_is_kept_of_batches_is_all_that_stays_on_the_device,
        ),
        (
            "an_open_checkpoint_gives_single_tensors_and_parts",
            batches::an_open_checkpoint_gives_single_tensors_and_parts,
        ),
        ("what_a_device_holds_is_saved_as_it_was", batches::what_a_device_holds_is_saved_as_it_was),
    ];
    let with_cufile: &[(&str, Test)] = &[
        ("cufile_brings_every_byte", gds::cufile_brings_every_byte),
        ("cufile_brings_changed_tensors", changes::cufile_brings_changed_tensors),
        ("cufile_reads_what_is_short_in_batches", gds::cufile_reads_what_is_short_in_batches),
        ("cufile_gives_the_memory_back_to_the_device", gds::cufile_gives_the_memory_back_to_the_device),
        (
            "scratch_stays_registered_from_one_load_to_the_next",
            gds::scratch_stays_registered_from_one_load_to_the_next,
        ),
        ("loads_by_cufile_and_by_others_at_once", gds::loads_by_cufile_and_by_others_at_once),
        ("cufile_leaves_no_log_in_the_working_directory", gds::cufile_leaves_no_log_in_the_working_directory),
    ];
    let requires = |variable| std::env::var_os(variable).is_some_and(|value| value == "1");
    let skip = Device::cuda_count() == 0 && !requires("TENSORHOLD_REQUIRE_GPU");
    let skip_cufile = skip || !requires("TENSORHOLD_REQUIRE_CUFILE") && is_without_cufile();
    let tests =
        tests.iter().map(|test| (test, skip)).chain(with_cufile.iter().map(|test| (test, skip_cufile)));
    let trials = tests.map(|(&(name, test), skip)| Trial::test(name, test).with_ignored_flag(skip)).collect();
    // One at a time: several of them look at the device's free memory.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

/// Whether the tests of cuFile have nothing to test; says why.
fn is_without_cufile() -> bool {
    let missing = gds::missing();
    missing.iter().for_each(|missing| eprintln!("the tests of cuFile are skipped: {missing}"));
    missing.is_some()
}

fn tensors() -> Vec<Spec> {
    let sizes = [0, 1, 255, 256, 257, 4097, 65_536, (2 << 20) - 1, 2 << 20, (4 << 20) + 13, 0, 90_000_001, 3];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn load(device: &Device, tensors: &[Spec]) -> Weights {
    let (_folder, path) = single(tensors);
    Loader::new(device.clone()).files([path]).load().unwrap()
}

/// A device after some work: it keeps the streams that tensors are read back on, and the driver takes two more mebibytes when they are used again.
fn used_device() -> Device {
    let device = Device::cuda(0).unwrap();
    for _ in 0..2 {
        let weights = load(&device, &tensors());
        weights.iter().for_each(|tensor| drop(tensor.to_host().unwrap()));
        let pool = weights.pool().clone();
        weights.close();
        assert_all_back(&pool);
    }
    device
}

/// Free bytes of the device. Comparable between tests since each waits for its own memory to be back: weights are closed
/// and pools trimmed.
fn free_bytes(device: &Device) -> u64 {
    let _current = device.make_current().unwrap();
    let (mut free, mut total) = (0, 0);
    // SAFETY: the device is there, so the driver is, and its context is current.
    assert_eq!(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, sys::CUresult::CUDA_SUCCESS);
    free as u64
}

/// Does the work until it leaves as much memory free as there was: of work by many threads the driver keeps two mebibytes more for each stream that was not
/// used so before, while memory that leaks is gone each time.
fn leaks_nothing(device: &Device, work: impl Fn()) {
    let leaks = (0..8).all(|_| {
        let before = free_bytes(device);
        work();
        free_bytes(device) < before
    });
    assert!(!leaks, "each of 8 runs takes memory for good");
}

fn current_context() -> sys::CUcontext {
    let mut context = ptr::null_mut();
    // SAFETY: the driver is there; `context` is valid for the write.
    assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut context) }, sys::CUresult::CUDA_SUCCESS);
    context
}

fn the_device_conforms() -> Result<(), Failed> {
    support::device::conforms(&Device::cuda(0)?);
    Ok(())
}

fn pinned_memory_conforms() -> Result<(), Failed> {
    support::device::conforms(&Device::pinned()?);
    Ok(())
}

fn an_ordinal_that_is_not_there_is_an_error() -> Result<(), Failed> {
    let message = Device::cuda(977).unwrap_err().to_string();
    assert!(message.contains("cuda:977") && message.contains("ordinal below"), "{message}");
    Ok(())
}

fn the_current_context_is_left_as_it_was() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let load_and_drop = || {
        let before = current_context();
        let weights = load(&device, &tensors());
        assert_eq!(current_context(), before);
        weights.view("t5").unwrap().to_host().unwrap();
        weights.close();
        assert_eq!(current_context(), before);
        before
    };
    thread::scope(|scope| {
        scope.spawn(|| assert!(load_and_drop().is_null(), "a fresh thread has no context"));
    });
    let current = device.make_current()?;
    assert!(!load_and_drop().is_null());
    drop(current);
    assert!(current_context().is_null());
    Ok(())
}

fn every_byte_arrives_on_the_device() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = single(&tensors);
    for threads in [1, 5, 16] {
        for staging_bytes in [128 << 10, 3_000_000, 64 << 20] {
            let loader = Loader::new(device.clone()).threads(threads).staging_bytes(staging_bytes);
            let weights = loader.files([&path]).load()?;
            assert_holds(&weights, &tensors);
            assert!(weights.report().staging_bytes <= staging_bytes);
            weights.close();
        }
    }
    Ok(())
}

fn every_byte_arrives_in_pinned_memory() -> Result<(), Failed> {
    let tensors = tensors();
    let weights = load(&Device::pinned()?, &tensors);
    assert_holds(&weights, &tensors);
    assert_eq!(weights.view("t5")?.as_slice::<u8>()?, tensors[5].bytes);
    Ok(())
}

fn every_backend_brings_the_same_bytes() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = on_disk(&tensors);
    // cuFile has tests of its own, since it may not be there.
    for kind in BackendKind::ALL.into_iter().filter(|&kind| kind != BackendKind::Gds) {
        for (offset, backend) in [(0, Backend::Require(kind)), (40 << 20, Backend::Auto)] {
            drop_cached(&path, offset, 0);
            let weights = Loader::new(device.clone()).files([&path]).backend(backend).load()?;
            assert_holds(&weights, &tensors);
            weights.close();
        }
    }
    Ok(())
}

fn a_stream_gives_tensors_that_have_arrived() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = single(&tensors);
    let mut stream = Loader::new(device).files([&path]).stream()?;
    for tensor in &mut stream {
        let tensor = tensor?;
        let expected = tensors.iter().find(|expected| expected.name == tensor.name()).ok_or("unknown")?;
        assert!(tensor.to_host()? == expected.bytes, "{tensor:?} had not arrived");
    }
    stream.finish()?.close();
    Ok(())
}

fn views_are_of_device_memory() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let weights = load(&device, &tensors());
    let view = weights.view("t9")?;
    let _current = device.make_current()?;
    let (mut base, mut bytes) = (0, 0);
    // SAFETY: the context is current; the outputs are valid for the writes.
    let status = unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, view.as_ptr() as u64) };
    assert_eq!(status, sys::CUresult::CUDA_SUCCESS);
    assert!(bytes as u64 >= weights.report().region_bytes);
    assert!(view.as_bytes().unwrap_err().to_string().contains("to_host()"));
    weights.close();
    Ok(())
}

fn close_gives_the_memory_back_to_the_device() -> Result<(), Failed> {
    let device = used_device();
    let before = free_bytes(&device);
    let weights = load(&device, &tensors());
    let (pool, loaded) = (weights.pool().clone(), weights.report().bytes);
    assert!(free_bytes(&device) + loaded <= before);
    let kept = weights.tensor("t9")?;
    let closed = weights.close();
    assert_eq!((closed.held.len(), closed.held[0].bytes), (1, (4 << 20) + 13));
    assert_eq!(kept.to_host()?, tensors()[9].bytes);
    drop(kept);
    assert_all_back(&pool);
    // The staging ring of the load is released in the background, and is host memory.
    assert_eq!(free_bytes(&device), before);
    Ok(())
}

fn every_drop_order_gives_the_memory_back() -> Result<(), Failed> {
    let (device, tensors) = (used_device(), tensors());
    let before = free_bytes(&device);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let weights = load(&device, &tensors);
        let pool = weights.pool().clone();
        let tensor = weights.tensor("t11")?;
        let part: Tensor = tensor.narrow(0, 1000, 50)?;
        let mut owners: [Option<Box<dyn Send>>; 3] =
            [Some(Box::new(weights)), Some(Box::new(tensor)), Some(Box::new(part))];
        thread::scope(|scope| {
            for owner in order {
                let owner = owners[owner].take();
                scope.spawn(move || drop(owner)).join().unwrap();
            }
        });
        assert_all_back(&pool);
        assert_eq!(free_bytes(&device), before);
    }
    Ok(())
}

fn out_of_memory_is_an_error_and_loses_nothing() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let before = free_bytes(&device);
    let pool = pool_for(&device);
    // Sparse: a file larger than the device's memory, which takes none of the disk.
    let nbytes = before + (1 << 30);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("vast.safetensors");
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{nbytes}],"data_offsets":[0,{nbytes}]}}}}"#);
    std::fs::write(&path, support::file_bytes(&header, &[]))?;
    std::fs::File::options().write(true).open(&path)?.set_len(8 + header.len() as u64 + nbytes)?;
    let error = Loader::new(device.clone()).files([path]).pool(&pool).load().unwrap_err();
    let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(
        error.to_string().contains("vast.safetensors") && reason.contains("out of memory: asked for"),
        "{error}: {reason}"
    );
    assert_all_back(&pool);
    // At its limit the driver also gives back what it had kept for itself.
    assert!(free_bytes(&device) >= before);
    let weights = load(&device, &tensors());
    assert_holds(&weights, &tensors());
    weights.close();
    Ok(())
}

fn two_loads_at_once() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (pool, barrier) = (pool_for(&device), Barrier::new(2));
    let (_folder, path) = single(&tensors);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                barrier.wait();
                let weights = Loader::new(device.clone()).files([&path]).pool(&pool).load().unwrap();
                assert_holds(&weights, &tensors);
            });
        }
    });
    assert_all_back(&pool);
    Ok(())
}

fn a_load_from_a_thread_without_a_context() -> Result<(), Failed> {
    let tensors = tensors();
    let loaded = thread::scope(|scope| {
        let loading = scope.spawn(|| {
            assert!(current_context().is_null());
            load(&Device::cuda(0).unwrap(), &tensors)
        });
        loading.join().map_err(|_| "the loading thread panicked")
    })?;
    assert_holds(&loaded, &tensors);
    loaded.close();
    Ok(())
}

fn tensors_are_read_back_at_once_by_many_threads() -> Result<(), Failed> {
    // More threads than streams are kept, and a device opened anew, which shares those of the one before.
    const THREADS: usize = 24;
    let tensors: Vec<Spec> = (0..100).map(|n| bytes_tensor(&format!("t{n}"), n * 7)).collect();
    for _ in 0..2 {
        let (weights, barrier) = (load(&Device::cuda(0)?, &tensors), Barrier::new(THREADS));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    barrier.wait();
                    assert_holds(&weights, &tensors);
                    assert!(current_context().is_null());
                });
            }
        });
        weights.close();
    }
    Ok(())
}

fn versions_are_swapped_under_readers() -> Result<(), Failed> {
    let device = used_device();
    leaks_nothing(&device, || swaps_under_readers(&device));
    Ok(())
}
