//! Loads a checkpoint in batches, within a budget, and says how it went: for a checkpoint that is larger than the memory, say.
//!
//! `cargo run --release --example batches -- path/to/checkpoint 2000000000`

use std::time::Instant;

use tensorhold::{Batching, Device, Loader, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let path = arguments.next().unwrap_or_else(|| "model.safetensors".into());
    let budget = arguments.next().and_then(|bytes| bytes.to_str()?.parse().ok()).unwrap_or(4 << 30);
    let device = Device::cuda(0).unwrap_or_else(|_| Device::host());

    let started = Instant::now();
    let loader = Loader::new(device).checkpoint(&path)?.memory_budget(budget);
    let batches = loader.batches(Batching::new().max_batch_bytes(budget / 2).ahead(1))?;
    let plan = batches.plan().clone();
    println!("{} batches {}, at most {} bytes", plan.batches, plan.choices[0].picked, plan.peak_bytes);
    for batch in batches {
        let batch = batch?;
        // Here the tensors would become what is served: another type, another layout. They go when the batch does.
        println!("{} tensors, {} bytes", batch.len(), batch.report().bytes);
    }
    println!("{:.2} GB/s", plan.bytes as f64 / 1e9 / started.elapsed().as_secs_f64());
    Ok(())
}
