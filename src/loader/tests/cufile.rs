//! Loads by cuFile onto a device whose memory the CPU must not access, with a library that reads into host
//! memory: each ends with the right bytes or the right error, with nothing registered, in flight or held.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tensorhold_allocator::{Memory, Pool, RegionParts};
use tensorhold_kernels::Overflow;

use super::halting;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Error;
use crate::io::faulty::{Fault, Faults, Faulty};
use crate::io::gds::fake::{Fake, Fakes};
use crate::io::gds::{Provider, Registered};
use crate::io::residency::{Probe, pages};
use crate::io::{Backend, BackendKind, Engines, Uring};
use crate::loader::{Cut, Loader, TransformOn};
use crate::report::Report;
use crate::test_support::changed::{Changed, assert_changed};
use crate::test_support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, on_disk, pool_for, staged_host, tensor, write,
};

const REQUIRED: Backend = Backend::Require(BackendKind::Gds);

/// Sizes around blocks and jobs, and small ones with gaps between them.
fn tensors() -> Vec<Spec> {
    let large = [0, 1, 4095, 4096, 4097, (1 << 20) - 8192, (1 << 20) + 1, 9_000_001, 0, 3];
    let small = (0..300).map(|n| n * 7 % 601);
    large.into_iter().chain(small).enumerate().map(|(n, size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn engines(fakes: Fakes) -> (Engines, Arc<Fakes>) {
    let fakes = Arc::new(fakes);
    (Engines { gds: Arc::clone(&fakes) as _, ..Engines::default() }, fakes)
}

/// Loads, and sees to it that nothing is left but the tensors. Nothing is said to be cached.
fn load(path: &Path, backend: Backend, fakes: Fakes, tensors: &[Spec]) -> Result<Report, Error> {
    load_where(path, backend, fakes, tensors, || Probe::counting(|_, _, _| Ok(0)))
}

/// The same, with something else to say what is cached.
fn load_where(
    path: &Path,
    backend: Backend,
    fakes: Fakes,
    tensors: &[Spec],
    probe: fn() -> Probe,
) -> Result<Report, Error> {
    let (device, (engines, fakes)) = (staged_host::device(), engines(fakes));
    let engines = Engines { probe, ..engines };
    let pool = pool_for(&device);
    let loader = Loader::new(device).files([path]).backend(backend).pool(&pool).threads(4).engines(engines);
    let loaded = loader.load().map(|weights| {
        assert_holds(&weights, tensors);
        weights.report().clone()
    });
    assert_all_back(&pool);
    fakes.fake.assert_nothing_left();
    loaded
}

fn picked<'a>(report: &'a Report, about: &str) -> Vec<(&'a str, &'a str)> {
    let choices = report.choices.iter().filter(|choice| choice.about == about);
    choices.map(|choice| (choice.picked.as_str(), choice.why.as_str())).collect()
}

#[test]
fn cufile_brings_every_byte_through_scratch_that_is_bounded() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for (threads, staging_bytes) in [(1, 128 << 10), (2, 1 << 20), (5, 3 << 20), (16, 64 << 20)] {
        let (device, (engines, fakes)) = (staged_host::device(), engines(Fakes::new(Fake::new())));
        let loader = Loader::new(device).files([&path]).backend(REQUIRED).engines(engines);
        let weights = loader.threads(threads).staging_bytes(staging_bytes).load().unwrap();
        assert_holds(&weights, &tensors);
        let report = weights.report();
        assert_eq!((report.cached_bytes, report.direct_bytes, report.gds_bytes), (0, 0, report.bytes));
        assert!(report.gigabytes_per_second() > 0.0);
        assert!(report.staging_bytes <= staging_bytes && report.staging_bytes > 0, "{report:?}");
        assert!(fakes.fake.get("buffer_bytes") <= staging_bytes as i64 + (64 << 10), "more is registered");
        assert_eq!(fakes.fake.get("unregistered"), 0);
        fakes.fake.assert_nothing_left();
        let [(backend, why)] = picked(report, "backend")[..] else { panic!("{report:?}") };
        assert!(backend == "gds" && why.contains("compatibility mode"), "{report:?}");
        let [(_, scratch)] = picked(report, "scratch")[..] else { panic!("{report:?}") };
        assert!(scratch.starts_with("registered"), "{scratch}");
    }
}

#[test]
fn files_beyond_the_descriptor_cache_are_registered_while_they_are_open() {
    let tensors: Vec<Spec> = (0..300).map(|n| bytes_tensor(&format!("t{n}"), 5000 + n)).collect();
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let paths: Vec<_> = (0..300).map(|n| folder.path().join(format!("{n}.safetensors"))).collect();
    paths.iter().zip(&tensors).for_each(|(path, tensor)| write(path, std::slice::from_ref(tensor)));
    for setup_error in [0, 5039] {
        let fake = Fake::new();
        // Without batches, reads go one by one.
        fake.set("setup_error", setup_error);
        let (device, (engines, fakes)) = (staged_host::device(), engines(Fakes::new(fake)));
        let watched = Arc::clone(&fakes);
        let loader =
            Loader::new(device).files(&paths).backend(REQUIRED).engines(engines).progress(move |_| {
                assert!(watched.fake.get("handles") <= 112);
                ControlFlow::Continue(())
            });
        let weights = loader.load().unwrap();
        assert_holds(&weights, &tensors);
        assert_eq!(weights.report().gds_bytes, weights.report().bytes);
        fakes.fake.assert_nothing_left();
    }
}

#[test]
fn short_reads_go_in_batches() {
    // Every other tensor is left out, so that no two are read together.
    let tensors: Vec<Spec> = (0..200).map(|n| bytes_tensor(&format!("t{n}"), 3000 + n)).collect();
    let (_folder, path) = on_disk(&tensors);
    let wanted: Vec<Spec> = tensors.iter().step_by(2).cloned().collect();
    for (refused, batches) in [(0, true), (5039, false)] {
        let fake = Fake::new();
        fake.set("setup_error", refused).set("pending", 3).set("batch_short", 2500);
        let (device, (engines, fakes)) = (staged_host::device(), engines(Fakes::new(fake)));
        let names: Vec<String> = wanted.iter().map(|tensor| tensor.name.clone()).collect();
        let loader = Loader::new(device).files([&path]).backend(REQUIRED).engines(engines);
        let weights =
            loader.select(move |tensor| names.iter().any(|name| **name == *tensor.name)).load().unwrap();
        assert_holds(&weights, &wanted);
        assert_eq!(fakes.fake.get("batch_reads") > 0, batches);
        let why = picked(weights.report(), "backend")[0].1;
        assert_eq!(why.contains("short reads at a time"), batches, "{why}");
        fakes.fake.assert_nothing_left();
    }
}

#[test]
fn reads_that_stop_short_or_are_interrupted_end_in_the_right_bytes() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let fake = Fake::new();
    fake.set("short", 5000);
    load(&path, REQUIRED, Fakes::new(fake), &tensors).unwrap();
    let faults = halting(100, 8192);
    load(&path, REQUIRED, Fakes { faults, ..Fakes::new(Fake::new()) }, &tensors).unwrap();
}

