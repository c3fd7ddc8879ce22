//! Loads that convert and cut on their way onto the device: the same as on the CPU, after the load.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;

use libtest_mimic::Failed;
use tempfile::TempDir;
use tensorhold::allocator::{Pool, RegionParts};
use tensorhold::kernels::pairs;
use tensorhold::{Backend, BackendKind, Cut, CutReads, DType, Device, Loader, Overflow, TransformOn};

use crate::support::changed::{Changed, asking, assert_changed, dtype, write_shifted};
use crate::support::{Spec, assert_all_back, drop_cached, on_disk, pool_for};

/// A file with these tensors, on a disk and written back, whose data begins so many bytes behind a multiple of 16.
fn file(tensors: &[Changed], shift: usize) -> (TempDir, PathBuf) {
    let (folder, path) = on_disk(&[]);
    let specs: Vec<Spec> = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    write_shifted(&path, &specs, shift);
    (folder, path)
}

fn expected(tensors: &[Changed], overflow: Overflow) -> Vec<Spec> {
    tensors.iter().map(|tensor| tensor.expected(overflow)).collect()
}

/// Every pair of types, whole and cut, from any alignment.
fn every_pair() -> Vec<Changed> {
    let mut tensors = Vec::new();
    for (n, (from, to)) in pairs().enumerate() {
        let to = Some(dtype(to.name()));
        let name = |what: &str| format!("{what} {from} {n}");
        let [rows, columns] = [37 + n % 5, 201 + n % 7];
        let part = |there: usize| there / 3..there / 3 * 2;
        tensors.extend([
            Changed::whole(&name("before"), "U8", &[n % 9]),
            Changed::new(&name("whole"), from.name(), &[rows, columns], &[0..rows, 0..columns], to),
            Changed::new(&name("columns"), from.name(), &[rows, columns], &[0..rows, part(columns)], to),
            Changed::new(&name("block"), from.name(), &[7, rows, 9], &[2..5, part(rows), 1..8], to),
            Changed::new(&name("cut"), from.name(), &[rows, columns], &[0..rows, part(columns)], None),
        ]);
    }
    tensors
}

pub(crate) fn every_pair_of_types_arrives_converted() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, every_pair());
    for (n, overflow) in
        [Overflow::Torch, Overflow::Saturating, Overflow::NonSaturating].into_iter().enumerate()
    {
        let (_folder, path) = file(&tensors, 1 + 3 * n);
        let expected = expected(&tensors, overflow);
        for (staging_bytes, place) in
            [(128 << 10, TransformOn::Auto), (64 << 20, TransformOn::Device), (4 << 20, TransformOn::Cpu)]
        {
            let loader = Loader::new(device.clone()).files([&path]).staging_bytes(staging_bytes);
            let weights = asking(loader.overflow(overflow).transform_on(place), &tensors).load()?;
            assert_changed(&weights, &expected);
            weights.close();
        }
    }
    Ok(())
}

pub(crate) fn every_backend_brings_the_same_changed_tensors() -> Result<(), Failed> {
    backends_bring_changed_tensors(BackendKind::ALL.into_iter().filter(|&kind| kind != BackendKind::Gds))
}

pub(crate) fn cufile_brings_changed_tensors() -> Result<(), Failed> {
    backends_bring_changed_tensors([BackendKind::Gds])
}

fn backends_bring_changed_tensors(kinds: impl IntoIterator<Item = BackendKind>) -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, every_pair());
    let (_folder, path) = file(&tensors, 5);
    let expected = expected(&tensors, Overflow::Torch);
    for kind in kinds {
        for (offset, backend) in [(0, Backend::Require(kind)), (1 << 20, Backend::Auto)] {
            for reads in [CutReads::Auto, CutReads::Parts, CutReads::Rows] {
                drop_cached(&path, offset, 0);
                let loader = Loader::new(device.clone()).files([&path]).backend(backend).cut_reads(reads);
                let weights = asking(loader, &tensors).load()?;
                assert_changed(&weights, &expected);
                weights.close();
            }
        }
    }
    Ok(())
}

pub(crate) fn long_tensors_are_converted_from_any_alignment() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    // Of many jobs, slots and launches; narrower and wider.
    let of = |name: &str, from, to| Changed::new(name, from, &[5003, 2001], &[0..5003, 0..2001], Some(to));
    for shift in 0..16 {
        let tensors = [
            of("narrower", "F32", DType::BF16),
            Changed::whole("odd", "U8", &[shift]),
            of("wider", "BF16", DType::F32),
        ];
        let (_folder, path) = file(&tensors, shift);
        let expected = expected(&tensors, Overflow::Torch);
        for (threads, staging_bytes) in [(1, 1 << 20), (16, 64 << 20)] {
            let loader = Loader::new(device.clone()).files([&path]).threads(threads);
            let weights = asking(loader.staging_bytes(staging_bytes), &tensors).load()?;
            assert_changed(&weights, &expected);
            assert!(weights.report().staging_bytes <= staging_bytes);
            weights.close();
        }
    }
    Ok(())
}

