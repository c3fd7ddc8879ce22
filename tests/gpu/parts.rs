//! Device memory that goes back tensor by tensor, as the driver counts it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use tensorhold::allocator::{Fragment, Pool, RegionParts, Request};
use tensorhold::{Device, Loader};

use crate::support::{assert_holds, bytes_tensor, on_disk};
use crate::{free_bytes, used_device};

fn in_parts(device: &Device) -> Pool {
    Pool::builder(device.memory()).region_parts(RegionParts::Require).build().unwrap()
}

/// The tensors of Llama 3 8B, in bytes: as they lie in its files, by and large.
fn llama() -> Vec<u64> {
    let (hidden, vocabulary, inner, kv) = (4096, 128_256, 14_336, 1024);
    let layer =
        [hidden, hidden * inner, hidden * inner, hidden * inner, hidden, kv * hidden, hidden * hidden];
    let layer = layer.into_iter().chain([hidden * hidden, kv * hidden]);
    let layers = std::iter::repeat_n(layer, 32).flatten();
    [vocabulary * hidden]
        .into_iter()
        .chain(layers)
        .chain([hidden, vocabulary * hidden])
        .map(|n| n * 2)
        .collect()
}

/// Drops half of the fragments, at random but the same in every run, and returns their bytes.
fn drop_half(fragments: &mut Vec<Fragment>) -> u64 {
    let (mut state, mut dropped) = (1_u64, 0);
    fragments.retain(|fragment| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let keep = state >> 63 == 0;
        dropped += if keep { 0 } else { fragment.len() };
        keep
    });
    dropped
}

/// Places a batch, drops half of it, and returns: the device memory that all of it took as a multiple of its bytes, the part of the dropped bytes
/// that came back with a trim, and how long it took without one.
fn half_comes_back(device: &Device, sizes: &[u64]) -> Result<(f64, f64, Duration), Failed> {
    let place = |pool: &Pool| -> Result<Vec<Fragment>, Failed> {
        let layout = pool.lay_out(sizes.iter().map(|&size| Request::new(size, 256)))?;
        let labels: Vec<Arc<str>> = sizes.iter().map(|_| "t".into()).collect();
        let placed = pool.place_planned(&layout, &labels)?;
        // SAFETY: nothing writes there.
        placed.fragments.iter().for_each(|fragment| unsafe { fragment.assume_unused() });
        Ok(placed.fragments)
    };
    let before = free_bytes(device);
    let pool = in_parts(device);
    let mut fragments = place(&pool)?;
    let all: u64 = sizes.iter().sum();
    let full = free_bytes(device);
    let dropped = drop_half(&mut fragments);
    pool.trim();
    let back = free_bytes(device) - full;
    drop(fragments);
    pool.trim();
    assert_eq!(free_bytes(device), before);
    // The same without a trim.
    let mut fragments = place(&pool)?;
    let started = Instant::now();
    drop_half(&mut fragments);
    while free_bytes(device) < full + back && started.elapsed() < Duration::from_secs(5) {
        std::thread::yield_now();
    }
    let took = started.elapsed();
    assert_eq!(free_bytes(device), full + back);
    drop(fragments);
    pool.trim();
    Ok(((before - full) as f64 / all as f64, back as f64 / dropped as f64, took))
}

pub(crate) fn half_of_a_model_goes_back_to_the_device() -> Result<(), Failed> {
    let device = used_device();
    let (taken, back, took) = half_comes_back(&device, &llama())?;
    eprintln!(
        "Llama 3 8B: takes {taken:.4} of its bytes, {back:.4} of half comes back, in {took:?} without a trim"
    );
    assert!(taken < 1.01 && back >= 0.97, "takes {taken}, {back} comes back");
    let (taken, back, took) = half_comes_back(&device, &vec![3 << 20; 2000])?;
    eprintln!(
        "experts of 3 MiB: take {taken:.4} of their bytes, {back:.4} of half comes back, in {took:?} without a trim"
    );
    // A unit of 2 MiB that two of them share goes back with the second: 5/6 on average.
    assert!(taken < 1.01 && back >= 0.8, "take {taken}, {back} comes back");
    Ok(())
}

pub(crate) fn weights_in_parts_arrive_and_go_back() -> Result<(), Failed> {
    let device = used_device();
    let sizes = [9_000_000, 100, 0, 70_000, 30_000_001, 1, 2 << 20];
    let tensors: Vec<_> =
        sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect();
    let (_folder, path) = on_disk(&tensors);
    let before = free_bytes(&device);
    let pool = in_parts(&device);
    let weights = Loader::new(device.clone()).files([&path]).pool(&pool).load()?;
    assert_holds(&weights, &tensors);
    let kept = weights.tensor("t0")?;
    weights.close();
    assert!(before - free_bytes(&device) <= 12 << 20, "more is held than one tensor");
    assert!(kept.to_host()? == tensors[0].bytes);
    drop(kept);
    pool.trim();
    assert_eq!(free_bytes(&device), before);
    Ok(())
}
