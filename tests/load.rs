//! Loading: what arrives is what was written, on a device read in place and on one that is staged.

mod support;

use std::fs;
use std::ops::ControlFlow;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, devices, header, pool_for, single, staged_host,
    tensor, write,
};
use tensorhold::{Backend, BackendKind, DType, Device, Error, Loader, Pool};

/// Sizes around every boundary there is: alignment, pages, slots, jobs.
fn many_sizes() -> Vec<Spec> {
    let sizes = [
        0,
        1,
        255,
        256,
        257,
        4095,
        4096,
        4097,
        65_536,
        (2 << 20) - 1,
        2 << 20,
        (4 << 20) + 13,
        0,
        9_000_001,
        3,
    ];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

#[test]
fn every_byte_arrives_whatever_the_sizes_threads_and_staging() {
    let tensors = many_sizes();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        for threads in [1, 3, 16] {
            for staging_bytes in [128 << 10, 1 << 20, 64 << 20] {
                let loader = Loader::new(device.clone()).threads(threads).staging_bytes(staging_bytes);
                let weights = loader.files([&path]).load().unwrap();
                assert_holds(&weights, &tensors);
                assert!(weights.report().staging_bytes <= staging_bytes);
                assert_eq!(
                    weights.report().bytes,
                    tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum::<u64>()
                );
            }
        }
    }
}

#[test]
fn every_dtype_of_the_format_arrives() {
    let sizes = [
        ("BOOL", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("I16", 16),
        ("U16", 16),
        ("F16", 16),
        ("BF16", 16),
        ("I32", 32),
        ("U32", 32),
        ("F32", 32),
        ("C64", 64),
        ("F64", 64),
        ("I64", 64),
        ("U64", 64),
    ];
    let mut tensors: Vec<Spec> =
        sizes.iter().map(|&(dtype, bits)| tensor(dtype, dtype, &[3, 4, 5], 3 * 4 * 5 * bits / 8)).collect();
    tensors.push(tensor("scalar", "F64", &[], 8));
    tensors.push(tensor("empty", "F32", &[4, 0, 2], 0));
    let (_folder, path) = single(&tensors);
    for device in devices() {
        assert_holds(&Loader::new(device).files([&path]).load().unwrap(), &tensors);
    }
}

#[test]
fn very_many_small_tensors_arrive_in_few_jobs() {
    let tensors: Vec<Spec> = (0..5000).map(|n| bytes_tensor(&format!("layer.{n}"), 1 + n % 97)).collect();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let weights = Loader::new(device).files([&path]).load().unwrap();
        assert_holds(&weights, &tensors);
        assert!(weights.report().jobs < 10, "{} jobs", weights.report().jobs);
        assert_eq!(weights.report().regions, 1);
    }
}

#[test]
fn headers_that_are_padded_or_unaligned_are_read() {
    let tensors = [bytes_tensor("a", 1000), bytes_tensor("b", 77)];
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.clone()).collect();
    for padding in 0..9 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("padded.safetensors");
        let header = header(&tensors) + &" ".repeat(padding);
        fs::write(&path, support::file_bytes(&header, &data)).unwrap();
        assert_holds(&Loader::new(Device::host()).files([&path]).load().unwrap(), &tensors);
    }
}

#[test]
fn selected_tensors_alone_are_read_and_placed() {
    let tensors = many_sizes();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let wanted = |name: &str| ["t3", "t4", "t9", "t13"].contains(&name);
        let loader = Loader::new(device).files([&path]).select(move |tensor| wanted(&tensor.name));
        let weights = loader.load().unwrap();
        let selected: Vec<Spec> = tensors.iter().filter(|tensor| wanted(&tensor.name)).cloned().collect();
        assert_holds(&weights, &selected);
        assert!(weights.view("t2").is_err() && weights.info("t2").is_none());
        assert!(weights.pool().stats().reserved_bytes < 10_000_000 + (2 << 20) + 4096);
    }
}

#[test]
fn selecting_nothing_gives_no_weights_and_no_regions() {
    let (_folder, path) = single(&many_sizes());
    for device in devices() {
        let weights = Loader::new(device).files([&path]).select(|_| false).load().unwrap();
        assert!(weights.is_empty() && weights.names().next().is_none());
        assert_eq!(weights.pool().stats().regions, 0);
    }
}

