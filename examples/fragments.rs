//! The allocator on its own: a pool over host memory, a planned batch, and what is left after a close.
//!
//! `cargo run --release --example fragments`

use std::sync::Arc;

use tensorhold::allocator::{HostMemory, Pool, Request, Result};

fn main() -> Result<()> {
    let pool = Pool::new(HostMemory::new())?;

    // A batch whose sizes are known: one region of just that size.
    let sizes = [4096, 1000, 0, 70_000];
    let requests = sizes.map(|size| Request::new(size, 256));
    let labels: Vec<Arc<str>> = sizes.iter().map(|size| format!("{size} bytes").into()).collect();
    let mut placed = pool.place_planned(&pool.lay_out(requests)?, &labels)?;

    // One at a time: best fit, in a region that others share.
    let single = pool.place("single", Request::new(500, 256))?;
    println!("{:#?}", pool.snapshot());

    // The last owner gives a range back, from whichever thread.
    std::thread::spawn(move || drop(single)).join().ok();
    placed.fragments.truncate(1);
    pool.trim();
    println!("{:#?}", pool.stats());

    println!("{:#?}", pool.close());
    Ok(())
}
