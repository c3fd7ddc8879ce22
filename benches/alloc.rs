//! Placing the 290 tensors of Llama 3 8B: in the offsets layer, and in a whole pool beside it.
//!
//! Each figure is for all 290; the throughput line divides it. Every measured round is checked: all tensors placed, at
//! the offsets that they should have, and the space empty at the end.

mod support;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use safetensors::tensor::TensorView;
use tensorhold::{Device, Loader};
use tensorhold_allocator::offsets::{Allocation, BestFit, lay_out};
use tensorhold_allocator::{HostMemory, Pool, Request};

const ALIGN: u64 = 256;

fn requests() -> Vec<Request> {
    support::llama_8b().into_iter().map(|size| Request::new(size, ALIGN)).collect()
}

/// A space of exactly the size that the requests need.
fn exact_space(requests: &[Request]) -> BestFit {
    BestFit::new(requests.iter().map(|request| request.size.next_multiple_of(ALIGN)).sum(), ALIGN)
}

/// 0..count in an order that looks random and is the same in every run.
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 1_u64;
    for last in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}

fn offsets(c: &mut Criterion) {
    let requests = requests();
    let mut group = c.benchmark_group("offsets");
    group.throughput(Throughput::Elements(requests.len() as u64));

    let total: u64 = requests.iter().map(|request| request.size).sum();
    group.bench_function("planned", |b| {
        b.iter(|| {
            let layout = lay_out(black_box(&requests), None).unwrap();
            assert!(layout.regions[0].size == total && layout.placements.len() == 290);
            layout
        });
    });

    for (name, order) in
        [("in_order", (0..requests.len()).collect()), ("random_order", shuffled(requests.len()))]
    {
        group.bench_function(format!("best_fit_pair_freed_{name}"), |b| {
            let mut space = exact_space(&requests);
            let mut placed: Vec<Option<Allocation>> = vec![None; requests.len()];
            b.iter(|| {
                for (placed, request) in placed.iter_mut().zip(black_box(&requests)) {
                    *placed = space.allocate(*request);
                }
                assert!(space.free_bytes() == 0 && space.live_blocks() == 290);
                for &index in &order {
                    space.free(placed[index].unwrap().key).unwrap();
                }
                assert!(space.is_empty() && space.largest_free() == space.capacity());
            });
        });
    }
    group.finish();
}

fn pool(c: &mut Criterion) {
    let requests = requests();
    // The sizes in KiB, so that a host has the memory; what is placed is not touched.
    let small: Vec<Request> =
        requests.iter().map(|request| Request::new(request.size / 1024 + 1, ALIGN)).collect();
    let labels: Vec<Arc<str>> =
        (0..requests.len()).map(|index| format!("model.layers.{index}.weight").into()).collect();
    // An empty region is kept, so that the figures are the pool's and not the system's.
    let pool = || Pool::builder(Arc::new(HostMemory::new())).retain_bytes(u64::MAX).build().unwrap();

    let mut group = c.benchmark_group("pool");
    group.throughput(Throughput::Elements(requests.len() as u64));

    group.bench_function("planned", |b| {
        let pool = pool();
        let layout = pool.lay_out(&small).unwrap();
        b.iter_batched(
            // The last round is back, and its region is kept.
            || pool.trim_to(u64::MAX),
            |()| {
                let placed = pool.place_planned(&layout, &labels).unwrap();
                assert!(placed.fragments.len() == 290);
                placed
            },
            BatchSize::PerIteration,
        );
    });

    group.bench_function("best_fit_pair", |b| {
        let pool = pool();
        let mut placed = Vec::with_capacity(requests.len());
        b.iter(|| {
            placed.extend(
                small
                    .iter()
                    .zip(&labels)
                    .map(|(request, label)| pool.place(Arc::clone(label), *request).unwrap()),
            );
            assert!(placed.len() == 290);
            placed.clear();
            pool.stats()
        });
        pool.trim();
        assert_eq!((pool.stats().reserved_bytes, pool.stats().fragments), (0, 0));
    });
    group.finish();

    let mut group = c.benchmark_group("fragment");
    let pool = pool();
    let fragment = pool.place("t", Request::new(4096, ALIGN)).unwrap();
    group.bench_function("view", |b| b.iter(|| black_box(&fragment).view()));
    group.bench_function("clone_and_drop", |b| b.iter(|| black_box(&fragment).clone()));
    // The last drop of 1000, onto a queue that is not empty.
    group.throughput(Throughput::Elements(1000));
    group.bench_function("last_drop_of_1000", |b| {
        b.iter_batched(
            || (0..1000).map(|_| pool.place("d", Request::new(256, ALIGN)).unwrap()).collect::<Vec<_>>(),
            drop,
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Tensors of 290 weights, by name.
fn weights(c: &mut Criterion) {
    let names: Vec<String> = (0..290).map(|index| format!("model.layers.{index}.mlp.weight")).collect();
    let bytes = [0; 256];
    let tensor = || TensorView::new(safetensors::Dtype::U8, vec![256], &bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(names.iter().map(|name| (name, tensor())), None, &path).unwrap();
    let weights = Loader::new(Device::host()).files([&path]).load().unwrap();

    let mut group = c.benchmark_group("weights");
    let mut next = (0..names.len()).cycle();
    group.bench_function("view_by_name", |b| {
        b.iter(|| {
            let view = weights.view(&names[next.next().unwrap()]).unwrap();
            assert_eq!(view.nbytes(), 256);
            view
        });
    });
    let held = weights.tensor(&names[0]).unwrap();
    group.bench_function("tensor_clone_and_drop", |b| b.iter(|| black_box(&held).clone()));
    group.finish();
}

criterion_group!(benches, offsets, pool, weights);
criterion_main!(benches);