#[test]
fn names_come_file_by_file_in_the_order_of_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
    write(&one, &[bytes_tensor("z", 3), bytes_tensor("a", 5)]);
    write(&two, &[bytes_tensor("m", 3), bytes_tensor("b", 0), bytes_tensor("c", 1)]);
    let weights = Loader::new(Device::host()).files([&two, &one]).load().unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["m", "b", "c", "z", "a"]);
    assert_eq!(*weights.info("z").unwrap().file, *one);
    assert_eq!(weights.info("none"), None);
}

#[test]
fn metadata_is_told_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let header = r#"{"__metadata__":{"format":"pt"},"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    fs::write(&path, support::file_bytes(header, &[5])).unwrap();
    let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
    assert_eq!(weights.metadata(&path).unwrap()["format"], "pt");
    assert!(weights.metadata("elsewhere").is_none());
}

#[test]
fn typed_slices_are_of_the_dtype_or_an_error() {
    let numbers: Vec<u8> = [1.5_f32, -2.0, 3.25].iter().flat_map(|number| number.to_le_bytes()).collect();
    let halves: Vec<u8> =
        [1.5_f32, -2.0].iter().flat_map(|&number| half::bf16::from_f32(number).to_le_bytes()).collect();
    let tensors = [
        Spec { name: "f".into(), dtype: "F32", shape: vec![3], bytes: numbers },
        Spec { name: "h".into(), dtype: "BF16", shape: vec![2], bytes: halves },
    ];
    let (_folder, path) = single(&tensors);
    let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
    assert_eq!(weights.view("f").unwrap().as_slice::<f32>().unwrap(), [1.5, -2.0, 3.25]);
    let halves = weights.view("h").unwrap().as_slice::<half::bf16>().unwrap();
    assert_eq!(halves.iter().map(|half| half.to_f32()).collect::<Vec<_>>(), [1.5, -2.0]);
    let message = weights.view("h").unwrap().as_slice::<half::f16>().unwrap_err().to_string();
    assert_eq!(
        message,
        r#"borrow as a slice of tensor "h": got BF16, expected F16; ask for the type that the tensor has, or for as_bytes()"#
    );
    let staged = Loader::new(support::staged_host::device()).files([&path]).load().unwrap();
    let message = staged.view("f").unwrap().as_slice::<f32>().unwrap_err().to_string();
    assert!(message.contains("staged-host") && message.contains("to_host()"), "{message}");
}

#[test]
fn narrowed_rows_share_the_bytes_and_keep_them() {
    let spec = tensor("m", "F32", &[6, 4], 96);
    let packed = tensor("p", "F4", &[3, 3, 2], 9);
    let one = tensor("one", "U8", &[1, 8], 8);
    let (_folder, path) = single(&[spec.clone(), packed.clone(), one.clone()]);
    for device in devices() {
        let weights = Loader::new(device).files([&path]).load().unwrap();
        let rows = weights.tensor("m").unwrap().narrow(0, 2, 3).unwrap();
        let row = rows.narrow(0, 1, 1).unwrap().narrow(1, 1, 2).unwrap();
        assert_eq!((rows.shape(), row.shape()), ([3, 4].as_slice(), [1, 2].as_slice()));
        let inner = weights.tensor("one").unwrap().narrow(1, 3, 2).unwrap();
        let refused = weights.tensor("m").unwrap().narrow(1, 0, 2).unwrap_err().to_string();
        assert!(refused.contains("narrow dimension 0"), "{refused}");
        let refused = weights.tensor("m").unwrap().narrow(0, 4, 3).unwrap_err().to_string();
        assert!(refused.contains("0..6"), "{refused}");
        assert!(weights.tensor("m").unwrap().narrow(2, 0, 0).is_err());
        let refused = weights.tensor("p").unwrap().narrow(0, usize::MAX, 2).unwrap_err().to_string();
        assert!(refused.contains("0..3"), "{refused}");
        // 6 elements of 4 bits are 3 bytes: every row begins a byte; half a row of [3, 2] does not.
        let row_of_packed = weights.tensor("p").unwrap().narrow(0, 1, 1).unwrap();
        assert_eq!(row_of_packed.to_host().unwrap(), packed.bytes[3..6]);
        drop(weights);
        assert_eq!(rows.to_host().unwrap(), spec.bytes[32..80]);
        assert_eq!(row.to_host().unwrap(), spec.bytes[52..60]);
        assert_eq!(inner.to_host().unwrap(), one.bytes[3..5]);
    }
}

