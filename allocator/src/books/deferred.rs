//! [`DeferredFrees`]: ranges that were dropped and are not free yet, since a device may still use them.
//!
//! ```text
//! drop ─> retire queue ─> exposed ── the memory is synchronized ──┐
//!                    └──> pending ── its fences have passed ──────┼─> free
//!                            └────── Pool::place_on: in use again on a stream that comes after the fences
//! ```

use std::ptr::NonNull;

use super::entry::{Entry, Location};
use crate::offsets::Request;
use crate::stream::uses::RecordedUse;

/// Dropped ranges that are not free yet.
#[derive(Debug, Default)]
pub(super) struct DeferredFrees {
    /// Ranges that wait until the memory is synchronized.
    exposed: Vec<Entry>,
    /// Ranges that wait for fences.
    pending: Vec<PendingRange>,
    /// Bytes of both, and of ranges that were claimed and neither used nor returned yet.
    bytes: u64,
    last_number: u64,
}

/// A dropped range that waits for fences.
#[derive(Debug)]
pub(crate) struct PendingRange {
    /// Never that of another.
    number: u64,
    pub(crate) entry: Entry,
    pub(crate) uses: Vec<RecordedUse>,
}

/// The fences that a pending range waits for.
#[derive(Debug)]
pub(crate) struct FenceWait {
    /// Which range.
    pub(crate) number: u64,
    pub(crate) uses: Vec<RecordedUse>,
}

/// What happens to the range of a fragment that was retired.
pub(super) enum Disposition {
    /// Nothing can be using it.
    Free,
    /// The memory is to be synchronized.
    Exposed,
    /// These fences are to pass.
    Pending(Vec<RecordedUse>),
}

/// A range that was retired in a shard, and is for the pool's books.
pub(crate) struct SortedRange {
    pub(super) entry: Entry,
    pub(super) disposition: Disposition,
}

impl Disposition {
    /// What happens to the range of an entry, for which the memory must be synchronized or not. Fences that it does not wait for go to
    /// `stale`.
    pub(super) fn of(
        entry: &Entry,
        must_synchronize: bool,
        mut uses: Vec<RecordedUse>,
        stale: &mut Vec<RecordedUse>,
    ) -> Self {
        let disposition = match must_synchronize {
            _ if entry.location.is_none() => Self::Free,
            true => Self::Exposed,
            false if uses.is_empty() => Self::Free,
            false => return Self::Pending(uses),
        };
        stale.append(&mut uses);
        disposition
    }
}

impl DeferredFrees {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a range that waits until the memory is synchronized.
    pub(super) fn expose(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.exposed.push(entry);
    }

    /// Adds a range that waits for fences.
    pub(super) fn wait_for(&mut self, entry: Entry, uses: Vec<RecordedUse>) {
        self.bytes += entry.bytes;
        self.last_number += 1;
        self.pending.push(PendingRange { number: self.last_number, entry, uses });
    }

    /// How many ranges wait until the memory is synchronized.
    pub(super) fn exposed_count(&self) -> usize {
        self.exposed.len()
    }

    /// Removes the first `count` of these.
    pub(super) fn take_exposed(&mut self, count: usize) -> Vec<Entry> {
        let taken: Vec<Entry> = self.exposed.drain(..count).collect();
        self.bytes -= taken.iter().map(|entry| entry.bytes).sum::<u64>();
        taken
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Copies of all fences that are waited for.
    pub(super) fn fence_waits(&self) -> Vec<FenceWait> {
        let wait = |range: &PendingRange| FenceWait { number: range.number, uses: range.uses.clone() };
        self.pending.iter().map(wait).collect()
    }

    /// Removes a range whose fences have passed; `None` if it was claimed meanwhile.
    pub(super) fn finish(&mut self, number: u64) -> Option<PendingRange> {
        let range = self.remove(number)?;
        self.bytes -= range.entry.bytes;
        Some(range)
    }

    /// A range whose fences cannot be asked waits until the memory is synchronized instead. Returns the fences.
    pub(super) fn give_up_fences(&mut self, number: u64) -> Option<Vec<RecordedUse>> {
        let PendingRange { entry, uses, .. } = self.remove(number)?;
        self.exposed.push(entry);
        Some(uses)
    }

    /// Claims the smallest pending range that holds the request; those used on this stream alone come first. Its bytes stay counted until
    /// [`end_claim`](Self::end_claim) or [`return_claim`](Self::return_claim).
    pub(super) fn claim(
        &mut self,
        request: Request,
        stream: u64,
        address: impl Fn(Location) -> Option<NonNull<u8>>,
    ) -> Option<PendingRange> {
        let holds = |range: &&PendingRange| {
            let aligned = |at: NonNull<u8>| (at.as_ptr() as u64).is_multiple_of(request.align);
            range.entry.bytes >= request.size && range.entry.location.and_then(&address).is_some_and(aligned)
        };
        let order =
            |range: &&PendingRange| (range.uses.iter().any(|use_| use_.stream != stream), range.entry.bytes);
        let best = self.pending.iter().filter(holds).min_by_key(order)?.number;
        self.remove(best)
    }

    /// A claimed range is used again.
    pub(super) fn end_claim(&mut self, entry: &Entry) {
        self.bytes -= entry.bytes;
    }

    /// A claimed range was not used, and waits again.
    pub(super) fn return_claim(&mut self, range: PendingRange) {
        self.end_claim(&range.entry);
        self.wait_for(range.entry, range.uses);
    }

    /// All ranges, to follow blocks that move to another location.
    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.exposed.iter_mut().chain(self.pending.iter_mut().map(|range| &mut range.entry))
    }

    fn remove(&mut self, number: u64) -> Option<PendingRange> {
        let index = self.pending.iter().position(|range| range.number == number)?;
        Some(self.pending.swap_remove(index))
    }
}
