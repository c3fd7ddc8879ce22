//! Blocks that come and go one at a time.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use super::clock;
use crate::contestants::Contestant;
use crate::traces::{Operation, Trace, check_apart};

pub(crate) const OPERATIONS: usize = 1_000_000;
pub(crate) const LIVE: usize = 1000;
/// The search for the smallest space ends at so many hundredths of the peak.
const MOST: u64 = 400;

/// Nanoseconds of an operation.
pub(crate) struct Nanoseconds {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// The smallest space in which no request of the trace fails, in hundredths of the most bytes that are live.
pub(crate) fn smallest<C: Contestant>(trace: &Trace) -> Result<u64, String> {
    for hundredths in 100..=MOST {
        // Room for more is not room for less in every case, but it is close.
        if fits::<C>(trace, trace.of_peak(hundredths))? {
            return Ok(hundredths);
        }
    }
    Err(format!("a request fails in {} times the peak", MOST / 100))
}

/// Runs the trace in a space of that size; `false` when a request fails. Each block is checked against all live ones.
fn fits<C: Contestant>(trace: &Trace, capacity: u64) -> Result<bool, String> {
    let mut space = C::new(capacity)?;
    let mut live: Vec<(u64, C::Live)> = Vec::new();
    let mut ends = BTreeMap::new();
    let mut fits = true;
    for operation in &trace.operations {
        match *operation {
            Operation::Place(size) => {
                let Some((start, block)) = space.allocate(size) else {
                    fits = false;
                    break;
                };
                let below = ends.range(..=start).next_back().is_some_and(|(_, &end)| end > start);
                let above = ends.range(start..).next().is_some_and(|(&next, _)| next < start + size);
                if below || above {
                    return Err(format!("the block of {size} at {start} overlaps another"));
                }
                ends.insert(start, start + size);
                live.push((start, block));
            }
            Operation::Free(at) => {
                let (start, block) = live.swap_remove(at);
                ends.remove(&start);
                space.free(block);
            }
        }
    }
    live.into_iter().for_each(|(_, block)| space.free(block));
    space.drain();
    if space.is_empty() { Ok(fits) } else { Err("not empty at the end".into()) }
}

/// Runs the trace in a space of that size, checking each block, then again, taking the time of each operation. So pages that
/// a contestant keeps its books in have been touched before. `None` when a request fails.
pub(crate) fn round<C: Contestant>(trace: &Trace, capacity: u64) -> Result<Option<Nanoseconds>, String> {
    if !fits::<C>(trace, capacity)? {
        return Ok(None);
    }
    let (clock, mut space) = (clock(), C::new(capacity)?);
    let mut live: Vec<(u64, u64, C::Live)> = Vec::new();
    let mut times = Vec::with_capacity(trace.operations.len());
    for (number, operation) in trace.operations.iter().enumerate() {
        match *operation {
            Operation::Place(size) => {
                let started = Instant::now();
                let placed = black_box(space.allocate(size));
                times.push(started.elapsed().as_nanos() as f64 - clock);
                let Some((start, block)) = placed else { return Ok(None) };
                live.push((start, size, block));
            }
            Operation::Free(at) => {
                let (.., block) = live.swap_remove(at);
                let started = Instant::now();
                space.free(block);
                times.push(started.elapsed().as_nanos() as f64 - clock);
            }
        }
        if number % 100_000 == 0 {
            check_apart(live.iter().map(|&(start, size, _)| (start, size)))?;
        }
    }
    live.into_iter().for_each(|(.., block)| space.free(block));
    space.drain();
    if !space.is_empty() {
        return Err("not empty at the end".into());
    }
    // The clock's cost varies as well: less than none is none, but for the mean.
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    times.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].max(0.0);
    Ok(Some(Nanoseconds { mean, p50: at(0.5), p99: at(0.99), p999: at(0.999) }))
}
