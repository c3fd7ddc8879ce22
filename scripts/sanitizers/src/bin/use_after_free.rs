//! Reads memory that was given back.

use std::hint::black_box;

fn main() {
    let at = Box::into_raw(Box::new(7_u64));
    // SAFETY: made by `Box::into_raw`.
    drop(unsafe { Box::from_raw(at) });
    // SAFETY: none: this is the use after free that is to be reported.
    black_box(unsafe { black_box(at).read_volatile() });
}