#[test]
fn a_read_that_fails_is_an_error_that_says_where() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for read in [0, 3] {
        let reads = [(read, Fault::Errno(libc::EIO))].into();
        let fakes = Fakes { faults: Faults { reads, ..Faults::default() }, ..Fakes::new(Fake::new()) };
        match load(&path, REQUIRED, fakes, &tensors) {
            Err(Error::Read { path: named, source, .. }) => {
                assert_eq!((named.as_path(), source.raw_os_error()), (path.as_path(), Some(libc::EIO)));
            }
            other => panic!("{other:?}"),
        }
    }
    for (name, value) in [("errno", libc::EIO), ("errno", libc::EINTR)] {
        let fake = Fake::new();
        fake.set(name, value.into()).set("faults", -1);
        let error = load(&path, REQUIRED, Fakes::new(fake), &tensors).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
    }
    let nothing = Faults { every_read: Some(Fault::Short(0)), ..Faults::default() };
    let error =
        load(&path, REQUIRED, Fakes { faults: nothing, ..Fakes::new(Fake::new()) }, &tensors).unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");
}

#[test]
fn what_cufile_refuses_is_an_error_where_it_is_required() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for (name, value, said) in [
        ("handle_error", 5027, "/run/udev"),
        ("read_error", 5008, "5008"),
        ("version", 1000, "expected at least 1.7"),
    ] {
        let fake = Fake::new();
        fake.set(name, value).set("faults", if name == "read_error" { -1 } else { 0 });
        let message = load(&path, REQUIRED, Fakes::new(fake), &tensors).unwrap_err().to_string();
        assert!(message.contains(said) && message.contains("gds"), "{message}");
    }
    // The host needs no scratch to be filled: there is no way to do as asked.
    let (engines, _fakes) = engines(Fakes::new(Fake::new()));
    let loader = Loader::new(Device::host()).files([&path]).backend(REQUIRED).engines(engines);
    let message = loader.load().unwrap_err().to_string();
    assert!(message.contains("gds onto host") && message.contains("use Backend::Auto"), "{message}");
}

