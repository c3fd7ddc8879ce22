//! Two things at a time.

use std::panic::resume_unwind;
use std::thread;

/// Walks over fewer tensors than this are shorter than a thread's start.
const WORTH_A_THREAD: usize = 2000;

/// Does both, for so many tensors: the first on a thread of its own if that is worth it and can be had.
pub(super) fn beside<A: Send, B>(
    tensors: usize,
    name: &str,
    there: impl Fn() -> A + Sync,
    here: impl FnOnce() -> B,
) -> (A, B) {
    if tensors < WORTH_A_THREAD {
        return (there(), here());
    }
    thread::scope(|scope| match thread::Builder::new().name(name.into()).spawn_scoped(scope, &there) {
        Ok(other) => {
            let here = here();
            (other.join().unwrap_or_else(|panic| resume_unwind(panic)), here)
        }
        Err(_) => (there(), here()),
    })
}
