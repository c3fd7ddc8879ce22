//! One replay, event by event.

use slab::Slab;
use smallvec::SmallVec;

use super::digest::Digest;
use super::policy::Policy;
use super::report::{Replayed, Room};
use super::space::{self, Handle, ReplaySpace};
use crate::events::{Event, Header, Log, Part};
use crate::offsets::Request;

/// No more is reserved: sums of so much do not overflow.
pub(super) const MAX_BYTES: u64 = 1 << 62;

pub(super) struct Run<'a> {
    header: &'a Header,
    policy: Policy,
    room: Room,
    /// In slots that are used again, since the pool searches its regions in the order of such slots.
    regions: Slab<ReplayRegion>,
    /// By the numbers of fragments and blocks; `None` for one that is empty, or was refused, or has gone.
    held: Vec<Option<ReplayRange>>,
    digest: Option<Digest>,
    live: u64,
    reserved: u64,
    peak_index: usize,
    tally: Replayed,
}

struct ReplayRegion {
    number: u64,
    /// It is backed in parts: nothing is placed there but the block that it was made for, and it is not kept.
    in_parts: bool,
    space: Box<dyn ReplaySpace>,
}

/// Where a fragment or block lies.
#[derive(Debug, Clone, Copy)]
struct ReplayRange {
    slot: usize,
    offset: u64,
    handle: Handle,
    /// As asked for.
    bytes: u64,
}

impl<'a> Run<'a> {
    pub(super) fn new(log: &'a Log, policy: Policy, room: Room) -> Self {
        let mut run = Self {
            header: &log.header,
            policy,
            room,
            regions: Slab::new(),
            held: Vec::new(),
            digest: None,
            live: 0,
            reserved: 0,
            peak_index: 0,
            tally: Replayed {
                operations: 0,
                failures: 0,
                peak_live_bytes: 0,
                peak_reserved_bytes: 0,
                regions: 0,
                free_at_peak_bytes: 0,
                largest_free_at_peak_bytes: 0,
                digest: Digest::default(),
            },
        };
        if let Room::Capacity(bytes) = room {
            run.grow(bytes.min(MAX_BYTES), false);
        }
        run
    }

    /// Keeps a digest, which takes longer than some operations.
    pub(super) fn keep_digest(&mut self) {
        self.digest = Some(Digest::default());
    }

