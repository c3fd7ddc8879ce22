//! [`Ledger`]: checks that each event can follow those before it.
//!
//! - Numbers count up from 0, and times do not go back.
//! - Ranges lie in live regions, at multiples of their alignment, and no two overlap.
//! - A batch is cut from blocks that are not cut yet, in order, each from its first byte on.
//! - A retired fragment is live, a reaped or lost one is retired, and a released region is empty and of that size.

use std::collections::{BTreeMap, HashMap};

use super::event::{Event, Header, Part};

/// More than any memory has; sums of two do not overflow.
const MAX_RESERVED: u64 = 1 << 62;

type Checked<T = ()> = Result<T, String>;

/// The books of the pool, as its log describes them.
#[derive(Debug)]
pub(super) struct Ledger {
    limit: u64,
    time: u64,
    fragments: u64,
    region_count: u64,
    reserved: u64,
    live: HashMap<u64, LoggedRange>,
    regions: HashMap<u64, LoggedRegion>,
}

#[derive(Debug)]
struct LoggedRange {
    /// Region and offset; `None` if it is empty.
    place: Option<(u64, u64)>,
    bytes: u64,
    /// A block that is not cut yet.
    is_block: bool,
    retired: bool,
}

#[derive(Debug)]
struct LoggedRegion {
    bytes: u64,
    /// Without the parts that were released.
    reserved: u64,
    /// First bytes and ends of the live ranges.
    ranges: BTreeMap<u64, u64>,
}