#[test]
fn narrowing_within_a_byte_is_an_error() {
    let packed = tensor("p", "F4", &[6], 3);
    let (_folder, path) = single(&[packed]);
    let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
    let message = weights.tensor("p").unwrap().narrow(0, 1, 2).unwrap_err().to_string();
    assert!(message.contains("whole bytes"), "{message}");
}

#[test]
fn progress_is_told_on_the_calling_thread_from_nothing_to_everything() {
    let tensors = many_sizes();
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (telling, caller) = (Arc::clone(&told), thread::current().id());
        let loader = Loader::new(device).files([&path]).progress(move |progress| {
            assert_eq!(thread::current().id(), caller);
            assert_eq!((progress.total_bytes, progress.tensors), (total, 15));
            telling.lock().unwrap().push(progress.done_bytes);
            ControlFlow::Continue(())
        });
        loader.load().unwrap();
        let told = told.lock().unwrap();
        assert!(told.is_sorted_by(|a, b| a < b), "{told:?}");
        assert_eq!((told.first(), told.last()), (Some(&0), Some(&total)));
    }
}

#[test]
fn breaking_at_any_time_cancels_and_gives_everything_back() {
    let tensors = many_sizes();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        for calls in 0..4 {
            let mut left = calls;
            let loader =
                Loader::new(device.clone()).files([&path]).pool(&pool).threads(2).progress(move |_| {
                    left -= 1;
                    if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
            match loader.load() {
                Err(Error::Cancelled { done_bytes, total_bytes }) => assert!(done_bytes <= total_bytes),
                // All bytes may arrive within few calls; the first call comes before any.
                Ok(_) if calls > 1 => {}
                other => panic!("{other:?}"),
            }
            assert_all_back(&pool);
        }
        let weights = Loader::new(device).files([&path]).pool(&pool).load().unwrap();
        assert_holds(&weights, &tensors);
    }
}

#[test]
fn a_panicking_callback_ends_the_load_and_gives_everything_back() {
    let (_folder, path) = single(&many_sizes());
    for device in devices() {
        let pool = pool_for(&device);
        let loader = Loader::new(device).files([&path]).pool(&pool).progress(|progress| {
            assert!(progress.done_bytes == 0, "the callback fails");
            ControlFlow::Continue(())
        });
        assert!(thread::spawn(|| loader.load().map(|_| ())).join().is_err());
        assert_all_back(&pool);
    }
}

#[test]
fn a_failing_copy_fails_the_load_and_gives_everything_back() {
    let (_folder, path) = single(&many_sizes());
    for copies in [0, 1, 3] {
        let device = support::staged_host::device_failing_after(copies);
        let pool = pool_for(&device);
        let error = Loader::new(device).files([&path]).pool(&pool).load().unwrap_err();
        assert!(matches!(error, Error::Device { .. }), "{error}");
        assert_all_back(&pool);
    }
}

#[test]
fn loads_at_once_from_many_threads_share_a_pool() {
    let tensors = many_sizes();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        let loaded = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let weights = Loader::new(device.clone()).files([&path]).pool(&pool).load().unwrap();
                    assert_holds(&weights, &tensors);
                    loaded.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(loaded.into_inner(), 4);
        assert_all_back(&pool);
    }
}

#[test]
fn a_pool_over_another_memory_is_refused() {
    let (_folder, path) = single(&[bytes_tensor("t", 1)]);
    let pool: Pool = pool_for(&support::staged_host::device());
    let message = Loader::new(Device::host()).files([path]).pool(&pool).load().unwrap_err().to_string();
    assert!(message.contains("a pool over memory of staged-host"), "{message}");
}

#[test]
fn options_out_of_range_are_refused() {
    let (_folder, path) = single(&[bytes_tensor("t", 1)]);
    let message = Loader::new(Device::host()).files([&path]).threads(0).load().unwrap_err().to_string();
    assert!(message.contains("got 0, expected 1 to 1024"), "{message}");
    let loader = Loader::new(support::staged_host::device()).files([&path]).staging_bytes(1000);
    let message = loader.load().unwrap_err().to_string();
    assert!(message.contains("got 1000 B, expected at least 131072 B"), "{message}");
    assert!(matches!(Loader::new(Device::host()).load(), Err(Error::NoFiles)));
}

