//! Two threads write to one place, with nothing between them that orders the writes.

use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;

fn main() {
    let shared = AtomicPtr::new(Box::into_raw(Box::new(0_u64)));
    // So that one does not end before the other begins, which would order them.
    let together = Barrier::new(2);
    thread::scope(|scope| {
        for value in 1..3 {
            let (shared, together) = (&shared, &together);
            scope.spawn(move || {
                together.wait();
                // SAFETY: none: this is the data race that is to be reported.
                unsafe { shared.load(Ordering::Relaxed).write(value) };
            });
        }
    });
    // SAFETY: made by `Box::into_raw` above; the threads have ended.
    drop(unsafe { Box::from_raw(shared.into_inner()) });
}
