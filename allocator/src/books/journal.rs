//! [`Journal`]: enters changes of the books in the event log, if there is one.

use std::sync::Arc;

use super::entry::{Entry, Location, RegionBlock};
use crate::events::{Header, Place, Recorder};
use crate::offsets::{Placement, Request};

/// The event log of the books. Each method does nothing where no events are recorded.
#[derive(Debug, Default)]
pub(super) struct Journal(Option<Box<Recorder>>);

impl Journal {
    pub(super) fn new(recorder: Option<Recorder>) -> Self {
        Self(recorder.map(Box::new))
    }

    /// Whether the pool has a log, which may be full already.
    #[inline]
    pub(super) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    #[inline]
    fn recorder(&mut self) -> Option<&mut Recorder> {
        self.0.as_deref_mut().filter(|recorder| recorder.is_recording())
    }

    pub(super) fn begin(&mut self, header: Header) {
        if let Some(recorder) = self.recorder() {
            recorder.begin(header);
        }
    }

    /// A region was added.
    pub(super) fn grow(&mut self, region: usize, bytes: u64) {
        if let Some(recorder) = self.recorder() {
            recorder.grow(region, bytes);
        }
    }

    /// A single fragment was placed.
    #[inline]
    pub(super) fn alloc(&mut self, entry: &mut Entry, align: u64) {
        if let Some(recorder) = self.recorder() {
            entry.number = recorder.alloc(&entry.label, entry.bytes, align, entry.location.map(place));
        }
    }

    /// A range whose other part is used again was entered by itself, and stays pending.
    pub(super) fn remainder(&mut self, entry: &mut Entry) {
        if let Some(recorder) = self.recorder() {
            entry.number = recorder.alloc(&entry.label, entry.bytes, 1, entry.location.map(place));
            recorder.retire(vec![entry.number]);
        }
    }

    /// Fragments were taken off the retire queue.
    #[inline]
    pub(super) fn retire(&mut self, numbers: Vec<u64>) {
        if let Some(recorder) = self.recorder() {
            recorder.retire(numbers);
        }
    }

    /// A block was taken for a planned batch.
    pub(super) fn take(&mut self, label: &Arc<str>, request: Request, block: &RegionBlock) {
        if let Some(recorder) = self.recorder() {
            recorder.take(label, request, place(block.location));
        }
    }

    /// A fragment of a planned batch was entered; [`cut`](Self::cut) follows the last one under the same lock.
    #[inline]
    pub(super) fn part(&mut self, entry: &mut Entry, placement: &Placement) {
        if let Some(recorder) = self.recorder() {
            entry.number = recorder.part(&entry.label, placement);
        }
    }

    /// The blocks were cut into the fragments entered before.
    pub(super) fn cut<'a>(&mut self, blocks: impl Iterator<Item = &'a RegionBlock>) {
        if let Some(recorder) = self.recorder() {
            recorder.cut(blocks.map(|block| place(block.location)));
        }
    }

    /// A block that was never cut was entered as a fragment, and keeps its number.
    pub(super) fn uncut(&mut self, entry: &mut Entry) {
        if let Some(recorder) = self.recorder()
            && let Some(number) = entry.location.and_then(|location| recorder.uncut(place(location)))
        {
            entry.number = number;
        }
    }

    /// The range of a fragment is free, or lost. [`end_pass`](Self::end_pass) follows under the same lock.
    #[inline]
    pub(super) fn reap(&mut self, entry: &Entry, freed: bool) {
        if let Some(recorder) = self.recorder() {
            recorder.reap(entry.number, freed);
        }
    }

    #[inline]
    pub(super) fn end_pass(&mut self) {
        if let Some(recorder) = self.recorder() {
            recorder.end_pass();
        }
    }

    /// Empty regions are about to be released, except for `keep` bytes.
    pub(super) fn trim(&mut self, keep: u64) {
        if let Some(recorder) = self.recorder() {
            recorder.trim(keep);
        }
    }

    pub(super) fn close(&mut self) {
        if let Some(recorder) = self.recorder() {
            recorder.close();
        }
    }

    /// A region was removed.
    pub(super) fn release(&mut self, region: usize, bytes: u64) {
        if let Some(recorder) = self.recorder() {
            recorder.release(region, bytes);
        }
    }

    /// A part of a region was given back.
    pub(super) fn release_part(&mut self, region: usize, bytes: u64) {
        if let Some(recorder) = self.recorder() {
            recorder.release_part(region, bytes);
        }
    }
}

fn place(location: Location) -> Place {
    (location.region, location.offset)
}
