//! Loads by the machine's own cuFile, in whatever mode it is: compatibility mode, where there is no nvidia-fs.

use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use libtest_mimic::Failed;
use tensorhold::allocator::Pool;
use tensorhold::{Backend, BackendKind, Device, Error, Loader, Report, Weights, gds_memory};

use crate::support::{Spec, assert_all_back, assert_holds, bytes_tensor, drop_cached, on_disk, pool_for};
use crate::{free_bytes, tensors};

const REQUIRED: Backend = Backend::Require(BackendKind::Gds);

/// Why cuFile cannot be tested here, if it cannot: it is not there, or does not take the files of the tests.
pub(crate) fn missing() -> Option<String> {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(error) => return Some(error.to_string()),
    };
    let (_folder, path) = on_disk(&[bytes_tensor("t", 1)]);
    match Loader::new(device).files([path]).backend(REQUIRED).load() {
        Err(error @ (Error::Option { .. } | Error::Backend { .. })) => Some(error.to_string()),
        _ => None,
    }
}

fn load(device: &Device, path: &Path) -> Result<Weights, Failed> {
    Ok(Loader::new(device.clone()).files([path]).backend(REQUIRED).load()?)
}

fn why<'a>(report: &'a Report, about: &str) -> &'a str {
    report.choices.iter().find(|choice| choice.about == about).map_or("", |choice| &choice.why)
}

pub(crate) fn cufile_brings_every_byte() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = on_disk(&tensors);
    for cached in [false, true] {
        for (threads, staging_bytes) in [(1, 128 << 10), (5, 3_000_000), (16, 64 << 20)] {
            if !cached {
                drop_cached(&path, 0, 0);
            }
            let loader = Loader::new(device.clone()).files([&path]).backend(REQUIRED);
            let weights = loader.threads(threads).staging_bytes(staging_bytes).load()?;
            assert_holds(&weights, &tensors);
            let report = weights.report();
            assert_eq!((report.gds_bytes, report.direct_bytes, report.cached_bytes), (report.bytes, 0, 0));
            assert!(report.staging_bytes <= staging_bytes, "{report:?}");
            assert!(why(report, "scratch").starts_with("registered"), "{report:?}");
            let library =
                report.choices.iter().find(|choice| choice.about == "cufile").ok_or("no library")?;
            if !cached && threads == 1 {
                eprintln!("read by {}, {}", library.picked, library.why);
            }
            weights.close();
        }
    }
    Ok(())
}

pub(crate) fn cufile_reads_what_is_short_in_batches() -> Result<(), Failed> {
    let tensors: Vec<Spec> = (0..2000).map(|n| bytes_tensor(&format!("t{n}"), 3000 + n)).collect();
    let wanted: Vec<Spec> = tensors.iter().step_by(2).cloned().collect();
    let (_folder, path) = on_disk(&tensors);
    let even = |name: &str| name[1..].parse::<usize>().is_ok_and(|number| number % 2 == 0);
    for cached in [true, false] {
        if !cached {
            drop_cached(&path, 0, 0);
        }
        let loader = Loader::new(Device::cuda(0)?).files([&path]).backend(REQUIRED);
        let weights = loader.select(move |tensor| even(&tensor.name)).load()?;
        assert_holds(&weights, &wanted);
        let how = why(weights.report(), "backend");
        assert!(how.contains("short reads at a time"), "{how}");
        weights.close();
    }
    Ok(())
}

pub(crate) fn cufile_gives_the_memory_back_to_the_device() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = on_disk(&tensors);
    // Most of what cuFile keeps for itself is there after the first. What it takes later is much less than scratch or tensors.
    load(&device, &path)?.close();
    let before = free_bytes(&device);
    let is_back = || free_bytes(&device) + (32 << 20) >= before;
    for _ in 0..3 {
        let weights = load(&device, &path)?;
        let pool = weights.pool().clone();
        weights.close();
        assert_all_back(&pool);
        assert!(is_back(), "{before} bytes were free, now {}", free_bytes(&device));
    }
    let pool = pool_for(&device);
    let loader = Loader::new(device.clone()).files([&path]).backend(REQUIRED).pool(&pool);
    let cancelled = loader.progress(|progress| match progress.done_bytes {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(cancelled.load(), Err(Error::Cancelled { .. })));
    assert_all_back(&pool);
    assert!(is_back(), "{before} bytes were free, now {}", free_bytes(&device));
    Ok(())
}

pub(crate) fn scratch_stays_registered_from_one_load_to_the_next() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = on_disk(&tensors);
    let scratch = Pool::builder(gds_memory(&device)?).retain_bytes(u64::MAX).build()?;
    for _ in 0..3 {
        let loader = Loader::new(device.clone()).files([&path]).backend(REQUIRED).scratch(&scratch);
        let weights = loader.load()?;
        assert_holds(&weights, &tensors);
        assert!(why(weights.report(), "scratch").starts_with("registered"));
        weights.close();
        assert_eq!(scratch.stats().regions, 1);
    }
    scratch.trim_to(0);
    assert_eq!(scratch.stats().lost_bytes, 0);
    Ok(())
}

pub(crate) fn loads_by_cufile_and_by_others_at_once() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, tensors());
    let (_folder, path) = on_disk(&tensors);
    thread::scope(|scope| {
        for backend in [REQUIRED, REQUIRED, Backend::Auto] {
            let (device, path, tensors) = (&device, &path, &tensors);
            scope.spawn(move || {
                let weights = Loader::new(device.clone()).files([path]).backend(backend).load().unwrap();
                assert_holds(&weights, tensors);
                weights.close();
            });
        }
    });
    Ok(())
}

pub(crate) fn cufile_leaves_no_log_in_the_working_directory() -> Result<(), Failed> {
    let (_folder, path) = on_disk(&[bytes_tensor("t", 5000)]);
    load(&Device::cuda(0)?, &path)?.close();
    assert!(!Path::new("cufile.log").exists(), "it is there, unless it was before");
    Ok(())
}
