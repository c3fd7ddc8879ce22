//! Every way to read brings the same bytes, and the report says which way they came.

mod support;

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use support::{
    Spec, assert_all_back, assert_holds, bytes_tensor, devices, drop_cached, on_disk, pool_for, staged_host,
};
use tensorhold::allocator::{HostMemory, Pool};
use tensorhold::{Backend, BackendKind, Device, Loader, Report, Weights};

const ALL: [Backend; 4] = [
    Backend::Auto,
    Backend::Require(BackendKind::Buffered),
    Backend::Require(BackendKind::Direct),
    Backend::Require(BackendKind::IoUring),
];

/// Sizes around blocks, jobs and groups, and many small ones with gaps between them.
fn tensors() -> Vec<Spec> {
    let large = [0, 1, 4095, 4096, 4097, (1 << 20) - 8192, (1 << 20) + 1, 9_000_001, 0, 3];
    let small = (0..2000).map(|n| n * 7 % 601);
    large.into_iter().chain(small).enumerate().map(|(n, size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn total(tensors: &[Spec]) -> u64 {
    tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum()
}

fn picked<'a>(report: &'a Report, about: &str) -> Vec<&'a str> {
    report
        .choices
        .iter()
        .filter(|choice| choice.about == about)
        .map(|choice| choice.picked.as_str())
        .collect()
}

fn load(device: &Device, path: &std::path::Path, backend: Backend) -> Weights {
    Loader::new(device.clone()).files([path]).backend(backend).load().unwrap()
}

#[test]
fn every_backend_brings_the_same_bytes_cached_or_not() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for device in devices() {
        for backend in ALL {
            for (threads, staging_bytes) in [(1, 128 << 10), (2, 1 << 20), (5, 3 << 20), (16, 64 << 20)] {
                for cached in [true, false] {
                    if !cached {
                        drop_cached(&path, 0, 0);
                    }
                    let loader = Loader::new(device.clone()).files([&path]).backend(backend).threads(threads);
                    let weights = loader.staging_bytes(staging_bytes).load().unwrap();
                    assert_holds(&weights, &tensors);
                    let report = weights.report();
                    assert_eq!(
                        (report.cached_bytes + report.direct_bytes, report.gds_bytes),
                        (total(&tensors), 0)
                    );
                    assert!(report.staging_bytes <= staging_bytes, "{report:?}");
                }
            }
        }
    }
}

#[test]
fn a_backend_that_is_required_reads_everything() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for device in devices() {
        // cuFile reads onto CUDA devices alone.
        for kind in BackendKind::ALL.into_iter().filter(|&kind| kind != BackendKind::Gds) {
            let weights = load(&device, &path, Backend::Require(kind));
            let report = weights.report();
            let expected = match kind {
                BackendKind::Buffered => (total(&tensors), 0),
                _ => (0, total(&tensors)),
            };
            assert_eq!((report.cached_bytes, report.direct_bytes), expected, "{kind}");
            assert_eq!(picked(report, "backend"), [kind.name()]);
        }
    }
}

#[test]
fn what_is_cached_is_read_from_there_and_the_rest_past_it() {
    let tensors = [bytes_tensor("cached", 20 << 20), bytes_tensor("dropped", 20 << 20)];
    let (_folder, path) = on_disk(&tensors);
    for device in devices() {
        drop_cached(&path, 0, 0);
        let cold = load(&device, &path, Backend::Auto);
        assert_eq!(cold.report().cached_bytes, 0);
        // Reading them brings them in.
        assert_holds(&load(&device, &path, Backend::Require(BackendKind::Buffered)), &tensors);
        let all = support::Kept::new(&path, 40 << 20);
        let warm = load(&device, &path, Backend::Auto);
        assert_eq!((warm.report().direct_bytes, picked(warm.report(), "backend")), (0, vec!["buffered"]));
        drop(all);
        let _front = support::Kept::new(&path, 20 << 20);
        drop_cached(&path, 22 << 20, 0);
        let half = load(&device, &path, Backend::Auto);
        assert_holds(&half, &tensors);
        let report = half.report();
        assert!(report.cached_bytes >= 16 << 20 && report.direct_bytes >= 16 << 20, "{report:?}");
        assert_eq!(picked(report, "backend").len(), 2, "{report:?}");
    }
}

