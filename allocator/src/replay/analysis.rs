//! The questions that replays of a log answer.

use std::collections::HashMap;
use std::time::Instant;

use super::digest::Digest;
use super::policy::Policy;
use super::report::{Recorded, Replayed, Room};
use super::run::{MAX_BYTES, Run};
use crate::events::{Event, Log};

/// Replays a log.
pub fn replay(log: &Log, policy: Policy, room: Room) -> Replayed {
    let mut run = Run::new(log, policy, room);
    run.keep_digest();
    log.events.iter().enumerate().for_each(|(index, (_, event))| run.step(index, event));
    let mut replayed = run.replayed();
    // Free bytes are computed once, at the peak.
    let mut again = Run::new(log, policy, room);
    let until_peak = log.events.iter().take(run.peak_index() + 1).enumerate();
    until_peak.for_each(|(index, (_, event))| again.step(index, event));
    (replayed.free_at_peak_bytes, replayed.largest_free_at_peak_bytes) = again.free_now();
    replayed
}

/// Mean time of a replay's operation in nanoseconds, the best of three runs. Varies between calls.
pub fn nanoseconds_per_operation(log: &Log, policy: Policy, room: Room) -> f64 {
    let time = |_| {
        let mut run = Run::new(log, policy, room);
        let started = Instant::now();
        log.events.iter().enumerate().for_each(|(index, (_, event))| run.step(index, event));
        started.elapsed().as_nanos() as f64 / run.replayed().operations.max(1) as f64
    };
    (0..3).map(time).fold(f64::INFINITY, f64::min)
}

/// The smallest space in bytes, as a multiple of the granule, in which no request fails; `None` if 2^62 bytes do not suffice.
///
/// Found by bisection. Rarely, a request fails in a space although a smaller one suffices; then the result is not the smallest.
pub fn smallest_space(log: &Log, policy: Policy) -> Option<u64> {
    let granule = log.header.granule;
    let fits = |capacity| {
        let mut run = Run::new(log, policy, Room::Capacity(capacity));
        log.events.iter().enumerate().all(|(index, (_, event))| {
            run.step(index, event);
            !run.has_failed()
        })
    };
    // In the largest space nothing is refused, so no space below its peak of live bytes suffices.
    let mut all = Run::new(log, policy, Room::Capacity(MAX_BYTES));
    log.events.iter().enumerate().for_each(|(index, (_, event))| all.step(index, event));
    if all.has_failed() {
        return None;
    }
    let mut high = all.replayed().peak_live_bytes.checked_next_multiple_of(granule)?;
    let mut low = high;
    while !fits(high) {
        low = high;
        high = high.checked_mul(2).filter(|&high| high <= MAX_BYTES)?;
    }
    while high - low > granule {
        let middle = low + ((high - low) / 2).next_multiple_of(granule);
        if middle >= high {
            break;
        }
        if fits(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// Summarizes the pool's own placements. A replay with its policy has the same digest, unless ranges were freed or placed
/// while a thread waited for a new region.
pub fn recorded(log: &Log) -> Recorded {
    let mut recorded = Recorded { peak_reserved_bytes: 0, regions: 0, digest: Digest::default() };
    let (mut reserved, mut blocks) = (0_u64, HashMap::new());
    for (_, event) in &log.events {
        match event {
            Event::Grow { bytes, .. } => {
                recorded.regions += 1;
                reserved = reserved.saturating_add(*bytes);
                recorded.peak_reserved_bytes = recorded.peak_reserved_bytes.max(reserved);
            }
            Event::Release { bytes, .. } => reserved = reserved.saturating_sub(*bytes),
            Event::Alloc { bytes: 1.., region, offset, .. } => {
                recorded.digest.enter(Some((*region, *offset)))
            }
            Event::Take { block, region, offset, .. } => {
                blocks.insert(*block, (*region, *offset));
                recorded.digest.enter(Some((*region, *offset)));
            }
            Event::Cut { blocks: cut, parts, .. } => {
                let cut: Vec<_> = cut.iter().filter_map(|block| blocks.remove(block)).collect();
                for part in parts.iter().filter(|part| part.bytes > 0) {
                    if let Some(&(region, offset)) = cut.get(part.block as usize) {
                        recorded.digest.enter(Some((region, offset.saturating_add(part.offset))));
                    }
                }
            }
            _ => {}
        }
    }
    recorded
}
