//! Loads a checkpoint onto the first CUDA device, or the host, and lists its largest tensors.
//!
//! `cargo run --release --example load -- path/to/checkpoint`

use tensorhold::{Device, Loader, Result};

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "model.safetensors".into());
    let device = Device::cuda(0).unwrap_or_else(|_| Device::host());
    let weights = Loader::new(device).checkpoint(&path)?.load()?;
    println!("{} tensors at {:.1} GB/s", weights.len(), weights.report().gigabytes_per_second());

    let mut views: Vec<_> = weights.iter().collect();
    views.sort_by_key(|view| std::cmp::Reverse(view.nbytes()));
    for view in views.iter().take(5) {
        println!("{view:?}");
    }

    let kept = weights.tensor(views[0].name())?;
    let closed = weights.close();
    println!("closed: {} bytes released, still held: {:?}", closed.released_bytes, closed.held);
    drop(kept);
    Ok(())
}