#[test]
fn what_is_kept_in_memory_is_not_asked_for() {
    let tensors = tensors();
    // A file of the system's own tmpfs, which needs none to be mounted.
    let descriptor = rustix::fs::memfd_create("model", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    support::write(&path, &tensors);
    for device in devices() {
        let weights = load(&device, &path, Backend::Auto);
        assert_holds(&weights, &tensors);
        let report = weights.report();
        assert_eq!((report.cached_bytes, report.direct_bytes), (total(&tensors), 0));
        let choice = report.choices.iter().find(|choice| choice.about == "backend").unwrap();
        assert!(choice.picked == "buffered" && choice.why.contains("tmpfs"), "{choice:?}");
    }
}

#[test]
fn the_report_names_the_node_where_staging_memory_is_placed() {
    let (_folder, path) = on_disk(&tensors());
    let staged = load(&staged_host::device(), &path, Backend::Auto);
    assert_eq!(picked(staged.report(), "node"), [staged_host::NODE.to_string()]);
    let in_place = load(&Device::host(), &path, Backend::Auto);
    assert!(picked(in_place.report(), "node").is_empty(), "{:?}", in_place.report());
}

#[test]
fn a_load_that_is_cancelled_past_the_cache_gives_everything_back() {
    let (_folder, path) = on_disk(&tensors());
    for device in devices() {
        for kind in [BackendKind::Direct, BackendKind::IoUring] {
            let pool = pool_for(&device);
            let loader =
                Loader::new(device.clone()).files([&path]).pool(&pool).backend(Backend::Require(kind));
            let loader = loader.progress(|progress| match progress.done_bytes {
                0 => std::ops::ControlFlow::Continue(()),
                _ => std::ops::ControlFlow::Break(()),
            });
            assert!(loader.load().is_err());
            assert_all_back(&pool);
        }
    }
}

#[test]
fn staging_memory_that_is_refused_is_asked_for_in_smaller_pieces() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    for largest in [4 << 20, 600 << 10, 100 << 10] {
        for backend in ALL {
            let device = staged_host::device_with_staging_of(largest);
            drop_cached(&path, 0, 0);
            let weights = Loader::new(device).files([&path]).backend(backend).load().unwrap();
            assert_holds(&weights, &tensors);
        }
    }
    let device = staged_host::device_with_staging_of(100 << 10);
    let weights = load(&device, &path, Backend::Require(BackendKind::Buffered));
    assert_eq!(picked(weights.report(), "slots").len(), 1, "{:?}", weights.report());
    for backend in ALL {
        let device = staged_host::device_with_staging_of(4096);
        let pool = pool_for(&device);
        let error = Loader::new(device).files([&path]).pool(&pool).backend(backend).load().unwrap_err();
        assert!(error.to_string().contains("staging"), "{error}");
        assert_all_back(&pool);
    }
}

#[test]
fn a_ring_past_the_page_cache_reads_into_huge_pages() {
    let (_folder, path) = on_disk(&[bytes_tensor("large", 40_000_000)]);
    let device = staged_host::device();
    // A region for each piece of staging memory that is asked for, as a load's own pool has.
    let staging =
        Pool::builder(device.staging_memory()).region_bytes(1).retain_bytes(u64::MAX).build().unwrap();
    drop_cached(&path, 0, 0);
    let loader = Loader::new(device).files([&path]).backend(Backend::Require(BackendKind::IoUring));
    drop(loader.staging(&staging).load().unwrap());
    let regions = staging.snapshot().regions;
    assert!(!regions.is_empty());
    for region in regions {
        assert!(region.bytes >= HostMemory::HUGE_PAGE_BYTES, "{} bytes", region.bytes);
    }
}

#[test]
fn one_slot_is_enough_and_its_readers_do_not_outwait_a_copy_that_fails() {
    let tensors = tensors();
    let (_folder, path) = on_disk(&tensors);
    let load = |copies| {
        let loader = Loader::new(staged_host::device_with_one_slot(copies)).files([&path]).threads(6);
        loader.backend(Backend::Require(BackendKind::Buffered)).load()
    };
    assert_holds(&load(i64::MAX).unwrap(), &tensors);
    for copies in [0, 1] {
        for _ in 0..20 {
            assert!(load(copies).is_err());
        }
    }
}

#[test]
fn staging_stays_within_its_bound_when_little_of_a_file_is_wanted() {
    let tensors = [bytes_tensor("large", 24_000_000), bytes_tensor("wanted", 3_000_000)];
    let (_folder, path) = on_disk(&tensors);
    for cached in [false, true] {
        match cached {
            true => drop(std::fs::read(&path).unwrap()),
            false => drop_cached(&path, 0, 0),
        }
        let loader = Loader::new(staged_host::device()).files([&path]).staging_bytes(2 << 20);
        let weights = loader.select(|tensor| &*tensor.name == "wanted").load().unwrap();
        assert_holds(&weights, &tensors[1..]);
        let report = weights.report();
        assert!(report.staging_bytes <= 2 << 20, "{report:?}");
    }
}

#[test]
fn cufile_is_an_error_on_devices_that_are_none_of_cuda() {
    let (_folder, path) = on_disk(&tensors());
    for device in devices() {
        let pool = pool_for(&device);
        let backend = Backend::Require(BackendKind::Gds);
        let loader = Loader::new(device.clone()).files([&path]).pool(&pool).backend(backend);
        let message = loader.load().unwrap_err().to_string();
        assert!(message.contains("gds onto") && message.contains("a CUDA device"), "{message}");
        assert!(tensorhold::gds_memory(&device).is_err());
        assert_all_back(&pool);
    }
}