#[test]
fn a_registration_that_is_refused_is_reported_and_costs_no_byte() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let fake = Fake::new();
    fake.set("buffer_error", 5036);
    let report = load(&path, REQUIRED, Fakes::new(fake), &tensors).unwrap();
    let why = picked(&report, "scratch")[0].1;
    assert!(why.contains("not registered") && why.contains("5036"), "{why}");
}

#[test]
fn scratch_of_a_pool_is_registered_once_for_many_loads() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let (device, (engines, fakes)) = (staged_host::device(), engines(Fakes::new(Fake::new())));
    let memory = Arc::new(Registered::new(&device, &fakes.open().unwrap()));
    let scratch = Pool::builder(memory).retain_bytes(u64::MAX).build().unwrap();
    let mut registered = Vec::new();
    for _ in 0..3 {
        let loader = Loader::new(device.clone()).files([&path]).backend(REQUIRED).scratch(&scratch);
        assert_holds(&loader.engines(engines.clone()).load().unwrap(), &tensors);
        registered.push(fakes.fake.get("buffer_bytes"));
    }
    assert!(registered[0] > 0 && registered[2] == registered[0], "{registered:?}");
    // Neither the device's memory does, nor what another library has registered of it, by the same name.
    let elsewhere = Arc::new(Registered::new(&device, &Fakes::new(Fake::new()).open().unwrap()));
    assert_eq!(elsewhere.name(), scratch.memory().name());
    for other in [pool_for(&device), Pool::builder(elsewhere).build().unwrap()] {
        let loader = Loader::new(device.clone()).files([&path]).backend(REQUIRED).scratch(&other);
        let message = loader.engines(engines.clone()).load().unwrap_err().to_string();
        assert!(message.contains("option scratch") && message.contains("gds_memory"), "{message}");
    }
    scratch.trim_to(0);
    fakes.fake.assert_nothing_left();
}

#[test]
fn regions_that_are_backed_in_parts_are_filled_by_cufile_too() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let (device, (engines, fakes)) = (staged_host::device(), engines(Fakes::new(Fake::new())));
    let pool = Pool::builder(device.memory()).region_parts(RegionParts::Require).build().unwrap();
    let loader = Loader::new(device).files([&path]).backend(REQUIRED).pool(&pool).engines(engines);
    let weights = loader.load().unwrap();
    assert_holds(&weights, &tensors);
    drop(weights);
    assert_all_back(&pool);
    fakes.fake.assert_nothing_left();
}

