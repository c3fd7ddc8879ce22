//! The recording side of a log: it numbers regions and fragments, which the books know by slots that are reused.
//!
//! The pool calls it under the lock of its books, right after each change.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::event::{Event, Header, Part};
use super::log::EventLog;
use crate::offsets::{Placement, Request};

/// A place in a region: the region's slot in the books, and the offset in bytes.
pub(crate) type Place = (usize, u64);

/// Records the events of the pool that it is given to; [`recorder`](super::recorder) makes one.
#[derive(Debug)]
pub struct Recorder {
    log: EventLog,
    started: Instant,
    next_fragment: u64,
    next_region: u64,
    /// Numbers of regions, by their slots in the books.
    regions: Vec<u64>,
    /// Numbers of blocks that are not cut yet.
    uncut: HashMap<Place, u64>,
    /// Fragments of the batch that is being cut.
    parts: Vec<Part>,
    /// Fragments reaped in this pass.
    reaped: Vec<u64>,
    /// Fragments lost in this pass.
    lost: Vec<u64>,
    /// Bytes that the last trim kept, if nothing has changed since.
    trimmed: Option<u64>,
    closed: bool,
    /// The buffer is full: nothing more is recorded.
    stopped: bool,
}

impl Recorder {
    fn new(log: EventLog) -> Self {
        Self {
            log,
            started: Instant::now(),
            next_fragment: 0,
            next_region: 0,
            regions: Vec::new(),
            uncut: HashMap::new(),
            parts: Vec::new(),
            reaped: Vec::new(),
            lost: Vec::new(),
            trimmed: Some(0),
            closed: false,
            stopped: false,
        }
    }

    /// Whether events are still recorded.
    #[inline]
    pub(crate) fn is_recording(&self) -> bool {
        !self.stopped
    }

    /// Begins the log of a pool that has been built.
    pub(crate) fn begin(&mut self, header: Header) {
        self.started = Instant::now();
        self.log.begin(header);
    }

    /// A region was added to the books.
    pub(crate) fn grow(&mut self, slot: usize, bytes: u64) {
        let region = self.next_region;
        self.next_region += 1;
        set(&mut self.regions, slot, region);
        self.push_change(Event::Grow { region, bytes });
    }

    /// A single fragment was placed. Returns its number.
    pub(crate) fn alloc(&mut self, label: &Arc<str>, bytes: u64, align: u64, place: Option<Place>) -> u64 {
        let (region, offset) = place.map_or((0, 0), |(slot, offset)| (self.region(slot), offset));
        let fragment = self.next_number();
        let label = Arc::clone(label);
        self.push_change(Event::Alloc { fragment, label, bytes, align, region, offset });
        fragment
    }

    /// These fragments were taken off the retire queue.
    pub(crate) fn retire(&mut self, numbers: Vec<u64>) {
        if !numbers.is_empty() {
            self.push(Event::Retire(numbers));
        }
    }

    /// A block was taken for a planned batch.
    pub(crate) fn take(&mut self, label: &Arc<str>, request: Request, place: Place) {
        let block = self.next_number();
        self.uncut.insert(place, block);
        let (region, offset) = (self.region(place.0), place.1);
        let (label, bytes, align) = (Arc::clone(label), request.size, request.align);
        self.push_change(Event::Take { block, label, bytes, align, region, offset });
    }

    /// A fragment of a planned batch was entered. The others follow, and [`cut`](Self::cut), under the same lock. Returns its
    /// number.
    pub(crate) fn part(&mut self, label: &Arc<str>, placement: &Placement) -> u64 {
        let &Placement { region, offset, bytes } = placement;
        self.parts.push(Part { block: region, offset, bytes, label: Arc::clone(label) });
        self.next_number()
    }

    /// The blocks at these places were cut into the parts entered before.
    pub(crate) fn cut(&mut self, places: impl Iterator<Item = Place>) {
        let blocks = places.filter_map(|place| self.uncut.remove(&place)).collect();
        let parts = mem::take(&mut self.parts);
        let first = self.next_fragment - parts.len() as u64;
        self.push_change(Event::Cut { blocks, first, parts });
    }

    /// A block that was never cut becomes a fragment. Returns its number, which it keeps.
    pub(crate) fn uncut(&mut self, place: Place) -> Option<u64> {
        self.uncut.remove(&place)
    }

    /// The range of a fragment is free, or lost. [`end_pass`](Self::end_pass) follows under the same lock.
    pub(crate) fn reap(&mut self, number: u64, freed: bool) {
        let numbers = if freed { &mut self.reaped } else { &mut self.lost };
        numbers.push(number);
    }

    /// Writes the events of all fragments reaped or lost in this pass.
    pub(crate) fn end_pass(&mut self) {
        let (reaped, lost) = (mem::take(&mut self.reaped), mem::take(&mut self.lost));
        if !reaped.is_empty() {
            self.push_change(Event::Reap(reaped));
        }
        if !lost.is_empty() {
            self.push_change(Event::Lose(lost));
        }
    }

    /// Empty regions are about to be released, except for `keep` bytes.
    pub(crate) fn trim(&mut self, keep: u64) {
        // A second trim changes nothing unless it keeps less or something has changed since.
        if self.trimmed.is_none_or(|kept| keep < kept) {
            self.push(Event::Trim { keep });
            self.trimmed = Some(keep);
        }
    }

    /// The reaper has seen that the pool is closing.
    pub(crate) fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            self.push(Event::Close);
        }
    }

    /// A region was removed from the books.
    pub(crate) fn release(&mut self, slot: usize, bytes: u64) {
        self.push(Event::Release { region: self.region(slot), bytes });
    }

    /// A part of a region was given back.
    pub(crate) fn release_part(&mut self, slot: usize, bytes: u64) {
        self.push(Event::Part { region: self.region(slot), bytes });
    }

    fn push(&mut self, event: Event) {
        if self.stopped {
            return;
        }
        let time = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stopped = !self.log.push(time, event);
        if self.stopped {
            // No later event needs them.
            self.uncut = HashMap::new();
            self.regions = Vec::new();
        }
    }

    /// As `push`, for a change that gives the next trim something to do.
    fn push_change(&mut self, event: Event) {
        self.trimmed = None;
        self.push(event);
    }

    fn next_number(&mut self) -> u64 {
        self.next_fragment += 1;
        self.next_fragment - 1
    }

    fn region(&self, slot: usize) -> u64 {
        self.regions.get(slot).copied().unwrap_or_default()
    }
}

/// A recorder for one pool, and the log that it fills. The buffer between them holds about `capacity` events, where each
/// fragment of a planned batch counts as one.
#[must_use]
pub fn recorder(capacity: usize) -> (Recorder, EventLog) {
    let log = EventLog::new(capacity);
    (Recorder::new(log.clone()), log)
}

/// Writes a number at a slot, and makes the list longer where needed.
fn set(numbers: &mut Vec<u64>, slot: usize, number: u64) {
    if slot >= numbers.len() {
        numbers.resize(slot + 1, 0);
    }
    numbers[slot] = number;
}