impl Ledger {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            limit: header.limit_bytes.unwrap_or(u64::MAX),
            time: 0,
            fragments: 0,
            region_count: 0,
            reserved: 0,
            live: HashMap::new(),
            regions: HashMap::new(),
        }
    }

    /// Enters an event, or says why it cannot have happened.
    pub(super) fn enter(&mut self, time: u64, event: &Event) -> Checked {
        if time < self.time {
            return Err(format!("expected a time of {} ns or later, got {time}", self.time));
        }
        self.time = time;
        match event {
            Event::Grow { region, bytes } => self.grow(*region, *bytes),
            Event::Alloc { fragment, bytes: 0, align, .. } => {
                check_align(*align)?;
                self.number(*fragment, 1)?;
                self.live.insert(
                    *fragment,
                    LoggedRange { place: None, bytes: 0, is_block: false, retired: false },
                );
                Ok(())
            }
            Event::Alloc { fragment, bytes, align, region, offset, .. } => {
                self.place(*fragment, (*region, *offset), (*bytes, *align), false)
            }
            Event::Take { bytes: 0, .. } => Err("expected a block with bytes, got an empty one".into()),
            Event::Take { block, bytes, align, region, offset, .. } => {
                self.place(*block, (*region, *offset), (*bytes, *align), true)
            }
            Event::Cut { blocks, first, parts } => self.cut(blocks, *first, parts),
            Event::Retire(numbers) => self.retire(numbers),
            Event::Reap(numbers) => self.reap(numbers, true),
            Event::Lose(numbers) => self.reap(numbers, false),
            Event::Part { region, bytes } => self.part(*region, *bytes),
            Event::Release { region, bytes } => self.release(*region, *bytes),
            Event::Trim { .. } | Event::Close => Ok(()),
        }
    }

    fn grow(&mut self, number: u64, bytes: u64) -> Checked {
        expect("a region with number", self.region_count, number)?;
        let reserved = self.reserved.checked_add(bytes);
        let most = self.limit.min(MAX_RESERVED);
        let Some(reserved) = reserved.filter(|&reserved| bytes > 0 && reserved <= most) else {
            let left = most.saturating_sub(self.reserved);
            return Err(format!("expected a region of 1 to {left} bytes, got {bytes}"));
        };
        self.reserved = reserved;
        self.region_count += 1;
        self.regions.insert(number, LoggedRegion { bytes, reserved: bytes, ranges: BTreeMap::new() });
        Ok(())
    }

    fn place(
        &mut self,
        number: u64,
        place: (u64, u64),
        (bytes, align): (u64, u64),
        is_block: bool,
    ) -> Checked {
        check_align(align)?;
        if !place.1.is_multiple_of(align) {
            return Err(format!("expected an offset that is a multiple of {align}, got {}", place.1));
        }
        self.number(number, 1)?;
        self.take_range(place, bytes)?;
        self.live.insert(number, LoggedRange { place: Some(place), bytes, is_block, retired: false });
        Ok(())
    }

    fn cut(&mut self, numbers: &[u64], first: u64, parts: &[Part]) -> Checked {
        self.number(first, parts.len() as u64)?;
        let mut blocks = Vec::with_capacity(numbers.len());
        for number in numbers {
            let block = self.live.remove(number).filter(|block| block.is_block && !block.retired);
            let Some((place, bytes)) = block.and_then(|block| Some((block.place?, block.bytes))) else {
                return Err(format!("expected a block that is not cut yet, got {number}"));
            };
            self.give_range(place);
            blocks.push((place, bytes, None));
        }
        for (index, part) in parts.iter().enumerate() {
            let mut live = LoggedRange { place: None, bytes: part.bytes, is_block: false, retired: false };
            if part.bytes > 0 {
                let Some(((region, start), bytes, end)) = blocks.get_mut(part.block as usize) else {
                    return Err(format!("part {index} lies in block {} of {}", part.block, numbers.len()));
                };
                let next = part.offset.checked_add(part.bytes).filter(|next| next <= bytes);
                let follows = end.map_or(part.offset == 0, |end| part.offset >= end);
                let (Some(next), true) = (next, follows) else {
                    let Part { offset, bytes: size, .. } = part;
                    return Err(format!(
                        "part {index} of {size} bytes does not follow the one before at offset {offset} of {bytes} bytes"
                    ));
                };
                *end = Some(next);
                // The block's range was in the region, so the sum does not overflow.
                live.place = Some((*region, *start + part.offset));
            }
            if let Some(place) = live.place {
                self.take_range(place, part.bytes)?;
            }
            self.live.insert(first + index as u64, live);
        }
        match blocks.iter().position(|(.., end)| end.is_none()) {
            Some(index) => Err(format!("expected a part in each block, got none in block {index}")),
            None => Ok(()),
        }
    }

    fn retire(&mut self, numbers: &[u64]) -> Checked {
        for number in numbers {
            match self.live.get_mut(number) {
                Some(live) if !live.retired => live.retired = true,
                _ => return Err(format!("expected a live fragment, got {number}")),
            }
        }
        Ok(())
    }

    fn reap(&mut self, numbers: &[u64], freed: bool) -> Checked {
        for number in numbers {
            let Some(live) = self.live.remove(number).filter(|live| live.retired) else {
                return Err(format!("expected a fragment that was retired, got {number}"));
            };
            if let (true, Some(place)) = (freed, live.place) {
                self.give_range(place);
            }
        }
        Ok(())
    }

    fn part(&mut self, number: u64, bytes: u64) -> Checked {
        let Some(region) = self.regions.get_mut(&number) else {
            return Err(format!("expected a region that is there, got {number}"));
        };
        let Some(left) = region.reserved.checked_sub(bytes) else {
            return Err(format!("expected a part of at most {} bytes, got {bytes}", region.reserved));
        };
        region.reserved = left;
        self.reserved -= bytes;
        Ok(())
    }

    fn release(&mut self, number: u64, bytes: u64) -> Checked {
        let region = self.regions.remove(&number);
        let Some(region) = region.filter(|region| region.ranges.is_empty()) else {
            return Err(format!("expected a region that is there and empty, got {number}"));
        };
        expect("a region of bytes", region.reserved, bytes)?;
        self.reserved -= bytes;
        Ok(())
    }

    /// Numbers `count` fragments.
    fn number(&mut self, first: u64, count: u64) -> Checked {
        expect("a fragment with number", self.fragments, first)?;
        self.fragments += count;
        Ok(())
    }

    fn take_range(&mut self, (region, offset): (u64, u64), bytes: u64) -> Checked {
        let Some(LoggedRegion { bytes: size, ranges, .. }) = self.regions.get_mut(&region) else {
            return Err(format!("expected a region that is there, got {region}"));
        };
        let Some(end) = offset.checked_add(bytes).filter(|end| end <= size) else {
            return Err(format!("{bytes} bytes at offset {offset} do not lie in region {region} of {size}"));
        };
        // Of the ranges that begin before this one's end, the last one ends last, since none overlap.
        if let Some((start, other)) = ranges.range(..end).next_back().filter(|(_, other)| **other > offset) {
            return Err(format!(
                "{bytes} bytes at offset {offset} of region {region} overlap those from {start} to {other}"
            ));
        }
        ranges.insert(offset, end);
        Ok(())
    }

    fn give_range(&mut self, (region, offset): (u64, u64)) {
        if let Some(region) = self.regions.get_mut(&region) {
            region.ranges.remove(&offset);
        }
    }
}

fn check_align(align: u64) -> Checked {
    match align.is_power_of_two() {
        true => Ok(()),
        false => Err(format!("expected a power of two as the alignment, got {align}")),
    }
}

fn expect(what: &str, expected: u64, got: u64) -> Checked {
    match expected == got {
        true => Ok(()),
        false => Err(format!("expected {what} {expected}, got {got}")),
    }
}
