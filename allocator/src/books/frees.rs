//! Fragments that were dropped, and the ranges that become free.

use std::mem;

use super::deferred::{Disposition, FenceWait, PendingRange, SortedRange};
use super::entry::{Entry, Location};
use super::pool_books::Books;
use crate::stream::uses::{RecordedUse, Uses};

impl Books {
    /// Removes retired fragments. Frees the ranges that nothing can be using, and sorts the others by what they wait for. Returns
    /// whether there were any.
    pub(crate) fn retire(
        &mut self,
        records: impl Iterator<Item = (usize, Uses)>,
        waits_for_devices: bool,
    ) -> bool {
        let mut any = false;
        let is_logged = self.journal.is_kept();
        let mut numbers = Vec::new();
        // In the log, all are retired before one is free.
        let mut free = Vec::new();
        for (slot, uses) in records {
            any = true;
            let Some(entry) = self.fragments.try_remove(slot) else { continue };
            self.usage.leave(entry.bytes);
            if is_logged {
                numbers.push(entry.number);
            }
            let (exposed, uses) = uses.into_parts();
            match Disposition::of(&entry, exposed && waits_for_devices, uses, &mut self.stale_fences) {
                Disposition::Free if is_logged => free.push(entry),
                disposition => self.dispose(entry, disposition),
            }
        }
        self.journal.retire(numbers);
        free.iter().for_each(|entry| self.free(entry));
        self.journal.end_pass();
        any
    }

    /// Takes over a range that a shard has no use for.
    pub(crate) fn take_over(&mut self, SortedRange { entry, disposition }: SortedRange) {
        self.dispose(entry, disposition);
    }

    fn dispose(&mut self, entry: Entry, disposition: Disposition) {
        match disposition {
            Disposition::Free => self.free(&entry),
            Disposition::Exposed => self.deferred.expose(entry),
            Disposition::Pending(uses) => self.deferred.wait_for(entry, uses),
        }
    }

    /// Frees the range of an entry that was removed. [`end_frees`](Self::end_frees) follows under the same lock.
    pub(crate) fn free(&mut self, entry: &Entry) {
        self.journal.reap(entry, true);
        if let Some(location) = &entry.location {
            self.free_block(location, entry.bytes);
        }
    }

    /// Frees a block that is no fragment's.
    pub(super) fn free_block(&mut self, location: &Location, bytes: u64) {
        self.room_changes += 1;
        let Some(region) = self.regions.get_mut(location.region) else { return };
        // Each slot is entered with a key of its own and removed once, so the key is not stale.
        let freed = region.space.free(location.key);
        debug_assert!(freed.is_ok());
        if let Some(backing) = region.backing.clone() {
            let unused = backing.leave(location.offset, bytes);
            self.queue_unused_parts(location.region, &backing, unused);
        }
    }

    /// The range of an entry that was removed is never used again.
    pub(crate) fn lose(&mut self, entry: &Entry) {
        self.usage.lose(entry.bytes);
        self.journal.reap(entry, false);
    }

    /// Writes the events of what was freed or lost.
    pub(crate) fn end_frees(&mut self) {
        self.journal.end_pass();
    }

    /// Something was freed in a span.
    pub(crate) fn note_room(&mut self) {
        self.room_changes += 1;
    }

    /// A number that changes when something makes room for a placement.
    pub(crate) fn room_changes(&self) -> u64 {
        self.room_changes
    }

    /// How many ranges wait until the memory is synchronized.
    pub(crate) fn exposed_count(&self) -> usize {
        self.deferred.exposed_count()
    }

    /// Removes the first `count` of these.
    pub(crate) fn take_exposed(&mut self, count: usize) -> Vec<Entry> {
        self.deferred.take_exposed(count)
    }

    /// Whether ranges wait for fences.
    pub(crate) fn has_pending(&self) -> bool {
        self.deferred.has_pending()
    }

    /// The fences that pending ranges wait for.
    pub(crate) fn fence_waits(&self) -> Vec<FenceWait> {
        self.deferred.fence_waits()
    }

    /// Removes a range whose fences have passed and returns its entry; `None` if it was claimed meanwhile.
    pub(crate) fn finish_pending(&mut self, number: u64) -> Option<Entry> {
        let PendingRange { entry, uses, .. } = self.deferred.finish(number)?;
        self.stale_fences.extend(uses);
        Some(entry)
    }

    /// A range whose fences cannot be asked waits until the memory is synchronized, as ranges with unknown uses do.
    pub(crate) fn expose_pending(&mut self, number: u64) {
        self.stale_fences.extend(self.deferred.give_up_fences(number).into_iter().flatten());
    }

    /// Removes the fences that no one asks any more, to be dropped without a lock.
    pub(crate) fn take_stale_fences(&mut self) -> Vec<RecordedUse> {
        mem::take(&mut self.stale_fences)
    }

    pub(super) fn deferred_entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.deferred.entries_mut()
    }

    /// A shard reports its live bytes, and before reported `previous`.
    pub(super) fn report_shard(&mut self, previous: u64, live: u64) {
        self.usage.report_shard(previous, live);
    }

    /// The reaper has seen that the pool is closing.
    pub(crate) fn note_closing(&mut self) {
        self.journal.close();
    }

    /// A placement took something back, and may have left work for the reaper.
    pub(crate) fn note_taken_back(&mut self) {
        self.taken_back = true;
    }

    /// Whether a placement has taken something back since the last call.
    pub(crate) fn was_taken_back(&mut self) -> bool {
        mem::take(&mut self.taken_back)
    }
}
