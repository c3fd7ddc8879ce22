//! The pool's side of the log: numbers for what the books know by slots that are reused.
//!
//! Everything here runs under the books' lock, on the way of a change that has just been made; the hooks in the books do
//! nothing where there is no recorder.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use super::{Event, EventLog, Header, Part, VERSION};
use crate::core::pool_core::{BatchRegions, Block, Books, Entry, Home, Shared};
use crate::offsets::{Placement, Request};

/// Records what happens in the pool that it is given to; [`recorder`](super::recorder) makes one.
#[derive(Debug)]
pub struct Recorder {
    log: EventLog,
    began: Instant,
    next_fragment: u64,
    next_region: u64,
    /// Numbers of regions, by their slots in the books.
    regions: Vec<u64>,
    /// Blocks that are not cut yet, by slot of the region and offset.
    uncut: HashMap<(usize, u64), u64>,
    /// Parts of the batch that is being cut.
    parts: Vec<Part>,
    /// What was reaped or lost in this pass.
    gone: Vec<u64>,
    lost: Vec<u64>,
    /// What the reaper kept when it gave regions back, if nothing has happened since.
    trimmed: Option<u64>,
    closed: bool,
    /// An event found no room: nothing more is recorded.
    stopped: bool,
}

impl Recorder {
    pub(super) fn new(log: EventLog) -> Self {
        Self {
            log,
            began: Instant::now(),
            next_fragment: 0,
            next_region: 0,
            regions: Vec::new(),
            uncut: HashMap::new(),
            parts: Vec::new(),
            gone: Vec::new(),
            lost: Vec::new(),
            trimmed: Some(0),
            closed: false,
            stopped: false,
        }
    }

    fn push(&mut self, event: Event) {
        if self.stopped {
            return;
        }
        let time = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stopped = !self.log.push(time, event);
        if self.stopped {
            // Nothing will be looked up again.
            self.uncut = HashMap::new();
            self.regions = Vec::new();
        }
    }

    /// As `push`, for what gives the reaper something to do.
    fn change(&mut self, event: Event) {
        self.trimmed = None;
        self.push(event);
    }

    fn number(&mut self) -> u64 {
        self.next_fragment += 1;
        self.next_fragment - 1
    }

    fn region(&self, slot: usize) -> u64 {
        self.regions.get(slot).copied().unwrap_or_default()
    }

    /// Numbers a fragment that was entered.
    fn alloc(&mut self, entry: &mut Entry, align: u64) {
        let (region, offset) = entry.home.map_or((0, 0), |home| (self.region(home.region), home.offset));
        let fragment = self.number();
        entry.number = fragment;
        let (label, bytes) = (Arc::clone(&entry.label), entry.bytes);
        self.change(Event::Alloc { fragment, label, bytes, align, region, offset });
    }
}

/// Writes behind the end as well.
fn put(numbers: &mut Vec<u64>, slot: usize, number: u64) {
    if slot >= numbers.len() {
        numbers.resize(slot + 1, 0);
    }
    numbers[slot] = number;
}

fn key(home: &Home) -> (usize, u64) {
    (home.region, home.offset)
}

impl Shared {
    /// Gives the pool, which is being built, a recorder.
    pub(crate) fn record(&mut self, recorder: Recorder) {
        self.options.recording = true;
        self.books_mut().recorder = Some(Box::new(recorder));
    }

    /// Describes the pool, which has been built, in its log.
    pub(crate) fn begin_log(&self) {
        // Without the lock: the memory is others' code.
        let memory = self.memory.name().to_owned();
        let mut books = self.books();
        let Some(recorder) = books.recording() else { return };
        recorder.began = Instant::now();
        recorder.log.begin(Header {
            version: VERSION,
            pool: self.name.clone(),
            memory,
            granule: self.options.granule,
            region_bytes: self.options.region_bytes,
            max_region_bytes: self.options.max_region_bytes.map(NonZeroU64::get),
            limit_bytes: self.options.limit_bytes,
            retain_bytes: self.options.retain_bytes,
            policy: self.options.policy,
            in_parts: matches!(self.batch_regions, BatchRegions::Parts(_)),
        });
    }
}

impl Books {
    #[inline]
    fn recording(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_deref_mut().filter(|recorder| !recorder.stopped)
    }

    /// A region came.
    pub(crate) fn log_grow(&mut self, slot: usize, bytes: u64) {
        let Some(recorder) = self.recording() else { return };
        let region = recorder.next_region;
        recorder.next_region += 1;
        put(&mut recorder.regions, slot, region);
        recorder.change(Event::Grow { region, bytes });
    }

