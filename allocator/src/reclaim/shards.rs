//! What the reaper and refused placements do with shards.

use super::take_back::take_back_in_shard;
use crate::core::PoolCore;

/// Gives the empty spans of all shards back to their regions.
pub(super) fn give_back_spans(core: &PoolCore) {
    for (_, shard) in core.shards() {
        let mut shard_books = shard.books();
        if shard_books.has_surplus() {
            shard_books.give_back_surplus(&mut core.books());
        }
    }
}

/// Makes the blocks in the spans of all shards blocks of the pool's regions, and takes back what was dropped there. For a placement that
/// has found no room, and for one that looks for pending ranges.
pub(crate) fn dissolve_shards(core: &PoolCore) {
    if core.is_forked_child() {
        return;
    }
    for (number, shard) in core.shards() {
        let mut shard_books = shard.books();
        if take_back_in_shard(core, shard, &mut shard_books) {
            shard_books.note_taken_back();
        }
        if shard_books.has_spans() {
            shard_books.dissolve(number, &mut core.books());
        }
    }
}

/// Whether the reaper may sleep as far as the shards go. Marks their queues, so that the next drop wakes it.
pub(super) fn fall_asleep(core: &PoolCore) -> bool {
    core.shards().all(|(_, shard)| {
        let mut books = shard.books();
        !books.was_taken_back() && !books.has_exposed() && shard.retired.fall_asleep()
    })
}