    /// The next event, which is the `index`-th.
    pub(super) fn step(&mut self, index: usize, event: &Event) {
        match event {
            Event::Alloc { bytes: 0, .. } => self.held.push(None),
            Event::Alloc { bytes, align, .. } => {
                self.place(Request::new(*bytes, *align), self.header.region_bytes, false);
            }
            // As the pool: a new region for a batch is just as large.
            Event::Take { bytes, align, .. } => {
                let in_parts = self.header.in_parts && self.room == Room::Growing;
                self.place(Request::new(*bytes, *align), 0, in_parts);
            }
            Event::Cut { blocks, parts, .. } => self.cut(blocks, parts),
            Event::Reap(numbers) => numbers.iter().for_each(|&number| self.free(number)),
            Event::Lose(numbers) => {
                for &number in numbers {
                    if let Some(lost) = self.take_held(number) {
                        self.live -= lost.bytes;
                    }
                }
            }
            Event::Trim { keep } if self.room == Room::Growing => self.trim(*keep),
            // Of the pool's own regions; a range is free when it is reaped.
            Event::Grow { .. }
            | Event::Release { .. }
            | Event::Part { .. }
            | Event::Retire(_)
            | Event::Trim { .. }
            | Event::Close => {}
        }
        if self.live > self.tally.peak_live_bytes {
            self.tally.peak_live_bytes = self.live;
            self.peak_index = index;
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.tally.failures > 0
    }

    /// Which event the most was live after, for the first time.
    pub(super) fn peak_index(&self) -> usize {
        self.peak_index
    }

    /// Bytes that are free, and those of the largest free block.
    pub(super) fn free_now(&self) -> (u64, u64) {
        let spaces = || self.regions.iter().map(|(_, region)| &region.space);
        let largest = spaces().map(|space| space.largest_free()).max().unwrap_or(0);
        (spaces().map(|space| space.free_bytes()).sum(), largest)
    }

    /// What came of it, but for what is free at the peak.
    pub(super) fn replayed(&self) -> Replayed {
        Replayed { digest: self.digest.unwrap_or_default(), ..self.tally.clone() }
    }

    fn place(&mut self, request: Request, region_bytes: u64, in_parts: bool) {
        self.tally.operations += 1;
        let there = if in_parts { None } else { self.fit(request) };
        let placed = there.or_else(|| {
            let slot = self.grow_for(request, region_bytes, in_parts)?;
            let (offset, handle) = self.regions.get_mut(slot)?.space.allocate(request)?;
            Some(ReplayRange { slot, offset, handle, bytes: request.size })
        });
        match placed {
            Some(range) => self.live += range.bytes,
            None => self.tally.failures += 1,
        }
        self.digest(placed.map(|range| (range.slot, range.offset)));
        self.held.push(placed);
    }

    fn digest(&mut self, place: Option<(usize, u64)>) {
        let Some(digest) = &mut self.digest else { return };
        let regions = &self.regions;
        digest.enter(place.and_then(|(slot, offset)| Some((regions.get(slot)?.number, offset))));
    }

    /// In the first region that has room for it, as the pool does.
    fn fit(&mut self, request: Request) -> Option<ReplayRange> {
        self.regions.iter_mut().filter(|(_, region)| !region.in_parts).find_map(|(slot, region)| {
            let (offset, handle) = region.space.allocate(request)?;
            Some(ReplayRange { slot, offset, handle, bytes: request.size })
        })
    }

    /// A new region, as large as the pool would make it.
    fn grow_for(&mut self, request: Request, region_bytes: u64, in_parts: bool) -> Option<usize> {
        if self.room != Room::Growing {
            return None;
        }
        let limit = self.header.limit_bytes.unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let left = limit.saturating_sub(self.reserved);
        (request.size <= left).then(|| self.grow(request.size.max(region_bytes).min(left), in_parts))
    }

    fn grow(&mut self, bytes: u64, in_parts: bool) -> usize {
        let space = space::new(self.policy, bytes, self.header.granule);
        let slot = self.regions.insert(ReplayRegion { number: self.tally.regions, in_parts, space });
        self.tally.regions += 1;
        self.reserved += bytes;
        self.tally.peak_reserved_bytes = self.tally.peak_reserved_bytes.max(self.reserved);
        slot
    }

    fn cut(&mut self, blocks: &[u64], parts: &[Part]) {
        let mut offsets: SmallVec<[Vec<u64>; 4]> = SmallVec::from_elem(Vec::new(), blocks.len());
        for part in parts.iter().filter(|part| part.bytes > 0) {
            if let Some(offsets) = offsets.get_mut(part.block as usize) {
                offsets.push(part.offset);
            }
        }
        let carve = |(&block, offsets): (&u64, Vec<u64>)| {
            let range = self.take_held(block)?;
            self.live -= range.bytes;
            let handles = self.regions.get_mut(range.slot)?.space.carve(range.handle, &offsets);
            Some((range, handles.into_iter()))
        };
        let mut cut: SmallVec<[Option<_>; 4]> = blocks.iter().zip(offsets).map(carve).collect();
        for part in parts {
            let block = cut.get_mut(part.block as usize).filter(|_| part.bytes > 0).and_then(Option::as_mut);
            let range = block.and_then(|(block, handles)| {
                let (handle, offset) = (handles.next()?, block.offset + part.offset);
                Some(ReplayRange { slot: block.slot, offset, handle, bytes: part.bytes })
            });
            if let Some(range) = range {
                self.tally.operations += 1;
                self.live += range.bytes;
                self.digest(Some((range.slot, range.offset)));
            }
            self.held.push(range);
        }
    }

    fn free(&mut self, number: u64) {
        let Some(range) = self.take_held(number) else { return };
        self.tally.operations += 1;
        self.live -= range.bytes;
        if let Some(region) = self.regions.get_mut(range.slot) {
            region.space.free(range.handle);
        }
    }

    /// Gives back empty regions, except for the first ones that fit into `keep` bytes.
    fn trim(&mut self, mut keep: u64) {
        let reserved = &mut self.reserved;
        self.regions.retain(|_, ReplayRegion { space, in_parts, .. }| {
            let size = space.capacity();
            if !space.is_empty() {
                return true;
            }
            if !*in_parts && size <= keep {
                keep -= size;
                return true;
            }
            *reserved -= size;
            false
        });
    }

    fn take_held(&mut self, number: u64) -> Option<ReplayRange> {
        self.held.get_mut(number as usize)?.take()
    }
}
