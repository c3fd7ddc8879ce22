//! Reads that fail: each load ends with the right bytes or the right error, with no read in flight and no
//! memory held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{errno, every, faulty_buffered, faulty_direct, halting, reads, tensors, uncached, with};
use crate::error::Error;
use crate::io::faulty::{Fault, Faults, Faulty, Gate};
use crate::io::residency::{Probe, pages};
use crate::io::{Backend, BackendKind, Direct, Engines, Uring};
use crate::loader::{Batching, Loader};
use crate::report::Report;
use crate::test_support::{
    self as support, Spec, assert_all_back, assert_holds, bytes_tensor, devices, on_disk, pool_for,
};

#[test]
fn short_and_interrupted_reads_end_in_the_right_bytes() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let required = |kind| Backend::Require(kind);
    let arrives = |loaded: Result<Report, Error>| drop(loaded.unwrap());
    with(&path, required(BackendKind::Buffered), &faulty_buffered(&halting(400, 1000)), arrives, &tensors);
    with(&path, Backend::Auto, &faulty_buffered(&halting(400, 1000)), arrives, &tensors);
    with(
        &path,
        required(BackendKind::Direct),
        &faulty_direct(|| Direct, &halting(400, 8192)),
        arrives,
        &tensors,
    );
    with(
        &path,
        required(BackendKind::IoUring),
        &faulty_direct(Uring::default, &halting(400, 8192)),
        arrives,
        &tensors,
    );
}

#[test]
fn a_read_that_fails_is_an_error_that_says_where() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for read in [0, 5] {
        let faults = reads([(read, Fault::Errno(libc::EIO))]);
        let fails = |loaded: Result<Report, Error>| match loaded {
            Err(Error::Read { path: named, source, .. }) => {
                assert_eq!((named.as_path(), source.raw_os_error()), (path.as_path(), Some(libc::EIO)));
            }
            // The fault comes once, and another device or number of threads has met it.
            other => assert!(other.is_ok(), "{other:?}"),
        };
        for (backend, engines) in [
            (BackendKind::Direct, faulty_direct(Uring::default, &faults)),
            (BackendKind::IoUring, faulty_direct(Uring::default, &faults)),
        ] {
            with(&path, Backend::Require(backend), &engines, fails, &tensors);
        }
        with(&path, Backend::Auto, &faulty_buffered(&faults), fails, &tensors);
    }
    let always =
        |loaded: Result<Report, Error>| assert!(matches!(loaded, Err(Error::Read { .. })), "{loaded:?}");
    with(&path, Backend::Auto, &faulty_buffered(&errno(libc::EIO)), always, &tensors);
    with(
        &path,
        Backend::Require(BackendKind::IoUring),
        &faulty_direct(Uring::default, &errno(libc::EIO)),
        always,
        &tensors,
    );
    // Interrupted for ever is a failure too, not a hang.
    with(
        &path,
        Backend::Require(BackendKind::IoUring),
        &faulty_direct(Uring::default, &errno(libc::EINTR)),
        always,
        &tensors,
    );
    with(
        &path,
        Backend::Require(BackendKind::Buffered),
        &faulty_buffered(&errno(libc::EINTR)),
        always,
        &tensors,
    );
}

#[test]
fn a_file_that_ends_early_was_cut_short() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let cut = |loaded: Result<Report, Error>| match loaded {
        Err(Error::FileChanged { change, .. }) => assert!(change.contains("cut short"), "{change}"),
        other => panic!("{other:?}"),
    };
    let nothing = every(Fault::Short(0));
    with(&path, Backend::Require(BackendKind::Buffered), &faulty_buffered(&nothing), cut, &tensors);
    with(&path, Backend::Require(BackendKind::Direct), &faulty_direct(|| Direct, &nothing), cut, &tensors);
    with(
        &path,
        Backend::Require(BackendKind::IoUring),
        &faulty_direct(Uring::default, &nothing),
        cut,
        &tensors,
    );
}

#[test]
fn direct_reads_that_end_within_a_block_go_on_where_it_begins() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let arrives = |loaded: Result<Report, Error>| drop(loaded.unwrap());
    for kind in [BackendKind::Direct, BackendKind::IoUring] {
        for short in [4097, 70_000] {
            let engines = faulty_direct(Uring::default, &every(Fault::Short(short)));
            with(&path, Backend::Require(kind), &engines, arrives, &tensors);
        }
        // One that brings no whole block is tried again.
        let first = reads([(0, Fault::Short(100))]);
        with(&path, Backend::Require(kind), &faulty_direct(Uring::default, &first), arrives, &tensors);
    }
}