#[test]
fn a_load_by_cufile_that_is_cancelled_gives_everything_back() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let (device, (engines, fakes)) = (staged_host::device(), engines(Fakes::new(Fake::new())));
    let pool = pool_for(&device);
    let loader = Loader::new(device).files([&path]).backend(REQUIRED).pool(&pool).engines(engines);
    let loader = loader.progress(|progress| match progress.done_bytes {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(loader.load(), Err(Error::Cancelled { .. })));
    assert_all_back(&pool);
    fakes.fake.assert_nothing_left();
}

#[test]
fn auto_leaves_cufile_alone_where_it_does_not_read_directly() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let unlikely = load(&path, Backend::Auto, Fakes::new(Fake::new()), &tensors).unwrap();
    assert_eq!((unlikely.gds_bytes, unlikely.direct_bytes), (0, unlikely.bytes));
    let fakes = Fakes { likely: true, ..Fakes::new(Fake::new()) };
    let report = load(&path, Backend::Auto, fakes, &tensors).unwrap();
    assert_eq!((report.gds_bytes, report.direct_bytes), (0, report.bytes));
    let why = picked(&report, "backend")[0].1;
    assert!(why.contains("not by cuFile") && why.contains("compatibility mode"), "{why}");
}

#[test]
fn what_cufile_brings_is_changed_on_the_device_or_not_read_by_it() {
    let specs: Vec<Spec> =
        [70_000, 3].iter().map(|&rows| tensor(&format!("t{rows}"), "F32", &[rows, 20], rows * 80)).collect();
    let ranges = |rows: usize| [0..rows, 5..10];
    let expected: Vec<Spec> = [70_000, 3]
        .iter()
        .map(|&rows| {
            let name = format!("t{rows}");
            let changed = Changed::new(&name, "F32", &[rows, 20], &ranges(rows), Some(DType::BF16));
            changed.expected(Overflow::Torch)
        })
        .collect();
    let (_folder, path) = on_disk(&specs);
    for (backend, transforms, place) in [
        (REQUIRED, true, TransformOn::Auto),
        (REQUIRED, true, TransformOn::Cpu),
        (REQUIRED, false, TransformOn::Auto),
        (Backend::Auto, true, TransformOn::Auto),
        (Backend::Auto, false, TransformOn::Auto),
    ] {
        let device = if transforms { staged_host::device_with_transforms() } else { staged_host::device() };
        let (engines, fakes) = engines(direct());
        // Nothing is cached.
        let engines = Engines { probe: || Probe::counting(|_, _, _| Ok(0)), ..engines };
        let loader = Loader::new(device).files([&path]).backend(backend).engines(engines);
        let loader = loader.dtype(DType::BF16).cut_by(|_| vec![Cut::narrow(1, 5, 5)]).transform_on(place);
        match loader.load() {
            Ok(weights) => {
                assert_changed(&weights, &expected);
                let by_cufile = weights.report().gds_bytes > 0;
                assert_eq!(by_cufile, transforms, "{backend:?}: {:?}", weights.report());
            }
            Err(error) => {
                assert!(backend == REQUIRED && !(transforms && place == TransformOn::Auto), "{error}");
                assert!(error.to_string().contains("transform_on"), "{error}");
            }
        }
        fakes.fake.assert_nothing_left();
    }
}

/// A library that reads directly whatever the tests' files are on.
fn direct() -> Fakes {
    let fake = Fake::new();
    fake.set("major", 2).set("storage", 1 << 4);
    Fakes { likely: true, direct: true, ..Fakes::new(fake) }
}

