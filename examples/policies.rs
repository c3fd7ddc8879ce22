//! The same blocks that come and go, placed by each policy, as snapshots that `tensorhold map --snapshot` draws; and a batch in
//! parts of which a half has gone. The pictures in `docs/allocator.md` are of these.
//!
//! `cargo run --release --example policies -- FOLDER`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorhold::allocator::offsets::Policy;
use tensorhold::allocator::{HostMemory, Pool, PoolBuilder, RegionParts, Request};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| ".".into(), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for (name, policy) in [("best-fit", Policy::BestFit), ("segregated", Policy::Segregated)] {
        come_and_go(&folder.join(name), policy)?;
    }
    batch(&folder.join("planned"), RegionParts::Whole, false)?;
    batch(&folder.join("parts"), RegionParts::Require, true)
}

fn builder(name: &str) -> PoolBuilder {
    Pool::builder(Arc::new(HostMemory::new())).name(name)
}

fn write(path: &Path, pool: &Pool) -> Result<()> {
    Ok(std::fs::write(path.with_extension("json"), serde_json::to_vec_pretty(&pool.snapshot())?)?)
}

/// Numbers from 0 to 1 that look random and are the same in every run.
fn random() -> impl FnMut() -> f64 {
    let mut state = 7_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// 20,000 blocks of 4 KiB to 2 MiB, of which about 120 are held at a time.
fn come_and_go(path: &Path, policy: Policy) -> Result<()> {
    let pool = builder(policy_name(policy)).policy(policy).region_bytes(64 << 20).build()?;
    let (mut random, mut held) = (random(), Vec::new());
    for number in 0..20_000 {
        let size = (4096.0 * (random() * 9.0).exp2()) as u64;
        held.push(pool.place(format!("{number}"), Request::new(size, 256))?);
        if held.len() > 120 {
            drop(held.swap_remove((random() * held.len() as f64) as usize));
            // So that the picture is the policy's, and not that of the moment when the reaper comes.
            pool.trim();
        }
    }
    write(path, &pool)
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Segregated => "segregated fit",
        _ => "best fit",
    }
}

/// Four layers of a model, and what is left when every other tensor has been dropped.
fn batch(path: &Path, parts: RegionParts, drop_half: bool) -> Result<()> {
    let layer = ["input_norm", "down", "gate", "up", "post_norm", "k", "o", "q", "v"];
    let sizes = [8192, 11_272_192, 11_272_192, 11_272_192, 8192, 1_048_576, 4_194_304, 4_194_304, 1_048_576];
    let labels: Vec<Arc<str>> = (0..4)
        .flat_map(|number| layer.iter().map(move |name| format!("layers.{number}.{name}").into()))
        .collect();
    let pool = builder(if drop_half { "a batch in parts, half of it dropped" } else { "a planned batch" });
    let pool = pool.region_parts(parts).build()?;
    let layout =
        pool.lay_out(sizes.iter().cycle().take(labels.len()).map(|&size| Request::new(size, 256)))?;
    let mut fragments = pool.place_planned(&layout, &labels)?.fragments;
    if drop_half {
        let mut number = 0;
        fragments.retain(|_| {
            number += 1;
            number % 2 == 0
        });
        pool.trim();
    }
    write(path, &pool)
}