#[test]
fn direct_reads_that_always_end_within_a_block_are_no_change_of_the_file() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let fails = |loaded: Result<Report, Error>| match loaded {
        Err(Error::Read { source, .. }) => {
            let why = source.to_string();
            assert!(why.contains("within a block") && why.contains("tried again 16 times"), "{why}");
        }
        other => panic!("{other:?}"),
    };
    for kind in [BackendKind::Direct, BackendKind::IoUring] {
        let engines = faulty_direct(Uring::default, &every(Fault::Short(100)));
        with(&path, Backend::Require(kind), &engines, fails, &tensors);
    }
    for device in devices() {
        let (engines, _) = faulty_direct(Uring::default, &every(Fault::Short(100)));
        let engines = Engines { probe: uncached().probe, ..engines };
        let weights = Loader::new(device).files([&path]).engines(engines).load().unwrap();
        assert_holds(&weights, &tensors);
        assert_eq!(weights.report().direct_bytes, 0);
    }
}

#[test]
fn a_read_that_would_have_to_wait_for_ever_is_an_error_after_few_trials() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for (wrong, most) in [(libc::EAGAIN, 16), (libc::EINTR, 256)] {
        let engines = [
            (BackendKind::Buffered, None, Some(faulty_buffered(&errno(wrong)))),
            (BackendKind::Direct, Some(faulty_direct(Uring::default, &errno(wrong))), None),
            (BackendKind::IoUring, Some(faulty_direct(Uring::default, &errno(wrong))), None),
        ];
        for (kind, past, through) in engines {
            let engines =
                past.iter().map(|(engines, _)| engines).chain(through.iter().map(|(engines, _)| engines));
            for engines in engines {
                let loader =
                    Loader::new(crate::Device::host()).files([&path]).backend(Backend::Require(kind));
                let error = loader.threads(1).engines(engines.clone()).load().unwrap_err();
                let Error::Read { source, .. } = error else { panic!("{error:?}") };
                assert!(source.to_string().contains(&format!("tried again {most} times")), "{source}");
            }
            let reads = past.map_or(0, |(_, faulty)| faulty.reads())
                + through.map_or(0, |(_, faulty)| faulty.reads());
            // Several jobs may have been in flight.
            assert!((most..=(most + 1) * 16).contains(&reads), "{kind}: {reads}");
        }
    }
}

#[test]
fn where_reads_past_the_cache_are_refused_auto_reads_through_it_and_require_is_an_error() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let at_open = Faults { open: Some(libc::EINVAL), ..Faults::default() };
    let falls_back = |loaded: Result<Report, Error>| {
        let report = loaded.unwrap();
        assert_eq!((report.cached_bytes, report.direct_bytes), (report.bytes, 0));
        let why = &report.choices.iter().find(|choice| choice.about == "backend").unwrap().why;
        assert!(why.contains("does not allow reads past the page cache"), "{why}");
    };
    let refused = |loaded: Result<Report, Error>| {
        let message = loaded.unwrap_err().to_string();
        assert!(message.contains("model.safetensors") && message.contains("use Backend::Auto"), "{message}");
    };
    for faults in [at_open, errno(libc::EINVAL), errno(libc::EOPNOTSUPP)] {
        support::drop_cached(&path, 0, 0);
        for device in devices() {
            support::drop_cached(&path, 0, 0);
            let engines = faulty_direct(Uring::default, &faults).0;
            let loaded = Loader::new(device).files([&path]).engines(engines).load().unwrap();
            assert_holds(&loaded, &tensors);
            falls_back(Ok(loaded.report().clone()));
        }
        for device in devices() {
            for kind in [BackendKind::Direct, BackendKind::IoUring] {
                let (engines, pool) = (faulty_direct(Uring::default, &faults).0, pool_for(&device));
                let loader = Loader::new(device.clone()).files([&path]).backend(Backend::Require(kind));
                refused(loader.pool(&pool).engines(engines).load().map(|weights| weights.report().clone()));
                assert_all_back(&pool);
            }
        }
    }
}