#[test]
fn auto_reads_by_cufile_what_is_not_cached_where_it_reads_directly() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let cold = load(&path, Backend::Auto, direct(), &tensors).unwrap();
    assert_eq!((cold.cached_bytes, cold.direct_bytes, cold.gds_bytes), (0, 0, cold.bytes));
    assert!(picked(&cold, "backend")[0].1.contains("directly, by nvidia-fs"), "{cold:?}");
    let cached = || Probe::counting(|_, offset, bytes| Ok(pages(offset, bytes)));
    let warm = load_where(&path, Backend::Auto, direct(), &tensors, cached).unwrap();
    assert_eq!((warm.cached_bytes, warm.gds_bytes), (warm.bytes, 0));
}

#[test]
fn auto_goes_on_without_cufile_when_it_refuses() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for (name, value, after) in [("read_error", 5008, 0), ("read_error", 5010, 3), ("handle_error", 5027, 0)]
    {
        let fakes = direct();
        fakes.fake.set(name, value);
        let reads = (after..400).map(|read| (read, Fault::Errno(libc::EOPNOTSUPP))).collect();
        let faults = Faults { reads, ..Faults::default() };
        let faults = if name == "read_error" && after > 0 { faults } else { Faults::default() };
        fakes.fake.set("faults", if after == 0 { -1 } else { 0 });
        let report = load(&path, Backend::Auto, Fakes { faults, ..fakes }, &tensors).unwrap();
        assert_eq!(report.cached_bytes + report.direct_bytes + report.gds_bytes, report.bytes);
        assert!(report.direct_bytes > 0 && (report.gds_bytes > 0) == (after > 0), "{report:?}");
        let why = picked(&report, "backend").iter().map(|choice| choice.1).collect::<String>();
        assert!(why.contains("cuFile refused reads") || why.contains("not by cuFile"), "{why}");
    }
}

#[test]
fn staging_stays_within_its_bound_where_cufile_refuses() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for staging in [128 << 10, 192 << 10, 256 << 10, 1 << 20, 4 << 20] {
        let fakes = direct();
        fakes.fake.set("read_error", 5008).set("faults", -1).set("batch_returns", -5008);
        let (engines, _fakes) = engines(fakes);
        // Half of the file is said to be cached.
        let half = || {
            Probe::counting(|_, offset, bytes| {
                Ok(pages(offset, bytes) * u64::from((offset >> 16).is_multiple_of(2)))
            })
        };
        let engines = Engines { probe: half, ..engines };
        let loader = Loader::new(staged_host::device()).files([&path]).engines(engines);
        let weights = loader.staging_bytes(staging).threads(16).load().unwrap();
        assert_holds(&weights, &tensors);
        assert!(weights.report().staging_bytes <= staging, "{staging}: {:?}", weights.report());
    }
}

#[test]
fn no_room_is_lost_where_cufile_gets_no_scratch() {
    let tensors = vec![bytes_tensor("a", 40_000_000)];
    let (_folder, path) = on_disk(&tensors);
    let mut threads = Vec::new();
    for (fails, staging) in [(false, 2 << 20), (true, 2 << 20), (false, 8 << 20), (true, 8 << 20)] {
        let fakes = if fails { direct() } else { Fakes::new(Fake::new()) };
        let device = staged_host::device();
        let memory: Arc<dyn Memory> = Arc::new(Registered::new(&device, &fakes.open().unwrap()));
        let scratch = Pool::builder(memory).limit_bytes(4096).build().unwrap();
        let uring = Faults { queue: Some(libc::ENOSYS), ..Faults::default() };
        let (engines, _fakes) = engines(fakes);
        let engines = Engines {
            probe: || Probe::counting(|_, _, _| Ok(0)),
            uring: Arc::new(Faulty::new(Uring::default(), uring)),
            ..engines
        };
        let loader = Loader::new(device).files([&path]).engines(engines).threads(16);
        let loader = loader.staging_bytes(staging);
        let loader = if fails { loader.scratch(&scratch) } else { loader };
        let weights = loader.load().unwrap();
        let report = weights.report();
        threads.push(report.threads);
    }
    // As many readers as where cuFile was not asked.
    assert!(threads[0] == threads[1] && threads[2] == threads[3], "{threads:?}");
}