    /// A fragment was entered by itself.
    pub(crate) fn log_alloc(&mut self, slot: usize, align: u64) {
        let Some(recorder) = self.recorder.as_deref_mut() else { return };
        if let (false, Some(entry)) = (recorder.stopped, self.fragments.get_mut(slot)) {
            recorder.alloc(entry, align);
        }
    }

    /// What is left of a range of which a part is in use again: nobody's, and pending still.
    pub(crate) fn log_left(&mut self, entry: &mut Entry) {
        let Some(recorder) = self.recording() else { return };
        recorder.alloc(entry, 1);
        recorder.push(Event::Retire(vec![entry.number]));
    }

    /// These have been found in the queue.
    pub(crate) fn log_retire(&mut self, numbers: Vec<u64>) {
        let Some(recorder) = self.recording().filter(|_| !numbers.is_empty()) else { return };
        recorder.push(Event::Retire(numbers));
    }

    /// A block of a planned batch was taken.
    pub(crate) fn log_take(&mut self, label: &Arc<str>, request: Request, block: &Block) {
        let Some(recorder) = self.recording() else { return };
        let number = recorder.number();
        recorder.uncut.insert(key(&block.home), number);
        let (region, offset) = (recorder.region(block.home.region), block.home.offset);
        let (label, bytes, align) = (Arc::clone(label), request.size, request.align);
        recorder.change(Event::Take { block: number, label, bytes, align, region, offset });
    }

    /// A part of a planned batch was entered. The next parts follow, and `log_cut`, under the same lock.
    pub(crate) fn log_part(&mut self, slot: usize, placement: &Placement) {
        let Some(recorder) = self.recorder.as_deref_mut() else { return };
        let (false, Some(entry)) = (recorder.stopped, self.fragments.get_mut(slot)) else { return };
        entry.number = recorder.number();
        let (label, &Placement { region, offset, bytes }) = (Arc::clone(&entry.label), placement);
        recorder.parts.push(Part { block: region, offset, bytes, label });
    }

    /// These blocks were cut into the parts before.
    pub(crate) fn log_cut(&mut self, blocks: &[(Block, u64)]) {
        let Some(recorder) = self.recording() else { return };
        let blocks =
            blocks.iter().filter_map(|(block, _)| recorder.uncut.remove(&key(&block.home))).collect();
        let parts = std::mem::take(&mut recorder.parts);
        let first = recorder.next_fragment - parts.len() as u64;
        recorder.change(Event::Cut { blocks, first, parts });
    }

    /// A block that was never cut was entered as a fragment, to go the way of those: it keeps its number.
    pub(crate) fn log_uncut(&mut self, slot: usize) {
        let Some(recorder) = self.recorder.as_deref_mut() else { return };
        let Some(entry) = self.fragments.get_mut(slot) else { return };
        if let Some(number) = entry.home.and_then(|home| recorder.uncut.remove(&key(&home))) {
            entry.number = number;
        }
    }

    /// A fragment left the books, and its range is free, or lost. `log_gone` follows under the same lock.
    pub(crate) fn log_reap(&mut self, number: u64, freed: bool) {
        let Some(recorder) = self.recording() else { return };
        let gone = if freed { &mut recorder.gone } else { &mut recorder.lost };
        gone.push(number);
    }

    /// All that goes in this pass has gone.
    pub(crate) fn log_gone(&mut self) {
        let Some(recorder) = self.recording() else { return };
        for (numbers, event) in [
            (std::mem::take(&mut recorder.gone), Event::Reap as fn(_) -> _),
            (std::mem::take(&mut recorder.lost), Event::Lose),
        ] {
            if !numbers.is_empty() {
                recorder.change(event(numbers));
            }
        }
    }

    /// Empty regions beyond so many bytes are about to go.
    pub(crate) fn log_trim(&mut self, keep: u64) {
        let Some(recorder) = self.recording() else { return };
        // Where as little was kept and nothing has happened since, it would change nothing.
        if recorder.trimmed.is_none_or(|kept| keep < kept) {
            recorder.push(Event::Trim { keep });
            recorder.trimmed = Some(keep);
        }
    }

    /// The reaper has seen that the pool is closing.
    pub(crate) fn log_close(&mut self) {
        if let Some(recorder) = self.recording().filter(|recorder| !recorder.closed) {
            recorder.closed = true;
            recorder.push(Event::Close);
        }
    }

    /// A region left the books.
    pub(crate) fn log_release(&mut self, slot: usize, bytes: u64) {
        let Some(recorder) = self.recording() else { return };
        recorder.push(Event::Release { region: recorder.region(slot), bytes });
    }

    /// A part of a region went back.
    pub(crate) fn log_part_back(&mut self, slot: usize, bytes: u64) {
        let Some(recorder) = self.recording() else { return };
        recorder.push(Event::Part { region: recorder.region(slot), bytes });
    }
}
