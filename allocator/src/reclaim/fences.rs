//! Asks the fences that pending ranges wait for, and frees the ranges whose fences have passed.

use crate::books::FenceWait;
use crate::core::{LockedPool, PoolCore};
use crate::error::MemoryError;
use crate::stream::uses::RecordedUse;

/// Frees the ranges whose fences have passed; first waits for all of them if `wait`.
pub(super) fn free_passed(core: &PoolCore, wait: bool) {
    // Without the lock: fences may belong to a driver.
    let waits = core.books().fence_waits();
    if waits.is_empty() {
        return;
    }
    let has_passed = |use_: &RecordedUse| match wait {
        true => use_.fence.wait().map(|()| true),
        false => use_.fence.has_passed(),
    };
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for FenceWait { number, uses } in waits {
        let all: Result<Vec<bool>, MemoryError> = uses.iter().map(has_passed).collect();
        match all.map(|all| all.into_iter().all(|passed| passed)) {
            Ok(true) => passed.push(number),
            Ok(false) => {}
            Err(error) => failed.push((number, error)),
        }
    }
    let mut locked = LockedPool::lock(core);
    for number in passed {
        if let Some(entry) = locked.books_mut().finish_pending(number) {
            locked.free(&entry);
        }
    }
    let mut books = locked.into_books();
    books.end_frees();
    failed.iter().for_each(|(number, _)| books.expose_pending(*number));
    drop(books);
    for (_, error) in failed {
        tracing::warn!(
            pool = core.config().name,
            %error,
            "a fence cannot be asked: the memory is synchronized instead"
        );
    }
}

/// Drops the fences that no one asks any more.
pub(super) fn drop_stale_fences(core: &PoolCore) {
    let mut stale = core.books().take_stale_fences();
    for (_, shard) in core.shards() {
        stale.append(&mut shard.books().take_stale_fences());
    }
    // Without a lock: fences may belong to a driver.
    drop(stale);
}