#[test]
fn the_report_says_what_was_done_and_why() {
    let tensors = many_sizes();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let weights = Loader::new(device.clone()).files([&path]).threads(2).load().unwrap();
        let report = weights.report();
        assert_eq!((report.tensors, report.files, report.regions, report.threads), (15, 1, 1, 2));
        assert!(report.region_bytes >= report.bytes && report.times.total >= report.times.fill);
        assert_eq!(report.staging_bytes > 0, !device.is_host_accessible());
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json["device"], device.name());
        assert!(json["times"]["total"].as_f64().unwrap() > 0.0);
        for about in ["threads", "path", "backend"] {
            assert!(report.choices.iter().any(|choice| choice.about == about && !choice.why.is_empty()));
        }
    }
}

#[test]
fn tensors_know_their_dtype_and_device() {
    let (_folder, path) = single(&[tensor("t", "BF16", &[2, 3], 12)]);
    let weights = Loader::new(Device::host()).files([&path]).load().unwrap();
    let tensor = weights.tensor("t").unwrap();
    assert_eq!(
        (tensor.dtype(), tensor.shape(), tensor.device().name()),
        (DType::BF16, [2, 3].as_slice(), "host")
    );
    assert_eq!(format!("{tensor:?}"), r#""t": BF16[2, 3] on host"#);
}

#[test]
fn staging_memory_is_kept_for_the_next_load_where_a_pool_is_given() {
    let tensors = [bytes_tensor("a", 3_000_000), bytes_tensor("b", 50)];
    let (_folder, path) = single(&tensors);
    let device = staged_host::device();
    let staging = Pool::builder(device.staging_memory()).retain_bytes(64 << 20).build().unwrap();
    let load = || {
        let loader =
            Loader::new(device.clone()).files([&path]).backend(Backend::Require(BackendKind::Buffered));
        assert_holds(&loader.staging(&staging).load().unwrap(), &tensors);
        // What the load dropped comes back soon, and stays reserved.
        while staging.stats().live_bytes > 0 {
            thread::yield_now();
        }
        staging.stats().reserved_bytes
    };
    let kept = load();
    assert!(kept > 0);
    assert_eq!(load(), kept);
    assert_all_back(&staging);
    let error = Loader::new(device.clone()).files([&path]).staging(&pool_for(&Device::host())).load();
    let message = error.unwrap_err().to_string();
    assert!(message.contains("staging") && message.contains("a pool over"), "{message}");
}

#[test]
fn an_interrupted_load_gives_everything_back_also_where_the_files_of_a_long_index_are_a_guess() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..6000).map(|n| bytes_tensor(&format!("model.part.{n}"), 9)).collect();
    support::write(&folder.path().join("model.safetensors"), &tensors);
    let entries: Vec<_> =
        tensors.iter().map(|tensor| format!(r#""{}":"model.safetensors""#, tensor.name)).collect();
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","));
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    for device in devices() {
        let load = |interrupted: fn(u64) -> bool| {
            let asked = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&asked);
            let ask = move || interrupted(count.fetch_add(1, Ordering::Relaxed));
            let loader = Loader::new(device.clone()).checkpoint(folder.path()).unwrap().interrupt(ask);
            (loader.load(), asked.load(Ordering::Relaxed))
        };
        let (weights, asked) = load(|_| false);
        assert_holds(&weights.unwrap(), &tensors);
        assert!(asked >= 2, "before the first byte and at the end");
        let (cancelled, asked) = load(|_| true);
        assert!(matches!(cancelled.unwrap_err(), Error::Cancelled { done_bytes: 0, .. }));
        assert_eq!(asked, 1, "it is not loaded again");
        // In a pool that is shared there is no guess.
        let pool = pool_for(&device);
        let loader = Loader::new(device.clone()).files([folder.path().join("model.safetensors")]).pool(&pool);
        assert!(matches!(loader.interrupt(|| true).load(), Err(Error::Cancelled { .. })));
        assert_all_back(&pool);
    }
}