#[test]
fn where_io_uring_is_refused_auto_reads_directly_and_require_is_an_error() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for errno in [libc::ENOMEM, libc::ENOSYS, libc::EPERM] {
        let refused = Faults { queue: Some(errno), ..Faults::default() };
        for device in devices() {
            support::drop_cached(&path, 0, 0);
            let engines = || Engines {
                uring: Arc::new(Faulty::new(Uring::default(), refused.clone())),
                ..Engines::default()
            };
            let weights = Loader::new(device.clone()).files([&path]).engines(engines()).load().unwrap();
            assert_holds(&weights, &tensors);
            let report = weights.report();
            assert_eq!(report.direct_bytes, report.bytes);
            let choice = report.choices.iter().find(|choice| choice.about == "backend").unwrap();
            assert!(choice.picked == "direct" && choice.why.contains("io_uring is refused"), "{choice:?}");
            let loader = Loader::new(device).files([&path]).backend(Backend::Require(BackendKind::IoUring));
            let message = loader.engines(engines()).load().unwrap_err().to_string();
            assert!(message.contains("io-uring, which the system refuses"), "{message}");
        }
    }
}

#[test]
fn a_wrong_answer_about_the_cache_is_found_out() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let lies = Faults { nothing_cached: true, ..Faults::default() };
    let found_out = |loaded: Result<Report, Error>| {
        let report = loaded.unwrap();
        assert_eq!((report.cached_bytes, report.direct_bytes), (0, report.bytes));
        assert!(report.choices.iter().any(|choice| choice.about == "reads again"), "{:?}", report.choices);
    };
    let (engines, faulty) = faulty_buffered(&lies);
    let guessing = Engines { probe: Probe::without_cachestat, ..engines.clone() };
    let counting = Engines { probe: all_cached, ..engines };
    with(&path, Backend::Auto, &(guessing, Arc::clone(&faulty)), found_out, &tensors);
    // Pages that the kernel counts are there or on their way: they are waited for.
    let waits = |loaded: Result<Report, Error>| {
        let report = loaded.unwrap();
        assert_eq!((report.cached_bytes, report.direct_bytes), (report.bytes, 0));
        assert!(report.choices.iter().any(|choice| choice.about == "reads again"), "{:?}", report.choices);
    };
    with(&path, Backend::Auto, &(counting, faulty), waits, &tensors);
    // A file system without reads that do not wait is read with reads that do.
    let (first, arrives) = (reads([(0, Fault::Errno(libc::EOPNOTSUPP))]), |loaded: Result<Report, Error>| {
        assert_eq!(loaded.unwrap().direct_bytes, 0);
    });
    let (engines, faulty) = faulty_buffered(&first);
    let counting = Engines { probe: all_cached, ..engines };
    with(&path, Backend::Auto, &(counting, faulty), arrives, &tensors);
}

/// The answer that all of a file is cached, whatever the system has dropped.
fn all_cached() -> Probe {
    Probe::counting(|_, offset, bytes| Ok(pages(offset, bytes)))
}

#[test]
fn what_is_cached_does_not_wait_for_what_is_not() {
    let tensors: Vec<Spec> = (0..12).map(|n| bytes_tensor(&format!("t{n}"), 2_000_000)).collect();
    let (_folder, path) = on_disk(&tensors);
    // Where files are read in place, a read is as long as two of these tensors.
    for device in devices().into_iter().filter(|device| !device.is_host_accessible()) {
        let gate = Arc::new(Gate::default());
        let (engines, _) =
            faulty_direct(Uring::default, &Faults { gate: Some(Arc::clone(&gate)), ..Faults::default() });
        let front_cached = || {
            Probe::counting(|_, offset, bytes| {
                Ok(pages(offset, bytes) * u64::from(offset + bytes <= 14 << 20))
            })
        };
        let engines = Engines { probe: front_cached, ..engines };
        let loader = Loader::new(device).files([&path]).engines(engines).staging_bytes(2 << 20);
        let mut stream = loader.stream().unwrap();
        // All that lie in what is cached, however long the others take.
        for _ in 0..7 {
            assert_eq!(stream.next().unwrap().unwrap().nbytes(), 2_000_000);
        }
        gate.open();
        let weights = stream.finish().unwrap();
        assert_holds(&weights, &tensors);
        let report = weights.report();
        assert!(report.direct_bytes > 0 && report.cached_bytes > 0, "{report:?}");
        // Memory that cached bytes needed was used again for the others.
        assert!(report.staging_bytes <= 2 << 20, "{report:?}");
    }
}

