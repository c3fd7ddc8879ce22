//! Loses memory.

use std::hint::black_box;

fn main() {
    // In a thread that has ended, no register or stack has the address.
    let _ = std::thread::spawn(|| std::mem::forget(black_box(Box::new([7_u64; 100])))).join();
}
