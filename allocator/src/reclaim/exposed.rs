//! Frees ranges whose addresses were given out, after the memory was synchronized.

use smallvec::SmallVec;

use crate::core::{LockedPool, PoolCore};

/// Synchronizes the memory, if exposed ranges wait for that, and frees them. If it fails, they are lost.
pub(super) fn free_exposed(core: &PoolCore) {
    // They stay where they are meanwhile: a shard that dissolves finds them.
    let in_shards: SmallVec<[usize; 1]> =
        core.shards().map(|(_, shard)| shard.books().answer_call()).collect();
    let in_books = core.books().exposed_count();
    let fragments = in_books + in_shards.iter().sum::<usize>();
    if fragments == 0 {
        return;
    }
    // M3: all work submitted before the last drops has ended when this returns.
    let synchronized = core.config().memory.synchronize();
    if in_books > 0 {
        free_in_books(core, in_books, synchronized.is_ok());
    }
    free_in_shards(core, &in_shards, synchronized.is_ok());
    if let Err(error) = synchronized {
        tracing::error!(
            pool = core.config().name,
            %error,
            fragments,
            "memory cannot be synchronized: dropped ranges are lost"
        );
    }
}

fn free_in_books(core: &PoolCore, count: usize, synchronized: bool) {
    let mut locked = LockedPool::lock(core);
    for entry in locked.books_mut().take_exposed(count) {
        match synchronized {
            true => locked.free(&entry),
            // I1 cannot be shown: the range is never free again, nor its region empty.
            false => locked.books_mut().lose(&entry),
        }
    }
    locked.books_mut().end_frees();
}

fn free_in_shards(core: &PoolCore, counts: &[usize], synchronized: bool) {
    for ((_, shard), &count) in core.shards().zip(counts).filter(|(_, count)| **count > 0) {
        let mut shard_books = shard.books();
        let mut books = None;
        for entry in shard_books.take_exposed(count) {
            match synchronized {
                true if entry.is_in_span() => shard_books.free(&entry),
                true => books.get_or_insert_with(|| core.books()).free(&entry),
                false => books.get_or_insert_with(|| core.books()).lose(&entry),
            }
        }
    }
}