#[test]
fn jobs_left_before_smaller_slots_are_not_read_again() {
    let tensors = vec![bytes_tensor("a", 5_000_000), bytes_tensor("b", 3_000_017)];
    let (_folder, path) = on_disk(&tensors);
    support::drop_cached(&path, 0, 0);
    let device = support::staged_host::device_with_staging_of(100 << 10);
    let weights = Loader::new(device).files([&path]).engines(uncached()).load().unwrap();
    let report = weights.report();
    assert_eq!(report.cached_bytes + report.direct_bytes, report.bytes, "{report:?}");
}

#[test]
fn a_stream_after_smaller_slots_gives_each_tensor_once() {
    let tensors = vec![bytes_tensor("a", 5_000_000), bytes_tensor("b", 3_000_017)];
    let (_folder, path) = on_disk(&tensors);
    let device = support::staged_host::device_with_staging_of(100 << 10);
    let stream = Loader::new(device).files([&path]).engines(uncached()).stream().unwrap();
    let mut given = Vec::new();
    for tensor in stream {
        let tensor = tensor.unwrap();
        let spec = tensors.iter().find(|spec| spec.name == tensor.name()).unwrap();
        assert!(
            tensor.to_host().unwrap() == spec.bytes,
            "{} was given before all of it had landed",
            spec.name
        );
        given.push(tensor.name().to_owned());
    }
    // As they land: which one is first is the readers' affair.
    given.sort();
    assert_eq!(given, ["a", "b"]);
}

#[test]
fn a_stream_after_smaller_slots_gives_a_tensor_when_all_of_it_has_landed() {
    // A tensor of whole jobs of 16 KiB, which begins where a job does.
    let bytes: Vec<u8> = (0..400 * 16384_u32).map(|n| (n % 251) as u8 + 1).collect();
    let json = format!(r#"{{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, bytes.len());
    let header = format!("{json:<0$}", 16384 - 8);
    let (_folder, path) = on_disk(&[bytes_tensor("x", 1)]);
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat())
        .unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    for _ in 0..5 {
        let device = support::staged_host::device_with_staging_of(100 << 10);
        let mut stream = Loader::new(device).files([&path]).engines(uncached()).stream().unwrap();
        let tensor = stream.next().unwrap().unwrap();
        let there = tensor.to_host().unwrap();
        let wrong = there.iter().zip(&bytes).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "bytes that were not there when the tensor was given");
    }
}

#[test]
fn a_read_that_fails_in_a_batch_is_the_last_item_and_leaves_nothing() {
    let tensors: Vec<Spec> = (0..5).map(|n| bytes_tensor(&format!("t{n}"), 40_000)).collect();
    let (_folder, path) = on_disk(&tensors);
    for device in devices() {
        for ahead in [0, 2] {
            // One read for each batch.
            let (engines, faulty) = faulty_buffered(&reads([(2, Fault::Errno(libc::EIO))]));
            let pool = pool_for(&device);
            let loader = Loader::new(device.clone()).files([&path]).pool(&pool).engines(engines);
            let batching = Batching::new().max_batch_bytes(40_000).ahead(ahead);
            let mut batches =
                loader.backend(Backend::Require(BackendKind::Buffered)).batches(batching).unwrap();
            for tensor in &tensors[..2] {
                assert_holds(&batches.next().unwrap().unwrap(), std::slice::from_ref(tensor));
            }
            let error = batches.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::Read { .. }), "{error:?}");
            assert!(batches.next().is_none());
            assert_all_back(&pool);
            assert_eq!((faulty.in_flight.load(Ordering::Relaxed), faulty.reads()), (0, 3));
        }
    }
}

#[test]
fn after_a_read_that_fails_a_checkpoint_loads_again() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for device in devices() {
        let (engines, _) = faulty_buffered(&reads([(0, Fault::Errno(libc::EIO))]));
        let loader = Loader::new(device).files([&path]).engines(engines);
        let checkpoint = loader.backend(Backend::Require(BackendKind::Buffered)).open().unwrap();
        assert!(matches!(checkpoint.load_tensor("t3"), Err(Error::Read { .. })));
        assert!(checkpoint.load_tensor("t3").unwrap().to_host().unwrap() == tensors[3].bytes);
        assert_holds(&checkpoint.loader().load().unwrap(), &tensors);
    }
}
