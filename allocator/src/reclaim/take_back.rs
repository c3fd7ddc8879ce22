//! Takes records off the retire queues, which frees them (R1), and sorts their ranges by what they wait for.

use crate::books::{Books, ShardBooks};
use crate::core::{PoolCore, Record, Shard};

/// Takes back what was retired in the pool's books. Returns whether there was anything.
pub(crate) fn take_back(core: &PoolCore, books: &mut Books) -> bool {
    books.retire(core.retired().take_all().map(Record::into_parts), core.config().is_used_by_devices)
}

/// As [`take_back`], before a placement, which can use at once what is free. The reaper comes for the rest.
pub(crate) fn take_back_for_placement(core: &PoolCore, books: &mut Books) {
    if !take_back(core, books) {
        return;
    }
    books.note_taken_back();
    if books.exposed_count() > 0 {
        core.wake_reaper();
    }
}

/// Takes back what was retired in a shard. Returns whether there was anything.
pub(crate) fn take_back_in_shard(core: &PoolCore, shard: &Shard, shard_books: &mut ShardBooks) -> bool {
    let waits_for_devices = core.config().is_used_by_devices;
    let mut any = false;
    let mut books = None;
    for (slot, uses) in shard.retired.take_all().map(Record::into_parts) {
        any = true;
        if let Some(range) = shard_books.retire(slot, uses, waits_for_devices) {
            // Under the lock of the shard still: no one sees the range missing from both.
            books.get_or_insert_with(|| core.books()).take_over(range);
        }
    }
    if let Some(mut books) = books {
        books.note_taken_back();
        drop(books);
        core.wake_reaper();
    }
    any
}