pub(crate) fn shards_of_matrices_arrive_every_way() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let eighth = |there: usize| -> Range<usize> { there / 8 * 3..there / 8 * 4 };
    // Parts of 1 KiB, of 16 and of 24 bytes, and of half a mebibyte; and rows.
    for (rows, columns) in [(4000, 4096), (200_000, 64), (100_000, 96), (12, 2 << 20)] {
        for to in [None, Some(DType::F16)] {
            let (all, part) = (0..rows, eighth(columns));
            let columns_of = Changed::new("columns", "BF16", &[rows, columns], &[all, part], to);
            let rows_of = Changed::new("rows", "BF16", &[rows, 16], &[eighth(rows), 0..16], to);
            let tensors = [columns_of, rows_of];
            let (_folder, path) = file(&tensors, 8);
            let expected = expected(&tensors, Overflow::Torch);
            for reads in [CutReads::Auto, CutReads::Parts, CutReads::Rows] {
                for place in [TransformOn::Auto, TransformOn::Cpu] {
                    let loader = Loader::new(device.clone()).files([&path]);
                    let loader = loader.cut_reads(reads).transform_on(place);
                    let weights = asking(loader, &tensors).load()?;
                    assert_changed(&weights, &expected);
                    weights.close();
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn a_stream_gives_changed_tensors_that_have_arrived() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, every_pair());
    let (_folder, path) = file(&tensors, 2);
    let expected = expected(&tensors, Overflow::Torch);
    for backend in [BackendKind::Buffered, BackendKind::IoUring] {
        let loader = Loader::new(device.clone()).files([&path]).backend(Backend::Require(backend));
        let mut stream = asking(loader, &tensors).stream()?;
        for tensor in &mut stream {
            let tensor = tensor?;
            let expected = expected.iter().find(|spec| spec.name == tensor.name()).ok_or("unknown")?;
            assert!(tensor.to_host()? == expected.bytes, "{tensor:?} had not arrived");
        }
        stream.finish()?.close();
    }
    Ok(())
}

pub(crate) fn what_conversions_lose_is_counted_on_the_device() -> Result<(), Failed> {
    let device = Device::cuda(0)?;
    let values = [1.0_f32, 1e30, f32::NAN, -500.0, f32::INFINITY, 3.0];
    let bytes = (0..3_000_000).flat_map(|n| values[n % 6].to_le_bytes()).collect();
    let lossy = Spec { name: "lossy".into(), dtype: "F32", shape: vec![3_000_000], bytes };
    let fine = Spec { name: "fine".into(), dtype: "F32", shape: vec![7], bytes: vec![0; 28] };
    let (_folder, path) = on_disk(&[fine, lossy]);
    for kind in [BackendKind::Buffered, BackendKind::IoUring] {
        let loader = Loader::new(device.clone()).files([&path]).backend(Backend::Require(kind));
        let weights = loader.dtype(DType::F8_E4M3).count_conversions().load()?;
        let [counted] = weights.report().converted.as_deref().unwrap_or_default() else {
            return Err(format!("{:?}", weights.report().converted).into());
        };
        assert_eq!((&*counted.name, counted.out_of_range, counted.nan), ("lossy", 1_500_000, 500_000));
        weights.close();
    }
    Ok(())
}

pub(crate) fn changed_loads_give_all_memory_back() -> Result<(), Failed> {
    let (device, tensors) = (Device::cuda(0)?, every_pair());
    let (_folder, path) = file(&tensors, 0);
    let expected = expected(&tensors, Overflow::Torch);
    let (pool, barrier) = (pool_for(&device), Barrier::new(2));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                barrier.wait();
                let loader = Loader::new(device.clone()).files([&path]).pool(&pool).count_conversions();
                let weights = asking(loader, &tensors).load().unwrap();
                assert_changed(&weights, &expected);
            });
        }
    });
    assert_all_back(&pool);
    // Where memory comes in parts, kernels wait for it, too.
    let parts = Pool::builder(device.memory()).region_parts(RegionParts::Auto).build()?;
    let loader = Loader::new(device.clone()).files([&path]).pool(&parts);
    assert_changed(&asking(loader, &tensors).load()?, &expected);
    assert_all_back(&parts);
    let error =
        Loader::new(device.clone()).files([&path]).pool(&pool).cut("none", Cut::shard(0, 0, 1)).load();
    assert!(error.unwrap_err().to_string().contains("find tensor \"none\""));
    assert_all_back(&pool);
    Ok(())
}
