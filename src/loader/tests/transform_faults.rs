//! Reads that fail where tensors are converted and cut: by whatever route a job is read in the end, its bytes
//! are right.

use std::path::Path;
use std::sync::Arc;

use super::halting;
use crate::device::Device;
use crate::dtype::DType;
use crate::io::faulty::{Fault, Faults, Faulty};
use crate::io::residency::{Probe, pages};
use crate::io::{Backend, BackendKind, Buffered, Direct, Engines, Uring};
use crate::loader::{CutReads, Loader, TransformOn};
use crate::report::Report;
use crate::test_support::changed::{Changed, asking, assert_changed, write_shifted};
use crate::test_support::{assert_all_back, drop_cached, on_disk, pool_for, staged_host};

fn tensors() -> Vec<Changed> {
    vec![
        // Part by part, with rows, whole; converted and not.
        Changed::new("columns", "F32", &[700, 900], &[0..700, 300..600], Some(DType::BF16)),
        Changed::whole("odd", "U8", &[13]),
        Changed::new("kept", "F16", &[500, 1500], &[0..500, 100..900], None),
        Changed::new("narrow", "F16", &[3000, 60], &[0..3000, 20..40], None),
        Changed::new("narrowed", "F16", &[3000, 60], &[0..3000, 20..40], Some(DType::F32)),
        Changed::new("rows", "F64", &[100, 300], &[50..75, 0..300], Some(DType::F32)),
    ]
}

/// Loads onto each device, every way.
fn loads(path: &Path, backend: Backend, engines: &Engines, before: impl Fn(), check: impl Fn(&Report)) {
    let tensors = tensors();
    let expected: Vec<_> = tensors.iter().map(|tensor| tensor.expected(Default::default())).collect();
    for device in [Device::host(), staged_host::device(), staged_host::device_with_transforms()] {
        for (place, reads) in [(TransformOn::Auto, CutReads::Auto), (TransformOn::Cpu, CutReads::Parts)] {
            before();
            let pool = pool_for(&device);
            let loader = Loader::new(device.clone()).files([path]).backend(backend).pool(&pool);
            let loader = loader.staging_bytes(1 << 20).transform_on(place).cut_reads(reads);
            let weights = asking(loader, &tensors).engines(engines.clone()).load().unwrap();
            assert_changed(&weights, &expected);
            check(weights.report());
            drop(weights);
            assert_all_back(&pool);
        }
    }
}

fn file() -> (tempfile::TempDir, std::path::PathBuf) {
    let (folder, path) = on_disk(&[]);
    let specs: Vec<_> = tensors().into_iter().map(|tensor| tensor.spec).collect();
    write_shifted(&path, &specs, 3);
    (folder, path)
}

#[test]
fn short_and_interrupted_reads_end_in_the_right_elements() {
    let (_folder, path) = file();
    let buffered =
        Engines { buffered: Arc::new(Faulty::new(Buffered, halting(3000, 700))), ..Engines::default() };
    let past = Engines {
        direct: Arc::new(Faulty::new(Direct, halting(3000, 8192))),
        uring: Arc::new(Faulty::new(Uring::default(), halting(3000, 8192))),
        ..Engines::default()
    };
    loads(&path, Backend::Require(BackendKind::Buffered), &buffered, || (), |_| ());
    loads(&path, Backend::Auto, &buffered, || (), |_| ());
    loads(&path, Backend::Require(BackendKind::Direct), &past, || (), |_| ());
    loads(&path, Backend::Require(BackendKind::IoUring), &past, || (), |_| ());
}

#[test]
fn what_was_not_cached_after_all_is_read_past_the_cache() {
    let (_folder, path) = file();
    let lies = Faults { nothing_cached: true, ..Faults::default() };
    let engines = Engines {
        buffered: Arc::new(Faulty::new(Buffered, lies)),
        probe: Probe::without_cachestat,
        ..Engines::default()
    };
    loads(&path, Backend::Auto, &engines, || (), |report| assert_eq!(report.cached_bytes, 0));
    // Pages that the kernel counts are there or on their way: they are waited for.
    let counting = || Probe::counting(|_, offset, bytes| Ok(pages(offset, bytes)));
    let engines = Engines { probe: counting, ..engines };
    loads(&path, Backend::Auto, &engines, || (), |report| assert_eq!(report.direct_bytes, 0));
}

#[test]
fn where_reads_past_the_cache_are_refused_the_cache_brings_the_same() {
    let (_folder, path) = file();
    for faults in [
        Faults { open: Some(libc::EINVAL), ..Faults::default() },
        Faults { every_read: Some(Fault::Errno(libc::EINVAL)), ..Faults::default() },
    ] {
        let engines = || Engines {
            direct: Arc::new(Faulty::new(Direct, faults.clone())),
            uring: Arc::new(Faulty::new(Uring::default(), faults.clone())),
            ..Engines::default()
        };
        let before = || drop_cached(&path, 0, 0);
        loads(&path, Backend::Auto, &engines(), before, |report| assert_eq!(report.direct_bytes, 0));
    }
}
